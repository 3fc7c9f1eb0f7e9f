"""Spots as bags of cells: batches of whole spots, of embeddings that stay where they are stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist._messages import plain
from sthist.regression.data.inputs import Arrays, Inputs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sthist.regression.data.inputs import Batch

AT_ONCE = 4096
"""Cells whose embeddings are gathered together where all are gone through."""


@dataclass(frozen=True, eq=False)
class Embeddings:
    """Embeddings of cells, as they are stored in one table or several; they are gathered when a batch is made."""

    tables: tuple[tuple[np.ndarray, ...], ...]  # of each sample, (rows, d) of each encoder
    sample: np.ndarray  # (m,) which of them a cell is in, and in which row
    row: np.ndarray
    standards: tuple[tuple[np.ndarray, np.ndarray], ...] | None = None  # mean and deviation of each sample

    @classmethod
    def of_array(cls, values: Any) -> Embeddings:
        """Those of one array."""
        array = np.asarray(values)
        if array.ndim != 2 or array.shape[1] == 0:
            raise ValueError(f"Embeddings of cells are (n_cells, d), not {array.shape}.")
        if array.dtype.kind != "f":
            array = array.astype(np.float32)
        for start in range(0, len(array), AT_ONCE):
            finite = np.isfinite(array[start : start + AT_ONCE]).all(axis=1)
            if not finite.all():
                raise ValueError(f"Embeddings are NaN or infinite, first in row {start + int(finite.argmin())}.")
        return cls(((array,),), np.zeros(len(array), int), np.arange(len(array)))

    def __len__(self) -> int:
        return len(self.row)

    @property
    def dim(self) -> int:
        """Their length."""
        return sum(part.shape[1] for part in self.tables[0])

    def take(self, cells: np.ndarray) -> np.ndarray:
        """Embeddings of some cells, (n, d) float32, or float16 where they are stored so."""
        if len(self.tables) == 1:
            return self._of_sample(0, self.row[cells])
        found = np.empty((len(cells), self.dim), np.float32)
        sample = self.sample[cells]
        for each in np.unique(sample):
            mine = sample == each
            found[mine] = self._of_sample(int(each), self.row[cells[mine]])
        return found

    def _of_sample(self, sample: int, rows: np.ndarray) -> np.ndarray:
        parts = [part[rows] for part in self.tables[sample]]
        found = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
        if self.standards is not None:
            mean, deviation = self.standards[sample]
            return (found - mean) / deviation  # type: ignore[no-any-return]
        return found.astype(np.float32, copy=False) if found.dtype != np.float16 else found

    def standardised(self) -> Embeddings:
        """By mean and deviation of the cells of each sample."""
        parts = [np.flatnonzero(self.sample == each) for each in range(len(self.tables))]
        return Embeddings(self.tables, self.sample, self.row, tuple(self.standards_of(cells) for cells in parts))

    def standards_of(self, cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of each dimension over some cells, (d,) float32; 1 where it is constant."""
        n = max(len(cells), 1)
        mean, squares = np.zeros(self.dim), np.zeros(self.dim)
        parts = [cells[start : start + AT_ONCE] for start in range(0, len(cells), AT_ONCE)]
        for part in parts:
            mean += self.take(part).sum(axis=0, dtype=np.float64) / n
        for part in parts:
            squares += ((self.take(part) - mean) ** 2).sum(axis=0) / n
        deviation = np.sqrt(squares)
        constant = deviation <= 1e-6 * np.maximum(np.abs(mean), 1e-6)
        return mean.astype(np.float32), np.where(constant, 1.0, deviation).astype(np.float32)


