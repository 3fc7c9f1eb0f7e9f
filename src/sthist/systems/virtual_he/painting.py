"""Amounts of stains and the colours that they have: what a model with ``target="stains"`` says, and how it is shown."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist.pp import StainReference
from sthist.pp._stain_normalize.normalizer import with_residual
from sthist.systems.virtual_he.config import require_two_stains

if TYPE_CHECKING:
    import torch

MOST, MOST_RESIDUAL = 1.5, 0.4
"""What the value 1 of an output stands for: times the strength of a stain, and optical density at right angles to both;
-1 is no stain, and as much residual the other way."""

PER_MEAN = 3.0
"""Strength of eosin, in its mean amount: in ten sections of breast, 2.4 to 3.3 times that is the 99th percentile."""


def colours_of(reference: Any, *, seed: int | None = None) -> StainReference:
    """The stains of a slide: a reference, the file of one, or an image that is measured.

    Raises
    ------
    ValueError
        If the image shows one stain alone, or the reference is of another method.
    """
    if isinstance(reference, str | Path):
        reference = StainReference.load(reference)
    if not isinstance(reference, StainReference):
        data, image = reference if isinstance(reference, tuple) else (reference, None)
        reference = StainReference.fit(data, image, seed=seed)
    require_two_stains(reference)
    return reference


def density_matrix(reference: StainReference) -> np.ndarray:
    """Optical densities (red, green, blue) of a haematoxylin and an eosin of full strength, and of the residual.

    Haematoxylin is as strong as in the nuclei, its 99th percentile. That of eosin may be blood or collagen, which few
    sections have alike, so its strength follows from the mean where that is known.
    """
    assert reference.amounts is not None
    haematoxylin, eosin = reference.amounts
    if reference.mean_amounts is not None:
        eosin = PER_MEAN * reference.mean_amounts[1]
    return with_residual(reference.stains) * np.array([haematoxylin, eosin, 1.0])[:, None]


class Restain:
    """Gives tiles of one slide the stains of another, glass included; the residual stays as it is.

    Other than :class:`sthist.pp.StainNormalizer` it changes whatever is there in proportion, also where next to
    nothing is: amounts are to be read off its tiles.

    ``source``: of the slide; ``reference``: whose stains it gets.
    """

    def __init__(self, source: StainReference, reference: StainReference) -> None:
        for each in (source, reference):
            require_two_stains(each)
        self.source, self.reference = source, reference
        self._change = (np.linalg.inv(density_matrix(source)) @ density_matrix(reference)).astype(np.float32)
        levels = np.maximum(np.arange(256, dtype=np.float32), 1)
        self._density = -np.log(levels / np.array(source.white, np.float32)[:, None])

    def __call__(self, tiles: np.ndarray) -> np.ndarray:
        """Tiles (n, h, w, 3) of uint8 in the other colours."""
        seen = np.stack([self._density[k][tiles[..., k]] for k in range(3)], -1)
        made = np.exp(-(seen @ self._change)) * np.array(self.reference.white, np.float32)
        return np.rint(made.clip(0, 255)).astype(np.uint8)


def painted(amounts: torch.Tensor, reference: StainReference) -> torch.Tensor:
    """Images (n, 3, h, w) from -1 to 1 of what a generator says of stains, (n, 3, h, w) from -1 to 1."""
    import torch

    with torch.autocast(amounts.device.type, enabled=False):
        amounts = amounts.float()
        matrix = torch.tensor(density_matrix(reference), dtype=torch.float32, device=amounts.device)
        white = torch.tensor(reference.white, dtype=torch.float32, device=amounts.device) / 255
        stains = torch.cat([(amounts[:, :2] + 1) * (MOST / 2), amounts[:, 2:] * MOST_RESIDUAL], 1)
        seen = white[:, None, None] * torch.exp(-torch.einsum("nkhw,kc->nchw", stains, matrix))
        return 2 * seen.clamp(0, 1) - 1
