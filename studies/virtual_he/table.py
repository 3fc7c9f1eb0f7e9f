"""How learned virtual H&E holds on sections it was not trained on, beside the built-in model and nulls.

Run ``PYTHONPATH=tests:studies/virtual_he python studies/virtual_he/table.py FOLDER [--json FILE] [--models NAME ...]``,
with the FOLDER of ``train.py``. Tiles lie evenly over the tissue of each held-out section, at 0.25 and 0.5 µm/px where
its H&E is as fine, and at 0.7; both simulators. Intervals of 95 % are over squares of the sections (of 400 µm, or a
quarter of a small image), drawn with replacement; those of KID over halves of them without. KID and FID are of the
built-in encoder's features, standardised by the real tiles; their floor is one half of the real tiles against the
other, their values of as many tiles.

Rows: the mean colour of the training sections; the built-in model in its own colours and in those of each training
section, of which the best on the section itself is kept; the first learned model; the trained ones in the colours of
training and in those of the section itself; these also without molecules, and with those of another tile.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sections import HELD_OUT, SIMULATORS, simulated

import sthist
from sthist import _sample
from sthist.benchmark._nuclei import haematoxylin_nuclei
from sthist.benchmark._tiles import find_extractor, predict_tiles
from sthist.metrics import image as metrics
from sthist.metrics._compare import shuffled
from sthist.metrics._deep import frechet, kernel_distance
from sthist.tiles import TileReader, TileSpec

PX, N_TILES, DRAWS = 128, {"C5": 200, "B4": 200}, 400
FEWER = 60  # tiles of a small image
SCALES = {"C5": (0.7,), "B4": (0.7,), "cmu": (0.5, 0.7)}
FINE = (0.25, 0.5)
BLOCK_UM = {"C5": 400.0, "B4": 400.0, "cmu": 200.0}
SMALL_BLOCK_UM = 130.0
REFERENCES = ("C3", "C4", "breast_10013", "breast_10026")
"""Training sections whose colours the built-in model is shown."""


class Held:
    """Tiles of a held-out section at one scale: where they are, and what they show."""

    def __init__(self, name: str, sections: dict[str, Any], mpp: float) -> None:
        self.name, self.sections, self.spec = name, sections, TileSpec.from_mpp(mpp, PX)
        sdata = next(iter(sections.values()))
        how = {"sampling": "fps", "n_tiles": N_TILES.get(name, FEWER), "seed": 1, "overwrite": True}
        sthist.pp.tiles(sdata, size_um=self.spec.size_um, px=PX, **how)
        self.centres = np.asarray(sdata["tiles_table"].obsm["spatial"], float)
        self.real = TileReader(sdata, "he", self.spec, fill=255).read(self.centres)
        side = BLOCK_UM.get(name, SMALL_BLOCK_UM)
        self.block = np.unique((self.centres // side).astype(int), axis=0, return_inverse=True)[1].ravel()
        self.network, _ = find_extractor("morphology", self.spec, self.real)
        self.features = self.embedded(self.real)
        self.nuclei = haematoxylin_nuclei(self.real, mpp)

    def embedded(self, tiles: np.ndarray) -> np.ndarray:
        """Standardised features of tiles."""
        import torch

        assert self.network is not None
        return np.asarray(self.network(torch.from_numpy(np.ascontiguousarray(tiles.transpose(0, 3, 1, 2)))))

    def predicted(self, model: Any, simulator: str, molecules: Any = None) -> np.ndarray:
        """What a model makes of all tiles."""
        elements = _sample.find_high_res(self.sections[simulator], image="dapi")
        return predict_tiles(model, elements, self.centres, self.spec, molecules=molecules)

    def row(self, tiles: np.ndarray) -> dict[str, Any]:
        """Scores of tiles, with intervals over blocks."""
        values = {"ssim": metrics.ssim(tiles, self.real), "psnr": metrics.psnr(tiles, self.real)}
        guessed = haematoxylin_nuclei(tiles, self.spec.mpp)
        pairs = zip(guessed, self.nuclei, strict=True)
        found = [metrics.nucleus_preservation(a, b, mpp=self.spec.mpp).f1 for a, b in pairs]
        values["nucleus_f1"] = np.nan_to_num(np.array(found, float))
        made: dict[str, Any] = {}
        for name, each in values.items():
            made[name] = round(float(np.mean(each)), 4)
            made[f"{name}_interval"] = interval(np.asarray(each), self.block)
        features = self.embedded(tiles)
        made["fid"] = round(frechet(features, self.features), 2)
        made["kid"] = round(kernel_distance(features, self.features, subset_size=1000, n_subsets=1, seed=0), 4)
        made["kid_interval"] = kid_interval(features, self.features, self.block)
        return made


def interval(values: np.ndarray, block: np.ndarray) -> list[float]:
    """Of a mean over tiles, 95 %, blocks drawn with replacement."""
    sums = np.bincount(block, values)
    sizes = np.bincount(block)
    drawn = np.random.default_rng(0).integers(len(sizes), size=(DRAWS, len(sizes)))
    means = sums[drawn].sum(1) / sizes[drawn].sum(1)
    return np.quantile(means, [0.025, 0.975]).round(4).tolist()


def kid_interval(made: np.ndarray, real: np.ndarray, block: np.ndarray) -> list[float]:
    """Of KID, from halves of the blocks: a tile that is drawn twice would count as two that are alike."""
    rng, found = np.random.default_rng(0), []
    for _ in range(60):
        chosen = np.isin(block, rng.permutation(block.max() + 1)[: max(2, (block.max() + 1) // 2)])
        if chosen.sum() > 3:
            found.append(kernel_distance(made[chosen], real[chosen], subset_size=1000, n_subsets=1, seed=0))
    middle, spread = float(np.mean(found)), float(np.std(found))  # halves differ by as much as the whole is unsure
    return [round(middle - 1.96 * spread, 4), round(middle + 1.96 * spread, 4)]


def rows_of(held: Held, models: dict[str, Any], references: dict[str, Any], colour: np.ndarray) -> list[dict]:
    """All methods on one section at one scale."""
    facts = {"section": held.name, "mpp": held.spec.mpp, "n": len(held.real), "blocks": int(held.block.max() + 1)}
    half = len(held.real) // 2
    floor = {"fid": round(frechet(held.features[:half], held.features[half:]), 2)}
    flat = held.row(np.broadcast_to(colour.astype(np.uint8), held.real.shape).copy())
    rows = [facts | {"method": "mean colour of the training", "simulator": "any"} | flat]
    rows.append(facts | {"method": "real, half against half", "simulator": "any"} | floor)
    own = sthist.pp.StainReference.fit(next(iter(held.sections.values())), "he")
    others = held.centres[shuffled(len(held.centres), 0)]
    for simulator in held.sections:
        found: dict[str, dict] = {"beer_lambert": held.row(held.predicted(sthist.models.BeerLambert(), simulator))}
        stained = {name: held.row(held.predicted(model, simulator)) for name, model in references.items()}
        best = max(stained, key=lambda name: stained[name]["psnr"])
        found["beer_lambert, best of the training's colours"] = stained[best] | {"colours": best}
        found["st2he-small, the first"] = held.row(held.predicted(sthist.models.load("st2he-small"), simulator))
        for name, model in models.items():
            found[name] = held.row(held.predicted(model, simulator))
            found[f"{name}, own colours"] = held.row(held.predicted(model.stained(own), simulator))
            found[f"{name}, molecules erased"] = held.row(held.predicted(model, simulator, False))
            found[f"{name}, molecules swapped"] = held.row(held.predicted(model, simulator, others))
        rows += [facts | {"method": name, "simulator": simulator} | row for name, row in found.items()]
    return rows


def main() -> None:
    """The table, printed and saved."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--models", nargs="*", default=["small"])
    given = parser.parse_args()
    sthist.settings.progress, sthist.settings.verbosity = False, "error"
    stored = given.folder / "sections"
    models = {name: sthist.models.load(given.folder / name) for name in given.models}
    trained = {name: simulated(stored, name, "cells") for name in REFERENCES}
    references = {name: sthist.models.BeerLambert().fit((sdata, "he"), seed=0) for name, sdata in trained.items()}
    colour = training_colour(trained)
    rows: list[dict] = []
    for what, names in HELD_OUT.items():
        for name in names:
            sections = {simulator: simulated(stored, name, simulator) for simulator in SIMULATORS}
            for mpp in SCALES.get(name, FINE):
                held = Held(name, sections, mpp)
                rows += [{"held out": what, **row} for row in rows_of(held, models, references, colour)]
                shown = [
                    "held out",
                    "section",
                    "mpp",
                    "simulator",
                    "method",
                    "ssim",
                    "psnr",
                    "kid",
                    "fid",
                    "nucleus_f1",
                ]
                print(pd.DataFrame(rows)[shown].tail(12).round(3).to_string(index=False), flush=True)
                if given.json is not None:
                    facts = {
                        "command": "PYTHONPATH=tests:studies/virtual_he python studies/virtual_he/table.py FOLDER",
                        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
                    }
                    given.json.write_text(json.dumps({**facts, "rows": rows}, indent=1).replace("NaN", "null") + "\n")


def training_colour(trained: dict[str, Any]) -> np.ndarray:
    """Mean colour of tissue tiles of training sections."""
    found = []
    for sdata in trained.values():
        centres = np.asarray(sdata["table"].obsm["spatial"], float)[:: max(1, sdata["table"].n_obs // 60)]
        found.append(TileReader(sdata, "he", TileSpec.from_mpp(0.7, 64), fill=255).read(centres).mean((0, 1, 2)))
    return np.mean(found, axis=0)


if __name__ == "__main__":
    main()
