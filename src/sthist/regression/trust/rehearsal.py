"""What a predictor reaches on groups that it was not trained on, and the training that follows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist._settings import logger
from sthist.regression.data.features import smoothed
from sthist.regression.model import placed
from sthist.regression.trust.familiarity import Familiarity
from sthist.regression.trust.output_scores import output_scores
from sthist.training.splits import validation_part

if TYPE_CHECKING:
    from collections.abc import Callable

    from sthist.regression.data.inputs import Inputs
    from sthist.regression.data.targets import Targets
    from sthist.regression.model import RegressionModel
    from sthist.training.splits import Grouping


LOOKED_AT = 2000
"""Training rows by which it is seen whether anything was learned."""


@dataclass(frozen=True, eq=False)
class Rehearsal:
    """A model that is not trained yet, and all rows that it could be trained on."""

    model: RegressionModel
    inputs: Inputs
    targets: Targets
    scored: Targets  # what predictions are compared with
    grouping: Grouping
    validation: float  # part of the training rows that says when to stop
    options: Any
    centres: np.ndarray | None  # (n, 2) in µm, for models that smooth what they predict
    device: str | None = None
    progress: bool | None = None
    beside: Callable[[np.ndarray], np.ndarray] | None = None
    """Rows behind those of the grouping to train on beside some of these; they are neither watched nor scored."""

    def parts(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of rows that train, those that do and those that say when to stop, where the training asks for such."""
        if self.options.patience is None:
            return rows, rows[:0]
        codes = np.zeros(len(self.targets), int)
        return validation_part(self.grouping, codes, rows, self.validation, seed=self.options.seed)

    def fit(self, rows: np.ndarray, folder: Any = None, *, watched: np.ndarray | None = None) -> RegressionModel:
        """A model that is trained on some rows.

        Where it asks for that, whole groups of these say when to stop, or other rows that are given for it.
        """
        kept, watched = self.parts(rows) if watched is None else (rows, watched)
        if self.beside is not None:
            kept = np.concatenate([kept, self.beside(kept)])
        options = self.options
        if options.patience is not None and not len(watched):
            options = replace(options, patience=None)
        if folder is None:
            options = replace(options, resume=False)
        model = type(self.model)(self.model.config)
        return model.fit(
            self.inputs,
            self.targets,
            rows=kept,
            watched=watched,
            training=options,
            folder=folder,
            device=self.device,
            progress=self.progress,
        )

    def predict(self, model: RegressionModel, rows: np.ndarray) -> np.ndarray:
        """What a model says of some rows, (n, outputs), smoothed over these rows where it does so."""
        values = placed(model.predict_batches(self.inputs, rows, device=self.device), rows)
        if model.config.smooth_um is None:
            return values
        assert self.centres is not None
        return smoothed(values, self.centres[rows], self.targets.sample[rows], model.config.smooth_um)

    def held_out(self, pairs: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows that were tested, what was predicted of them, and the mean of the rows that each fold trained on."""
        tested, predicted, means = [], [], []
        for fold, (train, test) in enumerate(pairs):
            model = self.fit(train)
            tested.append(test)
            predicted.append(self.predict(model, test))
            means.append(np.tile(self.targets.statistics(train)[0], (len(test), 1)))
            logger.info("Fold %d of %d: trained on %d rows, tested on %d.", fold + 1, len(pairs), len(train), len(test))
        return np.concatenate(tested), np.concatenate(predicted), np.concatenate(means)

    def report(self, pairs: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, Any]:
        """Scores of each output on rows that were held out, and of what knows nothing; plain values."""
        rows, predicted, means = self.held_out(pairs)
        truth, mask = self.scored.dense(rows), self.scored.mask(rows)
        scores = output_scores(truth, predicted, means, self.targets.sample[rows], mask, seed=self.options.seed)
        return {**scores, "n_tested": len(rows), "n_folds": len(pairs)}

    def keep_familiarity(self, model: RegressionModel, rows: np.ndarray) -> None:
        """Let a model know what is usual among the rows that it was trained on."""
        features, of_row = model.references(self.inputs, rows, seed=self.options.seed, device=self.device)
        kept = Familiarity.of_training(features, self.grouping.groups[rows][of_row], seed=self.options.seed)
        model.weights |= kept.weights()

    def require_learned(self, model: RegressionModel, rows: np.ndarray) -> None:
        """Warn where the rows that a model was trained on are predicted no better than by their mean."""
        some = np.sort(np.random.default_rng(self.options.seed).permutation(rows)[:LOOKED_AT])
        truth, mask = self.targets.dense(some), self.targets.mask(some)
        there = np.ones(truth.shape, bool) if mask is None else mask
        error = float(((self.predict(model, some) - truth) ** 2)[there].mean())
        of_mean = float(((self.targets.statistics(rows)[0] - truth) ** 2)[there].mean())
        if error >= of_mean:
            logger.warning(
                "On %d of the rows that it was trained on, the model errs by %.4g (squared, on average), their mean "
                "alone by %.4g: it has learned nothing. Train it for longer, with another learning rate, or on other "
                "features.",
                len(some),
                error,
                of_mean,
            )
