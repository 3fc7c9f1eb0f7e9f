"""Predictions that are too many for the memory: written block by block, and read block by block ever after."""

from __future__ import annotations

import anndata as ad
import dask.array as da
import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import spatialdata as sd
import zarr
from spatialdata.models import ShapesModel, TableModel
from spatialdata.transformations import Identity

import sthist
from sthist.regression import write

N, GENES = 30, tuple(f"G{i}" for i in range(7))


def slide(path, genes=()):
    """Embedded tiles on disk, whose table has some genes."""
    rng = np.random.default_rng(0)
    centres = np.column_stack([np.arange(N) % 10, np.arange(N) // 10]) * 100.0
    names = [f"tile {i}" for i in range(N)]
    shapes = gpd.GeoDataFrame({"radius": np.full(N, 50.0)}, geometry=gpd.points_from_xy(*centres.T))
    table = ad.AnnData(
        rng.random((N, len(genes))).astype(np.float32),
        obs=pd.DataFrame({"region": pd.Categorical(["tiles"] * N), "instance_id": np.arange(N)}, index=names),
        var=pd.DataFrame(index=list(genes)),
        obsm={"spatial": centres, "X_f": rng.normal(size=(N, 3)).astype(np.float32)},
    )
    sd.SpatialData(
        shapes={"tiles": ShapesModel.parse(shapes, transformations={"um": Identity(), "global": Identity()})},
        tables={
            "tiles_table": TableModel.parse(table, region="tiles", region_key="region", instance_key="instance_id")
        },
    ).write(path)
    return sd.read_zarr(path)


def ridge(smooth_um=None):
    rng = np.random.default_rng(1)
    features = rng.normal(size=(50, 3)).astype(np.float32)
    config = sthist.models.RidgeConfig(embeddings=("X_f",), smooth_um=smooth_um)
    return sthist.models.Ridge(config).fit(features, pd.DataFrame(features @ rng.normal(size=(3, 7)), columns=GENES))


@pytest.fixture
def small(monkeypatch):
    """A block has a few rows, and no table fits into memory."""
    monkeypatch.setattr(write, "IN_MEMORY", 10)
    monkeypatch.setattr(write, "BLOCK", 40)


@pytest.mark.parametrize("smooth_um", [None, 80.0])
def test_a_table_of_predictions(tmp_path, monkeypatch, smooth_um):
    model, within = ridge(smooth_um), (0, 0, 850, 400)
    whole = slide(tmp_path / "whole.zarr")
    sthist.tl.expression(whole, model, within=within)
    monkeypatch.setattr(write, "IN_MEMORY", 10)
    monkeypatch.setattr(write, "BLOCK", 40)
    lazy = slide(tmp_path / "lazy.zarr")
    sthist.tl.expression(lazy, model, within=within)
    expected, found = whole["tiles_table_ridge"], lazy["tiles_table_ridge"]
    assert isinstance(expected.X, np.ndarray)
    assert isinstance(found.X, da.Array)
    stored = sd.read_zarr(lazy.path)["tiles_table_ridge"]
    for table in (found, stored):
        np.testing.assert_allclose(np.asarray(table.X), expected.X, rtol=1e-6, atol=1e-6)
        pd.testing.assert_frame_equal(table.obs, expected.obs)
        pd.testing.assert_frame_equal(table.var, expected.var)
        assert table.uns.keys() == expected.uns.keys()
    assert 0 < found.n_obs < N


def test_a_layer_of_predictions(tmp_path, small):
    data = slide(tmp_path / "slide.zarr", [*GENES[::-1], "other"])
    before = data["tiles_table"].X.copy()
    sthist.tl.expression(data, ridge(), within=(0, 0, 850, 400))
    layer = data["tiles_table"].layers["ridge"]
    assert isinstance(layer, da.Array)
    again = sd.read_zarr(data.path)["tiles_table"]
    np.testing.assert_array_equal(np.asarray(layer), again.layers["ridge"])
    np.testing.assert_array_equal(again.X, before)
    expected = ridge().predict(again.obsm["X_f"])[:, ::-1]
    inside = (again.obsm["spatial"] <= (850, 400)).all(axis=1)
    np.testing.assert_allclose(again.layers["ridge"][inside, :7], expected[inside], rtol=1e-5, atol=1e-5)
    assert np.isnan(again.layers["ridge"][~inside]).all()
    assert np.isnan(again.layers["ridge"][:, 7]).all()


def test_a_lazy_table_is_changed_and_replaced(tmp_path, small):
    """What reads from the place that is written to, and is not read whole on the way."""
    data, model = slide(tmp_path / "slide.zarr"), ridge()
    sthist.tl.expression(data, model)
    first = np.asarray(data["tiles_table_ridge"].X)
    data["tiles_table_ridge"].obsm["X_f"] = np.asarray(data["tiles_table"].obsm["X_f"])
    sthist.tl.expression(data, model, regions="tiles_table_ridge", key_added="again")
    table = data["tiles_table_ridge"]
    assert isinstance(table.X, da.Array)
    np.testing.assert_array_equal(np.asarray(table.X), first)
    np.testing.assert_array_equal(sd.read_zarr(data.path)["tiles_table_ridge"].layers["again"], first)
    sthist.tl.expression(data, model, regions="tiles_table", overwrite=True)
    assert set(data["tiles_table_ridge"].layers) == set()


def test_chunks_on_disk_hold_some_genes_of_some_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(write, "IN_MEMORY", 10)
    monkeypatch.setattr("sthist._store.lazy.SIDE", 4)
    monkeypatch.setattr(write, "ROWS", 4)
    monkeypatch.setattr(write, "BLOCK", 70)
    data = slide(tmp_path / "slide.zarr")
    sthist.tl.expression(data, ridge())
    assert zarr.open_group(tmp_path / "slide.zarr")["tables/tiles_table_ridge/X"].chunks == (4, 4)


def test_a_failure_leaves_the_store_as_it_was(tmp_path, small, monkeypatch):
    data, model = slide(tmp_path / "slide.zarr"), ridge()
    calls = []

    def fail(self, *_):
        calls.append(1)
        if len(calls) > 5:
            raise OSError("no space left")
        yield from real(self, *_)

    real = type(model)._predict
    monkeypatch.setattr(type(model), "_predict", fail)
    with pytest.raises(OSError, match="no space left"):
        sthist.tl.expression(data, model)
    assert "tiles_table_ridge" not in data
    assert list(sd.read_zarr(data.path).tables) == ["tiles_table"]
    monkeypatch.undo()
    sthist.tl.expression(data, model)
    assert "tiles_table_ridge" in sd.read_zarr(data.path)
