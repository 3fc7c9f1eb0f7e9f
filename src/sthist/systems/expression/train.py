"""Train a model of expression, and score each gene on what it has not seen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sthist._sample.verbs import verb
from sthist.regression.data.expression import DRAWS, expression_targets, targets_at_depth
from sthist.regression.rows import expression_rows
from sthist.regression.train import train_scored
from sthist.systems.expression.models import as_model
from sthist.systems.expression.synthetic import collected, require_alone, synthetic_rows

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from sthist.regression.data.targets import Targets
    from sthist.regression.model import RegressionConfig
    from sthist.regression.module import RegressionTraining
    from sthist.systems.expression.model import ExpressionModel
    from sthist.training.rows import SampleRows
    from sthist.training.splits import Split


@verb
def train_expression(
    data: Any,
    model: str | ExpressionModel | RegressionConfig = "ridge",
    *,
    genes: Sequence[str] | int | None = None,
    embedding: str | Sequence[str] | None = None,
    table: str | None = None,
    image: str | None = None,
    split: str | Mapping[str, str] | Split | None = None,
    samples: Any = None,
    within: Any = None,
    depth: float | None = None,
    synthetic: Any = None,
    folder: str | Path | None = None,
    training: RegressionTraining | Mapping[str, Any] | None = None,
    device: str | None = None,
    progress: bool | None = None,
) -> ExpressionModel:
    """Train a model that predicts the expression of genes from H&E, and find out which genes it can be trusted with.

    Expression is what :func:`sthist.pp.genes` has made, or else counts brought to 10,000 a row, and their logarithm.
    Rows are split by whole patients, samples or blocks of tissue; each fold is trained without the rows that it is
    scored on. Each gene has its score, and that of a prediction whose tiles were shuffled; both stay with the model,
    and go along with all that it predicts. The model that is returned is trained on all rows, or without those
    that test where ``split`` says which.

    Parameters
    ----------
    data
        A SpatialData or an AnnData, or a mapping of sample name to such: Visium, legacy ST, bins, or tiles with counts
        of :func:`sthist.pp.aggregate`.
    model
        ``"ridge"`` or ``"mlp"`` on stored embeddings, ``"deepspot"`` on those of a spot, its parts and its neighbours;
        on tiles ``"genst"``, ``"stnet"``, ``"resnet"``, ``"bleep"``, ``"clip"``, ``"mclstexp"``; on all tiles of a
        slide ``"histogene"``, ``"thitogene"``; on a map of features of the slide ``"istar"``, which predicts every
        place of it; or a config or a model with settings of its own, such as
        ``sthist.models.Ridge(sthist.models.RidgeConfig(smooth_um=250))``.
    genes
        Genes to predict, by the names or ids that tables have, such as those of :func:`sthist.pp.gene_panel`; a number
        for so many of the most expressed; by default those that all samples have. Where a sample lacks a gene, it does
        not count for it.
    embedding
        Keys of embeddings in ``obsm``, or the names of their encoders, for models that take them; by default the only
        one. Where there is none, the regions are embedded with ``"morphology"``. For ``"istar"``, the key of the
        images with features of :func:`sthist.pp.dense_features`, or their encoder.
    table
        Key of the table with the genes, where there are several.
    image
        Key of the H&E.
    split
        What is tested: a ``"patient"`` (the default; where there is only one, a ``"block"``, and a warning says so), a
        ``"sample"``, a ``"block"`` of tissue, a column of ``obs``, a mapping of sample to ``"train"``,
        ``"validation"`` or ``"test"``, or a :class:`sthist.models.Split`.
    samples
        Table of samples (a frame or a csv file) with the patient of each.
    within
        Part of the samples that rows are taken from: a box (x0, y0, x1, y1) in µm, a polygon in µm, or the key of
        shapes.
    depth
        Median counts of a row in the slides that are to be predicted, where these are shallower than those trained on.
        Expression is then what a slide of that depth would show: the mean over draws of so many of the counts. Log
        expression of few counts follows how much of a spot is cells more than which cells these are.
    synthetic
        Tiles of :func:`sthist.tl.synthesize`, one sample of them or several, to train on beside ``data``. They neither
        say when to stop nor are they scored, and no fold is trained on tiles of spots that it holds out; but what the
        adapter has learned of all spots of its adaptation is in all tiles. Genes that they lack do not count for them.
        An epoch is longer by their number: whether they help more than a longer training would,
        ``sthist.benchmark.augmentation`` finds out.
    folder
        Where a network keeps its history and, after each epoch, itself, to go on from with ``resume``; and where the
        model is saved.
    training
        A :class:`sthist.models.RegressionTraining`, or a mapping of its fields over the model's defaults.
    device
        Of torch; ``settings.device`` by default.
    progress
        Show a bar; ``settings.progress`` by default.

    Returns
    -------
    The model. ``model.scores`` has a row per gene: ``pearson`` across held-out spots, ``pearson_null`` that 97.5 % of
    shuffled predictions stay below, ``trusted``, and the errors of model and training mean.

    Raises
    ------
    KeyError
        If there is no such table, gene, embedding or model.
    ValueError
        If there are neither counts nor logarithms of them, embeddings are NaN or of several encoders or scales, a
        map of features has cells of another size than the model's, a spot has no place or no features, a
        patient has two spellings, or a split leaves nothing to train or to test on; if synthetic tiles are none, are
        given as data, too, have none of the genes, are coarser than the model's or of another size, or their expression
        was normalised otherwise; if the model looks at what is around a spot, which they do not have.

    Examples
    --------
    >>> import sthist
    >>> sdata = sthist.datasets.toy("visium", size_um=900)
    >>> model = sthist.tl.train_expression(sdata, split="block")
    >>> model.scores[["pearson", "trusted"]].shape
    (60, 2)
    >>> sthist.tl.expression(sdata, model)
    >>> sdata["table"].layers["ridge"].shape == sdata["table"].shape
    True
    """
    fresh = as_model(model)
    options = fresh.options(training)
    rows = expression_rows(data, table, samples, within)
    targets, scored = _targets(rows, genes, depth, options.seed)
    facts: dict[str, Any] = {"depth": depth}
    made, trained = None, targets
    if synthetic is not None:
        if depth is not None:
            raise ValueError("depth= needs raw counts, which synthetic tiles have not: leave one of both out.")
        require_alone(fresh)
        made, trained = synthetic_rows(synthetic, rows, targets)
        facts["synthetic"] = made.facts()
    inputs = fresh.collect(rows, embedding=embedding, image=image, device=device, progress=progress)
    if made is not None:
        inputs = collected(fresh, inputs, made, device=device, progress=progress)
    return train_scored(
        "tl.train_expression",
        fresh,
        rows,
        inputs,
        trained,
        scored=scored,
        options=options,
        split=split,
        folder=folder,
        device=device,
        progress=progress,
        facts=facts,
        beside=None if made is None else made.beside,
    )


def _targets(
    rows: SampleRows, genes: Sequence[str] | int | None, depth: float | None, seed: int
) -> tuple[Targets, Targets]:
    """Expression to train on, and to score with: of a lower depth, the expected one and what one slide shows."""
    measured = expression_targets(rows, genes)
    if depth is None:
        return measured, measured
    trained, scored = (targets_at_depth(rows, measured.names, depth, draws, seed) for draws in (DRAWS, 1))
    return trained, scored
