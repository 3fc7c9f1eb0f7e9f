"""Nuclei of a slide: ``pp.nuclei`` by both its own methods, scikit-image's plain watershed, and memory at two sizes.

Run ``python bench/nuclei.py [--json FILE]``. The pixels are those of the toy sample's H&E with grain, on zarr, at
0.5 µm per pixel; 2 threads. Plain watershed (Otsu on haematoxylin, distance to the border) gets such pixels in memory
and makes labels alone. Speeds are told from seconds of the processor, so that what else runs on the machine does not
count. Memory is that of a process of its own, above what it has after its imports.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np

MPP, SIDES, METHODS = 0.5, (2048, 4608), ("small", "watershed")


def make_slide(store: Path, side: int) -> None:
    """An H&E of that many pixels: a toy section over and over, with the grain of a scanner."""
    import spatialdata as sd
    from spatialdata.models import Image2DModel
    from spatialdata.transformations import Scale

    import sthist

    he = sthist.datasets.toy(size_um=512.0, mpp=MPP)["he"]
    he = (he["scale0"].image if hasattr(he, "children") else he).to_numpy()[:, :1024, :1024]
    times = -(-side // he.shape[1])
    grain = np.random.default_rng(0).normal(0, 3, he.shape)
    pixels = np.tile(np.clip(he + grain, 0, 255).astype(np.uint8), (1, times, times))[:, :side, :side]
    image = Image2DModel.parse(
        pixels, dims=("c", "y", "x"), c_coords=["r", "g", "b"], transformations={"um": Scale([MPP, MPP], ("x", "y"))}
    )
    sd.SpatialData(images={"he": image}).write(store)


def run(store: Path, method: str) -> dict[str, float]:
    """Seconds of the verb, and memory; kernels are compiled before."""
    import spatialdata as sd
    import torch

    import sthist

    sthist.settings.threads = 2
    torch.set_num_threads(2)
    sthist.pp.nuclei(sthist.datasets.toy(size_um=100), method=method, progress=False)
    sdata = sd.read_zarr(store)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start, cpu = time.perf_counter(), time.process_time()
    sthist.pp.nuclei(sdata, "he", method=method, tissue=False, device="cpu", key_added=method, progress=False)
    seconds = time.perf_counter() - start
    cpu = time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    area = np.prod(sdata["he"].shape[1:]) * MPP**2 / 1e6
    return {
        "mm2": round(float(area), 3),
        "seconds": round(seconds, 2),
        "mm2_per_minute": round(60 * float(area) / seconds, 1),
        "nuclei": len(sdata[method]),
        "memory_gb": round((peak - before) / 1e6, 3),
        "cpu_seconds": round(cpu, 2),
        "mm2_per_minute_of_two_free_cores": round(120 * float(area) / cpu, 1),
    }


def plain(store: Path) -> float:
    """Seconds of a core that plain watershed takes per mm²."""
    import spatialdata as sd

    sys.path.insert(0, str(Path(__file__).parents[1] / "studies" / "nuclei"))
    from segmentation import plain

    pixels = sd.read_zarr(store)["he"].to_numpy().transpose(1, 2, 0)[:1536, :1536]
    start = time.process_time()
    plain(pixels, MPP)
    return (time.process_time() - start) / (pixels.shape[0] * pixels.shape[1] * MPP**2 / 1e6)


def main() -> None:
    """Both sizes, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--store", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--method", help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.store is not None:
        print(json.dumps(run(options.store, options.method)))
        return
    result: dict[str, object] = {
        "command": "python " + " ".join(sys.argv),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, python {platform.python_version()}",
    }
    with tempfile.TemporaryDirectory() as folder:
        for side in SIDES:
            store = Path(folder) / f"{side}.zarr"
            make_slide(store, side)
            for method in METHODS:
                call = [sys.executable, __file__, "--store", str(store), "--method", method]
                made = subprocess.run(call, check=True, capture_output=True, text=True)
                result[f"{method}, {side} px"] = json.loads(made.stdout.splitlines()[-1])
        per_mm2 = plain(Path(folder) / f"{SIDES[0]}.zarr")
    ours = result[f"watershed, {SIDES[1]} px"]
    assert isinstance(ours, dict)
    result["plain_watershed_cpu_seconds_per_mm2"] = round(per_mm2, 2)
    result["plain_over_watershed"] = round(per_mm2 * ours["mm2"] / ours["cpu_seconds"], 2)
    result["load"] = [round(each, 1) for each in os.getloadavg()]
    print(json.dumps(result, indent=1))
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
