"""Cells of a grid over a slide: which of them are asked for, and what the tokens of tiles say of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sthist import _sample
from sthist._sample.elements import region_geometry
from sthist.pp._tissue.outlines import tissue_mask
from sthist.tiles._regions.raster import rasterize
from sthist.tiles._spec import TileSpec

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from sthist.tiles import Image

TISSUE_MPP = 8.0
"""µm per pixel at which the tissue is looked for."""

Grid = tuple[Any, float, tuple[int, int]]
"""Corner (x, y) in µm, side of a cell in µm, rows and columns."""


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


def tissue_cells(sdata: SpatialData, image: Image, grid: Grid, within: Any, tissue: str | bool | None) -> np.ndarray:
    """Which cells show tissue that is asked for, by their centre."""
    origin, side, shape = grid

    def painted(of: Any) -> np.ndarray:
        return rasterize([region_geometry(sdata, of)], origin, side, shape) > 0

    inside = np.ones(shape, bool) if within is None else painted(within)
    known = _sample.find_tissue(sdata) if tissue is None or tissue is True else tissue
    if isinstance(known, str) and (known in sdata.shapes or isinstance(tissue, str)):
        inside &= painted(known)
    elif known is not False:
        inside &= _seen_tissue(image, grid)
    if not inside.any():
        raise ValueError(
            f"There is no tissue in what is asked for of {image.key!r}. Name its outlines with tissue=, or take all "
            "with tissue=False."
        )
    return inside


def _seen_tissue(image: Image, grid: Grid) -> np.ndarray:
    origin, side, shape = grid
    mask = tissue_mask(image, TISSUE_MPP)
    x0, y0, *_ = image.extent_um
    centres = [(np.arange(n) + 0.5) * side for n in shape]
    rows = ((centres[0] + origin[1] - y0) // TISSUE_MPP).astype(int).clip(0, mask.shape[0] - 1)
    columns = ((centres[1] + origin[0] - x0) // TISSUE_MPP).astype(int).clip(0, mask.shape[1] - 1)
    return mask[np.ix_(rows, columns)]


def large_tiles(side_um: float, spec: TileSpec | None, default: TileSpec) -> TileSpec:
    """The tile whose tokens are taken: the encoder's own, to the nearest whole number of cells."""
    spec = default if spec is None else spec
    return TileSpec(max(1, round(spec.size_um / side_um)) * side_um, spec.px)


def cells_of_tokens(tokens: np.ndarray, n_cells: int) -> np.ndarray:
    """Tokens (n, gh, gw, d) of tiles as means over their cells, (n, n_cells, n_cells, d)."""
    down, across = (_overlap_shares(n_cells, n) for n in tokens.shape[1:3])
    return np.asarray(np.einsum("yg,ngwd,xw->nyxd", down, tokens, across, optimize=True))


def _overlap_shares(n_cells: int, n_tokens: int) -> np.ndarray:
    """What part of each cell along an axis each token covers, (cells, tokens); rows sum to 1."""
    cell, token = np.arange(n_cells + 1) / n_cells, np.arange(n_tokens + 1) / n_tokens
    shared = np.minimum(cell[1:, None], token[1:]) - np.maximum(cell[:-1, None], token[:-1])
    return (np.maximum(shared, 0) * n_cells).astype(np.float32)
