"""TODO."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sthist.training.model import Model

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np

    from sthist._sample.elements import HighResElements
    from sthist.tiles import TileReader
    from sthist.tiles._images.image import Image


def as_input(tiles: torch.Tensor, low: float) -> torch.Tensor:
    """Tiles (n, h, w, 3) of 8 bits as images (n, 3, h, w) from ``low`` to 1."""
    return tiles.permute(0, 3, 1, 2).float() / (255 / (1 - low)) + low


def as_tiles(images: torch.Tensor) -> np.ndarray:
    """Images (n, 3, h, w) from -1 to 1 as tiles (n, h, w, 3) of 8 bits."""
    rounded = (images.float().clamp(-1, 1) * 127.5 + 127.5).round().to(torch.uint8)
    return rounded.permute(0, 2, 3, 1).cpu().numpy()


@dataclass(frozen=True)
class Stainer:
    """A virtual-staining model made ready for one section.

    Attributes
    ----------
    readers
        What the model sees of the section, all of one TileSpec.
    predict
        Tiles of each reader to (n, px, px, 3) uint8.
    facts
        Statistics of the section that determine the result, and what it was made from; JSON values.
    overlap
        Part of a tile's side shared with the next.
    concurrent
        ``predict`` may run in several threads at once.
    threads
        Blocks at a time; None for as many as the machine suggests.
    """

    readers: Sequence[TileReader]
    predict: Callable[..., np.ndarray]
    facts: dict[str, Any]
    overlap: float
    concurrent: bool
    threads: int | None = None


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
    ) -> Stainer:
        """Measure what is needed of a section, once, and return what makes its tiles."""
