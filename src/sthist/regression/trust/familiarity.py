"""How usual a region is among those that a model was trained on."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Self

import numpy as np

from sthist._settings import logger
from sthist.regression.data.features import standards

if TYPE_CHECKING:
    from collections.abc import Mapping

PREFIX = "familiarity."
"""Before the names of its arrays among the weights of a model."""

MOST_REFERENCES, MOST_COMPONENTS = 2000, 32
ROWS_AT_ONCE = 8192
STRANGE = 0.025
"""Familiarity below which a region is unlike what the model was trained on."""


@dataclass(frozen=True, eq=False)
class Familiarity:
    """Rows of the training that others are compared with.

    Distances are between standardised features on their principal components. A region's is that to the row nearest to
    it; its familiarity is the part of the training's rows that are as far or farther from the nearest row of another
    group, such as another patient: 1 for a copy of a row, one half for what is as usual as the training's own, 0 for
    what is farther away than any of them.
    """

    mean: np.ndarray  # (d,) of the features
    scale: np.ndarray  # (d,) standard deviation
    components: np.ndarray  # (d, k) of the standardised features
    references: np.ndarray  # (m, k + 1) in components, and last how far off them: what no component shows counts, too
    distances: np.ndarray  # (m,) of the references from each other, sorted

    @classmethod
    def of_training(cls, features: np.ndarray, groups: np.ndarray, *, seed: int = 0) -> Self:
        """Keep some rows (n, d) of a training; ``groups`` (n,) says which belong together."""
        from sklearn.decomposition import PCA

        rng = np.random.default_rng([seed, len(features)])
        some = np.sort(rng.permutation(len(features))[:MOST_REFERENCES])
        mean, scale = standards(features[some])
        standard = ((features[some] - mean) / scale).astype(np.float64)
        n = min(MOST_COMPONENTS, *standard.shape)
        components = PCA(n, svd_solver="full").fit(standard).components_.T.astype(np.float32)
        references = _in_components(standard, components).astype(np.float32)
        return cls(mean, scale, components, references, np.sort(_between_groups(references, groups[some])))

    @classmethod
    def from_weights(cls, weights: Mapping[str, np.ndarray]) -> Self | None:
        """As a model keeps it; None where it has none."""
        names = [PREFIX + each.name for each in fields(cls)]
        if any(name not in weights for name in names):
            return None
        return cls(*(weights[name] for name in names))

    def weights(self) -> dict[str, np.ndarray]:
        """Arrays for a model to keep."""
        return {PREFIX + name: np.asarray(value, np.float32) for name, value in vars(self).items()}

    def of(self, features: np.ndarray) -> np.ndarray:
        """Familiarity of regions (n, d), (n,) float32 from 0 to 1."""
        from sklearn.metrics import pairwise_distances_argmin_min

        if features.ndim != 2 or features.shape[1] != len(self.mean):
            raise ValueError(
                f"Features have shape {features.shape}; the model was trained on {len(self.mean)} of each region. Are "
                "they of the same encoder?"
            )
        nearest = np.empty(len(features))
        for start in range(0, len(features), ROWS_AT_ONCE):
            part = slice(start, start + ROWS_AT_ONCE)
            standard = (features[part].astype(np.float64) - self.mean) / self.scale
            places = _in_components(standard, self.components)
            nearest[part] = pairwise_distances_argmin_min(places, self.references.astype(np.float64))[1]
        below = np.searchsorted(self.distances, nearest.astype(np.float32), side="left")
        return (1 - below / len(self.distances)).astype(np.float32)


def say_strange(familiarity: np.ndarray, where: str) -> None:
    """Warn where most of a slide is unlike anything that a model was trained on."""
    strange = familiarity < STRANGE
    if len(strange) and strange.mean() > 0.5:
        logger.warning(
            "%s: %d of %d regions are unlike anything that the model was trained on (familiarity below %g): their "
            "predictions are not to be trusted. Stain, scanner, tissue or scale may be other ones.",
            where[0].upper() + where[1:],
            int(strange.sum()),
            len(strange),
            STRANGE,
        )


def _in_components(standard: np.ndarray, components: np.ndarray) -> np.ndarray:
    """Standardised features in principal components, and last their distance from these."""
    inside = standard @ components
    off = (standard**2).sum(axis=1) - (inside**2).sum(axis=1)
    return np.column_stack([inside, np.sqrt(np.maximum(off, 0))])


def _between_groups(references: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Distance of each row from the nearest of another group or, of a single group, from the nearest other row."""
    from sklearn.metrics import pairwise_distances

    distances = pairwise_distances(references)
    same = groups[:, None] == groups[None]
    if same.all():
        same = np.eye(len(groups), dtype=bool)
    distances[same] = np.inf
    nearest = distances.min(axis=1)
    return np.asarray(nearest[np.isfinite(nearest)], np.float32)
