"""Cores of microarrays: found, numbered, joined with their map, and told to cells, spots and tiles."""

from __future__ import annotations

import logging

import anndata as ad
import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
import spatialdata as sd
from spatialdata.models import Image2DModel, ShapesModel, TableModel
from spatialdata.transformations import Affine, Identity, Scale, set_transformation

import sthist
from sthist import _sample, scale
from sthist._sample.elements import region_geometry

PITCH, RADIUS, MPP = 800.0, 300.0, 8.0


@pytest.fixture(scope="module")
def _toy_tma():
    return sthist.datasets.toy("tma", size_um=1500)


@pytest.fixture
def toy_tma(_toy_tma):
    """A microarray of 3 x 3 cores, A3 missing and B1 broken; its true cores are shapes 'cores'."""
    return sd.deepcopy(_toy_tma)


def turn(sdata, degrees):
    """Turn a whole sample about its middle; the matrix that does it."""
    middle = np.array([[1, 0, 750], [0, 1, 750], [0, 0, 1.0]])
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    matrix = middle @ np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]]) @ np.linalg.inv(middle)
    for _, _, element in sdata.gen_spatial_elements():
        turned = Affine(matrix @ scale.matrix_to(element), ("x", "y"), ("x", "y"))
        set_transformation(element, turned, to_coordinate_system="um")
    return matrix


def true_core(sdata):
    """Name of the core of each cell, by the true discs; none of the toy's cells lies between them."""
    cells = sdata["table"].obsm["spatial"]
    names = np.full(len(cells), "", dtype=object)
    for name, disc in sdata["cores"].geometry.items():
        names[shapely.contains_xy(disc, *cells.T)] = name
    return names


@pytest.mark.parametrize("degrees", [0, 5, -4])
@pytest.mark.parametrize("source", [{}, {"image": "morphology_focus"}, {"regions": "table"}])
def test_the_toys_cores_are_found(toy_tma, source, degrees):
    """Also where the array is turned: all of them, one missing and one broken, and each cell in its own."""
    matrix = turn(toy_tma, degrees)
    sthist.pp.tma(toy_tma, key_added="found", **source)
    found, truth = toy_tma["found"], toy_tma["cores"]
    pd.testing.assert_frame_equal(
        pd.DataFrame(found[["row", "column", "state"]]), pd.DataFrame(truth[["row", "column", "state"]])
    )
    middle = np.c_[truth.geometry.centroid.x, truth.geometry.centroid.y] @ matrix[:2, :2].T + matrix[:2, 2]
    off = np.hypot(*(np.c_[found.geometry.centroid.x, found.geometry.centroid.y] - middle).T)
    assert off[truth.state != "broken"].max() < 0.1 * 200  # a tenth of the radius
    assert (toy_tma["table"].obs["core"].astype(str) == true_core(toy_tma)).mean() > 0.99


def test_what_is_written(toy_tma):
    """Areas by the discs and their lumina, cells by the true discs; roles and provenance."""
    sthist.pp.tma(toy_tma, key_added="found")
    obs = toy_tma["found_table"].obs
    assert obs.index.tolist() == [f"{letter}{number}" for letter in "ABC" for number in (1, 2, 3)]
    assert obs["n_cells"].to_dict() == {name: (true_core(toy_tma) == name).sum() for name in obs.index}
    disc = np.pi * 200**2
    assert obs["tissue_area_um2"]["A1"] == pytest.approx(disc, rel=0.1)
    assert obs["tissue_area_um2"]["A3"] == 0
    assert (obs["tissue_area_um2"].drop("A3") > 0.8 * disc).all()
    assert _sample.roles(toy_tma)["cores"] == {"shapes": "found", "table": "found_table"}
    assert toy_tma.attrs["sthist"]["results"]["found"]["grid"] == [3, 3]
    assert toy_tma["found_table"].uns["sthist"]["found_table"]["diameter_um"] == pytest.approx(400, rel=0.05)
    assert toy_tma["table"].uns["sthist"]["core"]["shapes"] == "found"
    with pytest.raises(ValueError, match=r"shapes\['found'\] exists"):
        sthist.pp.tma(toy_tma, key_added="found")
    with pytest.raises(ValueError, match=r"obs\['core'\] already"):
        sthist.pp.tma(toy_tma, key_added="again")


