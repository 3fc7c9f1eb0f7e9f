"""Embeddings of tiles, spots and nuclei."""

from __future__ import annotations

import hashlib
import json
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sthist import _sample, _store
from sthist._sample.samples import over_samples
from sthist._sample.verbs import verb
from sthist._settings import logger
from sthist.pp._embed_source import FeatureTable, RegionSource, find_source, standardized
from sthist.tiles._blocks.array import ResumableArray, TileEmbedder
from sthist.tiles._blocks.run import run_pending

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from anndata import AnnData
    from spatialdata import SpatialData

    from sthist.encoders import Encoder
    from sthist.tiles import TileSpec

DEFAULT_BATCH = 32
LARGEST_BATCH = 1024
MEMORY_SHARE = 0.8
"""Of a device's free memory that a batch may take."""


@verb
def embed(
    data: SpatialData | AnnData | Mapping[str, SpatialData | AnnData],
    encoder: str | Encoder | Callable[[Any], Any] | Sequence[Any] = "morphology",
    *,
    image: str | None = None,
    regions: str | None = None,
    spec: TileSpec | None = None,
    normalizer: Callable[[np.ndarray], np.ndarray] | Literal["self"] | None = None,
    weights: str | Path | None = None,
    precision: str | None = None,
    batch_size: int | Literal["auto"] = "auto",
    device: str | Sequence[str] | None = None,
    outside: Literal["error", "nan"] = "error",
    within: Any = None,
    client: Any = None,
    as_table: bool = False,
    key_added: str | None = None,
    overwrite: bool = False,
    progress: bool | None = None,
) -> None:
    """Embed the tile around each region: what every predictor of sthist stands on.

    Tiles are read once, in the order in which they lie on disk, and normalised on the device; the rows go to disk as
    they are made, so that memory holds a few hundred tiles, however many there are, until the finished embeddings are
    put into the table. A run that was stopped is continued by the same call, and one that is finished is not repeated,
    unless with ``overwrite=True``. A function or module of your own is known by its content: code, closure, arguments,
    attributes, weights; where that cannot be told, all is computed anew.

    Parameters
    ----------
    data
        One sample, or a mapping of name to sample; or a folder of tiles (:func:`sthist.io.tile_folder`).
    encoder
        As of :func:`sthist.encoders.get`: ``"morphology"``, which needs no weights, ``"uni"``, ``"timm:resnet18"``, a
        function, a trained :class:`sthist.models.MoCoV3` or its folder, a list of several, ...
    image
        The image; by default the H&E, or the virtual H&E where there is no other.
    regions
        Key of shapes or of their table: tiles, spots, nuclei, cores. By default the tiles of :func:`sthist.pp.tiles`,
        or the spots.
    spec
        How much tissue a tile shows, and on how many pixels; by default that of the tiles, else the one that the
        encoder was trained for. Of nuclei (shapes called so, or made by ``pp.nuclei``), 12 µm on 48 px unless the
        encoder was trained on cells; encoders that take other pixels resize these, and images that are coarser are
        sampled more finely than they are. What lies outside of the image is white, as glass.
    normalizer
        What :func:`sthist.pp.stain_normalize` returned; applied to each tile before it is embedded. ``"self"``: red,
        green and blue of the tiles of each sample get the mean and spread that the encoder expects, measured on up to
        1,000 of them, which makes up for another scanner or stain; by default they are left as they are.
    weights, precision
        As of :func:`sthist.encoders.get`, which takes more: an encoder that it has loaded is taken, too.
    batch_size
        Tiles at a time on the device. ``"auto"``: 32 on a processor; on an accelerator it grows until its memory is
        used.
    device
        Of torch, or several, which share the work.
    outside
        What becomes of regions whose centre lies outside the image: ``"nan"`` gives them rows of NaN.
    within
        Part of the slide: a box (x0, y0, x1, y1) in µm, a polygon, or the key of shapes. Regions whose centre lies
        elsewhere are not embedded: they keep the rows of ``obsm[key_added]`` that this encoder has made of such tiles
        before (``overwrite=True``), else get NaN.
    client
        A ``dask.distributed.Client`` on whose workers the work is done; needs an object on disk.
    as_table
        Make a table of its own, whose columns are the features, in place of an entry of ``obsm``: scanpy and squidpy
        take it as they take cells and genes. Regions without an embedding are left out.
    key_added
        Key in ``obsm``; by default ``"X_"`` and the encoder's name, such as ``"X_uni"`` or ``"X_conch_uni"``. With
        ``as_table`` the key of the table; by default that of the regions' table and the encoder's name, such as
        ``"tiles_table_uni"``.
    overwrite
        Replace embeddings of this key: they are computed anew.
    progress
        Show a bar.

    Returns
    -------
    None. Writes, also to the store of a backed object, to the table of the regions (a new one, ``"<regions>_table"``,
    where they have none):

    * ``obsm[key_added]``: (n, d) float32;
    * for an encoder whose dimensions have names, such as ``"morphology"``, ``uns[key_added + "_features"]``: a frame
      with one row per dimension, by name, and its ``meaning``;
    * ``uns["sthist"][key_added]``: the encoder with the hash of its weights, image, spec, device.

    With ``as_table`` it writes ``tables[key_added]`` instead:

    * ``X``: (n, d) float32; ``var_names`` are the names of the features, ``"uni_0"`` and so on where they have none,
      and ``var["meaning"]`` is what they are;
    * the columns of ``obs``, ``obsm["spatial"]`` in µm, and the link to the regions, as of the regions' table;
    * ``uns["sthist"][key_added]``, as above.

    Raises
    ------
    KeyError
        If there is no such image, region or encoder.
    ValueError
        If it is not clear which image, regions or tile are meant; if a folder of tiles is to become a table; if the
        tile's µm/px is not the one that the encoder was trained for (pass ``spec=`` if you mean it); if a region has no
        place or lies outside the image; if the key is taken.
    ConnectionError, PermissionError, FileNotFoundError, ImportError
        If the encoder cannot be had: the message says what to do.

    Examples
    --------
    >>> import sthist
    >>> sdata = sthist.datasets.toy(size_um=300)
    >>> sthist.pp.tissue(sdata)
    >>> sthist.pp.tiles(sdata, size_um=56, px=112)
    >>> sthist.pp.embed(sdata, "morphology", progress=False)
    >>> table = sdata["tiles_table"]
    >>> table.obsm["X_morphology"].shape[1] == len(table.uns["X_morphology_features"])
    True
    """
    from sthist.encoders import get

    @cache  # once for all samples, and not before the first of them is known to be right
    def load(each: str | None) -> Encoder:
        return get(encoder, weights=weights, device=each, precision=precision)

    devices = [device] if device is None or isinstance(device, str) else list(device)
    _embed_sample(
        data,
        lambda: [load(each) for each in devices],
        image=image,
        regions=regions,
        spec=spec,
        normalizer=normalizer,
        batch_size=batch_size,
        outside=outside,
        within=within,
        client=client,
        as_table=as_table,
        key_added=key_added,
        overwrite=overwrite,
        progress=progress,
    )


