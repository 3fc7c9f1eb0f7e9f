"""What a fluorescence microscope and a slide scanner see of the toy sample."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numba import njit

from sthist.tiles._regions.raster import rasterize

if TYPE_CHECKING:
    import pandas as pd
    from shapely.geometry.base import BaseGeometry

DAPI_GLASS, DAPI_TISSUE, DAPI_NUCLEUS = 110.0, 140.0, 4200.0
REGION_EOSIN = {"stroma": 0.42, "duct": 0.3, "immune": 0.22}
CYTOPLASM_EOSIN = {
    "epithelial": 0.26,
    "fibroblast": 0.1,
    "endothelial": 0.1,
    "macrophage": 0.22,
    "T cell": 0.05,
    "B cell": 0.05,
}


class Scene:
    """The amounts of DNA and protein of the toy sample on a pixel grid, before any microscope."""

    def __init__(
        self, cells: pd.DataFrame, regions: dict[str, BaseGeometry], n_px: int, mpp: float, rng: np.random.Generator
    ) -> None:
        from scipy.ndimage import gaussian_filter

        self._mpp, self._rng, shape = mpp, rng, (n_px, n_px)
        values = cells[["x", "y", "a", "b", "angle"]].to_numpy(np.float64)
        brightness = rng.lognormal(-0.02, 0.2, len(cells)) * np.where(
            cells.cell_type.isin(["T cell", "B cell"]), 1.25, 1.0
        )
        self.dna = np.zeros(shape, np.float32)
        paint_ellipses(self.dna, values, brightness, 0.0, mpp, 0.35)
        chromatin = gaussian_filter(rng.standard_normal(shape, np.float32), 0.6 / mpp)
        self.dna *= np.clip(1 + 0.22 * chromatin / chromatin.std(), 0.4, 1.6)
        cytoplasm = np.zeros(shape, np.float32)
        pink = cells.cell_type.map(CYTOPLASM_EOSIN).to_numpy(np.float64)
        paint_ellipses(cytoplasm, values, pink, 2.2, mpp, 1.0)
        matrix = np.zeros(shape, np.float32)
        for name, amount in REGION_EOSIN.items():
            matrix += amount * rasterize([regions[name]], (0, 0), mpp, shape)
        lumen = (
            rasterize([regions["lumen"]], (0, 0), mpp, shape) > 0
            if not regions["lumen"].is_empty
            else np.zeros(shape, bool)
        )
        matrix[lumen] = 0.02
        self.tissue = gaussian_filter((matrix > 0).astype(np.float32), 1.0 / mpp)
        # Collagen runs in long, thin strands.
        strands = gaussian_filter(rng.standard_normal(shape, np.float32), (1.2 / mpp, 9.0 / mpp))
        self.protein = (
            np.clip(gaussian_filter(matrix, 1.0 / mpp) * (1 + 0.3 * strands / strands.std()), 0, None) + cytoplasm
        )

    def dapi(self) -> np.ndarray:
        """The nuclear stain: blurred by the objective, with haze, background and noise; (h, w) uint16."""
        from scipy.ndimage import gaussian_filter

        sharp = gaussian_filter(self.dna, 0.45 / self._mpp)
        haze = gaussian_filter(self.dna, 6.0 / self._mpp)
        signal = DAPI_GLASS + DAPI_TISSUE * self.tissue + DAPI_NUCLEUS * (0.92 * sharp + 0.08 * haze)
        noise = self._rng.standard_normal(signal.shape, np.float32) * np.sqrt(0.6 * signal + 60)
        return np.clip(signal + noise, 0, 65535).astype(np.uint16)

    def stain_amounts(self, he_to_um: np.ndarray) -> np.ndarray:
        """Haematoxylin and eosin as the scanner sees them, (h, w, 2), in the frame of a (3, 3) pixel-to-µm matrix."""
        from scipy.ndimage import affine_transform

        haematoxylin = 0.95 * self.dna + 0.10 * self.tissue
        eosin = self.protein * (1 - 0.45 * np.clip(self.dna, 0, 1))
        # Output pixel centres to input indices, both in (row, column).
        matrix = (np.diag([1 / self._mpp, 1 / self._mpp, 1.0]) @ he_to_um)[1::-1, [1, 0, 2]]
        offset = matrix[:, :2] @ [0.5, 0.5] + matrix[:, 2] - 0.5
        amounts = [
            affine_transform(layer, matrix[:, :2], offset, order=1, mode="constant", cval=0.0)
            for layer in (haematoxylin, eosin)
        ]
        grain = self._rng.standard_normal((*self.dna.shape, 2), np.float32) * 0.012
        return np.clip(np.stack(amounts, -1) + grain, 0, None)


@njit(nogil=True, cache=True)
def paint_ellipses(image, ellipses, values, grow_um, mpp, soft_um):
    """Paint filled ellipses with soft borders onto an image; where two overlap, the larger value stays.

    ``ellipses`` is (n, 5): x, y, half axes a and b in µm, and the angle; both axes are grown by ``grow_um``.
    """
    rows, columns = image.shape
    for e in range(ellipses.shape[0]):
        x, y, angle = ellipses[e, 0], ellipses[e, 1], ellipses[e, 4]
        a, b = ellipses[e, 2] + grow_um, ellipses[e, 3] + grow_um
        cos, sin = np.cos(angle), np.sin(angle)
        reach = max(a, b) + 2 * soft_um
        i0, i1 = max(0, int((y - reach) / mpp)), min(rows, int((y + reach) / mpp) + 1)
        j0, j1 = max(0, int((x - reach) / mpp)), min(columns, int((x + reach) / mpp) + 1)
        for i in range(i0, i1):
            dy = (i + 0.5) * mpp - y
            for j in range(j0, j1):
                dx = (j + 0.5) * mpp - x
                u, v = dx * cos + dy * sin, -dx * sin + dy * cos
                inside = (1.0 - np.sqrt((u / a) ** 2 + (v / b) ** 2)) * min(a, b) / soft_um
                if inside > -1.0:
                    amount = values[e] * min(1.0, (inside + 1.0) / 2.0)
                    if amount > image[i, j]:
                        image[i, j] = amount
