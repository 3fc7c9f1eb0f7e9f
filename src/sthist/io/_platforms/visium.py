"""Visium folders."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist import scale
from sthist._sample import safe_key, set_role
from sthist._settings import logger
from sthist.io._files import checks
from sthist.io._parts import sample
from sthist.io._parts.spots import MAX_OUTSIDE, SPOTS_UM, fit_lattice

if TYPE_CHECKING:
    import pandas as pd
    from spatialdata import SpatialData

VENDOR = "Visium"
SPOT_DIAMETER_UM = SPOTS_UM["Visium"][0]
# Of one step of array_col and of array_row: neighbours are 100 µm apart, centre to centre.
LATTICE_UM = np.array([50.0, 50.0 * np.sqrt(3)])
OFF_LATTICE_UM = 10.0
ARRAY = ["array_col", "array_row"]
PIXELS = ["pxl_col_in_fullres", "pxl_row_in_fullres"]
COLUMNS = ["barcode", "in_tissue", "array_row", "array_col", "pxl_row_in_fullres", "pxl_col_in_fullres"]
SCALE_FACTORS = ("tissue_hires_scalef", "tissue_lowres_scalef", "spot_diameter_fullres")


def visium(
    path: str | Path,
    *,
    image: str | Path | None = None,
    dataset_id: str | None = None,
    mpp: float | None = None,
    he: str | Path | None = None,
    he_alignment: Any = None,
    **kwargs: Any,
) -> SpatialData:
    """Read the output folder of Space Ranger for Visium, in micrometres.

    :func:`spatialdata_io.visium` reads it. The scale comes from the lattice of the spots, which are 100 µm apart; the
    spots are circles of 55 µm.

    Parameters
    ----------
    path
        The folder, with ``filtered_feature_bc_matrix.h5`` and ``spatial``.
    image
        The full-resolution H&E that Space Ranger was given: TIFF, OME-TIFF, SVS, PNG or JPEG. Read when needed.
    dataset_id
        What the elements are named after; by default what stands before ``_filtered_feature_bc_matrix.h5``, else
        ``"visium"``.
    mpp
        µm per full-resolution pixel, to be checked against the lattice.
    he
        Another H&E of the same section, in place of ``image``.
    he_alignment
        Where ``he`` lies: a 3 x 3 matrix from its pixels to full-resolution pixels, or landmarks; a file or arrays (see
        :func:`sthist.pp.align`).
    kwargs
        Passed on to :func:`spatialdata_io.visium`.

    Returns
    -------
    A SpatialData in memory, registered in ``um`` and, in full-resolution pixels, in ``<dataset_id>``:

    * ``images["<dataset_id>_hires_image"]``, ``images["<dataset_id>_lowres_image"]``, and ``images["he"]`` if it was
      given;
    * ``shapes["<dataset_id>"]``: the spots;
    * ``tables["table"]``: raw counts, linked to them, with ``obsm["spatial"]`` in µm.

    Raises
    ------
    FileNotFoundError
        If a file is missing.
    KeyError
        If a file has not the columns or entries it should have.
    ValueError
        If a spot of the matrix has no position, or several; if the spots do not lie on the lattice, or it contradicts
        ``mpp``; if more than 5 % of them lie outside of ``image``; if a file is truncated, empty, or has text for
        numbers.

    Examples
    --------
    >>> import sthist
    >>> sdata = sthist.io.visium("outs", image="tissue.tif")  # doctest: +SKIP
    """
    import spatialdata_io

    folder = Path(path)
    require_one_he(folder, image, he, he_alignment)
    counts = str(kwargs.pop("counts_file", "filtered_feature_bc_matrix.h5"))
    matrix = checks.require_file(folder, counts, f"*_{counts}", vendor=VENDOR)
    if dataset_id is None:
        dataset_id = safe_key(matrix.name.removesuffix(counts).rstrip("_") or "visium")
    positions_file = _positions_file(folder, kwargs)
    positions = _read_positions(positions_file)
    given = str(kwargs.get("scalefactors_file") or "spatial/scalefactors_json.json")
    factors_file = checks.require_file(folder, given, vendor=VENDOR)
    factors = checks.read_json(factors_file)
    for name in SCALE_FACTORS:
        checks.require_number(factors_file, factors, name)
    check_pictures(folder / "spatial")
    if matrix.suffix == ".h5":
        _require_positions(matrix, checks.require_matrix(matrix), positions_file, positions)
    size = scale.agreed_mpp(str(folder), {"lattice of the spots": _lattice_mpp(positions_file, positions)}, mpp, "")
    with checks.quietly():
        sdata = spatialdata_io.visium(folder, dataset_id=dataset_id, counts_file=matrix.name, **kwargs)
    sdata.shapes[dataset_id]["radius"] = SPOT_DIAMETER_UM / 2 / size
    finish(sdata, dataset_id, size, "lattice of the spots", {"table": dataset_id})
    set_role(sdata, "spots", {"table": "table", "shapes": dataset_id})
    add_he(sdata, dataset_id, image, he, he_alignment)
    return sdata


def require_one_he(folder: Path, image: Any, he: Any, he_alignment: Any) -> None:
    """Refuse two H&E images, and one that is not there."""
    if image is not None and he is not None:
        raise ValueError("image= and he= are both given; give the one that is to be used.")
    if isinstance(image, str | Path) and not Path(image).is_file():
        raise FileNotFoundError(f"image=: there is no file {image}.")
    sample.require_he(folder, he, he_alignment, aligned=True)


def add_he(sdata: SpatialData, dataset_id: str, image: Any, he: Any, he_alignment: Any) -> None:
    """The full-resolution H&E, or another one that is aligned to its pixels; else the best of the folder's pictures."""
    from sthist.io._parts.he import attach_he

    if image is not None:
        attach_he(sdata, image, name="he", coordinate_system=dataset_id)
        _require_spots_on(sdata, image)
    elif he is not None:
        attach_he(sdata, he, alignment=he_alignment, to=dataset_id)
    else:
        _record_he(sdata, dataset_id)


