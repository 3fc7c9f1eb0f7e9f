"""One verb on many samples: a process each, here or on a cluster, as many at a time as memory allows, resumable."""

from __future__ import annotations

import csv
import hashlib
import inspect
import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sthist._disk import written_whole
from sthist._reading import available_memory
from sthist._sample.platforms import platforms_of
from sthist._sample.sample_csv import read_sample_csv
from sthist._sample.samples import require_one_spelling, safe_names
from sthist._settings import logger, recorded, settings
from sthist._store import check_name
from sthist._tables.genes import closest
from sthist.cli.inputs import PLATFORMS, has_result_of, open_sample

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sthist._sample.sample_csv import SampleTable

RESERVED = ("sample", "path", "platform")
FACTS = ("patient", "batch")
HEADROOM = 1.2  # A sample is expected to take up to this times the memory of the largest so far
BUSY = "another run is working on it"
IS_BUSY = 75  # how a process ends that finds it so; EX_TEMPFAIL of BSD


@dataclass(frozen=True)
class Task:
    """A verb on one sample."""

    sample: str
    path: str  # its folder
    platform: str
    store: str  # the SpatialData store that is worked on
    verb: str  # such as "tl.virtual_he"
    arguments: dict[str, Any]  # of the verb; JSON values
    facts: dict[str, str]  # recorded of the sample: patient, batch, and what else was asked for

    @property
    def run(self) -> str:
        """What its results record, so that they are known again: a checksum of the verb and its arguments."""
        asked = json.dumps([self.verb, self.arguments], sort_keys=True)
        return hashlib.sha256(asked.encode()).hexdigest()[:16]


@dataclass
class Running:
    """A task in its process."""

    task: Task
    process: subprocess.Popen[bytes]
    token: str  # by which what it records is known
    start: float

    def has_ended(self) -> bool:
        """Whether the process has."""
        return self.process.poll() is not None

    def is_busy(self) -> bool:
        """Whether it has ended because another run is at its sample."""
        return self.process.returncode == IS_BUSY

    def fate(self) -> str:
        """How it ended, as a sentence."""
        return fate_of(self.process.returncode)

    def close(self) -> None:
        """Let go of the pipe to it."""
        if self.process.stdin is not None:
            with suppress(BrokenPipeError):
                self.process.stdin.close()

    def stop(self) -> None:
        """End it, and wait until it has."""
        self.process.terminate()
        self.process.wait()
        self.close()


def launch(job: dict[str, Any]) -> subprocess.Popen[bytes]:
    """Start the process of a sample; the end of its input tells it that this process has ended."""
    command = [sys.executable, "-m", "sthist.cli.batch"]
    with Path(job["log"]).open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT)
    assert process.stdin is not None
    with suppress(BrokenPipeError):  # it has died already
        process.stdin.write(json.dumps(job).encode() + b"\n")
        process.stdin.flush()  # it stays open
    return process


def fate_of(code: int) -> str:
    """How a process ended, as a sentence, by its exit status."""
    how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
    hint = "; is there enough memory?" if code == -signal.SIGKILL else ""
    return f"The process was {how}{hint}"


