"""Changes a store in one step: elements, their metadata and the store's attributes; a reader sees all of it or nothing.

No system call replaces several folders and files at once. But a link can be replaced in one, and whatever lies behind
it with it. So what a change replaces is moved behind a link for a moment: ``.sthist/.switch`` holds a folder ``old``
and a folder ``new`` of the same layout, the places in the store become links to ``current/<place>``, and ``current`` is
a link to ``old``. To point it at ``new`` is the change. Then the links are exchanged for what they show. New elements
are moved to their places before that, and the ``zarr.json`` of ``old`` does not list them (a store without consolidated
metadata has a list for that moment). All that needs room on the disk is written first. A kill leaves the store as it
was or complete to every reader, and :func:`repair` puts away what is left: back before the change, forward after it.

Where folders cannot be exchanged (an old kernel, a file system without it) or linked, what is replaced is missing for a
moment, and after a kill until the next call.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from typing import TYPE_CHECKING, Any

from sthist._disk import FULL, exchange
from sthist._settings import logger
from sthist._store.names import inside

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

WORK = ".sthist"
KINDS = ("images", "labels", "points", "shapes", "tables")
ROOT = "zarr.json"
LOCK = ".lock"
SWITCH = ".switch"
"""Under ``WORK``, as the lock; no element has a name that begins with a dot."""
UNFINISHED = "*.partial"
"""Files that zarr was writing: it renames them when they are whole."""

_PLAN = "plan.json"


def commit(
    path: Path,
    elements: Mapping[str, Path],
    files: Mapping[str, Path] | None = None,
    facts: Mapping[tuple[str, ...], Any] | None = None,
) -> None:
    """Put elements and files in their places in a store, and facts into its attributes, all in one step.

    ``elements`` are folders, which are moved, and ``files`` metadata of elements that stay, which are copied, both by
    their place (``"shapes/tissue"``); ``facts`` are entered in ``attributes["sthist"]`` by the keys that lead there.
    """
    files, facts = files or {}, facts or {}
    for place in (*elements, *files):
        inside(path, *place.split("/"))
    for source in elements.values():
        for file in source.rglob(UNFINISHED):  # of a run that was killed, and that this one continued
            file.unlink()
    _prepare(path, elements, files, facts)
    try:
        if not _switch(path):
            _move(path)
    except Exception:
        repair(path)
        raise
    _finish(path)


def repair(path: Path) -> None:
    """Put away what a kill left: a change that a reader sees already is finished, another one taken back."""
    switch = path / WORK / SWITCH
    if (switch / _PLAN).exists():
        if _is_done(path):
            _finish(path)
        else:
            logger.warning("Taking back in %s what an earlier run did not finish.", path)
            _take_back(path)
    shutil.rmtree(switch, ignore_errors=True)
    _clear(path)


def is_unfinished(path: Path) -> bool:
    """Whether a change of a store has begun and not ended."""
    return (path / WORK / SWITCH / _PLAN).exists()


def unfinished(path: Path) -> list[tuple[str, str]]:
    """Kind and name of what such a change replaces."""
    return [(kind, name) for kind, _, name in (place.partition("/") for place in _plan(path)["replaced"])]


def consolidate(path: Path) -> None:
    """Write a store's consolidated metadata."""
    import zarr
    from zarr.errors import ZarrUserWarning

    with warnings.catch_warnings():
        # zarr warns that the format may change, and of the parquet files of points and shapes, which are no zarr nodes.
        warnings.simplefilter("ignore", ZarrUserWarning)
        zarr.consolidate_metadata(zarr.storage.LocalStore(path))


