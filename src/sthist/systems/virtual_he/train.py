"""Train a virtual H&E on sections whose H&E is known."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sthist import _store
from sthist._sample.samples import patients_of_rows
from sthist._sample.verbs import verb
from sthist._settings import logger
from sthist._tables.genes import closest
from sthist._tables.rows import core_columns
from sthist.systems.virtual_he.config import TranslationTraining, require_prompts
from sthist.systems.virtual_he.models.pix2pix import Pix2Pix, Pix2PixConfig
from sthist.systems.virtual_he.models.st2he import ST2HE, ST2HEConfig
from sthist.systems.virtual_he.painting import colours_of
from sthist.systems.virtual_he.programmes import PROGRAMMES
from sthist.systems.virtual_he.training_set.choose_tiles import choose_tiles
from sthist.systems.virtual_he.training_set.pairs import SectionPairs, open_section
from sthist.systems.virtual_he.training_set.prompts import Prompts, find_prompts
from sthist.systems.virtual_he.training_set.sections import common_spec, find_sections, same_spec
from sthist.systems.virtual_he.training_set.split import split_tiles
from sthist.systems.virtual_he.translator import Translator
from sthist.tiles import TileSpec
from sthist.tiles._spec import coarser_by
from sthist.training.model import known_name
from sthist.training.options import as_training
from sthist.training.run_folder import TILES, read_tiles, require_resumable, write_tiles
from sthist.training.split_groups import group_rows
from sthist.training.splits import Split, Units, as_split, one_group

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd
    from spatialdata import SpatialData

    from sthist.systems.virtual_he.config import TranslationConfig
    from sthist.systems.virtual_he.training_set.sections import Section

NAMED_SPLITS = ("patient", "sample", "block", "random")


def require_split(sections: Sequence[Section], split: Split) -> None:
    """Refuse a split that no tile has, or that leaves nothing to train on."""
    import pandas as pd

    by, test = split.by, split.test

    names = np.array([section.name for section in sections])
    if not isinstance(by, str):
        group_rows(Units(names, names, pd.DataFrame(index=range(len(names)))), by)
        return
    if by in NAMED_SPLITS:
        groups = {"sample": set(names.tolist()), "patient": _patients(sections)}.get(by, set())
        if test is not None and len(groups) == 1:
            raise ValueError(one_group(by, str(*groups)))
        return
    for section in sections:
        # Tiles that are yet to be laid know their core, where there are cores.
        columns = core_columns(section.sdata, np.empty((0, 2))) if section.laid is None else section.laid.obs.columns
        known = list(map(str, columns))
        if by not in known:
            raise KeyError(
                f"split={by!r} is no column of the tiles of sample {section.name!r}; they have {known}. It is that, "
                f"{', '.join(map(repr, NAMED_SPLITS))}, or a mapping of sample to "
                f"part.{closest(by, [*known, *NAMED_SPLITS])}"
            )


def _patients(sections: Sequence[Section]) -> set[Any]:
    """Patients of the samples; tiles that are yet to be laid know no others."""
    import pandas as pd

    frames = [pd.DataFrame(index=[0]) if section.laid is None else section.laid.obs for section in sections]
    return {
        patient
        for section, obs in zip(sections, frames, strict=True)
        for patient in patients_of_rows(section.sample, obs)
    }


def require_batch(n: int, batch_size: int) -> None:
    """Refuse fewer tiles than a batch."""
    if n < batch_size:
        raise ValueError(
            f"{n} tiles to train on are fewer than a batch of {batch_size}. Lay more or smaller tiles, hold fewer out, "
            "or lower batch_size=."
        )


MODELS = ("small", "sd-turbo", "pix2pix")
SMALL_PX, PAPER_SPEC = 128, TileSpec(size_um=108.8, px=512)

LEAST_DOT_PX = 1.5
"""Width of a dot, of models that start from nothing: the paper's is half a pixel, a shade that is learned away."""


