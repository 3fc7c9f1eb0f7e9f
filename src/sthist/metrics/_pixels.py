"""What every image metric asks of its images; scores of pixels: MSE, PSNR, SSIM, and how far seams show."""

from __future__ import annotations

from operator import index
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

LAYOUT = "(n, h, w, 3) or (h, w, 3), or 1 in place of 3 for grey"
PEAK = 255.0
SSIM_SIGMA = 1.5
SSIM_WINDOW = 11


def stack(images: Any, name: str = "images") -> np.ndarray:
    """Images as (n, h, w, channels) uint8; anything that would be scored on a wrong scale is refused."""
    array = np.asarray(images)
    if array.dtype != np.uint8:
        raise ValueError(
            f"Images are scored on the scale 0 to 255 and have to be uint8; {name} is {array.dtype} of shape "
            f"{array.shape}. Round images in 0-255 to uint8; multiply those in 0-1 by 255 first."
        )
    if array.ndim not in {3, 4} or array.shape[-1] not in {1, 3}:
        raise ValueError(
            f"Images have shape {LAYOUT}; {name} has {array.shape}. Grey images need a last axis: image[..., None]."
        )
    if array.size == 0:
        raise ValueError(f"There are no pixels in {name}: its shape is {array.shape}.")
    return array if array.ndim == 4 else array[None]


def pair(a: Any, b: Any) -> tuple[np.ndarray, np.ndarray, bool]:
    """Two stacks of the same shape, and whether they are single images."""
    one, other = stack(a, "the first"), stack(b, "the second")
    if np.shape(a) != np.shape(b):
        raise ValueError(
            f"Images that are compared have the same shape; these have {np.shape(a)} and {np.shape(b)}. Read both over "
            "the same box, at the same µm per pixel."
        )
    return one, other, np.ndim(a) == 3


def scores(values: np.ndarray, *, single: bool) -> float | np.ndarray:
    """One float64 per image, or a float for a single image."""
    return float(values[0]) if single else np.asarray(values, np.float64)


def batches(n: int, size: int) -> Iterator[slice]:
    """Slices that cover n images."""
    return (slice(start, min(n, start + size)) for start in range(0, n, size))


def to_torch(images: np.ndarray) -> Any:
    """Images (n, h, w, channels) as a torch tensor (n, 3, h, w) of uint8."""
    import torch

    planes = np.moveaxis(np.broadcast_to(images, (*images.shape[:3], 3)), -1, 1)
    return torch.from_numpy(np.array(planes, order="C"))


def mse(a: Any, b: Any) -> float | np.ndarray:
    """Mean squared error of each pair of images, on the scale 0 to 255.

    Parameters
    ----------
    a, b
        uint8 images, (n, h, w, 3) or one (h, w, 3); 1 in place of 3 for grey.

    Returns
    -------
    Float64 of shape (n,), or a float for one image. 0 is best.

    Raises
    ------
    ValueError
        If the shapes differ, or the images are not 8-bit.

    Examples
    --------
    >>> import numpy as np
    >>> from sthist.metrics import image
    >>> image.mse(np.full((8, 8, 3), 100, np.uint8), np.full((8, 8, 3), 103, np.uint8))
    9.0
    """
    one, other, single = pair(a, b)
    errors = [(x.astype(np.float64) - y) ** 2 for x, y in zip(one, other, strict=True)]
    return scores(np.array([error.mean() for error in errors]), single=single)


def psnr(a: Any, b: Any) -> float | np.ndarray:
    """Peak signal-to-noise ratio of each pair of images in dB, for a peak of 255.

    Parameters
    ----------
    a, b
        uint8 images, as of :func:`mse`.

    Returns
    -------
    Float64 of shape (n,), or a float for one image; infinite for equal images. More is better.

    Raises
    ------
    ValueError
        If the shapes differ, or the images are not 8-bit.

    Examples
    --------
    >>> import numpy as np
    >>> from sthist.metrics import image
    >>> round(image.psnr(np.full((8, 8, 3), 100, np.uint8), np.full((8, 8, 3), 103, np.uint8)), 3)
    38.588
    """
    values = to_db(np.atleast_1d(mse(a, b)))
    return scores(values, single=np.ndim(a) == 3)


def to_db(errors: Any) -> np.ndarray:
    """PSNR of mean squared errors.

    Examples
    --------
    >>> from sthist.metrics._pixels import to_db
    >>> float(to_db(928.18).round(3))
    18.454
    """
    with np.errstate(divide="ignore"):
        return 10 * np.log10(PEAK**2 / np.asarray(errors, np.float64))


