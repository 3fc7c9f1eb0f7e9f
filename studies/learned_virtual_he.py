"""Trained models of virtual H&E beside the built-in one, on transcriptomics simulated over real histology.

Run ``PYTHONPATH=tests python studies/learned_virtual_he.py FOLDER [--json FILE] [--figure FILE]``. Whole sections of
her2st (HER2-positive breast cancer, 0.688 µm/px): ``datasets.simulate_hrst`` makes nuclear stain and transcripts from
the H&E. ``small`` and ``Pix2Pix`` are trained on C3, C4 and the left half of C5 (one patient), and tested on the right
half of C5 and on B4 (another patient), beside ``beer_lambert`` with its own colours and with those of C4, the mean
colour of the training tiles, and the real tiles of other places. Tiles of 88 µm (128 px) lie around cells that are
spread evenly; those of C5 that reach over its middle are left out. Training goes on where it was stopped; what is
trained stays in FOLDER. ``--only st2he`` trains one model and ends.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import time
from pathlib import Path

import numpy as np
import pandas as pd
from hrst import MPP, section

import sthist
from sthist import _sample
from sthist.benchmark._tiles import find_extractor, predict_tiles
from sthist.metrics import image as metrics
from sthist.metrics._compare import shuffled
from sthist.tiles import TileReader, TileSpec

SPEC = TileSpec.from_mpp(MPP, 128)
TILES = {"C3": 1500, "C4": 1500, "C5": 1500, "B4": 400}
TESTED = 400
TRAINING = {
    "small": {"epochs": 10, "steps_per_epoch": 300, "batch_size": 4, "ema": 0.99},
    "pix2pix": {"epochs": 10, "steps_per_epoch": 600, "batch_size": 4, "ema": 0.99},
}
DRAWS = 1000


def sections(names: list[str]) -> dict:
    """Simulated sections with tiles, and what each tile is for."""
    found = {}
    for name in names:
        sdata = sthist.datasets.simulate_hrst(section(name), MPP, seed=0)
        sthist.pp.tiles(sdata, size_um=SPEC.size_um, px=SPEC.px, sampling="fps", n_tiles=TILES[name])
        table = sdata["tiles_table"]
        x, y = table.obsm["spatial"].T
        part = np.full(len(table), "train", dtype=object)
        if name == "C5":
            middle = section(name).shape[1] * MPP / 2
            part[x > middle] = "test"
            part[np.abs(x - middle) < SPEC.size_um / 2] = "over the middle"
        if name == "C4":
            edge = np.quantile(y, 0.95)
            part[y > edge] = "validation"
            part[np.abs(y - edge) < SPEC.size_um / 2] = "over the edge"
        if name == "B4":
            part[:] = "test"
        table.obs["part"] = part
        keep = np.isin(part, ["train", "validation", "test"])
        sdata.shapes["tiles"] = sdata.shapes["tiles"][keep]
        sdata.tables["tiles_table"] = table[keep].copy()
        found[name] = sdata
    return found


def train(data: dict, folder: Path, name: str, seed: int) -> None:
    """Train one model, and note what it took."""
    where = folder / name
    if (where / "config.json").exists():
        return
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
    trained_on = {each: data[each] for each in ("C3", "C4", "C5")}
    sthist.tl.train_virtual_he(
        trained_on,
        name,
        folder=where,
        split="part",
        training=TRAINING[name] | {"resume": True, "seed": seed},
        progress=False,
    )
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    (where / "took.json").write_text(json.dumps({"wall_s": time.perf_counter() - start, "cpu_s": cpu}))


def predictions(data: dict, folder: Path, name: str) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """What each method makes of the test tiles of a section; the real ones; the input of the models."""
    sdata = data[name]
    table = sdata["tiles_table"]
    centres = table.obsm["spatial"][(table.obs["part"] == "test").to_numpy()]
    centres = centres[np.sort(np.random.default_rng(0).permutation(len(centres))[:TESTED])]
    real = TileReader(sdata, "he", SPEC, fill=255).read(centres)
    elements = _sample.find_high_res(sdata, image="dapi")
    reference = sthist.models.BeerLambert().fit((data["C4"], "he"), seed=0)
    models = {
        "beer_lambert": sthist.models.BeerLambert(),
        "beer_lambert, colours of C4": reference,
        "Pix2Pix": sthist.models.load(folder / "pix2pix"),
        "ST2HE small": sthist.models.load(folder / "small"),
    }
    made = {method: predict_tiles(model, elements, centres, SPEC) for method, model in models.items()}
    trained = np.concatenate(
        [TileReader(data[s], "he", SPEC).read(data[s]["tiles_table"].obsm["spatial"][:200]) for s in ("C3", "C4")]
    )
    made["mean colour"] = np.broadcast_to(trained.mean((0, 1, 2)).round().astype(np.uint8), real.shape)
    made["real, of another place"] = real[shuffled(len(real), 0)]
    seen = sthist.tiles.Overlay(sdata, SPEC, image="dapi").read(centres)
    return made, real, seen


def interval(values: np.ndarray) -> list[float]:
    """Bootstrap interval of a mean over tiles, 95 %."""
    draws = np.random.default_rng(0).integers(len(values), size=(DRAWS, len(values)))
    return np.quantile(values[draws].mean(1), [0.025, 0.975]).round(4).tolist()


def table(name: str, made: dict[str, np.ndarray], real: np.ndarray) -> list[dict]:
    """Scores of each method on a section."""
    network, called = find_extractor("morphology", SPEC, real)
    rows = []
    for method, tiles in made.items():
        ssim, psnr = metrics.ssim(tiles, real), metrics.psnr(tiles, real)
        row = {"section": name, "method": method, "n": len(real), "features": called}
        row |= {"ssim": float(np.mean(ssim)), "ssim_interval": interval(ssim)}
        row |= {
            "psnr": float(np.mean(psnr)),
            "psnr_interval": interval(psnr),
            "mse": float(np.mean(metrics.mse(tiles, real))),
        }
        row["fid"] = metrics.fid(tiles, real, encoder=network)
        row["kid"] = metrics.kid(tiles, real, encoder=network, seed=0)
        rows.append(row)
    half = len(real) // 2
    floor = metrics.fid(real[:half], real[half:], encoder=network)
    rows.append({"section": name, "method": "real, one half against the other", "n": half, "fid": floor})
    return rows


def figure(shown: dict, path: Path) -> None:
    """Input, each method and the real tile, three tiles of each section."""
    import matplotlib.pyplot as plt

    methods = ["beer_lambert", "beer_lambert, colours of C4", "Pix2Pix", "ST2HE small"]
    titles = ["stain and transcripts", *methods, "real"]
    fig, axes = plt.subplots(6, len(titles), figsize=(2.1 * len(titles), 12.8), layout="constrained")
    row = 0
    for name, (made, real, seen) in shown.items():
        for i in np.linspace(0, len(real) - 1, 5).astype(int)[1:4]:
            for ax, title, tile in zip(
                axes[row], titles, [seen[i], *(made[m][i] for m in methods), real[i]], strict=True
            ):
                ax.imshow(tile)
                ax.set(xticks=[], yticks=[])
                if row == 0:
                    ax.set_title(title, fontsize=9)
            axes[row, 0].set_ylabel(name)
            row += 1
    fig.savefig(path, dpi=110)


def main() -> None:
    """Train what is not trained, score, and keep the table and a figure where asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--figure", type=Path)
    arguments = parser.parse_args()
    sthist.settings.progress = False
    missing = [name for name in TRAINING if not (arguments.folder / name / "config.json").exists()]
    if missing:
        data = sections(["C3", "C4", "C5"])
        for name in missing if arguments.only is None else [arguments.only]:
            train(data, arguments.folder, name, seed=0)
    if arguments.only is not None:
        return
    data = sections(["C4", "C5", "B4"]) | {"C3": sections(["C3"])["C3"]}
    shown = {name: predictions(data, arguments.folder, name) for name in ("C5", "B4")}
    rows = [row for name, (made, real, _) in shown.items() for row in table(name, made, real)]
    columns = ["section", "method", "n", "ssim", "psnr", "mse", "fid", "kid"]
    print(pd.DataFrame(rows)[columns].round(3).to_string(index=False))
    if arguments.figure:
        figure(shown, arguments.figure)
    if arguments.json:
        configs = {name: json.loads((arguments.folder / name / "config.json").read_text()) for name in TRAINING}
        took = {name: json.loads((arguments.folder / name / "took.json").read_text()) for name in TRAINING}
        results = {
            "command": "PYTHONPATH=tests python studies/learned_virtual_he.py FOLDER",
            "machine": f"{platform.machine()}, 2 cores, Python {platform.python_version()}",
            "what": __doc__,
            "training_took": took,
            "configs": configs,
            "table": rows,
        }
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
