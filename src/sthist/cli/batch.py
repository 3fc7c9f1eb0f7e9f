"""One verb on many samples: a process each, as many at a time as memory allows, resumable."""

from __future__ import annotations

import csv
import inspect
import json
import logging
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sthist._sample.samples import require_one_spelling, safe_names
from sthist._settings import logger, settings
from sthist.cli.inputs import PLATFORMS, open_sample

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

RESERVED = ("sample", "path", "platform")
HEADROOM = 1.2  # A sample is expected to take up to this times the memory of the largest so far


@dataclass(frozen=True)
class Task:
    """A verb on one sample."""

    sample: str
    path: str  # its folder
    platform: str
    store: str  # the SpatialData store that is worked on
    verb: str  # such as "tl.virtual_he"
    arguments: dict[str, Any]  # of the verb; JSON values
    facts: dict[str, str]  # recorded of the sample: patient, batch, and whatever else its row says


@dataclass
class Running:
    """A task in its process."""

    task: Task
    process: subprocess.Popen[bytes]
    start: float


def find_verb(name: str) -> Callable[..., Any]:
    """The verb of ``pp`` or ``tl`` of a name such as ``tl.virtual_he``."""
    import sthist

    module, _, verb = name.partition(".")
    known = [f"{kind}.{each}" for kind in ("pp", "tl") for each in getattr(sthist, kind).__all__ if each.islower()]
    if name not in known:
        raise ValueError(f"There is no verb {name!r}; there are {', '.join(known)}.")
    return getattr(getattr(sthist, module), verb)  # type: ignore[no-any-return]


def read_tasks(samples: Path, verb: str, out: Path | None, arguments: dict[str, Any]) -> list[Task]:
    """A task per row of a csv file of samples."""
    if not samples.is_file():
        raise FileNotFoundError(f"There is no table of samples {samples}.")
    with samples.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        rows = [{name: (value or "").strip() for name, value in row.items() if name} for row in reader]
        columns = [name.strip() for name in reader.fieldnames or ()]
    missing = [name for name in ("sample", "path") if name not in columns]
    if missing or not rows:
        raise KeyError(f"{samples} has {f'no column {missing[0]!r}; it has {columns}' if missing else 'no rows'}.")
    known = list(inspect.signature(find_verb(verb)).parameters)[1:]
    for name in arguments:
        if name not in known:
            raise ValueError(f"{verb} has no argument {name!r}; it has {', '.join(known)}.")
    names = [row["sample"] for row in rows]
    safe = safe_names(names)
    if len(safe) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{samples} has sample {twice!r} more than once.")
    require_one_spelling(row.get("patient") or None for row in rows)
    tasks = []
    for line, row in enumerate(rows, start=2):
        platform = row.get("platform") or "spatialdata"
        wrong = [f"{name!r} is empty." for name in ("sample", "path") if not row[name]]
        if platform not in PLATFORMS:
            wrong.append(f"the platform {platform!r} is none of {', '.join(PLATFORMS)}.")
        elif out is None and platform != "spatialdata":
            wrong.append(f"a folder of {platform} needs a store to be worked on; give a folder with --out.")
        if wrong:
            raise ValueError(f"{samples}, line {line}: {wrong[0]}")
        path = (samples.parent / row["path"]).resolve()
        store = path if out is None else out.resolve() / f"{safe[row['sample']]}.zarr"
        own = {name: parse_value(value) for name, value in row.items() if name in known and value}
        facts = {name: value for name, value in row.items() if name not in (*RESERVED, *known) and value}
        tasks.append(Task(row["sample"], str(path), platform, str(store), verb, arguments | own, facts))
    return tasks


