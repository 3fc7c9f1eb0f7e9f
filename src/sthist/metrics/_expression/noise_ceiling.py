"""How well a gene could be predicted at all: the noise of its own counts."""

from __future__ import annotations

from typing import Any

import numpy as np

from sthist._messages import plain
from sthist._sample.counts import fault_of_counts
from sthist.metrics._expression.blocks import BLOCK_BYTES, group_rows
from sthist.metrics._expression.correlation import over_groups


def noise_ceiling(
    counts: Any,
    *,
    genes: Any = None,
    groups: Any = None,
    target_sum: float = 1e4,
    log: bool = True,
    n_splits: int = 5,
    seed: int = 0,
) -> np.ndarray:
    """The Pearson correlation across spots that a perfect prediction of each gene could reach, given its counts' noise.

    The molecules of each spot are dealt at random to two halves (binomial thinning), each is normalised, and the
    correlation r of the halves, mean of ``n_splits``, gives the reliability of the whole by Spearman and Brown,
    2 r / (1 + r). Its square root is the ceiling: the correlation of the counts with what they are drawn from. Few
    molecules, or little that varies, and it is low whatever the model. The ceiling of a gene that does not vary is not
    quite 0, as r itself is noisy: by about the square root of 2 / sqrt(spots).

    Parameters
    ----------
    counts
        (spots, all genes) raw counts: an array, a sparse matrix or a frame. Genes that are not scored count for the
        totals.
    genes
        Which columns to score: numbers, a bool per column, or names of a frame; by default all.
    groups
        (spots,) slide of each spot: correlations are then within slides, as in :func:`gene_pearson`.
    target_sum
        Total that each half of a spot is brought to.
    log
        Take log(1 + x).
    n_splits
        How often the counts are dealt.
    seed
        Of the dealing.

    Returns
    -------
    (genes scored,) float64, 0 to 1: 0 where the halves do not correlate; NaN for a gene that has no counts, or is
    constant.

    Raises
    ------
    KeyError
        If a gene is not among the columns.
    ValueError
        If these are no counts: negative, not whole (normalised, or logarithms), NaN or infinite; or there is one spot.

    Examples
    --------
    >>> import numpy as np
    >>> from sthist import metrics
    >>> rng = np.random.default_rng(0)
    >>> varied, other = np.linspace(1, 20, 5000), np.full(5000, 1000.0)
    >>> counts = rng.poisson(np.column_stack([varied, varied / 10, other]))
    >>> metrics.noise_ceiling(counts, genes=[0, 1], log=False).round(1)
    array([0.9, 0.5])
    """
    from scipy.sparse import csr_matrix

    names = counts.columns if hasattr(counts, "columns") else None
    matrix = csr_matrix(counts.to_numpy() if names is not None else counts)
    if (fault := fault_of_counts(matrix.data)) is not None:
        row = int(np.searchsorted(matrix.indptr, fault.first, side="right")) - 1
        raise ValueError(
            f"These are no counts: {fault.n} values are {fault.what}, first in row {row} of column "
            f"{int(matrix.indices[fault.first])}{fault.looks}. The noise is that of raw counts, as pp.genes keeps "
            "them in layers['counts']."
        )
    if matrix.shape[0] < 2:
        raise ValueError("There is one spot: halves of its counts have no correlation across spots.")
    if n_splits < 1:
        raise ValueError(f"n_splits is {n_splits}; it is at least 1.")
    columns = _columns(genes, names, matrix.shape[1])
    rows = group_rows(groups, matrix.shape[0])
    values = matrix.data.astype(np.int64)
    rng = np.random.default_rng(seed)
    total = np.zeros(len(columns))
    for _ in range(n_splits):
        half = rng.binomial(values, 0.5)
        first, second = (
            _normalised(csr_matrix((part, matrix.indices, matrix.indptr), shape=matrix.shape), columns, target_sum, log)
            for part in (half, values - half)
        )
        total += _correlation(first, second, rows)
    r = np.maximum(total / n_splits, 0)
    return np.sqrt(2 * r / (1 + r))


def _correlation(first: Any, second: Any, rows: list[np.ndarray]) -> np.ndarray:
    """Of each column, across rows; 0 where one half has no counts and the other has."""
    step = max(1, BLOCK_BYTES // (8 * first.shape[0]))
    eps = 8 * float(np.finfo(np.float64).eps)
    values = []
    for start in range(0, first.shape[1], step):
        blocks = [half[:, start : start + step].toarray() for half in (first, second)]
        value, varies = over_groups(blocks[0], blocks[1], None, rows, (eps, eps))
        varies |= over_groups(blocks[1], blocks[0], None, rows, (eps, eps))[1]
        values.append(np.where(np.isnan(value) & varies, 0.0, value))
    return np.concatenate(values)


def _normalised(half: Any, columns: np.ndarray, target_sum: float, log: bool) -> Any:
    """The columns that are scored, each row brought to its total over all."""
    from scipy.sparse import diags

    totals = np.asarray(half.sum(axis=1), np.float64).ravel()
    scaled = diags(target_sum / np.maximum(totals, 1)) @ half.tocsc()[:, columns]
    return (scaled.log1p() if log else scaled).tocsc()


def _columns(genes: Any, names: Any, width: int) -> np.ndarray:
    if genes is None:
        return np.arange(width)
    chosen = np.asarray([genes] if isinstance(genes, str) else genes)
    if chosen.dtype.kind in "OUST":
        if names is None:
            raise KeyError("Genes are named, but counts are no frame: give the numbers of their columns.")
        found = names.get_indexer(chosen)
        if (found < 0).any():
            raise KeyError(f"counts have no gene {plain(chosen[found < 0][0])!r}.")
        return found
    return np.arange(width)[chosen]
