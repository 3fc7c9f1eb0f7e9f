"""Labels of tiles, polygons and heat maps at cells and spots."""

from __future__ import annotations

import geopandas as gpd
import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pytest
import shapely
import spatialdata as sd
from hypothesis import given, settings
from spatialdata.models import Image2DModel, ShapesModel
from spatialdata.transformations import Affine, Identity, Scale

import sthist
from sthist.datasets._toy.section import CELL_TYPES


def true_regions(sdata):
    """Region of each cell, by its type."""
    kinds = {name: kind.region for name, kind in CELL_TYPES.items()}
    return sdata["table"].obs["cell_type"].astype(str).map(kinds).to_numpy()


def add_tiles(sdata, size_um, overlap=0.0, key="tiles"):
    x0, y0, x1, y1 = sdata["cell_boundaries"].total_bounds
    sdata.shapes["field"] = ShapesModel.parse(
        gpd.GeoDataFrame(geometry=[shapely.box(x0 - 1, y0 - 1, x1 + size_um, y1 + size_um)]),
        transformations={"um": Identity()},
    )
    sthist.pp.tiles(sdata, size_um=size_um, px=8, overlap=overlap, regions="field", key_added=key)
    del sdata.shapes["field"]


def heat_map(sdata, key, values, channels, matrix, **kwargs):
    sdata.images[key] = Image2DModel.parse(
        values,
        dims=("c", "y", "x"),
        c_coords=channels,
        transformations={"um": Affine(matrix, ("x", "y"), ("x", "y"))},
        **kwargs,
    )


