"""Puts an element into a store, together with the metadata that tell of it, so that a reader sees both or neither.

A store's attributes, and the list of its elements where it has one (consolidated metadata), are one file, and an
element is a folder: no system call changes both. So a new element is moved to its place while a list that lacks it
hides it (a store without a list is given one for that moment), and replacing the file is what shows it. An element that
replaces another brings along the file that goes with it, and so does the old one: for the moment of their exchange the
store's own file is a link to whichever is in place. All that needs room on the disk is written before any of this
begins. A kill in between leaves the store as it was or complete, and :func:`repair` puts away what is left.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import shutil
import warnings
from typing import TYPE_CHECKING, Any

from sthist._settings import logger

if TYPE_CHECKING:
    from pathlib import Path

WORK = ".sthist"
KINDS = ("images", "labels", "points", "shapes", "tables")
ROOT = "zarr.json"
UNFINISHED = "*.partial"
"""Files that zarr was writing: it renames them when they are whole."""

CARRIED = ".sthist-store.json"
"""In an element's folder, for the moment of an exchange: the store's metadata that go with it."""

# Under WORK; no element has a name that begins with a dot.
_BEFORE, _AFTER, _LINK, _UNLISTED, _REPLACED = ".before", ".after", ".link", ".unlisted", ".replaced"
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def commit(path: Path, kind: str, name: str, source: Path) -> None:
    """Move an element into a store, in place of the one of its name if there is one, which then lies in ``source``."""
    place, target = f"{kind}/{name}", path / kind / name
    for file in source.rglob(UNFINISHED):  # of a run that was killed, and that this one continued
        file.unlink()
    consolidated = _is_consolidated(path)
    after = _compose(path, _AFTER, {place: source}, consolidated=consolidated)
    if not target.exists():
        _list_without(path, place, consolidated=consolidated)
        os.rename(source, target)
    elif not _exchange_with_metadata(path, place, source, after):
        _list_without(path, place, consolidated=consolidated)
        aside = path / WORK / _REPLACED / place
        shutil.rmtree(aside, ignore_errors=True)
        aside.parent.mkdir(parents=True, exist_ok=True)
        os.rename(target, aside)
        os.rename(source, target)
    os.replace(after, path / ROOT)
    _tidy(path)


def repair(path: Path) -> None:
    """Put away what a kill left: see to it that all that is in place is listed, and recorded in the attributes."""
    if (path / ROOT).is_symlink() and os.readlink(path / ROOT).endswith(CARRIED):
        own = path / WORK / _BEFORE
        own.write_bytes((path / ROOT).read_bytes())
        os.replace(own, path / ROOT)
    restored = _put_back(path)
    temporary = (path / WORK / _UNLISTED).exists()
    consolidated = _is_consolidated(path) and not temporary
    missing = _missing(path)
    if missing or restored or temporary:
        if missing:
            logger.warning("Entering %s in %s: an earlier run ended before it could.", ", ".join(missing), path)
        os.replace(_compose(path, _AFTER, {}, consolidated=consolidated), path / ROOT)
    _tidy(path)
    _clear(path)


def consolidate(path: Path) -> None:
    """Write a store's consolidated metadata."""
    import zarr
    from zarr.errors import ZarrUserWarning

    with warnings.catch_warnings():
        # zarr warns that the format may change, and of the parquet files of points and shapes, which are no zarr nodes.
        warnings.simplefilter("ignore", ZarrUserWarning)
        zarr.consolidate_metadata(zarr.storage.LocalStore(path))


def _exchange_with_metadata(path: Path, place: str, source: Path, after: Path) -> bool:
    """Exchange two elements and the store's metadata in one step; False where the file system cannot."""
    target, link = path / place, path / WORK / _LINK
    if place.startswith("tables/"):  # says itself what made it, and zarr would wonder about the file
        return _exchange(source, target)
    own = path / WORK / _BEFORE
    shutil.copyfile(path / ROOT, own)
    shutil.copyfile(path / ROOT, target / CARRIED)
    shutil.copyfile(after, source / CARRIED)
    link.unlink(missing_ok=True)
    try:
        link.symlink_to(f"{place}/{CARRIED}")
    except OSError:  # no links here: the metadata follow a moment later
        return _exchange(source, target)
    os.replace(link, path / ROOT)
    if _exchange(source, target):
        return True
    os.replace(own, path / ROOT)
    return False


def _list_without(path: Path, place: str, *, consolidated: bool) -> None:
    """Let the store list its elements, without one that is about to come or to be replaced."""
    if consolidated and place not in _read(path / ROOT)["consolidated_metadata"]["metadata"]:
        return
    listed = _compose(path, _BEFORE, {}, without=place, consolidated=True)
    if not consolidated:
        (path / WORK / _UNLISTED).touch()
    os.replace(listed, path / ROOT)


