"""What is embedded: the regions of a sample on an image, or a folder of tiles."""

from __future__ import annotations

import hashlib
import shutil
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sthist import _sample, _store
from sthist._imaging.colours import require_rgb8
from sthist._messages import plain
from sthist._scratch import resumable_folder
from sthist._settings import logger
from sthist._tables.find import require_free
from sthist._tables.rows import (
    Rows,
    add_columns,
    centroids_um,
    have_shapes,
    lie_within,
    new_table,
    require_free_columns,
    rows_of,
    write_columns,
)
from sthist.pp._stain_normalize.normalizer import StainNormalizer
from sthist.pp._stain_normalize.reference import of_channels
from sthist.tiles import FolderReader, TileReader, TileSpec
from sthist.tiles._laid_tiles import laid_tiles
from sthist.tiles._spec import coarser_by

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from pathlib import Path

    import pandas as pd
    from anndata import AnnData
    from spatialdata import SpatialData

    from sthist.encoders import Encoder
    from sthist.tiles import Image

COARSER = "Pass spec={}, or coarser."

PAPER = 255
"""Grey level around an H&E."""

N_SAMPLED = 64
"""Tiles whose pixels tell one image from another."""

NUCLEUS_SPEC = TileSpec(12.0, 48)
"""What is shown of a nucleus, by default: as large a nucleus as most, and some of its cell."""

MOST_OF_CELLS_UM = 32.0
"""Encoders of tiles up to this side were trained on cells, and see nuclei as they were trained to."""

COARSE_MPP = 1.0
"""Images from this µm/px on show a nucleus on less than 12 px."""

N_MEASURED = 1000
"""Tiles that the mean and spread of the channels are of, at most."""


def find_source(data: Any, image: str | None, regions: str | None, spec: TileSpec | None) -> Source:
    """What the arguments of :func:`sthist.pp.embed` mean."""
    from anndata import AnnData

    if isinstance(data, AnnData):
        return FolderSource(data, image, regions, spec)
    _sample.require_one_sample(data)
    return RegionSource(data, image, regions, spec)


class _Source:
    """Places whose tiles are embedded, and the table that takes the result."""

    name: str  # of the table, for messages
    places: np.ndarray  # of each row, as its reader takes them: x, y in µm, or the number of the row
    spec: TileSpec | None  # of the tiles, where the call or the tiles say it
    spec_given: bool  # whether the call says it
    image: str | None  # key of the image
    store: Path | None  # where the object lies on disk
    nuclei: bool = False  # whether they are nuclei

    def called(self, key: str) -> str:
        """Embeddings, as messages call them."""
        return f"obsm[{key!r}] of {self.name}"

    def settled_spec(self, encoder: Encoder) -> TileSpec | None:
        """The tiles, unless the encoder alone says which: of the call, as they were laid, or those of nuclei."""
        for_cells = encoder.spec is not None and encoder.spec.size_um <= MOST_OF_CELLS_UM
        return NUCLEUS_SPEC if self.spec is None and self.nuclei and not for_cells else self.spec

    def _spec(self, encoder: Encoder) -> TileSpec:
        spec = self.settled_spec(encoder) or encoder.spec
        if spec is None:
            raise ValueError(
                f"Nothing says how much tissue a tile of {self.name} shows: pass "
                "spec=sthist.tiles.TileSpec(size_um=112, px=224), or lay tiles with pp.tiles. The encoder "
                f"{encoder.name!r} takes any."
            )
        return spec


