"""CosMx folders."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist import scale
from sthist._reading import reader
from sthist._sample import UM, safe_key, set_role
from sthist._settings import logger
from sthist.io._files import checks, values
from sthist.io._parts import sample
from sthist.io._parts.sample import attach_he, require_he

if TYPE_CHECKING:
    from collections.abc import Collection

    import pandas as pd
    from anndata import AnnData
    from spatialdata import SpatialData

VENDOR = "CosMx"
LOCAL = ["CenterX_local_px", "CenterY_local_px"]
GLOBAL = ["CenterX_global_px", "CenterY_global_px"]
# Cell centres are rounded to pixels: a linear part that is so close to a turn by 90 degrees or a mirror is one.
SUFFIXES = {".jpg", ".jpeg", ".png", ".tif", ".tiff"}
FOV_NUMBER = re.compile(r".*_F(\d+)", re.IGNORECASE)
Shape = tuple[int, int, int]
SNAP = 0.01
AGREE_PX = 2.0
# µm/px by height and width of a field of view: of the first instruments, and of those that are sold.
FRAME_MPP = {(3648, 5472): 0.18, (4256, 4256): 0.12028}
COLOURS = ("red", "green", "blue")

# spatialdata_io.cosmx is not called: it fails on what AtoMx exports today (columns cell_ID and cell_id, a slash in the
# names of stains, compressed tables), on composites of one channel, and on a field of view with fewer than three cells;
# it holds the counts densely. Names of elements and of coordinate systems are those that it gives.


@reader
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
    FileNotFoundError, KeyError
        If a file is missing, or has not the columns it should have.
    ValueError
        If the µm per pixel cannot be told, or two sources contradict each other; if a file is truncated, empty, or has
        text for numbers; if tables and images do not fit.

    Examples
    --------
    >>> import sthist
    >>> sdata = sthist.io.cosmx("Lung12")  # doctest: +SKIP
    >>> sthist.tl.virtual_he(sdata)  # doctest: +SKIP
    """
    import dask.dataframe as dd
    from spatialdata import SpatialData
    from spatialdata.models import PointsModel
    from spatialdata.transformations import Identity, Scale

    folder = Path(path)
    require_he(folder, he, he_alignment)
    name = _dataset_id(folder, dataset_id)
    images, shapes = _pictures(folder, nuclear_channel)
    labels = _label_files(folder, shapes)
    cells_file = _file(folder, name, "metadata_file")
    cells = _read_cells(cells_file)
    positions = _read_positions(folder, name)
    layout = find_layout(cells_file, cells, positions)
    if not set(images) & set(layout.offset):
        raise ValueError(
            f"{cells_file} has cells of the fields {sorted(layout.offset)}, but the composites are those of "
            f"{list(images)}."
        )
    _warn_of_fields(folder, cells["fov"], images, labels)
    sources = stated_mpp(cells, positions, next(iter(shapes.values()))[-2:])
    nobody = (
        f"The µm per pixel of {folder} cannot be told: no fov_positions_file in mm, no Area.um2, no known frame size. "
        "Give it with mpp=."
    )
    size = scale.agreed_mpp(str(folder), sources, mpp, nobody)
    height, width = next(iter(shapes.values()))[-2:]
    frame: values.Box = (0, 0, width, height)
    centres = cells[LOCAL].to_numpy(np.float64)
    values.require_within(cells_file, ", ".join(LOCAL), centres, frame, "their picture", what="cells", most=values.HALF)
    table = _read_table(_file(folder, name, "exprMat_file"), cells_file, cells)
    molecules = _read_molecules(_file(folder, name, "tx_file"), layout, size, frame) if transcripts else None

    sdata = SpatialData()
    flipped = _is_flipped(labels, cells, layout)
    _add_pixels(sdata, images, labels, layout, flipped, nuclear_channel)
    scale.register_system(sdata, "global", np.diag([size, size, 1.0]))
    for key in sdata.images:
        for source, value in sources.items():
            scale.record_mpp(sdata, key, source, value)
    _add_cells(sdata, table, layout, size)
    if molecules is not None:
        # One points element, one partition per field.
        fields = dd.concat([dd.from_pandas(part, npartitions=1) for _, part in molecules.groupby("fov")])
        registered = {UM: Identity(), "global": Scale([1 / size, 1 / size], ("x", "y"))}
        sdata.points["transcripts"] = PointsModel.parse(fields, feature_key="target", transformations=registered)
        set_role(sdata, "transcripts", {"points": "transcripts", "gene": "target"})
    set_role(sdata, "nuclear", {"images": list(sdata.images), "channel": "DAPI", "cytoplasm": []})
    set_role(sdata, "cells", {"table": "table"})
    attach_he(sdata, he, alignment=he_alignment, to="global")
    return sdata


