"""Where an H&E lies, found by its pixels."""

from __future__ import annotations

import numpy as np
import pytest
from realdata import folder
from spatialdata.transformations import Affine, set_transformation

import sthist
from sthist._imaging.registration import match_patches, register, shrink, warp
from sthist.pp._align import overlap_score

SIZE_UM = 600
PLACES = np.array([[x, y, 1] for x in (200.0, 600, 1000) for y in (200.0, 600, 1000)])


@pytest.fixture(scope="module")
def section():
    return sthist.datasets.toy(size_um=SIZE_UM)


@pytest.fixture
def sample(section):
    import spatialdata as sd

    return sd.deepcopy(section)


def displace(sdata, matrix: np.ndarray) -> None:
    """Move the H&E away from where it belongs."""
    away = Affine(matrix @ sthist.scale.matrix_to(sdata["he"]), ("x", "y"), ("x", "y"))
    set_transformation(sdata["he"], away, to_coordinate_system="um")


def turn(degrees: float, scale: float = 1.0, shift: tuple[float, float] = (0, 0), *, flip: bool = False) -> np.ndarray:
    """About the middle of the section."""
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    linear = np.array([[cos, -sin], [sin, cos]]) @ np.diag([-1.0 if flip else 1.0, 1.0]) * scale
    matrix = np.eye(3)
    matrix[:2, :2] = linear
    matrix[:2, 2] = SIZE_UM / 2 + np.array(shift) - linear @ [SIZE_UM / 2, SIZE_UM / 2]
    return matrix


def errors(sdata, truth: np.ndarray) -> np.ndarray:
    """µm by which places of the image are off."""
    return np.linalg.norm((PLACES @ (sthist.scale.matrix_to(sdata["he"]) - truth).T)[:, :2], axis=1)


@pytest.mark.parametrize(
    "away",
    [
        pytest.param(turn(0), id="in place", marks=pytest.mark.slow),
        pytest.param(turn(3, shift=(20, -15)), id="near"),
        pytest.param(turn(90), id="quarter turn", marks=pytest.mark.slow),
        pytest.param(turn(180, flip=True), id="flipped", marks=pytest.mark.slow),
        pytest.param(turn(217, 1.045, (400, -300)), id="anywhere", marks=pytest.mark.slow),
        pytest.param(turn(68, 0.955, (-350, 120), flip=True), id="anywhere, flipped"),
    ],
)
def test_it_is_found(sample, away):
    truth = sthist.scale.matrix_to(sample["he"])
    displace(sample, away)
    sthist.pp.align(sample, "he", matrix="auto")
    assert errors(sample, truth).max() < 1.0
    facts = sample.attrs["sthist"]["alignment"]["he"]
    assert facts["score_after"] > 0.8
    assert facts["score_after"] >= facts["score_before"] - 0.01
    assert facts["patches_that_agree"] > 0.8 * facts["patches"]


def test_from_no_start_but_the_scale(sample):
    truth = sthist.scale.matrix_to(sample["he"])
    nowhere = Affine(np.eye(3), ("x", "y"), ("x", "y"))
    set_transformation(sample["he"], {"pixels": nowhere}, set_all=True)
    with pytest.raises(ValueError, match=r"has no scale: give it once with pp.set_scale"):
        sthist.pp.align(sample, "he", matrix="auto")
    sthist.scale.record_mpp(sample, "he", "OME PhysicalSizeX", 0.5)
    sthist.pp.align(sample, "he", matrix="auto")
    assert errors(sample, truth).max() < 1.0
    assert sample.attrs["sthist"]["alignment"]["he"]["score_before"] is None


def test_unrelated_images_are_refused(sample):
    other = sthist.datasets.toy(size_um=SIZE_UM, seed=5)
    del sample.images["he"]
    sample.images["he"] = other["he"]
    before = sthist.scale.matrix_to(sample["he"])
    with pytest.raises(ValueError, match=r"show nothing in common.*give landmarks="):
        sthist.pp.align(sample, "he", matrix="auto")
    np.testing.assert_array_equal(sthist.scale.matrix_to(sample["he"]), before)
    assert "he" not in sample.attrs["sthist"].get("alignment", {})


