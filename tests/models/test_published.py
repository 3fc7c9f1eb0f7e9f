"""Models that come with the package."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hrst import MPP, SIDE, crop

import sthist
from sthist.tiles import read_region
from sthist.training.model import PUBLISHED

FOLDER = Path(sthist.__file__).parent / "systems" / "virtual_he" / "published"


@pytest.mark.parametrize("name", PUBLISHED)
def test_is_small_says_what_it_is_and_runs(name, toy):
    folder = FOLDER / name
    assert sum(path.stat().st_size for path in folder.iterdir()) < 15e6
    assert "Licence" in (folder / "README.md").read_text()
    assert json.loads((folder / "config.json").read_text())["config"]["training"]["data"]["n_tiles"]["train"] > 100
    sthist.tl.virtual_he(toy, model=name, within=(0, 0, 176, 176))
    assert toy["virtual_he"].shape == (3, 352, 352)  # 0.5 µm/px, as the stain
    assert toy["virtual_he"].to_numpy().std() > 5


@pytest.mark.parametrize(
    ("name", "corner", "least"),
    [
        pytest.param("C5", (4000, 5600), (0.0, -0.05), id="same patient", marks=pytest.mark.slow),
        pytest.param("B4", None, (-1.0, -0.03), id="another patient", marks=pytest.mark.slow),
    ],
)
def test_beside_the_built_in_model_on_real_histology(name, corner, least):
    """Crops of 350 µm, which say little of how a section is stained: in the colours of C4 it is as good, and no better.

    PSNR and SSIM, on simulated data; ``studies/virtual_he/table.py`` has whole sections.
    """
    side = SIDE // 2
    real = crop(name, corner)[:side, :side]
    sdata = sthist.datasets.simulate_hrst(real, MPP, seed=1)
    sthist.tl.virtual_he(sdata, model="st2he-small", stain_reference=crop("C4"), progress=False)
    sthist.tl.virtual_he(sdata, stain_reference=crop("C4"), key_added="built_in", progress=False)
    box = (0, 0, side * MPP, side * MPP)
    scores = {}
    for key in ("virtual_he", "built_in"):
        made = read_region(sdata, key, box, MPP, fill=255)[:side, :side]
        scores[key] = [
            float(np.mean(metric(made, real))) for metric in (sthist.metrics.image.psnr, sthist.metrics.image.ssim)
        ]
    print(name, scores)
    assert scores["virtual_he"][0] > scores["built_in"][0] + least[0]
    assert scores["virtual_he"][1] > scores["built_in"][1] + least[1]
