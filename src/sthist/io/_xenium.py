"""Xenium folders."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sthist import _elements, scale
from sthist.io import _sample, _vendor

if TYPE_CHECKING:
    from spatialdata import SpatialData

STAINS = ("morphology_focus", "morphology_mip")
COORDINATES = {
    "cells.parquet": (["cell_id", "x_centroid", "y_centroid"], ["x_centroid", "y_centroid"]),
    "transcripts.parquet": (["x_location", "y_location", "feature_name"], ["x_location", "y_location"]),
    "cell_boundaries.parquet": (["cell_id", "vertex_x", "vertex_y"], ["vertex_x", "vertex_y"]),
    "nucleus_boundaries.parquet": (["cell_id", "vertex_x", "vertex_y"], ["vertex_x", "vertex_y"]),
}
"""Columns that a file must have, and those of them that are numbers."""

TABLE = ("cells_table", "cells_boundaries", "nucleus_boundaries")
SWITCHES = {
    "cells.parquet": TABLE,
    "cell_feature_matrix.h5": TABLE,
    "transcripts.parquet": ("transcripts",),
    "cell_boundaries.parquet": ("cells_boundaries",),
    "nucleus_boundaries.parquet": ("nucleus_boundaries",),
}
"""Arguments of :func:`spatialdata_io.xenium` that make it read a file; all are true by default."""


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
        :func:`sthist.pp.align`). What Xenium Explorer exports fits.
    kwargs
        Passed on to :func:`spatialdata_io.xenium`.

    Returns
    -------
    A SpatialData in memory.

    Raises
    ------
    FileNotFoundError
        If there is no such folder, it has no ``experiment.xenium``, or one of its files is missing.
    KeyError
        If a file has not the columns it should have.
    ValueError
        If ``experiment.xenium`` states no pixel size, or the image's metadata another one; if a file is truncated, empty,
        or has text for coordinates; if only one of ``he`` and ``he_alignment`` is given.

    Examples
    --------
    >>> import sthist
    >>> sdata = sthist.io.xenium("outs")  # doctest: +SKIP
    >>> sthist.tl.virtual_he(sdata)  # doctest: +SKIP
    """
    import spatialdata_io

    folder = Path(path)
    specs = _vendor.require_file(folder, "experiment.xenium", vendor="Xenium")
    pixel_size = _vendor.read_json(specs).get("pixel_size")
    if not isinstance(pixel_size, int | float) or pixel_size <= 0:
        msg = f"{specs} states no pixel size in µm (pixel_size is {pixel_size!r})."
        raise ValueError(msg)
    _sample.require_he(folder, he, he_alignment)
    _check(folder, kwargs)
    with _vendor.quietly():
        sdata = spatialdata_io.xenium(folder, **kwargs)
    stain = next((name for name in STAINS if name in sdata.images), None)
    if stain is None:
        msg = f"{path} gave no morphology image ({_elements.describe('images', sdata.images)}); sthist needs the nuclear stain."
        raise ValueError(msg)
    scale.record_mpp(sdata, stain, "pixel_size of experiment.xenium", float(pixel_size))
    for stated, value in _stated_by_image(folder, stain).items():
        scale.record_mpp(sdata, stain, stated, value)
    scale.register(sdata, stain, float(pixel_size))
    _sample.record_high_res(sdata, stain)
    aligned = [name for name in sdata.images if _elements.HE_NAMES.search(name)]
    if len(aligned) == 1:
        _elements.set_role(sdata, "he", {"image": aligned[0]})
    if he is not None:
        from sthist.io._he import attach_he

        attach_he(sdata, he, alignment=he_alignment, to=stain)
    return sdata


def _check(folder: Path, kwargs: dict[str, Any]) -> None:
    """Every file that will be read is there, is whole, and has its columns."""
    for name, arguments in SWITCHES.items():
        if not any(kwargs.get(argument, True) for argument in arguments):
            continue
        file = _vendor.require_file(folder, name, vendor="Xenium")
        if name in COORDINATES:
            columns, numeric = COORDINATES[name]
            _vendor.require_parquet(file, columns, numeric=numeric)
        else:
            _vendor.require_matrix(file)
    cells = _vendor.require_file(folder, "cells.zarr.zip", vendor="Xenium")
    with _vendor.reading(cells), zipfile.ZipFile(cells):
        pass
    names = [pattern for stain in STAINS for pattern in (f"{stain}.ome.tif", f"{stain}/*.ome.tif")]
    _vendor.require_file(folder, *names, vendor="Xenium")
    for stain in STAINS:
        for file in _files_of(folder, stain):
            _vendor.require_picture(file)


def _files_of(folder: Path, stain: str) -> list[Path]:
    return [
        file for file in (*sorted((folder / stain).glob("*.ome.tif")), folder / f"{stain}.ome.tif") if file.exists()
    ]


def _stated_by_image(folder: Path, stain: str) -> dict[str, float]:
    """µm/px in the metadata of the vendor's morphology image."""
    import tifffile

    from sthist.io._tiff import ome_scale_and_channels

    for file in _files_of(folder, stain):
        with tifffile.TiffFile(file) as tiff:
            return ome_scale_and_channels(tiff)[0]
    return {}