def _dataset_id(folder: Path, dataset_id: str | None) -> str:
    """What the names of the tables begin with, with its underscore."""
    if dataset_id is not None:
        return f"{dataset_id}_"
    checks.require_file(folder, "*exprMat_file.csv", "*exprMat_file.csv.gz", vendor=VENDOR)
    names = sorted({file.name.partition("exprMat_file")[0] for file in checks.files_like(folder, "*exprMat_file.csv*")})
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
    old = {"FOV": "fov"} | {f"{axis}_mm": f"{axis.lower()}_global_mm" for axis in "xyXY"}
    frame = checks.read_csv(path, []).rename(columns=old)
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
        while key.lower() in {name.lower() for name in keys}:
            key += "_"
        keys.append(key)
    return keys


def _read_molecules(path: Path, layout: Layout, mpp: float, picture: values.Box) -> pd.DataFrame:
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
            f"{frame.index[int(nameless.argmax())]}. Is a column shifted? Correct the rows, or leave them out."
        )
    fov = frame["fov"].to_numpy(np.int64)
    placed = np.isin(fov, list(layout.offset))
    if not placed.all():
        logger.warning(
            "%d molecules of %s lie in fields of view without cells; they are left out.", (~placed).sum(), path
        )
        frame, fov = frame[placed], fov[placed]
        checks.require_rows(path, len(frame), "molecules in a field of view that has cells")
    local = frame[numeric[1:]].to_numpy(np.float64)
    fields = ", ".join(numeric[1:])
    values.require_within(path, fields, local, picture, "their picture", what="molecules", most=values.HALF)
    um = layout.to_global(fov, local) * mpp
    # spatialdata takes a column z for a third axis; here it is the number of a plane of images that are projected.
    frame = frame.drop(columns=[name for name in ("x", "y") if name in frame]).rename(columns={"z": "z_raw"})
    frame = frame.assign(x=um[:, 0], y=um[:, 1], target=frame["target"].astype(str).astype("category"))
    return frame.iloc[np.argsort(fov, kind="stable")].reset_index(drop=True)


def _is_flipped(files: dict[int, Path], cells: pd.DataFrame, layout: Layout) -> bool:
    """Whether the tables count y from the bottom of the picture, as most exports do.

    Which way cells lie on their labels; where there are none, whether local y runs as global y does, which is upwards.
    """
    upwards_by_tables = bool(np.linalg.det(layout.linear) > 0)
    counts = cells["fov"].value_counts()
    known = [number for number in counts.index if number in files]
    if not known:
        return upwards_by_tables
    labels = np.asarray(checks.picture_pixels(files[known[0]])[0])
    here = cells[cells["fov"] == known[0]]
    columns, rows = (np.floor(here[name].to_numpy(np.float64)).astype(np.int64) for name in LOCAL)
    inside = (columns >= 0) & (columns < labels.shape[1]) & (rows >= 0) & (rows < labels.shape[0])
    columns, rows, names = columns[inside], rows[inside], here["cell_ID"].to_numpy()[inside]
    upwards, downwards = (
        float(np.mean(array[rows, columns] == names)) if len(rows) else 0.0 for array in (labels[::-1], labels)
    )
    if max(upwards, downwards) < 0.5:
        logger.warning(
            f"{files[known[0]]}: {100 * upwards:.0f} % of the cells lie on their labels ({100 * downwards:.0f} % with "
            "the picture turned upside down); do image and tables fit?"
        )
    return upwards_by_tables if upwards == downwards else upwards > downwards


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


