"""Rows of numbers, one per tile, that a model makes: written in runs, resumable, never in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist.tiles._blocks.resumable import Resumable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

RUN = 256
"""Tiles that are read together and marked together: 38 MB of pixels at 224 x 224."""


@dataclass(frozen=True)
class Run:
    """Some tiles in a row: the unit of work, of resuming and of distribution."""

    number: int
    start: int
    stop: int

    @property
    def name(self) -> str:
        """Of its mark among the runs that are done."""
        return str(self.number)


class Ledger(Resumable):
    """An array (n, width) of float32 on disk that is filled run by run.

    Parameters
    ----------
    folder
        Where it lies. A ledger of the same fingerprint found there is continued; any other is deleted.
    name
        What it holds.
    shape
        Rows and columns.
    fingerprint
        JSON values that determine the numbers.
    """

    unit = "tiles"

    def __init__(self, folder: Path, name: str, shape: tuple[int, int], fingerprint: Mapping[str, Any]) -> None:
        self.shape = shape
        super().__init__(folder, name, {"shape": shape, "run": RUN, "fingerprint": dict(fingerprint)})
        self._values = self._open()

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the open array; another process opens it by its path."""
        return {name: value for name, value in vars(self).items() if name != "_values"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._values = self._open()

    def blocks(self) -> list[Run]:
        """All runs, in order."""
        n = self.shape[0]
        return [Run(i, start, min(start + RUN, n)) for i, start in enumerate(range(0, n, RUN))]

    def amount(self, block: Run) -> float:
        """Tiles of a run."""
        return block.stop - block.start

    def write(self, block: Run, values: np.ndarray) -> None:
        """Store the rows of a run and mark it done."""
        self._values[block.start : block.stop] = values
        self.mark(block)

    def __iter__(self) -> Iterator[tuple[Run, np.ndarray]]:
        """All runs and their rows, one after another."""
        for run in self.blocks():
            yield run, self._values[run.start : run.stop]

    def _create(self, identity: str) -> None:  # the marks lie beside the numbers and go with them
        import zarr

        self.folder.mkdir(parents=True)
        zarr.create_array(
            self.folder / "values",
            shape=self.shape,
            chunks=(RUN, max(1, self.shape[1])),
            dtype="float32",
            fill_value=np.nan,
            compressors=None,  # the last bits of such numbers are noise
        )

    def _open(self) -> Any:
        import zarr

        return zarr.open_array(self.folder / "values", mode="r+")
