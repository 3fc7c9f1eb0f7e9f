"""Transcripts drawn on the nuclear stain of the real sets."""

from __future__ import annotations

import numpy as np
import pytest
from realdata import HIGH_RES

import sthist
from sthist import _sample
from sthist.tiles import Overlay, TileSpec


@pytest.fixture(scope="module")
def merscope():
    return HIGH_RES["merscope_mouse_brain"]()


@pytest.mark.parametrize("name", sorted(HIGH_RES))
def test_dots_lie_where_the_transcripts_are(name, request):
    sdata = request.getfixturevalue("merscope") if name == "merscope_mouse_brain" else HIGH_RES[name]()
    keys, _ = _sample.find_nuclear(sdata)
    spec = TileSpec.from_mpp(max(sthist.scale.resolve_mpp(sdata, keys[0])), 256)
    overlay = Overlay(sdata, spec, dot_um=1.5 * spec.mpp)
    points = sdata["transcripts"] if "transcripts" in sdata.points else next(iter(sdata.points.values()))
    to_um = sthist.scale.matrix_to(points)
    places = points[["x", "y"]].compute().to_numpy() @ to_um[:2, :2].T + to_um[:2, 2]
    counts, columns, rows = np.histogram2d(*places.T, bins=20)
    column, row = np.unravel_index(counts.argmax(), counts.shape)
    centre = np.array([columns[column : column + 2].mean(), rows[row : row + 2].mean()])
    x0, y0, x1, y1 = sthist.tiles.open_image(sdata, keys).extent_um
    assert (x0 <= centre[0] <= x1) & (y0 <= centre[1] <= y1)
    tile, bare = overlay.read([centre])[0], overlay.restyled(mode="none").read([centre])[0]
    changed = (tile != bare).any(-1)
    assert changed[96:160, 96:160].any()
    assert changed.mean() < 0.9
    panel = {str(feature).lower() for feature in overlay.genes}
    assert not any(feature.startswith(_sample.CONTROL_PREFIXES) for feature in panel)


def test_a_plane_of_merscope(merscope):
    spec = TileSpec.from_mpp(max(sthist.scale.resolve_mpp(merscope, "mosaic")), 256)
    planes = merscope["transcripts"]["z"].compute().round().astype(int)
    whole = Overlay(merscope, spec)
    first = Overlay(merscope, spec, z=(0, 0, 1.0))
    assert 0 < len(first.index) < len(whole.index)
    assert len(first.index) <= (planes == 0).sum()
