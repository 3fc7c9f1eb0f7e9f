"""Tiles that lie on all images that are compared."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist import _sample
from sthist._sample.samples import naming
from sthist._settings import logger
from sthist.tiles import TileReader, TileSpec
from sthist.tiles._images.image import open_image
from sthist.tiles._laid_tiles import laid_tiles
from sthist.tiles._sampling import lies_inside
from sthist.tiles._spec import same_spec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import pandas as pd
    from spatialdata import SpatialData

    from sthist._sample.elements import HighResElements
    from sthist._sample.samples import Sample
    from sthist.encoders import Encoder
    from sthist.systems.virtual_he.generator import PreparedSection
    from sthist.systems.virtual_he.translator import Translator
    from sthist.tiles import Image, TileSpec

INCEPTION = "Inception-v3"

BATCH = 64
"""Tiles that are read at once, where they need not all be in memory."""

FARTHEST = 6.0
"""Standard deviations of the real tiles' that a feature of a virtual one may be off, for FID and KID."""

SAME_PLACE_UM = 0.01
"""Two tiles whose centres are no further apart are one."""


def find_extractor(
    extractor: str | Encoder | Callable[[Any], Any] | None, spec: TileSpec, real: np.ndarray
) -> tuple[Callable[[Any], Any] | None, str]:
    """A function for :func:`sthist.metrics.image.compare`, and what to call it."""
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

    The features of an encoder may be of different units, such as areas and shares: as they are, the largest numbers
    would be the distance. Neither may one that hardly varies among the real ones: no feature is further off than so
    many of its standard deviations.
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
        return np.clip((np.stack(rows) - self._mean) * self._scale, -FARTHEST, FARTHEST)  # type: ignore[arg-type]

    def _embed(self, tiles: np.ndarray) -> np.ndarray:
        return np.asarray(self._encoder.embed(tiles), np.float64)


def _digest(tile: np.ndarray) -> bytes:
    return blake2b(tile.tobytes(), digest_size=16).digest()


def predict_tiles(
    model: Any,
    elements: HighResElements,
    centres: np.ndarray,
    spec: TileSpec,
    *,
    tissues: np.ndarray | None = None,
    molecules: Any = None,
    batch_size: int = 16,
) -> np.ndarray:
    """Virtual H&E of tiles, (n, px, px, 3) uint8.

    A model of other tiles makes its own, side by side around the centre until they cover the tile; those are resampled.
    ``molecules`` are those of other tiles, (n, 2) centres, or False for none.
    """
    if tissues is not None:
        tiles = np.empty((len(centres), spec.px, spec.px, 3), np.uint8)
        for tissue in dict.fromkeys(tissues):
            rows, prompted = tissues == tissue, model.to(getattr(model, "device", None), tissue=tissue)
            shown = molecules if molecules is None or molecules is False else molecules[rows]
            how: dict[str, Any] = {"molecules": shown, "batch_size": batch_size}
            tiles[rows] = predict_tiles(prompted, elements, centres[rows], spec, **how)
        return tiles
    own = _own_spec(model, spec)
    stain = open_image(elements.sdata, elements.nuclear)
    stainer = model.prepare(elements, stain, own.mpp, allow_upsampling=True)
    if same_spec(own, spec):
        return _predict(stainer, centres, own, batch_size, molecules)
    if molecules is not None:
        raise ValueError(f"Molecules of other tiles are shown in tiles of the model's own, {own}; these are {spec}.")
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


def _own_spec(model: Any, spec: TileSpec) -> TileSpec:
    """The tile that a model works on: where it knows several scales, as fine as the tiles that are asked for."""
    own = getattr(model.config, "spec", None) or spec
    scales = getattr(model.config, "scales", None)
    return own if scales is None else model.config.spec_at(float(np.clip(spec.mpp, *scales)))


def _predict(
    stainer: PreparedSection, centres: np.ndarray, spec: TileSpec, batch_size: int, molecules: Any = None
) -> np.ndarray:
    readers: Sequence[Any] = [reader if reader.spec == spec else reader.at(spec) for reader in stainer.readers]
    made = []
    for start in range(0, len(centres), batch_size):
        rows = slice(start, start + batch_size)
        around = {} if molecules is None else {"molecules": molecules if molecules is False else molecules[rows]}
        tiles = [readers[0].read(centres[rows], **around), *(reader.read(centres[rows]) for reader in readers[1:])]
        made.append(stainer.predict(*tiles))
    return np.concatenate(made)


def _resampled(image: np.ndarray, mpp: float, spec: TileSpec) -> np.ndarray:
    """The middle of an image (h, w, 3) as one tile."""
    middle = np.array(image.shape[1::-1]) * mpp / 2
    reader = TileReader.from_array(image.transpose(2, 0, 1), np.diag([mpp, mpp, 1.0]), spec, fill=255)
    return reader.read(middle[None])[0]


@dataclass(frozen=True, eq=False)
class SharedTiles:
    """Tiles of a sample that lie on several images."""

    obs: pd.DataFrame  # one row per tile: what is known of it, with its instance_id
    centres: np.ndarray  # (n, 2): x, y in µm
    spec: TileSpec
    readers: tuple[TileReader, ...]  # one per image

    def __len__(self) -> int:
        return len(self.centres)

    @property
    def names(self) -> np.ndarray:
        """(n,) instance ids."""
        return self.column("instance_id")

    def column(self, name: str) -> np.ndarray:
        """(n,) values of a column."""
        return self.obs[name].to_numpy()

    def chosen(self, which: np.ndarray) -> SharedTiles:
        """Some of them, by their places among these."""
        return SharedTiles(self.obs.iloc[which], self.centres[which], self.spec, self.readers)

    def read(self) -> list[np.ndarray]:
        """All tiles of each image."""
        return [reader.read(self.centres) for reader in self.readers]

    def batches(self) -> Iterator[list[np.ndarray]]:
        """Tiles of each image, some at a time."""
        for start in range(0, len(self), BATCH):
            yield [reader.read(self.centres[start : start + BATCH]) for reader in self.readers]