def parse_value(text: str) -> Any:
    """A number, true, false, null, or a list, as JSON writes them; anything else is text."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


class Batch:
    """Tasks, and the folder with their states, what they print, and the tables ``samples.csv`` and ``errors.csv``."""

    def __init__(self, tasks: list[Task], folder: Path, *, overwrite: bool = False) -> None:
        self.tasks, self.folder, self._overwrite = tasks, folder, overwrite
        self._names = safe_names(task.sample for task in tasks)
        (folder / "logs").mkdir(parents=True, exist_ok=True)
        (folder / "state").mkdir(exist_ok=True)

    def pending(self) -> list[Task]:
        """The tasks that are not done; those that failed are tried again."""
        return [task for task in self.tasks if self._overwrite or not self._is_done(task)]

    def run(self, jobs: int | None = None) -> int:
        """Run what is pending; returns how many samples have failed."""
        waiting, running = self.pending(), list[Running]()
        n_done = len(self.tasks) - len(waiting)
        if n_done:
            logger.info("%d of %d samples are done.", n_done, len(self.tasks))
        most = jobs or settings.threads
        threads = max(1, settings.threads // min(most, max(1, len(waiting))))
        peak = 0
        try:
            while waiting or running:
                while waiting and len(running) < most and (jobs or fits(running, peak)):
                    running.append(self._start(waiting.pop(0), threads))
                time.sleep(0.05)
                for each in [each for each in running if each.process.poll() is not None]:
                    running.remove(each)
                    peak = max(peak, self._finish(each))
        finally:  # also on Ctrl-C: no process stays behind, and the tables say how far it came
            for each in running:
                each.process.terminate()
                each.process.wait()
            self._write_tables()
        return sum(self._state(task).get("status") != "done" for task in self.tasks)

    def _start(self, task: Task, threads: int) -> Running:
        job = {"task": vars(task), "overwrite": self._overwrite, "threads": threads, "result": str(self._result(task))}
        self._result(task).unlink(missing_ok=True)
        logger.info("%s: started.", task.sample)
        command = [sys.executable, "-m", "sthist.cli.batch"]
        with self.log(task).open("wb") as log:
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT)
        assert process.stdin is not None
        process.stdin.write(json.dumps(job).encode())
        process.stdin.close()
        return Running(task, process, time.monotonic())

    def _finish(self, running: Running) -> int:
        """Record how a process ended; returns the most memory that it took."""
        task, code = running.task, running.process.returncode
        try:
            result = json.loads(self._result(task).read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
            hint = "; is there enough memory?" if code == -signal.SIGKILL else ""
            result = {"status": "failed", "error": "died", "message": f"The process was {how}{hint}", "peak": 0}
        seconds = time.monotonic() - running.start
        state = {"task": vars(task), "seconds": round(seconds, 1)} | result
        _write_json(self._state_file(task), state)
        self._result(task).unlink(missing_ok=True)
        if result["status"] == "done":
            logger.info("%s: done in %.0f s.", task.sample, seconds)
        else:
            logger.warning("%s: %s: %s", task.sample, result["error"], result["message"])
        return int(result["peak"])

    def _is_done(self, task: Task) -> bool:
        state = self._state(task)
        return state.get("status") == "done" and state["task"] == vars(task) and Path(task.store).exists()

    def log(self, task: Task) -> Path:
        """File of what a task printed."""
        return self.folder / "logs" / f"{self._names[task.sample]}.log"

    def _state_file(self, task: Task) -> Path:
        return self.folder / "state" / f"{self._names[task.sample]}.json"

    def _result(self, task: Task) -> Path:
        return self._state_file(task).with_suffix(".result")

    def _state(self, task: Task) -> dict[str, Any]:
        try:
            return dict(json.loads(self._state_file(task).read_text()))
        except FileNotFoundError:
            return {}

    def _write_tables(self) -> None:
        done = [("sample", "status", "seconds", "peak_mb", "store", "log")]
        errors = [("sample", "error", "message", "path", "log")]
        for task in self.tasks:
            state, log = self._state(task), str(self.log(task))
            megabytes = str(round(state.get("peak", 0) / 1e6) or "")
            done.append(
                (task.sample, state.get("status", "not done"), state.get("seconds", ""), megabytes, task.store, log)
            )
            if state.get("status") == "failed":
                errors.append((task.sample, state["error"], state["message"], task.path, log))
        for name, rows in (("samples", done), ("errors", errors)):
            with (self.folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows(rows)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    """Whole or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(content, indent=1))
    partial.replace(path)


def fits(running: list[Running], peak: int) -> bool:
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


def run_one(job: dict[str, Any]) -> None:
    """In a process of its own: open the sample, run the verb, and write what came of it."""
    import sthist

    task = Task(**job["task"])
    sthist.settings.threads, sthist.settings.progress = job["threads"], False
    with _outcome(Path(job["result"])):
        verb = find_verb(task.verb)
        sdata = open_sample(Path(task.path), task.platform, Path(task.store), {"name": task.sample} | task.facts)
        again = job["overwrite"] and "overwrite" in inspect.signature(verb).parameters
        verb(sdata, **task.arguments | ({"overwrite": True} if again else {}))


@contextmanager
def _outcome(path: Path) -> Iterator[None]:
    """Writes how a block ended; an error goes on to end the process, its trace in the log."""
    outcome: dict[str, Any] = {"status": "done"}
    try:
        yield
    except BaseException as error:
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        outcome = {"status": "failed", "error": type(error).__name__, "message": str(message)}
        raise
    finally:
        _write_json(path, outcome | {"peak": peak_memory()})


def peak_memory() -> int:
    """The most bytes that this process has held; 0 where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("sthist").setLevel(logging.INFO)
    run_one(json.load(sys.stdin))