class TestTiles:
    """By a loop over tiles and cells."""

    @settings(deadline=None, max_examples=10)
    @given(seed=st.integers(0, 1000), overlap=st.sampled_from([0.0, 0.3, 0.5]), unlabelled=st.sampled_from([0.0, 0.3]))
    def test_scores_are_means_and_labels_votes(self, seed, overlap, unlabelled):
        """Over the tiles that hold a cell; tiles without a label, or with NaN among their scores, do not count."""
        rng = np.random.default_rng(seed)
        sdata = sthist.datasets.toy(size_um=120)
        add_tiles(sdata, 40, overlap)
        table = sdata["tiles_table"]
        n = table.n_obs
        gone = rng.uniform(size=n) < unlabelled
        if gone.all():
            return
        names = ["a/b", "c"]
        labels = np.where(gone, None, rng.choice(names, n))
        table.obs["grade"] = pd.Categorical(labels, categories=names)
        scores = rng.uniform(0, 1, (n, 2))
        scores[gone, rng.integers(2)] = np.nan
        table.obsm["grade_probability"] = pd.DataFrame(scores, columns=["u", "v"], index=table.obs_names)
        sthist.tl.transfer_labels(sdata, "tiles_table", "table", label="grade", key_added="vote")
        sthist.tl.transfer_labels(sdata, "tiles", "cell_boundaries", scores="grade_probability", key_added="mean")
        votes = sdata["table"].obsm["vote_scores"].to_numpy()
        means = sdata["table"].obsm["mean_scores"].to_numpy()
        assert sdata["table"].obsm["vote_scores"].columns.tolist() == ["a_b", "c"]
        squares = [(square.bounds, i) for i, square in enumerate(sdata["tiles"].geometry)]
        centres = sdata["cell_boundaries"].geometry.centroid
        obs = sdata["table"].obs
        for cell, (x, y) in enumerate(zip(centres.x, centres.y, strict=True)):
            mine = [i for (x0, y0, x1, y1), i in squares if x0 <= x <= x1 and y0 <= y <= y1 and not gone[i]]
            if not mine:
                assert np.isnan(votes[cell]).all()
                assert pd.isna(obs["vote"].iloc[cell])
                assert np.isnan(obs["mean_score"].iloc[cell])
                continue
            np.testing.assert_allclose(votes[cell], [np.mean(labels[mine] == name) for name in names])
            np.testing.assert_allclose(means[cell], scores[mine].mean(0))
            assert obs["vote"].iloc[cell] == names[votes[cell].argmax()]
            assert obs["mean"].iloc[cell] == "uv"[means[cell].argmax()]
            assert obs["mean_score"].iloc[cell] == pytest.approx(means[cell].max())

    def test_back_and_forth(self, toy):
        """Tiles' labels given to cells come back as the labels of the tiles in which cells are."""
        add_tiles(toy, 30)
        toy["tiles_table"].obs["label"] = np.random.default_rng(0).choice(["a", "b", "c"], toy["tiles_table"].n_obs)
        sthist.tl.transfer_labels(toy, "tiles", "table")
        assert (toy["table"].obs["label_score"] == 1).all()
        sthist.pp.label_regions(toy, "tiles", "table", key_added="again")
        obs = toy["tiles_table"].obs
        known = obs["again"].notna()
        assert known.sum() > 50
        assert (obs["again"][known].astype(str) == obs["label"][known]).all()
        assert (obs["again_fraction"][known] == 1).all()

    def test_cells_outside(self, toy, caplog):
        """They are NaN, counted and said; none at all is an error; min_score leaves doubtful ones out."""
        add_tiles(toy, 50)
        table = toy["tiles_table"]
        left = table.obsm["spatial"][:, 0] < 200
        toy.tables["tiles_table"] = table[left].copy()
        toy["tiles_table"].obsm["p"] = pd.DataFrame({"a": 0.4, "b": 0.3}, index=toy["tiles_table"].obs_names)
        toy["tiles_table"].obsm["p"].iloc[0] = np.nan
        with caplog.at_level("INFO", logger="sthist"):
            sthist.tl.transfer_labels(toy, "tiles_table", "table", scores="p")
        made = toy["table"].uns["sthist"]["label"]
        squares = [square for square, there in zip(toy["tiles"].geometry, left, strict=True) if there]
        places = toy["cell_boundaries"].geometry.centroid
        outside = ~np.logical_or.reduce([places.intersects(square) for square in squares])
        assert made["outside"] == outside.sum() > 0
        assert toy["table"].obs["label"].isna().sum() == made["outside"] + made["unlabelled"]
        assert f"{outside.sum()} lie outside of 'tiles_table'" in caplog.text
        sthist.tl.transfer_labels(toy, "tiles_table", "table", scores="p", min_score=0.5, overwrite=True)
        obs = toy["table"].obs
        assert obs["label"].isna().all()
        assert toy["table"].uns["sthist"]["label"]["below_min_score"] == (obs["label_score"] == 0.4).sum()
        toy.shapes["far"] = ShapesModel.parse(
            gpd.GeoDataFrame({"label": ["a"]}, geometry=[shapely.box(9000, 0, 9001, 1)]),
            transformations={"um": Identity()},
        )
        with pytest.raises(ValueError, match=r"None of the \d+ rows of 'table' lies in 'far'"):
            sthist.tl.transfer_labels(toy, "far", "table", key_added="far")


class TestPolygons:
    """Annotations."""

    def test_the_toys_regions(self, toy):
        """Cells get the region that they were made in."""
        sthist.tl.transfer_labels(toy, "regions", "cell_boundaries")
        obs = toy["table"].obs
        assert (obs["label"].astype(str) == true_regions(toy)).mean() > 0.99
        assert set(obs["label_score"].dropna()) == {1.0}
        np.testing.assert_allclose(toy["table"].obsm["label_scores"].sum(axis=1).dropna(), 1)

    def test_the_smaller_one_counts(self, toy):
        """As it does in pp.label_regions; cells on a border between two are in one of them."""
        frame = gpd.GeoDataFrame(
            {"label": ["out", "in"]}, geometry=[shapely.box(0, 0, 400, 400), shapely.box(100, 100, 200, 200)]
        )
        toy.shapes["drawn"] = ShapesModel.parse(frame, transformations={"um": Identity()})
        sthist.tl.transfer_labels(toy, "drawn", "table")
        centres = toy["cell_boundaries"].geometry.centroid
        inside = centres.x.between(100, 200) & centres.y.between(100, 200)
        assert ((toy["table"].obs["label"] == "in").to_numpy() == inside.to_numpy()).all()
        with pytest.raises(ValueError, match="overlap, by 10000 µm²"):
            sthist.tl.transfer_labels(toy, "drawn", "table", key_added="other", overlaps="error")

    def test_spots(self):
        """Any shapes that have a table."""
        sdata = sthist.datasets.toy("visium", size_um=600)
        sthist.tl.transfer_labels(sdata, "regions", "spots")
        expected = [
            sdata["regions"]["label"][sdata["regions"].contains(shapely.Point(place))].iloc[0]
            for place in sdata["table"].obsm["spatial"]
        ]
        assert sdata["table"].obs["label"].tolist() == expected


