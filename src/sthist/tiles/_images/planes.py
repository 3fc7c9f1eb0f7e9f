"""The pixels of one pyramid level, loaded chunk by chunk, and kept while they are at hand."""

from __future__ import annotations

import threading
from collections import OrderedDict
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def chunk_reader(array: Any) -> Callable[[int, int], np.ndarray] | None:
    """A function from (row, column) to the decoded chunk, cut at the border; None where zarr itself has to read.

    It exists for zarr v3 arrays in a local folder with a regular chunk grid, compressed with zstd alone, whose chunks
    span all axes but the last two.
    """
    import zarr

    if not isinstance(array, zarr.Array) or array.metadata.zarr_format != 3:
        return None
    metadata, store = array.metadata, array.store
    if not isinstance(store, zarr.storage.LocalStore):
        return None
    plain = (
        getattr(metadata.chunk_grid, "chunk_shape", None) is not None
        and [type(codec).__name__ for codec in metadata.codecs] == ["BytesCodec", "ZstdCodec"]
        and all(n >= length for n, length in zip(array.chunks[:-2], array.shape[:-2], strict=True))
    )
    if not plain:
        return None
    import pyarrow as pa

    folder = store.root / array.path
    endian = getattr(metadata.codecs[0], "endian", None)
    dtype = np.dtype(array.dtype).newbyteorder(">" if endian is not None and endian.value == "big" else "<")
    shape, chunk_shape, leading = array.shape, array.chunks, (0,) * (array.ndim - 2)
    n_bytes = int(np.prod(chunk_shape)) * dtype.itemsize
    codec = pa.Codec("zstd")

    def read(row: int, column: int) -> np.ndarray:
        path = folder / metadata.encode_chunk_key((*leading, row, column))
        height = min(chunk_shape[-2], shape[-2] - row * chunk_shape[-2])
        width = min(chunk_shape[-1], shape[-1] - column * chunk_shape[-1])
        window = (*(slice(n) for n in shape[:-2]), slice(height), slice(width))
        try:
            content = path.read_bytes()
        except FileNotFoundError:  # zarr does not store chunks of nothing but the fill value
            return np.full((*shape[:-2], height, width), metadata.fill_value, array.dtype)
        try:
            pixels = np.frombuffer(codec.decompress(content, n_bytes), dtype).reshape(chunk_shape)
        except (pa.ArrowException, ValueError, OSError) as error:
            raise OSError(
                f"The chunk {path} is damaged: {error}. Restore the file, or write the image again."
            ) from error
        return pixels[window].astype(array.dtype, copy=False)

    return read


Projection = Literal["max", "mean"]
MAX_CALL_BYTES = 32 * 2**20
"""Neighbouring chunks that are decoded with one call take this much memory at most."""


