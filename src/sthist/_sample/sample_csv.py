"""Tables of samples as people write them: csv files, of which nothing is guessed."""

from __future__ import annotations

import csv
import io
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class SampleTable:
    """A table of samples: its columns, and its rows with the lines that they stand on."""

    path: Path
    columns: list[str]
    rows: list[dict[str, str]]
    lines: list[int]

    def require_column(self, name: str) -> None:
        """Refuse a table without a column."""
        if name in self.columns:
            return
        separator = next((mark for mark in (";", "\t") if len(self.columns) == 1 and mark in self.columns[0]), None)
        hint = f" Its cells are separated by {separator!r}; write it with commas." if separator else ""
        raise KeyError(f"{self.path} has no column {name!r}; it has {self.columns}.{hint}")


def read_sample_csv(path: Path) -> SampleTable:
    """Read a table of samples; refuses, with the line, what is damaged or would be read otherwise than it was meant."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no table of samples {path}.")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8 (byte {error.start}): save it as csv in UTF-8.") from None
    if "\0" in text:
        raise ValueError(f"{path} is no csv file, or damaged: it holds bytes of zero. Save it as csv in UTF-8.")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    columns: list[str] = []
    rows, lines = [], []
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            raise ValueError(f"{path}, line {line}: {_what_is_wrong(str(error))}") from None
        if reader.line_num > line:
            raise ValueError(
                f'{path}, line {line}: a quote (") opens a cell that goes on to line {reader.line_num}, and takes the '
                "rows between for text. Close the quote on its line, or remove it."
            )
        if not cells:
            continue
        if not columns:
            columns = [name.strip() for name in cells]
            continue
        if any(cell.strip() for cell in cells[len(columns) :]):
            raise ValueError(
                f"{path}, line {line} has {len(cells)} cells, and the table {len(columns)} columns. Put quotes around "
                "a cell that has a comma."
            )
        cells += [""] * (len(columns) - len(cells))
        rows.append({name: cell.strip() for name, cell in zip(columns, cells, strict=False)})
        lines.append(line)
    twice = next((name for name, number in Counter(columns).items() if name and number > 1), None)
    if twice is not None:
        raise ValueError(f"{path} has two columns {twice!r}; remove one.")
    if not any(row.get("") for row in rows):  # as spreadsheets leave them behind
        columns = [name for name in columns if name]
    return SampleTable(path, columns, rows, lines)


def _what_is_wrong(message: str) -> str:
    """In plain words, what Python's parser says."""
    if "unexpected end of data" in message:
        return 'a quote (") is opened and never closed, and takes all rows that follow for text. Close or remove it.'
    if "expected after" in message:
        return 'a quote (") closes a cell in its middle: there is one too many, or a comma is missing after it.'
    return f"this is no csv: {message}."
