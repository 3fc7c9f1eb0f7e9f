"""Matrices and landmarks, read from arrays and files, and the affine that they mean."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sthist._alignment import files as files
from sthist._faults import fault_in_text

LANDMARK_COLUMNS = (
    ("alignmentX", "alignmentY", "fixedX", "fixedY"),
    ("moving_x", "moving_y", "fixed_x", "fixed_y"),
)
"""Columns of x, y in the image, then in what it is aligned to: Xenium Explorer's names, and plain ones."""


@dataclass(frozen=True)
class Alignment:
    """An affine from an image's pixels to the frame of another element."""

    matrix: np.ndarray  # (3, 3): (x, y, 1) of the image to (x, y, 1) of the target frame
    # distance of each landmark from where the matrix puts it, in units of the target frame; None for a matrix alone
    residuals: np.ndarray | None = None
    # what the affine that fits the landmarks best would leave of these distances, where the matrix is another one
    fitted: np.ndarray | None = None
    what: str = "the alignment"  # file that both are from, for messages

    @property
    def gap(self) -> float:
        """Root mean square distance, at the landmarks, of the matrix from the affine that fits them best."""
        if self.residuals is None or self.fitted is None:
            return 0.0
        # Least squares leave residuals that are orthogonal to every affine, so that squares subtract.
        return float(np.sqrt(max(0.0, np.mean(self.residuals**2) - np.mean(self.fitted**2))))


def read_alignment(source: Any) -> Alignment:
    """A matrix or landmarks, told apart by their shape."""
    if isinstance(source, str | Path):
        path = Path(source)
        if files.is_archive(path):
            has_matrix = files.find_member(path, files.MATRIX) or not files.find_member(path, files.KEYPOINTS)
            return from_matrix(path) if has_matrix else from_landmarks(*read_landmarks(path), str(path))
        rows = files.read_csv(path).rows
        if len(rows) == 3 and all(len(row) == 3 for row in rows):
            return Alignment(read_matrix(source))
        return from_landmarks(*read_landmarks(source), str(path))
    if hasattr(source, "columns") or (isinstance(source, tuple | list) and len(source) == 2):
        return from_landmarks(*read_landmarks(source))
    return Alignment(read_matrix(source))


def from_matrix(source: Any) -> Alignment:
    """A matrix, and how far the keypoints that lie beside it in Xenium Explorer's zip are from it."""
    matrix = read_matrix(source)
    if not isinstance(source, str | Path) or not files.is_archive(Path(source)):
        return Alignment(matrix)
    keypoints = files.find_member(Path(source), files.KEYPOINTS)
    if keypoints is None or len(keypoints.rows) < 2:  # placed by hand, without keypoints: a header at most
        return Alignment(matrix)
    moving, fixed = _parse_landmarks(keypoints)
    residuals = np.linalg.norm(moving @ matrix[:2, :2].T + matrix[:2, 2] - fixed, axis=1)
    return Alignment(matrix, residuals, _fit(moving, fixed)[1], str(source))


