"""What other programs export: objects of QuPath, as GeoJSON, and selections of Xenium Explorer, as csv."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist._reading import open_text, parse_json, read_content
from sthist._settings import logger
from sthist.io._files import checks
from sthist.io._files.values import FARTHEST

if TYPE_CHECKING:
    import zipfile
    from collections.abc import Iterator
    from pathlib import Path

    import pandas as pd
    from shapely.geometry.base import BaseGeometry

KINDS = ("annotation", "detection", "cell", "tile", "tmaCore")  # what QuPath calls objectType
NAMES = re.compile(r"^[\"#\s]*selection names?\s*:\s*(.*?)[\",;\s]*$", re.IGNORECASE)
AREAS = re.compile(r"^[\"#\s]*areas?\s*(?:\(.*?\))?\s*:\s*(.*?)[\",;\s]*$", re.IGNORECASE)
UNCLASSIFIED = "unclassified"
# Relative difference between an area that is stated and that of the outline, above which vertices may be lost.
SAME_AREA = 0.05
PLACE = re.compile(r"^\s*([A-Za-z]{1,2}|\d{1,3})([\s_.:-]*)([A-Za-z]{1,2}|\d{1,3})\s*$")  # of a core in its name
# As versions before 0.3 wrote it, some of them as the feature's id.
OLD_KINDS = {
    "PathAnnotationObject": "annotation",
    "PathDetectionObject": "detection",
    "PathCellObject": "cell",
    "PathTileObject": "tile",
    "TMACoreObject": "tmaCore",
    "tma_core": "tmaCore",
    "PathRootObject": "root",
}
# Of a feature's properties: what has a column of its own, or is a matter of QuPath's display.
OWN_PROPERTIES = {
    *("classification", "name", "objectType", "object_type", "type", "isMissing", "measurements", "metadata"),
    *("nucleusGeometry", "childObjects", "children", "color", "colorRGB", "isLocked", "locked"),
}
GEOMETRIES = {"Point", "MultiPoint", "LineString", "MultiLineString", "Polygon", "MultiPolygon", "GeometryCollection"}


@dataclass(frozen=True)
class Drawn:
    """One object that somebody drew or detected."""

    geometry: BaseGeometry  # in the units of the file; empty where it has none
    label: str | None = None  # its class, its name and its identifier; None where it has none
    name: str | None = None
    id: str | None = None
    kind: str | None = None  # one of KINDS; None where the file knows no kinds
    nucleus: BaseGeometry | None = None  # of a cell, where it has one
    missing: bool = False  # whether it is a core of a microarray that is not there
    numbers: dict[str, float] = field(default_factory=dict)  # measurements and metadata by name
    texts: dict[str, str] = field(default_factory=dict)
    others: dict[str, Any] = field(default_factory=dict)  # what other programs write of an object, such as a cell's id


def read_geojson(path: Path) -> list[Drawn]:
    """All objects of a file: a feature, a collection or a list of them, or a geometry alone.

    Children after their parents.
    """
    drawn = [_drawn(path, f"feature {i}", feature) for i, feature in enumerate(read_features(path))]
    return [each for each in drawn if each.kind != "root"]


def read_features(path: Path) -> list[dict[str, Any]]:
    """The features of a file, plain, ``.gz`` or ``.zip``, whatever it wraps them in."""
    document = parse_json(path, read_content(path, lambda archive: _only_member(path, archive)))
    with checks.reading(path):
        return list(_features(path, document))


def _only_member(path: Path, archive: zipfile.ZipFile) -> str:
    names = [
        name
        for name in archive.namelist()
        if name.lower().endswith((".geojson", ".json")) and not name.rpartition("/")[2].startswith(".")
    ]
    if len(names) == 1:
        return names[0]
    held = f"{len(names)} GeoJSON files, such as {names[:3]}" if names else "no file that ends in .geojson or .json"
    raise ValueError(f"{path} holds {held}; one is needed. Unpack it, and name the one that is meant.")


def _features(path: Path, content: Any) -> Iterator[dict[str, Any]]:
    """The features of a document, whatever it wraps them in."""
    if isinstance(content, list):
        for each in content:
            yield from _features(path, each)
        return
    kind = content.get("type") if isinstance(content, dict) else None
    features = content.get("features") if isinstance(content, dict) else None
    if isinstance(features, list):
        for each in features:
            yield from _features(path, each)
    elif kind == "Feature":
        yield from _parts(content)
        properties = content.get("properties")
        for name in ("childObjects", "children"):
            if isinstance(properties, dict) and isinstance(properties.get(name), list):
                yield from _features(path, properties[name])
    elif kind in GEOMETRIES:
        yield from _parts({"geometry": content})
    else:
        content_type = f"'type' {kind!r}" if isinstance(content, dict) else type(content).__name__
        raise ValueError(
            f"{path} holds no GeoJSON: it has {content_type} where a 'Feature', a 'FeatureCollection' with 'features' "
            "or a geometry should be. Export the objects from QuPath as GeoJSON."
        )


def _parts(feature: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A feature; each of its geometries as one where these have members of their own, as segmented cells have."""
    geometry = feature.get("geometry")
    parts = geometry.get("geometries") if isinstance(geometry, dict) else None
    members = {"type", "coordinates", "geometries", "bbox", "crs"}
    if not isinstance(parts, list) or not any(isinstance(part, dict) and set(part) - members for part in parts):
        yield feature
        return
    shared = feature.get("properties")
    for part in parts:
        own = {name: part[name] for name in part if name not in members} if isinstance(part, dict) else {}
        yield {"geometry": part, "properties": (shared if isinstance(shared, dict) else {}) | own}


