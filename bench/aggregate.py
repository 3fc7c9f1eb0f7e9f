"""Counts by region: 40 million transcripts into squares of 8 µm, cells and spots.

Two million are also counted by spatialdata and pandas.

Run ``python bench/aggregate.py [--json FILE] [--folder DIR] [--repeats 3]``. A round piece of tissue is made on disk,
in partitions of a million transcripts: the toy's pattern, turned and moved from block to block. Then a process of its
own opens the store as a user would, calls ``pp.aggregate`` and so writes the table; its memory is the high-water mark
of its resident set above what it was after its imports. The limit stated is reading the columns that are needed and
nothing else. ``spatialdata.aggregate`` and a groupby of pandas get transcripts that have passed the filter, and the
former the squares, which they cannot make; they write nothing, and are compared with ``pp.aggregate`` in memory. Of
several runs the fastest counts, and all are kept. Seconds of the processor stand beside those of the clock, and the
load of the machine, as others may use it too.
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

PATCH_UM, BIN_UM, PER_PARTITION = 480.0, 8.0, 1_000_000
LARGE, SMALL = 40_000_000, 2_000_000
RADIUS_UM = {LARGE: 5000.0, SMALL: 1118.0}  # of the section: equally dense, 500,000 in a square millimetre
SPOT_UM, PITCH_UM = 55.0, 100.0
MOST_SECONDS, MOST_GB, LEAST_SPEEDUP = 180.0, 2.0, 5.0  # what is promised; the exit status says whether it is kept


def make_section(folder: Path, n: int) -> None:
    """Transcripts, cells and spots on a disc."""
    import dask.dataframe as dd
    import geopandas as gpd
    import numpy as np
    import pandas as pd
    import shapely
    import spatialdata as sd
    from spatialdata.models import PointsModel, ShapesModel
    from spatialdata.transformations import Identity

    import sthist

    toy = sthist.datasets.toy(size_um=PATCH_UM)
    known = toy["transcripts"].compute()
    genes = pd.CategoricalDtype([*sorted(toy["table"].var_names), *(f"gene_{i:03d}" for i in range(240))])
    panel = np.array(genes.categories)
    radius = RADIUS_UM[n]
    blocks = int(np.ceil(2 * radius / PATCH_UM))

    def partition(number: int) -> pd.DataFrame:
        rng = np.random.default_rng([number, n])
        rows = rng.integers(0, len(known), 2 * PER_PARTITION)
        xy = known[["x", "y"]].to_numpy()[rows] + rng.normal(0, 1, (len(rows), 2))
        xy += rng.integers(0, blocks, (len(rows), 2)) * PATCH_UM
        keep = np.flatnonzero(((xy - radius) ** 2).sum(1) < radius**2)[:PER_PARTITION]
        # Half of them are of the toy's genes, where those are; the others of a panel that is everywhere.
        named = known["feature_name"].astype(str).to_numpy()[rows[keep]]
        named = np.where(rng.uniform(size=len(keep)) < 0.5, named, rng.choice(panel, len(keep)))
        return pd.DataFrame(
            {
                "x": xy[keep, 0].astype(np.float32),
                "y": xy[keep, 1].astype(np.float32),
                "gene": pd.Categorical(named, dtype=genes),
                "qv": rng.uniform(15, 40, len(keep)).astype(np.float32),
            }
        )

    shift = np.stack(np.meshgrid(*[np.arange(blocks) * PATCH_UM] * 2), -1).reshape(-1, 2)
    cells = np.concatenate(
        [shapely.transform(toy["cell_boundaries"].geometry.to_numpy(), lambda xy, by=by: xy + by) for by in shift]
    )
    step = np.arange(PITCH_UM / 2, 2 * radius, PITCH_UM)
    spots = gpd.points_from_xy(*np.stack(np.meshgrid(step, step), -1).reshape(-1, 2).T)
    frame = dd.from_map(partition, range(n // PER_PARTITION), meta=partition(0).iloc[:0])
    at = {"transformations": {"um": Identity()}}
    sd.SpatialData(
        points={"transcripts": PointsModel.parse(frame, coordinates={"x": "x", "y": "y"}, feature_key="gene", **at)},
        shapes={
            "cells": ShapesModel.parse(gpd.GeoDataFrame(geometry=cells), **at),
            "spots": ShapesModel.parse(
                gpd.GeoDataFrame({"radius": np.full(len(spots), SPOT_UM / 2)}, geometry=spots), **at
            ),
        },
    ).write(folder)


def resident() -> dict[str, int]:
    """Bytes that this process holds, and the most that it has held."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return {name: int(fields[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM")}


