"""Chunks decoded past zarr are what zarr decodes."""

from __future__ import annotations

import numpy as np
import pytest
import zarr
from zarr.codecs import BloscCodec, BytesCodec, GzipCodec, ZstdCodec

from sthist.tiles._images.planes import Planes, chunk_reader


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("endian", ["little", "big"])
@pytest.mark.parametrize("checksum", [True, False])
def test_equals_zarr(tmp_path, dtype, endian, checksum):
    """Borders, missing chunks and byte order included."""
    array = zarr.create_array(
        tmp_path / "a",
        shape=(2, 50, 70),
        chunks=(2, 16, 32),
        dtype=dtype,
        fill_value=9,
        serializer=BytesCodec(endian=endian),
        compressors=ZstdCodec(level=3, checksum=checksum),
    )
    array[:, :40] = np.random.default_rng(0).integers(0, 200, (2, 40, 70)).astype(dtype)
    read = chunk_reader(array)
    assert read is not None
    for row in range(4):
        for column in range(3):
            expected = array[:, row * 16 : row * 16 + 16, column * 32 : column * 32 + 32]
            np.testing.assert_array_equal(read(row, column), expected)
            assert read(row, column).dtype == array.dtype


@pytest.mark.parametrize(
    "kwargs",
    [
        {"compressors": GzipCodec()},
        {"compressors": BloscCodec()},
        {"compressors": None},
        {"chunks": (1, 16, 32)},
        {"shards": (2, 32, 64)},
        {"zarr_format": 2},
        {"filters": [zarr.codecs.TransposeCodec(order=(1, 0, 2))], "compressors": ZstdCodec()},
    ],
)
def test_anything_else_is_left_to_zarr(tmp_path, kwargs):
    """Other codecs, shards, channels in chunks of their own, zarr v2."""
    array = zarr.create_array(
        tmp_path / "a", **({"shape": (2, 50, 70), "chunks": (2, 16, 32), "dtype": "uint8"} | kwargs)
    )
    assert chunk_reader(array) is None


@pytest.mark.parametrize("keep", [0, 10])
def test_truncated_chunk(tmp_path, keep):
    """Says which file."""
    array = zarr.create_array(
        tmp_path / "a", shape=(1, 64, 64), chunks=(1, 64, 64), dtype="uint8", compressors=ZstdCodec()
    )
    array[:] = np.random.default_rng(0).integers(0, 255, (1, 64, 64))
    chunk = tmp_path / "a" / "c" / "0" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:keep])
    with pytest.raises(OSError, match=r"chunk .*c/0/0/0 is damaged"):
        chunk_reader(array)(0, 0)


def test_truncated_chunk_through_zarr(tmp_path):
    """Says where in which array, too, when zarr decodes."""
    array = zarr.create_array(
        tmp_path / "a", shape=(2, 64, 64), chunks=(1, 32, 32), dtype="uint8", compressors=ZstdCodec()
    )
    array[:] = np.random.default_rng(0).integers(0, 255, (2, 64, 64))
    chunk = tmp_path / "a" / "c" / "1" / "1" / "0"
    chunk.write_bytes(chunk.read_bytes()[:100])
    planes = Planes(array, ("c", "y", "x"), [0, 1])
    assert len(planes.load(0, 0, 1)) == 1
    with pytest.raises(OSError, match=r"cannot be decoded at rows 32 to 64, columns 0 to 32 of .*/a: .*Restore it"):
        planes.load(1, 0, 1)
