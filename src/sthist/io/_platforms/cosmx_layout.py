"""The fields of view of a CosMx run: their pictures, where they lie, and how large their pixels are."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sthist._settings import logger
from sthist.io._files import checks

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    import pandas as pd

LOCAL = ["CenterX_local_px", "CenterY_local_px"]
GLOBAL = ["CenterX_global_px", "CenterY_global_px"]
# Cell centres are rounded to pixels: a linear part that is so close to a turn by 90 degrees or a mirror is one.
SUFFIXES = {".jpg", ".jpeg", ".png", ".tif", ".tiff"}
FOV_NUMBER = re.compile(r".*_F(\d+)", re.IGNORECASE)
Shape = tuple[int, int, int]
SNAP = 0.01
AGREE_PX = 2.0
# µm/px by height and width of a field of view: of the first instruments, and of those that are sold.
FRAME_MPP = {(3648, 5472): 0.18, (4256, 4256): 0.12028}


def _by_fov(folder: Path) -> dict[int, Path]:
    """Picture files by the number of their field of view, in the order of the numbers."""
    files: dict[int, Path] = {}
    for file in sorted(folder.iterdir()) if folder.is_dir() else []:
        number = FOV_NUMBER.match(file.stem)
        if file.suffix.lower() in SUFFIXES and number:
            files.setdefault(int(number.group(1)), file)
    return dict(sorted(files.items()))


def pictures(folder: Path, nuclear_channel: int) -> tuple[dict[int, Path], dict[int, Shape]]:
    """Composites by field, and their shapes, which are those of one stain."""
    directory = checks.require_file(folder, "CellComposite", vendor="CosMx")
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
    for number, n in fov.value_counts().sort_index().items():
        what = f"field {number}, which has {n} cells"
        if number not in images:
            logger.warning(f"{folder / 'CellComposite'} has no composite of {what}; they have no image.")
        elif labels and number not in labels:
            logger.warning(f"{folder / 'CellLabels'} has no labels of {what}; the table goes with the cells' circles.")


@dataclass(frozen=True)
class Layout:
    """Matrices from pixels of a field of view, as the tables count them, to global pixels."""

    linear: np.ndarray  # (2, 2), shared by all fields
    offset: dict[int, np.ndarray]  # by number of the field

    def matrix(self, fov: int) -> np.ndarray:
        """(3, 3): (x, y, 1) of a field to global pixels."""
        matrix = np.eye(3)
        matrix[:2, :2], matrix[:2, 2] = self.linear, self.offset[fov]
        return matrix

    def to_global(self, fov: np.ndarray, xy: np.ndarray) -> np.ndarray:
        """Points of several fields, (n, 2), in global pixels."""
        numbers, which = np.unique(fov, return_inverse=True)
        offsets = np.array([self.offset[number] for number in numbers.tolist()])
        return xy @ self.linear.T + offsets[which]


def find_layout(path: Path, cells: pd.DataFrame, positions: pd.DataFrame | None) -> Layout:
    """The layout, from the cells' centres in both frames, and from the fields' own positions where these agree.

    Each affine that is estimated from rounded centres alone is off by fractions of a pixel, and neighbours by different
    ones: seams. One linear part for all fields, snapped, and the median offset of each field have none.
    """
    fov = cells["fov"].to_numpy(np.int64)
    local, there = cells[LOCAL].to_numpy(np.float64), cells[GLOBAL].to_numpy(np.float64)
    linear = _linear(path, fov, local, there)
    rest = there - local @ linear.T
    offset, off = {}, {}
    for number in np.unique(fov).tolist():
        offset[number] = np.median(rest[fov == number], axis=0)
        off[number] = float(np.median(np.abs(rest[fov == number] - offset[number])))
    worst = max(off, key=off.__getitem__)
    if off[worst] > AGREE_PX:
        logger.warning(
            f"{path}: the local and global centres of the cells of field {worst} differ by more than a shift "
            f"({off[worst]:.1f} px); its image may lie wrong."
        )
    return Layout(linear, _stated_offsets(offset, positions))


def _linear(path: Path, fov: np.ndarray, local: np.ndarray, there: np.ndarray) -> np.ndarray:
    """The linear part that all fields share: estimated about each field's own centre, then snapped."""
    _, which = np.unique(fov, return_inverse=True)
    n = np.bincount(which)[:, None]
    centred = []
    for xy in (local, there):
        means = np.stack([np.bincount(which, xy[:, axis]) for axis in (0, 1)], axis=1) / n
        centred.append(xy - means[which])
    solution, _, rank, _ = np.linalg.lstsq(centred[0], centred[1], rcond=1e-6)
    if rank < 2:
        raise ValueError(
            f"{path}: the cells' {', '.join(LOCAL)} do not tell how the fields of view are turned: a field needs three "
            "cells that are not on one line."
        )
    linear = solution.T
    snapped = np.round(linear)
    is_turn = (np.abs(snapped).sum(0) == 1).all() and (np.abs(snapped).sum(1) == 1).all()
    if is_turn and np.abs(linear - snapped).max() <= SNAP:
        return np.asarray(snapped)
    logger.warning(
        f"{path}: local and global centres of the cells are related by {np.round(linear, 4).tolist()}, which is no "
        "turn by 90 degrees; the fields may show seams."
    )
    return np.asarray(linear)


def _stated_offsets(offset: dict[int, np.ndarray], positions: pd.DataFrame | None) -> dict[int, np.ndarray]:
    """The fields' own positions, which are not rounded, where all of them agree with the cells."""
    if positions is None or not {"x_global_px", "y_global_px"} <= set(positions):
        return offset
    numbers = positions["fov"].to_numpy(np.int64).tolist()
    stated = dict(zip(numbers, positions[["x_global_px", "y_global_px"]].to_numpy(np.float64), strict=True))
    if all(number in stated and np.abs(stated[number] - xy).max() <= AGREE_PX for number, xy in offset.items()):
        return stated
    return offset


def stated_mpp(cells: pd.DataFrame, positions: pd.DataFrame | None, frame: tuple[int, int]) -> dict[str, float]:
    """µm/px by who states it: the fields' positions in mm, the cells' areas in µm², else the size of the frame."""
    sources = {}
    if positions is not None:
        px = [name for name in ("x_global_px", "y_global_px") if name in positions]
        mm = [name for name in ("x_global_mm", "y_global_mm") if name in positions]
        if len(px) == len(mm) == 2:
            spread_px, spread_mm = (float(np.sqrt(positions[names].var(ddof=0).sum())) for names in (px, mm))
            if spread_px > 0 and spread_mm > 0:  # two fields at least
                sources["positions of the fields in mm and px"] = 1000 * spread_mm / spread_px
    if {"Area", "Area.um2"} <= set(cells):
        ratio = (cells["Area.um2"] / cells["Area"].where(cells["Area"] > 0)).median()
        if ratio > 0:
            sources["areas of the cells in µm² and px"] = float(np.sqrt(ratio))
    # The size of a frame says which instrument it was, not what it measured: it counts where nothing else does.
    if not sources and frame in FRAME_MPP:
        sources[f"{frame[1]} x {frame[0]} px of a CosMx frame"] = FRAME_MPP[frame]
    return sources
