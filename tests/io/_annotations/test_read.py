"""Annotations of QuPath and selections of Xenium Explorer: what was drawn lies where it was drawn."""

from __future__ import annotations

import gzip
import json
import logging
import zipfile

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
import spatialdata as sd
from spatialdata.models import Image2DModel, ShapesModel
from spatialdata.transformations import Affine, Identity, Scale, get_transformation, set_transformation

import sthist
from sthist import scale


def square(x, y, side=10):
    return [[[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]]


def feature(x=0, y=0, side=10, **properties):
    properties = {"objectType": "annotation"} | properties
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": square(x, y, side)},
        "properties": properties,
    }


def write(path, features):
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


def picture(height=100, width=200, **transformations):
    """A sample of one image; its pixels are the unit of ``global``."""
    transformations = transformations or {"global": Identity()}
    image = Image2DModel.parse(np.full((3, height, width), 200, np.uint8), transformations=transformations)
    return sd.SpatialData(images={"he": image})


def turned(degrees=30.0, mpp=(0.5, 0.25), flip=False, at=(7.0, -3.0)):
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    matrix = np.array([[c, -s, at[0]], [s, c, at[1]], [0, 0, 1]]) @ np.diag([*mpp, 1.0])
    return matrix @ np.diag([-1.0 if flip else 1.0, 1, 1])


def in_um(sdata, key):
    return sd.transform(sdata[key], to_coordinate_system="um")


FRAMES = {
    "scaled": np.diag([0.2125, 0.2125, 1.0]),
    "turned": turned(),
    "turned and flipped": turned(-97, (0.25, 0.25), flip=True),
    "sheared": np.array([[0.5, 0.1, 3.0], [0.02, 0.4, -9.0], [0, 0, 1]]),
}


