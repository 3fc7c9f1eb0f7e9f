"""Train a model of the expression of single cells, on spots or on cells, and score each gene on held-out rows."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sthist._messages import plain
from sthist._sample.samples import naming
from sthist._sample.verbs import verb
from sthist._settings import logger
from sthist._tables.rows import new_table, rows_of
from sthist.pp._nuclei.assign import cells_of, spot_of_cells
from sthist.regression.rows import expression_rows
from sthist.regression.train import train_scored
from sthist.systems.cells.bags import Bags
from sthist.systems.cells.model import VALIDATION, SCellST, SCellSTConfig
from sthist.systems.cells.targets import cell_targets, kept_rows
from sthist.training.rows import SampleRows

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from anndata import AnnData

    from sthist.regression.module import RegressionTraining
    from sthist.training.splits import Split

LEAST_UM = 50.0
"""Tissue that counts as one place, at least: of cells, neighbours are alike farther than a crop of one reaches."""

SPOT = "spot"
"""Column of the cells' table with the name of the spot of each, as ``pp.assign_cells`` writes it."""


@verb
def train_cell_expression(
    data: Any,
    model: SCellSTConfig | SCellST | None = None,
    *,
    genes: Sequence[str] | int | None = None,
    cells: str = "nuclei",
    table: str | None = None,
    embedding: str | Sequence[str] | None = None,
    loss: Literal["mse", "nb-mean", "nb-total"] | None = None,
    level: Literal["spot", "cell"] = "spot",
    split: str | Mapping[str, str] | Split | None = None,
    samples: Any = None,
    folder: str | Path | None = None,
    training: RegressionTraining | Mapping[str, Any] | None = None,
    device: str | None = None,
    progress: bool | None = None,
) -> SCellST:
    """Learn the expression of single cells from spots that hold many (sCellST), and find out how far to trust it.

    What a spot shows is taken for the mean of its cells. Rows are split by whole patients, samples or blocks of tissue;
    each fold is trained without the rows that it is scored on. Scores are those of spots, whose cells were never
    measured; with ``level="cell"`` those of cells. They stay with the model, and go along with all that it predicts.

    Parameters
    ----------
    data
        A SpatialData, or a mapping of sample name to such; each has the nuclei and the spots of one slide. With
        ``level="cell"`` an AnnData will do.
    model
        Settings, where they are other than the defaults; or a model that has them.
    genes
        Names of the genes; a number takes the most expressed; None all that are left after
        :class:`sthist.models.SCellSTConfig` ``filter_genes``. :func:`sthist.pp.gene_set` chooses variable or spatial
        genes over several slides. Genes that not all samples have are left out, and a warning names them.
    cells
        Key of the cells: shapes or their table. Those that are not embedded yet are embedded, 12 µm around the centre
        on 48 px.
    table
        Key of the table of expression, where there are several.
    embedding
        Keys of embeddings of the cells in ``obsm``, or the names of their encoders; by default the only one, or
        ``"morphology"``.
    loss
        ``"mse"`` of log-normalised expression, scaled gene by gene on each slide; ``"nb-mean"`` or ``"nb-total"``, a
        negative binomial of raw counts. By default that of ``model``.
    level
        ``"spot"``: a row of the table of expression is a spot. Its cells are those whose ``obs["spot"]`` names it
        (:func:`sthist.pp.assign_cells`), or that lie in it where there is no such column. ``"cell"``: it is a cell with
        an embedding of its own.
    split
        What is tested: a ``"patient"`` (the default; where there is only one, a ``"block"``, and a warning says so), a
        ``"sample"``, a ``"block"`` of tissue, a column of ``obs``, a mapping of sample to ``"train"``,
        ``"validation"`` or ``"test"``, or a :class:`sthist.models.Split`.
    samples
        Table of samples (a frame or a csv file) with the patient of each.
    folder
        Where it keeps its history and, after each epoch, itself, to go on from with ``resume``; and where the model is
        saved.
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
        If there are no such cells, table, genes or embedding.
    ValueError
        If no cell lies in a spot, no gene has enough counts, the negative binomial is given what are no counts,
        embeddings are NaN or of several encoders or scales, or a split leaves nothing to train or to test on.

    Examples
    --------
    >>> import sthist
    >>> sdata = sthist.datasets.toy("visium", size_um=900)
    >>> sthist.pp.nuclei(sdata)
    >>> model = sthist.tl.train_cell_expression(sdata, training={"epochs": 2}, split="block")
    >>> sthist.tl.cell_expression(sdata, model)
    >>> sdata["nuclei_table"].n_vars == len(model.genes)
    True
    """
    fresh = _as_model(model, loss)
    if level not in ("spot", "cell"):
        raise ValueError(f"level is {level!r}; it is 'spot' or 'cell'.")
    options = fresh.options(training)
    config = fresh.config
    counts = config.loss != "mse"
    if isinstance(genes, str):
        genes = [genes]
    if level == "cell":
        rows = expression_rows(data, _cell_table(data, table, cells), samples)
        kept = kept_rows(rows, level, genes, counts=counts, filter_genes=config.filter_genes)
        targets = cell_targets(kept, genes, config.loss, config.scaling)
        inputs = fresh.collect(replace(kept, tables=rows.tables), embedding=embedding, device=device, progress=progress)
        facts = {"level": level, "n_cells": len(inputs)}
    else:
        rows = expression_rows(data, table, samples)
        of_cells, spot, outside = _cells_in_spots(rows, cells)
        there = np.isin(np.arange(len(rows)), spot)
        some = replace(rows, sample=rows.sample[there], row=rows.row[there])
        kept = kept_rows(some, level, genes, counts=counts, filter_genes=config.filter_genes)
        targets = cell_targets(kept, genes, config.loss, config.scaling)
        spot = _renumbered(rows, kept)[spot]
        used = spot >= 0
        of_cells = replace(of_cells, sample=of_cells.sample[used], row=of_cells.row[used])
        found = fresh.collect(of_cells, embedding=embedding, device=device, progress=progress)
        inputs = Bags(found.features, spot[used], spots=len(kept))
        _say_used(len(rows), int(there.sum()), len(kept), int(used.sum()), outside)
        facts = {"level": level, "n_cells": int(used.sum()), "n_cells_outside": outside}
    return train_scored(
        "tl.train_cell_expression",
        fresh,
        replace(kept, tables=rows.tables),
        inputs,
        targets,
        options=options,
        split=split,
        validation=VALIDATION,
        size_um=_pitch_um(rows),
        folder=folder,
        device=device,
        progress=progress,
        facts=facts,
    )


