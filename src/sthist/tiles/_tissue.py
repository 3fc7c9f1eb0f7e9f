"""Where the tissue is, on a coarse grid."""

from __future__ import annotations

import numpy as np

from sthist.stains import optical_density


def mask_of_he(rgb: np.ndarray, mpp: float) -> np.ndarray:
    """Tissue in a coarse H&E image.

    A pixel is tissue where it is darker than glass and more purple or pink than it: the threshold on the optical
    density of green (which both stains absorb) above the glass's own is Otsu's, but at least 0.05.

    Parameters
    ----------
    rgb
        (h, w, 3) uint8.
    mpp
        Its µm per pixel.

    Returns
    -------
    Bool of shape (h, w).
    """
    from scipy.ndimage import gaussian_filter
    from skimage.filters import threshold_otsu

    density = optical_density(rgb)
    # Grey dirt and shadows absorb red as much as green; both stains absorb green more.
    stain = gaussian_filter(density[..., 1] + (density[..., 1] - density[..., 0]).clip(0), 8.0 / mpp)
    glass = np.percentile(stain, 2)
    if np.ptp(stain) < 0.05:
        return np.full(stain.shape, glass > 0.15)
    threshold = max(threshold_otsu(stain), glass + 0.05)
    low = (glass + threshold) / 2 if (stain > threshold).mean() > 0.02 else threshold
    return stain > low


def mask_of_nuclear_stain(image: np.ndarray, mpp: float, density: np.ndarray | None = None) -> np.ndarray:
    """Tissue in a coarse nuclear stain: wherever nuclei, or molecules, are near.

    Parameters
    ----------
    image
        (h, w) mean intensities.
    mpp
        Its µm per pixel.
    density
        (h, w) smoothed density of molecules, where there are any.

    Returns
    -------
    Bool of shape (h, w); gaps of up to 60 µm between nuclei belong to the tissue.
    """
    from scipy.ndimage import gaussian_filter
    from skimage.filters import threshold_otsu

    smooth = gaussian_filter(image.astype(np.float32), 4.0 / mpp)
    evidence = np.zeros(smooth.shape, np.bool_)
    signal = smooth[smooth > smooth.min()]
    if signal.size and np.ptp(smooth) > 1e-3 * np.abs(smooth).max():
        # Otsu separates nuclei from what is between them; half-way from the darkest is still tissue.
        evidence |= smooth > (threshold_otsu(signal) + smooth.min()) / 2
    if density is not None and (density > 0).any():
        evidence |= density > 0.25 * np.median(density[density > 0])
    return _close(evidence, 30.0 / mpp)


def clean(mask: np.ndarray, mpp: float, min_area_um2: float, max_hole_um2: float) -> np.ndarray:
    """A mask without specks and pinholes."""
    from scipy.ndimage import label

    def keep_large(part: np.ndarray, min_area: float) -> np.ndarray:
        labels, _ = label(part)
        sizes = np.bincount(labels.ravel())
        sizes[0] = 0
        return (sizes * mpp**2 >= min_area)[labels]

    kept = keep_large(mask, min_area_um2)
    return ~keep_large(~kept, max_hole_um2)


def _close(mask: np.ndarray, radius: float) -> np.ndarray:
    """Morphological closing with a disc, by distances; beyond the border the mask goes on as it ends."""
    from scipy.ndimage import distance_transform_edt

    if not mask.any():
        return mask
    pad = int(np.ceil(radius)) + 1
    padded = np.pad(mask, pad, mode="symmetric" if min(mask.shape) >= pad else "edge")
    dilated = distance_transform_edt(~padded) <= radius
    if dilated.all():
        return np.ones_like(mask)
    return (distance_transform_edt(dilated) > radius)[pad:-pad, pad:-pad]