def shared_tiles(
    samples: Sequence[Sample],
    tiles: str,
    images: Callable[[SpatialData], Sequence[str]],
    *,
    column: str | None = None,
    of: Translator | None = None,
) -> list[tuple[Sample, SharedTiles]]:
    """Of each sample the tiles that lie on all of some RGB images."""
    unseen = None if of is None else _unseen_tiles(of, samples)
    parts: list[tuple[Sample, SharedTiles]] = []
    for sample in samples:
        if unseen is not None and sample.name not in unseen:
            continue
        with naming(sample.name):
            if not hasattr(sample.data, "images"):
                kind = type(sample.data).__name__
                raise TypeError(f"Sample {sample.name!r} is a {kind} without images; virtual H&E needs a SpatialData.")
            names = images(sample.data)
            for name in names:
                _sample.get(sample.data, "images", name)
            if of is None or unseen is None:
                obs, centres, spec = _laid(sample.data, tiles, column)
            else:
                obs, centres = _held_out(sample.data, tiles, column, unseen[sample.name])
                spec = of.config.spec
            readers = tuple(TileReader(sample.data, name, spec, fill=255, allow_upsampling=True) for name in names)
            inside = on_images([reader.image for reader in readers], centres, spec.size_um, names)
        if parts and spec != parts[0][1].spec:
            first, other = parts[0]
            raise ValueError(
                f"Tiles {tiles!r} of sample {sample.name!r} are {spec}, those of {first.name!r} {other.spec}; lay them "
                "alike."
            )
        parts.append((sample, SharedTiles(obs[inside], centres[inside], spec, readers)))
    return parts


def on_images(images: Sequence[Image], centres: np.ndarray, size_um: float, names: Sequence[str]) -> np.ndarray:
    """Which tiles lie on all images, (n,) bool; refused where none does."""
    inside = np.logical_and.reduce([lies_inside(image, centres, size_um) for image in images])
    if not inside.any():
        where = "both " if len(names) == 2 else ""
        raise ValueError(f"None of the {len(centres)} tiles lies on {where}{' and '.join(map(repr, names))}.")
    return inside


def require_column(obs: pd.DataFrame, tiles: str, name: str) -> None:
    """Refuse a column that the tiles' table does not have."""
    if name not in obs:
        raise KeyError(f"Table '{tiles}_table' has no column {name!r}; it has {list(obs.columns)}.")


def _laid(sdata: SpatialData, tiles: str, column: str | None) -> tuple[pd.DataFrame, np.ndarray, TileSpec]:
    """Laid tiles: what is known of each, its centre, and the spec of all."""
    table, spec = laid_tiles(sdata, tiles)
    if column is not None:
        require_column(table.obs, tiles, column)
    return table.obs, np.asarray(table.obsm["spatial"], np.float64)[:, :2], spec


def _held_out(
    sdata: SpatialData, tiles: str, column: str | None, rows: pd.DataFrame
) -> tuple[pd.DataFrame, np.ndarray]:
    """Tiles of a model, and their centres; a column is that of the laid tile of the same place."""
    from scipy.spatial import cKDTree

    centres = rows[["x_um", "y_um"]].to_numpy(np.float64)
    if column is None:
        return rows, centres
    obs, laid, _ = _laid(sdata, tiles, column)
    distance, row = cKDTree(laid).query(centres, distance_upper_bound=SAME_PLACE_UM)
    lost = np.flatnonzero(~np.isfinite(distance))
    if len(lost):
        x, y = centres[lost[0]]
        raise ValueError(
            f"{len(lost)} of the {len(centres)} tiles that the model has not seen are not among {tiles!r}, the first "
            f"at ({x:g}, {y:g}) µm: what {column!r} says of them is not known. Leave classes= out, or lay the tiles "
            "that the model was trained on."
        )
    return rows.assign(**{column: obs[column].to_numpy()[row]}), centres


def _unseen_tiles(model: Translator, samples: Sequence[Sample]) -> dict[str, pd.DataFrame]:
    """Tiles that were held out from a training: of each sample that has such the rows of the model's ``tiles``."""
    tiles: Any = getattr(model, "tiles", None)
    if tiles is None:
        raise ValueError(
            "model= is one that does not know its tiles: take the one that tl.train_virtual_he returns, or load it "
            "from the folder of its training, where tiles.csv is."
        )
    names = tiles["sample"]
    known, asked = list(dict.fromkeys(names)), [sample.name for sample in samples]
    strange = [name for name in asked if name not in known]
    if strange:
        raise KeyError(
            f"The model was trained on the samples {known[:8]}, and on none called {strange[0]!r}: give a mapping of "
            "these names to samples."
        )
    tested = tiles["part"] == "test"
    unseen = {name: tiles[tested & (names == name)] for name in asked if (tested & (names == name)).any()}
    if not unseen:
        raise ValueError(
            f"None of the model's tiles of {asked[:8]} has the part 'test': train it with test=, such as test=0.2, or "
            "leave model= out to score all laid tiles."
        )
    if len(unseen) < len(asked):
        left_out = [name for name in asked if name not in unseen]
        logger.info("The model has been tested on no tile of %s, which are left out.", ", ".join(left_out))
    return unseen