def test_written_and_read_back(toy_tma, tmp_path):
    """Shapes, tables, the column of the cells, and the role."""
    del toy_tma.images["he"], toy_tma.images["morphology_focus"], toy_tma.points["transcripts"]
    sd.deepcopy(toy_tma).write(tmp_path / "tma.zarr")
    backed = sd.read_zarr(tmp_path / "tma.zarr")
    known = pd.DataFrame({"core": ["A1", "B2"], "patient": ["007", "008"], "score": [1.5, 2.0], "label": ["a/b", None]})
    for sample in (toy_tma, backed):
        sthist.pp.tma(sample, key_added="found", core_map=known)
        sthist.pp.tma(sample, key_added="found", core_map=known, overwrite=True)
    again = sd.read_zarr(tmp_path / "tma.zarr")
    for sample in (backed, again):
        pd.testing.assert_frame_equal(pd.DataFrame(sample["found"]), pd.DataFrame(toy_tma["found"]))
        for table in ("found_table", "table"):
            pd.testing.assert_frame_equal(sample[table].obs, toy_tma[table].obs, check_categorical=False)
            np.testing.assert_array_equal(sample[table].obsm["spatial"], toy_tma[table].obsm["spatial"])
        assert _sample.roles(sample)["cores"]["shapes"] == "found"
    assert again["found_table"].obs["label"]["A1"] == "a/b"
    assert not sd.join_spatialelement_table(again, spatial_element_names="found", table_name="found_table")[1].obs.empty