class TestRoundTrip:
    @pytest.mark.parametrize("matrix", FRAMES.values(), ids=FRAMES)
    def test_exact_in_any_frame(self, toy, tmp_path, matrix):
        """Export, read, export: the second file is the first, and the shapes lie where they lay."""
        set_transformation(toy["he"], Affine(matrix, ("x", "y"), ("x", "y")), "um")
        # Wherever the image lies now, the shapes have to lie on it.
        boxes = gpd.GeoSeries([shapely.box(20 * i + 5, 30, 20 * i + 20, 60) for i in range(3)])
        boxes = boxes.affine_transform([*matrix[0, :2], *matrix[1, :2], *matrix[:2, 2]])
        drawn = gpd.GeoDataFrame({"label": toy["regions"].label.tolist()}, geometry=boxes)
        toy.shapes["drawn"] = ShapesModel.parse(drawn, transformations={"um": Identity()})
        toy["drawn"]["Nucleus: Area µm^2"] = [1.5, np.pi, 1e-7]
        columns = ["Nucleus: Area µm^2"]
        first, second = tmp_path / "1.geojson", tmp_path / "2.geojson"
        sthist.io.export_geojson(toy, "drawn", first, image="he", label="label", columns=columns)
        sthist.io.read_annotations(toy, first, image="he")
        sthist.io.export_geojson(toy, "annotations", second, image="he", label="label", columns=columns)
        assert second.read_text() == first.read_text()
        for mine, theirs in zip(in_um(toy, "annotations").geometry, drawn.geometry, strict=True):
            assert shapely.hausdorff_distance(mine, theirs) < 1e-9
        assert toy["annotations"].label.tolist() == toy["regions"].label.tolist()
        np.testing.assert_array_equal(toy["annotations"]["Nucleus: Area µm^2"], [1.5, np.pi, 1e-7])

    def test_on_disk(self, backed, tmp_path):
        """What is in memory is in the store, and what made it, too."""
        path = tmp_path / "x.geojson"
        sthist.io.export_geojson(backed, "regions", path, image="he", label="label")
        sthist.io.read_annotations(backed, path, image="he")
        again = sd.read_zarr(backed.path)
        pd.testing.assert_frame_equal(pd.DataFrame(again["annotations"]), pd.DataFrame(backed["annotations"]))
        np.testing.assert_array_equal(scale.matrix_to(again["annotations"]), scale.matrix_to(backed["he"]))
        made = again.attrs["sthist"]["results"]["annotations"]
        assert (made["call"], made["image"], made["unit"], made["n_shapes"]) == ("io.read_annotations", "he", "px", 3)

    def test_the_unlabelled_stay_unlabelled(self, tmp_path):
        sdata = picture(um=Scale([0.5, 0.5], ("x", "y")))
        labels = [{"name": "T/NK cells"}, None, {"name": "  "}, {"name": float("nan")}, {}, "Stroma: early"]
        features = [feature(20 * i, classification=label, name=f"n{i}") for i, label in enumerate(labels)]
        sthist.io.read_annotations(sdata, write(tmp_path / "x.geojson", features))
        expected = ["T/NK cells", None, None, None, None, "Stroma: early"]
        assert sdata["annotations"].label.tolist() == expected
        sthist.io.export_geojson(sdata, "annotations", tmp_path / "y.geojson", image="he", label="label")
        sthist.io.read_annotations(sdata, tmp_path / "y.geojson", key_added="again")
        assert sdata["again"].label.tolist() == expected
        assert sdata["again"].index.tolist() == sdata["annotations"].index.tolist() == [f"n{i}" for i in range(6)]

    def test_the_labels_of_tiles_are_those_of_the_regions(self, toy, tmp_path):
        sthist.io.export_geojson(toy, "regions", tmp_path / "x.geojson", image="he", label="label")
        sthist.io.read_annotations(toy, tmp_path / "x.geojson", image="he")
        sthist.pp.tissue(toy)
        sthist.pp.tiles(toy, size_um=64, px=64)
        sthist.pp.label_regions(toy, "tiles", by="regions", key_added="mine")
        sthist.pp.label_regions(toy, "tiles", by="annotations", key_added="theirs")
        obs = toy["tiles_table"].obs
        assert obs["mine"].astype(str).tolist() == obs["theirs"].astype(str).tolist()
        np.testing.assert_allclose(obs["mine_fraction"], obs["theirs_fraction"], atol=1e-9)


