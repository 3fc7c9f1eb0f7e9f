"""Train a virtual H&E on sections whose H&E is known."""

from __future__ import annotations

import dataclasses
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sthist import _store
from sthist._sample.samples import patients_of_rows
from sthist._settings import logger, settings
from sthist._tables.genes import closest
from sthist._tables.rows import core_columns
from sthist.systems.virtual_he.config import TranslationTraining, require_prompts
from sthist.systems.virtual_he.models.pix2pix import Pix2Pix, Pix2PixConfig
from sthist.systems.virtual_he.models.st2he import ST2HE, ST2HEConfig
from sthist.systems.virtual_he.training_set.choose_tiles import choose_tiles
from sthist.systems.virtual_he.training_set.pairs import SectionPairs, open_section
from sthist.systems.virtual_he.training_set.prompts import Prompts, find_prompts
from sthist.systems.virtual_he.training_set.sections import common_spec, find_sections, same_spec
from sthist.systems.virtual_he.training_set.split import split_tiles
from sthist.systems.virtual_he.translator import Translator
from sthist.tiles import TileSpec
from sthist.training.run_folder import TILES, read_tiles
from sthist.training.split_groups import group_rows
from sthist.training.splits import Units, one_group

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import pandas as pd

    from sthist.systems.virtual_he.config import TranslationConfig
    from sthist.systems.virtual_he.training_set.sections import Section

NAMED_SPLITS = ("patient", "sample", "block", "random")


def checked_training(training: dict[str, Any]) -> dict[str, Any]:
    """Settings of a training, and the seed, before a model says what else they are."""
    fields = [field.name for field in dataclasses.fields(TranslationTraining)]
    for name in training:
        if name not in fields:
            msg = (
                f"train_virtual_he has no argument {name!r}, and a training no such setting; there are "
                f"{fields}.{closest(name, fields)}"
            )
            raise TypeError(msg)
    settled = {"seed": settings.seed, **training}
    TranslationTraining(**settled)  # its checks
    return settled


def sizes_of_dots(dot_s: float | Sequence[float] | None, dot_um: float | None) -> tuple[float, ...]:
    """The sizes as a tuple, empty where none is given; one alone is one."""
    if dot_s is None:
        return ()
    sizes = tuple(float(size) for size in np.atleast_1d(np.asarray(dot_s, np.float64)))
    if not sizes or not all(np.isfinite(size) and size > 0 for size in sizes):
        msg = f"dot_s is {dot_s!r}; a positive size is needed, or several."
        raise ValueError(msg)
    if dot_um is not None:
        msg = f"Give the size of a dot as dot_um= or as dot_s=, not both ({dot_um!r} and {dot_s!r})."
        raise ValueError(msg)
    return sizes


def require_numbers(n_tiles: int, validation: float, test: Any, max_shift_um: float | None) -> None:
    """Refuse numbers that are out of range."""
    if n_tiles < 1 or n_tiles != int(n_tiles):
        msg = f"n_tiles is {n_tiles!r}; a whole number from 1 on is needed."
        raise ValueError(msg)
    if not 0 <= validation < 1:
        msg = f"validation is {validation!r}; a part of the tiles, from 0 to less than 1, is needed."
        raise ValueError(msg)
    if isinstance(test, int | float) and not 0 < test < 1:
        msg = f"test is {test!r}; as a part of the tiles it lies between 0 and 1."
        raise ValueError(msg)
    if max_shift_um is not None and not max_shift_um >= 0:
        msg = f"max_shift_um is {max_shift_um!r}; it is a length from 0 in µm, or None."
        raise ValueError(msg)


def require_folder(folder: str | Path | None, *, resume: bool) -> None:
    """Refuse what the training would refuse after the tiles were chosen."""
    from sthist.systems.virtual_he.translation_fit import CHECKPOINT

    if folder is None and resume:
        msg = "resume=True needs folder=, in which the training has left its checkpoints."
        raise ValueError(msg)
    if folder is not None and not resume and (Path(folder) / CHECKPOINT).exists():
        msg = f"{Path(folder) / CHECKPOINT} is there already: pass resume=True to go on from it, or another folder=."
        raise FileExistsError(msg)


