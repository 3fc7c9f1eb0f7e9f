"""Visium folders."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist import scale
from sthist._reading import open_text, reader
from sthist._sample import safe_key, set_role
from sthist.io._files import checks
from sthist.io._files.checks import Needed
from sthist.io._files.images import read_image
from sthist.io._parts import sample
from sthist.io._parts.spots import SPOTS_UM, fit_lattice
from sthist.io._platforms.space_ranger import (
    ARRAY,
    COLOURS,
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
    from anndata import AnnData
    from spatialdata import SpatialData

VENDOR = "Visium"
SPOT_DIAMETER_UM = SPOTS_UM["Visium"][0]
# Of one step of array_col and of array_row: neighbours are 100 µm apart, centre to centre.
LATTICE_UM = np.array([50.0, 50.0 * np.sqrt(3)])
OFF_LATTICE_UM = 10.0
COLUMNS = ["barcode", *NUMERIC]
POSITIONS = tuple(f"tissue_positions{kind}.csv{packed}" for packed in ("", ".gz") for kind in ("_list", ""))
METADATA = ("chemistry_description", "software_version")


@reader
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

    The elements are those of :func:`spatialdata_io.visium`. The scale comes from the lattice of the spots, which are
    100 µm apart; the spots are circles of 55 µm.

    Parameters
    ----------
    path
        The folder, with ``filtered_feature_bc_matrix.h5`` and ``spatial``. Names may begin with that of the sample, as
        in a folder of GEO.
    image
        The full-resolution H&E that Space Ranger was given: TIFF, OME-TIFF, SVS, PNG or JPEG. Read when needed.
    dataset_id
        What the elements are named after; by default what stands before ``_filtered_feature_bc_matrix.h5``, else
        ``"visium"``. Where the folder has files of several samples, the one to read.
    mpp
        µm per full-resolution pixel, to be checked against the lattice.
    he
        Another H&E of the same section, in place of ``image``.
    he_alignment
        Where ``he`` lies: a 3 x 3 matrix from its pixels to full-resolution pixels, or landmarks; a file or arrays (see
        :func:`sthist.pp.align`).
    kwargs
        As of :func:`spatialdata_io.visium`: ``counts_file`` (``.h5``, or a folder of ``matrix.mtx.gz``),
        ``tissue_positions_file``, ``scalefactors_file`` and ``fullres_image_file``, each a path, from ``path`` or
        absolute; ``image_models_kwargs`` of the latter; the rest goes to :func:`scanpy.read_10x_h5`.

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
        If the folder has several samples and ``dataset_id`` names none; if a spot of the matrix has no position, or
        several; if the counts are not raw; if the spots do not lie on the lattice, or it contradicts ``mpp``; if more
        than 5 % of them lie outside of ``image`` or of a picture, or two pictures contradict their scale factors; if a
        file is truncated, empty, or has text for numbers.

    Examples
    --------
    >>> import sthist
    >>> sdata = sthist.io.visium("outs", image="tissue.tif")  # doctest: +SKIP
    """
    folder = Path(path)
    require_one_he(folder, image, he, he_alignment)
    matrix, prefix = _matrix_file(folder, kwargs.pop("counts_file", None), dataset_id)
    dataset_id = dataset_id or safe_key(prefix.rstrip("_") or "visium")
    positions_file = _own_file(folder, kwargs.pop("tissue_positions_file", None), prefix, POSITIONS)
    positions = _read_positions(positions_file)
    factors_file = _own_file(folder, kwargs.pop("scalefactors_file", None), prefix, (FACTORS,))
    checks.require_content(factors_file, Needed(FACTORS, numeric=SCALE_FACTORS))
    factors = checks.read_json(factors_file)
    full = kwargs.pop("fullres_image_file", None)
    full = None if full is None else _own_file(folder, full, "", ())
    pictures = pictures_of(factors_file.parent, prefix)
    options = dict(kwargs.pop("image_models_kwargs", {}))
    kwargs.pop("imread_kwargs", None)  # of spatialdata-io's way to read images
    kwargs.pop("var_names_make_unique", None)  # they always are
    size = scale.agreed_mpp(str(folder), {"lattice of the spots": _lattice_mpp(positions_file, positions)}, mpp, "")
    require_factors(factors_file, factors, pictures, positions.loc[positions["in_tissue"] == 1, PIXELS].to_numpy())
    if matrix.suffix == ".h5":
        barcodes = checks.require_matrix(matrix, indices=False)
        require_known(matrix, barcodes, "spots", positions_file, positions.index)
    table = _read_table(matrix, dataset_id, kwargs)
    require_counts(matrix, table, "spot")
    require_known(matrix, table.obs_names, "spots", positions_file, positions.index)
    sdata = _spots(dataset_id, table, positions, size)
    _add_pictures(sdata, dataset_id, pictures, full, factors, options)
    finish(sdata, dataset_id, size, "lattice of the spots", {"table": dataset_id})
    set_role(sdata, "spots", {"table": "table", "shapes": dataset_id})
    add_he(sdata, dataset_id, image, he, he_alignment, mpp)
    return sdata


