"""A sample's folder, whatever its platform, and the store that is worked on."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sthist import _store
from sthist._disk import full_disk_explained
from sthist._sample.verbs import opened
from sthist._store.commit import KINDS, LOCK

if TYPE_CHECKING:
    from collections.abc import Iterator

    from spatialdata import SpatialData

PLATFORMS = ("xenium", "cosmx", "merscope", "visium", "visium_hd", "spatialdata")


def open_sample(source: Path, platform: str, store: Path, facts: dict[str, str] | None = None) -> SpatialData:
    """The store of a sample: copied there from its folder, whole or not at all, unless an earlier run has done so."""
    import spatialdata as sd

    if not (platform == "spatialdata" and store.resolve() == source.resolve()):
        if not store.exists():
            with _alone_at(store):
                _make(store, source, platform)
        made_from = sd.read_zarr(store).attrs.get("sthist", {}).get("source")
        if made_from != str(source.resolve()):
            raise ValueError(
                f"{store} was not made from {source}, but from {made_from or 'something else'}; name another --out."
            )
    sdata = read_input(store, "spatialdata")
    if {path.name for path in (store / _store.WORK).glob("*")} - {LOCK}:  # an earlier run was killed
        with _store.writing(sdata):  # puts away what it left
            pass
        sdata = read_input(store, "spatialdata")
    known = sdata.attrs.setdefault("sthist", {}).setdefault("sample", {})
    if facts and known | facts != known:
        with _store.changing(sdata):
            known.update(facts)
    return sdata


def _make(store: Path, source: Path, platform: str) -> None:
    """Copy a sample into a store, unless another process has done so by now."""
    if store.exists():
        return
    partial = store.with_name(f"{store.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
    sdata = read_input(source, platform)
    sdata.attrs.setdefault("sthist", {})["source"] = str(source.resolve())
    with full_disk_explained(store.parent, f"{store} is not made."):
        sdata.write(partial)
        os.rename(partial, store)


@contextmanager
def _alone_at(store: Path) -> Iterator[None]:
    """Keep other processes from making the same store in the same folder."""
    from filelock import FileLock, Timeout

    store.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(store.with_name(f"{store.name}.lock"), thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise RuntimeError(
            f"Another process is making {store}. Wait until it is done; the lock goes with its process."
        ) from None
    try:
        yield
        Path(lock.lock_file).unlink(missing_ok=True)  # the store is there: nobody makes it any more
    finally:
        lock.release()


def has_result_of(store: Path, run: str) -> bool:
    """Whether there is a result in a store that was made by a task of ``sthist run``, by what the results record."""
    import zarr

    try:
        root = json.loads((store / "zarr.json").read_text())
    except (OSError, ValueError):
        return False
    recorded = root.get("attributes", {}).get("sthist", {})
    there = {
        name: made
        for name, made in recorded.get("results", {}).items()
        if any((store / kind / name / "zarr.json").exists() for kind in KINDS)
    }
    if _mentions(recorded | {"results": there}, run):
        return True
    for field in store.glob("tables/*/uns/sthist/**/run/zarr.json"):  # tables say it themselves
        with suppress(OSError, ValueError, KeyError):
            if str(zarr.open_array(field.parent, mode="r")[()]) == run:
                return True
    return False


def _mentions(recorded: Any, run: str) -> bool:
    """Whether one of nested records is of a task."""
    if isinstance(recorded, dict):
        return recorded.get("run") == run or any(_mentions(each, run) for each in recorded.values())
    return isinstance(recorded, list) and any(_mentions(each, run) for each in recorded)


def read_input(source: Path, platform: str) -> SpatialData:
    """The object of a folder, in memory as far as its reader puts it there."""
    import sthist

    return opened(source) if platform == "spatialdata" else getattr(sthist.io, platform)(source)
