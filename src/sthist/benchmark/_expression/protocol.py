"""Models of expression on one set of slides: split honestly, beside what knows nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sthist._messages import plain
from sthist._sample.verbs import verb
from sthist._settings import logger, settings
from sthist._tables.genes import match_names, names_of_list, names_of_table
from sthist.benchmark._expression.gene_scores import drawn_means, interval, score_row, unit_of
from sthist.benchmark._expression.gene_sets import PANEL, gene_sets, panel, require_known, training_tables
from sthist.benchmark._expression.nulls import at_same_place, counts_of, from_middle, nuclei_of, one_map
from sthist.benchmark._predictors.slide_splits import RANDOM, predictor_folds, require_testable, shares_patient
from sthist.benchmark._predictors.trials import Cost, begins, exchanged, require_seeds, tried
from sthist.regression.collect import TileModel
from sthist.regression.data.expression import DRAWS, chosen, expression_targets, targets_at_depth
from sthist.regression.data.features import centres_of
from sthist.regression.rows import expression_rows
from sthist.regression.trust.rehearsal import Rehearsal
from sthist.systems.expression.models import REGISTRY

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pandas as pd
    from anndata import AnnData

    from sthist.benchmark._predictors.slide_splits import SlideFold
    from sthist.regression.data.inputs import Inputs
    from sthist.regression.data.targets import Targets
    from sthist.regression.model import RegressionConfig
    from sthist.systems.expression.model import ExpressionModel
    from sthist.training.rows import SampleRows
    from sthist.training.splits import Grouping, Split, Units

MODEL, SHUFFLED = "model", "shuffled tiles"
"""Methods of a table: what a model says of each row, and of other rows."""

MEAN, ONE_MAP, PLACES = "training mean", "one map", "places"
"""Methods that know nothing of single genes, or no image; they are models by themselves."""

GENE_SETS = ("hvg50", "hvg500", "svg50", "svg500", "top250", PANEL)
SCORED = ("spearman", "spot_pearson")
GENST_MODELS = ("genst", "stnet", "bleep", "clip", "deepspot", "mlp")
GENST_TRAINING = {"optimizer": "radam", "lr": 1e-4, "weight_decay": 1e-4, "epochs": 100, "patience": 100}
"""The paper's, for all models; of the epochs, the one with the lowest validation loss is kept."""

DOMINATED = ("spot_pearson", "pearson_flattened")
"""Scores that whoever knows the genes' means has high."""