def _by_fov(folder: Path) -> dict[int, Path]:
    """Picture files by the number of their field of view, in the order of the numbers."""
    files: dict[int, Path] = {}
    for file in checks.files_like(folder, "*"):
        number = FOV_NUMBER.match(file.stem)
        if file.suffix.lower() in SUFFIXES and number:
            files.setdefault(int(number.group(1)), file)
    return dict(sorted(files.items()))


def _pictures(folder: Path, nuclear_channel: int) -> tuple[dict[int, Path], dict[int, Shape]]:
    """Composites by field, and their shapes, which are those of one stain."""
    directory = checks.require_file(folder, "CellComposite", vendor=VENDOR)
    files = _by_fov(directory)
    if not files:
        raise FileNotFoundError(
            f"{directory} has no pictures that are named like CellComposite_F001.jpg, with the number of their field."
        )
    shapes = {number: checks.require_picture(file)[0] for number, file in files.items()}
    first = next(iter(shapes))
    for number, shape in shapes.items():
        if shape[0] != shapes[first][0]:
            raise ValueError(
                f"The composites show different stains: {files[first]} has {shapes[first][0]} channels, "
                f"{files[number]} has {shape[0]}."
            )
    if shapes[first][0] > 1 and not 0 <= nuclear_channel < shapes[first][0]:
        raise ValueError(
            f"nuclear_channel is {nuclear_channel}; {files[first]} has the channels 0 to {shapes[first][0] - 1}."
        )
    return files, shapes


def _label_files(folder: Path, shapes: dict[int, Shape]) -> dict[int, Path]:
    """Label images by field, of the fields that have a composite."""
    files = {number: file for number, file in _by_fov(folder / "CellLabels").items() if number in shapes}
    if not files:
        logger.warning("%s has no CellLabels; the cells are circles alone.", folder)
    for number, file in files.items():
        shape = checks.require_picture(file)[0]
        if shape[-2:] != shapes[number][-2:]:
            raise ValueError(
                f"{file} has {shape[-1]} x {shape[-2]} px, but the composite of field {number} has "
                f"{shapes[number][-1]} x {shapes[number][-2]}."
            )
    return files


def _warn_of_fields(folder: Path, fov: pd.Series, images: Collection[int], labels: Collection[int]) -> None:
    """Say which fields have cells but no picture, and which have no labels where others have."""
    for number, n in fov.value_counts().sort_index().items():
        what = f"field {number}, which has {n} cells"
        if number not in images:
            logger.warning(f"{folder / 'CellComposite'} has no composite of {what}; they have no image.")
        elif labels and number not in labels:
            logger.warning(f"{folder / 'CellLabels'} has no labels of {what}; the table goes with the cells' circles.")


@dataclass(frozen=True)
class Layout:
    """Matrices from pixels of a field of view, as the tables count them, to global pixels."""

    linear: np.ndarray  # (2, 2), shared by all fields
    offset: dict[int, np.ndarray]  # by number of the field

    def matrix(self, fov: int) -> np.ndarray:
        """(3, 3): (x, y, 1) of a field to global pixels."""
        matrix = np.eye(3)
        matrix[:2, :2], matrix[:2, 2] = self.linear, self.offset[fov]
        return matrix

    def to_global(self, fov: np.ndarray, xy: np.ndarray) -> np.ndarray:
        """Points of several fields, (n, 2), in global pixels."""
        numbers, which = np.unique(fov, return_inverse=True)
        offsets = np.array([self.offset[number] for number in numbers.tolist()])
        return xy @ self.linear.T + offsets[which]


