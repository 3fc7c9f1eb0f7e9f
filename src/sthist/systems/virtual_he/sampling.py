"""Pixels that stand for a whole section: tiles spread over its tissue, and the tissue of a reference H&E."""

from __future__ import annotations

from typing import Any

import numpy as np

from sthist import _sample, scale
from sthist._imaging.tissue import clean, mask_of_he
from sthist.tiles._images.reader import TileReader, read_region
from sthist.tiles._molecules.density import Grid
from sthist.tiles._spec import TileSpec

SAMPLE_TILES, SAMPLE_PX = 64, 256
TISSUE_MPP = 4.0


def reference_pixels(reference: Any, seed: int) -> np.ndarray:
    """Tissue pixels of a reference H&E, (n, 3) uint8: evenly out of an array, from tiles over a registered image."""
    from spatialdata import SpatialData

    if isinstance(reference, SpatialData):
        reference = (reference, None)
    if isinstance(reference, tuple):
        pixels = _pixels_of_image(reference[0], _sample.find_he(*reference), seed)
    else:
        pixels = _pixels_of_array(np.asarray(reference))
    if len(pixels) == 0:
        msg = "The reference H&E shows no tissue."
        raise ValueError(msg)
    return pixels


def _pixels_of_array(array: np.ndarray) -> np.ndarray:
    if array.ndim != 3:
        msg = f"The reference H&E has shape {array.shape}; it should be (h, w, 3)."
        raise ValueError(msg)
    _require_rgb8(array.dtype, array.shape[-1], "the reference array")
    step = int(np.clip(np.sqrt(array.shape[0] * array.shape[1] / 1e6), 1, 8))
    image = array[::step, ::step]
    # An array has no scale; 16 of its pixels stand for the grain over which tissue is even, as 8 µm do at 0.5 µm/px.
    mask = clean(mask_of_he(image, step / 2), step / 2, min_area_um2=600.0, max_hole_um2=2500.0)
    return image[mask]


def _pixels_of_image(sdata: Any, key: str, seed: int) -> np.ndarray:
    mpp = float(np.sqrt(np.prod(scale.resolve_mpp(sdata, key))))
    reader = TileReader(sdata, key, TileSpec.from_mpp(mpp, SAMPLE_PX), fill=255)
    _require_rgb8(reader.dtype, len(reader.channels), f"image {key!r}")
    grid = Grid.over(reader.extent_um, TISSUE_MPP)
    overview = read_region(sdata, key, reader.extent_um, grid.bin_um, fill=255)
    mask = clean(mask_of_he(overview, grid.bin_um), grid.bin_um, min_area_um2=600.0, max_hole_um2=2500.0)
    centres = sample_tiles(reader.extent_um, reader.spec, mask, grid, seed)
    on_tissue = (
        TileReader.from_array(mask[None].astype(np.float32), grid.to_um, reader.spec).read(centres)[..., 0] > 0.5
    )
    return reader.read(centres)[on_tissue]


def sample_tiles(
    extent_um: tuple[float, float, float, float], spec: TileSpec, mask: np.ndarray, grid: Grid, seed: int
) -> np.ndarray:
    """Centres of up to 64 tiles that show tissue; on a sparse section, of those that show most."""
    x0, y0, x1, y1 = extent_um
    columns, rows = (_spread(low, high, spec.size_um) for low, high in ((x0, x1), (y0, y1)))
    centres = np.stack(np.meshgrid(columns, rows), -1).reshape(-1, 2)
    cells = ((centres - grid.origin_um) // grid.bin_um).astype(int)
    half = int(np.ceil(spec.size_um / grid.bin_um / 2))
    shown = np.array([mask[max(0, y - half) : y + half, max(0, x - half) : x + half].mean() for x, y in cells])
    candidates = np.flatnonzero(shown > min(0.5, shown.max() * 0.8))
    return centres[np.sort(np.random.default_rng(seed).permutation(candidates)[:SAMPLE_TILES])]


def _require_rgb8(dtype: np.dtype, n_channels: int, what: str) -> None:
    if dtype != np.uint8 or n_channels != 3:
        msg = f"The H&E, {what}, has {n_channels} channels of {dtype}; three channels of uint8 (RGB) are needed."
        raise ValueError(msg)


def _spread(low: float, high: float, size: float) -> np.ndarray:
    """Centres of tiles that leave no gap from low to high, at least one."""
    n = max(1, int(np.ceil((high - low) / size)))
    return low + (high - low) * (np.arange(n) + 0.5) / n