def require_split(sections: Sequence[Section], split: Any, test: Any) -> None:
    """Refuse a split that no tile has, or that leaves nothing to train on."""
    import pandas as pd

    names = np.array([section.name for section in sections])
    if not isinstance(split, str):
        group_rows(Units(names, names, pd.DataFrame(index=range(len(names)))), split)
        return
    if split in NAMED_SPLITS:
        groups = {"sample": set(names.tolist()), "patient": _patients(sections)}.get(split, set())
        if test is not None and len(groups) == 1:
            raise ValueError(one_group(split, str(*groups)))
        return
    for section in sections:
        # Tiles that are yet to be laid know their core, where there are cores.
        columns = core_columns(section.sdata, np.empty((0, 2))) if section.laid is None else section.laid.obs.columns
        known = list(map(str, columns))
        if split not in known:
            msg = (
                f"split={split!r} is no column of the tiles of sample {section.name!r}; they have {known}. It is "
                f"that, {', '.join(map(repr, NAMED_SPLITS))}, "
                f"or a mapping of sample to part.{closest(split, [*known, *NAMED_SPLITS])}"
            )
            raise KeyError(msg)


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
        msg = (
            f"{n} tiles to train on are fewer than a batch of {batch_size}. Lay more or smaller tiles, hold fewer "
            f"out, or lower batch_size=."
        )
        raise ValueError(msg)


MODELS = ("small", "sd-turbo", "pix2pix")
SMALL_PX, PAPER_SPEC = 128, TileSpec(size_um=108.8, px=512)


