"""Scores of methods beside those of what knows nothing: of models, of variants, and of classes of tiles."""

from __future__ import annotations

import textwrap
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist._messages import plain
from sthist._sample.verbs import verb
from sthist.metrics._compare import PAIRS, by_seed
from sthist.metrics._regions import by_class, region_tests
from sthist.pl._base import finish, one_axes, panel_axes
from sthist.pl._colours import GREY, settle_classes

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
SET_LABELS = {"fid": "FID", "kid": "KID"}
CLASS_INCHES, PANEL_HEIGHT = 0.9, 4.0
ROW_INCHES, GAP = 0.3, 0.8
"""Height of a variant, and the room between two factors in units of it."""

BASELINE = "baseline"

NULL_LINES = (("0.3", "--"), ("C1", "-."), ("C2", ":"))
"""Colours and styles of the lines of what is no model."""

EXPRESSION_LABELS = {
    "pearson_mean": "Pearson correlation of genes, mean",
    "pearson_median": "Pearson correlation of genes, median",
    "beyond_counts": "Pearson correlation of genes, given counts",
    "spearman_mean": "Spearman correlation of genes, mean",
    "spearman_median": "Spearman correlation of genes, median",
    "spot_pearson": "Pearson correlation of spots",
    "pearson_flattened": "Pearson correlation of all values",
    "l1": "mean absolute error",
    "rmse": "root mean squared error",
}


@verb
def benchmark(
    frame: pd.DataFrame,
    metric: str = "pearson_mean",
    *,
    gene_sets: Sequence[str] | None = None,
    level: float = 0.95,
    ncols: int = 3,
    axes: Axes | Sequence[Axes] | np.ndarray | None = None,
    save: str | Path | None = None,
) -> list[Axes]:
    """Draw a score of models of expression: a point per fold and seed, their mean, and its interval.

    One panel per gene set. Grey crosses are the same model with the tiles of other spots, vertical lines are what knows
    no image or no single gene, such as the mean of the training: a model says something of a gene where it lies beyond
    all of them. The interval is Student's, of the mean over folds, each the mean of its seeds; folds that share
    training slides are alike, so that it is too narrow.

    Parameters
    ----------
    frame
        Of :func:`sthist.benchmark.expression`.
    metric
        Column of the score.
    gene_sets
        Which to show; by default all.
    level
        Of the interval.
    ncols
        Panels in a row.
    axes
        Axes to draw on, one per panel.
    save
        File to save the figure to.

    Returns
    -------
    The axes, one per gene set.

    Raises
    ------
    ValueError
        If the frame is none of a benchmark of expression, has no such score or gene set, or ``level`` is out of range.

    Examples
    --------
    >>> import pandas as pd, sthist
    >>> frame = pd.DataFrame(
    ...     {
    ...         "model": ["training mean", "ridge", "ridge"] * 2,
    ...         "method": ["training mean", "model", "shuffled tiles"] * 2,
    ...         "fold": [0, 0, 0, 1, 1, 1],
    ...         "seed": 0,
    ...         "genes": "panel",
    ...         "n_genes": 250,
    ...         "pearson_mean": [0.0, 0.3, 0.01, 0.0, 0.26, -0.02],
    ...     }
    ... )
    >>> axes = sthist.pl.benchmark(frame)
    >>> axes[0].get_title(), [label.get_text() for label in axes[0].get_yticklabels()]
    ('panel (250 genes)', ['ridge'])
    """
    needed = ["model", "method", "fold", "seed", "genes", "n_genes"]
    missing = [name for name in [*needed, metric] if name not in frame]
    if missing:
        raise ValueError(
            f"The table has no column {missing[0]!r}, but {list(frame.columns)}; it comes from benchmark.expression."
        )
    if not 0 < level < 1:
        raise ValueError(f"level is {level!r}; it lies between 0 and 1.")
    known = list(dict.fromkeys(frame["genes"]))
    shown = known if gene_sets is None else [gene_sets] if isinstance(gene_sets, str) else list(gene_sets)
    unknown = [name for name in shown if name not in known]
    if unknown or not shown:
        raise ValueError(
            f"The table has no gene set {unknown[0] if unknown else '(none is asked for)'!r}, but {known}."
        )
    models = list(dict.fromkeys(frame["model"][frame["method"] == "model"]))
    drawn = panel_axes(len(shown), ncols, (4.6, 1.3 + 2 * ROW_INCHES * len(models)), axes, shown)
    for ax, name in zip(drawn, shown, strict=True):
        _models(ax, frame[frame["genes"] == name], metric, models, level)
        sizes = sorted({int(n) for n in frame["n_genes"][frame["genes"] == name]})
        ax.set_title(f"{name} ({'–'.join(map(str, sizes[:: max(1, len(sizes) - 1)]))} genes)", fontsize="medium")
        ax.set_xlabel(EXPRESSION_LABELS.get(metric, metric))
        if metric in frame.attrs.get("dominated_by_gene_means", ()):
            ax.set_xlabel(f"{ax.get_xlabel()}\n(dominated by the genes' means)")
    if axes is None:  # names once in a row of panels
        for number, ax in enumerate(drawn):
            if number % min(len(shown), ncols):
                ax.set_yticklabels([])
    last = drawn[min(len(shown), ncols) - 1]  # of the first row: beside it there is room, whatever the scores are
    last.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize="small")
    return finish(drawn, save)


