"""Where a sliding kernel works: the box, its sizes, and the cells that show tissue."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sthist import _sample
from sthist._sample.elements import region_geometry
from sthist._settings import logger
from sthist.pp._tissue import tissue_mask
from sthist.tiles import TileSpec
from sthist.tiles._regions.raster import rasterize

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from sthist.systems.annotation.sliding_windows import KernelGrid
    from sthist.tiles import Image

KERNEL_PX, STRIDES = 64, 4
"""ST2HE's kernel, and how many strides it is long."""

TISSUE_MPP = 8.0
"""µm per pixel at which the tissue is looked for."""


def box_of(sdata: SpatialData, image: Image, within: Any) -> tuple[float, float, float, float]:
    """What is worked on, in µm: the image, or what of it lies in ``within``."""
    x0, y0, x1, y1 = image.extent_um
    if within is None:
        return x0, y0, x1, y1
    left, top, right, bottom = region_geometry(sdata, within).bounds
    box = max(x0, left), max(y0, top), min(x1, right), min(y1, bottom)
    if not (box[0] < box[2] and box[1] < box[3]):
        raise ValueError(
            f"within={within!r} does not lie on the image {image.key!r}, which shows x {x0:g} to {x1:g} and y {y0:g} "
            f"to {y1:g} µm."
        )
    return box


def kernel_sizes(
    image: Image, trained: TileSpec | None, spec: TileSpec | None, stride: float | None
) -> tuple[float, int, int]:
    """µm per pixel, pixels of a stride, strides of a kernel: that of ``spec=``, or the tile that was trained on."""
    tile = spec or trained or TileSpec.from_mpp(image.coarsest_mpp, KERNEL_PX)
    kernel, stride = tile.size_um, tile.size_um / STRIDES if stride is None else stride
    if not (np.isfinite(stride) and stride > 0):
        raise ValueError(f"stride_um is {stride!r}; it is a positive number of µm.")
    if trained is not None and abs(kernel / trained.size_um - 1) > 0.02:
        logger.warning("The model was trained on tiles of %g µm, and is given %g µm.", trained.size_um, kernel)
    span = max(1, round(kernel / stride))
    if abs(kernel / stride - span) > 1e-3:
        raise ValueError(
            f"A kernel of {kernel:g} µm is {kernel / stride:.4g} strides of {stride:g} µm; it is a whole number of "
            f"them: take a stride of {kernel / span:.6g} µm."
        )
    stride_px = max(1, round(stride / tile.mpp))
    return stride / stride_px, stride_px, span


def cells_inside(
    sdata: SpatialData, image: Image, grid: KernelGrid, within: Any, tissue: str | bool | None
) -> np.ndarray:
    """Which cells show tissue that is asked for, by their centre."""

    def painted(of: Any) -> np.ndarray:
        return rasterize([region_geometry(sdata, of)], grid.origin_um, grid.stride_um, grid.shape) > 0

    inside = np.ones(grid.shape, bool) if within is None else painted(within)
    known = _sample.find_tissue(sdata) if tissue is None or tissue is True else tissue
    if isinstance(known, str) and (known in sdata.shapes or isinstance(tissue, str)):
        inside &= painted(known)
    elif known is not False:
        inside &= _seen_tissue(image, grid)
    if not inside.any():
        raise ValueError(
            f"There is no tissue in what is to be scored of {image.key!r}. Name its outlines with tissue=, or score "
            "all with tissue=False."
        )
    return inside


def _seen_tissue(image: Image, grid: KernelGrid) -> np.ndarray:
    mask = tissue_mask(image, TISSUE_MPP)
    x0, y0, *_ = image.extent_um
    centres = [(np.arange(n) + 0.5) * grid.stride_um for n in grid.shape]
    rows = ((centres[0] + grid.origin_um[1] - y0) // TISSUE_MPP).astype(int).clip(0, mask.shape[0] - 1)
    columns = ((centres[1] + grid.origin_um[0] - x0) // TISSUE_MPP).astype(int).clip(0, mask.shape[1] - 1)
    return mask[np.ix_(rows, columns)]
