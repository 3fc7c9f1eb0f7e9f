"""CLIP, the baseline of the GenST paper: the same autoencoders, tied by a contrastive loss alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sthist.systems.expression.models.genst import GenST, GenSTConfig


@dataclass(frozen=True)
class CLIPConfig(GenSTConfig):
    """Settings of :class:`CLIP`: those of :class:`GenST`.

    The terms of the loss are ``"image"``, ``"genes"`` and ``"contrast"``, of weight 1. ``activation="unit"`` ties the
    length of a tile's coefficients to that of the genes', which the published baseline leaves free.
    """

    terms: ClassVar[tuple[str, ...]] = ("image", "genes", "contrast")


class CLIP(GenST):
    """GenST's autoencoders whose coefficients are brought together by InfoNCE; prediction is by swapping them.

    Parameters
    ----------
    config
        Settings.
    weights
        Of a trained model.

    Examples
    --------
    >>> import numpy as np, sthist
    >>> rng = np.random.default_rng(0)
    >>> tiles = rng.integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    >>> config = sthist.models.CLIPConfig(
    ...     backbone="resnet10t", pretrained=False, n_atoms=8, hidden=(16,), image_hidden=(8, 8, 4, 4, 4)
    ... )
    >>> model = sthist.models.CLIP(config).fit(tiles, rng.random((8, 5)), training={"epochs": 1, "batch_size": 4})
    >>> model.predict(tiles).shape
    (8, 5)
    """

    system: ClassVar[str] = "clip"
    config_class: ClassVar[type] = CLIPConfig
    config: CLIPConfig
    network: ClassVar[str] = "CLIP"
