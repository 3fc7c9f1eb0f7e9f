"""What makes the features of a block of cells: the tokens of large tiles, or a window around each cell."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist.pp._dense_features.cells import cells_of_tokens
from sthist.tiles._blocks.blend import TileGrid
from sthist.tiles._blocks.resumable import BlockWorker
from sthist.tiles._images.reader import read_grid

if TYPE_CHECKING:
    from sthist.tiles import TileReader
    from sthist.tiles._blocks.canvas import Block, Layout

LARGEST = 65504
"""Of float16."""


MOST_PX = 2**24
"""Pixels of a batch of tiles: one of 4096 px."""


class CellWorker(BlockWorker):
    """Makes the features (d, h, w) float16 of blocks of cells, NaN for those that are not asked for."""

    _of_process = "_turn"

    def __init__(self, reader: TileReader, encoder: Any, layout: Layout, inside: np.ndarray, batch_size: int) -> None:
        self.reader, self.encoder, self.layout = reader, encoder, layout
        self.inside, self.batch_size = inside, batch_size
        self._turn = self._open()

    def _open(self) -> Any:
        return threading.Lock()

    def compute(self, block: Block) -> np.ndarray:
        """The features of a block."""
        wanted = self.inside[block.y0 : block.y1, block.x0 : block.x1]
        out = np.full((len(self.layout.channels), *wanted.shape), np.nan, np.float16)
        if wanted.any():
            self._fill(block, wanted, out)
        return out

    def _fill(self, block: Block, wanted: np.ndarray, out: np.ndarray) -> None:
        raise NotImplementedError


class TokenCells(CellWorker):
    """Tokens of tiles that overlap, blended: each pixel is looked at about twice, with what is around it."""

    def __init__(self, *args: Any, overlap: float) -> None:
        super().__init__(*args)
        per_tile = round(self.reader.spec.size_um / self.layout.mpp)
        self.grid = TileGrid(self.layout.origin_um, self.layout.mpp, per_tile, overlap)

    def _fill(self, block: Block, wanted: np.ndarray, out: np.ndarray) -> None:
        from sthist.tiles._images.kernels import add_weighted

        px = self.grid.px
        corners = self.grid.corners(block)
        shows = [wanted[max(0, y) : max(0, y + px), max(0, x) : max(0, x + px)].any() for y, x in corners.tolist()]
        corners = corners[np.array(shows, bool)]
        centres = self.grid.centres_um(corners, block)
        total = np.zeros((*wanted.shape, len(out)), np.float32)
        weights = np.zeros(wanted.shape, np.float32)
        size = max(1, min(self.batch_size, MOST_PX // self.reader.spec.px**2))
        for start in range(0, len(corners), size):
            batch = slice(start, start + size)
            tiles = self.reader.read(centres[batch])
            with self._turn:
                tokens = self.encoder.dense(tiles)
            if not np.isfinite(tokens).all():
                raise ValueError(f"{self.encoder.name!r} gave tokens that are NaN or infinite.")
            cells = np.ascontiguousarray(cells_of_tokens(tokens, px), np.float32)
            for cell, (y, x) in zip(cells, corners[batch].tolist(), strict=True):
                add_weighted(cell, self.grid.weight, total, weights, y, x)
        values = total[wanted] / weights[wanted][:, None]
        out[:, wanted] = values.clip(-LARGEST, LARGEST).T


class WindowCells(CellWorker):
    """An embedding of the window around each cell."""

    def __init__(self, *args: Any, stride_px: int, window_px: int) -> None:
        super().__init__(*args)
        self.stride_px, self.window_px = stride_px, window_px

    def _fill(self, block: Block, wanted: np.ndarray, out: np.ndarray) -> None:
        stride, window = self.stride_px, self.window_px
        mpp = self.layout.mpp / stride
        corner = np.array([block.x0, block.y0]) * self.layout.mpp - (window - stride) / 2 * mpp
        height, width = ((n - 1) * stride + window for n in wanted.shape)
        pixels = read_grid(self.reader, np.asarray(self.layout.origin_um) + corner, (height, width))
        windows = np.lib.stride_tricks.sliding_window_view(pixels, (window, window), axis=(0, 1))[::stride, ::stride]
        ys, xs = np.nonzero(wanted)
        parts = [slice(start, start + self.batch_size) for start in range(0, len(ys), self.batch_size)]
        batches = (np.ascontiguousarray(windows[ys[part], xs[part]].transpose(0, 2, 3, 1)) for part in parts)
        with self._turn:
            for part, rows in zip(parts, self.encoder.embed_batches(batches), strict=True):
                out[:, ys[part], xs[part]] = rows.clip(-LARGEST, LARGEST).T
