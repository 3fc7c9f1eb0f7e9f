"""Rows and columns through the places of cores: turned a little, with places that are empty."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from sthist._settings import logger

if TYPE_CHECKING:
    from collections.abc import Callable

LARGEST_TURN_DEG = 15.0
ON_LINE = 0.35
"""How far from a line, in pitches, a doubtful core may lie."""

SPLIT = 0.4
"""A gap of this many pitches between neighbours parts two lines."""

WHOLE_STEP = 0.25
"""A gap is a number of pitches, and has empty lines in it, if it is that much off at most."""


@dataclass(frozen=True, eq=False)
class Lines:
    """A grid of lines that need not be evenly spaced.

    Row ``i`` is ``y - slopes[0] * x = rows[i]``, column ``j`` is ``x - slopes[1] * y = columns[j]``.
    """

    rows: np.ndarray  # where the lines are, (n,) float64, increasing
    columns: np.ndarray
    slopes: tuple[float, float]  # of rows and of columns
    pitch: tuple[float, float]  # typical distance of rows and of columns
    on_row: np.ndarray  # how many cores are on each line, (n,) int
    on_column: np.ndarray

    def places(self) -> np.ndarray:
        """Where rows and columns cross, (rows, columns, 2): x, y."""
        along_row, along_column = self.slopes
        row, column = np.meshgrid(self.rows, self.columns, indexing="ij")
        x = (column + along_column * row) / (1 - along_row * along_column)
        return np.stack([x, row + along_row * x], -1)

    def across(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which row and which column, as numbers like those of ``rows`` and ``columns``, runs through each point."""
        x, y = points.T
        return y - self.slopes[0] * x, x - self.slopes[1] * y

    def number_of(self, points: np.ndarray, reach: float = 0.5) -> np.ndarray:
        """Row times the number of columns plus column of each point; -1 for what lies off all lines."""
        (row, off_row), (column, off_column) = (
            _nearest(values, lines)
            for values, lines in zip(self.across(points), (self.rows, self.columns), strict=True)
        )
        on = (off_row <= reach * self.pitch[0]) & (off_column <= reach * self.pitch[1])
        return np.where(on, row * len(self.columns) + column, -1)

    def resized(
        self, grid: tuple[int, int] | None, first: tuple[int, int] | None, fits: Callable[[Lines], bool] | None
    ) -> Lines:
        """The same with as many rows and columns as there are in truth."""
        if grid is None:
            before = first or (0, 0)
            return self._padded(before, (0, 0))
        slim = self._without_surplus(grid)
        missing = (grid[0] - len(slim.rows), grid[1] - len(slim.columns))
        choices = list(product(range(missing[0] + 1), range(missing[1] + 1))) if first is None else [first]
        if first is not None and not all(0 <= f <= n for f, n in zip(first, missing, strict=True)):
            raise ValueError(
                f"first= leaves {first[0]} rows and {first[1]} columns before what was found ({len(slim.rows)} x "
                f"{len(slim.columns)}), which is too many for an array of {grid[0]} x {grid[1]}."
            )
        made = [slim._padded(before, (missing[0] - before[0], missing[1] - before[1])) for before in choices]
        if len(made) > 1 and fits is not None:
            made = [lines for lines in made if fits(lines)]
        if len(made) != 1:
            raise ValueError(
                f"Found {len(slim.rows)} rows and {len(slim.columns)} columns of cores; the array has {grid[0]} and "
                f"{grid[1]}, and {'none' if not made else 'more than one'} of the places for those that are empty fits "
                "the image. Say with first= which core the first row and column that were found meet in, such as "
                "first='A1'."
            )
        return made[0]

    def _padded(self, before: tuple[int, int], after: tuple[int, int]) -> Lines:
        """With empty lines before the first and after the last."""
        (rows, on_row), (columns, on_column) = (
            (
                np.r_[lines[0] - pitch * np.arange(b, 0, -1), lines, lines[-1] + pitch * np.arange(1, a + 1)],
                np.r_[np.zeros(b, int), count, np.zeros(a, int)],
            )
            for lines, count, pitch, b, a in zip(
                (self.rows, self.columns), (self.on_row, self.on_column), self.pitch, before, after, strict=True
            )
        )
        return replace(self, rows=rows, columns=columns, on_row=on_row, on_column=on_column)

    def _without_surplus(self, grid: tuple[int, int]) -> Lines:
        """Lines without the empty ones inside that are too many, and the sparse ones at the ends.

        Such as a marker core.
        """
        kept = []
        for kind, lines, count, n_lines in zip(
            ("rows", "columns"), (self.rows, self.columns), (self.on_row, self.on_column), grid, strict=True
        ):
            keep = np.arange(len(lines))
            if len(keep) > n_lines:
                keep = keep[(count > 0) | (np.cumsum(count == 0) > len(keep) - n_lines)]
                if (count[keep] == 0).any():
                    logger.warning(
                        "The array has %d empty %s inside, more than grid= allows: the first are taken for gaps. "
                        "Check the numbering.",
                        (count == 0).sum(),
                        kind,
                    )
            while len(keep) > n_lines:
                end = keep[0] if count[keep[0]] < count[keep[-1]] else keep[-1]
                if count[end] > 0.5 * np.median(count[keep]):
                    raise ValueError(
                        f"Found {len(keep)} {kind} of cores, with {', '.join(str(n) for n in count[keep])} cores; the "
                        f"array has {n_lines} (grid=). Correct grid=, or look at the tissue: debris may be as large as "
                        "a core."
                    )
                logger.warning(
                    "%d cores at the end of the array are left aside: grid= has only %d %s.", count[end], n_lines, kind
                )
                keep = keep[keep != end]
            kept.append((lines[keep], count[keep]))
        (rows, on_row), (columns, on_column) = kept
        return replace(self, rows=rows, columns=columns, on_row=on_row, on_column=on_column)


