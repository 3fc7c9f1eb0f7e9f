"""The rows of a table: which regions they are, where those lie, and columns that verbs add to them."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist import _sample, _store, scale
from sthist._messages import plain
from sthist._sample.elements import is_missing, region_geometry
from sthist._settings import logger
from sthist._tables.find import require_free

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData
    from spatialdata import SpatialData


@dataclass(frozen=True, eq=False)
class Rows:
    """Regions, and the table that annotates them."""

    shapes: str  # key of the regions
    table: str | None  # key of their table; None where they have none yet
    instances: np.ndarray  # name of the region of each row, (n,): of the table's, or of all regions

    def __len__(self) -> int:
        return len(self.instances)


def rows_of(sdata: SpatialData, name: str, table: str | None = None) -> Rows:
    """The rows that the key of a table, or of shapes, stands for."""
    rows = _find_rows(sdata, name, table)
    _require_own_names(sdata, rows.shapes)
    return rows


def _require_own_names(sdata: SpatialData, shapes: str) -> None:
    index = sdata.shapes[shapes].index
    if not index.is_unique:
        twice = plain(index[index.duplicated()][0])
        first, second = np.flatnonzero(index == twice)[:2]
        raise ValueError(
            f"Shapes {shapes!r} have the name {twice!r} more than once, in rows {first} and {second}, so that it "
            f"cannot be told which of them a row of a table is. Give each its own: sdata[{shapes!r}] = "
            f"sdata[{shapes!r}].reset_index(drop=True)."
        )


def _find_rows(sdata: SpatialData, name: str, table: str | None) -> Rows:
    if name in sdata.tables and table is None:
        table = name
    elif name not in sdata.shapes:
        _raise_missing(sdata, name)
    if table is not None:
        _sample.get(sdata, "tables", table)
        cells = _sample.cell_shapes(sdata, table)
        rows = _rows_with_shapes(sdata, table) if cells is None else None
        if rows is not None and name in (table, rows.shapes):
            return rows
        if cells is None or name not in (table, cells[0]):
            link = (
                "no shapes of this sample are its rows" if cells is None else f"its rows are {cells[0]!r}, not {name!r}"
            )
            raise ValueError(
                f"Table {table!r}: {link}. Link it with TableModel.parse(adata, region=, region_key=, instance_key=)."
            )
        return Rows(cells[0], table, np.asarray(cells[1]))
    tables = {
        rows.table: rows
        for rows in _linked_tables(sdata)
        if rows.shapes == name and rows.table and not _sample.is_of_features(rows.table, sdata.tables[rows.table])
    }
    if not tables:
        others = [key for key, adata in sdata.tables.items() if not _sample.is_of_features(key, adata)]
        partly = {key: rows for key in others if (rows := _rows_with_shapes(sdata, key, name)) is not None}
        if partly:
            return partly[_preferred(sdata, name, list(partly))]
        return Rows(name, None, sdata.shapes[name].index.to_numpy())
    return tables[_preferred(sdata, name, list(tables))]


def _rows_with_shapes(sdata: SpatialData, table: str, shapes: str | None = None) -> Rows | None:
    """The rows of a table some of whose shapes are there: others were taken away, and their rows were not."""
    adata = sdata.tables[table]
    link = adata.uns.get("spatialdata_attrs", {})
    regions = [link["region"]] if isinstance(link.get("region"), str) else list(link.get("region") or [])
    if len(regions) != 1 or regions[0] not in sdata.shapes or regions[0] != (shapes or regions[0]):
        return None
    rows = Rows(regions[0], table, adata.obs[link["instance_key"]].to_numpy())
    there = have_shapes(sdata, rows)
    if not there.any():
        return None
    logger.warning(
        "%d of the %d rows of table %r, such as %r, have no shape in %r any more: they count as empty. To take them "
        "away, too: sdata[%r] = sdata[%r][sdata[%r].obs[%r].isin(sdata[%r].index)].copy().",
        int((~there).sum()),
        len(there),
        table,
        plain(rows.instances[~there][0]),
        regions[0],
        *[table] * 3,
        link["instance_key"],
        regions[0],
    )
    return rows


def have_shapes(sdata: SpatialData, rows: Rows) -> np.ndarray:
    """Which rows have a shape, (n,) bool: those of a table whose shapes were filtered may not."""
    return np.asarray(sdata.shapes[rows.shapes].index.get_indexer(rows.instances) >= 0)


def _raise_missing(sdata: SpatialData, name: str) -> None:
    """Say which shapes and tables there are."""
    msg = (
        f"No shapes or table {name!r} in this object. {_sample.describe('shapes', sdata.shapes)} "
        f"{_sample.describe('tables', sdata.tables)}"
    )
    close = difflib.get_close_matches(name, [*sdata.shapes, *sdata.tables], n=1)
    raise KeyError(msg + (f" Did you mean {close[0]!r}?" if close else ""))


def _linked_tables(sdata: SpatialData) -> list[Rows]:
    """All tables whose rows are shapes of this sample."""
    linked = [key for key, adata in sdata.tables.items() if "spatialdata_attrs" in adata.uns]
    cells = {key: _sample.cell_shapes(sdata, key) for key in linked}
    return [Rows(shapes[0], key, np.asarray(shapes[1])) for key, shapes in cells.items() if shapes is not None]


def _preferred(sdata: SpatialData, shapes: str, tables: list[str]) -> str:
    recorded = {role.get("table") for role in _sample.roles(sdata).values() if isinstance(role, dict)}
    for candidates in (
        tables,
        [key for key in tables if key in recorded],
        [key for key in tables if key == f"{shapes}_table"],
    ):
        if len(candidates) == 1:
            return candidates[0]
    raise ValueError(
        f"Several tables annotate the shapes {shapes!r}: {', '.join(map(repr, sorted(tables)))}. Give the key of the "
        "one that is meant."
    )


def placed_tables(sdata: SpatialData) -> list[Rows]:
    """All tables whose rows are shapes that are registered in ``um``."""
    from spatialdata.transformations import get_transformation

    placed = [
        rows
        for rows in _linked_tables(sdata)
        if _sample.UM in get_transformation(sdata.shapes[rows.shapes], get_all=True)
    ]
    for rows in placed:
        _require_own_names(sdata, rows.shapes)
    return placed


def centroids_um(sdata: SpatialData, rows: Rows) -> np.ndarray:
    """Centroids of regions in µm, (n, 2) float64: x, y; NaN where a region is empty."""
    import shapely

    matrix = scale.matrix_to_um(sdata, "shapes", rows.shapes)
    centres = shapely.get_coordinates(_with_empty_as_nan(shapely.centroid(_geometry(sdata, rows))))
    return centres @ matrix[:2, :2].T + matrix[:2, 2]


def lie_within(data: Any, places: np.ndarray, within: Any, what: str) -> np.ndarray:
    """Which places (n, 2) in µm lie in what a ``within=`` argument stands for; at least one does."""
    import shapely

    if isinstance(within, str) and not hasattr(data, "shapes"):
        raise ValueError(f"within={within!r} names shapes of a SpatialData; give a box in µm or a polygon.")
    geometry = region_geometry(data, within)
    shapely.prepare(geometry)
    inside = np.asarray(shapely.intersects_xy(geometry, *np.nan_to_num(places, nan=np.inf).T))
    if not inside.any():
        x0, y0, x1, y1 = geometry.bounds
        raise ValueError(
            f"within= spans x {x0:.0f} to {x1:.0f}, y {y0:.0f} to {y1:.0f} µm, where none of the {len(places)} centres "
            f"of {what} lies."
        )
    return inside


def _with_empty_as_nan(points: np.ndarray) -> np.ndarray:
    """Points of which none is empty, so that there are coordinates for each."""
    import shapely

    empty = shapely.is_empty(points) | shapely.is_missing(points)
    return np.where(empty, shapely.points(np.nan, np.nan), points) if empty.any() else points


def polygons_um(sdata: SpatialData, rows: Rows) -> np.ndarray:
    """Regions in µm, (n,) geometries: circles as polygons of 64 corners, cores that are missing as None."""
    frame = sdata.shapes[rows.shapes]
    places = frame.index.get_indexer(rows.instances)
    geometry = _geometry(sdata, rows)
    geometry[is_missing(frame)[places]] = None
    radii = frame["radius"].to_numpy()[places] if "radius" in frame else None
    return placed_um(geometry, radii, scale.matrix_to_um(sdata, "shapes", rows.shapes))


def placed_um(geometry: np.ndarray, radii: np.ndarray | None, matrix: np.ndarray) -> np.ndarray:
    """Geometries as they are stored, brought to µm; points with a radius are polygons of 64 corners then."""
    import shapely

    if radii is not None:
        geometry = shapely.buffer(geometry, radii, quad_segs=16)
    if np.array_equal(matrix, np.eye(3)):
        return geometry
    return np.asarray(shapely.transform(geometry, lambda places: places @ matrix[:2, :2].T + matrix[:2, 2]))


def _geometry(sdata: SpatialData, rows: Rows) -> np.ndarray:
    """A copy of the geometry of each row, as it is stored; None where it has none."""
    geometry = _sample.get(sdata, "shapes", rows.shapes).geometry
    places = geometry.index.get_indexer(rows.instances)
    found = np.asarray(geometry.to_numpy(), dtype=object)[places]
    found[places < 0] = None
    return found


def pairs_inside(polygons: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which places lie in which polygons, borders included.

    Returns indices of polygons and of places, (k,) each, sorted by place and then by polygon.
    """
    import shapely

    there = np.flatnonzero(np.isfinite(places).all(axis=1))
    # The tree is of the points: shapely prepares what is looked up in it, which pays for polygons alone.
    tree = shapely.STRtree(shapely.points(places[there]))
    polygon, place = tree.query(polygons, predicate="intersects")
    order = np.lexsort((polygon, place))
    return polygon[order], there[place[order]]


