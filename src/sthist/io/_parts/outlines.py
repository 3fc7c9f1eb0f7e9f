"""Outlines of cells, from polygons in a file or from one row per vertex."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sthist._settings import logger
from sthist.io._files import checks
from sthist.io._files.values import FARTHEST, no_places, require_few_crossings

if TYPE_CHECKING:
    from pathlib import Path

    import geopandas as gpd

CORNERS = 3  # that an area has at least
SHOWN = 3  # names that a message lists


def read_geoparquet(path: Path) -> gpd.GeoDataFrame:
    """Polygons of a parquet file, with their coordinates as they are."""
    import geopandas as gpd

    checks.require_parquet(path, [], may_be_empty=True)
    with checks.reading(path):
        try:
            frame = gpd.read_parquet(path)
        except ValueError as error:
            if "geo metadata" not in str(error) and "geometry columns" not in str(error):
                raise
            raise ValueError(f"{path} has no column 'geometry' that geopandas can read ({error}).") from None
    frame = frame.rename_geometry("geometry") if frame.geometry.name != "geometry" else frame
    if any(isinstance(value, bytes) for value in frame.index[:1]):
        frame.index = frame.index.map(bytes.decode)
    require_finite(path, frame)
    return frame.set_crs(None, allow_override=True)


def require_finite(path: Path | str, frame: gpd.GeoDataFrame) -> None:
    """Refuse outlines with vertices that are NaN, infinite, or farther out than any slide."""
    import shapely

    xy, rows = shapely.get_coordinates(frame.geometry.to_numpy(), return_index=True)
    bad = no_places(xy)
    if bad.any():
        first = int(bad.argmax())
        raise ValueError(
            f"{path}: {int(bad.sum())} vertices are NaN or infinite, the first of outline "
            f"{str(frame.index[rows[first]])!r} (row {rows[first]}). Correct them, or leave the outlines out; none is "
            f"above {FARTHEST:g}."
        )


def rings(where: Path | str, ids: Any, xy: np.ndarray, fields: str, *, cell: str = "cell_id") -> tuple[Any, np.ndarray]:
    """Polygons from one row per vertex, and the first row of each; those without a corner are left out and said."""
    import pandas as pd
    import shapely

    bad = no_places(xy)
    codes, names = pd.factorize(ids)
    if bad.any() or (codes < 0).any():
        first = int((bad | (codes < 0)).argmax())
        raise ValueError(
            f"{where}: {int((bad | (codes < 0)).sum())} vertices have no {fields} or no {cell}, the first of them in "
            f"row {first}. Correct them, or leave them out; none is above {FARTHEST:g}."
        )
    order = np.argsort(codes, kind="stable")
    xy, codes = xy[order], codes[order]
    starts = np.flatnonzero(np.diff(codes, prepend=-1))
    ends = np.append(starts[1:], len(codes))
    closed = (xy[starts] == xy[ends - 1]).all(1) & (ends - starts > 1)
    corners = ends - starts - closed
    short = corners < CORNERS
    if short.any():
        shown = ", ".join(repr(str(name)) for name in names[short][:SHOWN])
        logger.warning(
            f"{where}: {int(short.sum())} of {len(names)} outlines have fewer than {CORNERS} corners and are left out: "
            f"{cell} {shown}{' ...' if short.sum() > SHOWN else ''}."
        )
    if closed.any() and not closed.all():
        cut = names[~closed & ~short]
        if len(cut):
            logger.warning(
                f"{where}: {len(cut)} of {len(names)} outlines are not closed as the others are, such as that of "
                f"{cell} {str(cut[0])!r}; are vertices lost?"
            )
    if short.all():
        raise ValueError(
            f"{where}: none of {len(names)} outlines ({cell}) has {CORNERS} corners. Export the outlines again."
        )
    keep = np.repeat(~short, ends - starts)
    which = np.repeat(np.cumsum(~short) - 1, ends - starts)
    polygons = shapely.polygons(shapely.linearrings(xy[keep], indices=which[keep]))
    return polygons, order[starts][~short]


def mended(polygons: Any, where: Path | str = "cells") -> Any:
    """Polygons that do not cross themselves; what has no area is empty."""
    import shapely

    require_few_crossings(where, polygons[~shapely.is_valid(polygons)])
    valid = shapely.make_valid(polygons)
    # A ring that touches itself leaves lines behind; an outline is what has an area.
    mixed = ~np.isin(shapely.get_type_id(valid), [3, 6])
    valid[mixed] = [
        shapely.union_all([part for part in shapely.get_parts(one) if part.area > 0]) for one in valid[mixed]
    ]
    return valid


def say_lost(where: Path | str, cells: Any, outlined: Any, what: str = "cells", then: str = "", *, field: str) -> None:
    """Say which cells have no outline; refuse outlines, named by a field of a file, of which none is of a cell."""
    has = np.isin(np.asarray(cells, str), np.asarray(outlined, str))
    if not has.any():
        raise ValueError(
            f"{where}: no outline ({field}) is of one of the {len(has)} {what}: they are named like "
            f"{str(outlined[0])!r} and {str(cells[0])!r}. Are both of one sample?"
        )
    if not has.all():
        first = str(cells[int((~has).argmax())])
        n = int((~has).sum())
        logger.warning(f"{where}: {n} of {len(has)} {what} have no valid outline, such as {first!r}{then}.")


def one_plane(path: Path | str, frame: gpd.GeoDataFrame, cell: str, plane: str, wanted: float) -> gpd.GeoDataFrame:
    """One outline of each cell: of the plane that is wanted, else of the one that is nearest to it and has one.

    Outlines that cross themselves or have no area give way to those of another plane.
    """
    import shapely

    shapes = frame.geometry.to_numpy()
    usable = shapely.is_valid(shapes) & (shapely.area(shapes) > 0) & np.isin(shapely.get_type_id(shapes), [3, 6])
    away = np.abs(frame[plane].to_numpy(np.float64) - wanted)
    order = np.lexsort([frame[plane].to_numpy(np.float64), away])
    order = order[usable[order]]
    first = frame.iloc[np.sort(order[~frame[cell].iloc[order].duplicated().to_numpy()])]
    others = int((first[plane].to_numpy(np.float64) != wanted).sum())
    if others:
        logger.warning(
            f"{path}: {others} of {len(first)} cells have no valid outline in plane {wanted:g}; that of the nearest "
            "plane is taken."
        )
    lost = frame[cell].nunique() - len(first)
    if lost:
        logger.warning("%s: %d of %d cells have no valid outline; they are left out.", path, lost, lost + len(first))
    return first
