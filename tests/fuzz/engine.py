"""One case of the fuzzer: a mutant is read in a child process, and how that ended is told by classes.

* ``same``: read, and nothing that counts has changed;
* ``value``: read, with other values that are as valid as those before: the format cannot show that they are wrong;
* ``said``: read with other values, and a warning names the file;
* ``silent``: read with values that no whole file of this kind has (negative counts, NaN, lost rows of a format that
  counts its rows ...), without a word;
* ``own``: refused with an error of sthist that names a file of the input;
* ``no file``: refused with one that names none;
* ``foreign``: another library's error;
* ``memory``, ``hang``, ``death``.

What a format cannot show: another number of the same kind in a file without checksums (csv, JSON, HDF5, Parquet,
uncompressed or JPEG pixels, safetensors); that a part which a folder may lack (nuclei of HEST, a field's composite) has
been there; a csv file that is cut between two rows, or in the digits of the last value;
another name of a gene, cell, class or sample; pixels of another picture of the same size; weights of the same shapes.
"""

from __future__ import annotations

import fnmatch
import logging
import os
import pickle
import random
import re
import resource
import select
import shutil
import signal
import tempfile
import time
import traceback
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from fuzz.mutators import files_of, mutate
from fuzz.targets import TARGETS

LIMIT_BYTES = 3 * 2**30
LIMIT_S = 20  # of computing: other work on the machine does not count
LIMIT_WAITING_S = 120.0  # by the clock, for what waits for ever
FARTHEST_UM = 1e8
CHECKSUMMED = (".gz", ".zip", ".png")
STRUCTURAL = (
    "truncate",
    "empty",
    "link",
    "folder",
    "garbage",
    "tiff missing",
    "h5 length",
    "h5 huge",
    "oversize",
)
CUT_TEXT = (".csv", ".tsv")


@dataclass(frozen=True)
class Outcome:
    """How a case ended."""

    target: str
    seed: int
    file: str
    damage: str
    kind: str  # one of the classes
    error: str = ""
    message: str = ""
    where: str = ""  # innermost frame
    seconds: float = 0.0
    megabytes: int = 0
    names_it: bool = False  # whether the message names the file that was damaged, or one of two
    fields: tuple[str, ...] = ()  # column, key, dataset or line that was damaged, where the mutator knows it
    names_field: bool = False  # whether the message names one of them


class Fuzzer:
    """Targets that are made and read once, so that children find everything warm."""

    def __init__(self, names: list[str] | None = None, *, huge: bool = False) -> None:
        import dask

        dask.config.set(scheduler="synchronous")  # a pool of threads does not survive a fork
        warnings.simplefilter("ignore")
        self.root = Path(tempfile.mkdtemp(prefix="sthist-fuzz-"))
        self.names, self.huge = list(names or TARGETS), huge
        self.whole: dict[str, Any] = {}
        for name in self.names:
            TARGETS[name].make(self._folder(name))
            # Under the path of the mutants: some facts name it.
            shutil.copytree(self._folder(name), self._mutant(name))
            self.whole[name] = TARGETS[name].read(self._mutant(name))
            shutil.rmtree(self._mutant(name))
        if huge:
            from fuzz.oversize import OVERSIZE

            for make in OVERSIZE.values():
                make()

    def _folder(self, name: str) -> Path:
        return self.root / "whole" / name

    def _mutant(self, name: str) -> Path:
        return self.root / "mutant" / name

    def close(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)

    def draw(self, seed: int) -> str:
        """The target of a case."""
        weights = [TARGETS[name].weight for name in self.names]
        return random.Random(seed).choices(self.names, weights)[0]

    def prepare(self, seed: int, name: str | None = None) -> tuple[str, Path, str, str, tuple[str, ...]]:
        """Target, folder, damaged file, damage and damaged fields of a case."""
        name = self.draw(seed) if name is None else name
        folder = self._mutant(name)
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self._folder(name), folder)
        return name, folder, *mutate(folder, random.Random(seed + 1), huge=self.huge)

    def case(self, seed: int, name: str | None = None) -> Outcome:
        """Damage an input, read it in a child, and tell how it ended."""
        name, folder, file, damage, fields = self.prepare(seed, name)
        names = {path.name for path in (*files_of(self._folder(name)), *files_of(folder))}
        damaged = _changed(self._folder(name), folder) | {Path(file).name}
        start = time.monotonic()
        answer, peak = _in_child(lambda: _attempt(name, folder, self.whole[name], file, damage, names, damaged, fields))
        seconds = time.monotonic() - start
        measured = {"seconds": round(seconds, 2), "megabytes": peak}
        return Outcome(name, seed, file, damage, **answer, **measured, fields=fields)


def _in_child(work: Any) -> tuple[dict[str, Any], int]:
    """What a function gives in a child process that may take so much memory and time, and the memory it took."""
    here, there = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 0
        try:
            os.close(here)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + LIMIT_BYTES,) * 2)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_CPU, (LIMIT_S, LIMIT_S + 1))
            with os.fdopen(there, "wb") as pipe:
                pickle.dump(work(), pipe)
        except BaseException:  # noqa: BLE001
            code = 7
        finally:
            os._exit(code)
    os.close(there)
    with os.fdopen(here, "rb") as pipe:
        ready = select.select([pipe], [], [], LIMIT_WAITING_S)[0]
        content = pipe.read() if ready else b""
    if not ready:
        os.kill(pid, signal.SIGKILL)
    _, status, used = os.wait4(pid, 0)
    peak = used.ru_maxrss // 1024
    if not ready or (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU):
        return {"kind": "hang"}, peak
    if status or not content:
        return {"kind": "death", "message": f"status {status}"}, peak
    return pickle.loads(content), peak


