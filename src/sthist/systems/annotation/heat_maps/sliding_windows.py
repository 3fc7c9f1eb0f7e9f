"""A kernel that slides over an image: where it works, its scores, and their means over all that cover a place."""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist._settings import logger
from sthist.pp._dense_features.cells import cells_of_tokens
from sthist.tiles._images.reader import read_grid
from sthist.tiles._spec import TileSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from sthist.tiles import Image
    from sthist.tiles._images.reader import TileReader

BLOCK_PX = 2048
"""Kernels are cut out of blocks of about this side."""

BAND_ROWS = 256
"""Rows of cells that are averaged and smoothed at a time."""

KERNEL_PX, STRIDES = 64, 4
"""ST2HE's kernel, and how many strides it is long."""


@dataclass(frozen=True)
class KernelGrid:
    """Where a kernel stops: at each cell of a grid, of which it covers a square."""

    origin_um: tuple[float, float]  # x, y of the grid's corner
    mpp: float  # µm per pixel at which the image is read
    stride_px: int  # side of a cell in pixels
    span: int  # side of the kernel in cells
    shape: tuple[int, int]  # rows and columns of cells, at least ``span`` each

    @classmethod
    def over(cls, extent_um: tuple[float, float, float, float], mpp: float, stride_px: int, span: int) -> KernelGrid:
        """The grid over a box: whole cells, the last of which may go beyond it."""
        x0, y0, x1, y1 = extent_um
        side = stride_px * mpp
        # Less than a thousandth of a cell is rounding, not tissue.
        rows, columns = (max(span, int(np.ceil(size / side - 1e-3))) for size in (y1 - y0, x1 - x0))
        return cls((x0, y0), mpp, stride_px, span, (rows, columns))

    @property
    def stride_um(self) -> float:
        """Side of a cell."""
        return self.stride_px * self.mpp

    @property
    def kernel_px(self) -> int:
        """Side of the kernel."""
        return self.stride_px * self.span

    @property
    def n_kernels(self) -> tuple[int, int]:
        """Rows and columns of kernels: those that lie wholly on the grid."""
        return self.shape[0] - self.span + 1, self.shape[1] - self.span + 1

    def kernels_on(self, cells: np.ndarray) -> np.ndarray:
        """Which kernels cover any of some cells, bool of ``n_kernels``."""
        rows, columns = self.n_kernels
        across = np.logical_or.reduce([cells[:, d : d + columns] for d in range(self.span)])
        return np.logical_or.reduce([across[d : d + rows] for d in range(self.span)])

    def cells_under(self, kernels: np.ndarray) -> np.ndarray:
        """Which cells some kernels cover, bool of ``shape``."""
        covered = np.zeros(self.shape, bool)
        rows, columns = self.n_kernels
        for dy in range(self.span):
            for dx in range(self.span):
                covered[dy : dy + rows, dx : dx + columns] |= kernels
        return covered


def crop_scores(
    reader: TileReader,
    grid: KernelGrid,
    active: np.ndarray,
    embed: Callable[[Iterable[np.ndarray]], Iterator[np.ndarray]],
    score: Callable[[np.ndarray], np.ndarray],
    out: np.ndarray,
    *,
    batch_size: int,
    advance: Callable[[int], None],
) -> None:
    """Score each kernel by the embedding of its own crop."""
    waiting: deque[tuple[np.ndarray, np.ndarray]] = deque()

    def batches() -> Iterator[np.ndarray]:
        for crops, rows, columns in _blocks_of_crops(reader, grid, active):
            for start in range(0, len(rows), batch_size):
                part = slice(start, start + batch_size)
                waiting.append((rows[part], columns[part]))
                yield crops(part)

    for embeddings in embed(batches()):
        rows, columns = waiting.popleft()
        out[rows, columns] = score(embeddings)
        advance(len(rows))


