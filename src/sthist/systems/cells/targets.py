"""Expression of spots as sCellST is trained on it: filtered, normalised and scaled slide by slide, or counts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sthist._messages import listed, plain
from sthist._sample.counts import fault_of_counts
from sthist._settings import logger
from sthist._tables.expression import TARGET_SUM, find_raw_counts, log_expression
from sthist._tables.genes import match_names, names_of_list, names_of_table
from sthist.regression.data.expression import chosen, expression_targets, most_expressed
from sthist.regression.data.targets import Targets, as_targets

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from scipy.sparse import csr_matrix

    from sthist.training.rows import SampleRows

MIN_GENE_COUNTS = 200
MIN_SPOT_COUNTS = 20
MIN_PART = 10
"""A gene is seen in one of so many spots, or more."""

MIN_CELLS = 5
"""Cells that a gene is seen in, where each row is one."""

DROPPED = "MT-"
"""Before the names of mitochondrial genes, which the published code leaves out."""

QUANTILE = 95.0
AT_ONCE = 2**24
"""Values that are looked at together."""


@dataclass(frozen=True, eq=False)
class CellTargets(Targets):
    """Logarithms that are scaled slide by slide, or counts divided by the size factors of their rows."""

    scale: np.ndarray | None = None  # (samples, outputs) that logarithms were divided by
    size_factor: np.ndarray | None = None  # (n,) that counts were divided by: total over the median of the slide
    library: np.ndarray | None = None  # (samples,) median total


def as_cell_targets(values: Any, loss: str, scaling: str | None, library: Any = None) -> CellTargets:
    """What a model is to predict of rows, of an array, a data frame or an AnnData, as its loss takes it."""
    if isinstance(values, CellTargets):
        return values
    names = None
    if hasattr(values, "var_names"):
        values, names = values.X, values.var_names
    plain_targets = as_targets(values, names)
    if not plain_targets.names:
        raise ValueError("There are no genes to predict.")
    if loss == "mse":
        if library is not None:
            raise ValueError("library= is for the negative binomial of counts; this loss is 'mse'.")
        return CellTargets(**vars(plain_targets)) if scaling is None else scaled(plain_targets, scaling)
    return divided_counts(plain_targets, library)


def scaled(targets: Targets, by: str = "slide") -> CellTargets:
    """Logarithms divided, slide by slide or all alike, by the range from their least to their 95th percentile.

    That is scikit-learn's ``RobustScaler(with_centering=False, quantile_range=(0, 95))``, which leaves genes that have
    no such range as they are.
    """
    from scipy.sparse import csr_matrix, issparse

    scale = np.ones((len(targets.measured), len(targets.names)), np.float32)
    group = targets.sample if by == "slide" else np.zeros_like(targets.sample)
    for sample in np.unique(group):
        rows = np.flatnonzero(group == sample)
        step = max(1, AT_ONCE // len(rows))
        for start in range(0, len(targets.names), step):
            part = targets.dense(rows, slice(start, start + step))
            low, high = part.min(axis=0), np.percentile(part, QUANTILE, axis=0)
            spread = high - low
            those = sample if by == "slide" else slice(None)
            scale[those, start : start + step] = np.where(spread > 10 * np.finfo(np.float32).eps, spread, 1)
    if issparse(targets.values):
        values = csr_matrix(targets.values, copy=True)
        by_row = np.repeat(targets.sample, np.diff(values.indptr))
        values.data = values.data / scale[by_row, values.indices]
    else:
        values = targets.values / scale[targets.sample]
    return CellTargets(targets.names, values, targets.sample, targets.measured, scale=scale)


def divided_counts(targets: Targets, library: Any = None) -> CellTargets:
    """Raw counts divided by the size factor of each row, its total over the median one of its slide."""
    from scipy.sparse import diags, issparse

    values: Any = targets.values
    found = values.data if issparse(values) else values
    fault = fault_of_counts(found)
    if fault is not None:
        shown = plain(np.ravel(found)[fault.first])
        raise ValueError(
            f"The negative binomial is of raw counts, and {fault.n} values are {fault.what}, such as {shown:.6g}"
            f"{fault.looks}. Give the counts, or train with loss='mse'."
        )
    total = np.asarray(values.sum(axis=1) if library is None else library, np.float64).ravel()
    if len(total) != len(targets):
        raise ValueError(f"library= has {len(total)} totals, and there are {len(targets)} rows.")
    wrong = np.flatnonzero(~(np.isfinite(total) & (total > 0)))
    if len(wrong):
        raise ValueError(
            f"{len(wrong)} rows have no counts, first row {plain(wrong[0])}, and so no size factor: leave them out, or "
            "give library=, the totals over all genes."
        )
    n_samples = len(targets.measured)
    median = np.array([np.median(total[targets.sample == each]) for each in range(n_samples)])
    factor = total / median[targets.sample]
    # Of a size in double precision, so that the product of both is the count again.
    divided: Any = diags(1 / factor) @ values if issparse(values) else values / factor[:, None]
    if issparse(divided):
        divided = divided.tocsr()
    return CellTargets(
        targets.names,
        divided.astype(np.float32),
        targets.sample,
        targets.measured,
        size_factor=factor.astype(np.float32),
        library=median.astype(np.float32),
    )


def kept_rows(
    rows: SampleRows,
    level: Literal["spot", "cell"],
    genes: Sequence[str] | int | None,
    *,
    counts: bool,
    filter_genes: bool,
) -> SampleRows:
    """Rows of enough counts, of tables without the genes of too few; genes that are listed stay.

    Tables have raw counts then, or, where they have none and ``counts`` are not needed, are as they were.
    """
    import anndata as ad

    tables, enough = [], []
    for adata, name in zip(rows.tables, rows.names, strict=True):
        called = name[0].upper() + name[1:]
        try:
            _, matrix, features = find_raw_counts(adata, None, called)
        except ValueError:
            if counts:
                raise
            logger.info("%s has no raw counts: no gene and no row is left out.", called)
            tables.append(adata)
            enough.append(np.ones(adata.n_obs, bool))
            continue
        matrix = matrix if features.equals(adata.var_names) else matrix[:, features.get_indexer(adata.var_names)]
        kept, those = np.ones(adata.n_vars, bool), np.asarray(matrix.sum(axis=1)).ravel() > 0
        if filter_genes:
            kept, those = filtered(matrix, adata.var_names, level, _listed_columns(adata, genes))
            logger.info(
                "%s: %d of %d genes and %d of %d rows are kept.", called, kept.sum(), len(kept), those.sum(), len(those)
            )
        if not kept.any() or not those.any():
            raise ValueError(
                f"{called}: no {'row' if kept.any() else 'gene'} has enough counts. A gene needs {MIN_GENE_COUNTS} in "
                f"all and has to be seen in a tenth of the spots, a spot needs {MIN_SPOT_COUNTS}; of cells, a gene has "
                f"to be in {MIN_CELLS}. To keep all genes: model=sthist.models.SCellSTConfig(filter_genes=False)."
            )
        tables.append(ad.AnnData(matrix[:, kept], obs=adata.obs[[]], var=adata.var[kept]))
        enough.append(those)
    there = np.array([enough[sample][row] for sample, row in zip(rows.sample, rows.row, strict=True)], bool)
    return replace(rows, tables=tables, sample=rows.sample[there], row=rows.row[there])


def filtered(
    counts: csr_matrix, names: Any, level: Literal["spot", "cell"] = "spot", listed: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Which genes and which rows are kept, (genes,) and (n,) bool, by the published thresholds and in their order.

    Of spots: genes of 200 counts or more in all, that are seen in a tenth of the spots or more; spots of 20 counts or
    more of these; and of the genes those that are not mitochondrial. Of cells: genes that five have, cells with any.
    Columns that are ``listed`` stay.
    """
    seen = np.asarray((counts > 0).sum(axis=0)).ravel()
    if level == "spot":
        total = np.asarray(counts.sum(axis=0, dtype=np.float64)).ravel()
        genes, least = (total >= MIN_GENE_COUNTS) & (seen >= counts.shape[0] // MIN_PART), MIN_SPOT_COUNTS
    else:
        genes, least = seen >= MIN_CELLS, 1
    chosen_ones = np.zeros(len(genes), bool)
    chosen_ones[[] if listed is None else listed] = True
    rows = np.asarray(counts[:, genes | chosen_ones].sum(axis=1, dtype=np.float64)).ravel() >= least
    return genes & ~np.char.startswith(np.asarray(names, str), DROPPED) | chosen_ones, rows


def _listed_columns(adata: AnnData, genes: Sequence[str] | int | None) -> np.ndarray | None:
    """The columns of genes that are asked for by name."""
    if genes is None or isinstance(genes, int):
        return None
    sides = {"data": names_of_table(adata), "genes": names_of_list(genes)}
    return match_names(sides, "genes", min_overlap=0).index["data"]


def cell_targets(rows: SampleRows, genes: Sequence[str] | int | None, loss: str, scaling: str | None) -> CellTargets:
    """Expression of rows that are kept, of the genes that all samples have."""
    read = log_expression if loss == "mse" else _counts
    found = _of_all(expression_targets(rows, None if isinstance(genes, int) else genes, read), rows)
    found = most_expressed(found, genes) if isinstance(genes, int) else found
    if loss == "mse":
        return CellTargets(**vars(found)) if scaling is None else scaled(found, scaling)
    totals = [np.asarray(adata.X.sum(axis=1, dtype=np.float64)).ravel() for adata in rows.tables]
    return divided_counts(found, [totals[sample][row] for sample, row in zip(rows.sample, rows.row, strict=True)])


def _counts(adata: AnnData, name: str) -> csr_matrix:
    return adata.X


def _of_all(targets: Targets, rows: SampleRows) -> Targets:
    """The genes that all samples have; which others there are is said."""
    if len(rows.tables) > 1:
        logger.info(
            "%d genes are in all %d samples, which have %s.",
            int(targets.measured.all(axis=0).sum()),
            len(rows.tables),
            listed(adata.n_vars for adata in rows.tables),
        )
    common = np.asarray(targets.measured.all(axis=0))
    if common.all():
        return targets
    missing = [name for name, there in zip(targets.names, common, strict=True) if not there]
    logger.warning("%d genes are not in all samples, and are left out: %s.", len(missing), listed(missing))
    if not common.any():
        raise ValueError("No gene is in all samples.")
    return chosen(targets, np.flatnonzero(common))


def log_of_counts(mean: np.ndarray, library: float) -> np.ndarray:
    """Mean counts at a total as log(1 + 1e4 y / total)."""
    return np.log1p(mean * (TARGET_SUM / library)).astype(np.float32)
