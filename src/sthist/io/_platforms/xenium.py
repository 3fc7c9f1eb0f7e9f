"""Xenium folders."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist import scale
from sthist._sample import HE_NAMES, describe, set_role
from sthist.io._files import checks
from sthist.io._files.tiff_metadata import ome_mpp
from sthist.io._parts import sample
from sthist.io._parts.molecules import require_parquet_molecules

if TYPE_CHECKING:
    from spatialdata import SpatialData

VERSION = "analysis_sw_version"
ALIGNED = ("he_image", "if_image")
STAINS = ("morphology_focus", "morphology_mip")
# Columns that a file must have, and those of them that are numbers.
COORDINATES = {
    "cells.parquet": (["cell_id", "x_centroid", "y_centroid"], ["x_centroid", "y_centroid"]),
    "transcripts.parquet": (["x_location", "y_location", "feature_name"], ["x_location", "y_location"]),
    "cell_boundaries.parquet": (["cell_id", "vertex_x", "vertex_y"], ["vertex_x", "vertex_y"]),
    "nucleus_boundaries.parquet": (["cell_id", "vertex_x", "vertex_y"], ["vertex_x", "vertex_y"]),
}
TABLE = ("cells_table", "cells_boundaries", "nucleus_boundaries")
# Arguments of spatialdata_io.xenium that make it read a file; all are true by default.
SWITCHES = {
    "cells.parquet": TABLE,
    "cell_feature_matrix.h5": TABLE,
    "transcripts.parquet": ("transcripts",),
    "cell_boundaries.parquet": ("cells_boundaries",),
    "nucleus_boundaries.parquet": ("nucleus_boundaries",),
}


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
    specs = checks.require_file(folder, "experiment.xenium", vendor="Xenium")
    pixel_size = _check_specs(specs)
    sample.require_he(folder, he, he_alignment)
    _check(folder, kwargs)
    aligned_files = _aligned_files(folder) if kwargs.get("aligned_images", True) else {}
    with checks.quietly():
        sdata = spatialdata_io.xenium(folder, **kwargs)
    stain = next((name for name in STAINS if name in sdata.images), None)
    if stain is None:
        raise ValueError(
            f"{path} gave no morphology image ({describe('images', sdata.images)}); sthist needs the nuclear stain."
        )
    scale.record_mpp(sdata, stain, "pixel_size of experiment.xenium", pixel_size)
    for stated, value in _stated_by_image(folder, stain).items():
        scale.record_mpp(sdata, stain, stated, value)
    scale.register(sdata, stain, pixel_size)
    _check_scale_of_aligned(sdata, aligned_files)
    sample.record_high_res(sdata, stain)
    aligned = [name for name in sdata.images if HE_NAMES.search(name)]
    if len(aligned) == 1:
        set_role(sdata, "he", {"image": aligned[0]})
    if he is not None:
        from sthist.io._parts.he import attach_he

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


def _aligned_files(folder: Path) -> dict[str, Path]:
    """Images that spatialdata-io will add, by their key there; each has its alignment."""
    found = {}
    for kind in ALIGNED:
        for file in sorted(folder.glob(f"*{kind}.ome.tif")):
            alignment = file.with_name(file.name.replace("image.ome.tif", "imagealignment.csv"))
            if not alignment.is_file():
                raise FileNotFoundError(
                    f"{file} has no alignment {alignment.name} beside it, which says where it lies. Add that file, or "
                    "leave the image out with aligned_images=False."
                )
            found[kind] = file
    return found


def _check_scale_of_aligned(sdata: SpatialData, files: dict[str, Path]) -> None:
    """What the images' own metadata state agrees with where their alignments put them."""
    for name, file in files.items():
        if name in sdata.images:
            for stated, value in ome_mpp(file).items():
                scale.record_mpp(sdata, name, f"{stated} of {file.name}", value)
            scale.resolve_mpp(sdata, name)


def _check(folder: Path, kwargs: dict[str, Any]) -> None:
    """Every file that will be read is there, is whole, and has its columns."""
    for name, arguments in SWITCHES.items():
        if not any(kwargs.get(argument, True) for argument in arguments):
            continue
        file = checks.require_file(folder, name, vendor="Xenium")
        if name in COORDINATES:
            columns, numeric = COORDINATES[name]
            checks.require_parquet(file, columns, numeric=numeric)
    if any(kwargs.get(argument, True) for argument in TABLE):
        _require_same_cells(folder / "cells.parquet", folder / "cell_feature_matrix.h5")
    if kwargs.get("transcripts", True):
        require_parquet_molecules(folder / "transcripts.parquet", "feature_name", ["x_location", "y_location"])
    cells = checks.require_file(folder, "cells.zarr.zip", vendor="Xenium")
    with checks.reading(cells), zipfile.ZipFile(cells):
        pass
    names = [pattern for stain in STAINS for pattern in (f"{stain}.ome.tif", f"{stain}/*.ome.tif")]
    checks.require_file(folder, *names, vendor="Xenium")
    for stain in STAINS:
        for file in _files_of(folder, stain):
            checks.require_picture(file)


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


def _files_of(folder: Path, stain: str) -> list[Path]:
    return [
        file for file in (*sorted((folder / stain).glob("*.ome.tif")), folder / f"{stain}.ome.tif") if file.exists()
    ]


def _stated_by_image(folder: Path, stain: str) -> dict[str, float]:
    """µm/px in the metadata of the vendor's morphology image."""
    return next((ome_mpp(file) for file in _files_of(folder, stain)), {})