def measure(call) -> dict[str, float]:
    """Seconds of a call, by the clock and of the cores, and the memory that it takes above what is held before."""
    before = resident()["VmRSS"]
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
    start, worked = time.perf_counter(), time.process_time()
    facts = call()
    seconds = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - worked}
    return seconds | {"gb": (resident()["VmHWM"] - before) / 1e9, "import_gb": before / 1e9} | facts


def run_sthist(store: Path, regions: str, *, backed: bool = True) -> dict:
    """In a process of its own: from the store to the table in the store, or in memory."""
    import dask.dataframe  # noqa: F401 - what the call would import
    import geopandas  # noqa: F401
    import numba  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    import spatialdata as sd

    import sthist
    from sthist.pp import _aggregate  # noqa: F401
    from sthist.tiles._regions import locate_kernels  # noqa: F401

    chosen = {"bin_um": BIN_UM} if regions == "squares" else {"regions": regions}

    def call() -> dict:
        sdata = sd.read_zarr(store)
        if not backed:
            sdata.path = None
        sthist.pp.aggregate(sdata, **chosen, key_added="sums")
        table = sdata["sums"]
        return {
            "regions": table.n_obs,
            "nonzeros": int(table.X.nnz),
            "counted": table.uns["sthist"]["sums"]["n_counted"],
            "sum": int(table.X.sum(dtype="int64")),
        }

    result = measure(call)
    if not backed:
        return result
    sdata = sd.read_zarr(store)  # for the next run, as if there had been none
    sdata.delete_element_from_disk([name for name in ("sums", "sums_squares") if name in sdata])
    return result


def run_in_memory(store: Path, regions: str) -> dict:
    """As the others do it: nothing is written."""
    return run_sthist(store, regions, backed=False)


def run_reading(store: Path, regions: str) -> dict:
    """In a process of its own: the columns alone, a file at a time."""
    import pyarrow.parquet as pq

    files = [file for file in (store / "points" / "transcripts").rglob("*.parquet") if file.is_file()]

    def call() -> dict:
        return {"rows": sum(pq.read_table(file, columns=["x", "y", "gene", "qv"]).num_rows for file in files)}

    return measure(call)


def run_spatialdata(store: Path, regions: str) -> dict:
    """In a process of its own: spatialdata.aggregate, of the transcripts that pass."""
    import spatialdata as sd
    from spatialdata.models import PointsModel
    from spatialdata.transformations import Identity

    import sthist

    sdata = sd.read_zarr(store)
    sdata.path = None
    if regions == "squares":
        sthist.pp.aggregate(sdata, bin_um=BIN_UM, key_added="sums")
    shapes = sdata["sums_squares" if regions == "squares" else regions]

    def call() -> dict:
        frame = sdata["transcripts"].compute()
        # Its own would do, were the rows of all partitions numbered through.
        frame = frame[(frame["qv"] >= 20) & frame["gene"].notna()].reset_index(drop=True)
        points = PointsModel.parse(frame, feature_key="gene", transformations={"um": Identity()})
        made = sd.aggregate(values=points, by=shapes, value_key="gene", agg_func="count", target_coordinate_system="um")
        return {"sum": int(made["table"].X.sum()), "nonzeros": int(made["table"].X.nnz)}

    return measure(call)


def run_pandas(store: Path, regions: str) -> dict:
    """In a process of its own: group by square and gene."""
    import numpy as np
    import pandas as pd
    import spatialdata as sd
    from scipy.sparse import csr_matrix

    sdata = sd.read_zarr(store)

    def call() -> dict:
        frame = sdata["transcripts"].compute()
        frame = frame[(frame["qv"] >= 20) & frame["gene"].notna()]
        squares = pd.DataFrame(
            {
                "row": np.floor(frame["y"] / BIN_UM).astype(int),
                "column": np.floor(frame["x"] / BIN_UM).astype(int),
                "gene": frame["gene"].cat.codes,
            }
        )
        sizes = squares.groupby(["row", "column", "gene"], observed=True).size().reset_index(name="n")
        square = sizes.groupby(["row", "column"]).ngroup()
        counts = csr_matrix((sizes["n"], (square, sizes["gene"])))
        return {"sum": int(counts.sum()), "nonzeros": int(counts.nnz)}

    return measure(call)


