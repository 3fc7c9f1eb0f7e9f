"""Features as a table of their own, which scanpy and squidpy take as it is."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import spatialdata as sd

import sthist
from sthist.encoders import Morphology
from sthist.tiles import TileSpec

PAGE = Path(__file__).parents[2] / "docs" / "scanpy_on_tiles.md"
SPEC = TileSpec(64, 128)


def mean_colour(tiles):
    return tiles.reshape(len(tiles), -1, 3).mean(1)


@pytest.fixture
def tiled(toy):
    sthist.pp.tissue(toy)
    sthist.pp.tiles(toy, size_um=64, px=128)
    toy["tiles_table"].obs["half"] = pd.Categorical(np.where(np.arange(toy["tiles_table"].n_obs) % 2, "a", "b"))
    toy["tiles_table"].uns["half_colors"] = ["#ff0000", "#0000ff"]
    return toy


def test_the_same_features_in_a_table(tiled):
    """As in obsm, with their names and meanings; the obsm form writes no table, and this one no obsm."""
    before = tiled["tiles_table"].copy()
    sthist.pp.embed(tiled, as_table=True)
    assert list(tiled["tiles_table"].obsm) == list(before.obsm)
    table = tiled["tiles_table_morphology"]
    sthist.pp.embed(tiled)
    assert set(tiled.tables) == {"table", "tiles_table", "tiles_table_morphology"}
    regions = tiled["tiles_table"]
    np.testing.assert_array_equal(table.X, regions.obsm["X_morphology"])
    assert table.X.dtype == np.float32
    assert list(table.var_names) == list(Morphology().feature_names)
    assert table.var["meaning"].tolist() == regions.uns["X_morphology_features"]["meaning"].tolist()
    pd.testing.assert_frame_equal(table.obs, before.obs)
    np.testing.assert_array_equal(table.obsm["spatial"], before.obsm["spatial"])
    assert table.uns["spatialdata_attrs"] == before.uns["spatialdata_attrs"]
    assert table.uns["half_colors"] == before.uns["half_colors"]
    assert "tile_spec" not in table.uns  # they are tiles of the other table
    made = table.uns["sthist"]["tiles_table_morphology"]
    assert (made["call"], made["encoder"], made["image"]) == ("pp.embed", "morphology", "he")
    assert made["digest"] == regions.uns["sthist"]["X_morphology"]["digest"]
    shapes, joined = sd.join_spatialelement_table(
        sdata=tiled, spatial_element_names=["tiles"], table_name="tiles_table_morphology", how="left"
    )
    assert len(shapes["tiles"]) == joined.n_obs == table.n_obs


def test_read_back_equal(backed):
    """From the store, where it stands beside the others; a second call does nothing, and a changed one asks."""
    sthist.pp.tissue(backed)
    sthist.pp.tiles(backed, size_um=64, px=128)
    sthist.pp.embed(backed, as_table=True, key_added="looks")
    stored = sd.read_zarr(backed.path)["looks"]
    table = backed["looks"]
    np.testing.assert_array_equal(stored.X, table.X)
    pd.testing.assert_frame_equal(stored.obs, table.obs)
    pd.testing.assert_frame_equal(stored.var, table.var)
    np.testing.assert_array_equal(stored.obsm["spatial"], table.obsm["spatial"])
    assert stored.uns["spatialdata_attrs"] == table.uns["spatialdata_attrs"]
    assert stored.uns["sthist"]["looks"]["digest"] == table.uns["sthist"]["looks"]["digest"]
    again = sd.read_zarr(backed.path)
    sthist.pp.embed(again, as_table=True, key_added="looks")
    assert again["looks"].uns["sthist"]["looks"]["date"] == stored.uns["sthist"]["looks"]["date"]
    with pytest.raises(ValueError, match=r"tables\['looks'\] exists. Pass overwrite=True"):
        sthist.pp.embed(again, as_table=True, key_added="looks", spec=SPEC.from_mpp(1.0, 64))
    sthist.pp.embed(again, as_table=True, key_added="looks", spec=SPEC.from_mpp(1.0, 64), overwrite=True)
    assert sd.read_zarr(backed.path)["looks"].uns["sthist"]["looks"]["spec"] == {"size_um": 64.0, "px": 64}
    assert not list((Path(backed.path) / ".sthist").glob("tiles-*"))


def test_features_that_are_there_are_not_computed_again(tiled, monkeypatch):
    """And features without names are numbered."""
    sthist.pp.embed(tiled, mean_colour, spec=SPEC)

    def refuse(*_):
        raise AssertionError("they were computed again")

    monkeypatch.setattr("sthist.pp._embed.Work.embed", refuse)
    sthist.pp.embed(tiled, mean_colour, spec=SPEC, as_table=True)
    table = tiled["tiles_table_mean_colour"]
    assert list(table.var_names) == ["mean_colour_0", "mean_colour_1", "mean_colour_2"]
    np.testing.assert_array_equal(table.X, tiled["tiles_table"].obsm["X_mean_colour"])


def test_regions_without_a_table_and_a_part(tiled):
    """Rows that are not embedded are not there; the regions have no other table for it."""
    box = (0, 0, 200, 400)
    sthist.pp.embed(tiled, mean_colour, regions="nucleus_boundaries", spec=TileSpec(16, 32), within=box, as_table=True)
    table = tiled["nucleus_boundaries_table_mean_colour"]
    assert 0 < table.n_obs < len(tiled["nucleus_boundaries"])
    assert table.obsm["spatial"][:, 0].max() <= 200
    assert np.isfinite(table.X).all()
    assert "nucleus_boundaries_table" not in tiled.tables
    sthist.pp.label_regions(tiled, "nucleus_boundaries", by="regions")
    assert "label" in tiled["nucleus_boundaries_table"].obs
    assert "label" not in table.obs
    sthist.pp.embed(tiled, mean_colour, regions="nucleus_boundaries", spec=TileSpec(16, 32), outside="nan")
    assert "X_mean_colour" in tiled["nucleus_boundaries_table"].obsm


def test_a_table_that_embed_has_made_for_its_own_columns_stays_the_one_of_the_regions(tiled):
    """It was made for an entry of obsm, and holds no features in place of genes."""
    for key in ("X_first", "X_second"):
        sthist.pp.embed(tiled, mean_colour, regions="nucleus_boundaries", spec=TileSpec(16, 32), key_added=key)
    assert {"X_first", "X_second"} <= set(tiled["nucleus_boundaries_table"].obsm)


def test_other_verbs_do_not_take_it_for_the_table_of_the_regions(tiled):
    """Neither for that of the tiles, nor for that of expression, nor for one of two that have a column."""
    sthist.pp.label_regions(tiled, "tiles", by="regions")
    sthist.pp.embed(tiled, as_table=True)
    assert "label" in tiled["tiles_table_morphology"].obs
    sthist.pp.embed(tiled)
    assert "X_morphology" in tiled["tiles_table"].obsm
    sthist.tl.niches(tiled, "label", n_niches=2, method="kmeans", radius_um=100)
    assert "niche" in tiled["tiles_table"].obs
    sthist.pp.genes(tiled)
    assert tiled["table"].layers
    assert not tiled["tiles_table_morphology"].layers


def test_a_folder_of_tiles_becomes_no_table(tmp_path):
    from PIL import Image

    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (64, 64), "red").save(tmp_path / name / "0.png")
    tiles = sthist.io.tile_folder(tmp_path, mpp=0.5)
    with pytest.raises(ValueError, match="a folder of tiles is none"):
        sthist.pp.embed(tiles, as_table=True)


def test_the_page_runs(tmp_path, monkeypatch):
    """All of it, as it stands; clusters are found, told apart in words, and drawn."""
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE):
        with warnings.catch_warnings():  # scanpy's fold changes are of counts, and squidpy renames
            warnings.filterwarnings("ignore", "Calling `spatial_neighbors` is deprecated", FutureWarning)
            warnings.filterwarnings("ignore", "invalid value encountered in log2", RuntimeWarning)
            exec(block, names)
    tiles, best = names["tiles"], names["best"]
    assert tiles.obs["leiden"].nunique() > 1
    assert (best["meaning"].str.len() > 0).all()
    assert {"moranI"} <= set(tiles.uns)
    assert names["maps"]["I"].max() > 0.2  # tissue is not noise
    plt.close("all")