class RegionSource(_Source):
    """Regions of a sample, each a tile around its centroid."""

    def __init__(self, sdata: SpatialData, image: str | None, regions: str | None, spec: TileSpec | None) -> None:
        self.sdata, self.spec, self.spec_given = sdata, spec, spec is not None
        self.store = _store.store_path(sdata)
        self.image = _find_image(sdata, image)
        self.rows = rows_of(sdata, find_regions(sdata) if regions is None else regions)
        self.name = repr(self.rows.table or self.rows.shapes)
        self.places = centroids_um(sdata, self.rows)
        self.spec = spec or laid_spec(sdata, self.rows)
        self.nuclei = are_nuclei(sdata, self.rows.shapes)

    def reader(self, encoder: Encoder, normalizer: Callable[[np.ndarray], np.ndarray] | None) -> TileReader:
        """A reader of the tiles; those of nuclei are as large as they are, also where the image is coarse."""
        options: dict[str, Any] = {} if normalizer is None else {"normalizer": normalizer}
        options["allow_upsampling"] = self.nuclei
        with coarser_by(COARSER):
            reader = TileReader(self.sdata, str(self.image), self._spec(encoder), fill=PAPER, **options)
        require_rgb8(f"Image {self.image!r}", len(reader.channels), reader.dtype)
        return reader

    def lie_within(self, within: Any) -> np.ndarray:
        """Which places lie in a part of the slide, (n,) bool."""
        if within is None:
            return have_shapes(self.sdata, self.rows)
        return lie_within(self.sdata, self.places, within, self.name)

    def require_inside(self, reader: TileReader, outside: Literal["error", "nan"], chosen: np.ndarray) -> np.ndarray:
        """Which of the chosen places the image holds, (n,) bool; a ValueError for others, unless they may be NaN."""
        import shapely

        if outside not in {"error", "nan"}:
            raise ValueError(f"outside is {outside!r}; it is 'error' or 'nan'.")
        image = shapely.union_all([shapely.MultiPoint(field.corners_um()).convex_hull for field in reader.image.fields])
        inside = chosen & np.isfinite(self.places).all(axis=1)
        inside[inside] = shapely.intersects_xy(image, *self.places[inside].T)
        if self.nuclei:
            warn_of_coarse(reader.image)
        missing = chosen & ~inside
        if not missing.any() or (outside == "nan" and inside.any()):
            return inside
        row = int(np.flatnonzero(missing)[0])
        x0, y0, x1, y1 = image.bounds
        raise ValueError(
            f"{int(missing.sum())} of {int(chosen.sum())} regions of {self.name} lie outside the image {self.image!r} "
            f"(x {x0:.0f} to {x1:.0f}, y {y0:.0f} to {y1:.0f} µm) or have no place, such as "
            f"{plain(self.rows.instances[row])!r} at {np.round(self.places[row], 1).tolist()} µm. Pass outside='nan' "
            "to leave them without an embedding, or mend the transformation of the image to 'um'."
        )

    def identity(self, reader: TileReader, inside: np.ndarray) -> dict[str, Any]:
        """What tells this input from any other: the places, how the image lies, and the pixels of some tiles."""
        return {
            "image": self.image,
            **image_facts(reader, self.places[inside]),
            "places": hashlib.blake2b(np.ascontiguousarray(self.places).tobytes(), digest_size=16).hexdigest(),
            "inside": int(inside.sum()),
        }

    def made(self, key: str) -> dict[str, Any] | None:
        """Provenance of embeddings that are there; None if there are none."""
        if self.rows.table is None:
            return None
        table = self.sdata.tables[self.rows.table]
        return table.uns.get("sthist", {}).get(key) if key in table.obsm else None

    def values(self, key: str) -> np.ndarray:
        """Embeddings that are there."""
        return np.asarray(self.sdata.tables[str(self.rows.table)].obsm[key])

    def require_free(self, key: str, *, overwrite: bool) -> None:
        """Refuse a key that is taken."""
        require_free_columns(self.sdata, self.rows, [], [key], overwrite=overwrite)

    def add(self, key: str, values: np.ndarray, features: pd.DataFrame | None, made: dict[str, Any]) -> None:
        """Put the embeddings into the table."""
        uns = {} if features is None else {f"{key}_features": features}
        add_columns(self.sdata, self.rows, key, made, obs={}, obsm={key: values}, uns=uns)

    def writing(self) -> AbstractContextManager[None]:
        """Hold the lock of the store."""
        return _store.writing(self.sdata)

    def discard(self, key: str) -> None:
        """Delete what a run left that was killed after it had put its result into the table."""
        if self.store is not None:
            shutil.rmtree(self.store / _store.WORK / self._work_name(key), ignore_errors=True)

    def workspace(self, key: str, digest: str) -> AbstractContextManager[Path]:
        """Folder in which they are made."""
        return _store.workspace(self.sdata, self._work_name(key), digest)

    def _work_name(self, key: str) -> str:
        return f"{self.rows.shapes}-{key}"


