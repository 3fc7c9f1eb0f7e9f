"""How far the tiles show that a virtual image was made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sthist.metrics._pixels import seam_score
from sthist.tiles._blocks.blend import TileGrid
from sthist.tiles._images.image import pyramid

if TYPE_CHECKING:
    from spatialdata import SpatialData

REACH = 8
"""Lines up to so many px from a seam are held against it."""

LEAST_TILES = 4
"""Tiles in a row, from which on what repeats can be told from what does not."""

OTHER_DISTANCES = (0.83, 0.87, 0.91, 1.07, 1.13, 1.19)
"""Of the stride; close to it, and no simple parts or multiples of it."""

MAX_SEGMENTS = 20_000
"""Pieces of seams that are looked at, each as long as a tile's stride."""


def seam_of(sdata: SpatialData, key: str, *, seed: int = 0) -> dict[str, Any]:
    """Seam score of an image on the lattice of the tiles that made it, and on the same lattice shifted by half a tile.

    Returns
    -------
    ``seam`` and ``interior``, as of :func:`sthist.metrics.image.seam_score`, their ``ratio``, and the ``stride_px`` of the lattice;
    ``repeat``, how much stronger what comes again from tile to tile is than what comes again at other distances, which also sees
    patterns inside the tiles; or only the ``reason`` why there are none.
    """
    made = sdata.attrs.get("sthist", {}).get("results", {}).get(key)
    if not made or "tile_px" not in made:
        return {"reason": f"{key!r} has no record of the tiles that made it, which tl.virtual_he keeps."}
    px = int(made["tile_px"])
    stride = TileGrid((0.0, 0.0), 1.0, px, float(made["overlap"])).stride
    pixels = pyramid(sdata.images[key])[0].transpose("y", "x", "c").data
    if max(pixels.shape[:2]) <= stride + REACH:
        return {"reason": f"{key!r} was made of tiles of {px} px and is not larger than one: it has no seam."}
    seam, interior = (_score(pixels, stride, offset, seed) for offset in (0, stride // 2))
    if seam is None or interior is None:
        return {"reason": f"{key!r} is too small beside its tiles of {px} px."}
    ratio = seam / interior if interior else float("nan")
    return {"seam": seam, "interior": interior, "ratio": ratio, "stride_px": stride, "repeat": _repeat(pixels, stride)}


def _repeat(pixels: Any, stride: int) -> float | None:
    """Spread of the mean tile's profile over that of means at other distances; None where too few tiles lie in a row."""
    strengths: list[list[float]] = []
    for axis in (0, 1):
        profile = np.asarray(pixels.mean(axis=(axis, 2)), np.float64)
        if len(profile) < LEAST_TILES * stride:
            continue
        # What changes over several tiles is tissue.
        profile -= np.convolve(
            np.pad(profile, stride, mode="reflect"), np.ones(2 * stride + 1) / (2 * stride + 1), "valid"
        )
        distances = [stride, *(round(stride * factor) for factor in OTHER_DISTANCES)]
        strengths.append([_folded(profile, distance) for distance in distances])
    if not strengths:
        return None
    own, *others = np.mean(strengths, axis=0)
    return float(own / np.median(others)) if np.median(others) > 0 else float("nan")


def _folded(profile: np.ndarray, distance: int) -> float:
    """Spread of the mean of the pieces of a profile that are as long as a distance."""
    n = len(profile) // distance
    return float(profile[: n * distance].reshape(n, distance).mean(0).std())


def _score(pixels: Any, stride: int, offset: int, seed: int) -> float | None:
    """Seam score of all lines of a lattice, or of a random part of them where there are many."""
    segments = [
        (axis, line, start)
        for axis in (0, 1)
        for line in range(offset or stride, pixels.shape[axis], stride)
        if REACH < line < pixels.shape[axis] - REACH
        for start in range(0, pixels.shape[1 - axis], stride)
    ]
    if not segments:
        return None
    if len(segments) > MAX_SEGMENTS:
        chosen = np.random.default_rng(seed).permutation(len(segments))[:MAX_SEGMENTS]
        segments = [segments[i] for i in np.sort(chosen)]
    # Strips across the seams, one above the other: what lies at a strip's end is never compared with the next strip.
    strips = [_strip(pixels, axis, line, slice(start, start + stride)) for axis, line, start in segments]
    return seam_score(np.concatenate(strips), seams_x=[REACH + 1], reach=REACH)


def _strip(pixels: Any, axis: int, line: int, along: slice) -> np.ndarray:
    """The pixels on both sides of a piece of a line: (length, 2 (REACH + 1), c), the line in the middle."""
    across = slice(line - REACH - 1, line + REACH + 1)
    part = np.asarray(pixels[across, along] if axis == 0 else pixels[along, across])
    return part.transpose(1, 0, 2) if axis == 0 else part
