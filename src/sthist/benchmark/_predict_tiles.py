"""What a virtual-staining model makes of single tiles, at the scale at which they are scored."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sthist.tiles import TileReader, TileSpec
from sthist.tiles._images.image import extent_um

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sthist._sample.elements import HighResElements
    from sthist.training.model import Stainer


def predict_tiles(
    model: Any,
    elements: HighResElements,
    centres: np.ndarray,
    spec: TileSpec,
    *,
    tissues: np.ndarray | None = None,
    batch_size: int = 16,
) -> np.ndarray:
    """Virtual H&E of tiles, (n, px, px, 3) uint8.

    A model of other tiles makes its own, side by side around the centre until they cover the tile; those are resampled.

    Parameters
    ----------
    model
        A :class:`sthist.models.VirtualStainModel`.
    elements
        The section.
    centres
        (n, 2): x, y in µm.
    spec
        Of the tiles to make.
    tissues
        (n,) tissue of each tile, for a model that is told it.
    batch_size
        Tiles of the model's own per batch.
    """
    if tissues is not None:
        tiles = np.empty((len(centres), spec.px, spec.px, 3), np.uint8)
        for tissue in dict.fromkeys(tissues):
            mine, told = tissues == tissue, model.running_on(getattr(model, "device", None), tissue=tissue)
            tiles[mine] = predict_tiles(told, elements, centres[mine], spec, batch_size=batch_size)
        return tiles
    own = getattr(model.config, "spec", None) or spec
    extent = extent_um(elements.sdata, elements.nuclear)
    stainer = model.prepare(elements, extent, own.mpp, allow_upsampling=True)
    if own.px == spec.px and abs(own.size_um / spec.size_um - 1) < 1e-6:
        return _predict(stainer, centres, own, batch_size)
    side = int(np.ceil(spec.size_um / own.size_um - 1e-9))
    offsets = (np.arange(side) - (side - 1) / 2) * own.size_um
    around = np.stack(np.meshgrid(offsets, offsets), -1).reshape(-1, 2)  # row by row: x changes first
    tiles = np.empty((len(centres), spec.px, spec.px, 3), np.uint8)
    for tile, centre in zip(tiles, centres, strict=True):
        parts = _predict(stainer, centre + around, own, batch_size)
        joined = parts.reshape(side, side, own.px, own.px, 3).transpose(0, 2, 1, 3, 4)
        joined = joined.reshape(side * own.px, side * own.px, 3)
        tile[:] = _resampled(joined, own.mpp, spec)
    return tiles


def _predict(stainer: Stainer, centres: np.ndarray, spec: TileSpec, batch_size: int) -> np.ndarray:
    readers: Sequence[Any] = [reader if reader.spec == spec else reader.at(spec) for reader in stainer.readers]
    batches = (centres[start : start + batch_size] for start in range(0, len(centres), batch_size))
    return np.concatenate([stainer.predict(*(reader.read(batch) for reader in readers)) for batch in batches])


def _resampled(image: np.ndarray, mpp: float, spec: TileSpec) -> np.ndarray:
    """The middle of an image (h, w, 3) as one tile."""
    middle = np.array(image.shape[1::-1]) * mpp / 2
    reader = TileReader.from_array(image.transpose(2, 0, 1), np.diag([mpp, mpp, 1.0]), spec, fill=255)
    return reader.read(middle[None])[0]
