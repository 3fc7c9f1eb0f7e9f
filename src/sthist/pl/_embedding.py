"""Embeddings with what they are of: thumbnails of tiles, and cells on the slide."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sthist import _sample
from sthist._sample.verbs import verb
from sthist._tables.find import find_table
from sthist._tables.genes import closest
from sthist._tables.rows import Rows, rows_of
from sthist.pl._base import (
    finish,
    one_axes,
    paint_codes,
    paint_values,
    pictures,
    show_image,
)
from sthist.pl._colours import Classes, Numbers, colours_of, numbers_of
from sthist.pl._scores import read_squares

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from anndata import AnnData
    from matplotlib.axes import Axes
    from spatialdata import SpatialData

    from sthist.pl._base import Extent

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
    points = points_of(adata, basis)
    if thumbnails and rows is None:
        raise TypeError("Thumbnails need the image: pass the SpatialData, not its table.")
    if color is not None:
        _require_column(adata, color)
    found = None if color is None else colours_of([adata], color, cmap=cmap, palette=palette, vmin=vmin, vmax=vmax)
    made = Colouring(color, found)
    ax = one_axes(ax, (SIDE, SIDE))
    made.scatter(ax, adata, points, size)
    made.explain(ax, [adata])
    if thumbnails and rows is not None:
        _draw_thumbnails(ax, data, rows, points, made, int(thumbnails), _sample.find_he(data, image))
    ax.set(xticks=[], yticks=[], xlabel=f"{bare(basis)} 1", ylabel=f"{bare(basis)} 2", title=color or "")
    return finish([ax], save)[0]


class Colouring:
    """A column in its colours, as they are settled for a figure."""

    def __init__(self, column: str | None, colours: Classes | Numbers | None) -> None:
        self.column, self.colours = column, colours

    def paint(
        self, ax: Axes, adata: AnnData, polygons: np.ndarray, extent: Extent, title: str, mpp: float, alpha: float
    ) -> None:
        """Regions in their colours, as a raster."""
        values = adata.obs[self.column]
        if isinstance(self.colours, Numbers):
            raster = paint_values(polygons, numbers_of(values), extent, mpp)
            show_image(ax, np.ma.masked_invalid(raster), extent, title, alpha=alpha, **self.colours.how)
        elif self.colours is not None:
            codes = paint_codes(polygons, self.colours.codes(values), extent, mpp)
            opacity = np.where(codes >= 0, alpha, 0.0)[..., None]
            show_image(ax, np.concatenate([self.colours.of(codes), opacity], axis=-1), extent, title)

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
    key, adata = find_table(data, table, lambda adata: key_of(adata, basis), what, basis)
    return adata, None if key is None else rows_of(data, key)


def key_of(adata: AnnData, basis: str) -> str | None:
    return next((name for name in (basis, f"X_{basis}") if name in adata.obsm), None)


def bare(basis: str) -> str:
    return basis.removeprefix("X_")


def points_of(adata: AnnData, basis: str) -> np.ndarray:
    key = key_of(adata, basis)
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


def _draw_thumbnails(ax: Axes, sdata: Any, rows: Rows, points: np.ndarray, made: Colouring, n: int, image: str) -> None:
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
