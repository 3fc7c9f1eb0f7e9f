"""Which genes samples have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sthist._sample.verbs import verb
from sthist._tables.find import find_expression
from sthist._tables.genes import MIN_OVERLAP, GeneMatch, closest, match_names, names_of_list, names_of_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from spatialdata import SpatialData

__all__ = ["GeneMatch", "match_genes"]


@verb
def match_genes(
    data: SpatialData | AnnData | Mapping[str, SpatialData | AnnData],
    reference: SpatialData | AnnData | Sequence[str] | None = None,
    *,
    column: str | Mapping[str, str] | None = None,
    table: str | None = None,
    ignore_case: bool | None = None,
    min_overlap: float = MIN_OVERLAP,
) -> GeneMatch:
    """Match the genes of tables with each other, or with a list, by symbol or Ensembl id, whichever they share.

    Each side may name its genes by ``var_names`` or by any column of ``var`` that is text and mostly different in each
    row (``gene_ids``, ``feature_name``, ``ensembl_id``, ``symbol``, ...). Those columns are taken that have most genes
    in common; the log and the result say which. Versions of Ensembl ids (``ENSG00000141510.18``) do not count, nor do
    control features.

    Parameters
    ----------
    data
        One table, or a mapping of sample name to such, whose common genes are wanted.
    reference
        Another table, or a list of genes, such as that of a model. Its order and spelling are the result's. May be left
        out for a mapping; then the first sample is the reference.
    column
        Column of ``var`` that names the genes, ``"var_names"`` for its index, where it shall not be found: one for all
        tables, or one by side.
    table
        Key of the table of a SpatialData; found by itself where there is one.
    ignore_case
        Whether ``Gapdh`` is ``GAPDH``. None: if fewer than half of the genes of the smaller side match exactly, and
        more than twice as many do so without case; a warning then says so, as these are two species.
    min_overlap
        Least share of the genes of the smallest side that all sides must have, from 0 to 1.

    Returns
    -------
    The match; ``data`` is not changed. A gene that a table has several times is taken where it is first.

    Raises
    ------
    KeyError
        If there is no such table or column, or ``column`` names no side.
    TypeError
        If ``data`` or ``reference`` is nothing of that kind.
    ValueError
        If fewer genes match, or none, or there is nothing to match with.

    Examples
    --------
    >>> import anndata as ad, numpy as np, pandas as pd, sthist
    >>> var = pd.DataFrame({"gene_ids": ["ENSG00000111640.15", "ENSG00000075624.17"]}, index=["GAPDH", "ACTB"])
    >>> table = ad.AnnData(np.ones((3, 2), np.float32), var=var)
    >>> match = sthist.pp.match_genes(table, ["ENSG00000075624", "ENSG00000141510"])
    >>> match
    GeneMatch of 1 genes: 'data' by gene_ids (50%), 'reference' by names (50%)
    >>> match.missing["reference"]
    array(['ENSG00000141510'], dtype=object)
    >>> table[:, match.index["data"]].var_names.tolist()
    ['ACTB']
    """
    if not 0 <= min_overlap <= 1:
        raise ValueError(f"min_overlap is {min_overlap}; it is a share, from 0 to 1.")
    sides = dict(data) if isinstance(data, Mapping) else {"data": data}
    if reference is None and len(sides) < 2:
        raise ValueError(
            "There is nothing to match with: give a table or a list of genes as reference, or several samples."
        )
    anchor = next(iter(sides))
    if reference is not None:
        if "reference" in sides:
            raise ValueError("A sample is called 'reference', as the other side is; rename it.")
        anchor = "reference"
        sides[anchor] = reference
    if isinstance(column, Mapping):
        for side in column:
            if side not in sides:
                raise KeyError(f"column= names {side!r}, but the sides are {list(sides)}.{closest(side, sides)}")
    named = {
        side: _named(each, column.get(side) if isinstance(column, Mapping) else column, table, side)
        for side, each in sides.items()
    }
    return match_names(named, anchor, ignore_case=ignore_case, min_overlap=min_overlap)


def _named(data: Any, by: str | None, table: str | None, side: str) -> dict[str, Any]:
    """Columns that could name the genes of one side."""
    if hasattr(data, "tables"):
        _, data = find_expression(data, table)
    if hasattr(data, "var_names"):
        return names_of_table(data, by, side)
    if side == "reference" and not isinstance(data, Mapping) and hasattr(data, "__iter__"):
        return names_of_list(data)
    kinds = "a SpatialData or an AnnData" + (" or a list of genes" if side == "reference" else "")
    raise TypeError(f"{side!r} is a {type(data).__name__}; it must be {kinds}.")