def _models(ax: Axes, frame: pd.DataFrame, metric: str, models: list[str], level: float) -> None:
    """A row per model, its shuffled tiles in it, and across all what is no model."""
    for at, name in enumerate(models):
        own = frame[frame["model"] == name]
        points = own[own["method"] == "model"]
        null = own[own["method"] == "shuffled tiles"][metric].to_numpy(float)
        ax.plot(
            null, np.full(len(null), at + 0.18), "x", color="0.6", markersize=4, label="" if at else "shuffled tiles"
        )
        ax.plot(points[metric], np.full(len(points), at), "o", color="C0", alpha=0.5, markersize=4)
        _mean_and_interval(ax, at, points.groupby("fold")[metric].mean().dropna().to_numpy(float), level)
    nulls = frame[~frame["method"].isin(["model", "shuffled tiles"])]
    means = nulls.groupby("method", sort=False)[metric].mean().dropna()
    for (method, value), (color, style) in zip(means.items(), cycle(NULL_LINES), strict=False):
        ax.axvline(value, color=color, linestyle=style, linewidth=1.2, zorder=0, label=str(method))
    ax.set_yticks(range(len(models)), models)
    ax.set_ylim(len(models) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)
    ax.spines[["top", "right"]].set_visible(False)


@verb
def ablation(
    frame: pd.DataFrame,
    metric: str = "ssim",
    *,
    method: str = "model",
    baselines: bool = True,
    level: float = 0.95,
    ax: Axes | None = None,
    save: str | Path | None = None,
) -> Axes:
    """Draw a score of each variant: a point per seed, their mean, and its interval.

    Variants stand below each other, grouped by what they change. The interval is Student's, of the mean over seeds; one
    seed has none. Dashed lines are what was not trained.

    Parameters
    ----------
    frame
        Of :func:`sthist.benchmark.ablate_virtual_he`.
    metric
        A score of tiles, which is averaged over the tiles of a seed, or ``"fid"`` or ``"kid"``.
    method
        Whose scores.
    baselines
        Draw what was not trained, and the model's image of another tile under the first variant.
    level
        Of the interval.
    ax
        Axes to draw on.
    save
        File to save the figure to.

    Returns
    -------
    The axes.

    Raises
    ------
    ValueError
        If the frame has no variants, no such score or method, the score was not available, or ``level`` is out of
        range.

    Examples
    --------
    >>> import pandas as pd, sthist
    >>> frame = pd.DataFrame(
    ...     {
    ...         "variant": ["base"] * 3 + ["one colour"] * 3,
    ...         "factor": ["base"] * 3 + ["mode"] * 3,
    ...         "method": "model",
    ...         "seed": [0, 1, 2] * 2,
    ...         "ssim": [0.6, 0.62, 0.61, 0.5, 0.52, 0.54],
    ...     }
    ... )
    >>> ax = sthist.pl.ablation(frame)
    >>> ax.get_xlabel(), [label.get_text() for label in ax.get_yticklabels()]
    ('SSIM', ['base', 'one colour'])
    """
    seeds = _scores(frame, metric)
    trained = seeds[(seeds["factor"] != BASELINE) & (seeds["method"] == method)]
    if not len(trained):
        raise ValueError(
            f"The table has no variants of the method {method!r}, but {plain(sorted(set(seeds['method'])))}."
        )
    if not 0 < level < 1:
        raise ValueError(f"level is {level!r}; it lies between 0 and 1.")
    places = _places(trained)
    ax = one_axes(ax, (6.0, 0.9 + ROW_INCHES * (max(places.values()) + 2)))
    for variant, part in trained.groupby("variant", sort=False):
        _draw(ax, places[str(variant)], part["value"].to_numpy(float), level)
    _name_rows(ax, trained, places)
    if baselines:
        _lines(ax, _baselines(seeds, str(trained["variant"].iloc[0])))
    label = SET_LABELS.get(metric, LABELS.get(metric, metric))
    ax.set(xlabel=label, ylim=(max(places.values()) + 0.7, -0.7))
    ax.spines[["top", "right"]].set_visible(False)
    return finish([ax], save)[0]


