"""Several encoders side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sthist._sample.elements import safe_key
from sthist.encoders._encoder import Encoder, checked_tiles
from sthist.tiles import TileSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

SAME_SIZE = 1e-3
"""Sizes of tiles that differ by less, of the larger one, are one size."""


class Joined(Encoder):
    """Several encoders, whose embeddings stand side by side in their order.

    Each resizes the tile to its own pixels; the tissue that they see has to be the same.

    Parameters
    ----------
    encoders
        Two or more.

    Raises
    ------
    ValueError
        If they are trained for tiles of different physical size, or there is none.

    Examples
    --------
    >>> import numpy as np, sthist
    >>> both = sthist.encoders.get(
    ...     ["timm:resnet10t", "timm:test_resnet"], pretrained=False, device="cpu"
    ... )
    >>> both.embed(np.zeros((2, 64, 64, 3), np.uint8)).shape, both.key
    ((2, 608), 'X_timm_resnet10t_timm_test_resnet')
    """

    def __init__(self, encoders: Sequence[Encoder]) -> None:
        if not encoders:
            msg = "There is no encoder to join."
            raise ValueError(msg)
        self.encoders = list(encoders)
        self.name = "+".join(encoder.name for encoder in self.encoders)
        self.spec = common_spec(self.encoders)
        self.provenance = {
            "source": "joined",
            "order": [encoder.name for encoder in self.encoders],
            "encoders": [encoder.provenance for encoder in self.encoders],
        }

    def _measured(self) -> int:
        return sum(encoder.dim for encoder in self.encoders)

    @property
    def feature_names(self) -> list[str] | None:  # type: ignore[override]
        """Of each dimension, the encoder's name before it, if all encoders have them."""
        if any(encoder.feature_names is None for encoder in self.encoders):
            return None
        return [f"{encoder.name}:{name}" for encoder in self.encoders for name in encoder.feature_names or []]

    @property
    def key(self) -> str:
        """Key of the embeddings in ``obsm``."""
        return f"X_{safe_key([encoder.name for encoder in self.encoders])}"

    def embed(self, tiles: np.ndarray) -> np.ndarray:
        """Embed a batch of tiles with each encoder.

        Parameters
        ----------
        tiles
            (n, px, px, 3) uint8.

        Returns
        -------
        (n, d) float32, d the sum of the sizes.

        Raises
        ------
        ValueError
            If they are no such tiles.
        """
        checked_tiles(tiles)
        return np.concatenate([encoder.embed(tiles) for encoder in self.encoders], axis=1)


def common_spec(encoders: Sequence[Encoder]) -> TileSpec | None:
    """The tile of several encoders: one physical size, the pixels of the finest."""
    meant = [encoder for encoder in encoders if encoder.spec is not None]
    specs = [encoder.spec for encoder in meant if encoder.spec is not None]
    if not specs:
        return None
    smallest, largest = min(spec.size_um for spec in specs), max(spec.size_um for spec in specs)
    if largest - smallest > SAME_SIZE * largest:
        sizes = ", ".join(f"{encoder.name!r} {spec.size_um:g} µm" for encoder, spec in zip(meant, specs, strict=True))
        msg = (
            f"These encoders were trained for tiles of different size: {sizes}. One tile cannot be right for all; give "
            "spec=TileSpec(size_um=..., px=...) if you want it nevertheless."
        )
        raise ValueError(msg)
    return TileSpec(size_um=specs[0].size_um, px=max(spec.px for spec in specs))
