"""Sections that learned virtual H&E is trained and tested on: real H&E, with stain and transcripts simulated on it.

What is held out while choices are made: a section of a patient whose others train (C5, an image of BreCaHAD), a whole
patient (B4, case D), and a whole tissue (the skin of CMU-1). Every section is there under two simulators, since each
favours what was trained on it: transcripts by cell type, and wherever there is eosin.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import numpy as np
import realdata
import spatialdata as sd
from hrst import MPP, section

import sthist

if TYPE_CHECKING:
    from pathlib import Path

SIMULATORS = ("cells", "eosin")
TRAINED_ON = (*SIMULATORS, "mixed")
BRECAHAD_MPP, CMU_MPP = 0.25, 0.499

TRAINED = {
    "her2st": ["C3", "C4"],
    "brecahad": [f"breast_{number}" for number in (10011, 10013, 10016, 10019, 10021, 10026, 10029, 10032)],
}
HELD_OUT = {
    "section": ["C5", "breast_10018"],
    "patient": ["B4", "breast_10038"],
    "tissue": ["cmu"],
}
"""Cases A, B and C of BreCaHAD train, as far as cases can be told by their looks; case D does not."""

N_TILES = {"her2st": 320, "brecahad": 80}


def image(name: str) -> tuple[np.ndarray, float]:
    """Pixels of an H&E, (h, w, 3), and its µm per pixel."""
    if name.startswith("breast_"):
        path = realdata.folder("brecahad_tumor_nuclei") / "images" / f"{name}.jpg"
        return realdata.picture(path).transpose(1, 2, 0), BRECAHAD_MPP
    if name == "cmu":
        path = realdata.folder("he_svs") / "CMU-1-Small-Region.svs"
        return realdata.picture(path).transpose(1, 2, 0)[..., :3], CMU_MPP
    return section(name), MPP


def simulated(folder: Path, name: str, simulator: str) -> sd.SpatialData:
    """A section under a simulator; what was simulated once stays in the folder."""
    path = folder / f"{name}_{simulator}.zarr"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        he, mpp = image(name)
        made = sthist.datasets.simulate_hrst(np.ascontiguousarray(he), mpp, molecules=simulator, seed=0)
        partial = folder / f"_{name}_{simulator}.zarr"
        shutil.rmtree(partial, ignore_errors=True)
        made.write(partial)
        partial.rename(path)
    return sd.read_zarr(path)
