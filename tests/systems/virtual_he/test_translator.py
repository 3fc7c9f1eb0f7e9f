"""Models that are trained on pairs: what they learn, keep, refuse, and how a training ends."""

from __future__ import annotations

import dataclasses
import json
import pickle
import shutil

import numpy as np
import pytest
import torch
from translating import PLAIN, PX, adapted, blots, clip_folder, l2, pairs, pix2pix, small, weights
from turbo_files import TINY, Upstream, write_backbone

import sthist
from sthist.io._files.images import read_image
from sthist.metrics import _networks
from sthist.models import ST2HE, ArrayPairs, LossWeights, Pix2PixConfig, ST2HEConfig, TranslationTraining
from sthist.nets import StructuralLoss
from sthist.systems.virtual_he.training_loop.training_module import TranslationModule
from sthist.systems.virtual_he.training_loop.validation import complaint
from sthist.systems.virtual_he.training_set.pairs import order_of, turned
from sthist.training import trainer
from sthist.training.batches import as_input, as_tiles
from sthist.training.callbacks import Collapsed, CollapseDetector, NotFinite

MAKERS = {"st2he": small, "pix2pix": pix2pix}
SHORT = {"epochs": 2, "steps_per_epoch": 3, "batch_size": 2}


@pytest.fixture(autouse=True)
def _quiet():
    threads, progress = torch.get_num_threads(), sthist.settings.progress
    torch.set_num_threads(1)
    sthist.settings.progress = False
    yield
    torch.set_num_threads(threads)
    sthist.settings.progress = progress


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return write_backbone(tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return clip_folder(tmp_path_factory.mktemp("clip"))


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
class TestEither:
    def test_warns_where_nothing_was_learned(self, make, caplog):
        training = make().training(losses=PLAIN, lr=1e-9, epochs=1, steps_per_epoch=1)
        make().fit(pairs(), training=training)
        assert "predicted no better than by their mean colour" in caplog.text

    def test_learns_what_generalises(self, make, caplog):
        """On held-out pairs it is five times better than the mean colour of the training tiles."""
        model, (inputs, targets) = make(), blots(16, seed=1)
        model.fit(pairs(64), training=model.training(losses=PLAIN, lr=3e-3, epochs=2, steps_per_epoch=30))
        mean = blots(64)[1].mean((0, 1, 2))
        assert l2(model, inputs, targets) < ((targets - mean) ** 2).mean() / 5
        assert "mean colour" not in caplog.text

    def test_same_seed_same_weights(self, make):
        one, other, different = (make().fit(pairs(), training=make().training(**SHORT, seed=s)) for s in (1, 1, 2))
        assert one.weights_sha256() == other.weights_sha256() != different.weights_sha256()

    def test_saved_and_loaded(self, make, tmp_path):
        model = make(prompts={"skin": "This is skin"}).fit(
            pairs(prompts="This is skin"), training=make().training(**SHORT)
        )
        model.save(tmp_path / "model")
        loaded = sthist.models.load(tmp_path / "model")
        assert loaded.config == model.config
        assert np.array_equal(loaded.predict(blots()[0]), model.predict(blots()[0]))
        assert loaded.config.training["losses"]["l2"] == model.training().weights.l2

    def test_a_result_does_not_depend_on_its_batch(self, make):
        model, inputs = make(), blots()[0]
        alone = np.concatenate([model.predict(tile[None]) for tile in inputs])
        assert np.abs(alone.astype(int) - model.predict(inputs)).max() <= 1
        assert np.array_equal(model.predict(inputs), model.predict(inputs))

    def test_nothing_is_white(self, make):
        inputs = blots()[0]
        inputs[3] = 0
        made = make().predict(inputs)
        assert (made[3] == 255).all()
        assert not (made[2] == 255).all()

    def test_resumed_training_equals_one_that_was_not_stopped(self, make, tmp_path):
        training = make().training(
            epochs=4, steps_per_epoch=2, batch_size=2, ema=0.9, losses=LossWeights(text=0, adversarial_from=0.4)
        )
        whole = make().fit(pairs(), training=training, validation=pairs(3, seed=5))
        with pytest.raises(OSError, match="pulled out"):
            make().fit(Stopped(*blots(), after=5), training=training, folder=tmp_path, validation=pairs(3, seed=5))
        kept = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
        assert 0 < kept["sthist"]["step"] < 8
        resumed = make().fit(pairs(), training=resuming(training), folder=tmp_path, validation=pairs(3, seed=5))
        assert resumed.weights_sha256() == whole.weights_sha256()
        assert resumed.history == whole.history
        lines = (tmp_path / "metrics.csv").read_text().splitlines()
        assert [line.split(",")[0] for line in lines] == ["epoch", "1", "2", "3", "4"]

    def test_a_checkpoint_of_another_training(self, make, tmp_path):
        training = make().training(**SHORT)
        make().fit(pairs(), training=training, folder=tmp_path)
        with pytest.raises(FileExistsError, match="resume=True"):
            make().fit(pairs(), training=training, folder=tmp_path)
        with pytest.raises(ValueError, match=r"of another training, with lr 0\.\d+, not 0\.5"):
            make().fit(pairs(), training=dataclasses.replace(training, lr=0.5, resume=True), folder=tmp_path)
        with pytest.raises(ValueError, match="with pairs 8, not 6"):
            make().fit(pairs(6), training=resuming(training), folder=tmp_path)
        with pytest.raises(ValueError, match="needs folder="):
            make().fit(pairs(), training=resuming(training))

    def test_refuses_pairs_that_do_not_go_together(self, make):
        with pytest.raises(ValueError, match="fewer than a batch of 4"):
            make().fit(pairs(3))
        with pytest.raises(ValueError, match="have 64 px, the model is for"):
            make().fit(pairs(px=64))
        with pytest.raises(ValueError, match=r"takes uint8 of shape \(n, 32, 32, 3\)"):
            make().predict(np.zeros((2, 16, 16, 3), np.uint8))

    def test_figures_of_each_epoch(self, make, tmp_path):
        model = make().fit(pairs(), training=make().training(**SHORT), folder=tmp_path, validation=pairs(5, seed=3))
        assert [row["epoch"] for row in model.history] == [1, 2]
        picture = read_image(tmp_path / "images" / "epoch_0002.png", "picture").pixels
        assert picture.shape == (3, 5 * PX, 3 * PX)
        inputs, targets = blots(5, seed=3)
        found = picture.transpose(1, 2, 0).reshape(5, PX, 3, PX, 3).transpose(0, 2, 1, 3, 4)
        assert np.array_equal(found[:, 0], inputs)
        assert np.array_equal(found[:, 2], targets)
        assert np.abs(found[:, 1].astype(int) - model.predict(inputs)).max() <= 1
        expected = sthist.metrics.image.ssim(model.predict(inputs), targets).mean()
        assert model.history[-1]["validation_ssim"] == pytest.approx(expected, abs=1e-3)


def _two_colours(images):
    """Of the same mean colour and a like spread: orange and blue by turns."""
    turn = torch.ones(images.shape[-1]).index_fill(0, torch.arange(0, images.shape[-1], 2), -1)
    off = torch.tensor([0.4, -0.6, 0.4])[:, None, None] * turn
    return images.mean((0, 2, 3), keepdim=True) + off.expand_as(images)


class Stopped(ArrayPairs):
    """A disk that is taken away."""

    def __init__(self, *tiles, after):
        super().__init__(*tiles)
        self.left = after

    def read(self, rows, draw):
        if draw is not None:
            self.left -= 1
        if self.left < 0:
            msg = "the disk was pulled out"
            raise OSError(msg)
        return super().read(rows, draw)


def resuming(training):
    return dataclasses.replace(training, resume=True)


@pytest.mark.slow  # that a training fits is seen in test_train.py, too
def test_overfits_one_batch():
    """Two pairs of the toy section: the squared error falls to a twentieth of the mean colour's."""
    sdata = sthist.datasets.toy(size_um=400)
    sthist.pp.tiles(sdata, size_um=32, px=32, sampling="fps", n_tiles=2)
    [(_, inputs, targets)] = sthist.tiles.paired_loader(sdata, batch_size=2)
    model = ST2HE(ST2HEConfig(size_um=32, px=32))
    # At twice this rate some machines and seeds end above the limit.
    training = model.training(losses=PLAIN, lr=1e-3, epochs=1, steps_per_epoch=400, batch_size=2)
    model.fit(ArrayPairs(inputs, targets, augment=False), training=training)
    assert l2(model, inputs, targets) < ((targets - targets.mean((0, 1, 2))) ** 2).mean() / 20


class TestSteps:
    def module(self, model, training, chosen=None):
        chosen = pairs() if chosen is None else chosen
        return TranslationModule(model, chosen, training, list(dict.fromkeys(chosen.prompts)))

    def test_accumulated_gradients_are_those_of_a_larger_batch(self):
        """Without a judge, a step on two batches is a step on both together."""
        options = {"losses": PLAIN, "epochs": 1, "schedule": "constant"}
        one, other = small(), small()
        one.fit(pairs(), training=one.training(**options, steps_per_epoch=1, batch_size=8))
        other.fit(pairs(), training=other.training(**options, steps_per_epoch=2, batch_size=4, accumulate=2))
        start = weights(small())
        for name, value in weights(one).items():
            if (value - start[name]).abs().max() > 1e-6:
                torch.testing.assert_close(weights(other)[name], value, atol=2e-4, rtol=0)

    def test_one_pass_of_the_generator_per_step(self, monkeypatch):
        model, calls = small(), []
        translate = ST2HE.translate
        monkeypatch.setattr(ST2HE, "translate", lambda *a: calls.append(1) or translate(*a))
        losses = LossWeights(text=0, adversarial=1)
        model.fit(pairs(), training=model.training(losses=losses, epochs=1, steps_per_epoch=5))
        assert len(calls) == 5 + 2  # at the end two batches of what was trained on are looked at

    def test_prompts_that_the_model_is_never_told(self):
        with pytest.raises(ValueError, match="have the prompt 'This is lung', and the model would never be told it"):
            small().fit(pairs(prompts="This is lung"))
        with pytest.raises(ValueError, match="have 64 px"):
            small().fit(pairs(), validation=pairs(px=64))

    def test_what_a_training_would_stop_at(self, clip):
        with pytest.raises(ValueError, match="too small for the patch discriminator; it needs 32 px"):
            small(px=16).require_trainable(small().training())
        with pytest.raises(ValueError, match="takes 75"):
            small(prompts={"": "x" * 100}).require_trainable(small().training())
        with pytest.raises(ValueError, match="checkpoint_gradients=True is for ST2HE"):
            pix2pix().fit(pairs(), training=pix2pix().training(checkpoint_gradients=True))

    def test_an_image_text_network_is_made_where_all_else_is(self, clip, monkeypatch):
        """Not on the device of the settings, which Lightning moves to later; and once for both terms."""
        from sthist import encoders
        from sthist.systems.virtual_he.training_loop.training_module import losses_of

        asked, get = [], encoders.get
        monkeypatch.setattr(encoders, "get", lambda *a, **k: asked.append(k["device"]) or get(*a, **k))
        training = small().training(losses="upstream", discriminator="clip", clip="quiltnet", clip_weights=str(clip))
        reconstruction, judge = losses_of(training, ["dapi2he"], PX)
        assert asked == ["cpu"]
        moved = judge.to("meta")
        assert {each.device.type for each in moved.network.features.network.visual.network.parameters()} == {"meta"}
        assert reconstruction.texts.shape == (1, 16)

    def test_no_gradient_where_it_does_not_belong(self):
        model = small()
        module = self.module(model, model.training(losses=LossWeights(text=0)))
        inputs, real, _ = module.tensors(*blots(2), ["dapi2he"] * 2)
        fake = module.translate(module.generator, inputs, module.vectors, None)
        module.judge.generator_loss(inputs, fake).backward(retain_graph=True)
        assert all(each.grad is None for each in module.judge.parameters())
        assert any(each.grad is not None and each.grad.abs().max() > 0 for each in module.generator.parameters())
        module.generator.zero_grad()
        module.judge.discriminator_loss(inputs, fake, real).backward()
        assert all(each.grad is None for each in module.generator.parameters())
        assert all(each.grad is not None for each in module.judge.parameters())

    def test_of_a_pretrained_generator_only_adapters_change(self, backbone):
        model = adapted(backbone)
        before = {name: value.clone() for name, value in model.generator.state_dict().items()}
        losses = LossWeights(text=0)
        options = {"perceptual": "structural", "discriminator": "patch", "lr": 1e-2, "epochs": 1, "steps_per_epoch": 3}
        model.fit(pairs(prompts="lung"), training=model.training(losses=losses, **options))
        changed = {name for name, value in model.generator.state_dict().items() if not torch.equal(value, before[name])}
        assert changed
        assert all("lora_" in name or "skip_conv" in name or "unet.conv_in" in name for name in changed)

    def test_checkpoint_leaves_the_backbone_out(self, backbone, tmp_path):
        model = adapted(backbone)
        options = {"perceptual": "structural", "discriminator": "patch", **SHORT}
        training = model.training(losses=LossWeights(text=0), checkpoint_gradients=True, **options)
        model.fit(pairs(prompts="lung"), training=training, folder=tmp_path)
        state = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        names = {name for name in state if name.startswith("generator.")}
        assert len(names) == len(model.state())
        loaded = sthist.models.load(tmp_path)
        inputs = blots()[0]
        assert np.array_equal(loaded.to(tissue="lung").predict(inputs), model.to(tissue="lung").predict(inputs))

    def test_text_and_features_of_an_image_text_network(self, backbone, clip):
        model = adapted(backbone)
        options = {"perceptual": "structural", "clip": "quiltnet", "clip_weights": str(clip), **SHORT}
        watched = pairs(5, seed=3, prompts=["lung", "a", "lung", "lung", "a"])
        model.fit(pairs(prompts=["lung", "a"] * 4), validation=watched, training=model.training(**options))
        assert {"l2", "perceptual", "text", "adversarial", "discriminator"} <= set(model.history[-1])
        assert 0 < model.history[-1]["text"] < 2
        assert 0 < model.history[-1]["validation_text"] < 2
        assert model.history[-1]["validation_perceptual"] > 0

    def test_networks_that_are_at_hand_judge_an_epoch(self, monkeypatch):
        """The structural term as it is defined, tile by tile; FID through whatever stands for Inception."""
        inputs, targets = blots(5, seed=3)
        model = small()
        colour = torch.nn.Module()
        colour.forward = lambda images: images.float().mean((2, 3))
        monkeypatch.setattr(_networks, "inception_extractor", lambda metric, weights: colour)
        model.fit(pairs(), validation=ArrayPairs(inputs, targets), training=model.training(**SHORT))
        made = model.predict(inputs)
        both = [as_input(torch.from_numpy(tiles), -1.0) for tiles in (made, targets)]
        expected = float(StructuralLoss(2)(*both))
        assert model.history[-1]["validation_perceptual"] == pytest.approx(expected, abs=1e-3)
        fid = sthist.metrics.image.fid(made, targets, encoder=colour)
        assert model.history[-1]["validation_fid"] == pytest.approx(fid, rel=1e-2)

    def test_without_weights_nothing_is_made_up(self):
        model = small()
        model.fit(pairs(), validation=pairs(5, seed=3), training=model.training(**SHORT))
        assert {"validation_fid", "validation_text"}.isdisjoint(model.history[-1])

    def test_learning_rate_falls_along_a_cosine(self):
        training = small().training(epochs=2, steps_per_epoch=51)
        factors = [training.lr_factor(step) for step in range(102)]
        assert (factors[0], factors[-1]) == (1.0, pytest.approx(0.05))
        assert factors == sorted(factors, reverse=True)
        assert small().training(schedule="constant").lr_factor(9) == 1.0

    def test_running_mean_of_weights(self, tmp_path):
        """After each epoch the mean of all steps is kept, weighed as its definition says."""
        model, seen = small(), []
        training = model.training(losses=PLAIN, epochs=1, steps_per_epoch=4, ema=0.5)

        class Watching(ArrayPairs):
            def read(self, rows, draw):
                return super().read(rows, draw)

        original = TranslationModule.after_batch

        def after_batch(module, index):
            original(module, index)
            weights = module.generator.named_parameters()
            seen.append({name: each.detach().clone() for name, each in weights if each.requires_grad})

        start = {name: each.detach().clone() for name, each in model.generator.named_parameters()}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(TranslationModule, "after_batch", after_batch)
            model.fit(Watching(*blots()), training=training, folder=tmp_path)
        last = dict(sthist.models.load(tmp_path / "checkpoints" / "model").generator.named_parameters())
        for step, decay in enumerate([0.1, 2 / 11, 3 / 12, 4 / 13]):
            start = {name: decay * value + (1 - decay) * seen[step][name] for name, value in start.items()}
        for name, each in model.generator.named_parameters():
            torch.testing.assert_close(each.detach(), start[name], atol=1e-5, rtol=1e-4)
            assert torch.equal(last[name], each)


class TestStops:
    def test_loss_that_is_no_number(self, tmp_path, monkeypatch):
        model = small()
        training = model.training(losses=PLAIN, **SHORT)
        from sthist.systems.virtual_he.training_loop import losses as losses

        original, calls = losses.l2_loss, []

        def broken(fake, real):
            calls.append(1)
            return original(fake, real) * (float("nan") if len(calls) > 4 else 1)

        monkeypatch.setattr(losses, "l2_loss", broken)
        with pytest.raises(
            NotFinite, match=r"At step 4 .*by l2 .*last good epoch is kept: .*last\.ckpt.*load\(.*model"
        ):
            model.fit(pairs(), training=training, folder=tmp_path)
        state = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
        assert state["sthist"]["step"] == 3
        kept = sthist.models.load(tmp_path / "checkpoints" / "model")
        for name, value in kept.generator.named_parameters():
            assert value.isfinite().all()
            assert torch.equal(value, state["state_dict"][f"generator.{name}"])
        assert kept.config.training["final"]["step"] == 3
        monkeypatch.undo()
        assert len(model.fit(pairs(), training=resuming(training), folder=tmp_path).history) == 2

    def test_outputs_of_one_colour(self, monkeypatch, tmp_path, caplog):
        """It looked right for an epoch, and then does not: the first epoch is what is kept."""
        monkeypatch.setattr("sthist.training.callbacks.CHECK_EVERY", 1)
        looks, calls = as_input(torch.from_numpy(blots()[1]), -1.0), []

        def made(_, generator, images, *__):
            calls.append(1)
            kept = generator.vae.skip_conv_1.weight.mean() * 0
            return kept + (looks[: len(images)] if len(calls) < 4 else images * 0)

        monkeypatch.setattr(ST2HE, "translate", made)
        model = small()
        with pytest.raises(Collapsed, match=r"Stopped at step 7: the outputs are almost of one colour.* epoch is kept"):
            model.fit(
                pairs(),
                training=model.training(losses=PLAIN, epochs=3, steps_per_epoch=3, batch_size=2),
                folder=tmp_path,
            )
        assert sthist.models.load(tmp_path / "checkpoints" / "model").config.training["final"]["step"] == 3
        assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["sthist"]["step"] == 3
        assert "Epoch 2 is not kept: the outputs are almost of one colour" in caplog.text

    def test_what_learns_slowly_is_not_stopped_but_said(self, monkeypatch, caplog):
        monkeypatch.setattr("sthist.training.callbacks.CHECK_EVERY", 1)
        model = pix2pix()
        training = model.training(losses=PLAIN, lr=1e-7, epochs=1, steps_per_epoch=12, batch_size=1)
        made, real = (as_input(torch.from_numpy(tiles), -1.0) for tiles in (model.predict(blots()[0]), blots()[1]))
        assert complaint({"fake": made, "real": real})
        assert len(model.fit(pairs(), training=training).history) == 1
        assert "never looked as they should: " in caplog.text

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (lambda x: x, ""),
            (lambda x: x.mean((0, 2, 3), keepdim=True).expand_as(x) + 0.001 * x, "one colour"),
            (lambda x: x - 0.6, "mean colour"),
            (lambda x: -x, "mean colour"),
            (lambda x: _two_colours(x), "share"),
            (lambda x: (x + 0.05 * torch.randn_like(x)).clamp(-1, 1), ""),
        ],
    )
    def test_what_is_wrong(self, change, said):
        torch.manual_seed(0)
        real = as_input(torch.from_numpy(blots()[1]), -1.0)
        problem = complaint({"fake": change(real), "real": real})
        assert said in problem if said else problem == ""

    def test_one_odd_batch_stops_nothing(self, monkeypatch):
        monkeypatch.setattr("sthist.training.callbacks.CHECKS", 4)
        watch = CollapseDetector(complaint)
        real = as_input(torch.from_numpy(blots()[1]), -1.0)
        for step, fake in enumerate([real, real * 0, real * 0, real * 0, real, real * 0], start=40):
            module = type("Module", (), {"step": 25 * step})
            watch.on_train_batch_end(None, module, {"fake": fake, "real": real}, None, 0)
        assert watch.failed == 1
        resumed = CollapseDetector(complaint)
        resumed.load_state_dict(watch.state_dict())
        assert (resumed.passed, resumed.failed) == (True, 1)

    @pytest.mark.parametrize(
        ("most", "said"),
        [
            (3 * PX**2, "batch_size=2 fits; accumulate=4 makes steps of as many tiles"),
            (PX**2 // 2, "Not one tile of that size fits; one of 16 px does"),
            (3, "Nothing smaller fits either"),
        ],
    )
    def test_out_of_memory_says_what_fits(self, monkeypatch, most, said):
        translate = ST2HE.translate

        def limited(self, generator, images, *args):
            if len(images) * images.shape[-1] ** 2 > most:
                raise torch.OutOfMemoryError
            return translate(self, generator, images, *args)

        monkeypatch.setattr(ST2HE, "translate", limited)
        model = small()
        with pytest.raises(MemoryError, match=f"{said}.* Nothing of this training was kept"):
            model.fit(pairs(), training=model.training(losses=PLAIN, batch_size=8, steps_per_epoch=1, epochs=1))
        fits = {True: r"batch_size=2 fits\.", False: "Not one fits"}[most >= PX**2]
        with pytest.raises(MemoryError, match=f"out of memory with 8 tiles of 32 px. {fits}"):
            model.predict(blots()[0])

    def test_interrupted(self, tmp_path):
        class Impatient(ArrayPairs):
            def read(self, rows, draw):
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            small().fit(Impatient(*blots()), folder=tmp_path)
        assert not (tmp_path / "config.json").exists()

    def test_afterwards_it_is_what_it_has_become(self, tmp_path):
        """Also copies that ran before: none goes on with weights that are no more."""
        model = pix2pix()
        copy, before = model.to(), model.predict(blots()[0])
        copy.predict(blots()[0])
        with pytest.raises(OSError, match="pulled out") as error:
            model.fit(
                Stopped(*blots(), after=9), folder=tmp_path, training=model.training(lr=1e-2, **SHORT | {"epochs": 4})
            )
        assert "last.ckpt" in error.value.__notes__[0]
        after = model.predict(blots()[0])
        assert not np.array_equal(after, before)
        assert np.array_equal(copy.predict(blots()[0]), after)
        assert np.array_equal(model.to().predict(blots()[0]), after)
        assert not model.generator.training


class TestSettings:
    def test_sizes_are_refused_before_anything_is_loaded(self):
        with pytest.raises(ValueError, match="multiple of 8, such as 96 or 104"):
            ST2HEConfig.sd_turbo("/no/such/folder", px=100)
        with pytest.raises(ValueError, match="multiple of 64, such as 64 or 128"):
            Pix2PixConfig(px=100)

    @pytest.mark.parametrize(
        ("prompts", "said"),
        [({"a": "x", "b": "x"}, "share the prompt 'x'"), ({"a": " "}, "not blank"), ({}, "no prompt")],
    )
    def test_prompts(self, prompts, said):
        with pytest.raises(ValueError, match=said):
            ST2HEConfig(prompts=prompts)

    def test_a_prompt_that_is_too_long_is_not_cut(self, backbone):
        with pytest.raises(ValueError, match=r"has 100 bytes; this encoder takes 75"):
            small(prompts={"": "x" * 100}).predict(blots()[0])
        with pytest.raises(ValueError, match="this encoder takes 7"):
            adapted(backbone, prompts={"": "lung " * 9}).predict(blots()[0])

    def test_which_tissue(self):
        model = small(prompts={"lung": "This is lung", "skin": "This is skin"})
        with pytest.raises(KeyError, match=r"several tissues, \['lung', 'skin'\]: say which"):
            model.predict(blots()[0])
        with pytest.raises(KeyError, match="knows no tissue 'liver'"):
            model.to(tissue="liver")
        with pytest.raises(KeyError, match="not conditioned"):
            small().to(tissue="lung")
        lung, skin = (model.to(tissue=name).predict(blots()[0]) for name in ("lung", "skin"))
        assert not np.array_equal(lung, skin)

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"epochs": 0}, "epochs is 0"),
            ({"lr": 0.0}, "lr is 0.0"),
            ({"ema": 1.0}, "ema is 1.0"),
            ({"schedule": "linear"}, "schedule is 'linear'"),
            ({"losses": "mine"}, "losses is 'mine'"),
        ],
    )
    def test_trainings_that_make_no_sense(self, change, said):
        with pytest.raises(ValueError, match=said):
            TranslationTraining(**change)

    def test_losses_that_make_no_sense(self):
        with pytest.raises(ValueError, match="nothing would tie"):
            LossWeights(l2=0, perceptual=0)
        with pytest.raises(ValueError, match="l2 is -1"):
            LossWeights(l2=-1)
        with pytest.raises(TypeError, match="no setting 'learning_rate'"):
            small().training(learning_rate=1)

    def test_upstream_weights_are_the_default_of_adapters(self, backbone):
        training = adapted(backbone).training()
        assert (training.weights.l2, training.weights.perceptual, training.weights.text) == (1, 5, 5)
        assert (training.weights.adversarial, training.lr, training.batch_size) == (0.5, 5e-6, 4)

    def test_weights_that_cannot_be_had(self, backbone, monkeypatch, tmp_path):
        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        monkeypatch.setattr(sthist.settings, "offline", True)
        model = adapted(backbone)
        with pytest.raises(FileNotFoundError, match=r"perceptual='structural' need no weights"):
            model.fit(pairs(prompts="lung"), training=model.training(losses=LossWeights(text=0), discriminator="patch"))
        with pytest.raises(ConnectionError) as error:
            model.fit(pairs(prompts="lung"), training=model.training(perceptual="structural"))
        assert "discriminator='patch'" in "".join(error.value.__notes__)


