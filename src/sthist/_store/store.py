"""The one place that writes to a user's zarr store.

An element is built under ``<store>/.sthist/<name>/``, checked to be readable, moved into place with one rename, and
then entered in the store's attributes and consolidated metadata. A kill at any moment leaves the elements of before or
the complete result; the next writing verb finishes what was moved but not entered.
"""

from __future__ import annotations

import datetime
import errno
import json
import os
import shutil
import uuid
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sthist._scratch import own_folder, resumable_folder
from sthist._settings import logger, recorded, settings
from sthist._store.commit import KINDS, WORK, commit, repair

if TYPE_CHECKING:
    from collections.abc import Iterator

    from spatialdata import SpatialData


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
    """Refuse a name that is taken, also by an element of another kind or in other case."""
    for other in KINDS:
        for taken in getattr(sdata, other):
            if taken.lower() != name.lower():
                continue
            if taken != name or other != kind:
                raise ValueError(f"The name {name!r} is taken by {other}[{taken!r}]; choose another with key_added=.")
            if not overwrite:
                raise ValueError(
                    f"{kind}[{name!r}] exists. Pass overwrite=True to replace it, or key_added= for another name."
                )


def working_folder(sdata: SpatialData) -> Path:
    """Folder under which elements are built: the object's store, or the scratch folder for an object in memory."""
    return store_path(sdata) or Path(settings.scratch_dir)


@contextmanager
def writing(sdata: SpatialData) -> Iterator[None]:
    """Hold the store's lock, after repairing what a kill left; for an object in memory, no lock is needed."""
    with _full_disk_explained(working_folder(sdata)), _locked(store_path(sdata)):
        yield


@contextmanager
def _full_disk_explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        free = shutil.disk_usage(folder).free if folder.exists() else 0
        msg = (
            f"The disk of {folder} is full ({free / 1e6:.0f} MB are free, or a quota is used up): {error.strerror}. "
            "The elements are as they were. Make room and call again: what was done is continued."
        )
        raise OSError(error.errno, msg) from error


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
    (path / WORK).mkdir(exist_ok=True)
    lock = FileLock(path / WORK / "lock", thread_local=False)
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
        yield path / WORK / name
        shutil.rmtree(path / WORK / name)


def add(
    sdata: SpatialData, kind: str, name: str, element: Any, made: dict[str, Any], *, overwrite: bool = False
) -> None:
    """Add a small element (shapes, a table) to an object and, if there is one, to its store."""
    require_free(sdata, name, kind, overwrite=overwrite)
    if kind == "tables":
        element.uns.setdefault("sthist", {})[name] = made
    _put(sdata, kind, name, element, made)


def replace_table(sdata: SpatialData, name: str, table: Any, made: dict[str, Any]) -> None:
    """Put a changed table in place of the one of this name, also in the store; it says itself what was done to it."""
    _put(sdata, "tables", name, table, made)


def _put(sdata: SpatialData, kind: str, name: str, element: Any, made: dict[str, Any]) -> None:
    import spatialdata as sd

    if store_path(sdata) is None:
        _set(sdata, kind, name, element)
        _record(sdata, kind, name, made)
        return
    with writing(sdata), workspace(sdata, name, "") as work:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        built = work / "built.zarr"
        with warnings.catch_warnings():
            # A table whose regions are elements of the real store has them nowhere in this one.
            warnings.filterwarnings("ignore", message="The table is annotating", category=UserWarning)
            sd.SpatialData.init_from_elements({name: element}).write(built)
        publish(sdata, kind, name, built, made)


def publish(sdata: SpatialData, kind: str, name: str, built: Path, made: dict[str, Any]) -> None:
    """Move an element out of the store ``built`` into the object's own, and enter it there.

    For an object in memory it goes to a folder of this process's own in the scratch folder, which is there until the
    process ends, and the object reads it from there. The caller holds :func:`writing`.
    """
    element = read_element(built, kind, name)  # it reads, or nothing is published
    path = store_path(sdata)
    if path is None:
        own = own_folder() / f"{name}-{uuid.uuid4().hex[:8]}.zarr"
        os.rename(built, own)
        logger.info("%s %r lies in %s until the object is written.", kind[:-1], name, own)
        _set(sdata, kind, name, read_element(own, kind, name))
        _record(sdata, kind, name, made)
        return
    _write_own_provenance(built / kind / name, kind, made)
    _ensure_group(path, kind)
    commit(path, kind, name, built / kind / name)
    _record(sdata, kind, name, made)
    in_memory = kind in {"shapes", "tables"}  # the others are read from their place when they are needed
    _set(sdata, kind, name, element if in_memory else read_element(path, kind, name))


def read_element(store: Path, kind: str, name: str) -> Any:
    """One element of a store, as lazily as SpatialData reads it."""
    import spatialdata as sd

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The table is annotating", category=UserWarning)
        return getattr(sd.read_zarr(store, selection=(kind,)), kind)[name]


def write_transformations(sdata: SpatialData, names: list[str]) -> None:
    """Write the transformations of elements to the object's store, and its attributes; nothing in memory."""
    if store_path(sdata) is None:
        return
    with writing(sdata):
        for name in names:
            sdata.write_transformations(name)
        sdata.write_attrs()
        if sdata.has_consolidated_metadata():
            sdata.write_consolidated_metadata()


def write_attributes(sdata: SpatialData) -> None:
    """Write an object's attributes to its store; nothing in memory."""
    write_transformations(sdata, [])


def _set(sdata: SpatialData, kind: str, name: str, element: Any) -> None:
    elements = getattr(sdata, kind)
    if name in elements:
        del elements[name]
    elements[name] = element


def _record(sdata: SpatialData, kind: str, name: str, made: dict[str, Any]) -> None:
    if kind != "tables":
        sdata.attrs.setdefault("sthist", {}).setdefault("results", {})[name] = made


def _write_own_provenance(element: Path, kind: str, made: dict[str, Any]) -> None:
    # Kept with the element itself, so that a repair can enter it in the store's attributes.
    import zarr

    group = zarr.open_group(element, mode="r+", use_consolidated=False)
    group.attrs["sthist_provenance"] = made


def _ensure_group(path: Path, kind: str) -> None:
    import zarr

    if not (path / kind / "zarr.json").exists():
        zarr.open_group(path, mode="r+", use_consolidated=False).require_group(kind)