def _as_model(model: Any, loss: str | None) -> SCellST:
    """A model that is to be trained, of its settings."""
    if isinstance(model, SCellST):
        model = model.unfitted().config
    if model is not None and not isinstance(model, SCellSTConfig):
        raise TypeError(f"model is a sthist.models.SCellSTConfig, or a SCellST, not {type(model).__name__}.")
    config = model or SCellSTConfig()
    return SCellST(config if loss is None else replace(config, loss=loss))  # type: ignore[arg-type]


def _cell_table(data: Any, table: str | None, cells: str) -> str | None:
    """The table of the cells, where it has genes; None for that of expression."""
    first = next(iter(data.values())) if hasattr(data, "items") else data
    if table is not None or not hasattr(first, "shapes") or (cells not in first.shapes and cells not in first.tables):
        return table
    found = rows_of(first, cells).table
    return found if found is not None and first.tables[found].n_vars else None


def _cells_in_spots(rows: SampleRows, cells: str) -> tuple[SampleRows, np.ndarray, int]:
    """All cells that lie in spots, the row of the spot of each, and how many cells lie in none."""
    tables, names, numbers, spots, outside = [], [], [], [], 0
    starts = np.cumsum([0, *np.bincount(rows.sample, minlength=len(rows.tables))])
    for number, (sample, adata, name) in enumerate(zip(rows.samples, rows.tables, rows.names, strict=True)):
        if not hasattr(sample.data, "shapes"):
            raise TypeError(
                f"Sample {sample.name!r} is an {type(sample.data).__name__}, in which cells have no places: pass the "
                "SpatialData, or fit sthist.models.SCellST on a sthist.models.Bags of embeddings. An AnnData of cells "
                "takes level='cell'."
            )
        with naming(sample.name):
            found = cells_of(sample.data, cells)
            table = new_table(sample.data, found) if found.table is None else sample.data.tables[found.table]
            called = f"the cells {found.shapes!r} of sample {sample.name!r}"
            if SPOT in table.obs:
                spot = _named_spots(sample.data, table, adata, called, name)
            else:
                key = next(key for key in sample.data.tables if sample.data.tables[key] is adata)
                spot = spot_of_cells(sample.data, found, rows_of(sample.data, key))
        inside = np.flatnonzero(spot >= 0)
        outside += len(spot) - len(inside)
        tables.append(table)
        names.append(called)
        numbers.append(inside)
        spots.append(starts[number] + spot[inside])
    sample_of = np.repeat(np.arange(len(tables)), [len(each) for each in numbers])
    cell_rows = SampleRows(rows.samples, tables, names, sample_of, np.concatenate(numbers))
    return cell_rows, np.concatenate(spots), outside


