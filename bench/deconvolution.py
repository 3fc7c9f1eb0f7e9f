"""Abundances of cell types against known ones: both methods of ``tl.deconvolve``, and what knows nothing.

Run ``python bench/deconvolution.py [--json FILE] [--epochs N]`` where the extra ``deconv`` is installed. 196 spots of
600 genes and six types, of which two lie together, two are related and one is rare in the reference, by the two
simulators of ``tests/mixtures.py``: plain mixtures of Poisson; and overdispersed counts of genes that spots and cells
see differently. ``mean`` gives each spot the mean composition, times its counts (its proportions do not vary, so that
the correlation of those is of rounding errors alone); ``shuffled`` is ``"nnls"`` with the labels of the cells shuffled.
Where the data are there, also ``"nnls"`` with profiles of a lung tumour on a breast section (her2st C3), against the
proportions that stereoscope had found: another method and reference, no truth.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from mixtures import correlations, simulate

import sthist

SEEDS = (0, 1, 2)
"""Samples of each simulator; cell2location runs on the first."""

LEAST = 0.8
SIGNATURE_EPOCHS = 100
PACKAGES = ("sthist", "cell2location", "scvi-tools", "pyro-ppl", "torch", "lightning", "anndata", "numpy", "scipy")
DATA = Path(os.environ.get("STHIST_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
PAIRS = {
    "B-cells": "tB cells",
    "CAFs": "Fibroblasts",
    "Endothelial": "Endothelial cells",
    "Epithelial": "Tumor-Like",
    "Myeloid": "tMoMacDC",
    "Plasma Cells": "tPlasma cells",
    "PVL": "Smooth muscle cells",
    "T-cells": "tT cells",
}
"""Types of stereoscope on her2st, and which of the lung's comes closest."""


def main() -> None:
    """Run, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--epochs", type=int, default=3000, help="of cell2location, over the spots")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    sthist.settings.progress = False
    rows = [
        row
        for kind in ("negative_binomial", "poisson")
        for seed in SEEDS
        for row in simulated(kind, seed, options.epochs)
    ]
    scored = [row for row in rows if row["method"] in {"nnls", "cell2location"}]
    result = {
        "command": f"python bench/deconvolution.py --epochs {options.epochs}",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "versions": {name: version(name) for name in PACKAGES},
        "cell2location": {"epochs": options.epochs, "signature_epochs": SIGNATURE_EPOCHS, "device": "cpu"},
        "simulated": rows,
        "limit": f"mean correlation per type >= {LEAST}",
        "held": all(row["mean"] >= LEAST for row in scored) and any(row["method"] == "cell2location" for row in scored),
        "her2st_C3": on_her2st(),
        "nnls_cost": cost(),
    }
    print(json.dumps(result, indent=1))
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


def simulated(kind: Any, seed: int, epochs: int) -> list[dict[str, Any]]:
    """A row for each method on one sample."""
    spots, cells, truth = simulate(kind, seed)
    found, seconds = {}, {}
    shuffled = cells.copy()
    order = np.random.default_rng(seed).permutation(cells.n_obs)
    shuffled.obs["cell_type"] = cells.obs["cell_type"].to_numpy()[order]
    runs: dict[str, tuple[Any, dict[str, Any]]] = {"nnls": (cells, {}), "shuffled": (shuffled, {})}
    if seed == SEEDS[0]:
        how = {"method": "cell2location", "epochs": (SIGNATURE_EPOCHS, epochs), "device": "cpu", "seed": 0}
        runs = {"cell2location": (cells, how), **runs}
    for name, (reference, how) in runs.items():
        start = time.perf_counter()
        sthist.tl.deconvolve(spots, reference, **how, key_added=name)
        found[name], seconds[name] = spots.obsm[name], round(time.perf_counter() - start, 2)
    total = np.asarray(spots.X.sum(axis=1)).ravel()
    mean = truth.div(truth.sum(axis=1), axis=0).mean()
    found["mean"] = pd.DataFrame(np.outer(total, mean), index=truth.index, columns=truth.columns)
    rows = []
    for name, values in found.items():
        r, shares = correlations(values, truth), correlations(parts(values), parts(truth))
        rows.append(
            {
                "simulator": kind,
                "seed": seed,
                "method": name,
                "mean": round(float(r.mean()), 3),
                "per_type": dict(zip(truth, r.round(3).tolist(), strict=True)),
                "mean_of_proportions": round(float(shares.mean()), 3),
                "seconds": seconds.get(name),
            }
        )
        print(rows[-1], flush=True)
    return rows


def parts(values: pd.DataFrame) -> pd.DataFrame:
    """Values divided by the sum of their row."""
    return values.div(values.sum(axis=1).clip(lower=1e-12), axis=0)


def on_her2st() -> dict[str, Any] | None:
    """Correlation of each type with stereoscope's proportions; those that are estimated nowhere count as 0."""
    import anndata as ad

    counts, profiles = DATA / "her2st/C3_counts.h5ad", DATA / "reference_profiles/stereoscope_lung_cancer_nb.parquet"
    if not (counts.exists() and profiles.exists()):
        return None
    spots = ad.read_h5ad(counts)
    sthist.tl.deconvolve(spots, profiles)
    sthist.pp.proportions(spots)
    ours, theirs = spots.obsm["cell_proportions"], spots.obsm["stereoscope_major"]
    renamed = pd.DataFrame({name: ours[column] for name, column in PAIRS.items()})
    r = correlations(renamed, theirs[list(PAIRS)])
    return {
        "spots": spots.n_obs,
        "genes": spots.uns["sthist"]["cell_abundance"]["n_genes"],
        "empty": spots.uns["sthist"]["cell_abundance"]["empty"],
        "per_type": dict(zip(PAIRS, r.round(3).tolist(), strict=True)),
        "mean": round(float(r.mean()), 3),
        "absent": [name for name in PAIRS if not renamed[name].any()],
    }


def cost(n: int = 10_000, types: int = 80, genes: int = 5000) -> dict[str, Any]:
    """Seconds that nnls takes for a large sample."""
    import anndata as ad
    from scipy.sparse import csr_matrix

    rng = np.random.default_rng(0)
    names = [f"GENE{i}" for i in range(genes)]
    profiles = pd.DataFrame(rng.gamma(0.3, 1, (genes, types)), index=names, columns=[f"type {i}" for i in range(types)])
    truth = rng.gamma(0.1, 5, (n, types))
    counts = csr_matrix(rng.poisson(0.05 * truth @ profiles.to_numpy().T).astype(np.float32))
    spots = ad.AnnData(counts, var=pd.DataFrame(index=names))
    start = time.perf_counter()
    sthist.tl.deconvolve(spots, profiles)
    seconds = round(time.perf_counter() - start, 1)
    return {"spots": n, "types": types, "genes": genes, "seconds": seconds, "limit_seconds": 30}


if __name__ == "__main__":
    main()
