"""Whether the tiles show that an image was made of."""

from __future__ import annotations

import numpy as np
import pytest
from spatialdata.models import Image2DModel
from spatialdata.transformations import Scale

import sthist
from sthist.benchmark._virtual_he import seam_of
from sthist.metrics import image as scores


def _stitched(sdata, name, px, overlap, step, side=200):
    """Smooth noise to which every other tile adds a step, with the record of its tiles."""
    from scipy.ndimage import gaussian_filter

    stride = px - round(px * overlap)
    noise = gaussian_filter(np.random.default_rng(0).normal(0, 60, (side, side + 40)), 1.5) + 120
    rows, columns = np.indices(noise.shape) // stride
    pixels = np.clip(noise + step * ((rows + columns) % 2), 0, 255).astype(np.uint8)
    sdata.images[name] = Image2DModel.parse(
        np.repeat(pixels[None], 3, 0), dims=("c", "y", "x"), transformations={"um": Scale([0.5, 0.5], ("x", "y"))}
    )
    made = {"call": "tl.virtual_he", "model": "st2he", "overlap": overlap, "tile_px": px}
    sdata.attrs.setdefault("sthist", {}).setdefault("results", {})[name] = made
    return pixels


@pytest.mark.parametrize(("px", "overlap"), [(48, 0.0), (64, 0.25)])
def test_borders_that_show_are_found(toy, px, overlap):
    """A step at each border scores; without it, borders are like any lines."""
    plain = _stitched(toy, "plain", px, overlap, 0)
    _stitched(toy, "stepped", px, overlap, 20)
    none, seen = seam_of(toy, "plain"), seam_of(toy, "stepped")
    assert none["ratio"] == pytest.approx(1, abs=0.25)
    assert seen["ratio"] > 2
    assert seen["interior"] == pytest.approx(none["interior"], abs=0.1)
    assert none["stride_px"] == 48
    lines = [list(range(48, side, 48)) for side in plain.shape]
    lines = [[line for line in each if 8 < line < side - 8] for each, side in zip(lines, plain.shape, strict=True)]
    assert none["seam"] == pytest.approx(scores.seam_score(plain, lines[1], lines[0]))


def test_a_pattern_inside_the_tiles_is_found(toy):
    """A ring in each tile leaves its borders as they are; that it comes again gives it away."""
    pixels = _stitched(toy, "plain", 40, 0.0, 0, side=400).astype(int)
    rows, columns = np.indices(pixels.shape) % 40
    ring = np.minimum.reduce([rows, columns, 39 - rows, 39 - columns])
    ringed = np.clip(pixels + 12 * (np.abs(ring - 12) <= 2), 0, 255).astype(np.uint8)
    toy.images["ringed"] = Image2DModel.parse(
        np.repeat(ringed[None], 3, 0), dims=("c", "y", "x"), transformations={"um": Scale([0.5, 0.5], ("x", "y"))}
    )
    toy.attrs["sthist"]["results"]["ringed"] = toy.attrs["sthist"]["results"]["plain"]
    assert seam_of(toy, "plain")["repeat"] == pytest.approx(1, abs=0.5)
    assert seam_of(toy, "ringed")["repeat"] > 4
    assert seam_of(toy, "ringed")["ratio"] == pytest.approx(1, abs=0.3)


def test_of_a_part_of_many_segments(toy, monkeypatch):
    """What is drawn at random is near the whole."""
    _stitched(toy, "stepped", 20, 0.0, 20)
    whole = seam_of(toy, "stepped")["seam"]
    monkeypatch.setattr("sthist.benchmark._virtual_he.MAX_SEGMENTS", 60)
    drawn = seam_of(toy, "stepped", seed=1)["seam"]
    assert drawn != whole
    assert drawn == pytest.approx(whole, rel=0.3)


def test_beer_lambert_has_no_seams(toy):
    """Its pixels do not know of their tile."""
    sthist.tl.virtual_he(toy)
    found = seam_of(toy, "virtual_he")
    assert found["stride_px"] == 512
    assert found["ratio"] == pytest.approx(1, abs=0.3)


def test_reasons(toy):
    assert "no record" in seam_of(toy, "he")["reason"]
    _stitched(toy, "one", 256, 0.0, 0)
    assert "not larger than one" in seam_of(toy, "one")["reason"]
    toy.attrs["sthist"]["results"]["one"]["tile_px"] = 60
    assert seam_of(toy, "one")["stride_px"] == 60
