"""The one place that writes to a user's zarr store.

Elements are built under ``<store>/.sthist/<name>/``, checked to be readable, and then put into their places and
entered in the store's attributes and consolidated metadata, all in one step. A kill at any moment leaves the elements
of before or the complete result.
"""

from __future__ import annotations

import copy
import datetime
import json
import logging
import os
import shutil
import uuid
import warnings
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sthist._disk import full_disk_explained
from sthist._scratch import own_folder, resumable_folder
from sthist._settings import logger, recorded, settings
from sthist._store.commit import KINDS, LOCK, ROOT, WORK, commit, is_unfinished, repair, unfinished
from sthist._store.lazy import LazyParts
from sthist._store.merge import merged
from sthist._store.names import check_name, inside

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from spatialdata import SpatialData

Facts = dict[tuple[str, ...], Any]
"""What is entered in ``attrs["sthist"]``, by the keys that lead there."""


def store_path(sdata: SpatialData) -> Path | None:
    """Folder of the store that backs an object; None in memory. Remote stores are refused."""
    if sdata.path is None:
        return None
    if "://" in str(sdata.path):
        raise ValueError(
            f"The store {sdata.path} is remote; sthist writes to local stores only. Copy it, or work in memory."
        )
    return Path(sdata.path).absolute()  # not resolved: other machines may know the path alone


def provenance(call: str, **facts: Any) -> dict[str, Any]:
    """What made a result: the call, the version, the date, and facts such as model and device. JSON values only."""
    from importlib.metadata import version

    made = {
        "call": call,
        "sthist": version("sthist"),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **facts,
        **recorded,
    }
    return dict(json.loads(json.dumps(made)))


def require_free(sdata: SpatialData, name: str, kind: str, *, overwrite: bool) -> None:
    """Refuse a name that is none, or that is taken, also by an element of another kind or in other case."""
    check_name(name)
    taken = {(other, each) for other in KINDS for each in getattr(sdata, other)}
    _require_free_among(taken, name, kind, overwrite=overwrite)


def require_free_in_store(path: Path | None, name: str, kind: str, *, overwrite: bool) -> None:
    """Refuse a name that another process has taken in a store by now; the caller holds :func:`writing`."""
    if path is None:
        return
    where = f" in the store {path}, where another process has put it"
    known = {(kind, name)} if overwrite else set()
    _require_free_among(_elements_in(path) - known, name, kind, overwrite=False, where=where)


def _elements_in(path: Path) -> set[tuple[str, str]]:
    """Kind and name of what a store has by now."""
    return {(place.parent.name, place.name) for kind in KINDS for place in path.glob(f"{kind}/*/")}


def _require_free_among(taken: set[tuple[str, str]], name: str, kind: str, *, overwrite: bool, where: str = "") -> None:
    for other, each in sorted(taken):
        if each.lower() != name.lower():
            continue
        if each != name or other != kind:
            raise ValueError(f"The name {name!r} is taken by {other}[{each!r}]{where}; choose another with key_added=.")
        if not overwrite:
            raise ValueError(
                f"{kind}[{name!r}] exists{where}. Pass overwrite=True to replace it, or key_added= for another name."
            )


def working_folder(sdata: SpatialData) -> Path:
    """Folder under which elements are built: the object's store, or the scratch folder for an object in memory."""
    return store_path(sdata) or Path(settings.scratch_dir)


@contextmanager
def writing(sdata: SpatialData) -> Iterator[None]:
    """Hold the store's lock, after repairing what a kill left; for an object in memory, no lock is needed."""
    state = "The elements are as they were, and what was done is continued."
    with full_disk_explained(working_folder(sdata), state), _locked(store_path(sdata)):
        yield


