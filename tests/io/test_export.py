"""What viewers open."""

from __future__ import annotations

import json

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
import tifffile

import sthist


class TestOmeTiff:
    @pytest.mark.parametrize("image", ["he", "morphology_focus"])
    def test_round_trip(self, toy, tmp_path, image):
        sthist.io.export_ome_tiff(toy, image, tmp_path / "x.ome.tif")
        pixels = toy[image].to_numpy()
        with tifffile.TiffFile(tmp_path / "x.ome.tif") as file:
            series = file.series[0]
            written = series.asarray()
            assert series.keyframe.is_tiled
            assert series.keyframe.tile == (512, 512)
        written = written.transpose(2, 0, 1) if image == "he" else written.reshape(pixels.shape)
        np.testing.assert_array_equal(written, pixels)
        again = sthist.io.assemble({image: tmp_path / "x.ome.tif"})
        assert sthist.scale.resolve_mpp(again, image) == (0.5, 0.5)

    def test_a_virtual_slide_is_a_pyramid_that_is_read_by_tiles(self, tmp_path):
        sdata = sthist.datasets.toy(size_um=800)
        sthist.tl.virtual_he(sdata)
        sthist.io.export_ome_tiff(sdata, "virtual_he", tmp_path / "v.ome.tif")
        levels = [node["image"] for node in sdata["virtual_he"].children.values()]
        with tifffile.TiffFile(tmp_path / "v.ome.tif") as file:
            shapes = [level.shape for level in file.series[0].levels]
            assert shapes == [(*level.shape[1:], 3) for level in levels]
            page = file.series[0].levels[0].keyframe
            offset, size = page.dataoffsets[3], page.databytecounts[3]
            file.filehandle.seek(offset)
            tile, _, _ = page.decode(file.filehandle.read(size), 3)
            columns = -(-page.imagewidth // 512)
            y, x = divmod(3, columns)
            expected = levels[0].to_numpy()[:, y * 512 : y * 512 + 512, x * 512 : x * 512 + 512].transpose(1, 2, 0)
            np.testing.assert_array_equal(tile.squeeze()[: expected.shape[0], : expected.shape[1]], expected)
        slide = sthist.io.slide(tmp_path / "v.ome.tif")
        part = sthist.tiles.read_region(slide, "he", (100, 100, 200, 200), 2.0)
        np.testing.assert_array_equal(part, sthist.tiles.read_region(sdata, "virtual_he", (100, 100, 200, 200), 2.0))

    def test_metadata_are_valid(self, tmp_path):
        from importlib.resources import files

        import ome_types
        import xmlschema

        stack = np.zeros((3, 40, 60), np.uint16)
        sdata = sthist.io.assemble({"if": stack}, mpp=0.25, channels={"if": ["DAPI", "µ-tubulin", "CD3 & CD8"]})
        sthist.io.export_ome_tiff(sdata, "if", tmp_path / "x.ome.tif")
        with tifffile.TiffFile(tmp_path / "x.ome.tif") as file:
            xml = file.ome_metadata
        xmlschema.XMLSchema(str(files("ome_types") / "ome-2016-06.xsd")).validate(xml)
        pixels = ome_types.from_xml(xml).images[0].pixels
        assert (pixels.physical_size_x, pixels.physical_size_y) == (0.25, 0.25)
        assert pixels.physical_size_x_unit.value == "µm"
        assert [channel.name for channel in pixels.channels] == ["DAPI", "µ-tubulin", "CD3 & CD8"]
        assert (pixels.size_c, pixels.size_y, pixels.size_x) == (3, 40, 60)

    def test_one_without_a_pyramid_gets_one(self, tmp_path):
        import spatialdata as sd
        from spatialdata.transformations import Scale

        pixels = np.random.default_rng(0).integers(0, 255, (1, 2100, 1300)).astype(np.uint8)
        image = sd.models.Image2DModel.parse(
            pixels, dims=("c", "y", "x"), c_coords=["DAPI"], transformations={"um": Scale([0.5, 0.5], ("x", "y"))}
        )
        sthist.io.export_ome_tiff(sd.SpatialData(images={"x": image}), "x", tmp_path / "x.ome.tif")
        with tifffile.TiffFile(tmp_path / "x.ome.tif") as file:
            assert [level.shape for level in file.series[0].levels] == [(2100, 1300), (1050, 650), (525, 325)]
            half = file.series[0].levels[1].asarray()
        expected = pixels[0, :2100, :1300].reshape(1050, 2, 650, 2).mean((1, 3)).round()
        np.testing.assert_array_equal(half, expected)

    def test_bad_input(self, toy, tmp_path):
        with pytest.raises(ValueError, match=r"x.tif should end in .ome.tif"):
            sthist.io.export_ome_tiff(toy, "he", tmp_path / "x.tif")
        (tmp_path / "x.ome.tif").write_text("")
        with pytest.raises(FileExistsError, match=r"pass overwrite=True"):
            sthist.io.export_ome_tiff(toy, "he", tmp_path / "x.ome.tif")
        sthist.io.export_ome_tiff(toy, "he", tmp_path / "x.ome.tif", overwrite=True)
        with pytest.raises(KeyError, match=r"No image 'h'"):
            sthist.io.export_ome_tiff(toy, "h", tmp_path / "y.ome.tif")
        from spatialdata.transformations import Identity, set_transformation

        set_transformation(toy["he"], {"global": Identity()}, set_all=True)
        with pytest.raises(ValueError, match=r"has no scale"):
            sthist.io.export_ome_tiff(toy, "he", tmp_path / "y.ome.tif")
        stack = sthist.io.assemble({"dapi": np.zeros((1, 2, 30, 30), np.uint8)}, mpp=1)
        with pytest.raises(ValueError, match=r"has the axes .*Choose a plane first"):
            sthist.io.export_ome_tiff(stack, "dapi", tmp_path / "y.ome.tif")


class TestGeoJson:
    def test_round_trip_in_pixels_of_a_turned_image(self, toy, tmp_path):
        toy["regions"]["area"] = toy["regions"].area
        sthist.io.export_geojson(toy, "regions", tmp_path / "x.geojson", image="he", label="label", columns=["area"])
        again = gpd.read_file(tmp_path / "x.geojson")
        (a, b, x), (c, d, y) = sthist.scale.matrix_to(toy["he"])[:2].tolist()
        back = again.geometry.affine_transform([a, b, c, d, x, y])
        for mine, theirs in zip(back, toy["regions"].geometry, strict=True):
            assert shapely.hausdorff_distance(mine, theirs) < 1e-6
        features = json.loads((tmp_path / "x.geojson").read_text())["features"]
        assert [feature["properties"]["classification"]["name"] for feature in features] == toy[
            "regions"
        ].label.tolist()
        areas = [feature["properties"]["measurements"]["area"] for feature in features]
        np.testing.assert_allclose(areas, toy["regions"].area)
        assert {feature["properties"]["objectType"] for feature in features} == {"annotation"}

    def test_cells_with_a_column_of_their_table(self, toy, tmp_path):
        toy.tables["table"] = toy["table"][::-1].copy()  # another order than the shapes
        path = tmp_path / "cells.geojson"
        sthist.io.export_geojson(toy, "cell_boundaries", path, image="morphology_focus", label="cell_type", kind="cell")
        features = json.loads(path.read_text())["features"]
        types = toy["table"].obs.set_index("instance_id").cell_type
        assert {
            feature["properties"]["name"]: feature["properties"]["classification"]["name"] for feature in features
        } == (types.astype(str).to_dict())

    def test_circles(self, tmp_path):
        sdata = sthist.datasets.toy("visium", size_um=400)
        sthist.io.export_geojson(sdata, "spots", tmp_path / "x.geojson", image="he", columns=["n_cells"])
        areas = shapely.area(gpd.read_file(tmp_path / "x.geojson").geometry.to_numpy())
        np.testing.assert_allclose(areas * 0.25, np.pi * 27.5**2, rtol=0.02)

    def test_bad_input(self, toy, tmp_path):
        path = tmp_path / "x.geojson"
        with pytest.raises(KeyError, match=r"There is no column 'type' on the shapes 'regions'"):
            sthist.io.export_geojson(toy, "regions", path, image="he", label="type")
        with pytest.raises(ValueError, match=r"kind is 'spot'"):
            sthist.io.export_geojson(toy, "regions", path, image="he", kind="spot")
        bow = shapely.Polygon([(0, 0), (10, 10), (10, 0), (0, 10)])
        toy["regions"].loc[0, "geometry"] = bow
        with pytest.raises(ValueError, match=r"1 of the shapes 'regions' are empty or invalid, the first of them 0"):
            sthist.io.export_geojson(toy, "regions", path, image="he")
        assert not path.exists()
        path.write_text("{}")
        with pytest.raises(FileExistsError):
            sthist.io.export_geojson(toy, "cell_boundaries", path, image="he")


def test_xenium_explorer(toy, tmp_path):
    sthist.io.export_xenium_explorer(toy, tmp_path / "x.csv", group="cell_type")
    frame = pd.read_csv(tmp_path / "x.csv")
    assert list(frame.columns) == ["cell_id", "group"]
    assert frame.set_index("cell_id").group.to_dict() == toy["table"].obs.cell_type.astype(str).to_dict()
    with pytest.raises(KeyError, match=r"has no column 'kind'"):
        sthist.io.export_xenium_explorer(toy, tmp_path / "y.csv", group="kind")
    with pytest.raises(FileExistsError):
        sthist.io.export_xenium_explorer(toy, tmp_path / "x.csv", group="cell_type")
    del toy.tables["table"]
    with pytest.raises(KeyError, match=r"Found no table of cells"):
        sthist.io.export_xenium_explorer(toy, tmp_path / "y.csv", group="cell_type")


@pytest.mark.parametrize("value", [np.nan, np.inf, None, pd.NA])
def test_a_measurement_that_a_region_lacks(toy, tmp_path, value):
    """It is left out: JSON has no NaN, and other programs refuse the file."""

    def refuse(word):
        raise AssertionError(word)

    toy["regions"]["score"] = [1.0, value, 3.0]
    file = tmp_path / "regions.geojson"
    sthist.io.export_geojson(toy, "regions", file, image="he", columns=["score"])
    features = json.loads(file.read_text(), parse_constant=refuse)["features"]
    assert [each["properties"]["measurements"] for each in features] == [{"score": 1.0}, {}, {"score": 3.0}]


def test_a_measurement_of_text(toy, tmp_path):
    """The column is named."""
    with pytest.raises(ValueError, match="Column 'label' of 'regions' holds no numbers, which columns= needs"):
        sthist.io.export_geojson(toy, "regions", tmp_path / "x.geojson", image="he", columns=["label"])
