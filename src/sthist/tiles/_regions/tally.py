"""Counts by row and column of a sparse matrix that is not known before."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

LEAST_BATCH = 4_000_000
"""Entries that wait before they are counted: 8 bytes each."""


class Tally:
    """How often each pair of a row and a column was added.

    Memory goes with the number of different pairs, not of what was added: 12 bytes for each, and 8 for each entry that
    waits, which are a quarter as many or ``LEAST_BATCH``. The pairs lie sorted; a batch is sorted and merged in place.

    Parameters
    ----------
    width
        More than the number of any column; times the number of rows it stays below 2^63.
    """

    def __init__(self, width: int) -> None:
        self._width = width
        self._keys, self._counts = np.empty(0, np.int64), np.empty(0, np.int32)
        self._waiting: list[np.ndarray] = []
        self._n_waiting = 0

    def add(self, rows: np.ndarray, columns: np.ndarray) -> None:
        """Count pairs."""
        self._waiting.append(rows * self._width + columns)
        self._n_waiting += len(rows)
        if self._n_waiting > max(LEAST_BATCH, len(self._keys) // 4):
            self._merge()

    def rows(self) -> np.ndarray:
        """The different rows that were added, ascending, int64."""
        from sthist.tiles._regions.locate_kernels import rows_of

        self._merge()
        return rows_of(self._keys, self._width)

    def pop_csr(self, rows: np.ndarray, columns: np.ndarray) -> csr_matrix:
        """The counts as a matrix; the tally is empty then.

        Parameters
        ----------
        rows
            The rows of the matrix, ascending: all that were added, and maybe others.
        columns
            Where each column goes, int32, a permutation.

        Returns
        -------
        Int32 of shape (len(rows), len(columns)), its indices sorted.
        """
        from scipy.sparse import csr_matrix

        from sthist.tiles._regions.locate_kernels import columns_of

        self._merge()
        keys, counts = self._keys, self._counts
        self._keys, self._counts = np.empty(0, np.int64), np.empty(0, np.int32)
        starts = np.append(np.searchsorted(keys, rows * self._width), len(keys))
        indices = np.empty(len(keys), np.int32)
        columns_of(keys, self._width, columns, indices)
        del keys
        matrix = csr_matrix((counts, indices, starts), shape=(len(rows), len(columns)))
        matrix.sort_indices()
        return matrix

    def _merge(self) -> None:
        from sthist.tiles._regions.locate_kernels import count_new, merge_keys

        if not self._waiting:
            return
        more = np.concatenate(self._waiting)
        self._waiting, self._n_waiting = [], 0
        more.sort()
        n = len(self._keys)
        total = n + count_new(self._keys, more)
        # A large array grows where it is, or its pages are moved: nothing is copied.
        self._keys.resize(total, refcheck=False)
        self._counts.resize(total, refcheck=False)
        merge_keys(self._keys, self._counts, n, more)
