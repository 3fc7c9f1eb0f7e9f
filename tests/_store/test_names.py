"""Names that become paths: what is no plain name is refused before anything is written, by every verb."""

from __future__ import annotations

import contextlib
import os
import random

import pytest
import spatialdata as sd
from writing import VERBS, files_under

from sthist import _store

PARTS = [
    "..",
    ".",
    "/",
    "\\",
    "\0",
    "a",
    "é",
    " ",
    "~",
    "$HOME",
    "C:",
    "\n",
    "x" * 90,
    "*",
    "%2e",
    "..\\",
    "\u202e",
    "'",
]


def hostile(rng: random.Random, outside: str) -> str:
    """A text that is no plain name: a path, an absolute one, a hidden or a long one, or one of odd letters."""
    name = "".join(rng.choice(PARTS) for _ in range(rng.randint(1, 8)))
    name = rng.choice([name, f"/{name}", f"{outside}/{name}", f"../{name}", f"a/../../{name}", f".{name}", f"__{name}"])
    return name if not _is_plain(name) else f"../{name}"


def _is_plain(name: str) -> bool:
    letters = all(c.isalnum() or c in "_-." for c in name)
    return bool(name) and letters and not name.startswith((".", "__")) and len(name.encode()) <= 200


def test_ten_thousand_names_are_refused(tmp_path):
    """Also by the store's own places, whoever asks for them."""
    rng = random.Random(0)
    for _ in range(10_000):
        name = hostile(rng, str(tmp_path))
        with pytest.raises(ValueError, match="key_added is"):
            _store.check_name(name)
        if {"/", "\\", "\0"} & set(name):
            with pytest.raises(ValueError, match="is no place in the store"):
                _store.inside(tmp_path, "shapes", name)


@pytest.mark.parametrize("name", ["tissue", "B_cells", "grid_8um", "a.b-c", "überträge", "007", "x" * 200])
def test_plain_names_pass(name):
    assert _store.check_name(name) == name


@pytest.mark.parametrize("verb", [name for name, verb in VERBS.items() if verb.names and name != "pp.embed"])
def test_no_verb_touches_what_is_around_the_store(verb, tmp_path):
    """Byte for byte: in the store, beside it, and where the name leads to."""
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("irreplaceable")
    store = VERBS[verb].write(tmp_path / "s.zarr")
    sdata, before, rng = sd.read_zarr(store), files_under(tmp_path), random.Random(1)
    names = [
        "../..",
        "..",
        ".",
        "../thesis",
        str(tmp_path / "thesis"),
        "x/../../../thesis",
        "shapes/../../thesis",
        ".sthist",
    ]
    for name in [*names, *(hostile(rng, str(tmp_path)) for _ in range(20))]:
        for overwrite in (False, True):
            with pytest.raises(ValueError, match="holds letters|begins neither|has at most"):
                VERBS[verb].call(sdata, name, overwrite)
    assert files_under(tmp_path) == before


def test_names_of_embeddings_are_made_plain(tmp_path):
    """What an encoder is called is no plain name, often; what is made of it stays in the store."""
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("irreplaceable")
    sdata = sd.read_zarr(VERBS["pp.embed"].write(tmp_path / "s.zarr"))
    for name in ("../../thesis", str(tmp_path / "thesis")):
        with contextlib.suppress(ValueError):
            VERBS["pp.embed"].call(sdata, name, True)
    assert files_under(tmp_path / "thesis").keys() == {"chapter.txt"}
    assert {path.name for path in tmp_path.iterdir()} == {"thesis", "s.zarr"}


def test_a_link_out_of_the_store(tmp_path):
    """A folder of the store that is a link to another place is not written to."""
    store = VERBS["tl.virtual_he"].write(tmp_path / "s.zarr")
    sdata = sd.read_zarr(store)
    os.rename(store / "shapes", tmp_path / "shapes")
    os.symlink(tmp_path / "shapes", store / "shapes")
    with pytest.raises(ValueError, match="leads out of the store"):
        VERBS["pp.tissue"].call(sdata, "outline", False)