def _scores(frame: pd.DataFrame, metric: str) -> pd.DataFrame:
    """One value per variant, factor, method and seed."""
    keys = ["variant", "factor", "method"]
    missing = [name for name in [*keys, "seed"] if name not in frame]
    if missing:
        raise ValueError(
            f"The table has no column {missing[0]!r}, but {list(frame.columns)}; it comes from "
            "benchmark.ablate_virtual_he."
        )
    seeds = by_seed(frame, keys)
    reasons = frame.attrs.get("not_available", {})
    if metric not in seeds:
        raise ValueError(
            f"The table has no score {metric!r}; it has "
            f"{[name for name in seeds if name not in (*keys, 'seed', 'n_tiles')]}."
        )
    if seeds[metric].isna().all():
        raise ValueError(f"The score {metric!r} is not available: {reasons.get(metric, 'all its values are missing.')}")
    return seeds[[*keys, "seed", metric]].rename(columns={metric: "value"})


def _places(trained: pd.DataFrame) -> dict[str, float]:
    """Height of each variant: in the order of the table, those of one factor together."""
    places: dict[str, float] = {}
    for i, (_, part) in enumerate(trained.groupby("factor", sort=False)):
        for variant in dict.fromkeys(part["variant"]):
            places[str(variant)] = len(places) + i * GAP
    return places


def _draw(ax: Axes, at: float, values: np.ndarray, level: float) -> None:
    """Points of the seeds, their mean, and its interval."""
    ax.plot(values, np.full(len(values), at), "o", color="C0", alpha=0.5, markersize=4, zorder=2)
    _mean_and_interval(ax, at, values, level)


def _mean_and_interval(ax: Axes, at: float, values: np.ndarray, level: float) -> None:
    from scipy import stats

    if not len(values):
        return
    mean = float(values.mean())
    ax.plot([mean], [at], "|", color="black", markersize=12, markeredgewidth=1.8, zorder=3)
    if len(values) > 1:
        low, high = stats.t.interval(level, len(values) - 1, mean, stats.sem(values))
        ax.hlines(at, low, high, color="0.4", linewidth=1.2, zorder=1)


def _name_rows(ax: Axes, trained: pd.DataFrame, places: dict[str, float]) -> None:
    """Names of the variants on the left, of what they change on the right."""
    ax.set_yticks(list(places.values()), list(places))
    ax.tick_params(axis="y", length=0)
    for factor, part in trained.groupby("factor", sort=False):
        if factor != "base":
            rows = [places[str(variant)] for variant in dict.fromkeys(part["variant"])]
            _beside(ax, str(factor), float(np.mean(rows)), "0.4")


def _beside(ax: Axes, text: str, at: float, color: str) -> None:
    """Write to the right of the axes, at some height of the data."""
    ax.annotate(
        text,
        (1, at),
        xycoords=("axes fraction", "data"),
        xytext=(4, 0),
        textcoords="offset points",
        va="center",
        fontsize="small",
        color=color,
    )


