"""Which rows train and which test: whole patients, samples, blocks of tissue, or planes are on one side."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist._messages import listed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd


@dataclass(frozen=True)
class Split:
    """How rows are parted into those that train, validate and test; ``split=`` takes its first field alone, too.

    Attributes
    ----------
    by
        ``"patient"``, ``"sample"``, ``"block"`` (squares of ``block_um`` on each section; rows that are nearer than
        ``gap_um`` to a row of the other side are not trained on), the name of a column of the rows' table, such as
        ``"slide"`` or the plane ``"z"``, or a mapping of sample to ``"train"``, ``"validation"`` or ``"test"``, which a
        column may hold as well. ``"random"`` leaks, and models and reports say so.
    test
        Names of the groups that test, such as ``["2"]`` of the planes, or a part of the rows such as ``0.2``.
    validation
        Part of the training rows, in whole groups, that validates, and so may say when to stop.
    folds
        Number of folds, where each group tests once; by default 5, or as many as there are few groups in a benchmark.
    block_um, gap_um
        Of ``by="block"``: four tiles, and one, by default.

    Examples
    --------
    >>> import sthist
    >>> sthist.models.Split("block", test=0.2).validation
    0.1
    """

    by: str | Mapping[str, str] = "patient"
    test: float | str | Sequence[str] | None = None
    validation: float = 0.1
    folds: int | None = None
    block_um: float | None = None
    gap_um: float | None = None

    def __post_init__(self) -> None:
        if isinstance(self.test, np.floating):
            object.__setattr__(self, "test", float(self.test))
        if not 0 <= self.validation < 1:
            raise ValueError(f"validation is {self.validation!r}; it is a part of the rows, from 0 to less than 1.")
        if isinstance(self.test, int | float) and not 0 < self.test < 1:
            raise ValueError(f"test is {self.test!r}; as a part of the rows it lies between 0 and 1.")

    def to_dict(self) -> dict[str, Any]:
        """Plain values of what was split by, and of what tests."""
        by = self.by if isinstance(self.by, str) else dict(self.by)
        test = self.test if self.test is None or isinstance(self.test, str | float) else list(map(str, self.test))
        return {"split": by, "test": test, "validation": self.validation}


def as_split(split: Split | str | Mapping[str, str], **defaults: Any) -> Split:
    """A split as an object."""
    return split if isinstance(split, Split) else Split(split, **defaults)


@dataclass(frozen=True, eq=False)
class Units:
    """What is known of rows that are to be split."""

    sample: np.ndarray  # (n,) name of the sample of each row
    patient: np.ndarray  # (n,) patient of each row
    obs: pd.DataFrame  # columns by which rows can be split, (n,) each
    centres: np.ndarray | None = None  # (n, 2): x, y in µm; None where rows have no place
    size_um: float | None = None  # side of the tissue that a row shows; None where it is not known

    def __len__(self) -> int:
        return len(self.sample)

    def part(self, rows: np.ndarray) -> Units:
        """Some of the rows."""
        centres = None if self.centres is None else self.centres[rows]
        return Units(self.sample[rows], self.patient[rows], self.obs.iloc[rows], centres, self.size_um)


@dataclass(frozen=True, eq=False)
class Grouping:
    """Rows in groups of which none is ever on both sides."""

    # what the groups are: ``"patient"``, ``"sample"``, ``"block"``, ``"random"``, ``"explicit"`` or the name of a
    # column
    by: str
    groups: np.ndarray  # (n,) name of the group of each row
    sample: np.ndarray  # as of :class:`Units`
    centres: np.ndarray | None = None
    gap_um: float = 0.0  # rows that are nearer to a row of the other side, along both axes, are left out; 0 to keep all
    parts: np.ndarray | None = None  # (n,) ``"train"``, ``"validation"`` or ``"test"``, where it was said
    leaks: str = ""  # why scores are better than they should be; empty if nothing is known to


def folds_of(
    grouping: Grouping, codes: np.ndarray, *, test: Any = None, folds: int = 5, seed: int = 0
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Rows that train and rows that test, one pair per fold.

    Returns pairs of indices, sorted. Rows that ``gap_um`` leaves out are in neither.
    """
    if grouping.parts is not None:
        if test is not None:
            raise ValueError("test= is given, and split= says already which rows test. Leave one out.")
        held_out = [grouping.parts == "test"]
    elif test is None:
        assigned = assign(grouping.groups, codes, folds, seed)
        held_out = [assigned == fold for fold in range(folds)]
    elif isinstance(test, float):
        held_out = [_part(grouping, codes, test, seed)]
    else:
        held_out = [_named(grouping, [test] if isinstance(test, str) else list(test))]
    return [(_away(grouping, np.flatnonzero(~out), np.flatnonzero(out)), np.flatnonzero(out)) for out in held_out]


