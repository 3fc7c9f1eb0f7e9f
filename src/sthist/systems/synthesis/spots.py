"""Expression of spots as an adapter is given it: of the adaptation, and of what is to be made."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sthist._messages import plain
from sthist._settings import logger
from sthist._tables.expression import AS_IT_IS, LOG, describe
from sthist.regression.data.expression import expression_targets
from sthist.systems.synthesis.adapter import C2LAdapter, median_total
from sthist.training.rows import SampleRows

if TYPE_CHECKING:
    from collections.abc import Sequence

DEFAULT_GENES = 250
MOST_LACKING = 0.5
"""Part of an adapter's genes up to which a table may lack them."""

MOST_APART = 2.0
"""Factor between what the genes sum up to in a row, and what they did in the adaptation, that is not remarked on."""


def chosen_rows(rows: SampleRows, places: np.ndarray) -> SampleRows:
    """Some of the rows."""
    return SampleRows(rows.samples, rows.tables, rows.names, rows.sample[places], rows.row[places])


def sample_and_name(rows: SampleRows) -> list[tuple[str, str]]:
    """Sample and name of each row."""
    return [
        (rows.samples[i].name, str(rows.tables[i].obs_names[k])) for i, k in zip(rows.sample, rows.row, strict=True)
    ]


def expression_of_adaptation(
    rows: SampleRows, genes: Sequence[str] | int | None
) -> tuple[SampleRows, np.ndarray, list[str], str]:
    """Rows with any expression, expression (n, genes), names of the genes, and what was normalised and how."""
    described = one_description(rows)
    targets = expression_targets(rows, genes)
    if genes is None and len(targets.names) > DEFAULT_GENES:
        targets = expression_targets(rows, DEFAULT_GENES)
    if not targets.complete:
        sample, gene = (int(each) for each in np.argwhere(~targets.measured)[0])
        raise ValueError(f"{rows.names[sample]} lacks the gene {targets.names[gene]!r}, which genes= names.")
    values = targets.dense(np.arange(len(rows)))
    kept = np.flatnonzero(some_expression(values, rows))
    return chosen_rows(rows, kept), values[kept], list(targets.names), described


def one_description(rows: SampleRows) -> str:
    """What was normalised in all tables, and how; refuses tables that differ in it."""
    described = {describe(adata): name for adata, name in zip(rows.tables, rows.names, strict=True)}
    if len(described) > 1:
        (one, first), (other, second) = list(described.items())[:2]
        raise ValueError(f"{first} has {one}, {second} {other}: normalise both in one way, with pp.genes.")
    return next(iter(described))


def expression_for(adapter: C2LAdapter, rows: SampleRows) -> tuple[SampleRows, np.ndarray]:
    """Rows with any expression of an adapter's genes, and that expression, (n, genes), NaN where it is not known."""
    for adata, name in zip(rows.tables, rows.names, strict=True):
        _require_alike(adapter.config.expression, describe(adata), name)
    genes = adapter.config.genes
    targets = expression_targets(rows, genes, may_lack=True)
    for there, name in zip(targets.measured, rows.names, strict=True):
        lacking = [gene for gene, each in zip(genes, there, strict=True) if not each]
        if len(lacking) > MOST_LACKING * len(genes):
            raise ValueError(
                f"{name[0].upper() + name[1:]} lacks {len(lacking)} of the {len(genes)} genes that the adapter listens "
                f"to, such as {lacking[0]!r}: too little is known of its tissue. Adapt the central model to it: "
                "tl.adapt_local."
            )
        if lacking:
            logger.warning(
                "%s lacks %d of the %d genes that the adapter listens to, such as %r; their means over the adaptation "
                "are taken.",
                name[0].upper() + name[1:],
                len(lacking),
                len(genes),
                lacking[0],
            )
    values = targets.dense(np.arange(len(rows)))
    kept = np.flatnonzero(some_expression(values, rows))
    if targets.complete:
        _compare_totals(adapter.config.total, median_total(values[kept]))
    values[~targets.measured[targets.sample]] = np.nan
    return chosen_rows(rows, kept), values[kept]


def some_expression(values: np.ndarray, rows: SampleRows) -> np.ndarray:
    """Which rows have any expression, (n,) bool; those that have none are said."""
    there: np.ndarray = (values != 0).any(axis=1)
    if not there.any():
        raise ValueError(f"No row of {', '.join(rows.names)} has any expression of the {values.shape[1]} genes.")
    if not there.all():
        first = int(there.argmin())
        row = rows.tables[rows.sample[first]].obs_names[rows.row[first]]
        logger.warning(
            "%d of %d rows have no expression of the %d genes, such as %r; they are left out.",
            int((~there).sum()),
            len(there),
            values.shape[1],
            plain(row),
        )
    return there


def _require_alike(trained: str, found: str, name: str) -> None:
    """Refuse expression that was normalised otherwise than that of the adaptation, as far as it is known."""
    if trained != found and found.startswith(LOG) and (trained == AS_IT_IS or trained.startswith(LOG)):
        raise ValueError(
            f"{name[0].upper() + name[1:]} gives {found}; the adapter was trained on {trained}. Normalise both in one "
            "way, with pp.genes."
        )


def _compare_totals(trained: float, found: float) -> None:
    """Warn of genes that are much more, or less, of a row than they were in the adaptation."""
    if not 1 / MOST_APART <= found / trained <= MOST_APART:
        logger.warning(
            "The genes that the adapter listens to sum up to %.4g a row, and summed up to %.4g in the adaptation. Was "
            "expression normalised over other genes, or to another sum?",
            found,
            trained,
        )
