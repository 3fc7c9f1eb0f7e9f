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
        So many of the best genes, and of the worst, are named beside the axes, with their scores.
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
    if "pearson_null" in known:
        ax.plot(rank, known["pearson_null"].to_numpy(np.float64), color="0.3", lw=0.8, label="97.5 % of shuffled")
    if "ceiling" in known:
        ax.scatter(rank, known["ceiling"].to_numpy(np.float64), s=size, marker="_", color="0.7", label="noise ceiling")
    ax.axhline(0, color="0.8", lw=0.8, zorder=0)
    _name(ax, list(map(str, known.index)), values, n)
    missing = len(scores) - len(known)
    title = f"{int(trusted.sum())} of {len(scores)} genes trusted" if "trusted" in known else f"{len(scores)} genes"
    title += f", {missing} without score" if missing else ""
    ax.set(xlabel="genes, best first", ylabel="Pearson across spots", title=title)
    if ax.get_legend_handles_labels()[0]:
        ax.legend(frameon=False, fontsize="small", loc="lower left")
    return finish([ax], save)[0]


def _scores_of(data: Any, key: str | None, table: str | None) -> pd.DataFrame:
    if hasattr(data, "scores"):  # a model
        return data.scores
    if hasattr(data, "columns") and hasattr(data, "iloc"):
        return data
    return find_prediction(opened(data), key, table).scores


def _name(ax: Axes, names: list[str], values: np.ndarray, n: int) -> None:
    """Write the best genes beside the top of the axes, and the worst beside its bottom, each with its score."""
    lines = [f"{name}  {value:.2f}" for name, value in zip(names, values, strict=True)]
    best, worst = lines[:n], lines[max(n, len(lines) - n) :]
    for text, y, place in ((best, 1.0, "top"), (worst, 0.0, "bottom")):
        ax.text(1.02, y, "\n".join(text), transform=ax.transAxes, fontsize="x-small", va=place)
