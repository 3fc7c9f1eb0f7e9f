"""Which regions hold a point: squares of a grid by arithmetic, all others by a hash of their boxes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from geopandas import GeoDataFrame
    from scipy.sparse import csr_matrix

LEAST_BATCH = 4_000_000
"""Entries that wait before they are counted: 8 bytes each."""


class SparseCounts:
    """How often each pair of a row and a column was added.

    Memory goes with the number of different pairs, not of what was added: 12 bytes for each, and 8 for each entry that
    waits, which are a quarter as many or ``LEAST_BATCH``. The pairs lie sorted; a batch is sorted and merged in place.
    ``width`` is more than the number of any column; times the number of rows it stays below 2^63.
    """

    def __init__(self, width: int) -> None:
        self._width = width
        self._keys, self._counts = np.empty(0, np.int64), np.empty(0, np.int32)
        self._waiting: list[np.ndarray] = []
        self._n_waiting = 0

    def add(self, rows: np.ndarray, columns: np.ndarray) -> None:
        """Count pairs."""
        self._waiting.append(rows * self._width + columns)
        self._n_waiting += len(rows)
        if self._n_waiting > max(LEAST_BATCH, len(self._keys) // 4):
            self._merge()

    def rows(self) -> np.ndarray:
        """The different rows that were added, ascending, int64."""
        from sthist.tiles._regions.locate_kernels import rows_of

        self._merge()
        return rows_of(self._keys, self._width)

    def pop_csr(self, rows: np.ndarray, columns: np.ndarray) -> csr_matrix:
        """The counts as a matrix; nothing is counted any more then.

        Returns Int32 of shape (len(rows), len(columns)), its indices sorted.
        """
        from scipy.sparse import csr_matrix

        from sthist.tiles._regions.locate_kernels import columns_of

        self._merge()
        keys, counts = self._keys, self._counts
        self._keys, self._counts = np.empty(0, np.int64), np.empty(0, np.int32)
        starts = np.append(np.searchsorted(keys, rows * self._width), len(keys))
        indices = np.empty(len(keys), np.int32)
        columns_of(keys, self._width, columns, indices)
        del keys
        matrix = csr_matrix((counts, indices, starts), shape=(len(rows), len(columns)))
        matrix.sort_indices()
        return matrix

    def _merge(self) -> None:
        from sthist.tiles._regions.locate_kernels import count_new, merge_keys

        if not self._waiting:
            return
        more = np.concatenate(self._waiting)
        self._waiting, self._n_waiting = [], 0
        more.sort()
        n = len(self._keys)
        total = n + count_new(self._keys, more)
        # A large array grows where it is, or its pages are moved: nothing is copied.
        self._keys.resize(total, refcheck=False)
        self._counts.resize(total, refcheck=False)
        merge_keys(self._keys, self._counts, n, more)


MAX_CELLS = 16_000_000
"""Cells of the hash, and listings of regions in them beyond eight per region."""

MAX_BLOCKS = 65_536
"""Points are visited by blocks of cells: what lies together is in the processor's cache together."""

EDGES_PER_BAND = 4
SPAN = 1 << 21
"""Rows, and columns, that the number of a square tells apart."""