def first_inside(polygons: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The first polygon that each place lies in, (n,) int; -1 for none."""
    polygon, place = pairs_inside(polygons, places)
    first = np.full(len(places), -1)
    first[place[::-1]] = polygon[::-1]
    return first


def cores_of(sdata: SpatialData) -> Rows | None:
    """The cores of the array, if the sample knows of one."""
    role = _sample.roles(sdata).get("cores", {})
    if role.get("shapes") not in sdata.shapes:
        return None
    return rows_of(sdata, role["shapes"], role["table"] if role.get("table") in sdata.tables else None)


def core_columns(sdata: SpatialData, places: np.ndarray) -> dict[str, Any]:
    """Columns ``core`` and, where it is known, ``patient`` for places in µm, (n, 2); none on a sample without cores."""
    import pandas as pd

    cores = cores_of(sdata)
    if cores is None:
        return {}
    codes = first_inside(polygons_um(sdata, cores), places)
    columns: dict[str, Any] = {
        "core": pd.Categorical.from_codes(codes, categories=pd.Index(cores.instances).astype(str))
    }
    if cores.table is not None and "patient" in sdata.tables[cores.table].obs:
        patient = sdata.tables[cores.table].obs["patient"].astype("category").array
        columns["patient"] = patient.take(codes, allow_fill=True)
    return columns


def require_free_columns(
    sdata: SpatialData, rows: Rows, obs: Sequence[str], obsm: Sequence[str] = (), *, overwrite: bool
) -> None:
    """Refuse names of columns that are taken, also in other case, or that SpatialData does not take."""
    if rows.table is None:
        _store.require_free(sdata, f"{rows.shapes}_table", "tables", overwrite=False)
    adata = None if rows.table is None else sdata.tables[rows.table]
    require_free(adata, f"Table {rows.table!r}", obs, obsm, overwrite=overwrite)


def add_columns(
    sdata: SpatialData,
    rows: Rows,
    key: str,
    made: dict[str, Any],
    *,
    obs: Mapping[str, Any],
    obsm: Mapping[str, Any] | None = None,
    uns: Mapping[str, Any] | None = None,
) -> None:
    """Add columns to a table, also in the store; regions without a table get one, named after them."""
    if rows.table is None:
        name = f"{rows.shapes}_table"
        table = new_table(sdata, rows)
        _fill(table, key, made, obs, obsm or {}, uns or {})
        _store.add(sdata, "tables", name, table, made)
        return
    write_columns(sdata, rows.table, sdata.tables[rows.table], key, made, obs=obs, obsm=obsm, uns=uns)


def write_columns(
    data: Any,
    table: str | None,
    adata: AnnData,
    key: str,
    made: dict[str, Any],
    *,
    obs: Mapping[str, Any],
    obsm: Mapping[str, Any] | None = None,
    uns: Mapping[str, Any] | None = None,
) -> None:
    """Add columns to the table of a SpatialData, also in its store, or to an AnnData; None takes a column away."""
    if table is None or _store.store_path(data) is None:
        _fill(adata, key, made, obs, obsm or {}, uns or {})
        return
    # The object keeps its own until the store has the new one: writing can fail.
    changed = adata.copy()
    _fill(changed, key, made, obs, obsm or {}, uns or {})
    _store.replace_table(data, table, changed)


def new_table(sdata: SpatialData, rows: Rows) -> AnnData:
    """A table without genes whose rows are regions, with their centroids in µm in ``obsm["spatial"]``."""
    import anndata as ad
    import pandas as pd
    from spatialdata.models import TableModel

    obs = pd.DataFrame(
        {"region": pd.Categorical([rows.shapes] * len(rows)), "instance_id": rows.instances},
        index=rows.instances.astype(str),
    )
    table = ad.AnnData(obs=obs, obsm={"spatial": centroids_um(sdata, rows)})
    return TableModel.parse(table, region=rows.shapes, region_key="region", instance_key="instance_id")


def _fill(
    adata: AnnData,
    key: str,
    made: dict[str, Any],
    obs: Mapping[str, Any],
    obsm: Mapping[str, Any],
    uns: Mapping[str, Any],
) -> None:
    for kind, columns in (("obs", obs), ("obsm", obsm)):
        there = getattr(adata, kind)
        for name, values in columns.items():
            if values is None:
                if name in there:
                    del there[name]
            else:
                is_frame = kind == "obsm" and hasattr(values, "set_axis")
                there[name] = values.set_axis(adata.obs_names) if is_frame else values
    adata.uns.update(uns)
    adata.uns["sthist"] = {**adata.uns.get("sthist", {}), key: made}  # a copy of a table shares the mapping
