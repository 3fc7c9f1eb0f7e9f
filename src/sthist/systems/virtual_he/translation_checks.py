"""What a training of a virtual H&E refuses before it reads a pixel."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist._sample.samples import patients_of_rows
from sthist._settings import settings
from sthist._tables.genes import closest
from sthist._tables.rows import core_columns
from sthist.systems.virtual_he.config import TranslationTraining
from sthist.training.split_groups import group_rows
from sthist.training.splits import Units, one_group

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sthist.systems.virtual_he.training_set.sections import Section

NAMED_SPLITS = ("patient", "sample", "block", "random")


def checked_training(training: dict[str, Any]) -> dict[str, Any]:
    """Settings of a training, and the seed, before a model says what else they are.

    Raises
    ------
    TypeError
        If there is no such setting.
    ValueError
        If one is out of range.
    """
    fields = [field.name for field in dataclasses.fields(TranslationTraining)]
    for name in training:
        if name not in fields:
            msg = f"train_virtual_he has no argument {name!r}, and a training no such setting; there are {fields}.{closest(name, fields)}"
            raise TypeError(msg)
    settled = {"seed": settings.seed, **training}
    TranslationTraining(**settled)  # its checks
    return settled


def sizes_of_dots(dot_s: float | Sequence[float] | None, dot_um: float | None) -> tuple[float, ...]:
    """The sizes as a tuple, empty where none is given; one alone is one.

    Raises
    ------
    ValueError
        If there is none, one is not positive, or sizes are given in two ways.
    """
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
    """Refuse numbers that are out of range.

    Raises
    ------
    ValueError
        For the first of them.
    """
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
    """Refuse what the training would refuse after the tiles were chosen.

    Raises
    ------
    ValueError
        If there is no folder to go on in.
    FileExistsError
        If there is a training already.
    """
    from sthist.systems.virtual_he.translation_fit import CHECKPOINT

    if folder is None and resume:
        msg = "resume=True needs folder=, in which the training has left its checkpoints."
        raise ValueError(msg)
    if folder is not None and not resume and (Path(folder) / CHECKPOINT).exists():
        msg = f"{Path(folder) / CHECKPOINT} is there already: pass resume=True to go on from it, or another folder=."
        raise FileExistsError(msg)


def require_split(sections: Sequence[Section], split: Any, test: Any) -> None:
    """Refuse a split that no tile has, or that leaves nothing to train on.

    Raises
    ------
    KeyError
        If there is no such column, or a sample is missing.
    ValueError
        If there is no such part, or all samples belong to the one group that would test.
    """
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
                f"split={split!r} is no column of the tiles of sample {section.name!r}; they have {known}. It is that, {', '.join(map(repr, NAMED_SPLITS))}, "
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
    """Refuse fewer tiles than a batch.

    Raises
    ------
    ValueError
        If there are fewer.
    """
    if n < batch_size:
        msg = f"{n} tiles to train on are fewer than a batch of {batch_size}. Lay more or smaller tiles, hold fewer out, or lower batch_size=."
        raise ValueError(msg)
