"""Superpixels: a map of features, smoothed, and those of its cells that lie in each spot or region."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from sthist import _sample, scale
from sthist._scratch import array_on_disk
from sthist._tables.rows import Rows, centroids_um, polygons_um, rows_of
from sthist.regression.data.inputs import Inputs
from sthist.tiles._images.image import pyramid

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from spatialdata import SpatialData

    from sthist.regression.data.inputs import Batch

BLOCK = 128
"""Side, in cells, of what is read and smoothed at once."""

REGIONS_AT_ONCE = 50_000

COARSE = "region_"
"""Before the names of the features of a pyramid's coarse level, which have the largest square; others the smallest."""

SQUARE = 1e-6
"""How much the sides of a cell may differ, of the sides."""


@dataclass(frozen=True, eq=False)
class FeatureMap:
    """A map of features, (d, h, w), NaN where nothing is known, and where its cells lie."""

    key: str
    values: Any = field(repr=False)  # lazy
    origin_um: np.ndarray  # (2,) x, y of its corner
    stride_um: float  # side of a cell
    names: tuple[str, ...] = ()  # of the features

    @classmethod
    def of(cls, sdata: SpatialData, key: str) -> Self:
        """The image of a sample, whose cells are upright squares in µm."""
        matrix = scale.matrix_to_um(sdata, "images", key)
        stride = float(matrix[0, 0])
        if not np.allclose(matrix[:2, :2], stride * np.eye(2), atol=SQUARE * abs(stride)) or stride <= 0:
            raise ValueError(
                f"images[{key!r}] is turned or stretched in 'um'; a map of features is one of pp.dense_features."
            )
        element = _sample.get(sdata, "images", key)
        return cls(key, pyramid(element)[0].data, matrix[:2, 2], stride, tuple(_sample.channel_names(element)))

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of cells."""
        return int(self.values.shape[1]), int(self.values.shape[2])

    def n_features(self, boxes: Sequence[int]) -> int:
        """Features of a cell after smoothing."""
        n = int(self.values.shape[0])
        return n if any(name.startswith(COARSE) for name in self.names) else len(boxes) * n

    def smoothed(
        self, rows: tuple[int, int], columns: tuple[int, int], boxes: Sequence[int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Means over boxes of so many cells around some, one after the other, and which of these are known themselves.

        (n_features, h, w) float32, NaN where nothing in a box is known; a box looks at what is known alone.
        """
        margin = max(boxes) // 2 + 1
        found = self._read((rows[0] - margin, rows[1] + margin), (columns[0] - margin, columns[1] + margin))
        known = np.isfinite(found[0])
        filled = np.where(known, found, 0).astype(np.float32)
        inner = slice(margin, -margin)
        parts = [(side, filled) for side in boxes]
        coarse = np.array([name.startswith(COARSE) for name in self.names], bool)
        if coarse.any():
            parts = [(max(boxes), filled[coarse]), (min(boxes), filled[~coarse])]
        means = []
        for side, part in parts:
            share = _box_mean(known.astype(np.float32), side)[inner, inner]
            with np.errstate(invalid="ignore", divide="ignore"):  # of nothing: NaN
                means.append(_box_mean(part, side)[:, inner, inner] / share)
        return np.concatenate(means), known[inner, inner]

    def _read(self, rows: tuple[int, int], columns: tuple[int, int]) -> np.ndarray:
        """Cells (d, h, w), NaN beyond the map."""
        (y0, y1), (x0, x1) = rows, columns
        height, width = self.shape
        out = np.full((self.values.shape[0], y1 - y0, x1 - x0), np.nan, np.float32)
        top, bottom, left, right = max(0, y0), min(height, y1), max(0, x0), min(width, x1)
        if top < bottom and left < right:
            part = self.values[:, top:bottom, left:right]
            part = part.compute(scheduler="synchronous") if hasattr(part, "compute") else part
            out[:, top - y0 : bottom - y0, left - x0 : right - x0] = part
        return out


