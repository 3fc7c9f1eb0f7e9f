"""Xenium folders."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist import _alignment, scale
from sthist._reading import reader
from sthist._sample import HE_NAMES, set_role
from sthist.io._files import checks, values
from sthist.io._files.checks import Needed
from sthist.io._files.images import LooseImage, read_image, size_px
from sthist.io._parts import sample
from sthist.io._parts.points import molecules
from sthist.io._parts.sample import attach_he, require_he
from sthist.io._platforms import xenium_cells

if TYPE_CHECKING:
    from collections.abc import Mapping

    from spatialdata import SpatialData

VENDOR = "Xenium"
ALIGNED = ("he_image", "if_image")
STAINS = ("morphology_focus", "morphology_mip")
# Names of the stains, which the files of versions 2 and 3 do not have, in their order.
CHANNELS = ("DAPI", "ATP1A1/CD45/E-Cadherin", "18S", "AlphaSMA/Vimentin")
PLACES = ("x_location", "y_location")
CELLS = (
    Needed("cells.parquet", ("cell_id",), ("x_centroid", "y_centroid")),
    Needed("cell_feature_matrix.h5"),
)
# Arguments of spatialdata-io, and what they are by default. Two of them have no effect.
OPTIONS: dict[str, Any] = {
    "cells_boundaries": True,
    "nucleus_boundaries": True,
    "cells_as_circles": False,
    "cells_labels": True,
    "nucleus_labels": True,
    "transcripts": True,
    "morphology_mip": True,
    "morphology_focus": True,
    "aligned_images": True,
    "cells_table": True,
    "gex_only": True,
    "image_models_kwargs": {},
    "labels_models_kwargs": {},
    "n_jobs": None,
    "imread_kwargs": {},
}


@reader
def xenium(path: str | Path, *, he: str | Path | None = None, he_alignment: Any = None, **kwargs: Any) -> SpatialData:
    """Read the output folder of a Xenium run, in micrometres.

    The elements are those of :func:`spatialdata_io.xenium`, also of folders that it does not read: of versions that are
    no number, of an imported segmentation (without nuclei, then, and without label images), with an immunofluorescence
    image of any number of channels. Every one is registered in ``um``, too; which image is the nuclear stain, which is
    H&E, and which points are the transcripts is recorded.

    Parameters
    ----------
    path
        The folder, with ``experiment.xenium``.
    he
        An H&E of the same section, made later: TIFF, OME-TIFF, SVS, PNG or JPEG.
    he_alignment
        Where it lies: a 3 x 3 matrix from its pixels to those of the nuclear stain, or landmarks; a file or arrays (see
        :func:`sthist.pp.align`). What Xenium Explorer exports fits. Without it, ``pp.align`` lays it on the section
        later.
    kwargs
        As of :func:`spatialdata_io.xenium`: ``transcripts``, ``cells_table``, ``cells_boundaries``,
        ``nucleus_boundaries``, ``cells_labels``, ``nucleus_labels``, ``cells_as_circles``, ``morphology_focus``,
        ``morphology_mip``, ``aligned_images``, ``gex_only``, ``image_models_kwargs``, ``labels_models_kwargs``.

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
        alignment; if a file is truncated, empty, or has text for coordinates; if counts and cells do not fit, or are
        no counts; if more than half of cells, outlines or molecules lie outside of the stain; if ``he_alignment`` is
        given alone, or left out where the folder has it.

    Examples
    --------
    >>> import sthist
    >>> sdata = sthist.io.xenium("outs")  # doctest: +SKIP
    >>> sthist.tl.virtual_he(sdata)  # doctest: +SKIP
    """
    from spatialdata import SpatialData

    folder = Path(path)
    specs = checks.require_file(folder, "experiment.xenium", vendor=VENDOR)
    pixel_size = checks.require_number(specs, checks.read_json(specs), "pixel_size")
    options = _options(kwargs)
    require_he(folder, he, he_alignment)
    wanted = [key for key in xenium_cells.OUTLINES if options[key.replace("cell_", "cells_")]]
    needs_table = bool(options["cells_table"] or options["cells_as_circles"] or wanted)
    if needs_table:
        checks.require_files(folder, VENDOR, CELLS, {})
        _require_same_cells(folder / "cells.parquet", folder / "cell_feature_matrix.h5")
    for key in wanted:
        _require_outlines(folder, xenium_cells.OUTLINES[key], may_be_empty=key == "nucleus_boundaries")
    stains = {stain: files for stain, files in _stain_files(folder).items() if files and options[stain]}
    if not stains:
        raise ValueError(f"{folder}: morphology_focus and morphology_mip are False; sthist needs the nuclear stain.")
    aligned = _aligned_files(folder) if options["aligned_images"] else {}
    sdata = SpatialData()
    for stain, files in stains.items():
        loose = _stain(files)
        sdata.images[stain] = _image(files[0], loose, {"global": None}, options["image_models_kwargs"])
        for source, value in scale.sensible(loose.mpp, f"image {stain!r}").items():
            scale.record_mpp(sdata, stain, source, value)
    stain = next(iter(stains))
    width, height = size_px(sdata.images[stain])
    size = (0.0, 0.0, float(width), float(height))
    if options["transcripts"]:
        sdata.points["transcripts"] = _molecules(folder, pixel_size, size)
    cells = xenium_cells.Cells(checks.require_file(folder, xenium_cells.ZARR, vendor=VENDOR))
    _add_cells(sdata, folder, cells, options, wanted, needs_table, pixel_size, size)
    for name, file in aligned.items():
        _add_aligned(sdata, name, file, options["image_models_kwargs"])
    for name in stains:
        scale.record_mpp(sdata, name, "pixel_size of experiment.xenium", pixel_size)
    scale.resolve_mpp(sdata, stain)  # says which files disagree
    scale.register(sdata, stain, pixel_size)
    for name in aligned:  # what its metadata state agrees with where its alignment puts it
        scale.resolve_mpp(sdata, name)
    sample.record_high_res(sdata, stain)
    pictures = [name for name in sdata.images if HE_NAMES.search(name)]
    if len(pictures) == 1:
        set_role(sdata, "he", {"image": pictures[0]})
    attach_he(sdata, he, alignment=he_alignment, to=stain)
    return sdata


def _options(given: dict[str, Any]) -> dict[str, Any]:
    """The arguments of spatialdata-io, also under the older of their names."""
    older = {
        "cells_as_shapes": "cells_as_circles",
        "cell_boundaries": "cells_boundaries",
        "cell_labels": "cells_labels",
    }
    named = {older.get(name, name): value for name, value in given.items()}
    unknown = sorted(set(named) - set(OPTIONS))
    if unknown:
        raise TypeError(f"xenium() got an unexpected argument {unknown[0]!r}; it takes {', '.join(OPTIONS)}.")
    return OPTIONS | named


def _require_outlines(folder: Path, name: str, *, may_be_empty: bool) -> None:
    """Refuse outlines that are missing or lack a column; imported segmentations have none of nuclei."""
    path = checks.require_file(folder, name, vendor=VENDOR)
    columns = ["cell_id", *xenium_cells.VERTICES]
    checks.require_parquet(path, columns, numeric=xenium_cells.VERTICES, may_be_empty=may_be_empty)


def _stain_files(folder: Path) -> dict[str, list[Path]]:
    """Files of the morphology images, which are there and whole."""
    patterns = {stain: (f"{stain}/*.ome.tif", f"{stain}.ome.tif") for stain in STAINS}
    checks.require_file(folder, *(name for names in patterns.values() for name in reversed(names)), vendor=VENDOR)
    files = {
        stain: [file for name in names for file in checks.files_like(folder, name)] for stain, names in patterns.items()
    }
    for file in (file for stain in files.values() for file in stain):
        checks.require_picture(file)
    return files


def _stain(files: list[Path]) -> LooseImage:
    """A morphology image: one file, or several, of which the first has the others' channels, or which have one each."""
    import dask.array as da

    loose = read_image(files[0], files[0].name)
    pixels, names = loose.pixels, loose.channels
    if len(pixels) == 1 < len(files):
        others = [read_image(file, file.name) for file in files[1:]]
        pixels = da.concatenate([pixels, *(other.pixels for other in others)])
        every = [loose, *others]
        names = [one.channels[0] for one in every if one.channels and len(one.channels) == 1]
    known = len(pixels) <= len(CHANNELS) and not files[0].name.startswith("ch0")  # whose files name their stains
    if known or names is None or len(set(names)) < len(pixels):
        names = list(CHANNELS[: len(pixels)]) if len(pixels) <= len(CHANNELS) else None
    return LooseImage(pixels, loose.dims, loose.mpp, names)


