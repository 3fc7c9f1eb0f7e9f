"""Stores of LazySlide and sopa, as they are: miniatures of their layouts."""

from __future__ import annotations

import anndata as ad
import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
import spatialdata as sd
from spatialdata.models import Image2DModel, PointsModel, ShapesModel, TableModel
from spatialdata.transformations import Affine, Identity, Scale, get_transformation

import sthist
from sthist import _sample, scale
from sthist._sample import other_tools
from sthist.tiles._laid_tiles import laid_tiles

HEIGHT, WIDTH, MPP = 300, 400, 0.5


def slide_pixels():
    """White, with tissue from (50, 40) to (350, 260)."""
    pixels = np.full((3, HEIGHT, WIDTH), 245, np.uint8)
    pixels[:, 40:260, 50:350] = np.array([180, 90, 160], np.uint8)[:, None, None]
    return pixels


def wsidata_store(path, *, image=True, thumbnail=False, transformation=None, stated_mpp=MPP, tile_mpp=MPP):
    """What LazySlide leaves after finding tissue, tiling and extracting features."""
    sdata = sd.SpatialData()
    if image:
        sdata.images["wsi"] = Image2DModel.parse(
            slide_pixels(), c_coords=["r", "g", "b"], transformations={"global": transformation or Identity()}
        )
    if thumbnail:
        sdata.images["wsi_thumbnail"] = Image2DModel.parse(
            slide_pixels()[:, ::4, ::4].copy(), transformations={"global": Scale([4.0, 4.0], axes=("x", "y"))}
        )
    tissues = gpd.GeoDataFrame({"tissue_id": [0], "geometry": [shapely.box(50, 40, 350, 260)]})
    sdata.shapes["tissues"] = ShapesModel.parse(tissues)
    xy = np.array([(x, y) for y in range(40, 240, 64) for x in range(50, 330, 64)])
    tiles = gpd.GeoDataFrame(
        {
            "tile_id": np.arange(len(xy)),
            "x": xy[:, 0],
            "y": xy[:, 1],
            "tissue_id": 0,
            "geometry": [shapely.box(x, y, x + 64, y + 64) for x, y in xy],
        }
    )
    sdata.shapes["tiles"] = ShapesModel.parse(tiles)
    obs = pd.DataFrame(
        {"tile_id": np.arange(len(xy)), "library_id": pd.Categorical(["tiles"] * len(xy))},
        index=np.arange(len(xy)).astype(str),
    )
    features = ad.AnnData(np.random.default_rng(0).normal(size=(len(xy), 8)).astype(np.float32), obs=obs)
    sdata.tables["uni_tiles"] = TableModel.parse(
        features, region="tiles", region_key="library_id", instance_key="tile_id"
    )
    sdata.attrs["tile_spec"] = {
        "tiles": {
            "height": 32,
            "width": 32,
            "stride_height": 32,
            "stride_width": 32,
            "mpp": tile_mpp * 2,
            "ops_level": 0,
            "ops_downsample": 2.0,
            "base_level": 0,
            "base_downsample": 2.0,
            "tissue_name": "tissues",
        }
    }
    sdata.attrs["slide_properties"] = {
        "shape": [HEIGHT, WIDTH],
        "n_level": 1,
        "level_shape": [[HEIGHT, WIDTH]],
        "level_downsample": [1.0],
        "mpp": stated_mpp,
        "magnification": 20.0,
        "bounds": [0, 0, WIDTH, HEIGHT],
        "scene": 0,
        "n_scenes": 1,
        "scene_names": ["Image 0"],
        "raw": "{}",
    }
    sdata.write(path)
    return sd.read_zarr(path)


