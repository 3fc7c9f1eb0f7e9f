"""Which superpixels a region has, how their features are smoothed, and how they stand in a batch."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from superpixels import CELL_UM, fine_slide

from sthist._tables.rows import Rows
from sthist.systems.expression.models.istar.superpixels import (
    FeatureMap,
    Superpixels,
    cells_of_regions,
    disc,
    superpixels_of,
)


def map_of(values: np.ndarray, origin=(0.0, 0.0)) -> FeatureMap:
    return FeatureMap("map", values.astype(np.float16), np.asarray(origin), CELL_UM)


@pytest.mark.parametrize("radius", [0.0, 0.9, 1.0, 2.3, 27.5 / 8])
def test_a_disc_is_symmetric(radius):
    found = {tuple(each) for each in disc(radius).tolist()}
    square = range(-4, 5)
    assert found == {(y, x) for y in square for x in square if y * y + x * x <= radius * radius}
    assert {(-y, x) for y, x in found} == {(x, y) for y, x in found} == found


def test_a_disc_of_no_radius_is_one_cell():
    assert disc(0.0).tolist() == [[0, 0]]


def test_cells_of_spots_are_discs_around_their_centres():
    sdata, _ = fine_slide(side=30)
    cells, row = cells_of_regions(sdata, Rows("spots", None, np.arange(4)), map_of(np.zeros((1, 30, 30))))
    offsets = disc(27.5 / CELL_UM)
    for spot, (x, y) in enumerate(np.asarray(sdata["table"].obsm["spatial"])[:4]):
        middle = np.array([y // CELL_UM, x // CELL_UM])
        expected = {tuple(each) for each in (offsets + middle).astype(int).tolist()}
        assert {tuple(each) for each in cells[row == spot].tolist()} == expected
    assert (np.diff(row) >= 0).all()


def test_cells_of_polygons_are_those_whose_centre_they_hold():
    """On a map that does not begin at 0; what holds no centre has the cell that its centroid lies in."""
    import geopandas as gpd
    from spatialdata import SpatialData
    from spatialdata.models import ShapesModel
    from spatialdata.transformations import Identity

    origin = np.array([-16.0, 40.0])
    polygons = [
        shapely.box(0, 60, 41, 90),
        shapely.Point(30, 100).buffer(21),
        shapely.box(1, 45, 2, 46),
        shapely.box(-500, -500, -400, -400),
    ]
    frame = gpd.GeoDataFrame(geometry=polygons)
    sdata = SpatialData(shapes={"cells": ShapesModel.parse(frame, transformations={"um": Identity()})})
    where = map_of(np.zeros((1, 12, 10)), origin)
    cells, row = cells_of_regions(sdata, Rows("cells", None, np.arange(4)), where)
    for number, polygon in enumerate(polygons[:2]):
        expected = [
            (y, x)
            for y in range(12)
            for x in range(10)
            if polygon.contains(shapely.Point(origin[0] + (x + 0.5) * CELL_UM, origin[1] + (y + 0.5) * CELL_UM))
        ]
        assert sorted(map(tuple, cells[row == number].tolist())) == expected
    assert cells[row == 2].tolist() == [[0, 2]]
    assert not (row == 3).any()  # off the map


def box_mean(values: np.ndarray, y: int, x: int, side: int) -> np.ndarray:
    """Mean over a square of so many cells around one, by the area that lies in it; NaN does not count."""
    total, area = np.zeros(len(values)), 0.0
    for j in range(values.shape[1]):
        for i in range(values.shape[2]):
            shares = [max(0.0, min(0.5, side / 2 - d) - max(-0.5, -side / 2 - d)) for d in (j - y, i - x)]
            if np.isfinite(values[0, j, i]):
                total += shares[0] * shares[1] * values[:, j, i]
                area += shares[0] * shares[1]
    return total / area if area else np.full(len(values), np.nan)


@pytest.mark.parametrize("side", [1, 3, 4])
def test_features_are_means_over_squares_of_what_is_known(side):
    rng = np.random.default_rng(0)
    values = rng.integers(0, 50, (2, 9, 11)).astype(float)
    values[:, 2:5, 3:9] = np.nan
    found, known = map_of(values).smoothed((0, 9), (-1, 11), (side, 2))
    assert found.shape == (4, 9, 12)
    np.testing.assert_array_equal(known[:, 1:], np.isfinite(values[0]))
    for y, x in [(0, 0), (3, 2), (3, 5), (8, 10), (5, 6)]:
        np.testing.assert_allclose(found[:2, y, x + 1], box_mean(values, y, x, side), rtol=1e-5)


def test_superpixels_of_rows_are_those_of_the_map():
    """Whatever blocks they are read in; those of which nothing is known are left out."""
    rng = np.random.default_rng(0)
    values = rng.random((3, 140, 150)).astype(np.float16)
    values[:, :, 140:] = np.nan
    cells = np.stack([rng.integers(0, 140, 300), rng.integers(0, 150, 300)], 1)
    row = np.sort(rng.integers(0, 40, 300))
    pixels = superpixels_of([map_of(values)], [(cells, row)], 41, (1,))
    assert len(pixels) == 41
    batch = pixels.take(np.array([7, 40, 3]))
    assert batch["cells"].shape[0] == 3
    np.testing.assert_allclose(batch["weight"].sum(axis=1), [1, 0, 1], rtol=1e-6)
    for place, number in ((0, 7), (2, 3)):
        mine = cells[row == number]
        mine = mine[mine[:, 1] < 140]
        expected = values[:, mine[:, 0], mine[:, 1]].T
        found = batch["cells"][place][batch["weight"][place] > 0]
        assert sorted(map(tuple, found.tolist())) == sorted(map(tuple, expected.tolist()))


def test_rows_are_filled_up_with_what_has_no_weight():
    pixels = Superpixels(np.arange(12, dtype=np.float16).reshape(6, 2), np.array([0, 1, 4, 6]))
    batch = pixels.take(np.array([1, 0]))
    np.testing.assert_allclose(batch["weight"], [[1 / 3] * 3, [1, 0, 0]])
    assert batch["cells"].tolist() == [[[2, 3], [4, 5], [6, 7]], [[0, 1], [0, 0], [0, 0]]]
