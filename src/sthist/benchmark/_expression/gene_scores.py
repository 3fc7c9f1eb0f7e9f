"""Scores of predicted expression as one row of a table, and what drawing spots or slides anew makes of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sthist.metrics import expression as score

if TYPE_CHECKING:
    from collections.abc import Sequence

LEAST_GROUPS = 5
"""Of fewer groups spots are drawn: few groups have few ways to be drawn."""

BLOCK = 512
"""Genes at a time."""

NOT_KEPT = ("n_spots_undefined", "ssim_mean", "ceiling_mean")


def score_row(
    truth: np.ndarray,
    predicted: np.ndarray,
    mask: np.ndarray | None,
    sample: np.ndarray,
    training_mean: np.ndarray,
    metrics: Sequence[str],
    log_counts: np.ndarray | None,
) -> dict[str, float]:
    """All scores of a set of genes; correlations of genes are taken within each slide."""
    summary = score(
        truth,
        predicted,
        mask=mask,
        groups=sample,
        metrics=metrics,
        training_mean=training_mean,
        given=log_counts,
    ).summary.drop(list(NOT_KEPT), errors="ignore")
    row: dict[str, float] = summary.to_dict()
    row["beyond_counts"] = row.pop("pearson_given_mean", np.nan)
    for name in ("n_spots", "n_genes", "n_genes_undefined", "n_genes_constant"):
        row[name] = int(row[name])
    return row


def unit_of(groups: np.ndarray, sample: np.ndarray) -> tuple[str, np.ndarray]:
    """What is drawn anew, and which of these each row is of: groups, or slides, where there are enough; else rows."""
    for name, each in (("groups", groups), ("slides", sample)):
        values, unit = np.unique(each, return_inverse=True)
        if len(values) >= LEAST_GROUPS:
            return name, unit
    return "spots", np.arange(len(groups))


def interval(drawn: np.ndarray) -> tuple[float, float]:
    """The middle 95 % of what was drawn; NaN where nothing is defined."""
    if np.isnan(drawn).all():
        return np.nan, np.nan
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def drawn_means(
    truth: np.ndarray,
    predicted: np.ndarray,
    mask: np.ndarray | None,
    sample: np.ndarray,
    unit: np.ndarray,
    n_boot: int,
    seed: int,
) -> np.ndarray:
    """The gene-wise mean Pearson correlation of each draw of rows, or of groups of rows, (n_boot,)."""
    return weighted_means(truth, predicted, mask, sample, drawn_weights(unit, n_boot, seed))


def drawn_weights(unit: np.ndarray, n_boot: int, seed: Any) -> np.ndarray:
    """How often each row is in each draw of units, such as groups of rows, (n_boot, n) float32."""
    rng, n_units = np.random.default_rng(seed), int(unit.max()) + 1
    draws = np.array([np.bincount(rng.integers(n_units, size=n_units), minlength=n_units) for _ in range(n_boot)])
    return draws[:, unit].astype(np.float32)  # type: ignore[no-any-return]


def weighted_means(
    truth: np.ndarray, predicted: np.ndarray, mask: np.ndarray | None, sample: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """The gene-wise mean Pearson correlation with rows weighted in one way or another, (n_boot,)."""
    n_boot = len(weights)
    total, n = np.zeros(n_boot), np.zeros(n_boot)
    for start in range(0, truth.shape[1], BLOCK):
        part = slice(start, start + BLOCK)
        own = None if mask is None else mask[:, part]
        value = _drawn(truth[:, part], predicted[:, part], own, sample, weights)
        total += np.nansum(value, axis=1)
        n += np.isfinite(value).sum(axis=1)
    return np.divide(total, n, out=np.full(n_boot, np.nan), where=n > 0)


def _drawn(
    truth: np.ndarray, predicted: np.ndarray, mask: np.ndarray | None, sample: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Pearson correlation of each draw and gene, (draws, genes): within slides, which count by their rows.

    A constant prediction counts as 0, and a constant truth is NaN, as of ``metrics.expression``.
    """
    total, weight = np.zeros((len(weights), truth.shape[1])), np.zeros((len(weights), truth.shape[1]))
    for each in np.unique(sample):
        mine = np.flatnonzero(sample == each)
        w = weights[:, mine]
        n = w.sum(axis=1, keepdims=True)
        there = np.ones(truth.shape[1], bool) if mask is None else mask[mine].all(axis=0)
        x, y = (values[mine] - values[mine].mean(axis=0) for values in (truth, predicted))
        with np.errstate(invalid="ignore", divide="ignore"):
            mean_x, mean_y = w @ x / n, w @ y / n
            spread_x, spread_y = w @ (x * x) / n - mean_x**2, w @ (y * y) / n - mean_y**2
            value = (w @ (x * y) / n - mean_x * mean_y) / np.sqrt(spread_x * spread_y)
        varies = (spread_x > _least(x)) & there
        known = varies & (spread_y > _least(y))
        total += np.where(known, np.clip(value, -1, 1) * n, 0)
        weight += np.where(varies, n, 0)
    return np.divide(total, weight, out=np.full(total.shape, np.nan), where=weight > 0)


def _least(centred: Any) -> np.ndarray:
    """What a variance of float32 exceeds, where there is any."""
    return np.asarray(1e-6 * (centred**2).mean(axis=0) + 1e-12)
