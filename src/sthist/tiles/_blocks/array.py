"""Rows of numbers, one per tile, that a model makes: written in runs, resumable, never in memory."""

from __future__ import annotations

import queue
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist.tiles._blocks.resumable import BlockWorker, Resumable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

RUN = 256  # tiles that are read together and marked together: 38 MB of pixels at 224 x 224


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


class TileEmbedder(BlockWorker):
    """Embeds runs of tiles: while one run is on the device, others are read.

    There is one encoder, or one per device, all alike; ``places`` are what the reader takes, in the order in which it
    reads best.
    """

    _of_process = "_free"

    def __init__(self, reader: Any, encoders: list[Any], places: np.ndarray, batch_size: int) -> None:
        self.reader, self.encoders, self.places, self.batch_size = reader, encoders, places, batch_size
        self._free = self._open()

    @property
    def threads(self) -> int:
        """Runs at a time: each device has one, and one is read for it meanwhile."""
        return 2 * len(self.encoders)

    def _open(self) -> queue.SimpleQueue[Any]:
        """The encoders that are free."""
        free: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for encoder in self.encoders:
            free.put(encoder)
        return free

    def compute(self, block: Run) -> np.ndarray:
        """Rows of numbers of a run, (n, d) float32."""
        tiles = self.reader.read(self.places[block.start : block.stop])
        encoder = self._free.get()
        try:
            starts = range(0, len(tiles), self.batch_size)
            return np.concatenate(
                list(encoder.embed_batches(tiles[start : start + self.batch_size] for start in starts))
            )
        finally:
            self._free.put(encoder)


class ResumableArray(Resumable):
    """An array (n, width) of float32 on disk that is filled run by run; as :class:`Resumable`."""

    unit = "tiles"
    _of_process = "_values"
    _values: Any

    def __init__(self, folder: Path, name: str, shape: tuple[int, int], fingerprint: Mapping[str, Any]) -> None:
        self.shape = shape
        super().__init__(folder, name, {"shape": shape, "run": RUN, "fingerprint": dict(fingerprint)})

    def blocks(self) -> list[Run]:
        """All runs, in order."""
        n = self.shape[0]
        return [Run(i, start, min(start + RUN, n)) for i, start in enumerate(range(0, n, RUN))]

    def amount(self, block: Run) -> float:
        """Tiles of a run."""
        return block.stop - block.start

    def __iter__(self) -> Iterator[tuple[Run, np.ndarray]]:
        """All runs and their rows, one after another."""
        for run in self.blocks():
            yield run, self._values[run.start : run.stop]

    def _store(self, block: Run, values: np.ndarray) -> None:
        self._values[block.start : block.stop] = values

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