@verb
def train_virtual_he(
    data: SpatialData | Mapping[str, SpatialData],
    model: Literal["small", "sd-turbo", "pix2pix"] | Translator = "small",
    *,
    folder: str | Path | None = None,
    regions: str | None = None,
    image: str | Sequence[str] | None = None,
    points: str | None = None,
    he: str | None = None,
    tissue: str | Mapping[str, str] | None = None,
    split: str | Mapping[str, str] | Split = "block",
    samples: Any = None,
    within: Any = None,
    training: TranslationTraining | Mapping[str, Any] | None = None,
    device: str | None = None,
    progress: bool | None = None,
) -> Translator:
    """Train a model to make H&E out of nuclear stain and transcripts, on sections that have all three.

    Tiles are those that :func:`sthist.pp.tiles` has laid or, where there are none, lie around cells that are spread
    evenly. Tiles that leave an image or show next to nothing are left out, and so are those whose H&E does not lie on
    the nuclear stain: each is measured (:func:`sthist.tiles.tile_shifts_um`). Tiles of a test part are never trained
    on, nor looked at while training. The sections themselves are not changed.

    Parameters
    ----------
    data
        One sample, or a mapping of name to sample that are trained on together, each with an H&E and a nuclear stain
        registered in ``um``.
    model
        ``"small"``: an :class:`sthist.models.ST2HE` that starts from nothing; ``"sd-turbo"``: the paper's, adapters on
        SD-Turbo; ``"pix2pix"``: :class:`sthist.models.Pix2Pix`; or a model, which is trained on.
    folder
        Where checkpoints, pictures, history, the model and ``tiles.csv`` go.
    regions
        Key of laid tiles; by default ``"tiles"``, where all samples have such.
    image, points
        Nuclear stain and transcripts, as of :func:`sthist.tl.virtual_he`.
    he
        Key of the H&E.
    tissue
        Tissue of a tile, for its prompt: the name of a column of the tiles' table, a mapping of sample to tissue, or
        one tissue for all. By default the tissue is not said.
    split
        What validates and tests: whole squares of each section (``"block"``), a ``"sample"``, a ``"patient"``, or
        groups by a column of the tiles' table; a mapping of sample to ``"train"``, ``"validation"`` or ``"test"``; or a
        :class:`sthist.models.Split`, which says which groups test, how much validates, and how large blocks are. By
        default a tenth validates and none tests. ``"random"`` leaks, and the model says so.
    samples
        Table of samples (a frame or a csv file) with the patient of each.
    within
        Part of the sections that tiles are taken from: a box (x0, y0, x1, y1) in µm, a polygon in µm, or the key of
        shapes.
    training
        A :class:`sthist.models.TranslationTraining`, or a mapping of its fields over the defaults of the model:
        ``epochs``, ``steps_per_epoch``, ``batch_size``, ``losses``, ``resume``, ``spec``, ``n_tiles``, ``seed`` and
        others.
    device
        Of torch; ``settings.device`` by default.
    progress
        Show a progress bar; ``settings.progress`` by default.

    Returns
    -------
    The model. Its ``tiles`` is a frame of all tiles that were considered: sample, instance_id, x_um, y_um, part
    (``"train"``, ``"validation"``, ``"test"`` or ``"dropped"``), reason, shift_x_um, shift_y_um, shift_um, confidence,
    tissue. ``config.training`` says how it was trained, and how its tiles were split.

    Raises
    ------
    TypeError
        If there is no such setting of a training.
    KeyError
        If an element, column, sample or group is missing, or a tissue has no prompt; if there are neither laid tiles
        nor cells.
    ValueError
        If an image is not registered in ``um``, too coarse, or lies elsewhere; if tiles do not go through the network,
        or are of other sizes than the model's; if a prompt is blank, or of two tissues; if too few tiles are left, or
        the split is not possible; if the folder's training was on other tiles.
    FileExistsError
        If the folder holds a training, and ``resume`` is not set.
    FileNotFoundError, ConnectionError, PermissionError
        If the backbone, or a file of prompts, cannot be had.

    References
    ----------
    Tiles, prompts and overlays are ST2HE's, which splits tiles at random; neighbours overlap, so that scores of such
    tests are too good.

    Examples
    --------
    >>> import sthist
    >>> sdata = sthist.datasets.toy(size_um=200)
    >>> short = {"spec": sthist.tiles.TileSpec(16, 32), "n_tiles": 40, "epochs": 1, "steps_per_epoch": 2}
    >>> model = sthist.tl.train_virtual_he(sdata, training=short, progress=False, device="cpu")
    >>> model.config.spec, sorted(set(model.tiles["part"]) - {"dropped"})
    (TileSpec(size_um=16.0, px=32), ['train', 'validation'])
    """
    split = as_split(split)
    model = known_name(model, MODELS)
    if not isinstance(model, Translator) and model not in MODELS:
        raise ValueError(
            f"model is {model!r}; it is one of {list(MODELS)}, or a model, such as sthist.models.load(folder) gives."
        )
    options = as_training(TranslationTraining, training, {"batch_size": 1})  # those of the model, once there is one
    if options.backbone is not None and model != "sd-turbo":
        raise ValueError("backbone= is for model='sd-turbo'.")
    path = None if folder is None else Path(folder)
    require_resumable(path, resume=options.resume)
    mode = model.config.mode if isinstance(model, Translator) else options.mode
    sections = find_sections(
        data,
        samples=samples,
        tiles=regions,
        he=he,
        image=image,
        channel=options.channel,
        points=points,
        z=options.z,
        with_points=mode != "none",
    )
    require_split(sections, split)
    spec = common_spec(sections, options.spec, _default_spec(model, sections))
    prompts = find_prompts(sections, tissue, options.prompts)
    config = _config(model, spec, options, prompts)
    n_most = sum(options.n_tiles if section.laid is None else len(section.laid.ids) for section in sections)
    require_batch(n_most, options.batch_size)
    network = _class_of(model)(config) if not isinstance(model, Translator) else model.to()
    network.config = config
    options = as_training(TranslationTraining, training, network.default_training)
    require_batch(n_most, options.batch_size)
    network.require_trainable(options)

    with coarser_by('Pass training={{"spec": {}}}, or training={{"allow_upsampling": True}}.'):
        readers = [
            open_section(section, config, dots_s=options.dot_sizes[1:], allow_upsampling=options.allow_upsampling)
            for section in sections
        ]
    frame, obs = choose_tiles(sections, spec, n_tiles=options.n_tiles, max_shift_um=options.max_shift_um, within=within)
    _say_tissue(frame, sections, prompts)
    leaks, validated_by = split_tiles(frame, obs, spec.size_um, split=split, seed=options.seed)
    rows = {part: np.flatnonzero(frame["part"] == part) for part in ("train", "validation", "test")}
    require_batch(len(rows["train"]), options.batch_size)
    logger.info("Tiles: %s.", ", ".join(f"{len(index)} {part}" for part, index in rows.items()))
    if path is not None:
        _write_tiles(frame, path, resume=options.resume)
    section_of = frame["sample"].map({section.name: k for k, section in enumerate(sections)}).to_numpy()
    texts = [config.prompts.get(name, "") for name in frame["tissue"]]
    centres = frame[["x_um", "y_um"]].to_numpy()
    pairs = SectionPairs(readers, section_of, centres, texts, augment=options.augment)
    validation = pairs.part(rows["validation"]) if len(rows["validation"]) else None
    network.fit(
        pairs.part(rows["train"]),
        validation=validation,
        folder=path,
        training=options,
        device=device,
        progress=progress,
    )
    made = _store.provenance(
        "tl.train_virtual_he",
        samples=[section.name for section in sections],
        n_tiles={part: len(index) for part, index in rows.items()},
        **split.to_dict(),
        validated_by=validated_by if validation is not None else None,
        leaks=leaks,
        max_shift_um=options.max_shift_um,
        z=None if options.z is None else np.asarray(options.z).tolist(),
        augment=options.augment,
        dots_s=None if config.dot_um is not None else [config.dot_s, *options.dot_sizes[1:]],
    )
    network.config = dataclasses.replace(network.config, training={**network.config.training, "data": made})
    network.tiles, network.device = frame, device
    if path is not None:
        network.save(path)
    if isinstance(model, Translator):  # they share the weights
        model.config, model.tiles, model.history, model.device = network.config, frame, network.history, device
        return model
    return network


