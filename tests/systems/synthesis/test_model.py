"""A C2L on arrays: trained, adapted with its central model frozen, saved as two files, sampled."""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

import sthist
from sthist.models import C2L, C2LAdapter, C2LConfig, DiffusionTraining
from sthist.nets import DiffusionUNet, GeneAdapter
from sthist.systems.synthesis.training_module import DiffusionModule

TINY = C2LConfig(px=16, dim=8, multipliers=(1, 2))
QUICK = {"epochs": 2, "steps_per_epoch": 3, "batch_size": 4, "ema": 0.0, "seed": 3}
GENES = ["EPCAM", "COL1A1", "CD3D"]
RNG = np.random.default_rng(0)
TILES = RNG.integers(0, 256, (10, 16, 16, 3), np.uint8)
EXPRESSION = RNG.uniform(0, 3, (10, 3)).astype(np.float32)
OPTIONS = {"device": "cpu", "progress": False}


def adapted(central, training=None, **options):
    return central.adapt(TILES, EXPRESSION, GENES, training=QUICK | (training or {}), **OPTIONS, **options)


@pytest.fixture(scope="module")
def central():
    return C2L(TINY).fit(TILES, training=QUICK, **OPTIONS)


@pytest.fixture(scope="module")
def local(central):
    return adapted(central, {"lr": 0.05, "steps_per_epoch": 10})


