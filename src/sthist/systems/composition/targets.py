"""Measured compositions of the rows of tables, in the order of one list of cell types."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sthist._messages import listed
from sthist._sample.samples import naming
from sthist._settings import logger
from sthist._tables.composition import read_composition
from sthist._tables.find import find_table
from sthist.regression.data.targets import Targets
from sthist.regression.rows import rows_of_samples

if TYPE_CHECKING:
    from sthist._tables.composition import Quantity
    from sthist.training.rows import SampleRows


def composition_rows(data: Any, key: str, table: str | None, samples: Any, within: Any = None) -> SampleRows:
    """All rows of the tables with a composition, of each sample, that lie within a region, if one is given."""

    def find(sample: Any) -> Any:
        return find_table(sample, table, lambda adata: key in adata.obsm, f"a composition obsm[{key!r}]", key)

    return rows_of_samples(data, samples, within, find)


def composition_targets(rows: SampleRows, key: str, quantity: Quantity | None) -> tuple[Targets, str]:
    """Amounts of cell types in each row, which of the types each sample has, and what amounts are.

    All samples hold proportions, or all hold abundances: a model of both would predict neither.
    """
    found = []
    for sample, adata, name in zip(rows.samples, rows.tables, rows.names, strict=True):
        with naming(sample.name):
            found.append(read_composition(adata, key, name, quantity))
    kinds = {each.quantity: name for name, each in zip(rows.names, found, strict=True)}
    if len(kinds) > 1:
        raise ValueError(
            f"obsm[{key!r}] holds abundances in {kinds['abundances']} and proportions in {kinds['proportions']}. Bring "
            "them to one: pp.proportions makes proportions of abundances."
        )
    names = list(dict.fromkeys(name for each in found for name in each.types))
    values = np.zeros((len(rows), len(names)), np.float32)
    measured = np.zeros((len(found), len(names)), bool)
    for number, each in enumerate(found):
        own = {name: column for column, name in enumerate(each.types)}
        there = [column for column, name in enumerate(names) if name in own]
        mine = rows.sample == number
        values[np.ix_(mine, there)] = each.values[rows.row[mine]][:, [own[names[column]] for column in there]]
        measured[number, there] = True
        if len(there) < len(names):
            missing = [name for name in names if name not in own]
            logger.warning(
                "Sample %r has no column for %s: it does not count for these types. Where a type was looked for and "
                "not found, give it a column of zeros.",
                rows.samples[number].name,
                listed(missing),
            )
    return Targets(tuple(names), values, rows.sample, measured), next(iter(kinds))
