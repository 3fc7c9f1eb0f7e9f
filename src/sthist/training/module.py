"""What a system hands to the engine: a LightningModule that knows its batches and what of it is kept."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import lightning
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from sthist.training.options import Training

STEP, OLD = "step", "sthist"


class EachEpoch:
    """Batches that are made anew whenever they are gone through."""

    def __init__(self, batches: Callable[[], Iterable[Any]]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches())

    def __len__(self) -> int:
        return len(self.batches())  # type: ignore[arg-type]


class TrainingModule(lightning.LightningModule, ABC):
    """Base of what the engine trains.

    Batches, augmentation and noise are functions of seed, epoch and place, so that a training that is resumed at the
    end of an epoch goes on as if it had not been stopped. A subclass gives batches and a training step, which puts the
    terms of its loss into ``terms``.

    Attributes
    ----------
    options
        How it is trained.
    step
        Number of batches that it was trained on.
    terms
        Terms of the last batch's loss, by name.
    best
        Epoch with the lowest validation loss, whose weights were put back, and that loss; None where none is known.
    px
        Side of the tiles; None where it is trained on other things.
    """

    px: int | None = None

    def __init__(self, options: Training) -> None:
        super().__init__()
        self.strict_loading = False
        self.options = options
        self.step = 0
        self.epoch_to_come = 0  # Lightning makes batches before it counts the epoch, where a training is resumed
        self.terms: dict[str, Any] = {}
        self.average: Any = None
        self.best: tuple[int, float] | None = None

    @abstractmethod
    def batches(self, epoch: int, device: int, n_devices: int) -> Iterable[Any]:
        """Batches of an epoch, or the share of each that one of several devices has."""

    def validation_batches(self, device: int, n_devices: int) -> Iterable[Any]:
        """Batches that the validation loss is of; none by default."""
        return []

    def kept(self) -> nn.Module:
        """The part that is trained and kept, of which the running mean is."""
        return self

    @abstractmethod
    def trial_step(self, batch_size: int, px: int | None) -> None:
        """Forward and backward pass on noise of some size, to see what fits into memory."""

    def rows_of_step(self, batch_size: int) -> int:
        """Tiles or rows that a step goes through at most, where its batch is of so many."""
        return batch_size

    def start_average(self) -> None:
        """Keep a running mean of the weights from here on, if the options ask for one."""
        if self.options.ema:
            self.average = AveragedModel(self._parameters_kept(), avg_fn=self._averaged_weight)
            self.average.requires_grad_(False)
            self.average.n_averaged.fill_(1)  # it begins with the weights that it was just given

    def train_dataloader(self) -> Iterable[Any]:
        """The batches of the epoch."""
        return EachEpoch(lambda: self.batches(self.epoch_to_come, self.global_rank, self.trainer.world_size))

    def val_dataloader(self) -> Iterable[Any]:
        """The batches that the validation loss is of; Lightning takes an empty list for none."""
        batches = self.validation_batches(self.global_rank, self.trainer.world_size)
        if isinstance(batches, list) and not batches:
            return batches
        return EachEpoch(lambda: self.validation_batches(self.global_rank, self.trainer.world_size))

    def after_batch(self, batch_idx: int) -> None:
        """Count a batch, and add the weights to their mean."""
        self.step += 1
        if self.average is not None and (batch_idx + 1) % self.options.accumulate == 0:
            self.average.update_parameters(self._parameters_kept())

    @contextmanager
    def averaged(self) -> Iterator[nn.Module]:
        """The kept part in evaluation mode, with the running mean of its weights if there is one."""
        kept = self.kept()
        own = list(self._parameters_kept().parameters())
        last = [each.detach().clone() for each in own] if self.average is not None else []
        training = kept.training
        try:
            self._copy(self.average.module.parameters() if self.average is not None else [], own)
            yield kept.eval()
        finally:
            self._copy(last, own)
            kept.train(training)

    def keep_average(self) -> None:
        """Put the running mean in place of the last weights."""
        if self.average is not None:
            self._copy(self.average.module.parameters(), self._parameters_kept().parameters())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what changes: weights that are frozen are in their own file."""
        frozen = {id(each) for each in self.kept().parameters() if not each.requires_grad}
        names = {n for n, each in self.named_parameters() if id(each) in frozen and not n.startswith("average.")}
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k not in names}
        checkpoint[OLD] = {STEP: self.step}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on from there; the mean of the weights was kept by name before it was torch's."""
        self.step, self.epoch_to_come = int(checkpoint[OLD][STEP]), int(checkpoint["epoch"]) + 1
        averages = checkpoint[OLD].get("averages")
        if averages and self.average is not None:
            state = {f"average.module.{place}": value for place, value in enumerate(averages.values())}
            checkpoint["state_dict"] |= state | {
                "average.n_averaged": torch.tensor(self.step // self.options.accumulate + 1)
            }

    def _parameters_kept(self) -> nn.ParameterList:
        """The parameters that are trained and kept; those of a frozen backbone need no mean."""
        return nn.ParameterList([each for each in self.kept().parameters() if each.requires_grad])

    def _averaged_weight(
        self, mean: torch.Tensor, weight: torch.Tensor, n_averaged: torch.Tensor | int
    ) -> torch.Tensor:
        # A short memory at first, so that the mean is not of weights that had learned nothing.
        n = int(n_averaged) - 1
        return mean.lerp(weight, 1 - min(self.options.ema, (1 + n) / (10 + n)))

    @staticmethod
    @torch.no_grad()
    def _copy(values: Iterable[torch.Tensor], into: Iterable[Any]) -> None:
        for value, own in zip(values, into, strict=False):
            own.copy_(value)
