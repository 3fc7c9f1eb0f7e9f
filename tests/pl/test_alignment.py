"""How an alignment is shown."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest

import sthist


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def test_squares_take_turns(toy):
    """Half of the checkerboard is the H&E itself, the other half has no eosin."""
    axes = sthist.pl.alignment(toy, within=(150, 150, 250, 250), squares=4)
    board = axes[0].get_images()[0].get_array().astype(int)
    whole = axes[1].get_images()[0].get_array().astype(int)
    same = (board == whole).all(-1)
    side = board.shape[0] // 4
    middles = same[side // 2 :: side, side // 2 :: side]
    assert same[: side - 1, : side - 1].all()
    assert not same[: side - 1, side + 1 : 2 * side - 1].all()
    assert middles.shape[0] >= 4


def test_contours_follow_the_nuclei(toy):
    """On a small region outlines lie on the border of the H&E's nuclei; misaligned, they do not."""

    def darkness_within(ax):
        vertices = np.concatenate([path.vertices for path in ax.collections[0].get_paths()])
        pixels = ax.get_images()[0].get_array()
        x0, x1, y1, y0 = ax.get_images()[0].get_extent()
        columns = ((vertices[:, 0] - x0) / (x1 - x0) * pixels.shape[1]).astype(int).clip(0, pixels.shape[1] - 1)
        rows = ((vertices[:, 1] - y0) / (y1 - y0) * pixels.shape[0]).astype(int).clip(0, pixels.shape[0] - 1)
        return 255 - pixels[rows, columns, 0].mean()

    aligned = darkness_within(sthist.pl.alignment(toy, within=(150, 150, 250, 250), panels=["contours"])[0])
    shifted = sthist.scale.matrix_to(toy["he"]).copy()
    shifted[:2, 2] += 9.0
    sthist.pp.align(toy, "he", to="um", matrix=shifted)
    off = darkness_within(sthist.pl.alignment(toy, within=(150, 150, 250, 250), panels=["contours"])[0])
    assert aligned > off + 15


def test_a_large_region_and_axes(tmp_path):
    sdata = sthist.datasets.toy(size_um=700)
    _, axes = plt.subplots(1, 2)
    drawn = sthist.pl.alignment(sdata, axes=axes, save=tmp_path / "x.png")
    assert list(drawn) == list(axes)
    assert drawn[1].collections
    assert (tmp_path / "x.png").exists()


def test_bad_input(toy):
    with pytest.raises(ValueError, match=r"There is no panel 'blend'; there are"):
        sthist.pl.alignment(toy, panels=["blend"])
    with pytest.raises(KeyError, match=r"No image 'h_e'"):
        sthist.pl.alignment(toy, "h_e")
