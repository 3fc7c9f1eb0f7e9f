"""Polygons to pixels and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from shapely.geometry.base import BaseGeometry


def rasterize(
    geometries: Iterable[BaseGeometry],
    origin_um: Any,
    mpp: float,
    shape: tuple[int, int],
    values: Iterable[float] | None = None,
) -> np.ndarray:
    """Paint polygons onto a grid: the cells whose centre they contain; later ones over earlier ones.

    Returns Float32 of ``shape``, 0 where no polygon lies.
    """
    import shapely

    from sthist.tiles._images.kernels import fill_polygons

    image = np.zeros(shape, np.float32)
    parts, index = shapely.get_parts(np.asarray(list(geometries), dtype=object), return_index=True)
    painted = np.ones(len(index), np.float32) if values is None else np.asarray(list(values), np.float32)[index]
    solid = (shapely.get_type_id(parts) == shapely.GeometryType.POLYGON) & (shapely.area(parts) > 0)
    if solid.any():
        _, coordinates, (rings, polygons) = shapely.to_ragged_array(parts[solid])
        cells = (coordinates[:, :2] - np.asarray(origin_um)) / mpp
        fill_polygons(cells, rings.astype(np.int64), polygons.astype(np.int64), painted[solid], image)
    return image


def polygonize(mask: np.ndarray, origin_um: Any, mpp: float) -> list[BaseGeometry]:
    """Outlines of the connected parts of a mask, holes included, as polygons in µm; the largest first."""
    import shapely
    from skimage.measure import find_contours

    rings = [
        shapely.LinearRing((contour[:, ::-1] - 0.5) * mpp + np.asarray(origin_um))
        for contour in find_contours(np.pad(mask, 1).astype(np.float32), 0.5)
        if len(contour) > 3
    ]
    faces = shapely.get_parts(shapely.build_area(shapely.GeometryCollection(rings))) if rings else np.array([])
    return sorted((face for face in faces if face.area > 0), key=lambda face: -face.area)
