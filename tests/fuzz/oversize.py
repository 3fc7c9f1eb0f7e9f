"""Files of a few megabytes that unpack to gigabytes, made once for a machine, by the end of a name."""

from __future__ import annotations

import functools
import gzip
import os
import struct
import tempfile
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

SIDE = 60_000  # pixels of a picture: 3.6 GB in grey, 10.8 GB in colour
BYTES = 5 * 2**30
BLOCK = bytes(2**24)


def _folder() -> Path:
    folder = Path(tempfile.gettempdir()) / f"sthist-oversize-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    return folder


def made_once(make: Callable[[Path], None]) -> Callable[[], Path]:
    """The file of a function that writes one, which is not written again where it is."""

    @functools.cache
    def path() -> Path:
        there = _folder() / f"large.{make.__name__}"
        if not there.exists():
            partial = there.with_name(f"{there.name}.{os.getpid()}")
            make(partial)
            partial.replace(there)
        return there

    return path


def _deflated(n_bytes: int) -> bytes:
    packer = zlib.compressobj(1)
    parts = [packer.compress(BLOCK) for _ in range(n_bytes // len(BLOCK))]
    return b"".join([*parts, packer.compress(BLOCK[: n_bytes % len(BLOCK)]), packer.flush()])


@made_once
def png(path: Path) -> None:
    """A grey picture of 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", SIDE, SIDE, 8, 0, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", _deflated(SIDE * (SIDE + 1))), chunk(b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


@made_once
def tiff(path: Path) -> None:
    """One strip of 60,000 x 60,000 grey pixels."""
    pixels = _deflated(SIDE * SIDE)
    tags = [(256, 4, SIDE), (257, 4, SIDE), (258, 3, 8), (259, 3, 8), (262, 3, 1), (273, 4, 8), (277, 3, 1)]
    tags += [(278, 4, SIDE), (279, 4, len(pixels))]
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag[:2], 1, tag[2]) for tag in tags)
    path.write_bytes(b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels + directory + bytes(4))


@made_once
def gz(path: Path) -> None:
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(BYTES // len(BLOCK)):
            file.write(b" " * len(BLOCK))


@made_once
def zipped(path: Path) -> None:
    options = {"compression": zipfile.ZIP_DEFLATED, "compresslevel": 1}
    with zipfile.ZipFile(path, "w", **options) as archive, archive.open("a.geojson", "w", force_zip64=True) as file:
        for _ in range(BYTES // len(BLOCK)):
            file.write(b" " * len(BLOCK))


@made_once
def parquet(path: Path) -> None:
    """100 million rows of one value in every column that a reader may ask for."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    numbers = ("x_um", "y_um", "x_location", "y_location", "vertex_x", "vertex_y")
    texts = ("gene", "feature_name", "cell_id", "barcode")
    n = 1_000_000
    columns = {name: pa.array(np.ones(n)) for name in numbers}
    columns |= {
        name: pa.DictionaryArray.from_arrays(np.zeros(n, np.int32), pa.array(["A"])).cast(pa.string()) for name in texts
    }
    table = pa.table(columns)
    with pq.ParquetWriter(path, table.schema, compression="zstd") as writer:
        for _ in range(100):
            writer.write_table(table)


OVERSIZE = {".png": png, ".geojson.zip": zipped, ".gz": gz, ".tif": tiff, ".parquet": parquet}
