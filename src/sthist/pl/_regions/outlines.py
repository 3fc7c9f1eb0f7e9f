"""Outlines on the slide: of the tissue, and of the tiles that were laid."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sthist import _sample
from sthist._sample.elements import region_geometry
from sthist._sample.verbs import verb
from sthist._tables.rows import polygons_um, rows_of
from sthist.pl._base import add_scale_bar, finish, make_axes, panel_mpp, read_grey, read_rgb, show_image
from sthist.pl._regions.panels import draw_lines
from sthist.tiles._images.image import open_image
from sthist.tiles._laid_tiles import laid_tiles

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from matplotlib.axes import Axes
    from spatialdata import SpatialData

    from sthist.tiles._images.image import Image


@verb
def tissue(
    sdata: SpatialData,
    regions: str | None = None,
    *,
    image: str | None = None,
    within: Any = None,
    ax: Axes | None = None,
    save: str | Path | None = None,
) -> Axes:
    """Draw the outlines of the tissue on the slide, to see what :func:`sthist.pp.tissue` has found.

    Parameters
    ----------
    sdata
        One sample, or the path of its store.
    regions
        Key of the outlines; ``"tissue"`` by default.
    image
        What lies below; by default the H&E, or the nuclear stain where there is none.
    within
        A box (x0, y0, x1, y1) in µm, a polygon, or the key of shapes, whose box is shown; the whole image by default.
    ax
        Axes to draw on.
    save
        File to save the figure to.

    Returns
    -------
    The axes, in µm.

    Raises
    ------
    KeyError
        If there are no such outlines, or there is no image.

    Examples
    --------
    >>> import sthist
    >>> sdata = sthist.datasets.toy(size_um=300)
    >>> sthist.pp.tissue(sdata)
    >>> ax = sthist.pl.tissue(sdata)
    >>> ax.get_title().endswith("mm²")
    True
    """
    import shapely

    key = regions or _sample.find_tissue(sdata)
    if key not in sdata.shapes:
        raise KeyError(
            f"There are no outlines {key!r} of the tissue. {_sample.describe('shapes', sdata.shapes)} pp.tissue(sdata) "
            "finds them."
        )
    outlines = polygons_um(sdata, rows_of(sdata, key))
    area = float(shapely.area(shapely.union_all(outlines))) / 1e6
    return _draw(sdata, outlines, f"{key}, {area:.3g} mm²", 1.5, image=image, within=within, ax=ax, save=save)


@verb
def tile_grid(
    sdata: SpatialData,
    regions: str = "tiles",
    *,
    image: str | None = None,
    within: Any = None,
    ax: Axes | None = None,
    save: str | Path | None = None,
) -> Axes:
    """Draw where tiles lie on the slide, before anything is computed of them.

    Parameters
    ----------
    sdata
        One sample, or the path of its store.
    regions
        Tiles that :func:`sthist.pp.tiles` has laid.
    image
        What lies below; by default the H&E, or the nuclear stain where there is none.
    within
        A box (x0, y0, x1, y1) in µm, a polygon, or the key of shapes, whose box is shown; the whole image by default.
    ax
        Axes to draw on.
    save
        File to save the figure to.

    Returns
    -------
    The axes, in µm. The title says how many tiles there are, and their size.

    Raises
    ------
    KeyError
        If there are no such tiles, or there is no image.

    Examples
    --------
    >>> import sthist
    >>> sdata = sthist.datasets.toy(size_um=300)
    >>> sthist.pp.tissue(sdata)
    >>> sthist.pp.tiles(sdata, size_um=32, px=64)
    >>> ax = sthist.pl.tile_grid(sdata)
    >>> ax.get_title().partition(" ")[2]
    'tiles of 32 µm, 64 px'
    """
    _, spec = laid_tiles(sdata, regions)
    squares = polygons_um(sdata, rows_of(sdata, regions))
    title = f"{len(squares):,} tiles of {spec.size_um:g} µm, {spec.px} px"
    return _draw(sdata, squares, title, 0.6, image=image, within=within, ax=ax, save=save)


def _draw(
    sdata: SpatialData,
    polygons: np.ndarray,
    title: str,
    width: float,
    *,
    image: str | None,
    within: Any,
    ax: Axes | None,
    save: str | Path | None,
) -> Axes:
    """Lines of a width on the slide."""
    slide = _slide(sdata, image)
    extent = slide.extent_um if within is None else region_geometry(sdata, within).bounds
    (drawn,) = make_axes(1, 1, extent, ax, [title])
    read = read_rgb if len(slide.channels) == 3 else read_grey
    below = read(slide, extent, panel_mpp(drawn, extent, saved=save is not None))
    show_image(drawn, below, extent, title)
    dark = below.mean() < 128
    draw_lines(drawn, polygons, colors="yellow" if dark else "tab:blue", linewidths=width, rasterized=True)
    add_scale_bar(drawn, extent, "white" if dark else "black")
    return finish([drawn], save)[0]


def _slide(sdata: SpatialData, image: str | None) -> Image:
    """The image that is named, else the H&E, else the nuclear stain, which may lie in several images."""
    if image is not None:
        return open_image(sdata, image)
    try:
        return open_image(sdata, _sample.find_he(sdata))
    except (KeyError, ValueError):
        keys, channel = _sample.find_nuclear(sdata, None, None)
        return open_image(sdata, keys, channels=[channel])
