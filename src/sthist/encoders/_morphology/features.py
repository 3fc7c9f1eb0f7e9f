"""What the ``morphology`` encoder measures of one tile, by name."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from sthist.encoders._morphology import kernels as kernels
from sthist.encoders._morphology import nuclei as nuclei
from sthist.stains import TISSUE_OD, optical_density

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

SCALES_UM = (1, 2, 4, 8, 16)
PATTERN_SCALES_UM = (1, 2, 4, 8)
SMALLEST_GRID = 5
"""Pixels a side of the coarsest grid: a scale of more than a fifth of the tile is measured at a fifth of it."""

NUCLEUS_PIXEL_UM, COARSEST_NUCLEUS_PIXEL_UM = 0.75, 1.5
PATTERN_TOLERANCE = 0.03  # haematoxylin by which a neighbour differs; less is grain
FAINT = 0.05
"""Amount of stain that counts as one in its logarithm: well above it, a slide that is stained twice as strongly moves a
feature and does not stretch it, and a linear model takes no notice."""

EMPTY_DENSITY = 0.15  # optical density at which emptiness has fallen to 1/e
SHARES = (0.05, 0.25, 0.5, 0.75, 0.95)
COLOUR_SHARES = (0.1, 0.5, 0.9)
LYMPHOCYTE_UM2, LYMPHOCYTE_ECCENTRICITY = 45.0, 0.75
LARGE_UM2, ELONGATED_ECCENTRICITY = 80.0, 0.9


class Stains(NamedTuple):
    """How colours become amounts of stain."""

    density_of: np.ndarray
    inverse: np.ndarray

    @classmethod
    def of(cls, vectors: Sequence[Sequence[float]] | np.ndarray, white: float) -> Stains:
        """From (2, 3) vectors of haematoxylin and eosin and the grey level of glass."""
        unit = np.asarray(vectors, np.float64)
        unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
        return cls(optical_density(np.arange(256), white), np.linalg.pinv(unit).astype(np.float32))


def describe(tile: np.ndarray, mpp: float, stains: Stains) -> dict[str, float]:
    """Every feature of an (n, n, 3) uint8 tile."""
    planes = kernels.separate(tile, stains.density_of, stains.inverse, np.float32(TISSUE_OD))
    return {
        **stain_features(planes),
        **colour_features(tile, planes[3]),
        **texture_features(planes, mpp),
        **nuclear_features(planes, mpp),
    }


def stain_features(planes: np.ndarray) -> dict[str, float]:
    """Distribution of the stains over the pixels that are tissue."""
    tissue = planes[3]
    out = {"background_share": math.sqrt(max(0.0, 1.0 - float(tissue.mean(dtype=np.float64))))}
    for name, plane in zip(("haematoxylin", "eosin", "density"), planes, strict=False):
        out |= distribution(name, plane, tissue, SHARES, amount)
        centre, rim, both = kernels.centre_and_rim(plane, tissue)
        out[f"{name}_centre_to_rim"] = amount(centre) - amount(rim) if both else 0.0
    share = planes[0] / np.maximum(planes[0] + planes[1], np.float32(1e-6))
    out |= distribution("haematoxylin_share", share, tissue, SHARES, float)
    del out["haematoxylin_share_skewness"]
    return out | {
        "haematoxylin_eosin_correlation": kernels.correlation(planes[0], planes[1], tissue),
        "haematoxylin_to_eosin": out["haematoxylin_mean"] - out["eosin_mean"],
    }


def distribution(
    name: str,
    plane: np.ndarray,
    tissue: np.ndarray,
    shares: Sequence[float],
    unit: Callable[[float], float],
    largest: int = 1,
) -> dict[str, float]:
    """Mean, standard deviation and quantiles of a plane over tissue in a unit, and its skewness."""
    mean, sd, skewness = kernels.moments(plane, tissue)
    values = kernels.quantiles(plane, tissue, np.array(shares), 1 / largest) * largest
    quantiles = {f"{name}_q{round(100 * share):02d}": unit(value) for share, value in zip(shares, values, strict=True)}
    return {f"{name}_mean": unit(mean), f"{name}_sd": unit(sd), f"{name}_skewness": compress(skewness)} | quantiles


def colour_features(tile: np.ndarray, tissue: np.ndarray) -> dict[str, float]:
    """Distribution of the colours, 0 to 1: over tissue, and the mean over the whole tile."""
    out: dict[str, float] = {}
    channels = dict(zip(("red", "green", "blue"), np.ascontiguousarray(tile.transpose(2, 0, 1)), strict=True))
    for name, channel in channels.items():
        out |= distribution(name, channel, tissue, COLOUR_SHARES, lambda grey: grey / 255, 256)
        out[f"{name}_mean_with_background"] = float(channel.mean(dtype=np.float64)) / 255
    return out


def texture_features(planes: np.ndarray, mpp: float) -> dict[str, float]:
    """Contrast, coarseness, direction and patterns of the stains on grids of a few µm."""
    out: dict[str, float] = {}
    for scale in SCALES_UM:
        grid = kernels.shrink(planes, grid_side(planes.shape[1], mpp, scale))
        tissue = grid[3]
        name = f"texture_{scale}um"
        for stain, plane in zip(("haematoxylin", "eosin"), grid, strict=False):
            _, contrast, skewness = kernels.moments(plane - kernels.binomial(plane), tissue)
            out[f"{name}_{stain}_contrast"] = amount(contrast)
            out[f"{name}_{stain}_sd"] = amount(kernels.moments(plane, tissue)[1])
            if stain == "haematoxylin":
                # Eosin is so faint on some slides that the shape of its distribution is that of its noise.
                out[f"{name}_haematoxylin_skewness"] = compress(skewness)
                out[f"{name}_haematoxylin_neighbour_correlation"] = kernels.neighbour_correlation(plane, tissue)
        near, overall = kernels.coherence(grid[0], tissue)
        out |= {f"{name}_coherence": near, f"{name}_alignment": overall}
        out[f"{name}_haematoxylin_eosin_correlation"] = kernels.correlation(grid[0], grid[1], tissue)
        out[f"{name}_emptiness"] = float(np.exp(-grid[2] / EMPTY_DENSITY).mean(dtype=np.float64))
        if scale in PATTERN_SCALES_UM:
            patterns = kernels.binary_patterns(grid[0], tissue, np.float32(PATTERN_TOLERANCE))
            # Square roots of shares: rare patterns count, and a share of 0 is no singularity as in the logarithm.
            out |= {f"{name}_pattern_{k}": math.sqrt(share) for k, share in enumerate(patterns)}
    return out


def nuclear_features(planes: np.ndarray, mpp: float) -> dict[str, float]:
    """Number, size, shape, stain and arrangement of the nuclei; all 0 where there are none or pixels are too coarse."""
    table, labels, tissue, grid = find_nuclei(planes, mpp)
    n = len(table)
    area_mm2 = (planes.shape[1] * mpp / 1e3) ** 2
    tissue_mm2 = max(float(planes[3].mean()), 0.05) * area_mm2
    whole = table[table[:, 9] == 0] if (table[:, 9] == 0).any() else table
    column = dict(zip(nuclei.COLUMNS, whole.T, strict=True))
    elongated = column["eccentricity"] > ELONGATED_ECCENTRICITY
    large = column["area_um2"] > LARGE_UM2
    small = (column["area_um2"] < LYMPHOCYTE_UM2) & (column["eccentricity"] < LYMPHOCYTE_ECCENTRICITY)
    out = {
        "sqrt_nuclei_density_per_mm2": math.sqrt(n / area_mm2),
        "sqrt_nuclei_density_in_tissue_per_mm2": math.sqrt(n / tissue_mm2),
        "nuclei_area_share": float((labels > 0).mean()),
        "sqrt_nuclei_small_round_per_mm2": math.sqrt(small.sum() / area_mm2),
        "sqrt_nuclei_large_per_mm2": math.sqrt(large.sum() / area_mm2),
        "sqrt_nuclei_elongated_per_mm2": math.sqrt(elongated.sum() / area_mm2),
        "nuclei_small_round_share": share_of(small),
        "nuclei_large_share": share_of(large),
        "nuclei_elongated_share": share_of(elongated),
        "nuclei_alignment": alignment(column["angle"], column["eccentricity"]),
    }
    column |= {name: np.log1p(column[name] / FAINT) for name in ("haematoxylin", "chromatin", "eosin")}
    column |= {"area_um2": np.log(column["area_um2"]), "distance_um": np.log1p(nuclei.nearest_distances(table))}
    for name in ("area_um2", "eccentricity", "roundness", "haematoxylin", "chromatin", "distance_um"):
        low, middle, high = spread_of(column[name])
        out |= {f"nuclei_{name}_q10": low, f"nuclei_{name}_median": middle, f"nuclei_{name}_q90": high}
    out["nuclei_eosin_median"] = spread_of(column["eosin"])[1]
    out["nuclei_unevenness"] = unevenness(table, planes.shape[1] * mpp)
    outside = np.where(labels == 0, tissue, np.float32(0.0)).astype(np.float32)
    for name, plane in zip(("haematoxylin", "eosin"), grid, strict=False):
        mean, sd, _ = kernels.moments(plane, outside) if n else (0.0, 0.0, 0.0)
        out |= {f"between_nuclei_{name}_mean": amount(mean), f"between_nuclei_{name}_sd": amount(sd)}
    contrast = out["nuclei_haematoxylin_median"] - out["between_nuclei_haematoxylin_mean"]
    return out | {"nuclei_to_between_haematoxylin": contrast}


def find_nuclei(planes: np.ndarray, mpp: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Table of nuclei, labels, tissue and stains, on pixels of 0.75 µm where the tile has them; empty if too coarse."""
    n = planes.shape[1]
    if mpp > COARSEST_NUCLEUS_PIXEL_UM:
        return np.empty((0, len(nuclei.COLUMNS))), np.zeros((n, n), np.int32), planes[3], planes
    grid = kernels.shrink(planes, grid_side(n, mpp, NUCLEUS_PIXEL_UM))
    labels, table = nuclei.find(grid[0], grid[1], n * mpp / grid.shape[1])
    return table, labels, grid[3], grid


