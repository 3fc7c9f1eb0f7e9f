"""Train the central model on H&E, and adapt it to the spots of one site."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sthist._sample.samples import naming, samples_of
from sthist._sample.verbs import verb
from sthist._settings import logger
from sthist._tables.rows import rows_of
from sthist.pp import StainNormalizer, StainReference, stain_normalize
from sthist.pp._embed_source import find_regions, laid_spec
from sthist.regression.rows import as_trained, expression_rows
from sthist.scale import TOLERANCE
from sthist.systems.synthesis.config import CENTRAL, LOCAL, C2LConfig, DiffusionTraining, shape_of
from sthist.systems.synthesis.model import C2L
from sthist.systems.synthesis.spots import chosen_rows, expression_of_adaptation, sample_and_name
from sthist.tiles import FolderReader, TileReader, TileSpec
from sthist.tiles._images.image import open_he
from sthist.tiles._sampling import lies_inside
from sthist.tiles._spec import coarser_by
from sthist.training.batches import Tiles
from sthist.training.crops import drawn, kept_rows, kept_tiles, regions_on_image
from sthist.training.embeddings import is_folder, table_spec, tiles_of
from sthist.training.options import as_training
from sthist.training.run_folder import require_resumable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sthist.training.rows import SampleRows

WHITE = 255
N_MEASURED = 200
"""Tiles of a folder by which its stain is measured."""

SHAPES = ("small", "paper")
COARSER = "Train a central model of coarser tiles, no finer than {}: sthist.models.C2LConfig.small(px=...)."


@verb
def train_central(
    data: Any,
    model: Literal["small", "paper"] | C2LConfig | C2L = "small",
    *,
    regions: str | None = None,
    image: str | None = None,
    stain_reference: Literal["macenko", "reinhard"] | str | Path | StainReference | None = None,
    max_tiles: int = 1_000_000,
    within: Any = None,
    folder: str | Path | None = None,
    training: DiffusionTraining | Mapping[str, Any] | None = None,
    device: str | None = None,
    progress: bool | None = None,
) -> C2L:
    """Train the central model of C2L-ST: a diffusion model of H&E tiles, which knows of no genes.

    Tiles are read around the regions of slides, such as those of :func:`sthist.pp.tiles`, at the model's own size, and
    from folders of tiles; those that leave their image are left out. The model says how many tiles it has seen, and not
    of which samples. ``"paper"`` takes days of several accelerators as published; ``"small"`` minutes of one.

    Parameters
    ----------
    data
        A SpatialData with an H&E, a table of :func:`sthist.io.tile_folder`, or a mapping of sample name to such. No
        counts are looked at.
    model
        ``"small"`` or ``"paper"``; a :class:`sthist.models.C2LConfig`; or a model, which is trained on.
    regions
        Key of the shapes around whose centres tiles are read; by default ``"tiles"``, or else spots.
    image
        Key of the H&E.
    stain_reference
        Normalise all tiles to one stain, which the model keeps, and adapters of it, too: ``"macenko"`` or
        ``"reinhard"`` for the built-in reference of the method, or a reference or its file. Each slide is measured as
        of :func:`sthist.pp.stain_normalize`, a folder on some of its tiles. Where real tiles stand beside synthetic
        ones they have to be normalised, too. By default tiles are taken as they are.
    max_tiles
        Tiles to train on at most, drawn from all.
    within
        Part of each slide: a box (x0, y0, x1, y1) in µm, a polygon in µm, or the key of shapes.
    folder
        Where, after each epoch, a checkpoint, the model so far and ``metrics.csv`` are kept, to go on from with
        ``training={"resume": True}``; and where the model is saved.
    training
        A :class:`sthist.models.DiffusionTraining`, or a mapping of its fields over the defaults of the model's shape.
    device
        Of torch; ``settings.device`` by default.
    progress
        Show a bar; ``settings.progress`` by default.

    Returns
    -------
    The model: ``model.generate(4)`` makes tiles. ``model.history`` has the ``loss`` of each epoch.

    Raises
    ------
    KeyError
        If a sample has no such regions or image.
    ValueError
        If tiles were laid of another size in µm than the model's, or an image is too coarse for it; if an AnnData has
        no pixels; if the checkpoint in the folder is of another training.
    FileExistsError
        If the folder holds a training, and ``resume`` is not set.

    Examples
    --------
    >>> import sthist
    >>> sdata = sthist.datasets.toy("visium", size_um=900)
    >>> config = sthist.models.C2LConfig(px=16, dim=8, multipliers=(1, 2))
    >>> quick = {"epochs": 1, "steps_per_epoch": 2, "batch_size": 4}
    >>> central = sthist.tl.train_central(sdata, config, training=quick, device="cpu", progress=False)
    >>> central.generate(2, steps=2, device="cpu").shape
    (2, 16, 16, 3)
    """
    fresh = _with_stain(_as_model(model), stain_reference)
    options = as_training(DiffusionTraining, training, CENTRAL[shape_of(fresh.config)])
    path = None if folder is None else Path(folder)
    require_resumable(path, resume=options.resume)
    readers: list[Any] = []
    places: list[np.ndarray] = []
    for sample in samples_of(data):
        with naming(sample.name):
            reader, mine = _tiles_of(sample.data, regions, image, within, fresh.config)
        readers.append(reader)
        places.append(mine)
    chosen = drawn(places, max_tiles, options.seed, "max_tiles")
    logger.info("%d tiles of %d samples are read.", sum(map(len, chosen)), len(readers))
    with kept_tiles(readers, chosen, fresh.config.px) as tiles:
        return fresh.fit(tiles, folder=path, training=options, device=device, progress=progress)


@verb
def adapt_local(
    data: Any,
    model: C2L | str | Path,
    *,
    fraction: float = 0.25,
    genes: Sequence[str] | int | None = None,
    table: str | None = None,
    image: str | None = None,
    within: Any = None,
    latent: int = 128,
    where: Literal["all", "mid+up"] = "all",
    folder: str | Path | None = None,
    training: DiffusionTraining | Mapping[str, Any] | None = None,
    device: str | None = None,
    progress: bool | None = None,
) -> C2L:
    """Adapt a central model to the expression of a few spots, with a small adapter; the central model stays as it is.

    The adapter is a file of its own, ``adapter.safetensors`` in the model's folder. What leaves a site with it are its
    weights, the names of the genes, mean and standard deviation of each over the spots of the adaptation, and what all
    of them sum up to; neither tiles nor expression of a spot.

    Parameters
    ----------
    data
        A SpatialData with spots and an H&E, or a mapping of sample name to such.
    model
        A central model (:func:`train_central`), or the folder of one; an adapter that it has is not looked at.
    fraction
        Part of the spots, drawn at random, that the adapter is trained on; ``model.spots`` says which. Neighbouring
        spots see some of the same tissue: to test on others, keep whole parts of the slide out with ``within``.
    genes
        Genes to listen to, or a number for so many of the most expressed over the spots of the adaptation; by default
        250, or all that there are.
    table
        Key of the table with the genes, where there are several.
    image
        Key of the H&E.
    within
        Part of each slide that spots are taken from: a box (x0, y0, x1, y1) in µm, a polygon in µm, or the key of
        shapes.
    latent
        Numbers that expression is projected to.
    where
        Blocks of the U-Net that are modulated: ``"all"``, or ``"mid+up"`` for those from the middle on.
    folder
        As of :func:`train_central`.
    training
        A :class:`sthist.models.DiffusionTraining`, or a mapping of its fields over the defaults of the model's shape.
        Of fewer spots than a batch, each is in it more than once.
    device
        Of torch; ``settings.device`` by default.
    progress
        Show a bar; ``settings.progress`` by default.

    Returns
    -------
    A model of the same central weights, with the adapter.

    Raises
    ------
    KeyError
        If there is no such table or gene.
    TypeError
        If the model is of another kind.
    ValueError
        If fewer than two spots are left; if tiles were laid of another size in µm than the model's, or the image is too
        coarse for it; if expression is negative or not finite; if the checkpoint in the folder is of another training.

    Examples
    --------
    >>> import sthist
    >>> sdata = sthist.datasets.toy("visium", size_um=900)
    >>> config = sthist.models.C2LConfig(px=16, dim=8, multipliers=(1, 2))
    >>> quick = {"epochs": 1, "steps_per_epoch": 2, "batch_size": 4}
    >>> central = sthist.tl.train_central(sdata, config, training=quick, device="cpu", progress=False)
    >>> local = sthist.tl.adapt_local(sdata, central, fraction=0.5, training=quick, device="cpu", progress=False)
    >>> len(local.adapter.config.genes), local.sha256 == central.sha256
    (60, True)
    """
    import pandas as pd

    central = as_trained(model, C2L, "tl.train_central").central
    options = as_training(DiffusionTraining, training, LOCAL[shape_of(central.config)])
    path = None if folder is None else Path(folder)
    require_resumable(path, resume=options.resume)
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction is {fraction!r}; it is a part of the spots, above 0 and up to 1.")
    rows = expression_rows(data, table, None, within)
    readers, places = readers_of(rows, image, central.config)
    usable = rows_on_image(rows, readers, places, central.config.spec.size_um)
    n = round(fraction * len(usable))
    if n < 2:
        raise ValueError(
            f"fraction={fraction:g} of the {len(usable)} spots whose tile lies on the image is {n}; an adapter needs "
            "two at least, and learns little from less than some dozens."
        )
    mine = np.sort(np.random.default_rng(options.seed).choice(usable, n, replace=False))
    adapted, expression, names, described = expression_of_adaptation(chosen_rows(rows, mine), genes)
    spots = pd.DataFrame(sample_and_name(adapted), columns=["sample", "instance_id"])
    logger.info("The adapter listens to %d genes of %d spots.", len(names), len(adapted))
    with kept_rows(Tiles(readers, places, adapted.sample, adapted.row), central.config.px) as tiles:
        return central.adapt(
            tiles,
            expression,
            names,
            described=described,
            latent=latent,
            where=where,
            spots=spots,
            folder=path,
            training=options,
            device=device,
            progress=progress,
        )


def _as_model(model: Any) -> C2L:
    """A model to begin with: of a shape, or one that is trained on, which stays as it is."""
    if isinstance(model, C2L):
        return model.central
    if isinstance(model, C2LConfig):
        return C2L(model)
    if model in SHAPES:
        return C2L(getattr(C2LConfig, model)())
    raise ValueError(f"model is {model!r}; it is one of {list(SHAPES)}, a C2LConfig or a C2L.")


def _with_stain(model: C2L, stain_reference: Any) -> C2L:
    """The model with a stain to normalise to; one that was trained keeps its own."""
    if stain_reference is None:
        return model
    if stain_reference in ("macenko", "reinhard"):
        stain_reference = StainReference.default(stain_reference)
    elif isinstance(stain_reference, str | Path):
        stain_reference = StainReference.load(stain_reference)
    stain = stain_reference.to_dict()
    if model.is_fitted and model.config.stain != stain:
        raise ValueError(
            "The model was trained on tiles that were normalised to another stain, or not at all: leave "
            "stain_reference= out, or train a new one."
        )
    model.config = replace(model.config, stain=stain)
    return model


def _normalizer(data: Any, image: str | None, config: C2LConfig) -> StainNormalizer | None:
    """What brings a slide, or a folder of tiles, to the stain that a model knows."""
    if config.stain is None:
        return None
    reference = StainReference.from_dict(config.stain)
    if hasattr(data, "images"):
        return stain_normalize(data, image, method=reference.method, reference=reference)
    some = np.unique(np.linspace(0, data.n_obs - 1, N_MEASURED).astype(int))
    tiles = FolderReader(data, config.spec).read(some)
    return StainNormalizer(StainReference.fit(np.concatenate(tiles), method=reference.method), reference)


def _tiles_of(
    data: Any, regions: str | None, image: str | None, within: Any, config: C2LConfig
) -> tuple[Any, np.ndarray]:
    """A reader of tiles of a slide or of a folder, and their places."""
    spec = config.spec
    if not hasattr(data, "images"):
        if not is_folder(data):
            raise ValueError("An AnnData has no pixels: pass the SpatialData, or a table of io.tile_folder.")
        if within is not None or regions is not None:
            raise ValueError("within= and regions= are for slides; a folder of tiles has neither: leave rows out.")
        with coarser_by(COARSER):
            return FolderReader(data, spec, normalizer=_normalizer(data, None, config)), np.arange(data.n_obs)
    he = open_he(data, image)
    if regions is None:
        regions = "tiles" if "tiles" in data.shapes else find_regions(data)
    key = regions
    _require_size(laid_spec(data, rows_of(data, key)), spec, f"{key!r}")
    places = regions_on_image(data, key, he, spec.size_um, within)
    with coarser_by(COARSER):
        return TileReader.from_image(he, spec, fill=WHITE, normalizer=_normalizer(data, image, config)), places


def _require_size(laid: TileSpec | None, spec: TileSpec, where: str) -> None:
    """Refuse tiles that were laid of another size than the model's; in how many pixels does not matter."""
    if laid is not None and abs(laid.size_um / spec.size_um - 1) > TOLERANCE:
        raise ValueError(
            f"The tiles of {where} show {laid.size_um:g} µm, and the model is for tiles of {spec.size_um:g} µm "
            f"({spec.mpp:.4g} µm/px). Lay such tiles with pp.tiles, or train a central model of theirs: "
            f"sthist.models.C2LConfig(size_um={laid.size_um:g})."
        )


