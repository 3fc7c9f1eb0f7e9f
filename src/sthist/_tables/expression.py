"""Expression as numbers to compare: raw counts, wherever a table has them, and their logarithms."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist._sample.counts import fault_of_counts
from sthist._sample.elements import COUNTS
from sthist._settings import logger
from sthist._tables.find import called
from sthist._tables.genes import closest

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from scipy.sparse import csr_matrix

TARGET_SUM = 1e4
"""What each row is brought to before logarithms are taken, where nothing else was asked for."""

AS_IT_IS = "X as it is"
LOG = "log1p of counts"
"""How a description of expression begins of which it is known how it was normalised."""


@dataclass(frozen=True)
class Depth:
    """Expression as a slide of so many counts a row would show it."""

    counts: float  # median of the sample's rows
    draws: int  # of which the mean is taken: 1 for what one such slide shows
    seed: int


def log_expression(adata: AnnData, name: str, depth: Depth | None = None) -> csr_matrix:
    """Log-normalised expression of all genes of a table, (n_obs, n_vars) CSR float32.

    What ``pp.genes`` has made is taken as it is; raw counts are brought to 10,000 in all and logarithms taken; what is
    neither, and has no negative values, is taken for the logarithms that it looks like.
    """
    from scipy.sparse import csr_matrix

    made = adata.uns.get("sthist", {}).get("genes")
    if made is not None and made.get("log") and depth is None:
        return csr_matrix(adata.X, dtype=np.float32)
    try:
        source, counts, features = find_raw_counts(adata, None, called(None))
    except ValueError as error:
        if depth is not None:
            raise ValueError(f"depth= needs raw counts, which {name} has not. ({error})") from None
        matrix = csr_matrix(adata.X, dtype=np.float32)
        values = matrix.data
        if not np.isfinite(values).all() or (len(values) and values.min() < 0):
            raise ValueError(
                f"{name[0].upper() + name[1:]} has neither raw counts nor logarithms of them: X has values that are "
                f"{'negative' if np.isfinite(values).all() else 'NaN or infinite'}. Start from the counts: pp.genes. "
                f"({error})"
            ) from None
        logger.info("%s has no raw counts; X is taken for log-normalised expression.", name[0].upper() + name[1:])
        return matrix
    logger.info("%s: counts from %s are brought to %d a row, and logarithms taken.", name, source, TARGET_SUM)
    if not features.equals(adata.var_names):
        counts = counts[:, features.get_indexer(adata.var_names)]
    if depth is not None:
        return thinned(counts, depth)
    return csr_matrix(normalised(counts, TARGET_SUM, True)[0].X)


def describe(adata: AnnData) -> str:
    """What :func:`log_expression` takes for the expression of a table: what was normalised, and how."""
    made = adata.uns.get("sthist", {}).get("genes")
    if made is not None and made.get("log"):
        total = made.get("target_sum")
        return LOG if total is None else f"{LOG} at {float(total):g} a row"
    try:
        find_raw_counts(adata, None, called(None))
    except ValueError:
        return AS_IT_IS
    return f"{LOG} at {TARGET_SUM:g} a row"


def thinned(counts: csr_matrix, depth: Depth) -> csr_matrix:
    """Mean log-normalised expression of counts of which only a part was seen, (n, genes) CSR float32."""
    from scipy.sparse import csr_matrix

    totals = np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()
    share = min(1.0, depth.counts / max(float(np.median(totals)), 1.0))
    rng = np.random.default_rng([depth.seed, depth.draws])
    whole, total = counts.data.astype(np.int64), csr_matrix(counts.shape, dtype=np.float32)
    for _ in range(depth.draws):
        places = counts.indices.copy(), counts.indptr.copy()  # taking zeros away changes them
        drawn = csr_matrix((rng.binomial(whole, share), *places), counts.shape)
        drawn.eliminate_zeros()
        total = total + csr_matrix(normalised(drawn, TARGET_SUM, True)[0].X)
    return csr_matrix(total / depth.draws, dtype=np.float32)


def find_raw_counts(adata: AnnData, layer: str | None, name: str) -> tuple[str, csr_matrix, pd.Index]:
    """Where the counts are, the counts, and the names of their columns."""
    if layer == "X":
        candidates = {"X": (adata.X, adata.var_names)}
    elif layer is not None:
        if layer not in adata.layers:
            raise KeyError(f"{name} has no layer {layer!r}; it has {list(adata.layers)}.{closest(layer, adata.layers)}")
        candidates = {f"layers[{layer!r}]": (adata.layers[layer], adata.var_names)}
    elif COUNTS in adata.layers:
        # A layer of this name that holds no counts would be overwritten by going on.
        candidates = {f"layers[{COUNTS!r}]": (adata.layers[COUNTS], adata.var_names)}
    else:
        candidates = {"X": (adata.X, adata.var_names)}
        if adata.raw is not None and adata.var_names.isin(adata.raw.var_names).all():
            candidates["raw"] = (adata.raw.X, adata.raw.var_names)
    faults: dict[str, str] = {}
    for source, (matrix, features) in candidates.items():
        counts, fault = _read_counts(matrix, adata.obs_names, features)
        if counts is not None:
            if source == "raw":
                logger.info(
                    "%s: X %s; counts come from raw. Functions of scanpy that read raw by default take use_raw=False.",
                    name,
                    faults["X"],
                )
            return source, counts, features
        faults[source] = fault
    reasons = "; ".join(f"{source} {fault}" for source, fault in faults.items())
    raise ValueError(
        f"{name} has no raw counts: {reasons}. Read the file that has them, put them in layers['counts'], or name "
        f"their layer with layer= (there are {list(adata.layers)})."
    )


def _read_counts(matrix: Any, rows: pd.Index, features: pd.Index) -> tuple[csr_matrix | None, str]:
    """The matrix as CSR, or None and why it holds no counts."""
    from scipy.sparse import csr_matrix, issparse

    if matrix is None:
        return None, "is not there"
    if not (issparse(matrix) or isinstance(matrix, np.ndarray)):
        return None, f"is a {type(matrix).__name__}, not in memory (adata.to_memory() reads it)"
    counts = csr_matrix(matrix)
    values = counts.data
    if values.dtype.kind not in "biuf":
        return None, f"is of dtype {values.dtype}"
    fault = fault_of_counts(values)
    if fault is None:
        return counts, ""
    row = int(np.searchsorted(counts.indptr, fault.first, side="right")) - 1
    shown = f"{values[fault.first]:.6g} of gene {features[counts.indices[fault.first]]!r} in {rows[row]!r}"
    return None, f"has {fault.n} values that are {fault.what}, such as {shown}{fault.looks}"


def normalised(counts: csr_matrix, target_sum: Any, log: bool) -> tuple[AnnData, float | None]:
    """A table of normalised expression alone, and the total that its rows have."""
    import anndata as ad
    import scanpy as sc

    normalised = ad.AnnData(counts.astype(np.float32))
    if target_sum == "median":
        totals = np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()
        target_sum = np.median(totals[totals > 0]) if totals.any() else None
    if target_sum is not None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Some cells have zero counts", category=UserWarning)
            sc.pp.normalize_total(normalised, target_sum=float(target_sum))
    if log:
        sc.pp.log1p(normalised)
    return normalised, None if target_sum is None else float(target_sum)