class Bags(Inputs):
    """Spots and the embeddings of their cells, as :class:`SCellST` is trained on them.

    A row is a spot. Embeddings stay where they are: only those of a batch are copied.

    Parameters
    ----------
    embeddings
        (n_cells, d), of float16, float32 or another kind of number.
    spot
        (n_cells,) the spot of each cell: its row, -1 for none; or its name, with ``spots``, missing (None, NaN or NA)
        for none. Without it each cell is a bag of its own.
    spots
        The names of the spots in the order of their rows, or their number; by default as many as ``spot`` tells.

    Raises
    ------
    ValueError
        If embeddings are NaN, ``spot`` has another length, or names or rows that are none of ``spots``.

    Examples
    --------
    >>> import numpy as np, sthist
    >>> bags = sthist.models.Bags(np.zeros((4, 3)), spot=[0, 1, 0, -1])
    >>> len(bags), bags.size.tolist(), bags.n_outside
    (2, [2, 1], 1)
    """

    def __init__(self, embeddings: Any, spot: Any = None, *, spots: Sequence[Any] | int | None = None) -> None:
        self.features = embeddings if isinstance(embeddings, Embeddings) else Embeddings.of_array(embeddings)
        self.size_factor: np.ndarray | None = None
        self.n_outside = 0
        if spot is None:
            self._cells = None
            self.size = np.ones(len(self.features), np.int64)
        else:
            code, n = _rows_of_spots(spot, spots, len(self.features))
            order = np.argsort(code, kind="stable")
            self.n_outside = int((code < 0).sum())
            self._cells = order[self.n_outside :]
            self.size = np.bincount(code[self._cells], minlength=n).astype(np.int64)
        self._starts = np.cumsum(self.size) - self.size

    def __len__(self) -> int:
        return len(self.size)

    def __repr__(self) -> str:
        cells = f"{int(self.size.sum()):,} cells in {len(self):,} spots, {self.n_outside:,} in none"
        return f"Bags of {cells}; {self.features.dim} features"

    def cells_of(self, rows: np.ndarray) -> np.ndarray:
        """Numbers of the cells of some spots, spot after spot."""
        if self._cells is None:
            return rows
        size = self.size[rows]
        begin = np.repeat(self._starts[rows] - (np.cumsum(size) - size), size)
        return self._cells[begin + np.arange(len(begin))]  # type: ignore[no-any-return]

    def take(self, rows: np.ndarray) -> Batch:
        """All cells of some spots."""
        batch: Batch = {"cells": self.features.take(self.cells_of(rows))}
        if self._cells is not None:
            size = self.size[rows]
            if not size.all():
                raise ValueError(f"Spot {plain(rows[size.argmin()])} has no cells, and so no mean over them.")
            batch |= {"bag": np.repeat(np.arange(len(rows)), size), "size": size}
        if self.size_factor is not None:
            batch["size_factor"] = self.size_factor[rows]
        return batch

    def share(
        self, rows: np.ndarray, batch: Batch, device: int, n_devices: int
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Every so many spots, with their cells."""
        if n_devices == 1:
            return rows, batch
        part = rows[device::n_devices]
        return part, self.take(part)

    def trial(self, rows: np.ndarray) -> Batch:
        """The batch itself: what it costs depends on the cells of each spot."""
        return self.take(rows)

    def with_size_factors(self, size_factor: np.ndarray) -> Bags:
        """The same spots, by whose size what is predicted is multiplied in the loss."""
        return self._changed(size_factor=np.asarray(size_factor, np.float32))

    def standardised(self) -> Bags:
        """The same spots, embeddings standardised sample by sample."""
        return self._changed(features=self.features.standardised())

    def _changed(self, **changes: Any) -> Bags:
        same = object.__new__(Bags)
        same.__dict__ = {**self.__dict__, **changes}
        return same


def as_bags(data: Any) -> Bags:
    """Bags as they are, or each row of embeddings as a bag of its own."""
    if isinstance(data, Bags):
        return data
    if isinstance(data, Arrays) and "spot" in data.arrays:
        data = data.arrays["spot"]
    if isinstance(data, Inputs) or hasattr(data, "items"):
        raise ValueError(
            "SCellST takes embeddings of cells, (n_cells, d), or spots with their cells, "
            "sthist.models.Bags(embeddings, spot)."
        )
    return Bags(data)


def _rows_of_spots(spot: Any, spots: Sequence[Any] | int | None, n_cells: int) -> tuple[np.ndarray, int]:
    """Row of the spot of each cell, -1 for none, and how many spots there are."""
    import pandas as pd

    values = pd.Series(np.asarray(spot) if not hasattr(spot, "dtype") else spot).reset_index(drop=True)
    if len(values) != n_cells:
        raise ValueError(f"There are {n_cells} cells, and spot= has {len(values)} values.")
    if spots is None or isinstance(spots, int | np.integer):
        if not pd.api.types.is_numeric_dtype(values) or pd.api.types.is_bool_dtype(values):
            raise ValueError("spot= has names of spots: give all of them, in the order of their rows, with spots=.")
        numbers = values.fillna(-1).to_numpy(np.float64)
        code = numbers.astype(np.int64)
        n = int(code.max(initial=-1)) + 1 if spots is None else int(spots)
        wrong = np.flatnonzero((code != numbers) | (code < -1) | (code >= n))
        if len(wrong):
            raise ValueError(
                f"spot= is {plain(values[wrong[0]])!r} for cell {plain(wrong[0])}; it is a row of the {n} spots, from "
                "0, or -1 for none."
            )
        return code, n
    names = pd.Index(spots)
    if not names.is_unique:
        raise ValueError(f"spots= has the name {plain(names[names.duplicated()][0])!r} more than once.")
    there = ~values.isna().to_numpy()
    code = np.full(n_cells, -1)
    code[there] = names.get_indexer(pd.Index(values[there].to_numpy(object)))
    unknown = np.flatnonzero(there & (code < 0))
    if len(unknown):
        raise ValueError(
            f"spot= names {plain(values[unknown[0]])!r} for cell {plain(unknown[0])}, which is none of the "
            f"{len(names)} spots. Cells outside of all of them have a missing value."
        )
    return code, len(names)
