"""What a model sees: the nuclear stain with transcripts, and the tiles that were laid."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sthist import _sample
from sthist._sample.elements import region_geometry
from sthist._sample.verbs import verb
from sthist.pl._base import add_scale_bar, finish, make_axes, pictures, show_image
from sthist.pl._colours import colour_legend
from sthist.tiles import Overlay, TileReader, TileSpec
from sthist.tiles._images.image import open_image
from sthist.tiles._laid_tiles import laid_tiles
from sthist.tiles._pairs import require_no_style

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from spatialdata import SpatialData

MAX_PX = 2048
PAPER_MPP = 0.2125
LEGEND_GENES = 12


@verb
def overlay(
    sdata: SpatialData,
    within: Any = None,
    *,
    mpp: float | None = None,
    overlay: Overlay | None = None,
    genes: Sequence[str] | None = None,
    legend: bool | None = None,
    ax: Axes | None = None,
    save: str | Path | None = None,
    **kwargs: Any,
) -> Axes:
    """Show the transcripts of a region as dots on the nuclear stain, as a model is given them.

    Parameters
    ----------
    sdata
        One sample, or the path of its store, registered in ``um``.
    within
        A box (x0, y0, x1, y1) in µm, a polygon, or the key of shapes, whose box is shown; by default 108.8 µm in the
        middle of the section, one tile of ST2HE.
    mpp
        µm per pixel at which dots are drawn; 0.2125 by default, coarser where the region would have more than 2048
        pixels a side.
    overlay
        One that exists, whose style, transcripts and µm/px are taken.
    genes
        Draw these genes only.
    legend
        Show the colour of each gene; by default where ``genes`` names up to 12.
    ax
        Axes to draw on.
    save
        File to save the figure to.
    kwargs
        Of :class:`sthist.tiles.Overlay`: ``mode``, ``dot_um``, ``dot_s``, ``dot_dpi``, ``palette``, ``min_qv``,
        ``z`` ... Here dots are 1 µm wide and the palette is fixed unless given.

    Returns
    -------
    The axes, in µm.

    Raises
    ------
    KeyError, ValueError
        As of :class:`sthist.tiles.Overlay`.

    Examples
    --------
    >>> import sthist
    >>> sdata = sthist.datasets.toy(size_um=200)
    >>> ax = sthist.pl.overlay(sdata, genes=["EPCAM", "COL1A1"])
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['COL1A1', 'EPCAM']
    """
    x0, y0, x1, y1 = _box(sdata, within, kwargs)
    side = max(x1 - x0, y1 - y0)
    if overlay is not None:
        mpp = overlay.spec.mpp
    elif mpp is None:
        mpp = max(PAPER_MPP, side / MAX_PX)
    px = int(np.ceil(side / mpp - 1e-6))
    if px > 4 * MAX_PX:
        raise ValueError(
            f"This region has {px} pixels a side at {mpp:g} µm/px; show less of it with within=, or pass a coarser "
            "mpp=."
        )
    spec = TileSpec.from_mpp(mpp, px)
    if overlay is None:
        style: dict[str, Any] = {"palette": "fixed", "allow_upsampling": True} | kwargs
        if not {"dot_um", "dot_s"} & set(style):
            style["dot_um"] = max(1.0, mpp)
        drawn = Overlay(sdata, spec, genes=genes, **style)
    else:
        require_no_style(kwargs | ({} if genes is None else {"genes": genes}))
        drawn = overlay.at(spec)
    centre = np.array([x0, y0]) + px * mpp / 2  # the square tile begins where the region does
    height, width = (max(1, round((high - low) / mpp)) for low, high in ((y0, y1), (x0, x1)))
    pixels = drawn.read([centre])[0, :height, :width]
    extent = (x0, y0, x1, y1)
    axes = make_axes(1, 1, extent, ax, ["overlay"])
    show_image(axes[0], pixels, extent, "nuclear stain and transcripts")
    add_scale_bar(axes[0], extent, "white")
    if legend or (legend is None and genes is not None and len(drawn.genes) <= LEGEND_GENES):
        colours = np.clip(drawn.palette(np.round(centre * 1000).astype(np.int64)) / 255, 0, 1)
        colour_legend(axes[0], drawn.genes, colours)
    return finish(axes, save)[0]


def _box(sdata: SpatialData, within: Any, kwargs: dict[str, Any]) -> tuple[float, float, float, float]:
    if within is not None:
        return region_geometry(sdata, within).bounds
    keys, _ = _sample.find_nuclear(sdata, kwargs.get("image"), kwargs.get("channel"))
    x0, y0, x1, y1 = open_image(sdata, keys).extent_um
    half = min(PAPER_MPP * 256, (x1 - x0) / 2, (y1 - y0) / 2)
    middle_x, middle_y = (x0 + x1) / 2, (y0 + y1) / 2
    return middle_x - half, middle_y - half, middle_x + half, middle_y + half


@verb
def tiles(
    sdata: SpatialData,
    regions: str = "tiles",
    *,
    n: int = 8,
    show: Sequence[Literal["overlay", "he"] | str] | None = None,
    overlay: Overlay | None = None,
    color: str | None = None,
    seed: int = 0,
    ncols: int = 8,
    save: str | Path | None = None,
    **kwargs: Any,
) -> list[Axes]:
    """A gallery of tiles: for each, one row per thing that is shown of it.

    Parameters
    ----------
    sdata
        One sample, or the path of its store.
    regions
        Tiles that :func:`sthist.pp.tiles` has laid.
    n
        How many, drawn at random; all if there are fewer.
    show
        ``"overlay"`` (nuclear stain with transcripts), ``"he"``, or keys of images; by default overlay and H&E, those
        that there are.
    overlay
        How the overlay is drawn.
    color
        Column of the tiles' table whose value stands above each.
    seed
        Of the draw.
    ncols
        Tiles in a row.
    save
        File to save the figure to.
    kwargs
        Of :class:`sthist.tiles.Overlay`, where none is given.

    Returns
    -------
    The axes, row by row: as many rows as there are rows of tiles, times the things shown, of ``ncols`` each.

    Raises
    ------
    KeyError
        If there are no such tiles, images or column.
    ValueError
        If there is nothing to show.

    Examples
    --------
    >>> import sthist
    >>> sdata = sthist.datasets.toy(size_um=200)
    >>> sthist.pp.tiles(sdata, size_um=32, px=64, sampling="fps", n_tiles=4)
    >>> len(sthist.pl.tiles(sdata))  # overlay and H&E of four tiles
    8
    """
    import matplotlib.pyplot as plt

    table, spec = laid_tiles(sdata, regions)
    if color is not None and color not in table.obs:
        raise KeyError(f"Table '{regions}_table' has no column {color!r}; it has {list(table.obs.columns)}.")
    if overlay is not None:
        require_no_style(kwargs)
    readers = _shown(sdata, spec, show, overlay, kwargs)
    chosen = np.sort(np.random.default_rng(seed).permutation(len(table))[:n])
    centres = np.asarray(table.obsm["spatial"])[chosen]
    ids = table.obs["instance_id"].to_numpy()[chosen]
    columns = min(ncols, len(chosen))
    rows = -(-len(chosen) // columns)
    figure, axes = plt.subplots(
        rows * len(readers),
        columns,
        figsize=(1.6 * columns, (1.6 * len(readers) + 0.25) * rows),
        squeeze=False,
        layout="constrained",
    )
    for ax in axes.ravel():
        ax.set_axis_off()
    for which, (name, reader) in enumerate(readers.items()):
        pixels = reader.read(centres, ids=ids) if isinstance(reader, Overlay) else reader.read(centres)
        shown, how = pictures(pixels)
        for i, tile in enumerate(shown):
            ax = axes[(i // columns) * len(readers) + which, i % columns]
            ax.imshow(tile, **how)
            if which == 0:
                label = "" if color is None else f"{table.obs[color].iloc[chosen[i]]}"
                ax.set_title(label or str(ids[i]), fontsize="small")
            if i % columns == 0:
                ax.text(
                    -0.06, 0.5, name, transform=ax.transAxes, rotation=90, va="center", ha="right", fontsize="small"
                )
    figure.suptitle(f"{spec.size_um:g} µm, {spec.px} px", fontsize="small")
    return finish(list(axes.ravel()), save)


def _shown(
    sdata: SpatialData, spec: TileSpec, show: Sequence[str] | None, overlay: Overlay | None, kwargs: dict[str, Any]
) -> dict[str, Overlay | TileReader]:
    readers: dict[str, Overlay | TileReader] = {}
    for name in ("overlay", "he") if show is None else show:
        try:
            if name == "overlay":
                options = {"allow_upsampling": True} | kwargs
                readers[name] = Overlay(sdata, spec, **options) if overlay is None else overlay
            else:
                key = _sample.find_he(sdata, None if name == "he" and name not in sdata.images else name)
                readers["H&E" if name == "he" else key] = TileReader(sdata, key, spec, fill=255, allow_upsampling=True)
        except (KeyError, ValueError):
            if show is not None:
                raise
    if not readers:
        raise ValueError(
            f"There is nothing to show of these tiles. {_sample.describe('images', sdata.images)} Name images with "
            "show=."
        )
    return readers