class TestBiggerArrays:
    """Discs that are drawn here, so that all is known of them."""

    def places(self, rng, rows=6, columns=8, jitter=0.12, degrees=0.0):
        """x, y of cores in µm, (rows, columns, 2)."""
        grid = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), -1) * PITCH + PITCH
        middle = grid.reshape(-1, 2).mean(0)
        cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
        turned = (grid - middle) @ np.array([[cos, sin], [-sin, cos]]) + middle
        return turned + rng.uniform(-jitter, jitter, grid.shape) * PITCH

    def draw(self, discs, rng, size=(7200, 5600)):
        """An H&E: pink discs on glass, and specks."""
        height, width = (int(n / MPP) for n in size[::-1])
        image = np.full((height, width, 3), 245.0)
        y, x = (np.indices((height, width)) + 0.5) * MPP
        specks = shapely.buffer(shapely.points(rng.uniform(200, 5000, (12, 2))), rng.uniform(10, 45, 12))
        for shape in [*discs, *specks]:
            x0, y0, x1, y1 = shape.bounds
            near = (slice(max(0, int(y0 / MPP)), int(y1 / MPP) + 2), slice(max(0, int(x0 / MPP)), int(x1 / MPP) + 2))
            image[near][shapely.contains_xy(shape, x[near], y[near])] = (200, 120, 180)
        pixels = np.clip(image + rng.normal(0, 4, image.shape), 0, 255).astype(np.uint8)
        element = Image2DModel.parse(
            pixels.transpose(2, 0, 1), dims=("c", "y", "x"), transformations={"um": Scale([MPP, MPP], ("x", "y"))}
        )
        return sd.SpatialData(images={"he": element})

    def discs(self, places, missing, rng):
        return {
            (row, column): shapely.Point(places[row, column]).buffer(RADIUS * rng.uniform(0.93, 1.05))
            for row in range(places.shape[0])
            for column in range(places.shape[1])
            if (row, column) not in missing
        }

    def check(self, sdata, places, missing, broken=(), key="cores"):
        frame = sdata[key]
        assert len(frame) == places.shape[0] * places.shape[1]
        for (row, column, state), outline in zip(
            frame[["row", "column", "state"]].itertuples(index=False), frame.geometry, strict=True
        ):
            where = (row, column)
            assert state == ("missing" if where in missing else "broken" if where in broken else "whole"), where
            if where not in missing:
                assert outline.intersects(shapely.Point(places[where]).buffer(100)), where
                # Not drawn out by the specks between the cores.
                assert outline.area < 1.3 * np.pi * (1.05 * RADIUS + 10) ** 2, where
        outlines = frame.geometry.to_numpy()
        assert shapely.union_all(outlines).area == pytest.approx(shapely.area(outlines).sum(), rel=1e-6)

    @pytest.mark.parametrize("seed", range(4))
    @pytest.mark.parametrize("degrees", [0, 5])
    def test_several_missing(self, seed, degrees):
        """A whole row end among them; specks are none."""
        rng = np.random.default_rng(seed)
        places = self.places(rng, degrees=degrees)
        missing = {(1, 6), (1, 7), *map(tuple, rng.integers(0, (6, 8), (6, 2)).tolist())}
        sdata = self.draw(self.discs(places, missing, rng).values(), rng)
        sthist.pp.tma(sdata)
        self.check(sdata, places, missing)

    def test_a_broken_core_is_one(self):
        """Two halves that drifted apart, and one that lost most of its tissue."""
        rng = np.random.default_rng(0)
        places = self.places(rng)
        discs = self.discs(places, {(0, 0)}, rng)
        whole = discs[2, 3]
        x, y = places[2, 3]
        left, right = (whole.intersection(shapely.box(x - a, y - 400, x + b, y + 400)) for a, b in ((400, 0), (0, 400)))
        discs[2, 3] = shapely.MultiPolygon(
            [shapely.affinity.translate(left, -30, 40), shapely.affinity.translate(right, 50, -20)]
        )
        discs[4, 7] = discs[4, 7].intersection(
            shapely.Point(places[4, 7]).buffer(RADIUS) - shapely.box(0, 0, places[4, 7][0] + 60, 9999)
        )
        sdata = self.draw(discs.values(), rng)
        sthist.pp.tma(sdata)
        self.check(sdata, places, {(0, 0)}, {(2, 3), (4, 7)})

    def test_cores_that_touch(self):
        """They are parted between their centres, and are as many as before."""
        rng = np.random.default_rng(1)
        places = self.places(rng, rows=3, columns=4, jitter=0.0)
        places[0, 1] += [150, 0]
        places[0, 2] -= [150, 0]
        places[2, 0] += [0, -190]
        discs = self.discs(places, set(), rng)
        discs = {place: shapely.Point(places[place]).buffer(320) for place in discs}
        sdata = self.draw(discs.values(), rng, size=(4200, 3400))
        sthist.pp.tma(sdata)
        assert discs[0, 1].intersects(discs[0, 2])
        self.check(sdata, places, set())
        # Each has its own half, up to the border that the two share.
        for place, disc in discs.items():
            region = sdata["cores"].set_index(["row", "column"]).geometry[place]
            assert disc.intersection(region).area > 0.85 * disc.area

    def test_sectors(self):
        """Two blocks of columns with more space between them are no missing column."""
        rng = np.random.default_rng(2)
        places = self.places(rng, rows=4, columns=6, jitter=0.05)
        places[:, 3:] += [0.5 * PITCH, 0]
        sdata = self.draw(self.discs(places, {(0, 0), (3, 2)}, rng).values(), rng, size=(7200, 4200))
        sthist.pp.tma(sdata)
        self.check(sdata, places, {(0, 0), (3, 2)})

    def test_a_missing_line(self):
        """Inside, it is seen; at an end it is known by grid=, and its side by the image or by first=."""
        rng = np.random.default_rng(3)
        places = self.places(rng, rows=4, columns=5, jitter=0.05)
        inside = {(2, column) for column in range(5)}
        sdata = self.draw(self.discs(places, inside, rng).values(), rng, size=(4900, 4100))
        sthist.pp.tma(sdata)
        self.check(sdata, places, inside)
        top = {(0, column) for column in range(5)}
        sdata = self.draw(self.discs(places, top, rng).values(), rng, size=(4900, 4000))
        sthist.pp.tma(sdata)
        assert sdata["cores"]["row"].max() == 2
        sthist.pp.tma(sdata, first="B1", key_added="named", overwrite=True)
        self.check(sdata, places, top, key="named")
        with pytest.raises(
            ValueError, match=r"Found 3 rows and 5 columns .* has 5 and 5, and none of the places .*first="
        ):
            sthist.pp.tma(sdata, grid=(5, 5), key_added="wrong")
        # Below there is no room for a row: the image ends there.
        cut = sd.bounding_box_query(
            sdata, ("x", "y"), min_coordinate=[0, 0], max_coordinate=[4900, 3600], target_coordinate_system="um"
        )
        cut = sd.SpatialData(images={"he": cut["he"]})
        sthist.pp.tma(cut, grid=(4, 5))
        self.check(cut, places, top)

    @pytest.mark.parametrize(("corner", "rows_run", "name"), [
        ("top left", "across", "B1"), ("top right", "across", "B3"), ("bottom left", "across", "A1"),
        ("bottom right", "across", "A3"), ("top left", "down", "A2"), ("bottom right", "down", "C1"),
    ])  # fmt: skip
    def test_mounted_another_way_round(self, corner, rows_run, name):
        """The name of the core at the bottom left of 2 rows and 3 columns, by hand; shapes, map and image agree."""
        rng = np.random.default_rng(4)
        places = self.places(rng, rows=2, columns=3)
        sdata = self.draw(self.discs(places, set(), rng).values(), rng, size=(3400, 2600))
        sthist.pp.tma(sdata, corner=corner, rows_run=rows_run)
        assert sdata["cores"].geometry[name].contains(shapely.Point(places[1, 0]))
        assert len(sdata["cores"]) == 6
        assert (sdata["cores"]["row"].max() == 1) == (rows_run == "across")

    def test_from_cells_alone(self):
        """Random cells in discs; how far the array goes beyond them cannot be known."""
        rng = np.random.default_rng(5)
        places = self.places(rng, degrees=3)
        missing = {(0, 0), (2, 4), (5, 7), (5, 6)}
        parts = []
        for disc in self.discs(places, missing, rng).values():
            x0, y0, x1, y1 = disc.bounds
            points = rng.uniform((x0, y0), (x1, y1), (900, 2))
            parts.append(points[shapely.contains_xy(disc, *points.T)])
        sdata = cells_at(np.concatenate([*parts, rng.uniform(0, 6000, (40, 2))]))
        sthist.pp.tma(sdata)
        self.check(sdata, places, missing)
        assert sdata["cores_table"].obs["n_cells"].sum() == sdata["table"].obs["core"].notna().sum()
        assert sdata["table"].obs["core"].isna().sum() < 40
        with pytest.raises(ValueError, match="more than one of the places"):
            sthist.pp.tma(sdata, grid=(7, 8), key_added="wrong", overwrite=True)
        sthist.pp.tma(sdata, grid=(7, 8), first="A1", key_added="longer", overwrite=True)
        assert sdata["longer"]["state"].tolist()[-8:] == ["missing"] * 8

    def test_a_marker_core_is_left_aside(self, caplog):
        """With grid=, a core beyond the array does not move its numbers."""
        rng = np.random.default_rng(6)
        places = self.places(rng, rows=4, columns=5, jitter=0.05)
        discs = [*self.discs(places, set(), rng).values(), shapely.Point(places[1, 4] + [PITCH, 0]).buffer(RADIUS)]
        sdata = self.draw(discs, rng)
        with caplog.at_level(logging.WARNING, logger="sthist"):
            sthist.pp.tma(sdata, grid=(4, 5))
        self.check(sdata, places, set())
        assert "1 cores at the end of the array are left aside" in caplog.text
        with pytest.raises(ValueError, match="Found 4 rows of cores, with 5, 6, 5, 5 cores; the array has 3"):
            sthist.pp.tma(sdata, grid=(3, 5), overwrite=True)

    def test_one_core_and_one_row(self):
        """Down to a single core."""
        for rows, columns in ((1, 1), (1, 4), (3, 1)):
            rng = np.random.default_rng(7)
            places = self.places(rng, rows=rows, columns=columns)
            sdata = self.draw(self.discs(places, set(), rng).values(), rng, size=(4200, 3400))
            sthist.pp.tma(sdata)
            self.check(sdata, places, set())


