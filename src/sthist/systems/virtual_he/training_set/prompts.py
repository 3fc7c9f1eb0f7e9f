"""The prompt that each training tile is seen with: one for all, or one per tissue."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist._messages import plain
from sthist._reading import parse_json
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
    """What is said of tiles."""

    texts: dict[str, str]  # prompt by tissue; under "" the one where the tissue is not said
    tissues: list[str | np.ndarray]  # by section, that of all its tiles, or of each (n,), None where it has no prompt


def find_prompts(sections: Sequence[Section], tissue: Any, prompts: Any) -> Prompts:
    """Tissue and prompt of the tiles of sections; nothing is read of them."""
    prompts = _read(prompts)
    if isinstance(prompts, Mapping) and prompts and all(TILE_FILE.search(str(name)) for name in prompts):
        if tissue is not None:
            raise ValueError("prompts= says the prompt of each tile: leave tissue= out.")
        result = _by_tile(sections, {str(name): text for name, text in prompts.items()})
    elif tissue is None:
        result = Prompts({"": _unconditioned(prompts)}, [""] * len(sections))
    else:
        tissues = _tissues(sections, tissue)
        names = list(dict.fromkeys(name for each in tissues for name in np.atleast_1d(np.asarray(each, object))))
        result = Prompts({name: _prompt_of(name, prompts) for name in names}, tissues)
    require_prompts(result.texts)
    return result


def _read(prompts: Any) -> str | dict[str, Any] | None:
    """A template, or a mapping, which may lie in a JSON file."""
    if isinstance(prompts, Mapping):
        return dict(prompts)
    if prompts is None or (isinstance(prompts, str) and not prompts.lower().endswith(".json")):
        return prompts
    path = Path(prompts)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file of prompts {path}.")
    content = parse_json(path)
    if not isinstance(content, dict) or not content:
        raise ValueError(
            f"{path} holds {type(content).__name__}; a mapping of tissue, or of tile file, to prompt is needed, and it "
            "may not be empty."
        )
    return content


def _unconditioned(prompts: Any) -> str:
    if prompts is None:
        return UNCONDITIONED
    if isinstance(prompts, str) and PLACE not in prompts:
        return prompts
    raise ValueError("prompts= is by tissue, and which tissue the tiles are of is not said: give tissue=.")


def _prompt_of(tissue: str, prompts: Any) -> str:
    if not isinstance(prompts, Mapping):
        return (CONDITIONED if prompts is None else prompts).replace(PLACE, tissue)
    if tissue not in prompts:
        raise KeyError(
            f"prompts= has none for the tissue {tissue!r}; it has "
            f"{list(prompts)[:8]}.{closest(tissue, map(str, prompts))}"
        )
    return prompts[tissue]


def _tissues(sections: Sequence[Section], tissue: Any) -> list[str | np.ndarray]:
    if isinstance(tissue, Mapping):
        require_tissues(sections, tissue)
        return [_required(tissue[section.name], section.name) for section in sections]
    if any(section.laid is not None and tissue in section.laid.obs for section in sections):
        return [_of_column(section, tissue) for section in sections]
    logger.info("All tiles are of the tissue %r.", tissue)
    return [_required(tissue, section.name) for section in sections]


def require_tissues(sections: Sequence[Section], tissue: Mapping[str, Any]) -> None:
    """Refuse a mapping of sample to tissue that leaves samples out."""
    missing = [section.name for section in sections if section.name not in tissue]
    if missing:
        raise KeyError(
            f"tissue= says nothing of {len(missing)} samples, such as {missing[0]!r}; it has {list(tissue)[:8]}."
        )


def _required(value: Any, sample: str) -> str:
    if not _is_text(value):
        raise ValueError(f"The tissue of sample {sample!r} is {value!r}; a text that is not blank is needed.")
    return value


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _of_column(section: Section, column: str) -> np.ndarray:
    if section.laid is None or column not in section.laid.obs:
        known = [] if section.laid is None else list(map(str, section.laid.obs.columns))
        raise KeyError(
            f"The tiles of sample {section.name!r} have no column {column!r}, and others have; they have {known}."
        )
    values = section.laid.obs[column].to_numpy(object)
    row = next((row for row, value in enumerate(values) if not _is_text(value)), None)
    if row is not None:
        raise ValueError(
            f"Column {column!r} of the tiles of sample {section.name!r} has {plain(values[row])!r} in row {row}; "
            "each tile needs a tissue."
        )
    return values


def _by_tile(sections: Sequence[Section], prompts: dict[str, Any]) -> Prompts:
    """Prompts by the names of files that :func:`sthist.tiles.export_pairs` gives tiles; each is a tissue of its own."""
    texts: dict[str, Any] = {}
    tissues: list[str | np.ndarray] = []
    for section in sections:
        if section.laid is None:
            raise KeyError(
                f"prompts= is by tile file, and sample {section.name!r} has no laid tiles whose names these could be."
            )
        prefixes = [f"{section.name}{mark}" for mark in ("_", "-", "")] + ([""] if len(sections) == 1 else [])
        names = [[f"{prefix}{tile}.png" for prefix in prefixes] for tile in section.laid.ids]
        prompt_of = [next((prompts[name] for name in each if name in prompts), None) for each in names]
        if all(prompt is None for prompt in prompt_of):
            raise KeyError(
                f"prompts= has none for the tiles of sample {section.name!r}: they would be called {names[-1][0]!r}, "
                f"and it has {next(iter(prompts))!r}."
            )
        tissue_of = [None if prompt is None else _tissue_in(prompt) for prompt in prompt_of]
        texts |= {name: prompt for name, prompt in zip(tissue_of, prompt_of, strict=True) if name is not None}
        tissues.append(np.array(tissue_of, object))
    return Prompts(texts, tissues)


def _tissue_in(prompt: Any) -> str:
    """The tissue that a prompt of the usual form names, "" for that of no tissue; else the prompt stands for itself."""
    if prompt == UNCONDITIONED:
        return ""
    before, after = CONDITIONED.split(PLACE)
    match = re.fullmatch(f"{re.escape(before)}(.+){re.escape(after)}", str(prompt))
    return match[1] if match else str(prompt)