def grid_side(n: int, mpp: float, pixel_um: float) -> int:
    """Pixels a side of a grid of ``pixel_um``: never finer than the tile's own pixels, never fewer than five."""
    return min(n, max(SMALLEST_GRID, round(n * mpp / pixel_um)))


def amount(value: float) -> float:
    """An amount of stain, on a logarithmic scale from 0."""
    return math.log1p(value / FAINT)


def compress(skewness: float) -> float:
    """A skewness on a logarithmic scale, with its sign: single dark pixels must not carry a linear model away."""
    return math.copysign(math.log1p(abs(skewness)), skewness)


def share_of(flags: np.ndarray) -> float:
    """Share that is true; 0 of none."""
    return float(flags.mean()) if flags.size else 0.0


def spread_of(values: np.ndarray) -> tuple[float, float, float]:
    """Quantiles 0.1, 0.5 and 0.9, interpolated; 0 of none."""
    if values.size == 0:
        return 0.0, 0.0, 0.0
    ordered = np.sort(values)
    at = np.array((0.1, 0.5, 0.9)) * (ordered.size - 1)
    low = at.astype(np.int64)
    high = np.minimum(low + 1, ordered.size - 1)
    first, second, third = (ordered[low] + (at - low) * (ordered[high] - ordered[low])).tolist()
    return first, second, third


def alignment(angle: np.ndarray, eccentricity: np.ndarray) -> float:
    """Length of the mean of the doubled angles, weighted with eccentricity: 1 where all nuclei lie one way."""
    total = float(eccentricity.sum())
    if total == 0:
        return 0.0
    return (
        math.hypot(float((eccentricity * np.cos(2 * angle)).sum()), float((eccentricity * np.sin(2 * angle)).sum()))
        / total
    )


def unevenness(table: np.ndarray, side_um: float) -> float:
    """Standard deviation over mean of the numbers of nuclei in 3 x 3 squares; 0 of none."""
    if len(table) == 0:
        return 0.0
    cell = np.minimum((table[:, :2] / side_um * 3).astype(np.int64), 2)
    counts = np.bincount(cell[:, 0] * 3 + cell[:, 1], minlength=9)
    return float(counts.std() / counts.mean())
