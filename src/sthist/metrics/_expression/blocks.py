"""Two matrices of spots and genes, dense, sparse or on disk, read in blocks of genes or of spots."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sthist._messages import listed, plain

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

BLOCK_BYTES = 32_000_000
"""Of one block of float64; a handful of such are in memory at a time."""


class Pair:
    """Truth and prediction of the same spots and genes, with what was measured, checked once and read in blocks."""

    def __init__(self, truth: Any, prediction: Any, mask: Any = None, genes: Sequence[str] | None = None) -> None:
        self.genes = _names(truth, prediction, genes)
        self.spots = truth.index if hasattr(truth, "columns") else None
        if hasattr(truth, "columns") and hasattr(prediction, "columns"):
            prediction = prediction[list(truth.columns)]
        self.truth, self.prediction = _matrix(truth, "truth"), _matrix(prediction, "prediction")
        if self.truth.shape != self.prediction.shape:
            raise ValueError(
                f"truth has {self.truth.shape} (spots, genes) and prediction {self.prediction.shape}; they have the "
                "same spots and the same genes, in the same order."
            )
        self.shape: tuple[int, int] = tuple(self.truth.shape)
        if 0 in self.shape:
            raise ValueError(f"There is nothing to score: the matrices have {self.shape} (spots, genes).")
        self.mask = _mask(mask, self.shape)
        self._by_column = {name: _in_columns(getattr(self, name)) for name in ("truth", "prediction")}

    def name(self, gene: int) -> str:
        """A gene, as messages call it."""
        return f"column {gene}" if self.genes is None else f"gene {plain(self.genes[gene])!r}"

    def by_genes(self) -> Iterator[tuple[slice, np.ndarray, np.ndarray, np.ndarray | None]]:
        """Blocks of whole genes: which, truth, prediction (n, block) float64, and what was measured, None for all."""
        for part in _parts(self.shape[1], self.shape[0]):
            yield part, *self._read(np.s_[:, part], self._by_column, part.start)

    def by_spots(self) -> Iterator[tuple[slice, np.ndarray, np.ndarray, np.ndarray | None]]:
        """Blocks of whole spots, (block, genes)."""
        for part in _parts(self.shape[0], self.shape[1]):
            yield part, *self._read(np.s_[part, :], {"truth": self.truth, "prediction": self.prediction}, 0)

    def _read(
        self, index: tuple[slice, slice], matrices: dict[str, Any], first_gene: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        mask = None if self.mask is None else self.mask[index]
        if mask is not None and mask.all():
            mask = None
        blocks = []
        for name, matrix in matrices.items():
            block = matrix[index]
            block = np.asarray(block.toarray() if hasattr(block, "toarray") else block, np.float64)
            wrong = ~np.isfinite(block)
            if mask is not None:
                wrong &= mask
            if wrong.any():
                row, column = np.argwhere(wrong)[0]
                raise ValueError(
                    f"{name} is NaN or infinite in {int(wrong.sum())} places, first in row "
                    f"{int(row) + (index[0].start or 0)} of {self.name(int(column) + first_gene)}. Leave those rows or "
                    "genes out, or say with mask= what was measured."
                )
            blocks.append(block if mask is None else np.where(mask, block, 0.0))
        return blocks[0], blocks[1], mask


def rounding(matrix: Any) -> float:
    """Below which share of its largest value a difference is rounding, in numbers of this type."""
    dtype = np.dtype(getattr(matrix, "dtype", np.float64))
    return 8 * float(np.finfo(dtype if dtype.kind == "f" else np.float64).eps)


def group_rows(groups: Any, n: int) -> list[np.ndarray]:
    """The rows of each group, in the order of their names; all rows are one where there are none."""
    if groups is None:
        return [np.arange(n)]
    codes = np.unique(np.asarray(groups).astype(str), return_inverse=True)[1]
    if codes.shape != (n,):
        raise ValueError(f"groups has {len(codes)} values; there are {n} spots.")
    return [np.flatnonzero(codes == code) for code in range(codes.max() + 1)]


def _parts(length: int, across: int) -> Iterator[slice]:
    step = max(1, BLOCK_BYTES // (8 * max(across, 1)))
    for start in range(0, length, step):
        yield slice(start, min(start + step, length))


def _names(truth: Any, prediction: Any, genes: Sequence[str] | None) -> list[str] | None:
    """The names of the genes, from whoever has them, each once."""
    import pandas as pd

    named = {
        side: pd.Index(matrix.columns)
        for side, matrix in (("truth", truth), ("prediction", prediction))
        if hasattr(matrix, "columns")
    }
    if genes is not None:
        named["genes"] = pd.Index(genes, dtype=object)
    for side, names in named.items():
        if names.has_duplicates:
            raise ValueError(
                f"{side} has gene {plain(names[names.duplicated()][0])!r} more than once; each gene is there once."
            )
    if {"truth", "prediction"} <= set(named):
        first, second = named["truth"], named["prediction"]
        lacking = first.symmetric_difference(second)
        if len(lacking):
            common = len(first.intersection(second))
            raise ValueError(
                f"truth and prediction have {common} genes in common; {len(lacking)} are in one of them alone: "
                f"{listed(lacking, 3)}. Take the genes of both: "
                "both = truth.columns.intersection(prediction.columns)."
            )
    if not named:
        return None
    names = named.get("genes", next(iter(named.values())))
    width = np.shape(truth)[1] if len(np.shape(truth)) == 2 else None
    if width is not None and len(names) != width:
        raise ValueError(f"There are {len(names)} names of genes and {width} columns.")
    return [str(name) for name in names]


def _matrix(values: Any, name: str) -> Any:
    """A matrix that can be read by slices."""
    if hasattr(values, "columns"):
        values = values.to_numpy()
    if not (hasattr(values, "shape") and hasattr(values, "dtype") and hasattr(values, "__getitem__")):
        values = np.asarray(values, np.float64)
    if len(values.shape) != 2:
        raise ValueError(f"{name} has shape {tuple(values.shape)}; it is (spots, genes).")
    if np.dtype(values.dtype).kind not in "biuf":
        raise TypeError(f"{name} is of dtype {values.dtype}; it holds numbers.")
    if hasattr(values, "tocsr"):
        return values.tocsr()
    return values


def _mask(mask: Any, shape: tuple[int, int]) -> np.ndarray | None:
    if mask is None:
        return None
    mask = np.asarray(mask)
    if mask.dtype != bool:
        raise TypeError(f"mask is of dtype {mask.dtype}; it is bool, True where a gene was measured.")
    if mask.shape == (shape[1],):
        mask = np.broadcast_to(mask, shape)
    if mask.shape != shape:
        raise ValueError(f"mask has shape {mask.shape}; it is {shape} (spots, genes), or ({shape[1]},) for all spots.")
    return mask


def _in_columns(matrix: Any) -> Any:
    """The matrix as columns are read fast."""
    return matrix.tocsc() if hasattr(matrix, "tocsc") else matrix
