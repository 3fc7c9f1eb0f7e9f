"""Bivariate Moran's R of all pairs of columns, and what it would be where places mean nothing.

The weights are symmetric: the triangle above their diagonal is kept alone, and the diagonal as a number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sthist._reading import available_memory

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

Alternative = Literal["two-sided", "greater", "less"]

PAIR_BYTES = 48
"""Memory that a pair of neighbours takes at most while its weight is made."""

N_SAMPLED = 500
"""Spots whose neighbours are counted to tell how many all have."""

BLOCK = 1 << 20
"""Pairs whose distances are computed together."""


@dataclass(frozen=True, eq=False)
class Weights:
    """How near each other spots are, divided such that all weights sum to the number of spots."""

    above: csr_matrix  # (n, n): the triangle above the diagonal
    own: float  # of a spot and itself
    radius_um: float  # beyond it they are 0
    n_alone: int  # spots without a neighbour

    @property
    def n(self) -> int:
        """Number of spots."""
        return int(self.above.shape[0])

    @property
    def variance(self) -> float:
        """Of R between two columns whose values are dealt to the spots at random, each by itself."""
        n = self.n
        sums = np.asarray(self.above.sum(axis=0)).ravel() + np.asarray(self.above.sum(axis=1)).ravel() + self.own
        squares = 2 * float(self.above.data @ self.above.data) + n * self.own**2
        return float((n**2 * squares - 2 * n * (sums @ sums) + n**2) / (n * (n - 1)) ** 2)

    def lagged(self, values: np.ndarray) -> np.ndarray:
        """Weighted sums over the neighbours of each spot, (n, columns)."""
        return np.asarray(self.above @ values + self.above.T @ values + self.own * values)


def order_in_space(places: np.ndarray) -> np.ndarray:
    """An order of spots in which neighbours stand near each other in memory, too: products are twice as fast."""
    from scipy.spatial import cKDTree

    return np.asarray(cKDTree(places).indices)


def spatial_weights(
    places: np.ndarray,
    length_um: float,
    *,
    cutoff: float = 0.2,
    n_neighbors: int | None = None,
    self_weights: bool = True,
) -> Weights:
    """Gaussian weights of the distance, those below a cut-off left out; of the nearest spots alone if asked for."""
    from scipy.sparse import csr_matrix
    from scipy.spatial import cKDTree

    tree, n = cKDTree(places), len(places)
    extent = float(np.hypot(*np.ptp(places, axis=0)))
    radius = float(length_um * np.sqrt(-2 * np.log(cutoff))) if cutoff > 0 else np.inf
    reach = min(radius, 1.01 * extent + length_um)  # the tree adds to its radius, and infinity is none
    _require_memory(tree, places, reach, n_neighbors)
    pairs = (
        tree.query_pairs(reach, output_type="ndarray") if n_neighbors is None else _nearest(tree, n_neighbors, reach)
    )
    if not len(pairs):
        nearest = tree.query(places, k=2)[0][:, 1].min()
        raise ValueError(
            f"No spot has another one within {radius:.4g} µm, where weights fall below the cut-off {cutoff:g}; the "
            f"nearest two are {nearest:.4g} µm apart. Pass a larger length_um= than {length_um:.4g}, and see that "
            "obsm['spatial'] is in µm."
        )
    weights = np.empty(len(pairs))
    for start in range(0, len(pairs), BLOCK):
        part = pairs[start : start + BLOCK]
        apart = places[part[:, 0]] - places[part[:, 1]]
        weights[start : start + BLOCK] = np.exp((apart**2).sum(axis=1) / (-2 * length_um**2))
    above = csr_matrix((weights, (pairs[:, 0].astype(np.int32), pairs[:, 1].astype(np.int32))), shape=(n, n))
    degrees = np.diff(above.indptr) + np.bincount(above.indices, minlength=n)
    scale = n / (2 * above.data.sum() + n * self_weights)
    above.data *= scale
    return Weights(above, float(scale * self_weights), radius, int((degrees == 0).sum()))


def _require_memory(tree: Any, places: np.ndarray, reach: float, n_neighbors: int | None) -> None:
    """Refuse more neighbours than memory holds, by those of some spots."""
    some = places[np.unique(np.linspace(0, len(places) - 1, N_SAMPLED).astype(int))]
    each = float(tree.query_ball_point(some, reach, return_length=True).mean() - 1) / 2
    if n_neighbors is not None:
        each = float(min(each, n_neighbors))
    needed, free = PAIR_BYTES * each * len(places), available_memory()
    if needed > free:
        raise ValueError(
            f"Within {reach:.4g} µm, {len(places)} spots have {each * len(places):.2g} pairs of neighbours, whose "
            f"weights take {needed / 1e9:.3g} GB; {free / 1e9:.3g} GB are free. Take a smaller length_um= or a larger "
            "cutoff=, or the nearest spots alone with n_neighbors=."
        )


def _nearest(tree: Any, k: int, reach: float) -> np.ndarray:
    """Pairs of which one is among the nearest of the other, (m, 2): each once, the smaller number first."""
    n = tree.n
    # One more than asked for: a spot is the nearest to itself, if not always the first where several share a place.
    distance, near = tree.query(tree.data, k=min(k + 1, n), distance_upper_bound=np.nextafter(reach, np.inf))
    own = np.arange(n)[:, None]
    found = np.isfinite(distance) & (near != own)
    found &= np.cumsum(found, axis=1) <= k
    one, other = np.broadcast_to(own, near.shape)[found].astype(np.int64), near[found].astype(np.int64)
    codes = np.unique(np.minimum(one, other) * n + np.maximum(one, other))
    return np.stack(np.divmod(codes, n), axis=1)


def standardised(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Columns with mean 0 and variance 1, and which of them do not vary: those are 0."""
    z = values - values.mean(axis=0)
    constant = np.ptp(values, axis=0) <= 8 * np.finfo(np.float64).eps * np.abs(values).max(axis=0)
    z[:, constant] = 0
    z /= np.where(constant, 1, np.sqrt((z**2).mean(axis=0)))
    return z, constant