def _drawn(path: Path, where: str, feature: dict[str, Any]) -> Drawn:
    import shapely

    properties = feature.get("properties") or {}
    if not isinstance(properties, dict):
        raise ValueError(f"{path}: 'properties' of {where} is {type(properties).__name__}; it should be an object.")
    if "geometry" not in feature:
        raise KeyError(f"{path}: {where} has no 'geometry'. Is the file truncated, or no GeoJSON?")
    nucleus = feature.get("nucleusGeometry") or properties.get("nucleusGeometry")
    stated = feature["geometry"]
    metadata = properties.get("metadata")
    return Drawn(
        geometry=shapely.Polygon() if stated is None else read_geometry(path, f"'geometry' of {where}", stated),
        label=_label(path, where, properties.get("classification")),
        name=_text(properties.get("name")),
        id=_text(feature.get("id")) if feature.get("id") not in OLD_KINDS else None,
        kind=_kind(feature, properties),
        nucleus=None if nucleus is None else read_geometry(path, f"'nucleusGeometry' of {where}", nucleus),
        missing=str(properties.get("isMissing", False)).casefold() == "true",
        numbers=_measurements(path, where, properties.get("measurements")),
        texts={str(key): str(value) for key, value in metadata.items() if value is not None}
        if isinstance(metadata, dict)
        else {},
        others={
            str(key): value
            for key, value in properties.items()
            if key not in OWN_PROPERTIES and isinstance(value, str | int | float) and _text(value) is not None
        },
    )


def _text(value: Any) -> str | None:
    """Text, None where there is none: null, NaN, blanks."""
    if value is None or value != value or not str(value).strip():
        return None
    return str(value)


def _kind(feature: dict[str, Any], properties: dict[str, Any]) -> str:
    # What QuPath itself does not know becomes an annotation there, too.
    stated = (properties.get(name) for name in ("objectType", "object_type", "type"))
    kind = next((kind for kind in (*stated, feature.get("id")) if isinstance(kind, str)), "annotation")
    kind = OLD_KINDS.get(kind, kind)
    return kind if kind in (*KINDS, "root") else "annotation"


def _label(path: Path, where: str, stated: Any) -> str | None:
    """The name of a class; those of several levels as QuPath shows them, ``"Tumor: Positive"``."""
    if isinstance(stated, dict):
        if isinstance(stated.get("names"), list):
            names = [_text(name) for name in stated["names"]]
        else:  # before 0.4, a class of two levels had its parent within it
            parent = stated.get("parentClass")
            names = [_label(path, where, parent), _text(stated.get("name"))]
        return ": ".join(name for name in names if name is not None) or None
    if isinstance(stated, list | bool):
        raise ValueError(
            f"{path}: 'classification' of {where} is {stated!r}; it should be a text, or an object with 'name' or "
            "'names'."
        )
    return _text(stated)


def _measurements(path: Path, where: str, stated: Any) -> dict[str, float]:
    """Numbers by name, out of an object or, as before 0.4, a list of names and values."""
    if stated is None:
        return {}
    if isinstance(stated, list):
        if not all(isinstance(each, dict) and {"name", "value"} <= set(each) for each in stated):
            raise ValueError(
                f"{path}: 'measurements' of {where} is a list whose items have not all a 'name' and a 'value'."
            )
        stated = {str(each["name"]): each["value"] for each in stated}
    if not isinstance(stated, dict):
        raise ValueError(
            f"{path}: 'measurements' of {where} is {type(stated).__name__}; it should be an object of numbers."
        )
    numbers = {}
    for name, value in stated.items():
        try:
            numbers[name] = np.nan if value is None else float(value)
        except (TypeError, ValueError):
            raise ValueError(
                f"{path}: the measurement {name!r} of {where} is {value!r}; it should be a number."
            ) from None
    return numbers


