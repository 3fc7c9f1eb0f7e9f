"""Windows of known physical size out of registered images."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist._imaging.colours import require_tiles
from sthist._settings import settings
from sthist.tiles._images.image import image_of_array, open_image
from sthist.tiles._images.planes import ChunkCache
from sthist.tiles._images.window import View
from sthist.tiles._spec import TileSpec, TooFine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from spatialdata import SpatialData

    from sthist.tiles._images.image import Image
    from sthist.tiles._images.planes import Projection
    from sthist.tiles._images.window import Windows

    Transform = Callable[[np.ndarray], np.ndarray]

MAX_UPSAMPLING = 1.5
"""An image whose finest µm/px is coarser than this times the spec's is refused."""

MAX_GROUP = 64
"""Neighbouring tiles whose chunks are decoded together, at most."""


class TileReader:
    """Reads tiles of one :class:`TileSpec` from an image, or from several that tile one plane.

    Tiles are upright in ``um``: whatever affine transformation registers the image (rotation, flip, anisotropic
    scale, shear) is undone, and one tile pixel always shows ``spec.mpp`` micrometres. The pyramid level just finer
    than that is read, each storage chunk once, and resampled with anti-aliasing (means over whole source pixels, then
    bilinear interpolation). A tile pixel whose centre lies outside the image takes ``fill``.

    Parameters
    ----------
    sdata
        The sample; its images registered in ``um``.
    image
        Key of the image; several keys, such as the fields of view of CosMx, are read as one, the first where they
        overlap.
    spec
        Physical size and pixels of the tiles.
    channels
        Names of the channels to read, in this order; all by default.
    z
        A plane of an image stack, or the first and last of several; by default the whole stack is projected.
    projection
        ``"max"`` or ``"mean"``.
    fill
        Value outside the image.
    allow_upsampling
        Read an image whose µm/px is more than 1.5 times ``spec.mpp``.
    cache_bytes
        Memory for decoded chunks.
    normalizer
        What is done to RGB tiles as they are read, after filling, such as :func:`sthist.pp.stain_normalize` returns:
        takes uint8 of shape (n, h, w, 3) and returns such, each tile as if it were alone; it is called in several
        threads.

    Raises
    ------
    KeyError
        If there is no such image or channel.
    ValueError
        If an image has no scale, or two that disagree, no plane ``z``, or is coarser than asked; if there is a
        ``normalizer``, and the image has not three channels of uint8; while reading, if pixels are NaN.

    Examples
    --------
    >>> import sthist
    >>> sdata = sthist.datasets.toy(size_um=300)
    >>> reader = sthist.tiles.TileReader(sdata, "he", sthist.tiles.TileSpec(size_um=112, px=224))
    >>> reader.read([[150.0, 150.0]]).shape
    (1, 224, 224, 3)
    """

    def __init__(
        self,
        sdata: SpatialData,
        image: str | Sequence[str],
        spec: TileSpec,
        *,
        channels: Sequence[str] | None = None,
        z: int | tuple[int, int] | None = None,
        projection: Projection = "max",
        fill: float = 0,
        allow_upsampling: bool = False,
        cache_bytes: int = 256 * 2**20,
        normalizer: Transform | None = None,
    ) -> None:
        opened = open_image(sdata, image, channels=channels, z=z, projection=projection)
        self._setup(opened, spec, fill, cache_bytes, normalizer, allow_upsampling=allow_upsampling)

    @classmethod
    def from_array(
        cls,
        array: np.ndarray,
        to_um: np.ndarray,
        spec: TileSpec,
        *,
        fill: float = 0,
        cache_bytes: int = 256 * 2**20,
        normalizer: Transform | None = None,
    ) -> TileReader:
        """A reader of an array in memory, at any resolution.

        Parameters
        ----------
        array
            Pixels, (c, y, x).
        to_um
            (3, 3) matrix from pixels (x, y, 1) to µm; pixel (0, 0) covers [0, 1) x [0, 1).
        spec, fill, cache_bytes, normalizer
            As of the class.
        """
        image = image_of_array(array, to_um)
        return cls.from_image(
            image, spec, fill=fill, allow_upsampling=True, cache_bytes=cache_bytes, normalizer=normalizer
        )

    @classmethod
    def from_image(
        cls,
        image: Image,
        spec: TileSpec,
        *,
        fill: float = 0,
        allow_upsampling: bool = False,
        cache_bytes: int = 256 * 2**20,
        normalizer: Transform | None = None,
    ) -> TileReader:
        """A reader of an image that is open already.

        Parameters
        ----------
        image
            As of :func:`sthist.tiles.open_image`.
        spec, fill, allow_upsampling, cache_bytes, normalizer
            As of the class.
        """
        reader = cls.__new__(cls)
        reader._setup(image, spec, fill, cache_bytes, normalizer, allow_upsampling=allow_upsampling)
        return reader

    def __repr__(self) -> str:
        x0, y0, x1, y1 = self.extent_um
        channels = ", ".join(map(str, self.channels[:4])) + (", ..." if len(self.channels) > 4 else "")
        of = repr(self.image.key) if len(self.image.fields) == 1 else f"{len(self.image.fields)} images"
        normalised = "" if self.normalizer is None else ", normalised"
        return (
            f"TileReader of {of}: tiles of {self.spec.text}, {self.dtype} ({channels}){normalised}; the image has "
            f"{self.image.coarsest_mpp:.4g} µm/px, x {x0:.0f} to {x1:.0f}, y {y0:.0f} to {y1:.0f} µm"
        )

    def at(self, spec: TileSpec) -> TileReader:
        """A reader of the same image in tiles of another size, at any resolution.

        Parameters
        ----------
        spec
            Of the new tiles.
        """
        return self.from_image(
            self.image,
            spec,
            fill=self.fill,
            allow_upsampling=True,
            cache_bytes=2 * self._group_bytes,
            normalizer=self.normalizer,
        )

    def _setup(
        self,
        image: Image,
        spec: TileSpec,
        fill: float,
        cache_bytes: int,
        normalizer: Transform | None,
        *,
        allow_upsampling: bool,
    ) -> None:
        self.image, self.spec, self.fill, self.normalizer = image, spec, fill, normalizer
        self.channels, self.dtype = image.channels, image.dtype
        if normalizer is not None and (self.dtype != np.uint8 or len(self.channels) != 3):
            raise ValueError(
                f"normalizer= is for three channels of uint8 (RGB); image {image.key!r} has {len(self.channels)} of "
                f"{self.dtype}."
            )
        if image.coarsest_mpp > MAX_UPSAMPLING * spec.mpp and not allow_upsampling:
            problem = (
                f"Image {image.key!r} has {image.coarsest_mpp:.4g} µm/px, but tiles of {spec.mpp:.4g} µm/px are asked "
                f"for: more than {MAX_UPSAMPLING} times finer than what it shows."
            )
            raise TooFine(problem, spec, image.coarsest_mpp)
        self._cache = ChunkCache(cache_bytes)
        self._views = [View(field, spec) for field in image.fields]
        self._group_bytes = cache_bytes // 2

    @property
    def extent_um(self) -> tuple[float, float, float, float]:
        """x0, y0, x1, y1 of the box around the image, in µm."""
        return self.image.extent_um

    @property
    def memory_bytes(self) -> int:
        """What its images take in memory at most: all of what lies there, and what its cache holds of the others."""
        planes = [view.planes for view in self._views]
        lying = sum(each.n_bytes for each in planes if each.in_memory)
        return lying + min(self._cache.max_bytes, sum(each.n_bytes for each in planes if not each.in_memory))

    def order(self, centres: np.ndarray) -> np.ndarray:
        """The order of centres in which chunks are used while they are at hand: along a space-filling curve."""
        if len(self._views) == 1 or len(centres) == 0:
            return _morton_order(self._views[0].chunk_coordinates(centres))
        # Several images have no chunks in common; a tile's own size is as good a cell.
        return _morton_order(((centres - centres.min(0)) // self.spec.size_um).astype(int))

    def read(self, centres: Any, *, out: np.ndarray | None = None) -> np.ndarray:
        """Read tiles.

        Parameters
        ----------
        centres
            (n, 2): x, y of the centres, in µm.
        out
            Array to read into.

        Returns
        -------
        Tiles of shape (n, px, px, c) and the image's dtype, in the order of ``centres``.
        """
        centres = np.asarray(centres, np.float64).reshape(-1, 2)
        px = self.spec.px
        if out is None:
            out = np.empty((len(centres), px, px, len(self.channels)), self.dtype)
        order = self.order(centres) if len(centres) > 1 else np.arange(len(centres))
        windows = [view.windows(centres[order]) for view in self._views]
        with ThreadPoolExecutor(settings.threads) as pool:
            for group, chunks in self._groups(windows):
                self._load_chunks(chunks, pool)
                list(pool.map(lambda i: self._read_one(i, windows, centres[order[i]], out[order[i]]), group))
        return out

    def seen(self, centres: Any) -> np.ndarray:
        """Which pixels of tiles lie on the image; the others are filled, and are no measurement.

        Parameters
        ----------
        centres
            (n, 2): x, y of the centres, in µm.

        Returns
        -------
        Bool of shape (n, px, px), in the order of ``centres``.
        """
        centres = np.asarray(centres, np.float64).reshape(-1, 2)
        px, half = self.spec.px, self.spec.size_um / 2
        corners = centres[:, None] + half * np.array([[-1, -1], [-1, 1], [1, -1], [1, 1]])
        # A tile whose corners lie on one element lies there as a whole.
        whole = np.logical_or.reduce([field.holds(corners).all(axis=1) for field in self.image.fields])
        out = np.ones((len(centres), px, px), np.bool_)
        offsets = (np.arange(px) + 0.5) * self.spec.mpp - half
        grid = np.stack(np.meshgrid(offsets, offsets), -1)
        for i in np.flatnonzero(~whole):
            out[i] = self.image.holds(grid + centres[i])
        return out

    def _groups(self, windows: list[Windows]) -> Iterator[tuple[range, list[set[tuple[int, int]]]]]:
        """Runs of tiles, and the chunks that they need of each image: never more than half of the cache holds."""
        needed = [view.chunks(window) for view, window in zip(self._views, windows, strict=True)]
        sizes = [view.planes.chunk_bytes for view in self._views]
        n = len(windows[0].origins)
        start = 0
        while start < n:
            stop, chunks = start, [set[tuple[int, int]]() for _ in self._views]
            while stop < n and stop - start < MAX_GROUP:
                more = [have | need[stop] for have, need in zip(chunks, needed, strict=True)]
                n_bytes = sum(len(have) * size for have, size in zip(more, sizes, strict=True))
                if stop > start and n_bytes > self._group_bytes:
                    break
                stop, chunks = stop + 1, more
            yield range(start, stop), chunks
            start = stop

    def _load_chunks(self, chunks: list[set[tuple[int, int]]], pool: ThreadPoolExecutor) -> None:
        """Decode what a group of tiles needs and is not at hand: neighbours in a row of chunks with one call."""
        spans = [
            (view, row, columns)
            for view, needed in zip(self._views, chunks, strict=True)
            for row, columns in view.spans(needed, self._cache)
        ]
        list(pool.map(lambda span: span[0].load_span(self._cache, *span[1:]), spans))

    def _read_one(self, i: int, windows: list[Windows], centre: np.ndarray, tile: np.ndarray) -> None:
        tile.fill(self.fill)
        covered = np.zeros(tile.shape[:2], np.bool_)
        for view, window in zip(self._views, windows, strict=True):
            view.paste(window.origins[i], window.lows[i], window.highs[i], tile, covered, self._cache)
        if tile.dtype.kind == "f" and np.isnan(tile).any():
            raise ValueError(
                f"Image {self.image.key!r} has NaN pixels near x={centre[0]:.1f}, y={centre[1]:.1f} µm; fill them "
                "before reading tiles."
            )
        if self.normalizer is not None:
            tile[:] = require_tiles("The normalizer", self.normalizer(tile[None]), (1, *tile.shape))[0]


def share_cache(readers: Iterable[Any]) -> None:
    """Let readers keep their chunks in one cache, so that those of many slides take no more memory than of one."""
    readers = [each for each in readers if isinstance(each, TileReader)]
    if readers:
        shared = ChunkCache(max(each._cache.max_bytes for each in readers))
        for each in readers:
            each._cache = shared


def join_cache(reader: TileReader, other: TileReader) -> None:
    """Let a reader keep its chunks where another one does."""
    reader._cache = other._cache


def read_region(
    sdata: SpatialData,
    image: str | Sequence[str],
    extent_um: tuple[float, float, float, float],
    mpp: float,
    *,
    channels: Sequence[str] | None = None,
    z: int | tuple[int, int] | None = None,
    projection: Projection = "max",
    fill: float = 0,
) -> np.ndarray:
    """A box of an image at any resolution, upright in ``um``.

    Parameters
    ----------
    sdata, image, channels, z, projection, fill
        As of :class:`TileReader`.
    extent_um
        x0, y0, x1, y1 in µm.
    mpp
        µm per pixel of the result; the pyramid level just finer is read.

    Returns
    -------
    (h, w, c) of the image's dtype; h and w are the box over ``mpp``, rounded up.

    Examples
    --------
    >>> import sthist
    >>> sdata = sthist.datasets.toy(size_um=200)
    >>> sthist.tiles.read_region(sdata, "he", (0, 0, 200, 100), mpp=4.0).shape
    (25, 50, 3)
    """
    opened = open_image(sdata, image, channels=channels, z=z, projection=projection)
    return read_box(opened, extent_um, mpp, fill=fill)


def read_box(image: Image, extent_um: tuple[float, float, float, float], mpp: float, *, fill: float = 0) -> np.ndarray:
    """A box of an open image at any resolution; what :func:`read_region` returns."""
    x0, y0, x1, y1 = extent_um
    # Less than a thousandth of a pixel is rounding, not tissue.
    height, width = (max(1, math.ceil((high - low) / mpp - 1e-3)) for low, high in ((y0, y1), (x0, x1)))
    spec = TileSpec.from_mpp(mpp, min(256, max(height, width)))
    reader = TileReader.from_image(image, spec, fill=fill, allow_upsampling=True)
    return read_grid(reader, (x0, y0), (height, width))


def seen_grid(image: Image, origin_um: Any, mpp: float, shape: tuple[int, int]) -> np.ndarray:
    """(h, w) bool: which pixels of a grid, from a corner (x, y) in µm on, lie on an image."""
    x, y = ((np.arange(n) + 0.5) * mpp + low for n, low in zip(shape[::-1], origin_um, strict=True))
    return image.holds(np.stack(np.meshgrid(x, y), -1))


def read_grid(
    reader: TileReader, origin_um: Any, shape: tuple[int, int], *, out: np.ndarray | None = None
) -> np.ndarray:
    """(h, w, c) pixels of a reader side by side, from a corner (x, y) in µm on; into ``out``, if there is one."""
    px, (height, width) = reader.spec.px, shape
    if out is None:
        out = np.empty((height, width, len(reader.channels)), reader.dtype)
    columns = np.arange(-(-width // px))
    for row in range(-(-height // px)):
        corners = np.c_[columns, np.full(len(columns), row)]
        tiles = reader.read((corners + 0.5) * reader.spec.size_um + np.asarray(origin_um))
        part = out[row * px : (row + 1) * px]
        part[:] = tiles.transpose(1, 0, 2, 3).reshape(px, len(columns) * px, -1)[: len(part), :width]
    return out


def _morton_order(cells: np.ndarray) -> np.ndarray:
    """Indices that sort (n, 2) non-negative cells along a Z-order curve, stable within a cell."""
    code = np.zeros(len(cells), np.uint64)
    grid = cells.astype(np.uint64)
    for bit in range(max(1, math.ceil(math.log2(int(cells.max(initial=0)) + 2)))):
        for axis in (0, 1):
            code |= ((grid[:, axis] >> np.uint64(bit)) & np.uint64(1)) << np.uint64(2 * bit + 1 - axis)
    return np.argsort(code, kind="stable")
