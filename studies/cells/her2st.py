"""Spots from their cells, on the sections of her2st: sCellST beside models of whole tiles with the same encoder.

Run ``PYTHONPATH=tests python studies/cells/her2st.py [--json FILE] [--models NAME ...] [--seeds 0 1 2]``. It needs the
her2st sections (``tests/realdata.py``): C3, C4 and C5, consecutive sections of one patient, and B4 of another.

Three tasks: each section of C from the two others (``within C``), B4 from C, and C from B4. Genes are chosen on the
training sections: the 250 most expressed, and the 50 most variable among the 3,000 most expressed. A spot's prediction
is the mean over the nuclei whose centre lies in its disc (100 µm), each seen as a crop of 12 µm around it; spots
without nuclei are left out, of all models alike. ``whole tile`` is a network with one hidden layer, or a ridge, on the
same encoder's embedding of one tile around the spot, 112 and 224 µm. ``mean of cells`` is that ridge on the mean of the
embeddings of a spot's nuclei: whether it is the cells, or how they are put together.

Scores are gene-wise Pearson across spots, expression as measured: 10,000 counts a spot, logarithm. Beside them stand
nuclei shuffled among spots (of the test section, and between their spots alone), and the training mean, which has none.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import realdata

import sthist
from sthist import models
from sthist.tiles import TileSpec

if TYPE_CHECKING:
    import anndata as ad
    from spatialdata import SpatialData

C = ("C3", "C4", "C5")
TASKS = {
    "within C": [(tuple(name for name in C if name != test), test) for test in C],
    "C to B4": [(C, "B4")],
    "B4 to C": [(("B4",), test) for test in C],
}
NUCLEUS = TileSpec(12.0, 24)  # of images of 0.69 µm/px
SPECS = {112: TileSpec(112.0, 224), 224: TileSpec(224.0, 224)}
FEWEST_COUNTS = 100
N_NULLS = 20


@dataclass(frozen=True)
class Section:
    """What models take of a section; spots with nuclei alone."""

    nuclei: np.ndarray  # (n, d) embeddings of nuclei inside of spots
    spot: np.ndarray  # (n,) number of the spot of each
    tiles: dict[int, np.ndarray]  # embeddings of spots by the size of their tile
    counts: ad.AnnData  # of these spots
    deep: np.ndarray  # (spots,) enough counts to train on


def section(name: str, method: str) -> Section:
    """Nuclei, embeddings and counts of a section."""
    sdata = realdata.her2st(name)
    sthist.pp.nuclei(sdata, method=method)
    sthist.pp.assign_cells(sdata)
    inside = sdata["nuclei_table"].obs["spot"].notna().to_numpy()
    sdata["inside"] = sdata["nuclei"][inside]
    sthist.pp.embed(sdata, "morphology", regions="inside", spec=NUCLEUS)
    sdata["inside_table"].obs["spot"] = sdata["nuclei_table"].obs["spot"][inside].to_numpy()
    for size, spec in SPECS.items():
        sthist.pp.embed(sdata, "morphology", regions="spots", spec=spec, key_added=f"X_{size}")
    return of_sample(sdata)


def of_sample(sdata: SpatialData) -> Section:
    """The arrays of a sample whose nuclei are found, embedded and assigned."""
    nuclei, table = sdata["inside_table"], sdata["table"]
    ids = table.obs[table.uns["spatialdata_attrs"]["instance_key"]]
    number = {str(each): row for row, each in enumerate(ids)}
    spot = np.array([number.get(str(each), -1) for each in nuclei.obs["spot"]])
    features = np.asarray(nuclei.obsm["X_morphology"], np.float32)
    known = (spot >= 0) & np.isfinite(features).all(axis=1)
    rows, spot = np.unique(spot[known], return_inverse=True)
    counts = table[rows].copy()
    tiles = {size: np.asarray(counts.obsm[f"X_{size}"], np.float32) for size in SPECS}
    deep = np.asarray(counts.X.sum(axis=1)).ravel() >= FEWEST_COUNTS
    return Section(features[known], spot.ravel(), tiles, counts, deep)


def logarithms(counts: ad.AnnData, genes: list[str]) -> np.ndarray:
    """Log-normalised expression of genes; NaN for one that the section lacks."""
    values = np.asarray(counts.X.todense(), np.float64)
    values = np.log1p(values / np.maximum(values.sum(axis=1, keepdims=True), 1) * 1e4)
    place = counts.var_names.get_indexer(genes)
    return np.where(place >= 0, values[:, place], np.nan)


def pooled(part: Section, nuclei: np.ndarray | None = None) -> np.ndarray:
    """Mean embedding of each spot's nuclei."""
    values = np.zeros((part.counts.n_obs, part.nuclei.shape[1]))
    np.add.at(values, part.spot, part.nuclei if nuclei is None else nuclei)
    return values / np.bincount(part.spot, minlength=len(values))[:, None]


def standardised(values: np.ndarray) -> np.ndarray:
    """Columns of mean 0 and standard deviation 1: each section by itself takes away how it was stained."""
    return ((values - values.mean(axis=0)) / np.maximum(values.std(axis=0), 1e-6)).astype(np.float32)


