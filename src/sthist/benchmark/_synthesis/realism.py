"""How real tiles look: one by one, as a set, and whether they are copies of those that were trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sthist.metrics._deep import frechet, kernel_distance

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

SIDE_PX = 16
"""Side that tiles are averaged to before their pixels are compared: 7 µm of a tile of 112 µm."""

CLOSE = 0.01
"""Part of real tiles that lie closer to a tile of the adaptation than what counts as a copy."""

SPLITS = 10
"""Random halves of the spots, over which scores of sets are averaged."""


def set_scores(real: np.ndarray, other: np.ndarray, k: int) -> dict[str, float]:
    """FID, KID, density and coverage of a set of features against real ones."""
    density, coverage = density_and_coverage(real, other, k)
    return {
        "fid": frechet(other, real),
        "kid": kernel_distance(other, real, subset_size=len(real)),
        "density": density,
        "coverage": coverage,
    }


def density_and_coverage(real: np.ndarray, other: np.ndarray, k: int) -> tuple[float, float]:
    """Density and coverage of Naeem et al. 2020, by balls around real points that hold their k nearest real ones."""
    from scipy.spatial.distance import cdist

    among = cdist(real, real)
    radius = np.sort(among, axis=1)[:, k]  # the first is the point itself
    distance = cdist(real, other)
    inside = distance < radius[:, None]
    return float(inside.sum() / (k * len(other))), float(inside.any(axis=1).mean())


def wasserstein(one: np.ndarray, other: np.ndarray, unit: float) -> float:
    """Distance between two distributions of numbers, of which some may be NaN, in some unit."""
    from scipy.stats import wasserstein_distance

    one, other = one[np.isfinite(one)], other[np.isfinite(other)]
    return float(wasserstein_distance(one, other)) / unit if len(one) and len(other) and unit > 0 else np.nan


def halves(n: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.random.Generator]]:
    """Random halves of n spots, of equal size: distances of sets depend on how large they are."""
    rng = np.random.default_rng([seed, 1])
    for _ in range(SPLITS):
        order = rng.permutation(n)
        yield order[: n // 2], order[n // 2 : 2 * (n // 2)], rng


def compared_sets(
    real: np.ndarray, others: Mapping[str, tuple[np.ndarray, np.ndarray]], score: Callable, seed: int
) -> dict[str, dict[str, np.ndarray]]:
    """Scores of sets over random halves of the spots, by name of the set and of the score.

    Each half of the real rows, one per spot, is held against the tiles that others have of the other half: one per
    spot, drawn where there are several. ``others`` gives rows, and the spot of each.
    """
    found: dict[str, dict[str, list[float]]] = {name: {} for name in others}
    for one, rest, rng in halves(len(real), seed):
        for name, (values, spot) in others.items():
            for measure, value in score(real[one], values[_one_each(spot, rest, rng)]).items():
                found[name].setdefault(measure, []).append(value)
    return {name: {each: np.array(values) for each, values in scores.items()} for name, scores in found.items()}


def _one_each(spot: np.ndarray, wanted: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Of each wanted spot one of its tiles, at random."""
    order = rng.permutation(len(spot))
    _, first = np.unique(spot[order], return_index=True)
    chosen = order[first]
    return chosen[np.isin(spot[chosen], wanted)]


def nearest(tiles: np.ndarray, others: np.ndarray, *, same: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Distance of each tile to the nearest other one, turned or mirrored or not, and which that is.

    The distance is the root mean square difference of grey levels of what is averaged to a few pixels a side. ``same``
    where both are one set, in which no tile is its own neighbour.
    """
    mine, theirs = _small(tiles), _small(others)
    flat = theirs.reshape(len(theirs), -1)
    lengths = (flat**2).sum(axis=1)
    best, which = np.full(len(mine), np.inf), np.zeros(len(mine), int)
    for turned in _orientations(mine):
        each = turned.reshape(len(turned), -1)
        squares = (each**2).sum(axis=1)[:, None] + lengths - 2 * each @ flat.T
        if same:
            np.fill_diagonal(squares, np.inf)
        found = squares.argmin(axis=1)
        # Of two almost equal numbers the product has rounded what they differ in.
        distance = np.sqrt(((each - flat[found]) ** 2).mean(axis=1))
        closer = distance < best
        best[closer], which[closer] = distance[closer], found[closer]
    return best, which


def _small(tiles: np.ndarray) -> np.ndarray:
    """Tiles averaged to a few pixels a side, around 0."""
    import torch

    side = min(SIDE_PX, tiles.shape[1])
    pooled = [
        torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(part).permute(0, 3, 1, 2).float(), side)
        for part in np.array_split(np.ascontiguousarray(tiles), max(1, len(tiles) // 256))
    ]
    return torch.cat(pooled).permute(0, 2, 3, 1).numpy() - 128.0


def _orientations(tiles: np.ndarray) -> Iterator[np.ndarray]:
    for turns in range(4):
        turned = np.rot90(tiles, turns, axes=(1, 2))
        yield turned
        yield turned[:, ::-1]
