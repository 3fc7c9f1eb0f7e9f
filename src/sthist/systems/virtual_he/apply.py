"""Virtual H&E of a whole section."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist import _sample, _store, scale
from sthist._sample.elements import region_geometry
from sthist._sample.samples import over_samples
from sthist._sample.verbs import verb
from sthist._settings import logger, settings
from sthist.systems.virtual_he.generator import VirtualStainModel
from sthist.systems.virtual_he.models.beer_lambert import BeerLambert
from sthist.systems.virtual_he.translator import Translator
from sthist.tiles import Canvas, map_tiles
from sthist.tiles._blocks.canvas import Layout
from sthist.tiles._blocks.estimate import plan_tiles
from sthist.tiles._images.image import open_image
from sthist.tiles._images.reader import MAX_UPSAMPLING
from sthist.training.model import BUILT_IN, Model, known_name, load

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from shapely.geometry.base import BaseGeometry
    from spatialdata import SpatialData

    from sthist.systems.virtual_he.generator import PreparedSection
    from sthist.tiles import Image, Plan


MUCH_COARSER = 2.0
"""Times that an image may be coarser than its stain before it is said."""


@verb
def virtual_he(
    data: SpatialData | Mapping[str, SpatialData],
    model: str | Path | VirtualStainModel = "beer-lambert",
    *,
    image: str | Sequence[str] | Mapping[str, int] | None = None,
    channel: str | None = None,
    points: str | None = None,
    table: str | None = None,
    tissue: str | Mapping[str, str] | None = None,
    stain_reference: Any = None,
    within: Any = None,
    mpp: float | None = None,
    key_added: str = "virtual_he",
    batch_size: int = 16,
    device: str | None = None,
    seed: int | None = None,
    overwrite: bool = False,
    client: Any = None,
    dry_run: bool = False,
    progress: bool | None = None,
) -> Plan | dict[str, Plan] | None:
    """Make a virtual H&E image from the nuclear stain and the molecules of a section.

    Everything is found by itself where there is one candidate. The whole section is worked through block by block;
    a run that was stopped is continued by the same call, and gives the same image.

    The built-in ``"beer-lambert"`` model shows nuclei where the stain has them and pink where RNA is dense. It is a
    view for the eye, in colours that pathologists read, not a prediction of the H&E stain: see
    :class:`sthist.models.BeerLambert` for what it cannot know.

    Parameters
    ----------
    data
        One sample, or a mapping of name to sample, with a nuclear stain registered in ``um`` (:func:`sthist.io.xenium`,
        :func:`sthist.io.assemble`, or :func:`sthist.pp.set_scale`).
    model
        ``"beer-lambert"``, ``"st2he-small"``, the folder of a saved model, or a model
        (:func:`sthist.tl.train_virtual_he`).
    image, channel
        The nuclear stain: key (several keys that tile one plane) and channel. Of a stack its maximum over all planes is
        taken, or one plane: ``image={"stain": 3}``.
    points
        The transcripts.
    table
        The cells, used where molecules are few or missing.
    tissue
        Which tissue it is, for a model that was trained on several; of several samples, by name.
    stain_reference
        A real H&E whose stain colours and strengths to take: an (h, w, 3) uint8 array, ``(sdata, key)``, or a
        SpatialData with one H&E image. For ``"beer-lambert"``, and for models that say how much stain there is
        (``target="stains"``), which also take a :class:`sthist.pp.StainReference`.
    within
        Part of the section: a box (x0, y0, x1, y1) in µm, a polygon in µm, or the key of shapes. Outside of a polygon
        the image is white. What is measured of the section (background, spread) is measured on all of it.
    mpp
        µm per pixel of the result; the model's own by default (the nuclear stain's for ``"beer-lambert"``). A stain
        that is more than 1.5 times coarser is refused unless it is given.
    key_added
        Name of the image.
    batch_size
        Tiles per batch.
    device
        Where a network runs; ``settings.device`` by default.
    seed
        Of the places at which the section's stain is measured; ``settings.seed`` by default.
    overwrite
        Replace an image of that name.
    client
        A ``dask.distributed.Client``: the blocks run on its workers, which see the store under the same path. The
        result is the same as without.
    dry_run
        Write nothing; measure the section, try a few tiles, and return what the run takes.
    progress
        Show a progress bar; ``settings.progress`` by default.

    Returns
    -------
    None; with ``dry_run=True`` a :class:`sthist.tiles.Plan`, or one per sample. Writes ``sdata.images[key_added]`` ((3,
    y, x) uint8, a pyramid, registered in ``um`` and in the coordinate systems of the nuclear stain) and
    ``sdata.attrs["sthist"]["results"][key_added]``; also to the store of a backed object.

    Raises
    ------
    KeyError
        If an element or channel that was named, or is needed, is missing; if the tissue of a sample is missing, or
        unknown to the model.
    ValueError
        If several elements could be meant; if the name is taken; if the stain has no scale, is too coarse, or shows no
        tissue; if the transcripts do not lie on it; if ``data`` is several samples in one; if there is a ``client``,
        and the object is not backed by a store.
    PermissionError, RuntimeError
        If the store is read-only; if another process is writing to it, or workers do not see it or run other versions.
    OSError
        If the disk is too small, or full; what was done is continued when there is room.

    Examples
    --------
    >>> import sthist
    >>> sdata = sthist.datasets.toy(size_um=200)
    >>> sthist.tl.virtual_he(sdata)
    >>> sdata["virtual_he"].shape
    (3, 400, 400)
    """
    tissues = _tissues(data, tissue)

    @cache  # once for all samples, and not before the first of them is known to be right
    def resolved() -> VirtualStainModel:
        chosen = _resolve_model(model, stain_reference, seed)
        for each in tissues.values():
            _made_ready(chosen, each, None)  # whether it knows them all
        return chosen

    @lru_cache(maxsize=1)  # one network on the device at a time
    def for_tissue(tissue: str | None) -> VirtualStainModel:
        return _made_ready(resolved(), tissue, device)

    def ready(section: SpatialData) -> VirtualStainModel:
        return for_tissue(tissues[id(section)] if tissues else tissue)  # type: ignore[arg-type]

    return _of_sample(
        data,
        ready,
        image=image,
        channel=channel,
        points=points,
        table=table,
        within=within,
        mpp=mpp,
        key_added=key_added,
        batch_size=batch_size,
        seed=settings.seed if seed is None else int(seed),
        overwrite=overwrite,
        client=client,
        dry_run=dry_run,
        progress=progress,
    )


@over_samples
def _of_sample(
    sdata: SpatialData,
    ready: Callable[[SpatialData], VirtualStainModel],
    *,
    image: str | Sequence[str] | Mapping[str, int] | None,
    channel: str | None,
    points: str | None,
    table: str | None,
    within: Any,
    mpp: float | None,
    key_added: str,
    batch_size: int,
    seed: int,
    overwrite: bool,
    client: Any,
    dry_run: bool,
    progress: bool | None,
) -> Plan | None:
    keys, z = _plane_of(image)
    elements = _sample.find_high_res(sdata, image=keys, channel=channel, points=points, table=table, z=z)
    _store.require_free(sdata, key_added, "images", overwrite=overwrite)
    model = ready(sdata)
    stain = open_image(sdata, elements.nuclear)
    given, mpp = mpp, model.mpp(stain) if mpp is None else float(mpp)
    _require_resolution(stain, mpp, given=given is not None)
    if given is None and mpp > MUCH_COARSER * stain.finest_mpp:
        logger.warning(
            "The image will have %.3g µm/px, and the nuclear stain has %.3g: %r makes none that is finer.",
            mpp,
            stain.finest_mpp,
            model.system,
        )
    region = None if within is None else region_geometry(sdata, within)
    canvas_um = stain.extent_um if region is None else _snap(region.bounds, stain.extent_um, mpp)
    if client is not None and _store.store_path(sdata) is None:
        raise ValueError(
            "client= needs an object on disk, which the workers open: write it with sdata.write(path), or "
            "sd.read_zarr(path)."
        )
    options: dict[str, Any] = {
        "batch_size": batch_size,
        "within": None if region is None or region.equals(region.envelope) else region,
    }
    if dry_run:
        start = time.perf_counter()
        stainer = model.prepare(elements, stain, mpp, allow_upsampling=True, seed=seed)
        return plan_tiles(
            stainer.readers,
            stainer.predict,
            Layout.over(canvas_um, mpp),
            _store.working_folder(sdata),
            overlap=stainer.overlap,
            concurrent=stainer.concurrent,
            seconds_before=time.perf_counter() - start,
            n_machines=1 if client is None else max(1, len(client.nthreads())),
            **options,
        )
    with _store.writing(sdata):
        _store.require_free_in_store(_store.store_path(sdata), key_added, "images", overwrite=overwrite)
        stainer = model.prepare(elements, stain, mpp, allow_upsampling=True, seed=seed)
        systems = scale.other_systems([sdata.images[key] for key in stain.keys])
        fingerprint = _fingerprint(stain, model, stainer, systems, region, batch_size, seed)
        digest = hashlib.sha256(json.dumps([fingerprint, canvas_um, mpp], sort_keys=True).encode()).hexdigest()
        with _store.workspace(sdata, key_added, digest) as folder:
            canvas = Canvas(
                folder,
                key_added,
                extent_um=canvas_um,
                mpp=mpp,
                fingerprint=fingerprint,
                transformations=systems,
            )
            map_tiles(
                stainer.readers,
                stainer.predict,
                canvas,
                overlap=stainer.overlap,
                concurrent=stainer.concurrent,
                client=client,
                progress=progress,
                threads=stainer.threads,
                **options,
            )
            tile_px = stainer.readers[0].spec.px
            facts = fingerprint | {"device": model.device_name, "tile_px": tile_px}
            made = _store.provenance("tl.virtual_he", model=model.system, **facts)
            _store.publish(sdata, "images", key_added, canvas.store, made)
    return None


def _plane_of(image: Any) -> tuple[Any, int | None]:
    """Keys of the nuclear stain, and the plane of a stack that a mapping of key to plane names."""
    if not isinstance(image, Mapping):
        return image, None
    planes = set(image.values())
    if len(planes) != 1:
        raise ValueError(
            f"image={dict(image)} names {len(planes)} planes; images that tile the nuclear stain share one."
        )
    return list(image), planes.pop()


def _require_resolution(stain: Image, mpp: float, *, given: bool) -> None:
    """Refuse a stain that is much coarser than the image to be made; where the user gave its µm/px, warn."""
    if stain.coarsest_mpp <= MAX_UPSAMPLING * mpp:
        return
    problem = (
        f"{stain.key!r} has {stain.coarsest_mpp:.4g} µm/px, and the image would have {mpp:.4g} µm/px: more than "
        f"{MAX_UPSAMPLING} times finer than what it shows."
    )
    if not given:
        raise ValueError(f"{problem} Pass mpp={mpp:.6g} to go on.")
    logger.warning(problem)


def _tissues(data: Any, tissue: str | Mapping[str, str] | None) -> dict[int, str]:
    """The tissue of each section, where it is said by sample; empty where it is not."""
    if not isinstance(tissue, Mapping):
        return {}
    if not isinstance(data, Mapping):
        raise ValueError("tissue= is by sample, and one section is given: say its tissue.")
    missing = [name for name in data if name not in tissue]
    if missing:
        raise KeyError(
            f"tissue= says nothing of {len(missing)} samples, such as {missing[0]!r}; it has {list(tissue)[:8]}."
        )
    return {id(section): tissue[name] for name, section in data.items()}


def _resolve_model(model: str | Path | VirtualStainModel, stain_reference: Any, seed: int | None) -> VirtualStainModel:
    """The model, made ready for a stain where it knows of such."""
    if known_name(model, BUILT_IN) == BeerLambert.system:
        model = BeerLambert()
    loaded: Model = model if isinstance(model, Model) else load(model)
    if not isinstance(loaded, VirtualStainModel):
        raise ValueError(f"{model} is a model of system {loaded.system!r}, which makes no virtual H&E.")
    if isinstance(loaded, BeerLambert):
        return loaded if stain_reference is None else BeerLambert(loaded.config).fit(stain_reference, seed=seed)
    if stain_reference is None:
        return loaded
    if not isinstance(loaded, Translator) or loaded.config.target != "stains":
        raise ValueError(
            f"stain_reference= is for the model {BeerLambert.system!r}, and for those of target='stains'; this "
            f"{loaded.system!r} has learned its colours."
        )
    return loaded.stained(stain_reference, seed=seed)


def _made_ready(model: VirtualStainModel, tissue: str | None, device: str | None) -> VirtualStainModel:
    """The model for a tissue and a device, where it knows of such."""
    if isinstance(model, Translator):
        # Said once, so that workers compute on the kind of device that this process would.
        return model.to(device or model.device_name, tissue=tissue)
    if isinstance(model, BeerLambert) and tissue is not None:
        raise ValueError(f"tissue= is for networks; {model.system!r} is none.")
    return model


def _snap(
    bounds: tuple[float, float, float, float], extent: tuple[float, float, float, float], mpp: float
) -> tuple[float, float, float, float]:
    """The box around a region on the section's own pixel grid, so that a part equals the same part of the whole."""
    x0, y0 = extent[:2]
    low = [o + np.floor((max(b, o) - o) / mpp + 1e-6) * mpp for b, o in zip(bounds[:2], (x0, y0), strict=True)]
    high = [
        min(o + np.ceil((b - o) / mpp - 1e-6) * mpp, e)
        for b, o, e in zip(bounds[2:], (x0, y0), extent[2:], strict=True)
    ]
    if high[0] <= low[0] or high[1] <= low[1]:
        raise ValueError(
            f"within= spans x {bounds[0]:.1f} to {bounds[2]:.1f}, y {bounds[1]:.1f} to {bounds[3]:.1f} µm, outside the "
            f"nuclear stain (x {extent[0]:.1f} to {extent[2]:.1f}, y {extent[1]:.1f} to {extent[3]:.1f} µm)."
        )
    return (float(low[0]), float(low[1]), float(high[0]), float(high[1]))


def _fingerprint(
    stain: Image,
    model: VirtualStainModel,
    stainer: PreparedSection,
    systems: dict[str, np.ndarray],
    region: BaseGeometry | None,
    batch_size: int,
    seed: int,
) -> dict[str, Any]:
    """What determines the image: the model, the elements, what was measured of them, and how tiles are batched."""
    import dataclasses

    fingerprint = {
        "config": dataclasses.asdict(model.config),
        "section": stainer.facts,
        "matrices": [field.to_um.tolist() for field in stain.fields],
        "systems": {name: matrix.tolist() for name, matrix in systems.items()},
        "within": None if region is None else region.wkt,
        "overlap": stainer.overlap,
        "batch_size": batch_size,
        "seed": seed,
    }
    if type(model).__module__.partition(".")[0] != "sthist":  # a class of the user's, whose config need not say all
        fingerprint["content"] = _store.content_of(model)
    return dict(json.loads(json.dumps(fingerprint)))