def read_matrix(source: Any, what: str = "matrix") -> np.ndarray:
    """An invertible affine (3, 3) matrix, from an array, a csv file without header.

    Or Xenium Explorer's zip with one.
    """
    if isinstance(source, str | Path):
        csv = _csv(Path(source), files.MATRIX)
        what = csv.what
        try:
            source = [[float(value) for value in row] for row in csv.rows]
        except ValueError as error:
            raise ValueError(
                f"{what} holds something that is no number: {error}. A 3 x 3 matrix has three rows of three numbers."
            ) from None
    try:
        matrix = np.asarray(source, np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{what} is no 3 x 3 matrix of numbers: {source!r}.") from None
    if matrix.shape != (3, 3) or not np.isfinite(matrix).all():
        raise ValueError(f"{what} is no 3 x 3 matrix of finite numbers: its shape is {matrix.shape}.")
    if not np.allclose(matrix[2], [0, 0, 1], atol=1e-9):
        raise ValueError(
            f"{what} is no affine matrix: its last row is {matrix[2].tolist()}, not [0, 0, 1]. Projective matrices "
            "cannot be undone tile by tile; fit an affine one."
        )
    # Relative to the lengths of its columns: a small scale is no singular matrix.
    lengths = np.linalg.norm(matrix[:2, :2], axis=0)
    if (lengths == 0).any() or abs(np.linalg.det(matrix[:2, :2])) < 1e-6 * lengths.prod():
        raise ValueError(f"{what} is singular: it squeezes the image onto a line: {matrix.tolist()}.")
    return matrix


def read_landmarks(source: Any) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of points, in the image and in what it is aligned to.

    Returns points of the image, and of the target; (n, 2) each.
    """
    if isinstance(source, str | Path):
        return _parse_landmarks(_csv(Path(source), files.KEYPOINTS))
    if not isinstance(source, tuple | list):
        return _landmarks_of_frame(source, "the frame")
    if len(source) != 2:
        raise ValueError(
            f"Landmarks are a pair: points of the image, and points of the target; {len(source)} are given."
        )
    moving, fixed = (np.asarray(points, np.float64) for points in source)
    return _require_pairs(moving, fixed, "the arrays")


def _csv(path: Path, member: str) -> files.Csv:
    """A csv file, or the one of that name in an archive."""
    return files.require_member(path, member) if files.is_archive(path) else files.read_csv(path)


def _parse_landmarks(csv: files.Csv) -> tuple[np.ndarray, np.ndarray]:
    import io

    import pandas as pd

    try:
        frame = pd.read_csv(io.StringIO(csv.text), skipinitialspace=True)
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise ValueError(
            f"{csv.what} is no table with a header and one landmark per row: {error}.{fault_in_text(csv.text)}"
        ) from None
    return _landmarks_of_frame(frame, csv.what)


def _landmarks_of_frame(frame: Any, what: str) -> tuple[np.ndarray, np.ndarray]:
    import pandas as pd

    columns = next((names for names in LANDMARK_COLUMNS if set(names) <= set(frame.columns)), None)
    if columns is None:
        raise KeyError(
            f"Landmarks need the columns {LANDMARK_COLUMNS[0]} or {LANDMARK_COLUMNS[1]}; {what} has "
            f"{list(frame.columns)}."
        )
    points = frame[list(columns)].apply(pd.to_numeric, errors="coerce").to_numpy(np.float64)
    wrong = np.argwhere(~np.isfinite(points))
    if len(wrong):
        row, column = wrong[0]
        raise ValueError(
            f"{len(np.unique(wrong[:, 0]))} landmarks are no finite numbers, the first in row {row}, column "
            f"{columns[column]!r} of {what}; correct or remove them."
        )
    return _require_pairs(points[:, :2], points[:, 2:], what)


def _require_pairs(moving: np.ndarray, fixed: np.ndarray, what: str) -> tuple[np.ndarray, np.ndarray]:
    if moving.shape != fixed.shape or moving.ndim != 2 or moving.shape[1:] != (2,):
        raise ValueError(
            f"Landmarks are two arrays of (n, 2) points that pair; these have shapes {moving.shape} and {fixed.shape}."
        )
    bad = ~(np.isfinite(moving) & np.isfinite(fixed)).all(1)
    if bad.any():
        raise ValueError(
            f"{int(bad.sum())} landmarks are no finite numbers, the first in row {int(bad.argmax())} of {what}; "
            "correct or remove them."
        )
    return moving, fixed


def from_landmarks(moving: np.ndarray, fixed: np.ndarray, what: str = "") -> Alignment:
    """The affine that takes landmarks onto each other with the least squared distances."""
    if len(moving) < 3:
        there = f"{what} has {len(moving)}" if what else f"{len(moving)} are given"
        raise ValueError(f"An affine needs at least 3 landmarks; {there}.")
    for points, where, columns in ((moving, "the image", 0), (fixed, "the target", 2)):
        spread = np.linalg.svd(points - points.mean(0), compute_uv=False)
        if spread[1] < 1e-3 * spread[0] or spread[0] == 0:
            names = " or ".join(", ".join(names[columns : columns + 2]) for names in LANDMARK_COLUMNS)
            source = f" of {what} (columns {names})" if what else ""
            raise ValueError(f"The {len(points)} landmarks{source} lie on one line in {where}; add one beside it.")
    return Alignment(*_fit(moving, fixed))


def _fit(moving: np.ndarray, fixed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The affine with the least squared distances, and the distances that it leaves."""
    centre = moving.mean(0)
    design = np.c_[moving - centre, np.ones(len(moving))]
    solution = np.linalg.lstsq(design, fixed, rcond=None)[0]
    matrix = np.eye(3)
    matrix[:2, :2] = solution[:2].T
    matrix[:2, 2] = solution[2] - solution[:2].T @ centre
    return matrix, np.linalg.norm(design @ solution - fixed, axis=1)
