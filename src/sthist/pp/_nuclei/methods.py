"""What labels the nuclei of a window: built in, or other people's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sthist import stains
from sthist._imaging.local_nuclei import REACH_UM, Levels, absorbed, local_nuclei
from sthist.pp._stain_normalize.pixels import tissue_tiles
from sthist.tiles import TileReader, TileSpec

if TYPE_CHECKING:
    from collections.abc import Callable

    from spatialdata import SpatialData

    from sthist.pp._nuclei.windows import Lattice, Window
    from sthist.tiles import Image

FINEST_MPP = 0.5
SAMPLE_TILES, SAMPLE_PX = 64, 128
STANDARD = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])
"""Haematoxylin and eosin after Ruifrok and Johnston 2001, for a slide on which two stains cannot be told apart."""

LEAST_ANGLE = 15.0  # degrees between two stains


class Watershed:
    """The built-in method: :func:`sthist._imaging.local_nuclei.local_nuclei`."""

    reach_um, exact, concurrent = REACH_UM, True, True

    def __init__(self, levels: Levels, mpp: float) -> None:
        self.levels = levels
        self.mpp: float | None = mpp

    def __call__(self, rgb: np.ndarray, seen: np.ndarray, window: Window, lattice: Lattice) -> np.ndarray:
        return local_nuclei(absorbed(rgb), lattice.mpp, self.levels, seen)


class Called:
    """A function of the user's: it takes (h, w, 3) uint8 and returns labels (h, w)."""

    reach_um, exact, concurrent = 16.0, False, False

    def __init__(self, function: Callable[[np.ndarray], Any], mpp: float | None = None) -> None:
        self.function, self.mpp = function, mpp

    def __call__(self, rgb: np.ndarray, seen: np.ndarray, window: Window, lattice: Lattice) -> np.ndarray:
        from skimage.measure import label

        labels = np.asarray(self.function(rgb))
        if labels.shape != rgb.shape[:2] or labels.dtype.kind not in "iub":
            raise ValueError(
                f"The method returned {labels.dtype} of shape {labels.shape} for pixels of shape {rgb.shape}; it has "
                f"to return integers of shape {rgb.shape[:2]}, 0 between nuclei."
            )
        if labels.size and labels.min() < 0:
            raise ValueError(f"The method returned a label of {labels.min()}; 0 is background, and nuclei are above.")
        # Pieces that do not touch are nuclei of their own.
        return np.asarray(label(labels, background=0, connectivity=2), np.int32)


def sample_of(sdata: SpatialData, image: Image, mpp: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Tiles that stand for the slide, and which of their pixels show tissue: all, where none is told from glass."""
    reader = TileReader.from_image(image, TileSpec.from_mpp(mpp, SAMPLE_PX), fill=255, allow_upsampling=True)
    try:
        drawn = tissue_tiles(sdata, reader, within=None, n_tiles=SAMPLE_TILES, seed=seed)
    except ValueError:  # a small piece, full of tissue or empty
        x0, y0, x1, y1 = image.extent_um
        centres = np.array([[(x0 + x1) / 2, (y0 + y1) / 2]])
        return reader.read(centres), reader.seen(centres)
    return drawn.tiles, drawn.on_tissue


def stains_of(pixels: np.ndarray) -> np.ndarray:
    """Vectors of haematoxylin and eosin, as they are on the slide where both are there."""
    standard = STANDARD / np.linalg.norm(STANDARD, axis=1, keepdims=True)
    try:
        found = stains.macenko(pixels)
    except ValueError:  # hardly anything is stained
        return standard
    angle = np.degrees(np.arccos(np.clip(found[0] @ found[1], -1, 1)))
    return found if angle >= LEAST_ANGLE else standard
