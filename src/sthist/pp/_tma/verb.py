"""The cores of a tissue microarray, as shapes and a table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sthist import _sample, _store
from sthist._imaging.tissue import mask_of_points
from sthist._sample.elements import MISSING, present
from sthist._sample.samples import over_samples
from sthist._settings import logger
from sthist._tables.rows import (
    Rows,
    add_columns,
    centroids_um,
    core_columns,
    first_inside,
    placed_tables,
    require_free_columns,
    rows_of,
)
from sthist.pp._tissue.outlines import image_for_tissue, tissue_mask
from sthist.pp._tma.find import LOST_SHARE, Corner, find_cores, is_broken
from sthist.pp._tma.names import core_name, join_core_map, parse_core_name
from sthist.tiles._regions.raster import polygonize

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from spatialdata import SpatialData

    from sthist.pp._tma.find import CoreArray

MARGIN_UM = 10.0
"""How far the region of a core goes beyond its tissue: what lies at its edge belongs to it."""

OWN_COLUMNS = ("region", "instance_id", "row", "column", "state", "tissue_area_um2", "n_cells", "n_spots")


@over_samples
def tma(
    data: SpatialData,
    image: str | None = None,
    regions: str | None = None,
    *,
    grid: tuple[int, int] | None = None,
    core_map: str | Path | pd.DataFrame | None = None,
    first: str | None = None,
    corner: Corner = "top left",
    rows_run: Literal["across", "down"] = "across",
    diameter_um: float | None = None,
    min_tissue: float = 0.2,
    mpp: float = 8.0,
    key_added: str = "cores",
    overwrite: bool = False,
) -> None:
    """Find the cores of a tissue microarray, number them, and join what is known of each.

    Cores are looked for where a disc of their size lies on tissue, and rows and columns through them, which may be
    turned by up to 15 degrees and need not be evenly spaced. Pieces of a broken core belong to one core; cores that
    touch are parted half-way; specks belong to none. A place of the grid without tissue is a missing core: it has a row
    in shapes and table, so that it is seen, and is left out wherever ``"cores"`` says where to work
    (``within="cores"``, :func:`sthist.pp.tiles`).

    Cores are called ``A1``, ``A2``, ... along the first row. Look at the result before patients are joined by it: which
    way round the section lies on the slide cannot be seen in the tissue.

    Parameters
    ----------
    data
        One sample, or a mapping of name to sample: a slide with one array.
    image
        Key of the image in which the tissue is looked for; by default as :func:`sthist.pp.tissue` does, or ``regions``
        where they are given or there is no such image.
    regions
        Key of the cells or spots (their table or shapes) from which the tissue is told if no ``image`` is given, and
        which are counted.
    grid
        Rows and columns of the array; by default those that are found, which are fewer where all cores at an end are
        missing.
    core_map
        Map of the array: a csv file (commas, semicolons or tabs) or a frame with one row per core, which has the
        columns ``row`` (letters or numbers) and ``column`` (or ``col``), or ``core`` (or ``name``) such as ``A1``; and
        whatever is known, such as ``patient`` and ``label``. Numbers count from 0 if there is a 0, else from 1. Columns
        whose names cannot be stored get others (``"Tumour grade"`` becomes ``Tumour_grade``): what they were called
        stands in the provenance, as ``renamed``.
    first
        Name of the core at the first row and column that are found, such as ``"B1"`` where all of row A is missing.
    corner, rows_run
        Where core A1 lies, and whether row A runs across or down, where the section was mounted another way round.
    diameter_um
        Diameter of a core; measured by default.
    min_tissue
        A core with less tissue than this part of its disc is missing, from 0 to 1.
    mpp
        µm per pixel at which cores are looked for.
    key_added
        Name of the shapes; the table is named ``<key_added>_table``.
    overwrite
        Replace elements and columns of these names.

    Returns
    -------
    None. Writes, also to the store of a backed object:

    * ``sdata.shapes[key_added]``: polygons in µm, by name: the convex hull of a core's tissue and 10 µm around it, no
      two of which overlap; for a missing core, a circle where it would be; with ``row`` and ``column`` (int64, from 0)
      and ``state``: ``"whole"``; ``"broken"`` (torn deeper than half its radius, or with less than half of the usual
      tissue; a tear of less than 60 µm between nuclei is seen in an H&E alone); ``"missing"``;
    * ``sdata.tables[key_added + "_table"]``: the same columns, ``tissue_area_um2`` (float64), ``n_cells`` (``n_spots``
      for spots) where there are any, and the columns of ``core_map``, NaN where it says nothing (text and dates
      categorical, yes and no nullable); ``obsm["spatial"]``, centroids x, y in µm;
    * in each other table whose rows are shapes (cells, spots, tiles): ``obs["core"]``, categorical, in which core the
      centroid lies, NaN in none; and ``obs["patient"]``, where ``core_map`` names patients. Tiles that are made later
      get both;
    * the role ``"cores"``.

    Raises
    ------
    FileNotFoundError, KeyError
        If there is no such image, element or file; if ``core_map`` lacks columns.
    ValueError
        If no core is found; if they make no such grid, or it is not clear where its empty ends are; if ``core_map`` has
        a core twice or one that is not on the array, a patient in two spellings, or cannot be read; if a name is taken
        or an argument out of range.

    Examples
    --------
    >>> import pandas as pd, sthist
    >>> sdata = sthist.datasets.toy("tma", size_um=600)
    >>> known = pd.DataFrame({"core": ["A1", "A2", "A3"], "patient": ["P1", "P1", "P2"]})
    >>> sthist.pp.tma(sdata, core_map=known, key_added="found")
    >>> sdata["found_table"].obs.loc[["A2", "A3", "C1"], ["state", "patient"]]
          state patient
    A2    whole      P1
    A3  missing      P2
    C1    whole     NaN
    """
    _require_arguments(grid, diameter_um, min_tissue, mpp, corner, rows_run)
    _sample.require_one_sample(data)
    table_key = f"{key_added}_table"
    _store.require_free(data, key_added, "shapes", overwrite=overwrite)
    _store.require_free(data, table_key, "tables", overwrite=overwrite)
    counted = _rows_to_count(data, regions)
    results = data.attrs.get("sthist", {}).get("results", {})
    annotated = [rows for rows in placed_tables(data) if results.get(rows.shapes, {}).get("call") != "pp.tma"]
    for rows in annotated:
        require_free_columns(data, rows, ["core"], overwrite=overwrite)
    mask, extent, source, bounded = _tissue(data, image, regions, counted, mpp)
    array = find_cores(
        mask,
        mpp,
        radius=None if diameter_um is None else diameter_um / 2 / mpp,
        grid=grid,
        first=_parse_first(first),
        corner=corner,
        rows_run=rows_run,
        bounded=bounded,
        min_tissue=min_tissue,
    )
    frame, area = _regions(array, extent[:2], mpp)
    obs = _facts(data, frame, area, counted)
    renamed: dict[str, str] = {}
    if core_map is not None:
        known, renamed = join_core_map(core_map, array.grid, list(present(frame).index), OWN_COLUMNS)
        obs = obs.join(known)
    if "patient" in obs:
        for rows in annotated:
            require_free_columns(data, rows, ["patient"], overwrite=overwrite)
    made = _store.provenance(
        "pp.tma",
        source=source,
        grid=array.grid,
        diameter_um=2 * array.radius * mpp,
        first=first,
        corner=corner,
        rows_run=rows_run,
        min_tissue=min_tissue,
        mpp=mpp,
        columns=[str(name) for name in obs.columns],
        renamed=renamed,
    )
    with _store.changing(data):
        _write(data, key_added, frame, obs, made, overwrite=overwrite)
        _annotate(data, annotated, key_added, made)


def _require_arguments(
    grid: tuple[int, int] | None, diameter_um: float | None, min_tissue: float, mpp: float, corner: str, rows_run: str
) -> None:
    if grid is not None and (np.shape(grid) != (2,) or not all(int(n) == n and n >= 1 for n in grid)):
        raise ValueError(f"grid is {grid!r}; it is the numbers of rows and of columns, such as (6, 8).")
    if corner not in {"top left", "top right", "bottom left", "bottom right"} or rows_run not in {"across", "down"}:
        raise ValueError(
            f"corner is {corner!r} and rows_run {rows_run!r}; they are 'top left', 'top right', 'bottom left' or "
            "'bottom right', and 'across' or 'down'."
        )
    sizes = {"mpp": mpp} | ({} if diameter_um is None else {"diameter_um": diameter_um})
    for name, size in sizes.items():
        if not (np.isfinite(size) and size > 0):
            raise ValueError(f"{name} is {size!r}; it is a positive number of µm.")
    if not 0 <= min_tissue <= 1:
        raise ValueError(f"min_tissue is {min_tissue!r}; it is a part of a core's disc, from 0 to 1.")


def _parse_first(first: str | None) -> tuple[int, int] | None:
    place = None if first is None else parse_core_name(first)
    if first is not None and place is None:
        raise ValueError(f"first is {first!r}; it is the name of a core, such as 'A1'.")
    return place


def _rows_to_count(sdata: SpatialData, cells: str | None) -> Rows | None:
    """The cells or spots of the sample, if there are any that lie on it."""
    if cells is not None:
        return rows_of(sdata, cells)
    spots = _sample.roles(sdata).get("spots", {}).get("table")
    key = spots if spots in sdata.tables else _sample.find_cell_table(sdata)
    return next((rows for rows in placed_tables(sdata) if rows.table == key), None)


def _tissue(
    sdata: SpatialData, image: str | None, cells: str | None, counted: Rows | None, mpp: float
) -> tuple[np.ndarray, tuple[float, float, float, float], list[str], bool]:
    """Where the tissue is, the box in µm that is shown, what it was told from.

    And whether all of the array is shown.
    """
    if cells is None or image is not None:
        try:
            shown = image_for_tissue(sdata, image)
        except KeyError:
            if image is not None or counted is None:
                raise
        else:
            return tissue_mask(shown, mpp), shown.extent_um, list(shown.keys), True
    assert counted is not None  # regions= was found
    places = centroids_um(sdata, counted)
    places = places[np.isfinite(places).all(axis=1)]
    if len(places) == 0:
        raise ValueError(f"Shapes {counted.shapes!r} are empty: there is nothing to find cores by.")
    (x0, y0), (x1, y1) = places.min(0) - 10 * mpp, places.max(0) + 10 * mpp
    extent = (float(x0), float(y0), float(x1), float(y1))
    return mask_of_points(places, extent, mpp), extent, [counted.table or counted.shapes], False


def _regions(array: CoreArray, origin_um: Any, mpp: float) -> tuple[Any, np.ndarray]:
    """Outlines of cores in µm with row, column and state, and the area of the tissue of each in µm²."""
    import geopandas as gpd
    import shapely
    from skimage.measure import regionprops

    n_rows, n_columns = array.grid
    centres = array.centres.reshape(-1, 2) * mpp + np.asarray(origin_um)
    outlines = shapely.buffer(shapely.points(centres), array.radius * mpp)
    area = np.zeros(len(centres))
    state = np.full(len(centres), MISSING, dtype=object)
    for core in regionprops(array.pieces):
        top, left = core.bbox[:2]
        parts = polygonize(core.image, np.asarray(origin_um) + mpp * np.array([left, top]), mpp)
        outlines[core.label - 1] = shapely.union_all(parts).convex_hull.buffer(MARGIN_UM)
        area[core.label - 1] = core.area * mpp**2
        state[core.label - 1] = "broken" if is_broken(core.image, array.radius) else "whole"
    if not area.any():
        raise ValueError(
            "No core has enough tissue: lower min_tissue, or give the diameter of the cores with diameter_um=."
        )
    state[(area > 0) & (area < LOST_SHARE * np.median(area[area > 0]))] = "broken"
    row, column = np.divmod(np.arange(len(centres)), n_columns)
    frame = gpd.GeoDataFrame(
        {"row": row, "column": column, "state": state},
        geometry=_cut_apart(outlines, centres),
        index=[core_name(r, c) for r, c in zip(row, column, strict=True)],
    )
    return frame, area


def _facts(sdata: SpatialData, frame: Any, area: np.ndarray, counted: Rows | None) -> pd.DataFrame:
    """What is known of the cores without a map."""
    obs = frame.drop(columns="geometry").assign(tissue_area_um2=area)
    if counted is None:
        return obs
    there = present(frame)
    inside = first_inside(there.geometry.to_numpy(), centroids_um(sdata, counted))
    is_spots = counted.table is not None and _sample.roles(sdata).get("spots", {}).get("table") == counted.table
    n = np.bincount(inside[inside >= 0], minlength=len(there))
    name = "n_spots" if is_spots else "n_cells"
    obs[name] = 0
    obs.loc[there.index, name] = n
    return obs


def _cut_apart(outlines: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Outlines of which none lies on another: what two have in common is parted half-way between their centres."""
    import shapely

    apart = outlines.copy()
    for i, j in shapely.STRtree(outlines).query(outlines, predicate="intersects").T:
        if i != j:
            towards = (centres[j] - centres[i]) / np.linalg.norm(centres[j] - centres[i])
            across, far = np.array([-towards[1], towards[0]]), 10 * np.ptp(outlines[i].bounds)
            middle = (centres[i] + centres[j]) / 2
            edge = [middle + far * across, middle - far * across]
            half = shapely.Polygon([*edge, edge[1] - far * towards, edge[0] - far * towards])
            apart[i] = apart[i].intersection(half)
    return apart


