"""GenST's augmentation of tiles: mirrored, turned, and coloured and sharpened a little otherwise."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torchvision.transforms.v2 import functional as transforms

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

BRIGHTNESS, CONTRAST, SATURATION, HUE = 0.02, 0.05, 0.1, 0.1
"""Largest change of each: a factor of 1 ± that, and a part of the circle of hues."""

SHARPNESS, SHARPNESS_SHARE, AUTOCONTRAST_SHARE = 0.2, 0.2, 0.5
"""Factor of sharpness, and the share of tiles that have their sharpness or contrast changed."""

GREY = (0.2989, 0.587, 0.114)
"""Weights of red, green and blue in a grey value, as in torchvision (ITU-R 601)."""

STREAM = 1  # of random numbers, which nobody else draws from, such as those that turn tiles elsewhere


@dataclass(frozen=True, eq=False)
class Draws:
    """What is done to each of n tiles; each a function of seed, epoch and row alone."""

    vertical: np.ndarray  # (n,) bool: upside down
    horizontal: np.ndarray  # (n,) bool: left to right
    order: np.ndarray  # (n, 4): which of brightness, contrast, saturation and hue is first, second, ...
    jitter: np.ndarray  # (n, 4): three factors, and the part of the circle of hues
    sharpness: np.ndarray  # (n,) bool
    autocontrast: np.ndarray  # (n,) bool
    quarters: np.ndarray  # (n,): of a turn, counter-clockwise

    @classmethod
    def of(cls, rows: Sequence[int] | np.ndarray, seed: int, epoch: int) -> Draws:
        """Draw for some rows."""
        chances, orders, quarters = [], [], []
        for row in rows:
            random = np.random.default_rng([seed, epoch, int(row), STREAM])
            chances.append(random.random(8))
            orders.append(random.permutation(4))
            quarters.append(random.integers(4))
        u, order = np.reshape(chances, (-1, 8)), np.reshape(orders, (-1, 4))
        centre, reach = np.array([1, 1, 1, 0]), np.array([BRIGHTNESS, CONTRAST, SATURATION, HUE])
        return cls(
            vertical=u[:, 0] < 0.5,
            horizontal=u[:, 1] < 0.5,
            order=order.astype(int),
            jitter=centre + reach * (2 * u[:, 2:6] - 1),
            sharpness=u[:, 6] < SHARPNESS_SHARE,
            autocontrast=u[:, 7] < AUTOCONTRAST_SHARE,
            quarters=np.array(quarters, dtype=int),
        )


def augment_tiles(tiles: torch.Tensor, rows: Sequence[int] | np.ndarray, *, seed: int, epoch: int) -> torch.Tensor:
    """Tiles changed as GenST's authors do in training, each by draws that follow from seed, epoch and its row alone.

    In this order: mirrored upside down (p 0.5) and left to right (p 0.5); brightness (0.98 to 1.02), contrast (0.95 to
    1.05), saturation (0.9 to 1.1) and hue (-0.1 to 0.1 of the circle), in random order; sharpness 0.2 (p 0.2);
    autocontrast (p 0.5); turned by 0, 90, 180 or 270 degrees. The operations are those of
    ``torchvision.transforms.v2``, on the whole batch at once. It comes before the normalisation by mean and spread.

    Parameters
    ----------
    tiles
        Square tiles (b, 3, px, px), uint8, or floating-point from 0 to 1, on any device.
    rows
        Number of each tile in the training set.
    seed, epoch
        What else the draws are a function of.

    Returns
    -------
    Tiles of the same shape and type.

    Raises
    ------
    ValueError
        If the tiles are not square and in colour, or not as many as the rows.
    """
    if tiles.ndim != 4 or tiles.shape[1] != 3 or tiles.shape[2] != tiles.shape[3] or len(tiles) != len(rows):
        raise ValueError(f"Tiles are {tuple(tiles.shape)} for {len(rows)} rows; they should be (b, 3, px, px), square.")
    draws = Draws.of(rows, seed, epoch)
    changed = tiles / 255 if tiles.dtype == torch.uint8 else tiles.clone()
    changed = _sharpened(_coloured(_mirrored(changed, draws), draws), draws)
    _apply(changed, draws.autocontrast, transforms.autocontrast)
    for quarters in (1, 2, 3):
        _apply(changed, draws.quarters == quarters, partial(torch.rot90, k=quarters, dims=(2, 3)))
    return changed.mul_(255).round_().to(torch.uint8) if tiles.dtype == torch.uint8 else changed


def _mirrored(tiles: torch.Tensor, draws: Draws) -> torch.Tensor:
    _apply(tiles, draws.vertical, lambda some: some.flip(2))
    _apply(tiles, draws.horizontal, lambda some: some.flip(3))
    return tiles


def _coloured(tiles: torch.Tensor, draws: Draws) -> torch.Tensor:
    """Tiles with brightness, contrast, saturation and hue changed, each in its own order."""
    amounts = torch.as_tensor(draws.jitter, dtype=tiles.dtype, device=tiles.device)[:, :, None, None, None]
    for turn in range(4):
        for kind, change in enumerate((_brightness, _contrast, _saturation, _hue)):
            rows = np.flatnonzero(draws.order[:, turn] == kind)
            if len(rows):
                chosen = torch.as_tensor(rows, device=tiles.device)
                tiles[chosen] = change(tiles[chosen], amounts[chosen, kind])
    return tiles


def _sharpened(tiles: torch.Tensor, draws: Draws) -> torch.Tensor:
    _apply(tiles, draws.sharpness, lambda some: transforms.adjust_sharpness(some, SHARPNESS))
    return tiles


def _apply(tiles: torch.Tensor, which: np.ndarray, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Change some of the tiles in place."""
    rows = np.flatnonzero(which)
    if len(rows):
        chosen = torch.as_tensor(rows, device=tiles.device)
        tiles[chosen] = change(tiles[chosen])


def _brightness(tiles: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    return (tiles * factor).clamp_(0, 1)


def _contrast(tiles: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    return _blended(tiles, _grey(tiles).mean(dim=(1, 2, 3), keepdim=True), factor)


def _saturation(tiles: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    return _blended(tiles, _grey(tiles), factor)


def _hue(tiles: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Tiles with their hue turned, by way of HSV."""
    value, lowest = tiles.amax(1, keepdim=True), tiles.amin(1, keepdim=True)
    chroma = value - lowest
    red, green, blue = tiles.split(1, dim=1)
    divisor = torch.where(chroma == 0, 1, chroma)
    # Sixths of the circle, from red by green to blue.
    hue = torch.where(value == green, (blue - red) / divisor + 2, (red - green) / divisor + 4)
    hue = torch.where(value == red, (green - blue) / divisor, hue) + 6 * shift
    places = (torch.tensor([5.0, 3.0, 1.0], dtype=tiles.dtype, device=tiles.device).view(1, 3, 1, 1) + hue) % 6
    return value - chroma * torch.minimum(places, 4 - places).clamp_(0, 1)


def _grey(tiles: torch.Tensor) -> torch.Tensor:
    weights = torch.tensor(GREY, dtype=tiles.dtype, device=tiles.device).view(1, 3, 1, 1)
    return (tiles * weights).sum(1, keepdim=True)


def _blended(tiles: torch.Tensor, other: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    return (factor * tiles + (1 - factor) * other).clamp_(0, 1)
