"""A linear layer on stored embeddings, solved exactly: logistic regression, its penalty chosen by held-out groups."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist._settings import logger
from sthist.training.splits import validation_folds

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sthist.systems.annotation.options import AnnotatorTraining
    from sthist.training.splits import Grouping

STRENGTHS = tuple(float(10.0**exponent) for exponent in np.arange(-3, 2.01, 0.5))
"""Inverse penalties that are tried, the strongest penalty first."""

UNCHOSEN = 1.0
"""Where no group can be spared to choose one: that of scikit-learn."""

WORSE = 2
"""Rises of the loss in a row after which no weaker penalty is tried: these take longest, and fit noise."""

MOST_STEPS = 500


@dataclass(frozen=True, eq=False)
class Fitted:
    """What training gave."""

    weights: dict[str, np.ndarray]  # of an annotator
    rows: Callable[[np.ndarray], np.ndarray]  # from numbers of rows to their embeddings
    notes: dict[str, Any]  # how the weights were chosen, with their validation loss; plain values
    history: list[dict[str, float]]  # numbers of each epoch, or of each penalty


class LinearTask:
    """A linear layer on standardised embeddings.

    ``features``: (n, d) float32; ``n_classes``: number of classes; ``options``: of which class weights count.
    """

    def __init__(self, features: np.ndarray, n_classes: int, options: AnnotatorTraining) -> None:
        self.features, self.n_classes, self.options = features, n_classes, options
        self.described: dict[str, Any] = {}

    def fit_groups(self, codes: np.ndarray, rows: np.ndarray, grouping: Grouping, part: float) -> Fitted:
        """Train on some rows, of which each group in turn says which penalty is best."""
        kept, folds = validation_folds(grouping, codes, rows, part, seed=self.options.seed)
        if not folds and part:
            logger.info("No group can be spared to choose the penalty: it is scikit-learn's default.")
        return self.fit(codes, kept, folds)

    def fit(self, codes: np.ndarray, rows: np.ndarray, folds: Sequence[tuple[np.ndarray, np.ndarray]]) -> Fitted:
        """Train on some rows; pairs of rows that train and validate choose the penalty.

        The weights are the mean of those of all rows and of each pair's: where rows are few, a mean of solutions errs
        less than one, and its probabilities are truer. As it varies less, its penalty is the next weaker one.
        """
        mean, scale = standards(self.features[rows])
        features = (self.features - mean) * scale

        def solver(part: np.ndarray) -> _Solver:
            return _Solver(features[part], codes[part], self.n_classes, self.options.class_weights)

        solvers = [solver(train) for train, _ in folds]
        solved, history = _path(solvers, features, codes, folds)
        best = int(np.argmin([row["validation_loss"] for row in history])) if history else None
        if best is not None and len(folds) > 1:
            best = min(best + 1, len(history) - 1)
        penalty = 1 / UNCHOSEN if best is None else history[best]["penalty"]
        layers = [] if best is None else solved[best]
        layers = [layer for layer, each in zip(layers, solvers, strict=True) if len(each.classes) == self.n_classes]
        if not layers or not any(np.array_equal(train, rows) for train, _ in folds):
            layers.append(solver(rows).layer(1 / penalty))
        layer = np.mean(layers, axis=0)
        weights = {"mean": mean, "scale": scale, "weight": layer[:, :-1], "bias": layer[:, -1]}
        notes = {
            "penalty": penalty,
            "validation_loss": None if best is None else history[best]["validation_loss"],
            "n_validation": sum(len(watched) for _, watched in folds),
        }
        return Fitted(
            {name: np.ascontiguousarray(value, np.float32) for name, value in weights.items()},
            lambda index: self.features[index],
            notes,
            history,
        )


def _path(
    solvers: list[_Solver], features: np.ndarray, codes: np.ndarray, folds: Sequence[tuple[np.ndarray, np.ndarray]]
) -> tuple[list[list[np.ndarray]], list[dict[str, float]]]:
    """Layers of all folds with weaker and weaker penalties, and their losses, until these rise."""

    def loss(layers: list[np.ndarray], side: int) -> float:
        each = zip(layers, solvers, folds, strict=True)
        return float(
            np.concatenate([solver.losses(features, codes, at, fold[side]) for at, solver, fold in each]).mean()
        )

    solved: list[list[np.ndarray]] = []
    history: list[dict[str, float]] = []
    for strength in STRENGTHS if folds else ():
        solved.append([solver.layer(strength) for solver in solvers])
        losses = {"loss": loss(solved[-1], 0), "validation_loss": loss(solved[-1], 1)}
        history.append({"penalty": 1 / strength} | losses)
        last = [row["validation_loss"] for row in history[-WORSE - 1 :]]
        if len(last) > WORSE and last == sorted(last):
            break
    return solved, history


class _Solver:
    """Logistic regressions of the same rows with weaker and weaker penalties, each from where the last one ended."""

    def __init__(self, features: np.ndarray, codes: np.ndarray, n_classes: int, class_weights: Any) -> None:
        from sklearn.linear_model import LogisticRegression

        self.features, self.codes, self.n_classes = features, codes, n_classes
        self.classes = np.unique(codes)
        self._model = LogisticRegression(class_weight=class_weights, max_iter=MOST_STEPS, warm_start=True)

    def layer(self, strength: float) -> np.ndarray:
        """Weights and, in the last column, bias, (n_classes, d + 1); 0 for a class that the rows lack."""
        from sklearn.exceptions import ConvergenceWarning

        layer = np.zeros((self.n_classes, self.features.shape[1] + 1))
        if len(self.classes) == 1:
            return layer
        self._model.set_params(C=strength)
        with warnings.catch_warnings():
            # Near the optimum is near enough; what is held out says so.
            warnings.simplefilter("ignore", ConvergenceWarning)
            self._model.fit(self.features, self.codes)
        solved = np.column_stack([self._model.coef_, self._model.intercept_])
        layer[self.classes] = solved if len(solved) > 1 else np.concatenate([-solved, solved]) / 2  # of two classes
        return layer

    def losses(self, features: np.ndarray, codes: np.ndarray, layer: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Cross-entropy of each row of a class that is known here, all counted alike: so probabilities stay true."""
        from scipy.special import log_softmax

        rows = rows[np.isin(codes[rows], self.classes)]
        scores = features[rows] @ layer[self.classes, :-1].T + layer[self.classes, -1]
        return -log_softmax(scores, axis=1)[np.arange(len(rows)), np.searchsorted(self.classes, codes[rows])]


def standards(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean of each feature, and one over its standard deviation: 0 for constants, which then do not count."""
    mean = features.mean(axis=0, dtype=np.float64)
    deviation = features.std(axis=0, dtype=np.float64)
    constant = is_constant(features)
    return mean.astype(np.float32), np.where(constant, 0, 1 / np.where(constant, 1, deviation)).astype(np.float32)


def is_constant(features: np.ndarray) -> np.ndarray:
    """Which features have one value, but for rounding."""
    spread = features.max(axis=0) - features.min(axis=0)
    return spread <= 1e-6 * np.maximum(np.abs(features).max(axis=0), 1e-30)
