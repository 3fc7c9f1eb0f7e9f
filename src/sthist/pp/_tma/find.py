"""Cores of a microarray in a mask of its tissue: where they are, and which row and column each has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from sthist._settings import logger
from sthist.pp._tma.grid import Lines, lay_grid, turn_upright

if TYPE_CHECKING:
    from collections.abc import Callable

Corner = Literal["top left", "top right", "bottom left", "bottom right"]

LEAST_PEAK, STRONG_PEAK = 0.25, 0.5
"""Part of a core's disc that is tissue, where a core is looked for, and where one is sure to be."""

LEAST_PIECE = 0.01
"""Smaller pieces of tissue, as parts of a core's disc, are specks."""

LEAST_SOLIDITY, DISC_SHARE = 0.92, 0.3
"""A piece of tissue is one core if it fills so much of its convex hull.

The diameter is theirs if they are so much of all.
"""

OWN_REACH, SMALL_REACH, SMALL_PIECE = 1.5, 1.05, 0.05
"""How far from the middle of a core, in radii, its pieces may lie, and small ones.

Which are less than this part of its disc.
"""

OVERHANG = 0.15
"""A piece of tissue is cut where more of it than this part of a core's disc is nearer to other cores than its own."""

TORN_DEPTH, LOST_SHARE = 0.5, 0.5
"""A core is broken that is torn deeper than this part of its radius, or has less than this part of the usual tissue."""


@dataclass(frozen=True, eq=False)
class CoreArray:
    """A microarray, in pixels of a mask."""

    pieces: np.ndarray  # (h, w) int32: for each pixel of tissue 1 + row * columns + column of its core; 0 elsewhere
    # (rows, columns, 2) float64: x, y of the middle of each core; where there is none, where it would be
    centres: np.ndarray
    radius: float  # of a typical core

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.centres.shape[0], self.centres.shape[1]


def find_cores(
    mask: np.ndarray,
    mpp: float,
    *,
    radius: float | None = None,
    grid: tuple[int, int] | None = None,
    first: tuple[int, int] | None = None,
    corner: Corner = "top left",
    rows_run: Literal["across", "down"] = "across",
    bounded: bool = True,
    min_tissue: float = 0.2,
) -> CoreArray:
    """Find the cores of a microarray."""
    if radius is None:
        radius = measure_radius(mask)
    peaks, coverage = _peaks(mask, radius)
    if len(peaks) == 0:
        raise ValueError(
            f"Found no core of {2 * radius * mpp:.0f} µm: there is tissue, but no piece is nearly as large. Give the "
            "diameter of the cores with diameter_um=."
        )
    upright, back = turn_upright(peaks, mask.shape, corner, rows_run)
    lines = lay_grid(upright, coverage >= STRONG_PEAK, 1.4 * radius)
    lines = lines.resized(grid, first, _fits(back, mask.shape, radius / 2) if bounded else None)
    centres = back(lines.places())
    number = lines.number_of(upright)
    for place in np.unique(number[number >= 0]):  # the best of several peaks is the middle of a core in pieces
        best = np.flatnonzero(number == place)[np.argmax(coverage[number == place])]
        centres.reshape(-1, 2)[place] = peaks[best]
    pieces = _owned(mask, centres.reshape(-1, 2), radius, min_tissue)
    _log(mask, pieces, centres.shape[:2])
    return CoreArray(pieces, centres, radius)


def measure_radius(mask: np.ndarray) -> float:
    """Radius of a typical core, in pixels.

    By the area of pieces that look like one, else by the discs that fit into them.
    """
    if not mask.any():
        raise ValueError("There is no tissue.")
    areas = _areas_of_discs(mask)
    if areas.sum() > DISC_SHARE * mask.sum():
        return float(np.sqrt(_weighted_median(areas, areas) / np.pi))
    return _inscribed_radius(mask)


def _areas_of_discs(mask: np.ndarray) -> np.ndarray:
    """Areas of the pieces of tissue, holes filled, that are about as wide as high, and convex."""
    from scipy.ndimage import label
    from skimage.measure import regionprops

    areas = []
    for piece in regionprops(label(mask)[0]):
        height, width = piece.image.shape
        if min(height, width) < 5 or max(height, width) > 1.35 * min(height, width):
            continue
        if piece.area_filled > LEAST_SOLIDITY * piece.area_convex:
            areas.append(piece.area_filled)
    return np.array(areas)