def _prepare(
    path: Path, elements: Mapping[str, Path], files: Mapping[str, Path], facts: Mapping[tuple[str, ...], Any]
) -> None:
    """Write the folders ``old`` and ``new``, and the plan, without which they mean nothing."""
    switch = path / WORK / SWITCH
    shutil.rmtree(switch, ignore_errors=True)
    old, new = switch / "old", switch / "new"
    old.mkdir(parents=True)
    new.mkdir()
    for place in (*elements, *files):
        for side in (old, new):
            (side / place).parent.mkdir(parents=True, exist_ok=True)
    replaced = [place for place in elements if (path / place).exists()]
    added = [place for place in elements if place not in replaced]
    root = read_json(path / ROOT)
    listed = root.get("consolidated_metadata")
    _compose(path, new / ROOT, elements, files, facts, consolidated=listed is not None)
    hidden = any(place in listed["metadata"] for place in added) if listed else bool(added)
    if hidden:
        _compose(path, old / ROOT, {}, {}, {}, without=added, consolidated=True)
    else:
        shutil.copyfile(path / ROOT, old / ROOT)
    shutil.copyfile(path / ROOT, switch / ROOT)  # as it was
    for place, source in files.items():
        shutil.copyfile(path / place, old / place)
        shutil.copyfile(source, new / place)
    sources = {place: os.path.relpath(source, path) for place, source in elements.items()}
    plan = {
        "added": {place: sources[place] for place in added},
        "replaced": {place: sources[place] for place in replaced},
        "files": list(files),
    }
    (switch / f"{_PLAN}.partial").write_text(json.dumps(plan))
    os.replace(switch / f"{_PLAN}.partial", switch / _PLAN)


def _switch(path: Path) -> bool:
    """Make the change by a link; False where the file system has no links, or cannot exchange folders."""
    switch, plan = path / WORK / SWITCH, _plan(path)
    try:
        os.symlink("old", switch / "current")
        os.symlink(_shown(ROOT), switch / "link")
    except OSError as error:
        if error.errno in FULL:
            raise
        return False
    os.replace(switch / "link", path / ROOT)
    for place, source in plan["replaced"].items():
        up = "../" * (place.count("/") + 3)  # from new/<kind>/<name> to the store
        os.symlink(up + source, switch / "new" / place)
        os.symlink(_shown(place), switch / "old" / place)
        if not exchange(switch / "old" / place, path / place):
            (switch / "old" / place).unlink()
            _take_back(path)
            return False
    for place in plan["files"]:
        os.symlink(_shown(place), switch / "link")
        os.replace(switch / "link", path / place)
    for place, source in plan["added"].items():
        os.rename(path / source, path / place)
    os.symlink("new", switch / "link")
    os.replace(switch / "link", switch / "current")
    return True


def _move(path: Path) -> None:
    """Make the change by moving one element after the other; meanwhile the store lists none of them."""
    switch, plan = path / WORK / SWITCH, _plan(path)
    (switch / "current").unlink(missing_ok=True)
    moved = plan["replaced"] | plan["added"]
    if moved:
        _compose(path, switch / "unlisted.json", {}, {}, {}, without=moved, consolidated=True)
        os.replace(switch / "unlisted.json", path / ROOT)
    for place in plan["replaced"]:
        os.rename(path / place, switch / "old" / place)
    for place, source in moved.items():
        os.rename(path / source, path / place)
    for place in plan["files"]:
        _copy_over(switch, switch / "new" / place, path / place)
    _copy_over(switch, switch / "new" / ROOT, path / ROOT)


def _finish(path: Path) -> None:
    """Exchange the links of a change that is made for what they show."""
    switch, plan = path / WORK / SWITCH, _plan(path)
    if (switch / "current").is_symlink():
        _copy_over(switch, switch / "new" / ROOT, path / ROOT)
        for place in plan["files"]:
            _copy_over(switch, switch / "new" / place, path / place)
        for place, source in plan["replaced"].items():
            if (path / place).is_symlink():
                exchange(path / source, path / place)
                (path / source).unlink()
    (switch / _PLAN).unlink()  # from here on there is nothing to repair
    shutil.rmtree(switch)


