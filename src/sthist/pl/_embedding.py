"""Embeddings with what they are of: thumbnails of tiles, and cells on the slide."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sthist import _sample
from sthist._sample.elements import region_geometry
from sthist._tables.find import find_column, find_table
from sthist._tables.genes import closest
from sthist._tables.rows import Rows, polygons_um, rows_of
from sthist.pl._base import (
    GREY,
    add_scale_bar,
    background,
    colour_legend,
    colours_of,
    finish,
    make_axes,
    one_axes,
    paint_codes,
    paint_values,
    panel_mpp,
    show_image,
)
from sthist.pl._scores import read_squares

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes
    from spatialdata import SpatialData

SIDE = 5.0
LEGEND_NAMES = 30


def embedding(
    data: SpatialData | AnnData,
    basis: str = "umap",
    *,
    color: str | None = None,
    table: str | None = None,
    thumbnails: int = 0,
    image: str | None = None,
    size: float | None = None,
    cmap: str = "viridis",
    ax: Axes | None = None,
    save: str | Path | None = None,
) -> Axes:
    """Draw an embedding of tiles, cells or spots in two dimensions, and what they look like.

    Parameters
    ----------
    data
        One sample, or a table.
    basis
        Key in ``obsm``, with or without ``X_``, whose first two columns are drawn.
    color
        Column of ``obs``: categories or numbers.
    table
        Key of the table; by default the only one that has ``basis``.
    thumbnails
        Show the image of regions on a grid of so many places a side: in each, the one that lies nearest its middle. 0
        for points alone.
    image
        What thumbnails are of; the H&E by default.
    size
        Area of a point, in square points of type; fitted to their number by default.
    cmap
        Colour map of numbers.
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
        If there is no such embedding, column or image.
    TypeError
        If thumbnails are asked for, and ``data`` is a table alone.
    ValueError
        If several tables could be meant, or there are no finite points.

    Examples
    --------
    >>> import sthist
    >>> sdata = sthist.datasets.toy(size_um=300)
    >>> sdata["table"].obsm["X_umap"] = sdata["table"].obsm["spatial"]
    >>> ax = sthist.pl.embedding(sdata, "umap", color="cell_type", thumbnails=4)
    >>> len(ax.get_images()) > 8
    True
    """
    adata, rows = _table_of(data, basis, table)
    points = _points(adata, basis)
    if thumbnails and rows is None:
        raise TypeError("Thumbnails need the image: pass the SpatialData, not its table.")
    ax = one_axes(ax, (SIDE, SIDE))
    _scatter(ax, adata, points, color, size, cmap)
    if thumbnails and rows is not None:
        _draw_thumbnails(ax, data, rows, points, color, int(thumbnails), _sample.find_he(data, image))
    ax.set(xticks=[], yticks=[], xlabel=f"{_bare(basis)} 1", ylabel=f"{_bare(basis)} 2", title=color or "")
    return finish([ax], save)[0]


def cells(
    sdata: SpatialData,
    color: str,
    *,
    table: str | None = None,
    basis: str | None = "umap",
    image: str | None = None,
    within: Any = None,
    alpha: float = 0.8,
    size: float | None = None,
    cmap: str = "viridis",
    axes: Any = None,
    save: str | Path | None = None,
) -> list[Axes]:
    """Draw cells (or spots, or tiles) in the colours of a column, on the slide and in an embedding side by side.

    Parameters
    ----------
    sdata
        One sample.
    color
        Column of ``obs``: categories, such as cell types, or numbers.
    table
        Key of the table; by default that of the cells, else the only one that has ``color``.
    basis
        Key of the embedding in ``obsm``, with or without ``X_``; None for the slide alone.
    image
        What lies below; the H&E by default, or nothing where there is none.
    within
        A box (x0, y0, x1, y1) in µm, a polygon, or the key of shapes, whose box is shown; cells elsewhere are left out
        of the embedding, too.
    alpha
        Opacity on the slide.
    size
        Area of a point of the embedding, in square points of type.
    cmap
        Colour map of numbers.
    axes
        Axes to draw on, two; one without ``basis``.
    save
        File to save the figure to.

    Returns
    -------
    The axes: slide, embedding.

    Raises
    ------
    KeyError
        If there is no such column, table or embedding.
    ValueError
        If several tables could be meant, or nothing lies there.

    Examples
    --------
    >>> import sthist
    >>> sdata = sthist.datasets.toy(size_um=300)
    >>> axes = sthist.pl.cells(sdata, "cell_type", basis=None)
    >>> len(axes[0].get_images())
    2
    """
    import shapely

    rows = _rows_with(sdata, color, table)
    adata = sdata.tables[rows.table]
    points = None if basis is None else _points(adata, basis)
    polygons = polygons_um(sdata, rows)
    x0, y0, x1, y1 = (
        shapely.total_bounds(polygons).tolist() if within is None else region_geometry(sdata, within).bounds
    )
    extent = (x0, y0, x1, y1)
    names = [color] if basis is None else [color, _bare(basis)]
    drawn = make_axes(len(names), 2, extent, axes, names)
    mpp = panel_mpp(drawn[0], extent, saved=save is not None)
    below = background(sdata, image, extent, mpp)
    if below is not None:
        show_image(drawn[0], below, extent, color)
    _paint(drawn[0], sdata, rows, color, extent, mpp, alpha, cmap)
    add_scale_bar(drawn[0], extent, "black")
    if points is not None:
        shown = shapely.intersects(polygons, shapely.box(*extent))
        _scatter(drawn[1], adata[shown], points[shown], color, size, cmap)
        drawn[1].set_box_aspect((y1 - y0) / (x1 - x0))
        drawn[1].set(xticks=[], yticks=[], xlabel=f"{_bare(basis or '')} 1", ylabel=f"{_bare(basis or '')} 2")
    elif not _is_number(adata.obs[color]):
        _, categories, colours = colours_of(adata, color, adata.obs[color])
        if len(categories) <= LEGEND_NAMES:
            colour_legend(drawn[0], categories, colours)
    return finish(drawn, save)


def _paint(
    ax: Axes, sdata: SpatialData, rows: Rows, color: str, extent: Any, mpp: float, alpha: float, cmap: str
) -> None:
    """Regions in their colours, as a raster."""
    adata = sdata.tables[rows.table]
    if _is_number(adata.obs[color]):
        values = paint_values(sdata, rows, adata.obs[color].to_numpy(np.float64), extent, mpp)
        show_image(ax, np.ma.masked_invalid(values), extent, color, cmap=cmap, alpha=alpha)
        return
    codes, _, colours = colours_of(adata, color, adata.obs[color])
    painted = paint_codes(sdata, rows, codes, extent, mpp)
    shown = np.zeros((*painted.shape, 4))
    shown[..., :3] = colours[painted]
    shown[..., 3] = np.where(painted >= 0, alpha, 0.0)
    show_image(ax, shown, extent, color)


def _table_of(data: Any, basis: str, table: str | None) -> tuple[AnnData, Rows | None]:
    what = f"an embedding {basis!r}; scanpy makes them: sc.pp.neighbors, sc.tl.umap"
    key, adata = find_table(data, table, lambda adata: _key(adata, basis), what, basis)
    return adata, None if key is None else rows_of(data, key)


def _rows_with(sdata: SpatialData, color: str, table: str | None) -> Rows:
    """The rows that are drawn: they have the column; those of the cells, where theirs has it."""
    cells = _sample.find_cell_table(sdata) if table is None else None
    if cells is not None and color in sdata.tables[cells].obs:
        table = cells
    key, _ = find_column(sdata, color, table)
    return rows_of(sdata, str(key))


def _key(adata: AnnData, basis: str) -> str | None:
    return next((name for name in (basis, f"X_{basis}") if name in adata.obsm), None)


def _bare(basis: str) -> str:
    return basis.removeprefix("X_")


def _points(adata: AnnData, basis: str) -> np.ndarray:
    key = _key(adata, basis)
    if key is None:
        raise KeyError(
            f"The table has no obsm[{basis!r}]; it has {list(adata.obsm)}. scanpy makes it: sc.pp.neighbors, "
            "sc.tl.umap."
        )
    points = np.asarray(adata.obsm[key], np.float64)
    if points.ndim != 2 or points.shape[1] < 2 or not np.isfinite(points[:, :2]).all(axis=1).any():
        raise ValueError(f"obsm[{key!r}] of shape {points.shape} has no two columns of finite numbers.")
    return points[:, :2]


def _is_number(values: pd.Series) -> bool:
    return values.dtype.kind in "fiu"


def _scatter(ax: Axes, adata: AnnData, points: np.ndarray, color: str | None, size: float | None, cmap: str) -> None:
    """Points in a random order that is always the same, as a raster, so that none hides a whole class."""
    how: dict[str, Any] = {
        "s": float(np.clip(20_000 / len(points), 0.5, 30)) if size is None else size,
        "linewidths": 0,
        "rasterized": True,
    }
    order = np.random.default_rng(0).permutation(len(points))
    x, y = points[order].T
    if color is None:
        ax.scatter(x, y, color="0.5", **how)
        return
    if color not in adata.obs:
        raise KeyError(
            f"The table has no column {color!r}; it has {list(adata.obs)}.{closest(color, map(str, adata.obs))}"
        )
    values = adata.obs[color]
    if _is_number(values):
        drawn = ax.scatter(x, y, c=values.to_numpy(np.float64)[order], cmap=cmap, plotnonfinite=False, **how)
        ax.figure.colorbar(drawn, ax=ax, shrink=0.8, pad=0.02)
        return
    codes, names, colours = colours_of(adata, color, values)
    from matplotlib.colors import to_rgb

    ax.scatter(x, y, c=np.vstack([colours, to_rgb(GREY)])[codes[order]], **how)
    if len(names) <= LEGEND_NAMES:
        colour_legend(ax, names, colours)


def _draw_thumbnails(
    ax: Axes, sdata: Any, rows: Rows, points: np.ndarray, color: str | None, n: int, image: str
) -> None:
    """In each place of a grid over the points, the image of the one nearest its middle.

    Framed in the colour of its category.
    """
    from matplotlib.patches import Rectangle

    adata = sdata.tables[rows.table]
    finite = np.flatnonzero(np.isfinite(points).all(axis=1))
    low, high = points[finite].min(0), points[finite].max(0)
    step = np.maximum(high - low, 1e-9) / n
    place = np.minimum((points[finite] - low) // step, n - 1)
    far = np.linalg.norm((points[finite] - low) / step - place - 0.5, axis=1)
    order = np.lexsort((far, place[:, 0], place[:, 1]))
    _, first = np.unique(place[order], axis=0, return_index=True)
    chosen = order[first]
    half = 0.4 * step
    frames: list[Any] = ["0.3"] * len(chosen)
    if color is not None and not _is_number(adata.obs[color]):
        codes, _, colours = colours_of(adata, color, adata.obs[color])
        frames = [tuple(colours[code]) if code >= 0 else GREY for code in codes[finite[chosen]]]
    tiles = read_squares(sdata, image, rows, finite[chosen])
    for (x, y), tile, frame in zip(low + (place[chosen] + 0.5) * step, tiles, frames, strict=True):
        box = (x - half[0], x + half[0], y - half[1], y + half[1])
        ax.imshow(tile if tile.shape[-1] >= 3 else tile[..., 0], cmap="gray", extent=box, aspect="auto", zorder=3)
        ax.add_patch(
            Rectangle(tuple(np.array([x, y]) - half), *(2 * half), fill=False, edgecolor=frame, lw=2, zorder=4)
        )
    (x0, y0), (x1, y1) = low - 0.1 * step, high + 0.1 * step
    ax.set(xlim=(x0, x1), ylim=(y0, y1), box_aspect=1)
