"""What the grey levels of a nuclear stain stand for, measured on its section."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sthist.tiles._molecules.overlay_style import tissue_pixels

if TYPE_CHECKING:
    from sthist.tiles._images.reader import TileReader

BACKGROUND, BRIGHT = 0.2, 0.995
"""Quantiles of the stain on tissue that become 0 and 1."""

GAMMAS, STEPS = (0.2, 5.0), 8


@dataclass(frozen=True)
class Response:
    """Grey levels of the background and of the brightest nuclei, and the power that puts their median at a half."""

    low: float
    high: float
    gamma: float = 1.0

    def light(self, levels: np.ndarray) -> np.ndarray:
        """Grey levels from the background, 0, to the brightest nuclei, 1, float32."""
        return (levels.astype(np.float32) - np.float32(self.low)) / np.float32(self.high - self.low)

    def amount(self, light: np.ndarray) -> np.ndarray:
        """What light stands for: from 0 on, a half in the median of the nuclei, 1 in the brightest."""
        return np.maximum(light, 0) ** np.float32(self.gamma)


def measured_response(reader: TileReader) -> Response:
    """The response of a stain, from up to 64 places on its tissue; of the image and its resolution alone.

    A camera's gamma, exposure and black level are undone by it: nuclei are told from the rest by Otsu's threshold, and
    their median does not depend on how many there are.

    Raises
    ------
    ValueError
        If the stain is all of one value.
    """
    pixels = tissue_pixels(reader).astype(np.float32)
    low, high = (float(value) for value in np.quantile(pixels, [BACKGROUND, BRIGHT]))
    if not low < high:
        low, high = float(pixels.min()), float(pixels.max())
    if not low < high:
        raise ValueError(f"The nuclear stain {reader.image.key!r} is all of one value, {low:g}.")
    return Response(low, high, _gamma_of(((pixels - low) / (high - low)).clip(0, 1)))


def _gamma_of(light: np.ndarray) -> float:
    """The power that puts the median of the nuclei at a half.

    What counts as nuclei is decided on the light that it makes: another gamma of the camera is answered by another
    power, and the nuclei stay the same.
    """
    from skimage.filters import threshold_otsu

    inside, gamma = light[light > 0], 1.0
    for _ in range(STEPS):
        made = inside**gamma
        middle = float(np.median(made[made > threshold_otsu(made)])) if np.ptp(made) > 0 else 0.5
        gamma = float(np.clip(gamma * np.log(0.5) / np.log(np.clip(middle, 0.01, 0.99)), *GAMMAS))
    return gamma