def same(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def test_central_model_is_to_the_bit_what_it_was_before_its_adaptation(central, local):
    fresh = C2L(TINY).fit(TILES, training=QUICK, **OPTIONS)
    assert same(fresh.weights, central.weights)
    assert same(local.weights, central.weights)
    assert local.sha256 == central.sha256 == local.adapter.config.central
    assert any(np.abs(value).max() > 0 for name, value in local.adapter.weights.items() if "modulate" in name)


def test_what_is_not_trained_has_no_gradient():
    unet = DiffusionUNet(8, (1, 2))
    module = DiffusionModule(unet, TILES, DiffusionTraining(**QUICK), GeneAdapter(3, unet.sites), EXPRESSION)
    module.training_step(next(iter(module.batches(0, 0, 1))), 0).backward()
    assert all(each.grad is None for each in unet.parameters())
    optimizer = module.configure_optimizers()["optimizer"]
    trained = {id(each) for group in optimizer.param_groups for each in group["params"]}
    assert trained == {id(each) for each in module.adapter.parameters()}


def test_begins_as_the_central_model_and_is_it_without_guidance(central, local):
    unet = DiffusionUNet(TINY.dim, TINY.multipliers)
    fresh = {name: value.numpy() for name, value in GeneAdapter(3, unet.sites).state_dict().items()}
    begins = central.with_adapter(C2LAdapter(local.adapter.config, fresh))
    plain = central.generate(4, steps=3, device="cpu", seed=1)
    for guidance in (0.0, 1.0):
        assert np.array_equal(begins.generate(EXPRESSION[:4], guidance=guidance, steps=3, device="cpu", seed=1), plain)
    assert np.array_equal(local.generate(EXPRESSION[:4], guidance=0, steps=3, device="cpu", seed=1), plain)
    assert not np.array_equal(local.generate(EXPRESSION[:4], guidance=3, steps=3, device="cpu", seed=1), plain)


def test_a_tile_follows_from_seed_number_and_expression(local):
    whole = local.generate(EXPRESSION[:5], steps=3, device="cpu", seed=7)
    part = local.generate(EXPRESSION[3:5], steps=3, device="cpu", seed=7, numbers=[3, 4], batch_size=1)
    assert np.abs(whole[3:].astype(int) - part).max() <= 1
    assert not np.array_equal(whole, local.generate(EXPRESSION[:5], steps=3, device="cpu", seed=8))
    one = local.generate(EXPRESSION[[0, 0]], steps=3, device="cpu", seed=7)
    assert not np.array_equal(one[0], one[1])


def test_saved_as_a_central_model_and_an_adapter_of_its_own(central, local, tmp_path):
    local.save(tmp_path / "local")
    central.save(tmp_path / "central")
    assert {each.name for each in (tmp_path / "central").iterdir()} == {"config.json", "model.safetensors"}
    said = json.loads((tmp_path / "local" / "config.json").read_text())
    assert said["config"] == json.loads((tmp_path / "central" / "config.json").read_text())["config"]
    assert not any(gene in (tmp_path / "local" / "config.json").read_text() for gene in GENES)
    files = [tmp_path / each / "model.safetensors" for each in ("local", "central")]
    assert files[0].read_bytes() == files[1].read_bytes()
    made = local.generate(EXPRESSION[:2], steps=2, device="cpu", seed=0)
    back = sthist.models.load(tmp_path / "local")
    joined = sthist.models.load(tmp_path / "central").with_adapter(tmp_path / "local" / "adapter.safetensors")
    for model in (back, joined):
        assert model.adapter.config == local.adapter.config
        assert np.array_equal(model.generate(EXPRESSION[:2], steps=2, device="cpu", seed=0), made)
    central.save(tmp_path / "local")
    assert sthist.models.load(tmp_path / "local").adapter is None


def test_saved_whole_or_stays(central, local, tmp_path, monkeypatch):
    local.save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    other = adapted(C2L(TINY).fit(TILES, training=QUICK | {"seed": 9}, **OPTIONS))
    with monkeypatch.context() as patch:
        patch.setattr("sthist.training.model.json.dumps", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            other.save(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    other.save(tmp_path)
    assert sthist.models.load(tmp_path).sha256 == other.sha256


@pytest.mark.parametrize("what", ["central", "adapter"])
def test_resumed_training_equals_one_that_was_not_stopped(central, tmp_path, what):
    def run(folder=None, **changes):
        training = QUICK | {"ema": 0.9, "warmup": 4, **changes}
        if what == "adapter":
            return adapted(central, training, folder=folder).adapter.weights
        return C2L(TINY).fit(TILES, training=training, folder=folder, **OPTIONS).weights

    run(tmp_path, epochs=1)
    assert same(run(tmp_path, resume=True), run())
    assert not same(run(tmp_path / "short", epochs=1), run())
    with pytest.raises(ValueError, match="another training, with lr"):
        run(tmp_path, resume=True, lr=0.5)


KILLED = """
import os, signal, sys
import numpy as np
from sthist.models import C2L, C2LConfig
from sthist.systems.synthesis.training_module import DiffusionModule

step, calls, whole = DiffusionModule.training_step, [], sys.argv[2] == "whole"


def counted(self, batch, index):
    calls.append(index)
    if len(calls) == 6 and not whole:  # in the second of three epochs
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, batch, index)


DiffusionModule.training_step = counted
tiles = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), np.uint8)
training = {"epochs": 3, "steps_per_epoch": 4, "batch_size": 4, "ema": 0.9, "warmup": 4, "resume": sys.argv[2] == "on"}
model = C2L(C2LConfig(px=8, dim=4, multipliers=(1, 2)))
whole = whole or training["resume"]
model.fit(tiles, folder=sys.argv[1], training=training, device="cpu", progress=False).save(sys.argv[1])
"""


@pytest.mark.slow
def test_a_training_that_was_killed_goes_on_to_the_same_weights(tmp_path):
    def run(folder, how):
        command = [sys.executable, "-c", KILLED, str(tmp_path / folder), how]
        return subprocess.run(command, check=False, capture_output=True).returncode

    assert run("whole", "whole") == 0
    assert run("killed", "killed") == -signal.SIGKILL
    assert not (tmp_path / "killed" / "config.json").exists()
    assert run("killed", "on") == 0
    whole, killed = (sthist.models.load(tmp_path / each) for each in ("whole", "killed"))
    assert same(killed.weights, whole.weights)


def test_checkpoint_of_an_adapter_leaves_the_central_model_out(central, tmp_path):
    adapted(central, folder=tmp_path)
    state = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert state
    assert all(name.startswith("adapter.") for name in state)


def test_rate_rises_in_even_steps():
    options = DiffusionTraining(**QUICK | {"lr": 1e-3, "warmup": 300})
    made = DiffusionModule(DiffusionUNet(8, (1, 2)), TILES, options).configure_optimizers()
    scheduler, rates = made["lr_scheduler"]["scheduler"], []
    for _ in range(302):
        rates.append(made["optimizer"].param_groups[0]["lr"])
        made["optimizer"].step()
        scheduler.step()
    assert rates[0] == pytest.approx(1e-3 / 300)
    assert rates[149] == pytest.approx(1e-3 / 2)
    assert rates[299:] == pytest.approx([1e-3] * 3)


@pytest.mark.parametrize(("drop", "depends"), [(1.0, False), (0.0, True)])
def test_what_is_always_dropped_is_not_listened_to(drop, depends):
    torch.manual_seed(0)
    unet = DiffusionUNet(8, (1, 2))
    adapter = GeneAdapter(3, unet.sites)
    torch.nn.init.normal_(adapter.modulate.weight, std=0.5)
    module = DiffusionModule(unet, TILES, DiffusionTraining(**QUICK | {"drop": drop}), adapter, EXPRESSION)
    losses = []
    for expression in (EXPRESSION, EXPRESSION[::-1].copy()):
        torch.manual_seed(1)
        batch = torch.from_numpy(TILES[:4]), torch.from_numpy(expression[:4])
        losses.append(module.training_step(batch, 0).item())
    assert (losses[0] != losses[1]) == depends


def test_few_tiles_fill_a_batch_and_that_is_said(central, caplog):
    with caplog.at_level(logging.INFO, "sthist"):
        model = central.adapt(TILES[:3], EXPRESSION[:3], GENES, training=QUICK | {"batch_size": 8}, **OPTIONS)
    assert "3 tiles are fewer than batch_size=8" in caplog.text
    assert len(model.history) == 2
    module = DiffusionModule(DiffusionUNet(8, (1, 2)), TILES[:3], DiffusionTraining(**QUICK | {"batch_size": 8}))
    batches = list(module.batches(0, 0, 1))
    assert [len(tiles) for tiles, _ in batches] == [8, 8, 8]


def test_every_tile_is_taken_as_often_as_any_other():
    numbered = np.zeros((7, 16, 16, 3), np.uint8) + np.arange(7, dtype=np.uint8)[:, None, None, None]
    module = DiffusionModule(DiffusionUNet(8, (1, 2)), numbered, DiffusionTraining(**QUICK))
    taken = np.concatenate([tiles[:, 0, 0, 0].numpy() for tiles, _ in module.batches(0, 0, 1)])
    assert sorted(np.bincount(taken, minlength=7).tolist()) == [1, 1, 2, 2, 2, 2, 2]
    shares = [np.concatenate([t[:, 0, 0, 0].numpy() for t, _ in module.batches(0, rank, 2)]) for rank in (0, 1)]
    assert sorted(np.concatenate(shares)) == sorted(taken)


class TestBadInput:
    @pytest.mark.parametrize(
        ("expression", "message"),
        [
            (np.array([[4.0, 0, 17]]), "looks like counts: whole numbers up to 17"),
            (np.array([[4.5, 0, 812.3]]), "looks like counts: numbers up to 812.3"),
            (np.array([[0.5, -0.5, 1]]), r"negative in 1 of 1 rows, first row 0, column 1 \(-0.5\)"),
            (np.array([[0.5, np.inf, 1]]), "not finite in 1 of 1 rows"),
            (np.array([[0.5, 1.5]]), r"shape \(1, 2\); it is \(n, 3\)"),
        ],
    )
    def test_expression_that_cannot_be_logarithms(self, central, local, expression, message):
        with pytest.raises(ValueError, match=message):
            local.generate(expression, steps=1, device="cpu")
        with pytest.raises(ValueError, match=message):
            central.adapt(TILES[:1], expression, GENES, training=QUICK, **OPTIONS)

    def test_a_gene_that_was_not_measured_is_at_its_mean(self, local):
        lacking, mean = EXPRESSION[:1].copy(), EXPRESSION[:1].copy()
        lacking[0, 1], mean[0, 1] = np.nan, local.adapter.config.mean[1]
        made = [local.generate(each, steps=2, device="cpu", seed=0) for each in (lacking, mean)]
        assert np.abs(made[0].astype(int) - made[1]).max() <= 1

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"guidance": -1}, "guidance is -1; it is 0"),
            ({"guidance": float("nan")}, "guidance is nan"),
            ({"steps": 0}, "steps is 0; a whole number from 1 to 1000"),
            ({"precision": "half"}, "precision is 'half'"),
        ],
    )
    def test_arguments_of_sampling(self, local, options, message):
        with pytest.raises(ValueError, match=message):
            local.generate(EXPRESSION[:1], device="cpu", **options)

    def test_models_that_do_not_fit(self, central, local, tmp_path):
        with pytest.raises(ValueError, match="knows no genes: adapt it with tl.adapt_local"):
            central.generate(EXPRESSION[:1], device="cpu")
        with pytest.raises(ValueError, match="was not trained: tl.train_central"):
            C2L(TINY).adapt(TILES, EXPRESSION, GENES, **OPTIONS)
        other = C2L(TINY).fit(TILES, training=QUICK | {"seed": 9}, **OPTIONS)
        with pytest.raises(ValueError, match="belongs to a central model with checksum"):
            other.with_adapter(local.adapter)
        with pytest.raises(ValueError, match=r"takes uint8 of shape \(n, 16, 16, 3\), of 112 µm"):
            central.fit(TILES[:, :8, :8], **OPTIONS)
        local.save(tmp_path)
        path = tmp_path / "adapter.safetensors"
        path.write_bytes(path.read_bytes()[:-9])
        with pytest.raises(ValueError, match=r"adapter\.safetensors"):
            sthist.models.load(tmp_path)
        path.write_bytes((tmp_path / "model.safetensors").read_bytes())
        with pytest.raises(ValueError, match="does not say its genes"):
            sthist.models.load(tmp_path)

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"px": 36}, "multiple of 8"),
            ({"dim": 7}, "dim is 7; an even number"),
            ({"multipliers": ()}, "multipliers is"),
            ({"size_um": -1.0}, "size_um is -1.0"),
        ],
    )
    def test_configs(self, fields, message):
        with pytest.raises(ValueError, match=message):
            C2LConfig(**fields)

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"steps_per_epoch": 5, "accumulate": 2}, "no multiple of accumulate=2"),
            ({"drop": 1.5}, "drop is 1.5"),
            ({"patience": 3}, "runs for all of its epochs"),
            ({"gamma": 0.0}, "gamma is 0.0"),
        ],
    )
    def test_trainings(self, fields, message):
        with pytest.raises(ValueError, match=message):
            DiffusionTraining(**fields)