def _write(
    sdata: SpatialData, key: str, frame: Any, obs: pd.DataFrame, made: dict[str, Any], *, overwrite: bool
) -> None:
    """The shapes, their table, and their role."""
    import anndata as ad
    import pandas as pd
    from spatialdata.models import ShapesModel, TableModel
    from spatialdata.transformations import Identity

    states = obs["state"].value_counts()
    logger.info("Cores: %s.", ", ".join(f"{n} {state}" for state, n in states.items()))
    obs = obs.assign(
        region=pd.Categorical([key] * len(obs)), instance_id=obs.index.to_numpy(), state=pd.Categorical(obs["state"])
    )
    centroids = frame.geometry.centroid
    table = ad.AnnData(obs=obs, obsm={"spatial": np.c_[centroids.x, centroids.y]})
    table = TableModel.parse(table, region=key, region_key="region", instance_key="instance_id")
    element = ShapesModel.parse(frame, transformations={_sample.UM: Identity()})
    _store.add(sdata, "shapes", key, element, made, overwrite=overwrite)
    _store.add(sdata, "tables", f"{key}_table", table, made, overwrite=overwrite)
    _sample.set_role(sdata, "cores", {"shapes": key, "table": f"{key}_table"})


def _annotate(sdata: SpatialData, annotated: list[Rows], key: str, made: dict[str, Any]) -> None:
    """Tell cells, spots and tiles in which core they are."""
    for rows in annotated:
        assert rows.table is not None  # placed tables have one
        columns: dict[str, Any] = core_columns(sdata, centroids_um(sdata, rows))
        adata = sdata.tables[rows.table]
        before = adata.uns.get("sthist", {}).get("core", {})
        if "patient" not in columns and "patient" in before.get("written", ()) and "patient" in adata.obs:
            columns["patient"] = None  # of cores that are no longer
        outside = int(columns["core"].isna().sum())
        logger.info("%d of the %d rows of table %r are in no core.", outside, len(rows), rows.table)
        written = [name for name, values in columns.items() if values is not None]
        facts = made | {"shapes": key, "outside": outside, "written": written}
        add_columns(sdata, rows, "core", facts, obs=columns)