@verb
def expression(
    data: Any,
    models: str | ExpressionModel | RegressionConfig | Sequence[Any] | Mapping[str, Any] | None = None,
    *,
    split: str | Mapping[str, str] | Split | None = None,
    protocol: Literal["genst"] | None = None,
    gene_sets: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
    genes: Sequence[str] | int | None = None,
    embedding: str | Sequence[str] | None = None,
    table: str | None = None,
    image: str | None = None,
    samples: Any = None,
    within: Any = None,
    depth: float | None = None,
    seeds: Sequence[int] = (0,),
    training: Any = None,
    n_boot: int = 500,
    seed: int | None = None,
    device: str | None = None,
    progress: bool | None = None,
) -> pd.DataFrame:
    """Train models of expression on some slides, and score them on others, beside what knows nothing of the image.

    All that is learned from data is learned in each fold from its training rows: which genes there are and which of
    them vary, how features are standardised, when to stop. The gene-wise Pearson correlation across the spots of a
    slide is the score that says whether a model knows where a gene is; scores across genes, and of all values as one
    vector, are high for whoever knows the genes' means, as the rows of the training mean show.

    Parameters
    ----------
    data
        A mapping of sample name to SpatialData or AnnData, one slide each; or a single one, with ``split="block"``.
    models
        One or several, as of :func:`sthist.tl.train_expression`: names, models or configs, or a mapping of what the
        table is to call each to it. ``"ridge"`` by default.
    split
        ``"patient"`` (the default: each patient tests once), ``"sample"`` (each slide does), ``"single-slide"`` (train
        on each slide alone, test on all others), ``"random-slides"`` (70 % of the slides train, 10 % say when to stop,
        20 % test, at random, five times: test sets overlap), ``"block"`` (squares of tissue, with a gap), or what
        :func:`sthist.tl.train_expression` takes. ``sthist.models.Split("random-slides", folds=3)`` says how many folds
        or repeats.
    protocol
        ``"genst"``: as that paper compares. Random slides, its panel, RAdam with learning rate and weight decay 1e-4
        for 100 epochs; and, unless ``models`` says otherwise, its models. Its headline is ``spot_pearson``.
    gene_sets
        Which genes are scored together, chosen from the training rows among those that are predicted:
        ``"hvg<n>"``, ``"svg<n>"``, ``"variance<n>"`` and ``"top<n>"``, by number, as :func:`sthist.pp.gene_set` has
        them (the last is its ``"expressed"``), and ``"panel"``, all of them; or a mapping of name to genes. By default
        50 and 500 highly variable and spatial ones, the 250 most expressed, and the panel. Sets larger than the panel
        are left out, which ``attrs["left_out"]`` says.
    genes
        Genes to predict: a list, or the number of those most expressed in the training rows; by default the panel of
        :func:`sthist.pp.gene_panel` on these rows. What a test slide lacks is counted, and not scored.
    embedding, table, image, samples, within
        As of :func:`sthist.tl.train_expression`; models of tiles take no ``embedding``, but their own backbone.
    depth
        As of :func:`sthist.tl.train_expression`: models are trained on what slides of so many counts a row would show.
        Genes are chosen, and predictions are scored, on expression as it was measured.
    seeds
        Seeds of the trainings.
    training
        A :class:`sthist.models.RegressionTraining`, or a mapping of its fields, for all models.
    n_boot
        Draws of the intervals; 0 for none.
    seed
        Of folds, shuffling and intervals; ``settings.seed`` by default.
    device
        Of torch; ``settings.device`` by default.
    progress
        Show a bar; ``settings.progress`` by default.

    Returns
    -------
    One row per model, method, fold, seed and gene set:

    * ``model``, ``method``, ``initialization`` (what weights or features it starts from), ``split``, ``fold``, ``test``
      (what tests), ``seed``, ``genes`` (the set), ``same_patient`` (whether a patient that tests is trained on);
    * gene-wise scores within slides: ``pearson_mean``, its 95 % interval ``low`` to ``high`` over draws of what
      ``drawn`` says (groups or slides where there are at least five, else spots, which are alike and make it narrow),
      ``pearson_median``, ``beyond_counts`` (the mean correlation given the logarithm of a row's counts; NaN without raw
      counts), ``spearman_mean``, ``spearman_median``;
    * errors: ``l1``, ``rmse``;
    * scores that are dominated by the genes' means: ``spot_pearson``, ``pearson_flattened``, and what the means of the
      test rows alone reach, ``spot_pearson_of_gene_means``, ``pearson_flattened_of_gene_means``; with the protocol
      also ``spearman_top<n>`` and ``recall_top<n>``;
    * ``n_genes``, ``n_genes_undefined`` (not measured on the test slides, or constant there; in no mean),
      ``n_genes_constant`` (constant in the prediction alone; 0 in the means), ``n_spots``, ``n_train``;
    * ``seconds`` of the training, ``predict_seconds``, ``peak_gb`` (the most memory of the process meanwhile, libraries
      and data included), ``gpu_gb``.

    Methods are ``"model"``, and, as what is to be beaten: ``"shuffled tiles"``, the model's predictions of other rows
    of the slide; and, under their own names as models, ``"training mean"``, the same everywhere; ``"places"``, the
    Gaussian mean (400 µm) of training rows at the same place of slides that are laid on each other by their middles,
    which knows no image; and ``"one map"``, the number of nuclei for all genes alike, where an embedding of
    ``"morphology"`` is stored, which knows no gene.

    ``attrs`` hold ``leaks`` (why scores are better than they should be), ``gene_sets`` (the genes, by fold and name),
    ``left_out`` and ``dominated_by_gene_means``.

    Raises
    ------
    KeyError
        If there is no such model, table, gene or embedding.
    ValueError
        If samples share no genes, a test slide has none of the genes, or one row; if a split leaves nothing to train or
        test on, or a patient has two spellings.
    TypeError
        If models or gene sets are none.

    Examples
    --------
    >>> import sthist
    >>> sdata = sthist.datasets.toy("visium", size_um=900)
    >>> sthist.pp.embed(sdata)
    >>> split = sthist.models.Split("block", folds=2)
    >>> frame = sthist.benchmark.expression(sdata, "ridge", split=split, gene_sets=["top50"], n_boot=20)
    >>> means = frame.groupby("method", sort=False)["pearson_mean"].mean()
    >>> list(means.index), bool(means["model"] > means["shuffled tiles"])
    (['training mean', 'places', 'one map', 'model', 'shuffled tiles'], True)
    """
    if protocol not in (None, "genst"):
        raise ValueError(f"protocol is {protocol!r}; it is 'genst', or None.")
    if protocol is not None:
        models = GENST_MODELS if models is None else models
        split = RANDOM if split is None else split
        gene_sets = (PANEL,) if gene_sets is None else gene_sets
        training = {**GENST_TRAINING, **(training or {})} if isinstance(training, Mapping | None) else training
    named = REGISTRY.named("ridge" if models is None else models)
    sets = GENE_SETS if gene_sets is None else [gene_sets] if isinstance(gene_sets, str) else gene_sets
    require_known(sets)
    require_seeds(seeds)
    seed = settings.seed if seed is None else int(seed)
    trials = {name: (fresh, fresh.options(training)) for name, fresh in named.items()}
    rows = expression_rows(data, table, samples, within)
    targets = _pool(rows, genes)
    trained = targets if depth is None else targets_at_depth(rows, targets.names, depth, DRAWS, seed)
    inputs = {
        name: fresh.collect(
            rows,
            embedding=None if isinstance(fresh, TileModel) or fresh.makes_maps else embedding,
            image=image,
            device=device,
            progress=progress,
        )
        for name, (fresh, _) in trials.items()
    }
    size_um = next((fresh.spec.size_um for fresh in named.values() if fresh.spec is not None), None)
    units = rows.units(size_um)
    made, grouping, validation, called = predictor_folds(units, "patient" if split is None else split, seed)
    require_testable(units, made)
    counts = counts_of(rows)
    study = _Study(
        units=units,
        targets=targets,
        trained=trained,
        log_counts=None if counts is None else np.log1p(counts),
        nuclei=nuclei_of(rows, embedding),
        genes=genes,
        centres=centres_of(rows, "places") if units.centres is not None else None,
        sets=sets,
        folds=made,
        grouping=grouping,
        split=called,
        validation=validation,
        trials=trials,
        inputs=inputs,
        seeds=tuple(seeds),
        metrics=SCORED if protocol is None else (*SCORED, "top_spearman", "recall"),
        n_boot=n_boot,
        seed=seed,
        device=device,
        progress=progress,
    )
    study.require_genes()
    return study.run()


