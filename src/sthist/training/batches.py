"""Batches of labelled tiles of several samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist.tiles._loader import TileLoader

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, eq=False)
class Tiles:
    """Tiles of several samples, as one list of rows."""

    readers: list[Any]  # one per sample, of tiles of a slide or of a folder
    places: list[np.ndarray]  # centres in µm, (m, 2), or numbers of images, (m,), for each reader
    reader: np.ndarray  # (n,) which reader, and which of its places, each row is
    place: np.ndarray

    def __len__(self) -> int:
        return len(self.reader)

    def in_order(self, rows: np.ndarray, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Rows and their tiles, sample by sample, each chunk read once."""
        for mine, loader in self._loaders(rows, batch_size):
            for index, tiles in loader:
                yield mine[index], tiles

    def shuffled(
        self, rows: np.ndarray, batch_size: int, seed: int, epoch: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Rows and their tiles, turned and mirrored, in an order that is a function of seed and epoch.

        Samples are mixed.
        """
        n_readers = len(np.unique(self.reader[rows]))
        piece = max(1, batch_size // n_readers)
        loaders = self._loaders(rows, piece, shuffle=True, seed=seed, epoch=epoch)
        turns = np.repeat(np.arange(len(loaders)), [len(loader) for _, loader in loaders])
        running = [iter(loader) for _, loader in loaders]
        found: list[tuple[np.ndarray, np.ndarray]] = []
        n_found = 0
        for turn in np.random.default_rng([seed, epoch]).permutation(turns):
            index, tiles = next(running[turn])
            found.append((loaders[turn][0][index], tiles))
            n_found += len(index)
            if n_found >= batch_size:
                yield _joined(found, seed, epoch)
                found, n_found = [], 0
        if found:
            yield _joined(found, seed, epoch)

    def _loaders(self, rows: np.ndarray, batch_size: int, **kwargs: Any) -> list[tuple[np.ndarray, TileLoader]]:
        loaders = []
        for i in np.unique(self.reader[rows]):
            mine = rows[self.reader[rows] == i]
            places = self.places[i][self.place[mine]]
            loaders.append((mine, TileLoader(self.readers[i], places, batch_size=batch_size, **kwargs)))
        return loaders


def augmented(tiles: np.ndarray, rows: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Tiles turned by quarters and mirrored: histology has no up and no left."""
    turned = np.empty_like(tiles)
    for i, row in enumerate(rows):
        way = int(np.random.default_rng([seed, epoch, int(row)]).integers(8))
        tile = np.rot90(tiles[i], way % 4)
        turned[i] = tile[:, ::-1] if way >= 4 else tile
    return turned


def _joined(found: list[tuple[np.ndarray, np.ndarray]], seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    rows = np.concatenate([rows for rows, _ in found])
    return rows, augmented(np.concatenate([tiles for _, tiles in found]), rows, seed, epoch)