def test_what_is_worse_is_refused(sample, monkeypatch):
    from sthist._imaging.registration import Registration

    wrong = Registration(turn(45), 50, 60, 0.1)
    monkeypatch.setattr("sthist.pp._align.register", lambda *_, **__: wrong)
    before = sthist.scale.matrix_to(sample["he"])
    with pytest.raises(ValueError, match=r"overlaps less \(.*\) than the present one \(.*\); nothing is changed"):
        sthist.pp.align(sample, "he", matrix="auto")
    np.testing.assert_array_equal(sthist.scale.matrix_to(sample["he"]), before)


def test_images_that_cannot_be_aligned(sample):
    with pytest.raises(ValueError, match=r"is no H&E: it has 1 channels of uint16"):
        sthist.pp.align(sample, "morphology_focus", matrix="auto")
    with pytest.raises(KeyError, match=r"No image 'dapi'"):
        sthist.pp.align(sample, "he", "dapi", matrix="auto")


def test_a_real_section_from_the_scanner():
    """Xenium breast: the H&E mirrored as the scanner left it, at 10.8 µm/px, onto the DAPI thumbnail at 12 µm/px."""
    import json

    from realdata import picture

    data = folder("xenium_breast_rep1")
    known = json.loads((data / "geometry.json").read_text())["images"]
    truth = np.array(known["he_native_10.8um.png"]["matrix"])
    mpp = float(np.sqrt(abs(np.linalg.det(truth[:2, :2]))))
    sdata = sthist.io.assemble(
        {"dapi": picture(data / "dapi_section_12um.png"), "he": picture(data / "he_native_10.8um.png")},
        matrices={"dapi": known["dapi_section_12um.png"]["matrix"], "he": np.diag([mpp, mpp, 1.0])},
    )
    sthist.pp.align(sdata, "he", matrix="auto")
    over_tissue = np.array([[x, y, 1] for x in (1000.0, 3000, 5000, 6500) for y in (1000.0, 2500, 4500)])
    in_pixels = over_tissue @ np.linalg.inv(truth).T
    off = np.linalg.norm((in_pixels @ sthist.scale.matrix_to(sdata["he"]).T - over_tissue)[:, :2], axis=1)
    assert off.max() < 25


class TestPieces:
    image = np.abs(np.random.default_rng(0).normal(0, 1, (160, 200))).astype(np.float32)

    def test_warp_is_scipys_sampling_of_pixel_centres(self):
        matrix = np.array([[0.9, 0.2, 5.0], [-0.1, 1.1, 3.0], [0, 0, 1]])
        warped = warp(self.image, matrix, (150, 190), 2.0)
        x, y = 71, 63
        place = matrix @ [(x + 0.5) * 2.0, (y + 0.5) * 2.0, 1]
        column, row = place[0] / 2.0 - 0.5, place[1] / 2.0 - 0.5
        i, j, v, u = int(row), int(column), row % 1, column % 1
        corners = self.image[i : i + 2, j : j + 2]
        expected = (1 - v) * ((1 - u) * corners[0, 0] + u * corners[0, 1]) + v * (
            (1 - u) * corners[1, 0] + u * corners[1, 1]
        )
        assert warped[y, x] == pytest.approx(expected, rel=1e-4)

    def test_patches_are_found_to_a_part_of_a_pixel(self):
        from scipy.ndimage import gaussian_filter, shift

        smooth = gaussian_filter(self.image, 2.0)
        moved = shift(smooth, (2.3, -3.6), order=3)
        _, shifts = match_patches(smooth, moved)
        np.testing.assert_allclose(np.median(shifts, axis=0), [-3.6, 2.3], atol=0.1)

    def test_shrink(self):
        np.testing.assert_allclose(shrink(self.image, 3)[4, 5], self.image[12:15, 15:18].mean(), rtol=1e-6)

    def test_noise_has_nothing_in_common(self):
        rng = np.random.default_rng(1)
        a, b = (rng.gamma(1.0, 1.0, (300, 300)).astype(np.float32) for _ in range(2))
        assert register(a, b, 1.0) is None

    def test_score(self):
        assert overlap_score(self.image, self.image, np.eye(3), 1.0) == pytest.approx(1.0)
        assert abs(overlap_score(self.image, self.image[::-1], np.eye(3), 1.0)) < 0.15
        assert overlap_score(self.image, np.zeros_like(self.image), np.eye(3), 1.0) == 0.0
