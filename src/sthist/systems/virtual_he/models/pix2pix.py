"""The conditional GAN that every paper on virtual staining compares with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from sthist._disk import written_whole
from sthist.systems.virtual_he.config import TranslationConfig
from sthist.systems.virtual_he.translator import WEIGHTS, Translator

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import nn


@dataclass(frozen=True)
class Pix2PixConfig(TranslationConfig):
    """What a :class:`Pix2Pix` is, but for its weights; beside the fields of every translation:

    Attributes
    ----------
    width, max_width, depth
        Channels of the first level, the most of any, and number of levels; sides are multiples of ``2 ** depth``.
    dropout
        In the innermost levels of the decoder, in training.
    norm
        ``"batch"``, ``"instance"`` or ``"none"``.
    seed
        Of the first weights.
    """

    size_um: float = 64.0
    px: int = 128
    width: int = 32
    max_width: int = 256
    depth: int = 6
    dropout: float = 0.5
    norm: str = "instance"
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.px % 2**self.depth:
            step = 2**self.depth
            below = max(1, self.px // step) * step
            raise ValueError(
                f"A tile of {self.px} px does not go through {self.depth} levels: its side has to be a multiple of "
                f"{step}, such as {below} or {below + step}."
            )


class Pix2Pix(Translator):
    """U-Net and patch discriminator (Isola et al. 2017), as a baseline; it takes no prompts.

    Parameters
    ----------
    config
        Sizes. The default is a quarter of the paper's width and trains on a CPU; ``width=64, max_width=512, depth=8,
        norm="batch"`` is the paper's.

    References
    ----------
    Isola, Zhu, Zhou and Efros 2017, "Image-to-image translation with conditional adversarial networks".

    Examples
    --------
    >>> import numpy as np, sthist
    >>> config = sthist.models.Pix2PixConfig(size_um=32, px=64, width=4, max_width=8, depth=3)
    >>> model = sthist.models.Pix2Pix(config)
    >>> model.predict(np.full((2, 64, 64, 3), 9, np.uint8)).shape
    (2, 64, 64, 3)
    """

    system: ClassVar[str] = "pix2pix"
    config_class: ClassVar[type] = Pix2PixConfig
    config: Pix2PixConfig
    takes_prompts: ClassVar[bool] = False
    default_training: ClassVar[dict[str, Any]] = {
        "losses": "pix2pix",
        "discriminator": "patch",
        "perceptual": "structural",
        "lr": 2e-4,
        "lr_discriminator": 2e-4,
        "beta1": 0.5,
        "weight_decay": 0.0,
        "clip_norm": 1e3,
        "sample_posterior": False,
    }

    def __init__(self, config: Pix2PixConfig | None = None) -> None:
        import torch

        from sthist.nets import Pix2Pix as Network

        super().__init__(config)
        names = ("width", "max_width", "depth", "dropout", "norm")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            self.generator = Network(self.config.in_channels, **{name: getattr(self.config, name) for name in names})

    def trainable(self) -> nn.Module:
        """The U-Net."""
        return self.generator

    def generate(
        self, generator: nn.Module, images: torch.Tensor, prompts: torch.Tensor | None, noise: torch.Tensor | None
    ) -> torch.Tensor:
        """What it says of images; there are no prompts and no noise."""
        return generator(images)

    def prompt_vectors(self, prompts: Sequence[str]) -> None:
        """None: it takes no prompts."""

    def state(self) -> dict[str, torch.Tensor]:
        """All weights."""
        return self.generator.state_dict()

    def save(self, folder: str | Path) -> None:
        """Write ``config.json`` and ``model.safetensors``.

        Parameters
        ----------
        folder
            Where to; is made.
        """
        from safetensors.torch import save_file

        state = {name: value.contiguous() for name, value in self.state().items()}
        with written_whole(Path(folder) / WEIGHTS) as partial:
            save_file(state, partial)
            super().save(folder)  # they take their places together

    @classmethod
    def _from_folder(cls, folder: Path, config: dict[str, Any]) -> Pix2Pix:
        from sthist import _weights

        model = cls(Pix2PixConfig(**config))
        path = folder / WEIGHTS
        _weights.load_into(model.generator, _weights.read(path), path)
        model._read_along(folder)
        return model
