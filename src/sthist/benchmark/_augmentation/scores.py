"""Scores of one predictor on the spots that test: errors, correlations, and classes of expression."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.stats import rankdata

from sthist.benchmark._expression.gene_scores import drawn_weights, weighted_means

CLUSTERS, RESTARTS = 4, 10
"""Clusters of expression, and starts of k-means: one start can end in a poor place."""

SPOTS_PER_CLUSTER = 4
"""Of fewer training spots than that many for each, there are fewer clusters."""

LEAST_UNITS = 5
"""Of fewer blocks spots are drawn: few blocks have few ways to be drawn."""

N_BOOT = 200

DRAWN = ("mae", "pearson", "accuracy")
"""Scores that are computed of each draw of the test spots, too."""

METRICS = ("mae", "pearson", "accuracy", "f1", "auc_ovr", "auc_ovo")


@dataclass(frozen=True, eq=False)
class Classes:
    """Clusters of the expression of the training spots: a class of a spot is the nearest of their centroids."""

    mean: np.ndarray  # (genes,) and standard deviation, by which genes are standardised
    scale: np.ndarray
    centroids: np.ndarray  # (k, genes)

    @classmethod
    def of(cls, expression: np.ndarray, seed: int) -> Classes:
        """K-means of the standardised expression of training spots, (n, genes)."""
        from sklearn.cluster import KMeans
        from sklearn.exceptions import ConvergenceWarning

        mean, scale = expression.mean(axis=0), expression.std(axis=0)
        scale = np.where(scale > 0, scale, 1)
        k = max(2, min(CLUSTERS, len(expression) // SPOTS_PER_CLUSTER))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # spots that are all alike
            fitted = KMeans(k, n_init=RESTARTS, random_state=seed).fit((expression - mean) / scale)
        return cls(mean, scale, fitted.cluster_centers_)

    def distances(self, expression: np.ndarray) -> np.ndarray:
        """Squared distance of spots to each centroid, (n, k)."""
        standard = (expression - self.mean) / self.scale
        return np.stack([((standard - each) ** 2).sum(axis=1) for each in self.centroids], axis=1)


class Scorer:
    """Scores predictions of the test spots."""

    def __init__(
        self, truth: np.ndarray, sample: np.ndarray, unit: np.ndarray, classes: Classes, seed: tuple[int, ...]
    ) -> None:
        self.truth, self.sample, self.classes = truth, sample, classes
        self.labels = classes.distances(truth).argmin(axis=1)
        unit = unit if unit.max() + 1 >= LEAST_UNITS else np.arange(len(unit))
        drawn = drawn_weights(unit, N_BOOT, seed)
        self.weights = np.concatenate([np.ones((1, len(unit)), np.float32), drawn]).astype(np.float64)

    def __call__(self, predicted: np.ndarray) -> tuple[dict[str, float], np.ndarray]:
        """Scores by name, and those of each draw, (scores that are drawn, draws)."""
        from sklearn.metrics import f1_score

        far = self.classes.distances(predicted)
        found = far.argmin(axis=1)
        total = self.weights.sum(axis=1)
        drawn = np.stack(
            [
                self.weights @ np.abs(predicted - self.truth).mean(axis=1, dtype=np.float64) / total,
                weighted_means(self.truth, predicted, None, self.sample, self.weights),
                self.weights @ (found == self.labels) / total,
            ]
        )
        scores = dict(zip(DRAWN, drawn[:, 0].tolist(), strict=True))
        present = np.unique(self.labels)
        scores["f1"] = float(f1_score(self.labels, found, labels=present, average="macro", zero_division=0))
        scores["auc_ovr"] = _one_against_rest(self.labels, far)
        scores["auc_ovo"] = _one_against_one(self.labels, far)
        return scores, drawn[:, 1:].astype(np.float32)


def _one_against_rest(labels: np.ndarray, far: np.ndarray) -> float:
    """Mean area under the ROC curve of each class, by how much nearer its centroid is than the next."""
    nearer = [np.delete(far, code, axis=1).min(axis=1) - far[:, code] for code in range(far.shape[1])]
    return _mean([_auc(labels == code, score) for code, score in enumerate(nearer)])


def _one_against_one(labels: np.ndarray, far: np.ndarray) -> float:
    """Mean area under the ROC curve of each two classes, on their spots, by which of their centroids is nearer."""
    found = []
    for one, other in combinations(np.unique(labels).tolist(), 2):
        mine = np.isin(labels, [one, other])
        found.append(_auc(labels[mine] == other, far[mine, one] - far[mine, other]))
    return _mean(found)


def _auc(positive: np.ndarray, score: np.ndarray) -> float:
    """Area under the ROC curve, by ranks, as scikit-learn takes long for many small ones; NaN of one class alone."""
    n, n_others = int(positive.sum()), int((~positive).sum())
    if not n or not n_others:
        return float("nan")
    return float((rankdata(score)[positive].sum() - n * (n + 1) / 2) / (n * n_others))


def _mean(values: list[float]) -> float:
    known = [value for value in values if np.isfinite(value)]
    return float(np.mean(known)) if known else float("nan")