@over_samples
def _embed_sample(
    data: SpatialData | AnnData,
    load: Callable[[], list[Encoder]],
    *,
    image: str | None,
    regions: str | None,
    spec: TileSpec | None,
    normalizer: Callable[[np.ndarray], np.ndarray] | Literal["self"] | None,
    batch_size: int | Literal["auto"],
    outside: Literal["error", "nan"],
    within: Any,
    client: Any,
    as_table: bool,
    key_added: str | None,
    overwrite: bool,
    progress: bool | None,
) -> None:
    source = find_source(data, image, regions, spec)
    encoders = load()
    spec = source.settled_spec(encoders[0])
    # What an encoder was trained on is no reason to show it more than a nucleus.
    strict = not (source.spec_given or source.nuclei)
    encoders = [each if spec is None else each.at(spec, strict=strict) for each in encoders]
    first = encoders[0]
    if isinstance(normalizer, str) and normalizer != "self":
        raise ValueError(f"normalizer is {normalizer!r}; it is 'self', a normaliser, a function of tiles, or None.")
    target: Any = source
    if as_table:
        if not isinstance(source, RegionSource):
            raise ValueError("as_table=True makes a table of a SpatialData; a folder of tiles is none.")
        target = FeatureTable(source, first)
    key = _sample.safe_key(key_added or (target.default_key if as_table else first.key))
    if client is not None and source.store is None:
        raise ValueError(
            "client= needs an object on disk, which the workers open: write it with sdata.write(path), or "
            "sd.read_zarr(path)."
        )
    reader = source.reader(first, None if isinstance(normalizer, str) else normalizer)
    chosen = source.lie_within(within)
    inside = source.require_inside(reader, outside, chosen)
    if isinstance(normalizer, str):
        normalizer = standardized(reader, source.places[inside], first)
        reader = source.reader(first, normalizer)
    facts = {
        "encoder": encoder_facts(first),
        "spec": reader.spec.to_dict(),
        "normalizer": None if normalizer is None else _content(normalizer),
        "source": source.identity(reader, inside),
    }
    if within is not None:
        facts["within"] = hashlib.blake2b(chosen.tobytes(), digest_size=16).hexdigest()
    facts = json.loads(json.dumps(facts, default=str))
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    made = target.made(key)
    if made is not None and made.get("digest") == digest and not overwrite:
        logger.info("%s is there already, from the same input and settings.", target.called(key))
        source.discard(key)
        return
    target.require_free(key, overwrite=overwrite)
    batch = _fitting_batch(first, reader.spec.px) if batch_size == "auto" else int(batch_size)
    work = Work(encoders, reader, source.places[inside], batch, client, progress)
    known = target.known(digest) if as_table and not overwrite else None
    with nullcontext(Path()) if known is not None else source.workspace(key, digest) as folder:
        if known is not None:
            values = known
        else:
            with source.writing():
                values = work.embed(folder, key, facts, inside)
        if made is not None and _made_by(made, facts) and not as_table:
            values[~chosen] = source.values(key)[~chosen]
        made = _store.provenance(
            "pp.embed",
            encoder=first.name,
            provenance=getattr(first, "provenance", {}),
            image=source.image,
            spec=reader.spec.to_dict(),
            batch_size=batch,
            n_outside=int((chosen & ~inside).sum()),
            digest=digest,
            **{name: value for name, value in facts["encoder"].items() if name == "own"},
        )
        target.add(key, values, first.features, made)


