"""Blocks of some work, such as a canvas, on the workers of a dask cluster.

What goes over the network is small: a path and a few numbers to a worker, the numbers of a block back. The images stay
where they are; each worker opens them, and the canvas, by their path. What else computing takes (a model, a raster of
molecules) is pickled once, into a file beside the canvas, which a worker reads and unpickles once.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import pickle
import sys
import threading
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sthist._settings import logger
from sthist.tiles._blocks.resumable import record

if TYPE_CHECKING:
    from collections.abc import Callable

    from sthist.tiles._blocks.resumable import BlockWorker, Resumable

SAME_VERSION = ("sthist", "numpy", "numba", "zarr", "spatialdata", "torch", "diffusers", "peft")
"""Packages that decide about pixels, or about how a job is pickled."""

ALIGNMENT = 64


@dataclass(frozen=True)
class Ticket:
    """What is sent to a worker: where a job is, how it must read, and who wrote it."""

    path: str
    digest: str  # SHA-256 of the file: nothing else is ever unpickled
    sizes: tuple[int, ...]  # bytes of the pickle and of its arrays, each of which starts at a multiple of ALIGNMENT
    versions: dict[str, str]  # of the packages that the job was written with


def run_on_cluster(
    client: Any, worker: BlockWorker, work: Resumable, pending: list[Any], advance: Callable[[Any], None]
) -> None:
    """Compute and record blocks of some work on the workers of a cluster.

    A worker that dies loses its block to another; a block that is computed twice is computed alike.
    """
    from distributed import Client, as_completed

    if not isinstance(client, Client):
        raise TypeError(f"client= takes a dask.distributed.Client, not {type(client).__name__}.")
    ticket = write_job((worker, work), work.folder / "job")
    refusals = refusals_of(client, ticket)
    if refusals:
        reasons = "\n".join(f"  {address}: {reason}" for address, reason in refusals.items())
        raise RuntimeError(f"{len(refusals)} of the cluster's workers cannot take part:\n{reasons}")
    if not client.nthreads():
        logger.info("The cluster has no worker yet; waiting for the first.")
    futures = client.map(
        record_there, pending, ticket=ticket, key=f"sthist-{work.name}-{ticket.digest[:12]}", pure=False
    )
    try:
        for future in as_completed(futures):
            advance(future.result())
    finally:
        client.cancel(futures)
        client.run(forget, ticket, on_error="ignore")
        Path(ticket.path).unlink(missing_ok=True)


def refusals_of(client: Any, ticket: Ticket, workers: list[str] | None = None) -> dict[str, Any]:
    """Why workers, or some of them, cannot take part, by their address; those that can are left out."""
    answers = client.run(inspect, ticket, workers=workers, on_error="return")
    return {address: answer for address, answer in answers.items() if answer is not None}


def write_job(job: Any, path: Path) -> Ticket:
    """Pickle a job into a file that nobody else can read or write, its arrays behind it so that they are not copied."""
    import cloudpickle

    arrays: list[pickle.PickleBuffer] = []
    content = cloudpickle.dumps(job, protocol=5, buffer_callback=arrays.append)
    parts = [memoryview(content), *(array.raw() for array in arrays)]
    digest = hashlib.sha256()
    path = path.absolute()
    path.unlink(missing_ok=True)  # of a run that was killed
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        for part in parts:
            for piece in (part, b"\0" * (-part.nbytes % ALIGNMENT)):
                digest.update(piece)
                file.write(piece)
    return Ticket(str(path), digest.hexdigest(), tuple(part.nbytes for part in parts), _versions())


def read_job(ticket: Ticket) -> Any:
    """The job of a ticket: what is unpickled are the very bytes whose checksum was compared, not the file."""
    differences = [
        f"{name} {here} instead of {ticket.versions.get(name)}"
        for name, here in _versions().items()
        if here != ticket.versions.get(name)
    ]
    if differences:
        raise RuntimeError(f"it runs {', '.join(differences)}; all workers need the versions of the client.")
    path = Path(ticket.path)
    if not path.is_file():
        raise FileNotFoundError(
            f"it does not see {path}; the store must lie on a file system that all workers share, under the same path."
        )
    with path.open("rb") as file:
        content = bytearray(os.fstat(file.fileno()).st_size)
        n_read = file.readinto(content)
    if n_read != len(content) or hashlib.sha256(content).hexdigest() != ticket.digest:
        raise RuntimeError(f"{path} is not the job of this run: the path leads elsewhere on this machine.")
    starts = itertools.accumulate((size + -size % ALIGNMENT for size in ticket.sizes), initial=0)
    view = memoryview(content)
    pickled, *arrays = (view[start : start + size] for start, size in zip(starts, ticket.sizes, strict=False))
    return pickle.loads(pickled, buffers=arrays)


_jobs: dict[str, tuple[BlockWorker, Resumable]] = {}
_opening = threading.Lock()


def inspect(ticket: Ticket) -> str | None:
    """Run on a worker: why it cannot take part, if it cannot."""
    try:
        _job(ticket)
    except (OSError, RuntimeError) as error:
        return str(error)
    return None


def record_there(block: Any, ticket: Ticket) -> Any:
    """Run on a worker: compute a block and write it."""
    return record(*_job(ticket), block)


def forget(ticket: Ticket) -> None:
    """Run on a worker: let the model and the decoded chunks of a job go."""
    _jobs.pop(ticket.digest, None)


def _job(ticket: Ticket) -> tuple[BlockWorker, Resumable]:
    with _opening:
        if ticket.digest not in _jobs:
            _jobs[ticket.digest] = read_job(ticket)
        return _jobs[ticket.digest]


def _versions() -> dict[str, str]:
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    return {"Python": python} | {name: version(name) for name in SAME_VERSION}
