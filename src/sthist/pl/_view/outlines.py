"""Shapes of a sample in µm: which lie in a tile, which at a point, and the tile as a map of their numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sthist import _sample, scale
from sthist._sample.elements import is_missing
from sthist._tables.rows import placed_um
from sthist.pl._base import SMALL_PX, dots_of_boxes, usual_width
from sthist.tiles._regions.raster import rasterize

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from sthist.pl._base import Extent
    from sthist.pl._view.grid import Tile

PART = 50_000


class Outlines:
    """One shapes element: circles, or polygons. Its regions are called by their rows, from 0 on."""

    def __init__(self, sdata: SpatialData, key: str) -> None:
        frame = _sample.get(sdata, "shapes", key)
        self.key, self.names = key, frame.index.to_numpy()
        self._matrix = scale.matrix_to_um(sdata, "shapes", key)
        self._geometry = np.asarray(frame.geometry.to_numpy(), dtype=object).copy()
        self._geometry[is_missing(frame)] = None
        self._radii = frame["radius"].to_numpy(np.float64) if "radius" in frame else None
        self.bounds = self._bounds()
        known = np.isfinite(self.bounds).all(axis=1)
        self.width_um = usual_width(self.bounds[known])

    def __len__(self) -> int:
        return len(self.names)

    @property
    def extent_um(self) -> Extent | None:
        """The box around all; None where there are none."""
        known = self.bounds[np.isfinite(self.bounds).all(axis=1)]
        return None if not len(known) else (*known[:, :2].min(axis=0).tolist(), *known[:, 2:].max(axis=0).tolist())

    def within(self, extent: Extent) -> np.ndarray:
        """Rows whose boxes touch a box."""
        x0, y0, x1, y1 = extent
        left, top, right, bottom = self.bounds.T
        return np.flatnonzero((left < x1) & (right > x0) & (top < y1) & (bottom > y0))

    def polygons(self, rows: np.ndarray) -> np.ndarray:
        """Some of them in µm, (n,) geometries; circles with 64 corners."""
        return placed_um(self._geometry[rows], None if self._radii is None else self._radii[rows], self._matrix)

    def at(self, x: float, y: float, reach_um: float) -> int | None:
        """The region at a point, of several the last, as it lies on top; else the nearest within reach."""
        import shapely

        rows = self.within((x - reach_um, y - reach_um, x + reach_um, y + reach_um))
        if not len(rows):
            return None
        polygons = self.polygons(rows)
        holding = rows[shapely.intersects_xy(polygons, x, y)]
        if len(holding):
            return int(holding[-1])
        distance = shapely.distance(polygons, shapely.Point(x, y))
        nearest = int(np.argmin(distance))
        return int(rows[nearest]) if distance[nearest] <= reach_um else None

    def are_dots(self, mpp: float) -> bool:
        """Whether they are too small on the screen to have a shape."""
        return self.width_um < SMALL_PX * mpp

    def dots(self, tile: Tile) -> tuple[np.ndarray, np.ndarray]:
        """Rows in a tile, and the square that each is drawn as, (n, 4)."""
        x0, y0, x1, y1 = tile.extent
        rows = self.within((x0 - 2 * tile.mpp, y0 - 2 * tile.mpp, x1 + 2 * tile.mpp, y1 + 2 * tile.mpp))
        return rows, dots_of_boxes(self.bounds[rows], tile.mpp)

    def numbers(self, tile: Tile) -> np.ndarray:
        """The row of the region at each pixel of a tile and of a frame of one pixel around it; -1 for none."""
        x0, y0, x1, y1 = tile.extent
        mpp, shape = tile.mpp, (tile.shape[0] + 2, tile.shape[1] + 2)
        rows = self.within((x0 - mpp, y0 - mpp, x1 + mpp, y1 + mpp))
        places = rasterize(self.polygons(rows), (x0 - mpp, y0 - mpp), mpp, shape, np.arange(1, len(rows) + 1))
        return np.append(-1, rows).astype(np.int32)[places.astype(np.int64)]

    def _bounds(self) -> np.ndarray:
        """Boxes in µm, (n, 4), part by part, as polygons of all take room; NaN of those that are empty."""
        import shapely

        if self._radii is None:
            parts = [self.polygons(np.arange(i, min(i + PART, len(self)))) for i in range(0, len(self), PART)]
            return np.concatenate([shapely.bounds(part) for part in parts]) if parts else np.empty((0, 4))
        centres = shapely.centroid(self._geometry)
        places = np.stack([shapely.get_x(centres), shapely.get_y(centres)], axis=1)
        places = places @ self._matrix[:2, :2].T + self._matrix[:2, 2]
        reach = self._radii[:, None] * np.hypot(self._matrix[:2, 0], self._matrix[:2, 1])
        return np.hstack([places - reach, places + reach])


def borders(numbers: np.ndarray) -> np.ndarray:
    """Which pixels of a map with a frame of one pixel lie at the border of a region, within it; without the frame."""
    middle = numbers[1:-1, 1:-1]
    others = (numbers[:-2, 1:-1], numbers[2:, 1:-1], numbers[1:-1, :-2], numbers[1:-1, 2:])
    differs = np.logical_or.reduce([other != middle for other in others])
    return np.asarray(differs & (middle >= 0))
