"""The rows that a predictor is trained on, and those that it is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist._sample.samples import Sample, samples_of
from sthist._settings import logger
from sthist._tables.find import find_expression
from sthist._tables.rows import lie_within, new_table, rows_of
from sthist.pp._embed_source import find_regions
from sthist.training.model import load
from sthist.training.rows import SampleRows

if TYPE_CHECKING:
    from collections.abc import Callable

    from anndata import AnnData

    from sthist.regression.model import RegressionModel

FEW = 10
"""Rows below which a slide is pointed out: they say little of what is typical of it."""


def rows_of_samples(
    data: Any, samples: Any, within: Any, find: Callable[[Any], tuple[str | None, AnnData]]
) -> SampleRows:
    """All rows of the table that is found in each sample, or those that lie within a region, if one is given."""
    listed = samples_of(data, samples)
    keyed = [find(each.data) for each in listed]
    names = [
        f"{'the AnnData' if key is None else f'table {key!r}'} of sample {each.name!r}"
        for each, (key, _) in zip(listed, keyed, strict=True)
    ]
    rows = []
    for each, (_, adata), name in zip(listed, keyed, names, strict=True):
        if adata.n_obs == 0:
            raise ValueError(f"{name} is empty: it has {adata.n_obs} rows and {adata.n_vars} genes.")
        if adata.n_obs < FEW:
            logger.warning("%s has %d rows.", name[0].upper() + name[1:], adata.n_obs)
        rows.append(np.arange(adata.n_obs) if within is None else _inside(each.data, adata, within, name))
    sample = np.repeat(np.arange(len(rows)), [len(each) for each in rows])
    return SampleRows(listed, [adata for _, adata in keyed], names, sample, np.concatenate(rows))


def expression_rows(data: Any, table: str | None, samples: Any, within: Any = None) -> SampleRows:
    """All rows of the tables with genes, of each sample, that lie within a region, if one is given."""
    rows = rows_of_samples(data, samples, within, lambda sample: find_expression(sample, table))
    for adata, name in zip(rows.tables, rows.names, strict=True):
        if adata.n_vars == 0:
            raise ValueError(f"{name} is empty: it has {adata.n_obs} rows and 0 genes.")
    return rows


def _inside(data: Any, adata: AnnData, within: Any, name: str) -> np.ndarray:
    """Numbers of the rows whose centre lies in a region."""
    if "spatial" not in adata.obsm:
        raise KeyError(f"within= needs the places of rows, and {name} has no obsm['spatial'] (x, y in µm).")
    places = np.asarray(adata.obsm["spatial"], np.float64)[:, :2]
    return np.flatnonzero(lie_within(data, places, within, name))


def as_trained(model: Any, kind: Any, verb: str) -> Any:
    """A trained model of a kind, or that of a folder; ``verb`` is what trains such."""
    if isinstance(model, str | Path):
        model = load(model)
    if not isinstance(model, kind):
        raise TypeError(f"model is a model of {verb}, or the folder of one, not {type(model).__name__}.")
    if not model.is_fitted:
        raise ValueError(f"This {type(model).__name__} was not trained: {verb} does it.")
    return model


def rows_of_slide(data: Any, model: RegressionModel, regions: str | None) -> tuple[SampleRows, str | None]:
    """All rows of the table of the regions, and its key; regions without a table get one that is not kept."""
    if hasattr(data, "obs_names"):
        if regions is not None:
            raise ValueError(f"regions={regions!r} names regions of a SpatialData, but an AnnData is given.")
        return _as_rows(data, data, "the AnnData"), None
    found = rows_of(data, regions if regions is not None else _find_regions(data, model))
    adata = new_table(data, found) if found.table is None else data.tables[found.table]
    name = f"table {found.table!r}" if found.table else f"the regions {found.shapes!r}"
    return _as_rows(data, adata, name), found.table


def _as_rows(data: Any, adata: AnnData, name: str) -> SampleRows:
    if adata.n_obs == 0:
        raise ValueError(f"{name[0].upper() + name[1:]} has no rows.")
    return SampleRows([Sample("sample", data)], [adata], [name], np.zeros(adata.n_obs, int), np.arange(adata.n_obs))


def _find_regions(sdata: Any, model: RegressionModel) -> str:
    """The table that has the model's embeddings, else tiles or spots, else the only table."""
    keys = model.config.embeddings
    having = [name for name, adata in sdata.tables.items() if keys and all(key in adata.obsm for key in keys)]
    if len(having) == 1:
        return having[0]
    try:
        return find_regions(sdata)
    except ValueError:
        if len(sdata.tables) != 1:
            raise
        return str(next(iter(sdata.tables)))