@dataclass(frozen=True, eq=False)
class _Study:
    """What is trained how, on which rows, and scored on which others."""

    units: Units
    targets: Targets  # all genes that any sample has, as they were measured
    trained: Targets  # the same, as models are trained on them
    log_counts: np.ndarray | None  # (n,) of each row; None where there are no raw counts
    nuclei: np.ndarray | None  # (n,) how many each row has; None where no embedding says it
    genes: Any  # as of the verb
    centres: np.ndarray | None  # (n, 2) in µm
    sets: Any
    folds: list[SlideFold]
    grouping: Grouping
    split: str
    validation: float
    trials: dict[str, tuple[ExpressionModel, Any]]
    inputs: dict[str, Inputs]
    seeds: tuple[int, ...]
    metrics: tuple[str, ...]
    n_boot: int
    seed: int
    device: str | None
    progress: bool | None

    def tables(self, fold: SlideFold) -> dict[str, AnnData]:
        """The training rows of a fold, a table per sample."""
        return training_tables(self.targets, fold.train, self.units.sample, self.centres)

    def require_genes(self) -> None:
        """Refuse slides that have none of the genes that the others are trained for, before anything is trained."""
        for fold in self.folds:
            trained = self.targets.measured[np.unique(self.targets.sample[fold.train])].any(axis=0)
            for number in np.unique(self.targets.sample[fold.test]):
                if not (self.targets.measured[number] & trained).any():
                    name = self.units.sample[self.targets.sample == number][0]
                    raise ValueError(
                        f"Sample {plain(name)!r} has none of the genes of the slides that train where it tests. Are "
                        "its genes named otherwise (symbols, Ensembl ids), or of another species?"
                    )

    def run(self) -> pd.DataFrame:
        """Train and score everything; one tidy frame."""
        import pandas as pd

        rows: list[dict[str, Any]] = []
        left_out: dict[str, str] = {}
        kept: list[dict[str, list[str]]] = []
        for number, fold in enumerate(self.folds):
            tables = self.tables(fold)
            columns = panel(self.targets, self.genes, tables)
            targets, trained = chosen(self.targets, columns), chosen(self.trained, columns)
            sets, missing = gene_sets(self.sets, targets, tables)
            left_out |= missing
            if not sets:
                raise ValueError(f"No gene set is left where {fold.name!r} tests: {missing}.")
            kept.append({name: [targets.names[i] for i in sets[name]] for name in sets if name != PANEL})
            score = _Scorer(self, targets, trained, fold, sets, number)
            where = {"split": self.split, "fold": number, "test": fold.name}
            for name, predicted in self._nulls(trained, fold):
                scored = score(predicted, Cost(), is_constant=name == MEAN)
                for seed in self.seeds:
                    facts = {"model": name, "method": name, "initialization": "", **where, "seed": seed}
                    rows += [facts | each for each in scored]
            for name in self.trials:
                for seed in self.seeds:
                    logger.info("Fold %d of %d, %s, seed %d.", number + 1, len(self.folds), name, seed)
                    begins, predicted, cost = self._predict(name, trained, fold, seed)
                    facts = {"model": name, "method": MODEL, "initialization": begins, **where, "seed": seed}
                    rows += [facts | each for each in score(predicted, cost)]
                    mixed = score.shuffled(predicted)
                    rows += [facts | {"method": SHUFFLED} | each for each in score(mixed, Cost())]
        for name, why in left_out.items():
            logger.info("The gene set %r is left out: %s.", name, why)
        frame = pd.DataFrame(rows)
        frame.attrs |= {
            "leaks": self.grouping.leaks,
            "gene_sets": kept,
            "left_out": left_out,
            "dominated_by_gene_means": list(DOMINATED),
        }
        return frame

    def _nulls(self, trained: Targets, fold: SlideFold) -> Iterator[tuple[str, np.ndarray]]:
        """What those say of the rows that test who know no image, or nothing of single genes."""
        sample, (mean, scale) = self.units.sample.astype(str), trained.statistics(fold.train)
        yield MEAN, np.tile(mean, (len(fold.test), 1))
        if self.centres is not None and np.isfinite(self.centres).all():
            laid = from_middle(self.centres, sample)
            values, measured = trained.values[fold.train], trained.mask(fold.train)
            yield PLACES, at_same_place(laid[fold.test], laid[fold.train], values, measured, mean)
        if self.nuclei is not None:
            yield ONE_MAP, one_map(self.nuclei[fold.test], sample[fold.test], mean, scale)

    def _predict(self, name: str, targets: Targets, fold: SlideFold, seed: int) -> tuple[str, np.ndarray, Cost]:
        """What a model begins from, what it says of the rows that test, and what that took."""
        fresh, options = self.trials[name]
        centres = None if fresh.config.smooth_um is None else self.centres
        job = Rehearsal(
            model=fresh,
            inputs=self.inputs[name],
            targets=targets,
            scored=targets,
            grouping=self.grouping,
            validation=self.validation,
            options=replace(options, seed=seed),
            centres=centres,
            device=self.device,
            progress=self.progress,
        )
        model, predicted, cost = tried(job, fold)
        return begins(model), predicted, cost