def _inscribed_radius(mask: np.ndarray) -> float:
    """Radius of the discs that fit into the tissue, by the area that they cover: for cores that touch."""
    from scipy.ndimage import distance_transform_edt
    from skimage.feature import peak_local_max

    depth = distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    places = peak_local_max(depth, min_distance=2, threshold_abs=0.25 * depth.max(), exclude_border=False)
    radii = depth[tuple(places.T)]
    kept: list[int] = []
    for i in np.argsort(-radii):
        if all(np.hypot(*(places[i] - places[j])) > radii[j] for j in kept):
            kept.append(int(i))
    return _weighted_median(radii[kept], radii[kept] ** 2)


def _weighted_median(values: np.ndarray, weights: np.ndarray) -> float:
    order = np.argsort(values)
    cumulative = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(cumulative, 0.5 * cumulative[-1])])


def _disc(radius: float) -> np.ndarray:
    reach = int(np.ceil(radius))
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    # Soft at the rim, so that a core slightly larger than it has one best place and not many.
    return np.clip((1.15 * radius - np.hypot(x, y)) / (0.3 * radius), 0, 1)


def _peaks(mask: np.ndarray, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """Places where a disc lies most on tissue, (n, 2) x, y, and the part of it that does."""
    from scipy.signal import fftconvolve
    from skimage.feature import peak_local_max

    disc = _disc(radius)
    coverage = fftconvolve(mask.astype(np.float32), (disc / disc.sum()).astype(np.float32), mode="same")
    # Rounding would tear the top of a peak into several.
    rows, columns = peak_local_max(
        np.round(coverage, 5), min_distance=max(1, int(0.7 * radius)), threshold_abs=LEAST_PEAK, exclude_border=False
    ).T
    return np.c_[columns, rows] + 0.5, coverage[rows, columns]


def _fits(back: Callable[[np.ndarray], np.ndarray], shape: tuple[int, ...], margin: float) -> Callable[[Lines], bool]:
    """Whether all places of a grid lie on the image, and not at its very edge."""

    def fits(lines: Lines) -> bool:
        places = back(lines.places()).reshape(-1, 2)
        return bool((places > margin).all() and (places < np.array(shape[::-1]) - margin).all())

    return fits


def _owned(mask: np.ndarray, centres: np.ndarray, radius: float, min_tissue: float) -> np.ndarray:
    """The number of the core that each pixel of tissue belongs to, from 1; 0 for none."""
    from scipy.ndimage import label
    from scipy.spatial import cKDTree

    disc = np.pi * radius**2
    parts, _ = label(mask, structure=np.ones((3, 3)))
    rows, columns = np.nonzero(mask & (np.bincount(parts.ravel()) >= LEAST_PIECE * disc)[parts])
    kinds, part = np.unique(parts[rows, columns], return_inverse=True)
    distance, nearest = cKDTree(centres).query(np.c_[columns, rows] + 0.5)
    n = len(centres)
    area = np.bincount(part * n + nearest, minlength=len(kinds) * n).reshape(-1, n)
    main = area.argmax(1)
    # A piece that hangs over to a neighbour's side is not cut; cores that touch are.
    whole = area.sum(1) - area.max(1) < OVERHANG * disc
    owner = np.where(whole[part], main[part], nearest)
    middle = np.stack([np.bincount(part, values, minlength=len(area)) for values in (columns, rows)], 1)
    middle = middle / area.sum(1)[:, None] + 0.5
    away = np.hypot(*(middle - centres[main]).T)
    reach = np.where(area.sum(1) < SMALL_PIECE * disc, SMALL_REACH, OWN_REACH) * radius
    near = np.where(whole[part], away[part], distance) < reach[part]
    tissue = np.bincount(owner[near], minlength=n)
    near &= (tissue >= min_tissue * disc)[owner]
    pieces = np.zeros(mask.shape, np.int32)
    pieces[rows[near], columns[near]] = owner[near] + 1
    return pieces


def is_broken(piece: np.ndarray, radius: float) -> bool:
    """Whether a core is torn: whether a gap reaches from its outline deep into it."""
    from scipy.ndimage import binary_fill_holes, distance_transform_edt
    from skimage.morphology import convex_hull_image

    rows, columns = np.nonzero(piece)
    cut = np.pad(piece[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1], 1)
    hull = convex_hull_image(cut)
    gap = hull & ~binary_fill_holes(cut)
    return bool(distance_transform_edt(hull)[gap].max(initial=0.0) > TORN_DEPTH * radius)


def _log(mask: np.ndarray, pieces: np.ndarray, grid: tuple[int, ...]) -> None:
    aside = int((mask & (pieces == 0)).sum())
    found = len(np.unique(pieces[pieces > 0]))
    logger.info(
        "Found %d cores on a grid of %d rows and %d columns; %.1f%% of the tissue is in none of them.",
        found,
        *grid,
        100 * aside / max(1, int(mask.sum())),
    )
