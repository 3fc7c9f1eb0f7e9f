"""Matrices and landmarks."""

from __future__ import annotations

import zipfile
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import sthist
from sthist._alignment.read import from_landmarks, from_matrix, read_alignment, read_landmarks, read_matrix
from sthist.io._parts.sample import attach_he

if TYPE_CHECKING:
    from pathlib import Path

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
        sthist.pp.align(toy, "he", matrix=np.eye(3), overwrite=True)
        assert not np.allclose(sthist.scale.matrix_to(toy["he"]), right)
        sthist.pp.align(toy, "he", matrix=tmp_path / "he_imagealignment.csv", overwrite=True)
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
        sthist.pp.align(toy, "he", landmarks=tmp_path / "keypoints.csv", overwrite=True)
        residuals = toy.attrs["sthist"]["alignment"]["he"]["residuals_um"]
        assert len(residuals) == 4
        assert 0.3 < max(residuals) < 2.0
        by_array = from_landmarks(points, fixed)
        np.testing.assert_allclose(residuals, by_array.residuals * 0.5)
        sthist.pp.align(toy, "he", to="um", landmarks=(points, apply(right, points)), overwrite=True)
        np.testing.assert_allclose(sthist.scale.matrix_to(toy["he"]), right)

    def test_frames(self, toy):
        right = sthist.scale.matrix_to(toy["he"])
        sthist.pp.align(toy, "he", to="um", matrix=right, overwrite=True)
        np.testing.assert_allclose(sthist.scale.matrix_to(toy["he"]), right)
        sthist.pp.align(toy, "he", to="global", matrix=np.diag([2.0, 2.0, 1]) @ right, overwrite=True)
        np.testing.assert_allclose(sthist.scale.matrix_to(toy["he"]), right)
        with pytest.raises(KeyError, match=r"to='nowhere' is no other image"):
            sthist.pp.align(toy, "he", to="nowhere", matrix=right, overwrite=True)

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

        monkeypatch.setattr("sthist._store.store.commit", full)
        with pytest.raises(OSError, match="no space left"):
            sthist.pp.align(backed, "he", to="um", matrix=np.diag([0.5, 0.5, 1]))
        np.testing.assert_allclose(sthist.scale.matrix_to(backed["he"]), right)
        assert "alignment" not in backed.attrs["sthist"]

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
        sthist.pp.align(toy, "he", to="um", matrix=np.diag([0.505, 0.505, 1]), overwrite=True)
        with pytest.raises(ValueError, match=r"disagree by 4.0%.*implied by its alignment, longest"):
            sthist.pp.align(toy, "he", to="um", matrix=np.diag([0.52, 0.52, 1]), overwrite=True)

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
        ("fixedX,fixedY,alignmentX,alignmentY\n1,2,3,4\n5,6,7,8\n", ValueError, r"at least 3 landmarks; .* has 2"),
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


