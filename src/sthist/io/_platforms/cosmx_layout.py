"""Where the fields of view of a CosMx run lie, and how large their pixels are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sthist._settings import logger

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

LOCAL = ["CenterX_local_px", "CenterY_local_px"]
GLOBAL = ["CenterX_global_px", "CenterY_global_px"]
# Cell centres are rounded to pixels: a linear part that is so close to a turn by 90 degrees or a mirror is one.
SNAP = 0.01
AGREE_PX = 2.0
# µm/px by height and width of a field of view: of the first instruments, and of those that are sold.
FRAME_MPP = {(3648, 5472): 0.18, (4256, 4256): 0.12028}


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
