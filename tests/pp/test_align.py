"""Matrices and landmarks."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import sthist
from sthist._alignment import from_landmarks, read_alignment, read_matrix
from sthist.io._he import attach_he

TRUTH = np.array([[0.9, -0.3, 40.0], [0.35, 1.1, -12.0], [0, 0, 1]])


def apply(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    return points @ matrix[:2, :2].T + matrix[:2, 2]


@given(seed=st.integers(0, 1000), n=st.integers(3, 20))
def test_exact_landmarks_give_the_affine(seed, n):
    rng = np.random.default_rng(seed)
    points = np.r_[[[0, 0], [500, 0], [0, 500]], rng.uniform(0, 5000, (n - 3, 2))]
    found = from_landmarks(points, apply(TRUTH, points))
    np.testing.assert_allclose(found.matrix, TRUTH, atol=1e-8)
    assert found.residuals.max() < 1e-8


def test_noisy_landmarks_give_the_least_squares_and_their_residuals():
    from skimage.transform import AffineTransform

    rng = np.random.default_rng(0)
    points = rng.uniform(0, 5000, (30, 2))
    moved = apply(TRUTH, points) + rng.normal(0, 3, (30, 2))
    found = from_landmarks(points, moved)
    design = np.zeros((60, 6))
    design[::2, :2], design[::2, 2] = points, 1
    design[1::2, 3:5], design[1::2, 5] = points, 1
    expected = np.linalg.solve(design.T @ design, design.T @ moved.ravel()).reshape(2, 3)
    np.testing.assert_allclose(found.matrix[:2], expected, rtol=1e-6)
    np.testing.assert_allclose(found.residuals, AffineTransform(found.matrix).residuals(points, moved))
    assert 2 < found.residuals.mean() < 6


class TestVerb:
    def test_a_matrix_in_pixels_of_the_stain(self, toy, tmp_path):
        right = sthist.scale.matrix_to(toy["he"])
        in_pixels = np.linalg.inv(sthist.scale.matrix_to(toy["morphology_focus"])) @ right
        pd.DataFrame(in_pixels).to_csv(tmp_path / "he_imagealignment.csv", header=False, index=False)
        sthist.pp.align(toy, "he", matrix=np.eye(3))
        assert not np.allclose(sthist.scale.matrix_to(toy["he"]), right)
        sthist.pp.align(toy, "he", matrix=tmp_path / "he_imagealignment.csv")
        np.testing.assert_allclose(sthist.scale.matrix_to(toy["he"]), right)
        np.testing.assert_allclose(sthist.scale.matrix_to(toy["he"], "global"), in_pixels)
        assert toy.attrs["sthist"]["alignment"]["he"]["mpp"] == pytest.approx(0.5)

    @pytest.mark.parametrize(
        "names", [("alignmentX", "alignmentY", "fixedX", "fixedY"), ("moving_x", "moving_y", "fixed_x", "fixed_y")]
    )
    def test_landmarks_and_their_residuals_in_um(self, toy, tmp_path, names):
        right = sthist.scale.matrix_to(toy["he"])
        points = np.array([[100.0, 100], [700, 120], [300, 650], [500, 500]])
        fixed = apply(np.linalg.inv(sthist.scale.matrix_to(toy["morphology_focus"])) @ right, points)
        fixed[3] += [4.0, 0.0]  # px of 0.5 µm
        frame = pd.DataFrame(np.c_[points, fixed], columns=names)
        frame.to_csv(tmp_path / "keypoints.csv", index=False)
        sthist.pp.align(toy, "he", landmarks=tmp_path / "keypoints.csv")
        residuals = toy.attrs["sthist"]["alignment"]["he"]["residuals_um"]
        assert len(residuals) == 4
        assert 0.3 < max(residuals) < 2.0
        by_array = from_landmarks(points, fixed)
        np.testing.assert_allclose(residuals, by_array.residuals * 0.5)
        sthist.pp.align(toy, "he", to="um", landmarks=(points, apply(right, points)))
        np.testing.assert_allclose(sthist.scale.matrix_to(toy["he"]), right)

    def test_frames(self, toy):
        right = sthist.scale.matrix_to(toy["he"])
        sthist.pp.align(toy, "he", to="um", matrix=right)
        np.testing.assert_allclose(sthist.scale.matrix_to(toy["he"]), right)
        sthist.pp.align(toy, "he", to="global", matrix=np.diag([2.0, 2.0, 1]) @ right)
        np.testing.assert_allclose(sthist.scale.matrix_to(toy["he"]), right)
        with pytest.raises(KeyError, match=r"to='nowhere' is no other image"):
            sthist.pp.align(toy, "he", to="nowhere", matrix=right)

    def test_all_systems_follow(self, toy):
        """What um and global say of the image agree after any alignment, and a scale given later moves nothing."""
        import spatialdata as sd

        turned = np.array([[0, -0.5, 300.0], [0.5, 0, 10], [0, 0, 1]])
        to_global = np.linalg.inv(sthist.scale.matrix_to(toy["morphology_focus"]))
        sthist.pp.align(toy, "he", to="um", matrix=turned)
        np.testing.assert_allclose(sthist.scale.matrix_to(toy["he"], "global"), to_global @ turned)
        sthist.pp.set_scale(toy, "morphology_focus", mpp=0.5)
        np.testing.assert_allclose(sthist.scale.matrix_to(toy["he"]), turned)
        lone = sthist.io.assemble({"dapi": np.zeros((50, 50), np.uint8)}, mpp=0.5)
        lone.images["he"] = toy["he"]
        sthist.pp.align(lone, "he", to="dapi", matrix=np.eye(3))
        assert set(sd.transformations.get_transformation(lone["he"], get_all=True)) == {"um"}

    def test_a_scale_does_not_undo_an_alignment(self, toy):
        from spatialdata.transformations import Affine, set_transformation

        turned = Affine(np.array([[0, -0.5, 300.0], [0.5, 0, 10], [0, 0, 1]]), ("x", "y"), ("x", "y"))
        set_transformation(toy["he"], turned, to_coordinate_system="um")  # by other means: global is left behind
        with pytest.raises(ValueError, match=r"'he' lies elsewhere in 'um' than 'global'.*was it aligned"):
            sthist.pp.set_scale(toy, "morphology_focus", mpp=0.5)

    def test_a_store_that_cannot_be_written(self, backed, monkeypatch):
        right = sthist.scale.matrix_to(backed["he"])

        def full(*_):
            msg = "no space left"
            raise OSError(msg)

        monkeypatch.setattr("sthist._store.write_transformations", full)
        with pytest.raises(OSError, match="no space left"):
            sthist.pp.align(backed, "he", to="um", matrix=np.diag([0.5, 0.5, 1]))
        np.testing.assert_allclose(sthist.scale.matrix_to(backed["he"]), right)
        assert "he" not in backed.attrs["sthist"]["alignment"]

    def test_a_squeezed_image(self, toy):
        sthist.scale.record_mpp(toy, "he", "OME PhysicalSizeX", 0.5)
        with pytest.raises(ValueError, match=r"implied by its alignment, (longest|shortest)"):
            sthist.pp.align(toy, "he", to="um", matrix=np.diag([1.0, 0.25, 1]))

    def test_it_is_written_to_the_store(self, backed):
        import spatialdata as sd

        right = np.array([[0.5, 0, 3.0], [0, 0.5, 4.0], [0, 0, 1]])
        sthist.pp.align(backed, "he", to="um", matrix=right)
        again = sd.read_zarr(backed.path)
        np.testing.assert_allclose(sthist.scale.matrix_to(again["he"]), right)
        assert again.attrs["sthist"]["alignment"]["he"]["to"] == "um"

    def test_a_scale_that_the_metadata_contradict(self, toy):
        sthist.scale.record_mpp(toy, "he", "OME PhysicalSizeX", 0.5)
        sthist.pp.align(toy, "he", to="um", matrix=np.diag([0.505, 0.505, 1]))
        with pytest.raises(ValueError, match=r"disagree by 4.0%.*implied by its alignment, longest"):
            sthist.pp.align(toy, "he", to="um", matrix=np.diag([0.52, 0.52, 1]))

    def test_both_or_neither(self, toy):
        with pytest.raises(ValueError, match=r"Give either matrix= or landmarks="):
            sthist.pp.align(toy, "he")
        with pytest.raises(ValueError, match=r"Give either matrix= or landmarks="):
            sthist.pp.align(toy, "he", matrix=np.eye(3), landmarks=(np.eye(2), np.eye(2)))
        with pytest.raises(KeyError, match=r"No image 'hee'.*Did you mean 'he'"):
            sthist.pp.align(toy, "hee", matrix=np.eye(3))


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.eye(2), r"no 3 x 3 matrix of finite numbers: its shape is \(2, 2\)"),
        (np.full((3, 3), np.nan), r"no 3 x 3 matrix of finite numbers"),
        ([[1, 0, 0], [0, 1, 0], [1e-4, 0, 1]], r"no affine matrix: its last row is \[0.0001, 0.0, 1.0\]"),
        ([[1, 1, 0], [1, 1, 0], [0, 0, 1]], r"is singular"),
        ([[0, 0, 0], [0, 1, 0], [0, 0, 1]], r"is singular"),
        ("text", r"There is no alignment file"),
        ([["a", "b"], ["c"]], r"no 3 x 3 matrix of numbers"),
    ],
)
def test_matrices_that_are_none(matrix, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read_matrix(matrix)


def test_a_small_scale_is_not_singular():
    assert read_matrix(np.diag([1e-5, 1e-5, 1]))[0, 0] == 1e-5


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("", ValueError, r"align.csv is empty"),
        ("1,0,0\n0,one,0\n0,0,1\n", ValueError, r"align.csv holds something that is no number"),
        ("x,y\n1,2\n3,4\n5,6\n7,8\n", KeyError, r"Landmarks need the columns"),
        ("fixedX,fixedY,alignmentX,alignmentY\n1,2,3,4\n5,6,7,8\n", ValueError, r"at least 3 landmarks; 2 are given"),
        (
            "fixedX,fixedY,alignmentX,alignmentY\n1,2,3,4\n5,?,7,8\n5,6,7,9\n",
            ValueError,
            r"1 landmarks are no finite numbers, the first in row 1",
        ),
        (
            "fixedX,fixedY,alignmentX,alignmentY\n1,1,1,1\n2,2,2,2\n5,5,5,5\n",
            ValueError,
            r"lie on one line in the image",
        ),
    ],
)
def test_files_that_are_no_alignment(tmp_path, text, error, message):
    (tmp_path / "align.csv").write_text(text)
    with pytest.raises(error, match=message):
        read_alignment(tmp_path / "align.csv")


def test_landmarks_that_do_not_pair():
    with pytest.raises(ValueError, match=r"these have shapes \(3, 2\) and \(4, 2\)"):
        read_alignment((np.ones((3, 2)), np.ones((4, 2))))
    points = [[0, 0], [9, 0], [0, 9]]
    np.testing.assert_allclose(read_alignment([points, points]).matrix, np.eye(3), atol=1e-12)


class TestAttach:
    @pytest.fixture
    def picture(self, toy, tmp_path):
        image = toy["he"] if not hasattr(toy["he"], "children") else toy["he"]["scale0"].image
        Image.fromarray(image.to_numpy().transpose(1, 2, 0)).save(tmp_path / "he.png")
        return tmp_path / "he.png"

    def test_an_he_lands_on_the_cells(self, toy, picture):
        right = sthist.scale.matrix_to(toy["he"])
        before = sthist.tiles.read_region(toy, "he", (100, 100, 300, 300), 0.5)
        del toy.images["he"]
        in_pixels = np.linalg.inv(sthist.scale.matrix_to(toy["morphology_focus"])) @ right
        attach_he(toy, picture, alignment=in_pixels)
        np.testing.assert_array_equal(sthist.tiles.read_region(toy, "he", (100, 100, 300, 300), 0.5), before)

    def test_by_the_unit_of_a_coordinate_system(self, toy, picture):
        attach_he(toy, picture, name="he_new", coordinate_system="global")
        np.testing.assert_allclose(sthist.scale.matrix_to(toy["he_new"]), np.diag([0.5, 0.5, 1]))

    def test_after_an_error_the_sample_is_as_it_was(self, toy, tmp_path):
        import tifffile

        pixels = np.full((300, 300, 3), 200, np.uint8)
        tifffile.imwrite(tmp_path / "x.tif", pixels, resolution=(20000, 20000), resolutionunit="CENTIMETER")
        with pytest.raises(ValueError, match=r"Two scales of image 'other' disagree.*implied by its alignment"):
            attach_he(toy, tmp_path / "x.tif", name="other", alignment=np.diag([3.0, 3, 1]))
        assert "other" not in toy.images
        assert toy.attrs["sthist"]["roles"]["he"] == {"image": "he"}
        assert not sthist.scale.recorded_mpp(toy, "other")
        with pytest.raises(ValueError, match=r"There is an image 'he' already"):
            attach_he(toy, tmp_path / "x.tif", alignment=np.eye(3))

    def test_where_does_it_lie(self, toy, picture):
        with pytest.raises(ValueError, match=r"Where does the H&E .* lie\?.*he_alignment="):
            attach_he(toy, picture, name="new")
