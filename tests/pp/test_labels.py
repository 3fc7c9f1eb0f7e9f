"""Labels of regions, from polygons by area and from cells by number."""

from __future__ import annotations

import logging

import anndata as ad
import geopandas as gpd
import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pytest
import shapely
import spatialdata as sd
from hypothesis import given, settings
from spatialdata.models import ShapesModel, TableModel
from spatialdata.transformations import Affine, Identity

import sthist
from sthist._tables.labels import column_names
from sthist.datasets._toy.section import CELL_TYPES

SIZE = 64


def sample(polygons, labels, regions, **columns):
    """Polygons with labels, and regions without a table."""
    drawn = gpd.GeoDataFrame({"label": labels} | columns, geometry=list(polygons))
    shapes = {"drawn": drawn, "regions": gpd.GeoDataFrame(geometry=list(regions))}
    return sd.SpatialData(
        shapes={k: ShapesModel.parse(v, transformations={"um": Identity()}) for k, v in shapes.items()}
    )


def grid(side=16):
    return [shapely.box(x, y, x + side, y + side) for y in range(0, SIZE, side) for x in range(0, SIZE, side)]


def brute_force(polygons, labels, classes, side=16, fine=16):
    """Share of each class in each square of the grid, by painting polygons onto fine pixels: the smallest last."""
    y, x = (np.indices((SIZE * fine, SIZE * fine)) + 0.5) / fine
    image = np.full(x.shape, -1)
    for i in sorted(range(len(polygons)), key=lambda i: (-polygons[i].area, i)):
        image[shapely.contains_xy(polygons[i], x, y)] = classes.index(labels[i])
    n, k = SIZE // side, side * fine
    blocks = image.reshape(n, k, n, k).swapaxes(1, 2).reshape(n * n, -1)
    return np.stack([(blocks == code).mean(1) for code in range(len(classes))], 1)


@st.composite
def annotations(draw):
    """Stars and boxes, some over others, with labels."""
    polygons = []
    for _ in range(draw(st.integers(1, 6))):
        x, y = draw(st.tuples(*[st.floats(5, SIZE - 5)] * 2))
        radii = draw(st.lists(st.floats(3, 30), min_size=3, max_size=8))
        angle = np.linspace(0, 2 * np.pi, len(radii), endpoint=False)
        polygons.append(shapely.Polygon(np.c_[x + radii * np.cos(angle), y + radii * np.sin(angle)]))
    labels = draw(st.lists(st.sampled_from(["a", "b", "c"]), min_size=len(polygons), max_size=len(polygons)))
    return polygons, labels


@settings(deadline=None, max_examples=12)
@given(annotation=annotations(), min_fraction=st.sampled_from([0.0, 0.3, 0.5, 0.9]))
def test_areas_are_those_of_pixels(annotation, min_fraction):
    """Fractions, labels and compositions, against polygons painted one by one."""
    polygons, labels = annotation
    classes = sorted(set(labels))
    expected = brute_force(polygons, labels, classes)
    sdata = sample(polygons, labels, grid())
    if expected.sum() == 0:
        return
    sthist.pp.label_regions(sdata, "regions", "drawn", min_fraction=min_fraction)
    table = sdata["regions_table"]
    composition, obs = table.obsm["label_composition"], table.obs
    assert composition.columns.tolist() == classes
    np.testing.assert_allclose(composition.to_numpy() * obs[["label_labelled"]].to_numpy(), expected, atol=0.01)
    np.testing.assert_allclose(obs["label_fraction"], expected.max(1), atol=0.01)
    some = obs["label_labelled"].to_numpy() > 0
    np.testing.assert_allclose(composition.sum(axis=1), some.astype(float))
    # Near a tie, or near the threshold, pixels are too coarse to decide.
    ordered = np.sort(expected, axis=1)
    clear = ordered[:, -1] - (ordered[:, -2] if len(classes) > 1 else 0) > 0.03
    clear &= np.abs(ordered[:, -1] - max(min_fraction, 1e-3)) > 0.02
    wanted = np.where(expected.max(1) >= min_fraction, np.array(classes, object)[expected.argmax(1)], None)
    assert obs["label"].astype(object).where(obs["label"].notna(), None)[clear].tolist() == wanted[clear].tolist()


