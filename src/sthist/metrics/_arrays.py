"""What every image metric asks of its images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

LAYOUT = "(n, h, w, 3) or (h, w, 3), or 1 in place of 3 for grey"


def stack(images: Any, name: str = "images") -> np.ndarray:
    """Images as (n, h, w, channels) uint8; anything that would be scored on a wrong scale is refused."""
    array = np.asarray(images)
    if array.dtype != np.uint8:
        msg = (
            f"Images are scored on the scale 0 to 255 and have to be uint8; {name} is {array.dtype} of shape "
            f"{array.shape}. Round images in 0-255 to uint8; multiply those in 0-1 by 255 first."
        )
        raise ValueError(msg)
    if array.ndim not in {3, 4} or array.shape[-1] not in {1, 3}:
        msg = f"Images have shape {LAYOUT}; {name} has {array.shape}. Grey images need a last axis: image[..., None]."
        raise ValueError(msg)
    if array.size == 0:
        msg = f"There are no pixels in {name}: its shape is {array.shape}."
        raise ValueError(msg)
    return array if array.ndim == 4 else array[None]


def pair(a: Any, b: Any) -> tuple[np.ndarray, np.ndarray, bool]:
    """Two stacks of the same shape, and whether they are single images."""
    one, other = stack(a, "the first"), stack(b, "the second")
    if np.shape(a) != np.shape(b):
        msg = (
            f"Images that are compared have the same shape; these have {np.shape(a)} and {np.shape(b)}. Read both over "
            "the same box, at the same µm per pixel."
        )
        raise ValueError(msg)
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
