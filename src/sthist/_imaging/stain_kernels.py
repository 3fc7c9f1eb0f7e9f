"""The inner loops of stain normalisation."""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(nogil=True, cache=True, error_model="numpy")
def recolour_densities(
    pixels: np.ndarray,
    density: np.ndarray,
    change: np.ndarray,
    shift: np.ndarray,
    clear: float,
    full: float,
    grey: np.ndarray,
    offset: float,
    per_step: float,
    out: np.ndarray,
) -> None:
    """Move optical densities: the more, the more stained a pixel is."""
    last = grey.shape[1] - 1
    for i in range(pixels.shape[0]):
        r, g, b = density[0, pixels[i, 0]], density[1, pixels[i, 1]], density[2, pixels[i, 2]]
        stained = max(r, g, b)
        if stained <= clear or (pixels[i, 0] == 0 and pixels[i, 1] == 0 and pixels[i, 2] == 0):
            out[i, 0], out[i, 1], out[i, 2] = pixels[i, 0], pixels[i, 1], pixels[i, 2]
            continue
        t = min((stained - clear) / (full - clear), np.float32(1.0))
        weight = t * t * (np.float32(3.0) - np.float32(2.0) * t)
        for k in range(3):
            here = r if k == 0 else (g if k == 1 else b)
            moved = here + weight * (r * change[0, k] + g * change[1, k] + b * change[2, k] + shift[k])
            step = int((moved + offset) * per_step + np.float32(0.5))
            out[i, k] = grey[k, min(max(step, 0), last)]


@njit(nogil=True, cache=True, error_model="numpy", inline="always")
def _logarithm(value: float, logarithm: np.ndarray, inverse: np.ndarray, per_level: float) -> float:
    """Of a cone response, from its nearest value in a table, exact to first order around it."""
    level = np.uint32(value * per_level + np.float32(0.5))
    return logarithm[level] + (value - np.float32(level) * (np.float32(1.0) / per_level)) * inverse[level]


@njit(nogil=True, cache=True, error_model="numpy", inline="always")
def _exponential(value: float, exponential: np.ndarray, per_step: float) -> float:
    """Of a number from the start of a table on, in the same way; beyond the table, as at its ends."""
    one = np.float32(1.0)
    last = np.float32(exponential.shape[0] - 1)
    step = np.uint32(min(max(value * per_step + np.float32(0.5), np.float32(0.0)), last))
    return exponential[step] * (one + min(max(value - np.float32(step) * (one / per_step), -one), one))


@njit(nogil=True, cache=True, error_model="numpy")
def recolour_cones(
    pixels: np.ndarray,
    density: np.ndarray,
    to_lms: np.ndarray,
    matrix: np.ndarray,
    shift: np.ndarray,
    to_rgb: np.ndarray,
    clear: float,
    full: float,
    logarithm: np.ndarray,
    inverse: np.ndarray,
    per_level: float,
    exponential: np.ndarray,
    lowest: float,
    per_step: float,
    out: np.ndarray,
) -> None:
    """Map logarithms of cone responses linearly: the more, the more stained a pixel is."""
    half, one = np.float32(0.5), np.float32(1.0)
    for i in range(pixels.shape[0]):
        r, g, b = density[0, pixels[i, 0]], density[1, pixels[i, 1]], density[2, pixels[i, 2]]
        stained = max(r, g, b)
        if stained <= clear or (pixels[i, 0] == 0 and pixels[i, 1] == 0 and pixels[i, 2] == 0):
            out[i, 0], out[i, 1], out[i, 2] = pixels[i, 0], pixels[i, 1], pixels[i, 2]
            continue
        t = min((stained - clear) / (full - clear), one)
        weight = t * t * (np.float32(3.0) - np.float32(2.0) * t)
        r = np.float32(max(pixels[i, 0], np.uint8(1)))
        g = np.float32(max(pixels[i, 1], np.uint8(1)))
        b = np.float32(max(pixels[i, 2], np.uint8(1)))
        u = _logarithm(to_lms[0, 0] * r + to_lms[0, 1] * g + to_lms[0, 2] * b, logarithm, inverse, per_level)
        v = _logarithm(to_lms[1, 0] * r + to_lms[1, 1] * g + to_lms[1, 2] * b, logarithm, inverse, per_level)
        w = _logarithm(to_lms[2, 0] * r + to_lms[2, 1] * g + to_lms[2, 2] * b, logarithm, inverse, per_level)
        x = matrix[0, 0] * u + matrix[0, 1] * v + matrix[0, 2] * w + shift[0] - lowest
        y = matrix[1, 0] * u + matrix[1, 1] * v + matrix[1, 2] * w + shift[1] - lowest
        z = matrix[2, 0] * u + matrix[2, 1] * v + matrix[2, 2] * w + shift[2] - lowest
        x, y, z = (
            _exponential(x, exponential, per_step),
            _exponential(y, exponential, per_step),
            _exponential(z, exponential, per_step),
        )
        for k in range(3):
            mapped = to_rgb[k, 0] * x + to_rgb[k, 1] * y + to_rgb[k, 2] * z
            mapped = min(max(mapped, np.float32(0.0)), np.float32(255.0))
            here = np.float32(pixels[i, k])
            out[i, k] = np.uint8(here + weight * (mapped - here) + half)
