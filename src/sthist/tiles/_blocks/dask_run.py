"""Blocks of some work, such as a canvas, on the workers of a dask cluster.

What goes over the network is small: a path and a few numbers to a worker, the numbers of a block back. The images stay
where they are; each worker opens them, and the canvas, by their path. What else painting takes (a model, a raster of
molecules) is pickled once, into a file beside the canvas, which a worker maps into memory and unpickles once.
"""

from __future__ import annotations

import hashlib
import pickle
import sys
import threading
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sthist._settings import logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from sthist.tiles._blocks.resumable import Painter, Resumable

SAME_VERSION = ("sthist", "numpy", "numba", "zarr", "spatialdata", "torch", "diffusers", "peft")
"""Packages that decide about pixels, or about how a job is pickled."""

ALIGNMENT = 64


@dataclass(frozen=True)
class Ticket:
    """What a worker is told: where a job is, how it must read, and who wrote it.

    Attributes
    ----------
    path
        File of the job.
    digest
        SHA-256 of its content: nothing else is ever unpickled.
    versions
        Of the packages that the job was written with.
    """

    path: str
    digest: str
    versions: tuple[tuple[str, str], ...]


class Job(NamedTuple):
    """A painter and the work that it does, such as a canvas."""

    painter: Painter
    work: Resumable


def run_on_cluster(client: Any, painter: Painter, work: Resumable, advance: Callable[[Any], None]) -> None:
    """Paint the pending blocks of some work on the workers of a cluster.

    A worker that dies loses its block to another; a block that is painted twice is painted alike.
    """
    from distributed import Client, as_completed

    if not isinstance(client, Client):
        msg = f"client= takes a dask.distributed.Client, not {type(client).__name__}."
        raise TypeError(msg)
    ticket = write_job(Job(painter, work), work.folder / "job")
    refused = {
        worker: answer
        for worker, answer in client.run(inspect, ticket, on_error="return").items()
        if answer is not None
    }
    if refused:
        reasons = "\n".join(f"  {worker}: {answer}" for worker, answer in refused.items())
        msg = f"{len(refused)} of the cluster's workers cannot take part:\n{reasons}"
        raise RuntimeError(msg)
    if not client.scheduler_info()["workers"]:
        logger.info("The cluster has no worker yet; waiting for the first.")
    futures = client.map(
        paint, work.pending(), ticket=ticket, key=f"sthist-{work.name}-{ticket.digest[:12]}", pure=False
    )
    try:
        for future in as_completed(futures):
            advance(future.result())
    finally:
        client.cancel(futures)
        client.run(forget, ticket, on_error="ignore")
        Path(ticket.path).unlink(missing_ok=True)


def write_job(job: Any, path: Path) -> Ticket:
    """Pickle a job into a file, its arrays behind it so that they can be mapped into memory."""
    import cloudpickle

    buffers: list[pickle.PickleBuffer] = []
    content = cloudpickle.dumps(job, protocol=5, buffer_callback=buffers.append)
    parts = [buffer.raw() for buffer in buffers]
    header = pickle.dumps((len(content), [part.nbytes for part in parts]))
    digest = hashlib.sha256()
    path = path.absolute()
    with path.open("wb") as file:
        for part in (len(header).to_bytes(8, "little"), header, content, *parts):
            padding = b"\0" * (-memoryview(part).nbytes % ALIGNMENT)
            for piece in (part, padding):
                digest.update(piece)
                file.write(piece)
    return Ticket(str(path), digest.hexdigest(), _versions())


def read_job(ticket: Ticket) -> Any:
    """The job of a ticket, its arrays mapped from the file (private to this process where they are written to)."""
    theirs = dict(ticket.versions)
    other = {name: (mine, theirs.get(name)) for name, mine in _versions() if mine != theirs.get(name)}
    if other:
        differences = ", ".join(f"{name} {mine} instead of {their}" for name, (mine, their) in other.items())
        msg = f"it runs {differences}; all workers need the versions of the client."
        raise RuntimeError(msg)
    path = Path(ticket.path)
    if not path.is_file():
        msg = (
            f"it does not see {path}; the store must lie on a file system that all workers share, under the same path."
        )
        raise FileNotFoundError(msg)
    mapped: Any = np.memmap(path, np.uint8, mode="c")
    if hashlib.sha256(mapped).hexdigest() != ticket.digest:
        msg = f"{path} is not the job of this run: the path leads elsewhere on this machine."
        raise RuntimeError(msg)
    parts = _split(memoryview(mapped))
    content = next(parts)
    return pickle.loads(content, buffers=list(parts))


def _split(mapped: memoryview) -> Any:
    """The pickle and then its arrays, out of what :func:`write_job` wrote."""
    start = ALIGNMENT
    length = int.from_bytes(mapped[:8], "little")
    n_content, sizes = pickle.loads(mapped[start : start + length])
    for n_bytes in (length, n_content, *sizes):
        if start > ALIGNMENT:
            yield mapped[start : start + n_bytes]
        start += n_bytes + -n_bytes % ALIGNMENT


_jobs: dict[str, Job] = {}
_opening = threading.Lock()


def inspect(ticket: Ticket) -> str | None:
    """Run on a worker: why it cannot take part, if it cannot."""
    try:
        _open(ticket)
    except (OSError, RuntimeError) as error:
        return str(error)
    return None


def paint(block: Any, ticket: Ticket) -> Any:
    """Run on a worker: paint a block and write it."""
    job = _open(ticket)
    values = job.painter.paint(block)
    # A client that went away may have begun anew, in the same place, with other settings.
    job.work.require_current()
    job.work.write(block, values)
    return block


def forget(ticket: Ticket) -> None:
    """Run on a worker: let the model and the decoded chunks of a job go."""
    _jobs.pop(ticket.digest, None)


def _open(ticket: Ticket) -> Job:
    with _opening:
        if ticket.digest not in _jobs:
            _jobs[ticket.digest] = read_job(ticket)
        return _jobs[ticket.digest]


def _versions() -> tuple[tuple[str, str], ...]:
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    return (("Python", python), *((name, version(name)) for name in SAME_VERSION))
