"""What people drew on an image elsewhere, as shapes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sthist import _sample, _store, scale
from sthist._messages import plain
from sthist._reading import reader
from sthist._sample.verbs import verb
from sthist._settings import logger
from sthist.io._annotations.objects import KINDS, Drawn, core_columns, read_geojson, read_selections
from sthist.io._files.images import size_px
from sthist.io._files.values import require_few_crossings

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from geopandas import GeoDataFrame
    from spatialdata import SpatialData

GEOJSON = (".geojson", ".json", ".geojson.gz", ".json.gz", ".zip")
SELECTIONS = (".csv", ".csv.gz")
# Columns that measurements and metadata give way to.
OWN = ("geometry", "name", "object_type", "id", "row", "column", "state", "radius")
Box = tuple[float, float, float, float]

MARGIN = 0.02  # part of a box that something may reach beyond it and still look as if it lay in it


@verb
@reader
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
        The sample, or the path of its store.
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
    * measurements (float64), metadata (text) and what other programs write of an object, such as the ``cell_id`` of
      segmented cells, under their own names, or with ``_2`` behind them where such a column is there already. Of a
      collection of geometries that have such facts each is a row;
    * for the cores of a microarray ``row`` and ``column``, from 0, told from names such as ``A-1``, and ``state``:
      ``"whole"`` or ``"missing"``. Where all are cores, they get the role ``"cores"``: :func:`sthist.pp.tiles` names
      the core of a tile, and ``within=`` leaves out what is missing. :func:`sthist.pp.tma` takes the shapes as its
      ``core_map=``.

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
    if not drawn:
        raise ValueError(f"{path} holds no objects: 'features' is empty.")
    there = sorted({str(each.kind) for each in drawn})
    drawn = [each for each in drawn if kind in {None, each.kind}]
    if not drawn:
        raise ValueError(f"{path} holds no objects whose 'objectType' is {kind!r}; it has {', '.join(there)}.")
    drawn = _areas(path, drawn, frame.circle(point_diameter_um))
    _require_on_image(sdata, path, [each.geometry for each in drawn], _names(drawn), frame)
    table = _table(drawn, label)
    nuclei = _nuclei(path, drawn, table)
    nuclei_key = f"{key_added}_nuclei"
    if len(nuclei):
        _store.require_free(sdata, nuclei_key, "shapes", overwrite=overwrite)
    made = _store.provenance(
        "io.read_annotations", path=str(path), image=image, unit=frame.unit, kind=kind, n_shapes=len(table), label=label
    )
    with _store.changing(sdata):
        for key, part in {key_added: table, nuclei_key: nuclei}.items():
            if len(part):
                element = ShapesModel.parse(part, transformations=dict(frame.transformations))
                _store.add(sdata, "shapes", key, element, made, overwrite=overwrite)
        if "row" in table and table["row"].notna().all():
            _sample.set_role(sdata, "cores", {"shapes": key_added})


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


def _areas(path: Path, drawn: list[Drawn], circle: Any) -> list[Drawn]:
    """What has an area, as valid polygons; points as circles, where those have a size."""
    import shapely

    geometry = np.array([each.geometry for each in drawn], dtype=object)
    is_point = np.isin(shapely.get_type_id(geometry), [0, 4]) & ~shapely.is_empty(geometry)
    is_line = np.isin(shapely.get_type_id(geometry), [1, 2, 5])
    wrong = ~shapely.is_valid(geometry) & ~is_line
    if wrong.any():
        logger.warning("%s: %d outlines cross themselves; all that they enclose counts.", path, int(wrong.sum()))
        require_few_crossings(path, geometry[wrong])
        geometry[wrong] = shapely.make_valid(geometry[wrong], method="structure", keep_collapsed=False)
    kept, n_empty = [], 0
    for each, shape, point in zip(drawn, geometry, is_point, strict=True):
        if point and circle is not None:
            kept += [replace(each, geometry=circle(part)) for part in shapely.get_parts(shape)]
        elif shape.area > 0:
            kept.append(replace(each, geometry=_polygons(shape)))
        else:
            n_empty += 1
    n_points, n_lines = (0 if circle is not None else int(is_point.sum())), int(is_line.sum())
    if n_empty:
        reasons = (
            f"{n_points} are points, {n_lines} lines, and {n_empty - n_points - n_lines} are empty or have no "
            f"area{'; points are read with point_diameter_um=' if n_points else ''}"
        )
        if not kept:
            raise ValueError(f"{path} holds no outline that has an area: of its {len(drawn)} objects, {reasons}.")
        logger.warning("%s: %d of %d objects are left out: %s.", path, n_empty, len(drawn), reasons)
    return kept


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

    columns: dict[str, Any] = {}
    for column, attribute in {label: "label", "name": "name", "object_type": "kind", "id": "id"}.items():
        values = [getattr(each, attribute) for each in drawn]
        if attribute in {"label", "name"} or any(value is not None for value in values):
            columns[column] = np.array(values, dtype=object)
    columns |= core_columns(drawn)
    taken = {*OWN, label}
    for facts in ("numbers", "texts", "others"):
        for name in dict.fromkeys(name for each in drawn for name in getattr(each, facts)):
            column = name
            while column in taken:
                column = f"{column}_2"
            taken.add(column)
            values = [getattr(each, facts).get(name) for each in drawn]
            kinds = {type(value) for value in values if value is not None}
            if str in kinds and len(kinds) > 1:
                values = [None if value is None else str(value) for value in values]
            dtype: Any = np.float64 if facts == "numbers" else object
            if facts == "others" and kinds <= {int, float} and None not in values:  # ids that are whole numbers stay so
                dtype = None
            columns[column] = pd.Series(values, dtype=dtype).to_numpy()
    index = pd.Index(_names(drawn))
    frame = {name: pd.Series(values).set_axis(index) for name, values in columns.items()}
    return gpd.GeoDataFrame(frame, geometry=[each.geometry for each in drawn], index=index)


def _nuclei(path: Path, drawn: list[Drawn], cells: GeoDataFrame) -> GeoDataFrame:
    """The nuclei of cells that have one, indexed as the cells."""
    import geopandas as gpd
    import shapely

    geometry = np.array([each.nucleus for each in drawn], dtype=object)
    require_few_crossings(path, geometry[~shapely.is_valid(geometry) & ~shapely.is_missing(geometry)])
    geometry = shapely.make_valid(geometry, method="structure", keep_collapsed=False)
    nuclei = gpd.GeoDataFrame({"name": cells["name"]}, geometry=geometry, index=cells.index)
    return nuclei[nuclei.geometry.area > 0]


@dataclass(frozen=True)
class Frame:
    """Units and place of coordinates."""

    unit: str  # "px" of the image, or "um"
    image: str | None  # key of the image; None for micrometres of no image in particular
    box: Box | None  # x0, y0, x1, y1 of what may be drawn on, in unit; None where that is not known
    transformations: dict[str, Any]  # from there, by coordinate system
    to_um: np.ndarray | None  # (3, 3): from there to µm; None where the image has no scale

    @classmethod
    def of(cls, sdata: SpatialData, path: Path, image: str | None, unit: str) -> Frame:
        """The frame of a file, by its unit."""
        from spatialdata.transformations import Affine, Identity, get_transformation

        if image is not None:
            _sample.get(sdata, "images", image)
        if unit == "um":
            return cls("um", image, _box_um(sdata, image), {_sample.UM: Identity()}, np.eye(3))
        if image is None:
            if len(sdata.images) != 1:
                raise ValueError(
                    f"{path} is in pixels, but of which image? {_sample.describe('images', sdata.images)} Name the one "
                    "that it was "
                    'drawn on with image=; or pass unit="um".'
                )
            image = next(iter(sdata.images))
        element = sdata.images[image]
        matrices = {name: scale.matrix_to(element, name) for name in get_transformation(element, get_all=True)}
        return cls(
            "px",
            image,
            _box_px(element),
            {name: Affine(matrix, ("x", "y"), ("x", "y")) for name, matrix in matrices.items()},
            matrices.get(_sample.UM),
        )

    def circle(self, diameter_um: float | None) -> Callable[[Any], Any] | None:
        """What makes a circle of a point, in the frame's unit; None for no diameter."""
        import shapely

        if diameter_um is None:
            return None
        if self.to_um is None:
            raise ValueError(
                f"Image {self.image!r} has no scale, which point_diameter_um needs: give it once with pp.set_scale."
            )
        linear = np.linalg.inv(self.to_um[:2, :2])
        round_one = shapely.transform(shapely.Point(0, 0).buffer(diameter_um / 2), lambda xy: xy @ linear.T)
        return lambda point: shapely.transform(round_one, lambda xy: xy + [point.x, point.y])