class Locator(Protocol):
    """What finds the regions of points."""

    def locate(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pairs of a region's number and that of a point in it, int64; those of one point follow each other."""


def to_um(matrix: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates under a (3, 3) matrix.

    Written as it is for transcripts, so that what was at one place stays at one place, bit by bit.
    """
    return (
        matrix[0, 0] * x + matrix[0, 1] * y + matrix[0, 2],
        matrix[1, 0] * x + matrix[1, 1] * y + matrix[1, 2],
    )


class SquareGrid:
    """Squares side by side from (0, 0) on, without end; a point on a border is of the square with the greater x or y.

    A square's number is that of its row, times ``SPAN``, plus that of its column, both from ``-SPAN / 2`` on.
    Only those count whose centre the geometry ``within`` contains, if there is one.
    """

    def __init__(self, side_um: float, within: Any = None) -> None:
        self.side_um = float(side_um)
        self._mask: np.ndarray | None = None
        if within is not None:
            from sthist.tiles._regions.raster import rasterize

            low, high = np.asarray(within.bounds).reshape(2, 2)
            self._require_reach(low, high)
            self._first = np.floor(low / self.side_um).astype(np.int64)
            n = np.floor(high / self.side_um).astype(np.int64) + 1 - self._first
            if n.prod() > 4 * MAX_CELLS:
                raise ValueError(
                    f"within= spans {n.prod():.3g} squares of {self.side_um:g} µm; make them larger, or within= "
                    "smaller."
                )
            self._mask = rasterize([within], self._first * self.side_um, self.side_um, (int(n[1]), int(n[0]))) > 0

    @property
    def numbers(self) -> np.ndarray | None:
        """Numbers of all squares, ascending, if there is an end of them."""
        if self._mask is None:
            return None
        rows, columns = np.nonzero(self._mask)
        return self._number(columns + self._first[0], rows + self._first[1])

    def places(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Columns and rows of squares, int64."""
        rows, columns = np.divmod(numbers, SPAN)
        return columns - SPAN // 2, rows - SPAN // 2

    def locate(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See :class:`Locator`."""
        from sthist.tiles._regions.locate_kernels import squares_of

        if len(x):
            self._require_reach([x.min(), y.min()], [x.max(), y.max()])
        columns, rows = np.empty(len(x), np.int64), np.empty(len(x), np.int64)
        squares_of(x, y, self.side_um, columns, rows)
        if self._mask is None:
            return self._number(columns, rows), np.arange(len(x))
        i, j = rows - self._first[1], columns - self._first[0]
        there = np.flatnonzero((i >= 0) & (i < self._mask.shape[0]) & (j >= 0) & (j < self._mask.shape[1]))
        there = there[self._mask[i[there], j[there]]]
        return self._number(columns[there], rows[there]), there

    def _number(self, columns: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return (rows + SPAN // 2) * SPAN + columns + SPAN // 2

    def _require_reach(self, low: Any, high: Any) -> None:
        reach = float(np.abs([low, high]).max())
        if reach >= (SPAN // 2 - 1) * self.side_um:
            raise ValueError(
                f"Coordinates reach {reach:.4g} µm, more than a million squares of {self.side_um:g} µm from (0, 0). Is "
                "that the right unit? Correct the transformation to 'um', or make the squares larger."
            )


@dataclass(frozen=True)
class BoxHash:
    """A grid whose cells list the regions whose boxes touch them."""

    origin: np.ndarray  # x, y of the corner
    cell: float  # its side
    shape: tuple[int, int]  # rows and columns
    starts: np.ndarray  # where the list of each cell begins, row by row
    members: np.ndarray  # the lists

    @classmethod
    def over(cls, bounds: np.ndarray) -> BoxHash:
        """The hash of boxes (regions, 4); a cell is as large as the middle one of them, unless that takes too much."""
        from sthist.tiles._regions.locate_kernels import list_members

        origin, end = bounds[:, :2].min(axis=0), bounds[:, 2:].max(axis=0)
        sides = (bounds[:, 2:] - bounds[:, :2]).max(axis=1)
        cell = max(float(np.median(sides)), float(np.sqrt((end - origin).prod() / MAX_CELLS)), 1e-6)
        # Small regions beside some that cover them all: a cell of the small ones' size would list the large ones too
        # often.
        while ((bounds[:, 2:] - bounds[:, :2]) / cell + 2).prod(axis=1).sum() > 8 * len(bounds) + MAX_CELLS:
            cell *= 2
        columns, rows = (int(n) + 1 for n in (end - origin) / cell)
        counts = np.zeros(rows * columns, np.int64)
        list_members(bounds, origin, cell, (rows, columns), counts, np.empty(0, np.int32))
        starts = np.append(0, np.cumsum(counts))
        members = np.empty(starts[-1], np.int32)
        list_members(bounds, origin, cell, (rows, columns), starts[:-1].copy(), members)
        return cls(origin, cell, (rows, columns), starts, members)

    def order(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Indices of the points that lie on the grid, neighbours together."""
        from sthist.tiles._regions.locate_kernels import order_by_block

        side = int(np.ceil(np.sqrt(self.shape[0] * self.shape[1] / MAX_BLOCKS)))
        return np.asarray(order_by_block(x, y, self.origin, self.cell, self.shape, side))

    def room(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Arrays with room for all pairs of regions and points that there can be; what is not used costs nothing."""
        from sthist.tiles._regions.locate_kernels import count_candidates

        n = count_candidates(x, y, self.origin, self.cell, self.shape, self.starts)
        return np.empty(n, np.int64), np.empty(n, np.int64)


class RegionIndex:
    """The regions of a shapes element, and which of them hold a point. They may overlap; their numbers are their rows.

    A circle holds the points on its border. A polygon, with its holes and parts, holds those on the border to the left
    and at the top (less x, less y) and not those to the right and at the bottom: of polygons that meet, exactly one
    holds a point on the line between them, and a square is [x0, x1) by [y0, y1).

    The shapes are circles (points with a ``radius``), or polygons and multipolygons; the matrix takes their coordinates
    to µm, where circles become ellipses if it says so.
    """

    def __init__(self, shapes: GeoDataFrame, matrix: np.ndarray) -> None:
        import shapely

        self._matrix = matrix
        self._geometry = shapes.geometry.to_numpy()
        self._circles = bool((shapely.get_type_id(self._geometry) == shapely.GeometryType.POINT).all())
        if self._circles:
            self._add_circles(shapes["radius"].to_numpy(np.float64))
        else:
            self._add_polygons()
        self._hash = BoxHash.over(self.bounds)

    def __len__(self) -> int:
        """Number of regions."""
        return len(self._geometry)

    def centroids(self) -> np.ndarray:
        """x, y of the centroids in µm, float64 of shape (regions, 2)."""
        return centroids_um(self._geometry, self._matrix)

    def locate(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See :class:`Locator`."""
        from sthist.tiles._regions.locate_kernels import locate_in_circles, locate_in_polygons

        hashed = self._hash
        order = hashed.order(x, y)
        x, y = x[order], y[order]
        regions, points = hashed.room(x, y)
        common = (x, y, hashed.origin, hashed.cell, hashed.shape, hashed.starts, hashed.members)
        if self._circles:
            n = locate_in_circles(*common, self._centres, self._radii, self._inverse, regions, points)
        else:
            edges = (self._vertices, self._bands, self._edge_starts, self._edges)
            n = locate_in_polygons(*common, self.bounds, *edges, regions, points)
        return regions[:n], order[points[:n]]

    def _add_circles(self, radii: np.ndarray) -> None:
        self._centres, self._radii = centroids_um(self._geometry, self._matrix), radii
        self._inverse = np.linalg.inv(self._matrix[:2, :2])
        reach = radii[:, None] * np.hypot(self._matrix[:2, 0], self._matrix[:2, 1])
        reach += 1e-9 * (np.abs(self._centres) + reach)  # the box must not be smaller than the circle by rounding
        self.bounds = np.hstack([self._centres - reach, self._centres + reach])

    def _add_polygons(self) -> None:
        import shapely

        from sthist.tiles._regions.locate_kernels import list_edges

        parts, owner = shapely.get_parts(self._geometry, return_index=True)
        _, coordinates, (rings, polygons) = shapely.to_ragged_array(parts)
        self._vertices = np.stack(to_um(self._matrix, coordinates[:, 0], coordinates[:, 1]), axis=1)
        region_rings = polygons[np.searchsorted(owner, np.arange(len(self) + 1))].astype(np.int64)
        rings = rings.astype(np.int64)
        first = rings[region_rings]
        low, high = (f.reduceat(self._vertices, first[:-1], axis=0) for f in (np.minimum, np.maximum))
        self.bounds = np.hstack([low, high])
        n_bands = np.maximum(np.diff(first) // EDGES_PER_BAND, 1)
        n_bands[self._rectangles(np.diff(region_rings), first)] = 0
        self._bands = np.append(0, np.cumsum(n_bands))
        counts = np.zeros(self._bands[-1], np.int64)
        where = (np.ascontiguousarray(self._vertices[:, 1]), rings, region_rings, self.bounds, self._bands)
        list_edges(*where, counts, np.empty(0, np.int32))
        self._edge_starts = np.append(0, np.cumsum(counts))
        self._edges = np.empty(self._edge_starts[-1], np.int32)
        list_edges(*where, self._edge_starts[:-1].copy(), self._edges)

    def _rectangles(self, n_rings: np.ndarray, first: np.ndarray) -> np.ndarray:
        """Which polygons are their own boxes, their sides along x and y to the last bit."""
        candidates = np.flatnonzero((n_rings == 1) & (np.diff(first) == 5))
        x, y = (self._vertices[first[candidates][:, None] + np.arange(5), axis] for axis in (0, 1))
        same_x, same_y = x[:, :-1] == x[:, 1:], y[:, :-1] == y[:, 1:]
        upright = np.array([True, False, True, False])
        return candidates[
            ((same_x == upright) & (same_y == ~upright)).all(axis=1)
            | ((same_x == ~upright) & (same_y == upright)).all(axis=1)
        ]


def centroids_um(geometry: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Centroids of geometries under a (3, 3) matrix, float64 of shape (n, 2)."""
    import shapely

    centres = shapely.centroid(geometry)
    return np.stack(to_um(matrix, shapely.get_x(centres), shapely.get_y(centres)), axis=1)
