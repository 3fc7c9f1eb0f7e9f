"""Batches of labelled tiles of several samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from sthist.tiles._images.reader import share_cache
from sthist.tiles._loader import TileLoader

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch


BLOCK = 32
"""Neighbouring tiles of a slide that stay together when tiles are shuffled, so that their chunks are decoded once."""


@dataclass(frozen=True, eq=False)
class Tiles:
    """Tiles of several samples, as one list of rows."""

    readers: list[Any]  # one per sample, of tiles of a slide or of a folder
    places: list[np.ndarray]  # centres in µm, (m, 2), or numbers of images, (m,), for each reader
    reader: np.ndarray  # (n,) which reader, and which of its places, each row is
    place: np.ndarray
    by_row: ClassVar[bool] = True

    def __post_init__(self) -> None:
        share_cache(self.readers)

    def __len__(self) -> int:
        return len(self.reader)

    @property
    def block(self) -> int:
        """Rows that stay together when they are shuffled."""
        return max(getattr(reader, "block", BLOCK) for reader in self.readers)

    def order(self, rows: np.ndarray) -> np.ndarray:
        """The order in which rows are read best: sample by sample, each chunk once."""
        parts = [mine[self.readers[i].order(self._places(i, rows[mine]))] for i, mine in self._by_reader(rows)]
        return np.concatenate([np.empty(0, int), *parts])

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Tiles of rows, (n, px, px, 3)."""
        parts = [(mine, self.readers[i].read(self._places(i, rows[mine]))) for i, mine in self._by_reader(rows)]
        tiles = np.empty((len(rows), *parts[0][1].shape[1:]), parts[0][1].dtype)
        for mine, part in parts:
            tiles[mine] = part
        return tiles

    def in_order(self, rows: np.ndarray, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Rows and their tiles, sample by sample, each chunk read once."""
        for index, tiles in TileLoader(self, rows, batch_size=batch_size):
            yield rows[index], tiles

    def shuffled(
        self, rows: np.ndarray, batch_size: int, seed: int, epoch: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Rows and their tiles, turned and mirrored, in an order that is a function of seed and epoch.

        Samples are mixed, a few blocks of neighbours at a time: however many samples there are, the chunks of these
        blocks alone are needed at once.
        """
        for index, tiles in TileLoader(self, rows, batch_size=batch_size, shuffle=True, seed=seed, epoch=epoch):
            yield rows[index], augmented(tiles, rows[index], seed, epoch)

    def _by_reader(self, rows: np.ndarray) -> list[tuple[int, np.ndarray]]:
        """Readers, and which of the rows are of each."""
        of_row = self.reader[rows]
        return [(i, np.flatnonzero(of_row == i)) for i in np.unique(of_row).tolist()]

    def _places(self, i: int, rows: np.ndarray) -> np.ndarray:
        """Where in its slide, or which image of its folder, each row of a reader is."""
        return np.asarray(self.places[i][self.place[rows]])


def augmented(tiles: np.ndarray, rows: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Tiles turned by quarters and mirrored: histology has no up and no left."""
    turned = np.empty_like(tiles)
    for i, row in enumerate(rows):
        way = int(np.random.default_rng([seed, epoch, int(row)]).integers(8))
        tile = np.rot90(tiles[i], way % 4)
        turned[i] = tile[:, ::-1] if way >= 4 else tile
    return turned


def as_input(tiles: torch.Tensor, low: float) -> torch.Tensor:
    """Tiles (n, h, w, 3) of 8 bits as images (n, 3, h, w) from ``low`` to 1."""
    return tiles.permute(0, 3, 1, 2).float() / (255 / (1 - low)) + low


def as_tiles(images: torch.Tensor) -> np.ndarray:
    """Images (n, 3, h, w) from -1 to 1 as tiles (n, h, w, 3) of 8 bits."""
    import torch

    rounded = (images.float().clamp(-1, 1) * 127.5 + 127.5).round().to(torch.uint8)
    return rounded.permute(0, 2, 3, 1).cpu().numpy()
