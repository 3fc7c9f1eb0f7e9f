"""Types of cells, by how much of the markers of each type a cell has."""

from __future__ import annotations

import random
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist import _store
from sthist._messages import listed
from sthist._sample.counts import fault_of_counts
from sthist._sample.samples import over_samples
from sthist._settings import logger, settings
from sthist._tables.expression import TARGET_SUM
from sthist._tables.find import called, find_table, require_free
from sthist._tables.genes import closest, match_names, names_of_list, names_of_table
from sthist._tables.labels import column_names
from sthist._tables.rows import write_columns
from sthist.tl._markers import read_markers

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import pandas as pd
    from anndata import AnnData
    from spatialdata import SpatialData

UNKNOWN = "unknown"
FEW_GENES = 3
"""A type whose score is the mean of fewer genes is named in a warning."""

BLOCK_ROWS = 20_000
"""Cells that are in memory at a time."""


@over_samples
def cell_types(
    data: SpatialData | AnnData,
    markers: Mapping[str, Sequence[str]] | pd.DataFrame | AnnData,
    *,
    labels: str | None = None,
    n_top: int = 20,
    table: str | None = None,
    layer: str | None = None,
    target_sum: float | None = TARGET_SUM,
    min_genes: int = 1,
    min_score: float = 0.0,
    min_margin: float = 0.0,
    key_added: str = "cell_type",
    overwrite: bool = False,
    seed: int | None = None,
) -> None:
    """Call the type of each cell by the type whose markers it has most of.

    As Chadoutaud et al. (2026): cells are brought to one total, genes to mean 0 and variance 1 over the cells, and the
    score of a type is the mean of its markers less the mean of control genes that are expressed as much (those of
    :func:`scanpy.tl.score_genes`, chosen by their means before genes are standardised). Adding a constant to all
    standardised genes changes no score. A score says how a cell stands among the cells of its slide: types are told
    from each other where they are there.

    Parameters
    ----------
    data
        One sample or an AnnData with expression of cells, measured or of :func:`sthist.tl.cell_expression`; or a
        mapping of name to such: genes are standardised within each.
    markers
        Genes of each type: a mapping of type to genes; a DataFrame with one column of genes per type, or with a row for
        each gene and the columns ``"cell_type"`` (or ``"type"``, ``"group"``) and ``"gene"`` (or ``"names"``); or
        single cells, an AnnData with types in ``obs[labels]``, of which those genes that the cells have, too, are
        compared (Wilcoxon's test of scanpy, each type against all others), and the best of each type are taken.
    labels
        Column with the types of single cells.
    n_top
        How many genes are taken of each of these types, at most: those that are higher in it, with a false discovery
        rate below 0.05.
    table
        Key of the table; by default the only one with genes, but for that of the spots.
    layer
        Layer with the expression; ``X`` by default.
    target_sum
        Total that each cell is brought to. Raw counts are then log-transformed; other values, such as predictions, are
        not, and what :func:`sthist.pp.genes` has normalised stays as it is. None leaves all as it is.
    min_genes
        Types with fewer markers among the genes of the table are left out, which is said.
    min_score
        A cell is ``"unknown"`` unless its best score is above this. At 0, it has more of some type's markers than of
        genes like them.
    min_margin
        It is unknown, too, unless its best score is this much above the second.
    key_added
        Name of the result.
    overwrite
        Replace a result of this name.
    seed
        Of the choice of control genes; ``settings.seed`` by default.

    Returns
    -------
    None. Writes into the table, also in the store of a backed object:

    * ``obs[key_added]``: categorical, the types in the order of ``markers``, then ``"unknown"``;
    * ``obsm[key_added + "_scores"]``: DataFrame of float64, one column per type; NaN for cells whose expression is;
    * ``uns["sthist"][key_added]``: what was done; ``markers`` that counted and ``left_out``, by type; how many cells of
      each type there are; ``classes``, the types by column.

    Raises
    ------
    KeyError
        If there is no such table, layer or column.
    ValueError
        If there are no markers, none is among the genes, values to be brought to one total are negative, nothing
        varies, a result's name is taken, or a number is none.
    TypeError
        If markers are none of these.

    Examples
    --------
    >>> import sthist
    >>> sdata = sthist.datasets.toy(size_um=300)
    >>> markers = {"epithelial": ["EPCAM", "KRT8"], "fibroblast": ["COL1A1", "DCN"]}
    >>> sthist.tl.cell_types(sdata, markers, key_added="call")
    >>> sdata["table"].obs["call"].cat.categories.tolist()
    ['epithelial', 'fibroblast', 'unknown']
    """
    import pandas as pd

    for name, number in (("min_score", min_score), ("min_margin", min_margin)):
        if not np.isfinite(number):
            raise ValueError(f"{name} is {number!r}; it is a finite number, in the unit of the scores.")
    if target_sum is not None and not (np.isfinite(target_sum) and target_sum > 0):
        raise ValueError(f"target_sum is {target_sum!r}; it is a positive number, or None.")
    key, adata = _find_cells(data, table)
    require_free(adata, called(key), [key_added], [f"{key_added}_scores"], overwrite=overwrite)
    expression = _Expression(adata, layer, called(key), target_sum)
    asked = read_markers(markers, adata, labels, n_top)
    found = _found(asked, adata, called(key), min_genes)
    seed = settings.seed if seed is None else seed
    scores = expression.scores(list(found.columns.values()), seed)
    codes = _call(scores, min_score, min_margin)
    types = list(found.columns)
    call = pd.Categorical.from_codes(codes, categories=pd.Index([*types, UNKNOWN], dtype=object))
    counts = {
        name: int(n) for name, n in zip(call.categories, np.bincount(codes, minlength=len(types) + 1), strict=True)
    }
    logger.info("Types of the %d cells: %s.", len(codes), ", ".join(f"{name} {n}" for name, n in counts.items()))
    columns = column_names(types)
    made = _store.provenance(
        "tl.cell_types",
        layer=layer,
        target_sum=target_sum,
        normalized=expression.how,
        min_score=float(min_score),
        min_margin=float(min_margin),
        seed=int(seed),
        markers={column: found.names[name] for column, name in zip(columns, types, strict=True)},
        left_out=found.left_out,
        n_cells=dict(zip([*columns, UNKNOWN], counts.values(), strict=True)),
        classes=dict(zip(columns, types, strict=True)),
    )
    obsm = {f"{key_added}_scores": pd.DataFrame(scores, columns=columns)}
    write_columns(data, key, adata, key_added, made, obs={key_added: call}, obsm=obsm)


