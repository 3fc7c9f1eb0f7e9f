"""How well an H&E lies on the nuclear stain."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sthist import _sample, stains
from sthist._imaging.nuclei import segment_nuclei
from sthist._sample.elements import region_geometry
from sthist._sample.verbs import verb
from sthist.pl._base import add_scale_bar, finish, make_axes, panel_mpp, read_rgb, show_image
from sthist.pl._colours import limit
from sthist.tiles._images.image import open_image
from sthist.tiles._images.reader import read_box

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from spatialdata import SpatialData

Panel = Literal["checkerboard", "contours"]
PANELS: tuple[Panel, ...] = ("checkerboard", "contours")
MAX_SEGMENTED_MPP = 1.0
"""Nuclei are outlined where they can be told apart; on a larger region their density is."""

DENSITY_UM, LEVELS = 30.0, 3


@verb
def alignment(
    sdata: SpatialData,
    he: str | None = None,
    to: str | None = None,
    *,
    within: Any = None,
    panels: Sequence[Panel] = PANELS,
    squares: int = 8,
    axes: Axes | Sequence[Axes] | np.ndarray | None = None,
    save: str | Path | None = None,
) -> list[Axes]:
    """Show how well an H&E lies on the nuclear stain.

    A checkerboard shows both; on the H&E, the nuclei of the stain are outlined.

    Parameters
    ----------
    sdata
        One sample, both images registered in ``um``.
    he, to
        Keys of the H&E and of the image with the nuclear stain; found by default.
    within
        A box (x0, y0, x1, y1) in µm, a polygon, or the key of shapes, whose box is shown; all of the stain by default.
        On a region of up to about 0.7 mm single nuclei are outlined, on a larger one where they are dense.
    panels
        ``"checkerboard"``: squares of the H&E in turn with squares of the stain, its nuclei dark. ``"contours"``.
    squares
        Of the checkerboard, along the longer side.
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
        If an image is missing.
    ValueError
        If a panel is unknown.

    Examples
    --------
    >>> import sthist
    >>> sdata = sthist.datasets.toy(size_um=300)
    >>> [ax.get_title() for ax in sthist.pl.alignment(sdata)]
    ['checkerboard', 'contours']
    """
    unknown = [panel for panel in panels if panel not in PANELS]
    if unknown:
        raise ValueError(f"There is no panel {unknown[0]!r}; there are {list(PANELS)}.")
    nuclear, channel = _sample.find_nuclear(sdata, to)
    stained = open_image(sdata, nuclear, channels=[channel])
    real = open_image(sdata, _sample.find_he(sdata, he))
    extent = stained.extent_um if within is None else region_geometry(sdata, within).bounds
    drawn = make_axes(len(panels), len(panels), extent, axes, panels)
    for ax, panel in zip(drawn, panels, strict=True):
        mpp = panel_mpp(ax, extent, saved=save is not None)
        histology = read_rgb(real, extent, mpp)
        stain = read_box(stained, extent, mpp)[..., 0].astype(np.float32)
        if panel == "checkerboard":
            show_image(ax, _checkerboard(histology, stain, squares), extent, panel)
        else:
            show_image(ax, histology, extent, panel)
            _outline(ax, stain, extent, mpp)
        add_scale_bar(ax, extent, "black")
    return finish(drawn, save)


def _checkerboard(histology: np.ndarray, stain: np.ndarray, squares: int) -> np.ndarray:
    """The stain takes the place of the H&E in every other square, in the colour of haematoxylin."""
    low, high = limit(None, stain, "p1"), limit(None, stain, "p99.8")
    amount = np.clip((stain - low) / max(high - low, 1e-6), 0, 1)
    vectors = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])
    virtual = stains.to_rgb(np.stack([1.5 * amount, np.zeros_like(amount)], -1), vectors)
    side = max(1, -(-max(stain.shape) // squares))
    rows, columns = (np.arange(n) // side for n in stain.shape)
    takes = (rows[:, None] + columns[None]) % 2 == 1
    return np.where(takes[..., None], virtual, histology)


def _outline(ax: Axes, stain: np.ndarray, extent: tuple[float, float, float, float], mpp: float) -> None:
    """Outlines of the stain's nuclei, or of where they are dense."""
    from scipy.ndimage import gaussian_filter

    x0, y0, x1, y1 = extent
    columns = x0 + (np.arange(stain.shape[1]) + 0.5) * (x1 - x0) / stain.shape[1]
    rows = y0 + (np.arange(stain.shape[0]) + 0.5) * (y1 - y0) / stain.shape[0]
    if mpp <= MAX_SEGMENTED_MPP:
        mask, levels = segment_nuclei(stain, mpp) > 0, [0.5]
        field = mask.astype(np.float32)
    else:
        field = gaussian_filter(stain, DENSITY_UM / mpp)
        levels = np.linspace(field.min(), field.max(), LEVELS + 2)[1:-1].tolist()
    if np.ptp(field) > 0 and min(stain.shape) > 1:
        ax.contour(columns, rows, field, levels=levels, colors="#00e050", linewidths=0.7)
