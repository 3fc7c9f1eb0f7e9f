"""From bins to what lies in them, on real sections: is more than the mean of a bin learned where only bins are known?

Run ``PYTHONPATH=tests python studies/cells/bins_to_cells.py [--json FILE] [--data NAME ...] [--seeds 0 1 2]``.

``xenium breast``: Xenium cells inside an H&E of 2.4 µm/px (``xenium_breast_rep1``), summed into squares of 55 µm: bags
of a median of 7 cells. ``visium hd kidney``: bins of 8 µm (``visium_hd_kidney_roi``, 2 µm/px), summed into squares of
56 µm: bags of up to 49 bins. Each cell or bin is seen as a crop of 30 µm, by ``morphology``. Images this coarse show a
nucleus as 3 to 5 pixels: what a model sees is the neighbourhood of a cell, not its nucleus. Cells and H&E of the Xenium
section are registered to 4 to 7 µm, less than a cell's width; bins of the kidney to about 1 µm.

A model is trained on squares alone, with the squares of a block of tissue held out, and a square's width around it.
Scored are single cells (bins of 8 µm) of the held-out block: Pearson of each gene across them, and ``within bin``, the
same after the mean of the square is taken from truth and prediction alike. Beside it stand

* full supervision: the same network on cells, which knows what a model of squares has to find;
* the mean of the square, as measured there: what no model of an image is given. It knows nothing within a square;
* the mean of the model's own predictions in each square: whether it tells cells of one square apart;
* crops that are shuffled among all cells of the test, and crops that are shuffled within each square;
* the training mean, which has no correlation.
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
import pandas as pd
import realdata

import sthist
from sthist import models
from sthist.tiles import TileSpec

if TYPE_CHECKING:
    import anndata as ad

CROP = TileSpec(30.0, 18)
EMBEDDING = "X_morphology"
N_BLOCKS = 4  # along the longer side: blocks of tissue, each held out once
N_GENES = 50
TRAINING = {"epochs": 200, "patience": 20}


@dataclass(frozen=True)
class Section:
    """Cells of a section, or bins as small as cells, with the squares that they lie in."""

    features: np.ndarray  # (n, d)
    counts: np.ndarray  # (n, genes)
    library: np.ndarray  # (n,) counts of all genes
    genes: list[str]
    centres: np.ndarray  # (n, 2) in µm
    square: np.ndarray  # (n,) number of the square
    side_um: float


def xenium_breast() -> Section:
    """Xenium cells under an H&E crop, in squares of 55 µm."""
    pixels, mpp, table = realdata.xenium_breast_cells(CROP.size_um / 2)
    return _section(_sample(pixels, mpp, table), table, np.asarray(table.X.sum(axis=1)).ravel(), 55.0)


def visium_hd_kidney() -> Section:
    """Bins of 8 µm of a Visium HD section, in squares of 56 µm."""
    pixels, mpp, table = realdata.visium_hd_kidney_bins()
    library = np.asarray(table.X.sum(axis=1)).ravel()
    most = np.argsort(-np.asarray(table.X.sum(axis=0)).ravel(), kind="stable")[:300]
    table = table[:, np.sort(most)].copy()
    return _section(_sample(pixels, mpp, table), table, library, 56.0)


def _sample(pixels: np.ndarray, mpp: float, table: ad.AnnData) -> Any:
    """H&E with cells or bins as discs of 8 µm."""
    return sthist.io.assemble(
        {"he": pixels}, mpp=mpp, table=table, xy=("x_px", "y_px"), unit="px", spot_diameter_um=8.0
    )


def _section(sdata: Any, table: ad.AnnData, library: np.ndarray, side_um: float) -> Section:
    """Embed the crops of a sample, and lay squares on it."""
    sthist.pp.embed(sdata, "morphology", regions="table", spec=CROP, outside="nan")
    embedded = sdata["table"]
    features, centres = np.asarray(embedded.obsm[EMBEDDING]), np.asarray(embedded.obsm["spatial"])
    kept = np.isfinite(features).all(axis=1) & (library > 0)
    cells = np.floor(centres[kept] / side_um).astype(int)
    _, square = np.unique(cells, axis=0, return_inverse=True)
    counts = np.asarray(table.X[kept].todense() if hasattr(table.X, "todense") else table.X[kept], np.float64)
    return Section(features[kept], counts, library[kept], list(table.var_names), centres[kept], square.ravel(), side_um)


SECTIONS = {"xenium breast": xenium_breast, "visium hd kidney": visium_hd_kidney}


def logarithms(counts: np.ndarray, library: np.ndarray) -> np.ndarray:
    """Logarithm of counts of 10,000 in each row."""
    return np.log1p(counts / np.maximum(library, 1)[:, None] * 1e4)


def sums(values: np.ndarray, square: np.ndarray) -> np.ndarray:
    """Sums over the members of each square."""
    total = np.zeros((square.max() + 1, *values.shape[1:]))
    np.add.at(total, square, values)
    return total


def means(values: np.ndarray, square: np.ndarray) -> np.ndarray:
    """Of each member, the mean of its square."""
    n = np.maximum(np.bincount(square, minlength=square.max() + 1), 1)
    return (sums(values, square) / n[:, None])[square]


def gene_pearson(truth: np.ndarray, said: np.ndarray) -> float:
    """Mean over genes of Pearson across rows; NaN where a prediction does not vary."""
    left, right = truth - truth.mean(axis=0), said - said.mean(axis=0)
    scale = np.sqrt((left**2).sum(axis=0) * (right**2).sum(axis=0))
    there = scale > 1e-9 * max(1.0, float(scale.max(initial=0)))
    return float(np.mean((left * right).sum(axis=0)[there] / scale[there])) if there.any() else np.nan


def blocks_of(section: Section) -> list[tuple[np.ndarray, np.ndarray]]:
    """Masks of cells to train on and to test on: bands of tissue, with a square's width between."""
    axis = int(np.argmax(np.ptp(section.centres, axis=0)))
    along = np.floor(section.centres[:, axis] / section.side_um) * section.side_um
    edges = np.quantile(along, np.linspace(0, 1, N_BLOCKS + 1))
    edges[-1] += 1
    folds = []
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        test = (along >= low) & (along < high)
        near = (along >= low - section.side_um) & (along < high + section.side_um)
        folds.append((~near, test))
    return folds


