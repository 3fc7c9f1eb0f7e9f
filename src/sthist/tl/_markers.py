"""Marker genes of cell types, as they are given, or of single cells."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist._messages import listed, plain
from sthist._settings import logger
from sthist._tables.expression import log_expression
from sthist._tables.genes import closest, match_names, names_of_table
from sthist._tables.labels import as_classes

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

TYPE_COLUMNS = ("cell_type", "type", "group")
GENE_COLUMNS = ("gene", "names")
"""Columns of a table with a row for each marker; the last of each are scanpy's."""

MAX_Q = 0.05


def read_markers(markers: Any, adata: AnnData, labels: str | None, n_top: int) -> dict[str, list[str]]:
    """Genes of each type, each once; of single cells, those that tell a type among the genes of a table."""
    if hasattr(markers, "obs_names"):
        return _of_cells(markers, adata, labels, n_top)
    if labels is not None:
        raise ValueError(f"labels={labels!r} names the types of single cells, and markers are genes: leave it out.")
    if hasattr(markers, "columns"):
        found = _of_frame(markers)
    elif isinstance(markers, Mapping):
        found = {plain(kind): [genes] if isinstance(genes, str) else list(genes) for kind, genes in markers.items()}
    else:
        raise TypeError(
            "markers are a mapping of type to genes, a DataFrame of genes, or single cells (an AnnData), not "
            f"{type(markers).__name__}."
        )
    if not found:
        raise ValueError("There are no markers: the mapping is empty.")
    empty = [kind for kind, genes in found.items() if not len(genes)]
    if empty:
        raise ValueError(f"There are no markers of {listed(empty)}: name genes, or leave the type out.")
    for kind, genes in found.items():
        if not isinstance(kind, str) or not kind.strip():
            raise ValueError(f"The name of a type is a text that is not empty, not {kind!r}.")
        wrong = [plain(name) for name in genes if not isinstance(name, str)]
        if wrong:
            raise TypeError(f"Markers of {kind!r} are names of genes, not {wrong[0]!r}.")
    if "unknown" in found:
        raise ValueError("A type is called 'unknown', as cells are that have none: give it another name.")
    return {kind: list(dict.fromkeys(map(str, genes))) for kind, genes in found.items()}


def _of_frame(frame: pd.DataFrame) -> dict[str, list[str]]:
    """A column of genes for each type, or a row for each gene and its type."""
    kind = next((name for name in TYPE_COLUMNS if name in frame), None)
    gene = next((name for name in GENE_COLUMNS if name in frame), None)
    if kind is not None and gene is not None:
        rows = frame[[kind, gene]].dropna()
        groups = rows.groupby(kind, sort=False, observed=True)[gene]
        return {str(name): genes.tolist() for name, genes in groups}
    numbers = [plain(name) for name in frame if frame[name].dtype.kind in "biuf" and frame[name].notna().any()]
    if numbers:
        raise TypeError(
            f"Column {numbers[0]!r} of the markers holds numbers. A DataFrame has a column of genes for each type; or "
            f"a row for each gene, its type in one of {list(TYPE_COLUMNS)}, its name in one of {list(GENE_COLUMNS)}."
        )
    return {str(name): frame[name].dropna().tolist() for name in frame}


def _of_cells(cells: AnnData, adata: AnnData, labels: str | None, n_top: int) -> dict[str, list[str]]:
    """Genes that are higher in the single cells of a type than in all others, by scanpy's Wilcoxon test."""
    import anndata as ad
    import pandas as pd
    import scanpy as sc

    if labels is None or labels not in cells.obs:
        what = "labels= names the column with the types of the single cells"
        raise KeyError(
            f"{what}; obs has {listed(map(str, cells.obs))}.{'' if labels is None else closest(labels, cells.obs)}"
        )
    if isinstance(n_top, bool) or int(n_top) != n_top or n_top < 1:
        raise ValueError(f"n_top is {n_top!r}; it is a whole number from 1 on.")
    codes, names = as_classes(cells.obs[labels], f"Column {labels!r} of the single cells")
    sizes = np.bincount(codes[codes >= 0], minlength=len(names))
    small = [name for name, n in zip(names, sizes, strict=True) if n < 2]
    if small:
        logger.warning("Types of fewer than two cells have no markers, and are left out: %s.", listed(small))
    kept = np.flatnonzero((codes >= 0) & (sizes[codes] > 1))
    match = match_names({"data": names_of_table(adata), "reference": names_of_table(cells)}, "reference")
    values = log_expression(_with_logs(cells), "the single cells")[kept][:, match.index["reference"]]
    types = pd.Categorical(np.array(names, dtype=object)[codes[kept]])
    if len(types.categories) < 2:
        raise ValueError(f"Column {labels!r} has one type of more than one cell; markers tell two or more.")
    light = ad.AnnData(values, obs=pd.DataFrame({"type": types}, index=[str(i) for i in kept]))
    light.var_names = list(map(str, match.names))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=pd.errors.PerformanceWarning)
        warnings.filterwarnings("ignore", message="invalid value encountered in log2", category=RuntimeWarning)
        sc.tl.rank_genes_groups(light, "type", method="wilcoxon", use_raw=False)
    found = {}
    for name in types.categories:
        frame = sc.get.rank_genes_groups_df(light, name)
        best = frame[(frame["scores"] > 0) & (frame["pvals_adj"] < MAX_Q)]
        found[str(name)] = best["names"].head(int(n_top)).tolist()
    none = [name for name, genes in found.items() if not genes]
    if none:
        logger.warning("No gene of the table tells these types from the others; they are left out: %s.", listed(none))
    found = {name: genes for name, genes in found.items() if genes}
    if not found:
        raise ValueError(f"No gene tells the types of {labels!r} from each other: there are no markers.")
    return found


def _with_logs(cells: AnnData) -> AnnData:
    """Single cells with what can be compared in X: of those whose X was scaled, what ``raw`` keeps."""
    from scipy.sparse import issparse

    values = cells.X.data if issparse(cells.X) else cells.X
    scaled = cells.X is not None and np.min(values, initial=0) < 0
    if scaled and cells.raw is not None and "counts" not in cells.layers:
        return cells.raw.to_adata()
    return cells
