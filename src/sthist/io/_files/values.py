"""Counts and coordinates: what every reader asks of them, and says of those that are none, in one place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sthist._reading import require_memory
from sthist._settings import logger

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

BLOCK = 4_000_000  # entries of an index that are looked at in one go
MAX_OUTSIDE = 0.05  # share of spots that may lie outside of their picture
HALF = 0.5  # share of cells and molecules that may lie outside of an image, which may be a crop
Box = tuple[float, float, float, float]
FARTHEST = 1e8  # px or µm; a slide has some 1e5
LONG_OUTLINE = 2000  # vertices from which on it is looked at how often an outline crosses itself
BYTES_OF_A_CROSSING = 2000


def require_sparse(
    where: str, indptr: Any, indices: Any, data: Any, shape: tuple[int, int], *, within: bool = True
) -> None:
    """Refuse a compressed matrix, by (major, minor) shape, whose parts point outside of each other.

    Compiled code trusts them: a wrong one ends the process, or gives foreign memory as counts. The parts may be
    datasets of a file: ``indices`` are read in blocks, ``data`` not at all. Without ``within``, the values of
    ``indices`` are not looked at.
    """
    n_major, n_minor = shape
    for name, part, kinds in (("indptr", indptr, "iu"), ("indices", indices, "iu"), ("data", data, "iufb")):
        if len(part.shape) != 1 or part.dtype.kind not in kinds:
            raise ValueError(
                f"{where}/{name} is {part.dtype} of shape {tuple(part.shape)}; it should be a list of "
                f"{'whole ' if kinds == 'iu' else ''}numbers. Is the file damaged? Copy it again."
            )
    ends = np.asarray(indptr[:], np.int64)
    fault = None
    if n_major < 0 or n_minor < 0:
        fault = f"shape is {(n_major, n_minor)}"
    elif len(ends) != n_major + 1:
        fault = f"indptr has {len(ends)} entries; {n_major + 1} are needed by the shape, {(n_major, n_minor)}"
    elif ends[0] != 0:
        fault = f"indptr[0] is {ends[0]}; it should be 0"
    elif (np.diff(ends) < 0).any():
        row = int((np.diff(ends) < 0).argmax())
        fault = f"indptr falls from {ends[row]} to {ends[row + 1]} in row {row}"
    elif not ends[-1] == indices.shape[0] == data.shape[0]:
        fault = f"indptr ends at {ends[-1]}, but indices has {indices.shape[0]} and data {data.shape[0]} values"
    if fault is not None:
        raise ValueError(f"{where}: {fault}. Is the file damaged? Copy it again.")
    for start in range(0, indices.shape[0] if within else 0, BLOCK):
        part = indices[start : start + BLOCK]
        if part.min() < 0 or part.max() >= n_minor:
            place = start + int(((part < 0) | (part >= n_minor)).argmax())
            row = int(np.searchsorted(ends, place, side="right")) - 1
            raise ValueError(
                f"{where}: indices[{place}] (of row {row}) is {part[place - start]}; it should be from 0 to "
                f"{n_minor - 1}. Is the file damaged? Copy it again."
            )


def require_sparse_matrix(where: str, matrix: Any) -> None:
    """The same of a csr or csc matrix in memory; nothing of other matrices."""
    if getattr(matrix, "format", None) in {"csr", "csc"}:
        shape = matrix.shape if matrix.format == "csr" else matrix.shape[::-1]
        require_sparse(where, matrix.indptr, matrix.indices, matrix.data, shape)


def require_counts(
    where: str,
    matrix: Any,
    rows: pd.Index,
    columns: pd.Index,
    *,
    what: str = "cell",
    whole: bool = True,
    highest: float = np.inf,
) -> None:
    """Refuse numbers that are no counts: NaN, infinite, negative and, where raw ones are claimed, fractional.

    Other fractions are said.
    """
    stored = matrix.data if hasattr(matrix, "indptr") else np.asarray(matrix)
    if not stored.size:
        return
    # Two passes without a copy tell that all is well.
    fractions = stored.dtype.kind == "f" and bool((stored != np.rint(stored)).any())  # so is NaN
    low, high = stored.min(), stored.max()
    if low >= 0 and high <= highest and np.isfinite(high) and not fractions:  # NaN is none of it
        return
    fractional = stored != np.rint(stored)
    bad = ~np.isfinite(stored) | (stored < 0) | (stored > highest) | (whole & fractional)
    only_fractions = not bad.any()
    place = int((fractional if only_fractions else bad).argmax())
    if hasattr(matrix, "indptr"):
        major, minor = int(np.searchsorted(matrix.indptr, place, side="right")) - 1, int(matrix.indices[place])
        row, column = (minor, major) if matrix.format == "csc" else (major, minor)
    else:
        row, column = (int(number) for number in np.unravel_index(place, stored.shape))
    shown = f"{what} {str(rows[row])!r} has {stored.flat[place]:.6g} of {str(columns[column])!r}"
    if only_fractions:
        message = "%s: %d of %d counts are no whole numbers, such as: %s. Were they normalised already?"
        logger.warning(message, where, fractional.sum(), stored.size, shown)
        return
    needed = f"{'whole ' if whole else ''}numbers from 0" + (f" to {highest:.0f}" if np.isfinite(highest) else "")
    raise ValueError(
        f"{where} should hold {'raw ' if whole else ''}counts, {needed}, but {int(bad.sum())} values are none; "
        f"{shown}. Give the file from before normalisation."
    )


def require_named(path: Path | str, field: str, names: Any) -> None:
    """Refuse names (of genes, cells or bins) that are empty."""
    import pandas as pd

    column = pd.Series(np.asarray(names))
    blank = [name for name in column.unique() if pd.isna(name) or not str(name).strip()]  # there are few of a gene
    if blank:
        empty = column.isin(blank).to_numpy()
        raise ValueError(
            f"{path}: {field} should hold names, but {int(empty.sum())} of {len(names)} are empty, the first in row "
            f"{int(empty.argmax())}. Is the file damaged? Export it again."
        )


def require_few_crossings(path: Any, geometry: np.ndarray) -> None:
    """Refuse an outline that crosses itself beyond all measure: to repair it would take all memory."""
    import shapely

    for outline in geometry[shapely.get_num_coordinates(geometry) > LONG_OUTLINE]:
        n_crossings = _crossings(outline)
        require_memory(
            path, n_crossings * BYTES_OF_A_CROSSING, f"an outline that crosses itself {n_crossings:.0f} times"
        )


def _crossings(outline: Any) -> float:
    """About how often an outline crosses itself, from some of its edges."""
    import shapely

    xy = shapely.get_coordinates(outline)
    edges = shapely.linestrings(np.stack([xy[:-1], xy[1:]], axis=1))
    some = edges[:: max(1, len(edges) // 200)]
    met = shapely.STRtree(edges).query(some, predicate="intersects").shape[1] / len(some)
    return max(0.0, met - 3) * len(edges) / 2  # each edge meets itself and its neighbours


def no_places(xy: np.ndarray) -> np.ndarray:
    """Which coordinates, (n, 2), are NaN, infinite, or farther out than any slide."""
    return np.asarray(~(np.abs(xy) <= FARTHEST).all(1))


def require_places(path: Path, fields: str, xy: np.ndarray, names: Any = None, *, what: str = "rows") -> None:
    """Refuse coordinates, (n, 2), that are NaN, infinite, or farther out than any slide."""
    bad = no_places(xy)
    if bad.any():
        first = int(bad.argmax())
        shown = f"row {first}" if names is None else repr(str(np.asarray(names)[first]))
        raise ValueError(
            f"{path}: {fields} are NaN or infinite for {int(bad.sum())} of {len(xy)} {what}, the "
            f"first of them {shown}. Correct them, or leave them out; none is above {FARTHEST:g}."
        )


def require_within(
    path: Path,
    fields: str,
    xy: np.ndarray,
    box: Box,
    image: str,
    *,
    what: str,
    unit: str = "px",
    most: float = MAX_OUTSIDE,
) -> None:
    """Refuse places of which more than a share lie beside an image, by its x0, y0, x1 and y1; say where fewer do."""
    outside = ((xy < box[:2]) | (xy > box[2:])).any(1)
    if outside.any():
        first = xy[int(outside.argmax())]
        say_outside(path, fields, int(outside.sum()), len(xy), first, box, image, what=what, unit=unit, most=most)


def say_outside(
    path: Path,
    fields: str,
    n_outside: int,
    n: int,
    first: Any,
    box: Box,
    image: str,
    *,
    what: str,
    unit: str,
    most: float,
) -> None:
    """Refuse, or say, that places lie beside an image."""
    x0, y0, x1, y1 = box
    spans = f"spans x {x0:.6g} to {x1:.6g}, y {y0:.6g} to {y1:.6g}" if x0 or y0 else f"has {x1:.6g} x {y1:.6g}"
    said = (
        f"{path}: {n_outside} of {n} {what} ({fields}) lie outside of {image}, which {spans} {unit}, such as "
        f"({first[0]:.6g}, {first[1]:.6g})."
    )
    if n_outside > most * n:
        raise ValueError(f"{said} Are both of one sample, and at one scale?")
    logger.warning("%s", said)
