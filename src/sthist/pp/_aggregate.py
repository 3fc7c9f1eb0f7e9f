"""Transcripts, cells and bins summed into regions."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sthist import _sample, _store, scale
from sthist._messages import plain
from sthist._sample.elements import region_geometry
from sthist._sample.samples import over_samples
from sthist._settings import logger
from sthist._tables.genes import closest
from sthist.pp._region_sums import Sums, require_names, sum_points, sum_table
from sthist.tiles._regions.locate import RegionIndex, SquareGrid

if TYPE_CHECKING:
    from collections.abc import Sequence

    from geopandas import GeoDataFrame
    from spatialdata import SpatialData

MANY_SQUARES = 5_000_000
BINS = re.compile(r"square_(\d+)um$")


# spatialdata.aggregate is not used. It holds all points in memory as geometries; it stores each pair of a region and a
# gene, those without counts, too (a million squares by 300 genes: 300 million entries); it counts a molecule on the
# corner of four squares four times; its circles are polygons that lack 0.16 % of their area; and it knows no quality
# and no controls.
@over_samples
def aggregate(
    data: SpatialData,
    regions: str | None = None,
    *,
    bin_um: float | None = None,
    within: Any = None,
    of: Literal["points", "cells", "bins"] | str = "points",
    min_qv: float = 20.0,
    controls: Sequence[str] | None = None,
    key_added: str | None = None,
    overwrite: bool = False,
) -> None:
    """Sum transcripts, cells or bins into spots, tiles, nuclei, cores, or squares of a grid.

    Each molecule counts once in each region that holds it, so that it counts in several where regions overlap. A circle
    holds its border. A polygon holds its border to the left and at the top (less x, less y) and not to the right and at
    the bottom, and a square is [x0, x1) by [y0, y1): of regions that meet, exactly one holds what lies on the line
    between them, so that a grid, or tiles side by side, count each molecule exactly once.

    A cell or a bin counts where its centroid lies, with all its counts.

    Transcripts are read a partition at a time; beside the regions and the result, memory holds about one of them. The
    squares of a grid are polygons: a million of them take about 0.6 GB, and twice that while they are written to a
    store.

    Parameters
    ----------
    data
        One sample, or a mapping of name to sample; the path of a store stands for its sample.
    regions
        Key of shapes: spots, tiles, nuclei, cores, any circles or polygons.
    bin_um
        In place of ``regions``: the side in µm of the squares of a grid that begins at (0, 0), so that grids of two
        samples, or of one side and its double, fit each other.
    within
        Of a grid, only squares whose centre lies in a box (x0, y0, x1, y1) in µm, a polygon, or shapes such as
        ``"tissue"``, empty ones too. By default all squares that hold something.
    of
        What is summed. ``"points"``: the transcripts. ``"cells"``: the table of cells. ``"bins"``: the finest bins of
        Visium HD, or the spots of Visium. Or the key of points or of a table that is linked to shapes.
    min_qv
        Least quality value of transcripts that count; of no effect where they have no ``qv``.
    controls
        Prefixes of features that are no genes, case ignored; by default those of Xenium, CosMx and MERSCOPE. ``()``
        keeps all.
    key_added
        Name of the table; by default ``"<regions>_counts"``, or ``"grid_<bin_um>um"``. The squares of a grid are
        ``"<key_added>_squares"``.
    overwrite
        Replace elements of these names.

    Returns
    -------
    None. Writes ``sdata.tables[key_added]``, one row per region in its order, those without counts too:

    * ``X``: counts, CSR of integers (int32, unless a sum needs more), (regions, genes); columns are all genes that are
      known, by name for transcripts, as in the table otherwise;
    * ``obs``: ``region`` and ``instance_id``, the link to the shapes, and ``n_points``, ``n_cells`` or ``n_bins``, how
      many of them the region holds, int64; of a grid, whose rows run along x first, also ``array_row`` and
      ``array_col``;
    * ``obsm["spatial"]``: centroids x, y in µm, float64;
    * ``uns["sthist"][key_added]``: the arguments, and ``n_all``, ``n_controls``, ``n_low_quality``, ``n_counted`` and
      ``n_outside``, those in no region.

    For a grid also ``sdata.shapes[key_added + "_squares"]``, squares in µm.

    Raises
    ------
    KeyError
        If there are no such shapes, points or table.
    ValueError
        If elements are not registered in ``um``, coordinates are no finite numbers, two regions have one name, no
        molecule passes the filter or lies in a region, a table has no raw counts or no shapes, an argument is out of
        range, or a name is taken.

    Examples
    --------
    >>> import sthist
    >>> sdata = sthist.datasets.toy(size_um=200)
    >>> sthist.pp.aggregate(sdata, "cell_boundaries")
    >>> sdata["cell_boundaries_counts"].shape == sdata["table"].shape
    True
    >>> sthist.pp.aggregate(sdata, bin_um=8)
    >>> sdata["grid_8um"].obsm["spatial"][0] % 8
    array([4., 4.])
    """
    _sample.require_one_sample(data)
    _require_one_kind(regions, bin_um, within)
    key_added = key_added or (f"grid_{bin_um:g}um" if regions is None else f"{regions}_counts")
    region_key = f"{key_added}_squares" if regions is None else regions
    _store.require_free(data, key_added, "tables", overwrite=overwrite)
    if regions is None:
        _store.require_free(data, region_key, "shapes", overwrite=overwrite)
    kind, key = _find_source(data, of)
    finder: SquareGrid | RegionIndex
    if regions is None:
        finder = SquareGrid(float(bin_um or 0), None if within is None else region_geometry(data, within))
    else:
        finder = _index(data, regions)
    if kind == "points":
        sums = sum_points(data, key, finder, min_qv, controls)
    else:
        sums = sum_table(data, key, finder, controls)
    _require_some(sums, finder, kind, key, regions)
    _say(sums, kind, key)
    made = _store.provenance(
        "pp.aggregate",
        regions=region_key,
        bin_um=bin_um,
        within=_written(within),
        of=key,
        min_qv=min_qv if kind == "points" else None,
        controls=None if controls is None else list(controls),
        **sums.facts,
    )
    with _store.changing(data):
        if isinstance(finder, SquareGrid):
            columns, rows = finder.places(sums.rows)
            extra = {"array_row": rows, "array_col": columns}
            squares = _squares(finder.side_um, columns, rows)
            _store.add(data, "shapes", region_key, squares, made, overwrite=overwrite)
            centres = (np.stack([columns, rows], axis=1) + 0.5) * finder.side_um
        else:
            extra, centres = {}, finder.centroids()
        obs = {f"n_{kind}": sums.n} | extra
        _add_table(data, key_added, region_key, sums, obs, centres, made, overwrite)


def _require_one_kind(regions: str | None, bin_um: float | None, within: Any) -> None:
    if (regions is None) == (bin_um is None):
        raise ValueError(
            f"regions is {regions!r} and bin_um {bin_um!r}: give one of them, a key of shapes or the side in µm of the "
            "squares of a grid."
        )
    if bin_um is not None and not (np.isfinite(bin_um) and bin_um > 0):
        raise ValueError(f"bin_um is {bin_um!r}; the side of a square in µm is a positive number.")
    if regions is not None and within is not None:
        raise ValueError(
            f"within= chooses squares of a grid; of {regions!r} all regions are taken. Leave it out, or pass bin_um=."
        )


def _find_source(sdata: SpatialData, of: str) -> tuple[str, str]:
    """``"points"``, ``"cells"`` or ``"bins"``, and the key of the points or the table; a key wins over a role."""
    bins = _bin_tables(sdata)
    if of in sdata.points or (of == "points" and of not in sdata.tables):
        key = _sample.find_transcripts(sdata, of if of in sdata.points else None)[0]
        if key is None:
            raise KeyError(
                f"This object has no points. {_sample.describe('tables', sdata.tables)} Sum a table: of='cells', "
                "'bins' or its key."
            )
        return "points", key
    if of in sdata.tables:
        return ("bins" if of in bins else "cells"), of
    if of == "cells":
        table = _sample.find_cell_table(sdata)
        if table is not None:
            return "cells", table
    if of == "bins" and bins:
        return "bins", bins[0]
    known = [*sdata.points, *sdata.tables]
    raise KeyError(
        f"of={of!r}: {'found no such table' if of in {'cells', 'bins'} else 'neither points nor a table'}. "
        f"{_sample.describe('points', sdata.points)} {_sample.describe('tables', sdata.tables)}{closest(of, known)}"
    )


def _bin_tables(sdata: SpatialData) -> list[str]:
    """Tables of bins or spots: those of Visium HD from fine to coarse, and the reader's own."""
    sizes = {name: int(match[1]) for name in sdata.tables if (match := BINS.search(name))}
    recorded = _sample.roles(sdata).get("spots", {}).get("table")
    return sorted(sizes, key=sizes.__getitem__) + ([recorded] if recorded in sdata.tables else [])


