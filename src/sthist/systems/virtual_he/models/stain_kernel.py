"""The inner loop of the Beer-Lambert model."""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(nogil=True, cache=True)
def stain_tiles(stain, raster, low, base, slope, knots, targets, weight, haematoxylin, eosin, per_step, out):
    """Colour tiles.

    Parameters
    ----------
    stain
        (n, px, px, 1 + k): nuclear stain, and k cytoplasm channels.
    raster
        (n, px, px, 2): amount of eosin from molecules, and how much of the pixel is tissue (0 to 1).
    low, base, slope
        Haematoxylin is ``base + slope * (stain - low)``, never less than ``base``.
    knots, targets
        (k, 3) and (3,): values of the cytoplasm channels, and the amount of eosin that each stands for.
    weight
        Share of the cytoplasm channels in eosin.
    haematoxylin, eosin
        (m, 3): transmittance of red, green and blue by amount, in steps.
    per_step
        Steps per unit of amount.
    out
        (n, px, px, 3) uint8.
    """
    n, height, width, channels = stain.shape
    last = haematoxylin.shape[0] - 1
    for t in range(n):
        for i in range(height):
            for j in range(width):
                tissue = raster[t, i, j, 1]
                if tissue <= 0.0:
                    for k in range(3):
                        out[t, i, j, k] = 255
                    continue
                h = base + slope * max(stain[t, i, j, 0] - low, 0.0)
                e = (1.0 - weight) * raster[t, i, j, 0]
                for c in range(1, channels):
                    value = stain[t, i, j, c]
                    below, middle, above = knots[c - 1, 0], knots[c - 1, 1], knots[c - 1, 2]
                    if value < middle:
                        span = max(middle - below, 1e-6)
                        amount = targets[0] + (targets[1] - targets[0]) * max(value - below, 0.0) / span
                    else:
                        span = max(above - middle, 1e-6)
                        amount = targets[1] + (targets[2] - targets[1]) * min((value - middle) / span, 2.0)
                    e += weight * amount / (channels - 1)
                a = min(int(h * tissue * per_step), last)
                b = min(int(e * tissue * per_step), last)
                for k in range(3):
                    out[t, i, j, k] = np.uint8(255.0 * haematoxylin[a, k] * eosin[b, k] + 0.5)
