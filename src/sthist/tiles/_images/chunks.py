"""Whole chunks of a local zarr array, decoded on the thread that asks for them.

zarr hands every request to its event loop and back: one chunk of 512 x 512 x 3 takes two to four times what its
decompression takes. Most stores that SpatialData writes are plain enough to be read without that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable


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
            msg = f"The chunk {path} is damaged: {error}. Restore the file, or write the image again."
            raise OSError(msg) from error
        return pixels[window].astype(array.dtype, copy=False)

    return read
