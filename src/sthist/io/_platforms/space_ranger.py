"""What folders of Visium and Visium HD have in common: pictures and their scale factors, counts, the H&E."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist import scale
from sthist._sample import set_role
from sthist._settings import logger
from sthist.io._files import checks, values
from sthist.io._files.images import read_image, size_px
from sthist.io._parts.sample import attach_he, require_he

if TYPE_CHECKING:
    from collections.abc import Mapping

    from spatialdata import SpatialData

ARRAY = ["array_col", "array_row"]
PIXELS = ["pxl_col_in_fullres", "pxl_row_in_fullres"]
NUMERIC = ("in_tissue", "array_row", "array_col", "pxl_row_in_fullres", "pxl_col_in_fullres")
COLOURS = {3: ["r", "g", "b"], 4: ["r", "g", "b", "a"]}
FACTORS, MATRIX = "scalefactors_json.json", "filtered_feature_bc_matrix.h5"
SCALE_FACTORS = ("tissue_hires_scalef", "tissue_lowres_scalef", "spot_diameter_fullres")


def require_one_he(folder: Path, image: Any, he: Any, he_alignment: Any) -> None:
    """Refuse two H&E images, and one that is not there."""
    if image is not None and he is not None:
        raise ValueError("image= and he= are both given; give the one that is to be used.")
    if isinstance(image, str | Path):
        checks.require_argument(image, "image")
    require_he(folder, he, he_alignment, aligned=True)


def pictures_of(spatial: Path, prefix: str) -> dict[str, Path]:
    """The small pictures that lie beside the scale factors, which are whole, by their kind."""
    begins = dict.fromkeys((prefix, ""))
    names = {kind: [f"{begin}tissue_{kind}_image.png" for begin in begins] for kind in ("hires", "lowres")}
    there = {
        kind: next((spatial / name for name in names[kind] if checks.is_there(spatial / name)), None) for kind in names
    }
    return {kind: file for kind, file in there.items() if file is not None}


def full_image(file: Path, dataset_id: str, options: Mapping[str, Any]) -> Any:
    """The full-resolution image, read when needed; ``options`` are those of spatialdata's model of images."""
    from spatialdata.models import Image2DModel
    from spatialdata.transformations import Identity

    pixels = read_image(file, file.name).pixels
    options = {"scale_factors": [2, 2, 2, 2], "c_coords": COLOURS.get(len(pixels))} | dict(options)
    return Image2DModel.parse(pixels, dims=("c", "y", "x"), transformations={dataset_id: Identity()}, **options)


def require_factors(file: Path, factors: dict[str, Any], pictures: dict[str, Path], xy: np.ndarray) -> None:
    """Refuse scale factors that do not fit their pictures, or each other; ``xy`` are places that lie on them."""
    full = {}
    for kind, picture in pictures.items():
        _, height, width = checks.require_picture(picture)[0]
        factor = float(factors[f"tissue_{kind}_scalef"])
        values.require_within(
            file, f"tissue_{kind}_scalef {factor:.6g}", xy * factor, (0, 0, width, height), str(picture), what="spots"
        )
        full[kind] = np.array([width, height]) / factor
    if len(full) == 2:
        # Sides are rounded to whole pixels, which matters where they are small.
        slack = sum(2 / (full[kind] * factors[f"tissue_{kind}_scalef"]) for kind in full) + scale.TOLERANCE
        if (np.abs(full["hires"] / full["lowres"] - 1) > slack).any():
            sizes = (f"{full[kind][0]:.0f} x {full[kind][1]:.0f} px ({kind})" for kind in full)
            raise ValueError(
                f"{file}: tissue_hires_scalef and tissue_lowres_scalef make a full image of {' and of '.join(sizes)} "
                "of their pictures. Is one of them of another sample?"
            )


def require_known(matrix: Path, barcodes: Any, rows: str, path: Path, known: Any) -> None:
    """Refuse barcodes that are not among those with a position."""
    missing = barcodes[~np.isin(np.asarray(barcodes, str), known.astype(str))]
    if len(missing):
        raise ValueError(
            f"{len(missing)} of {len(barcodes)} {rows} of {matrix} (matrix/barcodes) have no position in {path} "
            f"(barcode), the first of them {str(missing[0])!r}. Are both files of one sample?"
        )


