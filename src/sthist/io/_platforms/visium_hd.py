"""Visium HD folders."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist import _sample, scale
from sthist.io._files import checks
from sthist.io._files.images import TIFF_SUFFIXES
from sthist.io._files.tiff import open_tiff
from sthist.io._platforms.visium import COLUMNS, add_he, check_pictures, finish, require_once, require_one_he

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spatialdata import SpatialData

VENDOR = "Visium HD"
SLICE = "feature_slice.h5"
BIN_FOLDER = re.compile(r"square_(\d{3})um$")


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
    FileNotFoundError
        If a file, or a size of bins, is missing.
    KeyError
        If a file has not the columns or entries it should have.
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
    sources = {
        f"{kind.name}/spatial/scalefactors_json.json": _check_bins(kind, size, filtered) for size, kind in bins.items()
    }
    size = scale.agreed_mpp(str(folder), sources, mpp, "")
    check_pictures(folder / "spatial")
    with checks.quietly(), warnings.catch_warnings():
        if image is not None or he is not None:  # then it is no loss that the folder has none
            warnings.filterwarnings("ignore", "No full resolution image found", UserWarning)
        options = {"load_segmentations_only": False} | kwargs
        sdata = spatialdata_io.visium_hd(folder, dataset_id=dataset_id, bin_size=list(bins), **options)
    shapes_of = {name: table.uns["spatialdata_attrs"]["region"] for name, table in sdata.tables.items()}
    finish(sdata, dataset_id, size, "microns_per_pixel of scalefactors_json.json", shapes_of)
    finest = next((bins[side].name for side in sorted(bins) if bins[side].name in sdata.tables), None)
    if finest is not None:
        _sample.set_role(sdata, "spots", {"table": finest, "shapes": shapes_of[finest]})
    if "cell_segmentations" in sdata.tables:
        _sample.set_role(sdata, "cells", {"table": "cell_segmentations"})
    if image is None and he is None:
        _check_scale(sdata, f"{dataset_id}_full_image", _full_image(folder, prefix, kwargs.get("fullres_image_file")))
    add_he(sdata, dataset_id, image, he, he_alignment)
    return sdata


def _full_image(folder: Path, prefix: str, given: Any) -> Path | None:
    """The full-resolution image that spatialdata-io takes; None where there is none, or several to choose from."""
    if given is not None:
        return Path(given)
    directory = folder / "microscope_image"
    found = list(directory.iterdir()) if directory.is_dir() else list(folder.glob(f"{prefix}tissue_image.*"))
    files = [file for file in found if file.is_file()]
    return files[0] if len(files) == 1 else None


def _check_scale(sdata: SpatialData, name: str, file: Path | None) -> None:
    """What the image's file states agrees with the bins."""
    if file is None or name not in sdata.images or file.suffix.lower() not in TIFF_SUFFIXES:
        return
    for stated, value in open_tiff(file, read=False)[2].items():
        scale.record_mpp(sdata, name, f"{stated} of {file.name}", value)
    scale.resolve_mpp(sdata, name)


def _check_slice(folder: Path, dataset_id: str | None) -> str:
    """What the names of the folder's files begin with; the slice file has what spatialdata-io needs of it."""
    import h5py

    names = [SLICE] + ([f"*_{SLICE}"] if dataset_id is None else [f"{dataset_id}_{SLICE}"])
    file = checks.require_file(folder, *names, vendor=VENDOR)
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
    wanted = [int(bin_size)] if isinstance(bin_size, int | np.integer) else [int(size) for size in bin_size]
    missing = [size for size in wanted if size not in there]
    if missing or not wanted:
        raise FileNotFoundError(f"{parent} has no bins of {missing} µm; it has {sorted(there)}: choose with bin_size=.")
    return {size: there[size] for size in wanted}


def _check_bins(folder: Path, bin_um: int, filtered: bool) -> float:
    """µm per pixel that the files of one size of bins state; they are there, whole, and fit each other."""
    import pandas as pd

    spatial = folder / "spatial"
    file = checks.require_file(spatial, "scalefactors_json.json", vendor=VENDOR)
    factors = checks.read_json(file)
    names = ("microns_per_pixel", "bin_size_um", "spot_diameter_fullres", "tissue_hires_scalef", "tissue_lowres_scalef")
    mpp, side, diameter, *_ = (checks.require_number(file, factors, name) for name in names)
    if side != bin_um or not np.isclose(side / diameter, mpp):
        raise ValueError(
            f"{file}: bin_size_um is {side:g} and spot_diameter_fullres {diameter:g} px, which are "
            f"{side / diameter:.4g} µm per pixel; in {folder.name}, with microns_per_pixel {mpp:g}, they should be "
            f"{bin_um} and {bin_um / mpp:.6g}."
        )
    positions = checks.require_file(spatial, "tissue_positions.parquet", vendor=VENDOR)
    checks.require_parquet(positions, COLUMNS, numeric=COLUMNS[1:])
    name = "filtered_feature_bc_matrix.h5" if filtered else "raw_feature_bc_matrix.h5"
    matrix = checks.require_file(folder, name, vendor=VENDOR)
    barcodes = pd.Index(checks.require_matrix(matrix))
    with checks.reading(positions):
        known = pd.Index(pd.read_parquet(positions, columns=["barcode"])["barcode"])
    require_once(positions, known)
    missing = barcodes[~barcodes.isin(known)]
    if len(missing):
        raise ValueError(
            f"{len(missing)} of {len(barcodes)} bins of {matrix} have no position in {positions}, the first of them "
            f"{missing[0]!r}."
        )
    check_pictures(spatial)
    return mpp
