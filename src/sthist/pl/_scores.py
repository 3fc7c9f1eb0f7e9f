"""Scores over a slide, and the tiles that have the highest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sthist import _sample
from sthist._sample.elements import region_geometry
from sthist._sample.verbs import verb
from sthist._tables.find import find_table
from sthist._tables.genes import closest
from sthist._tables.labels import class_names
from sthist._tables.rows import Rows, polygons_um, rows_of
from sthist.pl._base import (
    add_scale_bar,
    background,
    finish,
    make_axes,
    paint_values,
    panel_mpp,
    pictures,
    sample_image,
    show_image,
)
from sthist.pl._colours import is_number, numbers_of, settle_numbers
from sthist.tiles import TileReader, TileSpec
from sthist.tiles._images.image import open_image

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from anndata import AnnData
    from matplotlib.axes import Axes
    from spatialdata import SpatialData

    from sthist.pl._base import Extent

TILE_PX = 224


@verb
def score_map(
    sdata: SpatialData,
    key: str,
    *,
    classes: Sequence[str] | None = None,
    table: str | None = None,
    image: str | None = None,
    within: Any = None,
    cmap: str = "magma",
    alpha: float = 0.65,
    shared: bool = True,
    vmin: float | str | None = None,
    vmax: float | str | None = None,
    ncols: int = 3,
    axes: Axes | Sequence[Axes] | np.ndarray | None = None,
    save: str | Path | None = None,
) -> list[Axes]:
    """Lay scores over the H&E, one panel per class: a heat map, or scores of tiles, cells or any regions.

    Image and scores are read at the resolution at which they are shown.

    Parameters
    ----------
    sdata
        One sample, or the path of its store.
    key
        A heat map (:func:`sthist.tl.heatmap`); or scores of regions: a DataFrame in ``obsm``, called so or
        ``<key>_score``, or a column of numbers in ``obs``.
    classes
        Those to show, all by default.
    table
        Key of the table of the regions; by default the only one that has ``key``.
    image
        What lies below; the H&E by default, or nothing where there is none.
    within
        A box (x0, y0, x1, y1) in µm, a polygon, or the key of shapes, whose box is shown; all of the section by
        default.
    cmap, alpha
        Colour map and opacity of the scores. What has none stays clear.
    shared
        Whether all panels have one scale, so that a colour stands for one score; else each class has its own.
    vmin, vmax
        Limits: a value, or a quantile of what is shown such as ``"p99"``; all of it by default.
    ncols
        Panels in a row.
    axes
        Axes to draw on, one per class.
    save
        File to save the figure to.

    Returns
    -------
    The axes, one per class, in µm.

    Raises
    ------
    KeyError
        If there are no such scores or classes.
    ValueError
        If there is nothing to show, the number of axes is wrong, or a limit cannot be read.

    Examples
    --------
    >>> import numpy as np, sthist
    >>> sdata = sthist.datasets.toy(size_um=300)
    >>> sthist.pp.tissue(sdata)
    >>> sthist.pp.tiles(sdata, size_um=32, px=64)
    >>> sdata["tiles_table"].obs["tumour"] = np.linspace(0, 1, sdata["tiles_table"].n_obs)
    >>> [ax.get_title() for ax in sthist.pl.score_map(sdata, "tumour")]
    ['tumour']
    """
    scores = find_scores(sdata, key, classes, table)
    extent = _extent(sdata, scores, image) if within is None else region_geometry(sdata, within).bounds
    drawn = make_axes(len(scores), ncols, extent, axes, list(scores))
    mpp = min(panel_mpp(ax, extent, saved=save is not None) for ax in drawn)
    rasters = {name: of_class.raster(sdata, extent, mpp) for name, of_class in scores.items()}
    for name, values in rasters.items():
        if not np.isfinite(values).any():
            raise ValueError(
                f"No score of {name!r} lies in x {extent[0]:g} to {extent[2]:g} and y {extent[1]:g} to {extent[3]:g} "
                "µm."
            )
    every = np.concatenate([values.ravel() for values in rasters.values()])
    together = settle_numbers(every, repr(key), cmap, vmin, vmax) if shared else None
    below = background(sdata, image, extent, mpp)
    for ax, (name, values) in zip(drawn, rasters.items(), strict=True):
        if below is not None:
            show_image(ax, below, extent, name)
        numbers = together or settle_numbers(values, repr(name), cmap, vmin, vmax)
        opacity = alpha if below is not None else 1.0
        show_image(ax, np.ma.masked_invalid(values), extent, name, alpha=opacity, **numbers.how)
        numbers.bar(ax, "" if len(drawn) == 1 else "one scale" if shared else "own scale")
        add_scale_bar(ax, extent, "black")
    return finish(drawn, save)


class Scores:
    """Scores of one class: a channel of an image, or values of regions."""

    def __init__(self, key: str, channel: str | None = None, rows: Rows | None = None, values: Any = None) -> None:
        self.key, self.channel, self.rows, self.values = key, channel, rows, values

    def raster(self, sdata: SpatialData, extent: Extent, mpp: float) -> np.ndarray:
        """(h, w) at the pixels of a panel, NaN for none."""
        if self.channel is not None:
            return sample_image(sdata, self.key, self.channel, extent, mpp)
        assert self.rows is not None
        return paint_values(polygons_um(sdata, self.rows), self.values, extent, mpp)


def find_scores(
    sdata: SpatialData, key: str, classes: Sequence[str] | None = None, table: str | None = None
) -> dict[str, Scores]:
    """Scores by class, as the class was called."""
    if key in sdata.images and table is None:
        channels = _sample.channel_names(sdata.images[key])
        called = sdata.attrs.get("sthist", {}).get("results", {}).get(key, {}).get("classes", {})
        scores = {str(called.get(name, name)): Scores(key, channel=name) for name in channels}
    else:
        scores = _of_regions(sdata, key, table)
    if classes is None:
        return scores
    for name in classes:
        if name not in scores:
            raise KeyError(f"{key!r} has no class {name!r}; it has {list(scores)}.{closest(name, scores)}")
    return {name: scores[name] for name in classes}


def _of_regions(sdata: SpatialData, key: str, table: str | None) -> dict[str, Scores]:
    for kind, name in (("obsm", key), ("obsm", f"{key}_score"), ("obs", key)):

        def fits(adata: AnnData, kind: str = kind, name: str = name) -> bool:
            return _are_numbers(getattr(adata, kind).get(name))

        if not any(fits(adata) for each, adata in sdata.tables.items() if table in (None, each)):
            continue
        table_key, adata = find_table(sdata, table, fits, f"{kind}[{name!r}]")
        rows = rows_of(sdata, str(table_key))
        values = getattr(adata, kind)[name]
        if kind == "obs":
            return {key: Scores(key, rows=rows, values=numbers_of(values))}
        names = class_names(adata, name.removesuffix("_score"), values.columns)
        columns = values.to_numpy(np.float64).T
        return {name: Scores(key, rows=rows, values=column) for name, column in zip(names, columns, strict=True)}
    _say_what_it_is(sdata, key, table)
    there = [*sdata.images, *(str(name) for adata in sdata.tables.values() for name in (*adata.obs, *adata.obsm))]
    raise KeyError(
        f"There is neither a heat map {key!r} nor scores of that name in a table: a DataFrame in obsm, or numbers in "
        f"obs.{closest(key, there)}"
    )


def _are_numbers(values: Any) -> bool:
    """A DataFrame of them, or a column."""
    return hasattr(values, "columns") or (hasattr(values, "index") and is_number(values))


def _say_what_it_is(sdata: SpatialData, key: str, table: str | None) -> None:
    """Refuse what is called so, but holds no scores that can be told apart."""
    tables = {name: adata for name, adata in sdata.tables.items() if table in (None, name)}
    for where, adata in tables.items():
        for name in (key, f"{key}_score"):
            if name in adata.obsm:
                shape = tuple(map(int, adata.obsm[name].shape))
                raise ValueError(
                    f"obsm[{name!r}] of table {where!r} is an array of shape {shape}, whose columns have no names. "
                    f"Give them: adata.obsm[{name!r}] = pd.DataFrame(adata.obsm[{name!r}], index=adata.obs_names, "
                    "columns=[...]); or draw embeddings with pl.embedding."
                )
        if key in adata.obs:
            kind = "booleans" if adata.obs[key].dtype.kind == "b" else "categories or text"
            raise ValueError(
                f"obs[{key!r}] of table {where!r} holds {kind} ({adata.obs[key].dtype}), and scores are numbers. Draw "
                f"classes with pl.cells(sdata, {key!r}, table={where!r}, basis=None), or make numbers of them: "
                f"adata.obs[{key!r}].astype(float)."
            )


def _extent(sdata: SpatialData, scores: dict[str, Scores], image: str | None) -> Extent:
    """The box around what is shown."""
    import shapely

    first = next(iter(scores.values()))
    if image is not None or first.rows is None:
        return open_image(sdata, image or first.key).extent_um
    x0, y0, x1, y1 = shapely.total_bounds(polygons_um(sdata, first.rows)).tolist()
    return x0, y0, x1, y1


@verb
def top_tiles(
    sdata: SpatialData,
    key: str,
    n: int = 8,
    *,
    classes: Sequence[str] | None = None,
    table: str | None = None,
    image: str | None = None,
    save: str | Path | None = None,
) -> list[Axes]:
    """A gallery of the tiles with the highest scores, one row per class.

    Parameters
    ----------
    sdata
        One sample, or the path of its store.
    key
        Scores of tiles: a DataFrame in ``obsm``, called so or ``<key>_score``, or a column of numbers in ``obs``.
    n
        Tiles of each class.
    classes
        Those to show, all by default.
    table
        Key of the table of the tiles; by default the only one that has ``key``.
    image
        What is shown of them; the H&E by default.
    save
        File to save the figure to.

    Returns
    -------
    The axes, ``n`` for each class; those without a tile are off.

    Raises
    ------
    KeyError
        If there are no such scores, classes or image.
    ValueError
        If ``n`` is no positive number, or scores are those of a heat map.

    Examples
    --------
    >>> import numpy as np, sthist
    >>> sdata = sthist.datasets.toy(size_um=300)
    >>> sthist.pp.tissue(sdata)
    >>> sthist.pp.tiles(sdata, size_um=32, px=64)
    >>> sdata["tiles_table"].obs["tumour"] = np.linspace(0, 1, sdata["tiles_table"].n_obs)
    >>> len(sthist.pl.top_tiles(sdata, "tumour", n=3))
    3
    """
    import matplotlib.pyplot as plt

    if int(n) != n or n < 1:
        raise ValueError(f"n is {n!r}; it is a whole number from 1 on.")
    scores = find_scores(sdata, key, classes, table)
    if any(each.rows is None for each in scores.values()):
        raise ValueError(f"{key!r} is a heat map, which has no tiles: show it with pl.score_map.")
    he = _sample.find_he(sdata, image)
    figure, axes = plt.subplots(
        len(scores), n, figsize=(1.4 * n + 0.4, 1.6 * len(scores)), squeeze=False, layout="constrained"
    )
    best = [_highest(of_class.values, n) for of_class in scores.values()]
    rows = next(iter(scores.values())).rows  # of all classes: they are columns of one table
    tiles, how = pictures(read_squares(sdata, he, rows, np.concatenate(best)))
    of_row = np.split(tiles, np.cumsum([len(each) for each in best])[:-1])
    for row, (name, of_class), chosen, shown in zip(axes, scores.items(), best, of_row, strict=True):
        for ax in row:
            ax.set_axis_off()
        row[0].text(-0.08, 0.5, name, transform=row[0].transAxes, rotation=90, va="center", ha="right")
        for ax, tile, score in zip(row, shown, of_class.values[chosen], strict=False):
            ax.imshow(tile, **how)
            ax.set_title(f"{score:.3g}", fontsize="small")
    return finish(list(axes.ravel()), save)


def _highest(values: np.ndarray, n: int) -> np.ndarray:
    """Places of the highest finite values, at most n."""
    order = np.argsort(-np.where(np.isfinite(values), values, -np.inf), kind="stable")
    return order[: min(n, int(np.isfinite(values).sum()))]


def read_squares(sdata: SpatialData, image: str, rows: Rows | None, chosen: np.ndarray) -> np.ndarray:
    """The squares around some regions, (n, px, px, c): as large as the usual region."""
    import shapely

    assert rows is not None
    boxes = shapely.bounds(polygons_um(sdata, rows))
    sides = (boxes[:, 2:] - boxes[:, :2]).max(axis=1)
    spec = TileSpec(float(np.nanmedian(sides)), TILE_PX)
    reader = TileReader(sdata, image, spec, fill=255, allow_upsampling=True)
    return reader.read((boxes[chosen, :2] + boxes[chosen, 2:]) / 2)
