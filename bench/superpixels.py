"""Maps of expression: memory and time of a slide of 20 x 20 mm with 1,000 genes, block by block.

Run ``python bench/superpixels.py [--json FILE] [--folder DIR] [--mm 20] [--genes 1000] [--features 183]``. The slide is
a map of features alone, noise on superpixels of 8 µm, and the model five networks of the published size whose weights
are random: neither changes what is computed. Memory is the high-water mark of the process, imports included; beside it
stands what the map would take in memory, as numbers of 32 bits.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

STRIDE_UM, MOST_GB = 8.0, 2.0


def make_slide(store: Path, side: int, n_features: int) -> None:
    """A store with a map of features."""
    import numpy as np
    import spatialdata as sd

    from sthist.tiles import Canvas

    folder = store.parent / "building"
    names = [f"f{number}" for number in range(n_features)]
    extent = (0, 0, side * STRIDE_UM, side * STRIDE_UM)
    how: dict[str, Any] = {"channels": names, "dtype": "float16", "chunk": (n_features, 64), "pyramid": False}
    canvas = Canvas(folder, "features", extent_um=extent, mpp=STRIDE_UM, fingerprint={}, block_px=128, **how)
    rng = np.random.default_rng(0)
    for block in canvas.pending():
        shape = (n_features, block.y1 - block.y0, block.x1 - block.x0)
        canvas.write(block, rng.standard_normal(shape, np.float32))
    shutil.move(canvas.store, store)
    sdata = sd.read_zarr(store)
    assert sdata["features"].shape == (n_features, side, side)


def make_model(n_genes: int, n_features: int) -> Any:
    """An iStar as it is after a training, with random weights."""
    import numpy as np

    from sthist import models

    config = models.IStarConfig(
        outputs=tuple(f"gene{number}" for number in range(n_genes)),
        encoders=({"key": "features", "encoder": "f", "sha256": None, "spec": None, "n_features": n_features},),
        dim=2 * n_features,
    )
    model = models.IStar(config)
    values = np.zeros(n_genes, np.float32)
    net = model.make_net(n_genes, values, values)
    model._keep(net, [])
    return model


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--mm", type=float, default=20.0)
    parser.add_argument("--genes", type=int, default=1000)
    parser.add_argument("--features", type=int, default=183)
    given = parser.parse_args()
    import spatialdata as sd

    import sthist

    folder = Path(tempfile.mkdtemp(dir=given.folder))
    try:
        side = round(given.mm * 1000 / STRIDE_UM)
        make_slide(folder / "slide.zarr", side, given.features)
        model = make_model(given.genes, given.features)
        sdata = sd.read_zarr(folder / "slide.zarr")
        start, worked = time.perf_counter(), time.process_time()
        sthist.tl.expression(sdata, model, progress=True)
        facts = {
            "command": "python bench/superpixels.py",
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
            "mm": given.mm,
            "superpixels": side**2,
            "genes": given.genes,
            "features": given.features,
            "seconds": time.perf_counter() - start,
            "cpu_seconds": time.process_time() - worked,
            "gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
            "gb_of_map": 4 * side**2 * given.genes / 1e9,
        }
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(facts, indent=2))
    print(f"{facts['gb']:.2f} GB: {'less' if facts['gb'] < MOST_GB else 'NOT LESS'} than {MOST_GB} GB.")
    if given.json is not None:
        given.json.write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
