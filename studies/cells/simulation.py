"""The simulation of sCellST: what a model of single cells can learn from spots, where every cell is known.

Run ``PYTHONPATH=tests python studies/cells/simulation.py [--json FILE] [--encoders NAME ...] [--seeds 0 1 2]``. It
needs the her2st sections (``tests/realdata.py``). Nuclei of section C3 are found and embedded (12 µm); scanpy's 700
annotated blood cells of 765 genes (``scanpy.datasets.pbmc68k_reduced``, which comes with it) give the expression. They
have no raw counts, so that log-normalised vectors are summed, as the published code does.

5,000 spots of 20 cells train, and as many, of other cells, test. ``markers``: of each of the six types the ten genes
that tell it best from the other five (Wilcoxon); ``hvg``: the 250 genes of the highest normalised dispersion among
those that are no markers. Genes are scored by the Pearson correlation over the spots that test, and over the
different cells that test; what stands in the table is the mean over genes (one that is predicted constant counts as
0). Rows: ``mil``, trained on spots; ``supervised``, on the training cells, one by one; each from embeddings, and
``mil`` from the cluster of a cell, too (``one-hot``), which no embedding can beat. The published figures, of an
ovarian reference, 1,000 HVG and 51 markers, stand beside. Training takes steps ten times as long as published (1e-3),
of 32 spots, and stops after 15 epochs at most: minutes in place of hours.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import realdata
import scanpy as sc

import sthist
from sthist.metrics import gene_pearson
from sthist.models import Bags, SCellST, SCellSTConfig
from sthist.tiles import TileSpec

if TYPE_CHECKING:
    from sthist.benchmark import SimulatedSpots

SECTION = "C3"
N_NUCLEI = 20_000
"""At random: six clusters of 2,000 need not all."""

SPEC = TileSpec(12.0, 24)
"""The sections have 0.69 µm/px: finer than this is not to be had."""

SCENARIOS = ("random", "centroid", "cell")
N_TYPES, N_MARKERS, N_HVG = 6, 10, 250
LABELS = "bulk_labels"
PUBLISHED = {
    "random, hvg": {"spot": -0.0017, "cell": 0.0012},
    "centroid, hvg": {"spot": 0.9343, "cell": 0.9276},
    "cell, hvg": {"spot": 0.2039, "cell": 0.2279, "supervised": 0.2030, "one-hot": 0.2471},
    "cell, markers": {"spot": 0.6811, "cell": 0.7640, "supervised": 0.7820, "one-hot": 0.7835},
}
TRAINING = {"epochs": 15, "patience": 4, "lr": 1e-3, "batch_size": 32}


def nuclei(name: str, encoder: str) -> ad.AnnData:
    """Nuclei of a section, embedded."""
    sdata = realdata.her2st(name)
    sthist.pp.nuclei(sdata, method="watershed")
    found = sdata["nuclei"]
    some = np.sort(np.random.default_rng(0).permutation(len(found))[:N_NUCLEI])
    sdata["some"] = found.iloc[some]
    sthist.pp.embed(sdata, encoder, regions="some", spec=SPEC, outside="nan", key_added="X_cell")
    cells = sdata["some_table"]
    return cells[np.isfinite(np.asarray(cells.obsm["X_cell"])).all(axis=1)].copy()


def gene_sets() -> tuple[ad.AnnData, dict[str, list[str]]]:
    """The reference, and the genes that are scored together."""
    reference = sc.datasets.pbmc68k_reduced()
    types = reference.obs[LABELS].value_counts().index[:N_TYPES]
    cells = reference[reference.obs[LABELS].isin(types)].copy()
    cells.obs[LABELS] = cells.obs[LABELS].cat.remove_unused_categories()
    sc.tl.rank_genes_groups(cells, LABELS, method="wilcoxon", use_raw=True)
    best = [sc.get.rank_genes_groups_df(cells, name)["names"].head(N_MARKERS) for name in types]
    markers = list(dict.fromkeys(gene for genes in best for gene in genes))
    others = reference.var["dispersions_norm"].drop(markers).sort_values(ascending=False)
    return reference, {"markers": markers, "hvg": list(others.index[:N_HVG])}


def pearson(truth: Any, predicted: np.ndarray) -> float:
    """Mean over the genes that vary; one that is predicted constant says nothing, and counts as 0."""
    truth = truth.toarray() if hasattr(truth, "toarray") else np.asarray(truth)
    varies = truth.std(axis=0) > 0
    return float(np.nan_to_num(gene_pearson(truth[:, varies], predicted[:, varies])).mean())


def score(made: SimulatedSpots, key: str, level: str, seed: int, training: dict[str, Any]) -> dict[str, float]:
    """Train on spots, or on their different cells, and score both levels; also on what was trained on."""
    train, test = made.train, made.test
    once = {half: ~half.cells.obs["cell"].duplicated().to_numpy() for half in (train, test)}
    bags = {
        half: Bags(half.cells.obsm[key], half.cells.obs["spot"].cat.codes.to_numpy(), spots=half.spots.n_obs)
        for half in (train, test)
    }
    looks = {half: half.cells.obsm[key][once[half]] for half in (train, test)}
    truth = {half: half.cells.X[once[half]].toarray() for half in (train, test)}
    model = SCellST(SCellSTConfig(loss="mse", scaling=None))
    started = time.perf_counter()
    options = {**training, "seed": seed}
    if level == "mil":
        model.fit(bags[train], train.spots.X.toarray(), training=options, progress=False)
    else:
        model.fit(Bags(looks[train]), truth[train], training=options, progress=False)
    seconds = time.perf_counter() - started
    return {
        "spot": pearson(test.spots.X, model.predict(bags[test])),
        "cell": pearson(truth[test], model.predict(looks[test])),
        "training_spot": pearson(train.spots.X, model.predict(bags[train])),
        "training_cell": pearson(truth[train], model.predict(looks[train])),
        "seconds": seconds,
    }


def saved(path: Path | None, rows: list[dict[str, Any]], facts: dict[str, Any]) -> None:
    """Keep rows, in place of those of the same setting."""
    if path is None:
        return
    key = ("encoder", "scenario", "genes", "level", "input", "seed")
    known = json.loads(path.read_text())["rows"] if path.exists() else []
    every = {tuple(row[name] for name in key): row for row in [*known, *rows]}
    path.write_text(json.dumps({**facts, "published": PUBLISHED, "rows": list(every.values())}, indent=1) + "\n")


def main() -> None:
    """The table, printed and saved."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="file that rows are put into; others there are kept")
    parser.add_argument("--encoders", nargs="*", default=["morphology"])
    parser.add_argument("--scenarios", nargs="*", default=list(SCENARIOS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--n-spots", type=int, default=5000)
    parser.add_argument("--epochs", type=int, default=TRAINING["epochs"])
    parser.add_argument("--cells", type=Path, help="file of embedded nuclei, written by the first run (.h5ad)")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    sthist.settings.progress, sthist.settings.verbosity = False, "error"
    reference, genes = gene_sets()
    facts = {
        "command": "PYTHONPATH=tests python studies/cells/simulation.py",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "genes": {name: len(names) for name, names in genes.items()},
        "training": {**TRAINING, "epochs": options.epochs},
        "spots": options.n_spots,
    }
    for encoder in options.encoders:
        cells = embedded(encoder, options.cells)
        for scenario in options.scenarios:
            for seed in options.seeds:
                made = sthist.benchmark.simulate_spots(
                    cells, reference, scenario=scenario, labels=LABELS, n_spots=options.n_spots, seed=seed
                )
                for name, chosen in genes.items():
                    if scenario != "cell" and name == "markers":
                        continue
                    part = of_genes(made, chosen)
                    for level, given in (("mil", "X_cell"), ("supervised", "X_cell"), ("mil", "X_one_hot")):
                        found = score(part, given, level, seed, {**TRAINING, "epochs": options.epochs})
                        row = {
                            "encoder": encoder,
                            "scenario": scenario,
                            "genes": name,
                            "level": level,
                            "input": "one-hot" if given == "X_one_hot" else "embedding",
                            "seed": seed,
                            **{what: round(value, 4) for what, value in found.items()},
                        }
                        print(*row.values(), flush=True)
                        saved(options.json, [row], facts)


def embedded(encoder: str, path: Path | None) -> ad.AnnData:
    """Nuclei of the section, from a file where there is one."""
    path = None if path is None else path.with_name(f"{path.stem}_{encoder}.h5ad")
    if path is not None and path.exists():
        return ad.read_h5ad(path)
    cells = nuclei(SECTION, encoder)
    if path is not None:
        cells.write_h5ad(path)
    return cells


def of_genes(made: SimulatedSpots, genes: list[str]) -> SimulatedSpots:
    """Spots and cells with some genes."""
    halves = [type(half)(half.spots[:, genes].copy(), half.cells[:, genes].copy()) for half in (made.train, made.test)]
    return type(made)(*halves, made.types)


if __name__ == "__main__":
    main()
