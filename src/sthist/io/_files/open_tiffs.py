"""TIFF files that stay open between reads: a few at a time, whatever the number of images."""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAX_OPEN = 32
MAP_CHUNK_PX = 512


class MappedPixels:
    """Uncompressed pixels of one pyramid level, mapped into memory page by page: only what is asked for is read."""

    def __init__(self, maps: list[np.ndarray], shape: tuple[int, ...]) -> None:
        self._maps, self.shape, self.dtype = maps, shape, maps[0].dtype
        self._n_leading = len(shape) - maps[0].ndim
        sides = maps[0].shape
        self.chunks = (1,) * self._n_leading + tuple(min(n, MAP_CHUNK_PX) if n > 4 else n for n in sides)

    @classmethod
    def of(cls, level: Any) -> MappedPixels | None:
        """The level's pixels; None where they are compressed or in pieces."""
        pages = list(level.pages)
        if any(page is None or not page.is_memmappable or not _in_one_piece(page) for page in pages):
            return None
        shape, of_page = tuple(level.shape), tuple(level.keyframe.shape)
        if level.dataoffset is not None and len(pages) == 1:
            of_page = shape  # planes that only the first page points to
        n_leading = len(shape) - len(of_page)
        if n_leading < 0 or shape[n_leading:] != of_page or int(np.prod(shape[:n_leading])) != len(pages):
            return None
        return cls([_mapped(page, of_page) for page in pages], shape)

    def __getitem__(self, box: tuple[slice, ...]) -> np.ndarray:
        leading, rest = box[: self._n_leading], box[self._n_leading :]
        numbers = np.arange(len(self._maps)).reshape(self.shape[: self._n_leading])[leading]
        parts = [self._maps[number][rest] for number in numbers.ravel().tolist()]
        if not parts:
            return np.empty((*numbers.shape, *self._maps[0][rest].shape), self.dtype)
        return np.stack(parts).reshape(*numbers.shape, *parts[0].shape)


def _in_one_piece(page: Any) -> bool:
    ends = np.cumsum([page.dataoffsets[0], *page.databytecounts]).tolist()
    return ends[:-1] == list(page.dataoffsets) and ends[-1] - ends[0] >= page.keyframe.nbytes


def _mapped(page: Any, shape: tuple[int, ...]) -> np.ndarray:
    file = page.parent
    dtype = np.dtype(page.keyframe.dtype).newbyteorder(file.byteorder)
    return np.memmap(file.filehandle.path, dtype, "r", page.dataoffsets[0], shape)


class _Open:
    """One open file, and its levels by number of the image and of the level."""

    def __init__(self, path: Path) -> None:
        import tifffile

        self.file, self.n_users = tifffile.TiffFile(path), 0
        self.levels: dict[tuple[int, int], Any] = {}
        self.lock = threading.Lock()

    def level(self, series: int, level: int, mapped: bool) -> Any:
        import zarr

        with self.lock:
            if (series, level) not in self.levels:
                image = self.file.series[series]
                pixels: Any = MappedPixels.of(image.levels[level]) if mapped else None
                if pixels is None:
                    pixels = zarr.open_array(image.aszarr(level=level), mode="r")
                self.levels[series, level] = pixels
            return self.levels[series, level]

    def close(self) -> None:
        self.levels.clear()
        self.file.close()


class OpenFiles:
    """The files that were read last; the others are closed as soon as no read uses them."""

    def __init__(self, limit: int = MAX_OPEN) -> None:
        self._limit = limit
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._open: OrderedDict[tuple[Any, ...], _Open] = OrderedDict()

    def after_fork(self) -> None:
        """Start anew in a child process: it would share the place in the file with its parent."""
        self._of_parent = self._open  # neither used nor closed
        self._reset()

    @contextlib.contextmanager
    def pixels(self, path: Path, series: int, level: int, mapped: bool) -> Iterator[Any]:
        """A level's stored array, which stays open for the block at least."""
        stat = os.stat(path)
        key = (path, stat.st_ino, stat.st_size, stat.st_mtime_ns)  # a file that was written anew is another one
        with self._lock:
            if key not in self._open:
                self._open[key] = _Open(path)
            opened = self._open[key]
            self._open.move_to_end(key)
            opened.n_users += 1
        try:
            yield opened.level(series, level, mapped)
        finally:
            with self._lock:
                opened.n_users -= 1
                self._evict(self._limit)

    def __len__(self) -> int:
        return len(self._open)

    def close(self) -> None:
        """Close all files that no read uses."""
        with self._lock:
            self._evict(0)

    def _evict(self, limit: int) -> None:
        for key in [key for key, opened in self._open.items() if opened.n_users == 0]:
            if len(self._open) <= limit:
                return
            self._open.pop(key).close()


FILES = OpenFiles()
atexit.register(FILES.close)
if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=FILES.after_fork)