@settings(deadline=None, max_examples=12)
@given(seed=st.integers(0, 10_000), n=st.integers(1, 200), radius=st.floats(4, 40))
def test_cells_are_counted(seed, n, radius):
    """In circles that overlap, against a loop; cells without a label are in what is counted."""
    rng = np.random.default_rng(seed)
    cells = rng.uniform(0, SIZE, (n, 2))
    kinds = rng.choice(["x", "y", None], n, p=[0.5, 0.3, 0.2])
    if all(kind is None for kind in kinds):
        return
    centres = rng.uniform(0, SIZE, (5, 2))
    sdata = with_cells(cells, kinds)
    spots = gpd.GeoDataFrame({"radius": np.full(5, radius)}, geometry=gpd.points_from_xy(*centres.T))
    sdata.shapes["spots"] = ShapesModel.parse(spots, transformations={"um": Identity()})
    distance = np.linalg.norm(cells[None] - centres[:, None], axis=2)
    inside = distance < radius
    if np.abs(distance - radius).min() < 0.01 * radius or not (inside & (kinds != None)).any():  # noqa: E711
        return
    sthist.pp.label_regions(sdata, "spots", "table", label="kind", min_fraction=0.5)
    obs = sdata["spots_table"].obs
    for i in range(5):
        mine = pd.Series(kinds[inside[i]], dtype=object)
        counts = mine.value_counts()
        share = counts.max() / len(mine) if len(counts) else 0.0
        assert obs["label_fraction"].iloc[i] == pytest.approx(share)
        assert obs["label_labelled"].iloc[i] == pytest.approx(mine.notna().mean() if len(mine) else 0)
        label = obs["label"].iloc[i]
        assert pd.isna(label) if share < 0.5 else counts[label] == counts.max()


def with_cells(places, kinds):
    """A sample of round cells with ``obs["kind"]``."""
    frame = gpd.GeoDataFrame({"radius": np.full(len(places), 1.0)}, geometry=gpd.points_from_xy(*places.T))
    obs = pd.DataFrame(
        {"region": pd.Categorical(["cells"] * len(places)), "instance_id": np.arange(len(places)), "kind": kinds}
    )
    table = ad.AnnData(obs=obs.set_index(obs.index.astype(str)))
    return sd.SpatialData(
        shapes={"cells": ShapesModel.parse(frame, transformations={"um": Identity()})},
        tables={"table": TableModel.parse(table, region="cells", region_key="region", instance_key="instance_id")},
    )


@pytest.fixture
def tiled(toy):
    """The toy section with tiles of 25 µm."""
    sthist.pp.tissue(toy)
    sthist.pp.tiles(toy, size_um=25, px=25)
    return toy


def test_the_toys_tiles(tiled):
    """Regions by area and cells by number say the same of nearly all tiles."""
    sthist.pp.label_regions(tiled, "tiles", "regions")
    kinds = tiled["table"].obs["cell_type"].astype(str).map({name: kind.region for name, kind in CELL_TYPES.items()})
    tiled["table"].obs["region_label"] = kinds.to_numpy()
    sthist.pp.label_regions(tiled, "tiles_table", "table", label="region_label", key_added="by_cells")
    obs = tiled["tiles_table"].obs
    clear = (obs["label_fraction"] > 0.9) & obs["by_cells"].notna()
    assert clear.sum() > 50
    assert (obs["label"][clear].astype(str) == obs["by_cells"][clear].astype(str)).mean() > 0.95


def test_written_and_read_back(tmp_path, backed):
    """Tables that were there and a new one; class names as they are in obs, and safe where they are columns."""
    sthist.pp.tissue(backed)
    sthist.pp.tiles(backed, size_um=50, px=50)
    names = {"duct": "Duct/DCIS", "immune": "T cell", "stroma": "duct_dcis"}
    frame = backed["regions"].assign(label=[names[label] for label in backed["regions"]["label"]])
    backed.shapes["drawn"] = ShapesModel.parse(frame)
    sthist.pp.label_regions(backed, "tiles", "drawn", min_fraction=0.2)
    sthist.pp.label_regions(backed, "regions", "table", label="cell_type", min_fraction=0.2, key_added="type")
    again = sd.read_zarr(backed.path)
    for table in ("tiles_table", "regions_table"):
        pd.testing.assert_frame_equal(again[table].obs, backed[table].obs)
    frame = again["tiles_table"].obsm["label_composition"]
    pd.testing.assert_frame_equal(frame, backed["tiles_table"].obsm["label_composition"])
    assert frame.columns.tolist() == ["Duct_DCIS", "T cell", "duct_dcis_2"]
    made = again["tiles_table"].uns["sthist"]["label"]
    assert made["classes"] == {"Duct_DCIS": "Duct/DCIS", "T cell": "T cell", "duct_dcis_2": "duct_dcis"}
    assert set(again["tiles_table"].obs["label"].cat.categories) == set(names.values())
    with pytest.raises(ValueError, match=r"obs\['label'\] already"):
        sthist.pp.label_regions(backed, "tiles", "drawn")
    sthist.pp.label_regions(backed, "tiles", "drawn", min_fraction=1, overwrite=True)
    assert sd.read_zarr(backed.path)["tiles_table"].obs["label"].isna().sum() > 0


