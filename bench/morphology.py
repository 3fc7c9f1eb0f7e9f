"""Tiles per second of the built-in encoder ``morphology``, beside the scipy segmentation of nuclei alone.

Run ``python bench/morphology.py [--json FILE]``. Tiles of 112 µm on 224 px of the toy sample's H&E with grain, two
threads.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from pathlib import Path

import numpy as np

import sthist
from sthist import stains
from sthist.encoders._morphology.encoder import STAIN_VECTORS, Morphology
from sthist.tiles import TileReader, TileSpec, segment_nuclei

SPEC = TileSpec(size_um=112.0, px=224)
N_TILES, N_RUNS, N_SEGMENTED = 256, 7, 16


def tiles() -> np.ndarray:
    """Tiles side by side, with the grain of a scanner."""
    sdata = sthist.datasets.toy(size_um=1800.0)
    steps = np.arange(56.0, 1792.0, 112.0)
    where = np.stack(np.meshgrid(steps, steps), -1).reshape(-1, 2)[:N_TILES]
    clean = TileReader(sdata, "he", SPEC, fill=255).read(where)
    grain = np.random.default_rng(0).normal(0, 3, clean.shape).astype(np.float32)
    return np.clip(clean + grain, 0, 255).astype(np.uint8)


def per_second(function, n: int) -> list[float]:
    """Tiles per second of each of several runs."""
    rates = []
    for _ in range(N_RUNS):
        start = time.perf_counter()
        function()
        rates.append(n / (time.perf_counter() - start))
    return rates


def main() -> None:
    """Time, print and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    sthist.settings.progress = False
    sthist.settings.threads = 2
    encoder, images = Morphology(mpp=SPEC.mpp), tiles()
    encoder.embed(images[:4])  # compiles
    busy = os.getloadavg()[0]
    ours = per_second(lambda: encoder.embed(images), len(images))
    vectors = np.array(STAIN_VECTORS)
    stain = [stains.concentrations(tile, vectors)[..., 0] for tile in images[:N_SEGMENTED]]
    theirs = per_second(lambda: [segment_nuclei(each, SPEC.mpp) for each in stain], len(stain))
    result = {
        "command": "python bench/morphology.py",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "load_before": round(busy, 2),
        "threads": 2,
        "tiles": len(images),
        "tile": SPEC.to_dict(),
        "features": encoder.dim,
        "tiles_per_second": round(float(np.median(ours)), 1),
        "tiles_per_second_range": [round(min(ours), 1), round(max(ours), 1)],
        "segment_nuclei_alone_per_second_one_thread": round(float(np.median(theirs)), 1),
    }
    print(json.dumps(result, indent=1))
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