def cells_at(places):
    """A sample of round cells alone."""
    frame = gpd.GeoDataFrame({"radius": np.full(len(places), 5.0)}, geometry=gpd.points_from_xy(*places.T))
    obs = pd.DataFrame({"region": pd.Categorical(["cells"] * len(places)), "instance_id": np.arange(len(places))})
    table = ad.AnnData(np.ones((len(places), 1), np.float32), obs=obs.set_index(obs.index.astype(str)))
    return sd.SpatialData(
        shapes={"cells": ShapesModel.parse(frame, transformations={"um": Identity()})},
        tables={"table": TableModel.parse(table, region="cells", region_key="region", instance_key="instance_id")},
    )


class TestTilesAndRegions:
    """What comes after."""

    def test_tiles_know_their_core(self, toy_tma):
        """Made before or after, on a grid or around cells; not where the core is missing."""
        del toy_tma.shapes["cores"]
        known = pd.DataFrame({"core": ["A1", "A2", "A3"], "patient": ["P1", "P2", "P3"]})
        sthist.pp.tissue(toy_tma)
        sthist.pp.tiles(toy_tma, size_um=60, px=60, key_added="before")
        sthist.pp.tma(toy_tma, core_map=known)
        sthist.pp.tiles(toy_tma, size_um=60, px=60, key_added="after")
        sthist.pp.tiles(toy_tma, size_um=60, px=60, regions="cores", min_tissue=0.05, key_added="filling")
        sthist.pp.tiles(toy_tma, size_um=60, px=60, sampling="regions", regions="cores", key_added="middles")
        pd.testing.assert_series_equal(
            toy_tma["before_table"].obs["core"], toy_tma["after_table"].obs["core"], check_names=False
        )
        assert toy_tma["middles_table"].obs["core"].tolist() == [n for n in toy_tma["cores"].index if n != "A3"]
        assert toy_tma["middles_table"].obs["patient"].tolist()[:2] == ["P1", "P2"]
        assert toy_tma["middles_table"].obs["patient"][2:].isna().all()
        filling = toy_tma["filling_table"]
        assert not toy_tma["filling"].geometry.intersects(toy_tma["cores"].geometry["A3"].buffer(-60)).any()
        for name, centre in zip(filling.obs["core"], filling.obsm["spatial"], strict=True):
            inside = toy_tma["cores"].geometry.contains(shapely.Point(centre))
            assert inside[inside].index.tolist() == ([] if pd.isna(name) else [name])

    def test_within_leaves_missing_cores_out(self, toy_tma):
        """The area of those that are there."""
        sthist.pp.tma(toy_tma, key_added="found")
        outlines = toy_tma["found"].geometry
        assert region_geometry(toy_tma, "found").area == pytest.approx(outlines.drop("A3").area.sum())

    def test_spots(self):
        """They are counted as what they are."""
        places = np.stack(np.meshgrid(np.arange(0, 2500, 50.0), np.arange(0, 1200, 50.0)), -1).reshape(-1, 2)
        near = [np.hypot(*(places - centre).T) < 300 for centre in ((500, 500), (1400, 500))]
        sdata = cells_at(places[near[0] | near[1]])
        _sample.set_role(sdata, "spots", {"table": "table", "shapes": "cells"})
        sthist.pp.tma(sdata)
        assert sdata["cores_table"].obs["n_spots"].tolist() == [near[0].sum(), near[1].sum()]
        assert sdata["table"].obs["core"].value_counts().to_dict() == {"A1": near[0].sum(), "A2": near[1].sum()}


