"""The pictures of a CosMx folder, by field of view."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from sthist._settings import logger
from sthist.io._files import checks

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    import pandas as pd

VENDOR = "CosMx"
SUFFIXES = {".jpg", ".jpeg", ".png", ".tif", ".tiff"}
FOV_NUMBER = re.compile(r".*_F(\d+)", re.IGNORECASE)
Shape = tuple[int, int, int]


def _by_fov(folder: Path) -> dict[int, Path]:
    """Picture files by the number of their field of view, in the order of the numbers."""
    found: dict[int, Path] = {}
    for file in sorted(folder.iterdir()) if folder.is_dir() else []:
        number = FOV_NUMBER.match(file.stem)
        if file.suffix.lower() in SUFFIXES and number:
            found.setdefault(int(number.group(1)), file)
    return dict(sorted(found.items()))


def pictures(folder: Path, nuclear_channel: int) -> tuple[dict[int, Path], dict[int, Shape]]:
    """Composites by field, and their shapes, which are those of one stain."""
    directory = checks.require_file(folder, "CellComposite", vendor=VENDOR)
    files = _by_fov(directory)
    if not files:
        raise FileNotFoundError(
            f"{directory} has no pictures that are named like CellComposite_F001.jpg, with the number of their field."
        )
    shapes = {number: checks.require_picture(file)[0] for number, file in files.items()}
    first = next(iter(shapes))
    for number, shape in shapes.items():
        if shape[0] != shapes[first][0]:
            raise ValueError(
                f"The composites show different stains: {files[first]} has {shapes[first][0]} channels, "
                f"{files[number]} has {shape[0]}."
            )
    if shapes[first][0] > 1 and not 0 <= nuclear_channel < shapes[first][0]:
        raise ValueError(
            f"nuclear_channel is {nuclear_channel}; {files[first]} has the channels 0 to {shapes[first][0] - 1}."
        )
    return files, shapes


def label_files(folder: Path, shapes: dict[int, Shape]) -> dict[int, Path]:
    """Label images by field, of the fields that have a composite."""
    files = {number: file for number, file in _by_fov(folder / "CellLabels").items() if number in shapes}
    if not files:
        logger.warning("%s has no CellLabels; the cells are circles alone.", folder)
    for number, file in files.items():
        shape = checks.require_picture(file)[0]
        if shape[-2:] != shapes[number][-2:]:
            raise ValueError(
                f"{file} has {shape[-1]} x {shape[-2]} px, but the composite of field {number} has "
                f"{shapes[number][-1]} x {shapes[number][-2]}."
            )
    return files


def warn_of_fields(folder: Path, fov: pd.Series, images: Collection[int], labels: Collection[int]) -> None:
    """Say which fields have cells but no picture, and which have no labels where others have."""
    n_cells = fov.value_counts().sort_index()
    for number, n in n_cells.items():
        if number not in images:
            logger.warning(
                "%s has no composite of field %d, which has %d cells; they have no image.",
                folder / "CellComposite",
                number,
                n,
            )
        elif labels and number not in labels:
            logger.warning(
                "%s has no labels of field %d, which has %d cells; the table goes with the circles of the cells.",
                folder / "CellLabels",
                number,
                n,
            )
