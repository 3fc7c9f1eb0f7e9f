"""Where the tissue is, on a coarse grid."""

from __future__ import annotations

import numpy as np

from sthist.stains import optical_density


def mask_of_he(rgb: np.ndarray, mpp: float) -> np.ndarray:
    """Tissue in a coarse H&E image, by the optical density of green, which both stains absorb.

    Returns bool of shape (h, w).
    """
    from scipy.ndimage import gaussian_filter
    from skimage.filters import threshold_otsu

    stain = gaussian_filter(optical_density(rgb)[..., 1], 8.0 / mpp)
    glass = float(np.percentile(stain, 2))
    if np.ptp(stain) < 0.05:
        return np.full(stain.shape, glass > 0.3)  # nothing but glass, or nothing but tissue
    split = threshold_otsu(stain)
    background = float(np.median(stain[stain <= split]))
    if background - glass > 0.1:
        # Glass is even: what Otsu took for it is pale tissue, on a section that fills the image.
        return stain > glass + 0.1
    return stain > (background + split) / 2


def mask_of_nuclear_stain(image: np.ndarray, mpp: float, density: np.ndarray | None = None) -> np.ndarray:
    """Tissue in a coarse nuclear stain: wherever nuclei, or molecules, are near.

    Returns bool of shape (h, w); gaps of up to 60 µm between nuclei belong to the tissue.
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
        # The density around a typical molecule; the far tails of the smoothing do not count.
        typical = float((density**2).sum() / density.sum())
        evidence |= density > 0.05 * typical
    return _close(evidence, 30.0 / mpp)


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


def clean(mask: np.ndarray, mpp: float, min_area_um2: float, max_hole_um2: float) -> np.ndarray:
    """A mask without specks and pinholes."""
    from scipy.ndimage import label

    def keep_large(part: np.ndarray, min_area: float) -> np.ndarray:
        labels, _ = label(part)
        sizes = np.bincount(labels.ravel())
        sizes[0] = -1  # the background is no piece, also where all pieces are wanted
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
