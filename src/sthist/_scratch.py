"""The scratch folder: nobody else's, and a folder in it for each process that goes with the process.

A process holds a lock on its folder, which the kernel frees however it ends. What processes that are gone have left is
deleted when another one comes; work that was stopped, and that the same call continues, is kept for a week.
"""

from __future__ import annotations

import atexit
import math
import os
import platform
import re
import shutil
import stat
import tempfile
import threading
import time
import uuid
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sthist._settings import logger, settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np

KEPT_DAYS = 7
MANIFEST = "manifest.json"
"""In a folder of work that can be continued."""

_HOST = re.sub(r"[^A-Za-z0-9.]", "_", platform.node()) or "localhost"
_own: dict[tuple[Path, int], tuple[Path, Any]] = {}  # folder and lock, by scratch folder and process
_in_use: set[Path] = set()
_opening = threading.RLock()


def scratch_dir() -> Path:
    """The scratch folder, made if need be; one that others could write to is refused."""
    folder = Path(settings.scratch_dir).absolute()
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
    _require_private(folder)
    return folder


def own_folder() -> Path:
    """The folder of this process in the scratch folder, which is deleted when the process ends."""
    scratch, process = scratch_dir(), os.getpid()
    with _opening:
        known = _own.get((scratch, process))
        if known is None or not known[0].exists():
            _delete_what_is_left(scratch)
            known = _own[scratch, process] = _new_folder(scratch)
            atexit.register(_leave, *known, process)
        return known[0]


def array_on_disk(shape: tuple[int, ...], dtype: Any, what: str, advice: str = "") -> np.ndarray:
    """An array in the scratch folder, whose room is free again when nobody has it any more."""
    import numpy as np

    folder, n_bytes = own_folder(), np.dtype(dtype).itemsize * math.prod(shape)
    free = shutil.disk_usage(folder).free
    if n_bytes > free:
        raise OSError(
            f"{what} take {n_bytes / 1e9:.1f} GB, and {folder} has {free / 1e9:.1f} GB left: set settings.scratch_dir "
            f"to a larger disk{advice}."
        )
    with tempfile.TemporaryFile(dir=folder) as file:  # its name is gone, its content goes with the array
        return np.memmap(file, dtype, "w+", shape=shape)


@contextmanager
def temporary_folder(prefix: str) -> Iterator[Path]:
    """A folder for as long as a block takes."""
    with tempfile.TemporaryDirectory(prefix=prefix, dir=own_folder(), ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@contextmanager
def resumable_folder(name: str, digest: str) -> Iterator[Path]:
    """A folder in which something is built, which may not exist yet; it goes at the end of the block.

    The same thing (by its digest) that a process which is gone has begun to build is continued; so it stays where the
    block fails.
    """
    folder = own_folder() / f"{name}-{digest[:16]}"
    with _opening:
        if folder in _in_use:
            folder = folder.with_name(f"{folder.name}-{uuid.uuid4().hex[:8]}")
        elif not folder.exists():
            _take_over(folder)
        _in_use.add(folder)
    try:
        yield folder
        shutil.rmtree(folder)
    finally:
        _in_use.discard(folder)


def _require_private(folder: Path) -> None:
    """Refuse a folder that belongs to somebody else, or that others can write to."""
    if not folder.is_dir():
        raise NotADirectoryError(f"The scratch folder {folder} is no folder. {_ANOTHER}")
    if not hasattr(os, "getuid"):  # Windows gives each user a folder of their own
        return
    for state in (folder.lstat(), folder.stat()):  # a link, and what it leads to
        if state.st_uid != os.getuid():
            raise PermissionError(
                f"The scratch folder {folder} belongs to another user ({_name_of(state.st_uid)}), who could change "
                f"what is computed there. {_ANOTHER}"
            )
    if state.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(
            f"The scratch folder {folder} can be written to by others (its mode is {stat.S_IMODE(state.st_mode):o}), "
            f"who could change what is computed there. Close it with `chmod 700 {folder}`. {_ANOTHER}"
        )


_ANOTHER = "Or name another one that is yours alone: sthist.settings.scratch_dir = pathlib.Path(...)."


def _name_of(user: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return str(user)


def _new_folder(scratch: Path) -> tuple[Path, Any]:
    """A folder for this process, and the lock on it."""
    while True:
        folder = scratch / f"process-{_HOST}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        folder.mkdir(mode=0o700)
        lock = _locked(folder)
        if lock is not None and (folder / "lock").exists():  # another one may have taken it for what is left
            return folder, lock


def _locked(folder: Path) -> Any:
    """The lock on the folder of a process; None if the process is alive."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder / "lock", thread_local=False)
    try:
        lock.acquire(timeout=0)
    except (Timeout, OSError):
        return None
    return lock


def _leave(folder: Path, lock: Any, process: int) -> None:
    """At the end of a process: delete its folder, but not work that the next one may continue."""
    if os.getpid() == process and folder.exists():  # and not its child
        _delete(folder)
        lock.release()


def _delete_what_is_left(scratch: Path) -> None:
    """Delete the folders of processes that are gone."""
    for folder, lock in _of_the_dead(scratch):
        logger.debug("Deleting %s: its process is gone.", folder)
        _delete(folder)
        lock.release()


def _of_the_dead(scratch: Path) -> Iterator[tuple[Path, Any]]:
    """Folders of processes that are gone, and the lock on each.

    Of another machine, which may not see the locks of this one, nothing is touched that is young.
    """
    for folder in scratch.glob("process-*"):
        if folder.name.rsplit("-", 2)[0] != f"process-{_HOST}":
            least_days: float = KEPT_DAYS
        else:  # without a lock it may be of this very moment
            least_days = 0 if (folder / "lock").exists() else 1 / 24
        if folder.is_symlink() or not folder.is_dir() or _age_days(folder) < least_days:
            continue
        lock = _locked(folder)
        if lock is not None:
            yield folder, lock


def _delete(folder: Path) -> None:
    """Delete the folder of a process, but for what can be continued."""
    for each in folder.iterdir():
        if each.name != "lock" and not _can_be_continued(each):
            shutil.rmtree(each, ignore_errors=True)
    if {each.name for each in folder.iterdir()} <= {"lock"}:
        shutil.rmtree(folder, ignore_errors=True)


def _can_be_continued(work: Path) -> bool:
    return (work / MANIFEST).exists() and _age_days(work) < KEPT_DAYS


def _age_days(folder: Path) -> float:
    """Days since something was last done in a folder."""
    with suppress(OSError):
        return (time.time() - max(each.stat().st_mtime for each in (folder, *folder.iterdir()))) / 86_400
    return 0.0


def _take_over(folder: Path) -> None:
    """Move what was begun under this name by a process that is gone to its place in the folder of this process."""
    for dead, lock in _of_the_dead(folder.parents[1]):
        begun = dead / folder.name
        if begun.exists() and not folder.exists():
            os.rename(begun, folder)
            _delete(dead)
        lock.release()
