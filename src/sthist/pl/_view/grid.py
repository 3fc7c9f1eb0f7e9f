"""The squares that all layers of the viewer are cut into, how they are encoded, and which ones are kept."""

from __future__ import annotations

import io
import math
import threading
from collections import OrderedDict
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from sthist.pl._base import Extent

TILE_PX = 512
JPEG_QUALITY = 90
DEEPEST = 30


class NoTile(LookupError):
    """A tile, image or element that there cannot be."""


class Encoded(NamedTuple):
    """A tile as it is sent."""

    content: bytes
    mime: str


@dataclass(frozen=True)
class Tile:
    """One square of a level: where it lies and how many pixels it has, (h, w)."""

    level: int
    extent: Extent
    mpp: float
    shape: tuple[int, int]


@dataclass(frozen=True)
class Grid:
    """All layers in one plane of µm: level 0 is one tile, each further one has half its µm per pixel.

    The plane is rounded up to whole pixels of level 0, so that it has the same shape in all levels.
    """

    x0_um: float
    y0_um: float
    mpp: float  # of level 0
    width: int  # of level 0, in pixels
    height: int

    @classmethod
    def over(cls, extent_um: Extent, mpp: float) -> Grid:
        """The grid of a box, one of whose levels has some µm per pixel."""
        x0, y0, x1, y1 = extent_um
        side = max(x1 - x0, y1 - y0, mpp)
        top = mpp * 2.0 ** max(0, math.ceil(math.log2(side / mpp / TILE_PX) - 1e-9))
        width, height = (max(1, math.ceil(length / top - 1e-6)) for length in (x1 - x0, y1 - y0))
        return cls(x0, y0, top, width, height)

    @property
    def size_um(self) -> tuple[float, float]:
        """Width and height of the plane."""
        return self.width * self.mpp, self.height * self.mpp

    def level_of(self, mpp: float) -> int:
        """The first level that is as fine as some µm per pixel."""
        return min(DEEPEST, max(0, math.ceil(math.log2(self.mpp / mpp) - 1e-6)))

    def tile(self, level: int, column: int, row: int, deepest: int) -> Tile:
        """A tile of a layer that has levels from 0 to ``deepest``; a :class:`NoTile` where there is none."""
        if not 0 <= level <= deepest:
            raise NoTile(f"There is no level {level}: levels go from 0 to {deepest}.")
        width, height = self.width << level, self.height << level
        columns, rows = -(-width // TILE_PX), -(-height // TILE_PX)
        if not (0 <= column < columns and 0 <= row < rows):
            raise NoTile(f"Level {level} has {columns} x {rows} tiles; there is no tile {column}, {row}.")
        mpp = self.mpp / 2**level
        shape = min(TILE_PX, height - row * TILE_PX), min(TILE_PX, width - column * TILE_PX)
        x0, y0 = self.x0_um + column * TILE_PX * mpp, self.y0_um + row * TILE_PX * mpp
        return Tile(level, (x0, y0, x0 + shape[1] * mpp, y0 + shape[0] * mpp), mpp, shape)


def jpeg(pixels: np.ndarray) -> Encoded:
    """Three colours of 8 bits, (h, w, 3), as JPEG."""
    return Encoded(_saved(pixels, "JPEG", quality=JPEG_QUALITY, subsampling=0), "image/jpeg")


def png(pixels: np.ndarray) -> Encoded:
    """Colours with opacity, (h, w, 4) uint8, as PNG."""
    return Encoded(_saved(pixels, "PNG", compress_level=1), "image/png")


def indexed_png(indices: np.ndarray, palette: np.ndarray) -> Encoded:
    """Places in a palette (colours, 3) uint8, from 1 on; 0 is clear. A small palette makes a small file."""
    if len(palette) > 255:
        rgba = np.zeros((len(palette) + 1, 4), np.uint8)
        rgba[1:, :3], rgba[1:, 3] = palette, 255
        return png(rgba[indices])
    from PIL import Image

    image = Image.fromarray(indices.astype(np.uint8)).convert("P")
    image.putpalette(np.concatenate([np.zeros((1, 3), np.uint8), palette]).tobytes())
    buffer = io.BytesIO()
    image.save(buffer, "PNG", transparency=0, compress_level=1)
    return Encoded(buffer.getvalue(), "image/png")


def _saved(pixels: np.ndarray, kind: str, **how: Any) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, kind, **how)
    return buffer.getvalue()


class Kept:
    """What was made lately, up to a number of bytes, the least recently used dropped first.

    Each is made by one thread, and those that want it meanwhile wait.
    """

    def __init__(self, max_bytes: int, size: Callable[[Any], int]) -> None:
        self._max_bytes, self._size, self._bytes = max_bytes, size, 0
        self._made: OrderedDict[Any, Future[Any]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Any, make: Callable[[], Any]) -> Any:
        """What ``key`` stands for, made if it is not here."""
        with self._lock:
            known = self._made.get(key)
            if known is None:
                mine = self._made[key] = Future()
            else:
                self._made.move_to_end(key)
        if known is not None:
            return known.result()
        try:
            value = make()
        except BaseException as error:  # whoever waits for it gets it, too
            with self._lock:
                del self._made[key]
            mine.set_exception(error)
            raise
        mine.set_result(value)
        with self._lock:
            self._bytes += self._size(value)
            for old in list(self._made):
                if self._bytes <= self._max_bytes or old == key:
                    break
                if self._made[old].done():
                    self._bytes -= self._size(self._made.pop(old).result())
        return value
