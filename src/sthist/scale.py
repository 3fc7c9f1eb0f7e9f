"""The micrometres per pixel of an image, from ranked sources that must agree."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sthist import _sample
from sthist._sample import other_tools
from sthist._settings import logger

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spatialdata import SpatialData

__all__ = ["matrix_to", "pixel_size", "resolve_mpp"]

TOLERANCE = 0.02
"""Relative difference above which two sources of one scale contradict each other."""
SENSIBLE_MPP = (0.01, 50.0)
"""µm per pixel that a picture of tissue can have; others are slips of programs, or a printer's 72 dpi."""


def matrix_to(element: Any, coordinate_system: str = _sample.UM) -> np.ndarray:
    """The 3 x 3 matrix that takes (x, y, 1) of an element into a coordinate system.

    Parameters
    ----------
    element
        An image, labels, points or shapes element.
    coordinate_system
        Name of the target.

    Returns
    -------
    Float64 of shape (3, 3).

    Raises
    ------
    KeyError
        If the element is not registered there.
    """
    from spatialdata.transformations import get_transformation

    transformations = get_transformation(element, get_all=True)
    if coordinate_system not in transformations:
        raise KeyError(coordinate_system)
    return np.asarray(
        transformations[coordinate_system].to_affine_matrix(input_axes=("x", "y"), output_axes=("x", "y")), np.float64
    )


def matrix_to_um(sdata: SpatialData, kind: Literal["images", "points", "shapes"], key: str) -> np.ndarray:
    """(3, 3) from an element's coordinates to µm; a ValueError says that it is not registered there."""
    element = _sample.get(sdata, kind, key)
    try:
        return matrix_to(element)
    except KeyError:
        raise ValueError(
            f"{kind.capitalize()} {key!r} are not registered in {_sample.UM!r}; give the scale once with pp.set_scale."
        ) from None


def other_systems(images: Sequence[Any]) -> dict[str, np.ndarray]:
    """Matrices from µm to the other coordinate systems in which all images of one plane agree."""
    from spatialdata.transformations import get_transformation

    systems: dict[str, np.ndarray] = {}
    for name in get_transformation(images[0], get_all=True):
        if name == _sample.UM or any(name not in get_transformation(image, get_all=True) for image in images):
            continue
        matrices = [matrix_to(image, name) @ np.linalg.inv(matrix_to(image)) for image in images]
        if all(np.allclose(matrix, matrices[0], atol=1e-6) for matrix in matrices):
            systems[name] = matrices[0]
        else:
            logger.info("The result is not registered in %r: the fields of view do not lie there as in 'um'.", name)
    return systems


def pixel_size(matrix: np.ndarray) -> tuple[float, float]:
    """Length of one pixel along x and along y under a 3 x 3 (x, y, 1) matrix.

    Examples
    --------
    >>> import numpy as np
    >>> from sthist.scale import pixel_size
    >>> pixel_size(np.diag([0.5, 0.25, 1.0]))
    (0.5, 0.25)
    """
    return float(np.hypot(matrix[0, 0], matrix[1, 0])), float(np.hypot(matrix[0, 1], matrix[1, 1]))


def require_agreement(sources: dict[str, float], what: str) -> None:
    """Refuse scales of one image that differ by more than 2 %, or are none."""
    for source, value in sources.items():
        if not (np.isfinite(value) and value > 0):
            raise ValueError(
                f"The µm per pixel of {what} is {value!r} ({source}); it is a positive number. Give the right one with "
                "mpp=."
            )
    low, high = min(sources, key=sources.__getitem__), max(sources, key=sources.__getitem__)
    if sources[high] > sources[low] * (1 + TOLERANCE):
        raise ValueError(
            f"Two scales of {what} disagree by {sources[high] / sources[low] - 1:.1%}: {sources[low]:.4g} µm/px "
            f"({low}) and {sources[high]:.4g} µm/px ({high}). Correct the wrong one; on an object that is read "
            "already, pp.set_scale(..., overwrite=True) replaces a scale."
        )


