"""Files and folders that are there whole or not at all, and what is said where a disk is full."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT)
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A path beside a file, which takes its place once it is whole; its folder is made.

    Where the block fails, and where the process is killed, the file is as it was. The name ends as the file's does:
    some writers go by it.
    """
    if path.exists() and not path.is_file():  # such as a pipe; of a folder, the writer says what it is
        yield path
        return
    target = path.resolve() if path.is_symlink() else path
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.stem}.partial{target.suffix}")
    try:
        with full_disk_explained(target.parent, f"{target} is {'as it was' if target.exists() else 'not written'}."):
            yield partial
            if target.exists():
                with suppress(OSError):
                    shutil.copymode(target, partial)
            os.replace(partial, target)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


@contextmanager
def full_disk_explained(folder: Path, state: str) -> Iterator[None]:
    """Say of an error that a disk is full which one, what ``state`` things are in, and how to go on.

    Writers in other languages raise errors of their own, which say it in words alone.
    """
    try:
        yield
    except Exception as error:
        code = full_disk_code(error)
        if code is None or "Make room" in str(error):
            raise
        while not folder.exists():
            folder = folder.parent
        free = shutil.disk_usage(folder).free
        msg = (
            f"The disk of {folder} is full ({free / 1e6:.0f} MB are free, or a quota is used up): {os.strerror(code)}. "
            f"{state} Make room there, by deleting or moving what is no longer needed, and call again."
        )
        raise OSError(code, msg) from error


def full_disk_code(error: BaseException) -> int | None:
    """The number of an error if it is that a disk, or a quota, is full."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno if error.errno in FULL else None
    return next((code for code in FULL if os.strerror(code) in str(error)), None)


def put_folder(fresh: Path, folder: Path) -> None:
    """Put a folder in the place of another, which goes: in one step where the system can, else in two."""
    if not folder.exists():
        os.rename(fresh, folder)
        return
    if exchange(fresh, folder):
        shutil.rmtree(fresh, ignore_errors=True)
        return
    old = folder.with_name(f"{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    os.rename(folder, old)
    os.rename(fresh, folder)
    shutil.rmtree(old, ignore_errors=True)


def exchange(source: Path, target: Path) -> bool:
    """Let two files or folders change places in one step; False where the system cannot."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if os.name == "posix" else None
    if renameat2 is None:
        return False
    if renameat2(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in {errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP}:  # an old kernel, or a file system without it
        return False
    raise OSError(code, os.strerror(code), str(target))
