"""Many tiles side by side on one image, which is written block by block."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from sthist.tiles._blocks.canvas import CHUNK_PX

if TYPE_CHECKING:
    from sthist.tiles import TileSpec
    from sthist.tiles._blocks.canvas import Block

LEAST_PER_BLOCK = 64
LARGEST_PX = 8 * CHUNK_PX
"""Side of what chunks and tiles have in common, up to which tiles touch; else there is white between them."""


@dataclass(frozen=True)
class Mosaic:
    """Places of n tiles on an image: blocks of whole chunks and whole tiles, each filled before the next."""

    n: int
    spec: TileSpec

    @cached_property
    def pitch_px(self) -> int:
        """From one tile to the next, in pixels."""
        wide = -(-self.spec.px // CHUNK_PX) * CHUNK_PX
        return next(px for px in range(self.spec.px, wide + 1) if math.lcm(CHUNK_PX, px) <= LARGEST_PX or px == wide)

    @cached_property
    def block_px(self) -> int:
        """Side of a block in pixels."""
        whole = math.lcm(CHUNK_PX, self.pitch_px)
        tiles = (whole // self.pitch_px) ** 2
        return whole * math.ceil(math.sqrt(LEAST_PER_BLOCK / tiles))

    @property
    def side(self) -> int:
        """Tiles along the side of a block."""
        return self.block_px // self.pitch_px

    @property
    def columns(self) -> int:
        """Blocks in a row of them, as many as there are rows, give or take one."""
        return math.ceil(math.sqrt(math.ceil(self.n / self.side**2)))

    @property
    def extent_um(self) -> tuple[float, float, float, float]:
        """x0, y0, x1, y1 of all tiles."""
        x, y = self.centres_um().max(axis=0) + self.spec.size_um / 2
        return (0.0, 0.0, float(x), float(y))

    def centres_um(self) -> np.ndarray:
        """Middle of each tile, (n, 2): x, y in µm."""
        block, place = np.divmod(np.arange(self.n), self.side**2)
        row, column = (
            outer * self.side + inner
            for outer, inner in zip(np.divmod(block, self.columns), np.divmod(place, self.side), strict=True)
        )
        return np.stack([column, row], 1) * (self.pitch_px * self.spec.mpp) + self.spec.size_um / 2

    def tiles_of(self, block: Block) -> np.ndarray:
        """Numbers of the tiles of a block."""
        if block.column >= self.columns:
            return np.empty(0, np.int64)
        first = (block.row * self.columns + block.column) * self.side**2
        return np.arange(min(first, self.n), min(first + self.side**2, self.n))

    def place(self, tiles: np.ndarray, numbers: np.ndarray, pixels: np.ndarray) -> None:
        """Put tiles (n, px, px, 3) of one block where they belong on its pixels (3, height, width)."""
        px = self.spec.px
        for tile, place in zip(tiles, numbers % self.side**2, strict=True):
            y, x = (int(each) * self.pitch_px for each in divmod(place, self.side))
            pixels[:, y : y + px, x : x + px] = tile.transpose(2, 0, 1)
