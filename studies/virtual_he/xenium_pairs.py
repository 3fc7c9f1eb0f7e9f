"""ST2HE as published, on pairs of Xenium and H&E of one's own: five tissues together, each alone, and not told which.

Run ``python studies/virtual_he/xenium_pairs.py FOLDER SAMPLES.csv [--training JSON] [--backbone FOLDER] [--json FILE]``
on a machine with a GPU. SAMPLES.csv has the columns ``sample``, ``tissue``, ``path`` (the folder of a Xenium run),
``he`` and ``he_alignment`` (an H&E of the same section, and the matrix of Xenium Explorer). The paper took the five
public FFPE sections of breast, lung, pancreas, brain and liver, 2,000 tiles each of 108.8 µm at 0.2125 µm/px, chosen by
farthest point sampling. Trainings stay in FOLDER and go on where they were stopped. SD-Turbo, its VGG-16 and its CLIP
are loaded by name, or from the files that ``--training`` names.

It prints scores of held-out squares of every section: MSE, PSNR, SSIM and FID of each variant beside the built-in
model, the mean colour, and what the model makes of another tile. In the paper, on its breast section, which was trained
on: 928, 18.6 dB, .59 and 83.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

import sthist
from sthist.tiles import TileSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from spatialdata import SpatialData

SPEC, N_TILES = TileSpec(size_um=108.8, px=512), 2000


def read(table: pd.DataFrame) -> dict[str, SpatialData]:
    """The sections of a table, by name."""
    return {
        row.sample: sthist.io.xenium(row.path, he=row.he, he_alignment=row.he_alignment)
        for row in table.itertuples(index=False)
    }


def compared(
    samples: Mapping[str, SpatialData],
    tissue: Mapping[str, str],
    folder: Path,
    *,
    model: Any = "sd-turbo",
    spec: TileSpec = SPEC,
    n_tiles: int = N_TILES,
    n_scored: int = 500,
    untold: str | None = None,
    training: Mapping[str, Any] | None = None,
) -> pd.DataFrame:
    """Scores of held-out squares by a model of all tissues, by one for each, and by one that is not told.

    ``untold`` is the prompt of the last; by default the paper's.
    """
    for sdata in samples.values():
        sthist.pp.tissue(sdata)
        how = {"sampling": "fps", "n_tiles": n_tiles, "seed": 0, "overwrite": True}
        sthist.pp.tiles(sdata, size_um=spec.size_um, px=spec.px, **how)
    variants = {
        "all tissues, told which": {},
        "a model per tissue": {"per_tissue": True},
        "all tissues, not told": {"tissue": None, "prompts": untold},
    }
    return sthist.benchmark.ablate_virtual_he(
        samples,
        variants,
        model=model,
        seeds=(0,),
        split="block",
        metrics=("mse", "psnr", "ssim", "fid"),
        n_tiles=n_scored,
        folder=folder,
        training={"tissue": dict(tissue), "resume": True, **(training or {})},
    )


def main() -> None:
    """Train what is not trained yet, and print the scores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("samples", type=Path)
    parser.add_argument("--backbone", help="SD-Turbo on disk")
    parser.add_argument("--training", type=json.loads, default={}, help="fields of TranslationTraining, as JSON")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    table = pd.read_csv(given.samples)
    training = given.training | ({} if given.backbone is None else {"backbone": given.backbone})
    tissue = dict(zip(table["sample"], table["tissue"], strict=True))
    frame = compared(read(table), tissue, given.folder, training=training)
    summary = sthist.benchmark.over_seeds(frame)
    print(summary.round(3).to_string(index=False))
    print(pd.DataFrame(frame.attrs["sets"]).round(1).to_string(index=False))
    if given.json is not None:
        rows = {"scores": summary.to_dict("records"), "sets": frame.attrs["sets"]}
        given.json.write_text(json.dumps(rows, indent=1, default=str) + "\n")


if __name__ == "__main__":
    main()