def _box_px(element: Any) -> Box:
    width, height = size_px(element)
    return 0.0, 0.0, float(width), float(height)


def _box_um(sdata: SpatialData, image: str | None) -> Box | None:
    """The box around an image in µm, or around all that have a scale."""
    from spatialdata.transformations import get_transformation

    corners = []
    for name in sdata.images if image is None else [image]:
        element = sdata.images[name]
        if _sample.UM in get_transformation(element, get_all=True):
            width, height = size_px(element)
            there = np.array([[0, 0, 1], [width, 0, 1], [0, height, 1], [width, height, 1]])
            corners.append(there @ scale.matrix_to(element)[:2].T)
    if not corners:
        return None
    low, high = np.concatenate(corners).min(0), np.concatenate(corners).max(0)
    return float(low[0]), float(low[1]), float(high[0]), float(high[1])


def _require_on_image(
    sdata: SpatialData, path: Path, shapes: Sequence[Any], names: Sequence[Any], frame: Frame
) -> None:
    """Refuse shapes of which none lies on the image; say which ones do not."""
    import shapely

    if frame.box is None:
        return
    bounds = shapely.bounds(np.array(shapes, dtype=object))
    x0, y0, x1, y1 = frame.box
    off = (bounds[:, 2] <= x0) | (bounds[:, 0] >= x1) | (bounds[:, 3] <= y0) | (bounds[:, 1] >= y1)
    on_what = f"image {frame.image!r}" if frame.image is not None else "the sample's images"
    if off.all():
        box = (*bounds[:, :2].min(0).tolist(), *bounds[:, 2:].max(0).tolist())
        unit = "µm" if frame.unit == "um" else "px"
        raise ValueError(
            f"{path}: all {len(off)} outlines lie outside of {on_what}: their coordinates span {_shown(box)} {unit}, "
            f"the image spans {_shown(frame.box)} {unit}. {_guess(sdata, box, frame)}"
        )
    if off.any():
        logger.warning(
            f"{path}: {off.sum()} of {len(off)} outlines lie outside of {on_what}, such as "
            f"{plain(names[int(off.argmax())])!r}."
        )