def find_layout(path: Path, cells: pd.DataFrame, positions: pd.DataFrame | None) -> Layout:
    """The layout, from the cells' centres in both frames, and from the fields' own positions where these agree.

    Each affine that is estimated from rounded centres alone is off by fractions of a pixel, and neighbours by different
    ones: seams. One linear part for all fields, snapped, and the median offset of each field have none.
    """
    fov = cells["fov"].to_numpy(np.int64)
    local, there = cells[LOCAL].to_numpy(np.float64), cells[GLOBAL].to_numpy(np.float64)
    linear = _linear(path, fov, local, there)
    rest = there - local @ linear.T
    offset, off = {}, {}
    for number in np.unique(fov).tolist():
        offset[number] = np.median(rest[fov == number], axis=0)
        off[number] = float(np.median(np.abs(rest[fov == number] - offset[number])))
    worst = max(off, key=off.__getitem__)
    if off[worst] > AGREE_PX:
        logger.warning(
            f"{path}: the local and global centres of the cells of field {worst} differ by more than a shift "
            f"({off[worst]:.1f} px); its image may lie wrong."
        )
    if positions is not None and {"x_global_px", "y_global_px"} <= set(positions):
        numbers = positions["fov"].to_numpy(np.int64).tolist()
        stated = dict(zip(numbers, positions[["x_global_px", "y_global_px"]].to_numpy(np.float64), strict=True))
        if all(number in stated and np.abs(stated[number] - xy).max() <= AGREE_PX for number, xy in offset.items()):
            offset = stated  # which is not rounded
    return Layout(linear, offset)


def _linear(path: Path, fov: np.ndarray, local: np.ndarray, there: np.ndarray) -> np.ndarray:
    """The linear part that all fields share: estimated about each field's own centre, then snapped."""
    _, which = np.unique(fov, return_inverse=True)
    n = np.bincount(which)[:, None]
    centred = []
    for xy in (local, there):
        means = np.stack([np.bincount(which, xy[:, axis]) for axis in (0, 1)], axis=1) / n
        centred.append(xy - means[which])
    solution, _, rank, _ = np.linalg.lstsq(centred[0], centred[1], rcond=1e-6)
    if rank < 2:
        raise ValueError(
            f"{path}: the cells' {', '.join(LOCAL)} do not tell how the fields of view are turned: a field needs three "
            "cells that are not on one line."
        )
    linear = solution.T
    snapped = np.round(linear)
    is_turn = (np.abs(snapped).sum(0) == 1).all() and (np.abs(snapped).sum(1) == 1).all()
    if is_turn and np.abs(linear - snapped).max() <= SNAP:
        return np.asarray(snapped)
    logger.warning(
        f"{path}: local and global centres of the cells are related by {np.round(linear, 4).tolist()}, which is no "
        "turn by 90 degrees; the fields may show seams."
    )
    return np.asarray(linear)


def stated_mpp(cells: pd.DataFrame, positions: pd.DataFrame | None, frame: tuple[int, int]) -> dict[str, float]:
    """µm/px by who states it: the fields' positions in mm, the cells' areas in µm², else the size of the frame."""
    sources = {}
    if positions is not None:
        px = [name for name in ("x_global_px", "y_global_px") if name in positions]
        mm = [name for name in ("x_global_mm", "y_global_mm") if name in positions]
        if len(px) == len(mm) == 2:
            spread_px, spread_mm = (float(np.sqrt(positions[names].var(ddof=0).sum())) for names in (px, mm))
            if spread_px > 0 and spread_mm > 0:  # two fields at least
                sources["positions of the fields in mm and px"] = 1000 * spread_mm / spread_px
    if {"Area", "Area.um2"} <= set(cells):
        ratio = (cells["Area.um2"] / cells["Area"].where(cells["Area"] > 0)).median()
        if ratio > 0:
            sources["areas of the cells in µm² and px"] = float(np.sqrt(ratio))
    # The size of a frame says which instrument it was, not what it measured: it counts where nothing else does.
    if not sources and frame in FRAME_MPP:
        sources[f"{frame[1]} x {frame[0]} px of a CosMx frame"] = FRAME_MPP[frame]
    return sources