def _compose(path: Path, name: str, placed: dict[str, Path], *, consolidated: bool, without: str = "") -> Path:
    """Write the store's metadata, as they will be once elements are in place or gone, into a file under ``.sthist/``.

    Results that the attributes lack are entered in them; an element that is left out keeps what they say of it.
    """
    from zarr.errors import ZarrUserWarning

    scratch = path / WORK / f"{name}.zarr"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    root = _read(path / ROOT)
    root.pop("consolidated_metadata", None)
    for place, made in _provenance(path, placed).items():
        kind, element = place.split("/")
        if kind != "tables" and place != without:
            root["attributes"].setdefault("sthist", {}).setdefault("results", {})[element] = made
    (scratch / ROOT).write_text(json.dumps(root))
    if consolidated:
        hidden = (*placed, *([without] if without else []))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ZarrUserWarning)  # parquet files are no zarr nodes
            nodes = {member: path / member for member in _members(path) if not _is_under(member, hidden)}
            for place, source in placed.items():
                nodes |= {place: source} | {f"{place}/{member}": source / member for member in _members(source)}
        for member, folder in nodes.items():
            (scratch / member).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / ROOT, scratch / member / ROOT)
        consolidate(scratch)
    composed = path / WORK / name
    os.replace(scratch / ROOT, composed)
    shutil.rmtree(scratch)
    return composed


def _members(group: Path) -> list[str]:
    import zarr

    return [name for name, _ in zarr.open_group(group, mode="r", use_consolidated=False).members(max_depth=None)]


def _is_under(member: str, places: tuple[str, ...]) -> bool:
    return any(member == place or member.startswith(f"{place}/") for place in places)


def _provenance(path: Path, placed: dict[str, Path]) -> dict[str, dict[str, Any]]:
    """What made each element that is in place, or about to be, and is of sthist's making."""
    folders = {
        f"{kind}/{file.parent.name}": file.parent for kind in KINDS for file in sorted(path.glob(f"{kind}/*/{ROOT}"))
    }
    made = {
        place: _read(folder / ROOT).get("attributes", {}).get("sthist_provenance")
        for place, folder in (folders | placed).items()
    }
    return {place: facts for place, facts in made.items() if facts is not None}


def _missing(path: Path) -> list[str]:
    """Elements of sthist's making that are in place, but not listed, or not recorded in the attributes."""
    root = _read(path / ROOT)
    listed = root["consolidated_metadata"]["metadata"] if _is_consolidated(path) else None
    results = root["attributes"].get("sthist", {}).get("results", {})
    return [
        place
        for place, made in _provenance(path, {}).items()
        if (listed is not None and place not in listed)
        or (not place.startswith("tables/") and results.get(place.split("/")[1]) != made)
    ]


def _put_back(path: Path) -> list[Path]:
    """Elements that were put aside to be replaced, and were not."""
    aside = path / WORK / _REPLACED
    restored = [folder for folder in aside.glob("*/*") if not (path / folder.relative_to(aside)).exists()]
    for folder in restored:
        logger.warning("Putting %s back in %s: what was to replace it did not.", folder.relative_to(aside), path)
        os.rename(folder, path / folder.relative_to(aside))
    return restored


def _tidy(path: Path) -> None:
    """Delete what a change of the store needed, but a working folder."""
    for file in (*path.glob(f"*/*/{CARRIED}"), *(path / WORK / name for name in (_BEFORE, _AFTER, _LINK, _UNLISTED))):
        file.unlink(missing_ok=True)
    shutil.rmtree(path / WORK / _REPLACED, ignore_errors=True)


def _clear(path: Path) -> None:
    """Delete working folders that nothing continues: of images that are in place, and those without a manifest."""
    for work in (path / WORK).iterdir():
        if work.is_dir() and _identity(work) in {None, _canvas(path / "images" / work.name)}:
            shutil.rmtree(work)


def _identity(work: Path) -> str | None:
    try:
        return str(_read(work / "manifest.json")["identity"])
    except (FileNotFoundError, json.JSONDecodeError, KeyError):
        return None


def _canvas(element: Path) -> str | None:
    """Which canvas an image was."""
    return _read(element / ROOT).get("attributes", {}).get("sthist_canvas") if (element / ROOT).exists() else None


def _is_consolidated(path: Path) -> bool:
    return _read(path / ROOT).get("consolidated_metadata") is not None


def _read(file: Path) -> dict[str, Any]:
    return dict(json.loads(file.read_text()))


def _exchange(source: Path, target: Path) -> bool:
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if os.name == "posix" else None
    if renameat2 is None:
        return False
    if renameat2(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in {errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP}:  # an old kernel, or a file system without it
        return False
    raise OSError(code, os.strerror(code), str(target))
