"""Run a model over a canvas: read, predict, blend, write."""

from __future__ import annotations

import threading
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist._settings import settings

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from shapely.geometry.base import BaseGeometry

    from sthist.tiles._canvas import Block, Canvas
    from sthist.tiles._reader import TileReader

PAPER = 255
"""Grey level of a pixel that shows nothing."""


def map_tiles(
    readers: Sequence[TileReader],
    predict: Callable[..., np.ndarray],
    canvas: Canvas,
    *,
    overlap: float = 0.25,
    batch_size: int = 16,
    concurrent: bool = False,
    within: BaseGeometry | None = None,
    progress: bool | None = None,
) -> None:
    """Fill the pending blocks of a canvas with what a model makes of the tiles under it.

    The tiles of a block run in fixed batches and are blended in memory, in a fixed order, with raised-cosine ramps
    over their overlap; tiles on a border are computed for each block. So the result does not depend on what was done
    before, by whom, or in which order.

    Parameters
    ----------
    readers
        What the model sees, one or more, all of one :class:`TileSpec` whose µm/px is the canvas's.
    predict
        Takes one array of (n, px, px, c) per reader and returns (n, px, px, 3) uint8.
    canvas
        Where the result goes. It is finished when all blocks are done.
    overlap
        Part of a tile's side that it shares with the next one, less than 1/2.
    batch_size
        Tiles per call of ``predict``.
    concurrent
        ``predict`` may run in several threads at once (kernels on a CPU); otherwise, while one block is predicted,
        others are read and written.
    within
        A polygon in µm. Outside of it the canvas stays white, and blocks that do not touch it are skipped.
    progress
        Show a bar with megapixels per second and the time left.

    Examples
    --------
    Copy an image onto a canvas:

    >>> import tempfile, pathlib, sthist
    >>> sdata = sthist.datasets.toy(size_um=200)
    >>> reader = sthist.tiles.TileReader(sdata, "he", sthist.tiles.TileSpec(size_um=64, px=128))
    >>> folder = pathlib.Path(tempfile.mkdtemp()) / "canvas"
    >>> canvas = sthist.tiles.Canvas(folder, "copy", extent_um=(0, 0, 200, 200), mpp=0.5, fingerprint={})
    >>> sthist.tiles.map_tiles([reader], lambda tiles: tiles, canvas, progress=False)
    >>> canvas.pending()
    []
    """
    pending = canvas.pending()
    device_lock = nullcontext() if concurrent else threading.Lock()
    grid = _TileGrid(canvas, readers[0].spec.px, overlap)

    def run(block: Block) -> Block:
        outline = None if within is None else _outline(within, block, canvas)
        if outline is not None and not outline.any():
            pixels = np.full((3, block.y1 - block.y0, block.x1 - block.x0), PAPER, np.uint8)
        else:
            pixels = _predict_block(readers, predict, grid, block, batch_size, device_lock)
            if outline is not None:
                pixels[:, ~outline] = PAPER
        canvas.write(block, pixels)
        return block

    with ThreadPoolExecutor(max(2, settings.threads)) as pool, _Progress(canvas, pending, progress) as bar:
        futures = [pool.submit(run, block) for block in pending]
        for future in futures:
            future.add_done_callback(bar.advance)
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:  # also on Ctrl-C: what is running ends, what is waiting does not start
            for future in futures:
                future.cancel()
        for future in futures:
            if not future.cancelled():
                future.result()
    canvas.finish()


class _TileGrid:
    """Tiles on a lattice that is fixed for the whole canvas, and the weight that blends them."""

    def __init__(self, canvas: Canvas, px: int, overlap: float) -> None:
        if not 0 <= overlap < 0.5:
            msg = f"overlap is {overlap}; it is a part of the tile's side between 0 and 1/2."
            raise ValueError(msg)
        shared = round(px * overlap)
        self.px, self.stride, self.margin = px, px - shared, shared // 2
        self.origin_um, self.mpp = np.array(canvas.origin_um), canvas.mpp
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


def _predict_block(
    readers: Sequence[TileReader],
    predict: Callable[..., np.ndarray],
    grid: _TileGrid,
    block: Block,
    batch_size: int,
    device_lock: Any,
) -> np.ndarray:
    from sthist.tiles._kernels import add_weighted, divide_to_uint8

    height, width = block.y1 - block.y0, block.x1 - block.x0
    corners = grid.corners(block)
    centres = grid.centres_um(corners, block)
    total = np.zeros((height, width, 3), np.float32)
    weights = np.zeros((height, width), np.float32)
    for start in range(0, len(corners), batch_size):
        batch = slice(start, start + batch_size)
        inputs = [reader.read(centres[batch]) for reader in readers]
        with device_lock:
            tiles = predict(*inputs)
        for tile, (y, x) in zip(tiles, corners[batch].tolist(), strict=True):
            add_weighted(tile, grid.weight, total, weights, y, x)
    pixels = np.empty((3, height, width), np.uint8)
    divide_to_uint8(total, weights, PAPER, pixels)
    return pixels


def _outline(within: BaseGeometry, block: Block, canvas: Canvas) -> np.ndarray:
    """Which pixels of a block have their centre in a polygon."""
    from sthist.tiles._raster import rasterize

    origin = np.array(canvas.origin_um) + np.array([block.x0, block.y0]) * canvas.mpp
    return rasterize([within], origin, canvas.mpp, (block.y1 - block.y0, block.x1 - block.x0)) > 0


class _Progress:
    """A bar over megapixels; nothing is shown where the settings say so."""

    def __init__(self, canvas: Canvas, pending: list[Block], show: bool | None) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.1f}/{task.total:.1f} MP"),
            _speed_column(),
            TimeRemainingColumn(),
            disable=not (settings.progress if show is None else show),
        )
        blocks = canvas.blocks()
        done = sum(map(_megapixels, blocks)) - sum(map(_megapixels, pending))
        self._task = self._bar.add_task(canvas.name, total=sum(map(_megapixels, blocks)))
        self._bar.update(self._task, completed=done)

    def __enter__(self) -> _Progress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def advance(self, future: Any) -> None:
        if not future.cancelled() and future.exception() is None:
            self._bar.advance(self._task, _megapixels(future.result()))


def _megapixels(block: Block) -> float:
    return (block.y1 - block.y0) * (block.x1 - block.x0) / 1e6


def _speed_column() -> Any:
    from rich.progress import ProgressColumn, Task
    from rich.text import Text

    class Speed(ProgressColumn):
        """Megapixels per second, as measured over the last half minute."""

        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:.1f} MP/s" if task.speed else "", style="progress.data.speed")

    return Speed()