class TestRunning:
    def test_what_is_not_said_stays(self):
        model = small(prompts={"lung": "This is lung", "skin": "This is skin"})
        copied = model.to("cpu", precision="float32").to(tissue="skin").to()
        assert (copied.device, copied.tissue, copied.precision) == ("cpu", "skin", "float32")
        assert (model.device, model.tissue) == (None, None)
        with pytest.raises(ValueError, match="precision is 'half'"):
            model.to(precision="half")

    def test_half_precision_is_another_arithmetic(self, monkeypatch):
        model = small().to("cpu")
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
        assert [model.to(each).chosen_precision() for each in ("cpu", "cuda:1")] == ["float32", "bf16"]
        assert model.to("cuda", precision="float32").chosen_precision() == "float32"
        one, other = (model.to(precision=each).predict(blots()[0]).astype(int) for each in ("float32", "bf16"))
        assert 0.95 < np.corrcoef(one.ravel(), other.ravel())[0, 1] < 1

    def test_it_goes_into_the_record(self):
        sdata = sthist.datasets.toy(size_um=100)
        facts = []
        for model in (small(), small().to(precision="bf16"), small(seed=1)):
            elements = sthist._sample.elements.find_high_res(sdata)
            facts.append(model.prepare(elements, sthist.tiles.open_image(sdata, elements.nuclear), 0.5).facts)
        assert facts[0]["arithmetic"] == ["cpu", "float32", "eager"]
        assert facts[1]["arithmetic"] == ["cpu", "bf16", "eager"]
        assert facts[0]["weights"] != facts[2]["weights"]
        assert facts[0]["content"] == facts[2]["content"]

    def test_pix2pix_is_told_nothing(self):
        model = pix2pix(prompts={"lung": "This is lung", "skin": "This is skin"})
        assert np.array_equal(model.predict(blots()[0]), model.to(tissue="liver").predict(blots()[0]))

    def test_threads_share_one_network(self):
        from concurrent.futures import ThreadPoolExecutor

        model = small()
        with ThreadPoolExecutor(4) as pool:
            running = list(pool.map(lambda _: model._ready(), range(4)))
        assert len(set(map(id, running))) == 1

    def test_pickled(self):
        import cloudpickle

        model = small()
        expected = model.predict(blots()[0])
        assert np.array_equal(cloudpickle.loads(cloudpickle.dumps(model)).predict(blots()[0]), expected)

    def test_what_goes_to_a_worker_has_no_text_encoder(self):
        import cloudpickle

        from sthist.systems.virtual_he.inference import Predict

        model = small(prompts={"lung": "This is lung", "skin": "This is skin"}).to(tissue="skin")
        sent = cloudpickle.loads(cloudpickle.dumps(Predict(model)))
        assert sent.model._texts is None
        inputs, tissue = blots()[0], np.ones((8, PX, PX, 1), np.float32)
        tissue[0] = 0
        found, expected = sent(inputs, tissue), model.predict(inputs)
        assert (found[0] == 255).all()  # glass
        assert np.array_equal(found[1:], expected[1:])

    def test_no_tiles_at_a_time(self):
        with pytest.raises(ValueError, match="batch_size is 0"):
            small().predict(blots()[0], batch_size=0)

    def test_no_such_device(self):
        with pytest.raises(ValueError, match="device='gpu' is not on this machine"):
            small().fit(pairs(), device="gpu")


