"""Which genes can be predicted, and which cannot."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sthist._sample.verbs import opened, verb
from sthist.pl._base import finish, one_axes
from sthist.pl._expression.found import find_prediction

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from matplotlib.axes import Axes

TRUSTED, NOT_TRUSTED = "tab:blue", "0.65"


@verb
def gene_ranking(
    frame: Any,
    key: str | None = None,
    *,
    n: int = 10,
    table: str | None = None,
    ax: Axes | None = None,
    save: str | Path | None = None,
) -> Axes:
    """Draw how well each gene is predicted where it was held out, best first, above what shuffled tiles reach.

    Parameters
    ----------
    frame
        Scores of genes: ``scores`` of a model, or ``genes`` of :func:`sthist.metrics.expression`; or the model of
        :func:`sthist.tl.train_expression`, or a sample with its predictions, of which they are taken.
    key
        The layer or table of the prediction in a sample; by default the only one.
    n
        So many genes are named, the best and the worst.
    table
        Key of the table, where several have such a layer.
    ax
        Axes to draw on.
    save
        File to save the figure to.

    Returns
    -------
    The axes. Genes that have no score, as they do not vary, are counted in the title.

    Raises
    ------
    KeyError
        If there is no such prediction, or it has no scores.
    TypeError
        If ``frame`` is none of these.
    ValueError
        If no gene has a score.

    Examples
    --------
    >>> import pandas as pd
    >>> import sthist
    >>> scores = pd.DataFrame({"pearson": [0.1, 0.6], "pearson_null": [0.2, 0.2], "trusted": [False, True]}, ["A", "B"])
    >>> sthist.pl.gene_ranking(scores).get_title()
    '1 of 2 genes trusted'
    """
    scores = _scores_of(frame, key, table)
    if "pearson" not in scores:
        raise KeyError("These genes have no scores: train the model with a split that holds rows out.")
    known = scores[np.isfinite(scores["pearson"].to_numpy(np.float64))]
    if not len(known):
        raise ValueError(f"None of the {len(scores)} genes has a score.")
    known = known.sort_values("pearson", ascending=False, kind="stable")
    values, rank = known["pearson"].to_numpy(np.float64), np.arange(1, len(known) + 1)
    trusted = known["trusted"].to_numpy(bool) if "trusted" in known else np.ones(len(known), bool)
    ax = one_axes(ax, (6.5, 4.5))
    size = float(np.clip(3000 / len(known), 4, 30))
    for which, colour, label in ((trusted, TRUSTED, "trusted"), (~trusted, NOT_TRUSTED, "not trusted")):
        if which.any():
            ax.scatter(rank[which], values[which], s=size, color=colour, label=label if "trusted" in known else None)
    for column, style, label in (("pearson_null", "-", "97.5 % of shuffled"), ("ceiling", "--", "noise ceiling")):
        if column in known:
            ax.plot(rank, known[column].to_numpy(np.float64), style, color="0.3", lw=0.8, label=label)
    ax.axhline(0, color="0.8", lw=0.8, zorder=0)
    _name(ax, list(map(str, known.index)), values, n)
    missing = len(scores) - len(known)
    title = f"{int(trusted.sum())} of {len(scores)} genes trusted" if "trusted" in known else f"{len(scores)} genes"
    title += f", {missing} without score" if missing else ""
    ax.set(xlabel="genes, best first", ylabel="Pearson across held-out spots", title=title)
    if ax.get_legend_handles_labels()[0]:
        ax.legend(frameon=False, fontsize="small", loc="upper right")
    return finish([ax], save)[0]


def _scores_of(data: Any, key: str | None, table: str | None) -> pd.DataFrame:
    if hasattr(data, "scores"):  # a model
        return data.scores
    if hasattr(data, "columns") and hasattr(data, "iloc"):
        return data
    return find_prediction(opened(data), key, table).scores


def _name(ax: Axes, names: list[str], values: np.ndarray, n: int) -> None:
    """Write the best genes down the left side of the cloud and the worst down the right, joined to their dots."""
    best = range(min(n, len(names)))
    worst = range(max(len(names) - n, len(best)), len(names))
    low, high = float(values.min()), float(values.max())
    step = max((high - low) / 18, 1e-3)
    for places, at, align in ((best, 0.12, "left"), (worst, 0.88, "right")):
        top = high if align == "left" else low + step * (len(places) - 1)
        for line, place in enumerate(places):
            ax.annotate(
                names[place],
                (place + 1, values[place]),
                (1 + at * len(names), top - line * step),
                fontsize="x-small",
                ha=align,
                va="center",
                arrowprops={"arrowstyle": "-", "color": "0.8", "lw": 0.5},
            )
