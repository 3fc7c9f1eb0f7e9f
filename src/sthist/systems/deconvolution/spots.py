"""The spots of one sample, with the genes that they share with a reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist._messages import listed
from sthist._settings import logger
from sthist._tables.expression import find_raw_counts
from sthist._tables.find import called
from sthist._tables.genes import collect_columns, match_names, names_of_table
from sthist.systems.deconvolution import cell2location
from sthist.systems.deconvolution.nnls import deconvolve_nnls, marker_genes

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from scipy.sparse import csr_matrix

    from sthist._sample.samples import Sample
    from sthist._tables.genes import GeneMatch
    from sthist.systems.deconvolution.cell2location import Cell2locationOptions, Run
    from sthist.systems.deconvolution.reference import Reference


def require_genes(n: int, known: Reference, which: str) -> None:
    """Refuse fewer genes in common than there are types."""
    if n < len(known.types):
        raise ValueError(
            f"Spots and reference have {n} genes in common {which}; at least as many as there are cell types, "
            f"{len(known.types)}, are needed."
        )


@dataclass(eq=False)
class Spots:
    """The spots of one sample."""

    name: str
    data: Any
    table: str | None
    adata: AnnData
    counts: csr_matrix  # (n, n_vars), in the order of var
    match: GeneMatch | None = None
    kept: np.ndarray | None = None  # places among the genes of the match
    n_empty: int = 0

    @classmethod
    def of(cls, sample: Sample, table: str | None, adata: AnnData, layer: str | None) -> Spots:
        """The spots of a table, refused where it has no raw counts."""
        if not adata.n_obs:
            raise ValueError(f"{called(table)} has no rows.")
        _, counts, features = find_raw_counts(adata, layer, called(table))
        if not features.equals(adata.var_names):
            counts = counts[:, features.get_indexer(adata.var_names)]
        return cls(sample.name, sample.data, table, adata, counts)

    def find_genes(self, known: Reference, wanted: set[str] | None) -> None:
        """Match genes with those of the reference, and refuse too few."""
        side = names_of_table(self.adata)
        _require_genes_as_rows(known, side)
        match = match_names({"data": side, "reference": known.genes}, "reference")
        index = match.index["reference"]
        names = np.stack([each.astype(str).to_numpy(str)[index] for each in known.genes.values()])
        if wanted is None:
            kept = ~np.char.startswith(np.char.upper(names), "MT-").any(axis=0)
        else:
            kept = np.isin(names, sorted(wanted)).any(axis=0)
        self.match, self.kept = match, np.flatnonzero(kept)
        require_genes(len(self.kept), known, "" if wanted is None else "that are asked for")

    @property
    def reference_columns(self) -> np.ndarray:
        """Columns of the reference that hold the genes that are kept, or copies of them."""
        assert self.match is not None
        assert self.kept is not None
        return np.flatnonzero(np.isin(self.match.positions["reference"], self.kept))

    def amounts(
        self,
        known: Reference,
        profiles: np.ndarray,
        options: Cell2locationOptions | None,
        run: Run,
        *,
        few: bool,
    ) -> tuple[np.ndarray, int]:
        """Abundances, (n, types), and the number of genes that they are from."""
        assert self.match is not None
        assert self.kept is not None
        matched = known.matched(profiles, self.match)[:, self.kept]
        counts = collect_columns(self.counts, self.match.positions["data"], len(self.match.names))[:, self.kept]
        told = matched.sum(axis=0) > 0  # a gene that no type has tells nothing
        if options is None and few:
            told &= np.isin(np.arange(len(told)), marker_genes(matched))
        matched, counts = matched[:, told], counts[:, np.flatnonzero(told)]
        require_genes(matched.shape[1], known, "that some type has")
        lacking = [name for name, total in zip(known.types, matched.sum(axis=1), strict=True) if total == 0]
        if lacking:
            raise ValueError(
                f"The cell types {listed(lacking)} have no counts of the {matched.shape[1]} genes in common. Leave "
                "them out of the reference."
            )
        seen = np.asarray(counts.sum(axis=1)).ravel() > 0
        self.n_empty = int((~seen).sum())
        if not seen.any():
            raise ValueError(f"{called(self.table)} has no counts of the {matched.shape[1]} genes in common.")
        if self.n_empty:
            logger.warning(
                "%d of %d spots have no counts of these genes, such as %r: 0 of every type is written. Leave them out.",
                self.n_empty,
                len(seen),
                str(self.adata.obs_names[int((~seen).argmax())]),
            )
        values = np.zeros((len(seen), len(known.types)))
        some = counts[np.flatnonzero(seen)]
        if options is None:
            values[seen] = deconvolve_nnls(some, matched, known.types)
        else:
            values[seen] = cell2location.deconvolve_cell2location(some, matched, options, run)
        return values, matched.shape[1]


def _require_genes_as_rows(known: Reference, side: dict[str, pd.Series]) -> None:
    """Refuse profiles whose types are rows."""
    if known.profiles is None:
        return
    there = {str(name) for names in side.values() for name in names}
    rows = {str(name) for names in known.genes.values() for name in names}
    if len(there & set(known.types)) > len(there & rows):
        raise ValueError(
            "The reference has genes as its columns, but profiles are genes x types: pass its transpose, reference.T."
        )
