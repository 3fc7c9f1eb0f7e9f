"""Molecules and cells on a coarse grid: counts, and their density smoothed as far as the counts ask for."""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist import _sample, scale
from sthist._sample.elements import is_gene
from sthist.tiles._regions.raster import rasterize

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sthist._sample.elements import HighResElements
    from sthist.tiles._images.image import Image

MAX_CELLS = 16_000_000
"""Cells of a grid at most: 64 MB in float32."""

SIGMA = 1.5
"""Of the Gaussian of each pyramid level, in cells of that level."""

KERNEL_CELLS = 4 * np.pi * SIGMA**2
"""Cells over which it averages: a mean over so many of them has as much noise."""

REACH = 6
"""Cells to which it reaches: scipy cuts it at four times its width."""

BAND_ROWS = 256
"""Rows of a grid that are worked on together; even."""


@dataclass(frozen=True)
class Grid:
    """Square cells over a box in µm."""

    origin_um: tuple[float, float]  # x, y of the corner
    bin_um: float  # side of a cell
    shape: tuple[int, int]  # rows and columns

    @classmethod
    def over(cls, extent_um: tuple[float, float, float, float], bin_um: float) -> Grid:
        """The grid over a box; its cells grow where there would be too many."""
        x0, y0, x1, y1 = extent_um
        bin_um = max(bin_um, float(np.sqrt((x1 - x0) * (y1 - y0) / MAX_CELLS)))
        rows, columns = (max(1, int(np.ceil(side / bin_um - 1e-3))) for side in (y1 - y0, x1 - x0))
        return cls((x0, y0), bin_um, (rows, columns))

    @property
    def to_um(self) -> np.ndarray:
        """(3, 3) matrix from cells (x, y, 1) to µm."""
        return np.array([[self.bin_um, 0, self.origin_um[0]], [0, self.bin_um, self.origin_um[1]], [0, 0, 1]])


def iter_points(
    elements: HighResElements, columns: tuple[str, ...] = ()
) -> Iterator[tuple[np.ndarray, np.ndarray, Any]]:
    """The transcripts, a partition at a time: x and y in µm, and a frame of further columns."""
    points = _sample.get(elements.sdata, "points", str(elements.points))
    matrix = scale.matrix_to_um(elements.sdata, "points", str(elements.points))
    for part in _read_ahead(points[["x", "y", *columns]]):
        x, y = part["x"].to_numpy(np.float64), part["y"].to_numpy(np.float64)
        yield (
            matrix[0, 0] * x + matrix[0, 1] * y + matrix[0, 2],
            matrix[1, 0] * x + matrix[1, 1] * y + matrix[1, 2],
            part,
        )


def _read_ahead(frame: Any) -> Iterator[Any]:
    """The partitions of a dask frame, the next one read while one is worked on."""
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(frame.get_partition(0).compute)
        for index in range(1, frame.npartitions + 1):
            part = following.result()
            if index < frame.npartitions:
                following = pool.submit(frame.get_partition(index).compute)
            yield part


def count_transcripts(
    elements: HighResElements, stain: Image, grid: Grid, min_qv: float = 20.0
) -> tuple[np.ndarray, int]:
    """Transcripts per cell of a grid over the stain, without controls and low quality, and how many there are."""
    from sthist.tiles._images.kernels import count_points

    points = elements.sdata.points[str(elements.points)]
    gene = str(elements.gene)
    columns = (gene, "qv") if "qv" in points.columns else (gene,)
    counts = np.zeros(grid.shape, np.uint32)
    n_kept = n_inside = n_all = 0
    low, high = np.full(2, np.inf), np.full(2, -np.inf)
    for x, y, part in iter_points(elements, columns):
        categories = part[gene].astype("category").cat
        keep = np.append(is_gene(categories.categories), False)[categories.codes.to_numpy()]
        if "qv" in columns:
            keep &= part["qv"].to_numpy() >= min_qv
        n_all, n_kept = n_all + len(x), n_kept + int(keep.sum())
        if len(x):
            low, high = np.minimum(low, [x.min(), y.min()]), np.maximum(high, [x.max(), y.max()])
        n_inside += count_points(x, y, keep, *grid.origin_um, grid.bin_um, counts)
    if n_kept == 0:
        raise ValueError(
            f"None of the {n_all} transcripts in points {elements.points!r} is of a gene"
            + (f" with qv >= {min_qv:g}" if "qv" in columns else "")
            + ". Is the gene column right?"
        )
    origin = np.array(grid.origin_um)
    end = origin + np.array(grid.shape[::-1]) * grid.bin_um
    require_same_plane(stain, str(elements.points), origin, end, low, high, n_inside / n_kept)
    return counts, n_inside


