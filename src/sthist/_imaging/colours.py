"""What pixels mean: three colours of 8 bits, or something that has to be said."""

from __future__ import annotations

from typing import Any

import numpy as np


def require_rgb8(what: str, n_channels: int, dtype: Any) -> None:
    """Refuse what is not three colours of 8 bits, and say how it becomes so."""
    if n_channels == 3 and dtype == np.uint8:
        return
    raise ValueError(
        f"{what} is no H&E: it has {n_channels} channels of {np.dtype(dtype).name}; "
        f"three colours of uint8 are needed.{_mend(n_channels, np.dtype(dtype))}"
    )


def _mend(n_channels: int, dtype: np.dtype) -> str:
    """How three colours of 8 bits are made of others, where that can be told."""
    if n_channels == 4 and dtype == np.uint8:
        return " Leave the fourth out, if it is no more than opacity: pixels[:3]."
    if n_channels != 3:
        return " A grey picture has lost its stain: take the one in colour."
    if dtype.kind == "f":
        return " Pixels from 0 to 1 become such by (pixels * 255).round().astype('uint8')."
    if dtype.kind in "ui":
        return f" Pixels up to {np.iinfo(dtype).max} become such by (pixels / {np.iinfo(dtype).max / 255:g}).round()."
    return ""


def require_tiles(what: str, tiles: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Tiles that a function of the user's has returned, if they are RGB tiles of 8 bits of that shape."""
    tiles = np.asarray(tiles)
    if tiles.shape != shape or tiles.dtype != np.uint8:
        raise ValueError(
            f"{what} returned {tiles.dtype} of shape {tiles.shape}; it has to return uint8, 0 to 255, of shape {shape}."
        )
    return tiles


def displayed(pixels: np.ndarray) -> np.ndarray:
    """RGB pixels of any type, (..., 3), as 8 bits, to be looked at."""
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype.kind == "f":
        largest = float(np.nanmax(pixels, initial=0.0))
        top = 1.0 if largest <= 1 else 255.0 if largest <= 255 else 65535.0
        values = np.nan_to_num(pixels, nan=top)
    else:
        top, values = float(np.iinfo(pixels.dtype).max), pixels
    return np.asarray((np.clip(values / top, 0, 1) * 255).round().astype(np.uint8))
