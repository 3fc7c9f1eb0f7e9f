"""MERSCOPE folders."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist import scale
from sthist._alignment.read import read_matrix
from sthist._reading import reader
from sthist._sample import NUCLEAR_NAMES, set_role
from sthist._settings import logger
from sthist.io._files import checks, values
from sthist.io._files.checks import Needed
from sthist.io._files.images import LooseImage, image_element
from sthist.io._parts import sample
from sthist.io._parts.outlines import one_plane, read_geoparquet, say_lost
from sthist.io._parts.sample import attach_he, require_he

if TYPE_CHECKING:
    from collections.abc import Iterable

    from anndata import AnnData
    from spatialdata import SpatialData

VENDOR = "MERSCOPE"
MOSAIC = re.compile(r"mosaic_(?P<stain>[\w-]+)_z(?P<z>\d+)\.tiff?$")
TRANSFORM = "micron_to_mosaic_pixel_transform.csv"
GLOBAL_XYZ = ("global_x", "global_y", "global_z")
TRANSCRIPTS = "detected_transcripts.csv"
MOLECULES = Needed(TRANSCRIPTS, numeric=GLOBAL_XYZ, gene="gene")
OUTLINES = Needed("cell_boundaries.parquet", ("EntityID",), ("ZIndex",))
VPT_OUTLINES = ("cellpose_micron_space.parquet", "watershed_micron_space.parquet")
CENTRE = ["center_x", "center_y"]


@reader
def merscope(
    path: str | Path,
    *,
    z_layers: int | Iterable[int] = 3,
    mpp: float | None = None,
    he: str | Path | None = None,
    he_alignment: Any = None,
    **kwargs: Any,
) -> SpatialData:
    """Read a region of a MERSCOPE run, in micrometres.

    :func:`spatialdata_io.merscope` reads the molecules; ``um`` is the vendor's own frame of micrometres.

    Parameters
    ----------
    path
        The folder of a region, with ``images`` and ``detected_transcripts.csv``.
    z_layers
        Plane of the mosaic, or several, which are stacked: they are counted from 0 in the order given here (those of a
        set from the lowest one).
    mpp
        µm per pixel, to be checked against ``micron_to_mosaic_pixel_transform.csv``.
    he
        An H&E of the same section: TIFF, OME-TIFF, SVS, PNG or JPEG.
    he_alignment
        Where it lies: a 3 x 3 matrix from its pixels to those of the mosaic, or landmarks; a file or arrays (see
        :func:`sthist.pp.align`). Without it, ``pp.align`` lays it on the section later.
    kwargs
        Passed on to :func:`spatialdata_io.merscope`: ``transcripts``, ``cells_boundaries``, ``cells_table``,
        ``vpt_outputs``, ``region_name``, ``slide_name``.

    Returns
    -------
    A SpatialData in memory, registered in ``um`` and, in pixels of the mosaic, in ``global``:

    * ``images["mosaic"]``: all stains, (c, y, x), or (c, z, y, x) for several planes; read when needed;
    * ``points["transcripts"]``: ``z`` is the vendor's number of the plane;
    * ``shapes["cells"]``, the outlines in the plane of the image (the middle one of several), else in the nearest plane
      where a cell has one, and ``tables["table"]``, linked to them, with ``obsm["spatial"]`` in µm.

    Raises
    ------
    FileNotFoundError
        If the mosaic, its transformation, the molecules, or the tables of the cells are missing (``transcripts=False``
        and ``cells_table=False`` do without the last two).
    KeyError
        If a table has not the columns it should have.
    ValueError
        If a file is truncated, empty, or has text for numbers, or molecules without a gene; if the pixels of the mosaic
        are not as wide as high, or contradict ``mpp``; if ``z_layers`` is empty.

    Examples
    --------
    >>> import sthist
    >>> sdata = sthist.io.merscope("region_0", z_layers=range(7))  # doctest: +SKIP
    >>> sthist.tl.virtual_he(sdata, image={"mosaic": 3})  # doctest: +SKIP
    """
    import spatialdata_io
    from spatialdata import SpatialData

    folder = Path(path)
    require_he(folder, he, he_alignment)
    to_px, size = _read_transform(folder, mpp)
    planes = _planes(z_layers)
    mosaics = _mosaics(folder, planes)
    counts, cells, outlines = _cell_files(folder, kwargs.get("vpt_outputs"))
    box = _extent(mosaics, to_px)
    if kwargs.get("transcripts", True):
        checks.require_content(checks.require_file(folder, TRANSCRIPTS, vendor=VENDOR), MOLECULES, within=box)
    if kwargs.get("cells_boundaries", True):
        if outlines.exists():
            checks.require_content(outlines, OUTLINES)
        elif kwargs.get("vpt_outputs") is not None:  # spatialdata-io insists on them
            raise FileNotFoundError(f"vpt_outputs=: there is no file {outlines}.")
        else:
            logger.warning("There is no file %s; the cells have no outlines.", outlines)
    table = _read_table(counts, cells) if kwargs.get("cells_table", True) else None
    if table is not None:
        centres = table.obs[CENTRE].to_numpy(np.float64)
        values.require_within(
            cells, ", ".join(CENTRE), centres, box, "the mosaic", what="cells", unit="µm", most=values.HALF
        )
    with checks.quietly():
        # Its reader of images loads a whole plane, of many gigabytes, for each block of it; that of the table fails
        # where the two files list the cells in different orders, or do not name their first column; that of outlines
        # takes those of plane 0, whatever the image's is.
        options = {"mosaic_images": False, "cells_table": False, "cells_boundaries": False}
        read = spatialdata_io.merscope(folder, **{**kwargs, **options})
    sdata = SpatialData(attrs=read.attrs)
    sdata.images["mosaic"] = _mosaic(mosaics, planes)
    for points in read.points.values():
        sdata.points["transcripts"] = points
    if kwargs.get("cells_boundaries", True) and outlines.exists():
        _add_outlines(sdata, outlines, planes, to_px)
    if table is not None:
        _add_table(sdata, table, to_px, outlines)
    scale.register_system(sdata, "global", np.linalg.inv(to_px))
    scale.record_mpp(sdata, "mosaic", TRANSFORM, size)
    sample.record_high_res(sdata, "mosaic")
    if "transcripts" in sdata.points:
        stack = {"z_step": 1.0, "z_planes": planes}  # transcripts' z is the number of the vendor's plane
        set_role(sdata, "transcripts", {"points": "transcripts", "gene": "gene"} | stack)
    attach_he(sdata, he, alignment=he_alignment, to="mosaic")
    return sdata


def _planes(z_layers: Any) -> list[int]:
    """Numbers of the planes: one, or several in their order; those of a set by size."""
    ordered = sorted(z_layers) if isinstance(z_layers, set | frozenset) else z_layers
    numbers = np.atleast_1d(list(ordered) if np.iterable(ordered) and not isinstance(ordered, str) else ordered)
    if numbers.ndim != 1 or len(numbers) == 0 or numbers.dtype.kind not in "iu":
        raise ValueError(
            f"z_layers is {z_layers!r}; it is the number of a plane, such as 3, or several, such as range(7)."
        )
    return [int(number) for number in numbers]


def _read_transform(folder: Path, mpp: float | None) -> tuple[np.ndarray, float]:
    """The matrix from µm to pixels of the mosaic, and the µm per pixel."""
    images = checks.require_file(folder, "images", vendor=VENDOR)
    file = checks.require_file(images, TRANSFORM, vendor=f"{VENDOR} images")
    with checks.reading(file):
        rows = [line.split() for line in file.read_text().splitlines() if line.strip()]
    try:
        matrix = read_matrix([[float(value) for value in row] for row in rows])
    except ValueError as error:
        raise ValueError(f"{file} should hold a 3 x 3 matrix from µm to pixels: {error}") from None
    along_x, along_y = scale.pixel_size(np.linalg.inv(matrix))
    scale.agreed_mpp(str(file), {"along x": along_x, "along y": along_y}, mpp, "it states none")
    return matrix, along_x


def _mosaics(folder: Path, planes: list[int]) -> dict[tuple[str, int], Path]:
    """Files of the mosaic by stain and plane, every stain at every plane."""
    images = folder / "images"
    matches = {file: MOSAIC.match(file.name) for file in checks.files_like(images, "*")}
    files = {(match["stain"], int(match["z"])): file for file, match in matches.items() if match}
    if not files:
        raise FileNotFoundError(f"{images} has no files that are named like mosaic_DAPI_z3.tif.")
    stains = sorted({stain for stain, _ in files})
    if not any(NUCLEAR_NAMES.search(stain) for stain in stains):
        raise FileNotFoundError(
            f"{images} has no mosaic of a nuclear stain such as mosaic_DAPI_z3.tif; it has those of {stains}."
        )
    chosen = [(stain, z) for stain in stains for z in planes]
    for stain, z in chosen:
        if (stain, z) not in files:
            there = sorted({z for _, z in files})
            raise FileNotFoundError(
                f"{images} has no mosaic_{stain}_z{z}.tif; it has the planes {there}: choose with z_layers=."
            )
    first = files[chosen[0]]
    *_, height, width = shape = checks.require_picture(first)[0]
    for file in (files[key] for key in chosen[1:]):
        other = checks.require_picture(file)[0]
        if other != shape:
            raise ValueError(f"{file} has {other[-1]} x {other[-2]} px, but {first.name} has {width} x {height}.")
    return {key: files[key] for key in chosen}


def _extent(mosaics: dict[tuple[str, int], Path], to_px: np.ndarray) -> values.Box:
    """The box around the mosaic in µm."""
    *_, height, width = checks.require_picture(next(iter(mosaics.values())))[0]
    corners = np.array([[0, 0, 1], [width, 0, 1], [0, height, 1], [width, height, 1]]) @ np.linalg.inv(to_px)[:2].T
    (x0, y0), (x1, y1) = corners.min(0).tolist(), corners.max(0).tolist()
    return x0, y0, x1, y1


def _mosaic(files: dict[tuple[str, int], Path], planes: list[int]) -> Any:
    """The stains as one image, planes stacked where there are several."""
    import dask.array as da
    from spatialdata.transformations import Identity

    stains = list(dict.fromkeys(stain for stain, _ in files))
    pixels = da.stack([da.stack([checks.picture_pixels(files[stain, z])[0] for z in planes]) for stain in stains])
    flat = len(planes) == 1
    loose = LooseImage(pixels[:, 0] if flat else pixels, ("c", "y", "x") if flat else ("c", "z", "y", "x"), {})
    return image_element(loose, {"global": Identity()}, channels=stains, name="mosaic")


def _cell_files(folder: Path, vpt: Any) -> tuple[Path, Path, Path]:
    """Counts, metadata and outlines of the cells: the instrument's, or those of the post-processing tool."""
    if isinstance(vpt, dict):
        counts, cells, outlines = (Path(vpt[key]) for key in ("cell_by_gene", "cell_metadata", "cell_boundaries"))
        return counts, cells, outlines
    where = folder if vpt is None else Path(vpt)
    names = ("cell_boundaries.parquet",) if vpt is None else VPT_OUTLINES
    outlines = next((where / name for name in names if (where / name).exists()), where / names[0])
    return where / "cell_by_gene.csv", where / "cell_metadata.csv", outlines


