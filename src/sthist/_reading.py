"""Files that others wrote: opened, unpacked within limits, and refused by name where they are damaged."""

from __future__ import annotations

import contextlib
import functools
import gzip
import io
import json
import os
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from sthist._faults import fault_in
from sthist._settings import settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

P = ParamSpec("P")
R = TypeVar("R")
GZIP, ZIP = b"\x1f\x8b", b"PK\x03\x04"
PACKED = 100  # no slide and no table is packed to less than one part in so many; what unpacks to gigabytes is
PACKED_BYTES = 2**30
UNCHECKED_BYTES = 2**24
BLOCK_BYTES = 2**22


@contextlib.contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Turn whatever another library raises at a damaged file into one error that names the file.

    What sthist itself says of the file goes on as it is.
    """
    try:
        yield
    except Exception as error:
        if _is_ours(error, Path(path)):
            raise
        raise _of_file(Path(path), error) from error


class FileArray:
    """An array of a file that is read part by part, when needed, each within :func:`reading`."""

    def __init__(self, path: Path, stored: Any) -> None:
        self._path, self._stored = path, stored
        self.shape, self.dtype, self.ndim, self.chunks = stored.shape, stored.dtype, stored.ndim, stored.chunks

    def __getitem__(self, index: Any) -> Any:
        with reading(self._path):
            return self._stored[index]


def reader(function: Callable[P, R]) -> Callable[P, R]:
    """A function that reads what others wrote, and names the file in whatever error another library raises at it.

    Most files are opened within :func:`reading`; this is for libraries that open the files of a folder by themselves.
    """

    @functools.wraps(function)
    def named(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except Exception as error:
            if _is_ours(error):
                raise
            by_name = (each for each in kwargs.values() if isinstance(each, str | Path) and os.path.exists(each))
            source = next((each for each in args if isinstance(each, str | Path)), next(by_name, None))
            file = _file_in_hand(error.__traceback__) or (None if source is None else Path(source))
            if file is None:
                raise
            raise _of_file(file, error) from error

    return named


def _is_ours(error: Exception, path: Path | None = None) -> bool:
    """Whether an error was raised by sthist and names the file, if one is given, or is none of a file's."""
    if isinstance(error, Warning | ImportError | NameError | ConnectionError | TimeoutError):
        return True
    if isinstance(error, OSError) and error.errno is not None:  # of the system, whoever has asked it
        return False
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    module = str(trace.tb_frame.f_globals.get("__name__", "")) if trace is not None else ""
    return module.split(".")[0] == "sthist" and (path is None or path.name in str(error))


def _of_file(path: Path, error: Exception) -> Exception:
    """What is said of a file in place of an error."""
    if isinstance(error, MemoryError):
        return MemoryError(f"{path} needs more memory than there is: {error or 'none is left'}. Is it damaged?")
    missing = _missing(path)
    if missing is not None:
        return missing
    if isinstance(error, PermissionError):
        return PermissionError(f"{path} may not be read: {error.strerror}. Change its permissions, or copy it.")
    if isinstance(error, RuntimeError) and "encrypted" in str(error):
        return ValueError(f"{path} is encrypted. Unpack it with its password, and give what it holds.")
    if isinstance(error, RecursionError):
        return ValueError(f"{path} cannot be read: it is nested too deeply.{fault_in(path)} Is it damaged?")
    if type(error).__name__ == "TiffFileError":
        return ValueError(f"{path} is no TIFF file that can be read: {error}. Is it truncated? Copy it again.")
    why = (str(error).strip().splitlines() or [""])[0]
    why = why if len(why) > 12 and not isinstance(error, KeyError) else f"{type(error).__name__}: {why}"
    return ValueError(
        f"{path} cannot be read: {why.rstrip('.')}.{fault_in(path, error)} Is it truncated, or of another "
        "format? Copy or export it again."
    )


def _missing(path: Path) -> Exception | None:
    """What is wrong with a path at which there is no file; None where there is one."""
    if path.is_symlink() and not path.exists():
        return FileNotFoundError(f"{path} is a link to {os.readlink(path)}, where nothing is. Copy the file itself.")
    if path.is_dir():
        return ValueError(f"{path} cannot be read: it, or a part of it, is not what it should be.")
    if not path.exists():
        return FileNotFoundError(f"There is no file {path}.")
    if not path.is_file():
        return ValueError(f"{path} is no regular file. Copy its content to one.")
    return None


def require_file(path: str | Path, what: str = "") -> None:
    """Refuse a path at which there is no file, a link to nowhere, and a folder; ``what`` stands before the message."""
    wrong = _missing(Path(path))
    if wrong is None:
        return
    if not Path(path).exists() and not Path(path).is_symlink():
        raise FileNotFoundError(f"{what}: there is no file {path}." if what else str(wrong))
    if Path(path).is_dir():
        wrong = IsADirectoryError(f"{path} is a folder; a file is needed.")
    raise type(wrong)(f"{what}: {wrong}" if what else str(wrong))