def _require_spots_on(sdata: SpatialData, image: Any) -> None:
    """Refuse a full-resolution image that ends before the spots do, as the smaller pictures of the folder would."""
    from xarray import DataTree

    to_px = np.linalg.inv(scale.matrix_to(sdata.images["he"]))
    he = sdata.images["he"]
    height, width = (he["scale0"]["image"] if isinstance(he, DataTree) else he).shape[-2:]
    for table in sdata.tables.values():
        x, y = to_px[:2, :2] @ table.obsm["spatial"].T + to_px[:2, 2:]
        outside = float(np.mean((x < 0) | (y < 0) | (x > width) | (y > height)))
        if outside > MAX_OUTSIDE:
            shown = image if isinstance(image, str | Path) else "the array"
            raise ValueError(
                f"image=: {outside:.0%} of the spots lie outside of {shown}, which has {width} x {height} px; they "
                f"reach to ({x.max():.0f}, {y.max():.0f}). Give the full-resolution image that Space Ranger was given, "
                "not a smaller copy (tissue_hires_image.png); one of another size needs he= and he_alignment=."
            )


def check_pictures(spatial: Path) -> None:
    """Refuse truncated pictures of a ``spatial`` folder."""
    for kind in ("hires", "lowres"):
        picture = spatial / f"tissue_{kind}_image.png"
        if picture.exists():
            checks.require_picture(picture)


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


def _record_he(sdata: SpatialData, dataset_id: str) -> None:
    """The picture of the finest pixels that shows anything."""
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


def _positions_file(folder: Path, kwargs: dict[str, Any]) -> Path:
    given = kwargs.get("tissue_positions_file")
    names = [str(given)] if given is not None else ["spatial/tissue_positions_list.csv", "spatial/tissue_positions.csv"]
    return checks.require_file(folder, *names, vendor=VENDOR)


def _read_positions(path: Path) -> pd.DataFrame:
    """Positions by barcode, with the header that old files do not have."""
    with checks.reading(path), path.open(encoding="utf-8") as file:
        first = file.readline()
    own = {} if "in_tissue" in first else {"header": None, "names": COLUMNS}
    if own and first and len(first.split(",")) != len(COLUMNS):
        raise KeyError(
            f"{path} has {len(first.split(','))} columns without names; it should have {len(COLUMNS)}: "
            f"{', '.join(COLUMNS)}."
        )
    frame = checks.read_csv(path, COLUMNS, numeric=COLUMNS[1:], **own)
    require_once(path, frame["barcode"])
    return frame.set_index("barcode")


def require_once(path: Path, barcodes: Any) -> None:
    """Refuse positions of which a barcode has several."""
    again = barcodes.duplicated()
    if again.any():
        twice = str(barcodes[again].tolist()[0])
        raise ValueError(
            f"{path} has barcode {twice!r} more than once. Remove the wrong row, or export the file again."
        )


def _require_positions(matrix: Path, barcodes: np.ndarray, path: Path, positions: pd.DataFrame) -> None:
    missing = barcodes[~np.isin(barcodes, positions.index.to_numpy().astype(str))]
    if len(missing):
        raise ValueError(
            f"{len(missing)} of {len(barcodes)} spots of {matrix} have no position in {path}, the first of them "
            f"{str(missing[0])!r}. Are both files of one sample?"
        )


def _lattice_mpp(path: Path, positions: pd.DataFrame) -> float:
    """µm per full-resolution pixel, from the affine that takes the lattice to where the spots are."""
    um = positions[ARRAY].to_numpy(np.float64) * LATTICE_UM
    px = positions[PIXELS].to_numpy(np.float64)
    lattice = fit_lattice(um, px)
    if lattice is None:
        raise ValueError(
            f"{path}: the scale needs at least 3 spots that are not on one line of the lattice; it has {len(um)} spots."
        )
    if lattice.anisotropy > scale.TOLERANCE:
        raise ValueError(
            f"{path}: the spots are {50 / lattice.mpp_x:.4g} px apart per array_col and {50 / lattice.mpp_y:.4g} px "
            "per 50 µm of array_row, which should be equal. Are the columns of rows and columns exchanged?"
        )
    if lattice.off_um > OFF_LATTICE_UM:
        raise ValueError(
            f"{path}: the spots lie {lattice.off_um:.3g} µm off the lattice of Visium (median); are positions and "
            "barcodes exchanged?"
        )
    return lattice.mpp