def ssim(a: Any, b: Any) -> float | np.ndarray:
    """Structural similarity of each pair of images, after Wang et al. 2004.

    The window is Gaussian, 11 px wide with a standard deviation of 1.5 px; the mean is over the pixels whose window
    lies inside the image, and over channels. Computed in float64.

    Parameters
    ----------
    a, b
        uint8 images, as of :func:`mse`, of at least 11 x 11 px.

    Returns
    -------
    Float64 of shape (n,), or a float for one image. 1 for equal images.

    Raises
    ------
    ValueError
        If the shapes differ, or the images are not 8-bit or smaller than the window.

    Examples
    --------
    >>> import numpy as np
    >>> from sthist.metrics import image
    >>> tile = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    >>> image.ssim(tile, tile)
    1.0
    >>> image.ssim(tile, 255 - tile) < 0
    True
    """
    # torchmetrics gives the same numbers inside its frame, at 50 times the time on a CPU: its windows are not
    # separated.
    from skimage.metrics import structural_similarity

    one, other, single = pair(a, b)
    if min(one.shape[1:3]) < SSIM_WINDOW:
        raise ValueError(f"SSIM needs images of at least {SSIM_WINDOW} x {SSIM_WINDOW} px; these are {one.shape[1:3]}.")
    as_published = {"gaussian_weights": True, "sigma": SSIM_SIGMA, "use_sample_covariance": False, "data_range": PEAK}
    values = [structural_similarity(x, y, channel_axis=-1, **as_published) for x, y in zip(one, other, strict=True)]
    return scores(np.array(values), single=single)


def seam_score(
    image: Any, seams_x: Iterable[int] | None = None, seams_y: Iterable[int] | None = None, *, reach: int = 8
) -> float:
    """How far the seams between tiles show in an image stitched from them.

    The mean absolute difference of grey levels across the seams, divided by the same across the lines beside them.

    Parameters
    ----------
    image
        (h, w) or (h, w, channels), of any scale.
    seams_x, seams_y
        Columns and rows at which a new tile starts.
    reach
        Lines up to so many px from a seam are those that it is held against; other seams among them are left out.

    Returns
    -------
    1 where seams do not show: that is the expected value of lines drawn anywhere in a real image, which is the null to
    compare with. More where they do; less where blending has smoothed them; 1 also where the image is constant there,
    and infinite where only the seams change it.

    Raises
    ------
    ValueError
        If there is no seam, one lies outside the image, every line is a seam, or pixels are not finite.

    Examples
    --------
    >>> import numpy as np
    >>> from sthist.metrics import image
    >>> stitched = np.random.default_rng(0).normal(100, 2, (60, 60))
    >>> stitched[:, 30:] += 20
    >>> image.seam_score(stitched, seams_x=[30]) > 5
    True
    >>> 0.8 < image.seam_score(stitched, seams_x=[15], seams_y=[30]) < 1.2
    True
    """
    pixels = np.asarray(image)
    if pixels.ndim not in {2, 3} or pixels.size == 0:
        raise ValueError(f"A stitched image has shape (h, w) or (h, w, channels); this one has {pixels.shape}.")
    if reach < 1:
        raise ValueError(f"reach is at least 1 px, not {reach}.")
    at, beside = np.zeros(0), np.zeros(0)
    for seams, axis in ((seams_x, 1), (seams_y, 0)):
        lines = np.unique(np.array([index(line) for line in (() if seams is None else seams)], dtype=int))
        extent = pixels.shape[axis]
        if len(lines) and (lines[0] < 1 or lines[-1] >= extent):
            outside = [int(line) for line in lines if not 1 <= line < extent]
            raise ValueError(f"A seam of {'xy'[1 - axis]} lies between 1 and {extent - 1}; {outside} do not.")
        near = np.unique(lines[:, None] + np.r_[-reach:0, 1 : reach + 1])
        near = np.setdiff1d(near[(near >= 1) & (near < extent)], lines)
        at = np.r_[at, _steps(pixels, lines, axis)]
        beside = np.r_[beside, _steps(pixels, near, axis)]
    if not len(at) or not len(beside):
        raise ValueError(
            "seams_x or seams_y has to name a seam." if not len(at) else "Every line is a seam: none is left beside."
        )
    if not np.isfinite(at).all() or not np.isfinite(beside).all():
        raise ValueError("The image has pixels at its seams that are not finite.")
    if beside.mean() == 0:
        return 1.0 if at.mean() == 0 else float("inf")
    return float(at.mean() / beside.mean())


def _steps(pixels: np.ndarray, lines: np.ndarray, axis: int) -> np.ndarray:
    """Absolute grey difference across each line, one value per pixel of it."""
    before, after = (np.take(pixels, at, axis).astype(np.float64) for at in (lines - 1, lines))
    if pixels.ndim == 3:
        before, after = before.mean(-1), after.mean(-1)
    return np.abs(after - before).ravel()
