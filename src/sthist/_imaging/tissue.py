"""Where the tissue is, on a coarse grid."""

from __future__ import annotations

from typing import Any

import numpy as np

from sthist.stains import optical_density

GRAIN_UM = 8.0
"""Width of the Gaussian below which tissue is not told from what is between its cells."""

GLASS_UM = 400.0
"""Width of the Gaussian over which the light that falls on the glass is taken for even."""

FAINT, PALE = 0.04, 0.1
"""Optical density above glass below which nothing is tissue, and which the darkest tenth of a pale section has."""

COLOURED = 0.27
"""Share of its optical density by which stain absorbs more green than red or blue; in real sections 0.3 to 0.9."""

MIN_SECTION_UM2 = 50_000.0
"""A pale piece that is smaller is measured by the threshold of the others."""

FULL = 0.03
"""Where the palest that there is absorbs as much more green than other colours, there is no glass."""


def mask_of_he(rgb: np.ndarray, mpp: float, seen: np.ndarray | None = None) -> np.ndarray:
    """Tissue in a coarse H&E image, by the optical density of green, which both stains absorb most.

    It is measured against the glass around it, since no slide is lit evenly. Each section has a threshold of its own,
    so that a pale one is found beside a dark one. What cannot be stain (:func:`not_stain`), what absorbs all colours
    alike and what is not ``seen`` is no tissue.

    Returns bool of shape (h, w).
    """
    from scipy.ndimage import label
    from skimage.filters import threshold_otsu

    seen = _seen(rgb, seen)
    if not seen.any():
        return seen
    density = _density(rgb, seen)
    usable = seen & ~_foreign(density, mpp)
    if not usable.any():
        return usable
    smooth = _blurred(density, usable, GRAIN_UM / mpp)
    green = smooth[..., 1]
    colour = green - np.minimum(smooth[..., 0], smooth[..., 2])
    glass, glass_colour = _glass(green, colour, usable, mpp)
    if np.ptp(green[usable]) < 0.05:  # nothing but glass, or nothing but tissue
        return usable & bool(np.median(optical_density(rgb[usable])[:, 1]) > 0.3)
    stain, colour = green - glass, colour - glass_colour
    coloured = usable & (colour > np.maximum(FAINT / 2, COLOURED * stain))
    split = float(threshold_otsu(stain[usable]))
    background = float(np.median(stain[usable & (stain <= split)]))
    # Glass is even: where Otsu takes pale tissue for it, a section fills the image.
    common = 0.1 if background > 0.1 else (background + split) / 2
    pieces, n = label(coloured & (stain > min(FAINT, common)))
    if n == 0:
        return coloured & (stain > common)
    strength = np.array([np.percentile(values, 90) for values in _by_label(stain, pieces, n)])
    area = np.bincount(pieces.ravel(), minlength=n + 1)[1:] * mpp**2
    own = np.clip(0.4 * strength, min(FAINT, common), common)
    threshold = np.where((strength > PALE) & (area >= MIN_SECTION_UM2), own, common)
    return coloured & (stain > np.append(np.inf, threshold)[pieces])


def not_stain(rgb: np.ndarray, mpp: float, seen: np.ndarray | None = None) -> np.ndarray:
    """What haematoxylin and eosin cannot make of light, in a coarse H&E image, and what lies next to it.

    Black and grey that is dark (borders of scans, dust, ink), blue and green, and the red of ink; and what is not
    ``seen``, or as purely white or black as what a scanner puts where it has not been.

    Returns bool of shape (h, w).
    """
    seen = _seen(rgb, seen)
    return ~seen | _foreign(_density(rgb, seen), mpp) if seen.any() else ~seen


def _seen(rgb: np.ndarray, seen: np.ndarray | None) -> np.ndarray:
    """Where a scanner has been: it fills in pure black, and pure white where its glass is another white."""
    darkest, brightest = rgb.min(-1), rgb.max(-1)
    filled, white = brightest == 0, darkest == 255
    if np.count_nonzero((darkest >= 248) & ~white) < 0.05 * np.count_nonzero(white):
        filled |= white
    return np.asarray(~filled if seen is None else seen & ~filled)