def require_counts(path: Path, table: Any, what: str) -> None:
    """Refuse numbers of a table that are no raw counts."""
    values.require_counts(f"{path}: matrix/data", table.X, table.obs_names, table.var_names, what=what)


def finish(sdata: SpatialData, dataset_id: str, mpp: float, source: str, shapes_of: dict[str, str]) -> None:
    """Register everything in µm, record the scale, and give tables their coordinates."""
    for name, element in list(sdata.images.items()):
        sdata.images[name] = _three_colours(element)
    scale.register_system(sdata, dataset_id, np.diag([mpp, mpp, 1.0]))
    for name, element in sdata.images.items():
        scale.record_mpp(sdata, name, source, mpp * scale.pixel_size(scale.matrix_to(element, dataset_id))[0])
    for table, shapes in shapes_of.items():
        adata = sdata.tables[table]
        centres = sdata.shapes[shapes].geometry.centroid
        places = centres.index.get_indexer(adata.obs[adata.uns["spatialdata_attrs"]["instance_key"]])
        if (places < 0).any():
            lost = adata.obs_names[int((places < 0).argmax())]
            raise ValueError(
                f"{int((places < 0).sum())} of {len(places)} rows of table {table!r} have no shape in {shapes!r}, such "
                f"as {lost!r}."
            )
        adata.obsm["spatial"] = np.c_[centres.x, centres.y][places] * mpp


def _three_colours(element: Any) -> Any:
    """A picture without its transparency, which says nothing of tissue."""
    from spatialdata.models import Image2DModel
    from spatialdata.transformations import get_transformation
    from xarray import DataTree

    if isinstance(element, DataTree) or element.sizes["c"] not in {3, 4}:
        return element
    return Image2DModel.parse(
        element.data[:3],
        dims=("c", "y", "x"),
        c_coords=["r", "g", "b"],
        transformations=get_transformation(element, get_all=True),
    )


def add_he(sdata: SpatialData, dataset_id: str, image: Any, he: Any, he_alignment: Any, mpp: float | None) -> None:
    """The full-resolution H&E, or another one that is aligned to its pixels; else the best of the folder's pictures."""
    if image is not None:
        attach_he(sdata, image, name="he", coordinate_system=dataset_id, mpp=mpp)
        _require_spots_on(sdata, image)
    elif he is not None:
        attach_he(sdata, he, alignment=he_alignment, to=dataset_id)
    if image is not None or he is not None:
        return
    for kind in ("full", "hires", "lowres"):
        name = f"{dataset_id}_{kind}_image"
        if name not in sdata.images:
            continue
        if kind != "full":
            pixels = np.asarray(sdata.images[name].data)
            if (pixels == pixels[:, :1, :1]).all():
                logger.warning("Image %r is of one colour; it is not taken for the H&E.", name)
                continue
        set_role(sdata, "he", {"image": name})
        return


def _require_spots_on(sdata: SpatialData, image: Any) -> None:
    """Refuse a full-resolution image that ends before the spots do, as the smaller pictures of the folder would."""
    to_px = np.linalg.inv(scale.matrix_to(sdata.images["he"]))
    width, height = size_px(sdata.images["he"])
    for table in sdata.tables.values():
        x, y = to_px[:2, :2] @ table.obsm["spatial"].T + to_px[:2, 2:]
        outside = float(np.mean((x < 0) | (y < 0) | (x > width) | (y > height)))
        if outside > values.MAX_OUTSIDE:
            shown = image if isinstance(image, str | Path) else "the array"
            raise ValueError(
                f"image=: {outside:.0%} of the spots lie outside of {shown}, which has {width} x {height} px; they "
                f"reach to ({x.max():.0f}, {y.max():.0f}). Give the full-resolution image that Space Ranger was given, "
                "not a smaller copy (tissue_hires_image.png); one of another size needs he= and he_alignment=."
            )