MOST_FOLDS = 5
"""Parts that validate in turn: more take longer and choose no better."""


def validation_part(
    grouping: Grouping, codes: np.ndarray, rows: np.ndarray, fraction: float, *, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Part rows that train into those that do and those that say when to stop, by the same groups.

    Returns two arrays of indices; the second is empty if no group can be spared without losing a class.
    """
    if grouping.parts is not None and (grouping.parts[rows] == "validation").any():
        watched = grouping.parts[rows] == "validation"
        return rows[~watched], rows[watched]
    n_folds = _n_parts(grouping, rows, fraction)
    if n_folds < 2:
        return rows, rows[:0]
    assigned = assign(grouping.groups[rows], codes[rows], n_folds, seed)
    classes = set(codes[rows].tolist())
    sizes = np.bincount(assigned, minlength=n_folds)
    for fold in np.argsort(np.abs(sizes - fraction * len(rows)), kind="stable"):
        watched = rows[assigned == fold]
        kept = _near_removed(grouping, rows[assigned != fold], watched)
        if set(codes[kept].tolist()) == classes:
            return kept, watched
    return rows, rows[:0]


def validation_folds(
    grouping: Grouping, codes: np.ndarray, rows: np.ndarray, fraction: float, *, seed: int = 0
) -> tuple[np.ndarray, list[tuple[np.ndarray, np.ndarray]]]:
    """Part rows that train into those that do and those that validate, each group in turn.

    Returns the rows to train on in the end, and pairs of indices: a single one where it was said which rows validate,
    and none if no group can be spared.
    """
    if grouping.parts is not None and (grouping.parts[rows] == "validation").any():
        pair = validation_part(grouping, codes, rows, fraction, seed=seed)
        return pair[0], [pair]
    n_folds = min(_n_parts(grouping, rows, fraction), MOST_FOLDS)
    if n_folds < 2:
        return rows, []
    assigned = assign(grouping.groups[rows], codes[rows], n_folds, seed)
    parts = [(rows[assigned != fold], rows[assigned == fold]) for fold in range(n_folds)]
    pairs = [(_near_removed(grouping, train, watched), watched) for train, watched in parts]
    return rows, [(train, watched) for train, watched in pairs if np.isin(codes[watched], codes[train]).any()]


def _n_parts(grouping: Grouping, rows: np.ndarray, fraction: float) -> int:
    """Number of parts of whole groups, of which one is about a fraction of the rows; 0 for none."""
    n_groups = len(np.unique(grouping.groups[rows]))
    return 0 if fraction <= 0 else min(max(2, round(1 / max(fraction, 1 / len(rows)))), n_groups)


def assign(groups: np.ndarray, codes: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """Fold of each row, (n,): the largest groups first, each to the fold that has least of its classes."""
    names, group = np.unique(groups, return_inverse=True)
    if folds < 2 or folds != int(folds):
        raise ValueError(f"folds is {folds!r}; it is a whole number from 2 on.")
    if len(names) < folds:
        raise ValueError(
            f"There are {len(names)} groups ({listed(names)}) and {folds} folds: each fold needs a group of its own. "
            "Lower folds=, split by something finer, such as split='block', or add samples."
        )
    counts = np.zeros((len(names), int(codes.max()) + 1))
    np.add.at(counts, (group, codes), 1)
    shares = counts / np.maximum(counts.sum(axis=0), 1)
    order = np.random.default_rng(seed).permutation(len(names))
    order = order[np.argsort(-counts.sum(axis=1)[order], kind="stable")]
    filled, size = np.zeros((folds, counts.shape[1])), np.zeros(folds)
    fold_of = np.empty(len(names), int)
    for name in order:
        # An empty fold costs least, so that none stays empty.
        cost = (filled * shares[name]).sum(axis=1)
        fold_of[name] = np.lexsort((size, cost.round(12)))[0]
        filled[fold_of[name]] += shares[name]
        size[fold_of[name]] += counts[name].sum()
    return fold_of[group]


def _part(grouping: Grouping, codes: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Which rows test: whole groups, about a fraction of the rows."""
    if not 0 < fraction < 1:
        raise ValueError(f"test is {fraction!r}; as a part of the rows it lies between 0 and 1.")
    names = np.unique(grouping.groups)
    if len(names) < 2:
        raise ValueError(one_group(grouping.by, str(names[0])))
    # As few as make up about the fraction: the fewer, the more of each class is in each.
    share = min(fraction, 1 - fraction)
    enough = next(n for n in count(2) if abs(max(1, round(share * n)) / n - share) <= share / 8)
    n_folds = min(len(names), enough)
    fold = assign(grouping.groups, codes, n_folds, seed)
    return np.isin(fold, _nearest(np.bincount(fold, minlength=n_folds), fraction * len(fold)))


def one_group(by: str, name: str) -> str:
    """What is wrong where all rows belong together, and a part of them is to test."""
    finer = (
        "Make block_um= smaller" if by == "block" else "Split by something finer, such as split='block', or add samples"
    )
    return f"There is one {by}, {name!r}: if it tested, nothing would be left to train on. {finer}."


def _nearest(sizes: np.ndarray, wanted: float) -> list[int]:
    """Which of some parts make up about so many rows: at least one, and not all.

    Others are added while that comes nearer.
    """
    chosen: list[int] = []
    while len(chosen) < len(sizes) - 1:
        total = sizes[chosen].sum()
        off = np.abs(total + sizes - wanted)
        off[chosen] = np.inf
        best = int(off.argmin())
        if chosen and off[best] >= abs(total - wanted):
            break
        chosen.append(best)
    return chosen


def _named(grouping: Grouping, names: list[Any]) -> np.ndarray:
    wanted = [str(name) for name in names]
    missing = [name for name in wanted if name not in set(grouping.groups.tolist())]
    if missing or not wanted:
        known = sorted(set(grouping.groups.tolist()))
        raise KeyError(
            f"test= names {missing[0] if missing else 'nothing'!r}; the groups ({grouping.by}) are {known[:12]}."
        )
    return np.isin(grouping.groups, wanted)


def _away(grouping: Grouping, train: np.ndarray, test: np.ndarray) -> np.ndarray:
    kept = _near_removed(grouping, train, test)
    if not len(kept) or not len(test):
        side = "test" if len(kept) else "train"
        raise ValueError(
            f"The split by {grouping.by} leaves no row to {side} on, of "
            f"{len(train) + len(test)}{'; make block_um= smaller' if grouping.gap_um else ''}."
        )
    return kept


def _near_removed(grouping: Grouping, rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Rows that are not within the gap of any of the others: squares overlap that are near along both axes."""
    if not grouping.gap_um or grouping.centres is None or not len(others):
        return rows
    return rows[~near_any(grouping, rows, others, grouping.gap_um * (1 - 1e-9))]


def near_any(placed: Units | Grouping, rows: np.ndarray, others: np.ndarray, bound_um: float) -> np.ndarray:
    """Which rows lie within a bound, along both axes, of any of the others in their sample."""
    from scipy.spatial import cKDTree

    assert placed.centres is not None
    near = np.zeros(len(rows), bool)
    for name in np.unique(placed.sample[others]):
        of_sample = np.flatnonzero(placed.sample[rows] == name)
        tree = cKDTree(placed.centres[others[placed.sample[others] == name]])
        distance, _ = tree.query(placed.centres[rows[of_sample]], p=np.inf, distance_upper_bound=bound_um)
        near[of_sample] = np.isfinite(distance)
    return near
