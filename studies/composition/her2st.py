"""Composition of cell types from H&E on the sections of her2st: models and embeddings beside what knows nothing.

Run ``PYTHONPATH=tests python studies/composition/her2st.py [--json FILE] [--models NAME ...] [--seeds 0 1 2]``. It
needs the her2st sections (``tests/realdata.py``): C3, C4 and C5, consecutive sections of one patient, and B4 of
another. What is predicted are the proportions that stereoscope estimated from the counts, and the authors published:
another model's estimates, not the truth.

Three tasks: each section of C from the two others (``within C``), B4 from C, and C from B4; for 8 major and 22 minor
types. Settings were chosen on the sections of C alone. The questions: does the network reach more than a ridge, do two
encoders together reach more than one, and do predicted types keep company as the estimated ones do?
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import realdata

import sthist
from sthist import models
from sthist.tiles import TileSpec

if TYPE_CHECKING:
    import pandas as pd
    from spatialdata import SpatialData

C = ("C3", "C4", "C5")
TASKS: dict[str, Any] = {
    "within C": "sample",
    "C to B4": dict.fromkeys(C, "train") | {"B4": "test"},
    "B4 to C": dict.fromkeys(C, "test") | {"B4": "train"},
}
KINDS = {"major": "stereoscope_major", "minor": "stereoscope_minor"}
SPECS = {112: TileSpec(112.0, 224), 224: TileSpec(224.0, 224), 448: TileSpec(448.0, 448)}
EARLY = {112: TileSpec(112.0, 224), 224: TileSpec(224.0, 224), 448: TileSpec(448.0, 224)}

EMBEDDINGS = {
    "morphology, 112 µm": ["X_morphology_112"],
    "morphology, 224 µm": ["X_morphology_224"],
    "efficientnet-lite0, 112 µm": ["X_last_112"],
    "morphology, 224 µm + efficientnet-lite0, 112 µm": ["X_morphology_224", "X_last_112"],
    "morphology and early layers, three sizes": [
        f"X_{kind}_{size}" for kind in ("morphology", "early") for size in SPECS
    ],
}
ABLATION = tuple(EMBEDDINGS)
ONE = ("morphology, 224 µm",)


@dataclass(frozen=True)
class Row:
    """A model of the table, and the embeddings that it is trained on; none for a model of tiles."""

    config: Any
    embeddings: tuple[str, ...] = ()
    random: bool = True


ROWS = {
    "ridge, as published references": Row(models.RidgeConfig(), ABLATION, random=False),
    "ridge": Row(models.RidgeConfig(standardize="sample"), ABLATION, random=False),
    "mlp": Row(models.CompositionMLPConfig(standardize="sample"), ABLATION),
    "mlp, 5 members": Row(models.CompositionMLPConfig(standardize="sample", members=5), ONE),
    "hist2cell, frozen": Row(models.Hist2CellConfig(backbone="efficientnet-lite0", frozen=True)),
}


def section(name: str) -> SpatialData:
    """A section with all embeddings."""
    sdata = realdata.her2st(name)
    for size in SPECS:
        sthist.pp.embed(sdata, "morphology", spec=SPECS[size], key_added=f"X_morphology_{size}")
        sthist.pp.embed(sdata, "efficientnet-lite0-early", spec=EARLY[size], key_added=f"X_early_{size}")
    sthist.pp.embed(sdata, "efficientnet-lite0", spec=SPECS[112], key_added="X_last_112")
    return sdata


def rows_of(name: str, task: str, kind: str, slides: dict[str, SpatialData], seeds: list[int]) -> pd.DataFrame:
    """What a model reaches in a task."""
    row = ROWS[name]
    data = {each: slides[each] for each in C} if task == "within C" else slides
    frame = sthist.benchmark.composition(
        data,
        {name: row.config},
        key=KINDS[kind],
        embedding={each: EMBEDDINGS[each] for each in row.embeddings} or None,
        split=TASKS[task],
        seeds=seeds if row.random else seeds[:1],
        progress=False,
    )
    return frame.assign(task=task, types=kind)


def summary(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Means over sections that test, by model, embedding, method and seed; and of each type."""
    slides = frame[(frame["slide"] != "all") | (frame["task"] != "B4 to C")]
    keys = ["model", "embedding", "method", "task", "types", "seed", "initialization"]
    numbers = ["pearson", "l1", "coloc_cosine", "coloc_pearson", "seconds", "predict_seconds"]
    rows = []
    for where, part in slides.groupby(keys, sort=False, dropna=False):
        means = part[part["type"] == "mean"][numbers].mean().round(4).to_dict()
        types = part[part["type"] != "mean"].groupby("type", sort=False)["pearson"].mean().round(3).to_dict()
        peak = float(part["peak_gb"].max())
        rows.append(dict(zip(keys, where, strict=True)) | means | {"peak_gb": round(peak, 2), "pearson_by_type": types})
    return rows


def saved(path: Path | None, made: list[dict[str, Any]]) -> None:
    """Keep rows, in place of those of the same model, embedding, method, task, types and seed."""
    if path is None:
        return
    key = ("model", "embedding", "method", "task", "types", "seed")
    known = json.loads(path.read_text())["rows"] if path.exists() else []
    rows = {tuple(row[name] for name in key): row for row in [*known, *made]}
    facts = {
        "command": "PYTHONPATH=tests python studies/composition/her2st.py",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
    }
    text = json.dumps({**facts, "rows": list(rows.values())}, indent=1, default=lambda value: value.item())
    path.write_text(text.replace("NaN", "null") + "\n")


SHOWN = ("model", "embedding", "method", "task", "types", "seed", "pearson", "l1", "coloc_pearson", "seconds")


def main() -> None:
    """The table, printed and saved."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="file that rows are put into; others there are kept")
    parser.add_argument("--models", nargs="*", default=list(ROWS), help="names of rows")
    parser.add_argument("--kinds", nargs="*", default=list(KINDS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    sthist.settings.progress, sthist.settings.verbosity = False, "error"
    slides = {name: section(name) for name in (*C, "B4")}
    for name in options.models:
        for kind in options.kinds:
            for task in TASKS:
                made = summary(rows_of(name, task, kind, slides, options.seeds))
                for row in made:
                    print(*(row[key] for key in SHOWN), flush=True)
                saved(options.json, made)


if __name__ == "__main__":
    main()