@pytest.fixture(scope="module")
def _stopped(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stopped")
    small().fit(pairs(), training=small().training(**SHORT), folder=folder, progress=False)
    return folder


@pytest.fixture
def stopped(_stopped, tmp_path):
    """The folder of a small generator's training."""
    return shutil.copytree(_stopped, tmp_path / "stopped")


class TestSameTraining:
    """What is gone on with has to be what was stopped."""

    @pytest.mark.parametrize(
        ("fields", "said"),
        [
            ({"mode": "none"}, "config.mode 'multi', not 'none'"),
            ({"input_low": 0.0}, "config.input_low -1.0, not 0.0"),
            ({"size_um": 8.0}, "config.size_um 16.0, not 8.0"),
            ({"prompts": {"": "dapi2he", "lung": "This is lung"}}, "config.prompts"),
            ({"dot_um": 1.0}, "config.dot_um None, not 1.0"),
        ],
    )
    def test_config(self, stopped, fields, said):
        with pytest.raises(ValueError, match=f"of another training, with {said}"):
            small(**fields).fit(pairs(), training=small().training(**SHORT, resume=True), folder=stopped)

    def test_for_longer(self, stopped):
        with pytest.raises(ValueError, match="to go on for longer, load the model and train it on in another folder"):
            small().fit(pairs(), training=small().training(**SHORT | {"epochs": 3}, resume=True), folder=stopped)
        training = small().training(**SHORT | {"epochs": 1}, schedule="constant", losses=LossWeights(text=0))
        model = small().fit(pairs(), training=training, folder=stopped / "constant")
        longer = small().fit(
            pairs(), training=dataclasses.replace(training, epochs=2, resume=True), folder=stopped / "constant"
        )
        assert len(model.history) + 1 == len(longer.history)

    def test_what_does_not_change_weights_may_change(self, stopped):
        training = small().training(**SHORT, images_every=0, checkpoint_gradients=True)
        assert len(small().fit(pairs(), training=resuming(training), folder=stopped).history) == 2

    def test_pairs_that_say_what_they_are(self, tmp_path):
        named = pairs()
        named.fingerprint = "one"
        small().fit(named, training=small().training(**SHORT), folder=tmp_path)
        named.fingerprint = "other"
        with pytest.raises(ValueError, match="with pairs 'one', not 'other'"):
            small().fit(named, training=small().training(**SHORT, resume=True), folder=tmp_path)

    @pytest.mark.parametrize("content", [b"", b"damaged", None])
    def test_damaged(self, stopped, content):
        path = stopped / "checkpoints" / "last.ckpt"
        path.write_bytes(content) if content is not None else torch.save({"a": 1}, path)
        with pytest.raises(ValueError, match="no checkpoint of this package, or damaged"):
            small().fit(pairs(), training=small().training(**SHORT, resume=True), folder=stopped)


class TestFiles:
    def test_numbers_of_numpy_and_paths_are_kept(self, tmp_path):
        from pathlib import Path

        numbers = {"epochs": np.int64(1), "steps_per_epoch": np.int32(2), "lr": np.float32(0.5), "seed": np.int64(3)}
        model = small(size_um=np.float32(16), min_qv=np.float64(3))
        model.fit(pairs(), training=model.training(**numbers, lpips_weights=Path("vgg")), folder=tmp_path)
        loaded = sthist.models.load(tmp_path)
        assert (loaded.config.training["lr"], loaded.config.training["lpips_weights"]) == (0.5, "vgg")

    def test_what_a_training_left(self, tmp_path):
        import pandas as pd

        model = small().fit(pairs(), training=small().training(**SHORT), folder=tmp_path, validation=pairs(3))
        pd.DataFrame({"sample": ["NA"], "instance_id": [7], "shift_um": [None], "reason": [""]}).to_csv(
            tmp_path / "tiles.csv"
        )
        loaded = sthist.models.load(tmp_path)
        assert [row["epoch"] for row in loaded.history] == [1, 2]
        assert loaded.history[-1]["validation_ssim"] == pytest.approx(model.history[-1]["validation_ssim"])
        assert loaded.tiles["sample"].tolist() == ["NA"]
        assert loaded.tiles["reason"].tolist() == [""]
        assert loaded.tiles["shift_um"].isna().all()

    def test_a_model_that_is_trained_on_knows_what_came_before(self):
        model = small().fit(pairs(), training=small().training(**SHORT))
        model.fit(pairs(), training=model.training(**SHORT, lr=1e-5))
        assert model.config.training["lr"] == 1e-5
        assert model.config.training["before"]["lr"] == small().training().lr

    def test_adapters_belong_to_their_backbone(self, backbone, tmp_path):
        from safetensors.torch import load_file, save_file

        adapted(backbone).save(tmp_path / "model")
        shutil.copytree(backbone, tmp_path / "other")
        path = tmp_path / "other" / "unet" / "diffusion_pytorch_model.safetensors"
        save_file({name: value * 1.5 for name, value in load_file(path).items()}, path)
        with pytest.raises(ValueError, match="was trained on another unet"):
            ST2HE.load(tmp_path / "model", backbone=tmp_path / "other")
        shutil.copytree(backbone, tmp_path / "same")
        assert (
            ST2HE.load(tmp_path / "model", backbone=tmp_path / "same").backbone_sha256()
            == adapted(backbone).backbone_sha256()
        )

    def test_checkpoint_of_another_config(self, tmp_path):
        model = small()
        model.save(tmp_path)
        content = json.loads((tmp_path / "config.json").read_text())
        content["config"]["turbo"]["unet_channels"] = [32, 96]
        (tmp_path / "config.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match="another generator than its config"):
            sthist.models.load(tmp_path)

    def test_weights_of_another_pix2pix(self, tmp_path):
        pix2pix().save(tmp_path)
        content = json.loads((tmp_path / "config.json").read_text())
        content["config"]["width"] = 4
        (tmp_path / "config.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match="another network"):
            sthist.models.load(tmp_path)

    def test_backbone_may_move(self, backbone, tmp_path):
        model = adapted(backbone, prompts={"": "a"})
        model.save(tmp_path / "model")
        content = json.loads((tmp_path / "model" / "config.json").read_text())
        content["config"]["backbone"] = str(tmp_path / "gone")
        (tmp_path / "model" / "config.json").write_text(json.dumps(content))
        with pytest.raises(FileNotFoundError, match="gone"):
            ST2HE.load(tmp_path / "model")
        loaded = ST2HE.load(tmp_path / "model", backbone=backbone)
        assert np.array_equal(loaded.predict(blots()[0]), model.predict(blots()[0]))
        sthist.models.BeerLambert().save(tmp_path / "other")
        with pytest.raises(ValueError, match=r"does not know: \['backbone'\]"):
            ST2HE.load(tmp_path / "other", backbone=backbone)
        with pytest.raises(ValueError, match="system 'beer-lambert'"):
            ST2HE.load(tmp_path / "other")

    def test_upstream_checkpoint(self, backbone, tmp_path, monkeypatch):
        """What it makes of a tile is what the published implementation makes of it."""
        upstream = Upstream(backbone)
        torch.save(upstream.checkpoint(), tmp_path / "model.pkl")
        monkeypatch.setattr(
            "sthist.systems.virtual_he.models.st2he_checkpoints.convert_upstream.__kwdefaults__",
            {"base": TINY, "input_range": (0, 1)},
        )
        model = ST2HE.from_upstream(
            tmp_path / "model.pkl", backbone=backbone, size_um=16.0, px=PX, prompts={"": "lung"}
        )
        inputs = blots(2)[0]
        image = torch.from_numpy(inputs).permute(0, 3, 1, 2) / 255  # its training has black at 0
        expected = as_tiles(upstream(image, model.prompt_vectors(["lung"]).expand(2, -1, -1)))
        assert np.abs(model.predict(inputs).astype(int) - expected).max() <= 1
        model.save(tmp_path / "model")
        again = sthist.models.load(tmp_path / "model")
        assert np.array_equal(again.predict(inputs), model.predict(inputs))
        assert again.config.provenance["file"] == "model.pkl"

    def test_upstream_checkpoint_that_runs_code(self, tmp_path):
        (tmp_path / "model.pkl").write_bytes(pickle.dumps({"a": pytest.raises}))
        with pytest.raises(ValueError, match="could run any code"):
            ST2HE.from_upstream(tmp_path / "model.pkl")


class TestOrder:
    def test_every_pair_once_before_any_twice(self):
        rows = np.concatenate([order_of(10, 4, 5, 0, epoch).ravel() for epoch in range(3)])
        assert rows.shape == (60,)
        for i in range(6):
            assert sorted(rows[10 * i : 10 * i + 10]) == list(range(10))
        assert not np.array_equal(rows[:10], rows[10:20])

    def test_turns(self):
        tile = np.arange(4, dtype=np.uint8).reshape(1, 2, 2, 1)
        ways = turned(np.repeat(tile, 8, 0), range(8))
        assert len({way.tobytes() for way in ways}) == 8
        assert np.array_equal(ways[0], tile[0])
        assert np.array_equal(ways[1], np.rot90(tile[0]))

    def test_pairs_turn_together(self):
        inputs, _ = blots()
        both = ArrayPairs(inputs, inputs).read(np.arange(8), (0, 1))
        assert np.array_equal(*both)
        assert not np.array_equal(both[0], inputs)

    def test_levels_come_back(self):
        tiles = np.arange(192, dtype=np.uint8).reshape(1, 8, 8, 3)
        images = as_input(torch.from_numpy(tiles), -1.0)
        assert np.array_equal(as_tiles(images), tiles)
        assert as_input(torch.tensor([[[[0, 255, 51]]]], dtype=torch.uint8), 0.0).flatten().tolist() == pytest.approx(
            [0, 1, 0.2]
        )

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (lambda x, y: (x.astype(float), y), "inputs are float64"),
            (lambda x, y: (x, y[:3]), "pairs agree"),
            (lambda x, y: (x, y, ["a"]), "8 pairs and 1 prompts"),
        ],
    )
    def test_what_are_no_pairs(self, change, said):
        with pytest.raises(ValueError, match=said):
            ArrayPairs(*change(*blots()))


def test_precision_of_a_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    assert [trainer.lightning_precision("auto", each) for each in ("cuda", "cpu")] == ["bf16-mixed", "32-true"]
    assert trainer.lightning_precision("float32", "cuda") == "32-true"


def test_gradients_are_checkpointed_only_where_asked_for(monkeypatch):
    """A model that was trained with checkpoints is trained on without."""
    model, asked = small(), []
    monkeypatch.setattr(model.generator, "checkpoint_gradients", lambda on=True: asked.append(on))
    for on in (True, False):
        training = model.training(losses=PLAIN, epochs=1, steps_per_epoch=1, batch_size=2, checkpoint_gradients=on)
        model.fit(pairs(), training=training)
    assert asked[-1] is False
    assert True in asked


def test_the_published_losses_of_pix2pix():
    """L1 times 100 beside cross-entropy, half of it for the discriminator (Isola et al. 2017)."""
    model = pix2pix()
    how = {"losses": "pix2pix-published", "discriminator": "patch-bce", "epochs": 4, "steps_per_epoch": 10}
    model.fit(pairs(), training=how | {"batch_size": 4}, device="cpu")
    first, last = model.history[0], model.history[-1]
    assert last["l1"] < 0.8 * first["l1"]
    assert 0 < last["discriminator"] < 1  # of nothing known it is ln 2
    assert model.config.training["losses"]["l1"] == 100
    with pytest.raises(ValueError, match="All of l1, l2 and perceptual are 0"):
        LossWeights(l2=0, perceptual=0)
