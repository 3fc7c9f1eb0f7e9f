"""Stain and densities of molecules as channels: what must not change them, and what must."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.ndimage import gaussian_filter

import sthist
from sthist.tiles import DensityTiles, TileSpec

SPEC, SIDE = TileSpec(32, 64), 200
GROUPS = {"left": ["A", "B"], "right": ["C"], "not in the panel": ["Z"]}


def light(seed=0):
    """A background with bright blots, 0 to about 1."""
    rng = np.random.default_rng(seed)
    seen = np.zeros((2 * SIDE, 2 * SIDE))
    seen[tuple(rng.integers(0, 2 * SIDE, (2, 600)))] = rng.uniform(40, 120, 600)
    return gaussian_filter(seen, 4) + 0.02


def molecules(n=40_000, seed=0, genes=("A", "B", "C", "D")):
    """Genes A and B in the left half, C in the right one, D everywhere."""
    rng = np.random.default_rng(seed)
    gene = rng.choice(list(genes), n)
    x, y = rng.uniform(0, SIDE, (2, n))
    x = np.where(np.isin(gene, ["A", "B"]), x / 2, np.where(gene == "C", SIDE / 2 + x / 2, x))
    return pd.DataFrame({"x_um": x, "y_um": y, "gene": gene})


def section(seen=None, points=None):
    levels = np.round(np.clip(light() if seen is None else seen, 0, 3) * 12_000).astype(np.uint16)
    return sthist.io.assemble({"dapi": levels}, mpp=0.5, points=points)


@pytest.fixture(scope="module")
def sdata():
    return section(points=molecules())


@pytest.fixture(scope="module")
def reader(sdata):
    return DensityTiles(sdata, SPEC, groups=GROUPS)


def test_channels_are_the_stain_all_molecules_the_scale_and_the_groups(reader):
    tiles = reader.read([[50, 100], [150, 100]])
    assert tiles.shape == (2, 64, 64, 7)
    assert tiles.dtype == np.uint8
    assert reader.channels == ("stain", "molecules", "scale", "enrichment", *GROUPS)
    assert reader.shown == {"left": 2, "right": 1, "not in the panel": 0}
    left, right = tiles.reshape(2, -1, 7).mean(1)
    assert left[4] > 40 > right[4] == 0
    assert right[5] > 40 > left[5] == 0
    assert (tiles[..., 6] == 0).all()


def test_a_density_is_its_ratio_to_what_is_typical_on_a_logarithmic_scale():
    """Molecules are even over half of the section: there they are as dense as is typical, however large the rest is."""
    half = molecules(genes=("A",))
    density = DensityTiles(section(points=half), SPEC, groups={"left": ["A"]}).read([[50, 100]])[0]
    for channel in (1, 4):
        assert density[..., channel].mean() / 255 * 1.5 == pytest.approx(
            np.log(2) / np.log(9), abs=0.06
        )  # its border counts, too
    denser = pd.concat([half, molecules(120_000, 1, ("A",)).assign(x_um=lambda points: points.x_um + SIDE / 2)])
    everywhere = DensityTiles(section(points=denser), SPEC)  # a quarter of the molecules are in the left half
    left, right = (everywhere.read([[x, 100]])[0, ..., 1].mean() / 255 * 1.5 for x in (50, 150))
    assert right == pytest.approx(np.log(2) / np.log(9), abs=0.06)
    assert left == pytest.approx(np.log(4 / 3) / np.log(9), abs=0.06)


def test_it_is_told_whether_molecules_lie_on_nuclei():
    """The light falls from nucleus to nucleus; molecules are drawn as often as it, as often as 1, or not at all."""
    seen, rng = light(), np.random.default_rng(0)
    found = {}
    for name, chance in {"even": np.ones_like(seen), "nuclei": seen, "between": (seen < np.median(seen)) * 1.0}.items():
        pixel = rng.choice(seen.size, 40_000, p=chance.ravel() / chance.sum())
        rows, columns = np.unravel_index(pixel, seen.shape)
        points = pd.DataFrame({"x_um": columns / 2 + 0.25, "y_um": rows / 2 + 0.25, "gene": "A"})
        found[name] = DensityTiles(section(points=points), SPEC, density_um=1)
    enrichment = {name: each.enrichment for name, each in found.items()}
    assert enrichment["between"] < 0.9 < enrichment["even"] < 1.1 < 1.3 < enrichment["nuclei"]
    levels = {name: each.read([[100, 100]])[0, 0, 0, 3] for name, each in found.items()}
    assert levels["even"] == pytest.approx(255 / 3, abs=6)  # a third of the way from a half to four times
    assert levels["between"] < levels["even"] < levels["nuclei"]
    assert found["nuclei"].read([[100, 100]], molecules=False)[0, 0, 0, 3] == 0


@pytest.mark.parametrize("shift", [(8, 0), (0, 8), (-3, 5)])
def test_tiles_continue_each_other(reader, shift):
    here = reader.read([[100, 100]])[0].astype(int)
    there = reader.read([[100 + shift[0], 100 + shift[1]]])[0].astype(int)
    x, y = (2 * each for each in shift)
    rows, columns = slice(max(0, y), 64 + min(0, y)), slice(max(0, x), 64 + min(0, x))
    moved = slice(max(0, -y), 64 + min(0, -y)), slice(max(0, -x), 64 + min(0, -x))
    assert np.abs(here[rows, columns] - there[moved]).max() <= 1


def test_another_scale_shows_the_same_and_says_which_it_is(reader):
    fine, coarse = reader.read([[100, 100]])[0], reader.at(TileSpec(64, 64)).read([[100, 100]])[0]
    pooled = fine.reshape(32, 2, 32, 2, 7).mean((1, 3))
    assert np.abs(pooled - coarse[16:48, 16:48])[..., [0, 1, 4, 5]].mean() < 1
    assert coarse[0, 0, 2] - fine[0, 0, 2] == pytest.approx(255 / 4, abs=1)  # an octave of the four that it spans


@pytest.mark.parametrize("change", [lambda v: v**0.5, lambda v: v**2, lambda v: 0.3 * v + 0.4], ids=["0.5", "2", "dim"])
def test_gamma_exposure_and_black_level_are_undone(reader, change):
    places = np.random.default_rng(1).uniform(20, 180, (20, 2))
    before = reader.read(places)[..., 0] / 170
    seen = change(light())
    after = DensityTiles(section(2 * seen / seen.max()), SPEC, points=False).read(places)[..., 0] / 170
    nuclei = before > 0.3
    assert np.abs(after - before)[nuclei].mean() < 0.08
    assert np.corrcoef(after.ravel(), before.ravel())[0, 1] > 0.97


def test_a_panel_of_fewer_transcripts_gives_the_same_tile(reader):
    fewer = DensityTiles(section(points=molecules(8_000, 1)), SPEC, groups=GROUPS)
    places = [[40, 60], [150, 130]]
    both = [each.read(places)[..., [1, 4, 5]].mean((1, 2)) for each in (reader, fewer)]
    np.testing.assert_allclose(*both, atol=12)


def test_beyond_the_border_it_goes_on_as_in_a_mirror(reader):
    tile = reader.read([[0, 100]])[0].astype(int)
    np.testing.assert_array_equal(tile[:, :32][:, ::-1], tile[:, 32:])
    corner = reader.read([[SIDE, SIDE]])[0].astype(int)
    np.testing.assert_array_equal(corner[32:][::-1], corner[:32])
    inside = reader.read([[16, 100]])[0]
    np.testing.assert_array_equal(tile[:, 32:], inside[:, :32])


def test_without_molecules_their_channels_are_empty(sdata):
    tiles = DensityTiles(sdata, SPEC, groups=GROUPS, points=False).read([[100, 100]])
    assert tiles[..., 0].any()
    assert not tiles[..., [1, 3, 4, 5]].any()


def test_changes_are_of_light_and_counts_before_they_are_weighed(reader):
    place = [[100, 100]]
    plain = reader.read(place)
    darker = reader.read_changed(place, light=np.zeros_like)
    assert not darker[..., 0].any()
    assert (darker[..., 1:] == plain[..., 1:]).all()
    none = reader.read_changed(place, counts=np.zeros_like)
    assert not none[..., [1, 3, 4]].any()
    assert (none[..., 0] == plain[..., 0]).all()


def test_what_cannot_be_read_is_refused(sdata):
    with pytest.raises(ValueError, match=r"density_um is 0; it is a positive length"):
        DensityTiles(sdata, SPEC, density_um=0)
    with pytest.raises(ValueError, match=r"all of one value"):
        DensityTiles(section(np.full((100, 100), 0.5)), SPEC, points=False)
    with pytest.raises(ValueError, match="finite numbers"):
        DensityTiles(sdata, SPEC).read([[np.nan, 0]])