@contextmanager
def _locked(path: Path | None) -> Iterator[None]:
    if path is None:
        yield
        return
    from filelock import FileLock, Timeout

    if not (path / "zarr.json").exists():
        raise ValueError(
            f"The store {path} has the older zarr format 2, which sthist does not write to. Convert it once: "
            'spatialdata.read_zarr("old.zarr").write("new.zarr").'
        )
    if not os.access(path, os.W_OK):
        raise PermissionError(
            f"The store {path} is read-only: nothing was written. Copy it, or change its permissions."
        )
    inside(path, WORK).mkdir(exist_ok=True)
    lock = FileLock(inside(path, WORK, LOCK), thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise RuntimeError(
            f"Another process is writing to {path}. Wait until it is done; the lock goes with its process."
        ) from None
    try:
        repair(path)
        yield
    finally:
        lock.release()


def recover(sdata: SpatialData) -> None:
    """Put away what a kill left in the store of an object, and give it the elements that the store hid meanwhile.

    That is so where folders cannot be exchanged: what was being replaced is hidden until it is put back.
    """
    path = None if sdata.path is None or "://" in str(sdata.path) else Path(sdata.path).absolute()
    if path is None or not is_unfinished(path) or not os.access(path, os.W_OK):
        return
    try:
        hidden = unfinished(path)
        with _locked(path):
            pass
    except (RuntimeError, OSError):  # it is not left: another process is at it
        return
    for kind, name in hidden:
        if name not in getattr(sdata, kind) and (path / kind / name).exists():
            _set(sdata, kind, name, read_element(path, kind, name))


@contextmanager
def workspace(sdata: SpatialData, name: str, digest: str) -> Iterator[Path]:
    """Folder in which an element is built: in the object's store, or in the scratch folder for an object in memory.

    The same element (by its digest) is built in the same folder, so that a run that was stopped is continued, unless
    another process is at it. The folder goes when the element is published.
    """
    path = store_path(sdata)
    if path is None:
        with resumable_folder(name, digest) as folder:
            yield folder
    else:
        check_name(name, "The name of an element")
        yield inside(path, WORK, name)
        shutil.rmtree(path / WORK / name)


def add(
    sdata: SpatialData, kind: str, name: str, element: Any, made: dict[str, Any], *, overwrite: bool = False
) -> None:
    """Add a small element (shapes, a table) to an object and, if there is one, to its store."""
    require_free(sdata, name, kind, overwrite=overwrite)
    if kind == "tables":
        element.uns.setdefault("sthist", {})[name] = made
    with changing(sdata) as change:
        change.put(kind, name, element, overwrite=overwrite)
        _record(sdata, _recorded([(kind, name)], made))


def replace_table(sdata: SpatialData, name: str, table: Any) -> None:
    """Put a changed table in place of the one of this name, also in the store; it says itself what was done to it.

    What another process has added to the table since it was read stays; where both have changed the same, an error says
    so, and nothing is written.
    """
    with changing(sdata) as change:
        change.put("tables", name, table, overwrite=True, merge=True)


@contextmanager
def changing(sdata: SpatialData, *transformed: str) -> Iterator[Change]:
    """Write what is done to an object within, all in one step, to its store: readers see all of it or nothing.

    That is elements that are added and tables that are replaced, what changes in ``attrs["sthist"]``, and the
    transformations of the elements ``transformed``. If it fails, the object is as it was, too. Within another one of
    the same object, all is left to that.
    """
    outer = _open_change.get()
    if outer is not None and outer.sdata is sdata:
        yield outer
        return
    change = Change(sdata, transformed)
    token = _open_change.set(change)
    try:
        yield change
        change.write()
    except BaseException:
        change.undo()
        raise
    finally:
        _open_change.reset(token)


class Change:
    """What is done to an object, and to its store, in one step."""

    def __init__(self, sdata: SpatialData, transformed: tuple[str, ...] = ()) -> None:
        from spatialdata.transformations import get_transformation

        self.sdata, self.path = sdata, store_path(sdata)
        self._elements: dict[tuple[str, str], Any] = {}
        self._before: dict[tuple[str, str], Any] = {}
        self._overwrite: dict[tuple[str, str], bool] = {}
        self._merge: set[tuple[str, str]] = set()
        self._attributes = copy.deepcopy(sdata.attrs.get("sthist"))
        self._systems = {name: dict(get_transformation(sdata[name], get_all=True)) for name in transformed}

    def put(self, kind: str, name: str, element: Any, *, overwrite: bool, merge: bool = False) -> None:
        """Put an element into the object, and later into its store; ``merge`` it with what the store has by then."""
        at = kind, name
        self._before.setdefault(at, getattr(self.sdata, kind).get(name))
        self._overwrite.setdefault(at, overwrite)
        self._elements[at] = element
        if merge:
            self._merge.add(at)
        _set(self.sdata, kind, name, element)

    def write(self) -> None:
        """Write all of it to the store, and read it back from there."""
        import spatialdata as sd

        facts = _differences(self._attributes or {}, self.sdata.attrs.get("sthist", {}))
        if self.path is None or not (self._elements or facts or self._systems):
            return
        name = next(iter(self._elements), ("", "changed-metadata"))[1]
        with writing(self.sdata), workspace(self.sdata, name, "") as work:
            elements = self._elements_with_the_stores(self.path)
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir(parents=True)
            built = work / "built.zarr"
            lazy = {name: LazyParts.of(element) for name, element in elements.items()}
            if elements:
                with warnings.catch_warnings():
                    # A table whose regions are elements of the real store has them nowhere in this one.
                    warnings.filterwarnings("ignore", message="The table is annotating", category=UserWarning)
                    whole = {name: lazy[name].without(element) for name, element in elements.items()}
                    sd.SpatialData.init_from_elements(whole).write(built)
            read = {at: read_element(built, *at) for at in self._elements}  # it reads, or nothing is published
            for kind, name in self._elements:
                lazy[name].write(built / kind / name)
            for kind, _ in self._elements:
                _ensure_group(self.path, kind)
            files = _changed_metadata(self.sdata, self.path, list(self._systems), work / "copy.zarr")
            commit(self.path, {f"{kind}/{name}": built / kind / name for kind, name in self._elements}, files, facts)
        for (kind, name), element in read.items():
            lazy[name].read(element, self.path / kind / name)
            in_memory = kind in {"shapes", "tables"}  # the others are read from their place when they are needed
            _set(self.sdata, kind, name, element if in_memory else read_element(self.path, kind, name))

    def _elements_with_the_stores(self, path: Path) -> dict[str, Any]:
        """The elements by name, after a look at what the store has by now: other processes write, too."""
        in_store = _elements_in(path)
        elements = {}
        for at, element in self._elements.items():
            kind, name = at
            require_free_in_store(path, name, kind, overwrite=self._overwrite[at])
            merge = at in self._merge and at in in_store
            elements[name] = merged(path, name, self._before[at], element) if merge else element
        return elements

    def undo(self) -> None:
        """Give the object back what it had."""
        from spatialdata.transformations import set_transformation

        for (kind, name), element in self._before.items():
            if element is None:
                getattr(self.sdata, kind).pop(name, None)
            else:
                _set(self.sdata, kind, name, element)
        for name, transformations in self._systems.items():
            set_transformation(self.sdata[name], transformations, set_all=True)
        self.sdata.attrs.pop("sthist", None)
        if self._attributes is not None:
            self.sdata.attrs["sthist"] = self._attributes


_open_change: ContextVar[Change | None] = ContextVar("_open_change", default=None)


def publish(sdata: SpatialData, kind: str, name: str, built: Path, made: dict[str, Any]) -> None:
    """Move an element out of the store ``built`` into the object's own, and enter it there.

    For an object in memory it goes to a folder of this process's own in the scratch folder, which is there until the
    process ends, and the object reads it from there. The caller holds :func:`writing`.
    """
    read_element(built, kind, name)  # it reads, or nothing is published
    path, facts = store_path(sdata), _recorded([(kind, name)], made)
    if path is None:
        path = own_folder() / f"{name}-{uuid.uuid4().hex[:8]}.zarr"
        os.rename(built, path)
        logger.info("%s %r lies in %s until the object is written.", kind[:-1], name, path)
    else:
        _ensure_group(path, kind)
        commit(path, {f"{kind}/{name}": built / kind / name}, facts=facts)
    _record(sdata, facts)
    _set(sdata, kind, name, read_element(path, kind, name))


def read_element(store: Path, kind: str, name: str) -> Any:
    """One element of a store, as lazily as SpatialData reads it."""
    import spatialdata as sd

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The table is annotating", category=UserWarning)
        return getattr(sd.read_zarr(store, selection=(kind,)), kind)[name]


def _differences(before: dict[str, Any], after: dict[str, Any]) -> Facts:
    """What differs, by section (``"alignment"``, ``"mpp"``) and, where that is a mapping, by element."""
    facts: Facts = {}
    for section, value in after.items():
        old = before.get(section, {})
        if isinstance(value, dict) and isinstance(old, dict):
            facts |= {(section, key): each for key, each in value.items() if key not in old or old[key] != each}
        elif value != old:
            facts[section,] = value
    return {keys: json.loads(json.dumps(value)) for keys, value in facts.items()}


def _changed_metadata(sdata: SpatialData, path: Path, names: list[str], skeleton: Path) -> dict[str, Path]:
    """Metadata of elements with their transformations as the object has them, by their places.

    SpatialData writes them, into a copy of the store that has metadata alone.
    """
    places = [path / kind / name for kind in KINDS for name in names if (path / kind / name / ROOT).exists()]
    for folder in {path, *(place.parent for place in places), *places}:
        target = skeleton / folder.relative_to(path)
        target.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / ROOT, target / ROOT)
    changed: dict[str, Path] = {}
    if not places:
        return changed
    log = logging.getLogger("spatialdata._logging")  # would say that the data lie outside of the copy
    level = log.level
    log.setLevel(logging.WARNING)
    sdata.path = skeleton
    try:
        for place in places:
            sdata.write_transformations(place.name)
            file = f"{place.relative_to(path).as_posix()}/{ROOT}"
            if (skeleton / file).read_bytes() != (path / file).read_bytes():
                changed[file] = skeleton / file
    finally:
        sdata.path = path
        log.setLevel(level)
    return changed


def _set(sdata: SpatialData, kind: str, name: str, element: Any) -> None:
    elements = getattr(sdata, kind)
    if name in elements:
        del elements[name]
    elements[name] = element


def _recorded(elements: Iterable[tuple[str, str]], made: dict[str, Any]) -> Facts:
    """What made elements, as ``attrs["sthist"]`` holds it; tables say it themselves."""
    return {("results", name): made for kind, name in elements if kind != "tables"}


def _record(sdata: SpatialData, facts: Facts) -> None:
    for keys, value in facts.items():
        inner = sdata.attrs.setdefault("sthist", {})
        for key in keys[:-1]:
            inner = inner.setdefault(key, {})
        inner[keys[-1]] = value


def _ensure_group(path: Path, kind: str) -> None:
    import zarr

    if not (path / kind / "zarr.json").exists():
        zarr.open_group(path, mode="r+", use_consolidated=False).require_group(kind)
