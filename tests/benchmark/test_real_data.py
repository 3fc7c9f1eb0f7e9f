"""Scores of the virtual H&E of real sections that have no H&E of their own."""

from __future__ import annotations

import pytest
from realdata import HIGH_RES

import sthist
from sthist.benchmark import nucleus_preservation
from sthist.benchmark._virtual_he import seam_of


@pytest.mark.parametrize("name", [pytest.param("merscope_mouse_brain", marks=pytest.mark.slow), "xenium_breast_rep1"])
def test_nuclei_and_seams(name):
    """Nuclei of the stain are found again, those of other tiles are not.

    Tiles of a model that sees pixels alone do not show.
    """
    sdata = HIGH_RES[name]()
    sthist.tl.virtual_he(sdata)
    sthist.pp.tissue(sdata)
    sthist.pp.tiles(sdata, size_um=81.6, px=96)  # 0.85 µm/px, that of the coarser stain
    frame = nucleus_preservation(sdata, reference="stain", min_iou=0.3)
    f1 = frame.groupby("method")["nucleus_f1"].mean()
    assert f1["virtual"] > 0.7
    assert f1["shuffled"] < 0.2
    assert frame[frame.method == "virtual"].nucleus_shift_um.median() < 0.85
    assert seam_of(sdata, "virtual_he")["ratio"] == pytest.approx(1, abs=0.15)
