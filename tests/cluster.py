"""A cluster of two processes, and a model that its workers can import: the built-in one, which takes its time."""

import os
import time
from contextlib import contextmanager
from pathlib import Path

import dask
from distributed import Client, LocalCluster

from sthist.models import BeerLambert
from sthist.systems.virtual_he.generator import PreparedSection


@contextmanager
def two_workers(folder):
    """A client of two processes of one thread each."""
    with (
        dask.config.set({"temporary-directory": str(folder), "distributed.worker.preload": []}),
        LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        yield client


class SlowTiles:
    """Stains tiles, each batch a little later, and says which process did."""

    def __init__(self, predict, log, seconds):
        self.predict, self.log, self.seconds = predict, log, seconds

    def __setstate__(self, state):
        vars(self).update(state)
        with Path(self.log).open("a") as file:  # a worker has unpickled its model
            file.write(f"loaded {os.getpid()}\n")

    def __call__(self, *tiles):
        time.sleep(self.seconds)
        with Path(self.log).open("a") as file:
            file.write(f"predicted {os.getpid()}\n")
        return self.predict(*tiles)


class SlowStain(BeerLambert):
    __module__ = BeerLambert.__module__  # as the package's own, which is known by its config: it may be continued

    def __init__(self, log, seconds=0.1):
        super().__init__()
        self.log, self.seconds = log, seconds

    def prepare(self, *args, **kwargs):
        stainer = super().prepare(*args, **kwargs)
        predict = SlowTiles(stainer.predict, str(self.log), self.seconds)
        return PreparedSection(stainer.readers, predict, stainer.facts, stainer.overlap, stainer.concurrent)
