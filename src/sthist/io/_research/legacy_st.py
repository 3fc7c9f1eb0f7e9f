"""Spatial Transcriptomics from before Visium: a table of counts, a table of spots, a picture."""

from __future__ import annotations

import csv
import re
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist import scale
from sthist._reading import open_text, reader
from sthist._settings import logger
from sthist.io._files import checks
from sthist.io._files.checks import require_argument
from sthist.io._parts.matrix import count_table, position_key, read_matrix, separator
from sthist.io._parts.spots import OFF_LATTICE, add_labels, build_sample, fit_lattice, match_spots, read_slide_image

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from spatialdata import SpatialData

# Columns that the ST spot detector writes, as her2st ships them; new_x, new_y and selected come with them.
SELECTION = ["x", "y", "pixel_x", "pixel_y"]
NAMED = ["X", "Y"]  # columns of pixels beside spots that are named like 10x13, as ST-Net ships them
ENDINGS = re.compile(r"(_stdata)?\.(tsv|csv|txt)(\.gz)?$")


@reader
def legacy_st(
    counts: str | Path,
    *,
    spots: str | Path,
    image: str | Path | None = None,
    mpp: float | None = None,
    spot_diameter_um: float = 100.0,
    pitch_um: float | tuple[float, float] = 200.0,
    labels: str | Path | None = None,
    name: str | None = None,
    patient: str | None = None,
    batch: str | None = None,
) -> SpatialData:
    r"""Read a section of legacy Spatial Transcriptomics, as her2st and ST-Net ship them, in micrometres.

    Parameters
    ----------
    counts
        tsv or csv, plain or ``.gz``: spots x genes or genes x spots, whichever fits ``spots``. Spots are named by their
        place on the array, like ``10x13``; a text in front of it (``A1_10x13``) does not count.
    spots
        Where the spots are in the picture. Either the columns ``x``, ``y`` (place on the array), ``pixel_x``,
        ``pixel_y`` and, if need be, ``selected`` (her2st: ``A1_selection.tsv``); or spots named like ``10x13`` and the
        columns ``X`` and ``Y`` in pixels (ST-Net: ``spots_BC23209_C1.csv.gz``). Pixels are those of ``image``, from its
        upper left corner.
    image
        The H&E: JPEG, PNG or TIFF. Without it, the spots alone are there.
    mpp
        µm per pixel. By default what fits the spots best, given how far apart they are on the array.
    spot_diameter_um
        Of the spots.
    pitch_um
        Distance between neighbouring spots, along x and y of the array if there are two.
    labels
        A pathologist's labels: columns ``x``, ``y``, ``label`` (her2st: ``A1_labeled_coordinates.tsv``), or ST-Net's
        ``BC23209_C1_Coords.tsv``.
    name
        Of the sample; by default that of the file of counts, without its endings.
    patient, batch
        Whose it is, and what it was made with others in.

    Returns
    -------
    A SpatialData in memory, registered in ``um`` and, in pixels, in ``global``: ``images["he"]``; ``shapes["spots"]``,
    circles; ``tables["table"]``: raw counts (int32), linked to them, with ``obsm["spatial"]``, (n, 2), the centres in
    µm, and ``obs`` with ``array_x``, ``array_y`` and, if given, ``label``; ``attrs["sthist"]["sample"]`` with name,
    patient and batch. Spots that are not selected, or that one of the two files lacks, are left out and counted.

    Raises
    ------
    FileNotFoundError
        If a file is missing.
    KeyError
        If the spots or the labels have not the columns they should have.
    ValueError
        If no spot is in both files, or one is there twice; if the counts are not raw; if the scale cannot be told or
        ``mpp`` contradicts the spots, or the scales along x and y differ, by more than 2 %; if more than 5 % of the
        spots lie outside of the image; if a file is truncated or empty, or has text for numbers.

    Notes
    -----
    Formats: her2st (Andersson et al., Nat Commun 2021; github.com/almaan/her2st), ST-Net (He et al., Nat Biomed Eng
    2020; doi 10.17632/29ntw7sh4r), and GEO's ``*_stdata.tsv.gz`` with ``*_spot_data-selection-*.tsv.gz``. The first two
    leave out genes that a section has no counts of: where another section has such a gene, it is a zero.

    Examples
    --------
    >>> import pathlib, tempfile, sthist
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> _ = (folder / "A1.tsv").write_text("\tERBB2\tKRT8\n2x3\t5\t0\n3x3\t1\t2\n2x4\t0\t4\n")
    >>> rows = "x\ty\tpixel_x\tpixel_y\n2\t3\t100\t200\n3\t3\t300\t200\n2\t4\t100\t400\n"
    >>> _ = (folder / "A1_selection.tsv").write_text(rows)
    >>> sdata = sthist.io.legacy_st(folder / "A1.tsv", spots=folder / "A1_selection.tsv", patient="A")
    >>> sdata["table"].obsm["spatial"].round(1).tolist()
    [[100.0, 200.0], [300.0, 200.0], [100.0, 400.0]]

    All sections of ST-Net, with the patients of its table::

        for row in pd.read_csv("metadata.csv").itertuples():
            samples[f"{row.patient}_{row.replicate}"] = sthist.io.legacy_st(
                row.count_matrix, spots=row.spot_coordinates, image=row.histology_image,
                labels=row.tumor_annotation, patient=row.patient,
            )
    """
    import pandas as pd

    counts_file, spots_file = require_argument(counts, "counts"), require_argument(spots, "spots")
    labels_file = None if labels is None else require_argument(labels, "labels")
    image_file = None if image is None else require_argument(image, "image")
    places, fields = _read_spots(spots_file)
    size = _resolve_scale(spots_file, fields, places, mpp, pitch_um)
    source = "the argument mpp=" if mpp is not None else f"distance of the spots of {spots_file.name}"
    slide = read_slide_image(image_file, size, source, mpp, spots_file, fields, _pixels(places))
    matrix = read_matrix(counts_file)
    rows, columns = (pd.Index([position_key(str(key)) for key in keys]) for keys in (matrix.rows, matrix.columns))
    like = f"{matrix.rows[0]!r} (rows), {matrix.columns[0]!r} (columns)"
    if columns.isin(places.index).sum() > rows.isin(places.index).sum():
        matrix, rows = matrix.turned, columns
    matched = match_spots(matrix, rows, places, spots_file, like)
    places, kept = places[matched >= 0], matched[matched >= 0]
    table = count_table(matrix, kept, places.index)
    table.obs["array_x"], table.obs["array_y"] = places["x"].to_numpy(), places["y"].to_numpy()
    if labels_file is not None:
        add_labels(table, _read_labels(labels_file), places.index, labels_file)
    size_px = spot_diameter_um / size
    facts: dict[str, Any] = {"patient": patient, "batch": batch, "technology": "Spatial Transcriptomics"}
    name = ENDINGS.sub("", counts_file.name) if name is None else name
    return build_sample(name, table, _pixels(places), size, source, size_px=size_px, he=slide, **facts)


