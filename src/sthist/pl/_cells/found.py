"""What colours or ranks cells: a column, a gene, or the scores of a type."""

from __future__ import annotations

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
        known = [str(name) for adata in sdata.tables.values() for name in (*adata.obs, *adata.var_names)]
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
    return name in adata.obs or name in adata.var_names


def column_or_gene(adata: AnnData, name: str, layer: str | None, where: str) -> pd.Series:
    """A column of ``obs``, else the expression of a gene in ``X`` or a layer."""
    import pandas as pd

    if name in adata.obs and layer is None:
        return adata.obs[name]
    if name not in adata.var_names:
        known = [*map(str, adata.obs), *map(str, adata.var_names)]
        raise KeyError(
            f"{where} has no column or gene {name!r}; it has {listed(map(str, adata.obs))} and {adata.n_vars} genes."
            f"{closest(name, known)}"
        )
    return pd.Series(gene_values(adata, name, layer, where), index=adata.obs_names, name=name)


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