def _guess(sdata: SpatialData, box: Box, frame: Frame) -> str:
    """In which other frame a box would lie on an image."""
    if frame.unit == "px":
        um = _box_um(sdata, frame.image)
        if um is not None and _lies_in(box, um):
            return "They look like micrometres taken for pixels: pass unit='um'."
    fitting = [
        name
        for name, element in sdata.images.items()
        if (frame.unit == "um" or name != frame.image) and _lies_in(box, _box_px(element))
    ]
    if fitting and frame.unit == "um":
        return (
            f"They look like pixels taken for micrometres: they would lie on {fitting[0]!r}. Pass unit='px', "
            f"image={fitting[0]!r}."
        )
    if fitting:
        return f"They would lie on {fitting[0]!r}: pass image={fitting[0]!r}."
    return "Were they drawn on another image, or on a copy of another size?"


def _lies_in(box: Box, around: Box) -> bool:
    margin = MARGIN * max(around[2] - around[0], around[3] - around[1])
    inner = np.array(box) + [margin, margin, -margin, -margin]
    return bool((inner[:2] >= around[:2]).all() and (inner[2:] <= around[2:]).all())


def _shown(box: Box) -> str:
    return f"x {box[0]:.6g} to {box[2]:.6g}, y {box[1]:.6g} to {box[3]:.6g}"
