"""Nuclei of an H&E: what is darker in red than its surroundings, parted where it narrows.

Everything is decided from what lies near, with filters of finite reach: read in whatever windows, with
:data:`REACH_UM` around each, an image has the same nuclei. What the whole slide tells is in :class:`Levels`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

GRAIN_UM, SURROUND_UM = 0.5, 6.0
"""Standard deviation of what smooths grain away, and of the weights of what lies around a pixel."""

BLOCK_UM = 2.0  # surroundings are averaged over blocks of about this width first
ROUNDS = 2
BETWEEN = 0.5  # part of the way from what lies between nuclei to the nuclei, from which on a pixel is nucleus
OPENING_UM, HOLE_UM2 = 0.8, 15.0
"""Half the width of bridges that are cut, and the size of holes that are filled."""

DEPTH_UM, RISE_UM, RISE_SHARE = 0.5, 0.15, 0.0
"""Smoothing of the depth inside a mask; and how far, in µm and as a share, a nucleus is deeper than a waist."""

PRIOR = 0.03  # weight of the slide's levels beside those around a pixel
DEEPEST_UM = 15.0
LEAST_CONTRAST = 0.05
REACH_UM = 40.0
"""How far away something may lie that decides about a pixel."""


@dataclass(frozen=True)
class Levels:
    """How much red light nuclei, and what lies between them, take up on a slide: parts from 0 to 1."""

    nuclei: float
    between: float

    @classmethod
    def of(cls, tiles: Sequence[np.ndarray], mpp: float) -> Levels:
        """Of tiles of tissue, (h, w) parts of light."""
        from skimage.filters import threshold_otsu

        pixels = np.concatenate([smoothed(tile, mpp).ravel() for tile in tiles])
        if np.ptp(pixels) == 0:
            return cls(float(pixels[0]), float(pixels[0]))
        above = pixels > threshold_otsu(pixels)
        return cls(float(pixels[above].mean()), float(pixels[~above].mean()))


def absorbed(rgb: np.ndarray) -> np.ndarray:
    """The part of red light that is taken up, (h, w) float32: haematoxylin does, eosin hardly."""
    return np.float32(1) - rgb[..., 0].astype(np.float32) / np.float32(255)


def smoothed(amount: np.ndarray, mpp: float) -> np.ndarray:
    """An amount without its grain."""
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(np.asarray(amount, np.float32), max(0.5, GRAIN_UM / mpp), truncate=3.0)


def local_nuclei(amount: np.ndarray, mpp: float, levels: Levels, seen: np.ndarray | None = None) -> np.ndarray:
    """Label the nuclei in amounts of stain, such as :func:`absorbed` gives; of any size, int32 from 1 on.

    Whether a pixel is nucleus is told by the means of nuclei and of what is between them around it, so that pale
    nuclei are found beside dark ones, and crowds as well as single ones. What touches is parted at its waists.
    ``seen`` is False where the image has no pixels.
    """
    smooth = smoothed(amount, mpp)
    if levels.nuclei - levels.between < LEAST_CONTRAST:
        return np.zeros(smooth.shape, np.int32)
    mask = _opened(_filled(_mask(smooth, mpp, levels, seen), mpp), mpp)
    return parted(mask, mpp)


def parted(mask: np.ndarray, mpp: float, rise_um: float = RISE_UM, share: float = RISE_SHARE) -> np.ndarray:
    """Label the nuclei of a mask: the deepest places are nuclei, parted along the shallowest way between them."""
    from scipy.ndimage import gaussian_filter

    from sthist._imaging.nucleus_kernels import depth

    deep = depth(mask, round(DEEPEST_UM / mpp)) * np.float32(mpp)
    return climbed(gaussian_filter(deep, max(0.5, DEPTH_UM / mpp), truncate=3.0), mask, rise_um, share)


def climbed(relief: np.ndarray, mask: np.ndarray, rise: float, share: float = 0.0) -> np.ndarray:
    """Label the hills of a relief within a mask; one that rises less than ``rise`` above a saddle is part of the next.

    The same as a watershed from the maxima of that height, but every pixel is decided by the way up from it alone.
    """
    from sthist._imaging.nucleus_kernels import climb, join, saddles

    labels, heights = climb(relief, mask)
    pairs, saddle = saddles(labels, relief)
    # Of equal saddles, the one that comes first by row and column: labels are numbered so.
    order = np.lexsort((pairs[:, 1], pairs[:, 0], -saddle))
    join(labels, heights, pairs, saddle, order, np.float32(rise), np.float32(share))
    return labels


def _mask(smooth: np.ndarray, mpp: float, levels: Levels, seen: np.ndarray | None) -> np.ndarray:
    """Where nuclei are."""
    from scipy.ndimage import gaussian_filter

    from sthist._imaging.nucleus_kernels import block_sums, exceeds

    k = 2 ** max(0, round(np.log2(BLOCK_UM / mpp)))
    known = np.ones(smooth.shape, np.bool_) if seen is None else seen
    mask = smooth > np.float32((levels.nuclei + levels.between) / 2)
    for _ in range(ROUNDS):
        sums = block_sums(smooth, mask, known, k)
        n, total, n_between, total_between = (
            gaussian_filter(each, SURROUND_UM / (k * mpp), truncate=2.5, mode="constant") for each in sums
        )
        prior = PRIOR * (n + n_between) + np.float32(1e-6)
        nuclei = (total + prior * levels.nuclei) / (n + prior)
        between = (total_between + prior * levels.between) / (n_between + prior)
        mask = exceeds(smooth, (between + BETWEEN * (nuclei - between)).astype(np.float32), k)
    return mask & known


def _filled(mask: np.ndarray, mpp: float) -> np.ndarray:
    """A mask without its small holes."""
    from scipy.ndimage import label

    holes, n = label(~mask)
    small = np.bincount(holes.ravel(), minlength=n + 1) <= HOLE_UM2 / mpp**2
    small[0] = False
    return mask | small[holes]


def _opened(mask: np.ndarray, mpp: float) -> np.ndarray:
    """A mask without what is narrower than a disc."""
    from sthist._imaging.nucleus_kernels import depth

    radius = max(1.0, OPENING_UM / mpp)
    reach = int(radius) + 2
    core = depth(mask, reach) > radius
    return depth(~core, reach) <= radius
