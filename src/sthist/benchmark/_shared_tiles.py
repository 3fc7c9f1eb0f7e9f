"""Laid tiles that lie on all images that are compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sthist.tiles import TileReader
from sthist.tiles._pairs import laid_tiles
from sthist.tiles._sampling import lies_inside

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from anndata import AnnData
    from spatialdata import SpatialData

    from sthist.tiles import TileSpec

BATCH = 64
"""Tiles that are read at once, where they need not all be in memory."""


@dataclass(frozen=True, eq=False)
class SharedTiles:
    """Tiles that lie on several images.

    Attributes
    ----------
    table
        Table of all tiles that were laid.
    spec
        Of the tiles.
    rows
        (n,) rows of the table that lie on the images.
    readers
        One per image.
    """

    table: AnnData
    spec: TileSpec
    rows: np.ndarray
    readers: tuple[TileReader, ...]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def centres(self) -> np.ndarray:
        """(n, 2): x, y in µm."""
        return np.asarray(self.table.obsm["spatial"], np.float64)[self.rows, :2]

    @property
    def names(self) -> np.ndarray:
        """(n,) instance ids."""
        return self.table.obs["instance_id"].to_numpy()[self.rows]

    def column(self, name: str) -> np.ndarray:
        """(n,) values of a column of the table."""
        return self.table.obs[name].to_numpy()[self.rows]

    def chosen(self, which: np.ndarray) -> SharedTiles:
        """Some of them, by their places among these."""
        return SharedTiles(self.table, self.spec, self.rows[which], self.readers)

    def read(self) -> list[np.ndarray]:
        """All tiles of each image."""
        return [reader.read(self.centres) for reader in self.readers]

    def batches(self) -> Iterator[list[np.ndarray]]:
        """Tiles of each image, some at a time."""
        centres = self.centres
        for start in range(0, len(centres), BATCH):
            yield [reader.read(centres[start : start + BATCH]) for reader in self.readers]


def shared_tiles(sdata: SpatialData, tiles: str, images: Sequence[str]) -> SharedTiles:
    """Tiles that lie on all of some RGB images.

    Raises
    ------
    KeyError
        If the images or tiles are missing.
    ValueError
        If no tile lies on all of them.
    """
    table, spec = laid_tiles(sdata, tiles)
    readers = tuple(TileReader(sdata, name, spec, fill=255, allow_upsampling=True) for name in images)
    centres = np.asarray(table.obsm["spatial"], np.float64)[:, :2]
    inside = np.logical_and.reduce([lies_inside(reader.sources, centres, spec.size_um) for reader in readers])
    if not inside.any():
        where = "both " if len(images) == 2 else ""
        msg = f"None of the {len(centres)} tiles lies on {where}{' and '.join(map(repr, images))}."
        raise ValueError(msg)
    return SharedTiles(table, spec, np.flatnonzero(inside), readers)


def require_column(table: AnnData, tiles: str, name: str) -> None:
    """Refuse a column that the tiles' table does not have.

    Raises
    ------
    KeyError
        If it has none of that name.
    """
    if name not in table.obs:
        msg = f"Table '{tiles}_table' has no column {name!r}; it has {list(table.obs.columns)}."
        raise KeyError(msg)
