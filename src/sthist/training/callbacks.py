"""What looks on while a model is trained: seeds, checks, history, checkpoints, the best weights, the time."""

from __future__ import annotations

import io
import math
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, Timer
from lightning.pytorch.plugins import TorchCheckpointIO

from sthist._disk import full_disk_code, put_folder, written_whole
from sthist._settings import logger
from sthist.training.run_folder import write_history

if TYPE_CHECKING:
    from collections.abc import Callable

LEAST_GAIN = 1e-4
"""A validation loss that falls by less has not fallen."""

LEAST_STEPS = 100
"""Steps before which no training is stopped early: where an epoch is one batch, the first few say nothing."""

CHECK_EVERY, CHECKS = 25, 4
"""Steps between checks of the outputs, and checks in a row that have to fail."""

MODEL = "model"
"""Folder of the last epoch's model, beside its checkpoint."""


class NotFinite(FloatingPointError):
    """The loss or its gradient is no number, at a step, before the weights were changed; ``terms`` are its values."""

    def __init__(self, step: int, terms: dict[str, float]) -> None:
        shown = ", ".join(f"{name} {value:.4g}" for name, value in terms.items())
        bad = [name for name, value in terms.items() if not math.isfinite(value)] or ["their sum"]
        super().__init__(f"At step {step} the loss is no finite number, by {' and '.join(bad)} ({shown}).")


class Collapsed(RuntimeError):
    """What the model makes has stopped to look like what it should."""


class RepeatableEpochs(lightning.Callback):
    """Sets the random states that dropout and augmentation draw from when an epoch begins, and counts its batches."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """A function of seed, epoch and, of several devices, the device."""
        rank = [trainer.global_rank] if trainer.global_rank else []
        state = np.random.SeedSequence([self.seed, trainer.current_epoch, *rank]).generate_state(1)
        torch.manual_seed(int(state[0]))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count; the other callbacks come after this one."""
        pl_module.after_batch(batch_idx)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Say which epoch the next batches are for."""
        pl_module.epoch_to_come = trainer.current_epoch + 1


class StopWhenNotFinite(lightning.Callback):
    """Stops before a loss that is no finite number reaches the weights."""

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Any) -> None:
        """Look at the loss."""
        if not torch.isfinite(loss):
            terms = {name: float(term) for name, term in pl_module.terms.items()}
            raise NotFinite(pl_module.step, terms or {"loss": float(loss)})


class CollapseDetector(lightning.Callback):
    """Stops a training whose outputs have collapsed, by what ``complaint`` says of the outputs of a step.

    What never looked right has not collapsed, but has yet to learn: it is watched from the first check that it passes
    on, and a warning at the end says if there was none. Several checks in a row decide, so that one odd batch does not.
    """

    state_key = "Sanity"  # its name in checkpoints

    def __init__(self, complaint: Callable[[dict[str, Any]], str]) -> None:
        self.complaint = complaint
        self.passed, self.failed, self.wrong = False, 0, ""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Look at every so many steps."""
        if pl_module.step % CHECK_EVERY:
            return
        self.wrong = self.complaint(outputs)
        self.passed = self.passed or not self.wrong
        self.failed = self.failed + 1 if self.wrong and self.passed else 0
        if self.failed >= CHECKS:
            raise Collapsed(
                f"Stopped at step {pl_module.step}: {self.wrong}, in {CHECKS} checks in a row. Lower lr= or, where "
                "there is one, the adversarial weight."
            )

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Warn of what never looked right."""
        if self.wrong and not self.passed:
            logger.warning("The outputs have never looked as they should: %s. Train for longer.", self.wrong)

    def state_dict(self) -> dict[str, Any]:
        """What was seen so far."""
        return {"passed": self.passed, "failed": self.failed, "wrong": self.wrong}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self.passed, self.failed, self.wrong = (state_dict.get(name, "") for name in ("passed", "failed", "wrong"))


class CSVHistory(lightning.Callback):
    """The mean of each term of the loss by epoch, with the learning rate and scores of validation data.

    Lightning's own CSVLogger deletes the rows of before when a training is resumed.

    ``folder``: ``metrics.csv`` is written there; None to keep the rows alone; ``evaluate``: from the module and the
    epoch to scores by name.
    """

    state_key = "Record"  # its name in checkpoints

    def __init__(self, folder: Path | None, evaluate: Callable[[Any, int], dict[str, float]] | None) -> None:
        self.folder, self.evaluate = folder, evaluate
        self.rows: list[dict[str, float]] = []
        self._values: dict[str, list[Any]] = {}

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Keep the terms."""
        for name, value in pl_module.terms.items():
            self._values.setdefault(name, []).append(float(value))

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Add a row."""
        epoch = trainer.current_epoch + 1
        row: dict[str, float] = {"epoch": epoch, "step": pl_module.step}
        row |= {name: _over_devices(trainer, float(np.mean(values))) for name, values in self._values.items()}
        row |= {name: float(value) for name, value in trainer.callback_metrics.items()}
        self._values = {}
        if trainer.is_global_zero:
            row |= self.evaluate(pl_module, epoch) if self.evaluate is not None else {}
            row["lr"] = trainer.optimizers[0].param_groups[0]["lr"]
        self.rows.append(row)
        if self.folder is not None or self.evaluate is not None:
            numbers = ", ".join(f"{name} {value:.4g}" for name, value in row.items() if name != "epoch")
            logger.info("Epoch %d of %d: %s.", epoch, trainer.max_epochs, numbers)
        for each in trainer.loggers:
            each.log_metrics(row, step=int(pl_module.step))
        if self.folder is not None and trainer.is_global_zero:
            write_history(self.folder, self.rows)

    def state_dict(self) -> dict[str, Any]:
        """The rows so far."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self.rows = list(state_dict["rows"])


