"""What looks on while a translation is trained: checks, pictures, figures, checkpoints."""

from __future__ import annotations

import csv
import shutil
from typing import TYPE_CHECKING, Any

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Checkpoint

from sthist._settings import logger
from sthist.systems.virtual_he.generator import as_tiles
from sthist.training.run_folder import FIGURES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sthist.systems.virtual_he.training_module import Translation
    from sthist.systems.virtual_he.training_set.pairs import Pairs
    from sthist.systems.virtual_he.translator import Translator

CHECK_EVERY, PATIENCE = 25, 4
"""Steps between checks, and checks in a row that have to fail."""

LEAST_SPREAD, FARTHEST, LEAST_SHARED = 0.15, 0.3, 0.2
"""Of the outputs: standard deviation as a part of the real images', distance of the mean colour (black to white is 2),
and part of the histogram of colours that both have."""

SHOWN, SCORED = 6, 64

MODEL = "model"
"""Folder of the last epoch's model, beside its checkpoint."""


class Collapsed(RuntimeError):
    """What the generator makes has stopped to look like histology."""


class Sanity(lightning.Callback):
    """Stops a run whose outputs have collapsed, in the mean, the spread, or the histogram of their colours.

    What never looked right has not collapsed, but has yet to learn: it is watched from the first check that it passes
    on, and said at the end where there was none. Several checks in a row decide, so that one odd batch does not.
    """

    def __init__(self) -> None:
        self.passed, self.failed, self.wrong = False, 0, ""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Look at every so many steps."""
        if pl_module.step % CHECK_EVERY:
            return
        self.wrong = complaint(outputs["fake"].float(), outputs["real"])
        self.passed = self.passed or not self.wrong
        self.failed = self.failed + 1 if self.wrong and self.passed else 0
        if self.failed >= PATIENCE:
            msg = (
                f"Stopped at step {pl_module.step}: {self.wrong}, in {PATIENCE} checks in a row. Lower lr= or the "
                f"adversarial weight."
            )
            raise Collapsed(msg)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Say what never looked right."""
        if self.wrong and not self.passed:
            logger.warning("The outputs have never looked like the real images: %s. Train for longer.", self.wrong)

    def state_dict(self) -> dict[str, Any]:
        """What was seen so far."""
        return {"passed": self.passed, "failed": self.failed, "wrong": self.wrong}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self.passed, self.failed, self.wrong = (state_dict.get(name, "") for name in ("passed", "failed", "wrong"))


def complaint(fake: torch.Tensor, real: torch.Tensor) -> str:
    """What is wrong with outputs beside the real images, both (n, 3, h, w) from -1 to 1; empty if nothing is."""
    spread, wanted = (float(images.std((0, 2, 3)).mean()) for images in (fake, real))
    if spread < LEAST_SPREAD * wanted:
        return (
            f"the outputs are almost of one colour (their spread is {spread:.3g}, that of the real images {wanted:.3g})"
        )
    distance = float((fake.mean((0, 2, 3)) - real.mean((0, 2, 3))).abs().mean())
    if distance > FARTHEST:
        return f"the mean colour of the outputs is {distance:.2g} from the real one, where black to white is 2"
    shared = float(torch.minimum(_histogram(fake), _histogram(real)).sum())
    if shared < LEAST_SHARED:
        return f"the outputs share {shared:.0%} of their colours with the real images"
    return ""


def _histogram(images: torch.Tensor) -> torch.Tensor:
    """Part of the pixels in each of 8 x 8 x 8 colours, smoothed by their neighbours.

    A slight shift is no other colour.
    """
    bins = ((images.clamp(-1, 1) + 1) * 3.9999).long()
    index = (bins[:, 0] * 64 + bins[:, 1] * 8 + bins[:, 2]).flatten()
    counts = torch.bincount(index, minlength=512).float().reshape(1, 1, 8, 8, 8)
    smooth = torch.nn.functional.avg_pool3d(counts, 3, stride=1, padding=1).flatten()
    return smooth / smooth.sum().clamp_min(1e-9)