def _changed(whole: Path, folder: Path) -> set[str]:
    """Names of the files of a folder that are not as they were: an exchange damages two."""
    files = {path.relative_to(whole) for path in files_of(whole)}
    return {file.name for file in files if not _is_same(whole / file, folder / file)}


def _is_same(one: Path, other: Path) -> bool:
    return other.is_file() and one.read_bytes() == other.read_bytes()


def _attempt(
    name: str,
    folder: Path,
    whole: Any,
    file: str,
    damage: str,
    names: set[str],
    damaged: set[str],
    fields: tuple[str, ...],
) -> dict[str, Any]:
    said = _Said()
    logging.getLogger("sthist").addHandler(said)
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            found = TARGETS[name].read(folder)
        said.texts += [str(each.message) for each in warned if "sthist" in str(each.filename)]
    except BaseException as error:  # noqa: BLE001
        return _told(error, damaged, names, fields)
    return _compare(found, whole, file, damage, said.texts)


class _Said(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def _told(error: BaseException, damaged: set[str], names: set[str], fields: tuple[str, ...]) -> dict[str, Any]:
    frames = traceback.extract_tb(error.__traceback__)
    inner = error.__traceback__
    while inner is not None and inner.tb_next is not None:
        inner = inner.tb_next
    module = inner.tb_frame.f_globals.get("__name__", "") if inner is not None else ""
    message = str(error)
    own = module.split(".")[0] == "sthist"
    ours = isinstance(error, ValueError | KeyError | OSError | ImportError | MemoryError | TypeError)
    mentioned = any(_is_mentioned(name, message) for name in names)
    kind = "foreign" if not (own and ours) else "own" if mentioned else "no file"
    if isinstance(error, MemoryError) and not (own and mentioned):
        kind = "memory"
    last = frames[-1] if frames else None
    mine = next((frame for frame in reversed(frames) if "/sthist/" in frame.filename), None)
    where = f"{module}:{last.lineno}" if last else ""
    where += f" < {Path(mine.filename).name}:{mine.lineno}" if mine is not None and not own else ""
    named = {
        "names_it": any(_is_mentioned(name, message) for name in damaged),
        "names_field": any(_is_named(field, message) for field in fields),
    }
    return {"kind": kind, "error": type(error).__name__, "message": message[:400], "where": where} | named


def _is_mentioned(file: str, message: str) -> bool:
    """Whether a message names a file, or says by a pattern of its name that there is none."""
    patterns = re.findall(r"[\w.*-]*\*[\w.*-]{4,}", message)
    return file in message or any(fnmatch.fnmatch(file, pattern.rstrip(".")) for pattern in patterns)


def _is_named(field: str, message: str) -> bool:
    """Whether a message names a column, key, tensor, dataset or line."""
    name = rf"(?<!\w){re.escape(field)}(?!\w)"
    return re.search(name, message.replace("Line ", "line ")) is not None


def _compare(found: Any, whole: Any, file: str, damage: str, said: list[str]) -> dict[str, Any]:
    changed = sorted(
        key for key in {*found, *whole} if key not in found or key not in whole or not _equal(found[key], whole[key])
    )
    if not changed:
        return {"kind": "same"}
    shown = ", ".join(changed)[:300]
    if any(Path(file).name in text or (damage == "remove" and str(Path(file).parent) in text) for text in said):
        return {"kind": "said", "message": shown}
    wrong = _implausible(found, changed)
    counted = [key for key in changed if re.search(r"counts|coordinates|scale", key)]
    if wrong:
        return {"kind": "silent", "error": "values", "message": wrong}
    if (
        counted
        and any(word in damage for word in STRUCTURAL)
        and damage != "oversize .parquet"  # which is a whole table of other molecules, read when needed
        and not (damage == "truncate" and file.endswith(CUT_TEXT))
    ):
        return {"kind": "silent", "error": "structure", "message": shown}
    if file.endswith(CHECKSUMMED) and damage in {"flip", "zeros", "truncate"}:
        return {"kind": "silent", "error": "checksum", "message": shown}
    if any("pixels" in key for key in changed) and damage in {"tiff missing", "truncate"}:
        return {"kind": "silent", "error": "pixels", "message": shown}
    return {"kind": "value", "message": shown}


def _equal(a: Any, b: Any) -> bool:
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape:
        return False
    return bool(np.array_equal(a, b, equal_nan=a.dtype.kind in "fc" and b.dtype.kind in "fc"))


def _implausible(found: Any, changed: list[str]) -> str:
    """What no whole file gives."""
    for key in changed:
        value = np.asarray(found.get(key, 0))
        if value.dtype.kind not in "iuf" or key.endswith(".index"):
            continue
        if not np.isfinite(value).all():
            return f"{key} is not finite"
        if key.endswith("counts") and ((value < 0).any() or (value != np.floor(value)).any()):
            return f"{key} holds {value.min()} to {value.max()}"
        if "coordinates" in key and value.size and np.abs(value).max() > FARTHEST_UM:
            return f"{key} reaches {np.abs(value).max():g}"
        if "scale" in key and value.ndim == 2 and value.shape == (3, 3) and abs(np.linalg.det(value)) < 1e-12:
            return f"{key} is singular"
    return ""


def as_row(outcome: Outcome) -> dict[str, Any]:
    return asdict(outcome)
