"""Train an annotator, and score it on what it has not seen."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sthist import _store
from sthist._settings import logger, settings
from sthist.systems.annotation.annotator import Annotator, AnnotatorConfig
from sthist.systems.annotation.report import make_report
from sthist.systems.annotation.task_inputs import (
    chosen_options,
    linear_task,
    loaded_encoder,
    require_arguments,
    task_with_tiles,
)
from sthist.training.rows import labelled_rows
from sthist.training.split_groups import group_rows
from sthist.training.splits import folds_of, validation_part

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sthist.systems.annotation.report import AnnotatorReport
    from sthist.systems.annotation.tasks import Fitted
    from sthist.tiles import TileSpec
    from sthist.training.rows import Labelled
    from sthist.training.splits import Grouping

SHUFFLE = 7919
"""Added to the seed of the labels' shuffling, so that it is none of the others."""


def train_annotator(
    data: Any,
    label: str,
    *,
    mode: Literal["linear", "finetune", "text"] = "linear",
    encoder: Any = None,
    embedding: str | None = None,
    table: str | None = None,
    image: str | None = None,
    spec: TileSpec | None = None,
    classes: Sequence[str] | None = None,
    prompts: Mapping[str, Sequence[str] | str] | None = None,
    templates: Sequence[str] | None = None,
    samples: Any = None,
    split: str | Mapping[str, str] = "patient",
    test: float | str | Sequence[str] | None = None,
    folds: int = 5,
    validation: float = 0.2,
    block_um: float | None = None,
    gap_um: float | None = None,
    class_weights: Literal["balanced"] | None = "balanced",
    epochs: int | None = None,
    lr: float | None = None,
    encoder_lr: float | None = None,
    weight_decay: float | None = None,
    batch_size: int | None = None,
    patience: int = 10,
    baseline: bool = True,
    n_boot: int = 1000,
    seed: int | None = None,
    device: str | None = None,
) -> Annotator:
    """Train a classifier of tiles on labels, and report how well it does on tiles that it has not seen.

    Rows are split by whole patients, samples, blocks of tissue or planes. Each fold is trained without the rows that it
    is scored on, stops by a validation part of the others, and the scores of all folds are taken together. The same is
    done with the labels shuffled: what is reached then is chance. The annotator that is returned is trained on all
    folds' rows where each was tested once, and without the test part where ``test`` or ``split`` names one.

    Parameters
    ----------
    data
        A SpatialData, an AnnData (embeddings, or tiles of :func:`sthist.io.tile_folder`), or a mapping of sample name
        to such.
    label
        Column of ``obs`` with the classes. Rows without one are left out.
    mode
        ``"linear"``: a linear layer on stored embeddings (:func:`sthist.pp.embed`), in seconds. ``"finetune"``: that
        layer, and then the encoder with it, on tiles that are turned and mirrored. ``"text"``: an image-text encoder on
        pairs of tile and prompt, with CLIP's contrastive loss, in which all pairs of one class are positives; a tile's
        class is then the one whose prompts it is most like.
    encoder
        Name of the encoder, or an encoder. It is left as it is: training works on a copy.
    embedding
        For ``"linear"``, key in ``obsm``; by default that of ``encoder``, or the only one.
    table
        Key of the table; by default the only one with the column.
    image
        Key of the H&E, where tiles are read.
    spec
        Tiles to read, in place of those that were laid; also for another µm/px than the encoder is meant for.
    classes
        Classes to take, in this order; rows of others are left out.
    prompts
        For ``"text"``, phrases by class; by default the classes' own names.
    templates
        Sentences around them, as of :func:`sthist.tl.annotate`.
    samples
        Table of samples (a frame or a csv file) with the patient of each.
    split
        ``"patient"``, ``"sample"``, ``"block"`` (squares of ``block_um`` on each section; rows that are nearer than
        ``gap_um`` to a row of the other side are not trained on), the name of a column of ``obs``, such as ``"slide"``
        or the plane ``"z"``, or a mapping of sample to ``"train"``, ``"validation"`` or ``"test"``, which a column may
        hold as well. ``"random"`` leaks, and the report says so.
    test
        Groups that test, such as ``["2"]`` of the planes, or a part of the rows such as ``0.2``; by default each group
        tests once, in one of ``folds``.
    folds
        How many.
    validation
        Part of the training rows, in whole groups, that says when to stop. Where no group can be spared, training runs
        for ``epochs``.
    block_um, gap_um
        Of ``split="block"``: four tiles, and one, by default.
    class_weights
        ``"balanced"``: rare classes count as much as common ones. None: each row counts alike.
    epochs, lr, encoder_lr, weight_decay, batch_size
        Of training; by default 200, 1e-2, none, 1e-2 and 1024 for ``"linear"``, 20, 1e-3, 1e-5, 1e-2 and 32 for
        ``"finetune"``, and 20, 1e-5, none, 1e-2 and 64 for ``"text"``.
    patience
        Epochs without improvement after which training stops.
    baseline
        Train on shuffled labels, too, which takes as long again.
    n_boot
        Draws of the intervals.
    seed
        Of everything that is drawn; ``settings.seed`` by default.
    device
        Of torch; ``settings.device`` by default.

    Returns
    -------
    The annotator. Its ``report`` has the AUC of each class and their support-weighted mean with 95 % intervals that
    resample groups, the same for shuffled labels, and the confusion matrix, all of held-out rows.

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
    ...     tiles, "label", split="slide", folds=2, epochs=20, n_boot=100
    ... )
    >>> annotator.report.weighted_auc > 0.95, annotator.config.classes
    (True, ('a', 'b'))
    """
    seed = settings.seed if seed is None else int(seed)
    require_arguments(mode, class_weights, validation, prompts, templates)
    given = {
        "epochs": epochs,
        "lr": lr,
        "encoder_lr": encoder_lr,
        "weight_decay": weight_decay,
        "batch_size": batch_size,
    }
    options = chosen_options(mode, given, patience, class_weights, device)
    rows = labelled_rows(data, label, table=table, samples=samples, classes=classes)
    task: Any
    if mode == "linear":
        task, facts = linear_task(rows, encoder, embedding, spec, options)
    else:
        encoder = loaded_encoder(encoder, mode, device)
        words = (prompts, templates) if mode == "text" else None
        task, facts = task_with_tiles(rows, encoder, spec, image, words, options)
    size_um = None if facts["spec"] is None else facts["spec"]["size_um"]
    grouping = group_rows(rows.units(size_um), split, block_um=block_um, gap_um=gap_um)
    pairs = folds_of(grouping, rows.codes, test=test, folds=folds, seed=seed)
    _require_classes(rows, pairs, grouping)
    config = AnnotatorConfig(classes=tuple(rows.classes), label=label, mode=mode, **facts)
    job = _Job(task, config, grouping, validation, seed)
    report = _held_out(job, rows, pairs, baseline=baseline, n_boot=n_boot)
    used = pairs[0][0] if len(pairs) == 1 else np.arange(len(rows))
    fitted = job.fit(rows.codes, used)
    training = _store.provenance(
        "tl.train_annotator",
        samples=[each.name for each in rows.samples],
        n_rows=len(used),
        options=asdict(options),
        split=split if isinstance(split, str) else dict(split),
        test=test if test is None or isinstance(test, str | float) else list(map(str, test)),
        validation=validation,
        seed=seed,
        **task.described,
        **fitted.notes,
    )
    annotator = Annotator(replace(config, training=training, report=report.to_dict()), fitted.weights)
    annotator.encoder = None if isinstance(encoder, str | list | tuple) else encoder
    return annotator


@dataclass(frozen=True, eq=False)
class _Job:
    """One way to train, on any of the rows."""

    task: Any
    config: AnnotatorConfig
    grouping: Grouping
    validation: float
    seed: int

    def fit(self, codes: np.ndarray, rows: np.ndarray) -> Fitted:
        """Train on rows, of which a part says when to stop."""
        kept, watched = validation_part(self.grouping, codes, rows, self.validation, seed=self.seed)
        if not len(watched) and self.validation:
            logger.info("No group can be spared to say when to stop: training runs for all epochs.")
        fitted = self.task.fit(codes, kept, watched, self.seed)
        fitted.notes["n_validation"] = len(watched)
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
            msg = (
                f"Class {name!r} would be tested and not trained on: its {int((rows.codes == untrained[0]).sum())} "
                f"rows are in {len(where)} of the groups ({grouping.by}), such as {where[0]!r}. Use fewer folds, "
                f"another split=, or leave it out with classes={rest}."
            )
            raise ValueError(msg)
    tested = {int(code) for _, test in pairs for code in rows.codes[test]}
    absent = [name for k, name in enumerate(rows.classes) if k not in tested]
    if absent:
        logger.warning("No row of %s is tested: there is no score of it.", ", ".join(map(repr, absent)))
