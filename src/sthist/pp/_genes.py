"""Genes: which ones count, and normalised expression beside the counts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sthist import _store
from sthist._messages import plain
from sthist._sample.elements import COUNTS, is_gene
from sthist._sample.samples import over_samples
from sthist._settings import logger
from sthist._tables.expression import find_raw_counts, normalised
from sthist._tables.find import called, find_expression
from sthist._tables.genes import closest, collect_columns

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from anndata import AnnData
    from scipy.sparse import csr_matrix
    from spatialdata import SpatialData

GENE_TYPE = "Gene Expression"
"""What 10x calls genes in ``var["feature_types"]``; the rest are antibodies, guides and controls."""


@over_samples
def genes(
    data: SpatialData | AnnData,
    *,
    table: str | None = None,
    layer: str | None = None,
    genes: Sequence[str] | None = None,
    controls: Sequence[str] | None = None,
    min_cells: int = 0,
    min_counts: int = 0,
    target_sum: float | Literal["median"] | None = 1e4,
    log: bool = True,
    overwrite: bool = False,
) -> None:
    """Choose genes, bring each cell or spot to the same total, and take the logarithm; the counts are kept.

    The steps are scanpy's (:func:`scanpy.pp.normalize_total`, :func:`scanpy.pp.log1p`), in the order in which they
    stand here: controls and other features are left out, genes of one name are summed, ``genes`` and thresholds choose,
    and totals are those of the genes that are left. For totals over all genes call this first, and take the genes that
    you want of the result (``adata[:, genes]``).

    Raw counts are looked for in ``layers["counts"]``, ``X`` and ``raw``, in this order, so that a second call
    (``overwrite=True``) starts from the counts again; genes that a call has left out do not come back.

    Parameters
    ----------
    data
        A SpatialData, or one table, or a mapping of sample name to such. Changed in place.
    table
        Key of the table of a SpatialData; by default the reader's table of cells or spots, else the only one with
        genes.
    layer
        Layer that holds the raw counts where it is none of these, or ``"X"`` for what stands there now.
    genes
        The ``var_names`` to keep, in this order, controls among them. :func:`sthist.pp.match_genes` finds those that
        samples or a model have in common, by symbol or Ensembl id.
    controls
        Prefixes of features that are no genes, case ignored; by default those of Xenium, CosMx and MERSCOPE, and all
        that ``var["feature_types"]`` does not call ``"Gene Expression"``. ``()`` keeps everything.
    min_cells
        Genes seen in fewer cells or spots are left out.
    min_counts
        Genes with fewer counts in all are left out.
    target_sum
        Total of each cell or spot; ``"median"``, that of the sample's cells that are not empty, which differs between
        samples; None leaves the counts as they are.
    log
        Take log(1 + x).
    overwrite
        Replace what an earlier call has made of the table.

    Returns
    -------
    None. Writes into the table, and into the store of a SpatialData that has one, where ``sdata.tables[table]`` is a
    new object then:

    * ``layers["counts"]``: raw counts as CSR, (n_obs, n_genes), of the dtype that they had;
    * ``X``: float32 of the same shape, sparse as CSR, dense if it was dense; rows without counts are 0;
    * ``uns["log1p"]`` as scanpy has it, if ``log``;
    * ``uns["sthist"]["genes"]``: ``target_sum``, ``log``, ``source`` of the counts, ``n_genes_before``, ``n_genes``,
      ``n_controls``, ``n_empty`` rows, and the other arguments.

    ``obs``, ``obsm``, ``raw`` and the link to the regions stay; ``var``, ``varm`` and other layers keep the genes
    chosen, and of genes that were summed the first.

    Raises
    ------
    KeyError
        If there is no such table, layer or gene.
    TypeError
        If ``data`` is nothing of that kind.
    ValueError
        If there are no raw counts, as where ``X`` is log-normalised and nothing else is there; if they have NaN,
        infinite or negative values; if no gene is left, the table is empty, not in memory, or has been through this
        before, or a number is out of range.

    Examples
    --------
    >>> import sthist
    >>> sdata = sthist.datasets.toy(size_um=200)
    >>> sthist.pp.genes(sdata, min_cells=3)
    >>> sdata["table"].uns["sthist"]["genes"]["source"]
    'X'
    >>> int(sdata["table"].layers["counts"].sum()) > 0
    True
    """
    _require_numbers(min_cells, min_counts, target_sum)
    adata, key = _find_table(data, table)
    name = called(key)
    source, counts, features = find_raw_counts(adata, layer, name)
    if not overwrite and "genes" in adata.uns.get("sthist", {}):
        raise ValueError(
            f"{name} has been through pp.genes already. Pass overwrite=True to begin again from its counts."
        )
    kept, n_controls = _chosen_genes(adata, genes, controls, name)
    _say_copies(features[features.isin(kept) & features.duplicated()], name)
    counts = collect_columns(counts, kept.get_indexer(features), len(kept))
    counts, kept = _apply_thresholds(counts, kept, min_cells, min_counts, name)
    n_empty = _say_empty_rows(adata, counts, name)
    normal, total = normalised(counts, target_sum, log)
    made = _store.provenance(
        "pp.genes",
        table=key,
        source=source,
        target_sum=total,
        log=log,
        n_genes_before=adata.n_vars,
        n_genes=len(kept),
        n_controls=n_controls,
        n_empty=n_empty,
        min_cells=min_cells,
        min_counts=min_counts,
        controls=None if controls is None else list(controls),
        chosen=genes is not None,
    )
    logger.info("%s: %d of %d genes, counts from %s.", name, len(kept), adata.n_vars, source)
    if key is not None and _store.store_path(data) is not None:
        # The object keeps its own until the store has the new one: writing can fail.
        changed = adata[:, _columns(adata, kept)].copy()
        _write(changed, counts, normal, made)
        _store.replace_table(data, key, changed)
    else:
        columns = _columns(adata, kept)
        if adata.is_view or not np.array_equal(columns, np.arange(adata.n_vars)):  # a view becomes a table of its own
            adata._inplace_subset_var(columns)
        _write(adata, counts, normal, made)


def _require_numbers(min_cells: int, min_counts: int, target_sum: Any) -> None:
    if min_cells < 0 or min_counts < 0:
        raise ValueError(f"min_cells is {min_cells} and min_counts {min_counts}; they are at least 0.")
    if isinstance(target_sum, str):
        good = target_sum == "median"
    else:
        good = target_sum is None or bool(np.isfinite(target_sum) and target_sum > 0)
    if not good:
        raise ValueError(f"target_sum is {target_sum!r}; it is a positive number, 'median', or None.")


def _find_table(data: Any, table: str | None) -> tuple[AnnData, str | None]:
    """The table, and its key in a SpatialData; a usable one."""
    key, adata = find_expression(data, table)
    if 0 in adata.shape:
        raise ValueError(f"{called(key)} is empty: it has {adata.n_obs} rows and {adata.n_vars} genes.")
    if adata.isbacked:
        raise ValueError(
            f"{called(key)} is backed by {adata.filename}; read it with adata.to_memory(), and write the result."
        )
    return adata, key


def _chosen_genes(
    adata: AnnData, genes: Sequence[str] | None, controls: Sequence[str] | None, name: str
) -> tuple[pd.Index, int]:
    """Names of the genes to keep, each once, and how many columns are controls or no genes."""
    import pandas as pd

    if genes is not None:
        kept = pd.Index([genes] if isinstance(genes, str) else list(genes))
        _require_genes(adata, kept, name)
        return kept, 0
    prefixes = [controls] if isinstance(controls, str) else controls
    keep = np.ones(adata.n_vars, bool)
    if prefixes is None or len(prefixes):
        keep &= is_gene(adata.var_names, prefixes)
        if "feature_types" in adata.var and (adata.var["feature_types"] == GENE_TYPE).any():
            keep &= (adata.var["feature_types"] == GENE_TYPE).to_numpy()
    kept = adata.var_names[keep]
    return kept.unique(), int((~keep).sum())


def _say_copies(copies: pd.Index, name: str) -> None:
    if len(copies):
        logger.warning(
            "%s has %d genes more than once, such as %r: their counts are summed. adata.var_names_make_unique() "
            "before keeps them apart.",
            name,
            copies.nunique(),
            copies[0],
        )


def _require_genes(adata: AnnData, kept: pd.Index, name: str) -> None:
    if kept.has_duplicates:
        raise ValueError(f"genes= has {plain(kept[kept.duplicated()][0])!r} more than once.")
    missing = kept[~kept.isin(adata.var_names)]
    if len(missing):
        raise KeyError(
            f"{name} lacks {len(missing)} of {len(kept)} genes, such as "
            f"{plain(missing[0])!r}.{closest(missing[0], adata.var_names)} pp.match_genes finds those that it has, "
            "also by other columns of var."
        )


def _apply_thresholds(
    counts: csr_matrix, kept: pd.Index, min_cells: int, min_counts: int, name: str
) -> tuple[csr_matrix, pd.Index]:
    n_cells = np.asarray((counts > 0).sum(axis=0)).ravel()
    n_counts = np.asarray(counts.sum(axis=0, dtype=np.float64)).ravel()
    keep = (n_cells >= min_cells) & (n_counts >= min_counts)
    if not keep.any():
        raise ValueError(
            f"No gene of {name[0].lower() + name[1:]} is left: of {len(kept)} genes that are no controls, the "
            f"commonest is in {n_cells.max(initial=0)} of {counts.shape[0]} rows and has {n_counts.max(initial=0):.0f} "
            f"counts. Lower min_cells ({min_cells}) or min_counts ({min_counts}), or keep controls with controls=()."
        )
    return (counts if keep.all() else counts[:, keep]), kept[keep]


def _say_empty_rows(adata: AnnData, counts: csr_matrix, name: str) -> int:
    empty = np.asarray(counts.sum(axis=1)).ravel() == 0
    if empty.any():
        logger.warning(
            "%s: %d of %d rows have no counts of these genes, such as %r; they are kept, all 0.",
            name,
            int(empty.sum()),
            len(empty),
            str(adata.obs_names[empty.argmax()]),
        )
    return int(empty.sum())


def _columns(adata: AnnData, kept: pd.Index) -> np.ndarray:
    """The first column of each gene."""
    first = np.flatnonzero(~adata.var_names.duplicated())
    return first[adata.var_names[first].get_indexer(kept)]


def _write(adata: AnnData, counts: csr_matrix, normalised: AnnData, made: dict[str, Any]) -> None:
    """Put counts, expression and what was done into a table of these genes."""
    adata.layers[COUNTS] = counts
    adata.X = normalised.X.toarray() if isinstance(adata.X, np.ndarray) else normalised.X
    adata.uns.pop("log1p", None)
    adata.uns.update(normalised.uns)
    adata.uns["sthist"] = {**adata.uns.get("sthist", {}), "genes": made}  # a copy of a table shares the mapping
