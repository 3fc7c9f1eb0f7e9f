"""Plots of what a model is given."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest

import sthist


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def shown(ax) -> np.ndarray:
    return ax.get_images()[0].get_array()


class TestOverlay:
    def test_a_region_at_its_place(self, toy, tmp_path):
        ax = sthist.pl.overlay(toy, (100, 120, 180, 170), mpp=0.5, save=tmp_path / "x.png")
        assert shown(ax).shape == (100, 160, 3)
        assert ax.get_xlim() == (100, 180)
        assert ax.get_ylim() == (170, 120)
        assert (tmp_path / "x.png").stat().st_size > 1000
        spec = sthist.tiles.TileSpec.from_mpp(0.5, 160)
        whole = sthist.tiles.Overlay(toy, spec, palette="fixed", dot_um=1.0).read([[140, 145]])[0]
        np.testing.assert_array_equal(shown(ax), whole[30:130])

    @pytest.mark.parametrize("box", [(100, 120, 120, 131), (100, 120, 111, 140)])
    def test_odd_sizes_are_in_place(self, toy, box):
        ax = sthist.pl.overlay(toy, box, mpp=1.0, mode="none", limits=(0, 10000))
        x0, y0, x1, y1 = box
        bare = sthist.tiles.read_region(toy, "morphology_focus", box, 1.0)[..., 0].astype(float)
        seen = shown(ax)[..., 0].astype(float)
        assert seen.shape == bare.shape
        np.testing.assert_allclose(seen, bare / 10000 * 255, atol=0.51)

    def test_what_would_be_ignored_is_refused(self, toy):
        overlay = sthist.tiles.Overlay(toy, sthist.tiles.TileSpec(64, 128), mode="none")
        with pytest.raises(TypeError, match=r"genes would be ignored"):
            sthist.pl.overlay(toy, overlay=overlay, genes=["EPCAM"])
        with pytest.raises(ValueError, match=r"This region has 400000 pixels a side"):
            sthist.pl.overlay(toy, (0, 0, 400, 400), mpp=0.001)

    def test_by_default_a_tile_of_the_middle(self, toy):
        ax = sthist.pl.overlay(toy)
        assert shown(ax).shape == (512, 512, 3)
        assert ax.get_xlim() == pytest.approx((200 - 54.4, 200 + 54.4))

    def test_legend(self, toy):
        ax = sthist.pl.overlay(toy, genes=["EPCAM", "CD3D"])
        assert [text.get_text() for text in ax.get_legend().get_texts()] == ["CD3D", "EPCAM"]
        assert sthist.pl.overlay(toy).get_legend() is None
        assert sthist.pl.overlay(toy, genes=["EPCAM"], legend=False).get_legend() is None
        assert len(sthist.pl.overlay(toy, legend=True, mode="mono").get_legend().get_texts()) == 60

    def test_an_overlay_that_exists(self, toy):
        overlay = sthist.tiles.Overlay(toy, sthist.tiles.TileSpec(64, 128), mode="none")
        ax = sthist.pl.overlay(toy, (100, 100, 200, 150), overlay=overlay)
        assert shown(ax).shape == (100, 200, 3)
        assert (shown(ax)[..., 0] == shown(ax)[..., 1]).all()

    def test_axes_and_bad_names(self, toy):
        _, ax = plt.subplots()
        assert sthist.pl.overlay(toy, ax=ax) is ax
        with pytest.raises(KeyError, match=r"Gene 'EPCAN'"):
            sthist.pl.overlay(toy, genes=["EPCAN"])
        with pytest.raises(ValueError, match=r"mode is 'x'"):
            sthist.pl.overlay(toy, mode="x")


class TestTiles:
    @pytest.fixture
    def tiled(self, toy):
        sthist.pp.tiles(toy, size_um=48, px=96, sampling="fps", n_tiles=7)
        return toy

    def test_rows_of_overlay_and_he(self, tiled):
        axes = sthist.pl.tiles(tiled, n=5, ncols=3, color="source_id")
        assert len(axes) == 12
        assert [bool(ax.get_images()) for ax in axes] == [True] * 3 + [True] * 3 + [True, True, False] * 2
        chosen = np.sort(np.random.default_rng(0).permutation(7)[:5])
        centre = tiled["tiles_table"].obsm["spatial"][chosen[1]]
        he = sthist.tiles.TileReader(tiled, "he", sthist.tiles.TileSpec(48, 96), fill=255).read([centre])[0]
        np.testing.assert_array_equal(shown(axes[4]), he)
        assert axes[1].get_title() == tiled["tiles_table"].obs.source_id.iloc[chosen[1]]

    def test_what_is_shown(self, tiled):
        assert len(sthist.pl.tiles(tiled, show=["he"])) == 7
        assert len(sthist.pl.tiles(tiled, show=["morphology_focus", "overlay"], mode="mono")) == 14
        del tiled.points["transcripts"], tiled.images["he"]
        with pytest.raises(ValueError, match=r"There is nothing to show"):
            sthist.pl.tiles(tiled)
        with pytest.raises(KeyError, match=r"Found no H&E"):
            sthist.pl.tiles(tiled, show=["he"])

    def test_bad_names(self, tiled):
        with pytest.raises(KeyError, match=r"No table 'tile_table'.*Did you mean 'tiles_table'"):
            sthist.pl.tiles(tiled, "tile")
        with pytest.raises(KeyError, match=r"has no column 'type'; it has"):
            sthist.pl.tiles(tiled, color="type")
