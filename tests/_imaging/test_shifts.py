"""How far the H&E of a tile lies off its nuclear stain."""

from __future__ import annotations

import numpy as np
import pytest
import realdata

import sthist
from sthist._imaging.shifts import _masked_correlation
from sthist.tiles import TileReader, TileSpec, keep_shifted, tile_shifts_um

SPEC = TileSpec(64.0, 128)


@pytest.fixture(scope="module")
def section():
    """Readers of the toy's H&E and DAPI, and places of tiles that may be shifted by 10 µm."""
    toy = sthist.datasets.toy(size_um=400)
    centres = np.random.default_rng(0).uniform(50, 350, (24, 2))
    return (
        TileReader(toy, "he", SPEC, fill=255),
        TileReader(toy, "morphology_focus", SPEC, allow_upsampling=True),
        centres,
    )


@pytest.fixture(scope="module")
def planted(section):
    """H&E that lies off by known shifts, and the nuclear stain."""
    he, nuclear, centres = section
    shifts = np.random.default_rng(1).uniform(-7, 7, centres.shape)
    # A window to the left of its place shows everything too far to the right.
    return he.read(centres - shifts), nuclear.read(centres)[..., 0], shifts


def test_planted_shifts_are_found_to_a_part_of_a_pixel(planted):
    he, nuclear, shifts = planted
    found = tile_shifts_um(he, nuclear, SPEC.mpp)
    matched = ~np.isnan(found.shifts_um).any(1)
    assert matched.mean() > 0.85
    off = np.abs(found.shifts_um - shifts)[matched] / SPEC.mpp
    assert off.max() < 0.5
    assert np.median(off) < 0.2
    assert (found.confidence[matched] >= 5).all()


def test_registered_tiles_do_not_lie_off(section):
    he, nuclear, centres = section
    found = tile_shifts_um(he.read(centres), nuclear.read(centres)[..., 0], SPEC.mpp).shifts_um
    assert np.nanmax(np.abs(found)) < 0.5 * SPEC.mpp
    assert np.abs(np.nanmean(found, 0)).max() < 0.1 * SPEC.mpp  # no bias


def test_other_places_do_not_match(section):
    he, nuclear, centres = section
    others = np.roll(centres, 1, axis=0)
    apart = np.abs(others - centres).max(1) > 20
    found = tile_shifts_um(he.read(others[apart]), nuclear.read(centres[apart])[..., 0], SPEC.mpp)
    assert apart.sum() > 15
    assert np.isnan(found.shifts_um).all()


def test_nothing_is_matched_where_nothing_is(planted):
    he, nuclear, _ = planted
    glass, noise = np.full_like(he[:1], 250), np.random.default_rng(0).poisson(100, nuclear[:1].shape)
    for pair in ((glass, nuclear[:1]), (he[:1], np.zeros_like(nuclear[:1])), (glass, noise), (he[:1], noise)):
        assert np.isnan(tile_shifts_um(*pair, SPEC.mpp).shifts_um).all()
    outside = np.full_like(he[:1], 255)
    found = tile_shifts_um(outside, nuclear[:1], SPEC.mpp)
    assert np.isnan(found.shifts_um).all()
    assert found.confidence.tolist() == [0.0]


def test_no_tiles():
    found = tile_shifts_um(np.zeros((0, 128, 128, 3), np.uint8), np.zeros((0, 128, 128)), 0.5)
    assert found.shifts_um.shape == (0, 2)
    assert found.confidence.shape == (0,)


def test_beyond_the_reach_is_nothing(section):
    he, nuclear, centres = section
    found = tile_shifts_um(he.read(centres - [12, 0]), nuclear.read(centres)[..., 0], SPEC.mpp)
    assert np.isnan(found.shifts_um).any(1).mean() > 0.9
    farther = tile_shifts_um(he.read(centres - [12, 0]), nuclear.read(centres)[..., 0], SPEC.mpp, reach_um=16)
    matched = ~np.isnan(farther.shifts_um).any(1)
    assert matched.mean() > 0.7
    assert np.abs(farther.shifts_um[matched] - [12, 0]).max() < 0.5 * SPEC.mpp


def test_each_tile_stands_for_itself(planted):
    he, nuclear, _ = planted
    together = tile_shifts_um(he[:6], nuclear[:6], SPEC.mpp)
    turned = tile_shifts_um(he[5::-1], nuclear[5::-1], SPEC.mpp)
    np.testing.assert_array_equal(together.shifts_um, turned.shifts_um[::-1])
    alone = tile_shifts_um(he[2:3], nuclear[2:3], SPEC.mpp)
    np.testing.assert_array_equal(alone.shifts_um[0], together.shifts_um[2])


def test_brightness_of_the_stain_does_not_matter(planted):
    he, nuclear, _ = planted
    one = tile_shifts_um(he[:6], nuclear[:6], SPEC.mpp).shifts_um
    other = tile_shifts_um(he[:6], 0.01 * nuclear[:6].astype(np.float64) + 7, SPEC.mpp).shifts_um
    np.testing.assert_allclose(one, other, atol=0.01)


def test_mirrored_tiles_lie_off_the_mirrored_way(planted):
    he, nuclear, _ = planted
    one = tile_shifts_um(he[:6], nuclear[:6], SPEC.mpp).shifts_um
    mirrored = tile_shifts_um(he[:6, :, ::-1], nuclear[:6, :, ::-1], SPEC.mpp).shifts_um
    np.testing.assert_allclose(mirrored, one * [-1, 1], atol=0.02)


