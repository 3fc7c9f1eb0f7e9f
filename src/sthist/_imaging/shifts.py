"""How far the H&E of a tile still lies off its nuclear stain, once the section is registered."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from sthist import stains
from sthist._imaging.nuclei import GRAIN_UM, MIN_AREA_UM2, SURROUND_UM, contrast_of
from sthist._imaging.registration import peak_between

STAIN_VECTORS = np.array([[0.650, 0.704, 0.286], [0.072, 0.990, 0.105]])
"""Haematoxylin and eosin as Ruifrok and Johnston 2001 measured them."""

REACH_UM, FAR = 10.0, 3.0
"""How far a match is looked for, and how many times as far chance is measured."""

LEAST_CONFIDENCE, LEAST_NUCLEI, LEAST_SEEN = 5.0, 3, 0.3
"""Below these nothing is matched: spreads of chance, nuclei in either stain, and share of the tile that is seen."""

GLARE = 0.99
"""Quantile of a stain that counts as its brightest: a few mitoses or specks shall not outweigh all other nuclei."""


class TileShifts(NamedTuple):
    """Residual shifts of tiles.

    Attributes
    ----------
    shifts_um
        (n, 2) float64, x and y: what lies at a place of the nuclear stain lies that far from it in the H&E. NaN where
        nothing could be matched.
    confidence
        (n,) float64: by how many standard deviations the best match stands out from matches at shifts too large to be
        meant. 0 where there is nothing to compare.
    """

    shifts_um: np.ndarray
    confidence: np.ndarray


def tile_shifts_um(
    he: Any,
    nuclear: Any,
    mpp: float,
    *,
    mask: Any = None,
    vectors: Any = STAIN_VECTORS,
    reach_um: float = REACH_UM,
    least_confidence: float = LEAST_CONFIDENCE,
) -> TileShifts:
    """Find how far each tile's haematoxylin lies off its nuclear stain.

    Both are reduced to what exceeds its surroundings at the width of a nucleus. Their masked normalised correlation
    (Padfield 2012, "Masked object registration in the Fourier domain") is exact for every shift, where plain phase
    correlation takes the border of a tile for an edge of the tissue; its peak is placed to a part of a pixel. Each tile
    stands for itself: the others of the batch do not matter.

    Parameters
    ----------
    he
        uint8 H&E (n, h, w, 3).
    nuclear
        Nuclear stain of the same windows, (n, h, w); more is brighter.
    mpp
        µm per pixel.
    mask
        (n, h, w), true where both were imaged; by default where the H&E is not pure white, with which readers fill. NaN
        of the nuclear stain is left out as well.
    vectors
        (2, 3) optical densities of haematoxylin and eosin, such as :func:`sthist.stains.macenko` finds for a section.
    reach_um
        The largest shift along x or y that is looked for.
    least_confidence
        Below it a match counts as chance.

    Returns
    -------
    Shifts in µm and their confidence. A shift is NaN where either stain shows fewer than three nuclei, the match is no
    better than chance, or it lies at the end of the reach.

    Raises
    ------
    ValueError
        If the shapes do not agree, the H&E is not 8-bit, the scale or reach makes no sense, or the tiles are less than
        three times as wide as the reach.

    Examples
    --------
    >>> import numpy as np
    >>> from sthist import stains
    >>> from sthist._imaging.shifts import STAIN_VECTORS, tile_shifts_um
    >>> rng = np.random.default_rng(0)
    >>> (cx, cy), (x, y) = rng.uniform(0, 80, (2, 40, 1, 1)), np.mgrid[:160, :160][::-1] * 0.5
    >>> nuclei = lambda dx, dy: np.exp(-((x - cx - dx) ** 2 + (y - cy - dy) ** 2) / 8).sum(0)
    >>> amounts = np.stack([nuclei(2.0, -1.0), np.full(x.shape, 0.3)], -1)
    >>> he = stains.to_rgb(amounts, STAIN_VECTORS)[None]
    >>> tile_shifts_um(he, 1000 * nuclei(0, 0)[None], mpp=0.5).shifts_um.round(1)
    array([[ 2., -1.]])
    """
    he, nuclear, mask = _checked(he, nuclear, mask, mpp, reach_um)
    vectors = np.asarray(vectors, np.float64)
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    shifts, confidence = np.full((len(he), 2), np.nan), np.zeros(len(he))
    for i in range(len(he)):
        haematoxylin = stains.concentrations(he[i], vectors)[..., 0]
        fixed, moving = (_nuclei(stain, mask[i], mpp) for stain in (nuclear[i], haematoxylin))
        if fixed is None or moving is None:
            continue
        shift, confidence[i] = _match(fixed, moving, mask[i], reach_um / mpp)
        if shift is not None and confidence[i] >= least_confidence:
            shifts[i] = shift * mpp
    return TileShifts(shifts, confidence)


def keep_shifted(
    shifts_um: Any, *, max_shift_um: float = 3.0, keep_unmatched: bool = False
) -> tuple[np.ndarray, dict[str, int]]:
    """Which tiles lie close enough for training on pairs, and how many do.

    Parameters
    ----------
    shifts_um
        (n, 2), of :func:`tile_shifts_um`; NaN where nothing could be matched.
    max_shift_um
        The longest shift that is kept.
    keep_unmatched
        Whether tiles without a match are kept: their alignment is unknown, not bad.

    Returns
    -------
    (n,) bool, and the numbers of tiles: ``within`` the limit, ``beyond`` it, ``unmatched``, and ``kept``.

    Raises
    ------
    ValueError
        If the shifts are not (n, 2), or the limit is not a number from 0.

    Examples
    --------
    >>> import numpy as np
    >>> from sthist._imaging.shifts import keep_shifted
    >>> keep, counts = keep_shifted([[0.5, 1.0], [3.0, 3.0], [np.nan, np.nan]])
    >>> keep.tolist(), counts
    ([True, False, False], {'within': 1, 'beyond': 1, 'unmatched': 1, 'kept': 1})
    """
    shifts = np.asarray(shifts_um, np.float64)
    if shifts.ndim != 2 or shifts.shape[1] != 2:
        raise ValueError(f"Shifts are (n, 2); these have shape {shifts.shape}.")
    if not max_shift_um >= 0:
        raise ValueError(f"max_shift_um is {max_shift_um!r}; it is a length from 0 in µm.")
    unmatched = np.isnan(shifts).any(1)
    within = np.hypot(*shifts.T) <= max_shift_um
    keep = within | unmatched if keep_unmatched else within
    parts = {"within": within, "beyond": ~within & ~unmatched, "unmatched": unmatched, "kept": keep}
    return keep, {name: int(part.sum()) for name, part in parts.items()}


def _checked(
    he: Any, nuclear: Any, mask: Any, mpp: float, reach_um: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    he, nuclear = np.asarray(he), np.asarray(nuclear)
    if he.ndim != 4 or he.shape[3] != 3 or he.dtype != np.uint8:
        raise ValueError(f"H&E tiles are uint8 of shape (n, h, w, 3); these are {he.dtype} of shape {he.shape}.")
    mask = (he < 255).any(-1) if mask is None else np.asarray(mask, np.bool_)
    if nuclear.shape != he.shape[:3] or mask.shape != he.shape[:3]:
        raise ValueError(
            f"H&E tiles have shape {he.shape}, the nuclear stain {nuclear.shape} and its mask {mask.shape}; needed is "
            f"{he.shape[:3]}."
        )
    if not (0 < mpp <= 1.5 and reach_um > mpp):
        raise ValueError(
            f"mpp is {mpp!r} and reach_um {reach_um!r}: nuclei are told apart up to 1.5 µm per pixel, and a reach is "
            "longer than a pixel."
        )
    if min(he.shape[1:3]) * mpp < 3 * reach_um:
        raise ValueError(
            f"Tiles of {min(he.shape[1:3]) * mpp:.4g} µm are less than three times as wide as reach_um={reach_um:.4g}."
        )
    return he, nuclear, mask & np.isfinite(nuclear)


def _nuclei(stain: np.ndarray, mask: np.ndarray, mpp: float) -> np.ndarray | None:
    """What stands out from its surroundings at the width of a nucleus; None where that is too little to match."""
    from scipy.ndimage import label

    if mask.mean() < LEAST_SEEN:
        return None
    excess = _excess(stain, mask, mpp)
    contrast = contrast_of(excess[mask])
    if not contrast > 0:
        return None
    parts, _ = label(mask & (excess > contrast))
    areas = np.bincount(parts.ravel())[1:] * mpp**2
    if (areas >= MIN_AREA_UM2).sum() < LEAST_NUCLEI:
        return None
    return np.where(mask, np.clip(excess, 0, np.quantile(excess[mask], GLARE)), 0)


def _excess(stain: np.ndarray, mask: np.ndarray, mpp: float) -> np.ndarray:
    """By how much a stain, smoothed over the grain of a nucleus, exceeds the mean of what is seen around it."""
    from scipy.ndimage import gaussian_filter

    seen = mask.astype(np.float32)
    values = np.where(mask, stain, 0).astype(np.float32)
    sigma = max(0.5, GRAIN_UM / mpp)
    if mask.all():
        return gaussian_filter(values, sigma) - _surround(values, mpp)
    fine = gaussian_filter(values, sigma) / np.maximum(gaussian_filter(seen, sigma), 1e-3)
    return fine - _surround(values, mpp) / np.maximum(_surround(seen, mpp), 1e-3)


def _surround(values: np.ndarray, mpp: float) -> np.ndarray:
    """Wide means: three boxes of the variance of a Gaussian, at a cost that does not grow with its width."""
    from scipy.ndimage import uniform_filter

    side = 2 * round(SURROUND_UM / mpp) + 1  # three boxes of side s have the variance (s^2 - 1) / 4
    for _ in range(3):
        values = uniform_filter(values, side)
    return values


def _match(fixed: np.ndarray, moving: np.ndarray, mask: np.ndarray, reach: float) -> tuple[np.ndarray | None, float]:
    """Where one image lies in the other (x, y) in pixels, and how far that stands out from chance."""
    near = int(np.ceil(reach))
    far = min(int(FAR * reach), min(mask.shape) // 2)
    correlation = _masked_correlation(fixed, moving, mask, far)
    offsets = np.abs(np.arange(-far, far + 1))
    inside = np.maximum.outer(offsets, offsets) <= near
    chance = correlation[~inside & np.isfinite(correlation)]
    sought = np.where(inside & np.isfinite(correlation), correlation, -np.inf)
    i, j = np.unravel_index(int(np.argmax(sought)), sought.shape)
    spread = float(chance.std()) if len(chance) > 1 else 0.0
    if not (spread > 0 and np.isfinite(sought[i, j])):
        return None, 0.0
    confidence = max(0.0, float(sought[i, j] - chance.mean()) / spread)
    if max(offsets[i], offsets[j]) >= near:  # it may rise further beyond
        return None, confidence
    peak = [peak_between(correlation[i, j - 1 : j + 2]), peak_between(correlation[i - 1 : i + 2, j])]
    return np.array([j - far, i - far]) + peak, confidence


def _masked_correlation(fixed: np.ndarray, moving: np.ndarray, mask: np.ndarray, far: int) -> np.ndarray:
    """Correlation at each shift up to ``far`` px, (2 far + 1, 2 far + 1); NaN where both show too little.

    Padfield 2012, equations 6 to 10, with one mask for both images.
    """
    from scipy import fft

    shape = [fft.next_fast_len(side + far, real=True) for side in mask.shape]
    seen = mask.astype(np.float64)
    one, other = (
        (image - image[mask].mean()) * seen for image in (fixed.astype(np.float64), moving.astype(np.float64))
    )
    spectra = [fft.rfft2(image, shape) for image in (seen, one, one**2, other, other**2)]
    places = np.ix_(*(np.arange(-far, far + 1) % n for n in shape))

    def correlate(a: int, b: int) -> np.ndarray:
        return fft.irfft2(np.conj(spectra[a]) * spectra[b], shape)[places]

    number = np.maximum(np.round(correlate(0, 0)), 1.0)
    sum_one, sum_other = correlate(1, 0), correlate(0, 3)
    product = correlate(1, 3) - sum_one * sum_other / number
    square_one, square_other = correlate(2, 0) - sum_one**2 / number, correlate(0, 4) - sum_other**2 / number
    squares = np.maximum(square_one, 0) * np.maximum(square_other, 0)
    usable = (number >= 0.25 * mask.sum()) & (squares > 1e-12 * max(float(squares.max()), 1e-300))
    return np.where(usable, product / np.sqrt(np.where(usable, squares, 1.0)), np.nan)