def lay_grid(points: np.ndarray, sure: np.ndarray, least_pitch: float) -> Lines:
    """Lines through cores. Returns the lines, empty ones between others included."""
    sure = sure if sure.any() else np.ones(len(points), bool)
    lines = _fit(points[sure], least_pitch)
    if not sure.all():
        doubtful = points[~sure]
        counted = _continues(lines, doubtful)
        if counted.any():
            lines = _fit(np.concatenate([points[sure], doubtful[counted]]), least_pitch)
    return lines


def _fit(points: np.ndarray, least_pitch: float) -> Lines:
    slope = np.tan(_turn(points, least_pitch))
    slopes = [slope, -slope]
    pitch = _pitches(points, slope, least_pitch)
    for _ in range(3):  # which line a core is on, and how the lines run, in turn
        for axis in (0, 1):
            along, across = points[:, axis], points[:, 1 - axis]
            off = across - slopes[axis] * along
            group = _groups(off, SPLIT * pitch[axis])
            centred = along - _means(along, group)[group]
            if (centred**2).sum() > 0.5 * least_pitch**2:
                slopes[axis] += float((centred * off).sum() / (centred**2).sum())
    lines, counts, steps = [], [], []
    for axis in (0, 1):
        off = points[:, 1 - axis] - slopes[axis] * points[:, axis]
        group = _groups(off, SPLIT * pitch[axis])
        line = _means(off, group)
        steps.append(_step(line, pitch[axis]))
        filled, count = _with_empty(line, np.bincount(group), steps[axis])
        lines.append(filled)
        counts.append(count)
    return Lines(lines[0], lines[1], (slopes[0], slopes[1]), (steps[0], steps[1]), counts[0], counts[1])


def _step(lines: np.ndarray, pitch: float) -> float:
    """Typical distance of lines that follow on each other."""
    gaps = np.diff(lines)
    single = gaps[gaps < 1.5 * pitch]
    return float(single.mean()) if len(single) else pitch


