"""The map of a microarray: a table that says what each core is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist._messages import listed, plain
from sthist._sample.samples import require_one_spelling, safe_names
from sthist._settings import logger
from sthist._tables.genes import closest
from sthist.io._annotations.objects import number_of_letters
from sthist.io._files import checks

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

NAME_COLUMNS, ROW_COLUMNS, COLUMN_COLUMNS = ("core", "name", "core_id"), ("row",), ("column", "col")
TEXT_COLUMNS = {*NAME_COLUMNS, *ROW_COLUMNS, *COLUMN_COLUMNS, "patient", "batch"}
"""Columns that are text also where they look like numbers: patient 007 is not patient 7."""

CORE_NAME = re.compile(r"^\s*([A-Za-z]{1,2})[\s_.:-]*0*(\d+)\s*$")


def core_name(row: int, column: int) -> str:
    """Letter of the row and number of the column, as in ``A1``; row 26 is ``AA``.

    Examples
    --------
    >>> from sthist.pp._tma.names import core_name
    >>> core_name(0, 0), core_name(2, 11), core_name(26, 0)
    ('A1', 'C12', 'AA1')
    """
    letters = chr(65 + row) if row < 26 else chr(64 + row // 26) + chr(65 + row % 26)
    return f"{letters}{column + 1}"


def parse_core_name(name: str) -> tuple[int, int] | None:
    """Row and column of a name such as ``A1``, ``b-03``; None for any other.

    Examples
    --------
    >>> from sthist.pp._tma.names import parse_core_name
    >>> parse_core_name("C12"), parse_core_name("b-03"), parse_core_name("liver")
    ((2, 11), (1, 2), None)
    """
    match = CORE_NAME.match(name)
    if match is None or int(match[2]) == 0:
        return None
    return number_of_letters(match[1]), int(match[2]) - 1


def read_core_map(table: Any) -> tuple[pd.DataFrame, str]:
    """A map as a frame, and what to call it in messages."""
    import pandas as pd

    if isinstance(table, pd.DataFrame):
        if hasattr(table, "geom_type"):  # shapes of cores: where they are, and whether, is told from the tissue
            table = pd.DataFrame(table.drop(columns=["geometry", "state"], errors="ignore"))
        named = table.index.name is not None and str(table.index.name).casefold() in NAME_COLUMNS
        return (table.reset_index() if named else table.reset_index(drop=True)), "The table of cores"
    if not isinstance(table, str | Path):
        raise TypeError(f"core_map= is a csv file or a DataFrame, not {type(table).__name__}.")
    if not Path(table).is_file():
        raise FileNotFoundError(f"There is no table of cores {table}.")
    with checks.reading(Path(table)):
        with Path(table).open(encoding="utf-8-sig") as file:
            separator = max(",;\t", key=file.readline().count)  # spreadsheets of many countries write semicolons
        header = pd.read_csv(table, nrows=0, sep=separator, encoding="utf-8-sig").columns
    text = {name: str for name in header if str(name).strip().casefold() in TEXT_COLUMNS}
    frame = checks.read_csv(Path(table), [], dtype=text, sep=separator, encoding="utf-8-sig")
    return frame.rename(columns=lambda name: str(name).strip()), str(table)


def join_core_map(
    table: Any, grid: tuple[int, int], present: Sequence[str], own: Sequence[str]
) -> tuple[pd.DataFrame, dict[str, str]]:
    """What a map says of each core of an array, with the names of cores as the index, row by row.

    Returns one row per place of the array, in the order of rows and columns, NaN where the map says nothing; and what
    columns were called that could not be stored so, by what they are called now.
    """
    frame, what = read_core_map(table)
    columns = {str(name).strip().casefold(): name for name in frame.columns}
    row_key, column_key, name_key = (
        next((columns[name] for name in names if name in columns), None)
        for names in (ROW_COLUMNS, COLUMN_COLUMNS, NAME_COLUMNS)
    )
    if row_key is not None and column_key is not None:
        places = _places_of_numbers(frame[row_key], frame[column_key], grid, what)
        used = [row_key, column_key]
    elif name_key is not None:
        places = _places_of_names(frame[name_key], what)
        used = [name_key]
    else:
        have = list(map(str, frame.columns))
        raise KeyError(
            f"{what} has neither the columns 'row' and 'column' nor a column 'core'; it has "
            f"{have}.{closest('row' if column_key else 'column' if row_key else 'core', have)}"
        )
    names = [core_name(*place) for place in places]
    _require_on_array(places, names, grid, what)
    _require_once(names, what)
    facts = frame.drop(columns=used).set_axis(names)
    if name_key is not None and name_key not in used:
        facts = facts.rename(columns={name_key: "name"})
    facts, renamed = _with_safe_columns(facts, what, own)
    facts = _tidy(facts)
    _say_unmatched(facts, present, what)
    return facts.reindex([core_name(r, c) for r in range(grid[0]) for c in range(grid[1])]), renamed


def _places_of_names(names: pd.Series, what: str) -> list[tuple[int, int]]:
    places = [parse_core_name(str(name)) for name in names]
    unread = [i for i, place in enumerate(places) if place is None]
    if unread:
        raise ValueError(
            f"{what} has {len(unread)} cores whose name is not a letter and a number, such as "
            f"{plain(names.iloc[unread[0]])!r} in row {unread[0]}. Call them 'A1', or give the columns 'row' and "
            "'column'."
        )
    return [place for place in places if place is not None]


def _places_of_numbers(rows: pd.Series, columns: pd.Series, grid: tuple[int, int], what: str) -> list[tuple[int, int]]:
    """Rows as letters or numbers, and columns as numbers, which count from 0 or from 1."""
    row_text, column_text = (values.astype(str).str.strip() for values in (rows, columns))
    lettered = row_text.str.fullmatch("[A-Za-z]{1,2}").fillna(False).to_numpy(bool)
    column_numbers = _whole_numbers(column_text, columns.name, what)
    if lettered.all():
        _require_positive(column_numbers, columns.name, what)
        return [(number_of_letters(letters), int(c) - 1) for letters, c in zip(row_text, column_numbers, strict=True)]
    row_numbers = _whole_numbers(row_text, rows.name, what)
    base = _counted_from(row_numbers, column_numbers, grid, what)
    return [(int(r) - base, int(c) - base) for r, c in zip(row_numbers, column_numbers, strict=True)]


def _whole_numbers(values: pd.Series, column: Any, what: str) -> np.ndarray:
    import pandas as pd

    numbers = pd.to_numeric(values, errors="coerce").to_numpy(np.float64)
    wrong = np.flatnonzero(~(numbers == np.floor(numbers)) | (numbers < 0))
    if len(wrong):
        raise ValueError(
            f"{what} has {plain(values.iloc[wrong[0]])!r} in column {str(column)!r}, row {wrong[0]}: it is no number "
            "of a row or column."
        )
    return numbers.astype(int)


def _require_positive(numbers: np.ndarray, column: Any, what: str) -> None:
    if len(numbers) and numbers.min() < 1:
        raise ValueError(
            f"{what} has {numbers.min()} in column {str(column)!r}, but beside rows with letters columns count from 1."
        )


def _counted_from(rows: np.ndarray, columns: np.ndarray, grid: tuple[int, int], what: str) -> int:
    """Whether numbers count from 0 or from 1, by the least and the largest that occur."""
    if len(rows) == 0 or rows.min() == 0 or columns.min() == 0:
        return 0
    if rows.max() >= grid[0] or columns.max() >= grid[1]:
        return 1
    raise ValueError(
        f"{what} has rows {rows.min()} to {rows.max()} and columns {columns.min()} to {columns.max()}, on an array of "
        f"{grid[0]} x {grid[1]} cores: they may count from 0 or from 1. Name the cores in a column 'core' ('A1', 'A2', "
        "...) in place of them, or write the rows as letters."
    )


def _require_on_array(places: list[tuple[int, int]], names: list[str], grid: tuple[int, int], what: str) -> None:
    off = [name for name, (row, column) in zip(names, places, strict=True) if row >= grid[0] or column >= grid[1]]
    if off:
        raise ValueError(
            f"{what} has {len(off)} cores that are not on the array of {grid[0]} x {grid[1]} (rows A to "
            f"{core_name(grid[0] - 1, 0)[:-1]}): {listed(off)}. If a whole row or column is empty on the slide, give "
            "the size of the array with grid=."
        )


def _require_once(names: list[str], what: str) -> None:
    seen: dict[str, int] = {}
    for i, name in enumerate(names):
        if name in seen:
            raise ValueError(f"{what} has core {name!r} more than once, in rows {seen[name]} and {i}.")
        seen[name] = i


def _with_safe_columns(facts: pd.DataFrame, what: str, own: Sequence[str]) -> tuple[pd.DataFrame, dict[str, str]]:
    """Columns under names that can be stored, and the names that had to be changed, by the new ones."""
    facts = facts.rename(columns=lambda name: "patient" if str(name).casefold() == "patient" else str(name))
    if facts.columns.has_duplicates:
        raise ValueError(f"{what} has the column {facts.columns[facts.columns.duplicated()][0]!r} more than once.")
    safe = safe_names(facts.columns)
    taken = [name for name, key in safe.items() if key.casefold() in own]
    if taken:
        raise ValueError(f"{what} has a column {taken[0]!r}, which pp.tma writes itself: rename it.")
    hidden = [name for name, key in safe.items() if not key.strip("_.-") or key.startswith("_")]
    if hidden:
        raise ValueError(f"{what} has a column {hidden[0]!r}: names begin with a letter or digit. Rename it.")
    renamed = {key: name for name, key in safe.items() if key != name}
    if renamed:
        logger.info("Columns of %s that cannot be stored under their names: %s.", what, renamed)
    return facts.rename(columns=safe), renamed


def _tidy(facts: pd.DataFrame) -> pd.DataFrame:
    """Columns as they can be stored, also with gaps.

    Text as categories, dates as text, yes and no with a third value for neither.
    """
    import pandas as pd

    if "patient" in facts:
        facts["patient"] = [None if pd.isna(p) or not str(p).strip() else str(p).strip() for p in facts["patient"]]
        require_one_spelling(facts["patient"])
    for column, values in facts.items():
        if values.dtype == bool:
            facts[column] = values.astype("boolean")
        elif values.dtype.kind in "mM":
            facts[column] = pd.Categorical(values.astype(str).where(values.notna()))
        elif values.dtype == object or isinstance(values.dtype, pd.StringDtype):
            known = values.dropna()
            facts[column] = pd.Categorical(
                values.where(values.isna(), known.astype(str)), categories=sorted(set(known.astype(str)))
            )
    return facts


def _say_unmatched(facts: pd.DataFrame, present: Sequence[str], what: str) -> None:
    """Cores that one side has alone, and cores of nobody."""
    unknown = [name for name in present if name not in facts.index]
    if unknown:
        logger.warning("%s says nothing of %d cores that were found: %s.", what, len(unknown), listed(unknown))
    missing = [name for name in facts.index if name not in set(present)]
    if missing:
        logger.info("%d cores of %s are missing on the slide: %s.", len(missing), what, listed(missing))
    if "patient" in facts:
        nobody = [name for name in facts.index[facts["patient"].isna()] if name in set(present)]
        if nobody:
            logger.warning(
                "%s names no patient for %d cores: %s. It stays NaN there.", what, len(nobody), listed(nobody)
            )
