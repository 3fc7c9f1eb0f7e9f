"""Lay an image on the rest of its sample."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist import _alignment, _sample, _store, scale, stains
from sthist._alignment.checks import UNITS
from sthist._imaging.colours import require_rgb8
from sthist._imaging.registration import register, shrink, warp
from sthist._imaging.tissue import mask_of_he, not_stain
from sthist._sample.samples import over_samples
from sthist._settings import logger, settings
from sthist.tiles import TileReader, TileSpec
from sthist.tiles._images.image import Image, field_of, open_image
from sthist.tiles._images.reader import read_grid, seen_grid

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from sthist._alignment.checks import Units
    from sthist._imaging.registration import Registration

MAX_PIXELS = 6_000_000
SCORE_UM = 4.0
"""Resolution at which the overlap is scored: nuclei are still told apart, noise is not."""

SLACK = 0.01
"""By how much the overlap may fall before an alignment counts as worse."""


@dataclasses.dataclass(frozen=True)
class PixelAlignment:
    """An alignment that was found."""

    to_um: np.ndarray  # (3, 3): (x, y, 1) of the image's full-resolution pixels to µm
    facts: dict[str, Any]  # scores before and after, and how many patches agree


def find_alignment(sdata: SpatialData, image: str, to: str | None, *, seed: int) -> PixelAlignment:
    """Lay an H&E on a nuclear stain by their pixels."""
    nuclear, channel = _sample.find_nuclear(sdata, to)
    start, mpp = _start(sdata, image)
    stain = open_image(sdata, nuclear, channels=[channel])
    corner = np.array(stain.extent_um[:2])
    own = np.diag([mpp, mpp, 1.0])  # the image's own frame: upright, in µm
    he = Image((field_of(_sample.get(sdata, "images", image), image, own),))
    require_rgb8(f"Image {image!r}", len(he.channels), he.dtype)
    size = np.array(he.fields[0].size[::-1]) * mpp
    extent = np.array(stain.extent_um[2:]) - corner
    native = max(stain.coarsest_mpp, he.coarsest_mpp)
    step = max(native, float(np.sqrt(max(size.prod(), extent.prod()) / MAX_PIXELS)))
    fixed = _nuclear(stain, corner, extent, step)
    moving = _haematoxylin(he, size, step)
    to_corner = np.eye(3)
    to_corner[:2, 2] = -corner
    # From µm in the frame of the stain to µm in the image's own.
    first = None if start is None else own @ np.linalg.inv(start) @ np.linalg.inv(to_corner)
    registration = register(fixed, moving, step, start=first, seed=seed)
    if registration is None:
        raise ValueError(
            f"Image {image!r} and {', '.join(map(repr, nuclear))} show nothing in common: no affine brings enough of "
            "their nuclei together. Are they of one section? Otherwise give landmarks=."
        )
    before = None if first is None else overlap_score(fixed, moving, first, step)
    after = overlap_score(fixed, moving, registration.matrix, step)
    if before is not None and after < before - SLACK:
        raise ValueError(
            f"The alignment that was found overlaps less ({after:.3f}) than the present one ({before:.3f}); nothing is "
            "changed."
        )
    to_um = np.linalg.inv(np.linalg.inv(own) @ registration.matrix @ to_corner)
    return PixelAlignment(to_um, _facts(registration, before, after))


def _facts(registration: Registration, before: float | None, after: float) -> dict[str, Any]:
    return {
        "score_before": before,
        "score_after": after,
        "patches": registration.n_patches,
        "patches_that_agree": registration.n_inliers,
        "median_residual_um": registration.residual_um,
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
        raise ValueError(f"Image {image!r} has no scale: give it once with pp.set_scale(sdata, {image!r}, mpp=...).")
    return None, next(iter(stated.values()))


def _nuclear(stain: Image, corner: np.ndarray, extent: np.ndarray, step: float) -> np.ndarray:
    """The nuclear stain above its background, (h, w) float32."""
    shape = (max(1, int(extent[1] / step)), max(1, int(extent[0] / step)))
    reader = TileReader.from_image(stain, TileSpec.from_mpp(step, 256), allow_upsampling=True)
    pixels = read_grid(reader, corner, shape)[..., 0].astype(np.float32)
    seen = seen_grid(stain, corner, step, shape)
    return np.where(seen, np.clip(pixels - np.quantile(pixels[seen], 0.2), 0, None), 0).astype(np.float32)


def _haematoxylin(he: Image, size: np.ndarray, step: float) -> np.ndarray:
    """Haematoxylin of an H&E in its own frame, (h, w) float32; glass is 0, whatever its colour."""
    reader = TileReader.from_image(he, TileSpec.from_mpp(step, 256), fill=255, allow_upsampling=True)
    rgb = read_grid(reader, (0.0, 0.0), (max(1, int(size[1] / step)), max(1, int(size[0] / step))))
    tissue, strange = mask_of_he(rgb, step), not_stain(rgb, step)
    glass = rgb[~tissue & ~strange]
    white = np.median(glass, axis=0) if len(glass) > 1000 else np.full(3, 255.0)
    vectors = stains.macenko(rgb[tissue] if tissue.any() else rgb, white=white)
    amounts = np.where(strange, 0, stains.concentrations(rgb, vectors, white=white)[..., 0])
    return np.clip(amounts - np.quantile(amounts, 0.2), 0, None).astype(np.float32)


def overlap_score(fixed: np.ndarray, moving: np.ndarray, matrix: np.ndarray, step: float) -> float:
    """Correlation of two stains under a matrix from the fixed to the moving one, at about 4 µm per pixel.

    Returns from -1 to 1, over all of the fixed image; 0 where one of them is even.
    """
    factor = max(1, round(SCORE_UM / step))
    small = shrink(fixed, factor)
    moved = warp(shrink(moving, factor), matrix, small.shape, step * factor)
    if small.std() == 0 or moved.std() == 0:
        return 0.0
    return float(np.corrcoef(small.ravel(), moved.ravel())[0, 1])


@over_samples
def align(
    data: SpatialData,
    image: str,
    to: str | None = None,
    *,
    matrix: Any = None,
    landmarks: Any = None,
    unit: Units = "px",
    overwrite: bool = False,
    seed: int | None = None,
) -> None:
    """Register an image, such as the H&E of the same section, by a matrix or by landmarks.

    The pixels stay where they are: only the image's transformation is written.

    A matrix or landmarks lead from one side to another, (x, y) each, x to the right and y down:

    - *The image's side* is in full-resolution pixels of ``image``, the corner of the first one at (0, 0)
      (``unit="px"``), or in micrometres from that corner (``unit="um"``; the image's µm/px turns them into pixels).
    - *The other side* is the frame ``to``: full-resolution pixels of that image, or units of that coordinate system.
      ``to="um"`` is the sample's own micrometres. ``unit`` says nothing of this side.

    What Xenium Explorer exports is in pixels on both sides, from the image to the morphology image: the defaults.

    Parameters
    ----------
    data
        One sample, or a mapping of name to sample; the path of a store stands for its sample.
    image
        Key of the image to register.
    to
        What it is registered to: the key of an image (its full-resolution pixels), or a coordinate system such as
        ``"um"`` or ``"global"``; the nuclear stain by default.
    matrix
        (3, 3) affine from (x, y, 1) of the image to ``to``: an array, a csv file such as Xenium's
        ``*_he_imagealignment.csv``, or the zip that Xenium Explorer's "Download alignment file" makes, whose keypoints
        are then compared with its matrix. Or ``"auto"``: it is found by laying the haematoxylin of the H&E on the
        nuclear stain ``to``, from where the image lies now or from anywhere: any turn, either side up, a shift, and up
        to 5 % of scale.
    landmarks
        Point pairs, at least three: a pair of (n, 2) arrays (points of the image, points of ``to``), a frame or csv
        file with the columns ``alignmentX``, ``alignmentY``, ``fixedX``, ``fixedY`` (Xenium Explorer) or ``moving_x``,
        ``moving_y``, ``fixed_x``, ``fixed_y``, or Xenium Explorer's zip. The affine with the least squared distances is
        taken.
    unit
        What the image's side is in: ``"px"`` or ``"um"``. For ``"um"`` the image's µm/px has to be known, from its
        metadata or, without these, from where it lies now.
    overwrite
        Replace an alignment that this verb has made.
    seed
        Of the automatic search; ``settings.seed`` by default.

    Returns
    -------
    None. Writes the image's transformations to ``um`` and to the other coordinate systems of ``to`` and of its own
    (those that nothing else ties to ``um`` are removed), and ``sdata.attrs["sthist"]["alignment"][image]``:
    ``matrix_to_um`` from full-resolution pixels, ``mpp``, and ``residuals_um``, the distance in µm of each landmark
    (also those of a zip) from where the alignment puts it, in their order; or the overlap ``score_before`` and
    ``score_after`` and the patches that agree. Also to the store of a backed object.

    Raises
    ------
    KeyError
        If there is no such image or frame, or the landmarks lack a column.
    FileNotFoundError
        If there is no such file.
    ValueError
        If neither or both of ``matrix`` and ``landmarks`` are given; if the matrix is singular or projective; if there
        are fewer than three landmarks, or they lie on a line; if a zip is damaged, lacks what is taken from it, or its
        matrix lies 100 µm or more from its keypoints (a warning from 10 µm); if the µm/px that follows differs by more
        than 2 % from what the image's metadata state, or is needed and unknown; if an automatic search finds nothing in
        common, or nothing better than before; if the image has been aligned already.

    Examples
    --------
    >>> import numpy as np, sthist
    >>> sdata = sthist.datasets.toy(size_um=200)
    >>> shift = np.array([[1, 0, 24.0], [0, 1, -16.0], [0, 0, 1]])
    >>> sthist.pp.align(sdata, "he", to="morphology_focus", matrix=shift)
    >>> sthist.scale.matrix_to(sdata["he"])[:2, 2]
    array([12., -8.])
    """
    if (matrix is None) == (landmarks is None):
        raise ValueError("Give either matrix= or landmarks=.")
    if unit not in UNITS:
        raise ValueError(f"unit={unit!r} is none of {list(UNITS)}: pixels or micrometres of the image {image!r}.")
    _sample.get(data, "images", image)
    _sample.require_one_sample(data)
    record = data.attrs.get("sthist", {}).get("alignment", {}).get(image)
    if not overwrite and record is not None and record.get("call") == "pp.align":
        raise ValueError(f"Image {image!r} has been aligned already. Pass overwrite=True to align it again.")
    estimate: dict[str, Any] = {}
    if isinstance(matrix, str) and matrix == "auto":
        if unit != "px":
            raise ValueError(
                "unit= says what a matrix or landmarks are in; matrix='auto' finds them itself. Leave it out."
            )
        automatic = find_alignment(data, image, to, seed=settings.seed if seed is None else seed)
        alignment, to, estimate = _alignment.Alignment(automatic.to_um), _sample.UM, automatic.facts
    elif matrix is not None:
        alignment = _alignment.from_matrix(matrix)
    else:
        alignment = _alignment.from_landmarks(*_alignment.read_landmarks(landmarks))
    with _store.changing(data, image):
        facts = _alignment.align(data, image, alignment, to, unit)
        records = data.attrs.setdefault("sthist", {}).setdefault("alignment", {})
        records[image] = _store.provenance("pp.align", **facts, **estimate)
    if estimate:
        before = "" if estimate["score_before"] is None else f"from {estimate['score_before']:.2f} "
        logger.info(
            "Overlap %sto %.2f; %d of %d patches agree, to %.2f µm.",
            before,
            estimate["score_after"],
            estimate["patches_that_agree"],
            estimate["patches"],
            estimate["median_residual_um"],
        )
    _alignment.log_residuals(image, facts)
