"""Whether synthetic tiles help a predictor: scores over their number, and errors gene by gene."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sthist._messages import listed
from sthist._sample.verbs import verb
from sthist.pl._base import finish, panel_axes

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import pandas as pd
    from matplotlib.axes import Axes

REAL, BOTH, SYNTHETIC, MEAN = "real", "real + synthetic", "synthetic", "training mean"
CURVES: dict[str, dict[str, Any]] = {
    BOTH: {"color": "#d95f02", "linestyle": "-", "linewidth": 2.0, "zorder": 4},
    "real, equal steps": {"color": "0.25", "linestyle": "--"},
    "real, augmented": {"color": "#1b9e77", "linestyle": "--"},
    SYNTHETIC: {"color": "#e6ab02", "linestyle": ":"},
}
POINTS: dict[str, dict[str, Any]] = {
    "real + synthetic, augmented": {"color": "#d95f02", "marker": "^"},
    "real + shuffled pairs": {"color": "0.6", "marker": "x"},
}
LINES: dict[str, dict[str, Any]] = {REAL: {"color": "0.25", "linestyle": "-"}, MEAN: {"color": "0.6", "linestyle": ":"}}

LABELS = {
    "mae": "mean absolute error",
    "pearson": "Pearson correlation of genes",
    "accuracy": "accuracy of clusters",
    "f1": "macro F1 of clusters",
    "auc_ovr": "AUC of clusters, one against rest",
    "auc_ovo": "AUC of clusters, one against one",
}
NAMES = {
    "real_equal_steps": "real, equal steps",
    "real_augmented": "real, augmented",
    "real_synthetic": BOTH,
    "real_synthetic_augmented": "real + synthetic, augmented",
    "real_shuffled_pairs": "real + shuffled pairs",
}
"""Of layers of predictions."""

PANEL = (3.4, 3.2)
LEGEND_WIDTH = 2.0
"""Of the names of all arms, in inches."""


@verb
def augmentation(
    frame: Any,
    metric: str = "mae",
    *,
    fractions: Sequence[float] | None = None,
    ncols: int = 4,
    axes: Axes | Sequence[Axes] | np.ndarray | None = None,
    save: str | Path | None = None,
) -> list[Axes]:
    """Draw a score over the number of synthetic tiles, beside training for as long and ordinary augmentation.

    A panel for each fraction of the spots. The band is the interval over draws of seeds and of test spots; a large part
    of it is shared by all curves, so that a filled marker says where real and synthetic tiles together differ from the
    best control, draw by draw, and an open one where they do not.

    Parameters
    ----------
    frame
        A result of :func:`sthist.benchmark.augmentation`.
    metric
        As of its ``summary``.
    fractions
        Which to show; by default all.
    ncols
        Panels in a row.
    axes
        Axes to draw on, one for each fraction.
    save
        File to save the figure to.

    Returns
    -------
    The axes, one for each fraction.

    Raises
    ------
    TypeError
        If ``frame`` is no such result.
    ValueError
        If there is no such score or fraction, or the number of axes is wrong.

    Examples
    --------
    >>> import numpy as np, pandas as pd, sthist
    >>> rows = [("real", 0, 0.5), ("real, equal steps", 1, 0.47), ("real + synthetic", 0, 0.5)]
    >>> rows += [("real + synthetic", 1, 0.45)]
    >>> scores = pd.DataFrame(rows, columns=["arm", "ratio", "mae"])
    >>> scores = scores.assign(fraction=0.25, seed=0, n_spots=136, steps=300)
    >>> draws = {"mae": scores[["mae"]].to_numpy()}
    >>> found = sthist.benchmark.AugmentationScores(scores, draws, {}, pd.DataFrame())
    >>> [ax.get_title() for ax in sthist.pl.augmentation(found)]
    ['136 spots (25 %)']
    """
    if not hasattr(frame, "summary") or not hasattr(frame, "scores"):
        raise TypeError(f"frame is a result of benchmark.augmentation, not {type(frame).__name__}.")
    summary = frame.summary(metric)
    shown = _chosen(summary["fraction"].unique().tolist(), fractions)
    drawn = panel_axes(len(shown), ncols, PANEL, axes, [f"{each:g}" for each in shown])
    limits = _limits(summary[summary["fraction"].isin(shown)])
    for number, (ax, fraction) in enumerate(zip(drawn, shown, strict=True)):
        part = summary[summary["fraction"] == fraction]
        _panel(ax, part)
        ax.set_title(f"{int(part['n_spots'].iloc[0])} spots ({100 * fraction:g} %)", fontsize="medium")
        ax.set_ylim(*limits)
        ax.set_xlabel("synthetic tiles of each spot", fontsize="small")
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize="small")
        if number % ncols == 0 or axes is not None:
            ax.set_ylabel(LABELS.get(metric, metric), fontsize="small")
        elif axes is None:
            ax.set_yticklabels([])
    last = drawn[min(len(shown), ncols) - 1]
    if axes is None:  # the legend lies beside the panels, not on the room of the last
        figure: Any = last.figure
        figure.set_size_inches(figure.get_figwidth() + LEGEND_WIDTH, figure.get_figheight())
    last.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize="small")
    return finish(drawn, save)


@verb
def gene_errors(
    frame: Any,
    layers: Sequence[str] = ("real_equal_steps", "real_synthetic"),
    metric: str = "mae",
    *,
    fractions: Sequence[float] | None = None,
    ncols: int = 4,
    axes: Axes | Sequence[Axes] | np.ndarray | None = None,
    save: str | Path | None = None,
) -> list[Axes]:
    """Draw how well each gene is predicted by two ways to train, a dot for each gene.

    A panel for each fraction of the spots; scores of a gene are means over the seeds in which it was predicted, each
    over the spots that test. Dots on the better side of the line are coloured.

    Parameters
    ----------
    frame
        A result of :func:`sthist.benchmark.augmentation`.
    layers
        Two layers of its ``tables``: what is compared, and with what.
    metric
        ``"mae"``, or ``"pearson"`` across the spots of a sample.
    fractions
        Which to show; by default all.
    ncols
        Panels in a row.
    axes
        Axes to draw on, one for each fraction.
    save
        File to save the figure to.

    Returns
    -------
    The axes, one for each fraction.

    Raises
    ------
    KeyError
        If there is no such layer.
    TypeError
        If ``frame`` is no such result.
    ValueError
        If there is no such score or fraction, there are not two layers, or the number of axes is wrong.

    Examples
    --------
    >>> import anndata as ad, numpy as np, pandas as pd, sthist
    >>> rng = np.random.default_rng(0)
    >>> table = ad.AnnData(rng.random((20, 5), np.float32))
    >>> table.obs["sample"] = "a"
    >>> for name, noise in (("real_equal_steps", 0.3), ("real_synthetic", 0.1)):
    ...     table.layers[name] = table.X + rng.normal(0, noise, table.shape)
    >>> found = sthist.benchmark.AugmentationScores(pd.DataFrame(), {}, {(0.25, 0): table}, pd.DataFrame())
    >>> [ax.get_title() for ax in sthist.pl.gene_errors(found)]
    ['25 %: 5 of 5 genes better']
    """
    if not hasattr(frame, "tables"):
        raise TypeError(f"frame is a result of benchmark.augmentation, not {type(frame).__name__}.")
    if metric not in ("mae", "pearson"):
        raise ValueError(f"metric is {metric!r}; it is one of 'mae', 'pearson'.")
    pair = list(layers)
    if len(pair) != 2:
        raise ValueError(f"layers names {len(pair)}; two are compared.")
    shown = _chosen(list(dict.fromkeys(fraction for fraction, _ in frame.tables)), fractions)
    drawn = panel_axes(len(shown), ncols, PANEL, axes, [f"{each:g}" for each in shown])
    for ax, fraction in zip(drawn, shown, strict=True):
        tables = [table for (each, _), table in frame.tables.items() if each == fraction]
        values = _by_gene(tables, pair, metric)
        one, other = (values[name].to_numpy(float) for name in pair)
        better = other < one if metric == "mae" else other > one
        every = np.concatenate([one, other])
        every = every[np.isfinite(every)]
        margin = 0.05 * max(float(np.ptp(every)), 1e-6)
        limits = float(every.min()) - margin, float(every.max()) + margin
        ax.plot(limits, limits, color="0.7", linewidth=1, zorder=1)
        ax.scatter(one[~better], other[~better], s=10, color="0.55", linewidths=0, zorder=2)
        ax.scatter(one[better], other[better], s=10, color="#d95f02", linewidths=0, zorder=3)
        ax.set(xlim=limits, ylim=limits, aspect="equal")
        ax.set_title(f"{100 * fraction:g} %: {int(better.sum())} of {len(one)} genes better", fontsize="medium")
        ax.set_xlabel(f"{LABELS[metric]}\n{NAMES.get(pair[0], pair[0])}", fontsize="small")
        ax.set_ylabel(NAMES.get(pair[1], pair[1]), fontsize="small")
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize="small")
    return finish(drawn, save)


def _chosen(known: list[float], wanted: Sequence[float] | None) -> list[float]:
    """The fractions to show, of those that there are."""
    if wanted is None:
        return known
    listed_ones = [float(wanted)] if isinstance(wanted, int | float) else [float(each) for each in wanted]
    unknown = [each for each in listed_ones if each not in known]
    if unknown or not listed_ones:
        raise ValueError(f"fractions= has {unknown[:1] or 'none'}; the benchmark has {listed(known)}.")
    return listed_ones


def _panel(ax: Axes, part: pd.DataFrame) -> None:
    """Curves over the ratios, lines across, and single points at the largest ratio."""
    ratios = sorted(part["ratio"].unique().tolist())
    place = {ratio: at for at, ratio in enumerate(ratios)}
    for arm, how in LINES.items():
        own = part[part["arm"] == arm]
        if len(own):
            ax.axhline(own["mean"].iloc[0], linewidth=1.2, label=arm, zorder=1, **how)
    for arm, how in CURVES.items():
        own = part[part["arm"] == arm].sort_values("ratio")
        if not len(own):
            continue
        at = [place[ratio] for ratio in own["ratio"]]
        style: dict[str, Any] = {"linewidth": 1.3, "zorder": 3, **how}
        if arm == BOTH:
            ax.plot(at, own["mean"], label=arm, **style)
            ax.fill_between(at, own["low"], own["high"], color=how["color"], alpha=0.15, linewidth=0, zorder=0)
            _markers(ax, at, own)
        else:
            ax.plot(at, own["mean"], marker="o", markersize=3, label=arm, **style)
    for arm, how in POINTS.items():
        own = part[part["arm"] == arm]
        if len(own):
            ax.plot([place[own["ratio"].iloc[0]]], [own["mean"].iloc[0]], linestyle="", markersize=6, label=arm, **how)
    ax.set_xticks(range(len(ratios)), [f"{ratio:g}" for ratio in ratios])
    ax.set_xlim(-0.25, len(ratios) - 0.75)


def _markers(ax: Axes, at: list[int], own: pd.DataFrame) -> None:
    """Filled where the interval of the difference to the best control leaves out 0."""
    for place, row in zip(at, own.to_dict("records"), strict=True):
        apart = row.get("difference_low", np.nan) > 0 or row.get("difference_high", np.nan) < 0
        face = "#d95f02" if apart else "white"
        ax.plot([place], [row["mean"]], "o", markersize=6, color="#d95f02", markerfacecolor=face, zorder=5)


def _limits(summary: pd.DataFrame) -> tuple[float, float]:
    """Of all panels: tiles that are synthetic alone can be far off, and would flatten all else."""
    near = summary[summary["arm"] != SYNTHETIC]
    both = near[near["arm"] == BOTH]
    values = np.concatenate([near["mean"], both["low"], both["high"]]).astype(float)
    values = values[np.isfinite(values)]
    margin = 0.06 * max(float(np.ptp(values)), 1e-6)
    return float(values.min()) - margin, float(values.max()) + margin


def _by_gene(tables: list[Any], layers: list[str], metric: str) -> pd.DataFrame:
    """A score of each gene in each layer, means over the tables that have it."""
    import pandas as pd

    from sthist.metrics import gene_pearson

    frames = []
    for table in tables:
        missing = [name for name in layers if name not in table.layers]
        if missing:
            raise KeyError(f"The tables have no layer {missing[0]!r}; they have {listed(table.layers)}.")
        truth = np.asarray(table.X, np.float64)
        columns = {}
        for name in layers:
            predicted = np.asarray(table.layers[name], np.float64)
            if metric == "mae":
                columns[name] = np.abs(predicted - truth).mean(axis=0)
            else:
                columns[name] = gene_pearson(truth, predicted, groups=table.obs["sample"].to_numpy())
        frames.append(pd.DataFrame(columns, index=table.var_names))
    return pd.concat(frames).groupby(level=0).mean().dropna()
