"""How usual a region is among those that a model was trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np

from sthist._settings import logger
from sthist.training.regression.features import standards

if TYPE_CHECKING:
    from collections.abc import Mapping

PREFIX = "familiarity."
"""Before the names of its arrays among the weights of a model."""

MOST_REFERENCES, MOST_COMPONENTS = 2000, 32
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

    mean: np.ndarray  # (d,) of the features, and what brings them to components, (d, k)
    components: np.ndarray
    references: np.ndarray  # (m, k)
    distances: np.ndarray  # (m,) of the references from each other, sorted

    @classmethod
    def of_training(cls, features: np.ndarray, groups: np.ndarray, *, seed: int = 0) -> Self:
        """Keep some rows (n, d) of a training; ``groups`` (n,) says which belong together."""
        from sklearn.decomposition import PCA

        rng = np.random.default_rng([seed, len(features)])
        some = np.sort(rng.permutation(len(features))[:MOST_REFERENCES])
        mean, deviation = standards(features[some])
        standard = ((features[some] - mean) / deviation).astype(np.float64)
        n = min(MOST_COMPONENTS, *standard.shape)
        found = PCA(n, svd_solver="full").fit(standard)
        components = (found.components_.T / deviation[:, None]).astype(np.float32)
        references = ((features[some] - mean) @ components).astype(np.float32)
        return cls(mean, components, references, np.sort(_between_groups(references, groups[some])))

    @classmethod
    def from_weights(cls, weights: Mapping[str, np.ndarray]) -> Self | None:
        """As a model keeps it; None where it has none."""
        names = ("mean", "components", "references", "distances")
        if any(PREFIX + name not in weights for name in names):
            return None
        return cls(*(weights[PREFIX + name] for name in names))

    def weights(self) -> dict[str, np.ndarray]:
        """Arrays for a model to keep."""
        return {PREFIX + name: np.asarray(value, np.float32) for name, value in vars(self).items()}

    def of(self, features: np.ndarray) -> np.ndarray:
        """Familiarity of regions (n, d), (n,) float32 from 0 to 1."""
        from sklearn.metrics import pairwise_distances_argmin_min

        _, nearest = pairwise_distances_argmin_min((features - self.mean) @ self.components, self.references)
        below = np.searchsorted(self.distances, nearest, side="left")
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
