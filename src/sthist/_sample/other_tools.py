"""What LazySlide (wsidata) and sopa record in their stores, which they can be read by as they are.

Nothing is written for them; what sthist's own readers and verbs record comes first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from spatialdata import SpatialData

SLIDE = "slide_properties"
"""wsidata: shape (height, width) of the slide at full resolution, its µm/px (``mpp``), and more."""

TILE_SPEC = "tile_spec"
"""wsidata: by key of shapes, how tiles were laid."""

TISSUES = "tissues"

TISSUE_IMAGE = "tissue_segmentation_image"
CELL_IMAGE = "cell_segmentation_image"
TRANSCRIPTS = "transcripts_dataframe"
BOUNDARIES = "boundaries_shapes"
BINS_TABLE = "bins_table"
XENIUM_FOLDER = "xenium_output_path"
"""sopa: keys of elements by what they are for; the folder that a Xenium sample was read from."""

SOPA, SOPA_TABLE = "sopa_attrs", "table"
COLOURS = ({"r", "g", "b"}, {"red", "green", "blue"}, {"0", "1", "2"})
GLOBAL = "global"


def roles(sdata: SpatialData) -> dict[str, Any]:
    """Roles of elements as other packages recorded them, in the form of sthist's own."""
    stain, points, bins = (_text(sdata, name) for name in (CELL_IMAGE, TRANSCRIPTS, BINS_TABLE))
    recorded: dict[str, Any] = {}
    he = next((key for key in (_text(sdata, TISSUE_IMAGE), stain, slide_image(sdata)) if _is_rgb(sdata, key)), None)
    if he is not None:
        recorded["he"] = {"image": he}
    if stain in sdata.images and not _is_rgb(sdata, stain):
        recorded["nuclear"] = {"images": [stain]}
    if points in sdata.points:
        recorded["transcripts"] = {"points": points}
    if bins in sdata.tables:
        squares = _region(sdata.tables[bins])
        recorded["spots"] = {"table": bins} | ({"shapes": squares} if squares in sdata.shapes else {})
    if SOPA_TABLE in sdata.tables and SOPA_TABLE not in without_counts(sdata):
        boundaries = _region(sdata.tables[SOPA_TABLE])
        if boundaries is not None and boundaries == _text(sdata, BOUNDARIES):
            recorded["cells"] = {"table": SOPA_TABLE}
    named = [spec.get("tissue_name") for spec in tile_specs(sdata).values()]
    tissue = next((key for key in (*named, TISSUES) if key in sdata.shapes), None)
    if tissue is not None and _slide(sdata) is not None:
        recorded["tissue"] = {"shapes": tissue}
    return recorded


def _text(sdata: SpatialData, name: str) -> str | None:
    value = sdata.attrs.get(name)
    return value if isinstance(value, str) else None


def _slide(sdata: SpatialData) -> tuple[dict[str, Any], tuple[int, int]] | None:
    """Properties of a slide that wsidata recorded, and its shape; None where there is nothing of that kind."""
    properties = sdata.attrs.get(SLIDE)
    shape = properties.get("shape") if isinstance(properties, dict) else None
    if not isinstance(shape, list | tuple) or len(shape) != 2:
        return None
    return dict(properties or {}), (int(shape[0]), int(shape[1]))


def tile_specs(sdata: SpatialData) -> dict[str, dict[str, Any]]:
    """How LazySlide laid tiles, by their key."""
    specs = sdata.attrs.get(TILE_SPEC)
    return {key: spec for key, spec in specs.items() if isinstance(spec, dict)} if isinstance(specs, dict) else {}


def without_counts(sdata: SpatialData) -> set[str]:
    """Tables whose matrix is no expression: features of tiles and patches, intensities of channels."""
    tiles = tile_specs(sdata)
    return {
        name
        for name, table in sdata.tables.items()
        if _region(table) in tiles
        or "embedding_config" in table.uns
        or not table.uns.get(SOPA, {}).get("transcripts", True)
    }


def _region(table: Any) -> str | None:
    """The shapes that a table is of; None for several or none."""
    region = table.uns.get("spatialdata_attrs", {}).get("region")
    if isinstance(region, list | np.ndarray) and len(region) == 1:
        region = region[0]
    return str(region) if isinstance(region, str) else None


