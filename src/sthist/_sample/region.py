"""What ``within=`` means: a box, a polygon, or shapes, in µm."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sthist._sample.elements import UM, get

if TYPE_CHECKING:
    from geopandas import GeoDataFrame
    from shapely.geometry.base import BaseGeometry
    from spatialdata import SpatialData


MISSING = "missing"
"""State of a core of a microarray that is not there: its region is where it would be."""


def is_missing(shapes: GeoDataFrame) -> np.ndarray:
    """Which shapes are cores of a microarray that are not there, (n,) bool."""
    if not {"row", "column", "state"} <= set(shapes.columns):
        return np.zeros(len(shapes), bool)
    return (shapes["state"] == MISSING).to_numpy()


def present(shapes: GeoDataFrame) -> GeoDataFrame:
    """Shapes without the cores of a microarray that are missing."""
    return shapes[~is_missing(shapes)]


def region_geometry(sdata: SpatialData, within: Any) -> BaseGeometry:
    """The geometry, in µm, that a ``within=`` argument stands for; of the cores of a microarray, those that are there.

    Raises
    ------
    KeyError
        If it names shapes that do not exist.
    ValueError
        If it is none of a box, a polygon and a name, or is empty or not valid.
    """
    import shapely
    import spatialdata as sd

    if isinstance(within, str):
        shapes = present(sd.transform(get(sdata, "shapes", within), to_coordinate_system=UM))
        geometry = shapely.union_all(
            shapes.geometry.buffer(shapes["radius"]) if "radius" in shapes else shapes.geometry
        )
    elif isinstance(within, shapely.geometry.base.BaseGeometry):
        geometry = within
    elif len(within) == 4:
        geometry = shapely.box(*map(float, within))
    else:
        msg = f"within={within!r} is neither a box (x0, y0, x1, y1) in µm, nor a polygon, nor the name of shapes."
        raise ValueError(msg)
    if geometry.is_empty or not geometry.is_valid or geometry.area == 0:
        msg = f"within={within!r} has no area, or crosses itself: {shapely.is_valid_reason(geometry)}."
        raise ValueError(msg)
    return geometry