def read_geometry(path: Path, what: str, stated: Any) -> BaseGeometry:
    """A geometry in the plane, refused where it cannot be read."""
    import shapely
    from shapely.errors import ShapelyError
    from shapely.geometry import shape

    try:
        with np.errstate(invalid="ignore"):  # NaN is looked for below
            geometry = shapely.force_2d(shape(stated))
    except (ShapelyError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        kind = stated.get("type") if isinstance(stated, dict) else type(stated).__name__
        raise ValueError(
            f"{path}: {what} ({kind}) cannot be read: {error}. Are its 'coordinates' complete, and numbers?"
        ) from None
    if not (np.abs(shapely.get_coordinates(geometry)) <= FARTHEST).all():
        raise ValueError(f"{path}: {what} has 'coordinates' that are NaN or infinite, or above {FARTHEST:g}.")
    return geometry


def core_columns(drawn: list[Drawn]) -> dict[str, Any]:
    """``row``, ``column`` and ``state`` of the cores of a microarray; nothing where there are none.

    Either part of a name may be that of the row: what lies side by side tells. Rows and columns are not given where a
    name is of another form, or two cores have the same.
    """
    import pandas as pd

    cores = [i for i, each in enumerate(drawn) if each.kind == "tmaCore"]
    if not cores:
        return {}
    state = np.full(len(drawn), None, dtype=object)
    state[cores] = ["missing" if drawn[i].missing else "whole" for i in cores]
    parts = _core_places([drawn[i].name or "" for i in cores])
    if parts is None:
        return {"state": state}
    first, second = parts
    centres = np.array([drawn[i].geometry.centroid.coords[0] for i in cores])
    row, column = min((first, second), (second, first), key=lambda pair: _spread(centres, *pair))
    if len(set(zip(row.tolist(), column.tolist(), strict=True))) < len(cores):
        logger.warning("The %d cores have no row and column: two have the same name.", len(cores))
        return {"state": state}
    if len(cores) == len(drawn):
        return {"row": row, "column": column, "state": state}
    places = np.full((2, len(drawn)), -1)
    places[:, cores] = row, column
    row, column = (pd.Series(values, dtype="Int64").mask(values < 0).to_numpy(dtype=object) for values in places)
    return {"row": pd.array(row, dtype="Int64"), "column": pd.array(column, dtype="Int64"), "state": state}


def _core_places(names: list[str]) -> tuple[np.ndarray, np.ndarray] | None:
    """The two parts of each name as numbers; None where one is of another form."""
    matches = [PLACE.match(name) for name in names]
    read = [match is not None and (bool(match[2]) or match[1].isdigit() != match[3].isdigit()) for match in matches]
    if not all(read):
        logger.warning(
            f"{len(read) - sum(read)} of {len(read)} cores have names that are not like 'A-1', such as "
            f"{names[read.index(False)]!r}: none has a row and a column."
        )
        return None
    sides = [[match[i] for match in matches if match is not None] for i in (1, 3)]
    if any(len({part.isdigit() for part in side}) > 1 for side in sides):
        logger.warning(
            "The cores have no row and column: some of their names begin with a letter, and some with a number."
        )
        return None
    return _places_from_0(sides[0]), _places_from_0(sides[1])


def _places_from_0(parts: list[str]) -> np.ndarray:
    """Letters, or numbers from 0 or 1, as numbers from 0."""
    if parts[0].isdigit():
        numbers = np.array([int(part) for part in parts])
        return numbers - min(1, int(numbers.min()))
    return np.array([number_of_letters(part) for part in parts])


def number_of_letters(letters: str) -> int:
    """Number of a row from 0: A is 0, z is 25, AA is 26."""
    number = 0
    for letter in letters.upper():
        number = 26 * number + ord(letter) - 64
    return number - 1


def _spread(centres: np.ndarray, row: np.ndarray, column: np.ndarray) -> float:
    """How far cores of one row lie apart in y, and of one column in x."""
    return sum(
        float(((values - (np.bincount(groups, values) / np.maximum(np.bincount(groups), 1))[groups]) ** 2).sum())
        for values, groups in ((centres[:, 1], row), (centres[:, 0], column))
    )


def read_selections(path: Path) -> list[Drawn]:
    """The outlines of a csv file, in its order."""
    with checks.reading(path), open_text(path) as file:
        text = file.read()
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
        drawn.append(Drawn(outline, _selection_label(name, part), name.strip() or None))
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


def _selection_label(name: str, part: pd.DataFrame) -> str | None:
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
