"""Embeddings with what they are of: thumbnails of tiles, and cells on the slide."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist import _sample
from sthist._sample.elements import region_geometry
from sthist._sample.samples import samples_of
from sthist._sample.verbs import verb
from sthist._tables.find import find_column, find_table
from sthist._tables.genes import closest
from sthist._tables.rows import Rows, polygons_um, rows_of
from sthist.pl._base import (
    add_scale_bar,
    background,
    finish,
    make_axes,
    one_axes,
    paint_codes,
    paint_values,
    panel_mpp,
    pictures,
    show_image,
)
from sthist.pl._colours import Classes, Numbers, colours_of, numbers_of
from sthist.pl._scores import read_squares

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData
    from matplotlib.axes import Axes
    from spatialdata import SpatialData

SIDE = 5.0


@verb
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
    palette: Mapping[str, Any] | None = None,
    vmin: float | str | None = None,
    vmax: float | str | None = None,
    ax: Axes | None = None,
    save: str | Path | None = None,
) -> Axes:
    """Draw an embedding of tiles, cells or spots in two dimensions, and what they look like.

    Parameters
    ----------
    data
        One sample, or the path of its store; or a table.
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
    palette
        Colours of classes by name; by default those that scanpy keeps in ``uns["<color>_colors"]``, and others for
        classes that have none.
    vmin, vmax
        Limits of numbers: a value, or a quantile of what is shown such as ``"p99"``; all of it by default.
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
        If several tables could be meant, there are no finite points or numbers, or a limit cannot be read.

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
    if color is not None:
        _require_column(adata, color)
    found = None if color is None else colours_of([adata], color, cmap=cmap, palette=palette, vmin=vmin, vmax=vmax)
    made = _Colouring(color, found)
    ax = one_axes(ax, (SIDE, SIDE))
    made.scatter(ax, adata, points, size)
    made.explain(ax, [adata])
    if thumbnails and rows is not None:
        _draw_thumbnails(ax, data, rows, points, made, int(thumbnails), _sample.find_he(data, image))
    ax.set(xticks=[], yticks=[], xlabel=f"{_bare(basis)} 1", ylabel=f"{_bare(basis)} 2", title=color or "")
    return finish([ax], save)[0]


@verb
def cells(
    sdata: SpatialData | Mapping[str, SpatialData],
    color: str,
    *,
    table: str | None = None,
    basis: str | None = "umap",
    image: str | None = None,
    within: Any = None,
    alpha: float = 0.8,
    size: float | None = None,
    cmap: str = "viridis",
    palette: Mapping[str, Any] | None = None,
    vmin: float | str | None = None,
    vmax: float | str | None = None,
    axes: Any = None,
    save: str | Path | None = None,
) -> list[Axes]:
    """Draw cells (or spots, or tiles) in the colours of a column, on the slide and in an embedding side by side.

    A class has one colour, and a colour stands for one number, in all panels, whichever part of the slide is shown.
    Without a class, a cell is clear on the slide, and grey in the embedding.

    Parameters
    ----------
    sdata
        One sample; or a mapping of name to sample, each of which has its row of panels.
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
    palette
        Colours of classes by name; by default those that scanpy keeps in ``uns["<color>_colors"]``, and others for
        classes that have none.
    vmin, vmax
        Limits of numbers: a value, or a quantile of what is shown such as ``"p99"``; all of it by default.
    axes
        Axes to draw on, two for each sample; one without ``basis``.
    save
        File to save the figure to.

    Returns
    -------
    The axes: slide, embedding; sample by sample.

    Raises
    ------
    KeyError
        If there is no such column, table or embedding.
    ValueError
        If several tables could be meant, nothing lies there, no number is finite, or a limit cannot be read.

    Examples
    --------
    >>> import sthist
    >>> sdata = sthist.datasets.toy(size_um=300)
    >>> axes = sthist.pl.cells(sdata, "cell_type", basis=None)
    >>> len(axes[0].get_images())
    2
    """
    several = isinstance(sdata, Mapping)
    panels = [
        _Panels(each.name if several else color, each.data, color, table, basis, within) for each in samples_of(sdata)
    ]
    tables, shown = [each.adata for each in panels], [each.shown for each in panels]
    found = colours_of(tables, color, rows=shown, cmap=cmap, palette=palette, vmin=vmin, vmax=vmax)
    made = _Colouring(color, found)
    names = [color] if basis is None else [color, _bare(basis)]
    drawn = make_axes(len(names) * len(panels), len(names), panels[0].extent, axes, names * len(panels))
    k = len(names)
    for i, each in enumerate(panels):
        own = drawn[i * k : (i + 1) * k]
        mpp = panel_mpp(own[0], each.extent, saved=save is not None)
        below = background(each.sdata, image, each.extent, mpp)
        if below is not None:
            show_image(own[0], below, each.extent, each.title)
        made.paint(own[0], each, mpp, alpha)
        add_scale_bar(own[0], each.extent, "black")
        if each.points is not None:
            made.scatter(own[1], each.adata, each.points, size, each.shown)
            x0, y0, x1, y1 = each.extent
            own[1].set_box_aspect((y1 - y0) / (x1 - x0))
            own[1].set(xticks=[], yticks=[], xlabel=f"{_bare(basis or '')} 1", ylabel=f"{_bare(basis or '')} 2")
    for last in drawn[k - 1 :: k] if isinstance(found, Numbers) else [drawn[k - 1]]:
        made.explain(last, tables if basis is not None else [])
    return finish(drawn, save)


