"""Tables of samples as people write them: csv files, of which nothing is guessed."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sthist._faults import records

if TYPE_CHECKING:
    from collections.abc import Iterator
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
    columns: list[str] = []
    rows, lines = [], []
    for line, cells in _records(path, text):
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


def _records(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    try:
        yield from records(text)
    except ValueError as error:
        raise ValueError(f"{path}, {error}") from None