def _image(file: Path, loose: LooseImage, placed: dict[str, Any], options: Mapping[str, Any]) -> Any:
    """An image as spatialdata-io makes it: with a pyramid of halves, one channel a chunk."""
    from spatialdata.models import Image2DModel
    from spatialdata.transformations import Affine, Identity

    made = {
        system: Identity() if matrix is None else Affine(matrix, ("x", "y"), ("x", "y"))
        for system, matrix in placed.items()
    }
    options = {"chunks": (1, 4096, 4096), "scale_factors": [2, 2, 2, 2]} | dict(options)
    named = {"dims": loose.dims, "transformations": made, "c_coords": loose.channels}
    with checks.reading(file):
        return Image2DModel.parse(loose.pixels, **named, **options)


def _molecules(folder: Path, pixel_size: float, size: values.Box) -> Any:
    """The transcripts, in µm, read when needed."""
    from spatialdata.transformations import Scale

    path = checks.require_file(folder, "transcripts.parquet", vendor=VENDOR)
    needed = Needed(path.name, numeric=PLACES, gene="feature_name")
    within = (0.0, 0.0, size[2] * pixel_size, size[3] * pixel_size)
    placed = {"global": Scale([1 / pixel_size, 1 / pixel_size], ("x", "y"))}
    return molecules(path, needed, placed, further={"z": "z_location"}, within=within)


