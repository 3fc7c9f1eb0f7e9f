"""Where a section is tissue, and where it is glass."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sthist._imaging.tissue import clean, mask_of_nuclear_stain
from sthist.systems.virtual_he.sampling import TISSUE_MPP
from sthist.tiles._images.reader import TileReader, read_grid, read_region
from sthist.tiles._molecules.density import Grid
from sthist.tiles._regions.raster import rasterize
from sthist.tiles._spec import TileSpec

if TYPE_CHECKING:
    from sthist._sample.elements import HighResElements


def find_tissue(
    elements: HighResElements,
    extent_um: tuple[float, float, float, float],
    grid: Grid,
    molecules: np.ndarray | None,
    content: Any,
) -> tuple[np.ndarray, Grid]:
    """Tissue on a coarse grid: the shapes named "tissue", else found in stain and molecules.

    Parameters
    ----------
    elements
        The section's elements by role.
    extent_um
        Box of the whole section, in µm.
    grid, molecules
        Counts of molecules, and where they lie; None for none.
    content
        A hash into which goes what is seen of the section.

    Returns
    -------
    Part of each cell that is tissue, 0 to 1, and where the cells lie.

    Raises
    ------
    ValueError
        If there is none.
    """
    import spatialdata as sd
    from scipy.ndimage import gaussian_filter

    coarse = Grid.over(extent_um, TISSUE_MPP)
    if "tissue" in elements.sdata.shapes:
        shapes = sd.transform(elements.sdata.shapes["tissue"], to_coordinate_system="um")
        mask = rasterize(shapes.geometry, coarse.origin_um, coarse.bin_um, coarse.shape) > 0
    else:
        image = _read_stain(elements, extent_um, coarse)
        content.update(image.tobytes())
        density = None
        if molecules is not None:
            density = gaussian_filter(resample(molecules.astype(np.float32), grid, coarse), 6.0 / coarse.bin_um)
        found = mask_of_nuclear_stain(image, coarse.bin_um, density)
        mask = clean(found, coarse.bin_um, min_area_um2=500.0, max_hole_um2=2000.0)
    if not mask.any():
        msg = (
            f"Found no tissue in the nuclear stain {elements.nuclear[0]!r}, channel {elements.nuclear_channel!r}: it is "
            "empty or constant. Choose another with image= and channel=, or put outlines in shapes['tissue']."
        )
        raise ValueError(msg)
    return gaussian_filter(mask.astype(np.float32), 0.7), coarse


def _read_stain(elements: HighResElements, extent_um: tuple[float, float, float, float], grid: Grid) -> np.ndarray:
    """The nuclear stain on a coarse grid."""
    channels = [elements.nuclear_channel]
    image = read_region(elements.sdata, elements.nuclear, extent_um, grid.bin_um, channels=channels, z=elements.z)[
        ..., 0
    ]
    # The last cells may have their centre beyond the image; they are as their neighbours, not dark.
    x0, y0, x1, y1 = extent_um
    if image.shape[0] > 1 and (image.shape[0] - 0.5) * grid.bin_um > y1 - y0 - 1e-6:
        image[-1] = image[-2]
    if image.shape[1] > 1 and (image.shape[1] - 0.5) * grid.bin_um > x1 - x0 - 1e-6:
        image[:, -1] = image[:, -2]
    return image


def resample(values: np.ndarray, source: Grid, target: Grid, *, out: np.ndarray | None = None) -> np.ndarray:
    """A grid's values on the cells of another, by the reader."""
    reader = TileReader.from_array(values[None], source.to_um, TileSpec.from_mpp(target.bin_um, 256))
    return read_grid(reader, target.origin_um, target.shape, out=None if out is None else out[..., None])[..., 0]