def _read_spots(path: Path) -> tuple[pd.DataFrame, str]:
    """Place on the array (x, y) and in the picture (pixel_x, pixel_y) of the selected spots, by their key.

    And the file's columns of the latter.
    """
    import pandas as pd

    with checks.reading(path), open_text(path) as file:
        frame = pd.read_csv(file, sep=separator(path))
    checks.require_rows(path, len(frame))
    if set(NAMED) & set(frame) and not set(SELECTION) & set(frame):
        checks.require_columns(path, frame, NAMED)
    if set(NAMED) <= set(frame) and not set(SELECTION) <= set(frame):
        checks.require_numbers(path, frame, NAMED)
        first = frame.columns[0]
        keys = [position_key(str(name)) for name in frame[first]]
        wrong = [name for name, key in zip(frame[first], keys, strict=True) if not re.fullmatch(r"\d+x\d+", key)]
        if wrong:
            raise ValueError(
                f"{path}: the first column should name spots by their place, like 10x13, but has {wrong[0]!r}."
            )
        places = frame[NAMED].set_axis(["pixel_x", "pixel_y"], axis=1).astype(np.float64)
        places[["x", "y"]] = [[int(number) for number in key.split("x")] for key in keys]
        fields = "X, Y"
    else:
        checks.require_columns(path, frame, SELECTION)
        checks.require_numbers(path, frame, SELECTION)
        if "selected" in frame:
            checks.require_numbers(path, frame, ["selected"])
            frame = frame[frame["selected"] != 0]
            checks.require_rows(path, len(frame), "selected spots (column 'selected')")
        places, fields = frame[SELECTION].astype(np.float64), "pixel_x, pixel_y"
    places[["x", "y"]] = places[["x", "y"]].round().astype(int)
    places.index = pd.Index([f"{x}x{y}" for x, y in zip(places["x"], places["y"], strict=True)])
    checks.require_unique(path, places.index, "spot")
    return places, fields


