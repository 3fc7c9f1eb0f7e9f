"""Abundances of cell types as parts of the whole of each spot."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sthist import _store
from sthist._sample.samples import over_samples
from sthist._settings import logger
from sthist._tables.composition import composition_columns, read_composition
from sthist._tables.find import called, find_table, require_free
from sthist._tables.rows import write_columns

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData


@over_samples
def proportions(
    data: SpatialData | AnnData,
    key: str = "cell_abundance",
    *,
    table: str | None = None,
    key_added: str = "cell_proportions",
    overwrite: bool = False,
) -> None:
    """Divide the abundances of cell types by the sum of each row.

    Parameters
    ----------
    data
        A SpatialData, an AnnData, or a mapping of name to such.
    key
        Of the abundances, a DataFrame in ``obsm``: not negative, no NaN.
    table
        Key of the table; by default the only one that has ``key``.
    key_added
        Name of the result.
    overwrite
        Replace a result of this name.

    Returns
    -------
    None. Writes into the table, also in the store of a backed object, ``obsm[key_added]``: DataFrame of float64,
    (n_obs, types), whose rows sum to 1, or are 0 where nothing is there, which is logged and counted (``empty``); and
    ``uns["sthist"][key_added]`` with ``quantity`` (``"proportions"``) and ``classes``, the types by column.

    Raises
    ------
    KeyError
        If no table has ``key``.
    ValueError
        If there are values that are negative or NaN, or types of one name; if the result's name is taken.

    Examples
    --------
    >>> import sthist
    >>> sdata = sthist.datasets.toy("visium", size_um=900)
    >>> sthist.pp.proportions(sdata)
    >>> bool((sdata["table"].obsm["cell_proportions"].sum(axis=1).round(6) == 1).all())
    True
    """
    table, adata = find_table(data, table, lambda adata: key in adata.obsm, f"{key!r} in obsm", key)
    where = called(table)
    require_free(adata, where, [], [key_added], overwrite=overwrite)
    composition = read_composition(adata, key, where[0].lower() + where[1:], "abundances")
    empty = composition.values.sum(axis=1) <= 0
    if empty.any():
        logger.warning(
            "%d of %d rows of obsm[%r] are 0 throughout, such as %r: so are their proportions. Leave them out of what "
            "needs rows that sum to 1.",
            int(empty.sum()),
            len(empty),
            key,
            str(adata.obs_names[int(empty.argmax())]),
        )
    columns, stored = composition_columns(composition.types, composition.proportions)
    made = _store.provenance("pp.proportions", key=key, quantity="proportions", empty=int(empty.sum()), **stored)
    write_columns(data, table, adata, key_added, made, obs={}, obsm={key_added: columns})
