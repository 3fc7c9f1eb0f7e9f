"""What FID and KID look through, by the name of an encoder."""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from sthist.encoders import Encoder
    from sthist.tiles import TileSpec

INCEPTION = "Inception-v3"
BATCH = 64


def find_extractor(
    extractor: str | Encoder | Callable[[Any], Any] | None, spec: TileSpec, real: np.ndarray
) -> tuple[Callable[[Any], Any] | None, str]:
    """A function for :func:`sthist.metrics.image.compare`, and what to call it.

    Parameters
    ----------
    extractor
        Name of an encoder, or one; a function or module, which is taken as it is; None for Inception.
    spec
        Of the tiles.
    real
        Real tiles, by which the features of an encoder are standardised.
    """
    if extractor is None:
        return None, INCEPTION
    from sthist import encoders

    encoder: Any = encoders.get(extractor) if isinstance(extractor, str) else extractor
    if not isinstance(encoder, encoders.Encoder):
        return encoder, getattr(encoder, "__name__", type(encoder).__name__)
    standard = Standardized(encoder.at(spec, strict=False), real)
    return standard, f"{encoder.name}, standardised by the real tiles"


class Standardized:
    """Embeddings whose features have mean 0 and variance 1 over the real tiles.

    The features of an encoder may be of different units, such as areas and shares: as they are, the largest numbers would be
    the distance.
    """

    def __init__(self, encoder: Encoder, real: np.ndarray) -> None:
        self._encoder = encoder
        rows = np.concatenate([self._embed(real[i : i + BATCH]) for i in range(0, len(real), BATCH)])
        spread = rows.std(axis=0)
        self._mean, self._scale = rows.mean(axis=0), 1 / np.where(spread > 0, spread, 1)
        # Every method is held against the same real tiles.
        self._known = {_digest(tile): row for tile, row in zip(real, rows, strict=True)}

    def __call__(self, batch: Any) -> np.ndarray:
        tiles = np.ascontiguousarray(batch.cpu().numpy().transpose(0, 2, 3, 1))
        rows = [self._known.get(_digest(tile)) for tile in tiles]
        new = [i for i, row in enumerate(rows) if row is None]
        if new:
            for i, row in zip(new, self._embed(tiles[new]), strict=True):
                rows[i] = row
        return (np.stack(rows) - self._mean) * self._scale  # type: ignore[arg-type]

    def _embed(self, tiles: np.ndarray) -> np.ndarray:
        return np.asarray(self._encoder.embed(tiles), np.float64)


def _digest(tile: np.ndarray) -> bytes:
    return blake2b(tile.tobytes(), digest_size=16).digest()