def _class_of(model: Any) -> type[Translator]:
    if isinstance(model, Translator):
        return type(model)
    return Pix2Pix if model == "pix2pix" else ST2HE


def _default_spec(model: Any, sections: Sequence[Section]) -> TileSpec:
    if isinstance(model, Translator):
        return model.config.spec
    if model == "sd-turbo":
        return PAPER_SPEC
    return TileSpec.from_mpp(max(section.mpp for section in sections), SMALL_PX)


def _config(model: Any, spec: TileSpec, options: TranslationTraining, prompts: Prompts) -> TranslationConfig:
    if isinstance(model, Translator):
        return _continued(model, spec, options.style | _stains_of(options), prompts)
    fields: dict[str, Any] = {**spec.to_dict(), **options.style, "prompts": prompts.texts, "seed": options.seed}
    fields |= _stains_of(options)
    if model != "sd-turbo" and not {"dot_s", "dot_um"} & set(options.style):
        fields["dot_um"] = LEAST_DOT_PX * spec.mpp
    if options.molecules == "groups":
        fields["groups"] = options.groups or PROGRAMMES
    if model == "pix2pix":
        return Pix2PixConfig(**fields)
    if model == "small":
        return ST2HEConfig(**fields)
    return ST2HEConfig.sd_turbo(**({} if options.backbone is None else {"backbone": options.backbone}), **fields)


