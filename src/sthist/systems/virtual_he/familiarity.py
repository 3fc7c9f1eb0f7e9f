"""How usual a section looks among the tiles that a model was trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sthist.systems.virtual_he.training_set.pairs import Pairs

LOOKED_AT, BATCH = 512, 32
"""Training tiles that are described, and how many of them at a time."""

DRAW = (0, 0)
"""Seed and epoch of how they are drawn."""

QUANTILES, MARGIN = (0.02, 0.98), 0.5
"""Quantiles of a description over the training tiles, and how much of the way between them a usual tile may be off."""

MOST_STRANGE = 0.5
"""Part of the tiles of a section that may be unlike those of the training before it is said."""

ASPECTS = ("brightness", "contrast", "sharpness")


def described(tiles: np.ndarray) -> np.ndarray:
    """Brightness, contrast and sharpness of each channel of tiles, (n, channels, 3)."""
    levels = tiles.astype(np.float32) / 255
    contrast = levels.std((1, 2))
    steps = (np.abs(np.diff(levels, axis=axis)).mean((1, 2)) for axis in (1, 2))
    return np.stack([levels.mean((1, 2)), contrast, sum(steps) / np.maximum(contrast, 0.02)], -1)


def usual_range(pairs: Pairs) -> dict[str, Any]:
    """The range of each description over training tiles as they are drawn, at all scales and in all lights.

    Plain values, for a config.
    """
    rows = np.unique(np.linspace(0, len(pairs) - 1, min(LOOKED_AT, len(pairs))).astype(int))
    parts = [described(pairs.read(rows[start : start + BATCH], DRAW)[0]) for start in range(0, len(rows), BATCH)]
    low, high = np.quantile(np.concatenate(parts), QUANTILES, axis=0)
    wider = MARGIN * (high - low) + 0.01
    return {"low": (low - wider).round(4).tolist(), "high": (high + wider).round(4).tolist()}


def what_is_strange(usual: dict[str, Any], tiles: np.ndarray, channels: Sequence[str]) -> str:
    """What to say of tiles of a section that are unlike those of the training; empty where they are not."""
    found = described(tiles)
    low, high = np.array(usual["low"]), np.array(usual["high"])
    if not len(found) or low.shape != found.shape[1:]:
        return ""
    off = (found < low) | (found > high)
    share = float(off.any((1, 2)).mean())
    if share <= MOST_STRANGE:
        return ""
    channel, aspect = np.unravel_index(off.mean(0).argmax(), low.shape)
    median = float(np.median(found[:, channel, aspect]))
    return (
        f"{share:.0%} of the tiles looked at are unlike those that the model was trained on, most of all the "
        f"{ASPECTS[aspect]} of {channels[channel]!r} ({median:.2g}; in the training {low[channel, aspect]:.2g} to "
        f"{high[channel, aspect]:.2g}): what it makes of this section is a guess."
    )