class TestWsidata:
    def test_verbs_run_on_it(self, tmp_path):
        """Found without a name: the slide, its scale, its tissue; its tiles lie where they were cut."""
        sdata = wsidata_store(tmp_path / "x.zarr")
        assert _sample.find_he(sdata) == "wsi"
        assert scale.resolve_mpp(sdata, "wsi") == (MPP, MPP)
        sthist.pp.set_scale(sdata, "wsi")
        again = sd.read_zarr(tmp_path / "x.zarr")
        assert {"um", "global"} == set(again.coordinate_systems)
        x, y = again["tiles"].geometry.centroid.x, again["tiles"].geometry.centroid.y
        table, spec = laid_tiles(again, "tiles")
        np.testing.assert_allclose(table.obsm["spatial"], np.c_[x, y] * MPP)
        assert (spec.size_um, spec.px) == (pytest.approx(64 * MPP), 32)
        tile = sthist.tiles.TileReader(again, "wsi", spec).read(table.obsm["spatial"][:1])
        expected = slide_pixels()[:, 40:104, 50:114].transpose(1, 2, 0).reshape(32, 2, 32, 2, 3).mean((1, 3))
        np.testing.assert_array_equal(tile[0], expected)
        sthist.pp.tiles(again, size_um=20, px=20, key_added="squares")
        assert again["squares"].total_bounds.tolist() == [25, 20, 165, 120]
        drawn = gpd.GeoDataFrame({"label": ["left"]}, geometry=[shapely.box(0, 0, 57, 150)])
        again.shapes["drawn"] = ShapesModel.parse(drawn, transformations={"um": Identity()})
        sthist.pp.label_regions(again, "tiles", by="drawn")
        left = again["uni_tiles"].obs["label"].notna().to_numpy()
        np.testing.assert_array_equal(left, x.to_numpy() * MPP <= 57)

    def test_features_are_no_expression(self, tmp_path):
        sdata = wsidata_store(tmp_path / "x.zarr")
        assert other_tools.without_counts(sdata) == {"uni_tiles"}
        with pytest.raises(KeyError, match=r"Found no table of expression"):
            _sample.find_expression_table(sdata)
        assert _sample.find_cell_table(sdata) is None
        assert _sample.find_expression_table(sdata, "uni_tiles") == "uni_tiles"

    def test_an_overview_alone(self, tmp_path):
        """The slide itself stays outside of such a store: its overview shows four times as much per pixel."""
        sdata = wsidata_store(tmp_path / "x.zarr", image=False, thumbnail=True)
        assert scale.resolve_mpp(sdata, "wsi_thumbnail") == (4 * MPP, 4 * MPP)
        sthist.pp.set_scale(sdata, "wsi_thumbnail")
        sthist.pp.tissue(sdata, mpp=2.0, min_area_um2=100)
        outline = shapely.union_all(sdata["tissue"].geometry)
        np.testing.assert_allclose(outline.bounds, (25, 20, 175, 130), atol=5)
        lying = shapely.union_all(sd.transform(sdata["tissues"], to_coordinate_system="um").geometry)
        assert lying.bounds == (25, 20, 175, 130)

    def test_the_slide_counts_not_its_overview(self, tmp_path):
        sdata = wsidata_store(tmp_path / "x.zarr", thumbnail=True)
        assert _sample.find_he(sdata) == "wsi"
        with pytest.raises(ValueError, match=r"Image 'wsi_thumbnail' has no scale"):
            scale.resolve_mpp(sdata, "wsi_thumbnail")
        sthist.pp.set_scale(sdata, "wsi")
        assert scale.resolve_mpp(sdata, "wsi_thumbnail") == (4 * MPP, 4 * MPP)

    def test_tiles_follow_the_image_that_they_are_on(self, tmp_path):
        """An image that was aligned: its tiles are in its pixels, though the store says that those are 'global'."""
        matrix = np.array([[0, -1.288, 900.0], [1.288, 0, 100], [0, 0, 1]])
        there = Affine(matrix, ("x", "y"), ("x", "y"))
        sdata = wsidata_store(tmp_path / "x.zarr", transformation=there, stated_mpp=None)
        sthist.pp.set_scale(sdata, "wsi", mpp=MPP)
        for key in ("tiles", "tissues"):
            np.testing.assert_array_equal(scale.matrix_to(sdata[key]), scale.matrix_to(sdata["wsi"]))
            assert isinstance(get_transformation(sdata[key], "global"), Identity)
        corner = shapely.Point(*(np.diag([MPP / 1.288] * 2) @ (matrix @ [50, 40, 1])[:2]))
        first = sd.transform(sdata["tiles"], to_coordinate_system="um").geometry.iloc[0]
        assert shapely.distance(first.exterior, corner) < 1e-9
        sthist.pp.set_scale(sdata, "wsi")  # once more changes nothing
        np.testing.assert_array_equal(scale.matrix_to(sdata["tiles"]), scale.matrix_to(sdata["wsi"]))

    def test_what_its_spec_says_of_the_scale_is_checked(self, tmp_path, caplog):
        """LazySlide keeps the µm/px that was asked for, also where it had to ignore it."""
        sdata = wsidata_store(tmp_path / "x.zarr", tile_mpp=0.25)
        sthist.pp.set_scale(sdata, "wsi")
        _, spec = laid_tiles(sdata, "tiles")
        assert spec.mpp == pytest.approx(2 * MPP)
        assert "attrs['tile_spec']['tiles'] says 0.5 µm/px, but its tiles show 1 µm/px" in caplog.text

    def test_contradictions(self, tmp_path):
        sdata = wsidata_store(tmp_path / "x.zarr")
        with pytest.raises(
            ValueError, match=r"disagree by 100.0%: 0.25 .*argument mpp=.* 0.5 .*attrs\['slide_properties'\]\['mpp'\]"
        ):
            sthist.pp.set_scale(sdata, "wsi", mpp=0.25)
        sthist.pp.set_scale(sdata, "wsi", mpp=0.25, overwrite=True)
        assert scale.resolve_mpp(sd.read_zarr(tmp_path / "x.zarr"), "wsi") == (0.25, 0.25)

    def test_only_where_it_is_plain_which_image_is_meant(self, tmp_path):
        """Two images of that size, or none: nothing is guessed, and nothing taken from the magnification."""
        sdata = wsidata_store(tmp_path / "x.zarr")
        sdata.images["other"] = sdata.images["wsi"].copy()
        assert other_tools.slide_image(sdata) is None
        with pytest.raises(ValueError, match=r"Image 'wsi' has no scale"):
            scale.resolve_mpp(sdata, "wsi")
        del sdata.images["other"]
        sdata.attrs["slide_properties"]["shape"] = [HEIGHT + 1, WIDTH]
        assert other_tools.stated_mpp(sdata, "wsi") == {}

    def test_our_own_records_come_first(self, tmp_path):
        sdata = wsidata_store(tmp_path / "x.zarr")
        sdata.images["he"] = Image2DModel.parse(np.zeros((3, 10, 10), np.uint8), transformations={"global": Identity()})
        _sample.set_role(sdata, "he", {"image": "he"})
        assert _sample.find_he(sdata) == "he"
        scale.record_mpp(sdata, "wsi", "OME", 0.75)
        assert scale.resolve_mpp(sdata, "wsi") == (0.75, 0.75)
        sdata.shapes["tissue"] = sdata.shapes["tissues"]
        assert _sample.find_tissue(sdata) == "tissue"

    @pytest.mark.parametrize("value", [[], "x", 3, {"shape": None}, {"shape": [1]}, {"mpp": 0.5}])
    def test_attributes_of_that_name_by_somebody_else(self, toy, value):
        toy.attrs["slide_properties"] = toy.attrs["tile_spec"] = value
        toy.attrs["cell_segmentation_image"] = value
        assert other_tools.roles(toy) == {}
        assert scale.resolve_mpp(toy, "he") == pytest.approx((0.5, 0.5))


