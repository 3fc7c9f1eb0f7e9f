"""An affine between two stains of the same section, from nothing but their pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

COARSE_PX = 256
"""Longer side of the images on which all turns are tried."""

ANGLE_STEP_DEG, SCALES, FLIPS = 5.0, (0.95, 1.0, 1.05), (False, True)
CANDIDATES = 4
PATCH_PX, REACH_PX, TOLERANCE_PX = 64, 12, 2.5
"""Patches that are looked for in the other image, how far around their place, and how near an inlier lies."""

MAX_PATCHES = 600
LEAST_CORRELATION = 0.25
LEAST_INLIERS, LEAST_SHARE = 8, 0.35
"""Patches that must agree on one affine, and their share of those that look alike somewhere."""


@dataclass(frozen=True)
class Registration:
    """What was found."""

    matrix: np.ndarray  # (3, 3): (x, y, 1) of the fixed image to the moving one, both in µm from their corner
    n_inliers: int  # patches that agree on it at the finest level
    n_patches: int  # patches that were found somewhere
    residual_um: float  # median distance of the inliers from where it puts them


def register(
    fixed: np.ndarray, moving: np.ndarray, step_um: float, *, start: np.ndarray | None = None, seed: int = 0
) -> Registration | None:
    """Find the affine that lays a moving image on a fixed one, coarse to fine.

    On small images all turns in steps of 5 degrees, both sides and three scales are tried, their shifts by Fourier
    correlation; the best few, and the start, are followed: patches of one image are looked for in the other, and an
    affine is fitted to those that agree (RANSAC), at ever finer levels.

    Returns the registration, or None where the images show nothing in common.
    """
    rng = np.random.default_rng(seed)
    factors = _factors(max(*fixed.shape, *moving.shape))
    coarse = factors[0]
    candidates = [] if start is None else [start]
    candidates += search_turns(shrink(fixed, coarse), shrink(moving, coarse), step_um * coarse)
    best: Registration | None = None
    for matrix in candidates:
        refined = refine(fixed, moving, step_um, matrix, factors[:2], rng)
        if refined is not None and (best is None or refined.n_inliers > best.n_inliers):
            best = refined
    if best is None:
        return None
    return refine(fixed, moving, step_um, best.matrix, factors[1:] or factors, rng)


def _factors(longest: int) -> list[int]:
    """By how much the images are shrunk, level by level, down to 1."""
    factors = [1]
    while longest / factors[0] > COARSE_PX:
        factors.insert(0, 2 * factors[0])
    return factors


def shrink(image: np.ndarray, factor: int) -> np.ndarray:
    """Means over blocks; a border that fills none is left out."""
    if factor == 1:
        return image
    height, width = (n // factor for n in image.shape)
    blocks = image[: height * factor, : width * factor].reshape(height, factor, width, factor)
    return np.asarray(blocks.mean((1, 3), dtype=np.float32))


def search_turns(fixed: np.ndarray, moving: np.ndarray, step_um: float) -> list[np.ndarray]:
    """The best few of all turns, flips and scales, each with its best shift; matrices from fixed to moving, in µm."""
    from scipy import fft

    side = int(np.ceil(np.hypot(*moving.shape))) + 2
    n = fft.next_fast_len(max(fixed.shape) + side, real=True)
    target = fft.rfft2(_standard(fixed), (n, n))
    candidates: list[tuple[float, np.ndarray]] = []
    prepared = _standard(moving)
    for linear in _turns():
        to_moving = np.eye(3)
        to_moving[:2, :2] = linear
        to_moving[:2, 2] = step_um / 2 * (np.array(moving.shape[::-1]) - linear @ [side, side])
        turned = warp(prepared, to_moving, (side, side), step_um)
        norm = float(np.linalg.norm(turned))
        if norm == 0:
            continue
        correlation = fft.irfft2(target * np.conj(fft.rfft2(turned, (n, n))), (n, n))
        y, x = np.unravel_index(int(np.argmax(correlation)), correlation.shape)
        shift = np.array([x - n if x >= fixed.shape[1] else x, y - n if y >= fixed.shape[0] else y]) * step_um
        back = np.eye(3)
        back[:2, 2] = -shift
        candidates.append((float(correlation[y, x]) / norm, to_moving @ back))
    candidates.sort(key=lambda pair: -pair[0])
    return _distinct([matrix for _, matrix in candidates], np.array(fixed.shape[::-1]) * step_um)


def _turns() -> Iterator[np.ndarray]:
    for flip in FLIPS:
        for scale in SCALES:
            for angle in np.deg2rad(np.arange(0, 360, ANGLE_STEP_DEG)):
                cos, sin = np.cos(angle), np.sin(angle)
                yield np.array([[cos, -sin], [sin, cos]]) @ np.diag([-1.0 if flip else 1.0, 1.0]) * scale


def _standard(image: np.ndarray) -> np.ndarray:
    """Smoothed, without its mean, and with its brightest spots cut off; of length 1."""
    from scipy.ndimage import gaussian_filter

    smooth = gaussian_filter(image.astype(np.float32), 1.0)
    smooth = np.minimum(smooth, np.quantile(smooth, 0.995))
    smooth = smooth - smooth.mean()
    return smooth / max(float(np.linalg.norm(smooth)), 1e-12)


def _distinct(matrices: list[np.ndarray], size_um: np.ndarray) -> list[np.ndarray]:
    """The first few that put the section somewhere else than those before."""
    corners = np.array([[0, 0, 1], [1, 0, 1], [0, 1, 1]]) * np.append(size_um, 1)
    kept: list[np.ndarray] = []
    for matrix in matrices:
        apart = [np.abs((corners @ (matrix - other).T)[:, :2]).max() for other in kept]
        if all(distance > 0.15 * size_um.max() for distance in apart):
            kept.append(matrix)
        if len(kept) == CANDIDATES:
            break
    return kept


def warp(image: np.ndarray, matrix: np.ndarray, shape: tuple[int, int], step_um: float) -> np.ndarray:
    """An image sampled on another grid of the same step, whose µm a matrix takes to the image's; 0 outside."""
    from scipy.ndimage import affine_transform

    # Pixel centres lie at (i + 0.5) steps; scipy counts rows first.
    offset = matrix[:2, :2] @ [0.5, 0.5] + matrix[:2, 2] / step_um - 0.5
    return np.asarray(
        affine_transform(image, matrix[1::-1, 1::-1], offset[::-1], output_shape=shape, order=1, output=np.float32)
    )


