"""Which of the tiles that a translation can be trained on are: each on one side of the split, a part watched."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sthist._settings import logger
from sthist.training.split_groups import group_rows, kinds_of, watched_part
from sthist.training.splits import folds_of, near_any

if TYPE_CHECKING:
    import pandas as pd

    from sthist.training.splits import Grouping, Split, Units

LEAST_TRAINED, TILES_PER_BLOCK = 0.6, (4, 3, 2, 1.5, 1)
"""Sides of the blocks in tiles. On a small section large ones are few, and one of them is most of it: where a smaller
part than this is left to train on, the next is tried."""


def split_tiles(
    frame: pd.DataFrame,
    units: Units,
    size_um: float,
    *,
    split: Split,
    seed: int,
) -> tuple[str, str]:
    """Put each tile that is not dropped into a part: train, validation or test; those between two parts are dropped.

    Returns why scores of the held-out tiles will be too good, empty if nothing is known to; and what the watched
    tiles are groups of.
    """
    rows = np.flatnonzero(frame["part"] != "dropped")
    tissue = frame["tissue"].to_numpy(str)[rows]
    units = units.part(rows)
    best, most, refusal = None, (False, 0.0), None
    for n_tiles in TILES_PER_BLOCK if split.by == "block" and split.block_um is None else (None,):
        try:
            grouping = group_rows(
                units, split.by, block_um=n_tiles * size_um if n_tiles else split.block_um, gap_um=split.gap_um
            )
            labels, watched_by = _labels(units, grouping, tissue, split, seed)
        except ValueError as error:
            refusal = error  # smaller blocks may do
            continue
        share, complete = (labels == "train").mean(), not split.validation or (labels == "validation").any()
        worth = (bool(complete and share >= LEAST_TRAINED / 2), share)
        enough = complete and share >= LEAST_TRAINED
        if best is None or worth > most or enough:
            best, most = (grouping, labels, watched_by), worth
        if enough:
            break
    if best is None:
        assert refusal is not None
        raise refusal
    grouping, labels, watched_by = best
    if split.validation and not (labels == "validation").any():
        logger.warning("No group (%s) can be spared for validation: training is watched on nothing.", grouping.by)
    near = np.isin(labels, ["near test", "near validation"])
    part, reason = frame["part"].to_numpy(object), frame["reason"].to_numpy(object)
    part[rows], reason[rows[near]] = np.where(near, "dropped", labels), labels[near]
    frame["part"], frame["reason"] = part, reason
    overlaps = "" if split.by == "random" else _overlaps(units, labels, size_um)
    return "; ".join(filter(None, [grouping.leaks, overlaps])), watched_by


def _labels(units: Units, grouping: Grouping, tissue: np.ndarray, split: Split, seed: int) -> tuple[np.ndarray, str]:
    """Part of each row, ``"near test"`` or ``"near validation"`` where it is in none; what is watched groups of."""
    train, tested = np.arange(len(units)), np.arange(0)
    if split.test is not None or grouping.parts is not None:
        [(train, tested)] = folds_of(grouping, kinds_of(grouping, tissue), test=split.test, seed=seed)
    kept, watched, by = watched_part(units, grouping, tissue, train, split.validation, seed=seed)
    labels = np.full(len(units), "near test", object)
    for rows, label in ((train, "near validation"), (tested, "test"), (kept, "train"), (watched, "validation")):
        labels[rows] = label
    return labels, by


def _overlaps(units: Units, labels: np.ndarray, size_um: float) -> str:
    """Tiles that are trained on and share tissue with tiles that are not, as a reason why scores are too good."""
    train, others = np.flatnonzero(labels == "train"), np.flatnonzero(np.isin(labels, ["validation", "test"]))
    n = int(near_any(units, train, others, size_um * (1 - 1e-6)).sum())
    if not n:
        return ""
    reason = f"{n} of {len(train)} training tiles overlap tiles of validation or test"
    logger.warning("The split leaks: %s.", reason)
    return reason