class TestMap:
    """The table of the cores."""

    FULL = {"row": [0, 0, 0, 1, 1, 1, 2, 2, 2], "column": [0, 1, 2] * 3, "patient": [*"abcdefgh", None]}

    @pytest.mark.parametrize(
        "table",
        [
            pd.DataFrame(FULL),
            pd.DataFrame(FULL | {"row": [1, 1, 1, 2, 2, 2, 3, 3, 3], "column": [1, 2, 3] * 3}),
            pd.DataFrame(FULL | {"row": [*"AAABBBCCC"], "column": [1, 2, 3] * 3}).rename(
                columns={"row": "Row", "column": "Col", "patient": "Patient"}
            ),
            pd.DataFrame({"patient": FULL["patient"], "core": [f"{r}-0{c}" for r in "abc" for c in (1, 2, 3)]}),
            pd.DataFrame(
                {"patient": FULL["patient"]}, index=pd.Index([f"{r}{c}" for r in "ABC" for c in (1, 2, 3)], name="core")
            ).iloc[::-1],
        ],
        ids=["from 0", "from 1", "letters", "names", "index"],
    )
    @pytest.mark.parametrize("separator", [None, ",", ";"])
    def test_ways_to_name_a_core(self, toy_tma, tmp_path, table, separator, caplog):
        """Frames and files; a core without a patient stays without, and that is said."""
        if separator is not None:
            table.to_csv(tmp_path / "map.csv", index=table.index.name is not None, sep=separator)
            table = tmp_path / "map.csv"
        with caplog.at_level(logging.INFO, logger="sthist"):
            sthist.pp.tma(toy_tma, regions="table", core_map=table, key_added="found")
        obs = toy_tma["found_table"].obs
        assert obs["patient"].iloc[:8].tolist() == [*"abcdefgh"]
        assert pd.isna(obs["patient"].iloc[8])
        assert "names no patient for 1 cores: 'C3'" in caplog.text
        assert "1 cores of" in caplog.text
        assert "are missing on the slide: 'A3'" in caplog.text
        cells = toy_tma["table"].obs
        by_core = obs["patient"].astype(object)
        assert (
            cells["patient"].astype(object).fillna("") == cells["core"].astype(object).map(by_core).fillna("")
        ).all()

    def test_text_stays_text(self, toy_tma, tmp_path):
        """Patient 007; numbers stay numbers; other names of cores are kept."""
        (tmp_path / "map.csv").write_text("row,column,core,patient,age\nA,1,lung 7,007,61\nC,3,tonsil,,\n")
        sthist.pp.tma(toy_tma, regions="table", core_map=tmp_path / "map.csv", key_added="found")
        obs = toy_tma["found_table"].obs
        assert obs.loc["A1", ["name", "patient", "age"]].tolist() == ["lung 7", "007", 61.0]
        assert obs.loc["C3", "name"] == "tonsil"
        assert obs.loc[["B1", "C3"], "patient"].isna().all()

    def test_cores_without_a_row(self, toy_tma, caplog):
        """They are named."""
        sthist.pp.tma(
            toy_tma, regions="table", core_map=pd.DataFrame({"core": ["A1", "A2"], "label": [1, 2]}), key_added="f"
        )
        assert "says nothing of 6 cores that were found: 'B1', 'B2', 'B3', 'C1', 'C2', 'C3'" in caplog.text
        assert toy_tma["f_table"].obs["label"].isna().sum() == 7

    def test_columns_can_be_stored(self, toy_tma, tmp_path):
        """Names that the store refuses, yes and no with gaps, dates: all of them come back."""
        del toy_tma.images["he"], toy_tma.images["morphology_focus"], toy_tma.points["transcripts"]
        toy_tma.write(tmp_path / "tma.zarr")
        backed = sd.read_zarr(tmp_path / "tma.zarr")
        days = pd.to_datetime(["2020-01-02", None])
        known = pd.DataFrame({"core": ["A1", "A2"], "Num cells": [3, 4], "grade": [1, 2], "Grade": ["x", "y"]})
        known = known.assign(responder=[True, False], day=days)
        sthist.pp.tma(backed, regions="table", core_map=known, key_added="found")
        again = sd.read_zarr(tmp_path / "tma.zarr")["found_table"]
        assert again.obs.loc["A2", ["Num_cells", "grade", "Grade_2"]].tolist() == [4, 2, "y"]
        assert again.uns["sthist"]["found_table"]["renamed"] == {"Num_cells": "Num cells", "Grade_2": "Grade"}
        assert again.obs["responder"].dropna().tolist() == [True, False]
        assert again.obs["responder"].isna().sum() == 7
        assert again.obs["day"].dropna().tolist() == ["2020-01-02"]

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("core;patient\nA1;Müller\n".encode("latin-1"), "map.csv cannot be read"),
            (b"", "map.csv cannot be read"),
            (b"core,patient\nA1,P1\nA2,P2,3,4\n", "map.csv cannot be read"),
            (b"core,patient\n", "map.csv has no rows"),
        ],
    )
    def test_broken_files(self, toy_tma, tmp_path, content, message):
        """They are named."""
        (tmp_path / "map.csv").write_bytes(content)
        with pytest.raises(ValueError, match=message):
            sthist.pp.tma(toy_tma, regions="table", core_map=tmp_path / "map.csv", key_added="found")
        assert "found" not in toy_tma.shapes

    def test_several_samples(self, toy_tma):
        """A mapping, one after the other."""
        samples = {"a": toy_tma, "b": sd.deepcopy(toy_tma)}
        sthist.pp.tma(samples, regions="table", key_added="found")
        assert all(len(sample["found"]) == 9 for sample in samples.values())

    @pytest.mark.parametrize(
        ("table", "error", "message"),
        [
            ({"kore": ["A1"]}, KeyError, "neither the columns 'row' and 'column' nor .* 'core'.*Did you mean 'kore'"),
            ({"row": [0], "colum": [0]}, KeyError, "Did you mean 'colum'"),
            ({"core": ["A1", "B2", "a-01"]}, ValueError, "core 'A1' more than once, in rows 0 and 2"),
            ({"core": ["A1", "D1", "A4"]}, ValueError, r"2 cores that are not on the array .*: 'D1', 'A4'.*grid="),
            ({"core": ["A1", "liver"]}, ValueError, "'liver' in row 1"),
            ({"core": ["A0"]}, ValueError, "'A0' in row 0"),
            ({"row": [1, 2], "column": [1, 2]}, ValueError, "may count from 0 or from 1"),
            ({"row": ["A", "B"], "column": [0, 1]}, ValueError, "beside rows with letters columns count from 1"),
            ({"row": [0, 1.5], "column": [0, 1]}, ValueError, "'1.5' in column 'row', row 1"),
            ({"row": [0, None], "column": [0, 1]}, ValueError, "'nan' in column 'row', row 1"),
            ({"core": ["A1", "A2"], "patient": ["P1", "P01"]}, ValueError, "one patient under two names"),
            ({"core": ["A1"], "state": ["good"]}, ValueError, "column 'state', which pp.tma writes itself"),
            ({"core": ["A1"], "Region": ["x"]}, ValueError, "column 'Region', which pp.tma writes itself"),
            ({"core": ["A1"], "_index": [1]}, ValueError, "column '_index': names begin with a letter"),
            (3, TypeError, "csv file or a DataFrame, not int"),
            ("nowhere.csv", FileNotFoundError, "no table of cores nowhere.csv"),
        ],
    )  # fmt: skip
    def test_bad_maps(self, toy_tma, table, error, message):
        """Said before anything is written."""
        table = pd.DataFrame(table) if isinstance(table, dict) else table
        with pytest.raises(error, match=message):
            sthist.pp.tma(toy_tma, regions="table", core_map=table, key_added="found")
        assert "found" not in toy_tma.shapes
        assert "core" not in toy_tma["table"].obs

    def test_an_old_patient_does_not_stay(self, toy_tma):
        """Of a map that is no longer joined; a patient that others wrote does."""
        known = pd.DataFrame({"core": ["A1", "A2"], "patient": ["P1", "P2"]})
        sthist.pp.tma(toy_tma, regions="table", core_map=known, key_added="found")
        sthist.pp.tma(toy_tma, regions="table", key_added="found", overwrite=True)
        assert "patient" not in toy_tma["table"].obs
        toy_tma["table"].obs["patient"] = "P9"
        sthist.pp.tma(toy_tma, regions="table", key_added="found", overwrite=True)
        assert (toy_tma["table"].obs["patient"] == "P9").all()
        del toy_tma["table"].obs["core"]
        with pytest.raises(ValueError, match=r"obs\['patient'\] already"):
            sthist.pp.tma(toy_tma, regions="table", core_map=known, key_added="other")


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"image": "hé"}, KeyError, "No image 'hé'"),
        ({"regions": "tabel"}, KeyError, "No shapes or table 'tabel'.*Did you mean 'table'"),
        ({"grid": (3, 0)}, ValueError, r"grid is \(3, 0\)"),
        ({"grid": 3}, ValueError, "grid is 3"),
        ({"first": "one"}, ValueError, "first is 'one'"),
        ({"corner": "middle"}, ValueError, "corner is 'middle'"),
        ({"diameter_um": -1}, ValueError, "diameter_um is -1"),
        ({"mpp": np.nan}, ValueError, "mpp is nan"),
        ({"min_tissue": 2}, ValueError, "min_tissue is 2"),
        ({"diameter_um": 3000}, ValueError, "Found no core of 3000 µm.*diameter_um="),
        ({"key_added": "regions"}, ValueError, r"shapes\['regions'\] exists"),
    ],
)
def test_bad_arguments(toy_tma, kwargs, error, message):
    """Each says how to mend it."""
    with pytest.raises(error, match=message):
        sthist.pp.tma(toy_tma, **({"key_added": "found"} | kwargs))


def test_blank_glass():
    """There is nothing to find."""
    blank = Image2DModel.parse(
        np.full((3, 99, 99), 250, np.uint8), transformations={"um": Scale([2.0, 2.0], ("x", "y"))}
    )
    with pytest.raises(ValueError, match="no tissue"):
        sthist.pp.tma(sd.SpatialData(images={"he": blank}))