class TestQuPath:
    def test_as_it_is_written_today(self, tmp_path):
        """QuPath 0.4 and later: names of a class by level, measurements as an object, children within."""
        cell = {
            "type": "Feature",
            "id": "4c3a5a2b-0000-4000-8000-000000000002",
            "geometry": {"type": "Polygon", "coordinates": square(31, 31, 8)},
            "nucleusGeometry": {"type": "Polygon", "coordinates": square(33, 33, 4)},
            "properties": {
                "objectType": "cell",
                "classification": {"names": ["Tumor", "Positive"], "color": [200, 50, 50]},
                "measurements": {"Nucleus: Area µm^2": 16.5, "Cell: DAB OD mean": float("nan")},
            },
        }
        other = {
            "type": "Feature",
            "geometry": {
                "type": "MultiPolygon",
                "coordinates": [square(60, 10), [*square(80, 10, 20), *square(85, 15, 5)]],
                "plane": {"c": -1, "z": 1, "t": 0},
                "isEllipse": True,
            },
            "properties": {"objectType": "detection", "name": "two parts", "metadata": {"Case ID": "007"}},
        }
        parent = feature(30, 30, 20, classification={"name": "Tumor", "color": [200, 0, 0]}, isLocked=True)
        parent["id"] = "4c3a5a2b-0000-4000-8000-000000000001"
        parent["properties"]["childObjects"] = [cell]
        sdata = picture()
        sthist.io.read_annotations(sdata, write(tmp_path / "x.geojson", [parent, other]))
        shapes = sdata["annotations"]
        assert list(shapes.columns) == [
            "label",
            "name",
            "object_type",
            "id",
            "Nucleus: Area µm^2",
            "Cell: DAB OD mean",
            "Case ID",
            "geometry",
        ]
        assert shapes["label"].tolist() == ["Tumor", "Tumor: Positive", None]
        assert shapes["object_type"].tolist() == ["annotation", "cell", "detection"]
        assert shapes["id"].tolist() == [parent["id"], cell["id"], None]
        assert shapes["name"].tolist() == [None, None, "two parts"]
        assert shapes["Case ID"].tolist() == [None, None, "007"]
        np.testing.assert_array_equal(shapes["Nucleus: Area µm^2"], [np.nan, 16.5, np.nan])
        np.testing.assert_array_equal(shapes.area, [400, 64, 100 + 400 - 25])
        nuclei = sdata["annotations_nuclei"]
        assert nuclei.index.tolist() == [1]
        assert nuclei.area.tolist() == [16]
        sthist.io.read_annotations(sdata, tmp_path / "x.geojson", kind="cell", key_added="cells", label="type")
        assert sdata["cells"]["type"].tolist() == ["Tumor: Positive"]

    def test_as_it_was_written(self, tmp_path):
        """QuPath 0.2 and 0.3: a list of features, the type as their id, colours as one number.

        Measurements as a list.
        """
        old = feature(classification={"name": "Tumor", "colorRGB": -3670016}, isLocked=False)
        del old["properties"]["objectType"]
        old["id"] = "PathAnnotationObject"
        derived = {"parentClass": {"name": "Tumor", "colorRGB": -1}, "name": "Positive", "colorRGB": -2}
        measured = [{"name": "Area", "value": 3.5}, {"name": "OD", "value": "NaN"}]
        cell = feature(20, object_type="cell", classification=derived, measurements=measured)
        del cell["properties"]["objectType"]
        root = {"type": "Feature", "id": "PathRootObject", "geometry": None, "properties": {}}
        (tmp_path / "x.json").write_text(
            json.dumps([root, old, cell, {"type": "Polygon", "coordinates": square(40, 0)}])
        )
        sdata = picture()
        sthist.io.read_annotations(sdata, tmp_path / "x.json")
        shapes = sdata["annotations"]
        assert shapes["label"].tolist() == ["Tumor", "Tumor: Positive", None]
        assert shapes["object_type"].tolist() == ["annotation", "cell", "annotation"]
        np.testing.assert_array_equal(shapes["Area"], [np.nan, 3.5, np.nan])
        assert "id" not in shapes

    @pytest.mark.parametrize("packed", ["x.geojson.gz", "x.zip", "x.GEOJSON"])
    def test_packed(self, tmp_path, packed):
        text = "\ufeff" + json.dumps(feature(classification={"name": "Tumör"}))
        path = tmp_path / packed
        if packed.endswith("zip"):
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("x.geojson", text)
                archive.writestr("__MACOSX/._x.geojson", b"\x00\x05")
        else:
            path.write_bytes(gzip.compress(text.encode()) if packed.endswith("gz") else text.encode())
        sdata = picture()
        sthist.io.read_annotations(sdata, path)
        assert sdata["annotations"].label.tolist() == ["Tumör"]

    def test_measurements_give_way_to_our_columns(self, tmp_path):
        sdata = picture()
        path = write(
            tmp_path / "x.geojson", [feature(measurements={"label": 1.0, "name": 2.0}, metadata={"name": "b"})]
        )
        sthist.io.read_annotations(sdata, path)
        row = sdata["annotations"].iloc[0]
        assert (row["label"], row["name"], row["label_2"], row["name_2"], row["name_2_2"]) == (
            None,
            None,
            1.0,
            2.0,
            "b",
        )

    def test_other_people_s_geojson(self, tmp_path):
        """Without any property of QuPath, and with coordinates of three numbers."""
        sdata = picture()
        ring = [[*corner, 0.0] for corner in square(5, 5)[0]]
        content = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": None}
        (tmp_path / "x.geojson").write_text(json.dumps(content))
        sthist.io.read_annotations(sdata, tmp_path / "x.geojson")
        assert sdata["annotations"].area.tolist() == [100]
        assert not sdata["annotations"].has_z.any()


