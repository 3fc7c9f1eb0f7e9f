"""Which table is meant, and whether the names of new columns are free in it: asked in one way by every verb."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sthist import _sample, _store
from sthist._messages import listed
from sthist._tables.genes import closest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from anndata import AnnData


def find_table(
    data: Any, table: str | None, fits: Callable[[AnnData], Any], what: str, near: str = ""
) -> tuple[str | None, AnnData]:
    """The table that is meant, and its key: named, or the only one that fits; an AnnData is its own.

    ``what`` says what a table has that fits; where none does, the column closest to ``near`` is proposed.
    """
    if hasattr(data, "obs_names"):
        if table is not None:
            raise ValueError(f"table={table!r} names a table of a SpatialData, but an AnnData is given; leave it out.")
        return None, data
    if not hasattr(data, "tables"):
        raise TypeError(f"A SpatialData, an AnnData or a mapping of name to such is needed, not {type(data).__name__}.")
    _sample.require_one_sample(data)
    if table is not None:
        return table, _sample.get(data, "tables", table)
    fitting = [key for key, adata in data.tables.items() if fits(adata)]
    # Tables of features repeat the columns of the one that they were made of.
    candidates = [key for key in fitting if not _sample.is_of_features(key, data.tables[key])] or fitting
    if len(candidates) == 1:
        return candidates[0], data.tables[candidates[0]]
    if not candidates:
        columns = [str(name) for adata in data.tables.values() for name in (*adata.obs, *adata.obsm)]
        raise KeyError(f"No table has {what}. {_sample.describe('tables', data.tables)}{closest(near, columns)}")
    raise ValueError(f"Several tables have {what}: {listed(sorted(candidates))}. Say which one is meant with table=.")


def find_expression(data: Any, table: str | None) -> tuple[str | None, AnnData]:
    """The table whose genes are meant, and its key: named, that of the reader, or the only one with a matrix."""
    if hasattr(data, "tables"):
        table = _sample.find_expression_table(data, table)
    return find_table(data, table, bool, "genes")


def find_column(data: Any, column: str, table: str | None) -> tuple[str | None, AnnData]:
    """The table that has a column of ``obs``, and its key."""
    key, adata = find_table(data, table, lambda adata: column in adata.obs, f"a column {column!r}", column)
    if column not in adata.obs:
        raise KeyError(
            f"{called(key)} has no column {column!r}; it has {list(adata.obs)}.{closest(column, map(str, adata.obs))}"
        )
    return key, adata


def called(key: str | None) -> str:
    """A table, as messages call it."""
    return "The table" if key is None else f"Table {key!r}"


def require_free(
    adata: AnnData | None, where: str, obs: Sequence[str], obsm: Sequence[str] = (), *, overwrite: bool
) -> None:
    """Refuse names of columns that are taken, also in other case, or that SpatialData does not take."""
    for name in (*obs, *obsm):
        _store.check_name(name)
    if adata is None:  # there is no table yet
        return
    link = adata.uns.get("spatialdata_attrs", {})
    reserved = {link.get(key) for key in ("region_key", "instance_key")}
    for kind, names, there in (("obs", obs, adata.obs), ("obsm", obsm, adata.obsm)):
        taken = {str(column).casefold(): str(column) for column in there}
        for name in names:
            column = taken.get(name.casefold(), name)
            fixed = name in reserved or column != name
            if fixed or (name in there and not overwrite):
                hint = "key_added= for another name" if fixed else "overwrite=True to replace it"
                case = "" if column == name else f", and {name!r} differs in case alone"
                raise ValueError(f"{where} has {kind}[{column!r}] already{case}. Pass {hint}.")
