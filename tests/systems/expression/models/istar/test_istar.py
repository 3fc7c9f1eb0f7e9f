"""iStar: finds what is finer than its spots, writes maps and sums, and refuses what does not fit."""

from __future__ import annotations

import numpy as np
import pytest
import spatialdata as sd
from superpixels import CELL_UM, GENES, MeanColour, fine_slide, nearest_spots

import sthist
from sthist import models
from sthist.models import IStar, IStarConfig
from sthist.tiles import TileSpec

SIDE = 100
KEY = "colour_features"
CONFIG = IStarConfig(encoder=KEY, boxes=(1,), hidden=32, members=2)
TRAINING = {"epochs": 20, "lr": 5e-3, "patience": None}
QUICK = {"epochs": 1, "patience": None}
VARIES = slice(0, 3)  # the last gene is the same everywhere


def with_features(sdata, **changes):
    how = {"stride_um": CELL_UM, "spec": TileSpec(CELL_UM, 4), "tissue": False, "key_added": KEY, "progress": False}
    sthist.pp.dense_features(sdata, MeanColour(), **(how | changes))
    return sdata


def level(element) -> np.ndarray:
    return np.asarray(element.data if hasattr(element, "data") else element["scale0"]["image"].data).astype(float)


def correlations(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.array([np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(one[VARIES], other[VARIES], strict=True)])


@pytest.fixture(scope="module")
def slide():
    sdata, truth = fine_slide(0, SIDE)
    return with_features(sdata), truth


@pytest.fixture(scope="module")
def model(slide):
    split = models.Split("block", block_um=200, folds=2)
    return sthist.tl.train_expression(slide[0], IStar(CONFIG), split=split, training=TRAINING, progress=False)


def test_it_finds_what_is_finer_than_the_spots(slide, model):
    """On the slide that it was trained on, and on one that it has not seen."""
    assert (model.scores["pearson"].to_numpy()[VARIES] > 0.8).all()
    assert (model.scores["pearson_null"].to_numpy()[VARIES] < 0.4).all()
    other, truth = fine_slide(1, SIDE)
    for sdata, expected in (slide, (with_features(other), truth)):
        sthist.tl.expression(sdata, model, key_added="map", progress=False)
        found = level(sdata["map"])
        assert found.shape == (len(GENES), SIDE, SIDE)
        of_map = correlations(found, np.log1p(expected))
        of_spots = correlations(nearest_spots(sdata, SIDE), np.log1p(expected))
        assert (of_map > of_spots + 0.15).all(), (of_map, of_spots)
        assert (of_map > 0.8).all()
        np.testing.assert_allclose(np.expm1(found[-1]), 5, rtol=1e-2)


@pytest.mark.slow
def test_it_learns_from_slides_with_noise():
    """Held out on another slide; of a gene that is noise it says nothing."""
    from expressing import planted_slide

    slides = {"a": planted_slide(0, side=20), "b": planted_slide(1, side=10)}
    sthist.pp.dense_features(slides, MeanColour(), stride_um=CELL_UM, spec=TileSpec(8, 8), tissue=False, key_added=KEY)
    where = {"split": {"a": "train", "b": "test"}, "training": TRAINING, "progress": False}
    scores = sthist.tl.train_expression(slides, IStar(CONFIG), **where).scores
    assert (scores["pearson"][:4] >= 0.8).all(), scores
    assert abs(scores["pearson"]["NOISE"]) < 0.3
    assert (scores["pearson_null"] < 0.35).all()


def test_tables_do_not_call_it_by_the_published_name(model):
    assert model.called == "istar-like"
    assert IStar(IStarConfig(encoder="hipt")).called == "istar"


def test_map_and_regions_agree(slide, model):
    """A spot is the mean of the superpixels in its disc; a square of cells, of those in it, and sums add up."""
    import geopandas as gpd
    import shapely
    from spatialdata.models import ShapesModel
    from spatialdata.transformations import Identity

    sdata, _ = slide
    sthist.tl.expression(sdata, model, key_added="whole", progress=False)
    whole = np.expm1(level(sdata["whole"]))
    sthist.tl.expression(sdata, model, regions="spots", progress=False)
    table = sdata["table"]
    x, y = (np.asarray(table.obsm["spatial"])[9] // CELL_UM).astype(int)
    offsets = [(j, i) for j in range(-3, 4) for i in range(-3, 4) if j * j + i * i <= (27.5 / 8) ** 2]
    expected = np.log1p(np.mean([whole[:, y + j, x + i] for j, i in offsets], axis=0))
    np.testing.assert_allclose(table.layers["istar"][9], expected, rtol=5e-3)  # float16
    np.testing.assert_allclose(table.layers["istar_sum"][9], np.expm1(table.layers["istar"][9]), rtol=1e-5)
    squares = [shapely.box(x0, 0, x0 + 40, 40) for x0 in (0, 40)] + [shapely.box(0, 0, 80, 40)]
    frame = gpd.GeoDataFrame(geometry=squares)
    sdata["squares"] = ShapesModel.parse(frame, transformations={"um": Identity()})
    sthist.tl.expression(sdata, model, regions="squares", progress=False)
    found = sdata["squares_table_istar"]
    np.testing.assert_allclose(found.X[0], np.log1p(whole[:, :5, :5].mean(axis=(1, 2))), rtol=5e-3)
    np.testing.assert_allclose(found.layers["sum"][0], whole[:, :5, :5].sum(axis=(1, 2)) / len(offsets), rtol=5e-3)
    np.testing.assert_allclose(found.layers["sum"][2], found.layers["sum"][:2].sum(axis=0), rtol=1e-4)


def test_a_store_has_the_map(slide, model, tmp_path):
    """With its place, names, scores and pyramid; the same as in memory, also after saving; within a part of it."""
    sdata, _ = slide
    sdata.subset(["he", "spots", "table", KEY]).write(tmp_path / "s.zarr")
    model.save(tmp_path / "model")
    stored = sd.read_zarr(tmp_path / "s.zarr")
    stored.attrs |= sdata.attrs
    sthist.tl.expression(stored, tmp_path / "model", within=(0, 0, 400, 800), progress=False)
    again = sd.read_zarr(tmp_path / "s.zarr")
    found = again["istar_expression"]
    assert sd.models.get_channel_names(found) == list(GENES)
    values = level(found)
    assert np.isfinite(values[:, :, :50]).all()
    assert np.isnan(values[:, :, 50:]).all()
    sthist.tl.expression(sdata, model, key_added="in_memory", progress=False)
    np.testing.assert_array_equal(values[:, :, :50], level(sdata["in_memory"])[:, :, :50])
    made = again.attrs["sthist"]["results"]["istar_expression"]
    assert made["model"] == "istar-like"
    assert len(made["scores"]["pearson"]) == len(GENES)
    with pytest.raises(ValueError, match="exists"):
        sthist.tl.expression(stored, model, progress=False)


def test_maps_are_drawn(slide, model):
    sdata, _ = slide
    sthist.tl.expression(sdata, model, key_added="drawn", progress=False)
    axes = sthist.pl.gene_maps(sdata, ["EOS", "HEM"], "drawn")
    assert [ax.get_title() for ax in axes] == ["measured", "istar-like"] * 2
    pixels = np.asarray(axes[1].images[0].get_array(), float)
    np.testing.assert_array_equal(pixels, level(sdata["drawn"])[1])
    with pytest.raises(KeyError, match="no gene 'HEMM'.*'HEM'"):
        sthist.pl.gene_maps(sdata, ["HEMM"], "drawn")


class TestWhatDoesNotFit:
    def test_a_map_of_another_stride(self, model):
        other = with_features(fine_slide(1, 40)[0], stride_um=16.0)
        with pytest.raises(ValueError, match=r"cells of 16 µm, and the model is for cells of 8 µm.*stride_um=8"):
            sthist.tl.expression(other, model, progress=False)
        with pytest.raises(ValueError, match="cells of 16 µm"):
            sthist.tl.train_expression(other, IStar(CONFIG), training=QUICK, split="block")

    def test_a_map_of_another_encoder(self, model):
        class Other(MeanColour):
            name = "other"

        other, _ = fine_slide(1, 40)
        how = {"stride_um": CELL_UM, "spec": TileSpec(CELL_UM, 4), "tissue": False, "progress": False}
        sthist.pp.dense_features(other, Other(), key_added=KEY, **how)
        with pytest.raises(ValueError, match="has encoder 'other'; the model is for 'mean-colour'"):
            sthist.tl.expression(other, model, progress=False)

    def test_spots_without_a_place(self):
        sdata = with_features(fine_slide(0, 40)[0])
        places = np.array(sdata["table"].obsm["spatial"])
        places[3] = np.nan
        sdata["table"].obsm["spatial"] = places
        with pytest.raises(ValueError, match="IStar needs the places of rows.*'spot3'"):
            sthist.tl.train_expression(sdata, IStar(CONFIG), training=QUICK, split="block")

    def test_spots_where_there_are_no_features(self):
        sdata = with_features(fine_slide(0, 40)[0], within=(0, 0, 200, 320))
        with pytest.raises(ValueError, match=r"3 of 9 rows, such as 'spot2'.*tissue=False"):
            sthist.tl.train_expression(sdata, IStar(CONFIG), training=QUICK, split="block")

    def test_a_table_alone(self, slide, model):
        with pytest.raises(ValueError, match="give the SpatialData"):
            sthist.tl.expression(slide[0]["table"], model)

    def test_boxes_and_averages(self):
        with pytest.raises(ValueError, match="boxes"):
            IStarConfig(boxes=(0,))
        with pytest.raises(ValueError, match="average is 'counts'"):
            IStarConfig(average="counts")

    def test_values_that_are_no_logarithms_of_counts(self):
        cells = np.random.default_rng(0).random((20, 4, 3)).astype(np.float32)
        targets = cells.mean(axis=1) - 1
        with pytest.raises(ValueError, match="less than 0"):
            IStar(IStarConfig(hidden=4)).fit({"cells": cells}, targets, training=QUICK)
        found = IStar(IStarConfig(hidden=4, members=2, average="log")).fit({"cells": cells}, targets, training=QUICK)
        assert found.predict({"cells": cells}).shape == (20, 3)
