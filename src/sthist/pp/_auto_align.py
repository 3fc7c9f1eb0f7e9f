"""Find where an H&E lies, from its haematoxylin and the nuclear stain."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist import _sample, scale, stains
from sthist._imaging.registration import register, shrink, warp
from sthist._imaging.tissue import mask_of_he
from sthist.tiles import TileReader, TileSpec
from sthist.tiles._images.image import source_from_element
from sthist.tiles._images.reader import read_grid

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from sthist._imaging.registration import Registration
    from sthist.tiles._images.image import ImageSource

MAX_PIXELS = 6_000_000
SCORE_UM = 4.0
"""Resolution at which the overlap is scored: nuclei are still told apart, noise is not."""

SLACK = 0.01
"""By how much the overlap may fall before an alignment counts as worse."""


@dataclasses.dataclass(frozen=True)
class Found:
    """An alignment that was found.

    Attributes
    ----------
    to_um
        (3, 3): (x, y, 1) of the image's full-resolution pixels to µm.
    facts
        Scores before and after, and how many patches agree.
    """

    to_um: np.ndarray
    facts: dict[str, Any]


def find_alignment(sdata: SpatialData, image: str, to: str | None, *, seed: int) -> Found:
    """Lay an H&E on a nuclear stain by their pixels.

    Parameters
    ----------
    sdata, image
        The sample, and the key of the H&E.
    to
        Key of the image with the nuclear stain; found by default.
    seed
        Of the search.

    Raises
    ------
    ValueError
        If the image's µm/px is unknown, the images show nothing in common, or what was found overlaps less than before.
    """
    nuclear, channel = _sample.find_nuclear(sdata, to)
    start, mpp = _start(sdata, image)
    stain = TileReader(sdata, nuclear, TileSpec.from_mpp(1.0, 256), channels=[channel], allow_upsampling=True)
    corner = np.array(stain.extent_um[:2])
    own = np.diag([mpp, mpp, 1.0])  # the image's own frame: upright, in µm
    source = _source(sdata, image, own)
    size = np.array(source.size[::-1]) * mpp
    extent = np.array(stain.extent_um[2:]) - corner
    native = max(max(scale.pixel_size(each.to_um)) for each in (*stain.sources, source))
    step = max(native, float(np.sqrt(max(size.prod(), extent.prod()) / MAX_PIXELS)))
    fixed = _nuclear(stain.at(TileSpec.from_mpp(step, 256)), corner, extent, step)
    moving = _haematoxylin(source, size, step)
    to_corner = np.eye(3)
    to_corner[:2, 2] = -corner
    # From µm in the frame of the stain to µm in the image's own.
    first = None if start is None else own @ np.linalg.inv(start) @ np.linalg.inv(to_corner)
    found = register(fixed, moving, step, start=first, seed=seed)
    if found is None:
        msg = (
            f"Image {image!r} and {', '.join(map(repr, nuclear))} show nothing in common: no affine brings enough of their nuclei "
            "together. Are they of one section? Otherwise give landmarks=."
        )
        raise ValueError(msg)
    before = None if first is None else overlap_score(fixed, moving, first, step)
    after = overlap_score(fixed, moving, found.matrix, step)
    if before is not None and after < before - SLACK:
        msg = f"The alignment that was found overlaps less ({after:.3f}) than the present one ({before:.3f}); nothing is changed."
        raise ValueError(msg)
    to_um = np.linalg.inv(np.linalg.inv(own) @ found.matrix @ to_corner)
    return Found(to_um, _facts(found, before, after))


def _facts(found: Registration, before: float | None, after: float) -> dict[str, Any]:
    return {
        "score_before": before,
        "score_after": after,
        "patches": found.n_patches,
        "patches_that_agree": found.n_inliers,
        "median_residual_um": found.residual_um,
    }


def _start(sdata: SpatialData, image: str) -> tuple[np.ndarray | None, float]:
    """Where the image lies now, if anywhere, and its µm/px."""
    element = _sample.get(sdata, "images", image)
    try:
        start = scale.matrix_to(element)
    except KeyError:
        start = None
    if start is not None:
        return start, float(np.sqrt(abs(np.linalg.det(start[:2, :2]))))
    stated = scale.recorded_mpp(sdata, image)
    if not stated:
        msg = f"Image {image!r} has no scale: give it once with pp.set_scale(sdata, {image!r}, mpp=...)."
        raise ValueError(msg)
    return None, next(iter(stated.values()))


def _source(sdata: SpatialData, image: str, to_um: np.ndarray) -> ImageSource:
    source = source_from_element(sdata, image, to_um=to_um)
    if source.dtype != np.uint8 or len(source.channels) != 3:
        msg = (
            f"Image {image!r} has {len(source.channels)} channels of {source.dtype}; an H&E has three colours of uint8."
        )
        raise ValueError(msg)
    return source


def _nuclear(reader: TileReader, corner: np.ndarray, extent: np.ndarray, step: float) -> np.ndarray:
    """The nuclear stain above its background, (h, w) float32."""
    shape = (max(1, int(extent[1] / step)), max(1, int(extent[0] / step)))
    pixels = read_grid(reader, corner, shape)[..., 0].astype(np.float32)
    return np.clip(pixels - np.quantile(pixels, 0.2), 0, None)


def _haematoxylin(source: ImageSource, size: np.ndarray, step: float) -> np.ndarray:
    """Haematoxylin of an H&E in its own frame, (h, w) float32; glass is 0, whatever its colour."""
    reader = TileReader.from_sources([source], TileSpec.from_mpp(step, 256), fill=255)
    rgb = read_grid(reader, (0.0, 0.0), (max(1, int(size[1] / step)), max(1, int(size[0] / step))))
    tissue = mask_of_he(rgb, step)
    glass = rgb[~tissue]
    white = np.median(glass, axis=0) if len(glass) > 1000 else np.full(3, 255.0)
    vectors = stains.macenko(rgb[tissue] if tissue.any() else rgb, white=white)
    amounts = stains.concentrations(rgb, vectors, white=white)[..., 0]
    return np.clip(amounts - np.quantile(amounts, 0.2), 0, None).astype(np.float32)


def overlap_score(fixed: np.ndarray, moving: np.ndarray, matrix: np.ndarray, step: float) -> float:
    """Correlation of two stains under a matrix from the fixed to the moving one, at about 4 µm per pixel.

    Parameters
    ----------
    fixed, moving
        (h, w) float32 amounts.
    matrix
        (3, 3), in µm.
    step
        µm per pixel.

    Returns
    -------
    From -1 to 1, over all of the fixed image; 0 where one of them is even.
    """
    factor = max(1, round(SCORE_UM / step))
    small = shrink(fixed, factor)
    moved = warp(shrink(moving, factor), matrix, small.shape, step * factor)
    if small.std() == 0 or moved.std() == 0:
        return 0.0
    return float(np.corrcoef(small.ravel(), moved.ravel())[0, 1])