def encoder_facts(encoder: Encoder) -> dict[str, Any]:
    """What decides the numbers; where they are computed does so only in the last digits."""
    from sthist.encoders._encoder import own_content

    provenance = getattr(encoder, "provenance", {})
    facts = {name: value for name, value in provenance.items() if name != "device"} | {"name": encoder.name}
    own = own_content(encoder)
    return facts if own is None else facts | {"own": own}


def _content(normalizer: Any) -> str:
    """What a normaliser does: its values, or the content of a function of the user's."""
    if hasattr(normalizer, "to_dict"):
        return json.dumps(normalizer.to_dict(), sort_keys=True)
    return _store.content_of(normalizer)


def _made_by(made: dict[str, Any], facts: dict[str, Any]) -> bool:
    """Whether embeddings that are there are of the same encoder, and of such tiles."""
    encoder = facts["encoder"]
    known = (made.get("encoder"), made.get("spec"), made.get("own"))
    return known == (encoder["name"], facts["spec"], encoder.get("own"))


@dataclass(frozen=True)
class Work:
    """What is to be embedded, and with what."""

    encoders: list[Encoder]
    reader: Any
    places: np.ndarray
    batch_size: int
    client: Any
    progress: bool | None

    def embed(self, folder: Path, name: str, facts: dict[str, Any], inside: np.ndarray) -> np.ndarray:
        """Embed all places in a folder, run by run; then a row for each, and NaN for those that are not inside."""
        order = self.reader.order(self.places)
        array = ResumableArray(folder, name, (len(order), self.encoders[0].dim), facts)
        embedder = TileEmbedder(self.reader, self.encoders, self.places[order], self.batch_size)
        run_pending(embedder, array, client=self.client, progress=self.progress, threads=embedder.threads)
        values = np.full((len(inside), self.encoders[0].dim), np.nan, np.float32)
        rows = np.flatnonzero(inside)[order]
        for run, part in array:
            values[rows[run.start : run.stop]] = part
        return values


def _fitting_batch(encoder: Encoder, px: int) -> int:
    """The largest power of two that a device has memory for, by the growth from one batch to one of twice the size."""
    import torch

    device = getattr(encoder, "device", None)
    if device is None or torch.device(device).type != "cuda":
        return DEFAULT_BATCH
    used = []
    for n in (DEFAULT_BATCH, 2 * DEFAULT_BATCH):
        torch.cuda.reset_peak_memory_stats(device)
        encoder.embed(np.full((n, px, px, 3), 255, np.uint8))
        used.append(torch.cuda.max_memory_allocated(device))
    per_tile = max(1.0, (used[1] - used[0]) / DEFAULT_BATCH)
    free = MEMORY_SHARE * torch.cuda.mem_get_info(device)[0]
    fitting = DEFAULT_BATCH
    while 2 * fitting <= LARGEST_BATCH and 2 * fitting * per_tile < free:
        fitting *= 2
    return fitting
