"""Where a section is tissue, and where it is glass."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sthist._imaging.colours import require_rgb8
from sthist._imaging.tissue import clean, mask_of_he, mask_of_nuclear_stain, not_stain
from sthist._sample.elements import outlines_um
from sthist.tiles._images.image import open_he
from sthist.tiles._images.reader import TileReader, read_box, read_grid, seen_grid
from sthist.tiles._molecules.density import Grid
from sthist.tiles._regions.raster import rasterize
from sthist.tiles._spec import TileSpec

if TYPE_CHECKING:
    from sthist._sample.elements import HighResElements
    from sthist.tiles import Image

SAMPLE_TILES, SAMPLE_PX = 64, 256
TISSUE_MPP = 4.0


def reference_pixels(reference: Any, seed: int) -> np.ndarray:
    """Tissue pixels of a reference H&E, (n, 3) uint8: evenly out of an array, from tiles over a registered image."""
    from spatialdata import SpatialData

    if isinstance(reference, SpatialData):
        reference = (reference, None)
    if isinstance(reference, tuple):
        pixels = _pixels_of_image(open_he(*reference), seed)
    else:
        pixels = _pixels_of_array(np.asarray(reference))
    if len(pixels) == 0:
        raise ValueError("The reference H&E shows no tissue.")
    return pixels


def _pixels_of_array(array: np.ndarray) -> np.ndarray:
    if array.ndim != 3:
        raise ValueError(f"The reference H&E has shape {array.shape}; it should be (h, w, 3).")
    require_rgb8("The reference array", array.shape[-1], array.dtype)
    step = int(np.clip(np.sqrt(array.shape[0] * array.shape[1] / 1e6), 1, 8))
    image = array[::step, ::step]
    # An array has no scale; 16 of its pixels stand for the grain over which tissue is even, as 8 µm do at 0.5 µm/px.
    mask = clean(mask_of_he(image, step / 2), step / 2, min_area_um2=600.0, max_hole_um2=2500.0)
    return image[mask & ~not_stain(image, step / 2)]


def _pixels_of_image(he: Image, seed: int) -> np.ndarray:
    mpp = float(np.sqrt(np.prod(he.mpp)))
    reader = TileReader.from_image(he, TileSpec.from_mpp(mpp, SAMPLE_PX), fill=255)
    grid = Grid.over(reader.extent_um, TISSUE_MPP)
    overview = read_box(he, he.extent_um, grid.bin_um, fill=255)
    seen = seen_grid(he, grid.origin_um, grid.bin_um, overview.shape[:2])
    mask = clean(mask_of_he(overview, grid.bin_um, seen), grid.bin_um, 600.0, 2500.0, seen)
    mask &= ~not_stain(overview, grid.bin_um, seen)
    centres = sample_tiles(reader.extent_um, reader.spec, mask, grid, seed)
    on_tissue = (
        TileReader.from_array(mask[None].astype(np.float32), grid.to_um, reader.spec).read(centres)[..., 0] > 0.5
    )
    return reader.read(centres)[on_tissue & reader.seen(centres)]


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


def _spread(low: float, high: float, size: float) -> np.ndarray:
    """Centres of tiles that leave no gap from low to high, at least one."""
    n = max(1, int(np.ceil((high - low) / size)))
    return low + (high - low) * (np.arange(n) + 0.5) / n


def find_tissue(
    elements: HighResElements,
    stain: Image,
    grid: Grid,
    molecules: np.ndarray | None,
    content: Any,
) -> tuple[np.ndarray, Grid]:
    """Tissue on a coarse grid: the shapes named "tissue", else found in stain and molecules.

    Returns part of each cell that is tissue, 0 to 1, and where the cells lie.
    """
    from scipy.ndimage import gaussian_filter

    coarse = Grid.over(stain.extent_um, TISSUE_MPP)
    if "tissue" in elements.sdata.shapes:
        outlines = outlines_um(elements.sdata, "tissue")
        mask = rasterize(outlines, coarse.origin_um, coarse.bin_um, coarse.shape) > 0
    else:
        image, seen = _read_stain(stain.select([elements.nuclear_channel], z=elements.z), coarse)
        content.update(image.tobytes())
        density = None
        if molecules is not None:
            density = gaussian_filter(resample(molecules.astype(np.float32), grid, coarse), 6.0 / coarse.bin_um)
        found = mask_of_nuclear_stain(image, coarse.bin_um, density, seen)
        mask = clean(found, coarse.bin_um, 500.0, 2000.0, seen)
    if not mask.any():
        raise ValueError(
            f"Found no tissue in the nuclear stain {stain.key!r}, channel {elements.nuclear_channel!r}: it is empty or "
            "constant. Choose another with image= and channel=, or put outlines in shapes['tissue']."
        )
    return gaussian_filter(mask.astype(np.float32), 0.7), coarse


def _read_stain(stain: Image, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """The nuclear stain on a coarse grid, and where it has been seen."""
    image = read_box(stain, stain.extent_um, grid.bin_um)[..., 0]
    seen = seen_grid(stain, grid.origin_um, grid.bin_um, grid.shape)
    # The last cells may have their centre beyond the image; they are as their neighbours, not dark.
    x0, y0, x1, y1 = stain.extent_um
    for values in (image, seen):
        if image.shape[0] > 1 and (image.shape[0] - 0.5) * grid.bin_um > y1 - y0 - 1e-6:
            values[-1] = values[-2]
        if image.shape[1] > 1 and (image.shape[1] - 0.5) * grid.bin_um > x1 - x0 - 1e-6:
            values[:, -1] = values[:, -2]
    return image, seen


def resample(values: np.ndarray, source: Grid, target: Grid, *, out: np.ndarray | None = None) -> np.ndarray:
    """A grid's values on the cells of another, by the reader."""
    reader = TileReader.from_array(values[None], source.to_um, TileSpec.from_mpp(target.bin_um, 256))
    return read_grid(reader, target.origin_um, target.shape, out=None if out is None else out[..., None])[..., 0]
