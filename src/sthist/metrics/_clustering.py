"""Whether predicted expression falls into the clusters of the measured one."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np

from sthist.metrics._expression.blocks import Pair


class LabelAgreement(NamedTuple):
    """How far two labellings of the same rows agree, whatever their names.

    Attributes
    ----------
    accuracy
        Share of rows whose labels correspond, where each label of one side corresponds to one of the other at most, and
        so that the share is largest (the Hungarian method).
    ari
        Adjusted Rand index: 0 for chance, 1 for the same.
    nmi
        Normalised mutual information, by the mean of the entropies, 0 to 1.

    Examples
    --------
    >>> from sthist import metrics
    >>> metrics.label_agreement(["a", "a", "b"], [7, 7, 3])
    LabelAgreement(accuracy=1.0, ari=1.0, nmi=1.0)
    """

    accuracy: float
    ari: float
    nmi: float


@dataclass(frozen=True, eq=False)
class ClusteringScores:
    """Clusters of measured and of predicted expression, and how far they agree.

    Attributes
    ----------
    accuracy, ari, nmi
        As of :class:`LabelAgreement`.
    truth, prediction
        (spots,) cluster of each spot, from 0. A predicted cluster has the number of the measured one that it
        corresponds to; those that correspond to none come after.

    Examples
    --------
    >>> import numpy as np
    >>> from sthist import metrics
    >>> rng = np.random.default_rng(0)
    >>> truth = rng.normal(np.repeat([[0.0], [9.0]], 40, axis=0), 1, (80, 20))
    >>> metrics.clustering(truth, truth + rng.normal(size=truth.shape), resolution=0.1).accuracy
    1.0
    """

    accuracy: float
    ari: float
    nmi: float
    truth: np.ndarray
    prediction: np.ndarray


def clustering(
    truth: Any,
    prediction: Any,
    *,
    n_pcs: int = 50,
    n_neighbors: int = 15,
    resolution: float = 1.0,
    seed: int = 0,
) -> ClusteringScores:
    """Cluster measured and predicted expression in the same way, and compare the clusters.

    Both sides go through scanpy's steps with its settings: principal components, the graph of nearest neighbours,
    Leiden. Predictions are smoother than what is measured, and fall into fewer clusters at the same resolution.

    Parameters
    ----------
    truth, prediction
        (spots, genes), log-normalised, of all genes: arrays, sparse matrices, or frames.
    n_pcs
        Principal components, at most; fewer where there are fewer spots or genes.
    n_neighbors
        Of each spot in the graph.
    resolution
        Of Leiden.
    seed
        Of all three.

    Returns
    -------
    The scores, :class:`ClusteringScores`. A side that does not vary is one cluster.

    Raises
    ------
    ImportError
        If igraph is not installed.
    ValueError
        If shapes or genes differ, values are NaN, a number is out of range, or there are fewer than three spots.

    Examples
    --------
    >>> import numpy as np
    >>> from sthist import metrics
    >>> truth = np.random.default_rng(0).normal(size=(50, 20))
    >>> metrics.clustering(truth, truth).ari
    1.0
    """
    pair = Pair(truth, prediction)
    if pair.shape[0] < 3:
        raise ValueError(f"There are {pair.shape[0]} spots; clusters need at least 3.")
    if min(n_pcs, n_neighbors) < 1 or not resolution > 0:
        raise ValueError(
            f"n_pcs is {n_pcs}, n_neighbors {n_neighbors} and resolution {resolution}; all are above 0, the first two "
            "whole."
        )
    blocks = [(first.astype(np.float32), second.astype(np.float32)) for _, first, second, _ in pair.by_genes()]
    sides = [np.concatenate([block[side] for block in blocks], axis=1) for side in (0, 1)]
    first, second = (_clusters(values, n_pcs, n_neighbors, resolution, seed) for values in sides)
    agreement = label_agreement(first, second)
    return ClusteringScores(*agreement, first, _renamed(first, second))


def label_agreement(labels: Any, predicted: Any) -> LabelAgreement:
    """How far two labellings of the same rows agree, whatever the names of their labels.

    Parameters
    ----------
    labels, predicted
        (n,) label of each row.

    Returns
    -------
    Accuracy, adjusted Rand index and normalised mutual information.

    Raises
    ------
    ValueError
        If there are no rows, or the lengths differ.

    Examples
    --------
    >>> from sthist import metrics
    >>> metrics.label_agreement([0, 0, 1, 1], [1, 1, 0, 1]).accuracy
    0.75
    """
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    first, second = (np.unique(np.asarray(each).astype(str), return_inverse=True)[1] for each in (labels, predicted))
    if first.shape != second.shape or not len(first):
        raise ValueError(f"There are {len(first)} labels and {len(second)} predicted ones; each row has one of both.")
    counts, (rows, columns) = _matched(first, second)
    return LabelAgreement(
        float(counts[rows, columns].sum() / len(first)),
        float(adjusted_rand_score(first, second)),
        float(normalized_mutual_info_score(first, second)),
    )


def leiden(points: np.ndarray, *, n_neighbors: int = 15, resolution: float = 1.0, seed: int = 0) -> np.ndarray:
    """Cluster of each point, by Leiden on the graph of nearest ones, as scanpy has it."""
    if find_spec("igraph") is None:
        raise ImportError('Leiden needs igraph: pip install "sthist[leiden]".')
    if len(points) < 3:
        return np.arange(len(points))
    import anndata as ad
    import scanpy as sc

    light = ad.AnnData(points.astype(np.float32))
    sc.pp.neighbors(light, n_neighbors=min(n_neighbors, len(points) - 1), use_rep="X", random_state=seed)
    sc.tl.leiden(light, resolution=resolution, flavor="igraph", n_iterations=2, directed=False, random_state=seed)
    return light.obs["leiden"].cat.codes.to_numpy().astype(int)


def _clusters(values: np.ndarray, n_pcs: int, n_neighbors: int, resolution: float, seed: int) -> np.ndarray:
    """Cluster of each row of log expression."""
    varies = np.ptp(values, axis=0) > 1e-6 * np.abs(values).max(axis=0)
    if not varies.any():
        return np.zeros(len(values), int)
    values = values[:, varies]
    n_pcs = min(n_pcs, min(values.shape) - 1)
    if n_pcs >= 1:
        import scanpy as sc

        values = sc.pp.pca(values, n_comps=n_pcs, random_state=seed)
    return leiden(values, n_neighbors=n_neighbors, resolution=resolution, seed=seed)


def _matched(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Counts of each two labels, and which correspond."""
    from scipy.optimize import linear_sum_assignment

    counts = np.zeros((first.max() + 1, second.max() + 1), int)
    np.add.at(counts, (first, second), 1)
    return counts, linear_sum_assignment(counts, maximize=True)


def _renamed(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Labels of the second with the numbers of those of the first that they correspond to."""
    _, (rows, columns) = _matched(first, second)
    names = np.full(second.max() + 1, -1)
    names[columns] = rows
    rest = names < 0
    names[rest] = first.max() + 1 + np.arange(rest.sum())
    return names[second]
