"""How far each output of a predictor can be trusted: its score on held-out rows, beside what knows nothing."""

from __future__ import annotations

from typing import Any

import numpy as np

from sthist.metrics import gene_pearson

SHUFFLES = 100
"""Times that predictions are exchanged between rows to see what chance reaches."""

CHANCE = 0.975
"""Part of the shuffled scores that an output has to surpass to be trusted."""


def output_scores(
    truth: np.ndarray,
    predicted: np.ndarray,
    mean: np.ndarray,
    sample: np.ndarray,
    mask: np.ndarray | None = None,
    *,
    seed: int = 0,
) -> dict[str, list[Any]]:
    """Scores of each output as plain values: None where a correlation is not defined.

    ``truth``, ``predicted`` and ``mean``, that of the rows that were trained on, are (n, outputs); ``mask`` is False
    where nothing was measured. Correlations are across the rows of a sample, averaged over samples with their numbers
    of rows as weights: differences between samples do not count. In the null, predictions are those of other rows of
    the same sample, as if their tiles had been exchanged.
    """
    score = gene_pearson(truth, predicted, mask=mask, groups=sample)
    null = _shuffled_scores(truth, predicted, mask, sample, seed)
    chance = _quantile(null)
    there = np.ones(truth.shape, bool) if mask is None else mask
    n = np.maximum(there.sum(axis=0), 1)
    return {
        "pearson": _plain(score),
        "pearson_null": _plain(chance),
        "trusted": (score > chance).tolist(),
        "l1": _plain((np.abs(predicted - truth) * there).sum(axis=0) / n),
        "l1_of_mean": _plain((np.abs(mean - truth) * there).sum(axis=0) / n),
    }


def _shuffled_scores(
    truth: np.ndarray, predicted: np.ndarray, mask: np.ndarray | None, sample: np.ndarray, seed: int
) -> np.ndarray:
    """Correlations of predictions that were exchanged within samples, (shuffles, outputs)."""
    rng = np.random.default_rng([seed, SHUFFLES])
    by_sample = np.argsort(sample, kind="stable")
    mixed = np.empty_like(predicted)
    scores = np.empty((SHUFFLES, truth.shape[1]))
    for number in range(SHUFFLES):
        mixed[by_sample] = predicted[np.lexsort((rng.random(len(sample)), sample))]
        scores[number] = gene_pearson(truth, mixed, mask=mask, groups=sample)
    return scores


def _quantile(scores: np.ndarray) -> np.ndarray:
    """What only chance reaches, (outputs,); NaN where no correlation is defined."""
    defined = np.isfinite(scores).all(axis=0)
    quantile = np.full(scores.shape[1], np.nan)
    quantile[defined] = np.quantile(scores[:, defined], CHANCE, axis=0)
    return quantile


def _plain(values: np.ndarray) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in values]