def _blocks_of_crops(
    reader: TileReader, grid: KernelGrid, active: np.ndarray
) -> Iterator[tuple[Callable[[slice], np.ndarray], np.ndarray, np.ndarray]]:
    """Blocks of kernels, the next one read ahead: a function that cuts some of them out, and their rows and columns."""
    n = max(1, (BLOCK_PX - grid.kernel_px) // grid.stride_px + 1)
    corners = [
        (row, column)
        for row in range(0, active.shape[0], n)
        for column in range(0, active.shape[1], n)
        if active[row : row + n, column : column + n].any()
    ]

    def load(corner: tuple[int, int]) -> np.ndarray:
        size = np.minimum(n, np.subtract(active.shape, corner)) - 1
        height, width = (size * grid.stride_px + grid.kernel_px).tolist()
        origin = np.asarray(grid.origin_um) + np.array(corner[::-1]) * grid.stride_um
        return read_grid(reader, origin, (height, width))

    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(load, corners[0]) if corners else None
        for i, (row, column) in enumerate(corners):
            assert ahead is not None
            pixels = ahead.result()
            ahead = pool.submit(load, corners[i + 1]) if i + 1 < len(corners) else None
            ys, xs = np.nonzero(active[row : row + n, column : column + n])
            px, stride = grid.kernel_px, grid.stride_px
            windows = np.lib.stride_tricks.sliding_window_view(pixels, (px, px), axis=(0, 1))[::stride, ::stride]
            yield partial(_crops, windows, ys, xs), ys + row, xs + column


def _crops(windows: np.ndarray, ys: np.ndarray, xs: np.ndarray, part: slice) -> np.ndarray:
    return np.ascontiguousarray(windows[ys[part], xs[part]].transpose(0, 2, 3, 1))


def dense_scores(
    reader: TileReader,
    grid: KernelGrid,
    active: np.ndarray,
    dense: Callable[[np.ndarray], np.ndarray],
    score: Callable[[np.ndarray], np.ndarray],
    out: np.ndarray,
    *,
    batch_size: int,
    advance: Callable[[int], None],
) -> None:
    """Score each kernel by the mean of the tokens that lie in it: each pixel is embedded once."""
    span, n_rows = grid.span, grid.n_kernels[0]
    per_tile = round(reader.spec.size_um / grid.stride_um)
    needed = _any_by_tile(grid.cells_under(active), per_tile)
    band: np.ndarray | None = None
    first = 0  # row of the first cell of the band
    for tile_row in range(needed.shape[0]):
        cells = _cell_embeddings(reader, grid, needed[tile_row], tile_row, per_tile, dense, batch_size)
        band = cells if band is None else np.concatenate(_of_one_size(band, cells))
        ready = min(len(band) - span + 1, n_rows - first)
        if ready > 0:
            means = _box_mean(band[: ready + span - 1, : grid.shape[1]], span)
            rows, columns = np.nonzero(active[first : first + ready])
            for start in range(0, len(rows), 4096):
                part = slice(start, start + 4096)
                out[first + rows[part], columns[part]] = score(means[rows[part], columns[part]])
            advance(len(rows))
            first += ready
            band = band[ready:]


def _of_one_size(*bands: np.ndarray) -> list[np.ndarray]:
    """Bands of embeddings of which some are empty, and so do not know the size of an embedding."""
    size = max(band.shape[2] for band in bands)
    return [band if band.shape[2] == size else np.zeros((*band.shape[:2], size), np.float32) for band in bands]


def _any_by_tile(cells: np.ndarray, per_tile: int) -> Any:
    rows, columns = (-(-n // per_tile) for n in cells.shape)
    padded = np.zeros((rows * per_tile, columns * per_tile), bool)
    padded[: cells.shape[0], : cells.shape[1]] = cells
    return padded.reshape(rows, per_tile, columns, per_tile).any(axis=(1, 3))


def _cell_embeddings(
    reader: TileReader,
    grid: KernelGrid,
    needed: np.ndarray,
    tile_row: int,
    per_tile: int,
    dense: Callable[[np.ndarray], np.ndarray],
    batch_size: int,
) -> np.ndarray:
    """Tokens of a row of tiles as means over cells, (cells of a tile, columns of cells, d)."""
    columns = np.flatnonzero(needed)
    cells: np.ndarray | None = None
    for start in range(0, len(columns), batch_size):
        chosen = columns[start : start + batch_size]
        corners = np.c_[chosen, np.full(len(chosen), tile_row)]
        tokens = dense(reader.read((corners + 0.5) * reader.spec.size_um + np.asarray(grid.origin_um)))
        means = cells_of_tokens(tokens, per_tile)
        if cells is None:
            cells = np.zeros((per_tile, len(needed), per_tile, tokens.shape[3]), np.float32)
        cells[:, chosen] = means.transpose(1, 0, 2, 3)
    if cells is None:
        return np.zeros((per_tile, len(needed) * per_tile, 1), np.float32)
    return cells.reshape(per_tile, -1, cells.shape[3])


def _box_mean(values: np.ndarray, span: int) -> np.ndarray:
    """Means over squares of ``span``: (h, w, d) to (h - span + 1, w - span + 1, d)."""
    return _box_sum(values, span) / np.float32(span * span)


def mean_over_kernels(scores: np.ndarray, grid: KernelGrid, inside: np.ndarray, out: np.ndarray) -> None:
    """For each cell the mean of the scores of all kernels that cover it, NaN where it is not ``inside``."""
    margin, (n_rows, n_columns) = grid.span - 1, grid.n_kernels
    for top in range(0, grid.shape[0], BAND_ROWS):
        stop = min(top + BAND_ROWS, grid.shape[0])
        low, high = max(0, top - margin), min(n_rows, stop)
        padded = np.full((stop - top + margin, n_columns + 2 * margin, scores.shape[2]), np.nan)
        start = low - (top - margin)
        padded[start : start + high - low, margin : margin + n_columns] = scores[low:high]
        known = np.isfinite(padded[..., :1])
        total = _box_sum(np.where(known, padded, 0.0), grid.span)
        n = _box_sum(known.astype(np.float64), grid.span)
        with np.errstate(invalid="ignore"):  # 0 kernels: NaN
            out[:, top:stop] = np.where(inside[top:stop, :, None], total / n, np.nan).transpose(2, 0, 1)


def _box_sum(values: np.ndarray, span: int) -> np.ndarray:
    rows, columns = values.shape[0] - span + 1, values.shape[1] - span + 1
    across: Any = sum(values[:, d : d + columns] for d in range(span))
    total: Any = sum(across[d : d + rows] for d in range(span))
    return np.asarray(total)


def smooth(values: np.ndarray, sigma: float, out: np.ndarray) -> None:
    """Gaussian smoothing of what is known, by what is known alone: NaN stays, and counts nowhere."""
    from scipy.ndimage import gaussian_filter

    halo, n_rows = int(4 * sigma + 0.5), values.shape[1]
    for top in range(0, n_rows, BAND_ROWS):
        stop = min(top + BAND_ROWS, n_rows)
        low, high = max(0, top - halo), min(n_rows, stop + halo)
        kept = slice(top - low, stop - low)
        for channel in range(len(values)):
            band = np.asarray(values[channel, low:high], np.float64)
            known = np.isfinite(band)
            total, weight = (
                gaussian_filter(each, sigma, mode="constant", radius=halo)[kept]
                for each in (np.where(known, band, 0.0), known.astype(np.float64))
            )
            with np.errstate(invalid="ignore", divide="ignore"):
                out[channel, top:stop] = np.where(known[kept], total / weight, np.nan)


def kernel_sizes(
    image: Image, trained: TileSpec | None, spec: TileSpec | None, stride: float | None
) -> tuple[float, int, int]:
    """µm per pixel, pixels of a stride, strides of a kernel: that of ``spec=``, or the tile that was trained on."""
    tile = spec or trained or TileSpec.from_mpp(image.coarsest_mpp, KERNEL_PX)
    kernel, stride = tile.size_um, tile.size_um / STRIDES if stride is None else stride
    if not (np.isfinite(stride) and stride > 0):
        raise ValueError(f"stride_um is {stride!r}; it is a positive number of µm.")
    if trained is not None and abs(kernel / trained.size_um - 1) > 0.02:
        logger.warning("The model was trained on tiles of %g µm, and is given %g µm.", trained.size_um, kernel)
    span = max(1, round(kernel / stride))
    if abs(kernel / stride - span) > 1e-3:
        raise ValueError(
            f"A kernel of {kernel:g} µm is {kernel / stride:.4g} strides of {stride:g} µm; it is a whole number of "
            f"them: take a stride of {kernel / span:.6g} µm."
        )
    stride_px = max(1, round(stride / tile.mpp))
    return stride / stride_px, stride_px, span
