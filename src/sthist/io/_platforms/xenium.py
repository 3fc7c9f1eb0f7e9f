"""Xenium folders."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist import scale
from sthist._sample import HE_NAMES, describe, set_role
from sthist.io._files import checks, values
from sthist.io._files.checks import Needed
from sthist.io._files.tiff import ome_mpp
from sthist.io._parts import sample
from sthist.io._parts.sample import attach_he, require_he

if TYPE_CHECKING:
    from spatialdata import SpatialData

VENDOR = "Xenium"
VERSION = "analysis_sw_version"
ALIGNED = ("he_image", "if_image")
STAINS = ("morphology_focus", "morphology_mip")
TABLE = ("cells_table", "cells_boundaries", "nucleus_boundaries")
VERTICES = ("vertex_x", "vertex_y")
FILES = (
    Needed("cells.parquet", ("cell_id",), ("x_centroid", "y_centroid"), switches=TABLE),
    Needed("cell_feature_matrix.h5", switches=TABLE),
    Needed("transcripts.parquet", numeric=("x_location", "y_location"), gene="feature_name", switches=("transcripts",)),
    Needed("cell_boundaries.parquet", ("cell_id",), VERTICES, switches=("cells_boundaries",)),
    Needed("nucleus_boundaries.parquet", ("cell_id",), VERTICES, switches=("nucleus_boundaries",)),
    Needed("cells.zarr.zip"),
)


def xenium(path: str | Path, *, he: str | Path | None = None, he_alignment: Any = None, **kwargs: Any) -> SpatialData:
    """Read the output folder of a Xenium run, in micrometres.

    :func:`spatialdata_io.xenium` reads it; this adds the coordinate system ``um``, in which every element is
    registered, and records which image is the nuclear stain, which is H&E, and which points are the transcripts.

    Parameters
    ----------
    path
        The folder, with ``experiment.xenium``.
    he
        An H&E of the same section, made later: TIFF, OME-TIFF, SVS, PNG or JPEG.
    he_alignment
        Where it lies: a 3 x 3 matrix from its pixels to those of the nuclear stain, or landmarks; a file or arrays (see
        :func:`sthist.pp.align`). What Xenium Explorer exports fits. Without it, ``pp.align`` lays it
        on the section later.
    kwargs
        Passed on to :func:`spatialdata_io.xenium`.

    Returns
    -------
    A SpatialData in memory.

    Raises
    ------
    FileNotFoundError
        If there is no such folder, it has no ``experiment.xenium``, or one of its files is missing; if it has an
        aligned image without its alignment (``aligned_images=False`` leaves such images out).
    KeyError
        If a file has not the columns or entries it should have.
    ValueError
        If the pixel size of ``experiment.xenium`` is none, or an image's metadata contradict it or the image's
        alignment; if a file is truncated, empty, or has text for coordinates; if counts and cells do not fit; if
        ``he_alignment`` is given alone, or left out where the folder has it.

    Examples
    --------
    >>> import sthist
    >>> sdata = sthist.io.xenium("outs")  # doctest: +SKIP
    >>> sthist.tl.virtual_he(sdata)  # doctest: +SKIP
    """
    import spatialdata_io

    folder = Path(path)
    specs = checks.require_file(folder, "experiment.xenium", vendor=VENDOR)
    pixel_size = _check_specs(specs)
    require_he(folder, he, he_alignment)
    checks.require_files(folder, VENDOR, FILES, kwargs)
    if any(kwargs.get(argument, True) for argument in TABLE):
        _require_same_cells(folder / "cells.parquet", folder / "cell_feature_matrix.h5")
    stains = _stain_files(folder)
    aligned_files = _aligned_files(folder) if kwargs.get("aligned_images", True) else {}
    with checks.quietly():
        sdata = spatialdata_io.xenium(folder, **kwargs)
    if "table" in sdata.tables:
        table = sdata.tables["table"]
        where = f"{folder / 'cell_feature_matrix.h5'}: matrix/data"
        whole = "Protein Expression" not in set(table.var.get("feature_types", ()))  # intensities, which are scaled
        values.require_counts(where, table.X, table.obs_names, table.var_names, whole=whole)
    stain = next((name for name in STAINS if name in sdata.images), None)
    if stain is None:
        raise ValueError(
            f"{path} gave no morphology image ({describe('images', sdata.images)}); sthist needs the nuclear stain."
        )
    stated = ome_mpp(stains[stain][0]) if stains[stain] else {}
    stated = scale.sensible(stated, f"image {stain!r}")
    for source, value in ({"pixel_size of experiment.xenium": pixel_size} | stated).items():
        scale.record_mpp(sdata, stain, source, value)
    scale.register(sdata, stain, pixel_size)
    for name, file in aligned_files.items():
        if name in sdata.images:  # what its metadata state agrees with where its alignment puts it
            for source, value in scale.sensible(ome_mpp(file), file.name).items():
                scale.record_mpp(sdata, name, f"{source} of {file.name}", value)
            scale.resolve_mpp(sdata, name)
    sample.record_high_res(sdata, stain)
    aligned = [name for name in sdata.images if HE_NAMES.search(name)]
    if len(aligned) == 1:
        set_role(sdata, "he", {"image": aligned[0]})
    attach_he(sdata, he, alignment=he_alignment, to=stain)
    return sdata


def _check_specs(path: Path) -> float:
    """The pixel size in µm of ``experiment.xenium``, which has all that spatialdata-io takes from it."""
    specs = checks.read_json(path)
    pixel_size = checks.require_number(path, specs, "pixel_size")
    ranger = specs.get("xenium_ranger")  # its version counts where it has segmented the cells again
    where, key = (ranger, "version") if isinstance(ranger, dict) and ranger else (specs, VERSION)
    if key not in where:
        raise KeyError(f"{path} has no {key!r}, by which the layout of the folder is told; it has {sorted(where)}.")
    if not isinstance(where[key], str):
        raise ValueError(f"{path}: {key!r} is {where[key]!r}; it should be text such as 'xenium-2.0.0'.")
    return pixel_size


def _stain_files(folder: Path) -> dict[str, list[Path]]:
    """Files of the morphology images, which are there and whole."""
    patterns = {stain: (f"{stain}/*.ome.tif", f"{stain}.ome.tif") for stain in STAINS}
    checks.require_file(folder, *(name for names in patterns.values() for name in reversed(names)), vendor=VENDOR)
    files = {stain: [file for name in names for file in sorted(folder.glob(name))] for stain, names in patterns.items()}
    for file in (file for stain in files.values() for file in stain):
        checks.require_picture(file)
    return files


def _aligned_files(folder: Path) -> dict[str, Path]:
    """Images that spatialdata-io will add, by their key there; each has its alignment."""
    files = {}
    for kind in ALIGNED:
        for file in sorted(folder.glob(f"*{kind}.ome.tif")):
            alignment = file.with_name(file.name.replace("image.ome.tif", "imagealignment.csv"))
            if not alignment.is_file():
                raise FileNotFoundError(
                    f"{file} has no alignment {alignment.name} beside it, which says where it lies. Add that file, or "
                    "leave the image out with aligned_images=False."
                )
            files[kind] = file
    return files


def _require_same_cells(cells: Path, matrix: Path) -> None:
    """The counts are those of the cells, in their order: they are put together row by row."""
    import pandas as pd

    barcodes = checks.require_matrix(matrix)
    with checks.reading(cells):
        names = pd.read_parquet(cells, columns=["cell_id"])["cell_id"]
    ids = np.array([name.decode() if isinstance(name, bytes) else str(name) for name in names])
    if len(ids) != len(barcodes):
        raise ValueError(
            f"{cells} has {len(ids)} rows, but {matrix.name} has counts of {len(barcodes)} cells. Export both again."
        )
    other = ids != barcodes
    if other.any():
        row = int(other.argmax())
        raise ValueError(
            f"{cells}: cell_id is {str(ids[row])!r} in row {row}, but {matrix.name} has {str(barcodes[row])!r} there. "
            "Export both again."
        )
