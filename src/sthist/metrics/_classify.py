"""Scores of classifiers: one class against the rest, with intervals by resampling."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sthist._messages import plain

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pandas as pd


class Interval(NamedTuple):
    """An interval found by resampling.

    Attributes
    ----------
    low, high
        Its ends, floats or arrays of the statistic's shape; NaN where the statistic was defined in no draw.
    n_undefined
        Number of draws, of each value, in which the statistic was NaN; they do not count.

    Examples
    --------
    >>> from sthist import metrics
    >>> metrics.Interval(0.4, 0.6, 0).high
    0.6
    """

    low: Any
    high: Any
    n_undefined: Any


def auc_ovr(labels: Any, scores: Any, *, classes: Sequence[Any] | None = None, sample_weight: Any = None) -> pd.Series:
    """Area under the ROC curve of each class against all others.

    Parameters
    ----------
    labels
        (n,) true class of each row: one of ``classes``.
    scores
        (n, k): score of each class, the larger the likelier; an array, or a frame whose columns are the classes.
    classes
        Names of the columns of ``scores``; by default those of a frame, else 0 to k - 1.
    sample_weight
        (n,) weights of the rows.

    Returns
    -------
    One value per class, float64, in their order. A class that no row has, or that all rows have, is NaN: nothing can be
    said of it.

    Raises
    ------
    ValueError
        If the shapes do not fit, a label is none of the classes, or a score is NaN.

    Examples
    --------
    >>> from sthist import metrics
    >>> metrics.auc_ovr(["a", "a", "b"], [[0.9, 0.1], [0.4, 0.6], [0.5, 0.5]], classes=["a", "b"]).tolist()
    [0.5, 0.5]
    """
    import pandas as pd

    codes, values, names = _checked(labels, scores, classes)
    weights = None if sample_weight is None else _weights(sample_weight, len(codes))
    auc = [_auc(codes == k, values[:, k], weights) for k in range(len(names))]
    return pd.Series(auc, index=pd.Index(names, dtype=object), dtype=np.float64)


def weighted_auc(labels: Any, scores: Any, *, classes: Sequence[Any] | None = None) -> float:
    """Mean of the classes' areas under the ROC curve, each counted by its number of rows.

    Parameters
    ----------
    labels, scores, classes
        As of :func:`auc_ovr`.

    Returns
    -------
    The sum of n_k AUC_k over the sum of n_k, over the classes that some but not all rows have; NaN if there is none.

    Raises
    ------
    ValueError
        As of :func:`auc_ovr`.

    Examples
    --------
    >>> from sthist import metrics
    >>> metrics.weighted_auc([0, 0, 1], [[0.9, 0.1], [0.4, 0.6], [0.5, 0.8]])
    0.6666666666666666
    """
    codes, values, names = _checked(labels, scores, classes)
    auc = auc_ovr(codes, values).to_numpy()
    return _support_weighted(auc, np.bincount(codes, minlength=len(names)))


def confusion(labels: Any, predicted: Any, *, classes: Sequence[Any] | None = None) -> pd.DataFrame:
    """How many rows of each class were predicted as each class.

    Parameters
    ----------
    labels, predicted
        (n,) classes.
    classes
        In which order; by default all that occur, sorted.

    Returns
    -------
    Counts, int64: true classes are the rows, predicted ones the columns.

    Raises
    ------
    ValueError
        If the lengths differ, or a value is none of the classes.

    Examples
    --------
    >>> from sthist import metrics
    >>> metrics.confusion(["a", "a", "b"], ["a", "b", "b"]).to_numpy().tolist()
    [[1, 1], [0, 1]]
    """
    import pandas as pd
    from sklearn.metrics import confusion_matrix

    labels, predicted = np.asarray(labels, object), np.asarray(predicted, object)
    if labels.shape != predicted.shape:
        raise ValueError(
            f"There are {labels.shape} labels and {predicted.shape} predictions; each row has one of both."
        )
    names = sorted({*labels, *predicted}) if classes is None else list(classes)
    codes = _codes(labels, names), _codes(predicted, names)
    counts = confusion_matrix(*codes, labels=np.arange(len(names)))
    index = pd.Index(names, dtype=object)
    return pd.DataFrame(counts, index=index.rename("true"), columns=index.rename("predicted"))


def bootstrap_interval(
    statistic: Callable[[np.ndarray], Any],
    n: int,
    *,
    groups: Any = None,
    n_boot: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile interval of a statistic: rows, or whole groups of rows, are drawn with replacement.

    Rows of one patient, slide or block are alike: drawn one by one they give intervals that are too narrow, drawn by
    group they do not. Of few groups (less than about ten), an interval is rough.

    Parameters
    ----------
    statistic
        Takes (n,) weights, how often each row was drawn, and gives a number or an array.
    n
        Number of rows.
    groups
        (n,) group of each row; by default every row is its own.
    n_boot
        Number of draws.
    level
        Part of the draws within the interval.
    seed
        Of the draws.

    Returns
    -------
    The interval; draws in which the statistic is NaN, such as those that have no row of a class, are left out and
    counted.

    Raises
    ------
    ValueError
        If there are no rows, ``groups`` has another length, or ``level`` or ``n_boot`` is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> from sthist import metrics
    >>> values = np.arange(100.0)
    >>> interval = metrics.bootstrap_interval(lambda weights: np.average(values, weights=weights), 100)
    >>> bool(40 < interval.low < 49.5 < interval.high < 60)
    True
    """
    if n < 1 or n_boot < 1 or not 0 < level < 1:
        raise ValueError(
            f"n is {n}, n_boot {n_boot} and level {level}; the first two are at least 1, level lies between 0 and 1."
        )
    unit = np.arange(n) if groups is None else np.unique(np.asarray(groups).astype(str), return_inverse=True)[1]
    if len(unit) != n:
        raise ValueError(f"groups has {len(unit)} values; there are {n} rows.")
    n_units = int(unit.max()) + 1
    rng = np.random.default_rng(seed)
    draws = np.array(
        [statistic(np.bincount(rng.integers(n_units, size=n_units), minlength=n_units)[unit]) for _ in range(n_boot)],
        np.float64,
    )
    undefined, tail = np.isnan(draws).sum(axis=0), (1 - level) / 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # NaN where no draw is defined
        low, high = np.nanquantile(draws, [tail, 1 - tail], axis=0)
    return Interval(low, high, undefined) if draws.ndim > 1 else Interval(float(low), float(high), int(undefined))


