"""Files of public data sets: unpacked, as far as the readers need them."""

from __future__ import annotations

import errno
import shutil
import tarfile
import zipfile
import zlib
from typing import TYPE_CHECKING

from sthist._disk import full_disk_explained
from sthist._store import check_name
from sthist.datasets._download import HUB_PAGES, fetch, fetch_from_hub
from sthist.datasets._sources import HUB

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from sthist.datasets._download import Source


def unpacked(source: Source, is_needed: Callable[[str], bool] = lambda _: True) -> Path:
    """The folder with what is needed of the first file of a source, which is an archive; others are downloaded, too."""
    folder = source.folder / "unpacked"
    return folder if folder.exists() else unpack(fetch(source)[0], folder, is_needed)


def unpack(archive: Path, folder: Path, is_needed: Callable[[str], bool] = lambda _: True) -> Path:
    """Unpack a zip or tar archive, whole or not at all, unless that was done."""
    if folder.exists():
        return folder
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    kind = "zip" if archive.suffix == ".zip" else "tar"
    try:
        with full_disk_explained(archive.parent, f"{archive} is not unpacked."):
            (_extract_zip if kind == "zip" else _extract_tar)(archive, partial, is_needed)
    except tarfile.FilterError as error:
        raise ValueError(_leads_outside(archive, str(error))) from None
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError, zlib.error) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the disk's, not the archive's
            shutil.rmtree(partial, ignore_errors=True)
            raise
        why = str(error).partition("\n")[0].rstrip(":.")
        raise ValueError(f"{archive} is no whole {kind} archive: {why}. Delete it, and download it again.") from None
    return partial.rename(folder)


def _extract_zip(archive: Path, folder: Path, is_needed: Callable[[str], bool]) -> None:
    with zipfile.ZipFile(archive) as file:
        members = [member for member in file.infolist() if is_needed(member.filename)]
        for member in members:
            if not (folder / member.filename).resolve().is_relative_to(folder.resolve()):
                raise ValueError(_leads_outside(archive, repr(member.filename)))
        needed, free = sum(member.file_size for member in members), shutil.disk_usage(archive.parent).free
        if needed > free:
            msg = f"Unpacking {archive} takes {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free."
            raise OSError(errno.ENOSPC, msg)
        folder.mkdir(parents=True)
        file.extractall(folder, members)


def _extract_tar(archive: Path, folder: Path, is_needed: Callable[[str], bool]) -> None:
    with tarfile.open(archive) as file:  # in one pass: to list a compressed archive is to unpack it
        for member in file:
            if member.isfile() and is_needed(member.name):
                file.extract(member, folder, filter="data")
    folder.mkdir(exist_ok=True)


def _leads_outside(archive: Path, what: str) -> str:
    return f"{archive} has a member that leads outside of its folder: {what}. It was not unpacked."


def from_hub(name: str, ids: str | Sequence[str], patterns: Sequence[str], shared: str) -> Path:
    """The folder with those files of some samples, and with the files of all."""
    samples = [check_name(sample, "The id of a sample") for sample in ([ids] if isinstance(ids, str) else ids)]
    files = [pattern.format(id=sample) for sample in samples for pattern in patterns]
    return fetch_from_hub(HUB[name].homepage.removeprefix(HUB_PAGES), [*files, shared], HUB[name])


def first(root: Path, pattern: str) -> Path | None:
    """A file somewhere in a folder; None if there is none."""
    return next(iter(sorted(root.rglob(pattern))), None)


def folder_with(root: Path, pattern: str) -> Path:
    """The folder in which a file lies."""
    file = first(root, pattern)
    if file is None:
        raise FileNotFoundError(
            f"{root} has no file {pattern}: it is not the data set, or not all of it. If it lies in the cache, delete "
            "it and try again."
        )
    return file.parent
