"""What a C2L-ST model and its adapter are, but for their weights, and how they are trained."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self

from sthist.pp import StainReference
from sthist.tiles import TileSpec
from sthist.training.options import Training


@dataclass(frozen=True)
class C2LConfig:
    """What the central model of a :class:`C2L` is, but for its weights. It says nothing of local data.

    Attributes
    ----------
    size_um, px
        Tissue that a tile shows, and pixels that it is sampled to: a multiple of 2 for each level but the first.
    dim
        Channels of the U-Net at full resolution; even.
    multipliers
        Channels of each of its levels, in units of ``dim``.
    stain
        Values of a :class:`sthist.pp.StainReference` that slides are normalised to, for the central model and for
        adapters alike; None to take them as they are.
    training
        How it was trained; plain values.

    Examples
    --------
    >>> import sthist
    >>> sthist.models.C2LConfig().spec, sthist.models.C2LConfig.small().px
    (TileSpec(size_um=112.0, px=128), 64)
    """

    size_um: float = 112.0
    px: int = 128
    dim: int = 64
    multipliers: tuple[int, ...] = (1, 2, 4, 8)
    stain: dict[str, Any] | None = None
    training: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.multipliers or not all(isinstance(each, int) and each >= 1 for each in self.multipliers):
            raise ValueError(f"multipliers is {self.multipliers!r}; it is whole numbers from 1 on, one for each level.")
        object.__setattr__(self, "multipliers", tuple(self.multipliers))
        if not (isinstance(self.dim, int) and self.dim >= 4 and self.dim % 2 == 0):
            raise ValueError(f"dim is {self.dim!r}; an even number from 4 on is needed.")
        if self.px % (step := 2 ** (len(self.multipliers) - 1)):
            raise ValueError(
                f"px is {self.px}; {len(self.multipliers)} levels, each of half the pixels of the one before, need a "
                f"multiple of {step}."
            )
        TileSpec(self.size_um, self.px)  # its checks
        if self.stain is not None:
            StainReference.from_dict(self.stain)

    @classmethod
    def paper(cls, **changes: Any) -> Self:
        """The published shape, of 35.7 million parameters, with changes."""
        return cls(**changes)

    @classmethod
    def small(cls, **changes: Any) -> Self:
        """A shape for minutes of an accelerator, of 2.6 million parameters; with ``px=32, dim=16`` for a CPU."""
        return cls(**{"px": 64, "dim": 32, "multipliers": (1, 2, 4), **changes})

    @property
    def spec(self) -> TileSpec:
        """The tiles that it makes."""
        return TileSpec(self.size_um, self.px)


@dataclass(frozen=True)
class C2LAdapterConfig:
    """What the adapter of a :class:`C2L` is, but for its weights; a part of its file.

    Attributes
    ----------
    genes
        The genes that it listens to, in their order.
    mean, std
        Of the log-normalised expression of each gene over the spots of the adaptation.
    total
        Median over the spots of the sum of their normalised expression, before logarithms were taken.
    expression
        What was normalised, and how.
    latent
        Numbers that expression is projected to.
    where
        The blocks of the U-Net that are modulated: ``"all"``, or ``"mid+up"``.
    central
        Checksum of the weights of the central model that it belongs to.
    training
        How it was trained; plain values.
    """

    genes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    total: float
    expression: str
    latent: int
    where: Literal["all", "mid+up"]
    central: str
    training: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.genes or not len(self.genes) == len(self.mean) == len(self.std) == len(set(self.genes)):
            raise ValueError(
                f"There are {len(self.genes)} genes, {len(set(self.genes))} of different names, {len(self.mean)} means "
                f"and {len(self.std)} standard deviations; there must be as many of each, and one at least."
            )
        if not all(math.isfinite(each) for each in self.mean) or not all(each > 0 for each in self.std):
            raise ValueError("mean holds numbers that are not finite, or std such as are not positive.")
        if self.latent < 1:
            raise ValueError(f"latent is {self.latent!r}; a whole number from 1 on is needed.")


@dataclass(frozen=True)
class DiffusionTraining(Training):
    """How the central model or the adapter of a :class:`C2L` is trained.

    Attributes
    ----------
    epochs, steps_per_epoch, batch_size, accumulate
        An epoch is a fixed number of batches; after each, the training can be resumed. The weights change once in
        ``accumulate`` batches. The paper's "batch 32, accumulation 8" is read as that: 32 tiles at a time, and 256
        between changes.
    lr, weight_decay
        Of AdamW.
    warmup
        Changes of the weights over which the learning rate rises, the first at 1/warmup of it.
    ema
        As of :class:`Training`.
    gamma
        Ratio of signal to noise from which on a time counts less in the loss (min-SNR); None for none.
    drop
        Probability that a tile is seen without its expression, which guidance needs; of adapters alone.

    Examples
    --------
    >>> import sthist
    >>> sthist.models.DiffusionTraining(epochs=2, steps_per_epoch=100).gamma
    5.0
    """

    epochs: int = 20
    steps_per_epoch: int = 250
    lr: float = 1e-4
    weight_decay: float = 1e-4
    ema: float = 0.999
    warmup: int = 0
    gamma: float | None = 5.0
    drop: float = 0.1

    LEAST: ClassVar[dict[str, int]] = {**Training.LEAST, "steps_per_epoch": 1, "warmup": 0}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps_per_epoch % self.accumulate:
            raise ValueError(
                f"steps_per_epoch is {self.steps_per_epoch}, no multiple of accumulate={self.accumulate}: some batches "
                "would be left over."
            )
        if not 0 <= self.drop <= 1:
            raise ValueError(f"drop is {self.drop!r}; it is a probability, from 0 to 1.")
        if self.patience is not None:
            raise ValueError("patience= is for trainings that are validated; diffusion runs for all of its epochs.")

    def _positive(self) -> tuple[str, ...]:
        return (*super()._positive(), "gamma")


CENTRAL: dict[str, dict[str, Any]] = {
    "paper": {"epochs": 200, "steps_per_epoch": 4000, "batch_size": 64, "accumulate": 4},
    "small": {"epochs": 20, "steps_per_epoch": 250, "batch_size": 32, "lr": 5e-4},
}
"""Defaults for a central model by its shape: 200,000 changes of the weights as published, by 256 tiles each."""

LOCAL: dict[str, dict[str, Any]] = {
    "paper": {
        "epochs": 100,
        "steps_per_epoch": 800,
        "batch_size": 32,
        "accumulate": 8,
        "lr": 1e-3,
        "warmup": 300,
    },
    "small": {"epochs": 20, "steps_per_epoch": 100, "batch_size": 32, "lr": 1e-3, "warmup": 60},
}
"""Defaults for an adapter by the shape of its central model: 10,000 changes of the weights as published."""


def shape_of(config: C2LConfig) -> str:
    """Whose defaults are taken: the published shape's, or those of smaller ones."""
    return "paper" if config.dim * max(config.multipliers) >= 512 else "small"
