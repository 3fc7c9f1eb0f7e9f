"""Maps of which cell types lie near each other."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist._messages import listed
from sthist._sample.verbs import verb
from sthist._tables.find import called, find_table
from sthist.metrics._colocalization import LEAST_PARTNERS, as_map
from sthist.metrics._colocalization import colocalization as compare
from sthist.pl._base import finish, panel_axes
from sthist.pl._colours import GREY
from sthist.pl._niches import by_likeness

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes
    from spatialdata import SpatialData

TYPE_INCHES, LEAST_INCHES, MOST_INCHES = 0.24, 2.2, 12.0
"""Side of the square of a type, and the sides of a map at least and at most."""


@verb
def colocalization(
    data: SpatialData | AnnData | Mapping[str, Any],
    key: str | Sequence[str] = "colocalization",
    *,
    table: str | None = None,
    types: Sequence[str] | None = None,
    max_q: float | None = 0.05,
    vmax: float | None = None,
    cmap: str = "RdBu_r",
    ncols: int = 3,
    axes: Any = None,
    save: str | Path | None = None,
) -> list[Axes]:
    """Draw which cell types lie near each other: Moran's R of all pairs, types that are alike side by side.

    Several samples, or several results of one, such as of measured and predicted compositions, are drawn beside each
    other with one order of types and one scale. Over each but the first stands how alike it is to the first: the mean
    correlation of their rows, without the diagonal (:func:`sthist.metrics.colocalization`).

    Parameters
    ----------
    data
        One sample or a table with results of :func:`sthist.tl.colocalization`, or a mapping of name to such.
    key
        Key in ``uns``, or several, a panel each.
    table
        Key of the table; by default the only one that has the key.
    types
        Cell types to draw, in this order. By default all, ordered by average linkage of the rows of the first map;
        those that it lacks, or that do not vary in it, come last.
    max_q
        Cross out pairs whose false discovery rate is above this; None crosses out none.
    vmax
        Colours go from -vmax to vmax; by default the largest absolute R of two different types, so that the diagonal
        can be beyond.
    cmap
        Colour map. What is NaN is grey.
    ncols
        Panels in a row.
    axes
        Axes to draw on, one for each sample and key.
    save
        File to save the figure to.

    Returns
    -------
    The axes: for each sample, one for each key.

    Raises
    ------
    KeyError
        If there is no such result or type.
    ValueError
        If there is nothing to draw, or not one of the axes for each panel.

    Examples
    --------
    >>> import sthist
    >>> sdata = sthist.datasets.toy(size_um=300)
    >>> sthist.tl.colocalization(sdata, "cell_type", length_um=30)
    >>> axes = sthist.pl.colocalization(sdata)
    >>> len(axes[0].get_xticklabels())
    6
    """
    if vmax is not None and not (np.isfinite(vmax) and vmax > 0):
        raise ValueError(f"vmax is {vmax!r}; it is a positive number.")
    results = _results(data, [key] if isinstance(key, str) else list(key), table)
    maps = {name: as_map(found, f"The map {name!r}") for name, found in results.items()}
    order = _order(list(maps.values()), types)
    drawn_maps = {name: each.reindex(index=order, columns=order) for name, each in maps.items()}
    limit = _largest(list(drawn_maps.values())) if vmax is None else float(vmax)
    side = float(np.clip(TYPE_INCHES * len(order), LEAST_INCHES, MOST_INCHES))
    drawn = panel_axes(len(maps), ncols, (side + 1.6, side + 1.6), axes, list(maps))
    first = next(iter(maps.values()))
    for number, (ax, (name, values)) in enumerate(zip(drawn, drawn_maps.items(), strict=True)):
        shown = _draw(ax, values, cmap, limit)
        if max_q is not None and "q" in results[name]:
            q = as_map(results[name], f"The map {name!r}", "q").reindex(index=order, columns=order).to_numpy()
            _cross_out(ax, q > max_q, side, f"× q > {max_q:g}")
        if len(maps) > 1:
            ax.set_title(name if number == 0 else _title(name, first, maps[name]), fontsize="medium")
    figure = drawn[-1].figure
    figure.colorbar(shown, ax=[ax for ax in drawn if ax.figure is figure], label="Moran's R", shrink=0.7)
    return finish(drawn, save)


def _results(data: Any, keys: list[str], table: str | None) -> dict[str, Any]:
    """Results by the title of their panel."""
    if not keys:
        raise ValueError("key is empty: name what is to be drawn.")
    samples = data if isinstance(data, Mapping) else {"": data}
    results = {}
    for sample, each in samples.items():
        for key in keys:
            where, adata = find_table(each, table, partial(_is_result, key=key), f"a result uns[{key!r}]")
            if not _is_result(adata, key):
                there = [name for name in adata.uns if _is_result(adata, name)]
                raise KeyError(
                    f"{called(where)} has no result of tl.colocalization in uns[{key!r}]; it has "
                    f"{listed(there) or 'none'}."
                )
            title = ", ".join(part for part in (sample, key if len(keys) > 1 or not sample else "") if part)
            results[title] = adata.uns[key]
    return results


def _is_result(adata: AnnData, key: str) -> bool:
    found = adata.uns.get(key)
    return isinstance(found, Mapping) and {"r", "types"} <= set(found)


def _order(maps: list[pd.DataFrame], types: Sequence[str] | None) -> list[str]:
    """Types in the order in which they are drawn."""
    every = list(dict.fromkeys(name for each in maps for name in each.index))
    if types is not None:
        unknown = [name for name in types if name not in every]
        if unknown:
            raise KeyError(f"There is no cell type {listed(unknown)}; there are {listed(every)}.")
        return list(dict.fromkeys(map(str, types)))
    first = maps[0]
    known = first.index[np.isfinite(first.to_numpy()).any(axis=1)]
    values = np.nan_to_num(first.loc[known, known].to_numpy())
    ordered = [str(known[i]) for i in by_likeness(values)]
    return ordered + [name for name in every if name not in ordered]


def _largest(maps: list[pd.DataFrame]) -> float:
    """The largest absolute R of two different types; of all where there are no others."""
    values = [np.abs(each.to_numpy()) for each in maps]
    apart = [each[~np.eye(len(each), dtype=bool)] for each in values]
    for found in (np.concatenate(apart), np.concatenate([each.ravel() for each in values])):
        if np.isfinite(found).any() and np.nanmax(found) > 0:
            return float(np.nanmax(found))
    raise ValueError("There is nothing to draw: no type varies, so that R is NaN throughout.")


def _draw(ax: Axes, values: pd.DataFrame, cmap: str, limit: float) -> Any:
    """Squares in colours that are even around 0."""
    import matplotlib as mpl

    n, names = len(values), list(values.index)
    colours = mpl.colormaps[cmap].with_extremes(bad=GREY)
    shown = ax.imshow(values.to_numpy(), cmap=colours, vmin=-limit, vmax=limit, interpolation="nearest")
    size = "small" if n <= 40 else max(3.0, 9.0 * 40 / n)
    ax.set_xticks(range(n), names, rotation=90, fontsize=size)
    ax.set_yticks(range(n), names, fontsize=size)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return shown


def _cross_out(ax: Axes, crossed: np.ndarray, inches: float, meaning: str) -> None:
    """A cross in squares, and what it means below them."""
    rows, columns = np.nonzero(crossed)
    if not len(rows):
        return
    points = 72 * inches / len(crossed) / 3
    ax.scatter(columns, rows, s=points**2, c="0.2", marker="x", linewidths=max(0.3, points / 8))
    ax.set_xlabel(meaning, loc="right", fontsize="small")


def _title(name: str, first: pd.DataFrame, other: pd.DataFrame) -> str:
    """A panel's name, and how alike it is to the first."""
    if len(first.index.intersection(other.index)) <= LEAST_PARTNERS:
        return name
    return f"{name}, r = {compare(first, other).pearson:.2f}"