class Planes:
    """The (channel, y, x) planes of one pyramid level, a numpy, zarr or dask array, loaded chunk by chunk.

    Its ``dims`` are of ``c``, ``z``, ``y``, ``x``, the last two in this order at the end; ``z`` is a plane of a stack,
    or the first and the last of several, which are projected; None for all.
    """

    def __init__(
        self,
        data: Any,
        dims: tuple[str, ...],
        channels: Sequence[int],
        z: int | tuple[int, int] | None = None,
        projection: Projection = "max",
    ) -> None:
        self._data, self._dims = _behind_dask(data), dims
        self._choose(channels, z, projection)
        self.height, self.width = (int(n) for n in data.shape[-2:])
        self.y_edges, self.x_edges = (_chunk_edges(self._data, axis) for axis in (-2, -1))
        self._read_chunk = chunk_reader(self._data)
        self.chunk_bytes = self._bytes_of_a_chunk()
        self.most_per_call = max(1, min(16, MAX_CALL_BYTES // self.chunk_bytes)) if self._read_chunk is None else 1

    def select(self, channels: Sequence[int], z: int | tuple[int, int] | None, projection: Projection) -> Planes:
        """The same pixels, other channels or planes of a stack."""
        other = Planes.__new__(Planes)  # copy.copy would go by __reduce__, and open the array again
        vars(other).update(vars(self))
        other._choose(channels, z, projection)
        return other

    def _choose(self, channels: Sequence[int], z: int | tuple[int, int] | None, projection: Projection) -> None:
        is_stack = "z" in self._dims
        self.channels, self._z, self._projection = list(channels), z if is_stack else None, projection
        self.dtype = np.dtype(np.float32) if is_stack and projection == "mean" else _pixel_dtype(self._data.dtype)

    @property
    def depth(self) -> int:
        """How many planes its stack has."""
        return int(self._data.shape[self._dims.index("z")]) if "z" in self._dims else 1

    def __reduce__(self) -> tuple[Any, ...]:
        """By its place on disk where it has one, so that another process opens it anew."""
        arguments = (self._dims, self.channels, self._z, self._projection)
        place = _place(self._data)
        return (Planes, (self._data, *arguments)) if place is None else (_open_planes, (place, *arguments))

    def _bytes_of_a_chunk(self) -> int:
        """Memory that decoding a chunk takes, all channels and planes of it; 1 where it is in memory already."""
        if self.in_memory:
            return 1
        area = int(np.diff(self.y_edges).max()) * int(np.diff(self.x_edges).max())
        return area * int(np.prod(self._data.shape[:-2])) * self._data.dtype.itemsize

    @property
    def in_memory(self) -> bool:
        """Whether there is nothing to decode."""
        return isinstance(self._data, np.ndarray)

    @property
    def is_computed(self) -> bool:
        """Whether its pixels are the result of a computation that is done whenever they are read."""
        return hasattr(self._data, "dask")

    @property
    def n_bytes(self) -> int:
        """Of all chunks, decoded."""
        return int(np.prod(self.shape)) * self.dtype.itemsize

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        return len(self.channels), self.height, self.width

    def load(self, row: int, first: int, stop: int) -> list[np.ndarray]:
        """The chunks ``first:stop`` of a row, (c, h, w) each; through zarr and dask, they are decoded with one call."""
        ranges = {
            "c": slice(min(self.channels), max(self.channels) + 1),
            "z": slice(None) if self._z is None else slice(first_last(self._z)[0], first_last(self._z)[1] + 1),
        }
        leading = tuple(ranges[axis] for axis in self._dims[:-2])
        if self._read_chunk is not None:
            chunks = [self._read_chunk(row, column) for column in range(first, stop)]
            # A few channels of a chunk would keep all of them alive.
            return [self._project(c[leading] if c[leading].size == c.size else c[leading].copy()) for c in chunks]
        rows, columns = slice(*self.y_edges[row : row + 2]), slice(self.x_edges[first], self.x_edges[stop])
        try:
            block = self._data[(*leading, rows, columns)]
            if hasattr(block, "dask"):
                block = block.compute(scheduler="synchronous")
        except RuntimeError as error:  # what codecs raise
            where = f"rows {rows.start} to {rows.stop}, columns {columns.start} to {columns.stop}"
            raise OSError(
                f"An image cannot be decoded at {where} of {_place(self._data) or self._data}: {error}. Restore it, or "
                "write it again."
            ) from error
        block = self._project(np.asarray(block))
        parts = np.split(block, self.x_edges[first + 1 : stop] - self.x_edges[first], axis=2)
        return parts if len(parts) == 1 else [part.copy() for part in parts]  # a part would keep its neighbours alive

    def _project(self, block: np.ndarray) -> np.ndarray:
        """A block of the channels from the first to the last wanted, with its stack projected, in the wanted order."""
        if "z" in self._dims:
            axis = self._dims.index("z")
            block = block.max(axis) if self._projection == "max" else block.mean(axis, dtype=np.float32)
        low = min(self.channels)
        if self.channels != list(range(low, low + block.shape[0])):
            block = block[[channel - low for channel in self.channels]]
        return block.astype(self.dtype, copy=False)


def first_last(z: int | tuple[int, int]) -> tuple[int, int]:
    """The first and the last of one plane or of a range of planes."""
    first, last = (z, z) if isinstance(z, int | np.integer) else z
    return int(first), int(last)


class ChunkCache:
    """Decoded chunks, the least recently used dropped first; each is decoded by one thread only."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes, self._bytes = max_bytes, 0
        self._chunks: OrderedDict[Any, Future[np.ndarray]] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        """An empty one: another process decodes for itself."""
        return ChunkCache, (self.max_bytes,)

    def __contains__(self, key: Any) -> bool:
        """Whether a chunk is here, or being decoded."""
        return key in self._chunks

    def put(self, key: Any, chunk: np.ndarray) -> None:
        """Keep a chunk that was decoded already."""
        self.get(key, lambda: chunk)

    def get(self, key: Any, load: Callable[[], np.ndarray]) -> np.ndarray:
        """The chunk ``key``, loaded if it is not here."""
        with self._lock:
            future = self._chunks.get(key)
            if future is not None:
                self._chunks.move_to_end(key)
            else:
                pending = self._chunks[key] = Future()
        if future is not None:
            return future.result()
        try:
            chunk = load()
        except BaseException as error:  # whoever waits for this chunk gets it too, and is not left waiting
            with self._lock:
                del self._chunks[key]
            pending.set_exception(error)
            raise
        pending.set_result(chunk)
        with self._lock:
            self._bytes += chunk.nbytes
            for old in list(self._chunks):
                if self._bytes <= self.max_bytes or old == key:
                    break
                if self._chunks[old].done():
                    self._bytes -= self._chunks.pop(old).result().nbytes
        return chunk


def _pixel_dtype(dtype: Any) -> np.dtype:
    """The type in which pixels are worked on: native byte order, and nothing smaller than the kernels know."""
    native = np.dtype(dtype).newbyteorder("=")
    return np.dtype({"float16": np.float32, "bool": np.uint8}.get(native.name, native))


def _place(data: Any) -> str | None:
    """Path of a zarr array in a local folder."""
    import zarr

    if isinstance(data, zarr.Array) and isinstance(data.store, zarr.storage.LocalStore):
        return str(data.store.root.absolute() / data.path)
    return None


def _open_planes(place: str, *arguments: Any) -> Planes:
    import zarr

    return Planes(zarr.open_array(place, mode="r"), *arguments)


def _behind_dask(data: Any) -> Any:
    """The zarr or numpy array that a dask array does nothing but wrap, else the dask array itself.

    A window of zarr read through dask takes about five times as long.
    """
    if not hasattr(data, "dask"):
        return data
    import dask.array as da
    import zarr

    layers = getattr(data.dask, "layers", {})
    wrapped = [
        value
        for name, layer in layers.items()
        if name.startswith("original-")
        for value in layer.values()
        if isinstance(value, zarr.Array) and value.shape == data.shape
    ]
    if len(layers) == 2 and len(wrapped) == 1 and data.name in layers:
        return wrapped[0]
    return da.asarray(data)


def _chunk_edges(data: Any, axis: int) -> np.ndarray:
    length = data.shape[axis]
    chunks = getattr(data, "chunks", None)
    if chunks is None:
        return np.array([0, length])
    if isinstance(chunks[axis], tuple):
        return np.concatenate([[0], np.cumsum(chunks[axis])])
    return np.append(np.arange(0, length, chunks[axis]), length)