def require_same_plane(
    stain: Image, points: str, origin: np.ndarray, end: np.ndarray, low: np.ndarray, high: np.ndarray, inside: float
) -> None:
    """Refuse transcripts of which most lie outside of the nuclear stain; say where both are, and what it looks like."""
    extent = end - origin
    mpp = np.sqrt(np.prod(stain.mpp))
    spans = (high - origin) / extent
    told_apart = not 0.8 < mpp < 1.25
    if inside >= 0.5:
        if (
            told_apart
            and mpp < 1
            and np.allclose(spans / mpp, 1, atol=0.1)
            and (low - origin < 0.1 * mpp * extent).all()
        ):
            warnings.warn(
                f"The transcripts {points!r} fill just the first {mpp:.0%} of the nuclear stain along x and y: are "
                f"they µm that were taken for pixels of {mpp:.4g} µm?",
                stacklevel=2,
            )
        return
    in_pixels = told_apart and np.allclose(spans * mpp, 1, atol=0.15)
    hint = f" They look like pixels of {mpp:.4g} µm declared as µm." if in_pixels else ""
    raise ValueError(
        f"{1 - inside:.0%} of the transcripts {points!r} lie outside the nuclear stain {stain.key!r}: they span x "
        f"{low[0]:.0f} to {high[0]:.0f}, y {low[1]:.0f} to {high[1]:.0f} µm, the image x {origin[0]:.0f} to "
        f"{origin[0] + extent[0]:.0f}, y {origin[1]:.0f} to {origin[1] + extent[1]:.0f} µm.{hint} Correct the "
        "transformation of the points to 'um'."
    )


