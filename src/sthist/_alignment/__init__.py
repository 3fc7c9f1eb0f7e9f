"""How an H&E is laid on its section: matrices, landmarks, the files that hold them, and what is checked."""

from sthist._alignment.apply import align, log_residuals
from sthist._alignment.read import Alignment, from_landmarks, from_matrix, read_alignment, read_landmarks, read_matrix

__all__ = [
    "Alignment",
    "align",
    "from_landmarks",
    "from_matrix",
    "log_residuals",
    "read_alignment",
    "read_landmarks",
    "read_matrix",
]
