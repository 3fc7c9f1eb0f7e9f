"""Where the tissue is, as polygons."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sthist import _sample, _store
from sthist._imaging.tissue import clean, mask_of_he, mask_of_nuclear_stain
from sthist._sample.elements import region_geometry
from sthist._sample.samples import over_samples
from sthist.tiles._images.image import Image, open_he, open_image
from sthist.tiles._images.reader import read_box, seen_grid
from sthist.tiles._regions.raster import polygonize, rasterize

if TYPE_CHECKING:
    import numpy as np
    from spatialdata import SpatialData


@over_samples
def tissue(
    data: SpatialData,
    *,
    image: str | None = None,
    mpp: float = 8.0,
    min_area_um2: float = 10_000.0,
    max_hole_um2: float = 10_000.0,
    within: Any = None,
    key_added: str = "tissue",
    overwrite: bool = False,
) -> None:
    """Outline the tissue in an H&E image or in a nuclear stain.

    Parameters
    ----------
    data
        One sample, or a mapping of name to sample; the path of a store stands for its sample.
    image
        Key of the image; by default the H&E if there is one, else the nuclear stain. An image of three 8-bit channels
        is taken for H&E.
    mpp
        µm per pixel at which the tissue is looked for.
    min_area_um2
        Smaller pieces are left out.
    max_hole_um2
        Smaller holes are filled.
    within
        Part of the slide: a box (x0, y0, x1, y1) in µm, a polygon, or the key of shapes. What tells tissue from glass
        is measured on the whole image.
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

    _sample.require_one_sample(data)
    _store.require_free(data, key_added, "shapes", overwrite=overwrite)
    area = None if within is None else region_geometry(data, within)
    shown = image_for_tissue(data, image)
    keys = list(shown.keys)
    mask = tissue_mask(shown, mpp)
    if area is not None:
        mask &= rasterize([area], shown.extent_um[:2], mpp, mask.shape) > 0
    seen = seen_grid(shown, shown.extent_um[:2], mpp, mask.shape)
    polygons = polygonize(clean(mask, mpp, min_area_um2, max_hole_um2, seen), shown.extent_um[:2], mpp)
    if not polygons:
        raise ValueError(
            f"Found no tissue in {keys} of at least {min_area_um2:g} µm²: is the image empty, or min_area_um2 too "
            "large?"
        )
    frame = gpd.GeoDataFrame({"area_um2": [polygon.area for polygon in polygons]}, geometry=polygons)
    element = ShapesModel.parse(frame, transformations={_sample.UM: Identity()})
    made = _store.provenance("pp.tissue", image=keys, mpp=mpp, min_area_um2=min_area_um2, max_hole_um2=max_hole_um2)
    _store.add(data, "shapes", key_added, element, made, overwrite=overwrite)


def tissue_mask(image: Image, mpp: float) -> np.ndarray:
    """Where the tissue is in an H&E, or in a nuclear stain of one channel, (h, w) bool."""
    is_he = len(image.channels) > 1
    pixels = read_box(image, image.extent_um, mpp, fill=255 if is_he else 0)
    seen = seen_grid(image, image.extent_um[:2], mpp, pixels.shape[:2])
    return mask_of_he(pixels, mpp, seen) if is_he else mask_of_nuclear_stain(pixels[..., 0], mpp, seen=seen)


def image_for_tissue(sdata: SpatialData, image: str | None) -> Image:
    """The H&E, or the nuclear channel of another image."""
    if image is None:
        try:
            image = _sample.find_he(sdata)
        except KeyError:
            keys, channel = _sample.find_nuclear(sdata)
            return open_image(sdata, keys, channels=[channel])
        return open_he(sdata, image)
    named = open_image(sdata, image)
    if named.is_rgb:
        return named
    in_colour = [name.lower() for name in named.channels[:3]] in (["r", "g", "b"], ["red", "green", "blue"])
    if in_colour or _sample.is_named_he(sdata, image):
        return open_he(sdata, image)  # which says what its pixels lack
    return named.select([_sample.find_nuclear(sdata, image)[1]])