class TestHeatMaps:
    """The pixel under the centroid."""

    @pytest.mark.parametrize("backed", [False, True])
    @pytest.mark.parametrize("kwargs", [{}, {"chunks": {"c": 1, "y": 7, "x": 11}}, {"scale_factors": [2]}])
    def test_pixels(self, toy, tmp_path, kwargs, backed):
        """Rotated, flipped and stretched; with chunks of any size, pyramids, on disk.

        Outside and NaN are told apart.
        """
        rng = np.random.default_rng(0)
        values = rng.uniform(0, 1, (3, 40, 60)).astype(np.float32)
        values[:, 10:14, 10:20] = np.nan
        cos, sin = np.cos(0.3), np.sin(0.3)
        matrix = np.array([[6 * cos, 5 * sin, 20], [6 * sin, -5 * cos, 150], [0, 0, 1]])
        heat_map(toy, "heat", values, ["a", "b/c", "d"], matrix, **kwargs)
        if backed:
            toy.write(tmp_path / "toy.zarr")
            toy = sd.read_zarr(tmp_path / "toy.zarr")
        sthist.tl.transfer_labels(toy, "heat", "table")
        if backed:
            again = sd.read_zarr(tmp_path / "toy.zarr")["table"]
            pd.testing.assert_frame_equal(again.obs, toy["table"].obs)
            pd.testing.assert_frame_equal(again.obsm["label_scores"], toy["table"].obsm["label_scores"])
        adata = toy["table"]
        centres = toy["cell_boundaries"].geometry.centroid
        outside = unlabelled = 0
        for i, (x, y) in enumerate(zip(centres.x, centres.y, strict=True)):
            column, row, _ = np.floor(np.linalg.solve(matrix, [x, y, 1])).astype(int)
            if not (0 <= row < 40 and 0 <= column < 60):
                outside += 1
                expected = np.full(3, np.nan)
            else:
                expected = values[:, row, column]
                unlabelled += np.isnan(expected).all()
            np.testing.assert_allclose(adata.obsm["label_scores"].iloc[i], expected)
            if not np.isnan(expected).any():
                assert adata.obs["label"].iloc[i] == ["a", "b/c", "d"][expected.argmax()]
                assert adata.obs["label_score"].iloc[i] == pytest.approx(expected.max())
        made = adata.uns["sthist"]["label"]
        assert (made["outside"], made["unlabelled"]) == (outside, unlabelled)
        assert min(outside, unlabelled) > 0
        assert adata.obsm["label_scores"].columns.tolist() == ["a", "b_c", "d"]

    def test_several_maps_of_integers(self, toy):
        """One image per class, of 8 bits: scores from 0 to 1, the best wins."""
        for name, value in (("tumour", 51), ("stroma", 102)):
            values = np.full((1, 50, 50), value, np.uint8)
            heat_map(toy, f"{name}_heatmap", values, [name], np.diag([10.0, 10, 1]))
        sthist.tl.transfer_labels(toy, ["tumour_heatmap", "stroma_heatmap"], "table")
        obs = toy["table"].obs
        assert (obs["label"] == "stroma").all()
        np.testing.assert_allclose(obs["label_score"], 0.4)
        with pytest.raises(ValueError, match="two channels named 'tumour'"):
            sthist.tl.transfer_labels(toy, ["tumour_heatmap", "tumour_heatmap"], "table", key_added="twice")


