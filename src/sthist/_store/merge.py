"""A table that another process may have written to since this one has read it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData

_ABSENT: Any = object()
_RESULTS = "sthist"
"""Key of ``uns``: what made the results of a table."""


def merged(store: Path, name: str, before: AnnData, changed: AnnData) -> AnnData:
    """A changed table, with what other processes have added to the store's since this one has read it.

    The results in ``uns["sthist"]`` tell whether there was any: if they are those of the table before the change, the
    changed one is taken as it is.
    """
    import anndata as ad
    import zarr

    group = zarr.open_group(store / "tables" / name, mode="r", use_consolidated=False)
    results = ad.io.read_elem(group[f"uns/{_RESULTS}"]) if f"uns/{_RESULTS}" in group else {}
    if _same(results, before.uns.get(_RESULTS, {})):
        return changed
    disk, result, collisions = ad.io.read_elem(group), changed.copy(), []
    for axis, called in (("obs_names", "its rows"), ("var_names", "its genes")):
        if not all(getattr(disk, axis).equals(getattr(table, axis)) for table in (before, changed)):
            collisions.append(called)
    if not collisions:
        for part in ("X", "obs", "var", "obsm", "varm", "obsp", "varp", "layers", "uns"):
            settled, differing = _settled(*(_entries(table, part) for table in (disk, before, changed)))
            collisions += [part if part == "X" else f"{part}[{key!r}]" for key in differing]
            _fill(result, part, settled)
    if collisions:
        raise ValueError(
            f"Another process has changed the table {name!r} of {store} since this object was read; they differ in "
            f"{', '.join(collisions)}. Nothing was written. Read the store again (spatialdata.read_zarr), and repeat "
            "the call."
        )
    return result


def _settled(disk: dict[str, Any], before: dict[str, Any], changed: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """What holds: our changes, and what another process has added; and the keys that it has changed otherwise."""
    settled, differing = {}, []
    for key in dict.fromkeys([*changed, *disk, *before]):
        theirs, ours, new = (each.get(key, _ABSENT) for each in (disk, before, changed))
        if theirs is _ABSENT or _same(theirs, ours) or _same(theirs, new):
            value = new
        elif ours is _ABSENT and new is _ABSENT:
            value = theirs
        else:
            value = new
            differing.append(key)
        if value is not _ABSENT:
            settled[key] = value
    return settled, differing


def _entries(table: AnnData, part: str) -> dict[str, Any]:
    """A part of a table as a mapping; of ``uns``, what made each result is an entry of its own."""
    value = getattr(table, part)
    if part == "X":
        return {"X": value}
    entries = {key: value[key] for key in value}
    if part == "uns":
        entries |= {f"{_RESULTS}/{key}": made for key, made in entries.pop(_RESULTS, {}).items()}
    return entries


def _fill(table: AnnData, part: str, entries: dict[str, Any]) -> None:
    """Give a part of a table what it is to hold."""
    if part == "X":
        table.X = entries["X"]
        return
    if part == "uns":
        made = {key: entries.pop(key) for key in list(entries) if key.startswith(f"{_RESULTS}/")}
        entries[_RESULTS] = {key.partition("/")[2]: value for key, value in made.items()}
    held = getattr(table, part)
    for key in [key for key in held if key not in entries]:
        del held[key]
    for key, value in entries.items():
        held[key] = value


def _same(a: Any, b: Any) -> bool:
    """Whether two entries of a table are equal, whatever they are made of."""
    import pandas as pd
    import scipy.sparse as sp

    if a is b:
        return True
    if a is _ABSENT or b is _ABSENT or a is None or b is None:
        return False
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, (pd.Series, pd.DataFrame)) or isinstance(b, (pd.Series, pd.DataFrame)):
        return type(a) is type(b) and bool(a.equals(b))
    if sp.issparse(a) or sp.issparse(b):
        return sp.issparse(a) and sp.issparse(b) and a.shape == b.shape and (a != b).nnz == 0
    a, b = np.asarray(a), np.asarray(b)
    numbers = a.dtype.kind in "fc" and b.dtype.kind in "fc"
    return a.shape == b.shape and bool(np.array_equal(a, b, equal_nan=numbers))
