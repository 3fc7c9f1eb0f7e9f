"""Visium HD folders."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist import scale
from sthist._reading import reader
from sthist._sample import set_role
from sthist._settings import logger
from sthist.io._files import checks, values
from sthist.io._files.checks import Needed
from sthist.io._files.images import TIFF_SUFFIXES
from sthist.io._files.tiff import open_tiff
from sthist.io._parts.spots import fit_lattice
from sthist.io._platforms.space_ranger import (
    ARRAY,
    FACTORS,
    MATRIX,
    NUMERIC,
    PIXELS,
    SCALE_FACTORS,
    add_he,
    finish,
    full_image,
    pictures_of,
    require_counts,
    require_factors,
    require_known,
    require_one_he,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from spatialdata import SpatialData

VENDOR = "Visium HD"
BIN_FACTORS = ("microns_per_pixel", "bin_size_um", *SCALE_FACTORS)
BIN_FILES = (Needed(FACTORS, numeric=BIN_FACTORS), Needed("tissue_positions.parquet", ("barcode",), NUMERIC))
SLICE = "feature_slice.h5"
RAW_MATRIX = "raw_feature_bc_matrix.h5"
SAME_FACTOR = 1e-3  # relative difference between two files of one sample
GRID_BINS = 20_000  # that tell how far apart all are
BIN_FOLDER = re.compile(r"square_(\d{3})um$")


@reader
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
    require_one_he(folder, image, he, he_alignment)
    prefix = _check_slice(folder, dataset_id)
    dataset_id = dataset_id or prefix.removesuffix("_") or "visium_hd"
    bins = _bins(folder, bin_size)
    filtered = kwargs.get("filtered_counts_file", True)
    sources = {f"{kind.name}/spatial/{FACTORS}": _check_bins(kind, size, filtered) for size, kind in bins.items()}
    size = scale.agreed_mpp(str(folder), sources, mpp, "")
    _require_same_factors(folder, bins)
    file = _full_image(folder, prefix, kwargs.get("fullres_image_file"))
    if file is not None:
        checks.require_picture(file)
        kwargs["fullres_image_file"] = folder / "read below"  # spatialdata-io passes over what is not there
    with checks.quietly(), warnings.catch_warnings():
        if image is not None or he is not None:  # then it is no loss that the folder has none
            warnings.filterwarnings("ignore", "No full resolution image found", UserWarning)
        warnings.filterwarnings("ignore", "File .*read below does not exist", UserWarning)
        options = {"load_segmentations_only": False} | kwargs
        sdata = spatialdata_io.visium_hd(folder, dataset_id=dataset_id, bin_size=list(bins), **options)
    for element in sdata.images.values():  # small ones, of which a damaged one is said now, with its name
        element.data = element.data.persist()
    full = f"{dataset_id}_full_image"
    if file is not None:
        sdata.images[full] = full_image(file, dataset_id, kwargs.get("image_models_kwargs", {}))
    matrices = {kind.name: kind / (MATRIX if filtered else RAW_MATRIX) for kind in bins.values()}
    for name, table in sdata.tables.items():
        require_counts(matrices.get(name, folder / "segmented_outputs"), table, "bin")
    shapes_of = {name: table.uns["spatialdata_attrs"]["region"] for name, table in sdata.tables.items()}
    finish(sdata, dataset_id, size, "microns_per_pixel of scalefactors_json.json", shapes_of)
    finest = next((bins[side].name for side in sorted(bins) if bins[side].name in sdata.tables), None)
    if finest is not None:
        set_role(sdata, "spots", {"table": finest, "shapes": shapes_of[finest]})
    if "cell_segmentations" in sdata.tables:
        set_role(sdata, "cells", {"table": "cell_segmentations"})
    if image is None and he is None and file and file.suffix.lower() in TIFF_SUFFIXES:
        stated_mpp = scale.trusted(open_tiff(file, read=False)[2], mpp)
        for stated, value in scale.sensible(stated_mpp, file.name).items():  # which has to agree with the bins
            scale.record_mpp(sdata, full, f"{stated} of {file.name}", value)
        scale.resolve_mpp(sdata, full)
    add_he(sdata, dataset_id, image, he, he_alignment, mpp)
    return sdata


def _check_slice(folder: Path, dataset_id: str | None) -> str:
    """What the names of the folder's files begin with; the slice file has what spatialdata-io needs of it."""
    import h5py

    names = [SLICE] + ([f"*_{SLICE}"] if dataset_id is None else [f"{dataset_id}_{SLICE}"])
    several = checks.files_like(folder, f"*_{SLICE}")
    if dataset_id is None and len(several) > 1:
        begins = ", ".join(file.name.removesuffix(f"_{SLICE}") for file in several)
        raise ValueError(f"{folder} has several samples: {begins}; choose one with dataset_id=.")
    file = checks.require_file(folder, *names, vendor=VENDOR)
    with checks.reading(file), h5py.File(file) as content:
        stated = content.attrs.get("metadata_json")
    if "file_format" not in _json_object(_json_object(stated).get("hd_layout_json")):
        raise KeyError(
            f"{file} has no attribute metadata_json with hd_layout_json and its file_format; copy the file again."
        )
    return file.name.removesuffix(SLICE)


