"""What an encoder makes of a run of tiles."""

from __future__ import annotations

import queue
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sthist.tiles._blocks.array import Run


class Embeds(Protocol):
    """What is needed of an encoder."""

    def embed_batches(self, batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Rows of numbers of one batch after another."""


class TileEmbedder:
    """Embeds runs of tiles: while one run is on the device, others are read.

    Parameters
    ----------
    reader
        Of the tiles.
    encoders
        One, or one per device, all alike.
    places
        What the reader takes, in the order in which it reads best.
    batch_size
        Tiles at a time on the device.
    """

    def __init__(self, reader: Any, encoders: list[Any], places: np.ndarray, batch_size: int) -> None:
        self.reader, self.encoders, self.places, self.batch_size = reader, encoders, places, batch_size
        self._line_up()

    @property
    def threads(self) -> int:
        """Runs at a time: each device has one, and one is read for it meanwhile."""
        return 2 * len(self.encoders)

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the queue, which is of one process."""
        return {name: value for name, value in vars(self).items() if name != "_free"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._line_up()

    def _line_up(self) -> None:
        self._free: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for encoder in self.encoders:
            self._free.put(encoder)

    def paint(self, block: Run) -> np.ndarray:
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