class FeatureTable:
    """The table that embeddings become, in place of an entry of ``obsm`` in the table of their regions."""

    def __init__(self, source: RegionSource, encoder: Encoder) -> None:
        self._source, self._encoder, self._sdata = source, encoder, source.sdata
        of = source.rows.table or f"{source.rows.shapes}_table"
        self.default_key = f"{of}_{encoder.key.removeprefix('X_')}"

    def called(self, key: str) -> str:
        """The table, as messages call it."""
        return f"Table {key!r}"

    def made(self, key: str) -> dict[str, Any] | None:
        """Provenance of a table that is there; None if there is none."""
        return self._sdata.tables[key].uns.get("sthist", {}).get(key) if key in self._sdata.tables else None

    def require_free(self, key: str, *, overwrite: bool) -> None:
        """Refuse a key that is taken."""
        _store.require_free(self._sdata, key, "tables", overwrite=overwrite)

    def known(self, digest: str) -> np.ndarray | None:
        """The same embeddings, where the table of the regions has them."""
        key = self._encoder.key
        made = self._source.made(key)
        return self._source.values(key) if made is not None and made.get("digest") == digest else None

    def add(self, key: str, values: np.ndarray, features: pd.DataFrame | None, made: dict[str, Any]) -> None:
        """Make the table: rows that are embedded, with all that is known of them but their other numbers."""
        import anndata as ad
        import pandas as pd

        rows = self._source.rows
        regions = new_table(self._sdata, rows) if rows.table is None else self._sdata.tables[rows.table]
        embedded = np.flatnonzero(np.isfinite(values).all(axis=1))
        if len(embedded) < len(values):
            logger.info(
                "%d of %d regions are not embedded; the table is without them.",
                len(values) - len(embedded),
                len(values),
            )
        stem = self._encoder.key.removeprefix("X_")
        names = pd.Index([f"{stem}_{number}" for number in range(values.shape[1])])
        var = pd.DataFrame({"meaning": ""}, index=names) if features is None else features.copy()
        obs = regions.obs.iloc[embedded].copy()
        uns = {
            name: regions.uns[name]
            for name in regions.uns
            if name.removesuffix("_colors") in obs and name.endswith("_colors")
        }
        if "spatialdata_attrs" in regions.uns:
            uns["spatialdata_attrs"] = dict(regions.uns["spatialdata_attrs"])
        places = self._source.places
        if "spatial" in regions.obsm and np.allclose(regions.obsm["spatial"], places, equal_nan=True):
            places = np.asarray(regions.obsm["spatial"])  # to the last digit
        obsm = {"spatial": places[embedded]}
        table = ad.AnnData(np.ascontiguousarray(values[embedded], np.float32), obs=obs, var=var, obsm=obsm, uns=uns)
        _store.add(self._sdata, "tables", key, table, {**made, "place": "X"}, overwrite=True)


class FolderSource(_Source):
    """A folder of tiles."""

    def __init__(self, tiles: AnnData, image: str | None, regions: str | None, spec: TileSpec | None) -> None:
        if image is not None or regions is not None:
            raise ValueError("image= and regions= are of a SpatialData; a folder of tiles has neither.")
        if "tile_folder" not in tiles.uns.get("sthist", {}):
            raise ValueError(
                "An AnnData alone has no pixels: pass the SpatialData that holds its image, or a folder of tiles read "
                "with io.tile_folder."
            )
        self.tiles, self.spec, self.spec_given = tiles, spec, spec is not None
        self.image, self.store, self.name = None, None, "the folder of tiles"
        self.places = np.arange(tiles.n_obs)

    def reader(self, encoder: Encoder, normalizer: Callable[[np.ndarray], np.ndarray] | None) -> FolderReader:
        """A reader of the tiles."""
        options = {} if normalizer is None else {"normalizer": normalizer}
        with coarser_by(COARSER):
            return FolderReader(self.tiles, self._spec(encoder), fill=PAPER, **options)

    def lie_within(self, within: Any) -> np.ndarray:
        """Which places lie in a part of the slide: a folder has no parts."""
        if within is not None:
            raise ValueError("within= is of a SpatialData; a folder of tiles lies nowhere.")
        return np.ones(self.tiles.n_obs, bool)

    def require_inside(self, reader: FolderReader, outside: Literal["error", "nan"], chosen: np.ndarray) -> np.ndarray:
        """Which places can be read, (n,) bool: all."""
        return chosen

    def identity(self, reader: FolderReader, inside: np.ndarray) -> dict[str, Any]:
        """What tells this input from any other: names, sizes and times of the files."""
        content = hashlib.blake2b(digest_size=16)
        for file in self.tiles.obs["file"].astype(str):
            stat = (reader.root / file).stat()
            content.update(f"{file} {stat.st_size} {stat.st_mtime_ns}".encode())
        content.update(np.ascontiguousarray(self.tiles.obs["mpp"].to_numpy(np.float64)).tobytes())
        return {"files": content.hexdigest()}

    def made(self, key: str) -> dict[str, Any] | None:
        """Provenance of embeddings that are there; None if there are none."""
        return self.tiles.uns["sthist"].get(key) if key in self.tiles.obsm else None  # type: ignore[no-any-return]

    def values(self, key: str) -> np.ndarray:
        """Embeddings that are there."""
        return np.asarray(self.tiles.obsm[key])

    def require_free(self, key: str, *, overwrite: bool) -> None:
        """Refuse a key that is taken."""
        require_free(self.tiles, "The folder of tiles", [], [key], overwrite=overwrite)

    def add(self, key: str, values: np.ndarray, features: pd.DataFrame | None, made: dict[str, Any]) -> None:
        """Put the embeddings into the table."""
        uns = {} if features is None else {f"{key}_features": features}
        write_columns(None, None, self.tiles, key, made, obs={}, obsm={key: values}, uns=uns)

    def writing(self) -> AbstractContextManager[None]:
        """Hold the lock of the store."""
        return nullcontext()

    def discard(self, key: str) -> None:
        """There is no store to clear."""

    def workspace(self, key: str, digest: str) -> AbstractContextManager[Path]:
        """Folder in which they are made."""
        return resumable_folder(f"tiles-{key}", digest)