def _stains_of(options: TranslationTraining) -> dict[str, Any]:
    """The colours that slides are brought to, as a field of a config."""
    if options.stain_reference is None:
        return {}
    if options.target != "stains":
        raise ValueError("stain_reference= is for a training with target='stains'.")
    return {"reference": colours_of(options.stain_reference, seed=options.seed).to_dict()}


def _continued(model: Translator, spec: TileSpec, style: dict[str, Any], prompts: Prompts) -> TranslationConfig:
    """The config of a model that is trained on: its own, with tissues that are new to it."""
    config = model.config
    if not same_spec(spec, config.spec):
        raise ValueError(f"The tiles are {spec}, the model is for {config.spec}. Lay such tiles, or leave spec out.")
    for name, value in style.items():
        if value != getattr(config, name) or (name == "dot_s" and config.dot_um is not None):
            raise ValueError(
                f"{name}={value!r}, and the model was trained with {getattr(config, name)!r}: leave it out, or begin a "
                "new model."
            )
    if set(prompts.texts) == {""} and "" not in config.prompts:
        raise ValueError(
            f"The model was trained on the tissues {sorted(config.prompts)}: say with tissue= which one this is."
        )
    for name, text in prompts.texts.items():
        if config.prompts.get(name, text) != text:
            raise ValueError(
                f"The model knows tissue {name!r} by the prompt {config.prompts[name]!r}, not {text!r}; give that one "
                "with prompts=."
            )
    known = {name: text for name, text in config.prompts.items() if name or "" in prompts.texts}
    texts = {**known, **prompts.texts}
    require_prompts(texts)
    return dataclasses.replace(config, prompts=texts)


def _say_tissue(frame: pd.DataFrame, sections: Sequence[Section], prompts: Prompts) -> None:
    """Fill in the tissue of each tile; tiles without a prompt are dropped."""
    sizes = frame["sample"].value_counts()
    named = [
        np.full(sizes[section.name], tissue, object) if isinstance(tissue, str) else tissue
        for section, tissue in zip(sections, prompts.tissues, strict=True)
    ]
    values = np.concatenate(named)
    without = np.array([value is None for value in values])
    frame["tissue"] = np.where(without, "", values)
    frame.loc[without & (frame["part"] != "dropped").to_numpy(), ["part", "reason"]] = ["dropped", "no prompt"]
    if without.any():
        logger.info("%d of %d tiles have no prompt, and are left out.", int(without.sum()), len(frame))


def _write_tiles(frame: pd.DataFrame, folder: Path, *, resume: bool) -> None:
    """Write the tiles; a training that goes on has to be on the same ones."""
    before = read_tiles(folder) if resume else None
    if before is not None and not _are_alike(before, frame):
        raise ValueError(
            f"{folder / TILES} names other tiles, or another split, than these data and arguments give: the training "
            "cannot go on with them."
        )
    write_tiles(folder, frame)


NANOMETRE = 1e-3


def _are_alike(before: pd.DataFrame, frame: pd.DataFrame) -> bool:
    """Whether two lists are of the same tiles, in the same parts: a computed place may differ by a nanometre."""
    names = ["sample", "instance_id", "part", "tissue"]
    if len(before) != len(frame) or not np.array_equal(before[names].astype(str), frame[names].astype(str)):
        return False
    places, now = (each[["x_um", "y_um"]].to_numpy(float) for each in (before, frame))
    return bool((np.abs(places - now) <= NANOMETRE).all())
