"""Panels: what is shown, where, at which resolution."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest
from scipy.ndimage import uniform_filter

import sthist
from sthist.pl import _virtual_he as module


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


@pytest.fixture
def stained(toy):
    sthist.tl.virtual_he(toy)
    return toy


def test_panels_and_extent(stained):
    """All four, in µm, y down, each with a scale bar."""
    axes = sthist.pl.virtual_he(stained, within=(50, 100, 250, 200))
    assert [ax.get_title() for ax in axes] == ["nuclear stain", "transcripts", "virtual H&E", "real H&E"]
    for ax in axes:
        assert ax.get_xlim() == (50, 250)
        assert ax.get_ylim() == (200, 100)
        assert ax.images[0].get_extent() == [50, 250, 200, 100]
        assert [child for child in ax.get_children() if "AnchoredSizeBar" in type(child).__name__]


def test_what_there_is_is_shown(toy):
    """Without a virtual image, three panels; a panel asked for that cannot be shown is an error."""
    assert len(sthist.pl.virtual_he(toy)) == 3
    with pytest.raises(KeyError, match="No image 'virtual_he'"):
        sthist.pl.virtual_he(toy, panels=["virtual"])
    with pytest.raises(ValueError, match="There is no panel 'dapi'"):
        sthist.pl.virtual_he(toy, panels=["dapi"])
    del toy.points["transcripts"]
    with pytest.raises(KeyError, match="has no transcripts that is recognised"):
        sthist.pl.virtual_he(toy, panels=["transcripts"])


def test_axes_in_axes_out(stained):
    """The given ones are drawn on; a wrong number is said."""
    figure, given = plt.subplots(1, 2)
    axes = sthist.pl.virtual_he(stained, panels=["virtual", "real"], axes=given)
    assert list(axes) == list(given)
    assert axes[0].figure is figure
    with pytest.raises(ValueError, match="4 panels .* 2 are given"):
        sthist.pl.virtual_he(stained, axes=given)


def test_rows(stained):
    """Ncols panels in a row."""
    axes = sthist.pl.virtual_he(stained, ncols=2)
    assert axes[0].figure.axes == axes
    assert axes[0].get_subplotspec().get_gridspec().get_geometry() == (2, 2)


def test_limits(stained):
    """Values and quantiles; anything else is said."""
    (ax,) = sthist.pl.virtual_he(stained, panels=["nuclear"], vmin=100, vmax="p50", cmap="magma")
    image = ax.images[0]
    assert image.get_cmap().name == "magma"
    assert image.get_clim() == (100, np.median(np.asarray(image.get_array())))
    with pytest.raises(ValueError, match="A colour limit is a number or a quantile"):
        sthist.pl.virtual_he(stained, panels=["nuclear"], vmax="high")


def test_resolution_follows_the_figure(stained, monkeypatch):
    """A small panel reads few pixels, whatever the section's size; a saved one as many as it saves."""
    asked = []
    read = module.read_rgb
    monkeypatch.setattr(module, "read_rgb", lambda *args, **kwargs: asked.append(args[2]) or read(*args, **kwargs))
    _, small = plt.subplots(figsize=(1, 1), dpi=80)
    sthist.pl.virtual_he(stained, panels=["virtual"], axes=small)
    _, large = plt.subplots(figsize=(8, 8), dpi=100)
    sthist.pl.virtual_he(stained, panels=["virtual"], axes=large)
    assert asked[0] == pytest.approx(400 / 64, rel=0.1)
    assert asked[1] < 400 / 500


def test_genes(stained):
    """Only those asked for; an unknown one is named."""
    (every,) = sthist.pl.virtual_he(stained, panels=["transcripts"])
    (one,) = sthist.pl.virtual_he(stained, panels=["transcripts"], genes=["EPCAM"])
    lit = [(np.asarray(ax.images[0].get_array()) > 0).any(-1).mean() for ax in (every, one)]
    assert 0 < lit[1] < lit[0] / 5
    with pytest.raises(KeyError, match="no transcripts of gene 'EPCAN'"):
        sthist.pl.virtual_he(stained, genes=["EPCAN"])


def test_save(stained, tmp_path):
    """A file."""
    sthist.pl.virtual_he(stained, panels=["virtual"], save=tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_transcripts_can_be_seen_at_any_zoom(stained):
    """Around a molecule, they cover a part of the tissue that is neither black nor full, whatever is shown."""
    for side in (300, 100, 30):
        low = 150 - side / 2
        within = (low, low, low + side, low + side)
        (ax,) = sthist.pl.virtual_he(stained, panels=["transcripts"], within=within)
        pixels = np.asarray(ax.get_images()[0].get_array())
        x0, x1, y1, y0 = ax.get_images()[0].get_extent()
        x, y = (stained["transcripts"][name].compute().to_numpy() for name in "xy")
        columns = ((x - x0) / (x1 - x0) * pixels.shape[1]).astype(int)
        rows = ((y - y0) / (y1 - y0) * pixels.shape[0]).astype(int)
        inside = (x > x0) & (x < x1) & (y > y0) & (y < y1)
        around = uniform_filter((pixels.max(-1) > 0.3).astype(float), 15)
        assert 0.1 < around[rows[inside], columns[inside]].mean() < 0.9


def test_chosen_genes_have_a_legend_with_their_colours(stained):
    genes = ["EPCAM", "COL1A1"]
    (ax,) = sthist.pl.virtual_he(stained, panels=["transcripts"], genes=genes)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == sorted(genes)
    pixels = np.asarray(ax.get_images()[0].get_array())
    seen = pixels[pixels.max(-1) > 0]
    seen = seen / seen.max(-1, keepdims=True)
    for handle in ax.get_legend().legend_handles:
        colour = np.array(handle.get_color()[:3])
        assert (np.abs(seen - colour / colour.max()).max(-1) < 0.02).any()
