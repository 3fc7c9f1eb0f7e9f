"""Files of public data sets: unpacked, as far as the readers need them."""

from __future__ import annotations

import shutil
import tarfile
import zlib
from typing import TYPE_CHECKING

from sthist.datasets import _sources
from sthist.datasets._download import fetch, fetch_from_hub, unpack

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from sthist.datasets._download import Source

UNPACKED = "unpacked"


def unpacked(
    source: Source,
    wanted: Callable[[str], bool] = lambda _: True,
    how: Callable[[Path, Path, Callable[[str], bool]], Path] = unpack,
) -> Path:
    """The folder with what is needed of the first file of a source, which is an archive; others are downloaded, too."""
    folder = source.folder / UNPACKED
    return folder if folder.exists() else how(fetch(source)[0], folder, wanted)


def unpack_tar(archive: Path, folder: Path, wanted: Callable[[str], bool]) -> Path:
    """As :func:`sthist.datasets._download.unpack`, for a tar archive."""
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with tarfile.open(archive) as file:
            for member in file:
                if member.isfile() and wanted(member.name):
                    file.extract(member, partial, filter="data")
    except tarfile.FilterError as error:
        msg = f"{archive} has a member that leads outside of its folder: {error}. It was not unpacked."
        raise ValueError(msg) from None
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the disk's, not the archive's
            raise
        why = str(error).partition("\n")[0].rstrip(":.")
        msg = f"{archive} is no whole tar archive: {why}. Delete it, and download it again."
        raise ValueError(msg) from None
    partial.mkdir(exist_ok=True)
    return partial.rename(folder)


def from_hub(name: str, ids: str | Sequence[str], where: Sequence[str], shared: str) -> Path:
    """The folder with those files of some samples, and with the files of all."""
    repository, source = _sources.HUB[name]
    wanted = [ids] if isinstance(ids, str) else list(ids)
    patterns = [pattern.format(id=one) for one in wanted for pattern in where]
    return fetch_from_hub(repository, [*patterns, shared], source)


def first(root: Path, pattern: str) -> Path | None:
    """A file somewhere in a folder; None if there is none."""
    return next(iter(sorted(root.rglob(pattern))), None)


def folder_with(root: Path, pattern: str) -> Path:
    """The folder in which a file lies."""
    file = first(root, pattern)
    if file is None:
        msg = (
            f"{root} has no file {pattern}: it is not the data set, or not all of it. If it lies in the cache, delete "
            f"it and try again."
        )
        raise FileNotFoundError(msg)
    return file.parent
