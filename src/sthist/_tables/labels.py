"""Classes, and polygons that were drawn around them: repaired, and none over another."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sthist import _sample
from sthist._messages import plain
from sthist._sample.elements import repaired
from sthist._settings import logger
from sthist._tables.rows import Rows, polygons_um, rows_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pandas as pd
    from spatialdata import SpatialData

Overlaps = Literal["smaller", "error"]

SAME_BORDER = 1e-6
"""Polygons overlap that share more than this part of the smaller one: those that merely touch do not."""


@dataclass(frozen=True, eq=False)
class Annotation:
    """Polygons with a class each."""

    polygons: np.ndarray  # (n,) geometries in µm, valid, not empty
    codes: np.ndarray  # (n,) int: place of the class of each in ``classes``
    classes: list[str]  # names, as they were given


def as_classes(values: pd.Series, where: str) -> tuple[np.ndarray, list[str]]:
    """Codes and names of classes, of which some row has one."""
    codes, classes = class_codes(values)
    if not (codes >= 0).any():
        raise ValueError(f"{where} has no label: all {len(codes)} are NaN or blank.")
    return codes, classes


def class_codes(values: pd.Series, *, blank: bool = False) -> tuple[np.ndarray, list[str]]:
    """Codes, -1 for none, and names of classes: as text, in the order of categories, else sorted.

    Unless they are asked for, blank names are none.
    """
    import pandas as pd

    if isinstance(values.dtype, pd.CategoricalDtype):
        codes, ordered = values.cat.codes.to_numpy(), values.cat.categories
        names = [str(name) for name in ordered]
    else:
        codes, ordered = pd.factorize(values)
        names = [str(name) for name in (sorted(ordered) if _sortable(ordered) else sorted(map(str, ordered)))]
    classes = list(dict.fromkeys(name for name in names if blank or name.strip()))
    place = {name: i for i, name in enumerate(classes)}
    return np.array([*(place.get(str(name), -1) for name in ordered), -1])[codes], classes


def _sortable(values: Any) -> bool:
    return bool(getattr(values, "dtype", np.dtype(object)).kind in "biuf")


def column_names(classes: Iterable[str]) -> list[str]:
    """Names of columns for classes: their own, save where they cannot be stored, or differ in case alone.

    Examples
    --------
    >>> from sthist._tables.labels import column_names
    >>> column_names(["B cell", "T/NK", "T_NK", "tumour", "Tumour"])
    ['B cell', 'T_NK', 'T_NK_2', 'tumour', 'Tumour_2']
    """
    taken: set[str] = set()
    names = []
    for name in classes:
        stem = name if _storable(name) else _sample.safe_key(name).lstrip("._") or "class"
        key, number = stem, 2
        while key.casefold() in taken:
            key, number = f"{stem}_{number}", number + 1
        taken.add(key.casefold())
        names.append(key)
    return names


def _storable(name: str) -> bool:
    """Whether a column of a frame may be called so: it becomes the name of a folder, on any system."""
    return (
        name == name.strip()
        and not name.startswith((".", "_"))
        and name.isprintable()
        and not set(name) & set('/\\:*?"<>|')
    )


def labels_of(sdata: SpatialData, rows: Rows, label: str) -> pd.Series:
    """A column of regions, from the shapes or from their table."""
    frame = sdata.shapes[rows.shapes]
    if label in frame.columns and label != "geometry":
        return frame[label].reindex(rows.instances)
    columns = [str(name) for name in frame.columns if name != "geometry"]
    if rows.table is not None:
        obs = sdata.tables[rows.table].obs
        if label in obs:
            return obs[label]
        columns += [str(name) for name in obs.columns]
    of = f"Shapes {rows.shapes!r}" + ("" if rows.table is None else f" and table {rows.table!r}")
    close = difflib.get_close_matches(label, columns, n=1)
    raise KeyError(
        f"{of} have no column {label!r}; they have {columns}. Name the one with the labels with "
        f"label=.{f' Did you mean {close[0]!r}?' if close else ''}"
    )


def read_annotation(sdata: SpatialData, key: str, label: str, overlaps: Overlaps) -> Annotation:
    """Polygons of shapes with their class, such that no two lie on each other."""
    import shapely

    rows = rows_of(sdata, key)
    codes, classes = as_classes(labels_of(sdata, rows, label), f"Column {label!r} of {key!r}")
    polygons = polygons_um(sdata, rows)
    polygons = repaired(polygons, rows.instances, key)
    empty = shapely.is_missing(polygons) | shapely.is_empty(polygons)
    aside = int(((codes < 0) | empty).sum())
    if aside:
        logger.warning("%d of the %d shapes %r are left aside: they have no label, or no area.", aside, len(codes), key)
    kept = np.flatnonzero((codes >= 0) & ~empty)
    if not len(kept):
        raise ValueError(f"No shape of {key!r} has both a label in {label!r} and an area.")
    parted = _part(polygons[kept], codes[kept], rows.instances[kept], key, overlaps)
    left = ~shapely.is_empty(parted)
    return Annotation(parted[left], codes[kept][left], classes)


def _part(polygons: np.ndarray, codes: np.ndarray, names: np.ndarray, key: str, overlaps: Overlaps) -> np.ndarray:
    """Polygons without what smaller ones cover; of two of one size, the later one lies on top."""
    import shapely

    area = shapely.area(polygons)
    rank = np.empty(len(area), int)
    rank[np.lexsort((-np.arange(len(area)), area))] = np.arange(len(area))
    below, above = shapely.STRtree(polygons).query(polygons, predicate="intersects")
    covered = rank[above] < rank[below]
    below, above = below[covered], above[covered]
    shared = shapely.area(shapely.intersection(polygons[below], polygons[above]))
    real = shared > SAME_BORDER * area[above]
    below, above, shared = below[real], above[real], shared[real]
    other = codes[below] != codes[above]
    if other.any():
        i, j = (plain(names[pair[other][0]]) for pair in (below, above))
        n, total = int(other.sum()), float(shared[other].sum())
        if overlaps == "error":
            raise ValueError(
                f"{n} pairs of the shapes {key!r} have two labels and overlap, by {total:.0f} µm² in all, such as "
                f"{i!r} and {j!r}. Part them, or pass overlaps='smaller'."
            )
        logger.warning(
            "%d pairs of the shapes %r have two labels and overlap, such as %r and %r: the smaller one counts "
            "there (%.0f µm²).",
            n,
            key,
            i,
            j,
            total,
        )
    parted = polygons.copy()
    if not len(below):
        return parted
    order = np.argsort(below, kind="stable")
    lower, starts = np.unique(below[order], return_index=True)
    for i, on_top in zip(lower, np.split(above[order], starts[1:]), strict=True):
        parted[i] = shapely.difference(polygons[i], shapely.union_all(polygons[on_top]))
    return parted


def class_names(adata: Any, key: str, columns: Iterable[Any]) -> list[str]:
    """Classes by the names that they had before the columns of a result had to be stored."""
    made = adata.uns.get("sthist", {}).get(key, {})
    names = made.get("classes", {}) if hasattr(made, "get") else {}
    return [str(names.get(str(column), column)) if hasattr(names, "get") else str(column) for column in columns]