class TestPlace:
    def test_an_image_needs_no_scale(self, tmp_path):
        """Pixels are pixels; the scale that is given later holds for what was drawn, too."""
        sdata = picture()
        sthist.io.read_annotations(sdata, write(tmp_path / "x.geojson", [feature(20, 30)]))
        assert set(get_transformation(sdata["annotations"], get_all=True)) == {"global"}
        sthist.pp.set_scale(sdata, "he", mpp=0.25)
        assert in_um(sdata, "annotations").total_bounds.tolist() == [5, 7.5, 7.5, 10]

    def test_full_resolution_of_a_pyramid(self, tmp_path):
        image = Image2DModel.parse(
            np.full((3, 400, 600), 9, np.uint8),
            scale_factors=[2, 2],
            transformations={"um": Affine(turned(), ("x", "y"), ("x", "y"))},
        )
        sdata = sd.SpatialData(images={"he": image})
        sthist.io.read_annotations(sdata, write(tmp_path / "x.geojson", [feature(550, 350)]))
        corner = turned() @ [550, 350, 1]
        outline = in_um(sdata, "annotations").geometry.iloc[0]
        assert shapely.distance(shapely.Point(corner[:2]), outline.exterior) < 1e-9
        assert outline.area == pytest.approx(100 * 0.5 * 0.25)

    def test_which_image(self, toy, tmp_path):
        path = write(tmp_path / "x.geojson", [feature()])
        with pytest.raises(
            ValueError, match=r"x.geojson is in pixels, but of which image\? It has images 'he', 'morph.*image="
        ):
            sthist.io.read_annotations(toy, path)
        with pytest.raises(KeyError, match=r"No image 'hee'"):
            sthist.io.read_annotations(toy, path, image="hee")
        sthist.io.read_annotations(toy, path, unit="um")
        assert in_um(toy, "annotations").total_bounds.tolist() == [0, 0, 10, 10]

    def test_all_outside(self, tmp_path):
        """The message shows both boxes, and says what would fit."""
        sdata = picture(um=Affine(turned(0, (0.5, 0.5), at=(300, 300)), ("x", "y"), ("x", "y")))
        path = write(tmp_path / "x.geojson", [feature(310, 320), feature(330, 325)])
        with pytest.raises(
            ValueError,
            match=r"all 2 outlines lie outside of image 'he': .* span x 310 to 340, y 320 to 335 px, the image "
            r"spans x 0 to 200, y 0 to 100 px. They look like micrometres taken for pixels: pass unit='um'",
        ):
            sthist.io.read_annotations(sdata, path)
        sdata.images["large"] = Image2DModel.parse(np.zeros((1, 400, 400), np.uint8))
        path = write(tmp_path / "y.geojson", [feature(250, 150)])
        with pytest.raises(ValueError, match=r"They would lie on 'large': pass image='large'"):
            sthist.io.read_annotations(sdata, path, image="he")
        with pytest.raises(ValueError, match=r"look like pixels taken for micrometres.*Pass unit='px', image='large'"):
            sthist.io.read_annotations(sdata, path, unit="um")
        path = write(tmp_path / "z.geojson", [feature(2500, 150)])
        with pytest.raises(ValueError, match=r"Were they drawn on another image, or on a copy of another size"):
            sthist.io.read_annotations(sdata, path, image="he")
        assert not list(sdata.shapes)

    def test_some_outside(self, tmp_path, caplog):
        """One that merely crosses the border is none of them."""
        sdata = picture()
        features = [feature(195, 95, name="corner"), feature(250, 10, name="off"), feature(1, 1, name="on")]
        sthist.io.read_annotations(sdata, write(tmp_path / "x.geojson", features))
        assert "1 of 3 outlines lie outside of image 'he', such as 'off'" in caplog.text
        assert sdata["annotations"].index.tolist() == ["corner", "off", "on"]