def _box_mean(values: np.ndarray, side: int) -> np.ndarray:
    """Means over squares of so many cells around each; of an even number, half of the outermost ones on all sides."""
    from scipy.ndimage import uniform_filter1d

    for axis in (-2, -1):
        once = uniform_filter1d(values, side, axis, mode="constant")
        values = once if side % 2 else (once + uniform_filter1d(values, side, axis, mode="constant", origin=-1)) / 2
    return values


def disc(radius: float) -> np.ndarray:
    """Offsets (k, 2) of the cells of a disc, whose radius is in cells: those no farther away than it is long."""
    reach = int(radius)
    offsets = np.stack(np.meshgrid(*[np.arange(-reach, reach + 1)] * 2, indexing="ij"), -1).reshape(-1, 2)
    return offsets[(offsets**2).sum(axis=1) <= radius**2 + 1e-9]


def cells_of_regions(sdata: SpatialData, regions: Rows, cells: FeatureMap) -> tuple[np.ndarray, np.ndarray]:
    """The cells (m, 2), row and column, that lie in regions, and the region (m,) of each, sorted.

    Of a spot, those of its disc around the cell that its centre lies in; of other shapes, those whose centre lies in
    it, or the one that its centroid lies in, if it holds no centre.
    """
    frame = sdata.shapes[regions.shapes]
    centres = centroids_um(sdata, regions)
    n, stride = len(regions), cells.stride_um
    lost = ~np.isfinite(centres).all(axis=1)
    middle = np.floor((np.where(lost[:, None], 0, centres) - cells.origin_um) / stride).astype(np.int64)[:, ::-1]
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    if "radius" in frame:
        matrix = scale.matrix_to_um(sdata, "shapes", regions.shapes)
        places = frame.index.get_indexer(regions.instances)
        radii = frame["radius"].to_numpy(np.float64)[places] * np.sqrt(abs(np.linalg.det(matrix[:2, :2])))
        radii = np.round(radii / stride, 6)
        for radius in np.unique(radii[~lost]):
            mine = np.flatnonzero((radii == radius) & ~lost)
            found = middle[mine][:, None] + disc(radius)
            parts.append((np.repeat(mine, found.shape[1]), found.reshape(-1, 2)))
    else:
        polygons = polygons_um(sdata, regions)
        for start in range(0, n, REGIONS_AT_ONCE):
            mine = np.arange(start, min(n, start + REGIONS_AT_ONCE))
            mine = mine[~lost[mine]]
            row, found = _cells_in_polygons(polygons[mine], cells)
            none = np.setdiff1d(np.arange(len(mine)), row)
            parts.append((mine[np.concatenate([row, none])], np.concatenate([found, middle[mine[none]]])))
    region = np.concatenate([each for each, _ in parts]) if parts else np.empty(0, int)
    found = np.concatenate([each for _, each in parts]) if parts else np.empty((0, 2), int)
    there = ((found >= 0) & (found < cells.shape)).all(axis=1)
    order = np.argsort(region[there], kind="stable")
    return found[there][order], region[there][order]


def _cells_in_polygons(polygons: np.ndarray, cells: FeatureMap) -> tuple[np.ndarray, np.ndarray]:
    """Polygon and cell of all centres of cells that lie in polygons."""
    import shapely

    shapely.prepare(polygons)
    bounds = (shapely.bounds(polygons) - np.tile(cells.origin_um, 2)) / cells.stride_um - 0.5
    low, high = np.ceil(bounds[:, :2]).astype(np.int64), np.floor(bounds[:, 2:]).astype(np.int64)
    width, height = np.maximum(high - low + 1, 0).T
    row = np.repeat(np.arange(len(polygons)), width * height)
    number = np.arange(len(row)) - np.repeat(np.cumsum(width * height) - width * height, width * height)
    x, y = low[row, 0] + number % np.maximum(width[row], 1), low[row, 1] + number // np.maximum(width[row], 1)
    centres = (np.stack([x, y], 1) + 0.5) * cells.stride_um + cells.origin_um
    inside = shapely.contains_xy(polygons[row], *centres.T)
    return row[inside], np.stack([y, x], 1)[inside]


