"""Correlation of truth and prediction along one axis, with what was not measured left out."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from sthist.metrics._expression.blocks import Pair, group_rows, rounding

MIN_SPOTS = 2
"""In fewer, nothing can be correlated."""


class Moments(NamedTuple):
    """Of each gene, over the spots in which it was measured: number, means, sums of squares and of products."""

    n: np.ndarray
    truth_mean: np.ndarray
    prediction_mean: np.ndarray
    truth_squares: np.ndarray
    prediction_squares: np.ndarray
    products: np.ndarray


def gene_pearson(truth: Any, prediction: Any, *, mask: Any = None, groups: Any = None) -> np.ndarray:
    """Pearson correlation of each gene across spots.

    Parameters
    ----------
    truth, prediction
        (spots, genes): arrays, sparse matrices, frames, or arrays on disk, which are read in blocks.
    mask
        Bool, (spots, genes) or (genes,): True where a gene was measured; elsewhere neither side counts.
    groups
        (spots,) slide, patient or block of each spot: the correlation is then taken within each group, and averaged
        with the groups' numbers of measured spots as weights, over the groups in which the truth varies. A prediction
        that is constant in some of these groups, but not in all, counts as 0 there.

    Returns
    -------
    (genes,) float64. NaN for a gene that does not vary in the truth or in the prediction, beyond the rounding of
    their type, or was measured in fewer than two spots.

    Raises
    ------
    TypeError
        If a matrix holds no numbers, or the mask no bool.
    ValueError
        If shapes or genes differ, values are NaN or infinite where they were measured, or there is only one spot.

    Examples
    --------
    >>> import numpy as np
    >>> from sthist import metrics
    >>> truth = np.array([[0.0, 1.0], [1.0, 1.0], [2.0, 1.0]])
    >>> metrics.gene_pearson(truth, 3 - truth)
    array([-1., nan])
    """
    pair = Pair(truth, prediction, mask)
    rows = group_rows(groups, pair.shape[0])
    require_spots(pair)
    tolerance = rounding(pair.truth), rounding(pair.prediction)
    result = np.empty(pair.shape[1])
    for part, first, second, measured in pair.by_genes():
        result[part] = over_groups(first, second, measured, rows, tolerance)[0]
    return result


def over_groups(
    truth: np.ndarray,
    prediction: np.ndarray,
    mask: np.ndarray | None,
    rows: list[np.ndarray],
    tolerance: tuple[float, float],
    *,
    ranks: bool = False,
    given: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Correlation of each column within groups of rows, and which columns have a group in which the truth varies.

    The mean is weighted by measured rows, over groups in which the truth varies; in those, a constant prediction counts
    as 0, unless it is constant in all. What is linear in ``given``, (n,), is taken from both before.
    """
    total, weight, known = (np.zeros(truth.shape[1]) for _ in range(3))
    for index in rows:
        part = slice(None) if len(rows) == 1 else index
        measured = None if mask is None else mask[part]
        sides = truth[part], prediction[part]
        if given is not None:
            sides = tuple(  # type: ignore[assignment]
                _without(values, given[part], measured, limit) for values, limit in zip(sides, tolerance, strict=True)
            )
        value, n, varies = correlate(*sides, measured, 0, tolerance, ranks=ranks)
        defined = np.isfinite(value)
        total += np.where(defined, value * n, 0.0)
        weight += np.where(varies, n, 0)
        known += defined
    mean = np.divide(total, weight, out=np.full(len(total), np.nan), where=known > 0)
    return mean, weight > 0


def correlate(
    truth: np.ndarray,
    prediction: np.ndarray,
    mask: np.ndarray | None,
    axis: int,
    tolerance: tuple[float, float],
    *,
    ranks: bool = False,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pearson or Spearman, NaN where a side does not vary; of how many values; whether the truth varies."""
    n = np.full(truth.shape[1 - axis], truth.shape[axis]) if mask is None else mask.sum(axis=axis)
    varies = [
        (spread(values, mask, axis) > limit * np.abs(values).max(axis=axis, initial=0)) & (n >= MIN_SPOTS)
        for values, limit in ((truth, tolerance[0]), (prediction, tolerance[1]))
    ]
    if ranks:
        truth, prediction = _ranks(truth, mask, axis), _ranks(prediction, mask, axis)
    moments = moments_of(truth, prediction, mask, axis)
    scale = np.sqrt(moments.truth_squares) * np.sqrt(moments.prediction_squares)
    defined = varies[0] & varies[1] & (scale > 0)
    value = np.divide(moments.products, scale, out=np.full(len(scale), np.nan), where=defined)
    return np.clip(value, -1, 1), n, varies[0]


def _without(values: np.ndarray, given: np.ndarray, mask: np.ndarray | None, limit: float) -> np.ndarray:
    """Columns without what is linear in ``given``; 0 where that is all but rounding, and where nothing was measured."""
    there = np.ones(values.shape, bool) if mask is None else mask
    n = np.maximum(there.sum(axis=0), 1)
    known = np.where(there, given[:, None], 0.0)
    known = np.where(there, known - known.sum(axis=0) / n, 0.0)
    rest = np.where(there, values - np.where(there, values, 0.0).sum(axis=0) / n, 0.0)
    squares = (known**2).sum(axis=0)
    rest -= known * np.divide((known * rest).sum(axis=0), squares, out=np.zeros(len(squares)), where=squares > 0)
    rounded = np.abs(rest).max(axis=0, initial=0) <= limit * np.abs(values).max(axis=0, initial=0)
    rest[:, rounded] = 0
    return rest


def moments_of(truth: np.ndarray, prediction: np.ndarray, mask: np.ndarray | None, axis: int) -> Moments:
    """Sums around the means, in two passes, so that a large mean costs no digits."""
    n = np.full(truth.shape[1 - axis], truth.shape[axis]) if mask is None else mask.sum(axis=axis)
    count = np.maximum(n, 1)
    means, centred = [], []
    for values in (truth, prediction):
        mean = values.sum(axis=axis) / count  # what was not measured is 0
        apart = values - np.expand_dims(mean, axis)
        means.append(mean)
        centred.append(apart if mask is None else apart * mask)
    along = "ij,ij->j" if axis == 0 else "ij,ij->i"
    first, second = centred
    squares = [np.einsum(along, *sides) for sides in ((first, first), (second, second), (first, second))]
    return Moments(n, *means, *squares)


def _ranks(values: np.ndarray, mask: np.ndarray | None, axis: int) -> np.ndarray:
    """Ranks among what was measured, equal values sharing their mean rank, and 0 for the rest."""
    from scipy.stats import rankdata

    if mask is None:
        return rankdata(values, axis=axis)
    return np.nan_to_num(rankdata(np.where(mask, values, np.nan), axis=axis, nan_policy="omit"))


def spread(values: np.ndarray, mask: np.ndarray | None, axis: int) -> np.ndarray:
    """Largest minus smallest of what was measured; 0 where nothing was."""
    if mask is None:
        return values.max(axis=axis) - values.min(axis=axis)
    top = np.where(mask, values, -np.inf).max(axis=axis)
    low = np.where(mask, values, np.inf).min(axis=axis)
    return np.where(mask.any(axis=axis), top, 0) - np.where(mask.any(axis=axis), low, 0)


def require_spots(pair: Pair) -> None:
    """Refuse what has no second spot."""
    if pair.shape[0] < MIN_SPOTS:
        raise ValueError(
            "There is one spot: a gene has no correlation across spots. Score several spots, of several slides if need "
            "be."
        )
