"""Virtual H&E of every real set with a nuclear stain, with no other argument."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from realdata import HIGH_RES

import sthist


@pytest.fixture(scope="module")
def stained(tmp_path_factory):
    """Each real set with its virtual H&E, computed once."""

    @cache
    def run(name):
        sdata = HIGH_RES[name]()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sthist.settings, "scratch_dir", tmp_path_factory.mktemp("scratch"))
            sthist.tl.virtual_he(sdata)
        return sdata

    return run


@pytest.mark.parametrize("name", HIGH_RES)
def test_one_call(name, stained):
    """Nuclei are darker than what is between them, tissue is coloured, and the image lies on the stain."""
    sdata = stained(name)
    facts = sdata.attrs["sthist"]["results"]["virtual_he"]["section"]
    key, channel = facts["nuclear_stain"]["images"][0], facts["nuclear_stain"]["channels"][0]
    x0, y0, x1, y1 = sthist.tiles.TileReader(
        sdata, key, sthist.tiles.TileSpec.from_mpp(1, 1), allow_upsampling=True
    ).extent_um
    mpp = max(0.4, (x1 - x0) / 2000)
    box = (x0, y0, x1, y1)
    stain = sthist.tiles.read_region(sdata, key, box, mpp, channels=[channel])[..., 0].astype(float)
    virtual = sthist.tiles.read_region(sdata, "virtual_he", box, mpp, fill=255).astype(float)
    assert virtual.shape == (*stain.shape, 3)
    tissue = (virtual < 255).any(-1)
    low, high = facts["stain_levels"][channel]
    nuclei = tissue & (stain > (low + high) / 2)
    between = tissue & (stain <= low)
    assert virtual[nuclei].mean() < virtual[between].mean() - 50
    red, green, blue = virtual[nuclei].mean(0)
    assert blue > green
    assert (virtual[stain == 0] == 255).mean() > 0.9 or (stain == 0).mean() < 0.5  # white where there is nothing


def test_what_eosin_comes_from(stained):
    """Poly-T and molecules; cells where molecules are few; molecules alone."""
    sources = {}
    for name in ("merscope_mouse_brain", "xenium_breast_rep1", "xenium_ileum_tiny"):
        sources[name] = stained(name).attrs["sthist"]["results"]["virtual_he"]["section"]["eosin_from"]
    assert sources["merscope_mouse_brain"] == ["cytoplasm channels", "80006 transcripts"]
    assert sources["xenium_breast_rep1"][0].startswith("counts of cells")
    assert sources["xenium_ileum_tiny"] == ["531 transcripts"]


def test_cells_of_the_breast_crop_are_where_they_are_painted(stained):
    """Virtual nuclei lie in the vendor's outlines: darker inside than in outlines shifted by 30 µm, the null."""
    sdata = stained("xenium_breast_rep1")
    red = 255.0 - sthist.tiles.read_region(sdata, "virtual_he", (646.85, 519.35, 1232.5, 982.6), 0.85, fill=255)[..., 0]
    centres = sdata["table"].obsm["spatial"] - [646.85, 519.35]

    def darkness(shift):
        columns, rows = ((centres + shift) / 0.85).astype(int).T
        inside = (rows >= 0) & (columns >= 0) & (rows < red.shape[0]) & (columns < red.shape[1])
        return np.mean(red[rows[inside], columns[inside]])

    assert darkness(0) > darkness(np.array([30, 0])) + 10