def _named_spots(sdata: Any, table: AnnData, spots: AnnData, where: str, name: str) -> np.ndarray:
    """Row of the spot that a column names for each cell, -1 for none."""
    import pandas as pd

    link = spots.uns.get("spatialdata_attrs", {})
    known = spots.obs[link["instance_key"]] if link.get("instance_key") in spots.obs else spots.obs_names
    column = table.obs[SPOT]
    there = column.notna().to_numpy()
    found = np.full(len(column), -1)
    found[there] = pd.Index(np.asarray(known).astype(str)).get_indexer(column[there].astype(str).to_numpy())
    unknown = np.flatnonzero(there & (found < 0))
    if len(unknown):
        raise ValueError(
            f"obs[{SPOT!r}] of {where} names {plain(column.iloc[unknown[0]])!r}, which is no spot of {name}, for "
            f"{len(unknown)} cells. Assign them anew: sthist.pp.assign_cells(sdata, overwrite=True)."
        )
    if not there.any():
        raise ValueError(f"All of {where} lie outside of the spots: obs[{SPOT!r}] is missing throughout.")
    return found


def _renumbered(rows: SampleRows, kept: SampleRows) -> np.ndarray:
    """Number of each row among those that are kept, -1 for the others."""
    starts = np.cumsum([0, *(adata.n_obs for adata in rows.tables)])
    place = np.full(starts[-1], -1)
    place[starts[kept.sample] + kept.row] = np.arange(len(kept))
    return place[starts[rows.sample] + rows.row]  # type: ignore[no-any-return]


def _pitch_um(rows: SampleRows) -> float:
    """Distance of neighbours in µm, which says how large blocks of tissue are; of cells, that of some of them."""
    from scipy.spatial import cKDTree

    pitches = [LEAST_UM]
    for adata in rows.tables:
        places = np.asarray(adata.obsm["spatial"] if "spatial" in adata.obsm else np.empty((0, 2)), np.float64)[:, :2]
        places = places[np.isfinite(places).all(axis=1)]
        if len(places) > 1:
            pitches.append(float(np.median(cKDTree(places).query(places, k=2)[0][:, 1])))
    return max(pitches)


def _say_used(n_spots: int, with_cells: int, kept: int, n_cells: int, outside: int) -> None:
    logger.info(
        "Trained on %d of %d spots: %d have no cells, %d too few counts. Their %d cells are used; %d lie outside of "
        "all spots.",
        kept,
        n_spots,
        n_spots - with_cells,
        with_cells - kept,
        n_cells,
        outside,
    )
