"""How a model is trained, as one object: what every system shares."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np

from sthist._settings import settings
from sthist._tables.genes import closest

Options = TypeVar("Options", bound="Training")


@dataclass(frozen=True)
class Training:
    """How a model is trained; each system adds fields of its own, and may have other defaults.

    Attributes
    ----------
    epochs
        Number of passes. After each, a training with a folder can be resumed.
    batch_size
        Tiles or rows per step, over all devices together.
    lr, weight_decay
        Learning rate and weight decay of AdamW.
    clip_norm
        Largest norm of the gradients; None for no limit.
    accumulate
        Number of batches whose mean gradient changes the weights once.
    ema
        Decay of the running mean of the weights that is kept in place of the last ones; 0 for none.
    patience
        Number of epochs without a lower validation loss after which training stops, and the best weights are put back;
        None to run all epochs and keep the last.
    checkpoint_gradients
        Compute activations twice in place of keeping them, which saves memory.
    precision
        ``"auto"`` (bf16 on cuda devices that have it, float32 elsewhere), ``"float32"`` or ``"bf16"``. Weights stay in
        32 bits.
    devices, strategy
        Of Lightning's trainer: the number of devices, and how they work together, such as ``"ddp"`` in a script and
        ``"ddp_notebook"`` in a notebook.
    max_time
        Time after which training stops at the end of an epoch: a :class:`datetime.timedelta`, its arguments as a
        mapping, or Lightning's ``"DD:HH:MM:SS"``. With ``resume=True``, the next call has as much again.
    logger
        Loggers of Lightning, such as ``lightning.pytorch.loggers.TensorBoardLogger("logs")``, that also get the
        history.
    resume
        Go on from the checkpoint in the folder, if there is one.
    seed
        Of every draw.

    Examples
    --------
    >>> import sthist
    >>> sthist.models.Training(epochs=3, max_time={"hours": 8}).precision
    'auto'
    """

    epochs: int = 20
    batch_size: int = 32
    lr: float = 1e-3
    weight_decay: float = 1e-2
    clip_norm: float | None = None
    accumulate: int = 1
    ema: float = 0.0
    patience: int | None = None
    checkpoint_gradients: bool = False
    precision: Literal["auto", "float32", "bf16"] = "auto"
    devices: int = 1
    strategy: str = "auto"
    max_time: Any = None
    logger: Any = field(default=None, repr=False, compare=False)
    resume: bool = False
    seed: int = 0

    LEAST: ClassVar[dict[str, int]] = {
        "epochs": 1,
        "batch_size": 1,
        "accumulate": 1,
        "patience": 1,
        "devices": 1,
        "seed": 0,
    }
    """Fields that are whole numbers (or None, where that is the default), and the least of each."""
    CHOICES: ClassVar[dict[str, tuple[str, ...]]] = {"precision": ("auto", "float32", "bf16")}
    UNSAVED: ClassVar[tuple[str, ...]] = ("devices", "strategy", "max_time", "logger", "resume")
    """Fields of one run, which a saved model does not tell."""
    MAY_DIFFER: ClassVar[tuple[str, ...]] = ("epochs", "patience", "checkpoint_gradients", "precision")
    """Fields that may change when a training is resumed, elsewhere or with less memory."""

    def __post_init__(self) -> None:
        make_plain(self)
        for name, least in self.LEAST.items():
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < least):
                raise ValueError(f"{name} is {value!r}; a whole number from {least} on is needed.")
        for name in self._positive():
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} is {value!r}; a positive number is needed.")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema is {self.ema!r}; a decay from 0 (none) to less than 1 is needed.")
        for name, known in self.CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it is one of {list(known)}.")
        if self.batch_size is not None and self.batch_size % self.devices:
            raise ValueError(
                f"batch_size is {self.batch_size}, and cannot be shared evenly among devices={self.devices}."
            )

    def _positive(self) -> tuple[str, ...]:
        return ("lr", "clip_norm")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a saved model: without what is of one run alone."""
        names = [each.name for each in dataclasses.fields(self) if each.name not in self.UNSAVED]
        return {name: getattr(self, name) for name in names}

    def identity(self) -> dict[str, Any]:
        """What determines the weights: a checkpoint of a training with other values is not resumed."""
        return {name: value for name, value in self.to_dict().items() if name not in self.MAY_DIFFER}


def as_training(
    kind: type[Options], training: Options | Mapping[str, Any] | None, defaults: Mapping[str, Any]
) -> Options:
    """Options as an object: what is given, or a mapping of some fields over the defaults of a model.

    Raises
    ------
    TypeError
        If there is no such field; those that exist are named.
    """
    if isinstance(training, kind):
        return training
    if training is not None and not isinstance(training, Mapping):
        raise TypeError(f"training= is a {kind.__name__} or a mapping of its fields, not a {type(training).__name__}.")
    fields = [each.name for each in dataclasses.fields(kind)]
    for name in training or {}:
        if name not in fields:
            raise TypeError(
                f"There is no setting {name!r} of a training; there are {sorted(fields)}.{closest(name, fields)}"
            )
    return kind(**{"seed": settings.seed, **defaults, **(training or {})})


def make_plain(options: Any) -> None:
    """Numbers of numpy and paths as plain values: the fields of a frozen dataclass go into a JSON file."""
    for each in dataclasses.fields(options):
        value = getattr(options, each.name)
        if isinstance(value, np.generic):
            value = value.item()
        elif isinstance(value, Path):
            value = str(value)
        object.__setattr__(options, each.name, value)
