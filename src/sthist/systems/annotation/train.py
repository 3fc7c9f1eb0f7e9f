"""Train an annotator, and score it on what it has not seen."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sthist import _store
from sthist._sample.verbs import verb
from sthist._settings import logger, settings
from sthist.systems.annotation.annotator import Annotator, AnnotatorConfig
from sthist.systems.annotation.options import DEFAULTS, AnnotatorTraining
from sthist.systems.annotation.report import make_report
from sthist.systems.annotation.tasks import linear_task, loaded_encoder, task_with_tiles
from sthist.training.options import as_training
from sthist.training.rows import labelled_rows
from sthist.training.split_groups import grouped
from sthist.training.splits import folds_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sthist.systems.annotation.linear import Fitted
    from sthist.systems.annotation.report import AnnotatorReport
    from sthist.training.rows import Labelled
    from sthist.training.splits import Grouping, Split

VALIDATION = 0.2
"""Part of the training rows that says when to stop, where the split does not say."""

FOLDS = 5

SHUFFLE = 7919
"""Added to the seed of the labels' shuffling, so that it is none of the others."""


@verb
def train_annotator(
    data: Any,
    label: str,
    *,
    method: Literal["linear", "finetune", "text"] = "linear",
    encoder: Any = None,
    table: str | None = None,
    image: str | None = None,
    classes: Sequence[str] | None = None,
    prompts: Mapping[str, Sequence[str] | str] | None = None,
    split: str | Mapping[str, str] | Split | None = None,
    samples: Any = None,
    within: Any = None,
    training: AnnotatorTraining | Mapping[str, Any] | None = None,
    device: str | None = None,
    progress: bool | None = None,
) -> Annotator:
    """Train a classifier of tiles on labels, and report how well it does on tiles that it has not seen.

    Rows are split by whole patients, samples, blocks of tissue or planes. Each fold is trained without the rows that it
    is scored on, its penalty or its end is chosen on others, and the scores of all folds are taken together. The same
    is done with the labels shuffled: what is reached then is chance. The annotator that is returned is trained on all
    folds' rows where each was tested once, and without the test part where ``test`` or ``split`` names one.

    Parameters
    ----------
    data
        A SpatialData, an AnnData (embeddings, or tiles of :func:`sthist.io.tile_folder`), or a mapping of sample name
        to such.
    label
        Column of ``obs`` with the classes. Rows without one are left out.
    method
        ``"linear"``: logistic regression on stored embeddings (:func:`sthist.pp.embed`), in seconds. ``"finetune"``:
        that layer, and then the encoder with it, on tiles that are turned and mirrored. ``"text"``: an image-text
        encoder on pairs of tile and prompt, with CLIP's contrastive loss, in which all pairs of one class are
        positives; a tile's class is then the one whose prompts it is most like.
    encoder
        Name of the encoder, or an encoder, which is left as it is: training works on a copy. For ``"linear"`` also the
        key in ``obsm`` of stored embeddings, such as ``"X_morphology"``; by default the only one.
    table
        Key of the table; by default the only one with the column.
    image
        Key of the H&E, where tiles are read.
    classes
        Classes to take, in this order; rows of others are left out.
    prompts
        For ``"text"``, phrases by class; by default the classes' own names.
    split
        What is tested: a ``"patient"`` (the default; where there is only one, a ``"block"``, and a warning says so), a
        ``"sample"``, a ``"block"`` of tissue, groups by a column of ``obs``, or a mapping of sample to ``"train"``,
        ``"validation"`` or ``"test"``; or a :class:`sthist.models.Split`, which also names groups that test, folds,
        sizes of blocks and how much validates. By default each group tests once, in one of 5 folds (fewer where there
        are fewer groups), and a fifth of the training rows at a time chooses the penalty or, of networks, says when to
        stop; where no group can be spared for that, the penalty is scikit-learn's and networks run for all ``epochs``.
    samples
        Table of samples (a frame or a csv file) with the patient of each.
    within
        Part of the samples that rows are taken from: a box (x0, y0, x1, y1) in µm, a polygon in µm, or the key of
        shapes.
    training
        A :class:`sthist.models.AnnotatorTraining`, or a mapping of its fields over the defaults of the method:
        ``epochs``, ``lr``, ``batch_size``, ``patience``, ``class_weights``, ``seed`` and others. ``"linear"`` is solved
        exactly: of these, ``class_weights`` and ``seed`` count there.
    device
        Of torch; ``settings.device`` by default.
    progress
        Show a progress bar while an encoder is trained; ``settings.progress`` by default.

    Returns
    -------
    The annotator. Its ``report`` has the AUC of each class and their support-weighted mean with 95 % intervals that
    resample groups, accuracy, balanced accuracy, F1 and calibration, the same for shuffled labels and for the commonest
    class, and the confusion matrix, all of held-out rows. A warning says where not even the rows that were trained on
    are told apart.

    Raises
    ------
    KeyError
        If there is no such table, column, embedding or group.
    ValueError
        If embeddings are NaN, or of different encoders or scales; if labels are missing, or a class has one row or is
        in one part only; if there are fewer groups than folds; if a patient has two spellings; if prompts miss a class,
        or the encoder has no texts or cannot be trained.

    Notes
    -----
    Fine-tuning begins with the layer alone (Kumar et al., ICLR 2022). Labels are shuffled over all rows, for training
    and scoring alike. Tiles of one section are alike whatever lies between them: ``"block"`` says how well the rest of
    a section is annotated, ``"patient"`` how well a new patient is.

    Examples
    --------
    >>> import anndata as ad, numpy as np, sthist
    >>> rng = np.random.default_rng(0)
    >>> tiles = ad.AnnData(obs={"label": ["a", "b"] * 40, "slide": np.repeat(list("uvwx"), 20)})
    >>> tiles.obsm["X_mine"] = rng.normal(size=(80, 4)) + 3 * (tiles.obs["label"] == "a").to_numpy()[:, None]
    >>> annotator = sthist.tl.train_annotator(
    ...     tiles, "label", split=sthist.models.Split("slide", folds=2), training={"epochs": 20, "n_boot": 20}
    ... )
    >>> annotator.report.weighted_auc > 0.95, annotator.config.classes
    (True, ('a', 'b'))
    """
    if method not in DEFAULTS:
        raise ValueError(f"method is {method!r}; it is one of {list(DEFAULTS)}.")
    options = as_training(AnnotatorTraining, training, DEFAULTS[method])
    if method != "text" and (prompts is not None or options.templates is not None):
        raise ValueError(f"prompts= and templates go with method='text', not {method!r}.")

    device = settings.torch_device(device)
    rows = labelled_rows(data, label, table=table, samples=samples, classes=classes, within=within)
    task: Any
    if method == "linear":
        stored = isinstance(encoder, str) and (encoder.startswith("X_") or encoder in rows.tables[0].obsm)
        task, facts = linear_task(rows, None if stored else encoder, encoder if stored else None, options)
    else:
        encoder = loaded_encoder(encoder, method, device)
        task, facts = task_with_tiles(rows, encoder, method, prompts, image, options, device, progress=progress)
    size_um = None if facts["spec"] is None else facts["spec"]["size_um"]
    split, grouping = grouped(rows.units(size_um), split, size_um, VALIDATION)
    folds = split.folds or max(2, min(FOLDS, len(np.unique(grouping.groups))))
    pairs = folds_of(grouping, rows.codes, test=split.test, folds=folds, seed=options.seed)
    _require_classes(rows, pairs, grouping)
    config = AnnotatorConfig(classes=tuple(rows.classes), label=label, mode=method, **facts)
    job = _Job(task, config, grouping, split.validation, options.seed)
    report = _held_out(job, rows, pairs, baseline=options.baseline, n_boot=options.n_boot)
    used = pairs[0][0] if len(pairs) == 1 else np.arange(len(rows))
    fitted = job.fit(rows.codes, used)
    provenance = _store.provenance(
        "tl.train_annotator",
        samples=[each.name for each in rows.samples],
        n_rows=len(used),
        options=options.to_dict(),
        **split.to_dict(),
        seed=options.seed,
        **task.described,
        **fitted.notes,
    )
    annotator = Annotator(replace(config, training=provenance, report=report.to_dict()), fitted.weights)
    _require_learned(annotator, rows.codes[used], fitted.rows(used))
    annotator.history = fitted.history
    annotator.encoder = None if isinstance(encoder, str | list | tuple) else encoder
    return annotator


