"""Maps of cell types: one panel for each, truth beside prediction, or a pie at each region."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sthist._messages import listed
from sthist._sample.verbs import verb
from sthist._tables.composition import read_composition
from sthist._tables.find import called, find_table
from sthist._tables.genes import closest
from sthist.metrics._expression.maps import pitch_of
from sthist.pl._base import (
    DOT,
    add_scale_bar,
    background,
    dots_extent,
    draw_dots,
    finish,
    make_axes,
    panel_mpp,
    show_image,
    title_with_r,
)
from sthist.pl._colours import class_colours, limit, place_legend

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from anndata import AnnData
    from matplotlib.axes import Axes
    from spatialdata import SpatialData

    from sthist._tables.composition import Composition

CORNERS = 48
"""Of a whole pie."""


@verb
def composition(
    data: SpatialData | AnnData,
    key: str = "composition",
    *,
    truth: str | None = None,
    types: Sequence[str] | None = None,
    style: Literal["maps", "pies"] = "maps",
    table: str | None = None,
    image: str | None = None,
    ncols: int = 4,
    cmap: str = "viridis",
    vmin: float | str | None = 0.0,
    vmax: float | str | None = "p99",
    axes: Any = None,
    save: str | Path | None = None,
) -> list[Axes]:
    """Draw how much of each cell type regions hold: a map per type, or pies on the H&E.

    Where something was measured too, a type has one scale in both its maps, so that what is predicted too flat looks
    flat, and its correlation stands above the prediction.

    Parameters
    ----------
    data
        One sample, or the path of its store, or a table.
    key
        Key in ``obsm`` of the amounts, such as a prediction of :func:`sthist.tl.composition`.
    truth
        Key of amounts that were measured, to be drawn beside it.
    types
        Cell types to draw, in this order; by default those with the largest sums, at most 12 (pies: all).
    style
        ``"maps"``, or ``"pies"``: the proportions of all types at each region, of a size that keeps them apart.
    table
        Key of the table; by default the only one that has ``key``.
    image
        Key of the image that pies are drawn on; by default the H&E, if there is one.
    ncols
        Panels in a row, of maps without truth.
    cmap
        Colour map.
    vmin, vmax
        Limits of the amounts of a type: a value, or a quantile of what is drawn of it, such as ``"p99"``.
    axes
        Axes to draw on: one per type (two where there is truth: measured, then predicted); pies: one, or two.
    save
        File to save the figure to.

    Returns
    -------
    The axes.

    Raises
    ------
    KeyError
        If there is no such composition or type, or regions have no places.
    ValueError
        If amounts cannot be amounts, or ``style`` is neither of both.

    Examples
    --------
    >>> import sthist
    >>> sdata = sthist.datasets.toy("visium", size_um=900)
    >>> axes = sthist.pl.composition(sdata, "cell_abundance", types=["epithelial", "T cell"])
    >>> [ax.get_title() for ax in axes]
    ['epithelial', 'T cell']
    """
    if style not in ("maps", "pies"):
        raise ValueError(f"style is {style!r}; it is 'maps' or 'pies'.")
    where, adata = find_table(data, table, lambda adata: key in adata.obsm, f"a composition obsm[{key!r}]", key)
    name = called(where)
    if "spatial" not in adata.obsm:
        raise KeyError(f"{name} has no obsm['spatial'] with the places of its rows in µm.")
    sides = {each: read_composition(adata, each, name, skip_missing=True) for each in (truth, key) if each is not None}
    places = np.asarray(adata.obsm["spatial"], np.float64)[:, :2]
    chosen = _chosen(sides, types, None if style == "pies" else MAX_MAPS)
    if style == "pies":
        return _pies(data, places, sides, chosen, image, axes, save)
    drawn_at = np.isfinite(places).all(axis=1)
    width = pitch_of(places[drawn_at])
    extent = dots_extent(places[drawn_at], width)
    names = [title for kind in chosen for title in ([kind] if truth is None else [f"{kind}, measured", kind])]
    drawn = make_axes(len(names), ncols if truth is None else 2, extent, axes, names)
    for number, kind in enumerate(chosen):
        values = [_column(each, kind, len(places)) for each in sides.values()]
        own = drawn[number * len(sides) : (number + 1) * len(sides)]
        known = np.concatenate(values)
        known = known[np.isfinite(known)]
        low, high = limit(vmin, known, "p0"), limit(vmax, known, "p100")
        how: dict[str, Any] = {"cmap": cmap, "low": low, "high": max(high, low + 1e-6)}
        titles = [kind] if truth is None else [f"{kind}, measured", title_with_r(kind, *values)]
        for ax, each, title in zip(own, values, titles, strict=True):
            dots = draw_dots(ax, places[drawn_at], each[drawn_at], width, extent, title, **how)
        own[-1].figure.colorbar(dots, ax=own[-1], label=sides[key].quantity.removesuffix("s"), shrink=0.8)
        add_scale_bar(own[-1], extent, "black")
    return finish(drawn, save)


MAX_MAPS = 12


def _chosen(sides: dict[str, Composition], types: Sequence[str] | None, most: int | None) -> list[str]:
    """The types that are drawn: those that are asked for, or the most abundant."""
    known = list(dict.fromkeys(name for each in sides.values() for name in each.types))
    if types is not None:
        asked = [types] if isinstance(types, str) else list(dict.fromkeys(map(str, types)))
        missing = [name for name in asked if name not in known]
        if missing or not asked:
            first = missing[0] if missing else ""
            raise KeyError(f"There is no cell type {first!r}; there are {listed(known)}.{closest(first, known)}")
        return asked
    total = dict.fromkeys(known, 0.0)
    for each in sides.values():
        for name, amount in zip(each.types, each.values.sum(axis=0), strict=True):
            total[name] = max(total[name], float(amount))
    return sorted(known, key=lambda name: -total[name])[:most]


def _column(amounts: Composition, name: str, n: int) -> np.ndarray:
    """Amounts of a type in all n rows of the table; NaN where there are none."""
    if name not in amounts.types:
        return np.full(n, np.nan)
    column = np.full(n, np.nan)
    column[slice(None) if amounts.rows is None else amounts.rows] = amounts.values[:, amounts.types.index(name)]
    return column


def _pies(
    data: Any,
    places: np.ndarray,
    sides: dict[str, Composition],
    chosen: list[str],
    image: str | None,
    axes: Any,
    save: Any,
) -> list[Axes]:
    """A pie at each region, on the tissue where there is an image."""
    from matplotlib.patches import Patch

    drawn_at = np.isfinite(places).all(axis=1)
    width = pitch_of(places[drawn_at])
    extent = dots_extent(places[drawn_at], width)
    drawn = make_axes(len(sides), len(sides), extent, axes, list(sides))
    colours = class_colours(chosen)
    for ax, (name, amounts) in zip(drawn, sides.items(), strict=True):
        pixels = None
        if hasattr(data, "images"):
            pixels = background(data, image, extent, panel_mpp(ax, extent, saved=save is not None))
        if pixels is not None:
            show_image(ax, pixels, extent, name)
        values = np.stack([_column(amounts, kind, len(places)) for kind in chosen], axis=1)
        known = drawn_at & np.isfinite(values).all(axis=1) & (np.nansum(values, axis=1) > 0)
        _draw_pies(ax, places[known], values[known], DOT * width / 2, colours)
        x0, y0, x1, y1 = extent
        ax.set(xticks=[], yticks=[], xlim=(x0, x1), ylim=(y1, y0), aspect="equal", title=name)
    add_scale_bar(drawn[-1], extent, "black")
    place_legend(drawn[-1], handles=[Patch(color=colour) for colour in colours], labels=chosen)
    return finish(drawn, save)


def _draw_pies(ax: Axes, places: np.ndarray, values: np.ndarray, radius: float, colours: Any) -> None:
    """Wedges of all pies, a collection for each type: thousands of pies are drawn at once."""
    from matplotlib.collections import PolyCollection

    ends = np.cumsum(values, axis=1) / values.sum(axis=1, keepdims=True)
    begins = np.c_[np.zeros(len(ends)), ends[:, :-1]]
    steps = np.linspace(0, 1, CORNERS)
    for kind in range(values.shape[1]):
        there = ends[:, kind] > begins[:, kind]
        first, last = begins[there, kind, None], ends[there, kind, None]
        angle = 2 * np.pi * (first + (last - first) * steps)
        rim = places[there, None] + radius * np.stack([np.sin(angle), -np.cos(angle)], -1)  # from the top, clockwise
        wedges = np.concatenate([places[there, None], rim], axis=1)
        ax.add_collection(PolyCollection(list(wedges), facecolors=[colours[kind]], linewidths=0, rasterized=True))
