"""Files of many molecules: checked in one pass, without holding them."""

from __future__ import annotations

import gzip
from collections import deque
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist.io._files import checks

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    import pandas as pd

TAIL_BYTES = 4096
BLOCK_BYTES = 16 * 2**20


def require_last_line(path: Path) -> None:
    """Refuse a csv file that ends in the middle of a line, whose last value may be cut."""
    with checks.reading(path):
        first, tail = _ends(path)
    n_fields = len(first.split(b","))
    last = tail.rstrip(b"\r\n").rsplit(b"\n", 1)[-1]
    if len(last.split(b",")) < n_fields:
        shown = last[:60].decode(errors="replace")
        raise ValueError(f"{path} ends within a line: {shown!r} has fewer than {n_fields} fields. Is it truncated?")


def _ends(path: Path) -> tuple[bytes, bytes]:
    """The first line and the last bytes."""
    if path.suffix == ".gz":
        with gzip.open(path) as file:
            first = file.readline()
            blocks = deque(iter(lambda: file.read(BLOCK_BYTES), b""), maxlen=2)
        return first, b"".join([first, *blocks])[-TAIL_BYTES:]
    with path.open("rb") as file:
        first = file.readline()
        file.seek(max(0, path.stat().st_size - TAIL_BYTES))
        return first, file.read()


def require_genes(path: Path, genes: pd.Series) -> None:
    """Refuse molecules without a name."""
    empty = genes.isna()
    if empty.any():
        row = genes.index[int(empty.to_numpy().argmax())]
        raise ValueError(
            f"{path}: column {genes.name!r} is empty in {int(empty.sum())} of {len(genes)} rows, the first of them row "
            f"{row}. Is a column shifted? Correct the rows, or leave them out."
        )


def require_csv_molecules(path: Path, gene: str, numeric: Sequence[str]) -> None:
    """Refuse text and gaps among the coordinates and names of molecules, wherever they are."""
    import pyarrow as pa
    from pyarrow import csv

    wanted = [gene, *numeric]
    options = csv.ConvertOptions(
        include_columns=wanted, column_types=dict.fromkeys(wanted, pa.string()), strings_can_be_null=True
    )
    with (
        checks.reading(path),
        csv.open_csv(path, read_options=csv.ReadOptions(block_size=BLOCK_BYTES), convert_options=options) as batches,
    ):
        _require_values(path, batches, gene, numeric)


def require_parquet_molecules(path: Path, gene: str, numeric: Sequence[str]) -> None:
    """As :func:`require_csv_molecules`, of a parquet file."""
    import pyarrow.parquet as pq

    with checks.reading(path), pq.ParquetFile(path) as file:
        _require_values(path, file.iter_batches(columns=[gene, *numeric]), gene, numeric)


def _require_values(path: Path, batches: Iterable[Any], gene: str, numeric: Sequence[str]) -> None:
    n_before = 0
    for batch in batches:
        for name, bad, values in _bad_values(batch, gene, numeric):
            row = int(bad.argmax())
            should = "names of genes" if name == gene else "numbers"
            raise ValueError(
                f"{path}: column {name!r} should hold {should}, but row {n_before + row} has {values[row].as_py()!r}. "
                "Is a column shifted? Correct the row, or leave it out."
            )
        n_before += batch.num_rows


def _bad_values(batch: Any, gene: str, numeric: Sequence[str]) -> Iterator[tuple[str, np.ndarray, Any]]:
    import pyarrow as pa

    names = batch.column(gene)
    if names.null_count:
        yield gene, names.is_null().to_numpy(zero_copy_only=False), names
    for name in numeric:
        values = batch.column(name)
        bad = ~np.isfinite(_numbers(values) if pa.types.is_string(values.type) else _floats(values))
        if bad.any():
            yield name, bad, values


def _floats(values: Any) -> np.ndarray:
    return np.asarray(values.to_numpy(zero_copy_only=False), np.float64)


def _numbers(values: Any) -> np.ndarray:
    """Numbers of text, fast where all are; nan where one is none."""
    import pandas as pd
    import pyarrow as pa

    try:
        return _floats(values.cast(pa.float64()))
    except pa.ArrowInvalid:
        return np.asarray(pd.to_numeric(values.to_pandas(), errors="coerce"), np.float64)
