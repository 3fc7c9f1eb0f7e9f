"""CosMx folders."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist import scale
from sthist._sample import UM, safe_key, set_role
from sthist._settings import logger
from sthist.io._files import checks
from sthist.io._parts import sample
from sthist.io._parts.he import attach_he, require_he
from sthist.io._platforms.cosmx_layout import (
    GLOBAL,
    LOCAL,
    Layout,
    find_layout,
    label_files,
    pictures,
    stated_mpp,
    warn_of_fields,
)

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from spatialdata import SpatialData

VENDOR = "CosMx"
COLOURS = ("red", "green", "blue")

# spatialdata_io.cosmx is not called: it fails on what AtoMx exports today (columns cell_ID and cell_id, a slash in the
# names of stains, compressed tables), on composites of one channel, and on a field of view with fewer than three cells;
# it holds the counts densely. Names of elements and of coordinate systems are those that it gives.


def cosmx(
    path: str | Path,
    *,
    dataset_id: str | None = None,
    nuclear_channel: int = 2,
    transcripts: bool = True,
    mpp: float | None = None,
    he: str | Path | None = None,
    he_alignment: Any = None,
) -> SpatialData:
    """Read a folder of CosMx flat files and images, in micrometres.

    The fields of view lie without seams: they share one orientation, and each has one offset.

    Parameters
    ----------
    path
        The folder, with ``*_exprMat_file.csv``, ``*_metadata_file.csv``, ``*_tx_file.csv`` (or ``.csv.gz``),
        ``CellComposite`` and, if there are any, ``*_fov_positions_file.csv`` and ``CellLabels``.
    dataset_id
        What stands before ``_exprMat_file.csv``, where the folder has several.
    nuclear_channel
        Which colour of a composite is the nuclear stain: 2 is blue, CosMx's default.
    transcripts
        Whether to read the molecules.
    mpp
        µm per pixel. Not needed where the positions of the fields in mm, the areas of the cells in µm², or the size of
        the frames tell it.
    he
        An H&E of the same section: TIFF, OME-TIFF, SVS, PNG or JPEG.
    he_alignment
        Where it lies: a 3 x 3 matrix from its pixels to global pixels, or landmarks; a file or arrays (see
        :func:`sthist.pp.align`). Without it, ``pp.align`` lays it
        on the section later.

    Returns
    -------
    A SpatialData in memory, registered in ``um`` (the vendor's global pixels times their size; y as there) and, in
    global pixels, in ``global``:

    * ``images["<fov>_image"]`` (read when needed), ``labels["<fov>_labels"]``;
    * ``points["transcripts"]``: molecules of all fields, in µm;
    * ``shapes["cells"]``: circles of the cells' areas;
    * ``tables["table"]``: counts, linked to the labels (to ``cells`` where labels are missing), with
      ``obsm["spatial"]`` in µm.

    Raises
    ------
    FileNotFoundError
        If a file is missing.
    KeyError
        If a table has not the columns it should have.
    ValueError
        If the µm per pixel cannot be told, or two sources contradict each other; if a file is truncated, empty, or has
        text for numbers; if tables and images do not fit.

    Examples
    --------
    >>> import sthist
    >>> sdata = sthist.io.cosmx("Lung12")  # doctest: +SKIP
    >>> sthist.tl.virtual_he(sdata)  # doctest: +SKIP
    """
    from spatialdata import SpatialData

    folder = Path(path)
    require_he(folder, he, he_alignment)
    name = _dataset_id(folder, dataset_id)
    images, shapes = pictures(folder, nuclear_channel)
    labels = label_files(folder, shapes)
    cells_file = _file(folder, name, "metadata_file")
    cells = _read_cells(cells_file)
    positions = _read_positions(folder, name)
    layout = find_layout(cells_file, cells, positions)
    if not set(images) & set(layout.offset):
        raise ValueError(
            f"{cells_file} has cells of the fields {sorted(layout.offset)}, but the composites are those of "
            f"{list(images)}."
        )
    warn_of_fields(folder, cells["fov"], images, labels)
    sources = stated_mpp(cells, positions, next(iter(shapes.values()))[-2:])
    nobody = (
        f"The µm per pixel of {folder} cannot be told: no fov_positions_file in mm, no Area.um2, no known frame size. "
        "Give it with mpp=."
    )
    size = scale.agreed_mpp(str(folder), sources, mpp, nobody)
    table = _read_table(_file(folder, name, "exprMat_file"), cells_file, cells)
    molecules = _read_molecules(_file(folder, name, "tx_file"), layout, size) if transcripts else None

    sdata = SpatialData()
    flipped = _is_flipped(labels, cells)
    _add_pixels(sdata, images, labels, layout, flipped, nuclear_channel)
    scale.register_system(sdata, "global", np.diag([size, size, 1.0]))
    for key in sdata.images:
        for source, value in sources.items():
            scale.record_mpp(sdata, key, source, value)
    _add_cells(sdata, table, layout, size)
    if molecules is not None:
        _add_molecules(sdata, molecules, size)
    set_role(sdata, "nuclear", {"images": list(sdata.images), "channel": "DAPI", "cytoplasm": []})
    set_role(sdata, "cells", {"table": "table"})
    attach_he(sdata, he, alignment=he_alignment, to="global")
    return sdata


def _dataset_id(folder: Path, dataset_id: str | None) -> str:
    """What the names of the tables begin with, with its underscore."""
    if dataset_id is not None:
        return f"{dataset_id}_"
    checks.require_file(folder, "*exprMat_file.csv", "*exprMat_file.csv.gz", vendor=VENDOR)
    names = sorted({file.name.partition("exprMat_file")[0] for file in folder.glob("*exprMat_file.csv*")})
    if len(names) > 1:
        raise ValueError(
            f"{folder} has several samples: {', '.join(name.rstrip('_') for name in names)}; choose one with "
            "dataset_id=."
        )
    return names[0]


def _file(folder: Path, name: str, table: str) -> Path:
    return checks.require_file(folder, f"{name}{table}.csv", f"{name}{table}.csv.gz", vendor=VENDOR)


def _read_cells(path: Path) -> pd.DataFrame:
    """Metadata of the cells, indexed by ``<cell_ID>_<fov>``."""
    cells = checks.read_csv(path, ["fov", "cell_ID", *LOCAL, *GLOBAL], numeric=["fov", "cell_ID", *LOCAL, *GLOBAL])
    checks.require_numbers(path, cells, [name for name in ("Area", "Area.um2") if name in cells])
    cells = cells.astype({"fov": np.int64, "cell_ID": np.int64})
    cells.index = _names(cells)
    checks.require_unique(path, cells.index, "cell", "cell_ID and fov")
    return cells


def _names(frame: pd.DataFrame) -> pd.Index:
    import pandas as pd

    numbers = (frame[name].astype(np.int64).astype(str) for name in ("cell_ID", "fov"))
    return pd.Index([f"{cell}_{fov}" for cell, fov in zip(*numbers, strict=True)])


def _read_positions(folder: Path, name: str) -> pd.DataFrame | None:
    """Positions of the fields, with the names of columns that old files have; None where there is no such file."""
    path = checks.find_file(folder, f"{name}fov_positions_file.csv", f"{name}fov_positions_file.csv.gz")
    if path is None:
        return None
    frame = checks.read_csv(path, [])
    frame = frame.rename(columns={"FOV": "fov", "x_mm": "x_global_mm", "y_mm": "y_global_mm"})
    frame = frame.rename(columns={"X_mm": "x_global_mm", "Y_mm": "y_global_mm"})
    checks.require_columns(path, frame.columns, ["fov"])
    numeric = ("fov", "x_global_px", "y_global_px", "x_global_mm", "y_global_mm")
    checks.require_numbers(path, frame, [column for column in numeric if column in frame])
    return frame


def _read_table(path: Path, cells_file: Path, cells: pd.DataFrame) -> AnnData:
    """Counts of the cells that have metadata, as read, sparse."""
    import pandas as pd
    from anndata import AnnData

    def name(chunk: pd.DataFrame) -> pd.Index:
        checks.require_columns(path, chunk.columns, ["fov", "cell_ID"])
        checks.require_numbers(path, chunk, ["fov", "cell_ID"])
        return _names(chunk)

    counts, index, genes = checks.read_counts(path, name, ["fov", "cell_ID", "cell", "cell_id"])
    background = np.array([cell.startswith("0_") for cell in index], bool)  # molecules outside of cells
    rows = sample.match_cells(path, index, cells_file, cells.index, by="cell_ID and fov", no_cells=background)
    kept = rows >= 0
    obs = cells[kept].copy()
    obs.columns = _unique_keys(obs.columns)
    return AnnData(counts[rows[kept]], obs=obs, var=pd.DataFrame(index=pd.Index(genes, dtype=str)))


def _unique_keys(columns: Any) -> list[str]:
    """Names that SpatialData accepts: AtoMx writes both cell_ID and cell_id, and stains with a slash."""
    keys: list[str] = []
    for column in columns:
        key = safe_key(str(column))
        taken = {name.lower() for name in keys}
        while key.lower() in taken:
            key += "_"
        keys.append(key)
    return keys


def _read_molecules(path: Path, layout: Layout, mpp: float) -> pd.DataFrame:
    """Molecules of all fields, sorted by field, with x and y in µm and the gene as a category."""
    numeric = ["fov", "x_local_px", "y_local_px"]
    # "None" is a compartment here, and no gap.
    text = {"keep_default_na": False, "na_values": [""], "low_memory": False}
    checks.require_last_line(path)
    frame = checks.read_csv(path, [*numeric, "target"], numeric=numeric, **text)
    nameless = frame["target"].isna().to_numpy()
    if nameless.any():
        raise ValueError(
            f"{path}: column 'target' is empty in {nameless.sum()} of {len(frame)} rows, the first of them row "
            f"{frame.index[nameless.argmax()]}. Is a column shifted? Correct the rows, or leave them out."
        )
    fov = frame["fov"].to_numpy(np.int64)
    placed = np.isin(fov, list(layout.offset))
    if not placed.all():
        logger.warning(
            "%d molecules of %s lie in fields of view without cells; they are left out.", (~placed).sum(), path
        )
        frame, fov = frame[placed], fov[placed]
        checks.require_rows(path, len(frame), "molecules in a field of view that has cells")
    um = layout.to_global(fov, frame[numeric[1:]].to_numpy(np.float64)) * mpp
    # spatialdata takes a column z for a third axis; here it is the number of a plane of images that are projected.
    frame = frame.drop(columns=[name for name in ("x", "y") if name in frame]).rename(columns={"z": "z_raw"})
    frame = frame.assign(x=um[:, 0], y=um[:, 1], target=frame["target"].astype(str).astype("category"))
    return frame.iloc[np.argsort(fov, kind="stable")].reset_index(drop=True)


def _is_flipped(files: dict[int, Path], cells: pd.DataFrame) -> bool:
    """Whether the tables count y from the bottom of the picture, as most exports do.

    Which way cells lie on their labels.
    """
    counts = cells["fov"].value_counts()
    known = [number for number in counts.index if number in files]
    if not known:
        return True
    labels = np.asarray(checks.picture_pixels(files[known[0]])[0])
    here = cells[cells["fov"] == known[0]]
    columns, rows = (np.floor(here[name].to_numpy(np.float64)).astype(np.int64) for name in LOCAL)
    inside = (columns >= 0) & (columns < labels.shape[1]) & (rows >= 0) & (rows < labels.shape[0])
    columns, rows, names = columns[inside], rows[inside], here["cell_ID"].to_numpy()[inside]
    upwards, downwards = (float((array[rows, columns] == names).mean()) for array in (labels[::-1], labels))
    if max(upwards, downwards) < 0.5:
        logger.warning(
            f"{files[known[0]]}: {100 * upwards:.0f} % of the cells lie on their labels ({100 * downwards:.0f} % with "
            "the picture turned upside down); do image and tables fit?"
        )
    return upwards >= downwards


def _add_pixels(
    sdata: SpatialData,
    images: dict[int, Path],
    labels: dict[int, Path],
    layout: Layout,
    flipped: bool,
    nuclear_channel: int,
) -> None:
    """Images and labels with rows in the direction in which the tables count y, registered in pixels."""
    from spatialdata.models import Image2DModel, Labels2DModel
    from spatialdata.transformations import Affine, Identity

    direction = -1 if flipped else 1
    for number, file in images.items():
        if number not in layout.offset:
            logger.warning("%s: no cell tells where field of view %d lies; it is left out.", file, number)
            continue
        affine = Affine(layout.matrix(number), ("x", "y"), ("x", "y"))
        registered = {str(number): Identity(), "global": affine}
        pixels = checks.picture_pixels(file)[:, ::direction]
        names = _channel_names(len(pixels), nuclear_channel)
        # No pyramid: each block of it would decode a whole picture again.
        sdata.images[f"{number}_image"] = Image2DModel.parse(
            pixels, dims=("c", "y", "x"), c_coords=names, transformations=registered
        )
        if number in labels:
            cells = checks.picture_pixels(labels[number])[0, ::direction]
            cells = cells if cells.dtype.kind in "ui" else cells.astype(np.uint32)
            sdata.labels[f"{number}_labels"] = Labels2DModel.parse(cells, dims=("y", "x"), transformations=registered)


def _channel_names(n: int, nuclear_channel: int) -> list[str]:
    if n == 1:
        return ["DAPI"]
    names = list(COLOURS) if n == 3 else [f"channel_{i}" for i in range(n)]
    names[nuclear_channel] = "DAPI"
    return names


def _add_cells(sdata: SpatialData, table: AnnData, layout: Layout, mpp: float) -> None:
    """Circles, and the table that is linked to the labels, else to them."""
    import pandas as pd
    from spatialdata.models import TableModel
    from spatialdata.transformations import Identity, Scale

    fov = table.obs["fov"].to_numpy(np.int64)
    table.obsm["local"] = table.obs[LOCAL].to_numpy(np.float64)
    table.obsm["global"] = table.obs[GLOBAL].to_numpy(np.float64)
    table.obsm["spatial"] = layout.to_global(fov, table.obsm["local"]) * mpp
    table.obs = table.obs.drop(columns=[*LOCAL, *GLOBAL])
    radius = np.full(table.n_obs, sample.CELL_RADIUS_UM)
    if "Area" in table.obs:
        area = table.obs["Area"].to_numpy(np.float64)
        radius = np.where(area > 0, np.sqrt(np.abs(area) / np.pi) * mpp, radius)
    registered = {UM: Identity(), "global": Scale([1 / mpp, 1 / mpp], ("x", "y"))}
    sdata.shapes["cells"] = sample.circles(table.obsm["spatial"], radius, table.obs_names.to_numpy(), registered)
    regions = [f"{number}_labels" for number in np.unique(fov).tolist()]
    outlined = all(region in sdata.labels for region in regions)
    if outlined:
        table.obs["fov_labels"] = pd.Categorical([f"{number}_labels" for number in fov.tolist()])
    table.obs["fov"] = pd.Categorical(table.obs["fov"].astype(str))
    sdata.tables["table"] = (
        TableModel.parse(table, region=regions, region_key="fov_labels", instance_key="cell_ID")
        if outlined
        else sample.link_table(table, "cells")
    )


def _add_molecules(sdata: SpatialData, molecules: pd.DataFrame, mpp: float) -> None:
    """One points element, one partition per field."""
    import dask.dataframe as dd
    from spatialdata.models import PointsModel
    from spatialdata.transformations import Identity, Scale

    fields = [dd.from_pandas(part, npartitions=1) for _, part in molecules.groupby("fov")]
    registered = {UM: Identity(), "global": Scale([1 / mpp, 1 / mpp], ("x", "y"))}
    sdata.points["transcripts"] = PointsModel.parse(dd.concat(fields), feature_key="target", transformations=registered)
    set_role(sdata, "transcripts", {"points": "transcripts", "gene": "target"})
