"""Where the tissue is, as polygons."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sthist import _sample, _store
from sthist._imaging.tissue import clean, mask_of_he, mask_of_nuclear_stain
from sthist._sample.samples import over_samples
from sthist.tiles._images.image import extent_um, pyramid
from sthist.tiles._images.reader import read_region
from sthist.tiles._regions.raster import polygonize

if TYPE_CHECKING:
    import numpy as np
    from spatialdata import SpatialData


@over_samples
def tissue(
    sdata: SpatialData,
    *,
    image: str | None = None,
    mpp: float = 8.0,
    min_area_um2: float = 10_000.0,
    max_hole_um2: float = 10_000.0,
    key_added: str = "tissue",
    overwrite: bool = False,
) -> None:
    """Outline the tissue in an H&E image or in a nuclear stain.

    Parameters
    ----------
    sdata
        One sample, or a mapping of name to sample.
    image
        Key of the image; by default the H&E if there is one, else the nuclear stain. An image of three 8-bit channels
        is taken for H&E.
    mpp
        µm per pixel at which the tissue is looked for.
    min_area_um2
        Smaller pieces are left out.
    max_hole_um2
        Smaller holes are filled.
    key_added
        Name of the shapes.
    overwrite
        Replace shapes of that name.

    Returns
    -------
    None. Writes ``sdata.shapes[key_added]``: polygons in µm, the largest first, with the column ``area_um2``.

    Raises
    ------
    KeyError
        If there is no such image, or none that could be meant.
    ValueError
        If the image has no scale, no tissue is found, or the name is taken.

    Examples
    --------
    >>> import sthist
    >>> sdata = sthist.datasets.toy(size_um=400)
    >>> sthist.pp.tissue(sdata)
    >>> bool(sdata["tissue"].area_um2.sum() < 400 * 400)
    True
    """
    import geopandas as gpd
    from spatialdata.models import ShapesModel
    from spatialdata.transformations import Identity

    _sample.require_one_sample(sdata)
    _store.require_free(sdata, key_added, "shapes", overwrite=overwrite)
    mask, extent, keys = tissue_mask(sdata, image, mpp)
    polygons = polygonize(clean(mask, mpp, min_area_um2, max_hole_um2), extent[:2], mpp)
    if not polygons:
        msg = (
            f"Found no tissue in {keys} of at least {min_area_um2:g} µm²: is the image empty, or min_area_um2 too "
            f"large?"
        )
        raise ValueError(msg)
    frame = gpd.GeoDataFrame({"area_um2": [polygon.area for polygon in polygons]}, geometry=polygons)
    element = ShapesModel.parse(frame, transformations={_sample.UM: Identity()})
    made = _store.provenance("pp.tissue", image=keys, mpp=mpp, min_area_um2=min_area_um2, max_hole_um2=max_hole_um2)
    _store.add(sdata, "shapes", key_added, element, made, overwrite=overwrite)


def tissue_mask(
    sdata: SpatialData, image: str | None, mpp: float
) -> tuple[np.ndarray, tuple[float, float, float, float], list[str]]:
    """Where the tissue is in an image, (h, w) bool; the box in µm that it shows; and the keys of what was read."""
    keys, channels = _image_for_tissue(sdata, image)
    extent = extent_um(sdata, keys)
    pixels = read_region(sdata, keys, extent, mpp, channels=channels, fill=255 if channels is None else 0)
    mask = mask_of_he(pixels, mpp) if channels is None else mask_of_nuclear_stain(pixels[..., 0], mpp)
    return mask, extent, keys


def _image_for_tissue(sdata: SpatialData, image: str | None) -> tuple[list[str], list[str] | None]:
    """Keys of the images, and the nuclear channel; None for H&E."""
    if image is None:
        try:
            return [_sample.find_he(sdata)], None
        except KeyError:
            keys, channel = _sample.find_nuclear(sdata)
            return list(keys), [channel]
    element = _sample.get(sdata, "images", image)
    level = pyramid(element)[0]
    if level.sizes["c"] == 3 and level.dtype == "uint8" and "z" not in level.dims:
        return [image], None
    return [image], [_sample.find_nuclear(sdata, image)[1]]
