"""Colocalisation of 80 cell types in 50,000 spots: seconds and memory, beside a loop over all pairs of types.

Run ``python bench/colocalization.py [--json FILE] [--pairs 160] [--repeats 3]``. Spots lie on a hexagonal lattice,
100 µm apart as Visium's, and are stored in any order; the kernel is 500 µm long and cut off at 0.2, which gives each
spot about 280 neighbours. ``tl.colocalization`` is timed as a user calls it, from the table to R, z, p and q of all
pairs, and the product alone; the loop takes ``x @ (W @ y)`` for one pair after the other from the same weights as a
whole sparse matrix, which is made before and not timed. It runs over some of the 3,160 pairs, spread evenly, and is
scaled to all. A loop that keeps ``W @ y`` of each type, which the published code does not, stands beside it. Each
measurement is a process of its own; memory is the high-water mark of its resident set above what was held before the
call, and is compared with the bytes of the whole matrix of weights. Of several runs the fastest counts. Growth is that
of the seconds of the processor from 12,500 to 100,000 spots, as a power of their number.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

N_SPOTS, N_TYPES, PITCH_UM, LENGTH_UM = 50_000, 80, 100.0, 500.0
SIZES = (12_500, 25_000, 50_000, 100_000)
LEAST_SPEEDUP, MOST_MEMORY, MOST_POWER = 50.0, 3.0, 1.2  # what is promised; the exit status says whether it is kept


def make_table(n: int):
    """Spots on a lattice, in any order, with amounts that vary over the tissue."""
    import anndata as ad
    import pandas as pd

    rng = np.random.default_rng(0)
    columns = int(np.ceil(np.sqrt(n)))
    row, column = np.divmod(rng.permutation(n), columns)
    places = PITCH_UM * np.c_[column + row % 2 / 2, row * np.sqrt(3) / 2]
    waves = np.sin(places @ rng.normal(0, 2e-3, (2, 6)))
    values = np.exp(waves @ rng.normal(size=(6, N_TYPES)) + rng.normal(0, 0.5, (n, N_TYPES)))
    names = pd.Index([str(i) for i in range(n)])
    frame = pd.DataFrame(values, names, [f"type {i}" for i in range(N_TYPES)])
    return ad.AnnData(obs=pd.DataFrame(index=names), obsm={"spatial": places, "composition": frame})


def resident() -> dict[str, int]:
    """Bytes that this process holds, and the most that it has held."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return {name: int(fields[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM")}


def measure(call) -> dict[str, float]:
    """Seconds of a call, by the clock and of the cores, and the memory that it takes above what is held before."""
    before = resident()["VmRSS"]
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
    start, worked = time.perf_counter(), time.process_time()
    call()
    seconds = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - worked}
    return seconds | {"gb": (resident()["VmHWM"] - before) / 1e9}


def run_verb(n: int, pairs: int) -> dict:
    """In a process of its own: the call as users make it."""
    import sthist

    small = make_table(100)
    sthist.tl.colocalization(small)  # imports
    adata = make_table(n)
    return measure(lambda: sthist.tl.colocalization(adata, length_um=LENGTH_UM))


def run_loop(n: int, pairs: int) -> dict:
    """In a process of its own: all pairs in one product, and one after the other, from the same weights."""
    from scipy.sparse import identity

    from sthist.tl._colocalization.moran import morans_r, order_in_space, spatial_weights, standardised

    adata = make_table(n)
    order = order_in_space(adata.obsm["spatial"])  # the loop profits from it, too
    z, _ = standardised(adata.obsm["composition"].to_numpy()[order])
    weights = spatial_weights(adata.obsm["spatial"][order], LENGTH_UM)
    product = measure(lambda: morans_r(z, weights))
    r = morans_r(z, weights)
    whole = (weights.above + weights.above.T + weights.own * identity(n)).tocsr()
    columns = [np.ascontiguousarray(each) for each in z.T]
    every = np.stack(np.triu_indices(N_TYPES, 1), axis=1)
    chosen = every[np.unique(np.linspace(0, len(every) - 1, pairs).astype(int))]
    found: list[float] = []

    def one_by_one() -> None:
        found.extend(columns[i] @ (whole @ columns[j]) / n for i, j in chosen.tolist())

    def kept() -> None:
        lagged = [whole @ each for each in columns]
        for i, j in every.tolist():
            _ = columns[i] @ lagged[j] / n

    loop, kept_seconds = measure(one_by_one), measure(kept)
    scale = len(every) / len(chosen)
    return {
        "seconds": product["seconds"],
        "cpu_seconds": product["cpu_seconds"],
        "loop_seconds": loop["seconds"] * scale,
        "loop_cpu_seconds": loop["cpu_seconds"] * scale,
        "pairs": len(every),
        "pairs_timed": len(chosen),
        "loop_that_keeps_each_product_seconds": kept_seconds["seconds"],
        "largest_difference_of_r": float(np.abs(r[tuple(chosen.T)] - found).max()),
        "neighbours": float(whole.nnz / n - 1),
        "weights_gb": (whole.data.nbytes + whole.indices.nbytes + whole.indptr.nbytes) / 1e9,
    }


RUNS = {"verb": run_verb, "loop": run_loop}


def child(kind: str, n: int, pairs: int, repeats: int) -> dict:
    """What processes of their own measure: the fastest, the most memory of all, and the seconds of each."""
    command = [sys.executable, "-W", "ignore", __file__, "--child", kind, "--n", str(n), "--pairs", str(pairs)]
    runs = [
        json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1])
        for _ in range(repeats)
    ]
    result = min(runs, key=lambda run: run["cpu_seconds"])
    if "gb" in result:
        result["gb"] = max(run["gb"] for run in runs)
    result |= {"seconds_of_all": [round(run["seconds"], 2) for run in runs], "load_of_last_minute": os.getloadavg()[0]}
    print(kind, n, result, flush=True)
    return result


def main() -> int:
    """Measure, print, and keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--pairs", type=int, default=160)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--child")
    parser.add_argument("--n", type=int)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(RUNS[options.child](options.n, options.pairs)))
        return 0
    growth = {n: child("verb", n, options.pairs, options.repeats) for n in SIZES}
    loop = child("loop", N_SPOTS, options.pairs, options.repeats)
    verb = growth[N_SPOTS]
    power = float(np.polyfit(np.log(SIZES), np.log([growth[n]["cpu_seconds"] for n in SIZES]), 1)[0])
    result = {
        "command": "python bench/colocalization.py",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "spots": N_SPOTS,
        "types": N_TYPES,
        "length_um": LENGTH_UM,
        "pitch_um": PITCH_UM,
        "product_and_loop_from_the_same_weights": loop,
        "verb_by_spots": growth,
        "product_is_faster_than_the_loop_by": loop["loop_cpu_seconds"] / loop["cpu_seconds"],
        "verb_with_its_weights_is_faster_than_the_loop_without_by": loop["loop_cpu_seconds"] / verb["cpu_seconds"],
        "memory_of_the_verb_by_that_of_the_weights": verb["gb"] / loop["weights_gb"],
        "seconds_grow_with_the_number_of_spots_to_the_power_of": power,
    }
    kept = result["product_is_faster_than_the_loop_by"] >= LEAST_SPEEDUP
    kept &= result["memory_of_the_verb_by_that_of_the_weights"] <= MOST_MEMORY
    kept &= power <= MOST_POWER and loop["largest_difference_of_r"] < 1e-9
    print(json.dumps({name: value for name, value in result.items() if not isinstance(value, dict)}, indent=1))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    return int(not kept)


if __name__ == "__main__":
    sys.exit(main())