def trained(features: np.ndarray, targets: np.ndarray, spot: np.ndarray | None, seed: int) -> Any:
    """The network of sCellST on squares, or on cells where there are none; and how well it fits what it was given."""
    bags = models.Bags(features) if spot is None else models.Bags(features, spot)
    model = models.SCellST(models.SCellSTConfig(scaling="slide"))
    model.fit(bags, targets, training={**TRAINING, "seed": seed})
    return model, gene_pearson(targets, np.asarray(model.predict(bags), np.float64))


def numbered(square: np.ndarray) -> np.ndarray:
    """Squares numbered without gaps."""
    return np.unique(square, return_inverse=True)[1].ravel()


def fold_scores(section: Section, train: np.ndarray, test: np.ndarray, seed: int) -> list[dict[str, Any]]:
    """Scores of everything on one held-out block."""
    rng = np.random.default_rng(seed)
    square = numbered(section.square[train])
    bags = logarithms(sums(section.counts[train], square), sums(section.library[train][:, None], square).ravel())
    # The genes that vary most over the squares that are trained on.
    genes = np.argsort(-bags.var(axis=0), kind="stable")[:N_GENES]
    truth = logarithms(section.counts[test], section.library[test])[:, genes]
    own = numbered(section.square[test])
    whole = logarithms(sums(section.counts[test], own), sums(section.library[test][:, None], own).ravel())[own]
    features = section.features[test]
    mixed = np.concatenate([rng.permutation(np.flatnonzero(own == each)) for each in range(own.max() + 1)])
    within = np.empty(len(own), int)
    within[np.argsort(own, kind="stable")] = mixed

    start = time.perf_counter()
    model, fits = trained(section.features[train], bags[:, genes], square, seed)
    seconds = time.perf_counter() - start
    said = np.asarray(model.predict(features), np.float64)
    cells = logarithms(section.counts[train], section.library[train])[:, genes]
    supervised, fits_cells = trained(section.features[train], cells, None, seed)
    rows = {
        "squares alone": said,
        "squares alone, mean of each square": means(said, own),
        "squares alone, crops shuffled within squares": said[within],
        "squares alone, crops shuffled": said[rng.permutation(len(said))],
        "full supervision": np.asarray(supervised.predict(features), np.float64),
        "mean of the square, measured": whole[:, genes],
    }
    fit = {"squares alone": fits, "full supervision": fits_cells}
    centred = truth - means(truth, own)
    return [
        {
            "model": name,
            "cell": gene_pearson(truth, values),
            "within_bin": gene_pearson(centred, values - means(values, own)),
            "bin": gene_pearson(means(truth, own), means(values, own)),
            "training_rows": fit.get(name, np.nan),
            "seconds": seconds if name == "squares alone" else np.nan,
        }
        for name, values in rows.items()
    ]


def main() -> None:
    """The table, printed and saved."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="file of the results; those of other sections are kept there")
    parser.add_argument("--data", nargs="*", default=list(SECTIONS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--cells", type=int, help="only so many cells, to try it out")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    sthist.settings.progress, sthist.settings.verbosity = False, "error"
    known = json.loads(options.json.read_text()) if options.json and options.json.exists() else {}
    results: dict[str, Any] = {
        "command": "PYTHONPATH=tests python studies/cells/bins_to_cells.py",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "sections": known.get("sections", {}),
        "rows": [row for row in known.get("rows", []) if row["data"] not in options.data],
    }
    for name in options.data:
        section = SECTIONS[name]()
        if options.cells:
            near = np.argsort(((section.centres - np.median(section.centres, axis=0)) ** 2).sum(axis=1))
            some = np.sort(near[: options.cells])
            fields = (section.features, section.counts, section.library)
            section = Section(
                *(each[some] for each in fields),
                section.genes,
                section.centres[some],
                section.square[some],
                section.side_um,
            )
        per_square = np.bincount(numbered(section.square))
        results["sections"][name] = {
            "cells": len(section.centres),
            "squares": len(per_square),
            "median_cells_a_square": float(np.median(per_square)),
            "median_counts_a_cell": float(np.median(section.library)),
        }
        print(name, results["sections"][name], flush=True)
        frames = [
            pd.DataFrame(fold_scores(section, train, test, seed)).assign(seed=seed)
            for seed in options.seeds
            for train, test in blocks_of(section)
        ]
        table = pd.concat(frames)
        for (model, seed), part in table.groupby(["model", "seed"], sort=False):
            means_ = part.drop(columns=["model", "seed"]).mean().round(4)
            results["rows"].append({"data": name, "model": model, "seed": int(seed), **means_.to_dict()})
            print(name, model, seed, means_.to_dict(), flush=True)
        if options.json:
            options.json.write_text(json.dumps(results, indent=1).replace("NaN", "null") + "\n")


if __name__ == "__main__":
    main()
