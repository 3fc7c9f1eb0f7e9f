"""A network that predicts numbers, as the engine trains it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch

from sthist.training.module import TrainingModule
from sthist.training.options import Training

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import nn

    from sthist.regression.data.inputs import Batch, Inputs
    from sthist.regression.data.targets import Targets


@dataclass(frozen=True)
class RegressionTraining(Training):
    """How a predictor of numbers is trained.

    Attributes
    ----------
    optimizer
        ``"adamw"``, ``"radam"``, ``"adam"`` or ``"sgd"`` (momentum 0.9).
    lr_end
        Learning rate of the last epoch, to which that of the first falls as a cosine; None to leave it.
    drop_last
        Leave out the last batch of an epoch where it is smaller, which batch normalisation and contrastive losses ask
        for.
    """

    optimizer: Literal["adamw", "radam", "adam", "sgd"] = "adamw"
    lr_end: float | None = None
    drop_last: bool = False

    CHOICES: ClassVar[dict[str, tuple[str, ...]]] = {
        **Training.CHOICES,
        "optimizer": ("adamw", "radam", "adam", "sgd"),
    }

    def _positive(self) -> tuple[str, ...]:
        return (*super()._positive(), "lr_end")


@dataclass(frozen=True, eq=False)
class Feed:
    """What a network is trained on."""

    inputs: Inputs
    targets: Targets
    rows: np.ndarray  # that train
    watched: np.ndarray  # that validate; empty for none
    # How tiles become what the network takes: (n, px, px, 3) uint8 on the device to (n, 3, h, w) float32.
    transform: Callable[[Any], Any] | None = None
    # Further augmentation of a batch that trains, by its rows, the seed and the epoch.
    augment: Callable[[dict[str, Any], np.ndarray, int, int], dict[str, Any]] | None = None


class RegressionModule(TrainingModule):
    """A network with ``losses(batch, targets, mask)``, whose term ``"loss"`` is minimised.

    The same says when to stop, or the network's ``validation_loss`` if it has one.
    """

    options: RegressionTraining

    def __init__(self, net: nn.Module, feed: Feed, options: RegressionTraining, px: int | None = None) -> None:
        super().__init__(options)
        self.net, self.feed, self.px = net, feed, px
        self._sums = torch.zeros(2, dtype=torch.float64)

    def kept(self) -> nn.Module:
        """The network."""
        return self.net

    def rows_of_step(self, batch_size: int) -> int:
        """Rows of a batch, with those that are there for others' sake."""
        return self.feed.inputs.rows_at_once(batch_size)

    def batches(self, epoch: int, device: int, n_devices: int) -> Iterable[Any]:
        """Rows and what belongs to them; of several devices, each has its share of each batch."""
        size, seed, drop_last = self.options.batch_size, self.options.seed, self.options.drop_last
        for rows, batch in self.feed.inputs.shuffled(self.feed.rows, size, seed, epoch):
            if drop_last and len(rows) < min(size, len(self.feed.rows)):
                continue
            yield self._tensors(*self.feed.inputs.share(rows, batch, device, n_devices)), epoch

    def validation_batches(self, device: int, n_devices: int) -> Iterable[Any]:
        """The rows that validate, all on each device."""
        if not len(self.feed.watched):
            return []
        found = self.feed.inputs.watched(self.feed.watched, self.options.batch_size)
        return ((self._tensors(rows, batch), -1) for rows, batch in found)

    def training_step(self, batch: Any, index: int) -> Any:
        """The loss of a batch."""
        (rows, arrays, targets, mask), epoch = batch
        arrays = on_device(arrays, self.device, self.feed.transform)
        if self.feed.augment is not None:
            arrays = self.feed.augment(arrays, rows.cpu().numpy(), self.options.seed, epoch)
        self.terms = self.net.losses(arrays, targets, mask)  # type: ignore[operator]
        loss = self.terms["loss"]
        self.terms = {name: term.detach() for name, term in self.terms.items()}
        return loss

    def trial_step(self, batch_size: int, px: int | None) -> None:
        """Forward and backward pass on the first rows, tiles black and of the size that is asked for."""
        batch_size = self.rows_of_step(batch_size)
        rows = np.resize(self.feed.rows, batch_size)
        _, arrays, targets, mask = self._tensors(rows, self.feed.inputs.trial(rows))
        if "tiles" in arrays and px:
            arrays["tiles"] = torch.zeros(batch_size, px, px, 3, dtype=torch.uint8)
        arrays = on_device(arrays, self.device, self.feed.transform)
        mask = None if mask is None else mask.to(self.device)
        self.net.losses(arrays, targets.to(self.device), mask)["loss"].backward()  # type: ignore[operator]

    def on_validation_epoch_start(self) -> None:
        """Begin the sums anew."""
        self._sums.zero_()

    def validation_step(self, batch: Any, index: int) -> None:
        """Add the loss of a batch."""
        (_, arrays, targets, mask), _ = batch
        arrays = on_device(arrays, self.device, self.feed.transform)
        own: Any = getattr(self.net, "validation_loss", None)
        loss = self.net.losses(arrays, targets, mask)["loss"] if own is None else own(arrays, targets, mask)  # type: ignore[operator]
        n = int(arrays["counted"].sum()) if "counted" in arrays else len(targets)
        self._sums += torch.tensor([float(loss) * n, n], dtype=torch.float64)

    def on_validation_epoch_end(self) -> None:
        """Log the mean."""
        self.log("validation_loss", self._sums[0] / self._sums[1])

    def configure_optimizers(self) -> Any:
        """The optimiser and, if the learning rate is to fall, its schedule."""
        options: Any = self.options
        parameters = [each for each in self.net.parameters() if each.requires_grad]
        kinds: dict[str, Any] = {
            "adamw": torch.optim.AdamW,
            "radam": torch.optim.RAdam,
            "adam": torch.optim.Adam,
            "sgd": torch.optim.SGD,
        }
        momentum = {"momentum": 0.9} if options.optimizer == "sgd" else {}
        kind = kinds[options.optimizer]
        optimizer = kind(parameters, lr=options.lr, weight_decay=options.weight_decay, **momentum)
        if options.lr_end is None:
            return optimizer
        epochs = max(options.epochs - 1, 1)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs, options.lr_end)]

    def _tensors(self, rows: np.ndarray, batch: Batch) -> tuple[Any, dict[str, Any], Any, Any]:
        mask = self.feed.targets.mask(rows)
        return (
            torch.from_numpy(rows),
            {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in batch.items()},
            torch.from_numpy(self.feed.targets.dense(rows)),
            None if mask is None else torch.from_numpy(mask),
        )


def on_device(arrays: dict[str, Any], device: Any, transform: Callable[[Any], Any] | None) -> dict[str, Any]:
    """A batch as a network takes it."""
    arrays = {name: values.to(device) for name, values in arrays.items()}
    if "tiles" in arrays and transform is not None:
        arrays["tiles"] = transform(arrays["tiles"])
    return arrays