def _density(rgb: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Optical density against the brightest of each colour, (h, w, 3); below zero where it is brighter still."""
    white = np.maximum(np.percentile(rgb[seen], 99, axis=0), 1).astype(np.float32)
    return np.asarray(-np.log(np.maximum(rgb, 1).astype(np.float32) / white))


def _foreign(density: np.ndarray, mpp: float) -> np.ndarray:
    """Where light is absorbed as no mixture of haematoxylin and eosin does, and a rim around it."""
    from scipy.ndimage import binary_dilation, binary_opening

    red, green, blue = np.moveaxis(density, -1, 0)
    colour = green - np.minimum(red, blue)
    grey = (colour < 0.15 * green) & (green > 0.5)
    ink = (density.min(-1) > 1.4) & (colour < 0.4 * green)
    # Haematoxylin absorbs about as much green as red; eosin absorbs much less blue than green.
    cold = (red > 1.3 * green) & (red > 0.4) | (red > 1.08 * green) & (red > 2.0)
    warm = (blue > 0.85 * green) & (red < 0.35 * green) & (blue > 0.9)
    found = grey | ink | cold | warm
    if not found.any():
        return np.asarray(found)
    radius = max(1, round(GRAIN_UM / mpp))  # a nucleus that is dark to black is no ink
    return np.asarray(binary_dilation(binary_opening(found, iterations=radius), iterations=3 * radius))


def _glass(green: np.ndarray, colour: np.ndarray, usable: np.ndarray, mpp: float) -> tuple[np.ndarray, np.ndarray]:
    """What glass absorbs at each place, of green and of green beyond the other colours, from the glass nearby.

    Glass is what has least colour, whatever light falls on it.
    """
    palest = float(np.percentile(colour[usable], 2))
    if palest > FULL:
        return np.zeros(green.shape, np.float32), np.zeros(green.shape, np.float32)
    glass, sigma = usable & (colour < palest + 0.04), GLASS_UM / mpp
    level = np.zeros(green.shape, np.float32)
    for _ in range(3):  # what the last surface was too stiff for; and stain as pale as glass is darker than it
        level = level + _surface(green - level, glass, sigma)
        near = glass & (np.abs(green - level) < 0.04)
        glass = near if near.any() else glass
    return level, _surface(colour, glass, sigma)


def _surface(values: np.ndarray, known: np.ndarray, sigma: float) -> np.ndarray:
    """Values at known places blurred over the others; where none is near, the median of all."""
    from scipy.ndimage import gaussian_filter
    from skimage.transform import resize

    step = max(1, int(sigma / 8))
    shape = known.shape
    padded = [(0, -n % step) for n in shape]

    def coarse(array: np.ndarray) -> np.ndarray:
        blocks = np.pad(array.astype(np.float32), padded)
        blocks = blocks.reshape(blocks.shape[0] // step, step, blocks.shape[1] // step, step).mean((1, 3))
        return np.asarray(gaussian_filter(blocks, sigma / step, truncate=6))

    middle, little = float(np.median(values[known])) if known.any() else 0.0, 1e-6
    total, weight = coarse(np.where(known, values, 0)), coarse(known)
    small = (total + little * middle) / (weight + little)
    large = resize(small, [n * step for n in small.shape], order=1, mode="edge", preserve_range=True)
    return np.asarray(large[: shape[0], : shape[1]])


def _blurred(density: np.ndarray, known: np.ndarray, sigma: float) -> np.ndarray:
    """Each colour of known pixels, blurred among themselves."""
    from scipy.ndimage import gaussian_filter

    weight = np.maximum(gaussian_filter(known.astype(np.float32), sigma), 1e-6)
    values = np.where(known[..., None], density, 0).astype(np.float32)
    return np.asarray(gaussian_filter(values, (sigma, sigma, 0)) / weight[..., None])


def _by_label(values: np.ndarray, pieces: np.ndarray, n: int) -> list[np.ndarray]:
    """The values of each of n pieces."""
    order = np.argsort(pieces, axis=None, kind="stable")
    ends = np.cumsum(np.bincount(pieces.ravel(), minlength=n + 1))
    return np.split(values.ravel()[order], ends[:-1])[1:]


def mask_of_nuclear_stain(
    image: np.ndarray, mpp: float, density: np.ndarray | None = None, seen: np.ndarray | None = None
) -> np.ndarray:
    """Tissue in a coarse nuclear stain: wherever nuclei, or molecules, are near, of what is ``seen``.

    Returns bool of shape (h, w); gaps of up to 60 µm between nuclei belong to the tissue.
    """
    from scipy.ndimage import gaussian_filter
    from skimage.filters import threshold_otsu

    seen = np.ones(image.shape, np.bool_) if seen is None else seen
    if not seen.any():
        return seen
    if seen.all():
        smooth = gaussian_filter(image.astype(np.float32), 4.0 / mpp)
    else:
        smooth = _blurred(image.astype(np.float32)[..., None], seen, 4.0 / mpp)[..., 0]
    darkest = smooth[seen].min()
    evidence = np.zeros(smooth.shape, np.bool_)
    signal = smooth[seen & (smooth > darkest)]
    if signal.size and np.ptp(smooth[seen]) > 1e-3 * np.abs(smooth[seen]).max():
        # Otsu separates nuclei from what is between them; half-way from the darkest is still tissue.
        evidence |= smooth > (threshold_otsu(signal) + darkest) / 2
    if density is not None and (density > 0).any():
        # The density around a typical molecule; the far tails of the smoothing do not count.
        typical = float((density**2).sum() / density.sum())
        evidence |= density > 0.05 * typical
    dense = density is not None and min(image.shape) > 120.0 / mpp  # in a small field all is near a border
    return _close(evidence & seen, 30.0 / mpp, dense=dense) & seen


def mask_of_points(places: np.ndarray, extent_um: tuple[float, float, float, float], mpp: float) -> np.ndarray:
    """Tissue on a coarse grid, by cells or spots alone: wherever they are near.

    Returns bool of shape (h, w); gaps between points belong to the tissue that are as wide as sparse points are
    apart, 60 µm at least.
    """
    from scipy.spatial import cKDTree

    x0, y0, x1, y1 = extent_um
    mask = np.zeros((int(np.ceil((y1 - y0) / mpp)), int(np.ceil((x1 - x0) / mpp))), np.bool_)
    column, row = ((places - [x0, y0]) // mpp).astype(int).T
    mask[row.clip(0, mask.shape[0] - 1), column.clip(0, mask.shape[1] - 1)] = True
    distances = cKDTree(places).query(places, k=2)[0][:, 1] if len(places) > 1 else np.array([0.0])
    return _close(mask, max(30.0, 1.2 * float(np.quantile(distances, 0.9))) / mpp)


def clean(
    mask: np.ndarray, mpp: float, min_area_um2: float, max_hole_um2: float, seen: np.ndarray | None = None
) -> np.ndarray:
    """A mask without specks and pinholes; a hole is what tissue encloses, not what goes on where nothing is seen."""
    from scipy.ndimage import label

    labels, _ = label(mask)
    sizes = np.bincount(labels.ravel())
    sizes[0] = -1  # the background is no piece, also where all pieces are wanted
    # What fills half of a picture is no speck, however small that is.
    kept = (sizes >= min(min_area_um2 / mpp**2, mask.size / 2))[labels]
    holes, _ = label(~kept)
    sizes = np.bincount(holes.ravel())
    small = sizes * mpp**2 < max_hole_um2
    small[0] = False
    rim = [holes[0], holes[-1], holes[:, 0], holes[:, -1]]
    if seen is not None:
        rim.append(holes[~seen])
    small[np.concatenate([np.ravel(part) for part in rim])] = False
    return np.asarray(kept | small[holes])


def _close(mask: np.ndarray, radius: float, *, dense: bool = False) -> np.ndarray:
    """Morphological closing with a disc, by distances; beyond the border the mask goes on as it ends.

    A ``dense`` one, of molecules, goes on no farther than its own gaps are wide: what ends near the border, and shows
    nothing from there on, is not joined to its mirror image.
    """
    from scipy.ndimage import distance_transform_edt

    if not mask.any() or mask.all():
        return mask
    if not dense:
        return _closed(mask, radius, "symmetric")
    closed = _closed(mask, radius, "constant")
    gaps = distance_transform_edt(~mask)[closed & ~mask]
    reach = min(radius, float(np.percentile(gaps, 99.5))) if len(gaps) else 0.0
    return closed | _closed(mask, reach, "symmetric") if reach >= 1 else closed


def _closed(mask: np.ndarray, radius: float, beyond: str) -> np.ndarray:
    """Closing of a mask that is padded."""
    from scipy.ndimage import distance_transform_edt

    pad = int(np.ceil(radius)) + 1
    mode: Any = beyond if beyond == "constant" or min(mask.shape) >= pad else "edge"
    padded = np.pad(mask, pad, mode=mode)
    dilated = distance_transform_edt(~padded) <= radius
    if dilated.all():
        return np.ones_like(mask)
    return np.asarray((distance_transform_edt(dilated) > radius)[pad:-pad, pad:-pad])