def _matrix_file(folder: Path, counts: Any, dataset_id: str | None) -> tuple[Path, str]:
    """The counts that are meant, and what their name begins with before that of Space Ranger."""
    name = MATRIX if counts is None else str(counts)
    given = folder / name  # also where it is absolute
    if counts is not None and given.exists():
        return given, given.name.removesuffix(MATRIX) if given.name.endswith(f"_{MATRIX}") else ""
    begins = {file.name.removesuffix(name): file for file in checks.files_like(folder, f"*_{Path(name).name}")}
    if dataset_id is not None and f"{dataset_id}_" in begins:
        return begins[f"{dataset_id}_"], f"{dataset_id}_"
    if given.exists():
        return given, ""
    if len(begins) > 1:
        raise ValueError(
            f"{folder} has the counts of several samples: {', '.join(begin.rstrip('_') for begin in begins)}; choose "
            "one with dataset_id=."
        )
    if not begins:
        return checks.require_file(folder, name, Path(name).stem, vendor=VENDOR), ""
    begin, file = next(iter(begins.items()))
    return file, begin


def _own_file(folder: Path, given: Any, prefix: str, names: Sequence[str]) -> Path:
    """A file that an argument names, or the sample's own, in ``spatial`` or beside its counts."""
    if given is not None:
        if not (folder / given).is_file():
            raise FileNotFoundError(f"There is no file {folder / given}.")
        return folder / given
    begins = dict.fromkeys((prefix, ""))
    places = [f"{where}{begin}{name}" for begin in begins for where in ("spatial/", "") for name in names]
    usual = (f"spatial/{name}" for name in names if not name.endswith(".gz"))
    return checks.find_file(folder, *places) or checks.require_file(folder, *usual, vendor=VENDOR)


def _read_positions(path: Path) -> pd.DataFrame:
    """Positions by barcode, with the header that old files do not have."""
    with checks.reading(path), open_text(path) as file:
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


def _read_table(path: Path, dataset_id: str, options: dict[str, Any]) -> AnnData:
    """Counts of a 10x file, of a folder of ``.mtx``, or of text."""
    import h5py
    import scanpy as sc
    from anndata.io import read_text

    if path.is_dir() and not checks.files_like(path, "*matrix.mtx*"):
        raise FileNotFoundError(
            f"{path} has no matrix.mtx.gz; give the folder that has it, or the .h5 file, with counts_file=."
        )
    facts = {}
    with checks.quietly(), checks.reading(path), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Variable names are not unique", UserWarning)  # seen to below
        if path.suffix == ".h5":
            table = checks.read_matrix(path, **options)
            with h5py.File(path) as file:
                stated = {name: file.attrs[name] for name in METADATA if name in file.attrs}
            facts = {name: text.decode() if isinstance(text, bytes) else text for name, text in stated.items()}
        elif path.is_dir() or ".mtx" in path.suffixes:
            prefix = None if path.is_dir() else path.name.partition("matrix.mtx")[0] or None
            table = sc.read_10x_mtx(path if path.is_dir() else path.parent, prefix=prefix, **options)
        elif path.suffix in {".csv", ".txt", ".tsv"}:
            table = read_text(path, **options)
        else:
            raise ValueError(f"{path} is no count matrix: an .h5 file or a folder of matrix.mtx.gz is needed.")
    table.var_names_make_unique()
    checks.require_unique(path, table.obs_names, "barcode")
    table.uns["spatial"] = {dataset_id: {"metadata": facts}}
    return table


def _spots(dataset_id: str, table: AnnData, positions: pd.DataFrame, mpp: float) -> SpatialData:
    """Counts and their spots, in full-resolution pixels."""
    import pandas as pd
    from spatialdata import SpatialData
    from spatialdata.models import TableModel
    from spatialdata.transformations import Identity

    places = positions.loc[table.obs_names]
    px = places[PIXELS].to_numpy(np.float64)
    table.obs = table.obs.join(places.drop(columns=PIXELS))
    table.obs["spot_id"] = np.arange(table.n_obs)
    table.obs["region"] = pd.Categorical([dataset_id] * table.n_obs)
    table.obsm["spatial"] = px
    circles = sample.circles(px, SPOT_DIAMETER_UM / 2 / mpp, table.obs["spot_id"].to_numpy(), {dataset_id: Identity()})
    table = TableModel.parse(table, region=dataset_id, region_key="region", instance_key="spot_id")
    return SpatialData(shapes={dataset_id: circles}, tables={"table": table})


def _add_pictures(
    sdata: SpatialData, dataset_id: str, pictures: dict[str, Path], full: Path | None, factors: Any, options: Any
) -> None:
    """The small pictures, in memory, and the full-resolution image that an argument names, read when needed."""
    from spatialdata.models import Image2DModel
    from spatialdata.transformations import Identity, Scale, set_transformation

    for kind, file in pictures.items():
        system, factor = f"{dataset_id}_downscaled_{kind}", [float(factors[f"tissue_{kind}_scalef"])] * 2
        placed = {system: Identity(), dataset_id: Scale(factor, axes=("x", "y")).inverse()}
        picture = read_image(file, file.name)
        sdata.images[f"{dataset_id}_{kind}_image"] = Image2DModel.parse(
            picture.pixels, dims=picture.dims, transformations=placed, c_coords=COLOURS.get(len(picture.pixels))
        )
        set_transformation(sdata.shapes[dataset_id], Scale(factor, axes=("x", "y")), system)
    if full is not None:
        sdata.images[f"{dataset_id}_full_image"] = full_image(full, dataset_id, options)


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
