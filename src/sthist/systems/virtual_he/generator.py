"""What makes H&E, in the abstract: a model made ready for a section, and a model whose network is trained on pairs."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from sthist.training.model import Model

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    import torch
    from torch import nn

    from sthist._sample.elements import HighResElements
    from sthist.pp import StainReference
    from sthist.systems.virtual_he.config import TranslationConfig
    from sthist.tiles import TileReader
    from sthist.tiles._images.image import Image


@dataclass(frozen=True)
class PreparedSection:
    """A virtual-staining model made ready for one section."""

    readers: Sequence[TileReader]  # what the model sees of the section, all of one TileSpec
    predict: Callable[..., np.ndarray]  # tiles of each reader to (n, px, px, 3) uint8
    facts: dict[str, Any]  # statistics of the section that determine the result, and what it was made from; JSON values
    overlap: float  # part of a tile's side shared with the next
    concurrent: bool  # ``predict`` may run in several threads at once
    threads: int | None = None  # blocks at a time; None for as many as the machine suggests


class VirtualStainModel(Model):
    """A model that makes H&E out of nuclear stain and molecules."""

    @property
    def device_name(self) -> str:
        """Where it runs."""
        return "cpu"

    @abstractmethod
    def mpp(self, stain: Image) -> float:
        """µm per pixel at which the model works on a section."""

    @abstractmethod
    def prepare(
        self,
        elements: HighResElements,
        stain: Image,
        mpp: float,
        *,
        allow_upsampling: bool,
        seed: int | None = None,
    ) -> PreparedSection:
        """Measure what is needed of a section, once, and return what makes its tiles.

        Parameters
        ----------
        elements
            The section's elements by role.
        stain
            The nuclear stain, opened with all its channels.
        mpp
            µm per pixel of the result.
        allow_upsampling
            Go on where the stain is much coarser than ``mpp``.
        seed
            Of the places at which the stain is measured; ``settings.seed`` by default.

        Raises
        ------
        ValueError
            If no tissue is found, the transcripts do not lie on the stain, or the model works at another ``mpp``.
        """


class GeneratorModel(VirtualStainModel):
    """A model whose network, the generator, is trained on pairs of tiles: what is trained, saved and run of it."""

    config: TranslationConfig  # what it sees, and its prompts
    takes_prompts: ClassVar[bool] = True
    tissue: str | None
    compile: bool

    @abstractmethod
    def trainable(self) -> nn.Module:
        """The generator; gradients reach what is trained of it."""

    @abstractmethod
    def generate(
        self, generator: nn.Module, images: torch.Tensor, prompts: torch.Tensor | None, noise: torch.Tensor | None
    ) -> torch.Tensor:
        """What a generator says of images (n, channels, px, px): three channels from -1 to 1."""

    @abstractmethod
    def translate(
        self, generator: nn.Module, images: torch.Tensor, prompts: torch.Tensor | None, noise: torch.Tensor | None
    ) -> torch.Tensor:
        """Images (n, 3, px, px) from -1 to 1 that a generator makes, in the colours that are asked for."""

    @abstractmethod
    def stain_colours(self) -> StainReference:
        """The colours that amounts of stains are shown in, of a model that says such."""

    @abstractmethod
    def prompt_vectors(self, prompts: Sequence[str]) -> torch.Tensor | None:
        """Embeddings of prompts for the generator; None if it takes none."""

    @abstractmethod
    def state(self) -> dict[str, torch.Tensor]:
        """What training changes."""

    @abstractmethod
    def predict(self, tiles: Any, *, batch_size: int = 16) -> np.ndarray:
        """H&E of tiles, (n, px, px, 3) uint8."""

    @abstractmethod
    def with_prompt(self) -> GeneratorModel:
        """A copy that carries its embedded prompt in place of what embeds prompts."""

    @abstractmethod
    def embedded_prompt(self) -> torch.Tensor | None:
        """The embedded prompt of the tissue; None if the generator takes none."""

    @property
    @abstractmethod
    def version(self) -> int:
        """Number of trainings so far: a network that runs with older weights is not used."""

    @abstractmethod
    def chosen_precision(self) -> str:
        """In what numbers the network computes."""

    def backbone_sha256(self) -> dict[str, str] | None:
        """Checksums of the files that it starts from; None where it starts from nothing."""
        return None

    def inference_network(self) -> nn.Module:
        """A copy of the generator that is only run."""
        return deepcopy(self.trainable())

    def prompt(self) -> str:
        """The prompt of the tissue.

        Raises
        ------
        KeyError
            If the model was trained on several tissues, and none is said.
        """
        return self.config.prompt_of(self.tissue) if self.takes_prompts else ""

    def weights_sha256(self) -> str:
        """Checksum of what training changes."""
        digest = hashlib.sha256()
        for name, value in sorted(self.state().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()
