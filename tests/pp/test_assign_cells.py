"""Cells in spots: at the rim, where discs overlap, in squares; against all pairs."""

from __future__ import annotations

import anndata as ad
import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
import spatialdata as sd
from spatialdata.models import ShapesModel, TableModel
from spatialdata.transformations import Identity, Scale

import sthist
from sthist.pp._nuclei.assign import nearest_disc

R = 27.5


def linked(n, region, n_vars=0):
    obs = pd.DataFrame({"region": pd.Categorical([region] * n), "instance_id": np.arange(n)})
    obs.index = [f"{region}{number}" for number in range(n)]
    table = ad.AnnData(np.ones((n, n_vars), np.float32), obs=obs)
    return TableModel.parse(table, region=region, region_key="region", instance_key="instance_id")


def sample(cells, spots, radius=R, unit_um=1.0, squares=None):
    """Cells at places in µm, and discs or squares, in units of so many µm."""
    where = {"um": Scale([unit_um, unit_um], ("x", "y")) if unit_um != 1 else Identity()}
    cells, spots = np.asarray(cells, float), np.asarray(spots, float)
    nuclei = gpd.GeoDataFrame(geometry=shapely.buffer(shapely.points(cells), 2.0))
    if squares:
        half = squares / 2
        geometry = shapely.box(*(spots - half).T, *(spots + half).T)
        shapes = ShapesModel.parse(gpd.GeoDataFrame(geometry=geometry), transformations=where)
    else:
        shapes = ShapesModel.parse(
            spots / unit_um, geometry=0, radius=np.asarray(radius) / unit_um, transformations=where
        )
    return sd.SpatialData(
        shapes={"nuclei": ShapesModel.parse(nuclei, transformations={"um": Identity()}), "spots": shapes},
        tables={"nuclei_table": linked(len(cells), "nuclei"), "table": linked(len(spots), "spots", 2)},
    )


def brute(places, centres, radii):
    away = np.hypot(*(places[:, None] - centres[None]).transpose(2, 0, 1))
    away = np.where(away <= radii, away, np.inf)
    return np.where(np.isfinite(away.min(axis=1)), away.argmin(axis=1), -1)


@pytest.mark.parametrize("unit_um", [1.0, 0.25])
def test_at_the_rim(unit_um):
    eps = 1e-3
    sdata = sample(
        [[100 + R - eps, 100], [100 + R + eps, 100], [100, 100], [200, 100]], [[100, 100], [200, 100]], R, unit_um
    )
    sthist.pp.assign_cells(sdata)
    spot = sdata["nuclei_table"].obs["spot"]
    assert spot.isna().tolist() == [False, True, False, False]
    assert spot.dropna().tolist() == ["0", "0", "1"]
    assert sdata["table"].obs["n_cells"].tolist() == [2, 1]


def test_the_rim_itself_is_inside():
    places = np.array([[27.5, 0], [np.nextafter(27.5, 28), 0], [np.nextafter(27.5, 27), 0]])
    assert nearest_disc(places, np.zeros((1, 2)), np.array([27.5])).tolist() == [0, -1, 0]


def test_no_cell_is_in_two_spots_of_visium_and_none_is_lost():
    rng = np.random.default_rng(0)
    x, y = np.meshgrid(np.arange(12), np.arange(10))
    centres = np.c_[(x + (y % 2) / 2).ravel() * 100, y.ravel() * 100 * np.sqrt(0.75)]
    places = rng.uniform(-50, 1200, (5000, 2))
    inside = np.hypot(*(places[:, None] - centres[None]).transpose(2, 0, 1)) <= R
    assert inside.sum(axis=1).max() == 1
    sdata = sample(places, centres)
    sthist.pp.assign_cells(sdata)
    assert sdata["table"].obs["n_cells"].tolist() == inside.sum(axis=0).tolist()
    assert sdata["nuclei_table"].obs["spot"].notna().sum() == inside.sum()


@pytest.mark.parametrize("seed", range(4))
def test_of_discs_of_any_size_it_is_what_all_pairs_say(seed):
    rng = np.random.default_rng(seed)
    centres = rng.integers(0, 12, (60, 2)) * 10.0  # many at one place, and many equally near
    radii = rng.choice([0.0, 5, 10, 40], 60) if seed else np.full(60, 12.0)
    places = np.r_[rng.uniform(-5, 125, (500, 2)), rng.integers(0, 24, (200, 2)) * 5.0]
    np.testing.assert_array_equal(nearest_disc(places, centres, radii), brute(places, centres, radii))


def test_what_has_no_place_is_in_no_spot():
    places, centres = np.array([[0.0, 0], [np.nan, 0]]), np.array([[np.nan, np.nan], [1, 0]])
    assert nearest_disc(places, centres, np.array([R, R])).tolist() == [1, -1]
    assert nearest_disc(places, centres[:1], np.array([R])).tolist() == [-1, -1]


def test_squares():
    x, y = np.meshgrid(np.arange(6), np.arange(5))
    centres = np.c_[x.ravel(), y.ravel()] * 16.0 + 8
    places = np.random.default_rng(0).uniform(-10, 110, (400, 2))
    sdata = sample(places, centres, squares=16.0)
    sthist.pp.assign_cells(sdata)
    column, row = np.floor(places / 16).astype(int).T
    expected = np.where((column >= 0) & (column < 6) & (row >= 0) & (row < 5), row * 6 + column, -1)
    spot = sdata["nuclei_table"].obs["spot"]
    assert spot.cat.codes.tolist() == expected.tolist()


def test_is_there_after_reading(tmp_path):
    sdata = sample([[100, 100], [300, 300]], [[100, 100], [200, 100]])
    sdata.write(tmp_path / "s.zarr")
    sthist.pp.assign_cells(sdata)
    read = sd.read_zarr(tmp_path / "s.zarr")
    assert read["nuclei_table"].obs["spot"].isna().tolist() == [False, True]
    assert read["table"].obs["n_cells"].tolist() == [1, 0]
    with pytest.raises(ValueError, match=r"obs\['spot'\] already"):
        sthist.pp.assign_cells(read)


def test_what_is_refused():
    sdata = sample([[900, 900]], [[100, 100]])
    with pytest.raises(ValueError, match="None of the 1 cells 'nuclei' lies in one of the 1 spots 'spots'"):
        sthist.pp.assign_cells(sdata)
    with pytest.raises(KeyError, match=r"sthist.pp.nuclei\(sdata\)"):
        sthist.pp.assign_cells(sdata, cells="cells")