def _over_devices(trainer: Any, value: float) -> float:
    """The mean of a number over all devices."""
    if trainer.world_size == 1:
        return value
    tensor = torch.tensor(value, dtype=torch.float64, device=trainer.strategy.root_device)
    return float(trainer.strategy.reduce(tensor, reduce_op="mean"))


class WholeCheckpoints(TorchCheckpointIO):
    """Writes checkpoints beside their place, and puts them there when they are whole.

    Lightning writes them into the system's temporary folder first, which may be small, or on another disk: then what is
    put in place is a copy, which a kill cuts off.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write one."""
        content = io.BytesIO()  # torch itself does not say that a disk is full
        torch.save(checkpoint, content)
        with written_whole(Path(path)) as partial:
            partial.write_bytes(content.getbuffer())


class LastCheckpoint(ModelCheckpoint):
    """Writes a checkpoint and the model at the end of each epoch, in place of those before.

    Where the last check found the outputs wrong, what is kept is left: a collapse shall not take the place of what was
    good. The end of a training is kept in any case.

    ``path``: of the checkpoint; the model lies beside it; ``identity``: plain values that say what the training is of;
    ``detector``: what checks the outputs, if anything does; ``save_model``: writes the model as it is into a folder.
    """

    state_key = "KeepLast"  # its name in checkpoints

    def __init__(
        self,
        path: Path,
        identity: dict[str, Any],
        detector: CollapseDetector | None,
        save_model: Callable[[Path, list[dict[str, float]]], None],
        history: CSVHistory,
    ) -> None:
        options: dict[str, Any] = {"save_on_train_epoch_end": True, "enable_version_counter": False}
        super().__init__(path.parent, path.stem, **options)
        self.path, self.identity, self.detector = path, identity, detector
        self.save_model, self.history = save_model, history

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Write them."""
        if self.detector is not None and self.detector.failed and trainer.current_epoch + 1 < trainer.max_epochs:
            logger.warning("Epoch %d is not kept: %s.", trainer.current_epoch + 1, self.detector.wrong)
            return
        super().on_train_epoch_end(trainer, pl_module)
        if trainer.is_global_zero:
            self._write_model(trainer, pl_module)

    def _write_model(self, trainer: Any, pl_module: Any) -> None:
        fresh = self.path.with_name(f"{MODEL}.partial")
        shutil.rmtree(fresh, ignore_errors=True)
        try:
            with pl_module.averaged():
                self.save_model(fresh, self.history.rows)
            put_folder(fresh, self.path.with_name(MODEL))
        except OSError as error:
            shutil.rmtree(fresh, ignore_errors=True)
            if full_disk_code(error) is not None:
                raise
            # Someone has it open, where that matters; the checkpoint is there.
            logger.warning("The model of epoch %d is not in place: %s.", trainer.current_epoch + 1, error)

    def state_dict(self) -> dict[str, Any]:
        """What the training is of."""
        return self.identity

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing: where checkpoints lie is known."""


class RestoreBest(EarlyStopping):
    """Stops when the validation loss has not fallen for some epochs, and puts the best weights back at the end.

    The first ``LEAST_STEPS`` steps are run in any case.
    """

    def __init__(self, patience: int) -> None:
        options: dict[str, Any] = {"min_delta": LEAST_GAIN, "mode": "min", "check_on_train_epoch_end": False}
        super().__init__("validation_loss", patience=patience, **options)
        self.asked = patience
        self.best_epoch = 0
        self.best: dict[str, Any] = {}

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Look at the loss, and keep the weights where it is the lowest so far."""
        self.patience = self.asked if pl_module.step >= LEAST_STEPS else sys.maxsize
        super().on_validation_end(trainer, pl_module)
        if self.wait_count == 0 and math.isfinite(self.best_score):
            self.best_epoch = trainer.current_epoch + 1
            self.best = {name: value.detach().cpu().clone() for name, value in pl_module.state_dict().items()}

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Put the best weights back."""
        if self.best:
            pl_module.load_state_dict(self.best)
            pl_module.best = self.best_epoch, float(self.best_score)

    def state_dict(self) -> dict[str, Any]:
        """What is known so far, with the best weights."""
        return super().state_dict() | {"best_epoch": self.best_epoch, "best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        super().load_state_dict(state_dict)  # patience is set at each look
        self.best_epoch, self.best = state_dict["best_epoch"], state_dict["best"]


class TimeBudget(Timer):
    """Stops at the end of the epoch in which the time is over; a training that is resumed has all of it again."""

    def __init__(self, max_time: Any) -> None:
        super().__init__(max_time, interval="epoch", verbose=False)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing: the time is that of one run."""