def _index(sdata: SpatialData, key: str) -> RegionIndex:
    """The regions, after what a table or a sum could not bear is refused."""
    import shapely

    shapes, matrix = _sample.get(sdata, "shapes", key), scale.matrix_to_um(sdata, "shapes", key)
    names = shapes.index
    if not len(names):
        raise ValueError(f"Shapes {key!r} are empty: there are no regions to sum into.")
    require_names(key, names)
    geometry = shapes.geometry.to_numpy()
    bad = shapely.is_missing(geometry) | shapely.is_empty(geometry) | ~np.isfinite(shapely.bounds(geometry)).all(axis=1)
    if "radius" in shapes and not bad.any():
        radius = shapes["radius"].to_numpy(np.float64)
        bad = (shapely.get_type_id(geometry) == shapely.GeometryType.POINT) & ~(np.isfinite(radius) & (radius > 0))
    if bad.any():
        raise ValueError(
            f"{int(bad.sum())} of {len(names)} shapes {key!r} have no geometry, such as {plain(names[bad][0])!r}: "
            "empty, not finite, or a circle without a radius. Leave them out."
        )
    return RegionIndex(shapes, matrix)


def _require_some(sums: Sums, finder: SquareGrid | RegionIndex, kind: str, key: str, regions: str | None) -> None:
    """Refuse what lies wholly elsewhere than the regions; say where both are."""
    if sums.facts["n_counted"]:
        return
    if isinstance(finder, RegionIndex):
        where = f"regions {regions!r} ({_span([*finder.bounds[:, :2].min(axis=0), *finder.bounds[:, 2:].max(axis=0)])})"
    elif len(sums.rows):
        columns, rows = finder.places(sums.rows)
        ends = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        where = f"squares of within= ({_span([finder.side_um * end for end in ends])})"
    else:
        where = f"grid: no centre of a square of {finder.side_um:g} µm lies in within="
    raise ValueError(
        f"None of the {kind} of {key!r} ({_span(sums.extent_um)}) lies in the {where}. Correct the transformation of "
        "one of them to 'um'."
    )