@dataclass(frozen=True, eq=False)
class Superpixels(Inputs):
    """Features of the superpixels of each row: ``"cells"`` (n, k, d), and how much of it each is, ``"weight"``."""

    values: np.ndarray = field(repr=False)  # (m, d) float16 of all rows, one after the other
    start: np.ndarray  # (n + 1,) where those of each row begin

    def __len__(self) -> int:
        return len(self.start) - 1

    @property
    def counts(self) -> np.ndarray:
        """How many superpixels a row has, (n,)."""
        return np.diff(self.start)

    def take(self, rows: np.ndarray) -> Batch:
        """The superpixels of some rows; those that have fewer than others are filled up with such of no weight."""
        counts = self.counts[rows]
        there = np.arange(max(1, counts.max(initial=0))) < counts[:, None]
        place = self.start[rows][:, None] + np.arange(there.shape[1])
        values = np.array(self.values[np.where(there, place, 0)])
        values[~there] = 0
        return {"cells": values, "weight": (there / np.maximum(counts, 1)[:, None]).astype(np.float32)}


def superpixels_of(
    maps: Sequence[FeatureMap], regions: Sequence[tuple[np.ndarray, np.ndarray]], n: int, boxes: Sequence[int]
) -> Superpixels:
    """Smoothed features of the cells of all rows, on disk; ``regions`` are the cells on each map and their rows."""
    total = sum(len(cells) for cells, _ in regions)
    width = maps[0].n_features(boxes)
    values = array_on_disk((max(1, total), width), np.float16, f"Features of {total} superpixels")
    kept = np.zeros(total, bool)
    row = np.concatenate([rows for _, rows in regions])
    first = 0
    for each, (cells, _) in zip(maps, regions, strict=True):
        for block, mine in _by_block(cells):
            (y, x), near = block, cells[mine] - np.asarray(block)
            (top, left), (bottom, right) = near.min(axis=0).tolist(), (near.max(axis=0) + 1).tolist()
            means, _ = each.smoothed((y + top, y + bottom), (x + left, x + right), boxes)
            found = means[:, near[:, 0] - top, near[:, 1] - left].T
            kept[first + mine] = np.isfinite(found).all(axis=1)
            values[first + mine] = np.nan_to_num(found).clip(-65504, 65504)
        first += len(cells)
    # Cells of which nothing is known do not count: the others move up, in place.
    order = np.flatnonzero(kept)
    order = order[np.argsort(row[order], kind="stable")]
    if not (len(order) == total and (order == np.arange(total)).all()):
        moved = array_on_disk((max(1, len(order)), width), np.float16, f"Features of {len(order)} superpixels")
        for start in range(0, len(order), 2**16):
            part = order[start : start + 2**16]
            moved[start : start + len(part)] = values[part]
        values = moved
    counts = np.bincount(row[order], minlength=n)
    return Superpixels(values, np.concatenate([[0], np.cumsum(counts)]))


def _by_block(cells: np.ndarray) -> Any:
    """Corners of blocks of a map, and the numbers of the cells in each."""
    if not len(cells):
        return
    block = cells // BLOCK
    order = np.lexsort((block[:, 1], block[:, 0]))
    changes = np.flatnonzero((np.diff(block[order], axis=0) != 0).any(axis=1)) + 1
    for mine in np.split(order, changes):
        y, x = (block[mine[0]] * BLOCK).tolist()
        yield (y, x), mine


def regions_of(sdata: Any, adata: AnnData, name: str, who: str) -> Rows:
    """The shapes that the rows of a table are."""
    if not hasattr(sdata, "shapes"):
        raise ValueError(f"{who} reads a slide: give the SpatialData that {name} is a table of, with its image.")
    table = next((key for key, each in sdata.tables.items() if each is adata), None)
    if table is not None:
        return rows_of(sdata, table)
    link = adata.uns["spatialdata_attrs"]
    region = link["region"] if isinstance(link["region"], str) else link["region"][0]
    return Rows(region, None, adata.obs[link["instance_key"]].to_numpy())
