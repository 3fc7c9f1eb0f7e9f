"""Give a sample its micrometres."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sthist import _store, scale
from sthist._sample.samples import over_samples

if TYPE_CHECKING:
    from spatialdata import SpatialData


@over_samples
def set_scale(
    data: SpatialData,
    image: str,
    *,
    mpp: float | None = None,
    coordinate_system: str = "global",
    overwrite: bool = False,
) -> None:
    """Register a sample in ``um``, from the micrometres per pixel of one of its images.

    All elements that share ``coordinate_system`` with the image follow it: they keep their places relative to each
    other. Tiles and tissue that LazySlide has laid on the image follow the image, whose pixels they are in.

    Parameters
    ----------
    data
        The sample, or a mapping of name to sample; the path of a store stands for its sample.
    image
        Key of the image whose scale is known.
    mpp
        Its micrometres per pixel. Not needed where they are known: from metadata, LazySlide's ``slide_properties``, or
        Xenium's transcripts in a store of sopa (see :func:`sthist.scale.resolve_mpp`).
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
        If ``mpp`` is not a positive number, or not given and not known; if the image's pixels are not square there, or
        another source states another scale (and ``overwrite`` is False).

    Examples
    --------
    >>> import numpy as np, spatialdata as sd, sthist
    >>> image = sd.models.Image2DModel.parse(np.zeros((1, 64, 64), np.uint8))
    >>> sdata = sd.SpatialData(images={"dapi": image})
    >>> sthist.pp.set_scale(sdata, "dapi", mpp=0.5)
    >>> sthist.scale.resolve_mpp(sdata, "dapi")
    (0.5, 0.5)
    """
    with _store.changing(data, *(name for _, name, _ in data.gen_spatial_elements())):
        scale.register(data, image, mpp, coordinate_system=coordinate_system, overwrite=overwrite)
