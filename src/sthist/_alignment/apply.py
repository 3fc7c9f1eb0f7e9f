"""Lay an image on another one: matrices, landmarks, and what they leave over."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sthist import _sample, scale
from sthist._alignment import files as files
from sthist._alignment.checks import Units, other_reading, own_mpp, require_consistent
from sthist._settings import logger

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from sthist._alignment.read import Alignment


def align(
    sdata: SpatialData, image: str, alignment: Alignment, to: str | None = None, units: Units = "px"
) -> dict[str, Any]:
    """Register an image by an alignment, in memory.

    Returns facts for the provenance: the matrix to µm, µm/px, and the residuals in µm.
    """
    from spatialdata.transformations import Affine, get_transformation, set_transformation

    element = _sample.get(sdata, "images", image)
    frames = _frames(sdata, image, to)
    unit = float(np.sqrt(np.prod(scale.pixel_size(frames[_sample.UM]))))
    own = own_mpp(sdata, image) if units == "um" else (1.0, 1.0)
    to_frame = alignment.matrix @ np.diag([*own, 1.0])
    to_um = frames[_sample.UM] @ to_frame
    longest, shortest = (float(value) for value in np.linalg.svd(to_um[:2, :2], compute_uv=False))
    recorded = scale.recorded_mpp(sdata, image)
    if units == "um" and not recorded:
        recorded = {"its present scale": float(np.sqrt(own[0] * own[1]))}
    if recorded:
        implied = {"implied by its alignment, longest": longest, "implied by its alignment, shortest": shortest}
        try:
            scale.require_agreement(implied | recorded, f"image {image!r}")
        except ValueError as error:
            stated = next(iter(recorded.values()))
            hint = other_reading(sdata, image, to_um, stated, unit, units)
            raise ValueError(f"{error}{hint}") from None
    require_consistent(alignment, unit)
    matrices = {name: from_frame @ to_frame for name, from_frame in frames.items()}
    for name in get_transformation(element, get_all=True):
        # Systems that the target is not in follow through what else lies in them; what nothing ties to µm is let go.
        if name not in matrices:
            from_um = _from_um(sdata, image, name)
            if from_um is not None:
                matrices[name] = from_um @ to_um
    affines = {name: Affine(matrix, ("x", "y"), ("x", "y")) for name, matrix in matrices.items()}
    set_transformation(element, affines, set_all=True)
    mpp = float(np.sqrt(longest * shortest))
    residuals = None if alignment.residuals is None else (alignment.residuals * unit).tolist()
    return {"to": to, "matrix_to_um": to_um.tolist(), "mpp": mpp, "residuals_um": residuals}


def log_residuals(image: str, facts: dict[str, Any]) -> None:
    """Say how well landmarks fit, and which of them fits least."""
    residuals = facts["residuals_um"]
    if residuals:
        worst = int(np.argmax(residuals))
        logger.info(
            "%d landmarks of image %r: the median lies %.2f µm from where the alignment puts it, the farthest, "
            "index %d, %.2f µm.",
            len(residuals),
            image,
            float(np.median(residuals)),
            worst,
            residuals[worst],
        )


def _frames(sdata: SpatialData, image: str, to: str | None) -> dict[str, np.ndarray]:
    """Matrices from the frame ``to`` into ``um`` and the other systems that it is registered in."""
    from spatialdata.transformations import get_transformation

    if to is None:
        keys, _ = _sample.find_nuclear(sdata)
        if len(keys) > 1:
            raise ValueError(
                f"The nuclear stain consists of {len(keys)} images; name the frame of the alignment with to=, one of "
                f"{sdata.coordinate_systems}."
            )
        to = keys[0]
    if to in sdata.images and to != image:
        element = sdata.images[to]
        frames = {name: scale.matrix_to(element, name) for name in get_transformation(element, get_all=True)}
        if _sample.UM not in frames:
            raise ValueError(f"Image {to!r} has no scale: give it once with pp.set_scale(sdata, {to!r}, mpp=...).")
        return frames
    if to == _sample.UM:
        return {to: np.eye(3)}
    from_um = _from_um(sdata, image, to)
    if from_um is not None:
        return {_sample.UM: np.linalg.inv(from_um), to: np.eye(3)}
    others = [name for name in sdata.images if name != image]
    raise KeyError(
        f"to={to!r} is no other image ({others}), and no coordinate system in which another element is registered as "
        f"well as in 'um' (there are {sdata.coordinate_systems})."
    )


def _from_um(sdata: SpatialData, image: str, system: str) -> np.ndarray | None:
    """The matrix from µm to a coordinate system, by another element that is in both; None where there is none."""
    from spatialdata.transformations import get_transformation

    for _, name, element in sdata.gen_spatial_elements():
        systems = get_transformation(element, get_all=True)
        if name != image and system in systems and _sample.UM in systems:
            return np.asarray(scale.matrix_to(element, system) @ np.linalg.inv(scale.matrix_to(element)))
    return None
