"""What niches are made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sthist._sample.verbs import verb
from sthist._tables.find import find_column
from sthist._tables.labels import class_names
from sthist.pl._base import finish, one_axes
from sthist.pl._colours import Classes, class_colours, colours_of, place_legend

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes
    from spatialdata import SpatialData


@verb
def niche_composition(
    data: SpatialData | AnnData,
    key: str = "niche",
    groupby: str | None = None,
    *,
    table: str | None = None,
    ax: Axes | None = None,
    save: str | Path | None = None,
) -> Axes:
    """Stacked bars of what each niche is made of, or of which niches each group is made of.

    Bars that are alike stand side by side (average linkage, ordered so that neighbours are as near as they can be).

    Parameters
    ----------
    data
        A table with niches, as of :func:`sthist.tl.niches`, or one sample.
    key
        Column of the niches; ``obsm[key + "_composition"]`` holds what they are made of.
    groupby
        Without it, a bar is a niche, and its parts are the mean shares of the classes. With it, a bar is a value of
        this column, such as a core or a sample, and its parts are the shares of the niches among its cells.
    table
        Key of the table; by default the only one that has ``key``.
    ax
        Axes to draw on.
    save
        File to save the figure to.

    Returns
    -------
    The axes.

    Raises
    ------
    KeyError
        If there is no such column, or no composition.
    ValueError
        If no row has a niche.

    Examples
    --------
    >>> import sthist
    >>> sdata = sthist.datasets.toy(size_um=300)
    >>> sthist.tl.niches(sdata, "cell_type", n_niches=3)
    >>> ax = sthist.pl.niche_composition(sdata["table"])
    >>> sorted(label.get_text() for label in ax.get_xticklabels())
    ['1', '2', '3']
    """
    import matplotlib.pyplot as plt

    where, adata = find_column(data, key, table)
    if groupby is not None:
        find_column(adata if where is None else data, groupby, where)
    shares, part_colours = _of_niches(adata, key) if groupby is None else _of_groups(adata, key, groupby)
    if not len(shares):
        raise ValueError(f"No row has a niche in {key!r}.")
    shares = shares.iloc[by_likeness(shares.to_numpy())]
    ax = one_axes(ax, (1.8 + 0.45 * len(shares), 3.6))
    bottom = np.zeros(len(shares))
    for name in shares.columns:
        height = shares[name].to_numpy()
        ax.bar(range(len(shares)), height, bottom=bottom, width=0.9, color=part_colours[name], label=str(name))
        bottom += height
    names = [str(name) for name in shares.index]
    ax.set_xticks(range(len(names)), names)
    if max(map(len, names)) > 3:
        ax.tick_params("x", rotation=45)
        plt.setp(ax.get_xticklabels(), ha="right", rotation_mode="anchor")
    ax.set(xlabel=groupby or key, ylabel="share", ylim=(0, 1), xlim=(-0.6, len(shares) - 0.4))
    handles, labels = ax.get_legend_handles_labels()
    place_legend(ax, handles=handles[::-1], labels=labels[::-1])
    return finish([ax], save)[0]


def _of_niches(adata: AnnData, key: str) -> tuple[pd.DataFrame, dict[Any, Any]]:
    """Mean composition of the cells of each niche; and a colour per class, that of the labels where scanpy keeps it."""
    composition = adata.obsm.get(f"{key}_composition")
    if composition is None or not hasattr(composition, "columns"):
        raise KeyError(
            f"The table has no obsm[{key + '_composition'!r}]; tl.niches writes it. It has {list(adata.obsm)}."
        )
    means = composition.groupby(adata.obs[key], observed=True).mean()
    made = adata.uns.get("sthist", {}).get(key, {})
    means.columns = class_names(adata, key, means.columns)
    return means, _colours(adata, str(made.get("label", "")) if hasattr(made, "get") else "", list(means.columns))


def _of_groups(adata: AnnData, key: str, groupby: str) -> tuple[pd.DataFrame, dict[Any, Any]]:
    """Shares of the niches among the cells of each group."""
    import pandas as pd

    counts = pd.crosstab(adata.obs[groupby], adata.obs[key])
    counts = counts[counts.sum(axis=1) > 0]
    names = list(adata.obs[key].astype("category").cat.categories)
    counts = counts.reindex(columns=names, fill_value=0)
    return counts.div(counts.sum(axis=1), axis=0), _colours(adata, key, names)


def _colours(adata: AnnData, column: str, names: list[Any]) -> dict[Any, Any]:
    """The colours of a column's own categories, whatever the order in which they stand here; others for the rest."""
    found = colours_of([adata], column, classes=True) if column in adata.obs else None
    known = found.by_name() if isinstance(found, Classes) else {}
    texts = [str(name) for name in names]
    return dict(zip(names, class_colours(texts, known), strict=True))


def by_likeness(shares: np.ndarray) -> np.ndarray:
    """Order of rows in which like ones are neighbours; the largest niche's end first."""
    from scipy.cluster.hierarchy import leaves_list, linkage

    if len(shares) < 3:
        return np.arange(len(shares))
    order = leaves_list(linkage(shares, "average", optimal_ordering=True))
    return order if np.flatnonzero(order == 0)[0] < len(order) / 2 else order[::-1]