def _require_learned(annotator: Annotator, codes: np.ndarray, embeddings: np.ndarray) -> None:
    """Warn where the rows that were trained on are predicted no better than by the commonest class alone."""
    right = annotator.classify(embeddings).argmax(axis=1) == codes
    counts = np.bincount(codes)
    balanced = np.mean([right[codes == k].mean() for k in np.flatnonzero(counts)])
    accuracy, most, even = right.mean(), counts.max() / len(codes), 1 / np.count_nonzero(counts)
    if accuracy <= most or balanced <= even:
        logger.warning(
            "On the %d rows that it was trained on, the annotator is right for %.2f (%.2f of each class on average); "
            "saying always %r is right for %.2f (%.2f). It has learned little: look at report.to_frame(), and train "
            "for longer, or on other embeddings or labels.",
            len(codes),
            accuracy,
            balanced,
            annotator.config.classes[int(counts.argmax())],
            most,
            even,
        )


@dataclass(frozen=True, eq=False)
class _Job:
    """One way to train, on any of the rows."""

    task: Any
    config: AnnotatorConfig
    grouping: Grouping
    validation: float
    seed: int

    def fit(self, codes: np.ndarray, rows: np.ndarray) -> Fitted:
        """Train on rows, of which a part says which penalty is best, or when to stop."""
        fitted: Fitted = self.task.fit_groups(codes, rows, self.grouping, self.validation)
        return fitted

    def predict_held_out(self, codes: np.ndarray, pairs: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
        """Probabilities of the rows that test, by models that have not seen them; NaN elsewhere."""
        scores = np.full((len(codes), len(self.config.classes)), np.nan, np.float32)
        for fold, (train, test) in enumerate(pairs):
            fitted = self.fit(codes, train)
            scores[test] = Annotator(self.config, fitted.weights).classify(fitted.rows(test))
            logger.info("Fold %d of %d: trained on %d rows, %s.", fold + 1, len(pairs), len(train), fitted.notes)
        return scores


def _held_out(
    job: _Job, rows: Labelled, pairs: list[tuple[np.ndarray, np.ndarray]], *, baseline: bool, n_boot: int
) -> AnnotatorReport:
    tested = np.sort(np.concatenate([test for _, test in pairs]))
    scores = job.predict_held_out(rows.codes, pairs)
    shuffled = None
    if baseline:
        mixed = np.random.default_rng(job.seed + SHUFFLE).permutation(rows.codes)
        shuffled = (mixed[tested], job.predict_held_out(mixed, pairs)[tested])
    report = make_report(
        rows.classes,
        rows.codes[tested],
        scores[tested],
        job.grouping,
        tested,
        shuffled=shuffled,
        n_boot=n_boot,
        seed=job.seed,
        n_folds=len(pairs),
        n_unlabelled=rows.n_unlabelled,
    )
    logger.info(
        "Held-out AUC, weighted by support: %.3f (%.3f to %.3f); of shuffled labels %.3f (%.3f to %.3f).",
        report.weighted_auc,
        report.weighted_auc_low,
        report.weighted_auc_high,
        report.shuffled_auc,
        report.shuffled_auc_low,
        report.shuffled_auc_high,
    )
    return report


def _require_classes(rows: Labelled, pairs: list[tuple[np.ndarray, np.ndarray]], grouping: Grouping) -> None:
    """Refuse classes that are tested and were not trained on; say which cannot be tested."""
    for train, test in pairs:
        untrained = sorted(set(rows.codes[test]) - set(rows.codes[train]))
        if untrained:
            name = rows.classes[untrained[0]]
            where = np.unique(grouping.groups[rows.codes == untrained[0]])
            rest = [other for k, other in enumerate(rows.classes) if k not in untrained]
            raise ValueError(
                f"Class {name!r} would be tested and not trained on: its {int((rows.codes == untrained[0]).sum())} "
                f"rows are in {len(where)} of the groups ({grouping.by}), such as {where[0]!r}. Use fewer folds, "
                f"another split=, or leave it out with classes={rest}."
            )
    tested = {int(code) for _, test in pairs for code in rows.codes[test]}
    absent = [name for k, name in enumerate(rows.classes) if k not in tested]
    if absent:
        logger.warning("No row of %s is tested: there is no score of it.", ", ".join(map(repr, absent)))
