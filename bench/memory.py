"""Memory and speed of a virtual H&E of a whole slide, from 8,000 to 32,000 pixels a side.

Run ``python bench/memory.py [--json FILE] [--folder DIR] [--sizes 8192 16384 32768]``. Each slide is made on disk,
chunk by chunk: a nuclear stain of 0.2125 µm/px with a pyramid, and 5, 20 or 40 million transcripts in parquet. Then a
process of its own opens it as a user would and runs ``tl.virtual_he`` without arguments. Its memory is the high-water
mark of its resident set above what it was after its imports. At 8,000 pixels a plain implementation of the same formula
(numpy, scipy, scikit-image; everything in memory, float32) runs in another process on the same slide.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MPP, PATCH_UM, GENES = 0.2125, 480.0, 300
TRANSCRIPTS = {8192: 5_000_000, 16384: 20_000_000, 32768: 40_000_000}
PER_PARTITION = 1_000_000
CHUNK = 1024
MOST_GB, MOST_GROWTH, LEAST_SPEEDUP = 1.5, 0.10, 5.0  # what is promised; the exit status says whether it is kept


def make_slide(folder: Path, side: int) -> None:
    """A slide of a round piece of tissue: the toy's pattern, turned and moved from block to block."""
    import dask.array as da
    import dask.dataframe as dd
    import numpy as np
    import pandas as pd
    import spatialdata as sd
    from skimage.transform import rescale
    from spatialdata.models import Image2DModel, PointsModel
    from spatialdata.transformations import Identity, Scale

    import sthist

    toy = sthist.datasets.toy(size_um=PATCH_UM)
    patch = rescale(toy["morphology_focus"].to_numpy()[0].astype(np.float32), 0.5 / MPP, order=1).astype(np.uint16)
    dark = float(np.quantile(patch, 0.02))
    radius = 0.46 * side

    def stain(block_info=None):
        (y0, y1), (x0, x1) = block_info[None]["array-location"][1:]
        rng = np.random.default_rng([y0, x0])
        y, x = rng.integers(0, patch.shape[0] - CHUNK, 2)
        pixels = np.rot90(patch[y : y + CHUNK, x : x + CHUNK], rng.integers(4))[: y1 - y0, : x1 - x0]
        rows, columns = np.mgrid[y0:y1, x0:x1].astype(np.float32) - side / 2
        inside = rows**2 + columns**2 < radius**2
        noise = rng.integers(0, 40, pixels.shape, dtype=np.uint16)
        return (np.where(inside, pixels, dark) + noise).astype(np.uint16)[None]

    image = da.map_blocks(
        stain,
        chunks=((1,), da.core.normalize_chunks(CHUNK, (side,))[0], da.core.normalize_chunks(CHUNK, (side,))[0]),
        dtype=np.uint16,
    )
    known = toy["transcripts"].compute()
    known = known[known["feature_name"].isin(toy["table"].var_names)]
    genes = pd.CategoricalDtype(sorted(toy["table"].var_names))
    side_um, radius_um = side * MPP, radius * MPP

    def partition(number: int) -> pd.DataFrame:
        rng = np.random.default_rng([number, side])
        n = PER_PARTITION
        rows = rng.integers(0, len(known), 2 * n)
        xy = known[["x", "y"]].to_numpy()[rows] + rng.normal(0, 1, (2 * n, 2))
        blocks = int(np.ceil(side_um / PATCH_UM))
        xy += rng.integers(0, blocks, (2 * n, 2)) * PATCH_UM
        keep = np.flatnonzero(((xy - side_um / 2) ** 2).sum(1) < radius_um**2)[:n]
        return pd.DataFrame(
            {
                "x": xy[keep, 0].astype(np.float32),
                "y": xy[keep, 1].astype(np.float32),
                "feature_name": pd.Categorical(known["feature_name"].astype(str).to_numpy()[rows[keep]], dtype=genes),
                "qv": rng.uniform(15, 40, len(keep)).astype(np.float32),
            }
        )

    frame = dd.from_map(partition, range(TRANSCRIPTS[side] // PER_PARTITION), meta=partition(0).iloc[:0])
    sdata = sd.SpatialData(
        images={
            "morphology_focus": Image2DModel.parse(
                image,
                dims=("c", "y", "x"),
                c_coords=["DAPI"],
                scale_factors=[2] * 4,
                transformations={"um": Scale([MPP, MPP], ("x", "y")), "global": Identity()},
            )
        },
        points={
            "transcripts": PointsModel.parse(
                frame, coordinates={"x": "x", "y": "y"}, feature_key="feature_name", transformations={"um": Identity()}
            )
        },
    )
    sdata.write(folder)


def resident() -> dict[str, int]:
    """Bytes that this process holds, and the most that it has held."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return {name: int(fields[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM")}


def measure(call) -> dict[str, float]:
    """Seconds of a call, and the memory that it takes above what is held before."""
    before = resident()["VmRSS"]
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
    start = time.perf_counter()
    call()
    return {
        "seconds": time.perf_counter() - start,
        "gb": (resident()["VmHWM"] - before) / 1e9,
        "import_gb": before / 1e9,
    }


def run_sthist(store: Path) -> dict:
    """In a process of its own: the whole slide, after a dry run in another."""
    import dask.dataframe  # noqa: F401 - what the call would import
    import numba  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    import scipy.ndimage
    import skimage.morphology  # noqa: F401
    import spatialdata as sd

    import sthist
    import sthist.systems.virtual_he.models.beer_lambert
    from sthist.tiles._blocks import blend  # noqa: F401

    assert scipy.ndimage
    sthist.settings.progress = False
    return measure(lambda: sthist.tl.virtual_he(sd.read_zarr(store), overwrite=True))


def run_plan(store: Path) -> dict:
    """In a process of its own: what a dry run expects."""
    import spatialdata as sd

    import sthist

    plan = sthist.tl.virtual_he(sd.read_zarr(store), dry_run=True, overwrite=True)
    return {"seconds": plan.seconds, "gb": plan.memory_bytes / 1e9, "disk_gb": plan.disk_bytes / 1e9}


def run_plain(store: Path) -> dict:
    """In a process of its own: the plain implementation."""
    import numpy as np
    import pyarrow.parquet  # noqa: F401
    import spatialdata as sd
    from skimage import filters, morphology, transform
    from spatialdata.models import Image2DModel
    from spatialdata.transformations import Scale

    from sthist.systems.virtual_he.models.beer_lambert import BeerLambertConfig

    config = BeerLambertConfig()
    halves: dict[str, float] = {}

    def call() -> None:
        start = time.perf_counter()
        sdata = sd.read_zarr(store)
        stain = sdata["morphology_focus"]["scale0"].image.compute().to_numpy()[0].astype(np.float32)
        frame = sdata["transcripts"].compute()
        frame = frame[frame["qv"] >= config.min_qv]
        cells = tuple(int(np.ceil(n * MPP)) for n in stain.shape)
        edges = [np.arange(n + 1, dtype=np.float64) for n in cells]
        counts = np.histogram2d(frame["y"], frame["x"], bins=edges)[0].astype(np.float32)
        # Tissue: where the smoothed stain, or the smoothed molecules, are above the background.
        coarse = tuple(n // 8 for n in cells)
        smooth = filters.gaussian(transform.resize(stain, coarse, anti_aliasing=True), 1.5)
        dense = filters.gaussian(transform.resize(counts, coarse, anti_aliasing=True), 1.0)
        tissue = (smooth > filters.threshold_otsu(smooth)) | (dense > 0.1 * np.quantile(dense, 0.95))
        tissue = morphology.opening(morphology.closing(tissue, morphology.disk(3)), morphology.disk(2))
        tissue = filters.gaussian(tissue.astype(np.float32), 0.7)
        on_tissue = transform.resize(tissue, cells, order=1) > 0.5
        density = plain_density(counts * on_tissue, on_tissue.astype(np.float32), config.min_points)
        middle, high = np.quantile(density[on_tissue], (0.5, 0.95))
        knots, (none, half, strong) = (0.0, middle, high, 2 * high - middle), config.eosin
        eosin = np.interp(density, knots, (none, half, strong, 2 * strong - half)).astype(np.float32)
        mask = transform.resize(tissue, stain.shape, order=1).astype(np.float32)
        low, bright = np.quantile(stain[mask > 0.5][::97], config.nuclear_quantiles)
        base, full = config.haematoxylin
        amount = base + (full - base) / (bright - low) * np.clip(stain - low, 0, None)
        eosin = transform.resize(eosin, stain.shape, order=1).astype(np.float32)
        rgb = np.empty((3, *stain.shape), np.uint8)
        for i in range(3):
            od = mask * (amount * config.haematoxylin_vector[i] + eosin * config.eosin_vector[i])
            rgb[i] = 255 * np.exp(-od) + 0.5
        halves["without_writing"] = time.perf_counter() - start
        image = Image2DModel.parse(
            rgb,
            dims=("c", "y", "x"),
            c_coords=["r", "g", "b"],
            scale_factors=[2, 2, 2],
            transformations={"um": Scale([MPP, MPP], ("x", "y"))},
        )
        sd.SpatialData(images={"plain": image}).write(store.with_name("plain.zarr"), overwrite=True)

    return measure(call) | halves


def plain_density(values, weight, min_points):
    """Density with a Gaussian as wide as the counts ask for: the same pyramid, with scikit-image."""
    import numpy as np
    from skimage import filters, transform

    pyramid = [(values, weight)]
    while min(pyramid[-1][0].shape) > 8 and len(pyramid) < 7:
        pyramid.append(tuple(transform.downscale_local_mean(level, (2, 2)) * 4 for level in pyramid[-1]))
    kernel = 4 * np.pi * 1.5**2
    density = None
    for counts, area in reversed(pyramid):
        total, area = (filters.gaussian(level, 1.5, mode="nearest") for level in (counts, area))
        here = total / np.maximum(area, 1e-6)
        if density is None:
            density = here
            continue
        wider = transform.resize(density, [2 * n for n in density.shape], order=1)[: here.shape[0], : here.shape[1]]
        trust = np.clip(np.maximum(total, wider * area) * kernel / (min_points / 2) - 1, 0, 1)
        density = trust * here + (1 - trust) * wider
    return np.where(weight > 0, density, 0).astype(np.float32)


def alike(store: Path) -> dict:
    """How near the plain image is to sthist's."""
    import numpy as np
    import spatialdata as sd
    from skimage.metrics import structural_similarity

    ours = sd.read_zarr(store)["virtual_he"]["scale0"].image
    plain = sd.read_zarr(store.with_name("plain.zarr"))["plain"]["scale0"].image
    windows = [(y, x) for y in range(0, ours.shape[1] - 512, 1500) for x in range(0, ours.shape[2] - 512, 1500)]
    pairs = [[image[:, y : y + 512, x : x + 512].to_numpy() for image in (ours, plain)] for y, x in windows]
    difference = np.abs(np.array([a.astype(int) - b for a, b in pairs]))
    similar = [structural_similarity(a, b, channel_axis=0) for a, b in pairs]
    return {
        "mean_difference": float(difference.mean()),
        "difference_95th_percentile": float(np.quantile(difference, 0.95)),
        "ssim": float(np.mean(similar)),
    }


RUNS = {"sthist": run_sthist, "plan": run_plan, "plain": run_plain, "alike": alike}


def child(kind: str, store: Path) -> dict:
    """What a process of its own measures."""
    command = [sys.executable, "-W", "ignore", __file__, "--child", kind, "--folder", str(store)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1])


def main() -> int:
    """Measure, print, and keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--folder", type=Path, help="where slides are kept for the next time; by default they are deleted"
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=list(TRANSCRIPTS))
    parser.add_argument("--child")
    options = parser.parse_args()
    if options.child:
        print(json.dumps(RUNS[options.child](options.folder)))
        return 0
    slides, comparison = [], {}
    for side in options.sizes:
        root = options.folder or Path(tempfile.mkdtemp())
        store = root / f"s{side}.zarr"
        if not store.exists():
            start = time.perf_counter()
            make_slide(store, side)
            print(f"{side} px: made in {time.perf_counter() - start:.0f} s", flush=True)
        child("sthist", store)  # numba's kernels are in its cache from here on; what is measured is not the compiler
        expected = child("plan", store)
        result = child("sthist", store)
        disk = sum(f.stat().st_size for f in (store / "images" / "virtual_he").rglob("*") if f.is_file()) / 1e9
        result |= {
            "side_px": side,
            "transcripts": TRANSCRIPTS[side],
            "megapixels_per_second": side**2 / 1e6 / result["seconds"],
            "disk_gb": disk,
            "dry_run": expected,
        }
        slides.append(result)
        print(result, flush=True)
        if side == 8192:
            plain = child("plain", store)
            comparison = plain | child("alike", store)
            comparison["megapixels_per_second"] = side**2 / 1e6 / plain["seconds"]
            comparison["sthist_is_faster_by"] = plain["seconds"] / result["seconds"]
            comparison["sthist_is_faster_by_writing_aside"] = plain["without_writing"] / result["seconds"]
            print(comparison, flush=True)
        if not options.folder:
            shutil.rmtree(root)
    results = {
        "command": "python bench/memory.py",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "slides": slides,
        "plain_scikit_image_at_8192": comparison,
    }
    kept = all(slide["gb"] <= MOST_GB for slide in slides)
    by_side = {slide["side_px"]: slide["gb"] for slide in slides}
    if {16384, 32768} <= set(by_side):
        results["growth_from_16384_to_32768"] = by_side[32768] / by_side[16384] - 1
        print(f"growth {results['growth_from_16384_to_32768']:+.1%}")
        kept &= results["growth_from_16384_to_32768"] < MOST_GROWTH
    if comparison:
        kept &= comparison["sthist_is_faster_by"] >= LEAST_SPEEDUP
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    return int(not kept)


if __name__ == "__main__":
    sys.exit(main())