def sopa_store(path, toy, *, counts=True, um=False):
    """The toy sample as sopa's reader of Xenium and its aggregation leave it: no record of ours, and no micrometres."""
    sdata = sd.SpatialData()
    stain = toy["morphology_focus"].to_numpy()
    stack = np.concatenate([stain, stain // 2])
    sdata.images["morphology_focus"] = Image2DModel.parse(
        stack, c_coords=["DAPI", "18S"], transformations={"global": Identity()}
    )
    sdata.images["he_image"] = Image2DModel.parse(
        toy["he"].to_numpy(),
        c_coords=["r", "g", "b"],
        transformations={"global": get_transformation(toy["he"], "global")},
    )
    sdata.images["other_dapi"] = Image2DModel.parse(stain, c_coords=["DAPI"])
    points = toy["transcripts"].compute()[["x", "y", "feature_name"]]
    to_px = {"global": Scale([2.0, 2.0], axes=("x", "y"))}
    sdata.points["transcripts"] = PointsModel.parse(points, feature_key="feature_name", transformations=to_px)
    sdata.points["misc"] = PointsModel.parse(points, feature_key="feature_name", transformations=to_px)
    cells = gpd.GeoDataFrame(geometry=toy["cell_boundaries"].geometry.scale(2, 2, origin=(0, 0)).to_numpy())
    cells.index = [f"cell-{i}" for i in range(len(cells))]
    sdata.shapes["proseg_boundaries"] = ShapesModel.parse(cells)
    table = ad.AnnData(toy["table"].X.copy(), var=toy["table"].var.copy())
    table.obs_names = cells.index
    table.obs["region"] = pd.Categorical(["proseg_boundaries"] * len(cells))
    table.obs["slide"] = pd.Categorical(["morphology_focus"] * len(cells))
    table.obs["cell_id"] = cells.index
    table.obs["area"] = cells.area
    table.uns["sopa_attrs"] = {"transcripts": counts, "intensities": not counts}
    linked = {"region": "proseg_boundaries", "region_key": "region", "instance_key": "cell_id"}
    sdata.tables["table"] = TableModel.parse(table, **linked)
    patches = gpd.GeoDataFrame(geometry=[shapely.box(0, 0, 100, 100), shapely.box(100, 0, 200, 100)])
    sdata.shapes["embeddings_patches"] = ShapesModel.parse(patches)
    embedded = ad.AnnData(np.ones((2, 4), np.float32), obs=pd.DataFrame(index=["0", "1"]))
    embedded.obs["region"] = pd.Categorical(["embeddings_patches"] * 2)
    embedded.obs["instance"] = [0, 1]
    embedded.uns["embedding_config"] = {"patch_width": 100, "magnification": 20}
    sdata.tables["dinov2_embeddings"] = TableModel.parse(
        embedded, region="embeddings_patches", region_key="region", instance_key="instance"
    )
    sdata.attrs |= {
        "cell_segmentation_image": "morphology_focus",
        "tissue_segmentation_image": "he_image",
        "transcripts_dataframe": "transcripts",
        "boundaries_shapes": "proseg_boundaries",
        "sopa_uid": "0d9c",
        "xenium_output_path": "/data/outs",
    }
    sdata.write(path)
    return sd.read_zarr(path)


class TestSopa:
    def test_roles(self, toy, tmp_path):
        """Each of these has another candidate, so that names alone would not do."""
        sdata = sopa_store(tmp_path / "x.zarr", toy)
        found = _sample.find_high_res(sdata)
        assert (found.nuclear, found.nuclear_channel) == (("morphology_focus",), "DAPI")
        assert found.cytoplasm_channels == ("18S",)
        assert (found.points, found.gene, found.table) == ("transcripts", "feature_name", "table")
        assert _sample.find_he(sdata) == "he_image"
        assert _sample.find_expression_table(sdata) == "table"

    def test_verbs_run_on_it(self, toy, tmp_path):
        """Xenium's transcripts are in µm, which gives the scale of all that shares their system."""
        sdata = sopa_store(tmp_path / "x.zarr", toy)
        assert scale.resolve_mpp(sdata, "morphology_focus") == pytest.approx((0.5, 0.5))
        sthist.pp.set_scale(sdata, "morphology_focus")
        np.testing.assert_allclose(scale.matrix_to(sdata["he_image"]), scale.matrix_to(toy["he"]), atol=1e-9)
        np.testing.assert_allclose(scale.matrix_to(sdata["transcripts"]), np.eye(3), atol=1e-12)
        shapes, counts = _sample.cell_counts(sdata, "table")
        mine, theirs = toy["cell_boundaries"].geometry, shapes.geometry
        np.testing.assert_allclose(np.c_[theirs.centroid.x, theirs.centroid.y], np.c_[mine.centroid.x, mine.centroid.y])
        np.testing.assert_array_equal(counts, np.asarray(toy["table"].X.sum(1)).ravel())
        sthist.tl.virtual_he(sdata, within=(50, 50, 150, 150))
        assert "virtual_he" in sd.read_zarr(tmp_path / "x.zarr").images

    def test_intensities_are_no_expression(self, toy, tmp_path):
        sdata = sopa_store(tmp_path / "x.zarr", toy, counts=False)
        assert other_tools.without_counts(sdata) == {"table", "dinov2_embeddings"}
        assert _sample.find_cell_table(sdata) is None

    def test_a_slide(self):
        """sopa.io.wsi names one image alone, after its file."""
        image = Image2DModel.parse(slide_pixels(), c_coords=["r", "g", "b"])
        sdata = sd.SpatialData(images={"CMU-1": image}, attrs={"tissue_segmentation_image": "CMU-1"})
        assert _sample.find_he(sdata) == "CMU-1"
        assert "nuclear" not in other_tools.roles(sdata)

    def test_stains_of_three_channels_are_no_he(self):
        image = Image2DModel.parse(slide_pixels(), c_coords=["DAPI", "CD3", "CD8"])
        sdata = sd.SpatialData(images={"if": image}, attrs={"tissue_segmentation_image": "if"})
        assert "he" not in other_tools.roles(sdata)

    def test_bins(self, tmp_path):
        """Visium HD: the bins are the spots."""
        squares = gpd.GeoDataFrame(geometry=[shapely.box(0, 0, 2, 2)])
        table = ad.AnnData(np.ones((1, 3), np.float32), obs=pd.DataFrame({"id": [0]}, index=["a"]))
        table.obs["region"] = pd.Categorical(["bins"])
        sdata = sd.SpatialData(
            shapes={"bins": ShapesModel.parse(squares)},
            tables={"square_008um": TableModel.parse(table, region="bins", region_key="region", instance_key="id")},
            attrs={"bins_table": "square_008um"},
        )
        assert _sample.roles(sdata)["spots"] == {"table": "square_008um", "shapes": "bins"}

    def test_what_they_name_may_be_gone(self, toy, tmp_path):
        """Stores are often passed on without their images."""
        sdata = sopa_store(tmp_path / "x.zarr", toy)
        del sdata.images["morphology_focus"], sdata.points["transcripts"], sdata.shapes["proseg_boundaries"]
        assert set(other_tools.roles(sdata)) == {"he", "cells"}
        assert _sample.find_nuclear(sdata)[0] == ("other_dapi",)
