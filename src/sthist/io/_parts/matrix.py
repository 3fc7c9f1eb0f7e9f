"""Tables of counts in text files, as the research formats ship them."""

from __future__ import annotations

import csv
import re
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist._messages import plain
from sthist._reading import open_text, require_file
from sthist._settings import logger
from sthist.io._files import checks, values

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    import pandas as pd
    from anndata import AnnData

# A table of all genes would fill the memory as numbers of 8 bytes; it is read in parts of this many.
VALUES_PER_PART = 20_000_000
# Of a spot of a legacy array in its name: 10x13, also behind the name of the section.
POSITION = re.compile(r"(?:^|[_-])(\d+(?:\.\d+)?)x(\d+(?:\.\d+)?)$")


@dataclass(frozen=True)
class Matrix:
    """Numbers with named rows and columns."""

    path: Path  # the file
    values: Any  # csr matrix
    rows: pd.Index  # names, as many as it has
    columns: pd.Index

    @property
    def turned(self) -> Matrix:
        """Columns as rows."""
        return Matrix(self.path, self.values.T.tocsr(), self.columns, self.rows)


def separator(path: Path) -> str:
    """Tab or comma, by the first line of a text file."""
    return "\t" if "\t" in _first_lines(path, 1)[0] else ","


def _first_lines(path: Path, n: int) -> list[str]:
    with checks.reading(path), open_text(path) as file:
        lines = [line for _, line in zip(range(n), file, strict=False)]
    checks.require_rows(path, len(lines), "lines")
    return lines


def read_matrix(path: Path) -> Matrix:
    """A table of numbers whose first column names its rows and whose header names its columns.

    The header may lack the name of the first column altogether, as R writes it.
    """
    import pandas as pd

    sep = separator(path)
    with checks.reading(path):
        header, first = [*csv.reader(_first_lines(path, 2), delimiter=sep), []][:2]
    checks.require_rows(path, len(first))
    names = pd.Index(header if len(header) == len(first) - 1 else header[1:])
    checks.require_rows(path, len(names), "columns beside the names of its rows")
    with checks.reading(path):
        plain = _read_plain(path, sep, len(names))
    values, rows = plain or _read_any(path, sep, names)
    return Matrix(path, values, rows, names)


def read_frame(path: Path) -> pd.DataFrame:
    """A table of numbers with names of rows and columns: text, as :func:`read_matrix` takes it, or parquet."""
    import pandas as pd

    require_file(path)
    if path.suffix.lower() != ".parquet":
        matrix = read_matrix(path)
        return pd.DataFrame(matrix.values.toarray(), index=matrix.rows, columns=matrix.columns)
    checks.require_parquet(path, [])
    with checks.reading(path):
        frame = pd.read_parquet(path)
    checks.require_rows(path, len(frame.columns), "columns")
    if frame.index.dtype.kind in "biuf" and frame.iloc[:, 0].dtype.kind not in "biuf":
        frame = frame.set_index(frame.columns[0])  # names of rows that are a column like others
    checks.require_rows(path, len(frame.columns), "columns beside the names of its rows")
    frame = frame.set_axis(frame.index.astype(str)).set_axis(frame.columns.astype(str), axis=1)
    checks.require_numbers(path, frame, list(dict.fromkeys(frame.columns)))
    return frame


def _read_plain(path: Path, sep: str, n_columns: int) -> tuple[Any, pd.Index] | None:
    """Values and names of rows, line by line, which takes a fraction of a csv parser's time.

    None where one is needed.
    """
    import pandas as pd
    from scipy import sparse

    names, columns, values, ends = [], [], [], [0]
    with open_text(path) as file, warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)  # how numpy says that there is something else than numbers
        next(file)
        for line in file:
            name, _, rest = line.rstrip("\n").partition(sep)
            if len(name) > 1 and name[0] == name[-1] == '"':  # as R writes it
                name = name[1:-1]
            row = _numbers(rest, sep)
            if row is None or len(row) != n_columns or '"' in name or not np.isfinite(row).all():
                return None
            names.append(name)
            columns.append(np.flatnonzero(row).astype(np.int32))
            values.append(row[columns[-1]])
            ends.append(ends[-1] + len(columns[-1]))
    parts = (np.concatenate(values), np.concatenate(columns), np.array(ends))
    return sparse.csr_matrix(parts, shape=(len(names), n_columns)), pd.Index(names)


