"""Train the learned virtual H&E that is to hold on sections it was not trained on.

Run ``PYTHONPATH=tests:studies/virtual_he python studies/virtual_he/train.py FOLDER [--model small] [--epochs 12]``.
Sections and trainings stay in FOLDER, and go on where they were stopped. The model says amounts of stains, in the
colours of section C4; it sees densities of molecules and of four groups of genes, under three simulators, at 0.25 to
0.8 µm/px.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path

import numpy as np
from sections import N_TILES, TRAINED, TRAINED_ON, simulated

import sthist
from sthist.tiles import TileSpec

SPEC = TileSpec.from_mpp(0.7, 128)
TRAINING = {
    "target": "stains",
    "molecules": "groups",
    "density_um": 2.5,
    "scales": (0.25, 0.8),
    "steps_per_epoch": 250,
    "batch_size": 4,
    "ema": 0.99,
    "max_shift_um": None,  # the stain is made of the H&E
}


def lay_tiles(sdata, n_tiles: int, *, ends: bool) -> None:
    """Tiles, and what each is for: both ends of a large section are not trained on, under any simulator the same."""
    sthist.pp.tiles(sdata, size_um=SPEC.size_um, px=SPEC.px, sampling="fps", n_tiles=n_tiles, seed=0, overwrite=True)
    table = sdata["tiles_table"]
    y = table.obsm["spatial"][:, 1]
    low, high = np.quantile(y, [0.04, 0.94]) if ends else (-np.inf, np.inf)
    part = np.select([y < low, y > high], ["test", "validation"], "train")
    keep = (part != "train") | (y > low + SPEC.size_um) & (y < high - SPEC.size_um)
    table.obs["part"] = part
    sdata.shapes["tiles"] = sdata.shapes["tiles"][keep]
    sdata.tables["tiles_table"] = table[keep].copy()


def main() -> None:
    """Train one model, and note what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="small")
    parser.add_argument("--name")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--changes", type=json.loads, default={}, help="of the training, as JSON")
    given = parser.parse_args()
    sthist.settings.progress = False
    samples = {}
    for cohort, names in TRAINED.items():
        for name in names:
            for simulator in TRAINED_ON:
                sdata = simulated(given.folder / "sections", name, simulator)
                lay_tiles(sdata, N_TILES[cohort], ends=cohort == "her2st")
                samples[f"{name} {simulator}"] = sdata
    where = given.folder / (given.name or Path(given.model).name)
    reference = sthist.pp.StainReference.fit(samples["C4 cells"], "he")
    training = TRAINING | {"stain_reference": reference, "epochs": given.epochs, "resume": True} | given.changes
    start = time.perf_counter()
    before = resource.getrusage(resource.RUSAGE_SELF)
    model = sthist.models.load(given.model) if Path(given.model).is_dir() else given.model
    sthist.tl.train_virtual_he(samples, model, folder=where, training=training, split="part")
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    took = {"wall_s": time.perf_counter() - start, "cpu_s": cpu}
    (where / "took.json").write_text(json.dumps(took))
    print(took)


if __name__ == "__main__":
    main()