def agreed_mpp(what: str, sources: dict[str, float], mpp: float | None, nobody: str) -> float:
    """The µm per pixel on which all sources agree; the argument comes first, then they count in their order."""
    sources = ({} if mpp is None else {"the argument mpp=": float(mpp)}) | sources
    if not sources:
        raise ValueError(nobody)
    require_agreement(sources, what)
    return next(iter(sources.values()))


def trusted(sources: dict[str, float], mpp: float | None) -> dict[str, float]:
    """What a file states, without what a scale that is known contradicts and what is weak.

    That are resolution tags, which are often a printer's, and what no microscope has.
    """
    if mpp is None or not (np.isfinite(mpp) and mpp > 0):  # which agreed_mpp refuses
        return sources
    weak = [
        name
        for name, value in sources.items()
        if not abs(value / mpp - 1) <= TOLERANCE  # nor is NaN
        and (name.startswith("TIFF ") or not SENSIBLE_MPP[0] <= value <= SENSIBLE_MPP[1])
    ]
    if weak:
        logger.warning("%s says %.4g µm/px; %.4g is taken.", weak[0], sources[weak[0]], mpp)
    return {name: value for name, value in sources.items() if name not in weak}


def sensible(sources: dict[str, float], what: str) -> dict[str, float]:
    """What a file states of an image that another source places, without what no microscope has."""
    wrong = [name for name, value in sources.items() if not SENSIBLE_MPP[0] <= value <= SENSIBLE_MPP[1]]
    if wrong:
        logger.warning("%s says %.4g µm/px of %s, which does not count.", wrong[0], sources[wrong[0]], what)
    return {name: value for name, value in sources.items() if name not in wrong}


def recorded_mpp(sdata: SpatialData, image: str) -> dict[str, float]:
    """µm/px that readers found in an image's metadata, by source (OME, vendor, spot pitch).

    Where they recorded nothing, what LazySlide and sopa did.
    """
    recorded = sdata.attrs.get("sthist", {}).get("mpp", {})
    return dict(recorded[image]) if image in recorded else other_tools.stated_mpp(sdata, image)


def record_mpp(sdata: SpatialData, image: str, source: str, mpp: float) -> None:
    """Keep the µm/px that a source states of an image, for :func:`resolve_mpp`."""
    scales = sdata.attrs.setdefault("sthist", {}).setdefault("mpp", {}).setdefault(image, {})
    scales[source] = float(mpp)


def resolve_mpp(sdata: SpatialData, image: str, mpp: float | None = None) -> tuple[float, float]:
    """Micrometres per pixel of an image along x and y.

    The first of these that exists is returned: the argument, the ``um`` transformation, the image's metadata (OME,
    vendor, spot pitch) as recorded by the reader, or by LazySlide (``slide_properties``) and sopa. All that exist must
    agree within 2 %.

    Parameters
    ----------
    sdata
        The sample.
    image
        Key of the image.
    mpp
        A scale that the caller knows, in µm/px.

    Returns
    -------
    µm/px along x and y.

    Raises
    ------
    KeyError
        If there is no such image.
    ValueError
        If no source exists, or two disagree.

    Examples
    --------
    >>> import sthist
    >>> sdata = sthist.datasets.toy(size_um=200)
    >>> sthist.scale.resolve_mpp(sdata, "morphology_focus")
    (0.5, 0.5)
    """
    element = _sample.get(sdata, "images", image)
    sources: dict[str, tuple[float, float]] = {}
    if mpp is not None:
        sources["the argument mpp="] = (float(mpp), float(mpp))
    with suppress(KeyError):
        sources["its transformation to 'um'"] = pixel_size(matrix_to(element))
    for source, value in recorded_mpp(sdata, image).items():
        sources[source] = (value, value)
    if not sources:
        raise ValueError(f"Image {image!r} has no scale: give it once with pp.set_scale(sdata, {image!r}, mpp=...).")
    if len(sources) > 1:  # a transformation alone may be anisotropic; against another source both its sides count
        sides: dict[str, float] = {}
        for name, (x, y) in sources.items():
            sides |= {name: x} if np.isclose(x, y, rtol=1e-3) else {f"{name}, along x": x, f"{name}, along y": y}
        require_agreement(sides, f"image {image!r}")
    return next(iter(sources.values()))


