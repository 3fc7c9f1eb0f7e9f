"""The engine that every system trains on."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from training.tiny import Line, weights

import sthist
from sthist.models import Training
from sthist.training import trainer
from sthist.training.callbacks import NotFinite
from sthist.training.run_folder import read_history, read_tiles
from sthist.training.trainer import train

SAVED = Path(__file__).parents[1] / "models" / "saved"
SHORT = {"epochs": 6, "batch_size": 16, "lr": 0.05, "seed": 3}


def run(options=SHORT, folder=None, *, dropout=0.0, bad_step=None, stop_after=None, **kwargs):
    training = Training(**options)
    save_model = None if folder is None else lambda place, rows: place.mkdir(parents=True)

    def make():
        return Line(training, dropout, bad_step, stop_after)

    return train(
        make, training, folder=folder, device="cpu", progress=False, threads=1, save_model=save_model, **kwargs
    )


class TestRuns:
    def test_fits_its_own_rows(self):
        module, history = run(SHORT | {"epochs": 60})
        np.testing.assert_allclose(weights(module)[:4], [1, -2, 3, 0.5], atol=0.05)
        assert history[-1]["loss"] < 0.02 < 1 < history[0]["loss"]
        assert [row["epoch"] for row in history] == list(range(1, 61))
        assert history[-1]["step"] == 60 * 4
        assert {row["lr"] for row in history} == {0.05}

    def test_same_seed_same_weights(self):
        one, same, other = (run(SHORT | {"seed": seed}, dropout=0.3)[0] for seed in (1, 1, 2))
        assert np.array_equal(weights(one), weights(same))
        assert not np.array_equal(weights(one), weights(other))

    @pytest.mark.parametrize("options", [{}, {"ema": 0.9}, {"patience": 2}, {"accumulate": 2}])
    def test_resumed_equals_uninterrupted(self, options, tmp_path):
        """Order of rows, dropout, optimiser, running mean, best weights and history go on as if nothing had been."""
        options = SHORT | options
        whole, history = run(options, dropout=0.3)
        with pytest.raises(OSError, match="pulled out"):
            run(options, tmp_path, dropout=0.3, stop_after=9)
        resumed, rows = run(options | {"resume": True}, tmp_path, dropout=0.3)
        assert np.array_equal(weights(resumed), weights(whole))
        assert rows == history
        np.testing.assert_allclose(
            [row["loss"] for row in read_history(tmp_path)], [row["loss"] for row in history], rtol=1e-12
        )

    def test_a_checkpoint_of_another_training_is_not_resumed(self, tmp_path):
        run(SHORT, tmp_path)
        with pytest.raises(FileExistsError, match="resume=True"):
            run(SHORT, tmp_path)
        with pytest.raises(ValueError, match="of another training, with lr 0.05, not 0.1"):
            run(SHORT | {"lr": 0.1, "resume": True}, tmp_path)
        with pytest.raises(ValueError, match="of another training, with rows 'x'|rows None, not 'x'"):
            run(SHORT | {"resume": True}, tmp_path, identity={"rows": "x"})
        module, history = run(SHORT | {"epochs": 8, "resume": True}, tmp_path)
        assert len(history) == 8

    def test_accumulated_batches_are_one_larger_batch(self):
        one, _ = run(SHORT | {"batch_size": 8, "accumulate": 2})
        other, _ = run(SHORT | {"batch_size": 16})
        np.testing.assert_allclose(weights(one), weights(other), atol=1e-5)

    def test_the_best_weights_are_put_back(self):
        """Training stops when the validation loss has not fallen for some epochs."""
        module, history = run(SHORT | {"epochs": 500, "patience": 3, "lr": 0.2})
        losses = [row["validation_loss"] for row in history]
        epoch, best = module.best
        assert len(history) < 500
        assert best == pytest.approx(losses[epoch - 1])
        assert best <= min(losses) + 1e-4
        inputs, targets = map(torch.from_numpy, module.held_out)
        with torch.inference_mode():
            assert float(((module.net(inputs)[:, 0] - targets) ** 2).mean()) == pytest.approx(best, rel=1e-5)

    def test_is_not_stopped_after_a_few_steps(self):
        """With one batch per epoch, steps that lead nowhere at first are no reason to stop."""
        _, history = run(SHORT | {"epochs": 300, "patience": 1, "lr": 1e-7, "batch_size": 64})
        assert history[-1]["step"] == 100

    def test_the_running_mean_is_kept(self):
        plain, _ = run(SHORT)
        mean, _ = run(SHORT | {"ema": 0.9})
        assert not np.allclose(weights(plain), weights(mean))

    def test_time_is_over_at_the_end_of_an_epoch(self, tmp_path):
        start = time.monotonic()
        options = SHORT | {"epochs": 100_000, "max_time": {"seconds": 0.8}}
        _, history = run(options, tmp_path)
        assert 0 < len(history) < 100_000
        assert time.monotonic() - start < 60
        assert history[-1]["step"] == 4 * len(history)
        _, longer = run(options | {"resume": True, "max_time": {"seconds": 0.4}}, tmp_path)
        assert len(longer) > len(history) + 1  # the second run has time of its own

    def test_loggers_of_lightning_get_the_history(self, tmp_path):
        from lightning.pytorch.loggers import CSVLogger

        logger = CSVLogger(tmp_path, name="log", version="run")
        _, history = run(SHORT | {"logger": logger})
        logger.save()
        import pandas as pd

        logged = pd.read_csv(tmp_path / "log" / "run" / "metrics.csv").dropna(subset="lr")
        np.testing.assert_allclose(logged["loss"], [row["loss"] for row in history])

    def test_no_number_stops_and_keeps_the_last_good_epoch(self, tmp_path):
        with pytest.raises(NotFinite, match=r"At step 13 the loss is no finite number, by loss .*resume=True goes on"):
            run(SHORT, tmp_path, bad_step=13)
        assert len(read_history(tmp_path)) == 3
        state = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        assert all(torch.isfinite(value).all() for value in state.values())

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a device that is always full")
    @pytest.mark.parametrize("name", ["checkpoints/last.partial.ckpt", "metrics.partial.csv"])
    def test_a_full_disk_stops_it_and_it_goes_on_afterwards(self, tmp_path, name):
        """The error says which disk, and that what was kept goes on; it equals a training that was not stopped."""
        run(SHORT | {"epochs": 2}, tmp_path)
        (tmp_path / name).symlink_to("/dev/full")
        shutil.rmtree(tmp_path / "checkpoints" / "model", ignore_errors=True)
        with pytest.raises(OSError, match=r"is full .*Make room there.* The last good epoch is kept: resume=True"):
            run(SHORT | {"resume": True}, tmp_path)
        assert not list(tmp_path.rglob("*.partial*"))
        resumed, rows = run(SHORT | {"resume": True}, tmp_path)
        whole, history = run(SHORT)
        assert np.array_equal(weights(resumed), weights(whole))
        assert rows == history

    def test_checkpoints_are_not_copied_from_another_disk(self, tmp_path, monkeypatch):
        """Lightning writes them into the system's temporary folder first, and a copy can be cut off."""
        moved = []
        monkeypatch.setattr(shutil, "move", lambda *args, **_: moved.append(args))
        run(SHORT | {"epochs": 1}, tmp_path)
        assert (tmp_path / "checkpoints" / "last.ckpt").stat().st_size > 0
        assert not moved

    def test_out_of_memory_says_what_fits(self, monkeypatch):
        step = Line.training_step

        def limited(self, batch, index):
            if len(batch[0]) > 4:
                raise torch.OutOfMemoryError
            return step(self, batch, index)

        def trial(self, batch_size, px):
            if batch_size > 4:
                raise torch.OutOfMemoryError

        monkeypatch.setattr(Line, "training_step", limited)
        monkeypatch.setattr(Line, "trial_step", trial)
        with pytest.raises(
            MemoryError, match=r"batch_size=16\. batch_size=4 fits; accumulate=4 makes steps of as many"
        ):
            run()

    def test_what_cannot_save_memory_says_so(self):
        with pytest.raises(ValueError, match="checkpoint_gradients=True is for"):
            run(SHORT | {"checkpoint_gradients": True})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"epochs": 0}, "epochs is 0; a whole number from 1"),
        ({"lr": -1}, "lr is -1; a positive number"),
        ({"ema": 1.0}, "ema is 1.0"),
        ({"precision": "half"}, r"precision is 'half'; it is one of \['auto', 'float32', 'bf16'\]"),
        ({"batch_size": 5, "devices": 2}, "cannot be shared evenly among devices=2"),
    ],
)
def test_options_that_cannot_be(fields, message):
    with pytest.raises(ValueError, match=message):
        Training(**fields)


