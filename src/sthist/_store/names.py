"""Names that become parts of paths: of elements, samples, classes, and of whatever else is called so."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

MAX_BYTES = 200
"""Of a name; file systems take 255, and suffixes are added to it."""


def check_name(name: Any, what: str = "key_added") -> str:
    """Refuse a text that would be no plain name of one file: a path, what is hidden, or what SpatialData refuses.

    Whatever becomes a part of a path goes through here before anything is written: names of elements and samples, of
    classes, ids of public samples. ``what`` says in the error which one it is.
    """
    if not isinstance(name, str):
        raise TypeError(f"{what} is {name!r}, of type {type(name).__name__}; a name is a text.")
    name = str(name)  # numpy's own texts print as np.str_('a')
    if not name or not all(c.isalnum() or c in "_-." for c in name):
        raise ValueError(
            f"{what} is {shortened(name)}; a name holds letters, digits, '_', '.' and '-' alone, and at least one."
        )
    if name.startswith((".", "__")):
        raise ValueError(
            f"{what} is {shortened(name)}; a name begins neither with '.', as hidden files do, nor with '__'."
        )
    if len(name.encode()) > MAX_BYTES:
        raise ValueError(
            f"{what} is {shortened(name)}, of {len(name.encode())} bytes; a name has at most {MAX_BYTES} bytes."
        )
    return name


def shortened(text: str) -> str:
    """A text as an error shows it: what cannot be printed is escaped, and what is long is cut."""
    return ascii(text) if len(text) <= 60 else f"{ascii(text[:50])}..."


def inside(store: Path, *parts: str) -> Path:
    """A place in a store, by plain names; an error for one that would lie outside of it, whoever asks."""
    for part in parts:
        if part in {"", ".", ".."} or "/" in part or "\\" in part or "\0" in part:
            raise ValueError(f"{shortened('/'.join(parts))} is no place in the store {store}. Nothing was written.")
    place = store.joinpath(*parts)
    if not place.parent.resolve().is_relative_to(store.resolve()):
        raise ValueError(f"{place} leads out of the store {store} by a link. Nothing was written.")
    return place
