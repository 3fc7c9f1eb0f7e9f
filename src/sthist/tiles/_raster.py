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
    """Paint polygons onto a grid, holes left out; later ones over earlier ones.

    Parameters
    ----------
    geometries
        Polygons or multipolygons, in µm.
    origin_um
        x, y of the grid's corner, in µm.
    mpp
        µm per cell.
    shape
        Rows and columns.
    values
        One per geometry; 1 by default.

    Returns
    -------
    Float32 of ``shape``, 0 where no polygon lies.
    """
    from PIL import Image, ImageDraw

    image = Image.new("F", (shape[1], shape[0]), 0.0)
    draw = ImageDraw.Draw(image)
    geometries = list(geometries)
    for geometry, value in zip(geometries, [1.0] * len(geometries) if values is None else values, strict=True):
        for polygon in getattr(geometry, "geoms", [geometry]):
            # Pillow's vertices are pixel centres.
            rings = [
                ((np.asarray(ring.coords)[:, :2] - origin_um) / mpp - 0.5)
                for ring in (polygon.exterior, *polygon.interiors)
            ]
            for position, ring in enumerate(rings):
                if len(ring) > 2:
                    draw.polygon(ring.ravel().tolist(), fill=float(value) if position == 0 else 0.0)
    return np.asarray(image)


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
