"""C2L-ST on the sections of her2st: do synthetic tiles look real, and do they make a better predictor?

Run ``PYTHONPATH=tests python studies/synthesis/her2st.py --folder FOLDER [--json FILE] [--figures FOLDER]``, with
``OMP_NUM_THREADS=1`` where several are run at once, each with some of the ``--fractions`` and ``--seeds``; what is in
the folder is not made again. It needs the her2st sections (``tests/realdata.py``): C3, C4 and C5, consecutive sections
of one patient with 545 spots, and B4 of another.

Each section of C is a chessboard of 1.4 mm: half of the squares train, half test, at about the same tissue in all
three. The central model sees half overlapping tiles of B4 and of the squares that train, none of which shares a pixel
with the tile of a spot that tests. It is ``C2LConfig.small`` on tiles of 32 px (112 µm), small enough for a core, in
2,400 batches of 32. For each fraction of the 545 spots and each seed, spots are drawn from the squares that train, the
model is adapted to them, and 10 tiles of each are made, with guidance 3 as published, but in 15 steps for 250.

``benchmark.augmentation`` then trains networks with one hidden layer on the encoder ``morphology`` of all tiles, each
read at 32 px, in all arms and for 50 epochs; ``benchmark.synthesis`` judges the tiles of the largest fraction.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import realdata

import sthist
from sthist import models
from sthist.benchmark import AugmentationScores

if TYPE_CHECKING:
    from spatialdata import SpatialData

C = ("C3", "C4", "C5")
BLOCK_UM = 1400.0
CONFIG = models.C2LConfig.small(px=32)
CENTRAL = {"epochs": 24, "steps_per_epoch": 100, "batch_size": 32, "lr": 5e-4, "ema": 0.995, "precision": "bf16"}
ADAPTATION = {
    **{"epochs": 3, "steps_per_epoch": 50, "batch_size": 32},
    **{"lr": 2e-3, "warmup": 20, "ema": 0.98, "precision": "bf16"},
}
GUIDANCE, STEPS = 3.0, 15
TRAINING = {"epochs": 50}


def section(name: str) -> SpatialData:
    """A section whose spots say in ``part`` whether they lie in squares that train or in such as test.

    Squares are those of a chessboard over the section's own bounding box, so that consecutive sections, which lie at
    different places of their images, have them at about the same tissue.
    """
    sdata = realdata.her2st(name)
    places = centres(sdata, "spots")
    column, row = ((places - places.min(axis=0)) // BLOCK_UM).astype(int).T
    sdata["table"].obs["part"] = np.where((column + row) % 2 == 1, "train", "test")
    return sdata


def centres(sdata: SpatialData, key: str) -> np.ndarray:
    """Centres (n, 2) of regions in µm."""
    places: np.ndarray = sdata[key].centroid.get_coordinates().to_numpy()
    return places


def without_tests(sdata: SpatialData) -> SpatialData:
    """The section with half overlapping tiles, none of which shares a pixel with the tile of a spot that tests."""
    sthist.pp.tissue(sdata)
    sthist.pp.tiles(sdata, size_um=CONFIG.size_um, px=CONFIG.px, overlap=0.5)
    tests = centres(sdata, "spots")[(sdata["table"].obs["part"] == "test").to_numpy()]
    tiles = centres(sdata, "tiles")
    apart = np.abs(tiles[:, None] - tests[None]).max(axis=2).min(axis=1) if len(tests) else np.full(len(tiles), np.inf)
    kept = sdata["tiles"][apart >= CONFIG.size_um]
    del sdata.tables["tiles_table"]
    sdata["tiles"] = kept
    return sdata


def central_model(folder: Path) -> models.C2L:
    """The central model of B4 and of the training squares of C; it goes on where it was stopped."""
    if (folder / "config.json").exists():
        return sthist.models.load(folder)
    b4 = section("B4")
    b4["table"].obs["part"] = "train"
    data = {"B4": without_tests(b4), **{name: without_tests(section(name)) for name in C}}
    training = CENTRAL | {"resume": folder.exists()}
    return sthist.tl.train_central(data, CONFIG, regions="tiles", folder=folder, training=training)


def rounded(frame: Any) -> list[dict[str, Any]]:
    """Rows of a frame as plain values of four digits; None for what is not a number."""
    rows = frame.to_dict("records")
    plain = [
        {key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()} for row in rows
    ]
    return json.loads(json.dumps(plain, default=float).replace("NaN", "null"))  # type: ignore[no-any-return]


def draw(found: Any, data: dict[str, SpatialData], synthetic: SpatialData, folder: Path) -> None:
    """The gallery of real and synthetic tiles, and the curves."""
    import matplotlib.pyplot as plt

    sthist.pl.synthetic_tiles(data, synthetic)
    plt.savefig(folder / "synthetic_tiles.png", dpi=100, bbox_inches="tight")
    plt.close("all")
    sthist.pl.augmentation(found)
    plt.savefig(folder / "augmentation.png", dpi=100, bbox_inches="tight")
    plt.close("all")


def scores_of(
    data: dict[str, SpatialData], central: models.C2L, folder: Path, seeds: dict[float, list[int]]
) -> AugmentationScores:
    """Arms of each fraction and its seeds, one beside the other."""
    import pandas as pd

    found = [
        sthist.benchmark.augmentation(
            data,
            central,
            "mlp",
            fractions=[fraction],
            ratios=[0, 1, 5, 10],
            split="part",
            seeds=own,
            guidance=GUIDANCE,
            steps=STEPS,
            adaptation=ADAPTATION,
            training=TRAINING,
            folder=folder,
        )
        for fraction, own in seeds.items()
    ]
    return AugmentationScores(
        scores=pd.concat([each.scores for each in found], ignore_index=True),
        draws={name: np.concatenate([each.draws[name] for each in found]) for name in found[0].draws},
        tables={key: table for each in found for key, table in each.tables.items()},
        spots=pd.concat([each.spots for each in found], ignore_index=True),
    )


def main() -> None:
    """The table, printed and saved."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="where models and tiles are kept")
    parser.add_argument("--json", type=Path, help="file of the results")
    parser.add_argument("--figures", type=Path, help="folder of the figures")
    parser.add_argument("--fractions", nargs="*", type=float, default=[0.05, 0.1, 0.25, 0.5])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--made", action="store_true", help="only fractions and seeds that the folder has")
    parser.add_argument("--judge", type=float, default=0.5, help="fraction whose tiles of the first seed are judged")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    sthist.settings.progress, sthist.settings.verbosity, sthist.settings.device = False, "error", "cpu"
    central, folder = central_model(options.folder / "central"), options.folder / "augmentation"
    data = {name: section(name) for name in C}
    seeds = {
        fraction: [
            seed
            for seed in options.seeds
            if not options.made or list((folder / f"part-{fraction:g}-seed{seed}").glob("scores-*.h5ad"))
        ]
        for fraction in options.fractions
    }
    found = scores_of(data, central, folder, {fraction: own for fraction, own in seeds.items() if own})
    print(found.scores.groupby(["fraction", "arm", "ratio"], sort=False)[["steps", "mae", "pearson"]].mean())
    verdicts = {metric: found.verdict(metric) for metric in ("mae", "pearson", "auc_ovr")}
    print(*verdicts.values(), sep="\n")
    if not options.json:
        return
    import spatialdata as sd

    synthetic = sd.read_zarr(folder / f"part-{options.judge:g}-seed{options.seeds[0]}" / "synthetic.zarr")
    judged = sthist.benchmark.synthesis(data, synthetic)
    print(judged.scores)
    results = {
        "command": "PYTHONPATH=tests python studies/synthesis/her2st.py --folder FOLDER",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "central": central.config.training,
        "adaptation": ADAPTATION,
        "sampling": {"guidance": GUIDANCE, "steps": STEPS},
        "spots": found.spots.groupby(["fraction", "seed", "part"]).size().rename("n").reset_index().to_dict("records"),
        "verdicts": verdicts,
        "summary": {metric: rounded(found.summary(metric)) for metric in ("mae", "pearson", "auc_ovr")},
        "scores": rounded(found.scores.drop(columns="seconds")),
        "tiles": {"of": options.judge, "left_out": judged.left_out, "scores": rounded(judged.scores)},
    }
    options.json.write_text(json.dumps(results, indent=1, default=float) + "\n")
    if options.figures:
        draw(found, data, synthetic, options.figures)


if __name__ == "__main__":
    main()