def _find_cells(data: Any, table: str | None) -> tuple[str | None, AnnData]:
    """The table whose cells are meant: of several with genes, spots do not count."""
    from sthist import _sample

    spots = None
    if table is None and hasattr(data, "tables"):
        spots = _sample.roles(data).get("spots", {}).get("table")
        if not any(adata.n_vars for key, adata in data.tables.items() if key != spots):
            spots = None
    kept = [] if spots is None else [data.tables[spots]]
    key, adata = find_table(
        data, table, lambda adata: adata.n_vars and not any(adata is each for each in kept), "genes"
    )
    if not adata.n_vars:
        raise ValueError(f"{called(key)} has no genes: predict them with tl.cell_expression.")
    return key, adata


@dataclass(frozen=True)
class _Found:
    """Markers that a table has."""

    columns: dict[str, np.ndarray]  # by type, columns of the table
    names: dict[str, list[str]]  # and their names, as they were asked for
    left_out: dict[str, list[str]]  # by type, markers that the table lacks, or that are too few


def _found(asked: dict[str, list[str]], adata: AnnData, where: str, min_genes: int) -> _Found:
    """Markers among the genes of a table, by symbols or Ensembl ids, whichever column of ``var`` has them."""
    import pandas as pd

    every = list(dict.fromkeys(name for names in asked.values() for name in names))
    sides = {"data": names_of_table(adata), "reference": names_of_list(every)}
    try:
        match = match_names(sides, "reference", min_overlap=0.0)
    except ValueError:
        shown = listed(map(str, adata.var_names), most=4)
        raise ValueError(
            f"None of the {len(every)} markers, {listed(every, most=4)}, is among the {adata.n_vars} genes of "
            f"{where[0].lower()}{where[1:]}, {shown}. Are both of one species, and both symbols, or both Ensembl ids?"
        ) from None
    place = pd.Series(match.index["data"], index=np.array(every, dtype=object)[match.index["reference"]])
    columns, names, left_out = {}, {}, {}
    for kind, genes in asked.items():
        there = [name for name in genes if name in place.index]
        missing = [name for name in genes if name not in place.index]
        if len(there) >= max(min_genes, 1):
            columns[kind], names[kind] = place[there].to_numpy(), there
        if missing or kind not in columns:
            left_out[kind] = missing if kind in columns else genes
    _report(asked, names, min_genes, where)
    return _Found(columns, names, left_out)


