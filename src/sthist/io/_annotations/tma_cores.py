"""Which rows and columns of a microarray the cores are that QuPath names ``A-1``."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist._settings import logger

if TYPE_CHECKING:
    from sthist.io._annotations.geojson import Drawn

PLACE = re.compile(r"^\s*([A-Za-z]{1,2}|\d{1,3})([\s_.:-]*)([A-Za-z]{1,2}|\d{1,3})\s*$")


def core_columns(drawn: list[Drawn]) -> dict[str, Any]:
    """``row``, ``column`` and ``state`` of the cores of a microarray; nothing where there are none.

    Either part of a name may be that of the row: what lies side by side tells. Rows and columns are not given where a
    name is of another form, or two cores have the same.
    """
    import pandas as pd

    cores = [i for i, each in enumerate(drawn) if each.kind == "tmaCore"]
    if not cores:
        return {}
    state = np.full(len(drawn), None, dtype=object)
    state[cores] = ["missing" if drawn[i].missing else "whole" for i in cores]
    parts = _parts([drawn[i].name or "" for i in cores])
    if parts is None:
        return {"state": state}
    first, second = parts
    centres = np.array([drawn[i].geometry.centroid.coords[0] for i in cores])
    row, column = min((first, second), (second, first), key=lambda pair: _spread(centres, *pair))
    if len(set(zip(row.tolist(), column.tolist(), strict=True))) < len(cores):
        logger.warning("The %d cores have no row and column: two have the same name.", len(cores))
        return {"state": state}
    if len(cores) == len(drawn):
        return {"row": row, "column": column, "state": state}
    places = np.full((2, len(drawn)), -1)
    places[:, cores] = row, column
    row, column = (pd.Series(values, dtype="Int64").mask(values < 0).to_numpy(dtype=object) for values in places)
    return {"row": pd.array(row, dtype="Int64"), "column": pd.array(column, dtype="Int64"), "state": state}


def _parts(names: list[str]) -> tuple[np.ndarray, np.ndarray] | None:
    """The two parts of each name as numbers; None where one is of another form."""
    matches = [PLACE.match(name) for name in names]
    read = [match is not None and (bool(match[2]) or match[1].isdigit() != match[3].isdigit()) for match in matches]
    if not all(read):
        logger.warning(
            f"{len(read) - sum(read)} of {len(read)} cores have names that are not like 'A-1', such as "
            f"{names[read.index(False)]!r}: none has a row and a column."
        )
        return None
    sides = [[match[i] for match in matches if match is not None] for i in (1, 3)]
    if any(len({part.isdigit() for part in side}) > 1 for side in sides):
        logger.warning(
            "The cores have no row and column: some of their names begin with a letter, and some with a number."
        )
        return None
    return _numbers(sides[0]), _numbers(sides[1])


def _numbers(parts: list[str]) -> np.ndarray:
    """Letters, or numbers from 0 or 1, as numbers from 0."""
    if parts[0].isdigit():
        numbers = np.array([int(part) for part in parts])
        return numbers - min(1, int(numbers.min()))
    return np.array([number_of_letters(part) for part in parts])


def number_of_letters(letters: str) -> int:
    """Number of a row from 0: A is 0, z is 25, AA is 26."""
    number = 0
    for letter in letters.upper():
        number = 26 * number + ord(letter) - 64
    return number - 1


def _spread(centres: np.ndarray, row: np.ndarray, column: np.ndarray) -> float:
    """How far cores of one row lie apart in y, and of one column in x."""
    return sum(
        float(((values - (np.bincount(groups, values) / np.maximum(np.bincount(groups), 1))[groups]) ** 2).sum())
        for values, groups in ((centres[:, 1], row), (centres[:, 0], column))
    )
