"""Haematoxylin and nuclei of each tile, measured alike on real and synthetic ones."""

from __future__ import annotations

import numpy as np

from sthist import stains
from sthist._imaging.nuclei import above_surroundings, contrast_of
from sthist.tiles import segment_nuclei

FINE_MPP = 1.0
"""Up to which nuclei are told apart: coarser ones run into each other."""

SAMPLED = 2_000_000
"""Pixels that stains and contrast are measured on, at most."""


class StainScores:
    """Measures tiles with the stains and the contrast of nuclei of the real ones: differences would be lost else."""

    def __init__(self, real: np.ndarray, mpp: float) -> None:
        self.mpp, self.fine = mpp, mpp <= FINE_MPP
        step = max(1, int(np.sqrt(real[..., 0].size / SAMPLED)))
        self._vectors = stains.macenko(real[:, ::step, ::step])
        self._contrast = 0.0
        if self.fine:
            excess = [above_surroundings(self._haematoxylin(tile), mpp)[::step, ::step] for tile in real]
            self._contrast = contrast_of(np.stack(excess))

    def __call__(self, tiles: np.ndarray) -> dict[str, np.ndarray]:
        """Columns of numbers, one per tile; NaN for the size of nuclei where there are none."""
        amounts = [self._haematoxylin(tile) for tile in tiles]
        found = {
            "haematoxylin": np.array([each.mean() for each in amounts], np.float64),
            "haematoxylin_texture": np.array([each.std() for each in amounts], np.float64),
        }
        if not self.fine:
            return found
        number, area = np.zeros(len(tiles)), np.full(len(tiles), np.nan)
        for i, each in enumerate(amounts):
            labels = segment_nuclei(each, self.mpp, contrast=self._contrast)
            number[i] = labels.max()
            if number[i]:
                area[i] = (labels > 0).sum() * self.mpp**2 / number[i]
        mm2 = tiles.shape[1] * tiles.shape[2] * self.mpp**2 / 1e6
        return found | {"nuclei_per_mm2": number / mm2, "nucleus_area_um2": area}

    def _haematoxylin(self, tile: np.ndarray) -> np.ndarray:
        return np.asarray(stains.concentrations(tile, self._vectors)[..., 0])