def test_a_microarray_from_its_map_to_cells_and_back():
    """Labels of cores go to tiles, from there to cells, and come back to cores; the truth is that of the discs."""
    sdata = sthist.datasets.toy("tma", size_um=1000)
    discs = sdata["cores"]
    grades = dict(zip(discs.index, ["low", "high", "low", "high", "high", "low", "low", "low", "high"], strict=True))
    known = pd.DataFrame({"core": list(grades), "grade": list(grades.values()), "patient": [f"P{i}" for i in range(9)]})
    sthist.pp.tma(sdata, core_map=known, key_added="found")
    sthist.pp.tissue(sdata)
    sthist.pp.tiles(sdata, size_um=30, px=15, min_tissue=0.05)
    sthist.pp.label_regions(sdata, "tiles", "found", label="grade", key_added="grade", min_fraction=0.05)
    sthist.tl.transfer_labels(sdata, "tiles", "table", label="grade", key_added="grade")
    cells = sdata["table"].obsm["spatial"]
    truth = np.full(len(cells), "none", dtype=object)
    for name, disc in discs.geometry.items():
        truth[shapely.contains_xy(disc, *cells.T)] = grades[name]
    obs = sdata["table"].obs
    assert (obs["grade"].astype(str) == truth).mean() > 0.95
    sthist.pp.label_regions(sdata, "found", "table", label="grade", key_added="back")
    cores = sdata["found_table"].obs
    there = cores["state"] != "missing"
    assert (cores["back"][there].astype(str) == cores["grade"][there].astype(str)).all()
    assert cores["back"][~there].isna().all()
    # The regions that were drawn: to tiles, to cells.
    sthist.pp.tiles(sdata, size_um=10, px=10, min_tissue=0.05, key_added="small")
    sthist.pp.label_regions(sdata, "small", "regions", min_fraction=0.05)
    sthist.tl.transfer_labels(sdata, "small", "table")
    assert (obs["label"].astype(str) == true_regions(sdata)).mean() > 0.95


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"source": "region"}, KeyError, "No shapes or table 'region'.*Did you mean 'regions'"),
        ({"regions": "cells"}, KeyError, "No shapes or table 'cells'"),
        ({"label": "grade"}, KeyError, "Shapes 'regions' have no column 'grade'"),
        ({"scores": "p"}, KeyError, r"Shapes 'regions' have no table, and so no obsm\['p'\]"),
        ({"label": "label", "scores": "p"}, ValueError, "a call reads one of them"),
        (
            {"source": "table", "scores": "spatia"},
            KeyError,
            r"no obsm\['spatia'\]; it has \['spatial'\].*Did you mean 'spatial'",
        ),
        ({"source": "table", "scores": "spatial"}, TypeError, "2 columns without names"),
        ({"source": "he", "scores": "p"}, ValueError, "'he' is an image"),
        ({"source": ["he", "hee"]}, KeyError, "No image 'hee'"),
        ({"source": []}, ValueError, "source is empty"),
        ({"min_score": np.nan}, ValueError, "min_score is nan"),
        ({"overlaps": "mean"}, ValueError, "overlaps is 'mean'"),
        ({"key_added": "cell_type"}, ValueError, r"obs\['cell_type'\] already"),
    ],
)
def test_bad_arguments(toy, kwargs, error, message):
    """Said before anything is written."""
    with pytest.raises(error, match=message):
        sthist.tl.transfer_labels(toy, **({"source": "regions", "regions": "table"} | kwargs))
    assert "label" not in toy["table"].obs


def test_without_a_scale(toy):
    """An image that is not registered in um."""
    toy.images["raw"] = Image2DModel.parse(np.zeros((1, 8, 8)), transformations={"global": Scale([1, 1], ("x", "y"))})
    with pytest.raises(ValueError, match="Image 'raw' has no scale"):
        sthist.tl.transfer_labels(toy, "raw", "table")


def test_several_samples(toy):
    """A mapping, one after the other."""
    samples = {"a": toy, "b": sd.deepcopy(toy)}
    sthist.tl.transfer_labels(samples, "regions", "table")
    assert samples["a"]["table"].obs["label"].equals(samples["b"]["table"].obs["label"])
