"""Ridge regression on principal components of embeddings: the baseline that every other model has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from sthist.regression.collect import EmbeddingModel
from sthist.regression.data.features import standards
from sthist.regression.model import RegressionConfig

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sthist.regression.data.inputs import Inputs
    from sthist.regression.data.targets import Targets
    from sthist.regression.module import RegressionTraining


@dataclass(frozen=True)
class RidgeConfig(RegressionConfig):
    """Settings of :class:`Ridge` and :class:`CompositionRidge`.

    Attributes
    ----------
    alpha
        Penalty on the squared weights, on components of standardised embeddings; ``"hest"`` for that of the HEST
        benchmark, 100 / (components x outputs), which is next to none.
    n_components
        Number of principal components, fewer where there are fewer rows or dimensions; None for the standardised
        embeddings themselves. 256 are those of the HEST benchmark,
        whose recipe is ``RidgeConfig(alpha="hest", n_components=256)`` (it has no intercept, where this one has).
    rank
        Number of principal components of the training rows' outputs that predictions are made of; None for each output
        on its own. Few components share what genes have in common: on sections of one patient, 5 to 8 predict better
        than the genes do alone, as long as these are expressed well.
    """

    alpha: float | Literal["hest"] = 300.0
    n_components: int | None = 64
    rank: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha != "hest" and not (isinstance(self.alpha, float | int) and 0 < self.alpha < np.inf):
            raise ValueError(f"alpha is {self.alpha!r}; a positive number or 'hest' is needed.")
        for name in ("n_components", "rank"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)!r}; at least 1 is needed.")


class RidgeModel(EmbeddingModel):
    """Linear regression with a penalty, on principal components of stored embeddings; solved exactly, in seconds."""

    config_class: ClassVar[type] = RidgeConfig
    config: RidgeConfig

    def _fit(
        self,
        inputs: Inputs,
        targets: Targets,
        rows: np.ndarray,
        watched: np.ndarray,
        options: RegressionTraining,
        where: dict[str, Any],
    ) -> None:
        features = inputs.take(rows)["spot"]
        mean, deviation = standards(features)
        components = self._components((features - mean) / deviation, options.seed)
        scores = ((features - mean) / deviation) @ components
        weight = np.zeros((components.shape[1], len(targets.names)))
        bias = np.zeros(len(targets.names))
        alpha = self.config.alpha
        alpha = 100 / weight.size if isinstance(alpha, str) else alpha
        # Outputs that the same samples have measured have the same rows, and are solved together.
        for patterns, columns in _alike(targets.measured):
            there = np.isin(targets.sample[rows], np.flatnonzero(patterns))
            if there.any():
                values = targets.values[rows[there]][:, columns]
                directions = _directions(values, self.config.rank, options.seed)
                weight[:, columns], bias[columns] = _solve(scores[there], values, alpha, directions)
        # As one linear map of the embeddings: what is saved is small, and prediction is one product.
        full = (components / deviation[:, None]) @ weight
        self.weights = {
            "weight": full.astype(np.float32),
            "bias": (bias - mean @ full).astype(np.float32),
        }

    def _components(self, features: np.ndarray, seed: int) -> np.ndarray:
        """Directions of the principal components, (d, k) float64."""
        from sklearn.decomposition import PCA

        n = self.config.n_components
        if n is None or n >= min(features.shape):
            n = min(features.shape) if n is not None else None
        if n is None:
            return np.eye(features.shape[1])
        solver = "full" if n > min(features.shape) // 2 else "covariance_eigh"
        solver = "full" if features.shape[1] > 2000 else solver
        fitted = PCA(n, svd_solver=solver, random_state=seed).fit(features.astype(np.float64))
        return np.asarray(fitted.components_.T)

    def _predict(
        self, inputs: Inputs, rows: np.ndarray, batch_size: int, device: str | None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        dim = len(self.weights["weight"])
        for part, batch in inputs.in_order(rows, batch_size):
            features = batch.get("spot")
            if features is None or features.shape[1] != dim:
                shape = None if features is None else features.shape
                raise ValueError(f"This model takes embeddings of {dim} dimensions; these have the shape {shape}.")
            yield part, features @ self.weights["weight"] + self.weights["bias"]

    def _require_weights(self) -> None:
        n = len(self.config.outputs)
        shapes = {name: self.weights[name].shape if name in self.weights else None for name in ("weight", "bias")}
        if shapes["bias"] != (n,) or shapes["weight"] is None or shapes["weight"][1:] != (n,):
            raise ValueError(f"weight and bias have the shapes {shapes}, and there are {n} outputs in config.json.")


def _alike(measured: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Samples that have measured an output, (samples,) bool, and all outputs that are alike in that."""
    patterns, which = np.unique(measured, axis=1, return_inverse=True)
    for number in range(patterns.shape[1]):
        yield patterns[:, number], np.flatnonzero(which.ravel() == number)


def _directions(values: Any, rank: int | None, seed: int) -> np.ndarray | None:
    """Principal components of values (n, outputs) that predictions are made of, (rank, outputs); None for all."""
    from sklearn.decomposition import PCA

    if rank is None or rank >= min(values.shape):
        return None
    return np.asarray(PCA(rank, svd_solver="arpack", random_state=seed).fit(values.astype(np.float64)).components_)


def _solve(
    scores: np.ndarray, values: Any, alpha: float, directions: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Weights and bias, of features (n, k) and values (n, outputs), which may be sparse and stay so."""
    centre, mean = scores.mean(axis=0), np.asarray(values.mean(axis=0), np.float64).ravel()
    centred = scores - centre
    gram = centred.T @ centred + alpha * np.eye(scores.shape[1])
    weight = np.linalg.solve(gram, np.asarray((values.T @ centred).T, np.float64))
    if directions is not None:
        weight = (weight @ directions.T) @ directions
    return weight, mean - centre @ weight
