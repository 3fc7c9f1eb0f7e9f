"""What colours or ranks regions: a column, a gene, a feature, or the scores of a type."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist import _sample
from sthist._messages import listed
from sthist._tables.find import called, find_table
from sthist._tables.genes import closest
from sthist._tables.labels import class_names
from sthist._tables.rows import Rows, rows_of

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from spatialdata import SpatialData


def rows_with(sdata: SpatialData, color: str, table: str | None, layer: str | None = None) -> tuple[Rows, AnnData]:
    """Rows that have a column or gene, and their table: those of the cells, where theirs has it, then of the nuclei."""
    if table is None and not any(_has(adata, color) for adata in sdata.tables.values()):
        known = [name for adata in sdata.tables.values() for name in _names(adata)]
        raise KeyError(
            f"No table has a column or gene {color!r}. {_sample.describe('tables', sdata.tables)}"
            f"{closest(color, known)}"
        )
    table = table or _usual_table(sdata, color)
    key, adata = find_table(sdata, table, lambda adata: _has(adata, color), f"a column or gene {color!r}", color)
    column_or_gene(adata, color, layer, called(key))
    return rows_of(sdata, str(key)), adata


def _usual_table(sdata: SpatialData, color: str) -> str | None:
    """The table of the cells, else of the nuclei, that has it, a column before a gene; None if it is to be found."""
    usual = [key for key in (_sample.find_cell_table(sdata), "nuclei_table") if key in sdata.tables]
    columns = [key for key, adata in sdata.tables.items() if color in adata.obs]
    if columns:
        return next((key for key in usual if key in columns), columns[0] if len(columns) == 1 else None)
    return next((str(key) for key in usual if color in sdata.tables[key].var_names), None)


def _has(adata: AnnData, name: str) -> bool:
    return name in adata.obs or name in adata.var_names or bool(_obsm_columns(adata, name))


def _names(adata: AnnData) -> list[str]:
    """All that a table can be coloured by."""
    columns = [column for key in adata.obsm for column in obsm_names(adata, key)]
    return [*map(str, adata.obs), *map(str, adata.var_names), *columns]


def obsm_names(adata: AnnData, key: str) -> list[str]:
    """Names of the columns of something in ``obsm``: those of a frame, or of features that were named in ``uns``."""
    values = adata.obsm[key]
    if hasattr(values, "columns"):
        return class_names(adata, re.sub("_scores?$", "", key), values.columns)
    named = adata.uns.get(f"{key}_features")  # with their meanings
    return [] if named is None or len(named) != values.shape[1] else list(map(str, named.index))


def _obsm_columns(adata: AnnData, name: str) -> list[tuple[str, int]]:
    """Columns in ``obsm`` that a name stands for: that of a column, or ``"key:column"``, also by its number."""
    key, _, column = name.partition(":")
    if column and key in adata.obsm:
        names = obsm_names(adata, key)
        if column in names:
            return [(key, names.index(column))]
        if column.isdecimal() and adata.obsm[key].ndim == 2 and int(column) < adata.obsm[key].shape[1]:
            return [(key, int(column))]
    found = [(key, obsm_names(adata, key)) for key in adata.obsm]
    return [(key, names.index(name)) for key, names in found if name in names]


def column_or_gene(adata: AnnData, name: str, layer: str | None, where: str) -> pd.Series:
    """A column of ``obs``, else the expression of a gene in ``X`` or a layer, else a column in ``obsm``."""
    import pandas as pd

    if name in adata.obs and layer is None:
        return adata.obs[name]
    if name in adata.var_names:
        return pd.Series(gene_values(adata, name, layer, where), index=adata.obs_names, name=name)
    columns = _obsm_columns(adata, name)
    if len(columns) > 1:
        which = " or ".join(repr(f"{key}:{name}") for key, _ in columns)
        raise ValueError(f"{where} has a column {name!r} in several arrays of obsm: say {which}.")
    if not columns:
        raise KeyError(
            f"{where} has no column or gene {name!r}; it has {listed(map(str, adata.obs))} and {adata.n_vars} genes."
            f"{closest(name, _names(adata))}"
        )
    ((key, place),) = columns
    values: Any = adata.obsm[key]
    values = values.iloc[:, place].to_numpy() if hasattr(values, "iloc") else np.asarray(values[:, place])
    return pd.Series(np.asarray(values, np.float64), index=adata.obs_names, name=name)


def gene_values(adata: AnnData, gene: str, layer: str | None, where: str) -> np.ndarray:
    """Expression of a gene, (n,) float64."""
    if layer is not None and layer not in adata.layers:
        raise KeyError(f"{where} has no layer {layer!r}; it has {list(adata.layers)}.{closest(layer, adata.layers)}")
    matrix = adata.X if layer is None else adata.layers[layer]
    if matrix is None:
        raise ValueError(f"{where} has no X; name a layer with layer=: there are {list(adata.layers)}.")
    place = int(np.flatnonzero(adata.var_names == gene)[0])
    column: Any = matrix[:, place]
    column = column.compute() if hasattr(column, "compute") else column
    column = column.toarray() if hasattr(column, "toarray") else column
    return np.asarray(column, np.float64).ravel()


def type_scores(adata: AnnData, key: str) -> dict[str, np.ndarray] | None:
    """Scores of :func:`sthist.tl.cell_types` by type, as they were called; None where there are none."""
    frame = adata.obsm.get(f"{key}_scores")
    if frame is None or not hasattr(frame, "columns"):
        return None
    names = class_names(adata, key, frame.columns)
    return {name: frame[column].to_numpy(np.float64) for name, column in zip(names, frame.columns, strict=True)}
