"""MoCo v3 on crops: learns, is resumed, saved, and is an encoder like any other."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

import sthist
from sthist.models import MoCoTraining, MoCoV3, MoCoV3Config
from sthist.nets import cell_backbone
from sthist.systems.cells.moco.training_module import COLLAPSED, complaint

TINY = MoCoV3Config(px=16, backbone="resnet10t", width=0.125, hidden=64, dim=32)
QUICK = {"epochs": 2, "batch_size": 32, "warmup": 1, "optimizer": "adamw", "lr": 2e-3, "momentum": 0.9}
KINDS = 2


def waves(n, seed, bright=None):
    """Crops of long or short waves of any direction, on bright or dark ground; of which kind the bright ones are."""
    rng = np.random.default_rng(seed)
    kinds = rng.integers(0, KINDS, n)
    y, x = np.mgrid[:24, :24]
    crops = np.empty((n, 24, 24, 3), np.uint8)
    for i, kind in enumerate(kinds):
        angle, phase = rng.uniform(0, 2 * np.pi, 2)
        wave = np.sin((0.6 if kind else 1.5) * (np.cos(angle) * x + np.sin(angle) * y) + phase)
        is_bright = rng.random() < 0.5 if bright is None else kind == bright
        ground = rng.uniform(130, 190, 3) if is_bright else rng.uniform(70, 130, 3)
        crops[i] = np.clip(ground + rng.uniform(15, 40) * wave[..., None], 0, 255)
    return crops, kinds


def middle(crops):
    return np.ascontiguousarray(crops[:, 4:20, 4:20])


def accuracy(train, train_kinds, test, test_kinds, k=5):
    """Part of rows whose nearest neighbours, by cosine, are of their kind."""
    train, test = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (train, test))
    nearest = np.argsort(-test @ train.T, axis=1)[:, :k]
    votes = np.stack([(train_kinds[nearest] == kind).sum(1) for kind in range(KINDS)], 1)
    return float((votes.argmax(1) == test_kinds).mean())


def fitted(crops, folder=None, config=TINY, **changes):
    return MoCoV3(config).fit(crops, folder=folder, training={**QUICK, **changes}, device="cpu", progress=False)


@pytest.fixture(scope="module")
def crops():
    return waves(96, 0)[0]


@pytest.fixture(scope="module")
def model(crops):
    return fitted(crops)


def test_kinds_are_told_apart_by_their_form_where_colour_misleads():
    (train, train_kinds), (test, test_kinds) = waves(256, 1, bright=1), waves(200, 2, bright=0)
    how = {"erase": 0.0, "temperature": 0.2, "batch_size": 64, "epochs": 8, "lr": 5e-3}
    model = fitted(train, config=replace(TINY, stem="small"), **how)

    def score(encoder):
        rows = [encoder.embed(middle(each)) for each in (train, test)]
        return accuracy(rows[0], train_kinds, rows[1], test_kinds)

    random = []
    for seed in range(2):
        torch.manual_seed(seed)
        network = cell_backbone(TINY.backbone, width=TINY.width, stem="small")
        random.append(score(sthist.encoders.get(network, transform=model.transform, device="cpu")))
    assert score(model) > np.mean(random) + 0.2
    assert model.history[-1]["loss"] < model.history[0]["loss"]


def test_history_says_how_far_embeddings_spread(model):
    assert [row["epoch"] for row in model.history] == [1, 2]
    assert all(COLLAPSED < row["embedding_std"] < 1.5 for row in model.history)
    assert set(model.history[0]) >= {"loss", "embedding_std", "lr"}


def test_the_same_seed_gives_the_same_weights(crops, model):
    again, other = fitted(crops), fitted(crops, seed=5)
    assert all(np.array_equal(again.weights[name], value) for name, value in model.weights.items())
    assert any(not np.array_equal(other.weights[name], value) for name, value in model.weights.items())


@pytest.mark.parametrize("optimizer", ["lars", "adamw"])
def test_a_resumed_training_is_the_uninterrupted_one(crops, tmp_path, optimizer):
    how = {"optimizer": optimizer, "cosine_momentum": True, "stain_jitter": 0.3}
    whole = fitted(crops, tmp_path / "whole", **how)
    stopped = fitted(crops, tmp_path / "part", max_time={"microseconds": 1}, **how)
    assert len(stopped.history) == 1
    resumed = fitted(crops, tmp_path / "part", resume=True, **how)
    assert [row["loss"] for row in resumed.history] == [row["loss"] for row in whole.history]
    assert all(np.array_equal(resumed.weights[name], value) for name, value in whole.weights.items())


def test_what_a_checkpoint_is_of(crops, tmp_path):
    fitted(crops, tmp_path / "run", epochs=1)
    with pytest.raises(FileExistsError, match="resume=True"):
        fitted(crops, tmp_path / "run", epochs=1)
    with pytest.raises(ValueError, match="of another training, with epochs 1, not 2"):
        fitted(crops, tmp_path / "run", epochs=2, resume=True)
    with pytest.raises(ValueError, match="of another training, with crops"):
        fitted(crops[::-1].copy(), tmp_path / "run", epochs=1, resume=True)


def test_saved_and_loaded_it_is_the_same(model, crops, tmp_path):
    model.save(tmp_path / "model")
    tiles = middle(crops)
    expected = model.embed(tiles)
    for again in (sthist.models.load(tmp_path / "model"), sthist.encoders.get(tmp_path / "model", device="cpu")):
        np.testing.assert_array_equal(again.embed(tiles), expected)
        assert (again.key, again.spec, again.dim) == ("X_moco_v3", TINY.spec, 64)
        assert again.provenance["sha256"] == model.provenance["sha256"]
    by_name = sthist.encoders.get([str(tmp_path / "model"), "morphology"], spec=TINY.spec)
    assert by_name.embed(tiles[:2]).shape[1] > 64
    config = sthist.models.load(tmp_path / "model").config
    assert config == model.config
    assert config.training["options"]["epochs"] == 2


def test_a_folder_that_was_trained_in_has_its_history(crops, tmp_path):
    trained = fitted(crops, tmp_path / "run", epochs=1)
    assert sthist.models.load(tmp_path / "run").history == trained.history
    assert sthist.models.load(tmp_path / "run" / "checkpoints" / "model").embed(middle(crops)[:1]).shape == (1, 64)


def test_folders_that_are_no_such_model(model, tmp_path):
    sthist.models.BeerLambert().save(tmp_path / "other")
    with pytest.raises(ValueError, match="holds a model of system 'beer-lambert', which is no encoder"):
        sthist.encoders.get(tmp_path / "other")
    with pytest.raises(FileNotFoundError, match="No model in"):
        sthist.encoders.get(tmp_path / "nothing")
    MoCoV3(replace(model.config, width=0.25), model.weights).save(tmp_path / "wide")
    with pytest.raises(ValueError, match="model.safetensors: the weights are not those of 'resnet10t' of width 0.25"):
        sthist.models.load(tmp_path / "wide")
    model.save(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="not saved completely"):
        sthist.models.load(tmp_path / "model")
    shutil.rmtree(tmp_path / "model")


def test_an_untrained_model_embeds_nothing(crops, tmp_path):
    for call in (lambda: MoCoV3(TINY).embed(middle(crops)), lambda: MoCoV3(TINY).save(tmp_path / "model")):
        with pytest.raises(ValueError, match="was not trained yet"):
            call()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.zeros((4, 16, 16, 3), np.uint8), r"uint8 of shape \(n, 24, 24, 3\)"),
        (np.zeros((4, 24, 24, 3), np.float32), "these are float32"),
        (np.zeros((1, 24, 24, 3), np.uint8), "There are 1 crops"),
    ],
)
def test_crops_that_are_none(bad, message):
    with pytest.raises(ValueError, match=message):
        fitted(bad)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"momentum": 1.5}, "momentum is 1.5"),
        ({"least_area": 0.0}, "least_area is 0.0"),
        ({"patience": 3}, "patience= is for trainings"),
        ({"optimizer": "sgd"}, "optimizer is 'sgd'"),
        ({"temperature": -1.0}, "temperature is -1"),
        ({"warmup": -1.0}, "neither is negative"),
        ({"batch_size": 1}, "batch_size is 1"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        MoCoTraining(**options)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"px": 18}, "px is 18; a multiple of 4"),
        ({"size_um": -1.0}, "size_um is -1"),
        ({"hidden": 0}, "hidden is 0"),
        ({"mean": (0.5, 0.5, 0.5)}, "go together"),
        ({"mean": (0.5, 0.5, 0.5), "std": (0.0, 0.1, 0.1)}, "std"),
    ],
)
def test_configs_that_cannot_be(fields, message):
    with pytest.raises(ValueError, match=message):
        MoCoV3Config(**fields)


def test_collapsed_embeddings_are_complained_of():
    assert complaint({"embedding_std": torch.tensor(0.001)}).startswith("crops are not told apart")
    assert not complaint({"embedding_std": torch.tensor(0.3)})


def test_a_collapse_stops_the_training(crops, monkeypatch):
    monkeypatch.setattr("sthist.training.callbacks.CHECK_EVERY", 1)
    spreads = iter([0.5, 0.5, *[0.001] * 20])
    monkeypatch.setattr(
        "sthist.systems.cells.moco.training_module.spread_of", lambda embedded: torch.tensor(next(spreads))
    )
    with pytest.raises(RuntimeError, match="Stopped at step 6: crops are not told apart"):
        fitted(crops)


def test_few_crops_are_one_batch(crops, caplog):
    with caplog.at_level("INFO", "sthist"):
        model = fitted(crops[:20], epochs=1)
    assert model.history[0]["step"] == 1
    assert "There are 20 crops, fewer than batch_size=32" in caplog.text
    assert model.config.training["options"]["batch_size"] == 20


def test_channel_statistics_are_those_of_all_pixels(model, crops):
    pixels = middle(crops).reshape(-1, 3) / 255
    np.testing.assert_allclose(model.config.mean, pixels.mean(0), rtol=1e-6)
    np.testing.assert_allclose(model.config.std, pixels.std(0), rtol=1e-6)
    np.testing.assert_allclose(model.reference.mean, 255 * pixels.mean(0), rtol=1e-6)
    np.testing.assert_allclose(model.transform.std, pixels.std(0), rtol=1e-6)
