"""DeepSpot on slides: what it collects of parts and neighbours, and what it learns of them."""

from __future__ import annotations

import numpy as np
import pytest
from expressing import TILE_UM, planted_slide

import sthist
from sthist import models
from sthist.regression.rows import expression_rows
from sthist.tiles import TileReader, TileSpec

SPEC = TileSpec(1.5 * TILE_UM, 48)  # its parts have 16 px, the least that morphology takes
SMALL = {"width": 32, "members": 4}
QUICK = {"epochs": 30, "batch_size": 32, "lr": 3e-3, "patience": None}


@pytest.fixture(scope="module")
def slides():
    slides = {"a": planted_slide(0, side=12), "b": planted_slide(1, side=8)}
    for sdata in slides.values():
        sthist.pp.embed(sdata, "morphology", regions="table", spec=SPEC)
    return slides


def collected(data, **options):
    model = models.DeepSpot(models.DeepSpotConfig(**SMALL, **options))
    rows = expression_rows(data, None, None)
    return model.collect(rows, embedding="X_morphology"), model


class TestCollect:
    def test_parts_are_the_tile_in_nine(self, slides):
        sdata = slides["b"]
        inputs, _ = collected(sdata, rings=0)
        row = 27
        centre = sdata["table"].obsm["spatial"][row]
        tile = TileReader(sdata, "he", SPEC).read(centre[None])[0]
        parts = tile.reshape(3, 16, 3, 16, 3).swapaxes(1, 2).reshape(9, 16, 16, 3)
        expected = sthist.encoders.get("morphology").embed(np.ascontiguousarray(parts))
        batch = inputs.take(np.array([row]))
        np.testing.assert_allclose(batch["subspots"][0], expected, rtol=1e-3, atol=1e-3)
        np.testing.assert_array_equal(batch["spot"][0], sdata["table"].obsm["X_morphology"][row])
        assert "neighbours" not in batch

    @pytest.mark.parametrize(("rings", "n"), [(1, 8), (2, 24)])
    def test_neighbours_are_those_of_the_same_slide(self, slides, rings, n):
        inputs, _ = collected(slides, rings=rings, subspots=False)
        embeddings = [slides[name]["table"].obsm["X_morphology"] for name in ("a", "b")]
        places = [slides[name]["table"].obs[["array_row", "array_col"]].to_numpy() for name in ("a", "b")]
        for sample, row in ((0, 0), (0, 77), (1, 0), (1, 27)):
            batch = inputs.take(np.array([row + sample * len(places[0])]))
            away = np.abs(places[sample] - places[sample][row]).max(1)
            expected = embeddings[sample][(away > 0) & (away <= rings)]
            found = batch["neighbours"][0][batch["neighbour_mask"][0]]
            assert batch["neighbours"].shape[1] == n
            np.testing.assert_array_equal(found[np.lexsort(found.T)], expected[np.lexsort(expected.T)])

    def test_neighbours_outside_of_the_part_that_is_asked_for(self, slides):
        sdata = slides["b"]
        model = models.DeepSpot(models.DeepSpotConfig(**SMALL, subspots=False))
        box = (0, 0, TILE_UM * 2, TILE_UM * 2)
        inputs = model.collect(expression_rows(sdata, None, None, box), embedding="X_morphology")
        assert len(inputs) == 4
        assert sorted(inputs.take(np.arange(4))["neighbour_mask"].sum(1)) == [3, 5, 5, 8]

    def test_what_made_embeddings_has_to_be_known_for_parts(self):
        sdata = planted_slide(2, side=4)
        sdata["table"].obsm["X_mine"] = np.asarray(sdata["table"].obsm["amounts"])
        with pytest.raises(ValueError, match=r"What made obsm\['X_mine'\] is not recorded.*subspots=False"):
            sthist.tl.train_expression(sdata, "deepspot", embedding="X_mine", split="block")

    def test_parts_of_too_few_pixels(self):
        sdata = planted_slide(3, side=4)
        sthist.pp.embed(sdata, "morphology", regions="table", spec=TileSpec(TILE_UM, 32))
        with pytest.raises(ValueError, match=r"of 11 px, cannot be embedded with 'morphology'.*subspots=False"):
            collected(sdata)

    def test_a_slide_of_one_spot(self):
        sdata = planted_slide(4, side=1)
        sthist.pp.embed(sdata, "morphology", regions="table", spec=SPEC)
        inputs, _ = collected(sdata)
        assert not inputs.take(np.arange(1))["neighbour_mask"].any()


def test_learns_what_can_be_seen_and_is_saved_whole(slides, tmp_path):
    split = {"a": "train", "b": "test"}
    model = sthist.tl.train_expression(slides, models.DeepSpotConfig(**SMALL), split=split, training=QUICK)
    scores = model.scores
    assert (scores["pearson"][:4] >= 0.8).all(), scores
    assert (scores["pearson_null"].abs() < 0.35).all()
    assert scores["trusted"][:4].all()
    model.save(tmp_path)
    inputs, _ = collected(slides["b"])
    np.testing.assert_allclose(models.load(tmp_path).predict(inputs), model.predict(inputs), atol=1e-6)
    sthist.tl.expression(slides["b"], model, regions="spots")
    np.testing.assert_allclose(slides["b"]["table"].layers["deepspot"], model.predict(inputs), atol=1e-5)


def test_learns_nothing_of_shuffled_spots(slides):
    inputs, _ = collected(slides["a"])
    expression = np.asarray(slides["a"]["table"].X)
    shuffled = expression[np.random.default_rng(0).permutation(len(expression))]
    model = models.DeepSpot(models.DeepSpotConfig(**SMALL)).fit(inputs, shuffled, training=QUICK | {"epochs": 5})
    others, _ = collected(slides["b"])
    truth = np.asarray(slides["b"]["table"].X)
    errors, of_mean = ((model.predict(others) - truth) ** 2).mean(0), ((expression.mean(0) - truth) ** 2).mean(0)
    assert errors.mean() > 0.95 * of_mean.mean(), errors / of_mean


def test_sees_what_only_neighbours_show():
    """Expression that follows the neighbours' mean is learned with rings, and not without."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(400, 3)).astype(np.float32)
    table = np.array(
        [
            [(r + i) % 20 * 20 + (c + j) % 20 for i, j in ((0, 1), (1, 0), (0, -1), (-1, 0))]
            for r in range(20)
            for c in range(20)
        ]
    )
    expression = values[table].max(1)
    mask = np.ones(table.shape, bool)
    batch = {"spot": values, "neighbours": values[table], "neighbour_mask": mask}
    for rings, low, high in ((1, 0.8, 1.0), (0, -0.3, 0.3)):
        config = models.DeepSpotConfig(subspots=False, rings=rings, **SMALL)
        kept = batch if rings else {"spot": values}
        model = models.DeepSpot(config).fit(kept, expression, rows=np.arange(300), training=QUICK)
        found = np.corrcoef(model.predict(kept)[300:].ravel(), expression[300:].ravel())[0, 1]
        assert low <= found <= high


class TestRefused:
    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"rings": -1}, "rings is -1"),
            ({"context_um": 100.0}, "neighbours by rings="),
            ({"standardize": "sample"}, "rings="),
        ],
    )
    def test_settings(self, options, words):
        with pytest.raises(ValueError, match=words):
            models.DeepSpotConfig(**options)

    def test_inputs_that_it_needs(self):
        with pytest.raises(ValueError, match="there is no 'subspots'"):
            models.DeepSpot().fit(np.zeros((20, 3)), np.zeros((20, 2)), training=QUICK)