def refine(
    fixed: np.ndarray,
    moving: np.ndarray,
    step_um: float,
    matrix: np.ndarray,
    factors: list[int],
    rng: np.random.Generator,
) -> Registration | None:
    """Follow a matrix from level to level; None where too few patches agree at the last."""
    registration: Registration | None = None
    for factor in factors:
        step = step_um * factor
        target = shrink(fixed, factor)
        moved = warp(shrink(moving, factor), matrix, target.shape, step)
        places, shifts = match_patches(target, moved)
        fitted = _agree(places, places + shifts, rng)
        if fitted is None:
            return None
        correction, inliers, residual = fitted
        to_um = np.diag([step, step, 1.0])
        matrix = matrix @ to_um @ correction @ np.linalg.inv(to_um)
        registration = Registration(matrix, int(inliers.sum()), len(places), float(residual * step))
    return registration


def match_patches(fixed: np.ndarray, moved: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where patches of one image lie in another that is nearly in place: centres (x, y) and shifts, in pixels."""
    from scipy import fft

    patch = min(PATCH_PX, max(16, min(fixed.shape) // 5))
    reach = min(REACH_PX, patch // 2)
    rows, columns = (np.arange(reach, n - patch - reach + 1, patch // 2) for n in fixed.shape)
    corners = np.stack(np.meshgrid(columns, rows), -1).reshape(-1, 2)
    if len(corners) > MAX_PATCHES:
        corners = corners[np.linspace(0, len(corners) - 1, MAX_PATCHES).astype(int)]
    n = fft.next_fast_len(patch + 2 * reach, real=True)
    contrast = 0.05 * float(fixed.std())
    places, shifts = [], []
    for x, y in corners.tolist():
        template = fixed[y : y + patch, x : x + patch]
        if template.std() <= contrast:
            continue
        window = moved[y - reach : y + patch + reach, x - reach : x + patch + reach]
        shift = _best_shift(template, window, reach, n)
        if shift is not None:
            places.append((x + patch / 2, y + patch / 2))
            shifts.append(shift)
    return np.array(places).reshape(-1, 2), np.array(shifts).reshape(-1, 2)


def _best_shift(template: np.ndarray, window: np.ndarray, reach: int, n: int) -> tuple[float, float] | None:
    """x, y by which a template lies off the middle of a window, to a part of a pixel.

    None where nothing resembles it.
    """
    from scipy import fft

    centred = template - template.mean()
    size = 2 * reach + 1
    products = fft.irfft2(fft.rfft2(window, (n, n)) * np.conj(fft.rfft2(centred, (n, n))), (n, n))[:size, :size]
    spread = _window_spread(window, template.shape[0])
    usable = spread > 1e-3 * max(float(spread.max()), 1e-12)
    correlation = np.where(usable, products / np.where(usable, spread, 1.0), 0.0) / float(np.linalg.norm(centred))
    i, j = np.unravel_index(int(np.argmax(correlation)), correlation.shape)
    if correlation[i, j] < LEAST_CORRELATION or not (0 < i < size - 1 and 0 < j < size - 1):
        return None
    return (
        j - reach + peak_between(correlation[i, j - 1 : j + 2]),
        i - reach + peak_between(correlation[i - 1 : i + 2, j]),
    )


def _window_spread(window: np.ndarray, side: int) -> np.ndarray:
    """Root of the summed squared deviations under each place of a template, by summed areas."""
    sums = [np.pad((window.astype(np.float64)) ** power, ((1, 0), (1, 0))).cumsum(0).cumsum(1) for power in (1, 2)]
    total, squares = (s[side:, side:] - s[:-side, side:] - s[side:, :-side] + s[:-side, :-side] for s in sums)
    return np.sqrt(np.maximum(squares - total**2 / side**2, 0.0))


def peak_between(values: np.ndarray) -> float:
    """Where the parabola through three values has its top, from the middle one."""
    curvature = values[0] - 2 * values[1] + values[2]
    return 0.0 if curvature >= 0 else float(np.clip(0.5 * (values[0] - values[2]) / curvature, -0.5, 0.5))


def _agree(
    places: np.ndarray, targets: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, float] | None:
    """The affine on which most pairs agree, which they are, and their median distance; None where too few do."""
    if len(places) < LEAST_INLIERS:
        return None
    best = np.zeros(len(places), np.bool_)
    for _ in range(400):
        three = rng.choice(len(places), 3, replace=False)
        design = np.c_[places[three], np.ones(3)]
        if abs(np.linalg.det(design)) < PATCH_PX**2 / 4:
            continue
        inliers = _distances(places, targets, np.linalg.solve(design, targets[three])) < TOLERANCE_PX
        if inliers.sum() > best.sum():
            best = inliers
    for _ in range(3):
        if best.sum() < max(LEAST_INLIERS, LEAST_SHARE * len(places)):
            return None
        solution = np.linalg.lstsq(np.c_[places[best], np.ones(int(best.sum()))], targets[best], rcond=None)[0]
        distances = _distances(places, targets, solution)
        best = distances < TOLERANCE_PX
    matrix = np.eye(3)
    matrix[:2] = solution.T
    return matrix, best, float(np.median(distances[best]))


def _distances(places: np.ndarray, targets: np.ndarray, solution: np.ndarray) -> np.ndarray:
    return np.asarray(np.linalg.norm(places @ solution[:2] + solution[2] - targets, axis=1))