def _add_cells(
    sdata: SpatialData,
    folder: Path,
    cells: xenium_cells.Cells,
    options: dict[str, Any],
    wanted: list[str],
    needs_table: bool,
    pixel_size: float,
    size: Any,
) -> None:
    """Labels, counts and outlines."""
    for key in xenium_cells.LABELS:
        if options[key.replace("cell_", "cells_")]:
            labels = cells.labels(key, options["labels_models_kwargs"])
            if labels is not None:
                sdata.labels[key] = labels
    table = None
    if needs_table:
        region = "cell_circles" if options["cells_as_circles"] else "cell_labels"
        if region == "cell_labels" and "cell_labels" not in sdata.labels and "cell_boundaries" in wanted:
            region = "cell_boundaries"
        table = xenium_cells.read_table(
            folder, cells, region, gex_only=options["gex_only"], pixel_size=pixel_size, size=size
        )
    for key in wanted:
        outlines = xenium_cells.read_outlines(folder, key, cells, pixel_size, table, size)
        if outlines is not None:
            sdata.shapes[key] = outlines
    if options["cells_as_circles"] and table is not None:
        sdata.shapes["cell_circles"] = xenium_cells.circles(table, pixel_size)
    if table is not None:
        sdata.tables["table"] = table


def _aligned_files(folder: Path) -> dict[str, Path]:
    """Images that were aligned to the stain, by their key; each has its alignment."""
    found = {}
    for kind in ALIGNED:
        files = checks.files_like(folder, f"*{kind}.ome.tif")
        if len(files) > 1:
            raise ValueError(
                f"{folder} has several aligned images: {', '.join(file.name for file in files)}. Leave one, or pass "
                "aligned_images=False and add them with he= or pp.align."
            )
        for file in files:
            alignment = _alignment_of(file)
            if not alignment.is_file():
                raise FileNotFoundError(
                    f"{file} has no alignment {alignment.name} beside it, which says where it lies. Add that file, or "
                    "leave the image out with aligned_images=False."
                )
            checks.require_picture(file)
            _alignment.read_matrix(alignment)
            found[kind] = file
    return found


def _alignment_of(file: Path) -> Path:
    return file.with_name(file.name.replace("image.ome.tif", "imagealignment.csv"))


def _add_aligned(sdata: SpatialData, name: str, file: Path, options: Mapping[str, Any]) -> None:
    """An image of any channels, where its alignment puts it."""
    loose = read_image(file, name)
    is_rgb = len(loose.pixels) == 3 and loose.pixels.dtype == np.uint8 and (loose.channels or [""])[0] == ""
    names = ["r", "g", "b"] if name == "he_image" and len(loose.pixels) == 3 or is_rgb else loose.channels
    names = None if names is not None and len(names) != len(loose.pixels) else names
    loose = LooseImage(loose.pixels, loose.dims, loose.mpp, names)
    sdata.images[name] = _image(file, loose, {"global": _alignment.read_matrix(_alignment_of(file))}, options)
    for source, value in scale.sensible(loose.mpp, file.name).items():
        scale.record_mpp(sdata, name, f"{source} of {file.name}", value)


def _require_same_cells(cells: Path, matrix: Path) -> None:
    """The counts are those of the cells, in their order: they are put together row by row."""
    barcodes = checks.require_matrix(matrix, indices=False)
    names = checks.read_parquet(cells, ["cell_id"])
    checks.require_flat(cells, names)
    ids = xenium_cells.names_of(names["cell_id"]).to_numpy(str)
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
