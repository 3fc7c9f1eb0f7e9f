"""By what rows are split: whole patients, samples, blocks of tissue, or whatever a column says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist._messages import plain
from sthist._sample.samples import patients_of_rows, require_one_spelling
from sthist._settings import logger
from sthist.training.splits import Grouping, Split, Units, as_split, validation_part

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

    from sthist._sample.samples import Sample

TILES_PER_BLOCK = 4
"""Side of a block, in tiles, where none is given."""

INSIDE = ("block", "random")
"""Splits whose groups are parts of a sample."""

MOST_WATCHED = 2
"""Whole patients or samples may be watched up to so many times the part that was asked for.

Beyond it squares of sections are.
"""

PARTS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}


def units_of(
    samples: Sequence[Sample],
    tables: Sequence[pd.DataFrame],
    centres: Sequence[np.ndarray] | None,
    size_um: float | None,
    rows: np.ndarray | None = None,
) -> Units:
    """By what rows of all tables together can be split: sample, patient, place, and columns that all tables have."""
    import pandas as pd

    common = [name for name in tables[0].columns if all(name in table for table in tables)]
    obs = pd.concat([table[common].astype(object) for table in tables])
    patients = pd.concat([patients_of_rows(sample, table) for sample, table in zip(samples, tables, strict=True)])
    names = np.repeat([sample.name for sample in samples], [len(table) for table in tables])
    places = None if centres is None else np.concatenate([np.asarray(each, np.float64)[:, :2] for each in centres])
    every = Units(names, patients.to_numpy(object), obs, places, size_um)
    return every if rows is None else every.part(rows)


def group_rows(units: Units, split: Any, *, block_um: float | None = None, gap_um: float | None = None) -> Grouping:
    """Put rows into groups."""
    require_one_spelling(dict.fromkeys(units.patient.tolist()))
    if isinstance(split, Mapping):
        return _explicit(units, _parts_of_samples(units, split))
    if split == "patient":
        _require_all(units.patient, "patient")
        return Grouping(split, units.patient.astype(str), units.sample)
    if split == "sample":
        return Grouping(split, units.sample.astype(str), units.sample, leaks=_shared(units, units.sample, "samples"))
    if split == "block":
        return _blocks(units, block_um, gap_um)
    if split == "random":
        logger.warning(
            "A random split leaks: neighbours, and rows of one patient, are on both sides. Use it to compare."
        )
        groups = np.arange(len(units)).astype(str)
        return Grouping(split, groups, units.sample, leaks="rows were split at random")
    return _column(units, split)


def grouped(
    units: Units, split: str | Mapping[str, str] | Split | None, size_um: float | None, validation: float
) -> tuple[Split, Grouping]:
    """The split that is meant, and the rows in its groups: by default patients or, of a single one, blocks."""
    if split is None:
        one = len(set(units.patient.tolist())) == 1
        if one and (units.centres is None or size_um is None):
            lacking = "obsm['spatial'], places in µm" if units.centres is None else "the size of their tiles"
            raise ValueError(
                f"There is one patient, {plain(units.patient[0])!r}, and rows cannot be split by blocks of tissue "
                f"without {lacking}. Say with split= which rows are tested: a column of obs, or a sthist.models.Split "
                "(with block_um= and gap_um= for blocks of tiles whose size is not known)."
            )
        if one:
            logger.warning(
                "There is one patient, %r: rows are split by blocks of tissue (split='block'), so that scores say how "
                "well the rest of this tissue is predicted, not how well a new patient is.",
                units.patient[0],
            )
        split = "block" if one else "patient"
    found = as_split(split, validation=validation)
    return found, group_rows(units, found.by, block_um=found.block_um, gap_um=found.gap_um)


def kinds_of(grouping: Grouping, tissue: np.ndarray) -> np.ndarray:
    """What no training can do without, (n,): each tissue and, where samples are split inside, each sample."""
    kinds = tissue.astype(str)
    if grouping.by in INSIDE:
        kinds = np.array([f"{kind}\n{name}" for kind, name in zip(kinds, grouping.sample, strict=True)])
    return np.unique(kinds, return_inverse=True)[1]


def watched_part(
    units: Units, grouping: Grouping, tissue: np.ndarray, rows: np.ndarray, fraction: float, *, seed: int
) -> tuple[np.ndarray, np.ndarray, str]:
    """Part training rows into those that train and those that validate, by whole groups or by squares.

    Returns two arrays of indices, and what the second is groups of; it is empty if none can be spared.
    """
    kept, watched = validation_part(grouping, kinds_of(grouping, tissue), rows, fraction, seed=seed)
    few = grouping.parts is None and grouping.by not in INSIDE and units.centres is not None
    if fraction and few and not 0 < len(watched) <= MOST_WATCHED * fraction * len(rows):
        blocks = group_rows(units, "block")
        inside = validation_part(blocks, kinds_of(blocks, tissue), rows, fraction, seed=seed)
        if len(inside[1]):
            return *inside, "block"
    return kept, watched, grouping.by


def _blocks(units: Units, block_um: float | None, gap_um: float | None) -> Grouping:
    if units.centres is None:
        raise ValueError("split='block' needs places in µm, obsm['spatial'], of every sample.")
    if units.size_um is None and (block_um is None or gap_um is None):
        raise ValueError(
            "split='block': the size of the tiles is not known. Give block_um= and gap_um=, at least the side of a "
            "tile."
        )
    gap = float(units.size_um if gap_um is None else gap_um)  # type: ignore[arg-type]
    side = float(TILES_PER_BLOCK * units.size_um if block_um is None else block_um)  # type: ignore[operator]
    if not (np.isfinite(side) and side > 0 and np.isfinite(gap) and gap >= 0):
        raise ValueError(
            f"block_um is {side:g} and gap_um {gap:g}; the first is a positive number, the other not negative."
        )
    groups = np.empty(len(units), dtype=object)
    for sample in np.unique(units.sample):
        mine = units.sample == sample
        places = units.centres[mine]
        cells = ((places - places.min(axis=0)) // side).astype(int)
        groups[mine] = [f"{sample}/{x},{y}" for x, y in cells]
    overlap = units.size_um is not None and gap < units.size_um * (1 - 1e-9)
    leaks = f"tiles of {units.size_um:g} µm overlap across a gap of {gap:g} µm" if overlap else ""
    return Grouping("block", groups.astype(str), units.sample, units.centres, gap, leaks=leaks)


def _column(units: Units, column: str) -> Grouping:
    if column not in units.obs:
        raise KeyError(
            f"split={column!r} is no column of all samples; they have {list(map(str, units.obs.columns))}. It is that, "
            "'patient', 'sample', 'block', 'random', or a mapping of sample to part."
        )
    values = units.obs[column].to_numpy(object)
    _require_all(values, column)
    names = np.array([str(value) for value in values], object)
    if {name.casefold() for name in names} <= set(PARTS):
        return _explicit(units, np.array([PARTS[name.casefold()] for name in names]))
    return Grouping(column, names.astype(str), units.sample)


def _parts_of_samples(units: Units, split: Mapping[str, str]) -> np.ndarray:
    missing = sorted(set(units.sample.tolist()) - set(split))
    if missing:
        raise KeyError(f"split= says nothing of {len(missing)} samples, such as {missing[0]!r}.")
    wrong = [value for value in split.values() if str(value).casefold() not in PARTS]
    if wrong:
        raise ValueError(f"split= has the part {plain(wrong[0])!r}; the parts are 'train', 'validation' and 'test'.")
    return np.array([PARTS[str(split[sample]).casefold()] for sample in units.sample])


def _explicit(units: Units, parts: np.ndarray) -> Grouping:
    lacking = sorted({"train", "test"} - set(parts.tolist()))
    if lacking:
        raise ValueError(f"split= says of no row that it is for {lacking[0]}; there are {sorted(set(parts.tolist()))}.")
    leaks = _shared(units, parts == "test", "parts")
    return Grouping("explicit", units.patient.astype(str), units.sample, parts=parts, leaks=leaks)


def _shared(units: Units, sides: np.ndarray, what: str) -> str:
    """Patients that are on several sides, as a reason why scores are too good."""
    import pandas as pd

    sides_of = pd.Series(sides).groupby(pd.Series(units.patient.astype(str))).nunique()
    shared = sides_of.index[sides_of > 1].tolist()
    if not shared:
        return ""
    reason = f"{len(shared)} patients are in several {what}, such as {shared[0]!r}"
    logger.warning("The split leaks: %s. split='patient' keeps them together.", reason)
    return reason


def _require_all(values: np.ndarray, what: str) -> None:
    """Refuse rows that belong nowhere."""
    missing = np.array([value is None or value != value for value in values])
    if missing.any():
        raise ValueError(
            f"{int(missing.sum())} rows have no {what}, first row {int(missing.argmax())}; give them one, or leave "
            "their label out."
        )
