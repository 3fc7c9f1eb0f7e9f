"""Hist2Cell: learns what can be seen, looks at neighbours and at its slide, and at nothing else."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from expressing import TILE_UM, planted_slide

import sthist
from sthist import models
from sthist.regression.data.inputs import Tissue
from sthist.tiles import TileReader, TileSpec

SPEC = TileSpec(TILE_UM, 16)
TYPES = ("B cells", "CD4/CD8", "T/NK")
SMALL = {"heads": 2, "head_width": 8, "depth": 1, "hidden": 32, "dropout": 0.0, "spec": SPEC}
TRUNK = {"backbone": "test_resnet", "pretrained": False}
QUICK = {"epochs": 1, "batch_size": 16, "lr": 3e-3, "lr_end": None, "patience": None}


def proportions_of(sdata) -> pd.DataFrame:
    """Two types that follow the stains, and one that is the rest."""
    table = sdata["table"]
    amounts = np.c_[table.obsm["amounts"], np.full(table.n_obs, 0.5)]
    return pd.DataFrame(amounts / amounts.sum(1, keepdims=True), table.obs_names, list(TYPES))


def arrays_of(sdata) -> dict[str, np.ndarray]:
    table = sdata["table"]
    tiles = TileReader(sdata, "he", SPEC).read(table.obsm["spatial"])
    return {"tiles": tiles, "places": np.asarray(table.obsm["spatial"])}


@pytest.fixture(scope="module")
def slides():
    found = {"a": planted_slide(0, side=12), "b": planted_slide(1, side=7)}
    for sdata in found.values():
        sdata["table"].obsm["cell_abundance"] = proportions_of(sdata)
        sdata["table"].obsm["X_amounts"] = np.asarray(sdata["table"].obsm["amounts"], np.float32)
    return found


@pytest.fixture(scope="module")
def trained(slides):
    """On tiles of one slide."""
    model = models.Hist2Cell(models.Hist2CellConfig(**TRUNK, **SMALL))
    return model.fit(arrays_of(slides["a"]), proportions_of(slides["a"]), training=QUICK | {"epochs": 10})


def features_model(slides, **options):
    """On stored features, which takes a second."""
    table, training = slides["a"]["table"], QUICK | options.pop("training", {})
    model = models.Hist2Cell(models.Hist2CellConfig(**SMALL | options))
    inputs = {"spot": table.obsm["X_amounts"], "places": table.obsm["spatial"]}
    return model.fit(inputs, proportions_of(slides["a"]), training=training), inputs


def correlation(predicted: np.ndarray, truth: np.ndarray) -> float:
    return float(np.mean([np.corrcoef(one, other)[0, 1] for one, other in zip(predicted.T, truth.T, strict=True)]))


class TestLearning:
    def test_what_can_be_seen(self, trained, slides, tmp_path):
        inputs, truth = arrays_of(slides["b"]), proportions_of(slides["b"]).to_numpy()
        predicted = trained.predict(inputs)
        assert correlation(predicted, truth) > 0.9
        assert (predicted >= 0).all()
        trained.save(tmp_path)
        again = models.load(tmp_path)
        assert again.types == TYPES
        np.testing.assert_array_equal(again.predict(inputs), predicted)

    def test_by_the_image(self, trained, slides):
        inputs, truth = arrays_of(slides["b"]), proportions_of(slides["b"]).to_numpy()
        erased = {**inputs, "tiles": np.full_like(inputs["tiles"], 255)}
        errors = [np.abs(trained.predict(each) - truth).mean() for each in (inputs, erased)]
        assert errors[0] < 0.5 * errors[1]

    def test_and_by_the_neighbours(self, trained, slides):
        """Of the spot in the middle of 7 x 7, whose own tile stays: each ring, and the last that is not next to it."""
        inputs, middle = arrays_of(slides["b"]), 24
        rings = np.abs(np.stack(np.divmod(np.arange(49), 7), 1) - 3).max(1)
        expected = trained.predict(inputs)[middle]
        for ring in (1, 3):
            tiles = inputs["tiles"].copy()
            tiles[rings == ring] = 255
            assert np.abs(trained.predict({**inputs, "tiles": tiles})[middle] - expected).max() > 1e-5
        alone = {name: values[[middle]] for name, values in inputs.items()}
        assert np.abs(trained.predict(alone)[0] - expected).max() > 1e-5

    def test_not_from_spots_that_do_not_train(self, slides):
        """They are seen as neighbours, but what is in them is not."""
        table, truth = slides["a"]["table"], proportions_of(slides["a"]).to_numpy()
        inputs = {"spot": table.obsm["X_amounts"], "places": table.obsm["spatial"]}
        rows, others = np.arange(0, 144, 2), np.arange(1, 144, 2)
        changed = truth.copy()
        changed[others] = 1000.0
        found = [
            models.Hist2Cell(models.Hist2CellConfig(**SMALL)).fit(inputs, each, rows=rows, training=QUICK)
            for each in (truth, changed)
        ]
        assert found[0].sha256 == found[1].sha256

    @pytest.mark.parametrize("options", [{"norm": "batch", "attention": "batch"}, {"loss": "centres"}])
    def test_with_the_options(self, slides, options):
        model, inputs = features_model(slides, **options, training={"epochs": 20})
        assert correlation(model.predict(inputs), proportions_of(slides["a"]).to_numpy()) > 0.9
        assert model.config.frozen

    def test_stops_by_neighbourhoods_that_validate(self, slides):
        table = slides["a"]["table"]
        inputs = {"spot": table.obsm["X_amounts"], "places": table.obsm["spatial"]}
        model = models.Hist2Cell(models.Hist2CellConfig(**SMALL))
        training = QUICK | {"epochs": 2, "patience": 1}
        model.fit(inputs, proportions_of(slides["a"]), watched=np.arange(30), training=training)
        assert all(np.isfinite(epoch["validation_loss"]) for epoch in model.history)


class TestPrediction:
    def test_of_some_rows_is_that_of_all(self, slides):
        """Whole slides are seen, whatever is asked for, and each as if there were no other."""
        model, inputs = features_model(slides)
        both = {name: np.concatenate([values, values[:49]]) for name, values in inputs.items()}
        both["slide"] = np.repeat([3, 1], [144, 49])
        expected = np.concatenate([model.predict(inputs), model.predict({n: each[:49] for n, each in inputs.items()})])
        np.testing.assert_allclose(model.predict(both), expected, atol=1e-5)
        order = np.random.default_rng(0).permutation(193)
        turned = {name: values[order] for name, values in both.items()}
        np.testing.assert_allclose(model.predict(turned), expected[order], atol=1e-5)

    def test_does_not_depend_on_the_batch(self, trained, slides):
        inputs = arrays_of(slides["b"])
        np.testing.assert_allclose(trained.predict(inputs, batch_size=5), trained.predict(inputs), atol=1e-5)

    def test_of_spots_without_neighbours(self, trained, slides):
        inputs = arrays_of(slides["b"])
        inputs["places"][0] += 1e4
        assert np.isfinite(trained.predict(inputs)).all()
        assert trained.predict({name: values[:1] for name, values in inputs.items()}).shape == (1, 3)


class TestThroughTheVerbs:
    def test_on_tiles_and_with_names_that_no_column_can_have(self, slides, tmp_path, monkeypatch):
        config = models.Hist2CellConfig(**TRUNK, **SMALL)
        split = {"a": "train", "b": "test"}
        model = sthist.tl.train_composition(slides, config, split=split, training=QUICK | {"epochs": 2})
        assert model.types == TYPES
        assert model.quantity == "proportions"
        assert list(model.scores.index) == list(TYPES)
        model.save(tmp_path)
        new, seen, in_order = planted_slide(2, side=6), [], Tissue.in_order

        def watched(self, rows, batch_size):
            for part, batch in in_order(self, rows, batch_size):
                seen.extend(part.tolist())
                yield part, batch

        with monkeypatch.context() as watching:
            watching.setattr(Tissue, "in_order", watched)
            sthist.tl.composition(new, tmp_path)
        assert sorted(seen) == list(range(36))  # each tile is read once
        table = new["table"]
        arrays = arrays_of(new)
        np.testing.assert_allclose(table.obsm["composition"].to_numpy(), model.predict(arrays), atol=1e-5)
        assert table.obs["composition_familiarity"].between(0, 1).all()
        shown = table.uns["sthist"]["composition"]["classes"]
        assert [shown.get(column, column) for column in table.obsm["composition"].columns] == list(TYPES)
        sthist.tl.composition(new, model, within=(0, 0, 100, 100), key_added="part")
        part = table.obsm["part"].to_numpy()
        inside = np.isfinite(part).all(1)
        assert 0 < inside.sum() < len(part)
        np.testing.assert_allclose(part[inside], table.obsm["composition"].to_numpy()[inside], atol=1e-5)

    def test_on_a_frozen_backbone_or_any_embedding(self, slides):
        model = sthist.tl.train_composition(
            slides,
            models.Hist2CellConfig(**SMALL),
            embedding="X_amounts",
            split={"a": "train", "b": "test"},
            training=QUICK | {"epochs": 20},
        )
        assert model.config.frozen
        assert (model.scores["pearson"] > 0.8).all()

    def test_a_frozen_backbone_needs_weights(self, slides):
        with pytest.raises(ValueError, match="pretrained=True"):
            sthist.tl.train_composition(slides, models.Hist2CellConfig(frozen=True, pretrained=False, spec=SPEC))


class TestBadInput:
    def test_no_places(self, trained, slides):
        with pytest.raises(ValueError, match="takes 'places'"):
            trained.predict(arrays_of(slides["b"])["tiles"])
        bare = slides["b"]["table"].copy()
        del bare.obs["array_row"], bare.obsm["spatial"]
        with pytest.raises(KeyError, match="has neither obs"):
            sthist.tl.train_composition(bare, models.Hist2CellConfig(**SMALL), embedding="X_amounts")

    def test_features_and_tiles_are_not_mixed_up(self, trained, slides):
        model, inputs = features_model(slides)
        with pytest.raises(ValueError, match="trained on 2 features of each spot, 'spot'; these are tiles"):
            model.predict(arrays_of(slides["b"]))
        with pytest.raises(ValueError, match="these are 2 features"):
            trained.predict(inputs)

    def test_too_few_spots(self, slides):
        inputs = {"spot": np.zeros((1, 2)), "places": np.zeros((1, 2))}
        with pytest.raises(ValueError, match="1 rows to train on; at least 2"):
            models.Hist2Cell().fit(inputs, np.zeros((1, 3)))

    @pytest.mark.parametrize("name", ["norm", "attention", "loss"])
    def test_unknown_words(self, name):
        with pytest.raises(ValueError, match=rf"{name} is 'graph'; it is one of \["):
            models.Hist2CellConfig(**{name: "graph"})


def test_is_trained_as_published():
    options = models.Hist2Cell().options(None)
    published = {"optimizer": "adam", "lr": 1e-4, "lr_end": 1e-5, "weight_decay": 1e-4, "epochs": 20, "batch_size": 16}
    assert {name: getattr(options, name) for name in published} == published
    assert models.Hist2Cell().config.backbone == "resnet18"
