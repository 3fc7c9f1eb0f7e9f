"""What all public verbs do with their arguments before they begin: open stores, and refuse what cannot be meant."""

from __future__ import annotations

import functools
import inspect
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from sthist import _store
from sthist._messages import plain
from sthist._sample.platforms import STORE_FILES, platforms_of
from sthist._settings import logger, settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from spatialdata import SpatialData

Verb = TypeVar("Verb", bound="Callable[..., Any]")

COUNTS = ("n", "n_tiles", "ncols", "squares", "px", "batch_size")
"""Arguments that are whole numbers from 1 on, in every verb."""

SHOWN = ("panels", "classes", "show", "metrics")
"""Arguments that name what is drawn or scored: at least one thing."""

ELEMENTS = {"images", "labels", "points", "shapes", "tables", "table"}


def verb(function: Verb) -> Verb:
    """Let a verb take the path of a store for a sample, and names as numpy has them; refuse what cannot be meant.

    A sample is what the first argument holds, ``data`` or ``sdata``, or the values of the mapping that it is.
    """
    signature = inspect.signature(function)
    names = list(signature.parameters)
    sample = names[0] if names[0] in {"data", "sdata"} else None
    annotation = str(signature.parameters[names[0]].annotation)
    tables = "AnnData" in annotation or "Any" in annotation
    several = "Mapping" in annotation or "Any" in annotation

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        if isinstance(kwargs.get("save"), bool):
            kwargs["save"] = _usual_figure(function.__name__) if kwargs["save"] else None
        given = dict(zip(names, args, strict=False)) | kwargs
        if len(args) <= len(names) and set(given) <= set(names):  # else Python says what is wrong
            settled = {each: _settled(each, value, signature.parameters[each]) for each, value in given.items()}
            if sample in settled:
                if isinstance(settled[sample], Mapping) and not several:
                    raise TypeError(
                        f"{function.__name__} takes one sample, not a mapping of {len(settled[sample])}: call it for "
                        "each."
                    )
                settled[sample] = opened(settled[sample], tables=tables)
            args, kwargs = (
                tuple(settled[each] for each in names[: len(args)]),
                {each: settled[each] for each in kwargs},
            )
        return function(*args, **kwargs)

    run.__signature__ = signature  # type: ignore[attr-defined]
    return run  # type: ignore[return-value]


def opened(data: Any, *, tables: bool = True) -> Any:
    """A sample, or a mapping of name to sample, with paths replaced by the objects that are stored there."""
    if isinstance(data, Mapping):
        return {plain(name): opened(each, tables=tables) for name, each in data.items()}
    if isinstance(data, str | os.PathLike):
        data = _read_store(data)
    is_table = hasattr(data, "obs_names")
    if not (hasattr(data, "images") or (is_table and tables)):
        meant = "A SpatialData, an AnnData" if tables else "A SpatialData"
        hint = " Pass the whole sample, not its table." if is_table else ""
        raise TypeError(
            f"{meant}, the path of a store, or a mapping of name to such is needed, not {type(data).__name__}.{hint}"
        )
    if not is_table:
        _store.recover(data)
    return data


def _read_store(path: str | os.PathLike[str]) -> SpatialData:
    """The object in a store, opened as spatialdata does it."""
    import spatialdata as sd

    place = require_store(path)
    try:
        return sd.read_zarr(place)
    except Exception as error:
        raise ValueError(f"{place} cannot be read as a SpatialData: {type(error).__name__}: {error}") from error


