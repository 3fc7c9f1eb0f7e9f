"""Tiles that lie on all images that are compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist import _sample
from sthist._sample.samples import naming
from sthist._settings import logger
from sthist.tiles import TileReader
from sthist.tiles._pairs import laid_tiles
from sthist.tiles._sampling import lies_inside

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import pandas as pd
    from spatialdata import SpatialData

    from sthist._sample.samples import Sample
    from sthist.systems.virtual_he.translator import Translator
    from sthist.tiles import TileSpec

BATCH = 64
"""Tiles that are read at once, where they need not all be in memory."""

SAME_PLACE_UM = 0.01
"""Two tiles whose centres are no further apart are one."""


@dataclass(frozen=True, eq=False)
class SharedTiles:
    """Tiles that lie on several images.

    Attributes
    ----------
    obs
        One row per tile: what is known of it, with its ``instance_id``.
    centres
        (n, 2): x, y in µm.
    spec
        Of the tiles.
    readers
        One per image.
    """

    obs: pd.DataFrame
    centres: np.ndarray
    spec: TileSpec
    readers: tuple[TileReader, ...]

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
    """Of each sample the tiles that lie on all of some RGB images.

    Parameters
    ----------
    samples
        The samples.
    tiles
        Key of their laid tiles.
    images
        Keys of the images of a sample.
    column
        Of the tiles' table, that has to be there.
    of
        Take the tiles that the training of this model has held out in place of all laid ones; a sample without such is left out.

    Raises
    ------
    TypeError
        If a sample has no images.
    KeyError
        If images, tiles or the column are missing, or the model does not know a sample.
    ValueError
        If no tile of a sample lies on all of its images, tiles of two samples are not alike, or the model was trained without a test.
    """
    unseen = None if of is None else _unseen_tiles(of, samples)
    found: list[tuple[Sample, SharedTiles]] = []
    for sample in samples:
        if unseen is not None and sample.name not in unseen:
            continue
        with naming(sample.name):
            require_images(sample)
            names = images(sample.data)
            for name in names:
                _sample.get(sample.data, "images", name)
            if of is None or unseen is None:
                obs, centres, spec = _laid(sample.data, tiles, column)
            else:
                obs, centres = _held_out(sample.data, tiles, column, unseen[sample.name])
                spec = of.config.spec
            shared = _on_images(sample.data, obs, centres, spec, names)
        if found and spec != found[0][1].spec:
            first, other = found[0]
            msg = f"Tiles {tiles!r} of sample {sample.name!r} are {spec}, those of {first.name!r} {other.spec}; lay them alike."
            raise ValueError(msg)
        found.append((sample, shared))
    return found


def require_images(sample: Sample) -> None:
    """Refuse a sample that holds no images.

    Raises
    ------
    TypeError
        If it is no SpatialData.
    """
    if not hasattr(sample.data, "images"):
        msg = (
            f"Sample {sample.name!r} is a {type(sample.data).__name__} without images; virtual H&E needs a SpatialData."
        )
        raise TypeError(msg)


def require_column(obs: pd.DataFrame, tiles: str, name: str) -> None:
    """Refuse a column that the tiles' table does not have.

    Raises
    ------
    KeyError
        If it has none of that name.
    """
    if name not in obs:
        msg = f"Table '{tiles}_table' has no column {name!r}; it has {list(obs.columns)}."
        raise KeyError(msg)


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
        msg = (
            f"{len(lost)} of the {len(centres)} tiles that the model has not seen are not among {tiles!r}, the first at ({x:g}, {y:g}) µm: "
            f"what {column!r} says of them is not known. Leave classes= out, or lay the tiles that the model was trained on."
        )
        raise ValueError(msg)
    return rows.assign(**{column: obs[column].to_numpy()[row]}), centres


def _unseen_tiles(model: Translator, samples: Sequence[Sample]) -> dict[str, pd.DataFrame]:
    """Tiles that were held out from a training: of each sample that has such the rows of the model's ``tiles``."""
    tiles: Any = getattr(model, "tiles", None)
    if tiles is None:
        msg = (
            "of= is a model that does not know its tiles: take the one that tl.train_virtual_he returns, or load it from the folder of "
            "its training, where tiles.csv is."
        )
        raise ValueError(msg)
    names = tiles["sample"]
    known, wanted = list(dict.fromkeys(names)), [sample.name for sample in samples]
    strange = [name for name in wanted if name not in known]
    if strange:
        msg = f"The model was trained on the samples {known[:8]}, and on none called {strange[0]!r}: give a mapping of these names to samples."
        raise KeyError(msg)
    tested = tiles["part"] == "test"
    unseen = {name: tiles[tested & (names == name)] for name in wanted if (tested & (names == name)).any()}
    if not unseen:
        msg = (
            f"None of the model's tiles of {wanted[:8]} has the part 'test': train it with test=, such as test=0.2, or leave of= out to "
            "score all laid tiles."
        )
        raise ValueError(msg)
    if len(unseen) < len(wanted):
        left_out = [name for name in wanted if name not in unseen]
        logger.info("The model has been tested on no tile of %s, which are left out.", ", ".join(left_out))
    return unseen


def _on_images(
    sdata: SpatialData, obs: pd.DataFrame, centres: np.ndarray, spec: TileSpec, images: Sequence[str]
) -> SharedTiles:
    readers = tuple(TileReader(sdata, name, spec, fill=255, allow_upsampling=True) for name in images)
    inside = np.logical_and.reduce([lies_inside(reader.sources, centres, spec.size_um) for reader in readers])
    if not inside.any():
        where = "both " if len(images) == 2 else ""
        msg = f"None of the {len(centres)} tiles lies on {where}{' and '.join(map(repr, images))}."
        raise ValueError(msg)
    return SharedTiles(obs[inside], centres[inside], spec, readers)