def auc_statistic(codes: np.ndarray, scores: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """A function of weights that gives each class's AUC and, last, their support-weighted mean.

    Sorted once for all draws.
    """
    ranked = [_ranked(codes == k, scores[:, k]) for k in range(scores.shape[1])]

    def statistic(weights: np.ndarray) -> np.ndarray:
        auc = np.array([_auc_of_draw(weights, *each) for each in ranked])
        support = np.bincount(codes, weights, minlength=len(ranked))
        return np.append(auc, _support_weighted(auc, support))

    return statistic


def _ranked(positive: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Order by score, which rows in it are positive, and where each run of equal scores begins."""
    order = np.argsort(score, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(score[order]) > 0])
    return order, positive[order], starts


def _auc_of_draw(weights: np.ndarray, order: np.ndarray, positive: np.ndarray, starts: np.ndarray) -> float:
    weight = weights[order].astype(np.float64)
    above = np.add.reduceat(np.where(positive, weight, 0.0), starts)
    rest = np.add.reduceat(np.where(positive, 0.0, weight), starts)
    pairs = above.sum() * rest.sum()
    return float((above * (np.cumsum(rest) - rest / 2)).sum() / pairs) if pairs else np.nan


def _auc(positive: np.ndarray, score: np.ndarray, weights: np.ndarray | None) -> float:
    from sklearn.metrics import roc_auc_score

    counted = np.ones(len(positive), bool) if weights is None else weights > 0
    if positive[counted].all() or not positive[counted].any():
        return np.nan
    return float(roc_auc_score(positive, score, sample_weight=weights))


def _support_weighted(auc: np.ndarray, support: np.ndarray) -> float:
    known = np.isfinite(auc)
    total = support[known].sum()
    return float((support[known] * auc[known]).sum() / total) if total else np.nan


def _checked(labels: Any, scores: Any, classes: Sequence[Any] | None) -> tuple[np.ndarray, np.ndarray, list[Any]]:
    """Codes of the labels, scores as an array, and the names of the classes."""
    columns = list(scores.columns) if hasattr(scores, "columns") else None
    values = np.asarray(scores, np.float64)
    labels = np.asarray(labels, object)
    if values.ndim != 2 or labels.shape != (len(values),) or not len(values):
        raise ValueError(
            f"Scores are (n, classes) and labels (n,), n at least 1; these have shapes {values.shape} and "
            f"{labels.shape}."
        )
    names = columns if classes is None and columns else list(range(values.shape[1]) if classes is None else classes)
    if len(names) != values.shape[1]:
        raise ValueError(f"There are {len(names)} classes and {values.shape[1]} columns of scores.")
    if np.isnan(values).any():
        raise ValueError(f"Scores are NaN, first in row {int(np.isnan(values).any(axis=1).argmax())}.")
    return _codes(labels, names), values, names


def _codes(labels: np.ndarray, names: list[Any]) -> np.ndarray:
    """Place of each label among the names."""
    place = {name: i for i, name in enumerate(names)}
    unknown = [label for label in labels if label not in place]
    if unknown:
        raise ValueError(f"{len(unknown)} labels are none of the classes {names}, such as {plain(unknown[0])!r}.")
    return np.array([place[label] for label in labels], np.int64)


def _weights(values: Any, n: int) -> np.ndarray:
    weights = np.asarray(values, np.float64)
    if weights.shape != (n,) or not np.isfinite(weights).all() or (weights < 0).any():
        raise ValueError(f"sample_weight is one number per row ({n}), none negative; it has shape {weights.shape}.")
    return weights
