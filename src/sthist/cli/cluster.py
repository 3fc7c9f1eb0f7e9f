"""The samples of a study on the workers of a dask cluster: on each a process at a time, the same as on this machine.

A worker starts the process that this machine would start, waits for it, and says how it ended. Stores, logs and states
lie on a file system that all share.
"""

from __future__ import annotations

import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sthist._settings import logger
from sthist.cli.batch import IS_BUSY, Task, fate_of, launch
from sthist.tiles._blocks.dask_run import Ticket, forget, refusals_of, write_job

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

LOOK_S = 1.0
"""Seconds after which the cluster is asked again which workers it has."""

LOST = "The dask worker {} was lost with the sample; is there enough memory?"


@contextmanager
def workers_of(address: str, folder: Path, jobs: int | None) -> Iterator[Workers]:
    """The workers of a cluster, each of which sees the folder of the study and runs this machine's versions."""
    from distributed import Client

    with Client(address, set_as_default=False) as client:
        ticket = write_job(None, folder / "state" / ".cluster")
        try:
            yield Workers(client, ticket, jobs)
        finally:
            client.run(forget, ticket, on_error="ignore")
            Path(ticket.path).unlink(missing_ok=True)


class Workers:
    """Workers of a cluster, one sample at a time on each."""

    def __init__(self, client: Any, ticket: Ticket, jobs: int | None) -> None:
        self.client, self._ticket, self._jobs = client, ticket, jobs
        self._threads: dict[str, int] = {}  # of each worker
        self._takes_part: dict[str, bool] = {}
        self._next: str | None = None
        self._looked = -LOOK_S
        self._look()
        refusals = self._examine()
        if refusals:
            reasons = "\n".join(f"  {address}: {reason}" for address, reason in refusals.items())
            raise RuntimeError(f"{len(refusals)} of the cluster's workers cannot take part:\n{reasons}")
        if not self._threads:
            logger.info("The cluster has no worker yet; waiting for the first.")

    def has_room(self, running: Sequence[Remote]) -> bool:
        """Whether one more may start."""
        self._next = None if self._jobs and len(running) >= self._jobs else self._free(running)
        return self._next is not None

    def start(self, task: Task, job: dict[str, Any]) -> Remote:
        """Start a task on the worker that has room."""
        address = self._next
        assert address is not None
        job = job | {"threads": self._threads[address]}
        key = f"sthist-run-{job['token']}"
        future = self.client.submit(
            supervise, job, key=key, workers=[address], allow_other_workers=False, retries=0, pure=False
        )
        return Remote(task, future, job["token"], time.time(), address, self)

    def learn(self, peak: int) -> None:
        """Memory is the workers' affair."""

    def is_there(self, address: str) -> bool:
        """Whether the cluster has a worker still."""
        self._look()
        return address in self._threads

    def _free(self, running: Sequence[Remote]) -> str | None:
        """A worker that no sample is at."""
        self._look()
        for address, reason in self._examine().items():
            logger.warning("The worker %s cannot take part: %s", address, reason)
        busy = {each.address for each in running}
        return next((each for each in self._threads if self._takes_part.get(each) and each not in busy), None)

    def _look(self) -> None:
        if time.monotonic() - self._looked >= LOOK_S:
            self._threads, self._looked = dict(self.client.nthreads()), time.monotonic()

    def _examine(self) -> dict[str, Any]:
        """Why workers that have come since cannot take part."""
        new = [address for address in self._threads if address not in self._takes_part]
        refusals = refusals_of(self.client, self._ticket, new) if new else {}
        self._takes_part |= {address: address not in refusals for address in new}
        return refusals


@dataclass
class Remote:
    """A task on a worker."""

    task: Task
    future: Any
    token: str  # by which what it records is known
    start: float
    address: str
    workers: Workers
    _outcome: int | str | None = field(default=None, init=False)

    def has_ended(self) -> bool:
        """Whether the process has, or the worker is lost."""
        if self._outcome is None:
            if self.future.done():
                self._outcome = self._result()
            elif not self.workers.is_there(self.address):
                self._outcome = LOST.format(self.address)
        return self._outcome is not None

    def _result(self) -> int | str:
        if self.future.status == "finished":
            return int(self.future.result())
        reason = self.future.exception() if self.future.status == "error" else self.future.status
        return f"The dask worker {self.address} could not run it: {reason}"

    def is_busy(self) -> bool:
        """Whether it has ended because another run is at its sample."""
        return self._outcome == IS_BUSY

    def fate(self) -> str:
        """How it ended, as a sentence."""
        return fate_of(self._outcome) if isinstance(self._outcome, int) else str(self._outcome)

    def close(self) -> None:
        """Let go of what the scheduler keeps of it."""
        self.future.release()

    def stop(self) -> None:
        """End it: the worker ends the process when its task is cancelled."""
        self.future.cancel()


def supervise(job: dict[str, Any]) -> int:
    """Run on a worker: start the process of a sample, and return how it ended; with the task ends the process."""
    from distributed import get_worker
    from distributed.worker import thread_state

    tasks, key = get_worker().state.tasks, thread_state.key
    process = launch(job)
    try:
        while process.poll() is None:
            if key not in tasks or tasks[key].state == "cancelled":  # also where the client is gone
                process.terminate()
                process.wait()
            time.sleep(0.05)
    finally:
        if process.stdin is not None:
            with suppress(BrokenPipeError):
                process.stdin.close()
    return process.returncode
