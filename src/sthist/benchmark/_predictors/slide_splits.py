"""Folds of slides, patients and blocks of tissue for predictors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist._messages import listed, plain
from sthist._settings import logger
from sthist.training.split_groups import group_rows
from sthist.training.splits import as_split, folds_of

if TYPE_CHECKING:
    from sthist.training.splits import Grouping, Units

SINGLE, RANDOM = "single-slide", "random-slides"
WHOLE = ("patient", "sample")
"""Splits of which each group tests once, by default."""

REPEATS, TEST, VALIDATION = 5, 0.2, 0.1
"""Of the paper's random splits of slides."""


@dataclass(frozen=True, eq=False)
class SlideFold:
    """Rows that train, that say when to stop (None where the training may choose), and that test."""

    train: np.ndarray
    watched: np.ndarray | None
    test: np.ndarray
    name: str  # what tests


def predictor_folds(units: Units, split: Any, seed: int) -> tuple[list[SlideFold], Grouping, float, str]:
    """The folds, the groups that they are made of, the part that validates, and what the split is called."""
    chosen = as_split(split)
    if chosen.by in (SINGLE, RANDOM):
        called = str(chosen.by)
        if chosen.folds is not None and called == SINGLE:
            raise ValueError("folds= says nothing of split='single-slide': each slide trains once.")
        names, grouping = _slides(units, called), group_rows(units, "sample")
        made = _single(units, names) if called == SINGLE else _random(units, names, chosen.folds or REPEATS, seed)
        return made, grouping, VALIDATION, called
    grouping = group_rows(units, chosen.by, block_um=chosen.block_um, gap_um=chosen.gap_um)
    groups = np.unique(grouping.groups)
    n = chosen.folds or (len(groups) if grouping.by in WHOLE else min(REPEATS, len(groups)))
    if grouping.parts is None and len(groups) < 2:
        raise ValueError(
            f"There is one {grouping.by}, {plain(groups[0])!r}: if it tested, nothing would be left to train on. Split "
            "by something finer, such as split='block', or add samples."
        )
    pairs = folds_of(grouping, np.zeros(len(units), int), test=chosen.test, folds=max(2, n), seed=seed)
    made = []
    for train, test in pairs:
        watched = None
        if grouping.parts is not None:
            watched = train[grouping.parts[train] == "validation"]
            train = train[grouping.parts[train] != "validation"]
            watched = watched if len(watched) else None
        made.append(SlideFold(train, watched, test, _name(units, grouping, test)))
    if grouping.by == "patient":
        _require_apart(units, made)
    return made, grouping, chosen.validation, grouping.by


def _slides(units: Units, split: str) -> list[str]:
    names = list(dict.fromkeys(map(str, units.sample)))
    if len(names) < 2:
        raise ValueError(
            f"split={split!r} needs two slides at least, and there is {names[0]!r} alone. Give a mapping of sample "
            "name to sample, or split by something finer, such as split='block'."
        )
    return names


def _single(units: Units, names: list[str]) -> list[SlideFold]:
    """Train on each slide alone, and test on the others."""
    return [
        SlideFold(np.flatnonzero(units.sample == name), None, np.flatnonzero(units.sample != name), f"all but {name}")
        for name in names
    ]


def _random(units: Units, names: list[str], repeats: int, seed: int) -> list[SlideFold]:
    """Slides at random: 70 % train, 10 % say when to stop, 20 % test, so many times; test sets may overlap."""
    n_test = max(1, round(TEST * len(names)))
    n_watched = max(1, round(VALIDATION * len(names))) if len(names) - n_test > 1 else 0
    made = []
    for repeat in range(repeats):
        order = np.random.default_rng([seed, repeat]).permutation(np.array(names, dtype=object))
        parts = np.split(order, [n_test, n_test + n_watched])
        test, watched, train = (np.flatnonzero(np.isin(units.sample.astype(str), part.astype(str))) for part in parts)
        made.append(SlideFold(train, watched, test, ", ".join(sorted(parts[0]))))
    logger.warning(
        "Slides are split at random: test sets of the %d repeats overlap%s.",
        repeats,
        "" if len(set(units.patient.tolist())) == len(names) else ", and slides of one patient are on both sides",
    )
    return made


def _name(units: Units, grouping: Grouping, test: np.ndarray) -> str:
    inside = grouping.by not in WHOLE and grouping.by != "explicit"
    names = units.sample[test] if grouping.by == "explicit" else grouping.groups[test]
    found = sorted(set(map(str, names)))
    return f"{len(found)} groups" if inside and len(found) > 3 else ", ".join(found)


def shares_patient(units: Units, fold: SlideFold) -> bool:
    """Whether a patient that tests is trained on, too."""
    seen = fold.train if fold.watched is None else np.concatenate([fold.train, fold.watched])
    return not set(units.patient[fold.test].tolist()).isdisjoint(units.patient[seen].tolist())


def _require_apart(units: Units, folds: list[SlideFold]) -> None:
    for fold in folds:
        shared = sorted(set(map(str, units.patient[fold.test])) & set(map(str, units.patient[fold.train])))
        if shared:
            raise ValueError(f"Patients that test are in training, too: {listed(shared)}.")


def require_testable(units: Units, folds: list[SlideFold]) -> None:
    """Refuse a fold in which no correlation can be: every slide that it tests has one row."""
    for fold in folds:
        names, sizes = np.unique(units.sample[fold.test].astype(str), return_counts=True)
        if sizes.max() < 2:
            raise ValueError(
                f"Sample {plain(names[0])!r} tests, and has one row: a gene has no correlation across one spot. Leave "
                "the sample out, or test several at a time with folds=."
            )
        if len(fold.train) < 2:
            raise ValueError(
                f"Of the fold that tests {fold.name!r}, {len(fold.train)} rows train; at least 2 are needed."
            )
