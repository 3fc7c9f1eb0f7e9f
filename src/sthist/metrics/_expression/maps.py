"""Maps of genes: spots on a raster for structural similarity, and as neighbours for Moran's I."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sthist.metrics._expression.blocks import BLOCK_BYTES, group_rows

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

SIGMA = 1.5
"""Of the window of structural similarity, in pixels, as its authors have it."""

K1, K2 = 0.01, 0.03
REACH = 0.75
"""How far from a spot, in distances between spots, a pixel of its map is filled: half the diagonal, and some jitter."""

MAX_PIXELS = 16
"""Per spot: where spots lie in clusters, pixels are wider than the nearest neighbour is far."""

LATTICE_REACH, LATTICE_SPREAD = 1.25, 0.25
"""Neighbours on a lattice are this many pitches away at most, before the diagonal; it is a lattice if the distances
from spot to spot, the nearest and the widest tenth left out, differ by less: printed spots sit a tenth out of place."""

N_NEIGHBORS = 6


class Maps:
    """The raster of each slide: which spot stands at each pixel."""

    def __init__(self, centres: np.ndarray, rows: list[np.ndarray]) -> None:
        self.slides = [(index, *_raster(centres[index])) for index in rows if len(index) > 1]

    def similarity(self, truth: np.ndarray, prediction: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
        """Structural similarity of each gene, mean over the pixels of all slides; NaN for a gene that is constant."""
        if not self.slides:
            return np.full(truth.shape[1], np.nan)
        largest = max(spot.size for _, spot, _ in self.slides)
        step = max(1, BLOCK_BYTES // (8 * largest))
        return np.concatenate(
            [
                self._block(*(None if m is None else m[:, start : start + step] for m in (truth, prediction, mask)))
                for start in range(0, truth.shape[1], step)
            ]
        )

    def _block(self, truth: Any, prediction: Any, mask: Any) -> np.ndarray:
        top = (truth if mask is None else np.where(mask, truth, -np.inf)).max(axis=0)
        low = (truth if mask is None else np.where(mask, truth, np.inf)).min(axis=0)
        extent = np.where(top > low, top - low, np.nan)
        total, weight = np.zeros(truth.shape[1]), np.zeros(truth.shape[1])
        for index, spot, covered in self.slides:
            there = covered[..., None] if mask is None else covered[..., None] & mask[index][spot]
            values = _ssim(truth[index][spot], prediction[index][spot], there, extent)
            total += np.where(there, values, 0).sum(axis=(0, 1))
            weight += np.broadcast_to(there, values.shape).sum(axis=(0, 1))
        with np.errstate(invalid="ignore"):
            return np.where(weight > 0, total / np.maximum(weight, 1), np.nan)


def _raster(centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest spot of each pixel, (h, w), and which pixels have one near enough."""
    from scipy.spatial import cKDTree

    tree = cKDTree(centres)
    low, high = centres.min(axis=0), centres.max(axis=0)
    area = float(np.prod(np.maximum(high - low, 0)))
    side = max(pitch_of(centres), np.sqrt(area / (MAX_PIXELS * len(centres))))
    width, height = (np.floor((high - low) / side + 0.5).astype(int) + 1).tolist()
    x, y = np.meshgrid(low[0] + side * np.arange(width), low[1] + side * np.arange(height))
    distance, spot = tree.query(np.column_stack([x.ravel(), y.ravel()]))
    return spot.reshape(height, width), (distance <= REACH * side).reshape(height, width)


def pitch_of(centres: np.ndarray) -> float:
    """The usual distance from a spot to the next."""
    from scipy.spatial import cKDTree

    places = np.unique(centres, axis=0)  # several spots can share one
    if len(places) < 2:
        raise ValueError(f"All {len(centres)} spots lie at one place, {centres[0].tolist()}; a map needs several.")
    return float(np.median(cKDTree(places).query(places, k=2)[0][:, 1]))


def _ssim(x: np.ndarray, y: np.ndarray, there: np.ndarray, extent: np.ndarray) -> np.ndarray:
    """Similarity at each pixel of maps (h, w, genes); what is not covered has no weight in any window."""
    from scipy.ndimage import gaussian_filter

    def blur(values: np.ndarray) -> np.ndarray:
        return gaussian_filter(values, (SIGMA, SIGMA, 0), mode="constant", truncate=3.5)

    weight = np.maximum(blur(there.astype(np.float64)), 1e-12)
    x, y = np.where(there, x, 0.0), np.where(there, y, 0.0)
    mean_x, mean_y = blur(x) / weight, blur(y) / weight
    var_x, var_y = blur(x * x) / weight - mean_x**2, blur(y * y) / weight - mean_y**2
    cov = blur(x * y) / weight - mean_x * mean_y
    c1, c2 = (K1 * extent) ** 2, (K2 * extent) ** 2
    return (2 * mean_x * mean_y + c1) * (2 * cov + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))


