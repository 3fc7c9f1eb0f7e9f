"""Nuclear stain, transcripts, virtual and real H&E of one region, side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sthist import _sample
from sthist._sample.elements import is_gene, region_geometry
from sthist._sample.verbs import verb
from sthist._tables.genes import closest
from sthist.pl._base import Extent, add_scale_bar, finish, make_axes, panel_mpp, read_rgb, show_image
from sthist.pl._colours import colour_legend, limit
from sthist.tiles._images.image import open_image
from sthist.tiles._images.reader import read_box, seen_grid
from sthist.tiles._molecules.density import iter_points
from sthist.tiles._molecules.overlay_style import gene_colours

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from spatialdata import SpatialData

    from sthist._sample.elements import HighResElements

Panel = Literal["nuclear", "transcripts", "virtual", "real"]
TITLES = {"nuclear": "nuclear stain", "transcripts": "transcripts", "virtual": "virtual H&E", "real": "real H&E"}


@verb
def virtual_he(
    sdata: SpatialData,
    *,
    panels: Sequence[Panel] | None = None,
    within: Any = None,
    key: str = "virtual_he",
    image: str | Sequence[str] | None = None,
    channel: str | None = None,
    he: str | None = None,
    points: str | None = None,
    genes: Sequence[str] | None = None,
    cmap: str = "gray",
    vmin: float | str | None = None,
    vmax: float | str | None = None,
    ncols: int = 4,
    axes: Axes | Sequence[Axes] | np.ndarray | None = None,
    save: str | Path | None = None,
) -> list[Axes]:
    """Show a region in nuclear stain, transcripts, virtual H&E and real H&E, side by side.

    Each panel is read at the resolution at which it is shown, whatever the size of the region.

    Parameters
    ----------
    sdata
        One sample, or the path of its store, registered in ``um``.
    panels
        Which of ``"nuclear"``, ``"transcripts"``, ``"virtual"``, ``"real"`` to show; by default all that there are.
    within
        A box (x0, y0, x1, y1) in µm, a polygon, or the key of shapes, whose box is shown; all of the section by
        default.
    key
        The virtual image.
    image, channel, points
        Nuclear stain and transcripts, as of :func:`sthist.tl.virtual_he`.
    he
        The real H&E.
    genes
        Show the transcripts of these genes only; up to 12 have a legend with the colour of each.
    cmap, vmin, vmax
        Colour map and limits of the nuclear stain; a limit is a value, or a quantile such as ``"p99"``.
    ncols
        Panels in a row.
    axes
        Axes to draw on, one per panel.
    save
        File to save the figure to.

    Returns
    -------
    The axes, one per panel, in µm.

    Raises
    ------
    KeyError
        If an element or gene that was named is missing.
    ValueError
        If a panel is unknown, the number of axes is wrong, or a limit cannot be read.

    Examples
    --------
    >>> import sthist
    >>> sdata = sthist.datasets.toy(size_um=200)
    >>> sthist.tl.virtual_he(sdata)
    >>> axes = sthist.pl.virtual_he(sdata, within=(50, 50, 150, 150))
    >>> [ax.get_title() for ax in axes]
    ['nuclear stain', 'transcripts', 'virtual H&E', 'real H&E']
    """
    elements = _sample.find_high_res(sdata, image=image, channel=channel, points=points)
    he = _real_he(sdata, he)
    available = {
        "nuclear": True,
        "transcripts": elements.points is not None,
        "virtual": key in sdata.images,
        "real": he is not None,
    }
    shown = [panel for panel, there in available.items() if there] if panels is None else list(panels)
    for panel in shown:
        if panel not in TITLES:
            raise ValueError(f"There is no panel {panel!r}; there are {list(TITLES)}.")
    stained = open_image(sdata, elements.nuclear, channels=[elements.nuclear_channel])
    extent = stained.extent_um if within is None else region_geometry(sdata, within).bounds
    for panel in shown:
        if panel in {"transcripts", "real"} and not available[panel]:
            raise KeyError(
                f"The panel {panel!r} cannot be shown: this object has no {TITLES[panel]} that is recognised."
            )
    drawn = make_axes(len(shown), ncols, extent, axes, shown)
    for ax, panel in zip(drawn, shown, strict=True):
        mpp = panel_mpp(ax, extent, saved=save is not None)
        if panel == "nuclear":
            stain = read_box(stained, extent, mpp)[..., 0]
            seen = seen_grid(stained, extent[:2], mpp, stain.shape)
            measured = stain[seen] if seen.any() else stain
            limits = {"vmin": limit(vmin, measured, "p1"), "vmax": limit(vmax, measured, "p99.8")}
            show_image(ax, stain, extent, TITLES[panel], cmap=cmap, **limits)
        elif panel == "transcripts":
            show_image(ax, _dots(elements, extent, mpp, genes), extent, TITLES[panel])
            if genes is not None and len(set(genes)) <= LEGEND_GENES:
                named = tuple(sorted(set(map(str, genes))))
                colour_legend(ax, named, gene_colours("fixed", named) / 255)
        else:
            shown_image = open_image(sdata, key if panel == "virtual" else str(he))
            show_image(ax, read_rgb(shown_image, extent, mpp), extent, TITLES[panel])
        add_scale_bar(ax, extent, "white" if panel in {"nuclear", "transcripts"} else "black")
    return finish(drawn, save)


def _real_he(sdata: SpatialData, he: str | None) -> str | None:
    """Key of the real H&E; None where there is none and none was named."""
    if he is not None:
        return _sample.find_he(sdata, he)
    try:
        return _sample.find_he(sdata)
    except (KeyError, ValueError):
        return None


LEGEND_GENES = 12

COVERED, DOT_UM, MOST_PX = 0.5, 2.0, 7
"""Dots are as large as it takes for them to cover this part of where they lie, but no wider than this on the tissue,
and than so many pixels."""


def _dots(elements: HighResElements, extent: Extent, mpp: float, genes: Sequence[str] | None) -> np.ndarray:
    """Transcripts on black, (h, w, 3), in the colours of pl.overlay: as dots that can be seen, or their density.

    Where a pixel holds many, it is the brighter, the more there are; where they lie apart, each is a disc.
    """
    import pandas as pd

    gene = _sample.find_transcripts(elements.sdata, elements.points)[1] or ""
    names = _gene_names(elements, gene)
    for name in genes or []:
        if name not in names:
            raise KeyError(
                f"There are no transcripts of gene {name!r} in points {elements.points!r}.{closest(name, names)}"
            )
    drawn = pd.Index(names[is_gene(names)] if genes is None else sorted(set(map(str, genes))), dtype=object)
    hues = gene_colours("fixed", tuple(drawn)) / 255
    x0, y0, x1, y1 = extent
    shape = (int(np.ceil((y1 - y0) / mpp)), int(np.ceil((x1 - x0) / mpp)))
    colours = np.zeros((*shape, 3), np.float32)
    counts = np.zeros(shape, np.float32)
    for x, y, part in iter_points(elements, (gene,)):
        categories = part[gene].astype("category").cat
        codes = np.append(drawn.get_indexer(categories.categories.astype(str)), -1)[categories.codes.to_numpy()]
        rows, columns = ((y - y0) // mpp).astype(int), ((x - x0) // mpp).astype(int)
        keep = (rows >= 0) & (rows < shape[0]) & (columns >= 0) & (columns < shape[1]) & (codes >= 0)
        np.add.at(counts, (rows[keep], columns[keep]), 1)
        np.add.at(colours, (rows[keep], columns[keep]), hues[codes[keep]])
    return _shining(counts, colours, _dot_px(counts, mpp))


def _dot_px(counts: np.ndarray, mpp: float) -> int:
    """Width of dots that cover enough of where molecules lie, an odd number of pixels."""
    from scipy.ndimage import uniform_filter

    near = uniform_filter(counts, 15)
    density = float(np.median(near[counts > 0])) if counts.any() else 1.0
    wide = min(np.sqrt(COVERED / max(density, 1e-6)), max(DOT_UM / mpp, 3.0), MOST_PX)
    return int(np.ceil(wide)) // 2 * 2 + 1 if wide >= 1.5 else 1


def _shining(counts: np.ndarray, colours: np.ndarray, wide: int) -> np.ndarray:
    """Sums of molecules and of their colours as light, each molecule a disc of so many pixels."""
    from scipy.ndimage import convolve

    if wide > 1:
        at = np.arange(wide) - wide // 2
        disc = (np.hypot(at[:, None], at) < wide / 2 - 0.2).astype(np.float32)
        counts = convolve(counts, disc, mode="constant")
        colours = np.stack([convolve(each, disc, mode="constant") for each in np.moveaxis(colours, -1, 0)], -1)
    mean = colours / np.maximum(counts, 1)[..., None]
    top = max(float(np.percentile(counts[counts > 0], 95)), 1.0) if counts.any() else 1.0
    light = 0.55 + 0.45 * np.minimum(1, counts / top)
    return mean * np.where(counts > 0, light, 0)[..., None]


def _gene_names(elements: HighResElements, gene: str) -> np.ndarray:
    """All genes, sorted: with those of each partition alone, a gene would have a colour in each."""
    import pandas as pd

    column = elements.sdata.points[str(elements.points)][gene]
    known = isinstance(column.dtype, pd.CategoricalDtype) and column.cat.known
    values = column.cat.categories if known else column.dropna().unique().compute()
    return np.unique(np.asarray(values, dtype=str))
