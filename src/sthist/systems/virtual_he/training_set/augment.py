"""What other microscopes, stainings and panels would have given of a tile: its input, drawn anew in each epoch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

BRIGHTNESS = 1.3
"""The stain of an augmented tile is up to so many times as bright, or as dim, as it is."""

HAZE, KNOTS = 0.1, 4
"""Haze of an augmented tile, as a part of white: up to so much is added to all of it, or taken away, and up to so much
again to each of so many places along its sides, and in between as much as lies between. Haze differs from one
microscope to the next, and from thick tissue to thin; where the stain is dark but for that, tissue shall not be told
from glass by it."""

GAMMA, BLUR_UM, NOISE, SHADING = 0.35, 1.5, 0.05, 0.2
"""Of augmented light: standard deviation of the binary logarithm of its gamma (beside what is measured and undone), the
widest blur, the strongest noise relative to the brightest nuclei, and how much brighter or dimmer a corner is."""

THINNED, FEWEST, LEVEL, NO_GROUP, NONE = 0.35, 0.03, 0.06, 0.1, 0.1
"""Of augmented molecules: how often they are thinned and the smallest part that is kept then, standard deviation of the
binary logarithm of what counts as typical, and how often one group, or everything, is not there. What is typical is
measured on a whole section, so it is hardly ever off: a model that is shown otherwise takes no tile at its word."""


DRAWN = (GAMMA, BLUR_UM, NOISE, SHADING, THINNED, FEWEST, LEVEL, NO_GROUP, NONE)
"""What tells one such augmentation from another."""


def add_haze(stain: np.ndarray, rng: np.random.Generator) -> None:
    """Add light, or take it away, here more and there less; in place."""
    haze = uneven(len(stain), HAZE, rng)
    stain[:] = np.clip(np.rint(stain + 255 * haze[..., None]), 0, 255)


def uneven(px: int, most: float, rng: np.random.Generator) -> np.ndarray:
    """Values (px, px) from -most to most at places along both sides, and in between what lies between."""
    at, knots = (np.arange(px) + 0.5) / px, np.linspace(0, 1, KNOTS)
    near = np.maximum(0, 1 - np.abs(at[:, None] - knots) * (KNOTS - 1))
    return near @ rng.uniform(-most, most, (KNOTS, KNOTS)) @ near.T


def other_light(mpp: float, rng: np.random.Generator) -> Callable[[np.ndarray], np.ndarray]:
    """The light of a tile as another microscope would see it: blurred, shaded, with haze, noise and another gamma."""
    blur = rng.uniform(0, BLUR_UM) if rng.uniform() < 0.6 else 0.0
    brightness, gamma = BRIGHTNESS ** rng.uniform(-1, 1), 2 ** rng.normal(0, GAMMA)
    background, noise = rng.uniform(-HAZE / 2, HAZE), rng.uniform(0, NOISE)
    seed = int(rng.integers(2**32))

    def change(light: np.ndarray) -> np.ndarray:
        from scipy.ndimage import gaussian_filter

        draw = np.random.default_rng(seed)
        seen = gaussian_filter(light, blur / mpp) if blur else light
        seen = np.maximum(seen, 0) ** gamma * brightness * (1 + uneven(len(light), SHADING, draw))
        seen = seen + background + uneven(len(light), HAZE / 2, draw)
        return (seen + noise * draw.standard_normal(light.shape)).astype(np.float32)

    return change


def other_panel(n_groups: int, rng: np.random.Generator) -> Callable[[np.ndarray], np.ndarray]:
    """The counts of molecules that another panel would have given: fewer of them, without a group, or none at all."""
    kept = 10 ** rng.uniform(np.log10(FEWEST), 0) if rng.uniform() < THINNED else 1.0
    lost = [k for k in range(1, n_groups) if rng.uniform() < NO_GROUP]
    nothing, seed = rng.uniform() < NONE, int(rng.integers(2**32))
    level = 2 ** rng.normal(0, LEVEL, (n_groups, 1, 1))

    def change(counts: np.ndarray) -> np.ndarray:
        if nothing:
            return np.zeros_like(counts)
        seen = (counts if kept == 1 else np.random.default_rng(seed).binomial(counts, kept) / kept) * level
        seen[lost] = 0
        return seen

    return change
