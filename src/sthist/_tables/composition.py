"""How much of each cell type a row holds: frames in ``obsm``, read with the names that their types have."""

from __future__ import annotations

import os.path
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sthist._messages import listed, plain
from sthist._tables.genes import closest
from sthist._tables.labels import column_names

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from anndata import AnnData

Quantity = Literal["proportions", "abundances"]

SUM_TOLERANCE = 0.01
"""How far from 1 the proportions of a row may sum; tables are written with two or three digits."""

MOSTLY = 0.9
"""Part of the rows that sum to 1 where a table is one of proportions."""

TABLE_PREFIXES = ("q05cell_abundance", "q95cell_abundance", "meanscell_abundance", "stdscell_abundance")
"""Of columns of cell2location, such as ``q05cell_abundance_w_sf_B cells``."""


@dataclass(frozen=True, eq=False)
class Composition:
    """Amounts of cell types, a column each."""

    types: tuple[str, ...]  # as they are shown
    values: np.ndarray  # (n, types) float64, not negative
    quantity: Quantity
    rows: np.ndarray | None = None  # places of these rows in the table, where some were left out

    @property
    def proportions(self) -> np.ndarray:
        """Values divided by the sum of their row; 0 where that is 0."""
        total = self.values.sum(axis=1, keepdims=True)
        return np.divide(self.values, total, out=np.zeros_like(self.values), where=total > 0)


def read_composition(
    adata: AnnData, key: str, where: str, quantity: Quantity | None = None, *, skip_missing: bool = False
) -> Composition:
    """The composition ``obsm[key]`` of a table, checked; ``where`` is how messages call the table.

    With ``skip_missing``, rows that are NaN throughout, such as those that were not predicted, are left out.
    """
    if key not in adata.obsm:
        raise KeyError(f"{where} has no obsm[{key!r}]; it has {list(adata.obsm)}.{closest(key, map(str, adata.obsm))}")
    frame = adata.obsm[key]
    if not hasattr(frame, "columns"):
        raise ValueError(
            f"obsm[{key!r}] of {where} is an array, whose columns have no names. Store a DataFrame with a column per "
            "cell type: adata.obsm[key] = pd.DataFrame(values, index=adata.obs_names, columns=types)."
        )
    made = adata.uns.get("sthist", {}).get(key, {})
    recorded = made.get("quantity") if quantity is None else None
    rows = np.flatnonzero(~frame.isna().all(axis=1).to_numpy()) if skip_missing else None
    if rows is not None and len(frame) and not len(rows):
        raise ValueError(f"obsm[{key!r}] of {where} has no row with values: all {len(frame)} are NaN.")
    kept = frame if rows is None else frame.iloc[rows]
    # Proportions that were predicted type by type need not sum to 1.
    told = "abundances" if recorded else quantity
    found = as_composition(kept, f"obsm[{key!r}] of {where}", told, made.get("classes", {}))
    return replace(found, rows=rows, quantity=recorded or found.quantity)


def as_composition(
    frame: pd.DataFrame, where: str, quantity: Quantity | None = None, shown: dict[str, str] | None = None
) -> Composition:
    """A frame of amounts, checked: numbers that are neither NaN nor negative, of types that differ in name."""
    types = [(shown or {}).get(name, name) for name in own_names(list(map(str, frame.columns)))]
    if not types or not len(frame):
        raise ValueError(f"{where} is empty: it has {len(frame)} rows and {len(types)} cell types.")
    twice = sorted({name for name in types if types.count(name) > 1})
    if twice:
        raise ValueError(f"{where} has the cell types {listed(twice)} more than once. Give each a name of its own.")
    try:
        values = frame.to_numpy(np.float64)
    except (TypeError, ValueError):
        bad = next(name for name, dtype in zip(types, frame.dtypes, strict=True) if dtype.kind not in "fiub")
        raise ValueError(f"{where}: the column {bad!r} holds no numbers.") from None
    for wrong, what in ((~np.isfinite(values), "NaN or infinite"), (values < 0, "negative")):
        if wrong.any():
            row, column = (int(each[0]) for each in np.nonzero(wrong))
            raise ValueError(
                f"{where} is {what} in {int(wrong.any(axis=1).sum())} of {len(values)} rows, first {types[column]!r} "
                f"of row {plain(frame.index[row])!r} ({values[row, column]:g}). Leave such rows out, or mend them."
            )
    return Composition(tuple(types), values, _quantity(values, frame.index, where, quantity))


def _quantity(values: np.ndarray, index: pd.Index, where: str, said: Quantity | None) -> Quantity:
    """Whether rows hold proportions, which sum to 1, or abundances, which do not."""
    if said not in (None, "proportions", "abundances"):
        raise ValueError(f"quantity is {said!r}; it is 'proportions', 'abundances', or None to tell it from the sums.")
    total = values.sum(axis=1)
    one = np.abs(total - 1) <= SUM_TOLERANCE
    if said == "abundances" or (said is None and one.mean() < MOSTLY):
        return "abundances"
    if not one.all():
        row = int(np.flatnonzero(~one)[0])
        raise ValueError(
            f"{where} holds proportions, but {int((~one).sum())} of {len(values)} rows do not sum to 1, first row "
            f"{plain(index[row])!r} ({total[row]:.3g}). Leave such rows out, divide each row by its sum, or say "
            "quantity='abundances'."
        )
    return "proportions"


def own_names(names: Sequence[str]) -> list[str]:
    """Names of types without what cell2location puts before them: the same text in all columns."""
    common = os.path.commonprefix(list(names)) if len(names) > 1 else names[0] if names else ""
    if not common.startswith(TABLE_PREFIXES):
        return list(names)
    end = common.index("_sf_") + len("_sf_") if "_sf_" in common else common.rfind("_") + 1
    return [name[end:] for name in names]


def composition_columns(types: Sequence[str], values: np.ndarray) -> tuple[pd.DataFrame, dict[str, Any]]:
    """A frame that can be stored, and what goes into its provenance: ``classes``, the types as they are shown."""
    import pandas as pd

    names = column_names(types)
    return pd.DataFrame(values, columns=names), {"classes": dict(zip(names, map(str, types), strict=True))}