def _file_in_hand(trace: TracebackType | None) -> Path | None:
    """The file that the innermost call of a traceback was given."""
    found = None
    while trace is not None:
        for value in list(trace.tb_frame.f_locals.values()):
            if isinstance(value, Path) or (isinstance(value, str) and value.startswith(os.sep) and len(value) < 4096):
                with contextlib.suppress(OSError, ValueError):
                    if Path(value).is_file() and not str(value).endswith((".py", ".so")):
                        found = Path(value)
        trace = trace.tb_next
    return found


# Sizes ---------------------------------------------------------------------------------------------------------------


def require_memory(path: str | Path, n_bytes: float, what: str, packed: int | None = None) -> None:
    """Refuse what would not fit into memory, or is packed so tightly that nothing real is in it."""
    if packed is None:  # into how many bytes
        packed = os.stat(path).st_size if os.path.exists(path) else int(n_bytes)
    limit = _limit(n_bytes / max(1, packed))
    if n_bytes > limit:
        raise ValueError(
            f"{path} has {what}, which take {n_bytes / 1e9:.3g} GB of memory; up to {limit / 1e9:.3g} GB are read. Is "
            "it damaged? If it is right, give a part of it (or a tiled TIFF of an image), or allow more with "
            "sthist.settings.max_read_gb."
        )


def _limit(ratio: float) -> float:
    """Bytes that may be unpacked of a file, by how much larger they are than the file."""
    if settings.max_read_gb is not None:
        return settings.max_read_gb * 1e9
    free = available_memory()
    return min(PACKED_BYTES, free) if ratio > PACKED else free


def available_memory() -> int:
    """Bytes that are free on this machine, or in the control group that this process runs in."""
    import psutil

    free = int(psutil.virtual_memory().available)
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = (group / "memory.max").read_text(), (group / "memory.current").read_text()
    except OSError:
        return free
    return free if limit.strip() == "max" else min(free, int(limit) - int(used))


class _Unpacked(io.RawIOBase):
    """What a packed file holds, refused where it grows beyond all bounds."""

    def __init__(self, path: Path, stream: Any, file: Any) -> None:
        self._path, self._stream, self._file = path, stream, file
        self._n, self._has_looked = 0, False
        self._checked = min(UNCHECKED_BYTES, _limit(1))

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        n = self._stream.readinto(buffer)
        self._n += n
        if self._n > self._checked:
            if not self._has_looked:
                self._look_ahead()
            require_memory(self._path, self._n, "contents", self._file.tell())
            self._checked = self._n + UNCHECKED_BYTES
        return int(n)

    def _look_ahead(self) -> None:
        """Refuse a file that is packed too tightly before all that may be read of it fills the memory."""
        self._has_looked = True
        with self._path.open("rb") as file, gzip.GzipFile(fileobj=file) as stream:
            n = 0
            while block := stream.read(BLOCK_BYTES):
                n += len(block)
                if n <= PACKED * file.tell():
                    return
                require_memory(self._path, n, "contents", file.tell())

    def close(self) -> None:
        self._stream.close()
        self._file.close()
        super().close()


def open_bytes(path: str | Path) -> Any:
    """A file to be read as bytes; what is packed by gzip is unpacked, within the limits of memory."""
    path = Path(path)
    require_file(path)
    with path.open("rb") as file:
        packed = file.read(2) == GZIP or path.suffix == ".gz"
    if not packed:
        return path.open("rb")
    file = path.open("rb")
    return io.BufferedReader(_Unpacked(path, gzip.GzipFile(fileobj=file), file), 2**20)


def open_text(path: str | Path) -> Any:
    """A text file to be read, plain or packed by gzip."""
    return io.TextIOWrapper(open_bytes(path), encoding="utf-8-sig")


def read_content(path: Path, member: Callable[[zipfile.ZipFile], str]) -> bytes:
    """All bytes of a file, plain, of gzip, or of the one member of a zip that a function names."""
    with reading(path):
        with path.open("rb") as file:
            is_zip = file.read(4) == ZIP
        if not is_zip:
            with open_bytes(path) as content:
                return bytes(content.read())
        with zipfile.ZipFile(path) as archive:
            name = member(archive)
            require_memory(path, archive.getinfo(name).file_size, f"contents ({name!r})")
            return archive.read(name)  # no more than that is unpacked


def parse_json(path: str | Path, content: bytes | None = None) -> Any:
    """The document of a JSON file."""
    with reading(path):
        require_file(path)
        return json.loads((Path(path).read_bytes() if content is None else content).decode("utf-8-sig"))


def read_object(path: str | Path) -> dict[str, Any]:
    """An object of a JSON file."""
    content = parse_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no JSON object with names and values, but {type(content).__name__}.")
    return content