def readers_of(rows: SampleRows, image: str | None, config: C2LConfig) -> tuple[list[Any], list[np.ndarray]]:
    """Readers of the tiles of each table, and the places of all of its rows."""
    for adata, name in zip(rows.tables, rows.names, strict=True):
        if not is_folder(adata):
            _require_size(table_spec(adata), config.spec, name)
    readers, places = [], []
    for sample, adata, name in zip(rows.samples, rows.tables, rows.names, strict=True):
        has_pixels = hasattr(sample.data, "images") or is_folder(adata)  # what has none is refused below
        normalizer = _normalizer(sample.data, image, config) if has_pixels else None
        reader, mine = tiles_of(sample.data, adata, config.spec, image, name, coarser=COARSER, normalizer=normalizer)
        readers.append(reader)
        places.append(mine)
    return readers, places


def rows_on_image(rows: SampleRows, readers: list[Any], places: list[np.ndarray], size_um: float) -> np.ndarray:
    """Rows whose tile lies on the image; those of a folder always do."""
    usable = np.ones(len(rows), np.bool_)
    for i, reader in enumerate(readers):
        if isinstance(reader, TileReader):
            mine = rows.sample == i
            usable[mine] = lies_inside(reader.image, places[i][rows.row[mine]], size_um)
    if not usable.all():
        logger.info("%d of %d spots lie too near the border of the image.", int((~usable).sum()), len(usable))
    return np.flatnonzero(usable)
