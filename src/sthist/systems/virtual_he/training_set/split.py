"""Which of the tiles that a translation can be trained on are: each on one side of the split, a part watched."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sthist._settings import logger
from sthist.training.split_groups import group_rows, kinds_of, watched_part
from sthist.training.splits import folds_of, near_any

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

    from sthist.training.splits import Grouping, Units

LEAST_TRAINED, TILES_PER_BLOCK = 0.6, (4, 3, 2, 1.5, 1)
"""Sides of the blocks in tiles. On a small section large ones are few, and one of them is most of it: where a smaller
part than this is left to train on, the next is tried."""


def split_tiles(
    frame: pd.DataFrame,
    units: Units,
    size_um: float,
    *,
    split: Any,
    test: Any,
    validation: float,
    block_um: float | None,
    gap_um: float | None,
    seed: int,
) -> tuple[str, str]:
    """Put each tile that is not dropped into a part: train, validation or test; those between two parts are dropped.

    Returns why scores of the held-out tiles will be too good, empty if nothing is known to; and what the watched
    tiles are groups of.
    """
    rows = np.flatnonzero(frame["part"] != "dropped")
    tissue = frame["tissue"].to_numpy(str)[rows]
    units = units.part(rows)

    def divided(side_um: float | None) -> tuple[Grouping, Parts]:
        grouping = group_rows(units, split, block_um=side_um, gap_um=gap_um)
        return grouping, _parts(units, grouping, tissue, test, validation, seed)

    sides = [block_um]
    if split == "block" and block_um is None:
        sides = [n_tiles * size_um for n_tiles in TILES_PER_BLOCK]
    grouping, parts = _first_with_enough(divided, sides, len(rows), watched=validation > 0)
    if validation and not len(parts.validation):
        logger.warning("No group (%s) can be spared for validation: training is watched on nothing.", grouping.by)
    part, reason = frame["part"].to_numpy(object), frame["reason"].to_numpy(object)
    for chosen, name in ((parts.train, "train"), (parts.validation, "validation"), (parts.test, "test")):
        part[rows[chosen]] = name
    for chosen, name in ((parts.near_test, "test"), (parts.near_validation, "validation")):
        part[rows[chosen]], reason[rows[chosen]] = "dropped", f"near {name}"
    frame["part"], frame["reason"] = part, reason
    others = np.r_[parts.validation, parts.test]
    overlaps = "" if split == "random" else _overlaps(units, parts.train, others, size_um)
    return "; ".join(filter(None, [grouping.leaks, overlaps])), parts.watched_by


def _first_with_enough(divided: Any, sides: Sequence[float | None], n: int, *, watched: bool) -> tuple[Grouping, Parts]:
    """Groups and parts by the first side of the blocks that leaves enough to train on and to watch.

    Or by the next best.
    """
    best, most, refused = None, (False, 0), None
    for side in sides:
        try:
            found = divided(side)
        except ValueError as error:
            refused = error  # smaller blocks may do
            continue
        parts, share = found[1], len(found[1].train) / n
        complete = len(parts.validation) > 0 or not watched
        if complete and share >= LEAST_TRAINED:
            return found
        worth = (complete and share >= LEAST_TRAINED / 2, len(parts.train))
        if best is None or worth > most:
            best, most = found, worth
    if best is None:
        assert refused is not None
        raise refused
    return best


class Parts(NamedTuple):
    """Rows of each part, rows that are in none because they are too near to one, and what is watched groups of."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    near_test: np.ndarray
    near_validation: np.ndarray
    watched_by: str


def _parts(units: Units, grouping: Grouping, tissue: np.ndarray, test: Any, validation: float, seed: int) -> Parts:
    everything = np.arange(len(units))
    train, tested = everything, everything[:0]
    if test is not None or grouping.parts is not None:
        [(train, tested)] = folds_of(grouping, kinds_of(grouping, tissue), test=test, seed=seed)
    kept, watched, by = watched_part(units, grouping, tissue, train, validation, seed=seed)
    near_test = np.setdiff1d(everything, np.r_[train, tested])
    return Parts(kept, watched, tested, near_test, np.setdiff1d(train, np.r_[kept, watched]), by)


def _overlaps(units: Units, train: np.ndarray, others: np.ndarray, size_um: float) -> str:
    """Tiles that are trained on and share tissue with tiles that are not, as a reason why scores are too good."""
    n = int(near_any(units, train, others, size_um * (1 - 1e-6)).sum())
    if not n:
        return ""
    reason = f"{n} of {len(train)} training tiles overlap tiles of validation or test"
    logger.warning("The split leaks: %s.", reason)
    return reason
