"""Train a model of composition, and score each cell type on what it has not seen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sthist._sample.verbs import verb
from sthist.regression.train import train_scored
from sthist.systems.composition.models import as_model
from sthist.systems.composition.targets import composition_rows, composition_targets

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from sthist._tables.composition import Quantity
    from sthist.regression.model import RegressionConfig
    from sthist.regression.module import RegressionTraining
    from sthist.systems.composition.model import CompositionModel
    from sthist.training.splits import Split


@verb
def train_composition(
    data: Any,
    model: str | CompositionModel | RegressionConfig = "mlp",
    *,
    key: str = "cell_abundance",
    quantity: Quantity | None = None,
    embedding: str | Sequence[str] | None = None,
    table: str | None = None,
    image: str | None = None,
    split: str | Mapping[str, str] | Split | None = None,
    samples: Any = None,
    within: Any = None,
    folder: str | Path | None = None,
    training: RegressionTraining | Mapping[str, Any] | None = None,
    device: str | None = None,
    progress: bool | None = None,
) -> CompositionModel:
    """Train a model that predicts from H&E how much of each cell type a spot holds, and find out how far to trust it.

    Rows are split by whole patients, samples or blocks of tissue; each fold is trained without the rows that it is
    scored on. Each type has its score, and that of a prediction whose tiles were shuffled; both stay with the model,
    and go along with all that it predicts. The model that is returned is trained on all rows, or without those that
    test where ``split`` says which.

    Parameters
    ----------
    data
        A SpatialData or an AnnData, or a mapping of sample name to such.
    model
        ``"mlp"`` or ``"ridge"`` on stored embeddings, ``"hist2cell"`` on tiles and their neighbours; or a config or a
        model with settings of its own, such as ``sthist.models.CompositionMLPConfig(members=5)``.
    key
        Key in ``obsm`` of the amounts of cell types, a DataFrame with a column for each: of
        :func:`sthist.tl.deconvolve`, :func:`sthist.io.read_composition`, or any other. Where a sample lacks a column,
        it does not count for that type.
    quantity
        ``"proportions"``, which sum to 1 in each row, or ``"abundances"``; by default told from the sums. It is
        recorded, and samples of the two are never mixed.
    embedding
        Keys of embeddings in ``obsm``, or the names of their encoders, for models that take them: several are put
        beside each other, in this order. By default the only one; where there is none, the regions are embedded with
        ``"morphology"``.
    table
        Key of the table with the amounts, where there are several.
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
    The model. ``model.scores`` has a row per cell type: ``pearson`` across held-out spots, ``pearson_null`` that 97.5 %
    of shuffled predictions stay below, ``trusted``, and the errors of model and training mean.

    Raises
    ------
    KeyError
        If there is no such table, composition, embedding or model.
    ValueError
        If amounts are NaN or negative, proportions do not sum to 1 or stand beside abundances, types have one name,
        embeddings are NaN or of several encoders or scales, or a split leaves nothing to train or to test on.

    Examples
    --------
    >>> import sthist
    >>> sdata = sthist.datasets.toy("visium", size_um=900)
    >>> model = sthist.tl.train_composition(sdata, "ridge", split="block")
    >>> list(model.scores.columns[:3])
    ['pearson', 'pearson_null', 'trusted']
    """
    fresh = as_model(model)
    options = fresh.options(training)
    rows = composition_rows(data, key, table, samples, within)
    targets, found = composition_targets(rows, key, quantity)
    inputs = fresh.collect(rows, embedding=embedding, image=image, device=device, progress=progress)
    return train_scored(
        "tl.train_composition",
        fresh,
        rows,
        inputs,
        targets,
        options=options,
        split=split,
        folder=folder,
        device=device,
        progress=progress,
        facts={"key": key, "quantity": found},
    )
