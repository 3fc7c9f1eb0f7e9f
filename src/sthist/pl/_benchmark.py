"""Scores of virtual tiles by class, with tests of the differences, in box plots."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist.metrics._compare import PAIRS
from sthist.metrics._regions import by_class, region_tests
from sthist.pl._base import finish

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import pandas as pd
    from matplotlib.axes import Axes

LABELS = {"mse": "MSE", "psnr": "PSNR (dB)", "ssim": "SSIM", "lpips": "LPIPS", "clip": "CLIP similarity"} | {
    "nucleus_f1": "nuclei, F1",
    "nucleus_iou": "nuclei, IoU",
    "nucleus_shift_um": "nuclei, shift (µm)",
}
CLASS_INCHES = 0.9
PANEL_HEIGHT = 4.0


def image_metrics(
    frame: pd.DataFrame,
    *,
    metrics: Sequence[str] | None = None,
    by: str = "class",
    method: str = "virtual",
    null: str | None = "mean colour",
    tests: bool = True,
    ncols: int = 3,
    axes: Axes | Sequence[Axes] | np.ndarray | None = None,
    save: str | Path | None = None,
) -> list[Axes]:
    """Box plots of image scores by class, one panel per score.

    Brackets mark classes that differ by Tukey's test: one star p < 0.05, two p < 0.01, three p < 0.001. Boxes are quartiles and
    median, whiskers reach 1.5 times the box. A dashed line is the median of a prediction that knows nothing of the tile.

    Parameters
    ----------
    frame
        From :func:`sthist.metrics.image.compare`, with classes.
    metrics
        Which scores to show; by default all of tiles that there are.
    by
        Column of the class.
    method
        Whose scores.
    null
        Method whose median is the dashed line, where the frame has it; None for no line.
    tests
        Test the differences between classes.
    ncols
        Panels in a row.
    axes
        Axes to draw on, one per panel.
    save
        File to save the figure to.

    Returns
    -------
    The axes, one per panel.

    Raises
    ------
    ValueError
        If a score is missing or not finite, the number of axes is wrong, or classes cannot be tested, as of
        :func:`sthist.metrics.image.region_tests`.

    Examples
    --------
    >>> import numpy as np
    >>> import pandas as pd
    >>> from sthist.pl._benchmark import image_metrics
    >>> ssim = np.r_[np.linspace(0.5, 0.6, 20), np.linspace(0.6, 0.7, 20)]
    >>> axes = image_metrics(pd.DataFrame({"class": ["stroma"] * 20 + ["tumour"] * 20, "ssim": ssim}))
    >>> axes[0].get_ylabel(), [text.get_text() for text in axes[0].texts]
    ('SSIM', ['***'])
    """
    there = [name for name in PAIRS if name in frame.columns and frame[name].notna().any()]
    shown = there if metrics is None else [metrics] if isinstance(metrics, str) else list(metrics)
    if not shown:
        msg = f"The table has no scores of tiles to show, only {list(frame.columns)}."
        raise ValueError(msg)
    groups = [by_class(frame, name, by, method) for name in shown]
    results = [region_tests(frame, name, by, method=method) if tests else None for name in shown]
    drawn = _axes(len(shown), ncols, len(groups[0]), axes)
    with_null = null is not None and "method" in frame.columns and null in set(frame["method"])
    for ax, name, values, result in zip(drawn, shown, groups, results, strict=True):
        _boxes(ax, values)
        ax.set_ylabel(LABELS.get(name, name))
        if with_null and null != method:
            _null_line(ax, by_class(frame, name, by, str(null)), list(values), str(null))
        if result is not None:
            ax.set_title(f"ANOVA p {_format_p(result.p)}", fontsize="medium")
            _brackets(ax, result.pairs, list(values))
    return finish(drawn, save)


def _axes(n: int, ncols: int, n_classes: int, axes: Any) -> list[Axes]:
    """The given axes, checked, or new ones that are wide enough for the classes."""
    import matplotlib.pyplot as plt

    if axes is not None:
        given = list(np.ravel(np.asarray(axes, dtype=object)))
        if len(given) != n:
            msg = f"{n} panels need as many axes; {len(given)} are given."
            raise ValueError(msg)
        return given
    columns = min(n, ncols)
    rows = -(-n // columns)
    width = 1.3 + CLASS_INCHES * n_classes
    figure, grid = plt.subplots(
        rows, columns, figsize=(width * columns, PANEL_HEIGHT * rows), squeeze=False, layout="constrained"
    )
    flat = list(grid.ravel())
    for unused in flat[n:]:
        figure.delaxes(unused)
    return flat[:n]


def _boxes(ax: Axes, values: Mapping[Any, np.ndarray]) -> None:
    """One box per class, with the number of its tiles."""
    names = [textwrap.fill(str(name), 12, break_long_words=False) for name in values]
    boxes = ax.boxplot(
        list(values.values()),
        tick_labels=[f"{name}\nn = {len(group)}" for name, group in zip(names, values.values(), strict=True)],
        widths=0.6,
        patch_artist=True,
        medianprops={"color": "black", "linewidth": 1.5},
        flierprops={"marker": ".", "markersize": 3, "markerfacecolor": "0.5", "markeredgewidth": 0},
    )
    for i, box in enumerate(boxes["boxes"]):
        box.set(facecolor=f"C{i}", alpha=0.55)
    ax.tick_params(axis="x", labelsize="small", length=0)
    ax.spines[["top", "right"]].set_visible(False)


def _null_line(ax: Axes, values: Mapping[Any, np.ndarray], classes: Sequence[Any], name: str) -> None:
    """The median of a prediction that knows nothing, class by class, named beside the last."""
    medians = [float(np.median(values[key])) for key in classes]
    at = np.arange(1, len(classes) + 1)
    ax.hlines(medians, at - 0.5, at + 0.5, colors="0.3", linestyles="--", linewidth=1.2, label=name)
    ax.set_xlim(0.5, len(classes) + 0.5)
    ax.annotate(
        name.replace(" ", "\n"),
        (1, medians[-1]),
        xycoords=("axes fraction", "data"),
        xytext=(3, 0),
        textcoords="offset points",
        va="center",
        fontsize="small",
        color="0.3",
    )


def _brackets(ax: Axes, pairs: pd.DataFrame, classes: Sequence[Any]) -> None:
    """Brackets over the classes that differ, the short ones lowest, none over another."""
    bottom, top = ax.get_ylim()
    step = 0.1 * (top - bottom)
    levels: list[list[tuple[int, int]]] = []
    spans = [
        (classes.index(a) + 1, classes.index(b) + 1, stars(p))
        for a, b, p in zip(pairs["a"], pairs["b"], pairs["p"], strict=True)
        if stars(p)
    ]
    for left, right, mark in sorted(spans, key=lambda span: (span[1] - span[0], span[0])):
        level = next(
            (k for k, taken in enumerate(levels) if all(right <= x0 or left >= x1 for x0, x1 in taken)), len(levels)
        )
        if level == len(levels):
            levels.append([])
        levels[level].append((left, right))
        y = top + step * level
        ax.plot([left + 0.06] * 2 + [right - 0.06] * 2, [y, y + step / 5, y + step / 5, y], color="black", linewidth=1)
        # The star of most fonts hangs at the top of its line.
        middle = ((left + right) / 2, y + step / 5)
        ax.annotate(mark, middle, xytext=(0, -0.5), textcoords="offset points", ha="center", va="baseline")
    ax.set_ylim(bottom, top + step * (len(levels) + 0.2 if levels else 0))


def stars(p: float) -> str:
    """Significance as stars.

    Examples
    --------
    >>> from sthist.pl._benchmark import stars
    >>> [stars(p) for p in (0.2, 0.04, 0.004, 0.0004)]
    ['', '*', '**', '***']
    """
    return "*" * sum(p < limit for limit in (0.05, 0.01, 0.001))


def _format_p(p: float) -> str:
    """A p-value with its sign of relation, as it stands after a p."""
    return "< 1e-10" if p < 1e-10 else f"= {p:.2g}"