def archive(path: Path, files: dict[str, str], **kwargs) -> Path:
    """A zip of texts."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, **kwargs) as file:
        for name, text in files.items():
            file.writestr(name, text)
    return path


def matrix_csv(matrix: np.ndarray) -> str:
    return pd.DataFrame(matrix).to_csv(header=False, index=False)


def keypoints_csv(moving: np.ndarray, fixed: np.ndarray) -> str:
    return pd.DataFrame(np.c_[fixed, moving], columns=["fixedX", "fixedY", "alignmentX", "alignmentY"]).to_csv(
        index=False
    )


class TestExplorersZip:
    points = np.array([[100.0, 100], [700, 120], [300, 650], [500, 500], [20, 700]])

    @settings(deadline=None, max_examples=30)  # each writes a file
    @given(
        linear=st.tuples(st.floats(0.1, 3), st.floats(0, 6.28), st.floats(0.9, 1.1), st.booleans()),
        shift=st.tuples(st.floats(-5000, 5000), st.floats(-5000, 5000)),
        folder=st.sampled_from(["", "slide_alignment_files/", "a/b c/", "x\\"]),
        upper=st.booleans(),
    )
    def test_it_gives_the_affine_it_was_made_from(self, tmp_path_factory, linear, shift, folder, upper):
        size, angle, stretch, flip = linear
        truth = np.eye(3)
        truth[:2, :2] = size * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        truth[:2, :2] @= np.diag([-stretch if flip else stretch, 1.0])
        truth[:2, 2] = shift
        names = [folder + (name.upper() if upper else name) for name in ("matrix.csv", "keypoints.csv")]
        texts = [matrix_csv(truth), keypoints_csv(self.points, apply(truth, self.points))]
        path = archive(tmp_path_factory.mktemp("zip") / "any.zip", dict(zip(names, texts, strict=True)))
        np.testing.assert_allclose(read_matrix(path), truth)
        for found in (from_matrix(path), read_alignment(path), from_landmarks(*read_landmarks(path))):
            np.testing.assert_allclose(found.matrix, truth, atol=1e-7)
            assert found.residuals.max() < 1e-7
            assert found.gap < 1e-7

    def test_as_matrix_and_as_landmarks(self, toy, tmp_path, caplog):
        """The matrix is taken as it is, whatever its keypoints, and the other way round; residuals are in µm."""
        right = sthist.scale.matrix_to(toy["he"])
        in_pixels = np.linalg.inv(sthist.scale.matrix_to(toy["morphology_focus"])) @ right
        fixed = apply(in_pixels, self.points)
        fixed[3] += [6.0, 8.0]  # 10 px of 0.5 µm
        path = archive(
            tmp_path / "he.zip",
            {"matrix.csv": matrix_csv(in_pixels), "keypoints.csv": keypoints_csv(self.points, fixed)},
        )
        with caplog.at_level("INFO", "sthist"):
            sthist.pp.align(toy, "he", matrix=path, overwrite=True)
        np.testing.assert_allclose(sthist.scale.matrix_to(toy["he"]), right)
        residuals = toy.attrs["sthist"]["alignment"]["he"]["residuals_um"]
        np.testing.assert_allclose(residuals, [0, 0, 0, 5.0, 0], atol=1e-9)
        assert "5 landmarks of image 'he'" in caplog.text
        assert "the farthest, index 3, 5.00 µm" in caplog.text
        sthist.pp.align(toy, "he", landmarks=path, overwrite=True)
        by_array = from_landmarks(self.points, fixed)
        residuals = toy.attrs["sthist"]["alignment"]["he"]["residuals_um"]
        np.testing.assert_allclose(residuals, by_array.residuals * 0.5, atol=1e-9)
        expected = sthist.scale.matrix_to(toy["morphology_focus"]) @ by_array.matrix
        np.testing.assert_allclose(sthist.scale.matrix_to(toy["he"]), expected)

    @settings(deadline=None, max_examples=30)
    @given(seed=st.integers(0, 500), n=st.integers(1, 12))
    def test_the_gap_is_the_distance_from_the_best_affine(self, tmp_path_factory, seed, n):
        rng = np.random.default_rng(seed)
        points = rng.uniform(0, 5000, (n, 2))
        fixed = apply(TRUTH, points) + rng.normal(0, 30, (n, 2))
        texts = {"matrix.csv": matrix_csv(TRUTH), "keypoints.csv": keypoints_csv(points, fixed)}
        found = from_matrix(archive(tmp_path_factory.mktemp("zip") / "any.zip", texts))
        np.testing.assert_allclose(found.residuals, np.linalg.norm(apply(TRUTH, points) - fixed, axis=1))
        design = np.c_[points, np.ones(n)]
        best = design @ np.linalg.pinv(design) @ fixed
        distance = np.sqrt(((apply(TRUTH, points) - best) ** 2).sum(1).mean())
        assert found.gap == pytest.approx(distance, rel=1e-3, abs=0.01)

    def test_a_matrix_that_its_keypoints_contradict(self, toy, tmp_path, caplog):
        """By 6 µm: taken. By 20 µm: taken, with a warning. By 200 µm: refused, and nothing changes."""
        matrix = np.eye(3)

        def moved_by(um: float) -> Path:
            texts = {
                "matrix.csv": matrix_csv(matrix),
                "keypoints.csv": keypoints_csv(self.points, self.points + [um / 0.5, 0]),
            }
            return archive(tmp_path / f"by_{um:.0f}.zip", texts)

        sthist.pp.align(toy, "he", matrix=moved_by(6.0), overwrite=True)
        assert "contradict" not in caplog.text
        sthist.pp.align(toy, "he", matrix=moved_by(20.0), overwrite=True)
        assert (
            "contradict each other by 20.0 µm: the matrix puts the 5 keypoints a median of 20.0 µm off" in caplog.text
        )
        assert "an affine fitted to them 0.0 µm. The matrix is taken" in caplog.text
        before = sthist.scale.matrix_to(toy["he"])
        np.testing.assert_allclose(before, sthist.scale.matrix_to(toy["morphology_focus"]))
        with pytest.raises(
            ValueError, match=r"by_200.zip contradict each other by 200.0 µm.*Give the one that is right"
        ):
            sthist.pp.align(toy, "he", matrix=moved_by(200.0), overwrite=True)
        np.testing.assert_array_equal(sthist.scale.matrix_to(toy["he"]), before)
        sthist.pp.align(toy, "he", landmarks=moved_by(200.0), overwrite=True)
        np.testing.assert_allclose(sthist.scale.matrix_to(toy["he"])[:2, 2], before[:2, 2] + [200, 0], atol=1e-9)

    @pytest.mark.parametrize("keypoints", [None, "", "fixedX,fixedY,alignmentX,alignmentY\n"])
    def test_without_keypoints(self, tmp_path, keypoints):
        files = {"matrix.csv": matrix_csv(TRUTH)} | ({} if keypoints is None else {"keypoints.csv": keypoints})
        found = read_alignment(archive(tmp_path / "a.zip", files))
        np.testing.assert_allclose(found.matrix, TRUTH)
        assert found.residuals is None

    def test_keypoints_alone(self, tmp_path):
        path = archive(tmp_path / "a.zip", {"keypoints.csv": keypoints_csv(self.points, apply(TRUTH, self.points))})
        np.testing.assert_allclose(read_alignment(path).matrix, TRUTH, atol=1e-9)
        with pytest.raises(ValueError, match=r"a.zip holds no matrix.csv; it holds 'keypoints.csv'.*as landmarks="):
            read_matrix(path)

    def test_a_zip_without_the_ending(self, tmp_path):
        path = archive(tmp_path / "alignment", {"matrix.csv": matrix_csv(TRUTH)})
        np.testing.assert_allclose(read_matrix(str(path)), TRUTH)

    def test_nothing_is_unpacked(self, tmp_path, monkeypatch):
        """A path that leads out of the archive is a name like another."""
        monkeypatch.chdir(tmp_path)
        path = archive(tmp_path / "a.zip", {"../../out/matrix.csv": matrix_csv(TRUTH), "/etc/other.csv": "x"})
        np.testing.assert_allclose(read_matrix(path), TRUTH)
        assert [file.name for file in tmp_path.rglob("*")] == ["a.zip"]

    @pytest.mark.parametrize(
        ("files", "message"),
        [
            ({}, r"a.zip holds no matrix.csv; it holds nothing. What Xenium Explorer's"),
            ({"b/notes.txt": "x"}, r"a.zip holds no matrix.csv; it holds 'b/notes.txt'"),
            ({f"{i}.csv": "" for i in range(12)}, r"it holds '0.csv', .*'9.csv' and 2 more"),
            (
                {"a/matrix.csv": "", "b/Matrix.csv": ""},
                r"2 files matrix.csv: 'a/matrix.csv', 'b/Matrix.csv'. Unpack the right",
            ),
            ({"matrix.csv": ""}, r"matrix.csv of .*a.zip is empty"),
            ({"matrix.csv": "1,0,0\n0,1,0\n"}, r"matrix.csv of .*a.zip is no 3 x 3 matrix"),
            ({"matrix.csv": "1,0,0\n0,one,0\n0,0,1\n"}, r"matrix.csv of .*a.zip holds something that is no number"),
            ({"matrix.csv": "1" * 4_000_001}, r"matrix.csv of .*a.zip is larger than 4 MB"),
        ],
    )
    def test_archives_that_are_no_alignment(self, tmp_path, files, message):
        with pytest.raises(ValueError, match=message):
            from_matrix(archive(tmp_path / "a.zip", files))

    def test_archives_without_landmarks(self, tmp_path):
        path = archive(tmp_path / "a.zip", {"matrix.csv": matrix_csv(TRUTH)})
        with pytest.raises(ValueError, match=r"a.zip holds no keypoints.csv; it holds 'matrix.csv'.*as matrix="):
            read_landmarks(path)
        path = archive(tmp_path / "b.zip", {"matrix.csv": matrix_csv(TRUTH), "keypoints.csv": "x,y\n1,2\n"})
        with pytest.raises(KeyError, match=r"Landmarks need the columns.*keypoints.csv of .*b.zip has \['x', 'y'\]"):
            from_matrix(path)

    def test_damaged_archives(self, tmp_path):
        whole = archive(tmp_path / "a.zip", {"matrix.csv": matrix_csv(TRUTH) * 50}).read_bytes()
        middle = bytearray(whole)
        middle[60:70] = bytes(10)
        for content in (whole[: len(whole) // 2], b"", b"1,0,0\n0,1,0\n0,0,1\n", bytes(middle)):
            (tmp_path / "b.zip").write_bytes(content)
            with pytest.raises(ValueError, match=r"b.zip is damaged or no zip that can be read"):
                read_alignment(tmp_path / "b.zip")

    def test_encrypted_or_no_text(self, tmp_path):
        path = archive(tmp_path / "a.zip", {"matrix.csv": matrix_csv(TRUTH)})
        content = bytearray(path.read_bytes())
        for header, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
            content[content.index(header) + offset] |= 1
        (tmp_path / "b.zip").write_bytes(content)
        with pytest.raises(ValueError, match=r"b.zip .*matrix.csv is encrypted"):
            read_matrix(tmp_path / "b.zip")
        with zipfile.ZipFile(tmp_path / "c.zip", "w") as file:
            file.writestr("matrix.csv", b"\xff\xfe\x00\xd8")
        with pytest.raises(ValueError, match=r"matrix.csv of .*c.zip is no text"):
            read_matrix(tmp_path / "c.zip")

    def test_an_unpacked_folder(self, tmp_path):
        (tmp_path / "files").mkdir()
        (tmp_path / "files" / "matrix.csv").write_text(matrix_csv(TRUTH))
        with pytest.raises(FileNotFoundError, match=r"files is a folder; .*It has 'matrix.csv'"):
            read_matrix(tmp_path / "files")


class TestUnits:
    """The image has 0.5 µm/px, the stain here 0.2 µm/px; the same place is told in every pair of units."""

    away = np.array([[0, -1.0, 900.0], [1.0, 0, 40.0], [0, 0, 1]])
    """µm of the image to µm of the sample: a quarter turn."""

    @pytest.fixture
    def fine(self, toy):
        import spatialdata as sd

        other = sd.models.Image2DModel.parse(
            np.zeros((1, 64, 64), np.uint8),
            dims=("c", "y", "x"),
            transformations={"um": sd.transformations.Scale([0.2, 0.2], ("x", "y"))},
        )
        toy.images["fine"] = other
        sthist.scale.record_mpp(toy, "he", "OME PhysicalSizeX", 0.5)
        return toy

    @pytest.mark.parametrize("units", ["px", "um"])
    @pytest.mark.parametrize(("to", "per_um"), [("um", 1.0), ("fine", 5.0)])
    def test_every_pair_of_units_gives_the_same_place(self, fine, units, to, per_um):
        matrix = np.diag([per_um, per_um, 1.0]) @ self.away @ np.diag([*[0.5 if units == "px" else 1.0] * 2, 1.0])
        expected = self.away @ np.diag([0.5, 0.5, 1.0])
        sthist.pp.align(fine, "he", to, matrix=matrix, unit=units, overwrite=True)
        np.testing.assert_allclose(sthist.scale.matrix_to(fine["he"]), expected)
        points = np.array([[0.0, 0], [300, 10], [20, 250], [200, 200]])
        fixed = apply(matrix, points)
        fixed[1] += 0.5 * per_um
        sthist.pp.align(fine, "he", to, landmarks=(points, fixed), unit=units, overwrite=True)
        residuals = fine.attrs["sthist"]["alignment"]["he"]["residuals_um"]
        np.testing.assert_allclose(residuals, from_landmarks(points, fixed).residuals / per_um)

    @pytest.mark.parametrize(
        ("meant", "given", "hint"),
        [
            (("um", "um"), {"to": "um"}, r"its side of the image is in µm \(unit='um'\)"),
            (("px", "um"), {"to": "um", "unit": "um"}, r"its side of the image is in pixels \(unit='px'\)"),
            (("px", "um"), {"to": "fine"}, r"its other side is in µm \(to='um'\)"),
            (("px", "fine"), {"to": "um"}, r"its other side is in pixels of image 'fine' \(to='fine'\)"),
            (("um", "um"), {"to": "fine"}, r"in µm \(unit='um'\) and its other side is in µm \(to='um'\)"),
        ],
    )
    def test_units_that_were_mixed_up(self, fine, meant, given, hint):
        per_px, per_um = {"px": 0.5, "um": 1.0}[meant[0]], {"um": 1.0, "fine": 5.0}[meant[1]]
        matrix = np.diag([per_um, per_um, 1.0]) @ self.away @ np.diag([per_px, per_px, 1.0])
        before = sthist.scale.matrix_to(fine["he"])
        with pytest.raises(ValueError, match=rf"Two scales of image 'he' disagree.* It would agree if .*{hint}"):
            sthist.pp.align(fine, "he", matrix=matrix, **given)
        np.testing.assert_array_equal(sthist.scale.matrix_to(fine["he"]), before)

    def test_other_mix_ups(self, fine):
        right = self.away @ np.diag([0.5, 0.5, 1.0])
        with pytest.raises(ValueError, match=r"It would agree if it leads the other way \(give its inverse\)"):
            sthist.pp.align(fine, "he", "um", matrix=np.linalg.inv(right))
        with pytest.raises(ValueError, match=r"It would agree if it was made on a copy of the image 16 times smaller"):
            sthist.pp.align(fine, "he", "um", matrix=right @ np.diag([16.0, 16, 1]))
        with pytest.raises(ValueError, match=r"replaces a scale\.$"):
            sthist.pp.align(fine, "he", "um", matrix=right @ np.diag([1.3, 1.3, 1]))

    def test_the_present_scale_serves_where_nothing_is_recorded(self, toy):
        sthist.pp.align(toy, "he", "um", matrix=self.away, unit="um", overwrite=True)
        np.testing.assert_allclose(sthist.scale.matrix_to(toy["he"]), self.away @ np.diag([0.5, 0.5, 1.0]))
        with pytest.raises(ValueError, match=r"disagree.*its present scale"):
            sthist.pp.align(toy, "he", "um", matrix=self.away @ np.diag([0.5, 0.5, 1.0]), unit="um", overwrite=True)

    @pytest.mark.parametrize("system", ["global", "slide"])
    def test_an_unknown_scale(self, toy, system):
        """The message's own way out works."""
        from spatialdata.transformations import Identity, set_transformation

        set_transformation(toy["he"], {system: Identity()}, set_all=True)
        alone = "he_px" if system == "global" else "slide"
        with pytest.raises(
            ValueError, match=rf"unit='um' needs.*pp.set_scale\(sdata, 'he', mpp=..., coordinate_system='{alone}'\)"
        ):
            sthist.pp.align(toy, "he", "um", matrix=self.away, unit="um")
        if system == "global":
            set_transformation(toy["he"], Identity(), alone)
        sthist.pp.set_scale(toy, "he", mpp=0.5, coordinate_system=alone)
        sthist.pp.align(toy, "he", "um", matrix=self.away, unit="um")
        np.testing.assert_allclose(sthist.scale.matrix_to(toy["he"]), self.away @ np.diag([0.5, 0.5, 1.0]))

    def test_units_that_are_none(self, toy):
        with pytest.raises(ValueError, match=r"unit='mm' is none of \['px', 'um'\]"):
            sthist.pp.align(toy, "he", matrix=np.eye(3), unit="mm")
        with pytest.raises(ValueError, match=r"matrix='auto' finds them itself"):
            sthist.pp.align(toy, "he", matrix="auto", unit="um")


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

    def test_by_explorers_zip(self, toy, picture, tmp_path):
        right = sthist.scale.matrix_to(toy["he"])
        in_pixels = np.linalg.inv(sthist.scale.matrix_to(toy["morphology_focus"])) @ right
        points = TestExplorersZip.points
        fixed = apply(in_pixels, points)
        fixed[2] += [0.0, 5.0]  # px of 0.5 µm
        texts = {"matrix.csv": matrix_csv(in_pixels), "keypoints.csv": keypoints_csv(points, fixed)}
        attach_he(toy, picture, name="he_new", alignment=archive(tmp_path / "he.zip", texts))
        np.testing.assert_allclose(sthist.scale.matrix_to(toy["he_new"]), right)
        record = toy.attrs["sthist"]["alignment"]["he_new"]
        np.testing.assert_allclose(record["residuals_um"], [0, 0, 2.5, 0, 0], atol=1e-9)
        np.testing.assert_allclose(record["matrix_to_um"], right)

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

    def test_without_an_alignment_it_waits_for_one(self, toy, picture, tmp_path, caplog):
        import tifffile

        right = sthist.scale.matrix_to(toy["he"])
        del toy.images["he"]
        per_cm = 1e4 / np.sqrt(abs(np.linalg.det(right[:2, :2])))
        pixels = np.asarray(Image.open(picture))
        tifffile.imwrite(tmp_path / "he.tif", pixels, resolution=(per_cm, per_cm), resolutionunit="CENTIMETER")
        attach_he(toy, tmp_path / "he.tif")
        assert "it has no place in 'um' yet: pp.align(sdata, 'he', matrix='auto') finds it" in caplog.text
        sthist.tl.virtual_he(toy, within=(0, 0, 32, 32))  # needs none
        with pytest.raises(ValueError, match="'he'.*um"):
            sthist.tl.train_virtual_he(toy, training={"spec": sthist.tiles.TileSpec(32, 32)})
        sthist.pp.align(toy, "he", matrix="auto")
        corners = np.array([[0.0, 0, 1], [200, 0, 1], [0, 200, 1]]).T
        off = (sthist.scale.matrix_to(toy["he"]) - right) @ corners
        assert np.hypot(*off[:2]).max() < 3.0
