"""The prompt that each training tile is seen with: one for all, or one per tissue."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist._settings import logger
from sthist._tables.genes import closest
from sthist.systems.virtual_he.config import CONDITIONED, UNCONDITIONED, require_prompts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sthist.systems.virtual_he.training_set.sections import Section

PLACE = "{tissue}"
TILE_FILE = re.compile(r"\.(png|jpe?g|tiff?|bmp|webp)$", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class Prompts:
    """What is said of tiles.

    Attributes
    ----------
    texts
        Prompt by tissue; under ``""`` the one where the tissue is not said.
    tissues
        By section, the tissue of each laid tile, (n,), or the one of all its tiles; None in an array where a tile has
        no prompt.
    """

    texts: dict[str, str]
    tissues: list[str | np.ndarray]


def find_prompts(sections: Sequence[Section], tissue: Any, prompts: Any) -> Prompts:
    """Tissue and prompt of the tiles of sections; nothing is read of them."""
    given = _read(prompts)
    if isinstance(given, Mapping) and given and all(TILE_FILE.search(str(name)) for name in given):
        if tissue is not None:
            msg = "prompts= says the prompt of each tile: leave tissue= out."
            raise ValueError(msg)
        found = _by_tile(sections, {str(name): text for name, text in given.items()})
    elif tissue is None:
        found = Prompts({"": _unconditioned(given)}, [""] * len(sections))
    else:
        tissues = _tissues(sections, tissue)
        names = list(dict.fromkeys(name for each in tissues for name in np.atleast_1d(np.asarray(each, object))))
        found = Prompts({name: _prompt_of(name, given) for name in names}, tissues)
    require_prompts(found.texts)
    return found


def _read(prompts: Any) -> str | dict[str, Any] | None:
    """A template, or a mapping, which may lie in a JSON file."""
    if isinstance(prompts, Mapping):
        return dict(prompts)
    if prompts is None or (isinstance(prompts, str) and not prompts.lower().endswith(".json")):
        return prompts
    path = Path(prompts)
    if not path.is_file():
        msg = f"There is no file of prompts {path}."
        raise FileNotFoundError(msg)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        msg = f"{path} is no JSON file: {error}."
        raise ValueError(msg) from None
    if not isinstance(content, dict) or not content:
        msg = (
            f"{path} holds {type(content).__name__}; a mapping of tissue, or of tile file, to prompt is needed, and "
            f"it may not be empty."
        )
        raise ValueError(msg)
    return content


def _unconditioned(given: Any) -> str:
    if given is None:
        return UNCONDITIONED
    if isinstance(given, str) and PLACE not in given:
        return given
    msg = "prompts= is by tissue, and which tissue the tiles are of is not said: give tissue=."
    raise ValueError(msg)


def _prompt_of(tissue: str, given: Any) -> str:
    if isinstance(given, Mapping):
        if tissue not in given:
            msg = (
                f"prompts= has none for the tissue {tissue!r}; it has "
                f"{list(given)[:8]}.{closest(tissue, map(str, given))}"
            )
            raise KeyError(msg)
        return given[tissue]
    return (CONDITIONED if given is None else given).replace(PLACE, tissue)


def _tissues(sections: Sequence[Section], tissue: Any) -> list[str | np.ndarray]:
    if isinstance(tissue, Mapping):
        missing = [section.name for section in sections if section.name not in tissue]
        if missing:
            msg = f"tissue= says nothing of {len(missing)} samples, such as {missing[0]!r}; it has {list(tissue)[:8]}."
            raise KeyError(msg)
        return [_required(tissue[section.name], section.name) for section in sections]
    columns = [None if each.laid is None else each.laid.obs.get(tissue) for each in sections]
    if any(column is not None for column in columns):
        return [_of_column(section, tissue) for section in sections]
    logger.info("All tiles are of the tissue %r.", tissue)
    return [_required(tissue, section.name) for section in sections]


def _required(value: Any, sample: str) -> str:
    if not isinstance(value, str) or not value.strip():
        msg = f"The tissue of sample {sample!r} is {value!r}; a text that is not blank is needed."
        raise ValueError(msg)
    return value


def _of_column(section: Section, column: str) -> np.ndarray:
    if section.laid is None or column not in section.laid.obs:
        known = [] if section.laid is None else list(map(str, section.laid.obs.columns))
        msg = f"The tiles of sample {section.name!r} have no column {column!r}, and others have; they have {known}."
        raise KeyError(msg)
    values = section.laid.obs[column].to_numpy(object)
    for row, value in enumerate(values):
        if not isinstance(value, str) or not value.strip():
            msg = (
                f"Column {column!r} of the tiles of sample {section.name!r} has {value!r} in row {row}; each tile "
                f"needs a tissue."
            )
            raise ValueError(msg)
    return values


def _by_tile(sections: Sequence[Section], given: dict[str, Any]) -> Prompts:
    """Prompts by the names of files that :func:`sthist.tiles.export_pairs` gives tiles.

    Each prompt is a tissue of its own.
    """
    texts: dict[str, str] = {}
    tissues: list[str | np.ndarray] = []
    for section in sections:
        if section.laid is None:
            msg = f"prompts= is by tile file, and sample {section.name!r} has no laid tiles whose names these could be."
            raise KeyError(msg)
        prefixes = [f"{section.name}{mark}" for mark in ("_", "-", "")] + ([""] if len(sections) == 1 else [])
        mine = np.full(len(section.laid.ids), None, object)
        for row, tile in enumerate(section.laid.ids):
            names = [f"{prefix}{tile}.png" for prefix in prefixes]
            text = next((given[name] for name in names if name in given), None)
            if text is not None:
                mine[row] = _tissue_in(text)
                texts[mine[row]] = text
        if (mine == None).all():  # noqa: E711  # elementwise
            msg = (
                f"prompts= has none for the tiles of sample {section.name!r}: they would be called {names[0]!r}, and "
                f"it has {next(iter(given))!r}."
            )
            raise KeyError(msg)
        tissues.append(mine)
    return Prompts(texts, tissues)


def _tissue_in(prompt: Any) -> str:
    """The tissue that a prompt of the usual form names, "" for that of no tissue; else the prompt stands for itself."""
    if prompt == UNCONDITIONED:
        return ""
    before, after = CONDITIONED.split(PLACE)
    found = re.fullmatch(f"{re.escape(before)}(.+){re.escape(after)}", str(prompt))
    return found[1] if found else str(prompt)