def cell_model(train: list[Section], truth: list[np.ndarray], seed: int) -> tuple[Any, float]:
    """The network of single cells on the spots of some sections, and how well it fits them."""
    nuclei, spots, first = [], [], 0
    for part in train:
        nuclei.append(standardised(part.nuclei))
        spots.append(np.where(part.deep[part.spot], part.spot + first, -1))
        first += part.counts.n_obs
    bags = models.Bags(np.concatenate(nuclei), np.concatenate(spots), spots=first)
    targets = np.concatenate(truth)
    model = models.SCellST(models.SCellSTConfig(scaling=None))
    model.fit(bags, targets, training={"seed": seed})
    said = np.asarray(model.predict(bags), np.float64)
    deep = np.concatenate([part.deep for part in train])
    return model, pearson(targets[deep], said[deep])


def pearson(truth: np.ndarray, said: np.ndarray) -> float:
    """Mean over genes of Pearson across spots."""
    known = ~np.isnan(truth).any(axis=0)
    return float(sthist.metrics.expression(truth[:, known], said[:, known], metrics=[]).summary["pearson_mean"])


def tile_model(
    kind: str, features: list[np.ndarray], truth: list[np.ndarray], deep: list[np.ndarray], seed: int
) -> Any:
    """A ridge or a network on one embedding a spot."""
    rows = np.flatnonzero(np.concatenate(deep))
    inputs = np.concatenate([standardised(each) for each in features])
    if kind == "ridge":
        return models.Ridge().fit(inputs, np.concatenate(truth), rows=rows)
    return models.EmbeddingMLP().fit(inputs, np.concatenate(truth), rows=rows, training={"seed": seed, "epochs": 30})


def fold_scores(name: str, train: list[Section], test: Section, sets: dict[str, list[str]], seed: int) -> dict:
    """Gene-wise Pearson of one model on one section, by set of genes."""
    genes = list(dict.fromkeys(sum(sets.values(), [])))
    truth = [logarithms(part.counts, genes) for part in train]
    known = ~np.isnan(np.concatenate(truth)).any(axis=0)
    genes, truth = [gene for gene, there in zip(genes, known, strict=True) if there], [each[:, known] for each in truth]
    measured = logarithms(test.counts, genes)
    rng, nulls, fits = np.random.default_rng(seed), [], float("nan")
    start = time.perf_counter()
    if name == "scellst":
        model, fits = cell_model(train, truth, seed)
        cells = np.asarray(model.predict(standardised(test.nuclei)), np.float64)

        def spots(values: np.ndarray) -> np.ndarray:
            total = np.zeros((test.counts.n_obs, values.shape[1]))
            np.add.at(total, test.spot, values)
            return total / np.bincount(test.spot, minlength=len(total))[:, None]

        said = spots(cells)
        nulls = [spots(cells[rng.permutation(len(cells))]) for _ in range(N_NULLS)]
    else:
        kind, source = name.split(", ")
        take = pooled if source == "mean of cells" else lambda part: part.tiles[int(source.split()[-2])]
        model = tile_model(kind, [take(part) for part in train], truth, [part.deep for part in train], seed)
        said = np.asarray(model.predict(standardised(take(test))), np.float64)
        nulls = [said[rng.permutation(len(said))] for _ in range(N_NULLS)]
    found: dict[str, Any] = {"seconds": time.perf_counter() - start, "training_rows": fits}
    for kind, chosen in sets.items():
        columns = [genes.index(gene) for gene in chosen if gene in genes]
        found[kind] = pearson(measured[:, columns], said[:, columns])
        found[f"{kind}, shuffled"] = float(np.mean([pearson(measured[:, columns], each[:, columns]) for each in nulls]))
    return found


MODELS = [
    "scellst",
    "ridge, mean of cells",
    "mlp, mean of cells",
    *(f"{kind}, whole tile {size} µm" for kind in ("ridge", "mlp") for size in SPECS),
]


def main() -> None:
    """The table, printed and saved."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="file of the results")
    parser.add_argument("--models", nargs="*", default=MODELS)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--method", default="watershed", help="of pp.nuclei")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    sthist.settings.progress, sthist.settings.verbosity = False, "error"
    parts = {name: section(name, options.method) for name in (*C, "B4")}
    results: dict[str, Any] = {
        "command": "PYTHONPATH=tests python studies/cells/her2st.py",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "sections": {
            name: {"spots": part.counts.n_obs, "nuclei_in_spots": len(part.spot)} for name, part in parts.items()
        },
        "rows": [],
    }
    print(results["sections"], flush=True)
    for task, folds in TASKS.items():
        for name in options.models:
            for seed in options.seeds if "ridge" not in name else [0]:
                found = []
                for train, test in folds:
                    samples = {each: parts[each].counts for each in train}
                    sets = {
                        "250 most expressed": sthist.pp.gene_set(samples, "expressed", 250),
                        "50 most variable": sthist.pp.gene_set(samples, "variance", 50),
                    }
                    found.append(fold_scores(name, [parts[each] for each in train], parts[test], sets, seed))
                row = {key: round(float(np.mean([each[key] for each in found])), 4) for key in found[0]}
                results["rows"].append({"model": name, "task": task, "seed": seed, **row})
                print(name, task, seed, row, flush=True)
        if options.json:
            options.json.write_text(json.dumps(results, indent=1).replace("NaN", "null") + "\n")


if __name__ == "__main__":
    main()
