"""Run by a test in a process of its own, which is then killed: virtual H&E of a store, slowly.

``python interrupted.py STORE``
"""

import sys
import time

import spatialdata as sd

import sthist
from sthist.models import BeerLambert
from sthist.systems.virtual_he.generator import PreparedSection
from sthist.tiles._blocks import canvas

BLOCK_PX = 512


class Slow(BeerLambert):
    """The built-in model, each block of which takes a tenth of a second longer."""

    __module__ = BeerLambert.__module__  # as the package's own, which is known by its config: it may be continued

    def prepare(self, *args, **kwargs):
        stainer = super().prepare(*args, **kwargs)

        def predict(*tiles):
            time.sleep(0.1)
            return stainer.predict(*tiles)

        return PreparedSection(stainer.readers, predict, stainer.facts, stainer.overlap, stainer.concurrent)


if __name__ == "__main__":
    canvas.BLOCK_PX = BLOCK_PX
    sthist.settings.progress = False
    sthist.tl.virtual_he(sd.read_zarr(sys.argv[1]), Slow())
