"""How learned virtual H&E holds on sections it was not trained on, beside the built-in model and nulls.

Run ``PYTHONPATH=tests:studies/virtual_he python studies/virtual_he/table.py FOLDER [--json FILE] [--models NAME ...]``,
with the FOLDER of ``train.py``. Tiles lie evenly over the tissue of each held-out section, at 0.25 and 0.5 µm/px where
its H&E is as fine, and at 0.7; both simulators. Intervals of 95 % are over squares of the sections (of 400 µm, or a
quarter of a small image), drawn with replacement; those of KID over halves of them without. KID and FID are of the
built-in encoder's features, standardised by the real tiles; their floor is one half of the real tiles against the
other, their values of as many tiles.

``--peers`` names published packages and the Python of an environment that has each, as ``peers.py`` says; they see the
stain as the network does, and the density of molecules in the place of a cytoplasm channel. With ``--sections`` it is
of some sections alone, which are put into FILE in the place of what was there of them.

Rows: the mean colour of the training sections; the built-in model in its own colours and in those of each training
section, of which the best on the section itself is kept; the first learned model; the trained ones in the colours of
training and in those of the section itself; of the first of them also without molecules, with those of another tile,
and with another light: the stain's gamma, blur, background, shading and noise. ``whole`` holds what the image of a
whole section shows: PSNR of its outer 8 px and of the rest, and the score of seams.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from filelock import FileLock
from sections import HELD_OUT, SIMULATORS, simulated

import sthist
from sthist import _sample
from sthist.benchmark._nuclei import haematoxylin_nuclei
from sthist.benchmark._tiles import find_extractor, predict_tiles
from sthist.metrics import image as metrics
from sthist.metrics._compare import shuffled
from sthist.metrics._deep import frechet, kernel_distance
from sthist.tiles import DensityTiles, TileReader, TileSpec, read_region

PX, N_TILES, DRAWS = 128, {"C5": 100, "B4": 100}, 400
FEWER = 36  # tiles of a small image
SCALES = {"C5": (0.7,), "B4": (0.7,), "breast_10018": (0.25, 0.5), "breast_10038": (0.5,), "cmu": (0.5,)}
BLOCK_UM = {"C5": 400.0, "B4": 400.0, "cmu": 200.0}
SMALL_BLOCK_UM = 130.0
RELIT = {"C5": 0.7, "breast_10018": 0.5}
"""Sections that are seen under another light, and the µm/px."""

WHOLE = ("breast_10018", "breast_10038")
"""Sections that are tissue up to their border."""

REFERENCES = ("C4", "breast_10013", "breast_10026")
"""Training sections whose colours the built-in model is shown."""


SHADE, HAZE, GRAIN, BLUR_UM = 0.3, 0.2, 0.05, 1.4
"""Strength of another light: how much dimmer and brighter the sides are, added background and noise relative to the
brightest nuclei, and standard deviation of the blur."""

BORDER_PX = 8


def relit(sdata: Any, change: str) -> Any:
    """The section with its stain under another light."""
    import spatialdata as sd
    from scipy.ndimage import gaussian_filter

    image = sthist.tiles.open_image(sdata, "dapi")
    levels = read_region(sdata, "dapi", image.extent_um, image.finest_mpp)[..., 0].astype(np.float32)
    top = np.quantile(levels, 0.999)
    light = levels / top
    if change.startswith("gamma"):
        light = light ** float(change.split()[1])
    elif change == "blur":
        light = gaussian_filter(light, BLUR_UM / image.finest_mpp)
    elif change == "background":
        light = light + HAZE
    elif change == "shading":
        light = light * np.linspace(1 - SHADE, 1 + SHADE, light.shape[1])
    else:
        light = light + np.random.default_rng(0).normal(0, GRAIN, light.shape)
    seen = np.clip(np.rint(light * top), 0, 65535).astype(np.uint16)[None]
    how = {"dims": ("c", "y", "x"), "c_coords": ["dapi"]}
    where = sd.transformations.get_transformation(sdata["dapi"], get_all=True)
    other = sd.SpatialData(images=dict(sdata.images), points=dict(sdata.points), attrs=sdata.attrs)
    other.images["dapi"] = sd.models.Image2DModel.parse(seen, transformations=where, **how)
    return other


LIGHTS = ("gamma 0.5", "gamma 2", "blur", "background", "shading", "noise")


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

    def by_peer(self, name: str, python: str, simulator: str) -> np.ndarray:
        """What a published package makes of all tiles."""
        seen = DensityTiles(self.sections[simulator], self.spec, image="dapi").read(self.centres).astype(np.float32)
        with tempfile.TemporaryDirectory() as folder:
            given, made = (str(Path(folder) / f"{each}.npz") for each in ("given", "made"))
            np.savez(given, stain=seen[..., 0], molecules=seen[..., 1], mpp=self.spec.mpp)
            script = str(Path(__file__).with_name("peers.py"))
            clean = {each: value for each, value in os.environ.items() if each != "PYTHONPATH"}
            subprocess.run([python, script, name, given, made], check=True, capture_output=True, env=clean)
            return np.load(made)["made"]

    def under(self, change: str, model: Any, simulator: str) -> dict[str, Any]:
        """Scores of a model whose stain is seen under another light."""
        elements = _sample.find_high_res(relit(self.sections[simulator], change), image="dapi")
        return self.row(predict_tiles(model, elements, self.centres, self.spec))

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


@dataclass(frozen=True)
class Methods:
    """What is compared."""

    models: dict[str, Any]
    references: dict[str, Any]  # the built-in model in the colours of training sections
    colours: dict[str, Any]  # of the same sections, for models that say stains
    first: Any  # the first learned model, or None
    peers: dict[str, str]
    colour: np.ndarray  # mean of the training


def rows_of(held: Held, methods: Methods) -> list[dict]:
    """All methods on one section at one scale."""
    facts = {
        "section": held.name,
        "mpp": round(held.spec.mpp, 4),
        "n": len(held.real),
        "blocks": int(held.block.max() + 1),
    }
    half = len(held.real) // 2
    floor = {"fid": round(frechet(held.features[:half], held.features[half:]), 2)}
    flat = held.row(np.broadcast_to(methods.colour.astype(np.uint8), held.real.shape).copy())
    rows = [facts | {"method": "mean colour of the training", "simulator": "any"} | flat]
    rows.append(facts | {"method": "real, half against half", "simulator": "any"} | floor)
    own = sthist.pp.StainReference.fit(next(iter(held.sections.values())), "he")
    others = held.centres[shuffled(len(held.centres), 0)]
    for simulator in held.sections:
        found: dict[str, dict] = {"beer_lambert": held.row(held.predicted(sthist.models.BeerLambert(), simulator))}
        stained = {name: held.row(held.predicted(model, simulator)) for name, model in methods.references.items()}
        best = max(stained, key=lambda name: stained[name]["psnr"])
        found["beer_lambert, best of the training's colours"] = stained[best] | {"colours": best}
        for name, python in methods.peers.items():
            found[name] = held.row(held.by_peer(name, python, simulator))
        if methods.first is not None:
            found["st2he-small, the first"] = held.row(held.predicted(methods.first, simulator))
        for number, (name, model) in enumerate(methods.models.items()):
            found[name] = held.row(held.predicted(model.stained(methods.colours[best]), simulator)) | {"colours": best}
            as_here = model.stained(own)
            found[f"{name}, own colours"] = held.row(held.predicted(as_here, simulator))
            if number:
                continue
            found[f"{name}, own colours, molecules erased"] = held.row(held.predicted(as_here, simulator, False))
            found[f"{name}, own colours, molecules swapped"] = held.row(held.predicted(as_here, simulator, others))
            if held.name in RELIT and abs(held.spec.mpp - RELIT[held.name]) < 1e-6:
                for change in LIGHTS:
                    found[f"{name}, own colours, {change}"] = held.under(change, as_here, simulator)
        rows += [facts | {"method": name, "simulator": simulator} | row for name, row in found.items()]
    return rows


def whole(sections: dict[str, Any], model: Any) -> dict[str, Any]:
    """PSNR of the outer pixels and of the rest of whole images, and their seams, by simulator."""
    from sthist.benchmark._virtual_he import seam_of

    found: dict[str, Any] = {}
    for simulator, sdata in sections.items():
        own = sthist.pp.StainReference.fit(sdata, "he")
        sthist.tl.virtual_he(sdata, model.stained(own), mpp=0.5, key_added="made", overwrite=True)
        made = sthist.tiles.open_image(sdata, "made")
        images = [read_region(sdata, key, made.extent_um, 0.5, fill=255).astype(float) for key in ("made", "he")]
        error = ((images[0] - images[1]) ** 2).mean(-1)
        inside = np.zeros(error.shape, bool)
        inside[BORDER_PX:-BORDER_PX, BORDER_PX:-BORDER_PX] = True
        psnr = {
            name: 10 * np.log10(255**2 / error[where].mean())
            for name, where in (("border", ~inside), ("inside", inside))
        }
        seam = seam_of(sdata, "made")
        found[simulator] = {name: round(float(value), 2) for name, value in psnr.items()} | {"seam": seam.get("ratio")}
    return found


def main() -> None:
    """The table, printed and saved."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--models", nargs="*", default=["small", "pix2pix"])
    parser.add_argument("--first", type=Path, help="folder of the first st2he-small, which older releases have")
    parser.add_argument("--peers", type=json.loads, default={}, help="Python of each by its name, as JSON")
    parser.add_argument("--sections", nargs="*")
    given = parser.parse_args()
    sthist.settings.progress, sthist.settings.verbosity = False, "error"
    stored = given.folder / "sections"
    models = {name: sthist.models.load(given.folder / name) for name in given.models}
    trained = {name: simulated(stored, name, "cells") for name in REFERENCES}
    references = {name: sthist.models.BeerLambert().fit((sdata, "he"), seed=0) for name, sdata in trained.items()}
    first = sthist.models.load(given.first) if given.first is not None else None
    colours = {name: sthist.pp.StainReference.fit(sdata, "he") for name, sdata in trained.items()}
    methods = Methods(models, references, colours, first, given.peers, training_colour(trained))
    for what, names in HELD_OUT.items():
        for name in names:
            if given.sections is not None and name not in given.sections:
                continue
            sections = {simulator: simulated(stored, name, simulator) for simulator in SIMULATORS}
            rows: list[dict] = []
            for mpp in SCALES[name]:
                held = Held(name, sections, mpp)
                rows += [{"held out": what, **row} for row in rows_of(held, methods)]
            shown = ["section", "mpp", "simulator", "method", "ssim", "psnr", "kid", "fid", "nucleus_f1"]
            print(pd.DataFrame(rows)[shown].round(3).to_string(index=False), flush=True)
            of_whole = {name: whole(sections, next(iter(models.values())))} if name in WHOLE else {}
            if given.json is not None:
                keep(given.json, name, rows, of_whole)