def _numbers(text: str, sep: str) -> np.ndarray | None:
    """Numbers of a line, None if it has anything else; whole ones are read ten times as fast as others."""
    for dtype in (np.int64, np.float64):
        try:
            return np.fromstring(text, dtype, sep=sep)
        except (DeprecationWarning, ValueError):
            continue
    return None


def _read_any(path: Path, sep: str, names: pd.Index) -> tuple[Any, pd.Index]:
    """The same of any csv, with quotes or faults, which are found here."""
    import pandas as pd
    from scipy import sparse

    blocks, rows = [], []
    options: dict[str, Any] = {"sep": sep, "header": None, "skiprows": 1, "index_col": 0, "dtype": {0: str}}
    chunk = max(1, VALUES_PER_PART // len(names))
    with checks.reading(path), open_text(path) as file, pd.read_csv(file, chunksize=chunk, **options) as parts:
        for part in parts:
            if part.shape[1] != len(names):
                raise ValueError(
                    f"{path} has {len(names)} names of columns, but {part.shape[1]} values in a row. Export the file "
                    "again."
                )
            if any(kind.kind not in "iuf" for kind in part.dtypes) or not np.isfinite(part.to_numpy()).all():
                for position, name in enumerate(names):  # of which several may be the same
                    checks.require_numbers(path, part.iloc[:, [position]].set_axis([name], axis=1), [name])
            blocks.append(sparse.csr_matrix(part.to_numpy()))
            rows.append(part.index.astype(str).rename(None))
    return sparse.vstack(blocks, format="csr"), rows[0].append(rows[1:])


def raw_counts(path: Path, matrix: Any, rows: pd.Index, columns: pd.Index, what: str) -> Any:
    """Counts as a csr matrix of int32, refused where they are none."""
    from scipy import sparse

    if matrix is None or not len(rows) or not len(columns):
        raise ValueError(
            f"{path} has no counts: {what} is {'missing' if matrix is None else f'{len(rows)} x {len(columns)}'}. "
            "Export it again."
        )
    values.require_sparse_matrix(f"{path}: {what}", matrix)
    counts = sparse.csr_matrix(matrix)
    highest = np.iinfo(np.int32).max
    values.require_counts(f"{path}: {what}", counts, rows, columns, what="spot", highest=highest)
    counts = counts.astype(np.int32)
    counts.eliminate_zeros()
    return counts


def position_key(name: str) -> str:
    """The name by which a spot of a legacy array is known in all files: its rounded position, else the name itself."""
    place = POSITION.search(name)
    return name if place is None else "x".join(f"{float(number):.0f}" for number in place.groups())


def count_table(matrix: Matrix, rows: np.ndarray, names: Iterable[str]) -> AnnData:
    """Some rows of a matrix of counts as an AnnData."""
    import pandas as pd
    from anndata import AnnData

    counts = raw_counts(matrix.path, matrix.values[rows], matrix.rows[rows], matrix.columns, "the table")
    genes = unique_genes(matrix.path, matrix.columns)
    return AnnData(counts, obs=pd.DataFrame(index=pd.Index(list(names))), var=pd.DataFrame(index=genes))


def unique_genes(path: Path, genes: pd.Index) -> pd.Index:
    """The same names, a number behind that of a gene that is there again."""
    from anndata.utils import make_index_unique

    values.require_named(path, "genes", genes)
    again = genes.duplicated()
    if not again.any():
        return genes
    logger.warning(
        f"{path} has {again.sum()} genes more than once, such as {plain(genes[again][0])!r}; a number is added to "
        "their names."
    )
    return make_index_unique(genes)
