"""What a model makes of the tiles under a block of a canvas."""

from __future__ import annotations

import threading
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist._imaging.colours import require_tiles
from sthist.tiles._blocks.resumable import BlockWorker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from shapely.geometry.base import BaseGeometry

    from sthist.tiles._blocks.canvas import Block, Layout
    from sthist.tiles._images.reader import TileReader

PAPER = 255  # grey level of a pixel that shows nothing


class TileBlender(BlockWorker):
    """Makes the pixels of blocks: reads their tiles, predicts them in fixed batches, blends them in a fixed order.

    Pickled, it takes its images along by their place on disk. Arguments are those of :func:`sthist.tiles.map_tiles`.
    """

    _of_process = "_device_lock"

    def __init__(
        self,
        readers: Sequence[TileReader],
        predict: Callable[..., np.ndarray],
        layout: Layout,
        *,
        overlap: float,
        batch_size: int,
        concurrent: bool,
        within: BaseGeometry | None,
    ) -> None:
        self.readers, self._predict, self._batch_size, self._within = list(readers), predict, batch_size, within
        self.grid = TileGrid(layout.origin_um, layout.mpp, readers[0].spec.px, overlap)
        self.concurrent = concurrent
        self._device_lock = self._open()

    def _open(self) -> Any:
        return nullcontext() if self.concurrent else threading.Lock()

    def compute(self, block: Block) -> np.ndarray:
        """The pixels of a block, (3, h, w) uint8."""
        outline = None if self._within is None else self._outline(self._within, block)
        if outline is not None and not outline.any():
            return np.full((3, block.y1 - block.y0, block.x1 - block.x0), PAPER, np.uint8)
        pixels = self._blend(block) if self.grid.overlaps else self._join(block)
        if outline is not None:
            pixels[:, ~outline] = PAPER
        return pixels

    def n_tiles(self, blocks: Sequence[Block]) -> int:
        """How many tiles blocks take, counting those that two of them share for each."""
        return sum(len(self.grid.corners(block)) for block in blocks)

    def working_bytes(self, block: Block) -> int:
        """Memory that painting a block takes: its sums, weights and pixels, and a batch of tiles."""
        px = self.grid.px
        n_channels = sum(len(reader.channels) * reader.dtype.itemsize for reader in self.readers)
        area = (block.y1 - block.y0) * (block.x1 - block.x0)
        sums = 3 * 4 + 4 if self.grid.overlaps else 0
        return area * (3 + sums) + self._batch_size * px * px * (n_channels + 3)

    def _predicted(self, block: Block) -> Iterator[tuple[np.ndarray, tuple[int, int]]]:
        """The tiles that touch a block, batch by batch, and their top left pixels (y, x) in it."""
        corners = self.grid.corners(block)
        centres = self.grid.centres_um(corners, block)
        for start in range(0, len(corners), self._batch_size):
            batch = slice(start, start + self._batch_size)
            inputs = [reader.read(centres[batch]) for reader in self.readers]
            with self._device_lock:
                tiles = self._predict(*inputs)
            tiles = require_tiles("The model", tiles, (len(inputs[0]), self.grid.px, self.grid.px, 3))
            yield from zip(tiles, map(tuple, corners[batch].tolist()), strict=True)

    def _join(self, block: Block) -> np.ndarray:
        """Tiles side by side."""
        height, width = block.y1 - block.y0, block.x1 - block.x0
        pixels = np.empty((3, height, width), np.uint8)
        for tile, (y, x) in self._predicted(block):
            part = tile[max(0, -y) : height - y, max(0, -x) : width - x]
            top, left = max(0, y), max(0, x)
            pixels[:, top : top + part.shape[0], left : left + part.shape[1]] = part.transpose(2, 0, 1)
        return pixels

    def _blend(self, block: Block) -> np.ndarray:
        """Tiles that overlap, their sums over the sums of their weights."""
        from sthist.tiles._images.kernels import add_weighted, divide_to_uint8

        height, width = block.y1 - block.y0, block.x1 - block.x0
        total = np.zeros((height, width, 3), np.float32)
        weights = np.zeros((height, width), np.float32)
        for tile, (y, x) in self._predicted(block):
            add_weighted(tile, self.grid.weight, total, weights, y, x)
        pixels = np.empty((3, height, width), np.uint8)
        divide_to_uint8(total, weights, PAPER, pixels)
        return pixels

    def _outline(self, within: BaseGeometry, block: Block) -> np.ndarray:
        """Which pixels of a block have their centre in a polygon."""
        from sthist.tiles._regions.raster import rasterize

        mpp = self.grid.mpp
        origin = self.grid.origin_um + np.array([block.x0, block.y0]) * mpp
        return rasterize([within], origin, mpp, (block.y1 - block.y0, block.x1 - block.x0)) > 0


class TileGrid:
    """Tiles on a lattice that is fixed for a whole canvas, and the weight that blends them."""

    def __init__(self, origin_um: tuple[float, float], mpp: float, px: int, overlap: float) -> None:
        if not 0 <= overlap < 0.5:
            raise ValueError(f"overlap is {overlap}; it is a part of the tile's side between 0 and 1/2.")
        shared = round(px * overlap)
        self.px, self.stride, self.margin, self.overlaps = px, px - shared, shared // 2, shared > 0
        self.origin_um, self.mpp = np.array(origin_um), mpp
        ramp = np.ones(px)
        if shared:
            rise = np.sin(np.pi / 2 * (np.arange(shared) + 0.5) / shared) ** 2
            ramp[:shared], ramp[px - shared :] = rise, rise[::-1]
        self.weight = np.outer(ramp, ramp).astype(np.float32)

    def corners(self, block: Block) -> np.ndarray:
        """Top left pixels (y, x), relative to the block, of the tiles that touch it: (n, 2), in a fixed order."""
        ys, xs = (
            np.arange((low + self.margin - self.px) // self.stride + 1, -(-(high + self.margin) // self.stride))
            for low, high in ((block.y0, block.y1), (block.x0, block.x1))
        )
        lattice = np.stack(np.meshgrid(ys, xs, indexing="ij"), -1).reshape(-1, 2)
        return lattice * self.stride - self.margin - np.array([block.y0, block.x0])

    def centres_um(self, corners: np.ndarray, block: Block) -> np.ndarray:
        """Centres (x, y) in µm of tiles given by their corners in a block."""
        pixels = corners + np.array([block.y0, block.x0]) + self.px / 2
        return self.origin_um + pixels[:, ::-1] * self.mpp
