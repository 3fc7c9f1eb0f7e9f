"""What is predicted: numbers of each row, sparse until a batch is made, and which of them a sample has measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist._messages import plain

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix


@dataclass(frozen=True, eq=False)
class Targets:
    """Outputs of each row, such as genes of spots."""

    names: tuple[str, ...]
    values: csr_matrix | np.ndarray  # (n, outputs) float32
    sample: np.ndarray  # (n,) number of the sample of each row
    measured: np.ndarray  # (samples, outputs) bool

    def __len__(self) -> int:
        return len(self.sample)

    @property
    def complete(self) -> bool:
        """Whether all samples have measured all outputs."""
        return bool(self.measured.all())

    def dense(self, rows: np.ndarray, columns: Any = slice(None)) -> np.ndarray:
        """Values of some rows, (n, outputs) float32; 0 where nothing was measured."""
        part = self.values[rows][:, columns]
        return np.asarray(part.toarray() if hasattr(part, "toarray") else part, np.float32)

    def mask(self, rows: np.ndarray) -> np.ndarray | None:
        """Which of them were measured, (n, outputs) bool; None for all."""
        return None if self.complete else self.measured[self.sample[rows]]

    def statistics(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of each output over the rows that have measured it, (outputs,) float32."""
        n = np.zeros(len(self.names))
        total, squares = np.zeros(len(self.names)), np.zeros(len(self.names))
        for sample in np.unique(self.sample[rows]):
            part = self.values[rows[self.sample[rows] == sample]]
            there = self.measured[sample]
            n[there] += part.shape[0]
            total[there] += np.asarray(part.sum(axis=0, dtype=np.float64)).ravel()[there]
            power = part.multiply(part) if hasattr(part, "multiply") else part.astype(np.float64) ** 2
            squares[there] += np.asarray(power.sum(axis=0, dtype=np.float64)).ravel()[there]
        mean = total / np.maximum(n, 1)
        variance = np.maximum(squares / np.maximum(n, 1) - mean**2, 0)
        return mean.astype(np.float32), np.sqrt(variance).astype(np.float32)


def stacked(first: Targets, second: Targets) -> Targets:
    """Targets of the rows of other samples below those of some."""
    from scipy.sparse import csr_matrix, vstack

    if first.names != second.names:
        raise ValueError("Targets of different outputs, or in another order, cannot stand below each other.")
    values = vstack([csr_matrix(first.values), csr_matrix(second.values)], format="csr")
    sample = np.concatenate([first.sample, second.sample + len(first.measured)])
    return Targets(first.names, values, sample, np.concatenate([first.measured, second.measured]))


def as_targets(values: Any, names: Any = None) -> Targets:
    """Targets as they are, or an array (n, outputs) of one sample that has measured all.

    Raises
    ------
    ValueError
        If values are NaN or infinite, or names are not one for each column.
    """
    from scipy.sparse import csr_matrix, issparse

    if isinstance(values, Targets):
        return values
    if names is None:
        names = getattr(values, "columns", None)
    matrix: Any = csr_matrix(values, dtype=np.float32) if issparse(values) else np.asarray(values, np.float32)
    if matrix.ndim != 2:
        raise ValueError(f"Targets are (n, outputs), not {matrix.shape}.")
    names = tuple(map(str, range(matrix.shape[1]))) if names is None else tuple(map(str, names))
    if len(names) != matrix.shape[1] or len(set(names)) < len(names):
        raise ValueError(f"There are {matrix.shape[1]} outputs, and {len(set(names))} different names of them.")
    found = matrix.data if issparse(matrix) else matrix
    if not np.isfinite(found).all():
        rows = np.flatnonzero(~np.isfinite(np.asarray(matrix.sum(axis=1))).ravel())
        raise ValueError(f"Targets are NaN or infinite in {len(rows)} rows, first row {plain(rows[0])}.")
    n = matrix.shape[0]
    return Targets(names, matrix, np.zeros(n, int), np.ones((1, len(names)), bool))