RUNS = {
    "sthist": run_sthist,
    "in_memory": run_in_memory,
    "reading": run_reading,
    "spatialdata": run_spatialdata,
    "pandas": run_pandas,
}


def child(kind: str, store: Path, regions: str, repeats: int = 1) -> dict:
    """What processes of their own measure: the fastest, the most memory of all, and the seconds of each."""
    command = [sys.executable, "-W", "ignore", __file__, "--child", kind, "--folder", str(store), "--regions", regions]
    runs = [
        json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1])
        for _ in range(repeats)
    ]
    fastest = min(runs, key=lambda run: run["seconds"])
    result = fastest | {
        "gb": max(run["gb"] for run in runs),
        "seconds_of_all": [round(run["seconds"], 1) for run in runs],
        "load_of_last_minute": os.getloadavg()[0],
    }
    print(
        f"{kind}, {regions}: {result['seconds']:.1f} s ({result['cpu_seconds']:.1f} s of a core), "
        f"{result['gb']:.2f} GB, {result}",
        flush=True,
    )
    return result


def main() -> int:
    """Measure, print, and keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--child")
    parser.add_argument("--regions", default="squares")
    options = parser.parse_args()
    if options.child:
        print(json.dumps(RUNS[options.child](options.folder, options.regions)))
        return 0
    results: dict = {
        "command": "python bench/aggregate.py",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
    }
    for name, n in (("2_million", SMALL), ("40_million", LARGE)):
        root = Path(tempfile.mkdtemp(dir=options.folder))
        store = root / "section.zarr"
        start = time.perf_counter()
        make_section(store, n)
        print(f"{n} transcripts: made in {time.perf_counter() - start:.0f} s", flush=True)
        # numba's kernels are in its cache from here on; what is measured is not the compiler.
        child("sthist", store, "squares")
        found = {regions: child("sthist", store, regions, options.repeats) for regions in ("squares", "cells", "spots")}
        others = ["pandas_squares", *(["spatialdata_squares", "spatialdata_cells"] if n == SMALL else [])]
        results[name] = {
            "transcripts": n,
            "sthist": found,
            "reading_alone": child("reading", store, "squares", options.repeats),
        }
        for other in others:
            kind, regions = other.split("_")
            ours, theirs = (child(run, store, regions, options.repeats) for run in ("in_memory", kind))
            results[name][other] = theirs | {
                "sthist_in_memory": ours,
                "sthist_is_faster_by": theirs["seconds"] / ours["seconds"],
                "sthist_is_faster_by_of_the_processor": theirs["cpu_seconds"] / ours["cpu_seconds"],
                "of_its_memory_sthist_takes": ours["gb"] / theirs["gb"],
            }
            print(
                f"{other}: {theirs['seconds'] / ours['seconds']:.1f} times the seconds, "
                f"{theirs['gb'] / ours['gb']:.1f} times the memory"
            )
        shutil.rmtree(root)
    large = results["40_million"]
    kept = all(run["seconds"] <= MOST_SECONDS and run["gb"] <= MOST_GB for run in large["sthist"].values())
    kept &= all(
        run["sum"] == run["counted"] for run in [large["sthist"]["squares"], results["2_million"]["sthist"]["squares"]]
    )
    kept &= results["2_million"]["spatialdata_squares"]["sthist_is_faster_by"] >= LEAST_SPEEDUP
    same = ("sum", "nonzeros")
    kept &= all(large["pandas_squares"][fact] == large["sthist"]["squares"][fact] for fact in same)
    large["sthist_by_reading_alone"] = large["sthist"]["squares"]["seconds"] / large["reading_alone"]["seconds"]
    print(f"squares take {large['sthist_by_reading_alone']:.1f} times as long as reading the columns alone")
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    return int(not kept)


if __name__ == "__main__":
    sys.exit(main())
