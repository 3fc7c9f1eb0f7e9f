"""Genes by name: match them between tables and lists, and bring a matrix into the order of a list."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist._messages import plain
from sthist._sample.elements import is_gene
from sthist._settings import logger

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import pandas as pd
    from anndata import AnnData
    from scipy.sparse import csr_matrix

VAR_NAMES, LISTED = "var_names", "names"
"""What the column of a match is called for the index of ``var``, and for a list."""

MIN_OVERLAP = 0.1
POOR_OVERLAP = 0.5
"""Of the smaller side; below it, it is tried whether case is what separates the names."""

ENSEMBL_SPECIES = re.compile(r"ENS([A-Z]{3,4})?G\d{11}")
SPECIES = {None: "human", "MUS": "mouse", "RNO": "rat"}
HUMAN_SYMBOL = re.compile(r"[A-Z][A-Z0-9-]*[A-Z][A-Z0-9-]*")
MOUSE_SYMBOL = re.compile(r"[A-Z][a-z0-9-]*[a-z][a-z0-9-]*")

ENSEMBL_VERSION = re.compile(r"^(ENS[A-Z]*\d{11})\.\d+")


@dataclass(frozen=True, eq=False, repr=False)
class GeneMatch:
    """Which gene of one side is which of the others.

    Sides are called ``"data"`` and ``"reference"``, or as the samples of a mapping are.

    Attributes
    ----------
    names
        The genes that all sides have, (n,) text, in the order and spelling of the reference (without one, of the first
        sample).
    index
        By side, the column of each of these genes, (n,) int64: ``adata[:, match.index["data"]]`` has them in this
        order. Where a gene is there several times, it is the first.
    positions
        By side, for each of its columns the place in ``names``, -1 for none, (n_vars,) int64; copies of a gene have one
        place.
    columns
        By side, what was matched: ``"var_names"``, a column of ``var``, or ``"names"`` for a list.
    overlap
        By side, the share of its genes that matched, from 0 to 1; controls are no genes.
    missing
        By side, its genes that did not match, as it writes them.
    ignored_case
        Whether ``Gapdh`` counted as ``GAPDH``.
    """

    names: np.ndarray
    index: dict[str, np.ndarray] = field(default_factory=dict)
    positions: dict[str, np.ndarray] = field(default_factory=dict)
    columns: dict[str, str] = field(default_factory=dict)
    overlap: dict[str, float] = field(default_factory=dict)
    missing: dict[str, np.ndarray] = field(default_factory=dict)
    ignored_case: bool = False

    def __repr__(self) -> str:
        sides = ", ".join(f"{side!r} by {self.columns[side]} ({self.overlap[side]:.0%})" for side in self.index)
        return f"GeneMatch of {len(self.names)} genes: {sides}{', case ignored' if self.ignored_case else ''}"


@dataclass(frozen=True)
class _Column:
    """Names of one side: as they are written, and as they are compared ("" for what is no gene)."""

    written: np.ndarray
    compared: np.ndarray
    distinct: frozenset[str]

    @classmethod
    def of(cls, written: np.ndarray, compared: np.ndarray) -> _Column:
        return cls(written, compared, frozenset(compared) - {""})

    def folded(self) -> _Column:
        return self.of(self.written, np.array([name.upper() for name in self.compared], dtype=object))


def closest(key: str, names: Iterable[str]) -> str:
    """`` Did you mean …?`` with the name that comes closest, whatever its case, or nothing."""
    folded = {str(name).casefold(): name for name in names}
    close = difflib.get_close_matches(str(key).casefold(), list(folded), n=1)
    return f" Did you mean {plain(folded[close[0]])!r}?" if close else ""


def names_of_list(genes: Iterable[str] | str) -> dict[str, pd.Series]:
    """The one column that a list of genes has."""
    import pandas as pd

    return {LISTED: pd.Series([genes] if isinstance(genes, str) else list(genes), dtype=object)}


def names_of_table(adata: AnnData, by: str | None = None, side: str = "data") -> dict[str, pd.Series]:
    """Columns of ``var`` that can name its genes, the index first: text, and mostly different in each row."""
    index = adata.var_names.to_series().reset_index(drop=True)
    if by in {VAR_NAMES, adata.var.index.name} - {None}:
        return {VAR_NAMES: index}
    if by is not None:
        if by not in adata.var:
            known = [VAR_NAMES, *map(str, adata.var.columns)]
            raise KeyError(f"column={by!r}: {side!r} has no such column in var; it has {known}.{closest(by, known)}")
        return {by: adata.var[by].reset_index(drop=True)}
    columns = {VAR_NAMES: index}
    for column in adata.var.columns:
        values = adata.var[column]
        # Chromosomes, genomes and feature types are text, too, and would match without naming a gene.
        if values.dtype.kind not in "biufcmM" and values.nunique() > len(values) / 2:
            columns[str(column)] = values.reset_index(drop=True)
    return columns


def match_names(
    sides: Mapping[str, Mapping[str, pd.Series]],
    anchor: str,
    *,
    ignore_case: bool | None = None,
    min_overlap: float = MIN_OVERLAP,
) -> GeneMatch:
    """Match genes by the columns that have most of them in common."""
    columns = {side: {name: _read_column(values) for name, values in named.items()} for side, named in sides.items()}
    if ignore_case:
        columns = _folded(columns)
    chosen = _choose(columns, anchor)
    picked = {side: columns[side][name] for side, name in chosen.items()}
    ignored_case = bool(ignore_case)
    if ignore_case is None and _share(picked) < POOR_OVERLAP:
        folded = _folded(columns)
        by_folded = _choose(folded, anchor)
        picked_folded = {side: folded[side][name] for side, name in by_folded.items()}
        if len(_common(picked_folded)) > 2 * len(_common(picked)) and _share(picked_folded) >= min_overlap:
            _say_case(picked_folded, anchor)
            chosen, picked, ignored_case = by_folded, picked_folded, True
    if _share(picked) < min_overlap or not _common(picked):
        raise ValueError(_too_few(picked, chosen, anchor, min_overlap))
    match = _assemble(picked, chosen, anchor, ignored_case)
    logger.info("%r", match)
    _say_copies(match)
    return match


def _read_column(values: pd.Series) -> _Column:
    import pandas as pd

    written = np.where(values.isna(), "", values.astype(object).astype(str)).astype(object)
    compared = np.array([ENSEMBL_VERSION.sub(r"\1", name.strip()) for name in written], dtype=object)
    compared = np.where(is_gene(compared), compared, "") if len(compared) else compared
    return _Column.of(written, pd.Series(compared, dtype=object).to_numpy())


def compared_names(values: pd.Series) -> np.ndarray:
    """Names of genes as they are compared: no version of an Ensembl id, and "" for what is no gene."""
    return _read_column(values).compared


def species_of(names: Iterable[str]) -> str | None:
    """The species of genes, by the prefix of Ensembl ids, or by case: ``GAPDH`` is human, ``Gapdh`` mouse or rat.

    None where names do not say.
    """
    prefixes: Counter[str | None] = Counter()
    cases: Counter[str] = Counter()
    for name in map(str, names):
        ensembl = ENSEMBL_SPECIES.match(name)
        if ensembl is not None:
            prefixes[ensembl[1]] += 1
        elif HUMAN_SYMBOL.fullmatch(name):
            cases["human"] += 1
        elif MOUSE_SYMBOL.fullmatch(name):
            cases["mouse"] += 1
    if prefixes.total() > cases.total():
        prefix = prefixes.most_common(1)[0][0]
        return SPECIES.get(prefix, f"ENS{prefix}")
    return cases.most_common(1)[0][0] if cases else None


def _folded(columns: Mapping[str, Mapping[str, _Column]]) -> dict[str, dict[str, _Column]]:
    return {side: {name: column.folded() for name, column in named.items()} for side, named in columns.items()}


def _choose(columns: Mapping[str, Mapping[str, _Column]], anchor: str) -> dict[str, str]:
    """By side, the column that shares most genes: each of the anchor is tried with what fits it best elsewhere."""
    trials = []
    for name, column in columns[anchor].items():
        chosen = {anchor: name}
        for side, named in columns.items():
            if side != anchor:
                chosen[side] = _best_fit(column, named)
        trials.append({side: chosen[side] for side in columns})
    return max(trials, key=lambda chosen: len(_common({side: columns[side][name] for side, name in chosen.items()})))


def _best_fit(column: _Column, named: Mapping[str, _Column]) -> str:
    return max(named, key=lambda name: len(column.distinct & named[name].distinct))


def _common(picked: Mapping[str, _Column]) -> frozenset[str]:
    return frozenset.intersection(*(column.distinct for column in picked.values()))


def _share(picked: Mapping[str, _Column]) -> float:
    """Of the genes of the smallest side."""
    smallest = min(len(column.distinct) for column in picked.values())
    return len(_common(picked)) / smallest if smallest else 0.0


def _assemble(picked: Mapping[str, _Column], chosen: Mapping[str, str], anchor: str, ignored_case: bool) -> GeneMatch:
    import pandas as pd

    common = _common(picked)
    order = pd.Index([name for name in dict.fromkeys(picked[anchor].compared) if name in common], dtype=object)
    index, positions, overlap, missing = {}, {}, {}, {}
    for side, column in picked.items():
        compared = pd.Index(column.compared, dtype=object)
        positions[side] = order.get_indexer(compared).astype(np.int64)
        first = ~compared.duplicated()
        shared = np.flatnonzero(first & (positions[side] >= 0))
        index[side] = shared[np.argsort(positions[side][shared])]
        overlap[side] = len(order) / len(column.distinct)
        missing[side] = column.written[first & (positions[side] < 0) & (compared != "")]
    names = picked[anchor].written[index[anchor]]
    return GeneMatch(names, index, positions, dict(chosen), overlap, missing, ignored_case)


def _say_case(picked: Mapping[str, _Column], anchor: str) -> None:
    common = _common(picked)
    examples = []
    for side, column in picked.items():
        shown = next(name for name, key in zip(column.written, column.compared, strict=True) if key == min(common))
        examples.append(f"{shown!r} in {side!r}")
    logger.warning(
        "Genes match by name only where case is ignored (%s): these look like two species. Genes of one name are "
        "orthologues as a rule, not always; ignore_case=False refuses them.",
        ", ".join(examples),
    )


def _say_copies(match: GeneMatch) -> None:
    for side, positions in match.positions.items():
        copies = int((positions >= 0).sum()) - len(match.names)
        if copies:
            logger.info(
                "%r has %d further columns of genes that it has already; the index holds the first of each.",
                side,
                copies,
            )


def _too_few(picked: Mapping[str, _Column], chosen: Mapping[str, str], anchor: str, min_overlap: float) -> str:
    """The side that shares least with the anchor, with examples of both."""
    others = [side for side in picked if side != anchor]
    worst = min(others, key=lambda side: _share({anchor: picked[anchor], side: picked[side]}))
    shown = {
        side: f"{side!r} has {len(picked[side].distinct)} genes in {chosen[side]}, such as "
        f"{[str(name) for name in picked[side].written[picked[side].compared != ''][:3]]}"
        for side in (worst, anchor)
    }
    common = len(_common(picked))
    return (
        f"{common} genes match, {_share(picked):.1%} of the smallest side; at least {min_overlap:.0%} are needed, and "
        f"one. {shown[worst]}; {shown[anchor]}. Are both of one species, and do both have symbols, or both Ensembl "
        "ids? A column of var that has the other names is found by itself, or named with column=."
    )


def collect_columns(matrix: Any, positions: np.ndarray, n: int) -> csr_matrix:
    """A sparse matrix whose column ``positions[j]`` holds column j, zeros where there is none.

    Copies of a gene summed.
    """
    from scipy.sparse import csr_matrix

    source = csr_matrix(matrix)
    places = positions[source.indices]
    kept = places >= 0
    starts = np.append(0, np.cumsum(kept))[source.indptr]
    collected = csr_matrix((source.data[kept], places[kept], starts), shape=(source.shape[0], n))
    if np.bincount(positions[positions >= 0], minlength=1).max() > 1:
        # As wide as there are: the sum of two uint8 may be none.
        collected = collected.astype(np.float64 if source.dtype.kind == "f" else np.int64)
        collected.sum_duplicates()
        if source.dtype.kind == "f" or collected.max() <= _largest(source.dtype):
            collected = collected.astype(source.dtype)
    collected.sort_indices()
    return collected


def _largest(dtype: np.dtype) -> int:
    return 1 if dtype.kind == "b" else int(np.iinfo(dtype).max)


def reindex(
    adata: AnnData,
    genes: Sequence[str],
    *,
    layer: str | None = None,
    by: str | None = None,
    ignore_case: bool | None = None,
    min_overlap: float = MIN_OVERLAP,
) -> tuple[csr_matrix, np.ndarray]:
    """Expression of a table in the order of a list of genes, and the genes that the table lacks.

    Returns a matrix, (n_obs, len(genes)), of the dtype of the table, with zeros for the genes that it lacks and the
    sum of those that it has several times; and the names of the first.
    """
    import pandas as pd

    listed = pd.Index(genes)
    if listed.has_duplicates:
        raise ValueError(f"The list has gene {plain(listed[listed.duplicated()][0])!r} more than once.")
    if layer is not None and layer not in adata.layers:
        raise KeyError(f"No layer {layer!r}; there are {list(adata.layers)}.{closest(layer, adata.layers)}")
    matrix = adata.X if layer is None else adata.layers[layer]
    if matrix is None:
        raise ValueError(f"The table has no X; name a layer with layer=: there are {list(adata.layers)}.")
    sides = {"data": names_of_table(adata, by), "reference": names_of_list(listed)}
    match = match_names(sides, "reference", ignore_case=ignore_case, min_overlap=min_overlap)
    places = np.append(match.index["reference"], -1)[match.positions["data"]]
    if (places >= 0).sum() > len(match.names) and "log1p" in adata.uns and layer is None:
        logger.warning("Genes that the table has several times are summed, but X is a logarithm: sum counts, then log.")
    missing = match.missing["reference"]
    if len(missing):
        logger.warning(
            "%d of %d genes are not in the table and are taken as 0, such as %r.", len(missing), len(listed), missing[0]
        )
    return collect_columns(matrix, places, len(listed)), missing
