"""Verbs on an H&E whose pixels are not three colours of 8 bits."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest
from spatialdata.models import Image2DModel
from spatialdata.transformations import get_transformation

import sthist
from sthist.tiles import TileReader, TileSpec

OTHER = {
    "float32": lambda he: (he / 255).astype(np.float32),
    "float64": lambda he: he / 255,
    "uint16": lambda he: he.astype(np.uint16) * 257,
    "1 channels of uint8": lambda he: he[:1],
    "4 channels of uint8": lambda he: np.concatenate([he, he[:1]]),
}
VERBS = {
    "pp.tissue": lambda sdata: sthist.pp.tissue(sdata),
    "pp.tissue, named": lambda sdata: sthist.pp.tissue(sdata, image="he"),
    "pp.stain_normalize": lambda sdata: sthist.pp.stain_normalize(sdata),
    "stain_reference": lambda sdata: sthist.tl.virtual_he(sdata, stain_reference=(sdata, "he")),
    "pp.tma": lambda sdata: sthist.pp.tma(sdata, image="he"),
    "pp.align": lambda sdata: sthist.pp.align(sdata, "he", matrix="auto"),
    "pp.embed": lambda sdata: sthist.pp.embed(sdata, regions="cell_boundaries", spec=TileSpec(size_um=32, px=32)),
}


@pytest.fixture(scope="module")
def sample():
    return sthist.datasets.toy(size_um=200)


def with_he(sample, change):
    """The sample with other pixels in place of its H&E's."""
    import spatialdata as sd

    he = sample["he"]
    other = Image2DModel.parse(
        change(np.asarray(he.values)), dims=("c", "y", "x"), transformations=get_transformation(he, get_all=True)
    )
    images = {"he": other, "morphology_focus": sample["morphology_focus"]}
    sdata = sd.SpatialData(images=images, shapes=dict(sample.shapes), points=dict(sample.points))
    sdata.attrs = {"sthist": {"roles": dict(sample.attrs["sthist"]["roles"])}}
    return sdata


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("kind", OTHER)
def test_pixels_of_another_type_are_refused_by_name(sample, kind, verb):
    sdata = with_he(sample, OTHER[kind])
    with pytest.raises(ValueError, match=kind):
        VERBS[verb](sdata)


@pytest.mark.parametrize("made", [lambda t: t / 255, lambda t: t.astype(np.uint16), lambda t: t[:, ::2]])
def test_what_a_normalizer_returns_is_checked(sample, made):
    reader = TileReader(sample, "he", TileSpec(size_um=32, px=64), normalizer=made)
    with pytest.raises(ValueError, match=r"The normalizer returned .*uint8, 0 to 255"):
        reader.read([[100.0, 100.0]])


@pytest.mark.parametrize("kind", ["float32", "uint16", "0 to 255"])
def test_a_plot_shows_their_colours(sample, kind):
    """As those of 8 bits, within a level."""
    change = OTHER.get(kind, lambda he: he.astype(np.float32))
    shown = []
    for sdata in (sample, with_he(sample, change)):
        (ax,) = sthist.pl.virtual_he(sdata, panels=["real"])
        shown.append(np.asarray(ax.get_images()[0].get_array()))
        plt.close("all")
    assert shown[1].dtype == np.uint8
    assert np.abs(shown[0].astype(int) - shown[1]).max() <= 1
