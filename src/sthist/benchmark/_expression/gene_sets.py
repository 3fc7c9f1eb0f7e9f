"""Which genes are predicted, and scored together: chosen from training rows, so that no fold knows what it tests."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist.pp import gene_panel, gene_set

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData

    from sthist.regression.data.targets import Targets

PANEL = "panel"
"""The name of all genes that are predicted."""

KINDS: dict[str, Any] = {"hvg": "hvg", "svg": "svg", "variance": "variance", "top": "expressed"}
"""Names of sets, and what :func:`sthist.pp.gene_set` calls them."""

NAMED = re.compile(r"(hvg|svg|variance|top)([1-9]\d*)")

GeneSets = dict[str, np.ndarray]


def require_known(names: Sequence[str] | Mapping[str, Sequence[str]]) -> None:
    """Refuse names of sets that say nothing, before anything is trained."""
    listed = list(names)
    if not listed or len(set(listed)) < len(listed):
        raise ValueError(f"gene_sets is {listed}; it has at least one name, each once.")
    for name in listed:
        if not hasattr(names, "items") and name != PANEL and not NAMED.fullmatch(str(name)):
            raise ValueError(
                f"There is no gene set {name!r}; there are 'panel', and 'hvg', 'svg', 'variance' or 'top' with a "
                "number, such as 'hvg50'. A list of genes has a name: gene_sets={'mine': [...]}."
            )


def training_tables(
    targets: Targets, rows: np.ndarray, samples: np.ndarray, centres: np.ndarray | None
) -> dict[str, AnnData]:
    """The rows that train, a table per sample with the genes that it has measured."""
    import anndata as ad
    import pandas as pd
    from scipy.sparse import csr_matrix

    tables = {}
    for number in np.unique(targets.sample[rows]):
        mine = rows[targets.sample[rows] == number]
        there = np.flatnonzero(targets.measured[number])
        table = ad.AnnData(
            csr_matrix(targets.values[mine][:, there]),
            obs=pd.DataFrame(index=[str(row) for row in mine]),
            var=pd.DataFrame(index=[targets.names[column] for column in there]),
            uns={"sthist": {"genes": {"log": True}}},
        )
        if centres is not None:
            table.obsm["spatial"] = centres[mine]
        tables[str(samples[mine[0]])] = table
    return tables


def panel(targets: Targets, genes: Sequence[str] | int | None, tables: Mapping[str, AnnData]) -> np.ndarray:
    """Columns that a fold predicts: of named genes, of so many most expressed, or of the panel of what trains."""
    if genes is None:
        names = list(gene_panel(tables, key_added="panel"))  # type: ignore[arg-type]
    elif isinstance(genes, int):
        names = gene_set(tables, "expressed", genes)  # type: ignore[arg-type]
        if not 1 <= genes <= len(names):
            raise ValueError(f"genes={genes}: the slides that train have {len(names)} genes in common.")
    else:
        measured = set().union(*(table.var_names for table in tables.values()))
        names = [name for name in targets.names if name in measured]
    wanted = set(names)
    return np.array([i for i, name in enumerate(targets.names) if name in wanted], int)


def gene_sets(
    names: Sequence[str] | Mapping[str, Sequence[str]], targets: Targets, tables: Mapping[str, AnnData]
) -> tuple[GeneSets, dict[str, str]]:
    """Columns of each set, by its name, from the rows that train; and why others are not there."""
    place = {gene: column for column, gene in enumerate(targets.names)}
    found, left_out = {}, {}
    if hasattr(names, "items"):
        for name, genes in names.items():
            found[name] = np.unique([place[str(gene)] for gene in genes if str(gene) in place])
            if not len(found[name]):
                del found[name]
                left_out[name] = "the panel has none of its genes"
        return found, left_out
    common = sorted(set(targets.names).intersection(*(table.var_names for table in tables.values())))
    placed = all("spatial" in table.obsm for table in tables.values())
    for name in names:
        match = NAMED.fullmatch(name)
        if match is None:
            found[name] = np.arange(len(targets.names))
            continue
        kind, n = match[1], int(match[2])
        if n > len(common):
            left_out[name] = f"the slides that train have {len(common)} genes of the panel in common"
        elif kind == "svg" and not placed:
            left_out[name] = "rows have no places in µm, obsm['spatial']"
        else:
            genes = gene_set(tables, KINDS[kind], n, genes=common)  # type: ignore[arg-type]
            found[name] = np.sort([place[gene] for gene in genes])
    return found, left_out