TWO_DEVICES = """
import json, sys
sys.path.insert(0, {tests!r})
from training.tiny import Line, weights
from sthist.models import Training
from sthist.training.trainer import train
options = Training(**{options!r})
module, history = train(lambda: Line(options), options, device="cpu", progress=False, threads=1)
print(json.dumps([[row["loss"] for row in history], weights(module).tolist()]))
"""


def test_two_devices_train_as_one():
    """The same loss curve and weights, with the same batches shared by two processes."""
    options = SHORT | {"epochs": 3, "ema": 0.9}
    module, history = run(options)
    shared = options | {"devices": 2, "strategy": "ddp_fork"}
    code = TWO_DEVICES.format(tests=str(Path(__file__).parents[1]), options=shared)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    losses, shared_weights = json.loads(done.stdout.splitlines()[-1])
    np.testing.assert_allclose(losses, [row["loss"] for row in history], atol=1e-5)
    np.testing.assert_allclose(shared_weights, weights(module), atol=1e-5)


class TestSavedBefore:
    """Models and checkpoints that were written before there was one engine."""

    @pytest.fixture
    def expected(self):
        return np.load(SAVED / "expected.npz")

    def test_models(self, expected):
        np.testing.assert_array_equal(
            sthist.models.load(SAVED / "pix2pix").predict(expected["tiles"]), expected["pix2pix"]
        )
        annotator = sthist.models.load(SAVED / "annotator")
        np.testing.assert_allclose(annotator.predict(expected["features"]), expected["annotator"], atol=1e-6)
        assert annotator.config.mode == "linear"

    def test_a_checkpoint_goes_on(self, expected, tmp_path):
        """With its optimiser, running mean and history: as the training went on then."""
        folder = tmp_path / "run"
        shutil.copytree(SAVED / "pix2pix", folder)
        config = sthist.models.Pix2PixConfig(size_um=8.0, px=8, width=2, max_width=4, depth=2)
        losses = sthist.models.LossWeights(l2=1, perceptual=0, text=0, adversarial=0)
        training = {"losses": losses, "epochs": 2, "steps_per_epoch": 2, "batch_size": 2, "ema": 0.5, "images_every": 0}
        training |= {"lr": 1e-3, "resume": True}
        model = sthist.models.Pix2Pix(config)
        pairs = sthist.models.ArrayPairs(expected["tiles"], expected["targets"])
        options = sthist.models.TranslationTraining(**training)
        model.fit(pairs, folder=folder, training=options, device="cpu", progress=False)
        np.testing.assert_array_equal(model.predict(expected["tiles"]), expected["pix2pix_resumed"])
        name = sorted(model.state())[0]
        np.testing.assert_allclose(model.state()[name].numpy(), expected["pix2pix_resumed_weight"], atol=1e-7)
        assert [row["epoch"] for row in model.history] == [1, 2]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metrics.csv", b""),
        ("metrics.csv", b"epoch,loss\n1,0.5\n2,\x00\xff"),
        ("metrics.csv", b"epoch,loss\n1,0.5,3,4\n2"),
        ("metrics.csv", b"epoch,loss\n1,much"),
        ("tiles.csv", b"sample,x_um\na,"),
        ("tiles.csv", b"\xff\xfe"),
    ],
)
def test_what_lies_beside_a_model_may_be_damaged(tmp_path, name, content):
    """It is said of which file, and that the model is whole."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} is damaged: .* The model does not need it"):
        (read_history if name == "metrics.csv" else read_tiles)(tmp_path)


@pytest.mark.parametrize(
    ("px", "batch_size", "environment", "expected"),
    [
        (64, 4, {}, 1),
        (64, 32, {}, 6),
        (256, 4, {}, 6),
        (None, 1024, {}, 1),
        (None, 2**25, {}, 6),
        (64, 4, {"OMP_NUM_THREADS": "5"}, 5),
        (256, 4, {"OMP_NUM_THREADS": "1"}, 1),
    ],
)
def test_small_batches_take_one_thread(monkeypatch, px, batch_size, environment, expected):
    """As many as the batch is worth, unless they were set; never by what else the machine does."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(trainer.torch, "get_num_threads", lambda: 6)
    monkeypatch.setattr(trainer, "DEFAULT_THREADS", 6)
    module = Line(Training(batch_size=batch_size))
    module.px = px
    assert trainer.threads_of(module, module.options) == expected
    monkeypatch.setattr(trainer, "DEFAULT_THREADS", 8)  # torch.set_num_threads(6), by a user
    assert trainer.threads_of(module, module.options) == (expected if environment else 6)
    monkeypatch.setattr(trainer.os, "cpu_count", lambda: 6)  # numba, which starts a thread per core
    assert trainer.threads_of(module, module.options) == expected