def morans_r(z: np.ndarray, weights: Weights) -> np.ndarray:
    """Bivariate Moran's R of all pairs of standardised columns, (columns, columns): symmetric."""
    half = z.T @ (weights.above @ z)
    return np.asarray((half + half.T + weights.own * (z.T @ z)) / len(z))


def analytic_p(z_scores: np.ndarray, alternative: Alternative) -> np.ndarray:
    """Tails of the normal distribution."""
    from scipy.stats import norm

    if alternative == "two-sided":
        return np.minimum(1.0, 2 * norm.sf(np.abs(z_scores)))
    return np.asarray(norm.sf(z_scores if alternative == "greater" else -z_scores))


def permutation_p(
    z: np.ndarray, weights: Weights, r: np.ndarray, n_permutations: int, seed: int, alternative: Alternative
) -> np.ndarray:
    """Share of draws as extreme as R, itself counted: each of the two columns in turn is dealt to other spots."""
    lagged = weights.lagged(z) / len(z)
    rng = np.random.default_rng(seed)
    reached, slack = np.zeros(r.shape), 1e-12  # equal values that were summed in another order
    for _ in range(n_permutations):
        dealt = lagged.T @ z[rng.permutation(len(z))]
        if alternative == "two-sided":
            reached += np.abs(dealt) >= np.abs(r) - slack
        else:
            reached += (dealt >= r - slack) if alternative == "greater" else (dealt <= r + slack)
    return np.asarray((1 + reached + reached.T) / (1 + 2 * n_permutations))


def adjusted(p: np.ndarray) -> np.ndarray:
    """False discovery rate of each pair by Benjamini and Hochberg, over the pairs that have a p-value, each once."""
    from scipy.stats import false_discovery_control

    rows, columns = np.triu_indices(len(p), 1)
    known = np.isfinite(p[rows, columns])
    q = np.full(p.shape, np.nan)
    if known.any():
        rows, columns = rows[known], columns[known]
        q[rows, columns] = q[columns, rows] = false_discovery_control(p[rows, columns])
    return q