def train_virtual_he(
    data: Any,
    model: Literal["small", "sd-turbo", "pix2pix"] | Translator = "small",
    *,
    folder: str | Path | None = None,
    tiles: str | None = None,
    size_um: float | None = None,
    px: int | None = None,
    n_tiles: int = 2000,
    image: str | Sequence[str] | None = None,
    channel: str | None = None,
    points: str | None = None,
    he: str | None = None,
    z: int | tuple[int, int] | None = None,
    mode: Literal["multi", "mono", "none"] | None = None,
    palette: Literal["permuted", "fixed"] | None = None,
    dot_s: float | Sequence[float] | None = None,
    dot_um: float | None = None,
    min_qv: float | None = None,
    tissue: str | Mapping[str, str] | None = None,
    prompts: str | Path | Mapping[str, str] | None = None,
    split: str | Mapping[str, str] = "block",
    test: float | str | Sequence[str] | None = None,
    validation: float = 0.1,
    block_um: float | None = None,
    gap_um: float | None = None,
    samples: Any = None,
    max_shift_um: float | None = 3.0,
    augment: bool = True,
    backbone: str | Path | None = None,
    allow_upsampling: bool = False,
    resume: bool = False,
    device: str | None = None,
    progress: bool | None = None,
    **training: Any,
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
        Where checkpoints, pictures, figures, the model and ``tiles.csv`` go.
    tiles
        Key of laid tiles; by default ``"tiles"``, where all samples have such.
    size_um, px
        Of the tiles, where none are laid. By default 128 px as fine as the coarser of H&E and stain is; for
        ``"sd-turbo"`` 108.8 µm on 512 px.
    n_tiles
        Per sample, where none are laid.
    image, channel, points
        Nuclear stain and transcripts, as of :func:`sthist.tl.virtual_he`.
    he
        Key of the H&E.
    z
        A plane, or the first and the last of several, of the stain and of the transcripts together.
    mode, palette, dot_um, min_qv
        How transcripts are drawn, as of :class:`sthist.tiles.Overlay`: by default in many colours (``"multi"``,
        ``"permuted"``), from a quality of 20 on. The model keeps it, and draws its input so from then on.
    dot_s
        Size of the dots, as ``s`` of the overlay, by default 0.3; of several, one is drawn for each tile, and the first
        is that of predictions.
    tissue
        What the model is told of a tile: the name of a column of the tiles' table, a mapping of sample to tissue, or
        one tissue for all. By default the tissue is not said.
    prompts
        Template with ``{tissue}`` in it, by default ``"This is a {tissue} H&E image"``; or a mapping of tissue to
        prompt, or a JSON file with one. A mapping of tile file to prompt, as :func:`sthist.tiles.export_pairs` writes
        it, takes the place of ``tissue``; laid tiles that it does not name are left out.
    split
        What validates and tests: whole squares of each section (``"block"``), a ``"sample"``, a ``"patient"``, or
        groups by a column of the tiles' table; or a mapping of sample to ``"train"``, ``"validation"`` or ``"test"``.
        ``"random"`` leaks, and the model says so.
    test
        Names of the groups that test, or the part of the tiles that do; by default none, or what ``split`` says.
    validation
        Part of the other tiles that is looked at while training: whole groups, or squares of the sections where one
        group would be more than twice as much.
    block_um, gap_um
        Of ``split="block"``. By default four tiles, fewer on sections so small that little would be left to train on,
        and one.
    samples
        Table of samples (a frame or a csv file) with the patient of each.
    max_shift_um
        Tiles whose H&E lies further off the stain are left out, and so are those with nuclei that match nowhere within
        10 µm. Tiles with too few nuclei to tell stay. None to measure nothing.
    augment
        Turn and mirror pairs, and vary brightness and haze of the stain; the colours of the H&E are never changed.
        Palettes and sizes of dots are drawn anew in any case.
    backbone
        For ``"sd-turbo"``: hub id or folder of SD-Turbo.
    allow_upsampling
        Take images that are more than 1.5 times coarser than the tiles.
    resume
        Go on from the checkpoint in ``folder``.
    device
        Of torch; ``settings.device`` by default.
    progress
        Show a progress bar; ``settings.progress`` by default.
    **training
        Fields of :class:`sthist.models.TranslationTraining`: ``epochs``, ``steps_per_epoch``, ``batch_size``,
        ``losses``, ``seed`` and others.

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
    >>> sdata = sthist.datasets.toy(size_um=300)
    >>> model = sthist.tl.train_virtual_he(
    ...     sdata, size_um=32, px=32, n_tiles=40, epochs=1, steps_per_epoch=2, progress=False, device="cpu"
    ... )
    >>> model.config.spec, sorted(set(model.tiles["part"]) - {"dropped"})
    (TileSpec(size_um=32.0, px=32), ['train', 'validation'])
    """
    settled = checked_training(training)
    dots = sizes_of_dots(dot_s, dot_um)
    max_shift_um = None if max_shift_um is None else float(max_shift_um)
    test = float(test) if isinstance(test, np.floating) else test
    require_numbers(n_tiles, validation, test, max_shift_um)
    require_folder(folder, resume=resume)
    if not isinstance(model, Translator) and model not in MODELS:
        msg = f"model is {model!r}; it is one of {list(MODELS)}, or a model, such as sthist.models.load(folder) gives."
        raise ValueError(msg)
    if backbone is not None and model != "sd-turbo":
        msg = "backbone= is for model='sd-turbo'."
        raise ValueError(msg)
    drawn = {"mode": mode, "palette": palette, "dot_s": dots[0] if dots else None, "dot_um": dot_um, "min_qv": min_qv}
    style: dict[str, Any] = {name: value for name, value in drawn.items() if value is not None}
    drawn_mode = model.config.mode if isinstance(model, Translator) else mode
    sections = find_sections(
        data,
        samples=samples,
        tiles=tiles,
        he=he,
        image=image,
        channel=channel,
        points=points,
        z=z,
        with_points=drawn_mode != "none",
    )
    require_split(sections, split, test)
    spec = common_spec(sections, size_um, px, _default_spec(model, sections, px))
    said = find_prompts(sections, tissue, prompts)
    if isinstance(model, Translator):
        config: TranslationConfig = _continued(model, spec, style, said)
    else:
        config = _new_config(model, spec, style, said, backbone, settled["seed"])
    n_most = sum(n_tiles if section.laid is None else len(section.laid.ids) for section in sections)
    # Its own settings are known only once there is a model; that takes a backbone of gigabytes, this nothing.
    require_batch(n_most, settled.get("batch_size", 1))
    network = model if isinstance(model, Translator) else _made(config)
    chosen = network.training(**settled)
    require_batch(n_most, chosen.batch_size)
    with _configured(network, config):
        network.require_trainable(chosen)

    readers = [
        open_section(section, config, dots_s=dots[1:], allow_upsampling=allow_upsampling) for section in sections
    ]
    frame, known = choose_tiles(sections, spec, n_tiles=n_tiles, max_shift_um=max_shift_um)
    _say_tissue(frame, sections, said)
    leaks, watched_by = split_tiles(
        frame,
        known,
        spec.size_um,
        split=split,
        test=test,
        validation=validation,
        block_um=block_um,
        gap_um=gap_um,
        seed=chosen.seed,
    )
    rows = {part: np.flatnonzero(frame["part"] == part) for part in ("train", "validation", "test")}
    require_batch(len(rows["train"]), chosen.batch_size)
    logger.info("Tiles: %s.", ", ".join(f"{len(mine)} {part}" for part, mine in rows.items()))
    if folder is not None:
        _write_tiles(frame, Path(folder), resume=resume)
    which = frame["sample"].map({section.name: k for k, section in enumerate(sections)}).to_numpy()
    texts = [config.prompts.get(name, "") for name in frame["tissue"]]
    pairs = SectionPairs(readers, which, frame[["x_um", "y_um"]].to_numpy(), texts, augment=augment)
    watched = pairs.part(rows["validation"]) if len(rows["validation"]) else None
    with _configured(network, config):
        network.fit(
            pairs.part(rows["train"]),
            validation=watched,
            folder=folder,
            training=chosen,
            resume=resume,
            device=device,
            progress=progress,
        )
        trained = network.config
    network.config, network.tiles, network.device = trained, frame, device
    made = _store.provenance(
        "tl.train_virtual_he",
        samples=[section.name for section in sections],
        n_tiles={part: len(mine) for part, mine in rows.items()},
        split=split if isinstance(split, str) else dict(split),
        test=test if test is None or isinstance(test, str | float) else list(map(str, test)),
        validated_by=watched_by if len(rows["validation"]) else None,
        leaks=leaks,
        max_shift_um=max_shift_um,
        z=None if z is None else np.asarray(z).tolist(),
        augment=augment,
        dots_s=None if config.dot_um is not None else [config.dot_s, *dots[1:]],
    )
    network.config = dataclasses.replace(network.config, training={**network.config.training, "data": made})
    if folder is not None:
        network.save(folder)
    return network


@contextmanager
def _configured(network: Translator, config: TranslationConfig) -> Iterator[None]:
    """Let a model have another config for a while."""
    before, network.config = network.config, config
    try:
        yield
    finally:
        network.config = before


def _default_spec(model: Any, sections: Sequence[Section], px: int | None) -> TileSpec:
    if isinstance(model, Translator):
        return model.config.spec
    if model == "sd-turbo":
        return PAPER_SPEC
    return TileSpec.from_mpp(max(section.mpp for section in sections), SMALL_PX if px is None else px)


def _new_config(
    model: str, spec: TileSpec, style: dict[str, Any], said: Prompts, backbone: Any, seed: int
) -> TranslationConfig:
    fields: dict[str, Any] = {**spec.to_dict(), **style, "prompts": said.texts, "seed": seed}
    if model == "pix2pix":
        return Pix2PixConfig(**fields)
    if model == "small":
        return ST2HEConfig(**fields)
    return ST2HEConfig.sd_turbo(**({} if backbone is None else {"backbone": backbone}), **fields)


def _made(config: TranslationConfig) -> Translator:
    return Pix2Pix(config) if isinstance(config, Pix2PixConfig) else ST2HE(config)  # type: ignore[arg-type]


def _continued(model: Translator, spec: TileSpec, style: dict[str, Any], said: Prompts) -> TranslationConfig:
    """The config of a model that is trained on: its own, with tissues that are new to it."""
    config = model.config
    if not same_spec(spec, config.spec):
        msg = f"The tiles are {spec}, the model is for {config.spec}. Lay such tiles, or leave size_um= and px= out."
        raise ValueError(msg)
    for name, value in style.items():
        if value != getattr(config, name) or (name == "dot_s" and config.dot_um is not None):
            msg = (
                f"{name}={value!r}, and the model was trained with {getattr(config, name)!r}: leave it out, or begin "
                f"a new model."
            )
            raise ValueError(msg)
    if set(said.texts) == {""} and "" not in config.prompts:
        msg = f"The model was trained on the tissues {sorted(config.prompts)}: say with tissue= which one this is."
        raise ValueError(msg)
    for name, text in said.texts.items():
        if config.prompts.get(name, text) != text:
            msg = (
                f"The model knows tissue {name!r} by the prompt {config.prompts[name]!r}, not {text!r}; give that one "
                f"with prompts=."
            )
            raise ValueError(msg)
    texts = {**{name: text for name, text in config.prompts.items() if name or "" in said.texts}, **said.texts}
    require_prompts(texts)
    return dataclasses.replace(config, prompts=texts)


def _say_tissue(frame: pd.DataFrame, sections: Sequence[Section], said: Prompts) -> None:
    """Fill in the tissue of each tile; tiles without a prompt are dropped."""
    sizes = frame["sample"].value_counts()
    named = [
        np.full(sizes[section.name], mine, object) if isinstance(mine, str) else mine
        for section, mine in zip(sections, said.tissues, strict=True)
    ]
    values = np.concatenate(named)
    without = np.array([value is None for value in values])
    frame["tissue"] = np.where(without, "", values)
    frame.loc[without & (frame["part"] != "dropped").to_numpy(), ["part", "reason"]] = ["dropped", "no prompt"]
    if without.any():
        logger.info("%d of %d tiles have no prompt, and are left out.", int(without.sum()), len(frame))


def _write_tiles(frame: pd.DataFrame, folder: Path, *, resume: bool) -> None:
    """Write the tiles; a training that goes on has to be on the same ones."""
    path = folder / TILES
    before = read_tiles(folder) if resume else None
    if before is not None and not _told_apart(before).equals(_told_apart(frame)):
        msg = (
            f"{path} names other tiles, or another split, than these data and arguments give: the training cannot go "
            f"on with them."
        )
        raise ValueError(msg)
    folder.mkdir(parents=True, exist_ok=True)
    frame.to_csv(path, index=False)


def _told_apart(frame: pd.DataFrame) -> pd.DataFrame:
    """What has to be alike of two lists of tiles: places to the nanometre."""
    places = frame[["x_um", "y_um"]].astype(float).round(3)
    return frame[["sample", "instance_id", "part", "tissue"]].astype(str).join(places).reset_index(drop=True)