class Processes:
    """Processes of this machine: as many as are asked for, else as many as there are processors and memory for."""

    def __init__(self, jobs: int | None, n_waiting: int) -> None:
        self._jobs, self._most, self._peak = jobs, jobs or settings.threads, 0
        self._threads = max(1, settings.threads // min(self._most, max(1, n_waiting)))

    def has_room(self, running: Sequence[Running]) -> bool:
        """Whether one more may start."""
        return len(running) < self._most and (bool(self._jobs) or fits(running, self._peak))

    def start(self, task: Task, job: dict[str, Any]) -> Running:
        """Start a task."""
        process = launch(job | {"threads": self._threads})
        return Running(task, process, job["token"], time.time())

    def learn(self, peak: int) -> None:
        """Take note of the most memory that a task has taken."""
        self._peak = max(self._peak, peak)


def find_verb(name: str) -> Callable[..., Any]:
    """The verb of ``pp`` or ``tl`` of a name such as ``tl.virtual_he``."""
    import sthist

    module, _, verb = name.partition(".")
    known = [f"{kind}.{each}" for kind in ("pp", "tl") for each in getattr(sthist, kind).__all__ if each.islower()]
    if name not in known:
        raise ValueError(f"There is no verb {name!r}; there are {', '.join(known)}.")
    return getattr(getattr(sthist, module), verb)  # type: ignore[no-any-return]


def read_tasks(
    samples: Path,
    verb: str,
    out: Path | None,
    arguments: dict[str, Any],
    record: Sequence[str] = (),
    platform_of_all: str | None = None,
) -> list[Task]:
    """A task per row of a csv file of samples; ``record`` are columns that are kept with the sample as they are."""
    table = read_sample_csv(samples)
    for name in ("sample", "path"):
        table.require_column(name)
    if not table.rows:
        raise KeyError(f"{samples} has no rows.")
    known = list(inspect.signature(find_verb(verb)).parameters)[1:]
    for name in arguments:
        if name not in known:
            raise ValueError(f"{verb} has no argument {name!r}; it has {', '.join(known)}.{closest(name, known)}")
    for name in record:
        table.require_column(name)
    facts_of = (*FACTS, *record)
    _require_known(table, [*RESERVED, *facts_of, *known], verb)
    names = [row["sample"] for row in table.rows]
    safe = safe_names(names)
    if len(safe) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{samples} has sample {twice!r} more than once.")
    require_one_spelling(row.get("patient") or None for row in table.rows)
    tasks = []
    for line, row in zip(table.lines, table.rows, strict=True):
        path = (samples.parent / row["path"]).resolve()
        platform = row.get("platform") or platform_of_all or _platform_of(path)
        wrong = [f"{name!r} is empty." for name in ("sample", "path") if not row[name]]
        if platform not in PLATFORMS:
            wrong.append(f"the platform {platform!r} is none of {', '.join(PLATFORMS)}.")
        elif out is None and platform != "spatialdata":
            wrong.append(f"a folder of {platform} needs a store to be worked on; give a folder with --out.")
        if wrong:
            raise ValueError(f"{samples}, line {line}: {wrong[0]}")
        check_name(safe[row["sample"]], f"{samples}, line {line}: the name of the sample")
        store = path if out is None else out.resolve() / f"{safe[row['sample']]}.zarr"
        own = {name: parse_value(value) for name, value in row.items() if name in known and value}
        facts = {name: row[name] for name in facts_of if row.get(name)}
        tasks.append(Task(row["sample"], str(path), platform, str(store), verb, arguments | own, facts))
    return tasks


def _require_known(table: SampleTable, known: list[str], verb: str) -> None:
    """Refuse a column that would go by unnoticed, such as an argument with a slip of the pen."""
    for name in table.columns:
        if not name:
            raise ValueError(f"{table.path} has cells in a column without a name (pandas: to_csv(..., index=False)).")
        if name not in known:
            raise ValueError(
                f"{table.path} has a column {name!r}, which is neither of {', '.join((*RESERVED, *FACTS))} nor an "
                f"argument of {verb}.{closest(name, known)} Remove it, or keep it with the sample by --record {name}."
            )


def _platform_of(path: Path) -> str:
    """What the files of a folder say, if they do; a folder that is none is for its own process to refuse."""
    found = platforms_of(path) if path.is_dir() else {}
    return next(iter(found)) if len(found) == 1 else "spatialdata"


def parse_value(text: str) -> Any:
    """A number, true, false, null, or a list, as JSON writes them; anything else is text."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


class Batch:
    """Tasks, and the folder with their states, what they print, and the tables ``samples.csv`` and ``errors.csv``."""

    def __init__(self, tasks: list[Task], folder: Path, *, overwrite: bool = False) -> None:
        self.tasks, self.folder, self._overwrite = tasks, folder, overwrite
        self._names = safe_names(task.sample for task in tasks)
        self.left: set[str] = set()  # samples that another run is at
        (folder / "logs").mkdir(parents=True, exist_ok=True)
        (folder / "state").mkdir(exist_ok=True)

    def pending(self) -> list[Task]:
        """The tasks that are not done; those that failed are tried again."""
        return [task for task in self.tasks if self._overwrite or not self._is_done(task)]

    def run(self, jobs: int | None = None, place: Any = None) -> int:
        """Run what is pending, but what another run is at; returns how many samples are not done.

        ``place`` is where: by default processes of this machine, ``jobs`` at a time.
        """
        waiting, running = self.pending(), list[Any]()
        n_done = len(self.tasks) - len(waiting)
        if n_done:
            logger.info("%d of %d samples are done.", n_done, len(self.tasks))
        if not waiting:
            logger.info("Nothing is left to do; --overwrite does it all again.")
        place = Processes(jobs, len(waiting)) if place is None else place
        try:
            while waiting or running:
                while waiting and place.has_room(running):
                    task = waiting.pop(0)
                    if not self._overwrite and self._is_done(task):  # by another run, in the meantime
                        logger.info("%s: done by another run.", task.sample)
                    elif is_locked(self._lock(task)):
                        logger.warning("%s: %s; it is left to that.", task.sample, BUSY)
                        self.left.add(task.sample)
                    else:
                        running.append(self._start(task, place))
                time.sleep(0.05)
                for each in [each for each in running if each.has_ended()]:
                    running.remove(each)
                    place.learn(self._finish(each))
        finally:  # also on Ctrl-C: no process stays behind, and the tables say how far it came
            for each in running:
                each.stop()
            self.left -= {task.sample for task in self.tasks if self._is_done(task)}
            self._write_tables()
        return sum(self._state(task).get("status") != "done" or task.sample in self.left for task in self.tasks)

    def _start(self, task: Task, place: Any) -> Any:
        job = {
            "token": uuid.uuid4().hex,
            "task": vars(task),
            "overwrite": self._overwrite,
            "verbosity": settings.verbosity,
            "log": str(self.log(task).absolute()),
            "state": str(self._state_file(task).absolute()),
            "lock": str(self._lock(task).absolute()),
        }
        logger.info("%s: started.", task.sample)
        return place.start(task, job)

    def _finish(self, running: Any) -> int:
        """Say how a process ended, and record it where it could not do so itself; returns the most memory it took."""
        task = running.task
        running.close()
        if running.is_busy():
            logger.warning("%s: %s; it is left to that.", task.sample, BUSY)
            self.left.add(task.sample)
            return 0
        state = self._state(task)
        if state.get("token") != running.token:
            state = {"status": "failed", "error": "died", "message": running.fate(), "peak": 0}
            state |= {"task": vars(task), "seconds": round(time.time() - running.start, 1)}
            _write_json(self._state_file(task), state)
        if state["status"] == "done":
            logger.info("%s: done in %.0f s.", task.sample, state["seconds"])
        else:
            logger.warning("%s: %s: %s", task.sample, state["error"], state["message"])
        return int(state["peak"])

    def _is_done(self, task: Task) -> bool:
        """Whether a run has ended well, and its result is in the store still, where the verb records one."""
        state = self._state(task)
        if state.get("status") != "done" or state["task"] != vars(task) or not Path(task.store).exists():
            return False
        return not state.get("recorded") or has_result_of(Path(task.store), task.run)

    def log(self, task: Task) -> Path:
        """File of what a task printed."""
        return self.folder / "logs" / f"{self._names[task.sample]}.log"

    def _state_file(self, task: Task) -> Path:
        return self.folder / "state" / f"{self._names[task.sample]}.json"

    def _lock(self, task: Task) -> Path:
        return self._state_file(task).with_suffix(".lock")

    def _state(self, task: Task) -> dict[str, Any]:
        """How a task ended; empty where that is not known."""
        file = self._state_file(task)
        try:
            state = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError):
            state = None
        if _is_state(state):
            return dict(state)
        logger.warning("%s: %s is damaged, and is not used; the store says what is done.", task.sample, file)
        with suppress(OSError):
            file.unlink()
        return {}

    def _write_tables(self) -> None:
        from filelock import FileLock

        done = [("sample", "status", "seconds", "peak_mb", "store", "log")]
        errors = [("sample", "error", "message", "path", "log")]
        for task in self.tasks:
            state, log = self._state(task), str(self.log(task))
            status = BUSY if task.sample in self.left else state.get("status", "not done")
            megabytes = str(round(state.get("peak", 0) / 1e6) or "")
            done.append((task.sample, status, state.get("seconds", ""), megabytes, task.store, log))
            if status == "failed":
                errors.append((task.sample, state["error"], state["message"], task.path, log))
        with FileLock(self.folder / "state" / ".tables.lock"):  # another run may be at its end, too
            for name, rows in (("samples", done), ("errors", errors)):
                with (
                    written_whole(self.folder / f"{name}.csv") as partial,
                    partial.open("w", newline="", encoding="utf-8") as file,
                ):
                    csv.writer(file).writerows(rows)


FIELDS: dict[str, Any] = {"status": str, "task": dict, "seconds": (int, float), "peak": int}
"""What a file of a state holds, of which types."""


def _is_state(content: Any) -> bool:
    if not isinstance(content, dict) or not all(isinstance(content.get(name), kind) for name, kind in FIELDS.items()):
        return False
    return content["status"] == "done" or all(isinstance(content.get(name), str) for name in ("error", "message"))


def is_locked(path: Path) -> bool:
    """Whether a process holds a lock."""
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False


def _write_json(path: Path, content: dict[str, Any]) -> None:
    with written_whole(path) as partial:
        partial.write_text(json.dumps(content, indent=1), encoding="utf-8")


def fits(running: Sequence[Running], peak: int) -> bool:
    """Whether the memory is there for one more sample, if all grow as large as the largest so far.

    The first one runs alone: what it takes is not known.
    """
    if not running:
        return True
    if not peak:
        return False
    import psutil

    expected = HEADROOM * peak
    to_come = 0.0
    for each in running:
        with suppress(psutil.NoSuchProcess):
            to_come += max(0.0, expected - psutil.Process(each.process.pid).memory_info().rss)
    return available_memory() - to_come >= expected


def run_one(job: dict[str, Any]) -> None:
    """In a process of its own: open the sample, run the verb unless its result is there, and write what came of it."""
    from filelock import FileLock, Timeout

    import sthist

    task = Task(**job["task"])
    sthist.settings.threads, sthist.settings.progress = job["threads"], False
    sthist.settings.verbosity = job["verbosity"]
    recorded["run"] = task.run
    lock = FileLock(job["lock"])
    try:
        lock.acquire(timeout=2)  # another run may be looking whether it is held
    except Timeout:
        raise SystemExit(IS_BUSY) from None
    with lock, _outcome(Path(job["state"]), task, job["token"]):
        verb = find_verb(task.verb)
        sdata = open_sample(Path(task.path), task.platform, Path(task.store), {"name": task.sample} | task.facts)
        made = not job["overwrite"] and has_result_of(Path(task.store), task.run)
        again = job["overwrite"] and "overwrite" in inspect.signature(verb).parameters
        try:  # a verb finishes what it had begun, and refuses what is whole, before it computes
            verb(sdata, **task.arguments | ({"overwrite": True} if again else {}))
        except ValueError as error:
            if not (made and "overwrite=True" in str(error)):
                raise
            logger.info("The result is in the store already: an earlier run has made it.")


@contextmanager
def _outcome(path: Path, task: Task, token: str) -> Iterator[None]:
    """Writes how a block ended; an error goes on to end the process, its trace in the log."""
    outcome: dict[str, Any] = {"status": "done"}
    start = time.monotonic()
    try:
        yield
        outcome["recorded"] = has_result_of(Path(task.store), task.run)
    except BaseException as error:
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        outcome = {"status": "failed", "error": type(error).__name__, "message": str(message)}
        raise
    finally:
        seconds = round(time.monotonic() - start, 1)
        facts = {"task": vars(task), "token": token, "seconds": seconds, "peak": peak_memory()}
        _write_json(path, outcome | facts)


def end_with_parent() -> None:
    """Let this process end, wherever it is, when the one that started it does: its pipe is closed then."""
    if sys.platform == "linux":  # at once, also while a library holds the interpreter
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    def watch() -> None:
        sys.stdin.buffer.read()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


PR_SET_PDEATHSIG = 1


def peak_memory() -> int:
    """The most bytes that this process has held; 0 where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    line = sys.stdin.buffer.readline()
    end_with_parent()
    run_one(json.loads(line))