def register(
    sdata: SpatialData, image: str, mpp: float | None, *, coordinate_system: str = "global", overwrite: bool = False
) -> list[str]:
    """Register in ``um`` all elements that share a coordinate system with an image of known scale; in memory only.

    The work behind :func:`sthist.pp.set_scale`, which see for the errors raised.

    Returns names of the elements that changed.
    """
    from spatialdata.transformations import get_transformation

    element = _sample.get(sdata, "images", image)
    if mpp is None:
        mpp = float(np.sqrt(np.prod(resolve_mpp(sdata, image))))
    if not (np.isfinite(mpp) and mpp > 0):
        raise ValueError(f"mpp is {mpp!r}; the micrometres per pixel are a positive number.")
    systems = list(get_transformation(element, get_all=True))
    if coordinate_system not in systems:
        raise KeyError(
            f"Image {image!r} is not registered in {coordinate_system!r}, but in {systems}; name one with "
            "coordinate_system=."
        )
    if overwrite:
        # Empty, not absent: what other packages state of the image does not count any more either.
        sdata.attrs.setdefault("sthist", {}).setdefault("mpp", {})[image] = {}
    else:
        resolve_mpp(sdata, image, mpp)
    along_x, along_y = pixel_size(matrix_to(element, coordinate_system))
    require_agreement({"along x": along_x, "along y": along_y}, f"image {image!r} in {coordinate_system!r}")
    factor = mpp / np.sqrt(along_x * along_y)
    if not overwrite:
        _require_same_places(sdata, coordinate_system, factor)
    return register_system(sdata, coordinate_system, np.diag([factor, factor, 1.0]))


def _require_same_places(sdata: SpatialData, coordinate_system: str, factor: float) -> None:
    """Refuse to move what is registered in µm already, such as an image that was aligned."""
    from spatialdata.transformations import get_transformation

    for _, name, element in sdata.gen_spatial_elements():
        systems = get_transformation(element, get_all=True)
        if coordinate_system in systems and _sample.UM in systems:
            there = matrix_to(element)
            new = np.diag([factor, factor, 1.0]) @ _place(sdata, name, coordinate_system)
            if not np.allclose(new, there, rtol=TOLERANCE, atol=1.0):
                raise ValueError(
                    f"{name!r} lies elsewhere in 'um' than {coordinate_system!r} and this scale would put it (was it "
                    "aligned?). Pass overwrite=True to move it."
                )


def _place(sdata: SpatialData, name: str, coordinate_system: str) -> np.ndarray:
    """(3, 3): from an element to a system; of what LazySlide laid on an image, as that image."""
    if coordinate_system == other_tools.GLOBAL:
        name = other_tools.laid_in_pixels(sdata).get(name, name)
    return matrix_to(sdata[name], coordinate_system)


def register_system(sdata: SpatialData, coordinate_system: str, to_um: np.ndarray) -> list[str]:
    """Register in ``um`` every element of a coordinate system, in memory.

    Returns names of the elements that changed.
    """
    from spatialdata.transformations import Affine, get_transformation, set_transformation

    changed = []
    for _, name, element in sdata.gen_spatial_elements():
        if coordinate_system in get_transformation(element, get_all=True):
            matrix = to_um @ _place(sdata, name, coordinate_system)
            set_transformation(element, Affine(matrix, ("x", "y"), ("x", "y")), to_coordinate_system=_sample.UM)
            changed.append(name)
    return changed