def _say(sums: Sums, kind: str, key: str) -> None:
    facts = sums.facts
    left_out = (
        f", {facts['n_controls']} are controls, {facts['n_low_quality']} of low quality" if kind == "points" else ""
    )
    logger.info(
        "%d of %d %s of %r are summed into %d regions; %d lie in no region%s.",
        facts["n_counted"],
        facts["n_all"],
        kind,
        key,
        len(sums.rows),
        facts["n_outside"],
        left_out,
    )


def _span(box: Sequence[float] | np.ndarray) -> str:
    return f"x {box[0]:.0f} to {box[2]:.0f}, y {box[1]:.0f} to {box[3]:.0f} µm"


def _written(within: Any) -> Any:
    """A ``within=`` as JSON has it."""
    if within is None or isinstance(within, str):
        return within
    return within.wkt if hasattr(within, "wkt") else [float(end) for end in within]


def _squares(side: float, columns: np.ndarray, rows: np.ndarray) -> GeoDataFrame:
    import geopandas as gpd
    import shapely
    from spatialdata.models import ShapesModel
    from spatialdata.transformations import Identity

    if len(rows) > MANY_SQUARES:
        logger.warning("%d squares take about %.0f GB of memory as polygons.", len(rows), len(rows) * 0.6e-6)
    # The same products as in locating, so that the squares are bit by bit what was counted in.
    boxes = shapely.box(columns * side, rows * side, (columns + 1) * side, (rows + 1) * side)
    return ShapesModel.parse(gpd.GeoDataFrame(geometry=boxes), transformations={_sample.UM: Identity()})


def _add_table(
    sdata: SpatialData,
    key: str,
    region: str,
    sums: Sums,
    obs: dict[str, np.ndarray],
    centres: np.ndarray,
    made: dict[str, Any],
    overwrite: bool,
) -> None:
    import anndata as ad
    import pandas as pd
    from spatialdata.models import TableModel

    names = sdata.shapes[region].index
    frame = pd.DataFrame(
        {
            "region": pd.Categorical.from_codes(np.zeros(len(names), np.int8), pd.Index([region])),
            "instance_id": names.to_numpy(),
        }
        | obs,
        index=names.astype(str).rename(None),
    )
    table = ad.AnnData(sums.counts, obs=frame, var=sums.var, obsm={"spatial": centres})
    table = TableModel.parse(table, region=region, region_key="region", instance_key="instance_id")
    _store.add(sdata, "tables", key, table, made, overwrite=overwrite)