def _read_table(counts: Path, cells: Path) -> AnnData:
    """Counts of the cells that have metadata."""
    import pandas as pd
    from anndata import AnnData

    for file in (counts, cells):
        if not file.exists():
            raise FileNotFoundError(
                f"There is no file {file}. Add it, or read the sample without its table of cells: cells_table=False."
            )
    obs = checks.read_csv(cells, CENTRE, numeric=CENTRE)
    obs = obs.set_index(obs.columns[0])
    obs.index = obs.index.astype(str)
    matrix, names, columns = checks.read_counts(counts)
    rows = sample.match_cells(
        counts, names, cells, obs.index, by=f"the first columns ({names.name!r} and {obs.index.name!r})"
    )
    obs, matrix = obs[rows >= 0], matrix[rows[rows >= 0]]
    obs.index.name = None
    blank = np.char.find(np.char.lower(np.asarray(columns, dtype=str)), "blank") >= 0
    table = AnnData(matrix[:, ~blank], obs=obs, var=pd.DataFrame(index=pd.Index(columns)[~blank]))
    blanks = pd.Index(columns)[blank]
    table.obsm["blank"] = pd.DataFrame(matrix[:, blank].toarray(), index=table.obs_names, columns=blanks)
    return table


def _add_outlines(sdata: SpatialData, path: Path, planes: list[int], to_px: np.ndarray) -> None:
    """The outlines of the cells in the plane of the image, or in the middle one of several."""
    import shapely
    from spatialdata.models import ShapesModel
    from spatialdata.transformations import Affine

    frame = read_geoparquet(path)
    frame = one_plane(path, frame, "EntityID", "ZIndex", sorted(planes)[(len(planes) - 1) // 2])
    checks.require_rows(path, len(frame), "valid outlines")
    # The instrument writes several parts each; other tools write one.
    frame.geometry = [shapely.multipolygons(shapely.get_parts(cell)) for cell in frame.geometry]
    frame.index = frame["EntityID"].astype(str)
    transformations = {"global": Affine(to_px, ("x", "y"), ("x", "y"))}
    sdata.shapes["cells"] = ShapesModel.parse(frame, transformations=transformations)


def _add_table(sdata: SpatialData, table: AnnData, to_px: np.ndarray, path: Path) -> None:
    """The table, linked to the outlines; cells without one are left out, and circles stand in where there are none."""
    from spatialdata.transformations import Affine

    spatial = table.obs[CENTRE].to_numpy(np.float64)
    if "cells" in sdata.shapes:
        outlined = table.obs_names.isin(sdata.shapes["cells"].index)
        say_lost(path, table.obs_names, sdata.shapes["cells"].index, then="; they are left out", field="EntityID")
        table, spatial = table[outlined].copy(), spatial[outlined]
    else:
        logger.info("The cells are shown as circles of %g µm.", 2 * sample.CELL_RADIUS_UM)
        registered = {"global": Affine(to_px, ("x", "y"), ("x", "y"))}
        sdata.shapes["cells"] = sample.circles(spatial, sample.CELL_RADIUS_UM, table.obs_names.to_numpy(), registered)
    table.obsm["spatial"] = spatial
    sdata.tables["table"] = sample.link_table(table, "cells", keys=("cells_region", "EntityID"))
