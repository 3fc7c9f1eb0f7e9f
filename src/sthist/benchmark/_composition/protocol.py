"""Models of composition on one set of slides: split honestly, beside what knows nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist._sample.verbs import verb
from sthist._settings import logger, settings
from sthist.benchmark._composition.scores import score_rows
from sthist.benchmark._predictors.slide_splits import predictor_folds, require_testable, shares_patient
from sthist.benchmark._predictors.trials import Cost, begins, exchanged, require_seeds, tried
from sthist.regression.collect import TileModel
from sthist.regression.data.features import centres_of
from sthist.regression.trust.rehearsal import Rehearsal
from sthist.systems.composition.models import REGISTRY
from sthist.systems.composition.targets import composition_rows, composition_targets

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

    from sthist._tables.composition import Quantity
    from sthist.benchmark._predictors.slide_splits import SlideFold
    from sthist.regression.data.inputs import Inputs
    from sthist.regression.data.targets import Targets
    from sthist.regression.model import RegressionConfig
    from sthist.systems.composition.model import CompositionModel
    from sthist.training.splits import Grouping, Split, Units

MODEL, SHUFFLED, TRAINING_MEAN = "model", "shuffled tiles", "training mean"
"""Methods of a table: what a model says of each row, of other rows of the slide, and what knows no image."""


@verb
def composition(
    data: Any,
    models: str | CompositionModel | RegressionConfig | Sequence[Any] | Mapping[str, Any] | None = None,
    *,
    key: str = "cell_abundance",
    embedding: str | Sequence[str] | Mapping[str, str | Sequence[str]] | None = None,
    split: str | Mapping[str, str] | Split | None = None,
    quantity: Quantity | None = None,
    table: str | None = None,
    image: str | None = None,
    samples: Any = None,
    within: Any = None,
    seeds: Sequence[int] = (0,),
    training: Any = None,
    seed: int | None = None,
    device: str | None = None,
    progress: bool | None = None,
) -> pd.DataFrame:
    """Train models of composition on some slides and score them on others, beside what knows nothing of the image.

    Parameters
    ----------
    data
        A mapping of sample name to SpatialData or AnnData, one slide each; or a single one, with ``split="block"``. To
        train on one study and test on another, ``split`` is a mapping of sample to ``"train"`` or ``"test"``.
    models
        One or several, as of :func:`sthist.tl.train_composition`: names, models or configs, or a mapping of what the
        table is to call each to it. ``"mlp"`` and ``"ridge"`` by default.
    key
        Key in ``obsm`` of the amounts.
    embedding
        As of :func:`sthist.tl.train_composition`; or a mapping of name to such, to compare encoders alone and together:
        each model of embeddings is then trained on each. Models of tiles take none.
    split
        ``"patient"`` (the default: each patient tests once), ``"sample"``, ``"single-slide"``, ``"random-slides"``,
        ``"block"``, or what :func:`sthist.tl.train_composition` takes; :class:`sthist.models.Split` has the folds.
    quantity, table, image, samples, within
        As of :func:`sthist.tl.train_composition`.
    seeds
        Seeds of the trainings.
    training
        A :class:`sthist.models.RegressionTraining`, or a mapping of its fields, for all models.
    seed
        Of folds and shuffling; ``settings.seed`` by default.
    device
        Of torch; ``settings.device`` by default.
    progress
        Show a bar; ``settings.progress`` by default.

    Returns
    -------
    One row per model, embedding, method, fold, seed, slide and type:

    * ``model``, ``embedding`` (the name in the mapping), ``method`` (``"model"``; ``"shuffled tiles"``: the model's
      predictions of other rows of the slide; ``"training mean"``, whose ``model`` is that, too), ``initialization``,
      ``split``, ``fold``, ``test`` (what tests), ``seed``, ``same_patient`` (whether a patient that tests is trained
      on), ``n_train``;
    * ``slide``: one that tests, or ``"all"``, the rows of all pooled; ``type``, or ``"mean"``: the mean over types;
    * ``pearson`` across rows, the CC of Sun, Zhu and Qiu (2025), and ``l1``, the mean absolute error, in the units of
      the amounts; ``n_spots``; ``n_types_undefined`` (constant in the truth, or not measured; in no mean);
    * ``coloc_cosine`` and ``coloc_pearson``, beside means over types: how alike the maps of
      :func:`sthist.tl.colocalization` of truth and prediction are, without the diagonals; a type that is predicted
      constant does not count;
    * ``seconds`` of the training, ``predict_seconds``, ``peak_gb`` (the most memory of the process meanwhile, libraries
      and data included), ``gpu_gb``.

    ``attrs`` hold ``leaks`` (why scores are better than they should be) and ``quantity``.

    Raises
    ------
    KeyError
        If there is no such model, table, composition or embedding.
    ValueError
        If amounts cannot be trained on, a split leaves nothing to train or to test on, or a patient has two spellings.
    TypeError
        If models are none.

    Examples
    --------
    >>> import sthist
    >>> sdata = sthist.datasets.toy("visium", size_um=900)
    >>> sthist.pp.embed(sdata)
    >>> frame = sthist.benchmark.composition(sdata, "ridge", split=sthist.models.Split("block", folds=2))
    >>> means = frame[frame["type"] == "mean"].groupby("method", sort=False)["pearson"].mean()
    >>> list(means.index), bool(means["model"] > means["shuffled tiles"])
    (['training mean', 'model', 'shuffled tiles'], True)
    """
    named = REGISTRY.named(("mlp", "ridge") if models is None else models)
    require_seeds(seeds)
    seed = settings.seed if seed is None else int(seed)
    rows = composition_rows(data, key, table, samples, within)
    targets, found = composition_targets(rows, key, quantity)
    sources = dict(embedding) if isinstance(embedding, Mapping) else {"": embedding}
    trials = []
    for name, model in named.items():
        of_tiles = isinstance(model, TileModel)
        for source, keys in {"": None}.items() if of_tiles else sources.items():
            fresh = model.unfitted()
            inputs = fresh.collect(rows, embedding=keys, image=image, device=device, progress=progress)
            trials.append(_Trial(name, source, fresh, fresh.options(training), inputs))
    size_um = next((each.model.spec.size_um for each in trials if each.model.spec is not None), None)
    units = rows.units(size_um)
    made, grouping, validation, called = predictor_folds(units, "patient" if split is None else split, seed)
    require_testable(units, made)
    centres = centres_of(rows, "places") if units.centres is not None else None
    study = _Study(
        units, targets, centres, made, grouping, called, validation, trials, tuple(seeds), seed, device, progress
    )
    frame = study.run()
    frame.attrs |= {"leaks": grouping.leaks, "quantity": found}
    return frame


@dataclass(frozen=True, eq=False)
class _Trial:
    """A model, and what it is trained on."""

    name: str
    embedding: str
    model: CompositionModel
    options: Any
    inputs: Inputs


@dataclass(frozen=True, eq=False)
class _Study:
    """What is trained how, on which rows, and scored on which others."""

    units: Units
    targets: Targets
    centres: np.ndarray | None  # (n, 2) in µm
    folds: list[SlideFold]
    grouping: Grouping
    split: str
    validation: float
    trials: list[_Trial]
    seeds: tuple[int, ...]
    seed: int
    device: str | None
    progress: bool | None

    def run(self) -> pd.DataFrame:
        """Train and score everything; one tidy frame."""
        import pandas as pd

        rows: list[dict[str, Any]] = []
        for number, fold in enumerate(self.folds):
            where = {"split": self.split, "fold": number, "test": fold.name}
            known = {"same_patient": shares_patient(self.units, fold), "n_train": len(fold.train)}
            mean = np.tile(self.targets.statistics(fold.train)[0], (len(fold.test), 1))
            slides = self.units.sample[fold.test].astype(str)
            scored = self._score(fold, mean, Cost())
            for seed in self.seeds:
                facts: dict[str, Any] = {"model": TRAINING_MEAN, "embedding": "", "method": TRAINING_MEAN}
                rows += [{**facts, "initialization": "", **where, "seed": seed, **known, **each} for each in scored]
            for trial in self.trials:
                for seed in self.seeds:
                    logger.info("Fold %d of %d, %s, seed %d.", number + 1, len(self.folds), trial.name, seed)
                    begun, predicted, cost = self._predict(trial, fold, seed)
                    facts = {"model": trial.name, "embedding": trial.embedding}
                    beside = {"initialization": begun, **where, "seed": seed, **known}
                    mixed = predicted[exchanged(slides, [self.seed, number])]
                    for method, values, took in ((MODEL, predicted, cost), (SHUFFLED, mixed, Cost())):
                        found = self._score(fold, values, took)
                        rows += [{**facts, "method": method, **beside, **each} for each in found]
        return pd.DataFrame(rows)

    def _score(self, fold: SlideFold, predicted: np.ndarray, cost: Cost) -> list[dict[str, Any]]:
        truth, mask = self.targets.dense(fold.test), self.targets.mask(fold.test)
        slides = self.units.sample[fold.test].astype(str)
        places = None if self.centres is None else self.centres[fold.test]
        return [each | vars(cost) for each in score_rows(truth, predicted, mask, slides, self.targets.names, places)]

    def _predict(self, trial: _Trial, fold: SlideFold, seed: int) -> tuple[str, np.ndarray, Cost]:
        """What a model begins from, what it says of the rows that test, and what that took."""
        job = Rehearsal(
            model=trial.model,
            inputs=trial.inputs,
            targets=self.targets,
            scored=self.targets,
            grouping=self.grouping,
            validation=self.validation,
            options=replace(trial.options, seed=seed),
            centres=None if trial.model.config.smooth_um is None else self.centres,
            device=self.device,
            progress=self.progress,
        )
        model, predicted, cost = tried(job, fold)
        return begins(model), predicted, cost
