"""Selections of Xenium Explorer, as it writes their coordinates to csv."""

from __future__ import annotations

import gzip
import io
import re
from typing import TYPE_CHECKING

import numpy as np

from sthist._settings import logger
from sthist.io._annotations.geojson import Drawn
from sthist.io._files import checks

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

NAMES = re.compile(r"^[\"#\s]*selection names?\s*:\s*(.*?)[\",;\s]*$", re.IGNORECASE)
AREAS = re.compile(r"^[\"#\s]*areas?\s*(?:\(.*?\))?\s*:\s*(.*?)[\",;\s]*$", re.IGNORECASE)
UNCLASSIFIED = "unclassified"
# Relative difference between an area that is stated and that of the outline, above which vertices may be lost.
SAME_AREA = 0.05


def read_selections(path: Path) -> list[Drawn]:
    """The outlines of a csv file, in its order."""
    with checks.reading(path):
        content = path.read_bytes()
        text = (gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content).decode("utf-8-sig")
    drawn: list[Drawn] = []
    for names, areas, rows in _blocks(text):
        drawn += _outlines(path, _table(path, rows), names, areas)
    if not drawn:
        raise ValueError(
            f"{path} has no rows with X and Y. Export the selection's coordinates from Xenium Explorer again."
        )
    return drawn


def _blocks(text: str) -> list[tuple[str, str, list[str]]]:
    """Names, areas and rows of each selection: several files may have been put one after the other."""
    blocks: list[tuple[str, str, list[str]]] = []
    for line in filter(str.strip, text.splitlines()):
        comment = line.lstrip('" ').startswith("#")
        if not blocks or (comment and blocks[-1][2]):
            blocks.append(("", "", []))
        names, areas, rows = blocks[-1]
        if not comment:
            rows.append(line)
        elif match := NAMES.match(line):
            blocks[-1] = (match[1], areas, rows)
        elif match := AREAS.match(line):
            blocks[-1] = (names, match[1], rows)
    return [block for block in blocks if block[2]]


def _table(path: Path, rows: list[str]) -> pd.DataFrame:
    import pandas as pd

    separator = max(",;\t", key=rows[0].count)
    with checks.reading(path):
        frame = pd.read_csv(io.StringIO("\n".join(rows)), sep=separator, dtype=str, index_col=False)
    known = {"x": "X", "y": "Y", "selection": "Selection", "class": "Class"}
    frame = frame.rename(columns={name: known.get(str(name).strip().casefold(), str(name)) for name in frame.columns})
    checks.require_columns(path, frame.columns, ["X", "Y"])
    checks.require_rows(path, len(frame), "rows with X and Y")
    checks.require_numbers(path, frame, ["X", "Y"])
    return frame


def _outlines(path: Path, frame: pd.DataFrame, names: str, areas: str) -> list[Drawn]:
    import shapely

    if "Selection" in frame:
        selection = frame["Selection"].fillna("")
        parts = [
            (str(part_name), part)
            for (part_name, _), part in frame.groupby([selection, _rings(frame, selection)], sort=False)
        ]
        stated = areas.split(",")
    else:
        parts, stated = [(names, frame)], [areas]
    drawn = []
    for i, (name, part) in enumerate(parts):
        vertices = part[["X", "Y"]].astype(np.float64).to_numpy()
        outline = shapely.Polygon(vertices) if len(np.unique(vertices, axis=0)) > 2 else shapely.Polygon()
        if len(stated) == len(parts):
            _compare_area(path, name, stated[i], outline.area)
        drawn.append(Drawn(outline, _label(name, part), name.strip() or None))
    return drawn


def _rings(frame: pd.DataFrame, selection: pd.Series) -> np.ndarray:
    """Number of the outline of each row: one ends where its first vertex comes again, or another selection begins.

    Two selections may have one name.
    """
    ring = np.empty(len(frame), int)
    number, first = -1, None
    places = zip(selection, frame["X"].astype(float), frame["Y"].astype(float), strict=True)
    for i, place in enumerate(places):
        if first is None or place[0] != first[0]:
            number, first, size = number + 1, place, 0
        ring[i], size = number, size + 1
        if size > 3 and place == first:
            first = None
    return ring


def _label(name: str, part: pd.DataFrame) -> str | None:
    """The class, where the file has classes; else the selection's name, which is all that was written about it."""
    if "Class" not in part:
        return name if name.strip() else None
    label = part["Class"].iloc[0]
    return label if isinstance(label, str) and label.strip().casefold() not in {"", UNCLASSIFIED} else None


def _compare_area(path: Path, name: str, stated: str, area: float) -> None:
    """Say where an outline is not as large as the file states: it may have been cut off."""
    try:
        expected = float(stated)
    except ValueError:
        return
    if abs(area - expected) > SAME_AREA * max(expected, 1.0):
        logger.warning(
            f"{path}: the outline of selection {name!r} has {area:.6g} µm², but the file states {expected:.6g}. Are "
            "vertices lost, or is it not in µm?"
        )