class Record(lightning.Callback):
    """Writes the mean losses of each epoch and, on validation tiles, scores and pictures that a person can look at.

    Parameters
    ----------
    folder
        ``metrics.csv`` and ``images/epoch_0001.png`` are written there; None to keep the figures alone.
    validation
        Tiles; None for none.
    images_every
        Epochs.
    """

    def __init__(self, folder: Path | None, validation: Pairs | None, images_every: int) -> None:
        self.folder, self.validation, self.images_every = folder, validation, images_every
        self.rows: list[dict[str, float]] = []
        self._sums: dict[str, list[float]] = {}

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Take down the losses."""
        for name, value in outputs["parts"].items():
            self._sums.setdefault(name, []).append(float(value))

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Add a row and, every so many epochs, a picture."""
        epoch = trainer.current_epoch + 1
        row: dict[str, float] = {"epoch": epoch, "step": pl_module.step}
        row |= {name: float(np.mean(values)) for name, values in self._sums.items()}
        self._sums = {}
        if self.validation is not None and len(self.validation):
            seen, fake, real = validated(pl_module, self.validation)
            row |= _scores(fake, real)
            if self.folder is not None and self.images_every and epoch % self.images_every == 0:
                _picture(seen, fake, real, self.folder / "images" / f"epoch_{epoch:04d}.png")
        self.rows.append(row)
        logger.info(
            "Epoch %d of %d: %s.",
            epoch,
            trainer.max_epochs,
            ", ".join(f"{k} {v:.4g}" for k, v in row.items() if k != "epoch"),
        )
        if self.folder is not None:
            _append(self.folder / FIGURES, row)

    def state_dict(self) -> dict[str, Any]:
        """The figures so far."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self.rows = list(state_dict["rows"])


class KeepLast(Checkpoint):
    """Writes a checkpoint and the model at the end of each epoch, in place of those before.

    Where the last check found the outputs wrong, what is kept is left: a collapse shall not take the place of what was
    good. The end of a training is kept in any case.

    Parameters
    ----------
    path
        Of the checkpoint; the model lies beside it.
    facts
        Plain values that say what the training is of.
    sanity
        What checks the outputs.
    model
        Gives the model as it is.
    """

    def __init__(self, path: Path, facts: dict[str, Any], sanity: Sanity, model: Callable[[], Translator]) -> None:
        self.path, self.facts, self.sanity, self.model = path, facts, sanity, model

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Write them."""
        if self.sanity.failed and trainer.current_epoch + 1 < trainer.max_epochs:
            logger.warning("Epoch %d is not kept: %s.", trainer.current_epoch + 1, self.sanity.wrong)
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        trainer.save_checkpoint(partial)
        partial.replace(self.path)
        folder, fresh, old = (self.path.with_name(f"{MODEL}{end}") for end in ("", ".partial", ".old"))
        with pl_module.averaged():
            self.model().save(fresh)
        shutil.rmtree(old, ignore_errors=True)
        try:
            if folder.exists():
                folder.replace(old)
            fresh.replace(folder)
        except OSError as error:  # someone has it open, where that matters; the checkpoint is there
            logger.warning("The model of epoch %d is not in place: %s.", trainer.current_epoch + 1, error)
        shutil.rmtree(old, ignore_errors=True)

    def state_dict(self) -> dict[str, Any]:
        """What the training is of."""
        return self.facts


def validated(module: Translation, pairs: Pairs) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Input, output and real tiles of up to 64 validation pairs, spread over all."""
    rows = np.unique(np.linspace(0, len(pairs) - 1, min(SCORED, len(pairs))).astype(int))
    made, seen, real = [], [], []
    with module.averaged() as generator, torch.inference_mode():
        for start in range(0, len(rows), module.training_config.batch_size):
            part = rows[start : start + module.training_config.batch_size]
            inputs, targets = pairs.read(part, None)
            images, _, codes = module.tensors(inputs, targets, [pairs.prompts[row] for row in part])
            with module.trainer.precision_plugin.forward_context():
                made.append(as_tiles(module.translate(generator, images, module.vectors_of(codes), None)))
            seen.append(inputs)
            real.append(targets)
    return np.concatenate(seen), np.concatenate(made), np.concatenate(real)


def _scores(fake: np.ndarray, real: np.ndarray) -> dict[str, float]:
    from sthist.metrics import image

    return {f"validation_{name}": float(np.mean(getattr(image, name)(fake, real))) for name in ("mse", "psnr", "ssim")}


def _picture(seen: np.ndarray, fake: np.ndarray, real: np.ndarray, path: Path) -> None:
    """One row per tile: input, output, real."""
    from PIL import Image

    chosen = np.linspace(0, len(seen) - 1, min(SHOWN, len(seen))).astype(int)
    rows = [np.concatenate([seen[i], fake[i], real[i]], 1) for i in chosen]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(rows)).save(path)


def _append(path: Path, row: dict[str, float]) -> None:
    """Add a row to a csv file; rows of epochs that are done again are replaced."""
    rows: list[dict[str, Any]] = []
    if path.exists():
        with path.open(newline="") as file:
            rows = [each for each in csv.DictReader(file) if int(each["epoch"]) < row["epoch"]]
    rows.append(row)
    names = list(dict.fromkeys(name for each in rows for name in each))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
