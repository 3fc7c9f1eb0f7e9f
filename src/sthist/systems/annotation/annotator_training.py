"""How Lightning trains the annotator, and weights as arrays."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import lightning
import numpy as np
import torch

from sthist.systems.annotation.networks import Net, prepared
from sthist.training.trainer import quiet_and_repeatable, where

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from torch import nn

LEAST_GAIN = 1e-4
"""A validation loss that falls by less has not fallen."""


class Epochs:
    """An iterable that knows how often it was gone through.

    Parameters
    ----------
    batches
        From the number of an epoch to its batches.
    """

    def __init__(self, batches: Callable[[int], Iterable[Any]]) -> None:
        self.batches, self.epoch = batches, 0

    def __iter__(self) -> Iterator[Any]:
        epoch, self.epoch = self.epoch, self.epoch + 1
        return iter(self.batches(epoch))


class KeepBest(lightning.Callback):
    """Stops when the watched loss has not fallen for some epochs, and puts the best weights back.

    Parameters
    ----------
    patience
        Epochs.
    """

    def __init__(self, patience: int) -> None:
        self.patience, self.best, self.epoch = patience, math.inf, 0
        self.state: dict[str, Any] | None = None

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Look at the loss of the epoch."""
        if pl_module.watched_loss < self.best - LEAST_GAIN:
            self.best, self.epoch = pl_module.watched_loss, trainer.current_epoch
            self.state = {name: value.detach().cpu().clone() for name, value in pl_module.state_dict().items()}
        elif trainer.current_epoch - self.epoch >= self.patience:
            trainer.should_stop = True

    def restore(self, net: Any) -> None:
        """Put the best weights back, if there are any."""
        if self.state is not None:
            net.load_state_dict(self.state)


def train(
    net: Callable[[], Net],
    batches: Epochs,
    watched: Epochs | None,
    *,
    epochs: int,
    patience: int,
    device: str,
    seed: int,
    threads: int | None = None,
) -> tuple[Net, dict[str, Any]]:
    """Train a network with Lightning; nothing is logged or written.

    Returns the network, on the CPU, in evaluation mode, with the weights of the best epoch; and which that was.
    """
    keep = KeepBest(patience)
    with quiet_and_repeatable(seed, threads):
        made = net()
        trainer = lightning.Trainer(
            **where(device),
            max_epochs=epochs,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            callbacks=[keep],
        )
        trainer.fit(made, batches, watched)
        keep.restore(made)
    best = keep.epoch + 1 if watched is not None else trainer.current_epoch
    loss = keep.best if watched is not None else math.nan
    return made.cpu().eval(), {"epochs": best, "validation_loss": None if math.isnan(loss) else loss}


def embed_with(module: nn.Module, transform: Any, device: str | None = None) -> Callable[[np.ndarray], np.ndarray]:
    """A function from tiles to embeddings, of a module that is trained no more."""
    module = module.eval() if device is None else module.eval().to(device)
    where = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))

    def embed(tiles: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            images = prepared(torch.from_numpy(np.array(tiles)).to(where), transform)
            return module(images).float().cpu().numpy()

    return embed


def state_of(module: nn.Module) -> dict[str, np.ndarray]:
    """Weights of a module as arrays."""
    return {
        name: (value.float() if value.is_floating_point() else value).detach().cpu().numpy().copy()
        for name, value in module.state_dict().items()
    }


def state_from(module: nn.Module, state: dict[str, np.ndarray]) -> None:
    """Put weights into a module."""
    try:
        module.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in state.items()})
    except RuntimeError as error:
        msg = f"The encoder has another architecture than the one that was trained: {str(error)[:300]}"
        raise ValueError(msg) from None
