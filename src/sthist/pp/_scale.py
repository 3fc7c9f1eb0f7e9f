"""Give a sample its micrometres."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sthist import _elements, _store, scale

if TYPE_CHECKING:
    from spatialdata import SpatialData


def set_scale(
    sdata: SpatialData, image: str, *, mpp: float, coordinate_system: str = "global", overwrite: bool = False
) -> None:
    """Register a sample in ``um``, from the micrometres per pixel of one of its images.

    All elements that share ``coordinate_system`` with the image follow it: they keep their places relative to each
    other.

    Parameters
    ----------
    sdata
        The sample.
    image
        Key of the image whose scale is known.
    mpp
        Its micrometres per pixel.
    coordinate_system
        The system in which the sample's elements are registered now.
    overwrite
        Replace a scale that disagrees.

    Returns
    -------
    None. Writes a transformation to ``um`` on each element of ``coordinate_system``, also to the store of a backed
    object.

    Raises
    ------
    KeyError
        If there is no such image, or it is not in ``coordinate_system``.
    ValueError
        If ``mpp`` is not a positive number, the image's pixels are not square there, or another source states another
        scale (and ``overwrite`` is False).

    Examples
    --------
    >>> import numpy as np, spatialdata as sd, sthist
    >>> image = sd.models.Image2DModel.parse(np.zeros((1, 64, 64), np.uint8))
    >>> sdata = sd.SpatialData(images={"dapi": image})
    >>> sthist.pp.set_scale(sdata, "dapi", mpp=0.5)
    >>> sthist.scale.resolve_mpp(sdata, "dapi")
    (0.5, 0.5)
    """
    from spatialdata.transformations import Affine, get_transformation, set_transformation

    element = _elements.get(sdata, "images", image)
    if not (np.isfinite(mpp) and mpp > 0):
        msg = f"mpp is {mpp!r}; the micrometres per pixel are a positive number."
        raise ValueError(msg)
    systems = list(get_transformation(element, get_all=True))
    if coordinate_system not in systems:
        msg = f"Image {image!r} is not registered in {coordinate_system!r}, but in {systems}; name one with coordinate_system=."
        raise KeyError(msg)
    if overwrite:
        sdata.attrs.get("sthist", {}).get("mpp", {}).pop(image, None)
    else:
        scale.resolve_mpp(sdata, image, mpp)
    along_x, along_y = scale.pixel_size(scale.matrix_to(element, coordinate_system))
    scale.require_agreement({"along x": along_x, "along y": along_y}, f"image {image!r} in {coordinate_system!r}")
    factor = mpp / np.sqrt(along_x * along_y)
    changed = []
    for _, name, other in sdata.gen_spatial_elements():
        if coordinate_system in get_transformation(other, get_all=True):
            matrix = np.diag([factor, factor, 1.0]) @ scale.matrix_to(other, coordinate_system)
            set_transformation(other, Affine(matrix, ("x", "y"), ("x", "y")), to_coordinate_system=_elements.UM)
            changed.append(name)
    _store.write_transformations(sdata, changed)
