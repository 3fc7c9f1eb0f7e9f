"""Nuclei of an image of any size, block by block: the same ones whatever the blocks."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from sthist._settings import settings
from sthist.tiles import TileReader, TileSpec
from sthist.tiles._images.reader import seen_grid

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from shapely.geometry.base import BaseGeometry

    from sthist.tiles import Image

READ_PX = 128
"""Pixels are read in squares of a lattice that is fixed for the image: so each is resampled in one way only."""

BLOCK_PX = 1536
LARGEST_UM = 40.0
"""A nucleus is no wider or higher than this; what is belongs to no block."""


class Segmenter(Protocol):
    """What labels the nuclei of a window.

    Attributes
    ----------
    mpp
        µm per pixel that it works at; None for those of the image.
    reach_um
        How far away something may lie that decides about a pixel.
    exact
        Whether it labels the same pixels alike in all windows that hold them with their reach.
    concurrent
        Whether it may run in several threads at once.
    """

    mpp: float | None
    reach_um: float
    exact: bool
    concurrent: bool

    def __call__(self, rgb: np.ndarray, seen: np.ndarray, window: Window, lattice: Lattice) -> np.ndarray:
        """Labels, (h, w) integers."""


@dataclass(frozen=True)
class Window:
    """Pixels of the lattice of an image: from (y0, x0) to before (y1, x1)."""

    y0: int
    x0: int
    y1: int
    x1: int

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width."""
        return self.y1 - self.y0, self.x1 - self.x0

    def grown(self, margin: int) -> Window:
        """With a margin around it."""
        return Window(self.y0 - margin, self.x0 - margin, self.y1 + margin, self.x1 + margin)


class Lattice:
    """Pixels of one size, from the corner of an image on, in which all windows of it are read."""

    def __init__(self, image: Image, mpp: float) -> None:
        x0, y0, x1, y1 = image.extent_um
        self.image, self.mpp, self.origin_um = image, mpp, np.array([x0, y0])
        # Less than a thousandth of a pixel is rounding.
        self.shape = tuple(max(1, math.ceil((high - low) / mpp - 1e-3)) for low, high in ((y0, y1), (x0, x1)))
        spec = TileSpec.from_mpp(mpp, READ_PX)
        self._reader = TileReader.from_image(image, spec, fill=255, allow_upsampling=True)

    def blocks(self, side: int = BLOCK_PX) -> list[Window]:
        """Blocks that cover the image, row by row."""
        height, width = self.shape
        return [Window(y, x, y + side, x + side) for y in range(0, height, side) for x in range(0, width, side)]

    def box_um(self, window: Window) -> BaseGeometry:
        """The place of a window."""
        import shapely

        corners = np.array([[window.x0, window.y0], [window.x1, window.y1]]) * self.mpp + self.origin_um
        return shapely.box(*corners.ravel())

    def to_um(self, pixels: np.ndarray) -> np.ndarray:
        """Places (x, y) in µm of places in pixels."""
        return pixels * self.mpp + self.origin_um

    def read(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """Pixels of a window, (h, w, 3) uint8, white where the image has none; and where it has some, (h, w) bool."""
        low = np.array([window.y0, window.x0]) // READ_PX
        high = -(-np.array([window.y1, window.x1]) // READ_PX)
        rows, columns = (np.arange(a, b) for a, b in zip(low, high, strict=True))
        squares = np.stack(np.meshgrid(rows, columns, indexing="ij"), -1).reshape(-1, 2)
        tiles = self._reader.read(self.to_um((squares[:, ::-1] + 0.5) * READ_PX))
        whole = tiles.reshape(len(rows), len(columns), READ_PX, READ_PX, 3).swapaxes(1, 2)
        whole = whole.reshape(len(rows) * READ_PX, len(columns) * READ_PX, 3)
        y, x = window.y0 - low[0] * READ_PX, window.x0 - low[1] * READ_PX
        rgb = np.ascontiguousarray(whole[y : y + window.shape[0], x : x + window.shape[1]])
        return rgb, self._seen(window)

    def _seen(self, window: Window) -> np.ndarray:
        corner = self.to_um(np.array([window.x0, window.y0]))
        return seen_grid(self.image, corner, self.mpp, window.shape)


def over_blocks(
    work: Callable[[Window], Any], blocks: list[Window], *, progress: bool | None, what: str = "nuclei"
) -> Iterator[Any]:
    """What is made of each block, in their order; no more is under way than there are threads."""
    from rich.progress import Progress

    with (
        Progress(disable=not (settings.progress if progress is None else progress)) as bar,
        ThreadPoolExecutor(settings.threads) as pool,
    ):
        task = bar.add_task(what, total=len(blocks))
        waiting = iter(blocks)
        running = [pool.submit(work, block) for block in islice(waiting, settings.threads + 1)]
        try:
            while running:
                made = running.pop(0).result()
                running += [pool.submit(work, block) for block in islice(waiting, 1)]
                bar.advance(task)
                yield made
        finally:  # also on Ctrl-C
            pool.shutdown(cancel_futures=True)
