"""What has to hold of an alignment beside its numbers: its scale, and that its matrix and keypoints agree."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Literal

import numpy as np

from sthist import _sample, scale
from sthist._alignment import files as files
from sthist._settings import logger

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from sthist._alignment.read import Alignment

Units = Literal["px", "um"]
UNITS: tuple[Units, ...] = ("px", "um")
"""Of the image's side of a matrix or of landmarks."""

DOUBTFUL_UM, CONTRADICTORY_UM = 10.0, 100.0
"""Distance between a matrix and what its own keypoints say, from which it is doubtful and from which it is refused.

10 µm is a nucleus and its cytoplasm: beyond, one of the two lays cells on their neighbours. A fit of another kind (turn
and one scale in place of an affine) differs by what a section shrinks more along one side than the other, up to 1 % of
some 10 mm, hence 100 µm; beyond, they are of different images.
"""


def own_mpp(sdata: SpatialData, image: str) -> tuple[float, float]:
    """µm/px of an image whose alignment is in its µm, along x and y: by its metadata, else as it lies now."""
    from spatialdata.transformations import get_transformation

    recorded = scale.recorded_mpp(sdata, image)
    if recorded or _sample.UM in get_transformation(sdata.images[image], get_all=True):
        present = scale.resolve_mpp(sdata, image)
        own = (next(iter(recorded.values())),) * 2 if recorded else present
        source = next(iter(recorded), "its transformation to 'um'")
        logger.info("Image %r has %.4g x %.4g µm/px (%s).", image, *own, source)
        return own
    others = {
        system
        for _, name, element in sdata.gen_spatial_elements()
        if name != image
        for system in get_transformation(element, get_all=True)
    }
    # A scale is given to a coordinate system and all that lies in it: here, to one in which the image lies alone.
    alone = [system for system in get_transformation(sdata.images[image], get_all=True) if system not in others]
    system = alone[0] if alone else f"{image}_px"
    first = "" if alone else f"set_transformation(sdata[{image!r}], Identity(), {system!r}) of spatialdata, then "
    raise ValueError(
        f"unit='um' needs the micrometres per pixel of image {image!r}, which neither its metadata nor a "
        f"transformation to 'um' state. Give them: {first}pp.set_scale(sdata, {image!r}, mpp=..., "
        f"coordinate_system={system!r})."
    )


def require_consistent(alignment: Alignment, unit: float) -> None:
    """Warn of, or refuse, a matrix that its own keypoints contradict."""
    gap = alignment.gap * unit
    if gap < DOUBTFUL_UM or alignment.residuals is None or alignment.fitted is None:
        return
    worst = int(np.argmax(alignment.residuals))
    msg = (
        f"{files.MATRIX} and {files.KEYPOINTS} of {alignment.what} contradict each other by {gap:.1f} µm: the matrix "
        f"puts the {len(alignment.residuals)} keypoints a median of {np.median(alignment.residuals) * unit:.1f} µm off "
        f"(keypoint {worst} by {alignment.residuals[worst] * unit:.1f} µm), an affine fitted to them "
        f"{np.median(alignment.fitted) * unit:.1f} µm."
    )
    if gap >= CONTRADICTORY_UM:
        msg += f" Give the one that is right: {files.MATRIX} unpacked as matrix=, or the archive as landmarks=."
        raise ValueError(msg)
    logger.warning("%s The matrix is taken; landmarks= takes the keypoints.", msg)


def other_reading(sdata: SpatialData, image: str, to_um: np.ndarray, stated: float, unit: float, units: Units) -> str:
    """Which other reading of an alignment would give the µm/px that the image's metadata state, as a sentence.

    "" if none.
    """
    excess = np.linalg.svd(to_um[:2, :2], compute_uv=False) / stated
    as_um, as_px = "its side of the image is in µm (unit='um')", "its side of the image is in pixels (unit='px')"
    image_side, changed = (as_um, stated) if units == "px" else (as_px, 1 / stated)
    target = {"its other side is in µm (to='um')": 1 / unit}
    for name, element in sdata.images.items():
        with suppress(KeyError):
            if name != image:
                pixel = np.sqrt(np.prod(scale.pixel_size(scale.matrix_to(element))))
                target[f"its other side is in pixels of image {name!r} (to={name!r})"] = float(pixel) / unit
    own_scale = float(np.sqrt(excess.prod())) * (stated if units == "px" else 1.0) / unit
    one_change = {image_side: changed} | target
    one_change["it leads the other way (give its inverse)"] = 1 / own_scale**2
    two_changes = {f"{image_side} and {text}": changed * factor for text, factor in target.items()}
    copies = {f"it was made on a copy of the image {n} times smaller (scale it)": 1 / n for n in (2, 4, 8, 16, 32)}
    for readings in (one_change | two_changes, copies):
        fits = [text for text, factor in readings.items() if (np.abs(excess * factor - 1) <= scale.TOLERANCE).all()]
        if fits:
            return f" It would agree if {', or if '.join(fits)}."
    return ""