def _report(asked: dict[str, list[str]], names: dict[str, list[str]], min_genes: int, where: str) -> None:
    """Say which types are left out, and which rest on little."""
    if not names:
        raise ValueError(f"{where} has fewer than min_genes={min_genes} markers of each type, {listed(asked)}.")
    gone = [kind for kind in asked if kind not in names]
    if gone:
        logger.warning(
            "%d of %d types are left out, as fewer than %d of their markers are among the genes of %s: %s.",
            len(gone),
            len(asked),
            max(min_genes, 1),
            where[0].lower() + where[1:],
            listed(gone),
        )
    few = [f"{kind} ({len(genes)} of {len(asked[kind])})" for kind, genes in names.items() if len(genes) < FEW_GENES]
    if few:
        logger.warning("Scores of these types rest on one or two genes, and are as noisy: %s.", ", ".join(few))


class _Expression:
    """Cells brought to one total, read block by block."""

    def __init__(self, adata: AnnData, layer: str | None, where: str, target_sum: float | None) -> None:
        if layer is not None and layer not in adata.layers:
            raise KeyError(
                f"{where} has no layer {layer!r}; it has {list(adata.layers)}.{closest(layer, adata.layers)}"
            )
        self.matrix = adata.X if layer is None else adata.layers[layer]
        if self.matrix is None:
            raise ValueError(f"{where} has no X; name a layer with layer=: there are {list(adata.layers)}.")
        self.n, self.n_genes = adata.shape
        if self.n < 2:
            raise ValueError(f"{where} has {self.n} cells; scores compare cells with each other.")
        made = adata.uns.get("sthist", {}).get("genes")
        normalised = layer is None and hasattr(made, "get") and bool(made.get("log"))
        self.total = None if normalised else target_sum
        self.what = f"{where[0].lower()}{where[1:]}" if layer is None else f"layers[{layer!r}]"
        self._log = self.total is not None and self._are_counts()
        self.how = "as it was" if self.total is None else "total, logarithm" if self._log else "total"

    def _are_counts(self) -> bool:
        from scipy.sparse import issparse

        return all(
            fault_of_counts(block.data if issparse(block) else block.ravel()) is None for _, block in self._raw_blocks()
        )

    def _raw_blocks(self) -> Iterator[tuple[slice, Any]]:
        from scipy.sparse import csr_matrix, issparse

        for start in range(0, self.n, BLOCK_ROWS):
            rows = slice(start, min(start + BLOCK_ROWS, self.n))
            block = self.matrix[rows]
            block = block.compute() if hasattr(block, "compute") else block
            yield rows, csr_matrix(block) if issparse(block) else np.asarray(block)

    def blocks(self) -> Iterator[tuple[slice, Any]]:
        """Rows, and their normalised expression: float64, dense or sparse."""
        from scipy.sparse import diags, issparse

        for rows, block in self._raw_blocks():
            values = block.astype(np.float64)
            if self.total is not None:
                if (values.data if issparse(values) else values).min(initial=0) < 0:
                    raise ValueError(
                        f"Values of {self.what} are negative, so that cells cannot be brought to one total: pass "
                        "target_sum=None if they are normalised, or layer= for others."
                    )
                sums = np.asarray(values.sum(axis=1)).ravel()
                factor = np.divide(self.total, sums, out=np.zeros_like(sums), where=sums > 0)
                values = diags(factor) @ values if issparse(values) else values * factor[:, None]
            if self._log:
                values = values.log1p() if issparse(values) else np.log1p(values)
            yield rows, values

    def scores(self, markers: list[np.ndarray], seed: int) -> np.ndarray:
        """Scores of sets of genes, (n, sets): weighted sums of standardised genes."""
        mean, deviation = self._moments()
        weights = np.stack([_weights(columns, mean, seed) for columns in markers], axis=1)
        weights = np.divide(weights, deviation[:, None], out=np.zeros_like(weights), where=deviation[:, None] > 0)
        scores = np.empty((self.n, len(markers)))
        for rows, block in self.blocks():
            scores[rows] = block @ weights - mean @ weights
        return scores

    def _moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of each gene over the cells without NaN; 0 for one that does not vary."""
        from scipy.sparse import issparse

        n, total, squares = 0, np.zeros(self.n_genes), np.zeros(self.n_genes)
        for _, block in self.blocks():
            sums = np.asarray(block.sum(axis=1)).ravel()
            kept = block[np.isfinite(sums)]
            n += kept.shape[0]
            total += np.asarray(kept.sum(axis=0)).ravel()
            squares += np.asarray((kept.multiply(kept) if issparse(kept) else kept**2).sum(axis=0)).ravel()
        if n < 2:
            raise ValueError(f"Expression of {self.what} is NaN or infinite in all cells but {n}.")
        mean = total / n
        variance = np.maximum(squares / n - mean**2, 0.0)
        variance[variance <= 1e-12 * (squares / n)] = 0.0  # rounding
        if not variance.any():
            raise ValueError(f"Expression of {self.what} is the same in all cells: no type can be told.")
        return mean, np.sqrt(variance * n / (n - 1))


def _weights(markers: np.ndarray, means: np.ndarray, seed: int) -> np.ndarray:
    """What each gene adds to the score of a set: 1 / n for markers, -1 / m for control genes.

    Control genes are chosen by scanpy: a score is linear, so that scoring cells which have one gene each shows its
    weights. One more cell gives genes the order of their means.
    """
    import anndata as ad
    import pandas as pd
    import scanpy as sc
    from scipy.sparse import csr_matrix, identity, vstack

    n = len(means)
    order = pd.Series(means).rank(method="min").to_numpy() * n
    cells = vstack([identity(n, format="csr"), csr_matrix(order)]).tocsr()
    light = ad.AnnData(cells)
    light.var_names = [str(i) for i in range(n)]
    light.obs_names = [str(i) for i in range(n + 1)]
    names = [str(i) for i in markers]
    try:
        with _same_random_states():
            sc.tl.score_genes(light, names, use_raw=False, random_state=seed)
        return light.obs["score"].to_numpy()[:n]
    except RuntimeError:  # no control gene is expressed as much as a marker: all other genes are
        others = np.setdiff1d(np.arange(n), markers)
    if not len(others):
        raise ValueError(
            "All genes of the table are markers of one type: there is none to compare them with. Keep more genes."
        )
    weights = np.zeros(n)
    weights[markers] = 1 / len(markers)
    weights[others] = -1 / len(others)
    return weights


@contextmanager
def _same_random_states() -> Iterator[None]:
    """Leave random numbers of others as they were: scanpy seeds them."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002


def _call(scores: np.ndarray, min_score: float, min_margin: float) -> np.ndarray:
    """The type with the best score, (n,) int: one more than there are for none."""
    n_types = scores.shape[1]
    filled = np.where(np.isfinite(scores), scores, -np.inf)
    best = filled.max(axis=1)
    second = np.partition(filled, -2, axis=1)[:, -2] if n_types > 1 else np.full(len(filled), -np.inf)
    sure = (best > min_score) & (best >= second + min_margin)
    return np.where(sure, filled.argmax(axis=1), n_types)
