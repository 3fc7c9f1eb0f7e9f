"""References of cell types: single cells with raw counts and labels, or profiles, which are amounts per gene."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist._messages import listed
from sthist._reading import require_file
from sthist._settings import logger
from sthist._tables.composition import as_composition
from sthist._tables.expression import find_raw_counts
from sthist._tables.genes import closest, collect_columns, names_of_list, names_of_table
from sthist._tables.labels import as_classes
from sthist.io._parts.matrix import read_frame

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from scipy.sparse import csr_matrix

    from sthist._tables.genes import GeneMatch

FEW_CELLS = 20
"""Of a type with fewer cells, the mean counts say little."""

CALLED = "The reference"

SIGNATURE_PREFIX = re.compile(r"(?:means|stds|q05|q95)_per_cluster_mu_fg_")
"""Of the columns of signatures that cell2location has estimated."""

LOGIT = "logit"
"""Column of stereoscope's parameters: log-odds per gene, by which its rates become means."""

PROFILE_FILES = (".csv", ".tsv", ".csv.gz", ".tsv.gz", ".parquet")


@dataclass(frozen=True, eq=False)
class Reference:
    """Cell types, and what is known of the genes that each expresses."""

    described: str  # what it was, for the provenance
    types: tuple[str, ...]
    genes: dict[str, pd.Series]  # names of its genes, as match_names takes them
    profiles: np.ndarray | None  # (types, genes) float64, as given; None where there are cells
    cells: AnnData | None = None  # all that have a type
    counts: csr_matrix | None = None  # (cells, genes)
    codes: np.ndarray | None = None  # (cells,) int: type of each

    def means(self) -> np.ndarray:
        """Mean counts of a cell of each type, (types, genes) float64, or the profiles that were given."""
        if self.profiles is not None:
            return self.profiles
        from scipy.sparse import csr_matrix

        assert self.codes is not None
        assert self.counts is not None
        n = np.bincount(self.codes, minlength=len(self.types))
        parts = (1.0 / n[self.codes], (self.codes, np.arange(len(self.codes))))
        return np.asarray((csr_matrix(parts, (len(self.types), len(self.codes))) @ self.counts).toarray(), np.float64)

    def matched(self, profiles: np.ndarray, match: GeneMatch) -> np.ndarray:
        """Profiles in the order of the genes of a match, copies of a gene summed."""
        return np.asarray(collect_columns(profiles, match.positions["reference"], len(match.names)).toarray())


def read_reference(reference: Any, labels: str | None, layer: str | None) -> Reference:
    """A reference as it was given, checked."""
    if isinstance(reference, str | Path):
        return _of_profiles(_read_profiles(Path(reference)), str(reference), labels)
    if hasattr(reference, "obs_names"):
        return _of_cells(reference, labels, layer)
    if hasattr(reference, "columns"):
        return _of_profiles(reference, CALLED, labels)
    raise TypeError(
        "reference is an AnnData of single cells, a DataFrame of profiles (genes x types), or the path of a file of "
        f"such, not {type(reference).__name__}."
    )


def _of_cells(cells: AnnData, labels: str | None, layer: str | None) -> Reference:
    column = _find_labels(cells, labels)
    codes, types = as_classes(cells.obs[column], f"Column {column!r} of the reference")
    there = codes >= 0
    if not there.all():
        logger.warning("%d of %d cells of the reference have no label and are left out.", (~there).sum(), len(there))
    _, counts, features = find_raw_counts(cells, layer if layer in cells.layers else None, CALLED)
    if not features.equals(cells.var_names):
        counts = counts[:, features.get_indexer(cells.var_names)]
    n = np.bincount(codes[there], minlength=len(types))
    types = [name for name, number in zip(types, n, strict=True) if number]
    place = np.cumsum(n > 0) - 1  # categories that no cell has are no types
    codes = place[codes[there]]
    _require_types(types)
    few = {name: int(number) for name, number in zip(types, n[n > 0], strict=True) if number < FEW_CELLS}
    if few:
        logger.warning(
            "Types of few cells, whose mean counts say little: %s. Join them with others, or leave their cells out.",
            ", ".join(f"{name!r} ({number})" for name, number in few.items()),
        )
    described = f"{cells.n_obs} cells of {len(types)} types ({column})"
    kept = cells if there.all() else cells[there]
    return Reference(described, tuple(types), names_of_table(cells), None, kept, counts[there], codes)


def _find_labels(cells: AnnData, labels: str | None) -> str:
    """The column of types: named, or the only one that can be it."""
    if labels is not None:
        if labels not in cells.obs:
            raise KeyError(
                f"The reference has no column {labels!r}; it has {list(cells.obs)}."
                f"{closest(labels, map(str, cells.obs))}"
            )
        return labels
    candidates = [
        str(name)
        for name, values in cells.obs.items()
        # Names of cells are text, too.
        if values.dtype.kind not in "biufcmM" and 1 < values.nunique() <= max(2, len(values) / 2)
    ]
    if len(candidates) == 1:
        return candidates[0]
    has = f"Several columns of the reference may hold the types of its cells: {listed(candidates)}. Say which with"
    if not candidates:
        has = f"No column of the reference looks like the types of its cells; it has {list(cells.obs)}. Name it with"
    raise ValueError(f"{has} labels=.")


def _of_profiles(frame: pd.DataFrame, where: str, labels: str | None) -> Reference:
    if labels is not None:
        raise ValueError(f"labels={labels!r} names a column of single cells, but profiles are given, a column a type.")
    factor = np.ones(len(frame))
    if LOGIT in frame:
        factor = np.exp(frame[LOGIT].to_numpy(np.float64))
        frame = frame.drop(columns=LOGIT)
        logger.info("%s: rates are brought to means by the column 'logit', as stereoscope writes it.", where)
    columns = [str(name) for name in frame.columns]
    if all(SIGNATURE_PREFIX.match(name) for name in columns):
        frame = frame.set_axis([SIGNATURE_PREFIX.sub("", name, count=1) for name in columns], axis=1)
    checked = as_composition(frame, where, "abundances")
    _require_types(checked.types)
    described = f"profiles of {len(checked.types)} types" + ("" if where == CALLED else f" ({where})")
    return Reference(described, checked.types, names_of_list(frame.index), checked.values.T * factor)


def _require_types(types: Any) -> None:
    if len(types) < 2:
        raise ValueError(f"The reference has one cell type, {types[0]!r}; two are needed to tell parts of a spot.")


def _read_profiles(path: Path) -> pd.DataFrame:
    """A file of profiles, genes in its first column."""
    require_file(path, "reference=")
    name = path.name.lower()
    if name.endswith(".h5ad"):
        raise ValueError(f"{path} holds single cells: read it with anndata.read_h5ad, and pass the table.")
    if not name.endswith(PROFILE_FILES):
        raise ValueError(f"{path} is no file of profiles, which are {', '.join(PROFILE_FILES)}.")
    return read_frame(path)
