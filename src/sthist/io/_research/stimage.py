"""Slides of STimage-1K4M."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist import scale
from sthist._reading import reader
from sthist._settings import logger
from sthist.io._files import checks
from sthist.io._parts import spots
from sthist.io._parts.matrix import count_table, read_matrix, separator

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd
    from spatialdata import SpatialData

TECHNOLOGIES = ("ST", "Visium", "VisiumHD")
COORD = "_coord.csv"
PLACES = ["xaxis", "yaxis"]
SIZES_UM = {"ST": spots.SPOTS_UM["Spatial Transcriptomics"], "Visium": spots.SPOTS_UM["Visium"]}

META = "meta_all_gene*.csv"
FACTS = ("species", "tissue", "pmid")
UNSURE = re.compile(r"^(|nan)$", re.IGNORECASE)


@reader
def stimage(
    path: str | Path,
    ids: str | Sequence[str] | None = None,
    *,
    mpp: float | Mapping[str, float] | None = None,
    image: bool = True,
) -> SpatialData | dict[str, SpatialData]:
    r"""Read slides of STimage-1K4M, in micrometres.

    The files state no scale. It comes from the distance between neighbouring spots, 100 µm for Visium and 200 µm for
    ST; for ST, the radius ``r`` of a spot (50 µm) has to agree within 2 %. Bins of Visium HD may be of 2, 8 or 16 µm,
    which nothing says: there, ``mpp`` is needed.

    Parameters
    ----------
    path
        A local copy, complete or not, with ``ST``, ``Visium`` and ``VisiumHD``, each with ``coord``, ``gene_exp`` and
        ``image``; or one of these three.
    ids
        One slide or several, as ``"Human_Breast_Andersson_10142021_ST_A1"``; by default all that ``path`` has.
    mpp
        µm per pixel of the image, one for all or by slide, in place of what the spots say; where they contradict it,
        both are said.
    image
        Whether to read the H&E, which is a PNG and read whole; without it, the spots alone are there.

    Returns
    -------
    A SpatialData if ``ids`` is a text, else a mapping of slide to SpatialData. In memory, registered in ``um`` and, in
    pixels, in ``global``: ``images["he"]``; ``shapes["spots"]``, circles (squares for Visium HD); ``tables["table"]``:
    raw counts (int32), linked to them, with ``obsm["spatial"]``, (n, 2), the centres in µm, and ``obs["label"]`` where
    ``annotation`` has the slide; ``attrs["sthist"]["sample"]`` with name, technology, species, tissue and, as
    ``batch``, the publication. STimage names no patients: give them with a table of samples before you split.

    Raises
    ------
    FileNotFoundError, KeyError
        If a slide or one of its files is missing, or has not the columns it should have.
    ValueError
        If the scale cannot be told, or two disagree by more than 2 %; if no spot is in both files, or one is there
        twice; if the counts are not raw; if more than 5 % of the spots lie outside of the image; if a file is truncated
        or empty, or has text for numbers.

    Notes
    -----
    Format: Chen et al., NeurIPS 2024; github.com/JiawenChenn/STimage-1K4M, hub id jiawennnn/STimage-1K4M. ``xaxis`` and
    ``yaxis`` are column and row of a spot's centre.

    Examples
    --------
    >>> import pathlib, tempfile, sthist
    >>> root = pathlib.Path(tempfile.mkdtemp())
    >>> coord = ",yaxis,xaxis,r\nS1_7x10,200,100,25\nS1_8x10,200,200,25\n"
    >>> for name, text in {"coord": coord, "gene_exp": ",ERBB2\nS1_7x10,5\nS1_8x10,0\n"}.items():
    ...     (root / "ST" / name).mkdir(parents=True)
    ...     _ = (root / "ST" / name / f"S1_{name.replace('gene_exp', 'count')}.csv").write_text(text)
    >>> sdata = sthist.io.stimage(root, "S1", image=False)
    >>> sdata["table"].obsm["spatial"].tolist()
    [[200.0, 400.0], [400.0, 400.0]]
    """
    root = Path(path)
    there = _slides(root)
    names = spots.chosen(root, ids, list(there), f"<technology>/coord/{{}}{COORD}")
    scales = spots.by_sample(mpp, names)
    facts = _read_meta(root)
    samples = {name: _read_slide(there[name], name, scales.get(name), image, facts.get(name, {})) for name in names}
    return samples[ids] if isinstance(ids, str) else samples


def _slides(root: Path) -> dict[str, Path]:
    """The folder of the technology, by slide."""
    folders = [root / technology for technology in TECHNOLOGIES] + [root] * (root.name in TECHNOLOGIES)
    there = {folder: checks.files_like(folder, f"coord/*{COORD}") for folder in folders}
    slides = {file.name.removesuffix(COORD): folder for folder, files in there.items() for file in files}
    if not slides:
        raise FileNotFoundError(
            f"{root} has no slides: none of {'/coord, '.join(TECHNOLOGIES)}/coord has a file *{COORD}. Give a local "
            "copy of STimage-1K4M."
        )
    return slides


def _read_meta(root: Path) -> dict[str, dict[Any, Any]]:
    """What the newest table of slides says, by slide; nothing where there is no table."""
    import pandas as pd

    folders = [root, root.parent] if root.name in TECHNOLOGIES else [root]
    places = (f"meta/{META}", META)
    tables = [file for folder in folders for place in places for file in checks.files_like(folder, place)]
    if not tables:
        return {}
    # meta_all_gene02122025.csv: month, day, year
    table = max(tables, key=lambda file: (lambda date: date[4:] + date[:4])(file.stem.removeprefix("meta_all_gene")))
    with checks.reading(table):
        frame = pd.read_csv(table, sep=separator(table), dtype=str)
    checks.require_columns(table, frame, ["slide"])
    return {str(row["slide"]): row for row in frame.to_dict("records")}


def _read_slide(folder: Path, name: str, mpp: float | None, image: bool, facts: dict[Any, Any]) -> SpatialData:
    technology = folder.name
    coord = folder / "coord" / f"{name}{COORD}"
    counts = _require(folder / "gene_exp" / f"{name}_count.csv")
    picture = _require(folder / "image" / f"{name}.png", "; leave the H&E out with image=False") if image else None
    places = _read_coord(coord)
    px = places[PLACES].to_numpy(np.float64)
    size, source, size_px, kind = _scale(coord, technology, places, px, mpp)
    slide = spots.read_slide_image(picture, size, source, mpp, coord, "xaxis, yaxis", px)
    matrix = read_matrix(counts)
    rows = spots.match_spots(matrix, matrix.rows, places, coord, repr(matrix.rows[0]))
    kept = rows >= 0
    table = count_table(matrix, rows[kept], [spot.removeprefix(f"{name}_") for spot in places.index[kept]])
    labels = folder.parent / "annotation" / f"{name}_anno.csv"
    if labels.is_file():
        spots.add_labels(table, _read_labels(labels), places.index[kept], labels)
    pmid = facts.get("pmid")
    known = {key: facts.get(key) for key in FACTS} | {"source": "STimage-1K4M", "technology": technology}
    known["batch"] = None if pmid is None or UNSURE.match(str(pmid).strip()) else f"pmid {pmid}"
    return spots.build_sample(name, table, px[kept], size, source, size_px=size_px, kind=kind, he=slide, **known)


def _require(file: Path, hint: str = "") -> Path:
    if not file.is_file():
        raise FileNotFoundError(f"There is no file {file}. Download it{hint}.")
    return file


def _read_coord(path: Path) -> pd.DataFrame:
    """xaxis, yaxis and r by spot."""
    fields = [*PLACES, "r"]
    frame = checks.read_csv(path, fields, numeric=fields)
    frame = frame.set_index(frame.columns[0])[fields].astype(np.float64)
    frame.index = frame.index.astype(str)
    checks.require_unique(path, frame.index, "spot")
    if not (frame["r"] > 0).all():
        raise ValueError(
            f"{path}: column 'r' should hold the radius of the spots in pixels, but has {frame['r'].min():g}."
        )
    return frame


def _scale(
    path: Path, technology: str, places: pd.DataFrame, px: np.ndarray, mpp: float | None
) -> tuple[float, str, float, str]:
    """µm per pixel, who states it, size of the spots in pixels, and their form."""
    pitch = spots.array_pitch(places.index, px) if technology == "ST" else spots.spot_pitch(px)
    radius = float(places["r"].median())
    if technology not in SIZES_UM:
        nobody = (
            f"{path}: bins of Visium HD may be of 2, 8 or 16 µm, and no column says so. Give the µm per pixel with "
            "mpp=."
        )
        size = scale.agreed_mpp(str(path), {}, mpp, nobody)
        return size, "the argument mpp=", 2 * radius if pitch is None else pitch, "squares"
    diameter, step = SIZES_UM[technology]
    stated = {} if pitch is None else {f"spots {step:g} µm apart (xaxis, yaxis) in {path.name}": step / pitch}
    if technology == "ST":
        stated[f"r of {path.name}, {diameter / 2:g} µm"] = diameter / 2 / radius
    nobody = f"{path}: the {len(px)} spots (xaxis, yaxis) lie on no lattice that tells the scale; give it with mpp=."
    try:
        size = scale.agreed_mpp(str(path), stated if mpp is None else {}, mpp, nobody)
    except ValueError as error:
        error.add_note("Give the right one with mpp=.")
        raise
    for source, value in stated.items():
        if mpp is not None and abs(value / size - 1) > scale.TOLERANCE:
            logger.warning("%s: %.4g µm/px (%s); mpp=%.4g is taken.", path, value, source, size)
    return size, "the argument mpp=" if mpp is not None else next(iter(stated)), diameter / size, "circles"


def _read_labels(path: Path) -> pd.Series:
    """Labels by spot."""
    import pandas as pd

    with checks.reading(path):
        frame = pd.read_csv(path, sep=separator(path), index_col=0, dtype=str)
    checks.require_columns(path, frame, [] if len(frame.columns) == 1 else ["V2"])
    labels = frame["V2"] if "V2" in frame else frame.iloc[:, 0]
    checks.require_unique(path, labels.index, "spot")
    return labels