def _baselines(seeds: pd.DataFrame, first: str) -> dict[str, float]:
    """Mean score of what was not trained, and of images of other tiles."""
    lines = seeds[seeds["factor"] == BASELINE].groupby("method", sort=False)["value"].mean().to_dict()
    other = seeds[(seeds["variant"] == first) & (seeds["method"] == "shuffled")]["value"]
    return {str(name): value for name, value in lines.items()} | ({"shuffled": other.mean()} if len(other) else {})


def _lines(ax: Axes, lines: dict[str, float]) -> None:
    shown = {name: value for name, value in lines.items() if np.isfinite(value)}
    for i, (name, value) in enumerate(shown.items()):
        ax.axvline(value, color=f"C{i + 1}", linestyle="--", linewidth=1.2, zorder=0, label=name)
    if shown:
        ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False, fontsize="small")


@verb
def image_metrics(
    frame: pd.DataFrame,
    *,
    metrics: Sequence[str] | None = None,
    groupby: str = "class",
    method: str = "virtual",
    null: str | None = "mean colour",
    tests: bool = True,
    ncols: int = 3,
    axes: Axes | Sequence[Axes] | np.ndarray | None = None,
    save: str | Path | None = None,
) -> list[Axes]:
    """Box plots of image scores by class, one panel per score.

    Brackets mark classes that differ by Tukey's test: one star p < 0.05, two p < 0.01, three p < 0.001. Boxes are
    quartiles and median, whiskers reach 1.5 times the box. A dashed line is the median of a prediction that knows
    nothing of the tile.

    Parameters
    ----------
    frame
        From :func:`sthist.metrics.image.compare`, with classes.
    metrics
        Which scores to show; by default all of tiles that there are.
    groupby
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
        raise ValueError(f"The table has no scores of tiles to show, only {list(frame.columns)}.")
    groups = [by_class(frame, name, groupby, method) for name in shown]
    colours = settle_classes([frame[groupby]]).by_name()
    results = [region_tests(frame, name, groupby, method=method) if tests else None for name in shown]
    size = (1.3 + CLASS_INCHES * len(groups[0]), PANEL_HEIGHT)
    drawn = panel_axes(len(shown), ncols, size, axes, shown)
    with_null = null is not None and "method" in frame.columns and null in set(frame["method"])
    for ax, name, values, result in zip(drawn, shown, groups, results, strict=True):
        _boxes(ax, values, colours)
        ax.set_ylabel(LABELS.get(name, name))
        if with_null and null != method:
            _null_line(ax, by_class(frame, name, groupby, str(null)), list(values), str(null))
        if result is not None:
            ax.set_title(f"ANOVA p {_format_p(result.p)}", fontsize="medium")
            _brackets(ax, result.pairs, list(values))
    return finish(drawn, save)


def _boxes(ax: Axes, values: Mapping[Any, np.ndarray], colours: Mapping[str, Any]) -> None:
    """One box per class, in its colour, with the number of its tiles."""
    names = [textwrap.fill(str(name), 12, break_long_words=False) for name in values]
    boxes = ax.boxplot(
        list(values.values()),
        tick_labels=[f"{name}\nn = {len(group)}" for name, group in zip(names, values.values(), strict=True)],
        widths=0.6,
        patch_artist=True,
        medianprops={"color": "black", "linewidth": 1.5},
        flierprops={"marker": ".", "markersize": 3, "markerfacecolor": "0.5", "markeredgewidth": 0},
    )
    for name, box in zip(values, boxes["boxes"], strict=True):
        box.set(facecolor=colours.get(str(name), GREY), alpha=0.55)
    ax.tick_params(axis="x", labelsize="small", length=0)
    ax.spines[["top", "right"]].set_visible(False)


def _null_line(ax: Axes, values: Mapping[Any, np.ndarray], classes: Sequence[Any], name: str) -> None:
    """The median of a prediction that knows nothing, class by class, named beside the last."""
    medians = [float(np.median(values[key])) if key in values else np.nan for key in classes]
    at = np.arange(1, len(classes) + 1)
    ax.hlines(medians, at - 0.5, at + 0.5, colors="0.3", linestyles="--", linewidth=1.2, label=name)
    ax.set_xlim(0.5, len(classes) + 0.5)
    _beside(ax, name.replace(" ", "\n"), medians[-1], "0.3")


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