@pytest.mark.parametrize(
    ("names", "columns"),
    [
        (["a", "A", "a"], ["a", "A_2", "a_3"]),
        (["T/NK", "T_NK"], ["T_NK", "T_NK_2"]),
        (["_index", "..", "/"], ["index", "class", "class_2"]),
        (["B cells", "Gehirn-Rinde", "é"], ["B cells", "Gehirn-Rinde", "é"]),
    ],
)
def test_columns_can_be_stored(names, columns, tmp_path):
    """Each once, whatever the case; and SpatialData takes them."""
    assert column_names(names) == columns
    adata = ad.AnnData(obs=pd.DataFrame(index=["x"]))
    adata.obsm["composition"] = pd.DataFrame(np.zeros((1, len(columns))), columns=columns, index=["x"])
    sd.SpatialData(tables={"table": TableModel.parse(adata)}).write(tmp_path / "x.zarr")
    assert sd.read_zarr(tmp_path / "x.zarr")["table"].obsm["composition"].columns.tolist() == columns


class TestWhatPathologistsDraw:
    """Polygons as they come."""

    tile = shapely.box(0, 0, 10, 10)

    def label(self, polygons, labels, caplog=None, **kwargs):
        sdata = sample(polygons, labels, [self.tile])
        sthist.pp.label_regions(sdata, "regions", "drawn", **kwargs)
        obs, composition = sdata["regions_table"].obs, sdata["regions_table"].obsm["label_composition"]
        return obs.iloc[0], composition.iloc[0]

    def test_necrosis_on_top_of_a_tumour(self, caplog):
        """Its area counts as necrosis; the other way round in the table changes nothing; or it is refused."""
        tumour, necrosis = shapely.box(0, 0, 20, 20), shapely.box(0, 0, 3, 10)
        for polygons, labels in (
            ([tumour, necrosis], ["tumour", "necrosis"]),
            ([necrosis, tumour], ["necrosis", "tumour"]),
        ):
            obs, shares = self.label(polygons, labels)
            assert shares["necrosis"] == pytest.approx(0.3)
            assert obs["label"] == "tumour"
        assert "have two labels and overlap, such as 1 and 0: the smaller one counts there (30 µm²)" in caplog.text
        with pytest.raises(ValueError, match=r"overlap, by 30 µm² in all, such as 0 and 1\. Part them"):
            self.label([tumour, necrosis], ["tumour", "necrosis"], overlaps="error")

    def test_one_area_twice(self):
        """With one label it counts once; with two, the later one lies on top; neighbours do not overlap."""
        half = shapely.box(0, 0, 5, 10)
        obs, _ = self.label([half, half, shapely.box(1, 0, 6, 10)], ["a"] * 3, overlaps="error")
        assert obs["label_fraction"] == pytest.approx(0.6)
        obs, shares = self.label([half, half], ["a", "b"])
        assert obs["label"] == "b"
        assert shares["a"] == 0
        obs, shares = self.label([half, shapely.box(5, 0, 10, 10)], ["a", "b"], overlaps="error")
        assert shares.tolist() == [0.5, 0.5]
        assert obs["label"] == "a"  # the first of equals

    def test_an_outline_that_crosses_itself(self, caplog):
        """A lasso whose end runs into its beginning: the loop is inside, too."""
        lasso = shapely.Polygon([(0, 0), (10, 0), (10, 10), (4, 10), (4, -3), (6, -3), (6, 8), (0, 8)])
        bow = shapely.Polygon([(0, 0), (10, 10), (10, 0), (0, 10)])
        obs, _ = self.label([lasso], ["a"])
        assert obs["label_fraction"] == pytest.approx(0.92)
        assert "1 of the shapes 'drawn' cross themselves, such as 0" in caplog.text
        obs, _ = self.label([bow], ["a"])
        assert obs["label_fraction"] == pytest.approx(0.5)

    def test_nothing_to_go_by(self, caplog):
        """NaN, blank text, no area, and nothing at all are left aside, and that is said."""
        flat = shapely.Polygon([(0, 0), (10, 10), (0, 0)])
        polygons = [self.tile, self.tile, flat, shapely.Polygon(), shapely.box(0, 0, 6, 10)]
        obs, shares = self.label(polygons, [None, " ", "b", "b", "a"])
        assert obs["label"] == "a"
        assert shares.tolist() == [1.0, 0.0]
        assert obs["label_labelled"] == pytest.approx(0.6)
        assert "4 of the 5 shapes 'drawn' are left aside" in caplog.text
        with pytest.raises(ValueError, match="all 1 are NaN or blank"):
            self.label([self.tile], [np.nan])
        with pytest.raises(ValueError, match="No shape of 'drawn' has both a label"):
            self.label([flat], ["a"])

    def test_below_min_fraction(self, caplog):
        """NaN, and the share is there all the same."""
        with caplog.at_level(logging.INFO, logger="sthist"):
            obs, _ = self.label([shapely.box(0, 0, 4, 10)], ["a"])
        assert pd.isna(obs["label"])
        assert obs["label_fraction"] == pytest.approx(0.4)
        assert (
            "0 of the 1 regions 'regions' have a label; in 0 there is nothing labelled, and in 1 no class has 50%"
            in caplog.text
        )
        assert self.label([shapely.box(0, 0, 5, 10)], ["a"])[0]["label"] == "a"

    def test_categories_keep_their_order(self):
        """Of a categorical column, with those that do not occur; numbers sort as numbers."""
        labels = pd.Categorical(["low", "high"], categories=["low", "middle", "high"])
        obs, shares = self.label([shapely.box(0, 0, 7, 10), shapely.box(7, 0, 10, 10)], labels)
        assert shares.index.tolist() == ["low", "middle", "high"]
        _, shares = self.label([shapely.box(0, 0, 7, 10), shapely.box(7, 0, 10, 10)], [10, 2])
        assert shares.index.tolist() == ["2", "10"]