def require_store(path: str | os.PathLike[str]) -> Path:
    """The path of a SpatialData's store; for anything else, an error that says what it is."""
    text = os.fspath(path)
    if "://" in text:
        raise ValueError(f"{text!r} is not on this machine: copy the store here, or open it yourself.")
    place = Path(text).expanduser()
    needed = "A SpatialData, or the path of its store (a folder, usually *.zarr), is needed."
    if not place.exists():
        raise FileNotFoundError(f"There is no {text!r}. {needed}")
    if place.is_file():
        hint = " Read it with anndata.read_h5ad, and pass the table." if place.suffix == ".h5ad" else ""
        raise ValueError(f"{text!r} is a file.{hint} {needed}")
    if not any((place / name).exists() for name in STORE_FILES):
        raise ValueError(f"{text!r} is no SpatialData store: it has no zarr.json. {_what_reads(place)}{needed}")
    for part, whole in ((place, place.parent), (place.parent, place.parent.parent)):
        if part.name in ELEMENTS and any((whole / name).exists() for name in STORE_FILES):
            raise ValueError(f"{text!r} is a part of a store: pass the whole, {str(whole)!r}.")
    if (place / "obs").is_dir() and not (place / "tables").is_dir():
        raise ValueError(f"{text!r} is the store of an AnnData: read it with anndata.read_zarr, and pass the table.")
    return place


def _what_reads(folder: Path) -> str:
    """Which reader the folder of a platform is for, as a sentence."""
    for platform in platforms_of(folder):
        return f"It looks like what sthist.io.{platform} reads: sdata = sthist.io.{platform}({str(folder)!r}). "
    stores = sorted(each.name for each in folder.glob("*.zarr"))
    return f"It has {', '.join(map(repr, stores[:5]))}. " if stores else ""


def _settled(name: str, value: Any, parameter: inspect.Parameter) -> Any:
    """An argument with plain names in it, and one text for a list of one; refused where it cannot be meant."""
    if isinstance(value, np.ndarray) and value.dtype.kind == "U":
        value = value.astype(object)
    elif isinstance(value, np.generic | list | tuple | dict) and type(value).__module__ in {"builtins", "numpy"}:
        value = (
            plain(value)
            if not isinstance(value, dict)
            else {plain(key): plain(each) if isinstance(each, np.generic) else each for key, each in value.items()}
        )
    if isinstance(value, str) and _takes_lists(str(parameter.annotation)):
        value = [value]
    if name in SHOWN and isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 0:
        raise ValueError(f"{name} is empty: name what is meant, or leave {name}= out.")
    if name in COUNTS and value is not None and value != "auto":
        value = _as_count(name, value)
    if name == "save" and value is not None:
        _require_file(value)
    if name == "device" and value is not None:
        for each in value if isinstance(value, list | tuple) else [value]:
            settings.torch_device(each)
    return value


def _takes_lists(annotation: str) -> bool:
    """Whether an annotation names a sequence of texts, and no text."""
    outside = re.sub(r"\[[^\[\]]*\]", "", re.sub(r"\[[^\[\]]*\]", "", annotation))
    return outside.startswith("Sequence") and "str" not in outside and ("str" in annotation or "Panel" in annotation)


def _as_count(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 1 or value % 1:
        raise ValueError(f"{name} is {value!r}; it is a whole number from 1 on.")
    return int(value)


def _usual_figure(name: str) -> Path:
    """Where ``save=True`` puts a figure, as in scanpy: in the folder ``figures``, called after the plot."""
    path = Path("figures") / f"{name}.png"
    path.parent.mkdir(exist_ok=True)
    logger.info("The figure goes to %s.", path)
    return path


def _require_file(save: Any) -> None:
    """Refuse a file of a figure that cannot be written, before the figure is drawn."""
    if not isinstance(save, str | os.PathLike):
        raise TypeError(f"save is {save!r}; it is the path of a file, such as save='figure.png'.")
    path = Path(save)
    if path.is_dir():
        raise IsADirectoryError(f"save={str(path)!r} is a folder; name a file in it, such as 'figure.png'.")
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"save={str(path)!r}: there is no folder {str(path.parent)!r}; make it first.")
    if path.suffix:
        from matplotlib.backend_bases import FigureCanvasBase

        kinds = sorted(FigureCanvasBase.get_supported_filetypes())
        if path.suffix[1:].lower() not in kinds:
            raise ValueError(f"save={str(path)!r}: figures are not saved as {path.suffix!r}, but as {kinds}.")
