"""Visium and Visium HD folders."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist import scale
from sthist._sample import safe_key, set_role
from sthist._settings import logger
from sthist.io._files import checks, values
from sthist.io._files.checks import Needed
from sthist.io._files.images import TIFF_SUFFIXES, size_px
from sthist.io._files.tiff import open_tiff
from sthist.io._parts.sample import attach_he, require_he
from sthist.io._parts.spots import MAX_OUTSIDE, SPOTS_UM, fit_lattice

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from spatialdata import SpatialData

VENDOR, HD_VENDOR = "Visium", "Visium HD"
SPOT_DIAMETER_UM = SPOTS_UM["Visium"][0]
# Of one step of array_col and of array_row: neighbours are 100 µm apart, centre to centre.
LATTICE_UM = np.array([50.0, 50.0 * np.sqrt(3)])
OFF_LATTICE_UM = 10.0
ARRAY = ["array_col", "array_row"]
PIXELS = ["pxl_col_in_fullres", "pxl_row_in_fullres"]
NUMERIC = ("in_tissue", "array_row", "array_col", "pxl_row_in_fullres", "pxl_col_in_fullres")
COLUMNS = ["barcode", *NUMERIC]
FACTORS, MATRIX = "scalefactors_json.json", "filtered_feature_bc_matrix.h5"
POSITIONS = ("spatial/tissue_positions_list.csv", "spatial/tissue_positions.csv")
SCALE_FACTORS = ("tissue_hires_scalef", "tissue_lowres_scalef", "spot_diameter_fullres")
BIN_FACTORS = ("microns_per_pixel", "bin_size_um", *SCALE_FACTORS)
BIN_FILES = (Needed(FACTORS, numeric=BIN_FACTORS), Needed("tissue_positions.parquet", ("barcode",), NUMERIC))
SLICE = "feature_slice.h5"
BIN_FOLDER = re.compile(r"square_(\d{3})um$")


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
    FileNotFoundError, KeyError
        If a file is missing, or has not the columns or entries it should have.
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
    _require_one_he(folder, image, he, he_alignment)
    counts = str(kwargs.pop("counts_file", MATRIX))
    matrix = checks.require_file(folder, counts, f"*_{counts}", vendor=VENDOR)
    if dataset_id is None:
        dataset_id = safe_key(matrix.name.removesuffix(counts).rstrip("_") or "visium")
    stated = kwargs.get("tissue_positions_file")
    positions_file = checks.require_file(folder, *(POSITIONS if stated is None else (str(stated),)), vendor=VENDOR)
    positions = _read_positions(positions_file)
    factors = str(kwargs.get("scalefactors_file") or f"spatial/{FACTORS}")
    checks.require_files(folder, VENDOR, [Needed(factors, numeric=SCALE_FACTORS)], kwargs)
    _check_pictures(folder / "spatial")
    if matrix.suffix == ".h5":
        _require_positions(matrix, "spots", positions_file, positions.index)
    size = scale.agreed_mpp(str(folder), {"lattice of the spots": _lattice_mpp(positions_file, positions)}, mpp, "")
    with checks.quietly():
        sdata = spatialdata_io.visium(folder, dataset_id=dataset_id, counts_file=matrix.name, **kwargs)
    _require_counts(matrix, sdata.tables["table"], "spot")
    sdata.shapes[dataset_id]["radius"] = SPOT_DIAMETER_UM / 2 / size
    finish(sdata, dataset_id, size, "lattice of the spots", {"table": dataset_id})
    set_role(sdata, "spots", {"table": "table", "shapes": dataset_id})
    _add_he(sdata, dataset_id, image, he, he_alignment)
    return sdata


def visium_hd(
    path: str | Path,
    *,
    bin_size: int | Sequence[int] | None = 8,
    image: str | Path | None = None,
    dataset_id: str | None = None,
    mpp: float | None = None,
    he: str | Path | None = None,
    he_alignment: Any = None,
    **kwargs: Any,
) -> SpatialData:
    """Read the output folder of Space Ranger for Visium HD, in micrometres.

    :func:`spatialdata_io.visium_hd` reads it.

    Parameters
    ----------
    path
        The folder, with ``feature_slice.h5`` and ``binned_outputs``.
    bin_size
        Side of the bins in µm: one, several, or None for all that the folder has.
    image
        The full-resolution H&E that Space Ranger was given: TIFF, OME-TIFF, SVS, PNG or JPEG. Read when needed. By
        default what lies in ``microscope_image``, if anything.
    dataset_id
        What the elements are named after; by default what stands before ``_feature_slice.h5``, else ``"visium_hd"``.
    mpp
        µm per full-resolution pixel, to be checked against ``microns_per_pixel``.
    he
        Another H&E of the same section, in place of ``image``.
    he_alignment
        Where ``he`` lies: a 3 x 3 matrix from its pixels to full-resolution pixels, or landmarks; a file or arrays (see
        :func:`sthist.pp.align`).
    kwargs
        Passed on to :func:`spatialdata_io.visium_hd`.

    Returns
    -------
    A SpatialData in memory, registered in ``um`` and, in full-resolution pixels, in ``<dataset_id>``: images,
    ``shapes["<dataset_id>_square_008um"]``, and ``tables["square_008um"]`` linked to them, with ``obsm["spatial"]`` in
    µm; and so on for each size of bins. Cells are there if Space Ranger has segmented them.

    Raises
    ------
    FileNotFoundError, KeyError
        If a file, or a size of bins, is missing, or has not the columns or entries it should have.
    ValueError
        If ``microns_per_pixel`` differs between sizes of bins, from ``mpp``, or from what the full-resolution image
        states; if a bin of the matrix has no position, or several; if more than 5 % of the bins lie outside of
        ``image``; if a file is truncated, empty, or has text for numbers.

    Examples
    --------
    >>> import sthist
    >>> sdata = sthist.io.visium_hd("outs", bin_size=[2, 8])  # doctest: +SKIP
    """
    import spatialdata_io

    folder = Path(path)
    _require_one_he(folder, image, he, he_alignment)
    prefix = _check_slice(folder, dataset_id)
    dataset_id = dataset_id or prefix.removesuffix("_") or "visium_hd"
    bins = _bins(folder, bin_size)
    filtered = kwargs.get("filtered_counts_file", True)
    sources = {f"{kind.name}/spatial/{FACTORS}": _check_bins(kind, size, filtered) for size, kind in bins.items()}
    size = scale.agreed_mpp(str(folder), sources, mpp, "")
    _check_pictures(folder / "spatial")
    with checks.quietly(), warnings.catch_warnings():
        if image is not None or he is not None:  # then it is no loss that the folder has none
            warnings.filterwarnings("ignore", "No full resolution image found", UserWarning)
        options = {"load_segmentations_only": False} | kwargs
        sdata = spatialdata_io.visium_hd(folder, dataset_id=dataset_id, bin_size=list(bins), **options)
    for name, table in sdata.tables.items():
        _require_counts(folder / name, table, "bin")
    shapes_of = {name: table.uns["spatialdata_attrs"]["region"] for name, table in sdata.tables.items()}
    finish(sdata, dataset_id, size, "microns_per_pixel of scalefactors_json.json", shapes_of)
    finest = next((bins[side].name for side in sorted(bins) if bins[side].name in sdata.tables), None)
    if finest is not None:
        set_role(sdata, "spots", {"table": finest, "shapes": shapes_of[finest]})
    if "cell_segmentations" in sdata.tables:
        set_role(sdata, "cells", {"table": "cell_segmentations"})
    full, file = f"{dataset_id}_full_image", _full_image(folder, prefix, kwargs.get("fullres_image_file"))
    if image is None and he is None and file and full in sdata.images and file.suffix.lower() in TIFF_SUFFIXES:
        for stated, value in open_tiff(file, read=False)[2].items():  # which has to agree with the bins
            scale.record_mpp(sdata, full, f"{stated} of {file.name}", value)
        scale.resolve_mpp(sdata, full)
    _add_he(sdata, dataset_id, image, he, he_alignment)
    return sdata


def _require_one_he(folder: Path, image: Any, he: Any, he_alignment: Any) -> None:
    """Refuse two H&E images, and one that is not there."""
    if image is not None and he is not None:
        raise ValueError("image= and he= are both given; give the one that is to be used.")
    if isinstance(image, str | Path):
        checks.require_argument(image, "image")
    require_he(folder, he, he_alignment, aligned=True)


def _check_pictures(spatial: Path) -> None:
    """Refuse truncated pictures of a ``spatial`` folder."""
    for kind in ("hires", "lowres"):
        picture = spatial / f"tissue_{kind}_image.png"
        if picture.exists():
            checks.require_picture(picture)


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
    checks.require_unique(path, frame["barcode"], "barcode")
    return frame.set_index("barcode")


def _require_positions(matrix: Path, rows: str, path: Path, known: Any) -> None:
    """Refuse counts of which a spot or a bin has no position."""
    barcodes = checks.require_matrix(matrix)
    missing = barcodes[~np.isin(barcodes, known.astype(str))]
    if len(missing):
        raise ValueError(
            f"{len(missing)} of {len(barcodes)} {rows} of {matrix} have no position in {path}, the first of them "
            f"{str(missing[0])!r}. Are both files of one sample?"
        )


def _require_counts(path: Path, table: Any, what: str) -> None:
    """Refuse numbers of a table that are no raw counts."""
    values.require_counts(f"{path}: matrix/data", table.X, table.obs_names, table.var_names, what=what)


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


def _check_slice(folder: Path, dataset_id: str | None) -> str:
    """What the names of the folder's files begin with; the slice file has what spatialdata-io needs of it."""
    import h5py

    names = [SLICE] + ([f"*_{SLICE}"] if dataset_id is None else [f"{dataset_id}_{SLICE}"])
    file = checks.require_file(folder, *names, vendor=HD_VENDOR)
    with checks.reading(file):
        with h5py.File(file) as content:
            metadata = json.loads(content.attrs["metadata_json"]) if "metadata_json" in content.attrs else None
        layout = json.loads(metadata["hd_layout_json"]) if metadata and "hd_layout_json" in metadata else {}
    if "file_format" not in layout:
        raise KeyError(
            f"{file} has no attribute metadata_json with hd_layout_json and its file_format; copy the file again."
        )
    return file.name.removesuffix(SLICE)