Source = RegionSource | FolderSource


def are_nuclei(sdata: SpatialData, shapes: str) -> bool:
    """Whether shapes are nuclei: called so, or made by :func:`sthist.pp.nuclei`."""
    made = sdata.attrs.get("sthist", {}).get("results", {}).get(shapes, {})
    return shapes.casefold() == "nuclei" or made.get("call") == "pp.nuclei"


def warn_of_coarse(image: Image) -> None:
    """Warn of an image that shows too little of a nucleus."""
    mpp = image.coarsest_mpp
    if mpp >= COARSE_MPP:
        logger.warning(
            "Image %r has %.3g µm/px: %g µm around a nucleus are %.1f of its pixels, and show little more than its "
            "colour. Images of 0.5 µm/px or finer show a nucleus.",
            image.key,
            mpp,
            NUCLEUS_SPEC.size_um,
            NUCLEUS_SPEC.size_um / mpp,
        )


def standardized(reader: Any, places: np.ndarray, encoder: Encoder) -> StainNormalizer:
    """What gives the channels of these tiles the mean and spread that an encoder expects."""
    expected: Any = getattr(encoder, "transform", None)
    if not (hasattr(expected, "mean") and hasattr(expected, "std")):
        raise ValueError(
            f"normalizer='self' brings the channels of a slide to the mean and spread that a network expects; "
            f"{encoder.name!r} states none. Pass what pp.stain_normalize(method='channels') returns."
        )
    some = places[np.unique(np.linspace(0, len(places) - 1, N_MEASURED).astype(int))]
    total, squares, n = np.zeros(3), np.zeros(3), 0
    for start in range(0, len(some), 64):
        tiles = reader.read(some[start : start + 64]).reshape(-1, 3).astype(np.float64)
        total, squares, n = total + tiles.sum(0), squares + (tiles**2).sum(0), n + len(tiles)
    mean = total / n
    spread = np.sqrt(np.maximum(squares / n - mean**2, 1.0))
    own = of_channels(mean, spread, "the tiles themselves")
    mean, std = (255 * np.array(each) for each in (expected.mean, expected.std))
    theirs = of_channels(mean, std, f"what {encoder.name!r} expects")
    return StainNormalizer(own, theirs)


def _find_image(sdata: SpatialData, image: str | None) -> str:
    """The H&E, or the only virtual one where there is none."""
    try:
        return _sample.find_he(sdata, image)
    except (KeyError, ValueError):
        results = sdata.attrs.get("sthist", {}).get("results", {})
        virtual = [key for key in sdata.images if results.get(key, {}).get("call") == "tl.virtual_he"]
        if image is not None or len(virtual) != 1:
            raise
        return virtual[0]


def image_facts(reader: TileReader, places: np.ndarray) -> dict[str, Any]:
    """What tells an image from any other: how it lies, and its pixels at some of these places."""
    some = places[np.unique(np.linspace(0, len(places) - 1, N_SAMPLED).astype(int))]
    return {
        "lies": [[field.size, field.to_um.tolist()] for field in reader.image.fields],
        "pixels": hashlib.blake2b(reader.read(some).tobytes(), digest_size=16).hexdigest(),
    }


def find_regions(sdata: SpatialData) -> str:
    """Tiles or spots, if there is exactly one kind of them."""
    laid = [key.removesuffix("_table") for key, table in sdata.tables.items() if "tile_spec" in table.uns]
    spots = _sample.roles(sdata).get("spots", {}).get("shapes")
    candidates = [*laid, *([spots] if spots in sdata.shapes else [])]
    if len(candidates) == 1:
        return candidates[0]
    fault = f"could be any of {candidates}" if candidates else "are neither tiles nor spots"
    raise ValueError(
        f"Which regions to embed is not clear: there {fault}. Pass regions=. {_sample.describe('shapes', sdata.shapes)}"
    )


def laid_spec(sdata: SpatialData, rows: Rows) -> TileSpec | None:
    """What the tiles show that were laid; None for other regions."""
    try:
        return laid_tiles(sdata, rows.shapes)[1]
    except KeyError:
        return None
