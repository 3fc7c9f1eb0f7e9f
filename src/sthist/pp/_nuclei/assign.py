"""Which spot each cell lies in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sthist import _sample, _store, scale
from sthist._sample.samples import over_samples
from sthist._settings import logger
from sthist._tables.rows import (
    Rows,
    add_columns,
    centroids_um,
    have_shapes,
    pairs_inside,
    polygons_um,
    require_free_columns,
    rows_of,
)

if TYPE_CHECKING:
    from spatialdata import SpatialData

N_CELLS = "n_cells"


@over_samples
def assign_cells(
    data: SpatialData,
    *,
    cells: str = "nuclei",
    spots: str | None = None,
    key_added: str = "spot",
    overwrite: bool = False,
) -> None:
    """Find the spot that each cell lies in: that whose disc, or square, or polygon, holds its centre.

    Where several do, it is the one whose centre is nearest. How many cells lie in none, and how many spots have none,
    is logged.

    Parameters
    ----------
    data
        A SpatialData, or a mapping of sample name to such.
    cells
        Key of the cells, shapes or their table, such as those of :func:`sthist.pp.nuclei`.
    spots
        Key of the spots, shapes or their table: discs of Visium, bins of Visium HD, any polygons. By default those of
        the table of expression.
    key_added
        Name of the column of the cells.
    overwrite
        Replace columns of these names.

    Returns
    -------
    None. Writes, also to the store of a backed object, ``obs[key_added]`` of the cells' table (a new one where they
    have none): a categorical of the names of the spots as text, missing for cells outside; and ``obs["n_cells"]`` of
    the spots' table, how many lie in each.

    Raises
    ------
    KeyError
        If there are no such cells or spots.
    ValueError
        If cells and spots are not registered in ``um``, no cell lies in any spot, or a column exists.

    Examples
    --------
    >>> import sthist
    >>> sdata = sthist.datasets.toy("visium", size_um=600)
    >>> sthist.pp.nuclei(sdata)
    >>> sthist.pp.assign_cells(sdata, overwrite=True)  # the toy sample comes with the true obs["n_cells"]
    >>> inside = sdata["nuclei_table"].obs["spot"].notna()
    >>> int(inside.sum()) == int(sdata["table"].obs["n_cells"].sum())
    True
    """
    import pandas as pd

    cell_rows, spot_rows = cells_of(data, cells), spots_of(data, spots)
    require_free_columns(data, cell_rows, [key_added], overwrite=overwrite)
    require_free_columns(data, spot_rows, [N_CELLS], overwrite=overwrite)
    spot = spot_of_cells(data, cell_rows, spot_rows)
    names = spot_rows.instances.astype(str)
    made = _store.provenance(
        "pp.assign_cells", cells=cell_rows.shapes, spots=spot_rows.shapes, n_outside=int((spot < 0).sum())
    )
    counts = np.bincount(spot[spot >= 0], minlength=len(spot_rows))
    with _store.changing(data):
        add_columns(data, spot_rows, N_CELLS, made, obs={N_CELLS: counts})
        add_columns(data, cell_rows, key_added, made, obs={key_added: pd.Categorical.from_codes(spot, pd.Index(names))})


def cells_of(sdata: SpatialData, cells: str) -> Rows:
    """The cells that a key stands for; where there are no nuclei yet, how to have them."""
    if cells not in sdata.shapes and cells not in sdata.tables:
        raise KeyError(
            f"There are no cells {cells!r}: find the nuclei of the H&E with sthist.pp.nuclei(sdata), or say with "
            f"cells= which shapes they are. {_sample.describe('shapes', sdata.shapes)}"
        )
    return rows_of(sdata, cells)


def spots_of(sdata: SpatialData, spots: str | None) -> Rows:
    """The spots that a key stands for, by default those of the table of expression."""
    return rows_of(sdata, _sample.find_expression_table(sdata) if spots is None else spots)


def spot_of_cells(sdata: SpatialData, cells: Rows, spots: Rows) -> np.ndarray:
    """Row of the spot that each cell lies in, (n_cells,) int; -1 for none. Both numbers are logged."""
    places, centres = centroids_um(sdata, cells), centroids_um(sdata, spots)
    frame = sdata.shapes[spots.shapes]
    if "radius" in frame:
        matrix = scale.matrix_to_um(sdata, "shapes", spots.shapes)
        radii = np.zeros(len(spots))
        there = have_shapes(sdata, spots)
        radii[there] = frame["radius"].to_numpy(np.float64)[frame.index.get_indexer(spots.instances[there])]
        spot = nearest_disc(places, centres, radii * np.sqrt(abs(np.linalg.det(matrix[:2, :2]))))
    else:
        spot = _nearest_polygon(places, centres, polygons_um(sdata, spots))
    inside = int((spot >= 0).sum())
    logger.info(
        "%d of %d cells %r lie in no spot, and %d of %d spots %r have no cell.",
        len(spot) - inside,
        len(spot),
        cells.shapes,
        len(spots) - len(np.unique(spot[spot >= 0])),
        len(spots),
        spots.shapes,
    )
    if not inside:
        raise ValueError(
            f"None of the {len(spot)} cells {cells.shapes!r} lies in one of the {len(spots)} spots {spots.shapes!r}. "
            "Are they of one slide, and registered with each other?"
        )
    return spot


def nearest_disc(places: np.ndarray, centres: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """The disc that holds each place, its rim included, the nearest by its centre; -1 for none."""
    from scipy.spatial import cKDTree

    found = np.full(len(places), -1)
    known = np.flatnonzero(np.isfinite(centres).all(axis=1) & np.isfinite(radii))
    open_ = np.flatnonzero(np.isfinite(places).all(axis=1))
    if not len(known):
        return found
    tree, reach, k = cKDTree(centres[known]), float(radii[known].max()), 2
    while len(open_):
        k = min(k, len(known))
        near = tree.query(places[open_], k=np.arange(1, k + 1))[1]
        offsets = places[open_][:, None] - centres[known][near]
        away = np.hypot(offsets[..., 0], offsets[..., 1])
        held = np.where(away <= radii[known][near], away, np.inf)
        best = held.min(axis=1)
        # Of equally near ones the first: the order in which the tree gives them says nothing.
        first = np.where(held == best[:, None], known[near], len(centres)).min(axis=1)
        found[open_] = np.where(np.isfinite(best), first, -1)
        # As long as the last one that was looked at is as near, or may hold the place, there may be a nearer holder.
        settled = (away[:, -1] > np.minimum(best, reach)) | (k == len(known))
        open_, k = open_[~settled], 2 * k
    return found


def _nearest_polygon(places: np.ndarray, centres: np.ndarray, polygons: Any) -> np.ndarray:
    """The polygon that holds each place, its border included, the nearest by its centroid; -1 for none."""
    polygon, place = pairs_inside(polygons, places)
    away = np.linalg.norm(places[place] - centres[polygon], axis=1)
    order = np.lexsort((polygon, away, place))[::-1]  # the nearest of a place comes last, and stays
    found = np.full(len(places), -1)
    found[place[order]] = polygon[order]
    return found