class TestGeometry:
    def test_what_is_no_area_is_left_out(self, tmp_path, caplog):
        """Each kind is counted; what crosses itself is repaired: both halves of the bow-tie."""
        bow = {"type": "Polygon", "coordinates": [[[0, 0], [10, 10], [10, 0], [0, 10], [0, 0]]]}
        flat = {"type": "Polygon", "coordinates": [[[0, 0], [5, 5], [9, 9], [0, 0]]]}
        mixed = {
            "type": "GeometryCollection",
            "geometries": [
                {"type": "Polygon", "coordinates": square(30, 30)},
                {"type": "Point", "coordinates": [1, 2]},
            ],
        }
        geometries = [
            bow,
            flat,
            mixed,
            None,
            {"type": "Polygon", "coordinates": []},
            {"type": "LineString", "coordinates": [[0, 0], [5, 5]]},
            {"type": "Point", "coordinates": [3, 3]},
            {"type": "MultiPoint", "coordinates": [[3, 3], [4, 4]]},
        ]
        features = [{"type": "Feature", "geometry": each, "properties": {}} for each in geometries]
        sdata = picture()
        sthist.io.read_annotations(sdata, write(tmp_path / "x.geojson", features))
        np.testing.assert_allclose(sdata["annotations"].area, [50, 100])
        assert sdata["annotations"].is_valid.all()
        assert "2 outlines cross themselves" in caplog.text
        assert "6 of 8 objects are left out: 2 are points, 1 lines, and 3 are empty or have no area" in caplog.text

    def test_points_as_circles(self, tmp_path):
        """Round in micrometres, whatever the pixels are."""
        sdata = picture(um=Affine(turned(30, (0.5, 0.25)), ("x", "y"), ("x", "y")))
        points = {"type": "MultiPoint", "coordinates": [[50, 50], [70, 60]]}
        features = [{"type": "Feature", "geometry": points, "properties": {"name": "mitoses"}}, feature(name="b")]
        sthist.io.read_annotations(sdata, write(tmp_path / "x.geojson", features), point_diameter_um=8)
        circles = in_um(sdata, "annotations").geometry.iloc[:2]
        centres = np.array([[50, 50, 1], [70, 60, 1]]) @ turned(30, (0.5, 0.25))[:2].T
        for circle, (x, y) in zip(circles, centres, strict=True):
            corners = shapely.get_coordinates(circle)
            np.testing.assert_allclose(np.hypot(*(corners - [x, y]).T), 4, rtol=1e-9)
        assert sdata["annotations"].name.tolist() == ["mitoses", "mitoses", "b"]
        assert sdata["annotations"].index.tolist() == [0, 1, 2]
        bare = picture()
        with pytest.raises(ValueError, match=r"Image 'he' has no scale, which point_diameter_um needs"):
            sthist.io.read_annotations(bare, tmp_path / "x.geojson", point_diameter_um=8)


def cores(names, missing=(), degrees=5.0, column_first=False):
    """Cores as QuPath's dearrayer leaves them: ellipses on a grid that is a little turned, row by row."""
    matrix = turned(degrees, (1, 1), at=(60, 40))
    features = []
    for (row, column), name in names.items():
        x, y, _ = matrix @ [60 * column, 60 * row, 1]
        ellipse = shapely.Point(x, y).buffer(20)
        features.append(
            {
                "type": "Feature",
                "geometry": shapely.geometry.mapping(ellipse) | {"isEllipse": True},
                "properties": {"objectType": "tmaCore", "name": name, "isMissing": name in missing},
            }
        )
    return features


