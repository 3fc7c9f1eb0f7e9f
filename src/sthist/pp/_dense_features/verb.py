"""Features of every place of a slide, written as an image."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sthist import _sample, _store
from sthist._sample.samples import over_samples
from sthist._sample.verbs import verb
from sthist._settings import logger, settings
from sthist.pp._dense_features.cells import box_of, large_tiles, tissue_cells
from sthist.pp._dense_features.workers import CellWorker, TokenCells, WindowCells
from sthist.pp._embed import encoder_facts
from sthist.pp._embed_source import image_facts
from sthist.tiles import Canvas, TileReader, TileSpec
from sthist.tiles._blocks.canvas import Layout
from sthist.tiles._blocks.estimate import require_bytes
from sthist.tiles._blocks.run import run_pending
from sthist.tiles._images.image import open_he
from sthist.tiles._images.reader import MAX_UPSAMPLING

if TYPE_CHECKING:
    from pathlib import Path

    from spatialdata import SpatialData

    from sthist.encoders import Encoder
    from sthist.tiles import Image

WINDOW_STRIDES = 4
"""How many strides a window is long, by default."""

DEFAULT_TILE = TileSpec(112.0, 224)
"""Whose tokens are taken, where the encoder has no spec."""

CHUNK, BLOCK = 64, 128
"""Sides of a chunk and of a block, in cells."""

BLOCK_BYTES = 2**29
"""Memory for the sums of a block."""


@verb
def dense_features(
    data: Any,
    encoder: Any = "morphology",
    *,
    stride_um: float = 8.0,
    image: str | None = None,
    spec: TileSpec | None = None,
    method: Literal["auto", "dense", "crop"] = "auto",
    overlap: float = 0.25,
    within: Any = None,
    tissue: str | bool | None = None,
    weights: str | Path | None = None,
    revision: str | None = None,
    precision: str | None = None,
    batch_size: int = 32,
    device: str | None = None,
    key_added: str | None = None,
    overwrite: bool = False,
    progress: bool | None = None,
) -> None:
    """Features of every place of a slide, as an image whose pixels are one stride wide and whose channels are features.

    Blocks of the slide are read, embedded and written one after another, so that no map is ever in memory. A call that
    was stopped is continued by the same call, and one that is finished is not repeated.

    Parameters
    ----------
    data
        One sample, or a mapping of name to sample; the path of a store stands for its sample.
    encoder
        As of :func:`sthist.pp.embed`.
    stride_um
        Side of a cell, one pixel of the map, in µm.
    image
        Key of the image, of 8-bit RGB; the H&E by default.
    spec
        What the encoder sees at once. By default the tile that it was trained for, of which each cell gets its tokens;
        or, for an encoder without tokens, a window of four strides around each cell, at the encoder's µm/px.
    method
        ``"dense"`` embeds tiles that overlap, and takes the tokens that lie in a cell; ``"crop"`` embeds the window
        around each cell by itself: many more pixels are looked at. ``"auto"`` is dense where the encoder has tokens.
    overlap
        Part of the side of a tile that it shares with the next one, less than 1/2; their tokens are blended.
    within
        Part of the slide: a box (x0, y0, x1, y1) in µm, a polygon, or the key of shapes.
    tissue
        Key of the outlines of the tissue; by default ``"tissue"``, or what :func:`sthist.pp.tissue` would find. False:
        all of the slide.
    weights, revision, precision
        As of :func:`sthist.encoders.get`.
    batch_size
        Tiles or windows at a time.
    device
        Of torch; ``settings.device`` by default.
    key_added
        Name of the image; by default ``"<encoder>_features"``.
    overwrite
        Replace an image of that name.
    progress
        Show a bar; ``settings.progress`` by default.

    Returns
    -------
    None. Writes, also to the store of a backed object, ``sdata.images[key_added]``: (d, y, x) float16, one pixel per
    cell, registered in ``um``; NaN where there is no tissue. Channels are the names of the features.

    Raises
    ------
    KeyError
        If there is no such image, encoder or shapes.
    ValueError
        If the image has no scale, is not RGB or is too coarse; if ``method="dense"`` and the encoder has no tokens; if
        there is no tissue; if the name is taken.
    OSError
        If the disk has no room for it.

    Examples
    --------
    >>> import sthist
    >>> sdata = sthist.datasets.toy(size_um=100)
    >>> part = {"within": (0, 0, 100, 100), "tissue": False}
    >>> sthist.pp.dense_features(sdata, "morphology", stride_um=20, **part, progress=False)
    >>> sdata["morphology_features"].shape
    (183, 5, 5)
    """
    from sthist.encoders import get

    if not (np.isfinite(stride_um) and stride_um > 0):
        raise ValueError(f"stride_um is {stride_um!r}; it is a positive number of µm.")
    if method not in {"auto", "dense", "crop"}:
        raise ValueError(f"method is {method!r}; it is 'auto', 'dense' or 'crop'.")
    loaded = get(encoder, weights=weights, revision=revision, device=device, precision=precision)
    if method == "dense" and not loaded.can_dense:
        raise ValueError(f"{loaded.name!r} has one embedding per tile and no tokens: use method='crop'.")
    dense = method == "dense" or (method == "auto" and loaded.can_dense)
    _of_sample(
        data,
        loaded,
        float(stride_um),
        image=image,
        spec=spec,
        dense=dense,
        overlap=overlap,
        within=within,
        tissue=tissue,
        batch_size=batch_size,
        key_added=key_added,
        overwrite=overwrite,
        progress=progress,
    )


@over_samples
def _of_sample(
    data: SpatialData,
    encoder: Encoder,
    stride_um: float,
    *,
    image: str | None,
    spec: TileSpec | None,
    dense: bool,
    overlap: float,
    within: Any,
    tissue: str | bool | None,
    batch_size: int,
    key_added: str | None,
    overwrite: bool,
    progress: bool | None,
) -> None:
    _sample.require_one_sample(data)
    he = open_he(data, image)
    # What an encoder is called is no plain name, often; one that is given has to be.
    own = _sample.safe_key(f"{encoder.key.removeprefix('X_')}_features")
    key = own if key_added is None else _store.check_name(key_added)
    shown = _shown(encoder, spec, stride_um, dense=dense)
    _require_resolution(he, shown, given=spec is not None)
    encoder = encoder.at(shown, strict=False)  # whole cells change the µm/px a little
    channels = _channels(encoder, shown, dense=dense)
    how: dict[str, Any] = {"channels": channels, "dtype": "float16", "chunk": (len(channels), CHUNK), "pyramid": False}
    block_px = _block(len(channels), shown.size_um / stride_um if dense else 1)
    extent = box_of(data, he, within)
    layout = Layout.over(extent, stride_um, block_px, **how)
    inside = tissue_cells(data, he, (layout.origin_um, stride_um, layout.shape), within, tissue)
    worker: CellWorker
    if dense:
        reader = TileReader.from_image(he, shown, fill=255, allow_upsampling=True)
        worker = TokenCells(reader, encoder, layout, inside, batch_size, overlap=overlap)
    else:
        stride_px = round(stride_um / shown.mpp)
        reader = TileReader.from_image(he, TileSpec.from_mpp(shown.mpp, 256), fill=255, allow_upsampling=True)
        worker = WindowCells(reader, encoder, layout, inside, batch_size, stride_px=stride_px, window_px=shown.px)
    places = np.argwhere(inside)[:, ::-1] * stride_um + stride_um / 2 + np.asarray(layout.origin_um)
    facts = {
        "encoder": encoder_facts(encoder),
        "image": he.key,
        **image_facts(reader, places),
        "inside": hashlib.blake2b(np.packbits(inside).tobytes(), digest_size=16).hexdigest(),
        "stride_um": stride_um,
        "spec": shown.to_dict(),
        "method": "dense" if dense else "crop",
        **({"overlap": overlap} if dense else {}),
        "batch_size": batch_size,
    }
    facts = json.loads(json.dumps(facts, default=str))
    digest = hashlib.sha256(json.dumps([facts, extent], sort_keys=True).encode()).hexdigest()
    if key in data.images and features_made(data, key).get("digest") == digest and not overwrite:
        logger.info("images[%r] is there already, from the same input and settings.", key)
        return
    _store.require_free(data, key, "images", overwrite=overwrite)
    logger.info("%d of %d cells of %g µm are embedded.", inside.sum(), inside.size, stride_um)
    with _store.writing(data):
        _store.require_free_in_store(_store.store_path(data), key, "images", overwrite=overwrite)
        with _store.workspace(data, key, digest) as folder:
            canvas = Canvas(folder, key, extent_um=extent, mpp=stride_um, fingerprint=facts, block_px=block_px, **how)
            left = sum(int(inside[b.y0 : b.y1, b.x0 : b.x1].sum()) for b in canvas.pending())
            require_bytes(key, canvas.folder, 2.0 * left * len(channels))
            run_pending(worker, canvas, progress=progress, threads=2)
            made = _store.provenance(
                "pp.dense_features",
                encoder=encoder.name,
                provenance=getattr(encoder, "provenance", {}),
                image=he.key,
                device=settings.torch_device(None) if not hasattr(encoder, "device") else str(encoder.device),
                digest=digest,
                **{name: facts[name] for name in ("stride_um", "spec", "method")},
            )
            _store.publish(data, "images", key, canvas.store, made)


def features_made(sdata: SpatialData, key: str) -> dict[str, Any]:
    """What is recorded of a map of features; empty where nothing is."""
    made = sdata.attrs.get("sthist", {}).get("results", {}).get(key, {})
    return dict(made) if hasattr(made, "get") and made.get("call") == "pp.dense_features" else {}


def _shown(encoder: Encoder, spec: TileSpec | None, stride_um: float, *, dense: bool) -> TileSpec:
    """The tile whose tokens are taken, of whole cells, or the window around a cell, on whose pixels a cell is whole."""
    if dense:
        return large_tiles(stride_um, spec or encoder.spec, DEFAULT_TILE)
    wanted = spec or TileSpec(WINDOW_STRIDES * stride_um, 1)
    mpp = spec.mpp if spec is not None else (encoder.spec or DEFAULT_TILE).mpp
    mpp = stride_um / max(1, round(stride_um / mpp))
    return TileSpec.from_mpp(mpp, max(1, round(wanted.size_um / mpp)))


def _require_resolution(he: Image, shown: TileSpec, *, given: bool) -> None:
    if he.coarsest_mpp > MAX_UPSAMPLING * shown.mpp and not given:
        raise ValueError(
            f"{he.key!r} has {he.coarsest_mpp:.4g} µm/px, and the encoder is shown {shown.mpp:.4g} µm/px: more than "
            f"{MAX_UPSAMPLING} times finer than what it shows. Pass spec= to go on."
        )


def _channels(encoder: Encoder, shown: TileSpec, *, dense: bool) -> tuple[str, ...]:
    """Names of the features."""
    names = encoder.token_names if dense else encoder.feature_names
    if names is not None:
        return tuple(names)
    blank = np.full((1, shown.px, shown.px, 3), 255, np.uint8)
    width = (encoder.dense(blank) if dense else encoder.embed(blank)).shape[-1]
    return tuple(f"f{number}" for number in range(width))


def _block(n_channels: int, tile: float) -> int:
    """Side of a block in cells: large beside a tile, so that few are read twice, as far as memory allows."""
    side = max(BLOCK, CHUNK * -(-int(4 * tile) // CHUNK))
    while side > CHUNK and 4 * n_channels * side**2 > BLOCK_BYTES:
        side -= CHUNK
    return side
