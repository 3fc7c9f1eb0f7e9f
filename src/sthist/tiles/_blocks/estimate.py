"""What filling a canvas takes: tiles, disk, memory and time, from a few of its tiles."""

from __future__ import annotations

import errno
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sthist._settings import settings
from sthist.tiles._blocks.blend import PAPER, TileBlender
from sthist.tiles._blocks.canvas import CHUNK_PX, Block

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from shapely.geometry.base import BaseGeometry

    from sthist.tiles._blocks.canvas import Canvas, Layout
    from sthist.tiles._images.reader import TileReader

SAMPLE_CHUNKS = 24
SAMPLE_SECONDS = 3.0
LIBRARIES_BYTES = 400_000_000
"""What allocators and the pools of zarr and pyarrow keep beside what is worked on, by ``bench/memory.py``."""


@dataclass(frozen=True)
class Plan:
    """What a whole-slide run takes.

    Attributes
    ----------
    shape
        Height and width of the image, in pixels.
    mpp
        µm per pixel.
    blocks, tiles
        How many are to be computed.
    disk_bytes
        Space that the image takes on disk, with its pyramid; from the compression of a few of its tiles.
    free_bytes
        Space that is free where it goes.
    memory_bytes
        Memory that the run takes at most, beyond what this process takes already.
    seconds
        Time on a machine like this one, from a few tiles.

    Examples
    --------
    >>> import sthist
    >>> sdata = sthist.datasets.toy(size_um=200)
    >>> plan = sthist.tl.virtual_he(sdata, dry_run=True)
    >>> plan.shape, plan.tiles
    ((400, 400), 1)
    """

    shape: tuple[int, int]
    mpp: float
    blocks: int
    tiles: int
    disk_bytes: int
    free_bytes: int
    memory_bytes: int
    seconds: float

    def __str__(self) -> str:
        height, width = self.shape
        minutes, seconds = divmod(round(self.seconds), 60)
        duration = f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
        return (
            f"{width} x {height} pixels of {self.mpp:.4g} µm: {self.tiles} tiles in {self.blocks} blocks; about "
            f"{_gigabytes(self.disk_bytes)} on disk ({_gigabytes(self.free_bytes)} free), "
            f"{_gigabytes(self.memory_bytes)} of memory, {duration} on this machine."
        )


class ChunkSample:
    """Single chunks of a canvas, spread over what is pending: computed, compressed and reduced, but not kept."""

    def __init__(self, blender: TileBlender, blocks: list[Block]) -> None:
        import pyarrow as pa

        from sthist.tiles._images.kernels import halve

        codec = pa.Codec("zstd", 1)

        def try_one(chunk: Block) -> tuple[int, int]:
            pixels = blender.compute(chunk)
            if (pixels == PAPER).all():  # such a chunk is not stored
                return pixels.nbytes, 0
            compressed = codec.compress(pixels.tobytes())
            codec.decompress(compressed, pixels.nbytes)  # the pyramid is made from what was written
            codec.compress(halve(pixels[:, : pixels.shape[1] // 2 * 2, : pixels.shape[2] // 2 * 2]).tobytes())
            return pixels.nbytes, len(compressed)

        chunks = _spread(blocks, SAMPLE_CHUNKS)
        try_one(chunks[0])  # kernels are compiled and weights loaded with the first
        start, n_threads = time.perf_counter(), max(2, settings.threads)
        sizes: list[tuple[int, int]] = []
        with ThreadPoolExecutor(n_threads) as pool:
            while len(sizes) < len(chunks) and time.perf_counter() - start < SAMPLE_SECONDS:
                sizes += pool.map(try_one, chunks[len(sizes) : len(sizes) + n_threads])
        self.seconds_per_tile = (time.perf_counter() - start) / blender.n_tiles(chunks[: len(sizes)])
        self.compression = sum(compressed for _, compressed in sizes) / sum(raw for raw, _ in sizes)


def _spread(blocks: list[Block], n: int) -> list[Block]:
    """Windows of one chunk in n of the blocks, each in another corner of its block, in an order that is spread too."""
    rng = np.random.default_rng(0)
    windows = []
    for index in rng.permutation(len(blocks))[:n]:
        block = blocks[index]
        y, x = (
            low + CHUNK_PX * int(rng.integers(-(-(high - low) // CHUNK_PX)))
            for low, high in ((block.y0, block.y1), (block.x0, block.x1))
        )
        windows.append(Block(-1, -1, y, min(y + CHUNK_PX, block.y1), x, min(x + CHUNK_PX, block.x1)))
    return windows


def plan_tiles(
    readers: Sequence[TileReader],
    predict: Callable[..., np.ndarray],
    layout: Layout,
    folder: Path,
    *,
    overlap: float,
    batch_size: int,
    concurrent: bool,
    within: BaseGeometry | None = None,
    seconds_before: float = 0.0,
    n_machines: int = 1,
) -> Plan:
    """What :func:`map_tiles` would take; nothing is written."""
    blender = TileBlender(
        readers, predict, layout, overlap=overlap, batch_size=batch_size, concurrent=concurrent, within=within
    )
    blocks = layout.blocks()
    sample = ChunkSample(blender, blocks)
    n_tiles = blender.n_tiles(blocks)
    working = max(2, settings.threads) * max(map(blender.working_bytes, blocks))
    return Plan(
        shape=layout.shape,
        mpp=layout.mpp,
        blocks=len(blocks),
        tiles=n_tiles,
        disk_bytes=int(sum(layout.level_bytes) * sample.compression),
        free_bytes=_free(folder),
        memory_bytes=LIBRARIES_BYTES + working + sum(reader.memory_bytes for reader in readers),
        seconds=seconds_before + n_tiles * sample.seconds_per_tile / n_machines,
    )


def require_space(blender: TileBlender, canvas: Canvas) -> None:
    """Refuse to begin what does not fit on the disk; the blocks that are done count as there."""
    pending = canvas.pending()
    free = _free(canvas.folder)
    if not pending:
        return
    raw = sum(3 * (b.y1 - b.y0) * (b.x1 - b.x0) for b in pending) + sum(canvas.layout.level_bytes[1:])
    if free >= raw:
        return
    needed = raw * ChunkSample(blender, pending).compression
    if free < needed:
        msg = (
            f"{canvas.name} needs about {_gigabytes(needed)} more in {canvas.folder}, where {_gigabytes(free)} are "
            "free. Make room, or make it smaller with within= or mpp=. Nothing was written; blocks of an earlier call "
            "are kept."
        )
        raise OSError(errno.ENOSPC, msg)


def require_bytes(name: str, folder: Path, n_bytes: float) -> None:
    """Refuse to begin what takes more bytes than are free."""
    free = _free(folder)
    if free < n_bytes:
        raise OSError(
            errno.ENOSPC,
            f"{name} needs about {_gigabytes(n_bytes)} in {folder}, where {_gigabytes(free)} are free. Make room, or "
            "make it smaller with within=. Nothing was written.",
        )


def _free(folder: Path) -> int:
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _gigabytes(n_bytes: float) -> str:
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.0f} MB"