class TestCores:
    @pytest.mark.parametrize("degrees", [-8.0, 0.0, 8.0])
    @pytest.mark.parametrize("form", ["A-1", "1-A", "1-1"])
    def test_rows_and_columns(self, tmp_path, form, degrees):
        """Either part of the name may be that of the row; numbers count from 1."""
        grid = {
            (r, c): {"A-1": f"{'ABC'[r]}-{c + 1}", "1-A": f"{c + 1}-{'ABC'[r]}", "1-1": f"{r + 1}-{c + 1}"}[form]
            for r in range(3)
            for c in range(4)
        }
        sdata = picture(300, 400)
        path = write(tmp_path / "x.geojson", cores(grid, missing=[grid[1, 2]], degrees=degrees))
        sthist.io.read_annotations(sdata, path, key_added="cores")
        shapes = sdata["cores"]
        assert list(zip(shapes["row"], shapes["column"], strict=True)) == list(grid)
        assert shapes["row"].dtype == shapes["column"].dtype == np.int64
        assert shapes.index[shapes["state"] == "missing"].tolist() == [grid[1, 2]]
        assert sdata.attrs["sthist"]["roles"]["cores"] == {"shapes": "cores"}

    def test_tiles_know_their_core_and_none_is_on_one_that_is_missing(self, tmp_path):
        grid = {(r, c): f"{'AB'[r]}-{c + 1}" for r in range(2) for c in range(3)}
        sdata = picture(300, 400, um=Scale([0.5, 0.5], ("x", "y")))
        path = write(tmp_path / "x.geojson", cores(grid, missing=["B-2"], degrees=0))
        sthist.io.read_annotations(sdata, path, key_added="cores")
        sthist.pp.tiles(sdata, size_um=8, px=16, regions="cores", min_tissue=0.9)
        assert set(sdata["tiles_table"].obs["core"]) == set(grid.values()) - {"B-2"}

    def test_as_the_map_of_an_array(self, tmp_path):
        """pp.tma takes the shapes as they are; names and what was written about the cores come with them."""
        sdata = sthist.datasets.toy("tma", size_um=900)
        known = sdata["cores"]
        to_px = np.linalg.inv(scale.matrix_to(sdata["he"]))
        features = []
        for core in known.itertuples():
            x, y, _ = to_px @ [core.geometry.centroid.x, core.geometry.centroid.y, 1]
            name = f"{'ABCDEFGH'[core.row]}-{core.column + 1}"
            features.append(feature(x, y, 30, objectType="tmaCore", name=name, metadata={"patient": f"P{core.column}"}))
            features[-1]["properties"]["isMissing"] = core.state == "missing"
        sthist.io.read_annotations(sdata, write(tmp_path / "x.geojson", features), image="he", key_added="drawn")
        assert sdata["drawn"]["row"].tolist() == known["row"].tolist()
        sthist.pp.tma(sdata, core_map=sdata["drawn"], key_added="found")
        obs = sdata["found_table"].obs
        expected = [f"P{column}" for column in obs["column"]]
        assert obs["patient"].astype(str).tolist() == expected
        assert obs["name"].astype(str).tolist() == [
            f"{'ABCDEFGH'[r]}-{c + 1}" for r, c in zip(obs["row"], obs["column"], strict=True)
        ]

    @pytest.mark.parametrize(
        ("names", "said"),
        [
            (["liver", "A-1"], "1 of 2 cores have names that are not like 'A-1', such as 'liver'"),
            (["12", "13"], "2 of 2 cores have names that are not like 'A-1', such as '12'"),
            (["A-1", "1-B"], "some of their names begin with a letter"),
            (["A-1", "A-1"], "two have the same name"),
        ],
    )
    def test_other_names(self, tmp_path, caplog, names, said):
        sdata = picture()
        features = [feature(30 * i, objectType="tmaCore", name=name) for i, name in enumerate(names)]
        sthist.io.read_annotations(sdata, write(tmp_path / "x.geojson", features))
        assert "row" not in sdata["annotations"]
        assert said in caplog.text
        assert sdata["annotations"]["state"].tolist() == ["whole", "whole"]

    def test_among_other_objects(self, tmp_path):
        sdata = picture()
        features = [feature(30, objectType="tmaCore", name="B-2"), feature(classification={"name": "x"})]
        sthist.io.read_annotations(sdata, write(tmp_path / "x.geojson", features))
        shapes = sdata["annotations"]
        assert shapes["row"].tolist() == [1, pd.NA]
        assert shapes["state"].tolist() == ["whole", None]
        assert "cores" not in sdata.attrs.get("sthist", {}).get("roles", {})


