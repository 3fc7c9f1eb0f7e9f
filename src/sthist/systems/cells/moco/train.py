"""Train an encoder of cells on the nuclei of slides."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sthist._sample.samples import naming, samples_of
from sthist._sample.verbs import verb
from sthist._settings import logger
from sthist._tables.genes import closest
from sthist.pp._embed_source import PAPER, warn_of_coarse
from sthist.systems.cells.moco.model import MoCoV3, MoCoV3Config
from sthist.systems.cells.moco.training_module import MoCoTraining
from sthist.tiles import TileReader
from sthist.tiles._images.image import open_he
from sthist.training.crops import drawn, kept_tiles, regions_on_image
from sthist.training.options import as_training
from sthist.training.run_folder import require_resumable

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

    from sthist.tiles import TileSpec

PARTS = ("train", "validation", "test")


@verb
def train_cell_encoder(
    data: Any,
    model: str | MoCoV3Config | MoCoV3 = "moco-v3",
    *,
    cells: str = "nuclei",
    image: str | None = None,
    max_cells: int = 1_000_000,
    split: Mapping[str, str] | None = None,
    within: Any = None,
    folder: str | Path | None = None,
    training: MoCoTraining | Mapping[str, Any] | None = None,
    device: str | None = None,
    progress: bool | None = None,
) -> MoCoV3:
    """Train an encoder of cells on crops of nuclei, without labels.

    A crop half as wide again as what is embedded (18 µm by default) is read around the middle of each nucleus, once;
    nuclei whose crop leaves the image are left out. By default it is trained as published, a ResNet-50 for 150 epochs
    in batches of 4,096, which takes an accelerator; see :class:`sthist.models.MoCoV3Config` and
    :class:`sthist.models.MoCoTraining` for less.

    Parameters
    ----------
    data
        A SpatialData with nuclei (:func:`sthist.pp.nuclei`) and an H&E, or a mapping of sample name to such. No counts
        are looked at.
    model
        ``"moco-v3"``, or a config with settings of its own, such as
        ``sthist.models.MoCoV3Config(backbone="resnet18")``.
    cells
        Key of the nuclei, polygons or points, or of their table.
    image
        Key of the H&E.
    max_cells
        Nuclei to train on at most, drawn from all.
    split
        Mapping of sample to ``"train"``, ``"validation"`` or ``"test"``: only samples that train are looked at, so that
        scores on the others are of slides that the encoder has not seen either. By default all train.
    within
        Part of each sample: a box (x0, y0, x1, y1) in µm, a polygon in µm, or the key of shapes.
    folder
        Where, after each epoch, a checkpoint, the model so far and ``metrics.csv`` are kept, to go on from with
        ``training={"resume": True}``; and where the model is saved.
    training
        A :class:`sthist.models.MoCoTraining`, or a mapping of its fields over the defaults.
    device
        Of torch; ``settings.device`` by default.
    progress
        Show a bar; ``settings.progress`` by default.

    Returns
    -------
    The model, an encoder: ``sthist.pp.embed(sdata, model, regions="nuclei")``. ``model.history`` has ``loss`` and
    ``embedding_std`` of each epoch.

    Raises
    ------
    KeyError
        If a sample has no such nuclei or image, or ``split`` names no sample.
    ValueError
        If fewer than two nuclei are left, or the checkpoint in the folder is of another training.
    RuntimeError
        If the embeddings have collapsed.

    Notes
    -----
    The paper trains on all slides, also those that test: no expression is used. Pass ``split=`` to leave these out.

    Examples
    --------
    >>> import sthist
    >>> sdata = sthist.datasets.toy(size_um=300)
    >>> config = sthist.models.MoCoV3Config(px=16, backbone="resnet10t", width=0.125, hidden=32, dim=16)
    >>> quick = {"epochs": 1, "batch_size": 16}
    >>> model = sthist.tl.train_cell_encoder(
    ...     sdata, config, cells="nucleus_boundaries", training=quick, progress=False
    ... )
    >>> sthist.pp.embed(sdata, model, regions="nucleus_boundaries", progress=False)
    """
    fresh = _as_model(model)
    options = as_training(MoCoTraining, training, {})
    path = None if folder is None else Path(folder)
    require_resumable(path, resume=options.resume)
    readers: list[TileReader] = []
    places: list[np.ndarray] = []
    for name, sample in _trained_on(data, split).items():
        with naming(name):
            reader, mine = _nuclei_of(sample, cells, image, within, fresh.config.crop_spec)
        readers.append(reader)
        places.append(mine)
    chosen = drawn(places, max_cells, options.seed, "max_cells")
    logger.info("Crops of %d nuclei of %d samples are read.", sum(map(len, chosen)), len(readers))
    with kept_tiles(readers, chosen, fresh.config.crop_spec.px) as crops:
        return fresh.fit(crops, folder=path, training=options, device=device, progress=progress)


def _as_model(model: str | MoCoV3Config | MoCoV3) -> MoCoV3:
    """A model that was not trained."""
    if isinstance(model, MoCoV3):
        return MoCoV3(model.config)
    if isinstance(model, MoCoV3Config):
        return MoCoV3(model)
    if isinstance(model, str) and model.casefold().replace("_", "-") in ("moco-v3", "mocov3"):
        return MoCoV3()
    raise ValueError(f"model is {model!r}; it is 'moco-v3', a MoCoV3Config or a MoCoV3.")


def _trained_on(data: Any, split: Mapping[str, str] | None) -> dict[str, Any]:
    """The samples that train, by name."""
    samples = {sample.name: sample.data for sample in samples_of(data)}
    for name, part in (split or {}).items():
        if name not in samples:
            raise KeyError(f"split= names {name!r}; the samples are {list(samples)}.{closest(name, list(samples))}")
        if part not in PARTS:
            raise ValueError(f"split= has {part!r} for {name!r}; a sample is one of {list(PARTS)}.")
    if split is not None and (missing := [name for name in samples if name not in split]):
        raise KeyError(f"split= does not say what sample {missing[0]!r} is for: one of {list(PARTS)}.")
    left = {name: each for name, each in samples.items() if split is None or split[name] == "train"}
    if not left:
        raise ValueError("No sample trains: split= has 'train' for none.")
    return left


def _nuclei_of(sdata: Any, cells: str, image: str | None, within: Any, spec: TileSpec) -> tuple[TileReader, np.ndarray]:
    """A reader of crops, and the centres of the nuclei whose crop lies on the image."""
    if not hasattr(sdata, "images"):
        raise TypeError("An AnnData has no pixels: pass the SpatialData with the H&E and its nuclei.")
    he = open_he(sdata, image)
    reader = TileReader.from_image(he, spec, fill=PAPER, allow_upsampling=True)
    warn_of_coarse(he)
    return reader, regions_on_image(sdata, cells, he, spec.size_um, within)