def test_what_is_masked_does_not_matter(planted):
    he, nuclear, shifts = planted
    mask = np.ones(nuclear.shape, np.bool_)
    mask[:, :, :40] = False
    expected = tile_shifts_um(he, nuclear, SPEC.mpp, mask=mask)
    spoiled, folded = he.copy(), nuclear.copy()
    spoiled[:, :, :40] = np.random.default_rng(0).integers(0, 255, spoiled[:, :, :40].shape)
    folded[:, :, :40] = nuclear.max()
    found = tile_shifts_um(spoiled, folded, SPEC.mpp, mask=mask)
    np.testing.assert_array_equal(found.shifts_um, expected.shifts_um)
    unknown, everywhere = np.where(mask, nuclear, np.nan), np.ones_like(mask)
    np.testing.assert_array_equal(tile_shifts_um(he, unknown, SPEC.mpp, mask=everywhere).shifts_um, expected.shifts_um)
    matched = ~np.isnan(found.shifts_um).any(1)
    assert matched.mean() > 0.6
    assert np.abs(found.shifts_um - shifts)[matched].max() < 0.6 * SPEC.mpp


def test_the_edge_of_the_slide_is_no_edge_of_the_tissue(planted):
    he, nuclear, shifts = planted
    cut = he.copy()
    cut[:, 90:] = 255  # outside, as readers fill it
    found = tile_shifts_um(cut, nuclear, SPEC.mpp)
    matched = ~np.isnan(found.shifts_um).any(1)
    assert matched.mean() > 0.6
    assert np.abs(found.shifts_um - shifts)[matched].max() < 0.6 * SPEC.mpp


def test_masked_correlation_is_pearsons_of_what_both_show():
    rng = np.random.default_rng(0)
    fixed, moving = rng.random((2, 17, 22))
    mask = rng.random((17, 22)) > 0.3
    found = _masked_correlation(fixed, moving, mask, 4)
    for dy in range(-4, 5):
        for dx in range(-4, 5):
            pairs = [
                (fixed[y, x], moving[y + dy, x + dx])
                for y in range(17)
                for x in range(22)
                if 0 <= y + dy < 17 and 0 <= x + dx < 22 and mask[y, x] and mask[y + dy, x + dx]
            ]
            assert found[dy + 4, dx + 4] == pytest.approx(np.corrcoef(np.transpose(pairs))[0, 1], abs=1e-9)


def test_real_haematoxylin_and_dapi():
    """The shift at which smoothed real images correlate best, by trying all."""
    from PIL import Image
    from scipy.ndimage import gaussian_filter

    folder = realdata.folder("deepliif_pairs") / "Bladder1"
    brightfield = np.array(Image.open(folder / "hematoxylin.png").convert("RGB"))
    dapi = np.array(Image.open(folder / "dapi.png").convert("L"))
    fixed, moving = gaussian_filter(dapi.astype(float), 2), gaussian_filter(255 - brightfield.mean(-1), 2)
    inner = (slice(10, -10), slice(10, -10))
    tried = {
        (dx, dy): np.corrcoef(fixed[inner].ravel(), moving[10 + dy : 502 + dy, 10 + dx : 502 + dx].ravel())[0, 1]
        for dx in range(-8, 9)
        for dy in range(-8, 9)
    }
    best = max(tried, key=lambda shift: tried[shift])
    found = tile_shifts_um(brightfield[None], dapi[None], 0.25)
    np.testing.assert_allclose(found.shifts_um[0] / 0.25, best, atol=1)
    strangers = tile_shifts_um(brightfield[None, :256, :256], dapi[None, 256:, 256:], 0.25)
    assert np.isnan(strangers.shifts_um).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"he": np.zeros((1, 128, 128, 3))}, "uint8 of shape"),
        ({"nuclear": np.zeros((1, 64, 128))}, "needed is"),
        ({"mask": np.ones((128, 128))}, "needed is"),
        ({"mpp": 2.0}, "told apart"),
        ({"reach_um": 0.2}, "told apart"),
        ({"reach_um": 25}, "three times as wide"),
    ],
)
def test_refused(change, message):
    arguments = {"he": np.zeros((1, 128, 128, 3), np.uint8), "nuclear": np.zeros((1, 128, 128)), "mpp": 0.5} | change
    with pytest.raises(ValueError, match=message):
        tile_shifts_um(**arguments)


def test_keep_counts_add_up():
    shifts = np.array([[0, 0], [3, 0], [0, -3.001], [-2.2, 2.2], [np.nan, np.nan]])
    keep, counts = keep_shifted(shifts)
    assert keep.tolist() == [True, True, False, False, False]
    assert counts == {"within": 2, "beyond": 2, "unmatched": 1, "kept": 2}
    keep, counts = keep_shifted(shifts, max_shift_um=5, keep_unmatched=True)
    assert keep.all()
    assert counts == {"within": 4, "beyond": 0, "unmatched": 1, "kept": 5}


def test_keep_refuses():
    with pytest.raises(ValueError, match="Shifts are"):
        keep_shifted([1.0, 2.0])
    with pytest.raises(ValueError, match="max_shift_um"):
        keep_shifted([[1.0, 2.0]], max_shift_um=float("nan"))