class _Panels:
    """What is drawn of one sample: which rows, and where they lie."""

    def __init__(self, title: str, sdata: Any, color: str, table: str | None, basis: str | None, within: Any) -> None:
        import shapely

        self.title, self.sdata = title, sdata
        self.rows = _rows_with(sdata, color, table)
        self.adata = sdata.tables[self.rows.table]
        self.points = None if basis is None else _points(self.adata, basis)
        polygons = polygons_um(sdata, self.rows)
        bounds = shapely.total_bounds(polygons).tolist() if within is None else region_geometry(sdata, within).bounds
        self.extent: tuple[float, float, float, float] = tuple(bounds)
        self.shown = np.asarray(shapely.intersects(polygons, shapely.box(*self.extent)))
        if not self.shown.any():
            x0, y0, x1, y1 = self.extent
            raise ValueError(
                f"None of the {len(self.shown)} shapes {self.rows.shapes!r} lies in x {x0:g} to {x1:g} and y {y0:g} to "
                f"{y1:g} µm."
            )


class _Colouring:
    """A column in its colours, as they are settled for a figure."""

    def __init__(self, column: str | None, colours: Classes | Numbers | None) -> None:
        self.column, self.colours = column, colours

    def paint(self, ax: Axes, of: _Panels, mpp: float, alpha: float) -> None:
        """Regions in their colours, as a raster."""
        values, extent = of.adata.obs[self.column], of.extent
        if isinstance(self.colours, Numbers):
            raster = paint_values(of.sdata, of.rows, numbers_of(values), extent, mpp)
            show_image(ax, np.ma.masked_invalid(raster), extent, of.title, alpha=alpha, **self.colours.how)
        elif self.colours is not None:
            codes = paint_codes(of.sdata, of.rows, self.colours.codes(values), extent, mpp)
            opacity = np.where(codes >= 0, alpha, 0.0)[..., None]
            show_image(ax, np.concatenate([self.colours.of(codes), opacity], axis=-1), extent, of.title)

    def scatter(
        self, ax: Axes, adata: AnnData, points: np.ndarray, size: float | None, shown: np.ndarray | None = None
    ) -> None:
        """Points in a random order that is always the same, as a raster, so that none hides a whole class."""
        rows = np.arange(len(points)) if shown is None else np.flatnonzero(shown)
        rows = np.random.default_rng(0).permutation(rows)
        default = float(np.clip(20_000 / max(len(rows), 1), 0.5, 30))
        how: dict[str, Any] = {"c": "0.5"}
        if isinstance(self.colours, Numbers):
            how = {"c": numbers_of(adata.obs[self.column])[rows], "plotnonfinite": False, **self.colours.how}
        elif self.colours is not None:
            how = {"c": self.colours.of(self.colours.codes(adata.obs[self.column])[rows])}
        x, y = points[rows].T
        ax.scatter(x, y, s=default if size is None else size, linewidths=0, rasterized=True, **how)

    def explain(self, ax: Axes, scattered: list[AnnData]) -> None:
        """The colour bar, or the legend, right of an axes; grey is in it where points without a class are drawn."""
        if isinstance(self.colours, Numbers):
            self.colours.bar(ax)
        elif self.colours is not None:
            codes = (self.colours.codes(adata.obs[self.column]) for adata in scattered)
            self.colours.legend(ax, none=any((each < 0).any() for each in codes))


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


def _require_column(adata: AnnData, color: str) -> None:
    if color not in adata.obs:
        raise KeyError(
            f"The table has no column {color!r}; it has {list(adata.obs)}.{closest(color, map(str, adata.obs))}"
        )


def _draw_thumbnails(
    ax: Axes, sdata: Any, rows: Rows, points: np.ndarray, made: _Colouring, n: int, image: str
) -> None:
    """In each place of a grid over the points, the image of the one nearest its middle.

    Framed in the colour of its category.
    """
    from matplotlib.patches import Rectangle

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
    if isinstance(made.colours, Classes):
        codes = made.colours.codes(sdata.tables[rows.table].obs[made.column])
        frames = [tuple(colour) for colour in made.colours.of(codes[finite[chosen]])]
    tiles, how = pictures(read_squares(sdata, image, rows, finite[chosen]))
    for (x, y), tile, frame in zip(low + (place[chosen] + 0.5) * step, tiles, frames, strict=True):
        box = (x - half[0], x + half[0], y - half[1], y + half[1])
        ax.imshow(tile, extent=box, aspect="auto", zorder=3, **how)
        ax.add_patch(
            Rectangle(tuple(np.array([x, y]) - half), *(2 * half), fill=False, edgecolor=frame, lw=2, zorder=4)
        )
    (x0, y0), (x1, y1) = low - 0.1 * step, high + 0.1 * step
    ax.set(xlim=(x0, x1), ylim=(y0, y1), box_aspect=1)