def _json_object(text: Any) -> dict[str, Any]:
    """An object that is written as JSON; empty where it is none."""
    try:
        found = json.loads(text)
    except (TypeError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


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

    checks.require_files(folder / "spatial", VENDOR, BIN_FILES, {})
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
    matrix = checks.require_file(folder, MATRIX if filtered else RAW_MATRIX, vendor=VENDOR)
    positions = folder / "spatial" / "tissue_positions.parquet"
    with checks.reading(positions):
        frame = checks.read_parquet(positions, ["barcode", *NUMERIC])
    barcodes = pd.Index(frame["barcode"])
    values.require_named(positions, "column 'barcode'", barcodes)
    checks.require_unique(positions, barcodes, "barcode")
    require_known(matrix, checks.require_matrix(matrix), "bins", positions, barcodes)
    for fields in (PIXELS, ARRAY):
        values.require_places(positions, ", ".join(fields), frame[fields].to_numpy(np.float64), barcodes, what="bins")
    _require_grid(positions, frame, side, mpp)
    on_tissue = frame.loc[frame["in_tissue"] == 1, PIXELS].to_numpy(np.float64)
    for where in (folder, folder.parent, folder.parent.parent):
        require_factors(file, factors, pictures_of(where / "spatial", ""), on_tissue)
    return mpp


def _require_same_factors(folder: Path, bins: dict[int, Path]) -> None:
    """Refuse scale factors that differ between sizes of bins: spatialdata-io takes those of any of them for all."""
    here = next(iter(bins.values()))
    files = [file for kind in ("*", "*/*") for file in checks.files_like(folder, f"{kind}/spatial/{FACTORS}")]
    stated = {file: checks.read_json(file) for file in [here / "spatial" / FACTORS, *files]}
    first, *others = stated
    for other in others:
        for name in SCALE_FACTORS[:2]:
            one, two = (checks.require_number(file, stated[file], name) for file in (first, other))
            if abs(one / two - 1) > SAME_FACTOR:
                raise ValueError(
                    f"{first} and {other} state another {name!r}, {one:.6g} and {two:.6g}, of the same pictures. Is "
                    "one of them of another sample?"
                )


def _require_grid(path: Path, frame: pd.DataFrame, side_um: float, mpp: float) -> None:
    """Refuse bins that do not lie as far apart as their size and scale say."""
    some = frame.iloc[:: max(1, len(frame) // GRID_BINS)]
    grid = fit_lattice(some[ARRAY].to_numpy(np.float64) * side_um, some[PIXELS].to_numpy(np.float64))
    if grid is None:
        return
    if abs(grid.mpp / mpp - 1) > scale.TOLERANCE or grid.off_um > side_um:
        raise ValueError(
            f"{path}: the bins lie {side_um / grid.mpp:.4g} px apart and {grid.off_um:.3g} µm (median) off their grid; "
            f"bins of {side_um:g} µm at {mpp:.4g} µm per pixel lie {side_um / mpp:.4g} px apart. Are positions and "
            f"{FACTORS} of one sample and one size of bins?"
        )


def _full_image(folder: Path, prefix: str, file: Any) -> Path | None:
    """The full-resolution image that an argument names, or that the folder has; None where it has none."""
    if file is not None:
        return checks.require_argument(file, "fullres_image_file")
    directory = folder / "microscope_image"
    if directory.is_symlink() or directory.exists():
        if not directory.is_dir():
            checks.require_readable(directory)  # a link to nowhere
            raise ValueError(f"{directory} is no folder; it should be one, which has the full-resolution image.")
        there = checks.files_like(directory, "*")
        files = [file for file in there if not file.is_dir()] or there
    else:
        files = checks.files_like(folder, f"{prefix}tissue_image.*")
    if not files:
        return None
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        logger.warning(
            "%s has several files: %s. The first is taken; choose with fullres_image_file=.", directory, names
        )
    checks.require_readable(files[0], "The full-resolution image")
    return files[0]