class TestXeniumExplorer:
    def test_one_selection(self, toy, tmp_path):
        """In micrometres of the sample, however its images lie; the first vertex may be there again or not."""
        text = "#Selection name: Tumor/edge\n#Area (µm^2): 600.00\nX,Y\n10.5,20\n40.5,20\n40.5,40\n10.5,40\n"
        for closing in ("", "10.5,20\n"):
            (tmp_path / "x.csv").write_text(text + closing)
            sthist.io.read_annotations(toy, tmp_path / "x.csv", overwrite=True)
            shapes = toy["annotations"]
            assert in_um(toy, "annotations").total_bounds.tolist() == [10.5, 20, 40.5, 40]
            assert shapes.area.tolist() == [600]
            assert (shapes["label"].tolist(), shapes["name"].tolist()) == (["Tumor/edge"], ["Tumor/edge"])
            assert shapes.index.tolist() == ["Tumor/edge"]
            assert list(shapes.columns) == ["label", "name", "geometry"]

    def test_several_selections(self, toy, tmp_path, caplog):
        """Newer versions write a column for the selection, and one for a class."""
        text = (
            '#Selection names: Selection 1, "a, b"\n#Areas (µm^2): 100, 50\nSelection,X,Y,Class,Color\n'
            "Selection 1,0,0,Tumor,#ff0000\nSelection 1,10,0,Tumor,#ff0000\nSelection 1,10,10,Tumor,#ff0000\n"
            'Selection 1,0,10,Tumor,#ff0000\n"a, b",50,50,Unclassified,#c2c2c2\n"a, b",60,50,Unclassified,#c2c2c2\n'
            '"a, b",60,60,Unclassified,#c2c2c2\n'
        )
        (tmp_path / "x.csv.gz").write_bytes(gzip.compress(text.encode()))
        sthist.io.read_annotations(toy, tmp_path / "x.csv.gz")
        shapes = toy["annotations"]
        assert shapes.index.tolist() == ["Selection 1", "a, b"]
        assert shapes["label"].tolist() == ["Tumor", None]
        assert shapes.area.tolist() == [100, 50]
        assert not caplog.records

    @pytest.mark.parametrize("between", ["", "B,1,1\nB,2,1\nB,2,2\n"])
    def test_selections_of_one_name(self, toy, tmp_path, between):
        """They are outlines of their own, if each is closed or another lies between them."""
        first, second = "A,0,0\nA,10,0\nA,10,10\nA,0,10\n", "A,50,50\nA,60,50\nA,60,55\nA,50,55\n"
        closing = "" if between else "A,0,0\n"
        (tmp_path / "x.csv").write_text("Selection,X,Y\n" + first + closing + between + second)
        sthist.io.read_annotations(toy, tmp_path / "x.csv")
        shapes = toy["annotations"]
        assert shapes[shapes["name"] == "A"].area.tolist() == [100, 50]
        assert shapes.index.tolist() == list(range(len(shapes)))

    def test_files_put_together(self, toy, tmp_path):
        """With the marks that a spreadsheet leaves."""
        one = "\ufeff#Selection name: one;;\n#Area (µm^2): 100;;\nX;Y\n0;0\n10;0\n10;10\n0;10\n"
        two = '"#Selection name: two"\n"#Area (µm^2): 2"\nx;y\n20;20\n22;20\n22;21\n20;21\n\n'
        (tmp_path / "x.csv").write_text(one + two)
        sthist.io.read_annotations(toy, tmp_path / "x.csv")
        assert toy["annotations"].index.tolist() == ["one", "two"]
        assert toy["annotations"].area.tolist() == [100, 2]

    def test_an_outline_that_was_cut_off(self, toy, tmp_path, caplog):
        text = "#Selection name: one\n#Area (µm^2): 100\nX,Y\n0,0\n10,0\n10,10\n"
        (tmp_path / "x.csv").write_text(text)
        sthist.io.read_annotations(toy, tmp_path / "x.csv")
        assert "the outline of selection 'one' has 50 µm², but the file states 100" in caplog.text

    def test_pixels_are_not_taken_for_micrometres(self, toy, tmp_path):
        (tmp_path / "x.csv").write_text("#Selection name: a\nX,Y\n500,500\n600,500\n600,600\n")
        with pytest.raises(
            ValueError, match=r"lie outside of the sample's images.*look like pixels.*unit='px', image='morph"
        ):
            sthist.io.read_annotations(toy, tmp_path / "x.csv")


