"""Nuclei of a stain, quickly: a local threshold and a watershed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

MIN_AREA_UM2, MAX_AREA_UM2 = 10.0, 400.0
GRAIN_UM, SPACING_UM, SURROUND_UM = 0.6, 2.6, 14.0
"""Width of the smoothing, least distance of two nuclei.

And width of the surroundings that a nucleus stands out from.
"""

BLOCK_PX, MARGIN_UM = 2048, 30.0


def segment_nuclei(stain: np.ndarray, mpp: float, *, contrast: float | None = None) -> np.ndarray:
    """Label the nuclei of a nuclear stain, or of the haematoxylin of an H&E.

    A pixel is nucleus where the smoothed stain exceeds its surroundings; touching nuclei are parted by a watershed of
    the distance to the border. Made for counting, measuring and placing, not for outlines of diagnostic quality.

    Parameters
    ----------
    stain
        (h, w) amounts of stain: fluorescence, or haematoxylin concentrations of :func:`sthist.stains.concentrations`.
    mpp
        µm per pixel, at most 1.5: nuclei are a few µm wide.
    contrast
        By how much a nucleus exceeds its surroundings, in units of ``stain``; by default half of what Otsu's threshold
        tells apart in the difference between the two.

    Returns
    -------
    Labels, int32 of shape (h, w): 0 between nuclei, then 1 to n.

    Raises
    ------
    ValueError
        If the stain is not 2-D or not finite, or the resolution too low.

    Examples
    --------
    >>> import numpy as np, sthist
    >>> y, x = np.mgrid[:80, :80] * 0.5
    >>> stain = sum(np.exp(-((x - cx) ** 2 + (y - 20) ** 2) / 8) for cx in (10.0, 28.0))
    >>> int(sthist.tiles.segment_nuclei(stain, mpp=0.5).max())
    2
    """
    from scipy.ndimage import binary_fill_holes, binary_opening, distance_transform_edt, gaussian_filter, label
    from skimage.feature import peak_local_max
    from skimage.segmentation import watershed

    stain = np.asarray(stain)
    if stain.ndim != 2 or stain.size == 0:
        raise ValueError(f"A stain is (h, w); this has shape {stain.shape}.")
    if not 0 < mpp <= 1.5:
        raise ValueError(f"mpp is {mpp!r}; nuclei can be told apart up to 1.5 µm per pixel.")
    excess = above_surroundings(stain, mpp)
    if not np.isfinite(excess).all():
        raise ValueError("The stain has NaN or infinite pixels.")
    if contrast is None:
        contrast = contrast_of(excess)
    mask = binary_fill_holes(binary_opening(excess > contrast)) if contrast > 0 else np.zeros(excess.shape, np.bool_)
    depth = distance_transform_edt(mask).astype(np.float32)
    relief = gaussian_filter(depth, max(0.5, 0.8 / mpp))
    parts, _ = label(mask)
    peaks = peak_local_max(relief, min_distance=max(1, round(SPACING_UM / mpp)), labels=parts, exclude_border=False)
    markers = np.zeros(mask.shape, np.int32)
    markers[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
    labels = watershed(-relief, markers, mask=mask)
    areas = np.bincount(labels.ravel()) * mpp**2
    keep = (areas >= MIN_AREA_UM2) & (areas <= MAX_AREA_UM2)
    keep[0] = False
    return (np.cumsum(keep) * keep).astype(np.int32)[labels]


def above_surroundings(stain: np.ndarray, mpp: float) -> np.ndarray:
    """By how much a stain, smoothed over the grain of a nucleus, exceeds what lies around it."""
    from scipy.ndimage import gaussian_filter

    smooth = gaussian_filter(np.asarray(stain, np.float32), max(0.5, GRAIN_UM / mpp))
    return smooth - gaussian_filter(smooth, SURROUND_UM / mpp)


def contrast_of(excess: np.ndarray) -> float:
    """Half of Otsu's threshold of what exceeds the surroundings; 0 where nothing does."""
    from skimage.filters import threshold_otsu

    positive = excess[excess > 1e-6 * max(1e-12, float(np.abs(excess).max()))]
    return 0.5 * float(threshold_otsu(positive)) if positive.size > 100 else 0.0


def iter_blocks(shape: tuple[int, int], mpp: float) -> Iterator[tuple[tuple[slice, slice], tuple[slice, slice]]]:
    """Blocks that cover an image, each with a margin that holds whole nuclei: (with margin, without it) in pixels."""
    margin = int(np.ceil(MARGIN_UM / mpp))
    for y in range(0, shape[0], BLOCK_PX):
        for x in range(0, shape[1], BLOCK_PX):
            inner = (slice(y, min(shape[0], y + BLOCK_PX)), slice(x, min(shape[1], x + BLOCK_PX)))
            outer = tuple(
                slice(max(0, part.start - margin), min(n, part.stop + margin))
                for part, n in zip(inner, shape, strict=True)
            )
            yield (outer[0], outer[1]), inner
