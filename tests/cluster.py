"""A model for a cluster's workers, which have to import it: the built-in one, which takes its time."""

import os
import time
from pathlib import Path

from sthist.models import BeerLambert
from sthist.models._base import Stainer


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
    def __init__(self, log, seconds=0.1):
        super().__init__()
        self.log, self.seconds = log, seconds

    def prepare(self, *args, **kwargs):
        stainer = super().prepare(*args, **kwargs)
        predict = SlowTiles(stainer.predict, str(self.log), self.seconds)
        return Stainer(stainer.readers, predict, stainer.facts, stainer.overlap, stainer.concurrent)