def test_regions_in_other_units():
    """Circles in pixels, on an image that is flipped and has pixels that are not square."""
    sdata = sample([shapely.box(0, 0, 20, 64)], ["a"], grid())
    spots = gpd.GeoDataFrame(
        {"radius": [8.0, 8.0]}, geometry=gpd.points_from_xy([20, 40], [10, 10]), index=["s1", "s2"]
    )
    flip = Affine(np.array([[-1.0, 0, 60], [0, 0.5, 0], [0, 0, 1]]), ("x", "y"), ("x", "y"))
    sdata.shapes["spots"] = ShapesModel.parse(spots, transformations={"um": flip})
    sthist.pp.label_regions(sdata, "spots", "drawn")
    obs = sdata["spots_table"].obs
    np.testing.assert_allclose(obs["label_fraction"], [0.0, 0.5], atol=1e-6)  # s2: x of 20 ± 8 µm
    np.testing.assert_allclose(sdata["spots_table"].obsm["spatial"], [[40, 5], [20, 5]])
    assert obs["instance_id"].tolist() == ["s1", "s2"]


def test_cores_and_tiles_of_a_microarray():
    """Labels of cores reach tiles by area; a missing core gets none, though a polygon covers it."""
    sdata = sthist.datasets.toy("tma", size_um=700)
    sthist.pp.tma(sdata, regions="table", overwrite=True)
    sdata.shapes["all"] = ShapesModel.parse(
        gpd.GeoDataFrame({"label": ["a"]}, geometry=[shapely.box(0, 0, 700, 700)]), transformations={"um": Identity()}
    )
    sthist.pp.label_regions(sdata, "cores", "all")
    obs = sdata["cores_table"].obs
    assert obs["label"].isna().to_numpy().tolist() == (obs["state"] == "missing").tolist()
    sdata["cores_table"].obs["grade"] = pd.Categorical(["low"] * 3 + ["high"] * 6)
    sthist.pp.tiles(sdata, size_um=30, px=30, regions="cores")
    sthist.pp.label_regions(sdata, "tiles", "cores", label="grade", key_added="grade")
    tiles = sdata["tiles_table"].obs
    whole = tiles["grade_fraction"] > 0.6
    expected = np.where(tiles["core"].astype(str).str.startswith("A"), "low", "high")
    assert (tiles["grade"].astype(str) == expected)[whole].all()
    # A core in which no tile lies has no tiles to be labelled by.
    tiles["bright"] = "yes"
    few = tiles["core"] != "C3"
    subset = sdata["tiles_table"][few.to_numpy()].copy()
    sdata.tables["tiles_table"] = subset
    sthist.pp.label_regions(sdata, "cores", "tiles_table", label="bright", key_added="bright")
    assert sdata["cores_table"].obs["bright"].isna().to_numpy().nonzero()[0].tolist() == [2, 8]


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"regions": "tyles"}, KeyError, "No shapes or table 'tyles'.*Did you mean 'tiles'"),
        ({"by": "region"}, KeyError, "No shapes or table 'region'.*Did you mean 'regions'"),
        (
            {"label": "lable"},
            KeyError,
            r"Shapes 'regions' have no column 'lable'; they have \['label'\].*Did you mean 'label'",
        ),
        (
            {"by": "table", "label": "celltype"},
            KeyError,
            "table 'table' have no column 'celltype'.*Did you mean 'cell_type'",
        ),
        ({"min_fraction": 1.5}, ValueError, "min_fraction is 1.5"),
        ({"overlaps": "top"}, ValueError, "overlaps is 'top'"),
        ({"key_added": "a/b"}, ValueError, "'a/b'; a name holds letters, digits"),
        ({"key_added": "region"}, ValueError, r"obs\['region'\] already. Pass key_added="),
    ],
)
def test_bad_arguments(tiled, kwargs, error, message):
    """Said before anything is written."""
    with pytest.raises(error, match=message):
        sthist.pp.label_regions(tiled, **({"regions": "tiles", "by": "regions"} | kwargs))
    assert "label" not in tiled["tiles_table"].obs


