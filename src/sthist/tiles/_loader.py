"""Batches of tiles, read ahead of whoever uses them."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from sthist._settings import settings

if TYPE_CHECKING:
    from collections.abc import Iterator


class Reader(Protocol):
    """What reads tiles: of an image, of transcripts, of a folder, or of several samples."""

    def order(self, places: np.ndarray, /) -> np.ndarray:
        """The order in which places are read best."""

    def read(self, places: np.ndarray, /) -> np.ndarray:
        """Their tiles."""


class TileLoader:
    """Iterates over ``(index, tile, ...)`` batches of one or more readers that share their centres.

    Batches come in the order of the storage chunks, read ahead by threads. With ``shuffle``, runs of ``block``
    neighbouring tiles are permuted and their tiles mixed over ``mix`` runs, so that training sees random batches while
    chunks are still read about once. The order is a function of (seed, epoch) alone.

    Parameters
    ----------
    readers
        One reader (of images or of overlays), or several: paired tiles of registered images. Or one of a folder of
        tiles.
    centres
        (n, 2): x, y in µm; of a folder of tiles, (n,) numbers of rows.
    batch_size
        Tiles per batch; the last one may be smaller.
    shuffle
        Shuffle blocks of chunks.
    seed, epoch
        What the order depends on.
    block, mix
        Tiles per run, and runs that are mixed.
    prefetch
        Batches read ahead.
    ids
        Whole numbers that name the tiles: what overlays draw their palettes from, by default the tiles' places.

    Examples
    --------
    >>> import sthist
    >>> sdata = sthist.datasets.toy(size_um=300)
    >>> reader = sthist.tiles.TileReader(sdata, "he", sthist.tiles.TileSpec(size_um=64, px=32))
    >>> loader = sthist.tiles.TileLoader(reader, [[80, 80], [150, 150], [220, 220]], batch_size=2)
    >>> [tiles.shape for _, tiles in loader]
    [(2, 32, 32, 3), (1, 32, 32, 3)]
    """

    def __init__(
        self,
        readers: Reader | Sequence[Reader],
        centres: Any,
        *,
        batch_size: int = 32,
        shuffle: bool = False,
        seed: int | None = None,
        epoch: int = 0,
        block: int = 32,
        mix: int = 8,
        prefetch: int = 2,
        ids: Any = None,
    ) -> None:
        self.readers = list(readers) if isinstance(readers, Sequence) else [readers]
        by_row = getattr(self.readers[0], "by_row", False)
        self.centres = (
            np.asarray(centres, np.int64).ravel() if by_row else np.asarray(centres, np.float64).reshape(-1, 2)
        )
        self.ids = None if ids is None else np.asarray(ids, np.int64)
        self.batch_size, self.shuffle, self.epoch = batch_size, shuffle, epoch
        self.seed = settings.seed if seed is None else seed
        self._block, self._mix, self._prefetch = getattr(self.readers[0], "block", block), mix, prefetch

    def __len__(self) -> int:
        """Number of batches."""
        return -(-len(self.centres) // self.batch_size)

    def indices(self) -> np.ndarray:
        """The order of this epoch: indices into ``centres``."""
        order = self.readers[0].order(self.centres)
        if not self.shuffle:
            return order
        rng = np.random.default_rng([self.seed, self.epoch])
        runs = [order[start : start + self._block] for start in range(0, len(order), self._block)]
        runs = [runs[i] for i in rng.permutation(len(runs))]
        mixed = [np.concatenate(runs[start : start + self._mix]) for start in range(0, len(runs), self._mix)]
        return np.concatenate([rng.permutation(group) for group in mixed]) if mixed else order

    def __iter__(self) -> Iterator[tuple[np.ndarray, ...]]:
        """Yield (indices, tiles of the first reader, tiles of the second, ...)."""
        indices = self.indices()
        batches = deque(indices[start : start + self.batch_size] for start in range(0, len(indices), self.batch_size))
        ahead: deque[tuple[np.ndarray, Future[list[np.ndarray]]]] = deque()
        with ThreadPoolExecutor(1) as pool:
            try:
                while batches or ahead:
                    while batches and len(ahead) <= self._prefetch:
                        batch = batches.popleft()
                        ahead.append((batch, pool.submit(self._read, batch)))
                    index, future = ahead.popleft()
                    yield (index, *future.result())
            finally:
                for _, future in ahead:
                    future.cancel()

    def _read(self, batch: np.ndarray) -> list[np.ndarray]:
        from sthist.tiles._molecules.overlay import Overlay

        ids = None if self.ids is None else self.ids[batch]
        return [
            reader.read(self.centres[batch], ids=ids)
            if isinstance(reader, Overlay)
            else reader.read(self.centres[batch])
            for reader in self.readers
        ]
