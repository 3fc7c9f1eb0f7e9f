"""An image of any size in the making: written block by block, resumable, never in memory."""

from __future__ import annotations

import itertools
import json
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist._settings import settings
from sthist._store import commit
from sthist.tiles._blocks.resumable import Resumable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

CHUNK_PX = 512
BLOCK_PX = 4 * CHUNK_PX
COARSEST_PX = 1024  # the pyramid ends at the first level that is not larger than this
RGB = ("r", "g", "b")


@dataclass(frozen=True)
class Block:
    """A window of whole chunks of a canvas: the unit of work, of resuming and of distribution."""

    row: int
    column: int
    y0: int
    y1: int
    x0: int
    x1: int

    @property
    def name(self) -> str:
        """Of its mark among the blocks that are done."""
        return f"{self.row}-{self.column}"


@dataclass(frozen=True)
class Layout:
    """Size of a canvas, where it lies, what its pixels are, and how it is divided."""

    origin_um: tuple[float, float]  # x, y of its corner
    mpp: float
    shape: tuple[int, int]  # in pixels: multiples of 2 to the number of pyramid levels
    n_levels: int  # of the pyramid, beyond the finest
    block_px: int
    chunk: tuple[int, int] = (len(RGB), CHUNK_PX)  # channels of a chunk, and its side
    channels: tuple[str, ...] = RGB
    dtype: str = "uint8"

    @classmethod
    def over(
        cls,
        extent_um: tuple[float, float, float, float],
        mpp: float,
        block_px: int | None = None,
        *,
        channels: Sequence[str] = RGB,
        dtype: str = "uint8",
        chunk: tuple[int, int] | None = None,
        pyramid: bool = True,
    ) -> Layout:
        """The layout of a canvas over a box (x0, y0, x1, y1) in µm."""
        block_px = block_px or (BLOCK_PX if chunk is None else 4 * chunk[1])
        chunk = (len(channels), CHUNK_PX) if chunk is None else chunk
        if block_px % chunk[1]:
            raise ValueError(
                f"Canvas: block_px is {block_px}; a block holds whole chunks, so it must be a multiple of {chunk[1]}."
            )
        x0, y0, x1, y1 = extent_um
        # Less than a thousandth of a pixel is rounding, not tissue.
        height, width = (max(1, math.ceil((high - low) / mpp - 1e-3)) for low, high in ((y0, y1), (x0, x1)))
        n_levels = max(0, math.ceil(math.log2(max(height, width) / COARSEST_PX))) if pyramid else 0
        step = 2**n_levels
        shape = (-(-height // step) * step, -(-width // step) * step)
        return cls((x0, y0), mpp, shape, n_levels, block_px, chunk, tuple(channels), dtype)

    @property
    def level_bytes(self) -> list[int]:
        """Of the finest level, and of each of the pyramid, uncompressed."""
        each = len(self.channels) * np.dtype(self.dtype).itemsize
        return [each * (self.shape[0] >> level) * (self.shape[1] >> level) for level in range(self.n_levels + 1)]

    @property
    def nothing(self) -> float:
        """The value of a pixel that shows nothing: white, or NaN."""
        return 255 if self.dtype == "uint8" else math.nan

    def blocks(self) -> list[Block]:
        """All blocks, row by row."""
        size = self.block_px
        return [
            Block(i, j, i * size, min((i + 1) * size, self.shape[0]), j * size, min((j + 1) * size, self.shape[1]))
            for i in range(-(-self.shape[0] // size))
            for j in range(-(-self.shape[1] // size))
        ]


class Canvas(Resumable):
    """An image of a slide, upright in ``um``, that is filled block by block and then published.

    It is RGB, or has any channels of floating-point numbers, which are NaN where nothing is known.

    Parameters
    ----------
    folder
        Where it is built. A canvas of the same fingerprint found there is continued; any other is deleted.
    name
        Name of the image element.
    extent_um
        x0, y0, x1, y1 of the plane, in µm. The size in pixels is rounded up to whole pixels, and then to a multiple of
        2 to the number of pyramid levels.
    mpp
        µm per pixel.
    fingerprint
        JSON values that determine the result; kept in ``manifest.json``.
    transformations
        (3, 3) matrices from µm (x, y, 1) to further coordinate systems in which the image is to be registered.
    block_px
        Side of a block, a whole number of chunks; four of them by default.
    channels
        Their names, if it is not RGB.
    dtype
        ``"uint8"``, ``"float16"`` or ``"float32"``.
    chunk
        Channels of a chunk, and its side in pixels: all of them and 512 by default.
    pyramid
        Whether there are coarser levels.

    Examples
    --------
    >>> import tempfile, pathlib, numpy as np, sthist
    >>> folder = pathlib.Path(tempfile.mkdtemp()) / "canvas"
    >>> canvas = sthist.tiles.Canvas(folder, "image", extent_um=(0, 0, 100, 50), mpp=0.5, fingerprint={})
    >>> for block in canvas.pending():
    ...     canvas.write(block, np.full((3, block.y1 - block.y0, block.x1 - block.x0), 7, np.uint8))
    >>> canvas.finish()
    >>> canvas.shape, canvas.pending()
    ((100, 200), [])
    """

    _of_process = "_levels"
    _levels: list[Any]

    def __init__(
        self,
        folder: Path,
        name: str,
        *,
        extent_um: tuple[float, float, float, float],
        mpp: float,
        fingerprint: Mapping[str, Any],
        transformations: Mapping[str, np.ndarray] | None = None,
        block_px: int | None = None,
        channels: Sequence[str] = RGB,
        dtype: str = "uint8",
        chunk: tuple[int, int] | None = None,
        pyramid: bool = True,
    ) -> None:
        layout = Layout.over(extent_um, mpp, block_px, channels=channels, dtype=dtype, chunk=chunk, pyramid=pyramid)
        self.layout, self._transformations = layout, transformations or {}
        facts = {"extent_um": extent_um, "mpp": mpp, "block_px": layout.block_px, "fingerprint": dict(fingerprint)}
        if layout.channels != RGB:
            facts |= {"channels": layout.channels, "dtype": dtype, "chunk": layout.chunk, "pyramid": pyramid}
        super().__init__(folder, name, facts)

    @property
    def store(self) -> Path:
        """The SpatialData store that holds the image."""
        return self.folder / "built.zarr"

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.layout.shape

    def blocks(self) -> list[Block]:
        """All blocks, row by row."""
        return self.layout.blocks()

    def amount(self, block: Block) -> float:
        """Megapixels of a block."""
        return (block.y1 - block.y0) * (block.x1 - block.x0) / 1e6

    def _store(self, block: Block, values: np.ndarray) -> None:
        self._levels[0][:, block.y0 : block.y1, block.x0 : block.x1] = values

    def _open(self) -> list[Any]:
        import zarr

        element = self.store / "images" / self.name
        return [zarr.open_array(element / path, mode="r+") for path in _level_paths(element)]

    def finish(self) -> None:
        """Write the pyramid: each level the 2 x 2 means of the one below, rounded half up, or of what is known."""
        from sthist.tiles._images.kernels import halve

        halved = halve if self.layout.dtype == "uint8" else _halve_known
        size, deep = self.layout.block_px, self.layout.chunk[0]
        for fine, coarse in zip(self._levels, self._levels[1:], strict=False):
            steps = zip(coarse.shape, (deep, size, size), strict=True)
            corners = itertools.product(*(range(0, n, step) for n, step in steps))

            def reduce(corner: tuple[int, int, int], fine: Any = fine, coarse: Any = coarse) -> None:
                c, y, x = corner
                pixels = fine[c : c + deep, 2 * y : 2 * (y + size), 2 * x : 2 * (x + size)]
                coarse[c : c + deep, y : y + size, x : x + size] = halved(np.ascontiguousarray(pixels))

            with ThreadPoolExecutor(settings.threads) as pool:
                list(pool.map(reduce, corners))

    def _is_of(self, identity: str) -> bool:
        """Whether the image here is that of the marks.

        A kill while publishing can leave none, or the one that was replaced.
        """
        try:
            element = json.loads((self.store / "images" / self.name / "zarr.json").read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return False
        return bool(element["attributes"].get("sthist_canvas") == identity)

    def _create(self, identity: str) -> None:
        """Let SpatialData write the metadata of a tiny image of as many levels, then give its arrays their size."""
        import spatialdata as sd
        import zarr
        from spatialdata.models import Image2DModel
        from spatialdata.transformations import Affine
        from zarr.codecs import ZstdCodec

        layout = self.layout
        mpp, (x0, y0), n_levels, channels = layout.mpp, layout.origin_um, layout.n_levels, layout.channels
        to_um = np.array([[mpp, 0, x0], [0, mpp, y0], [0, 0, 1]])
        matrices = {"um": to_um} | {name: matrix @ to_um for name, matrix in self._transformations.items()}
        side = 2**n_levels
        image = Image2DModel.parse(
            np.zeros((len(channels), side, side), layout.dtype),
            dims=("c", "y", "x"),
            c_coords=list(channels),
            scale_factors=[2] * n_levels or None,
            transformations={name: Affine(m, ("x", "y"), ("x", "y")) for name, m in matrices.items()},
        )
        self.folder.mkdir(parents=True)
        sd.SpatialData(images={self.name: image}).write(self.store)
        element = self.store / "images" / self.name
        for level, path in enumerate(_level_paths(element)):
            zarr.create_array(
                element / path,
                shape=(len(channels), self.shape[0] >> level, self.shape[1] >> level),
                chunks=(layout.chunk[0], layout.chunk[1], layout.chunk[1]),
                dtype=layout.dtype,
                fill_value=layout.nothing,
                compressors=ZstdCodec(level=1),
                dimension_names=("c", "y", "x"),
                overwrite=True,
            )
        zarr.open_group(element, mode="r+", use_consolidated=False).attrs["sthist_canvas"] = identity
        commit.consolidate(self.store)


def _halve_known(image: np.ndarray) -> np.ndarray:
    """2 x 2 means of a (c, h, w) image of even size over what is not NaN."""
    c, h, w = image.shape
    parts = image.reshape(c, h // 2, 2, w // 2, 2).astype(np.float32)
    known = ~np.isnan(parts)
    total, n = np.where(known, parts, 0).sum(axis=(2, 4)), known.sum(axis=(2, 4))
    return np.where(n > 0, total / np.maximum(n, 1), np.nan).astype(image.dtype)


def _level_paths(element: Path) -> list[str]:
    attributes = json.loads((element / "zarr.json").read_text())["attributes"]
    return [dataset["path"] for dataset in attributes["ome"]["multiscales"][0]["datasets"]]
