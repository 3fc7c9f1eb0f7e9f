"""What people drew on an image elsewhere, as shapes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sthist import _sample, _store
from sthist._settings import logger
from sthist.io._annotations.frames import Frame, require_on_image
from sthist.io._annotations.geojson import KINDS, Drawn, read_geojson
from sthist.io._annotations.selections import read_selections
from sthist.io._annotations.tma_cores import core_columns

if TYPE_CHECKING:
    from geopandas import GeoDataFrame
    from spatialdata import SpatialData

GEOJSON = (".geojson", ".json", ".geojson.gz", ".json.gz", ".zip")
SELECTIONS = (".csv", ".csv.gz")
# Columns that measurements and metadata give way to.
OWN = ("geometry", "name", "object_type", "id", "row", "column", "state", "radius")


def read_annotations(
    sdata: SpatialData,
    path: str | Path,
    *,
    image: str | None = None,
    unit: Literal["px", "um"] | None = None,
    kind: str | None = None,
    key_added: str = "annotations",
    label: str = "label",
    point_diameter_um: float | None = None,
    overwrite: bool = False,
) -> None:
    """Read what was drawn in QuPath or selected in Xenium Explorer, as shapes.

    :func:`sthist.io.export_geojson` is the way back.

    Outlines that cross themselves are repaired: all that they enclose counts. Those without an area, lines, and points
    (but see ``point_diameter_um``) are left out. Both is logged, with how many they are.

    Parameters
    ----------
    sdata
        The sample.
    path
        GeoJSON of QuPath (``.geojson`` or ``.json``, plain, ``.gz`` or ``.zip``): annotations, detections, cells, tiles
        and cores of a microarray, also nested in each other. Or the coordinates of selections that Xenium Explorer
        exports (``.csv``), one selection or several.
    image
        The image on which they were drawn: GeoJSON has its full-resolution pixels, whatever its scale is and wherever
        it lies. May be left out where the sample has one image. For a csv file, only what they have to lie on.
    unit
        ``"px"`` of ``image``, or ``"um"``; GeoJSON is in pixels and csv in micrometres by default.
    kind
        Of the objects of QuPath, read ``"annotation"``, ``"detection"``, ``"cell"``, ``"tile"`` or ``"tmaCore"`` alone.
    key_added
        Name of the shapes.
    label
        Name of the column for the class.
    point_diameter_um
        Points become circles of this diameter in µm, each one a row.
    overwrite
        Replace shapes of that name.

    Returns
    -------
    None. Writes ``sdata.shapes[key_added]``, also to the store of a backed object: polygons in the unit of the file,
    with the transformations of ``image`` (or in ``um``), so that they lie on it in all coordinate systems, also in
    those that are added later. They are indexed by name where all have one and no two the same, else from 0. Columns:

    * ``label``: the class as it was written, of several levels as ``"Tumor: Positive"``; for a selection, its name if
      the file has no classes; None for none;
    * ``name``; ``object_type`` (``kind``) and, where there are any, ``id`` of QuPath;
    * measurements (float64) and metadata (text) under their own names, or with ``_2`` behind them where such a column
      is there already;
    * for the cores of a microarray ``row`` and ``column``, from 0, told from names such as ``A-1``, and ``state``:
      ``"whole"`` or ``"missing"``. Where all are cores, they get the role ``"cores"``: :func:`sthist.pp.tiles` names
      the core of a tile, and ``within=`` leaves out what is missing. :func:`sthist.pp.tma` takes the shapes as its
      ``table=``.

    The nuclei of cells become ``sdata.shapes[key_added + "_nuclei"]``, indexed as their cells.

    Raises
    ------
    FileNotFoundError, KeyError
        If there is no such file or image; if an object has no geometry, or a csv file no column X or Y.
    ValueError
        If the image has to be named; if the file is broken, holds nothing that has an area, or all of it lies outside
        of the image (the message says what else it may be); if a name is taken.

    Notes
    -----
    Formats: QuPath 0.2 to 0.6, ``qupath.lib.io`` (github.com/qupath/qupath); Xenium Explorer 1 to 4.

    Examples
    --------
    >>> import tempfile, pathlib, sthist
    >>> sdata = sthist.datasets.toy(size_um=200)
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "regions.geojson"
    >>> sthist.io.export_geojson(sdata, "regions", path, image="he", label="label")
    >>> sthist.io.read_annotations(sdata, path, image="he")
    >>> list(sdata["annotations"].label)
    ['duct', 'immune', 'stroma']
    """
    from spatialdata.models import ShapesModel

    path = Path(path)
    _require_arguments(path, unit, kind, label, point_diameter_um)
    _store.require_free(sdata, key_added, "shapes", overwrite=overwrite)
    is_csv = path.name.lower().endswith(SELECTIONS)
    frame = Frame.of(sdata, path, image, unit or ("um" if is_csv else "px"))
    drawn = read_selections(path) if is_csv else read_geojson(path)
    drawn = _chosen(path, drawn, kind)
    drawn = _areas(path, drawn, frame.circle(point_diameter_um))
    require_on_image(sdata, path, [each.geometry for each in drawn], _names(drawn), frame)
    table = _table(drawn, label)
    nuclei = _nuclei(drawn, table)
    nuclei_key = f"{key_added}_nuclei"
    if len(nuclei):
        _store.require_free(sdata, nuclei_key, "shapes", overwrite=overwrite)
    made = _store.provenance(
        "io.read_annotations", path=str(path), image=image, unit=frame.unit, kind=kind, n_shapes=len(table), label=label
    )
    for key, part in {key_added: table, nuclei_key: nuclei}.items():
        if len(part):
            element = ShapesModel.parse(part, transformations=dict(frame.transformations))
            _store.add(sdata, "shapes", key, element, made, overwrite=overwrite)
    if "row" in table and table["row"].notna().all():
        _sample.set_role(sdata, "cores", {"shapes": key_added})
        _store.write_attributes(sdata)


def _require_arguments(path: Path, unit: Any, kind: Any, label: str, diameter: float | None) -> None:
    if unit not in {None, "px", "um"}:
        raise ValueError(f"unit is {unit!r}; it is 'px' or 'um'.")
    if kind is not None and kind not in KINDS:
        raise ValueError(f"kind is {kind!r}; QuPath has {', '.join(map(repr, KINDS))}.")
    if label in OWN:
        raise ValueError(f"label is {label!r}, which is a column of its own; choose another name for the class.")
    if diameter is not None and not (np.isfinite(diameter) and diameter > 0):
        raise ValueError(f"point_diameter_um is {diameter!r}; it is a positive number of µm.")
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    if not path.name.lower().endswith(GEOJSON + SELECTIONS):
        raise ValueError(
            f"{path} is neither GeoJSON ({', '.join(GEOJSON)}) nor a csv file of selections ({', '.join(SELECTIONS)})."
        )


def _chosen(path: Path, drawn: list[Drawn], kind: str | None) -> list[Drawn]:
    if not drawn:
        raise ValueError(f"{path} holds no objects: 'features' is empty.")
    kept = [each for each in drawn if kind in {None, each.kind}]
    if not kept:
        there = sorted({str(each.kind) for each in drawn})
        raise ValueError(f"{path} holds no objects whose 'objectType' is {kind!r}; it has {', '.join(there)}.")
    return kept


def _areas(path: Path, drawn: list[Drawn], circle: Any) -> list[Drawn]:
    """What has an area, as valid polygons; points as circles, where those have a size."""
    import shapely

    geometry = np.array([each.geometry for each in drawn], dtype=object)
    is_point = np.isin(shapely.get_type_id(geometry), [0, 4]) & ~shapely.is_empty(geometry)
    is_line = np.isin(shapely.get_type_id(geometry), [1, 2, 5])
    wrong = ~shapely.is_valid(geometry) & ~is_line
    if wrong.any():
        logger.warning("%s: %d outlines cross themselves; all that they enclose counts.", path, int(wrong.sum()))
        geometry[wrong] = shapely.make_valid(geometry[wrong], method="structure", keep_collapsed=False)
    kept, n_empty = [], 0
    for each, shape, point in zip(drawn, geometry, is_point, strict=True):
        if point and circle is not None:
            kept += [_with(each, circle(part)) for part in shapely.get_parts(shape)]
        elif shape.area > 0:
            kept.append(_with(each, _polygons(shape)))
        else:
            n_empty += 1
    n_points, n_lines = (0 if circle is not None else int(is_point.sum())), int(is_line.sum())
    if n_empty:
        told = (
            f"{n_points} are points, {n_lines} lines, and {n_empty - n_points - n_lines} are empty or have no "
            f"area{'; points are read with point_diameter_um=' if n_points else ''}"
        )
        if not kept:
            raise ValueError(f"{path} holds no outline that has an area: of its {len(drawn)} objects, {told}.")
        logger.warning("%s: %d of %d objects are left out: %s.", path, n_empty, len(drawn), told)
    return kept


def _with(drawn: Drawn, geometry: Any) -> Drawn:
    from dataclasses import replace

    return replace(drawn, geometry=geometry)


def _polygons(shape: Any) -> Any:
    """A geometry without the lines and points of a collection."""
    import shapely

    if shape.geom_type in {"Polygon", "MultiPolygon"}:
        return shape
    return shapely.union_all([part for part in shapely.get_parts(shape) if part.area > 0])


def _names(drawn: list[Drawn]) -> list[Any]:
    """Names that tell all objects apart, or their numbers."""
    names = [each.name for each in drawn]
    return list(names) if None not in names and len(set(names)) == len(names) else list(range(len(names)))


def _table(drawn: list[Drawn], label: str) -> GeoDataFrame:
    import geopandas as gpd
    import pandas as pd

    columns: dict[str, Any] = {
        label: _texts([each.label for each in drawn]),
        "name": _texts([each.name for each in drawn]),
    }
    for column, values in {
        "object_type": [each.kind for each in drawn],
        "id": [each.id for each in drawn],
    }.items():
        if any(value is not None for value in values):
            columns[column] = _texts(values)
    columns |= core_columns(drawn)
    taken = {*OWN, label}
    for facts in ("numbers", "texts"):
        for name in dict.fromkeys(name for each in drawn for name in getattr(each, facts)):
            column = name
            while column in taken:
                column = f"{column}_2"
            taken.add(column)
            values = [getattr(each, facts).get(name) for each in drawn]
            columns[column] = pd.Series(values, dtype=np.float64).to_numpy() if facts == "numbers" else _texts(values)
    index = pd.Index(_names(drawn))
    frame = {name: pd.Series(values).set_axis(index) for name, values in columns.items()}
    return gpd.GeoDataFrame(frame, geometry=[each.geometry for each in drawn], index=index)


def _texts(values: list[Any]) -> np.ndarray:
    return np.array(values, dtype=object)


def _nuclei(drawn: list[Drawn], cells: GeoDataFrame) -> GeoDataFrame:
    """The nuclei of cells that have one, indexed as the cells."""
    import geopandas as gpd
    import shapely

    geometry = shapely.make_valid(
        np.array([each.nucleus for each in drawn], dtype=object), method="structure", keep_collapsed=False
    )
    nuclei = gpd.GeoDataFrame({"name": cells["name"]}, geometry=geometry, index=cells.index)
    return nuclei[nuclei.geometry.area > 0]
