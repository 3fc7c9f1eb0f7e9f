"""Expression of the rows of tables, log-normalised, in the order of one list of genes."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from sthist._messages import plain
from sthist._sample.samples import naming
from sthist._settings import logger
from sthist._tables.expression import Depth, log_expression
from sthist._tables.genes import collect_columns, match_names, names_of_list, names_of_table
from sthist.regression.data.targets import Targets

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from anndata import AnnData
    from scipy.sparse import csr_matrix

    from sthist.training.rows import SampleRows

DRAWS = 20
"""Of the counts of a shallower slide, whose mean is trained on."""


def expression_targets(
    rows: SampleRows,
    genes: Sequence[str] | int | None,
    read: Callable[[AnnData, str], csr_matrix] = log_expression,
    *,
    may_lack: bool = False,
) -> Targets:
    """Expression of the rows in the order of a list of genes; which of them each sample has.

    None takes the genes that all samples have, a number the most expressed of these. ``read`` gives the expression of
    all genes of a table, by default log-normalised. A gene that no sample has is an error unless it ``may_lack``.
    """
    from scipy.sparse import vstack

    named = {
        sample.name: names_of_table(adata, side=sample.name)
        for sample, adata in zip(rows.samples, rows.tables, strict=True)
    }
    listed = None if genes is None or isinstance(genes, int) else _listed(genes)
    parts, measured, match = [], [], None
    if listed is None:
        sides = named if len(named) > 1 else {**named, "genes": next(iter(named.values()))}
        match = match_names(sides, next(iter(named)))
    names = [str(name) for name in match.names] if match is not None else listed or []
    for number, (sample, adata, name) in enumerate(zip(rows.samples, rows.tables, rows.names, strict=True)):
        with naming(sample.name):
            _say_copies(adata, name)
            side, own = sample.name, match
            if own is None:
                side = "data"
                own = match_names({side: named[sample.name], "genes": names_of_list(names)}, "genes", min_overlap=0)
            # The first of several columns of one name: logarithms of copies cannot be added.
            places = np.arange(len(names)) if match is not None else own.index["genes"]
            positions = np.full(adata.n_vars, -1)
            positions[own.index[side]] = places
            parts.append(collect_columns(read(adata, name), positions, len(names))[rows.row[rows.sample == number]])
            measured.append(np.isin(np.arange(len(names)), positions))
    values, there = vstack(parts, format="csr"), np.array(measured)
    known = there.sum(axis=0) > 0
    if not known.all() and not may_lack:
        missing = [name for name, each in zip(names, known, strict=True) if not each]
        raise KeyError(f"No sample has {len(missing)} of the {len(names)} genes, such as {missing[0]!r}.")
    targets = Targets(tuple(names), values, rows.sample, there)
    return targets if not isinstance(genes, int) else most_expressed(targets, genes)


def targets_at_depth(rows: SampleRows, genes: Sequence[str], depth: float, draws: int, seed: int) -> Targets:
    """Expression as slides of so many counts a row would show it, the mean over draws of them."""
    if not (np.isfinite(depth) and depth > 0):
        raise ValueError(f"depth is {depth!r}; it is a number of counts.")
    return expression_targets(rows, genes, partial(log_expression, depth=Depth(depth, draws, seed)))


def most_expressed(targets: Targets, n: int) -> Targets:
    """The outputs of the largest means, in their order in the table."""
    if not 1 <= n <= len(targets.names):
        raise ValueError(f"genes={n}: the samples have {len(targets.names)} genes in common.")
    mean, _ = targets.statistics(np.arange(len(targets)))
    return chosen(targets, np.sort(np.argsort(-mean, kind="stable")[:n]))


def chosen(targets: Targets, columns: np.ndarray) -> Targets:
    """Some of the outputs."""
    names = tuple(targets.names[column] for column in columns)
    return Targets(names, targets.values[:, columns], targets.sample, targets.measured[:, columns])


def _say_copies(adata: AnnData, name: str) -> None:
    copies = adata.var_names[adata.var_names.duplicated()]
    if len(copies):
        logger.warning(
            "%s has %d genes more than once, such as %r; the first of each is taken. pp.genes sums their counts.",
            name[0].upper() + name[1:],
            copies.nunique(),
            plain(copies[0]),
        )


def _listed(genes: Sequence[str]) -> list[str]:
    """Names of genes, each once."""
    listed = [genes] if isinstance(genes, str) else [str(gene) for gene in genes]
    if not listed:
        raise ValueError("genes= names none.")
    twice = [gene for gene in listed if listed.count(gene) > 1] if len(set(listed)) < len(listed) else []
    if twice:
        raise ValueError(f"genes= has {plain(twice[0])!r} more than once.")
    return listed