def morans_i(values: Any, centres: Any, *, groups: Any = None, n_neighbors: int | None = None) -> np.ndarray:
    """Moran's I of each gene: how alike a spot and its neighbours are, about 0 for none and 1 at most.

    Neighbours are those next to a spot on the lattice (four on a square one, six on a hexagonal one), or, where spots
    lie on no lattice, the six that are nearest. Each spot's neighbours weigh 1 together; spots that have none do not
    count.

    Parameters
    ----------
    values
        (spots, genes) expression: an array or a sparse matrix, densified in blocks.
    centres
        (spots, 2) x, y of the spots, in µm.
    groups
        (spots,) slide of each spot: the statistic is then of each slide, (slides, genes), in the order of their names.
    n_neighbors
        Take this many nearest spots, on a lattice too.

    Returns
    -------
    (genes,) float64, or (slides, genes) with ``groups``. NaN for a gene that is constant, and for all of a slide of
    fewer than three spots with neighbours.

    Raises
    ------
    ValueError
        If shapes differ, ``n_neighbors`` is below 1, or all spots lie at one place.

    Examples
    --------
    >>> import numpy as np
    >>> from sthist import metrics
    >>> x, y = np.meshgrid(np.arange(8), np.arange(8))
    >>> centres = np.column_stack([x.ravel(), y.ravel()]) * 100.0
    >>> chequered = (x + y).ravel() % 2
    >>> metrics.morans_i(np.column_stack([chequered, x.ravel() > 3]), centres).round(2)
    array([-1.  ,  0.86])
    """
    matrix = values.tocsc() if hasattr(values, "tocsc") else np.asarray(values, np.float64)
    centres = np.asarray(centres, np.float64)
    if len(matrix.shape) != 2 or centres.shape != (matrix.shape[0], 2):
        raise ValueError(
            f"values are (spots, genes) and centres (spots, 2); these have shapes {tuple(matrix.shape)} and "
            f"{centres.shape}."
        )
    if n_neighbors is not None and n_neighbors < 1:
        raise ValueError(f"n_neighbors is {n_neighbors}; it is at least 1.")
    rows = group_rows(groups, matrix.shape[0])
    result = np.array([_moran_of_slide(matrix[index], centres[index], n_neighbors) for index in rows])
    return result[0] if groups is None else result


def _moran_of_slide(matrix: Any, centres: np.ndarray, n_neighbors: int | None) -> np.ndarray:
    result = np.full(matrix.shape[1], np.nan)
    if len(centres) < 3:
        return result
    weights = _neighbours(centres, n_neighbors)
    kept = np.flatnonzero(np.diff(weights.indptr))
    if len(kept) < 3:
        return result
    weights = weights[kept][:, kept]
    step = max(1, BLOCK_BYTES // (8 * len(kept)))
    for start in range(0, matrix.shape[1], step):
        block = matrix[:, start : start + step]
        block = np.asarray(block.toarray() if hasattr(block, "toarray") else block, np.float64)[kept]
        apart = block - block.mean(axis=0)
        squares = (apart**2).sum(axis=0)
        varies = np.ptp(block, axis=0) > 8 * np.finfo(np.float64).eps * np.abs(block).max(axis=0)
        products = (apart * (weights @ apart)).sum(axis=0)
        result[start : start + step] = np.divide(products, squares, out=np.full(len(squares), np.nan), where=varies)
    return result


def _neighbours(centres: np.ndarray, n_neighbors: int | None) -> csr_matrix:
    """Who neighbours whom, (spots, spots), each row that has any summing to 1."""
    from scipy.sparse import coo_matrix, diags
    from scipy.spatial import cKDTree

    tree, n = cKDTree(centres), len(centres)
    nearest = tree.query(centres, k=2)[0][:, 1]
    pitch = pitch_of(centres)
    on_lattice = np.ptp(np.quantile(nearest, [0.1, 0.9])) <= LATTICE_SPREAD * pitch
    if n_neighbors is None and on_lattice:
        pairs = tree.query_pairs(LATTICE_REACH * pitch, output_type="ndarray")
        source, target = np.r_[pairs[:, 0], pairs[:, 1]], np.r_[pairs[:, 1], pairs[:, 0]]
    else:
        k = min(n_neighbors or N_NEIGHBORS, n - 1)
        found = tree.query(centres, k=k + 1)[1]
        # Where spots share a place, a spot is not always the first of its own neighbours.
        is_self = found == np.arange(n)[:, None]
        is_self[~is_self.any(axis=1), -1] = True
        source, target = np.repeat(np.arange(n), k), found[~is_self]
    weights = coo_matrix((np.ones(len(source)), (source, target)), shape=(n, n)).tocsr()
    degrees = np.asarray(weights.sum(axis=1)).ravel()
    return (diags(1 / np.maximum(degrees, 1)) @ weights).tocsr()