def test_nothing_lies_there():
    """A registration that went wrong."""
    sdata = sample([shapely.box(900, 900, 950, 950)], ["a"], grid())
    with pytest.raises(ValueError, match="Nothing of 'drawn' that has a label lies in the 16 regions 'regions'"):
        sthist.pp.label_regions(sdata, "regions", "drawn")
    sdata.shapes["pixels"] = ShapesModel.parse(gpd.GeoDataFrame(geometry=grid()))
    with pytest.raises(ValueError, match="'pixels' are not registered in 'um'"):
        sthist.pp.label_regions(sdata, "pixels", "drawn")


def test_which_table(toy):
    """The one named after the regions, or the reader's; else it has to be said."""
    for name in ("cell_boundaries_counts", "second"):
        copy = toy["table"].copy()
        toy.tables[name] = copy
    sthist.pp.label_regions(toy, "cell_boundaries", "regions")
    assert "label" in toy["table"].obs
    toy.attrs["sthist"]["roles"].pop("cells")
    with pytest.raises(
        ValueError, match="Several tables annotate the shapes 'cell_boundaries': 'cell_boundaries_counts'"
    ):
        sthist.pp.label_regions(toy, "cell_boundaries", "regions")
    sthist.pp.label_regions(toy, "second", "regions")
    assert "label" in toy["second"].obs


def test_names_that_are_not_one_s_own(toy):
    """Shapes of one name cannot be told apart; columns that differ in case alone cannot be stored."""
    twice = gpd.GeoDataFrame({"label": ["a", "b"]}, geometry=[shapely.box(0, 0, 50, 50)] * 2, index=["x", "x"])
    toy.shapes["twice"] = ShapesModel.parse(twice, transformations={"um": Identity()})
    for regions, by in (("twice", "regions"), ("cell_boundaries", "twice")):
        with pytest.raises(ValueError, match="Shapes 'twice' have the name 'x' more than once, in rows 0 and 1"):
            sthist.pp.label_regions(toy, regions, by)
    with pytest.raises(ValueError, match=r"obs\['cell_type'\] already, and 'Cell_Type' differs in case alone"):
        sthist.pp.label_regions(toy, "table", "regions", key_added="Cell_Type", overwrite=True)


def test_equals_and_several_samples():
    """The first of two equal shares, whatever rounding makes of their areas; samples one after the other."""
    edges = np.cumsum([0.1, 0.7, 1 / 3, 3.37])
    halves = [shapely.box(x0, 0, x0 + side, 8) for x0 in (0.3, 0.3 + 1 / 3) for side in (1 / 3,)]
    regions = [shapely.box(0.3, y, 0.3 + 2 / 3, y + 0.1) for y in edges]
    samples = {name: sample(halves, ["z", "a"], regions) for name in ("one", "two")}
    sthist.pp.label_regions(samples, "regions", "drawn")
    for each in samples.values():
        assert each["regions_table"].obs["label"].tolist() == ["a"] * 4
