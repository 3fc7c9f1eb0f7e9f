"""The built-in virtual H&E on transcriptomics simulated over real histology, by region class.

Run ``PYTHONPATH=tests python studies/simulated_hrst.py [--json FILE] [--figure FILE]``. Whole sections C4 and B4 of
her2st (HER2-positive breast cancer, 0.688 µm/px): ``datasets.simulate_hrst`` makes nuclear stain and transcripts from
the H&E, ``tl.virtual_he`` an H&E from those, and ``benchmark.virtual_he`` compares it with the real one on a tile of
110 µm around each spot. The class of a tile is the cell type that dominates the spot (stereoscope's estimate from its
expression, not from the image). Beside the model stand the mean colour of the real tiles, and the virtual image of
another tile. With ``reference`` the model takes its colours from section C3, of the same patient as C4.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from hrst import MPP, section
from realdata import folder

import sthist
from sthist.metrics import image as scores

SPEC = {"size_um": 160 * MPP, "px": 160}
LEAST_TILES = 8


def spots(name: str) -> ad.AnnData:
    """The spots of a section, with the cell type that dominates each; rare classes are one."""
    adata = ad.read_h5ad(folder("her2st") / f"{name}_counts.h5ad")
    kinds = adata.obsm["stereoscope_major"]
    dominant = kinds.idxmax(axis=1).astype(str).to_numpy(dtype=object)
    common = pd.Series(dominant).value_counts()
    dominant[~np.isin(dominant, common.index[common >= LEAST_TILES])] = "other"
    adata.obs["class"] = dominant
    return adata


def score(name: str) -> pd.DataFrame:
    """Scores of both variants on all tiles of a section."""
    sdata = sthist.datasets.simulate_hrst(section(name), MPP, seed=0)
    annotated = spots(name)
    where = sthist.io.assemble(
        {"he": np.zeros((4, 4, 3), np.uint8)},
        mpp=MPP,
        table=ad.AnnData(obs=annotated.obs[["pixel_x", "pixel_y", "class"]]),
        spot_diameter_um=100.0,
    )
    sdata.shapes["spots"] = where.shapes["spots"]
    sthist.pp.tiles(sdata, sampling="regions", regions="spots", **SPEC)
    tiles = sdata["tiles_table"]
    tiles.obs["class"] = annotated.obs["class"].loc[tiles.obs["source_id"]].to_numpy()
    frames = []
    for variant, reference in (("default", None), ("reference", section("C3"))):
        start = time.perf_counter()
        sthist.tl.virtual_he(sdata, stain_reference=reference, key_added=variant, progress=False)
        seconds = time.perf_counter() - start
        frame = sthist.benchmark.virtual_he(
            sdata, variant, he="he", classes="class", nulls=variant == "default", seed=0
        )
        frame["method"] = frame["method"].replace("virtual", variant)
        print(
            f"{name}, {variant}: {seconds:.1f} s for {np.prod(sdata['he']['scale0'].image.shape[1:]) / 1e6:.0f} "
            f"megapixels"
        )
        frames.append(frame)
    result = pd.concat(frames, ignore_index=True)
    result.insert(0, "section", name)
    return result


def main() -> None:
    """Score, test, print, and keep the table and a figure where asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--figure", type=Path)
    arguments = parser.parse_args()
    sthist.settings.progress = False
    frame = pd.concat([score(name) for name in ("C4", "B4")], ignore_index=True)
    rows, tests = [], []
    for name, part in frame.groupby("section", sort=False):
        whole = scores.summarize(part.assign(**{"class": "all"}))
        by_class = scores.summarize(part)
        rows += pd.concat([whole, by_class]).assign(section=name).to_dict("records")
        for metric in ("mse", "psnr", "ssim", "nucleus_f1"):
            complete = part[np.isfinite(part[metric]) & (part["class"] != "other")]
            test = scores.region_tests(complete, metric, method="default")
            pairs = test.pairs[test.pairs["p"] < 0.05].to_dict("records")
            tests.append({"section": name, "metric": metric, "F": test.f, "p": test.p, "tukey_below_0.05": pairs})
    table = pd.DataFrame(rows)
    columns = ["section", "class", "method", "n", "ssim", "psnr", "mse", "nucleus_f1", "nucleus_shift_um"]
    print(table[columns].round(3).to_string(index=False))
    for test in tests:
        print(
            f"{test['section']} {test['metric']}: F={test['F']:.2f}, p={test['p']:.2g}, "
            f"{len(test['tukey_below_0.05'])} pairs differ"
        )
    if arguments.figure:
        shown = frame[(frame["section"] == "C4") & frame["method"].isin(["default", "mean colour"])]
        sthist.pl.image_metrics(shown, metrics=["ssim", "psnr", "nucleus_f1"], method="default", save=arguments.figure)
    if arguments.json:
        results = {
            "command": "PYTHONPATH=tests python studies/simulated_hrst.py",
            "machine": f"{platform.machine()}, 2 cores, Python {platform.python_version()}",
            "what": "her2st C4 and B4, whole sections, simulate_hrst seed 0; tiles of 110 µm around spots",
            "table": json.loads(table.round(4).to_json(orient="records")),
            "tests": json.loads(json.dumps(tests)),
        }
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