def slide_image(sdata: SpatialData) -> str | None:
    """The image that wsidata's ``slide_properties`` are of: the only one of that size, else the only overview of it."""
    slide = _slide(sdata)
    if slide is None:
        return None
    shape = slide[1]
    made = sdata.attrs.get("sthist", {}).get("results", {})
    images = [name for name in sdata.images if name not in made]
    for fits in (
        [name for name in images if _shape(sdata.images[name]) == shape],
        [name for name in images if _reduction(sdata.images[name], shape) is not None],
    ):
        if fits:
            return fits[0] if len(fits) == 1 else None
    return None


def stated_mpp(sdata: SpatialData, image: str) -> dict[str, float]:
    """µm per pixel of an image by who states it, where that can only be meant of this image."""
    stated: dict[str, float] = {}
    slide = _slide(sdata)
    if slide is not None and slide[0].get("mpp") is not None and slide_image(sdata) == image:
        mpp, element = slide[0]["mpp"], sdata.images[image]
        if isinstance(mpp, bool) or not isinstance(mpp, int | float) or not (np.isfinite(mpp) and mpp > 0):
            raise ValueError(
                f"attrs[{SLIDE!r}]['mpp'] of the object is {mpp!r}; it should be a positive number. Give the scale "
                f"with pp.set_scale(sdata, {image!r}, mpp=..., overwrite=True)."
            )
        reduction = 1.0 if _shape(element) == slide[1] else _reduction(element, slide[1])
        stated[f"attrs[{SLIDE!r}]['mpp']"] = float(mpp) * float(reduction or 1.0)
    points = _text(sdata, TRANSCRIPTS)
    if XENIUM_FOLDER in sdata.attrs and points in sdata.points:
        # Transcripts of Xenium are in µm; what takes them to the common system tells how long its unit is.
        places, pixels = _to_global(sdata.points[points]), _to_global(sdata.images[image])
        if places is not None and pixels is not None:
            stated["Xenium's transcripts, which are in µm"] = float(
                np.sqrt(abs(np.linalg.det(pixels[:2, :2]) / np.linalg.det(places[:2, :2])))
            )
    return stated


def laid_in_pixels(sdata: SpatialData) -> dict[str, str]:
    """Shapes that LazySlide laid in the pixels of an image, and that image.

    It registers them as if those pixels were the unit of ``global``, whatever the image's own transformation is.
    """
    specs, slide, image = tile_specs(sdata), _slide(sdata), slide_image(sdata)
    if not specs or slide is None or image is None or _shape(sdata.images[image]) != slide[1]:
        return {}
    keys = sorted({*specs, *(str(spec.get("tissue_name")) for spec in specs.values())})
    laid = [key for key in keys if key in sdata.shapes]
    return {key: image for key in laid if _is_identity(_to_global(sdata.shapes[key]))}


def _is_identity(matrix: np.ndarray | None) -> bool:
    return matrix is not None and np.array_equal(matrix, np.eye(3))


def _to_global(element: Any) -> np.ndarray | None:
    from spatialdata.transformations import get_transformation

    transformation = get_transformation(element, get_all=True).get(GLOBAL)
    if transformation is None:
        return None
    return np.asarray(transformation.to_affine_matrix(("x", "y"), ("x", "y")), np.float64)


def _full(element: Any) -> Any:
    """An image at full resolution."""
    from xarray import DataTree

    return next(iter(element["scale0"].data_vars.values())) if isinstance(element, DataTree) else element


def _shape(element: Any) -> tuple[int, int]:
    level = _full(element)
    return int(level.sizes["y"]), int(level.sizes["x"])


def _reduction(element: Any, shape: Any) -> float | None:
    """How many pixels of a slide one of an overview shows; None where it is not registered as one."""
    matrix = _to_global(element)
    if matrix is None or np.any(matrix[[0, 1], [1, 0]]) or np.any(matrix[:2, 2]):
        return None
    height, width = _shape(element)
    step = np.array([matrix[1, 1], matrix[0, 0]])
    if (
        np.abs(np.array([height, width]) * step - shape) > step / 2
    ).any():  # one of the whole slide ends where that does
        return None
    return float(np.sqrt(matrix[0, 0] * matrix[1, 1]))


def _is_rgb(sdata: SpatialData, key: Any) -> bool:
    """Whether an image looks as a camera sees: three colours of 8 bits, not three stains."""
    if key not in sdata.images:
        return False
    level = _full(sdata.images[key])
    names = {str(name).casefold() for name in level.coords["c"].to_numpy()} if "c" in level.coords else set("012")
    return bool(level.dtype == np.uint8 and level.sizes["c"] == 3 and names in COLOURS)
