"""One image seen through one TileSpec: which pixels a tile needs, and how they become the tile."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from sthist.tiles._images.image import Field
    from sthist.tiles._images.planes import ChunkCache
    from sthist.tiles._spec import TileSpec


class Windows(NamedTuple):
    """Where tiles lie on a level, in (y, x): their corners, and the pixels ``low:high`` that they need, (n, 2) each."""

    origins: np.ndarray
    lows: np.ndarray
    highs: np.ndarray


class View:
    """One image element seen through one spec: the level, the reduction and the geometry that all its tiles share."""

    def __init__(self, field: Field, spec: TileSpec) -> None:
        from_um = np.linalg.inv(field.to_um)
        # In (y, x) order: level-0 pixels per tile pixel, and where (0, 0) µm lies.
        step = from_um[1::-1, 1::-1] * spec.mpp
        spans = tuple(float(span) for span in np.hypot(step[:, 0], step[:, 1]))
        level = field.level((spans[0], spans[1]))
        factor = np.array(level.factor)[:, None]
        self.planes, self.px = level.planes, spec.px
        self._linear = step / factor
        self._from_um = from_um[1::-1, [1, 0, 2]] / factor
        spans_level = np.hypot(self._linear[:, 0], self._linear[:, 1])
        self._reduce = np.maximum(1, np.floor(spans_level + 1e-6)).astype(int)
        residual = spans_level / self._reduce
        self._supersample = 1 if residual.max() < 1.05 else 2
        self._is_copy = bool(np.abs(self._linear - np.eye(2)).max() * spec.px < 1e-2)

    def windows(self, centres: np.ndarray) -> Windows:
        """Where the tiles around centres (x, y in µm) lie on the level."""
        middles = np.c_[centres[:, 1], centres[:, 0], np.ones(len(centres))] @ self._from_um.T
        origins = middles - self._linear.sum(1) * (self.px / 2)
        corners = np.array([[0, 0], [0, 1], [1, 0], [1, 1]]) @ self._linear.T * self.px
        reduce, size = self._reduce, np.array([self.planes.height, self.planes.width])
        lows = np.floor(origins + corners.min(0) - 1) // reduce * reduce
        highs = -(-np.ceil(origins + corners.max(0) + 1) // reduce) * reduce
        lows = np.clip(lows, 0, None).astype(int)
        highs = np.minimum(highs, size).astype(int)
        return Windows(origins, lows, highs)

    def chunks(self, windows: Windows) -> list[set[tuple[int, int]]]:
        """Row and column of the chunks that each window needs; none where it lies beside the image."""
        return [
            {
                (row, column)
                for row in range(*_covering(self.planes.y_edges, low[0], high[0]))
                for column in range(*_covering(self.planes.x_edges, low[1], high[1]))
            }
            if (low < high).all()
            else set()
            for low, high in zip(windows.lows, windows.highs, strict=True)
        ]

    def spans(self, needed: set[tuple[int, int]], cache: ChunkCache) -> list[tuple[int, tuple[int, int]]]:
        """Rows of chunks, with their first and last column, that are needed and that the cache does not hold."""
        spans: list[tuple[int, tuple[int, int]]] = []
        for row, column in sorted(key for key in needed if (self.planes, *key) not in cache):
            first, stop = spans[-1][1] if spans and spans[-1][0] == row else (column, -1)
            if stop == column and stop - first < self.planes.most_per_call:
                spans[-1] = (row, (first, column + 1))
            else:
                spans.append((row, (column, column + 1)))
        return spans

    def load_span(self, cache: ChunkCache, row: int, columns: tuple[int, int]) -> None:
        """Decode neighbouring chunks of a row into the cache."""
        for column, chunk in zip(range(*columns), self.planes.load(row, *columns), strict=True):
            cache.put((self.planes, row, column), chunk)

    def chunk_coordinates(self, centres: np.ndarray) -> np.ndarray:
        """Row and column, (n, 2), of the chunk under each centre; clipped to the image."""
        points = np.c_[centres[:, 1], centres[:, 0], np.ones(len(centres))] @ self._from_um.T
        rows = np.searchsorted(self.planes.y_edges[1:-1], points[:, 0], side="right")
        columns = np.searchsorted(self.planes.x_edges[1:-1], points[:, 1], side="right")
        return np.c_[rows, columns]

    def paste(
        self,
        origin: np.ndarray,
        low: np.ndarray,
        high: np.ndarray,
        tile: np.ndarray,
        covered: np.ndarray,
        cache: ChunkCache,
    ) -> None:
        """Fill the pixels of a tile that this element covers and that no earlier one did."""
        from sthist.tiles._images import kernels

        if (low >= high).any() or covered.all():
            return
        region = np.ascontiguousarray(self._gather(low, high, cache))
        shift = np.round(origin)
        if self._is_copy and np.abs(origin - shift).max() < 1e-2:
            y0, x0 = (shift.astype(int) - low).tolist()
            kernels.copy_aligned(region, y0, x0, tile, covered)
            return
        reduce = self._reduce
        if (reduce > 1).any():
            region = kernels.block_mean(region, int(reduce[0]), int(reduce[1]))
        size = np.array([self.planes.height, self.planes.width])
        matrix = np.c_[self._linear, origin - low] / reduce[:, None]
        bounds = np.c_[-low, size - low] / reduce[:, None]
        if min(region.shape[1:]) < 2:
            region = np.pad(region, [(0, 0), *((0, int(n < 2)) for n in region.shape[1:])], mode="edge")
        half = np.float32(0.5 if tile.dtype.kind in "iu" else 0.0)
        kernels.warp(region, matrix, bounds.ravel(), self._supersample, half, tile, covered)

    def _gather(self, low: np.ndarray, high: np.ndarray, cache: ChunkCache) -> np.ndarray:
        """The pixels ``low:high`` of the level, (c, h, w): a view where one chunk holds them all."""
        planes = self.planes
        rows = range(*_covering(planes.y_edges, low[0], high[0]))
        columns = range(*_covering(planes.x_edges, low[1], high[1]))

        def part(row: int, column: int) -> tuple[slice, slice, np.ndarray]:
            chunk = cache.get((planes, row, column), lambda: planes.load(row, column, column + 1)[0])
            y, x = planes.y_edges[row], planes.x_edges[column]
            y0, y1 = max(low[0], y), min(high[0], planes.y_edges[row + 1])
            x0, x1 = max(low[1], x), min(high[1], planes.x_edges[column + 1])
            pixels = chunk[:, y0 - y : y1 - y, x0 - x : x1 - x]
            return slice(y0 - low[0], y1 - low[0]), slice(x0 - low[1], x1 - low[1]), pixels

        if len(rows) == len(columns) == 1:
            return part(rows[0], columns[0])[2]
        region = np.empty((planes.shape[0], *(high - low)), planes.dtype)
        for row in rows:
            for column in columns:
                ys, xs, pixels = part(row, column)
                region[:, ys, xs] = pixels
        return region


def _covering(edges: np.ndarray, low: int, high: int) -> tuple[int, int]:
    """First chunk that a range of pixels touches, and the one after its last."""
    return int(np.searchsorted(edges, low, side="right")) - 1, int(np.searchsorted(edges, high, side="left"))


def mirrored(tile: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """A tile (h, w, c) whose pixels that were not seen, (h, w) bool, show what lies as far on this side of the border.

    Of what is further away than the tile reaches, the nearest pixel that was seen; a tile of which nothing was seen
    stays as it is.
    """
    if seen.all() or not seen.any():
        return tile
    from scipy.ndimage import distance_transform_edt

    nearest = distance_transform_edt(~seen, return_distances=False, return_indices=True)
    own = np.indices(seen.shape)
    beyond = 2 * nearest - own + np.sign(own - nearest)
    size = np.array(seen.shape)[:, None, None]
    inside = ((beyond >= 0) & (beyond < size)).all(0)
    row, column = np.where(inside, beyond, nearest)
    lost = ~seen[row, column]
    row[lost], column[lost] = nearest[0][lost], nearest[1][lost]
    return tile[row, column]