class _Scorer:
    """Scores predictions of the rows of a fold that test, by gene set."""

    def __init__(
        self,
        study: _Study,
        targets: Targets,
        trained: Targets,
        fold: SlideFold,
        sets: dict[str, np.ndarray],
        number: int,
    ) -> None:
        self._study, self._sets = study, sets
        self._truth, self._mask = targets.dense(fold.test), targets.mask(fold.test)
        self._sample = study.units.sample[fold.test].astype(str)
        self._others = exchanged(self._sample, [study.seed, number])  # else all folds would have the same null
        self._mean = trained.statistics(fold.train)[0]
        self._log_counts = None if study.log_counts is None else study.log_counts[fold.test]
        self._drawn, self._unit = unit_of(study.grouping.groups[fold.test], self._sample)
        self._facts = {"same_patient": shares_patient(study.units, fold), "n_train": len(fold.train)}

    def shuffled(self, predicted: np.ndarray) -> np.ndarray:
        """What was predicted of another row of the same slide."""
        return predicted[self._others]

    def __call__(self, predicted: np.ndarray, cost: Cost, *, is_constant: bool = False) -> list[dict[str, Any]]:
        rows = []
        for name, columns in self._sets.items():
            mask = None if self._mask is None else self._mask[:, columns]
            truth, values = self._truth[:, columns], predicted[:, columns]
            metrics, mean = self._study.metrics, self._mean[columns]
            scores = score_row(truth, values, mask, self._sample, mean, metrics, self._log_counts)
            low, high = np.nan, np.nan
            if self._study.n_boot and not is_constant:
                arguments = (self._sample, self._unit, self._study.n_boot, self._study.seed)
                low, high = interval(drawn_means(truth, values, mask, *arguments))
            row = {"genes": name, **scores, "low": low, "high": high, "drawn": self._drawn, **self._facts}
            rows.append({key: row[key] for key in _ordered(row)} | vars(cost))
        return rows


FIRST = ("genes", "n_genes", "pearson_mean", "low", "high", "drawn", "pearson_median", "beyond_counts")


def _ordered(row: Mapping[str, Any]) -> list[str]:
    """Columns with the scores that count first."""
    return [*FIRST, *(name for name in row if name not in FIRST)]


def _pool(rows: SampleRows, genes: Any) -> Targets:
    """Expression of the genes that are given, or of all that any sample has."""
    if genes is not None and not isinstance(genes, int):
        return expression_targets(rows, genes)
    tables = {
        each.name: names_of_table(adata, side=each.name) for each, adata in zip(rows.samples, rows.tables, strict=True)
    }
    first, *others = tables
    # It also says so where samples have too few genes in common.
    match = match_names(tables if others else {**tables, "genes": tables[first]}, first)
    names = [*map(str, match.names), *map(str, match.missing[first])]
    for name in others:
        match = match_names({name: tables[name], "genes": names_of_list(names)}, "genes", min_overlap=0)
        names += map(str, match.missing[name])
    return expression_targets(rows, names)
