"""Tables of tiles that were made of expression: which table, and of which spot each tile is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sthist._messages import plain

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

COLUMNS = ("synthetic", "sample", "source")
"""What the table of :func:`sthist.tl.synthesize` says of each tile."""

UNNAMED = "sample"
"""What a sample is called that does not say its name."""


def find_synthetic(sdata: Any) -> tuple[str, AnnData]:
    """Key of the shapes of synthetic tiles, and their table."""
    if not hasattr(sdata, "tables"):
        raise TypeError(f"Synthetic tiles are a SpatialData of tl.synthesize, not {type(sdata).__name__}.")
    for key, table in sdata.tables.items():
        if set(COLUMNS) <= set(table.obs) and table.obs["synthetic"].astype(bool).all():
            return key.removesuffix("_table"), table
    raise ValueError(
        f"No table says of which spot each tile was made (columns {', '.join(map(repr, COLUMNS))}); there are "
        f"{sorted(sdata.tables)}. Pass what tl.synthesize returned."
    )


def made_by(table: AnnData, key: str) -> dict[str, Any]:
    """How synthetic tiles were made: guidance, steps, seed, checksums; empty where it is not known."""
    return dict(table.uns.get("sthist", {}).get(f"{key}_table", {}))


def positions_of_sources(table: AnnData, spots: Sequence[tuple[str, str]]) -> np.ndarray:
    """Of each synthetic tile the position of its spot among spots (sample, name); -1 where it is not there."""
    made = list(zip(table.obs["sample"].astype(str), table.obs["source"].astype(str), strict=True))
    found = positions_of_spots(made, spots)
    if not (found >= 0).any():
        sample, name = made[0]
        raise ValueError(
            f"None of the {len(set(made))} spots that tiles were made of is in the data, such as {plain(name)!r} of "
            f"sample {plain(sample)!r}. Pass the sample, or the mapping of samples, that tl.synthesize was given."
        )
    return found


def positions_of_spots(wanted: Sequence[tuple[str, str]], spots: Sequence[tuple[str, str]]) -> np.ndarray:
    """Position of each wanted spot (sample, name) among spots; -1 where it is not there.

    Where one of both is of a single sample without a name, the other of a single sample, too, names of spots count
    alone; else slides that have barcodes in common would be taken for each other.
    """
    ours, theirs = ({sample for sample, _ in each} for each in (wanted, spots))
    alone = len(ours) == 1 == len(theirs) and UNNAMED in ours | theirs
    known = {name if alone else (sample, name): i for i, (sample, name) in enumerate(spots)}
    return np.array([known.get(name if alone else (sample, name), -1) for sample, name in wanted], np.int64)