def _take_back(path: Path) -> None:
    """Put a store back as it was before a change that is not made; what it would have brought, too."""
    switch, plan = path / WORK / SWITCH, _plan(path)
    for place in plan["files"]:
        _copy_over(switch, switch / "old" / place, path / place)
    for place, source in plan["added"].items():
        if not (path / source).exists():
            os.rename(path / place, path / source)
    for place, source in plan["replaced"].items():
        old = switch / "old" / place
        if old.is_symlink() or not old.exists():
            continue
        if (path / place).is_symlink():
            exchange(old, path / place)
        else:
            if (path / place).exists():
                os.rename(path / place, path / source)
            os.rename(old, path / place)
    _copy_over(switch, switch / ROOT, path / ROOT)


def _is_done(path: Path) -> bool:
    """Whether readers see the store after the change."""
    switch = path / WORK / SWITCH
    if (switch / "current").is_symlink():
        return os.readlink(switch / "current") == "new"
    return (path / ROOT).read_bytes() == (switch / "new" / ROOT).read_bytes()


def _plan(path: Path) -> dict[str, Any]:
    return read_json(path / WORK / SWITCH / _PLAN)


def _shown(place: str) -> str:
    """From a place in the store to what it shows during a change."""
    return "../" * place.count("/") + f"{WORK}/{SWITCH}/current/{place}"


def _copy_over(switch: Path, source: Path, target: Path) -> None:
    """Replace a file, or a link, by a copy of another file, in one step."""
    shutil.copyfile(source, switch / "copy")
    os.replace(switch / "copy", target)


def _compose(
    path: Path,
    target: Path,
    elements: Mapping[str, Path],
    files: Mapping[str, Path],
    facts: Mapping[tuple[str, ...], Any],
    *,
    consolidated: bool,
    without: Iterable[str] = (),
) -> None:
    """Write the store's metadata as they will be once a change is made, or without some elements."""
    from zarr.errors import ZarrUserWarning

    scratch = path / WORK / SWITCH / "composed.zarr"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    root = read_json(path / ROOT)
    root.pop("consolidated_metadata", None)
    for keys, value in facts.items():
        inner = root["attributes"].setdefault("sthist", {})
        for key in keys[:-1]:
            inner = inner.setdefault(key, {})
        inner[keys[-1]] = value
    (scratch / ROOT).write_text(json.dumps(root))
    if consolidated:
        hidden = (*elements, *without)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ZarrUserWarning)  # parquet files are no zarr nodes
            nodes = {member: path / member for member in _members(path) if not _is_under(member, hidden)}
            for place, source in elements.items():
                nodes |= {place: source} | {f"{place}/{member}": source / member for member in _members(source)}
        for member, folder in nodes.items():
            (scratch / member).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / ROOT, scratch / member / ROOT)
        for place, source in files.items():
            shutil.copyfile(source, scratch / place)
        consolidate(scratch)
    os.replace(scratch / ROOT, target)
    shutil.rmtree(scratch)


def _members(group: Path) -> list[str]:
    import zarr

    return [name for name, _ in zarr.open_group(group, mode="r", use_consolidated=False).members(max_depth=None)]


def _is_under(member: str, places: Iterable[str]) -> bool:
    return any(member == place or member.startswith(f"{place}/") for place in places)


def _clear(path: Path) -> None:
    """Delete working folders that nothing continues: of images that are in place, and those without a manifest."""
    for work in (path / WORK).iterdir():
        if work.is_dir() and _identity(work) in {None, _canvas(path / "images" / work.name)}:
            shutil.rmtree(work)


def _identity(work: Path) -> str | None:
    try:
        return str(read_json(work / "manifest.json")["identity"])
    except (FileNotFoundError, json.JSONDecodeError, KeyError):
        return None


def _canvas(element: Path) -> str | None:
    """Which canvas an image was."""
    return read_json(element / ROOT).get("attributes", {}).get("sthist_canvas") if (element / ROOT).exists() else None


def read_json(file: Path) -> dict[str, Any]:
    """The object in a file."""
    return dict(json.loads(file.read_text()))