def keep(path: Path, name: str, rows: list[dict], of_whole: dict[str, Any]) -> None:
    """Put what was found of a section into a file, in the place of what was there of it."""
    with FileLock(f"{path}.lock"):
        before = json.loads(path.read_text()) if path.exists() else {"rows": [], "whole": {}}
        others = [row for row in before["rows"] if row["section"] != name]
        order = [each for names in HELD_OUT.values() for each in names]
        facts = {
            "command": "PYTHONPATH=tests:studies/virtual_he python studies/virtual_he/table.py FOLDER",
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
            "whole": before["whole"] | of_whole,
            "rows": sorted([*others, *rows], key=lambda row: order.index(row["section"])),
        }
        path.write_text(json.dumps(facts, indent=1).replace("NaN", "null") + "\n")


def training_colour(trained: dict[str, Any]) -> np.ndarray:
    """Mean colour of tissue tiles of training sections."""
    found = []
    for sdata in trained.values():
        centres = np.asarray(sdata["table"].obsm["spatial"], float)[:: max(1, sdata["table"].n_obs // 60)]
        found.append(TileReader(sdata, "he", TileSpec.from_mpp(0.7, 64), fill=255).read(centres).mean((0, 1, 2)))
    return np.mean(found, axis=0)


if __name__ == "__main__":
    main()