def _pixels(places: pd.DataFrame) -> np.ndarray:
    return places[["pixel_x", "pixel_y"]].to_numpy(np.float64)


def _resolve_scale(
    path: Path, fields: str, places: pd.DataFrame, mpp: float | None, pitch_um: float | tuple[float, float]
) -> float:
    """The µm per pixel: given, and checked against the array, or of the array."""
    pitch = np.broadcast_to(np.asarray(pitch_um, np.float64), 2)
    if not (np.isfinite(pitch) & (pitch > 0)).all():
        raise ValueError(
            f"pitch_um is {pitch_um!r}; the distance between spots is a positive number of µm, or one each along x and "
            "y."
        )
    lattice = fit_lattice(places[["x", "y"]].to_numpy(np.float64) * pitch, _pixels(places))
    if lattice is None:
        nobody = (
            f"{path}: the scale needs at least 3 spots that are not on one line of the array (x, y); it has "
            f"{len(places)} spots. Give it with mpp=."
        )
        return scale.agreed_mpp(str(path), {}, mpp, nobody)
    if lattice.off_um > OFF_LATTICE * pitch.min():
        raise ValueError(
            f"{path}: the spots lie {lattice.off_um / lattice.mpp:.0f} px (median) from where x and y put them on the "
            f"array. Are the columns {fields} those of these spots?"
        )
    if lattice.anisotropy > scale.TOLERANCE:
        scales = (
            f"{path}: spots that are {pitch[0]:g} and {pitch[1]:g} µm apart ({fields}) give {lattice.mpp_x:.4g} µm/px "
            f"along x of the array and {lattice.mpp_y:.4g} along y ({lattice.anisotropy:.1%})"
        )
        if mpp is None:
            raise ValueError(f"{scales}. Give the right distances with pitch_um=(x, y), or the scale with mpp=.")
        logger.warning("%s; mpp=%.4g is taken.", scales, mpp)
        return scale.agreed_mpp(str(path), {}, mpp, "")
    return scale.agreed_mpp(str(path), {f"spots {pitch[0]:g} µm apart, pitch_um=": lattice.mpp}, mpp, "")


def _read_labels(path: Path) -> pd.Series:
    """Label by key of the spot; spots without one are left out."""
    import pandas as pd

    sep = separator(path)
    # Read as text: ST-Net's files end their lines with CR, and their header lacks the name of the first column.
    with checks.reading(path), open_text(path) as file:
        header, *rows = [row for row in csv.reader(file, delimiter=sep) if any(row)]
    if "label" in header:
        checks.require_columns(path, header, ["x", "y", "label"])
        x, y, label = (header.index(field) for field in ("x", "y", "label"))
    elif {"xcoord", "ycoord", "tumor"} <= set(header):
        shift = int(bool(rows) and header.index("xcoord") == 0)
        x, y, label = (header.index(field) + shift for field in ("xcoord", "ycoord", "tumor"))
    else:
        raise KeyError(
            f"{path} has no column 'label' beside 'x' and 'y', and no 'tumor' beside 'xcoord' and 'ycoord'; its "
            f"columns are {header}. Rename its columns."
        )
    return pd.Series(_labels(path, rows, x, y, label), dtype=object)


def _labels(path: Path, rows: list[list[str]], x: int, y: int, label: int) -> dict[str, str]:
    labels: dict[str, str] = {}
    for number, row in enumerate(rows, 2):
        try:
            place = f"{float(row[x]):.0f}x{float(row[y]):.0f}"
            text = row[label].strip()
        except (ValueError, IndexError):
            if len(row) > max(x, y, label) and "NA" in (row[x], row[y]):
                continue
            raise ValueError(
                f"{path}: line {number} has no place and label, but {row}. Is the file truncated?"
            ) from None
        if text and text != "NA":
            labels[place] = text
    return labels