def _turn(points: np.ndarray, least_pitch: float) -> float:
    """By how much the array is turned, in radians: as the points fall on fewest lines, along and across."""
    if len(points) < 2:
        return 0.0
    angles = np.deg2rad(np.arange(-LARGEST_TURN_DEG, LARGEST_TURN_DEG + 0.1, 0.25))
    scores = []
    for angle in angles:
        cos, sin = np.cos(angle), np.sin(angle)
        score = sum(
            np.exp(-(((off[:, None] - off[None]) / (0.2 * least_pitch)) ** 2)).sum()
            for off in (points @ [-sin, cos], points @ [cos, sin])
        )
        scores.append(score * (1 - 0.05 * (angle / angles[-1]) ** 2))  # an upright array is likelier
    return float(angles[int(np.argmax(scores))])


def _pitches(points: np.ndarray, slope: float, least_pitch: float) -> tuple[float, float]:
    """Typical distance of rows, and of columns."""
    angle = np.arctan(slope)
    turned = points @ np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    difference = np.abs(turned[:, None] - turned[None])
    steps: list[float | None] = []
    for axis in (1, 0):
        along, across = difference[..., axis], difference[..., 1 - axis]
        step = np.where((across < 0.5 * along) & (along > 0.7 * least_pitch), along, np.inf).min(1)
        steps.append(float(np.quantile(step[np.isfinite(step)], 0.25)) if np.isfinite(step).any() else None)
    known = [step for step in steps if step is not None]
    usual = known[0] if known else 1.6 * least_pitch
    return (steps[0] or usual, steps[1] or usual)


def _groups(values: np.ndarray, gap: float) -> np.ndarray:
    """Number of the line of each value, in increasing order: a gap parts two."""
    order = np.argsort(values)
    group = np.empty(len(values), int)
    group[order] = np.r_[0, np.cumsum(np.diff(values[order]) > gap)]
    return group


def _means(values: np.ndarray, group: np.ndarray) -> np.ndarray:
    return np.bincount(group, values) / np.bincount(group)


def _with_empty(lines: np.ndarray, count: np.ndarray, pitch: float) -> tuple[np.ndarray, np.ndarray]:
    """Lines, and between those that are two or more pitches apart the empty ones."""
    full, n_on = [lines[:1]], [count[:1]]
    for low, high, n in zip(lines[:-1], lines[1:], count[1:], strict=True):
        steps = round((high - low) / pitch)
        if steps < 2 or abs((high - low) / pitch - steps) > WHOLE_STEP:
            steps = 1
        full.append(np.linspace(low, high, steps + 1)[1:])
        n_on.append(np.r_[np.zeros(steps - 1, int), n])
    return np.concatenate(full), np.concatenate(n_on)


def _continues(lines: Lines, points: np.ndarray) -> np.ndarray:
    """Which points are on the grid, or would be if it had a line more at an end."""
    wider = lines._padded((1, 1), (1, 1))
    number = wider.number_of(points, ON_LINE)
    row, column = np.divmod(number, len(wider.columns))
    corner = np.isin(row, (0, len(wider.rows) - 1)) & np.isin(column, (0, len(wider.columns) - 1))
    return (number >= 0) & ~corner


def _nearest(values: np.ndarray, lines: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    distance = np.abs(values[:, None] - lines[None])
    return distance.argmin(1), distance.min(1)


def turn_upright(
    points: np.ndarray, shape: tuple[int, ...], corner: str, rows_run: str
) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    """Points as they would be if the array began at the top left and its rows ran across, and the way back."""
    size = np.array([shape[1], shape[0]], np.float64)
    sign = np.array([-1.0 if "right" in corner else 1.0, -1.0 if "bottom" in corner else 1.0])
    shift = np.where(sign < 0, size, 0.0)
    swap = rows_run == "down"

    def back(places: np.ndarray) -> np.ndarray:
        return (places[..., ::-1] if swap else places) * sign + shift

    flipped = points * sign + shift
    return (flipped[:, ::-1] if swap else flipped), back