def _bins(folder: Path, bin_size: int | Sequence[int] | None) -> dict[int, Path]:
    """Folders of the bins by their side in µm."""
    parent = folder / "binned_outputs"
    parent = parent if parent.is_dir() else folder
    matches = {BIN_FOLDER.match(kind.name): kind for kind in sorted(parent.iterdir()) if kind.is_dir()}
    there = {int(match[1]): kind for match, kind in matches.items() if match}
    if not there:
        raise FileNotFoundError(f"{parent} has no folders of bins such as square_008um.")
    if bin_size is None:
        return there
    sizes = [int(bin_size)] if isinstance(bin_size, int | np.integer) else [int(size) for size in bin_size]
    missing = [size for size in sizes if size not in there]
    if missing or not sizes:
        raise FileNotFoundError(f"{parent} has no bins of {missing} µm; it has {sorted(there)}: choose with bin_size=.")
    return {size: there[size] for size in sizes}


def _check_bins(folder: Path, bin_um: int, filtered: bool) -> float:
    """µm per pixel that the files of one size of bins state; they are there, whole, and fit each other."""
    import pandas as pd

    checks.require_files(folder / "spatial", HD_VENDOR, BIN_FILES, {})
    file = folder / "spatial" / FACTORS
    factors = checks.read_json(file)
    mpp, side, diameter = (
        float(factors[name]) for name in ("microns_per_pixel", "bin_size_um", "spot_diameter_fullres")
    )
    if side != bin_um or not np.isclose(side / diameter, mpp):
        raise ValueError(
            f"{file}: bin_size_um is {side:g} and spot_diameter_fullres {diameter:g} px, which are "
            f"{side / diameter:.4g} µm per pixel; in {folder.name}, with microns_per_pixel {mpp:g}, they should be "
            f"{bin_um} and {bin_um / mpp:.6g}."
        )
    matrix = checks.require_file(folder, MATRIX if filtered else "raw_feature_bc_matrix.h5", vendor=HD_VENDOR)
    positions = folder / "spatial" / "tissue_positions.parquet"
    with checks.reading(positions):
        barcodes = pd.Index(pd.read_parquet(positions, columns=["barcode"])["barcode"])
    checks.require_unique(positions, barcodes, "barcode")
    _require_positions(matrix, "bins", positions, barcodes)
    _check_pictures(folder / "spatial")
    return mpp


def _full_image(folder: Path, prefix: str, file: Any) -> Path | None:
    """The full-resolution image that spatialdata-io takes; None where there is none, or several to choose from."""
    if file is not None:
        return Path(file)
    directory = folder / "microscope_image"
    files = list(directory.iterdir()) if directory.is_dir() else list(folder.glob(f"{prefix}tissue_image.*"))
    files = [file for file in files if file.is_file()]
    return files[0] if len(files) == 1 else None


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


def _add_he(sdata: SpatialData, dataset_id: str, image: Any, he: Any, he_alignment: Any) -> None:
    """The full-resolution H&E, or another one that is aligned to its pixels; else the best of the folder's pictures."""
    if image is not None:
        attach_he(sdata, image, name="he", coordinate_system=dataset_id)
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
        if outside > MAX_OUTSIDE:
            shown = image if isinstance(image, str | Path) else "the array"
            raise ValueError(
                f"image=: {outside:.0%} of the spots lie outside of {shown}, which has {width} x {height} px; they "
                f"reach to ({x.max():.0f}, {y.max():.0f}). Give the full-resolution image that Space Ranger was given, "
                "not a smaller copy (tissue_hires_image.png); one of another size needs he= and he_alignment=."
            )