def paint_cells(elements: HighResElements, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Counts per grid cell from the table of cells, spread over their outlines, and how many cells stand behind each.

    Cells that are mere points put their counts where they lie.
    """
    from sthist.tiles._images.kernels import count_points

    shapes, counts = _sample.cell_counts(elements.sdata, str(elements.table))
    geometry = shapes.geometry
    if (geometry.geom_type == "Point").all():
        if "radius" not in shapes:
            x, y = geometry.x.to_numpy(), geometry.y.to_numpy()
            cells = np.zeros(grid.shape, np.uint32)
            count_points(x, y, np.ones(len(x), np.bool_), *grid.origin_um, grid.bin_um, cells)
            columns = ((x - grid.origin_um[0]) // grid.bin_um).astype(int)
            rows = ((y - grid.origin_um[1]) // grid.bin_um).astype(int)
            inside = (rows >= 0) & (rows < grid.shape[0]) & (columns >= 0) & (columns < grid.shape[1])
            weights = np.zeros(grid.shape, np.float32)
            np.add.at(weights, (rows[inside], columns[inside]), counts[inside])
            return weights, cells.astype(np.float32)
        geometry = geometry.buffer(shapes["radius"])
    areas = np.maximum(geometry.area.to_numpy() / grid.bin_um**2, 1.0)
    density = rasterize(geometry, grid.origin_um, grid.bin_um, grid.shape, counts / areas)
    return density.copy(), np.full(grid.shape, np.inf, np.float32)


def adaptive_density(
    counts: np.ndarray,
    mask: np.ndarray,
    *,
    n_points: np.ndarray | None = None,
    min_points: float = 20.0,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Density per grid cell, with a Gaussian that is as wide as the counts ask for.

    Over a pyramid of widths (doubling from 1.5 cells), each place takes the narrowest under which at least
    ``min_points`` points lie, or would lie by the next wider one, with a smooth passage between widths. Cells outside
    the mask neither give nor take. Beside the result, no more than a quarter of the grid is held in memory as numbers
    of this kind.

    Returns Float32, mean count per cell around each cell; 0 outside the mask.
    """
    out = np.empty(counts.shape, np.float32) if out is None else out
    pyramid: list[tuple[np.ndarray, np.ndarray | None, np.ndarray]] = [(counts, n_points, mask)]
    while min(pyramid[-1][0].shape) > 8 and len(pyramid) < 7:
        values, points, weight = pyramid[-1]
        where = weight if weight.dtype == np.bool_ else None
        pyramid.append((_pool(values, where), None if points is None else _pool(points, where), _pool(weight)))
    cruder: np.ndarray | None = None
    for level in reversed(pyramid):
        density = out if level[0] is counts else np.empty(level[0].shape, np.float32)
        for first in range(0, len(density), BAND_ROWS):
            _smooth_band(level, cruder, min_points, first, density[first : first + BAND_ROWS])
        cruder = density
    out[~mask] = 0
    return out


def _smooth_band(
    level: tuple[np.ndarray, np.ndarray | None, np.ndarray],
    cruder: np.ndarray | None,
    min_points: float,
    first: int,
    out: np.ndarray,
) -> None:
    """Rows of a pyramid level from ``first`` on, with the next wider level where it sees too few points itself.

    Read with as many rows around them as the Gaussian reaches, they are what the whole level would give.
    """
    from scipy.ndimage import gaussian_filter

    low, high = max(0, first - REACH), min(len(level[0]), first + len(out) + REACH)
    inner = slice(first - low, first - low + len(out))
    weight = level[2][low:high].astype(np.float32)
    inside = level[2][low:high] if level[2].dtype == np.bool_ else True

    def smooth(values: np.ndarray) -> np.ndarray:
        return gaussian_filter(values, SIGMA, mode="nearest")[inner]

    total = smooth(np.where(inside, level[0][low:high], 0).astype(np.float32))
    area = smooth(weight)
    here = total / np.maximum(area, 1e-6)
    points = level[1]
    if cruder is None or (points is not None and np.isinf(points).any()):
        out[:] = here
        return
    wider = _double(cruder, first, out.shape)
    seen = total if points is None else smooth(np.where(inside, points[low:high], 0).astype(np.float32))
    # Where the wider Gaussian promises many points and there are none, that is as sure as seeing many.
    expected = wider * area if points is None else seen
    trust = np.clip(np.maximum(seen, expected) * KERNEL_CELLS / (min_points / 2) - 1, 0, 1)
    out[:] = trust * here + (1 - trust) * wider


def _double(cruder: np.ndarray, first: int, shape: tuple[int, ...]) -> np.ndarray:
    """Rows ``first`` on, ``shape`` of them, of a level at twice its resolution.

    Linear between the centres of its cells.
    """
    from skimage.transform import resize

    low, high = max(0, first // 2 - 1), min(len(cruder), (first + shape[0] + 1) // 2 + 1)
    band = cruder[low:high]
    doubled = resize(band, [2 * n for n in band.shape], order=1, mode="edge")
    return doubled[first - 2 * low :][: shape[0], : shape[1]]


def _pool(level: np.ndarray, where: np.ndarray | None = None) -> np.ndarray:
    """Sums over 2 x 2 cells, float32, an odd border padded with zeros; of some cells alone, if so said."""
    rows, columns = level.shape
    pooled = np.empty((-(-rows // 2), -(-columns // 2)), np.float32)
    for first in range(0, rows, BAND_ROWS):
        band = level[first : first + BAND_ROWS]
        band = np.where(True if where is None else where[first : first + BAND_ROWS], band, 0).astype(np.float32)
        padded = np.pad(band, [(0, n % 2) for n in band.shape])
        sums = padded.reshape(padded.shape[0] // 2, 2, padded.shape[1] // 2, 2).sum((1, 3))
        pooled[first // 2 : first // 2 + len(sums)] = sums
    return pooled