def test_names_and_arguments(toy, tmp_path):
    path = write(tmp_path / "x.geojson", [feature()])
    sthist.io.read_annotations(toy, path, image="he")
    with pytest.raises(ValueError, match=r"shapes\['annotations'\] exists. Pass overwrite=True"):
        sthist.io.read_annotations(toy, path, image="he")
    sthist.io.read_annotations(toy, path, image="he", overwrite=True)
    with pytest.raises(ValueError, match=r"The name 'he' is taken by images"):
        sthist.io.read_annotations(toy, path, image="he", key_added="he")
    with pytest.raises(ValueError, match=r"unit is 'mm'; it is 'px' or 'um'"):
        sthist.io.read_annotations(toy, path, image="he", unit="mm")
    with pytest.raises(ValueError, match=r"kind is 'core'; QuPath has 'annotation'"):
        sthist.io.read_annotations(toy, path, image="he", kind="core")
    with pytest.raises(ValueError, match=r"label is 'name', which is a column of its own"):
        sthist.io.read_annotations(toy, path, image="he", label="name")
    with pytest.raises(ValueError, match=r"point_diameter_um is -1"):
        sthist.io.read_annotations(toy, path, image="he", point_diameter_um=-1)


def test_log_is_quiet_where_nothing_is_amiss(toy, tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    sthist.io.read_annotations(toy, write(tmp_path / "x.geojson", [feature(10, 10)]), image="he")
    assert not caplog.records
    assert isinstance(toy["annotations"], gpd.GeoDataFrame)


def cells(*names, key="cell"):
    """Outlines as segmentation programs write them: one collection, with the cell beside each geometry."""
    parts = [{"type": "Polygon", "coordinates": square(10 + 50 * i, 10, 40), key: name} for i, name in enumerate(names)]
    return {"type": "GeometryCollection", "geometries": parts}


@pytest.mark.parametrize(
    ("content", "column", "expected"),
    [
        (cells("C-7", "C-9"), "cell", ["C-7", "C-9"]),
        (cells(7, 9, key="cell_id"), "cell_id", [7, 9]),
        ({"type": "Feature", "properties": {"run": 3}, "geometry": cells(7, 9)}, "cell", [7, 9]),
        ([feature(10, 10, 40, cell_id=7), feature(60, 10, 40, cell_id=9)], "cell_id", [7, 9]),
        ([feature(10, 10, 40, cell_id="aa-1"), feature(60, 10, 40, cell_id=9)], "cell_id", ["aa-1", "9"]),
    ],
)
def test_cells_of_other_programs(toy, tmp_path, content, column, expected):
    """Each is an outline of its own, and is told by its id."""
    path = tmp_path / "cells.geojson"
    path.write_text(json.dumps(content))
    sthist.io.read_annotations(toy, path, image="he")
    frame = toy["annotations"]
    assert frame[column].tolist() == expected
    assert frame.area.tolist() == [1600.0, 1600.0]
