"""How far each output of a predictor can be trusted: its score on held-out rows, beside what knows nothing."""

from __future__ import annotations

from typing import Any

import numpy as np

from sthist.metrics._expression.blocks import Pair, group_rows, rounding
from sthist.metrics._expression.correlation import over_groups, require_spots, spread

SHUFFLES = 100
"""Times that predictions are exchanged between rows to see what chance reaches."""

CHANCE = 0.975
"""Part of the shuffled scores that an output has to surpass to be trusted."""


def output_scores(
    truth: Any,
    predicted: Any,
    mean: np.ndarray,
    sample: np.ndarray,
    mask: np.ndarray | None = None,
    *,
    shuffled: np.ndarray | None = None,
    seed: int = 0,
) -> dict[str, list[Any]]:
    """Scores of each output as plain values: None where a correlation is not defined.

    ``truth``, ``predicted`` and ``mean``, that of the rows that were trained on, are (n, outputs), ``mean`` also
    (outputs,); ``mask`` is False where nothing was measured. Correlations are across the rows of a sample, averaged
    over samples with their numbers of rows as weights (:func:`sthist.metrics.gene_pearson`): differences between
    samples do not count. In the null, predictions are those of other rows of the same sample, as if their tiles had
    been exchanged; what was predicted of exchanged tiles (``shuffled``) counts for it, too, where it scores higher.
    Exchanging takes away that neighbours are alike, so that chance is somewhat more than the null on a slide of few
    and wide structures.
    """
    pair = Pair(truth, predicted, mask)
    require_spots(pair)
    rows = group_rows(sample, pair.shape[0])
    tolerance = rounding(pair.truth), rounding(pair.prediction)
    of_mean = np.broadcast_to(mean, pair.shape)
    deals = _deals(rows, pair.shape[0], seed)
    parts: dict[str, list[np.ndarray]] = {
        name: [] for name in ("pearson", "pearson_null", "trusted", "l1", "l1_of_mean")
    }
    for part, first, second, there in pair.by_genes():
        score, _ = over_groups(first, second, there, rows, tolerance)
        null = _null(first, second, there, rows, tolerance, deals)
        if shuffled is not None:
            other = np.asarray(shuffled[:, part], np.float64)
            null = np.fmax(null, over_groups(first, other, there, rows, tolerance)[0])
        found = (score, null, score > null, _error(first, second, there), _error(first, of_mean[:, part], there))
        for values, each in zip(parts.values(), found, strict=True):
            values.append(each)
    return {name: _plain(np.concatenate(values)) for name, values in parts.items()}


def _null(
    truth: np.ndarray,
    predicted: np.ndarray,
    mask: np.ndarray | None,
    rows: list[np.ndarray],
    tolerance: tuple[float, float],
    deals: list[np.ndarray],
) -> np.ndarray:
    """What only chance reaches, (outputs,); NaN where no correlation is defined."""
    whole = mask is None or all((mask[index] == mask[index[:1]]).all() for index in rows)
    if whole:
        # Rows of mean 0 and variance 1 in each sample, so that a score is a sum of products whatever the exchange.
        first, weight = _standardised(truth, mask, rows, tolerance[0])
        second, _ = _standardised(predicted, mask, rows, tolerance[1])
        mixed = np.empty_like(second)
        scores = np.empty((len(deals), second.shape[1]))
        for row, deal in zip(scores, deals, strict=True):
            np.take(second, deal, axis=0, out=mixed)
            row[:] = np.einsum("ij,ij->j", first, mixed)
        scores /= np.maximum(weight, 1)
        defined = (weight > 0) & (second != 0).any(axis=0)
    else:
        scores = np.array([over_groups(truth, predicted[deal], mask, rows, tolerance)[0] for deal in deals])
        defined = np.isfinite(scores).all(axis=0)
    quantile = np.full(truth.shape[1], np.nan)
    quantile[defined] = np.quantile(scores[:, defined], CHANCE, axis=0)
    return quantile


def _standardised(
    values: np.ndarray, mask: np.ndarray | None, rows: list[np.ndarray], limit: float
) -> tuple[np.ndarray, np.ndarray]:
    """Values of mean 0 and variance 1 in each sample, 0 where they do not vary in it; in how many rows they do."""
    result, weight = np.zeros(values.shape, np.float32), np.zeros(values.shape[1])
    for index in rows:
        part = values[index]
        varies = spread(part, None, 0) > limit * np.abs(part).max(axis=0, initial=0)
        if mask is not None:
            varies &= mask[index[0]]
        apart = part - part.mean(axis=0)
        scale = np.sqrt((apart**2).mean(axis=0))
        result[index] = np.divide(apart, scale, out=np.zeros_like(apart), where=varies & (scale > 0))
        weight += len(index) * varies
    return result, weight


def _deals(rows: list[np.ndarray], n: int, seed: int) -> list[np.ndarray]:
    """For each exchange, whose prediction each row gets: one of its own sample."""
    rng = np.random.default_rng([seed, SHUFFLES])
    deals = np.empty((SHUFFLES, n), int)
    for deal in deals:
        for index in rows:
            deal[index] = rng.permutation(index)
    return list(deals)


def _error(truth: np.ndarray, predicted: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """Mean absolute error of each column, over what was measured."""
    apart = np.abs(predicted - truth)
    if mask is None:
        return apart.mean(axis=0)
    n = mask.sum(axis=0)
    return np.divide((apart * mask).sum(axis=0), n, out=np.full(len(n), np.nan), where=n > 0)


def _plain(values: np.ndarray) -> list[Any]:
    return [None if value != value else value for value in values.tolist()]  # NaN is not itself
