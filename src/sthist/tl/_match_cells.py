"""Nuclei of one image and cells of another, matched one to one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sthist import _sample, _store
from sthist._sample.samples import over_samples
from sthist._settings import logger
from sthist._tables.rows import Rows, add_columns, centroids_um, require_free_columns, rows_of

if TYPE_CHECKING:
    from spatialdata import SpatialData

DENSE = 4_000_000
"""Pairs up to which a group of cells that could be swapped is solved as a full matrix; larger ones as a sparse one."""


@over_samples
def match_cells(
    data: SpatialData,
    cells: str = "nuclei",
    to: str | None = None,
    *,
    max_um: float = 5.0,
    key_added: str = "match",
    overwrite: bool = False,
) -> None:
    """Match nuclei of the H&E to measured cells, one to one, by their centroids.

    Of all ways to pair them within a distance, one with most pairs is taken, and of these the one with the least sum of
    distances: not the nearest neighbour, which could be the partner of several.

    Parameters
    ----------
    data
        One sample, or a mapping of name to sample; the path of a store stands for its sample.
    cells
        Key of the nuclei: shapes, or their table.
    to
        Key of the measured cells: shapes, or their table; by default the cells of the sample's table of cells.
    max_um
        How far partners lie from each other at most, in µm: more than the error of registration, and less than from a
        cell to the next.
    key_added
        Name of the column.
    overwrite
        Replace columns of these names.

    Returns
    -------
    None. Writes into the table of the nuclei, also in the store of a backed object; shapes without a table get one,
    named ``<cells>_table``:

    * ``obs[key_added]``: the instance id of the partner; missing where there is none;
    * ``obs[key_added + "_um"]``: float64, how far it is in µm; NaN where there is none;
    * ``uns["sthist"][key_added]``: how many pairs there are (``matched``), how many of either side have no partner
      (``unmatched`` and ``unmatched_to``), the ``median_um`` of their distances, and ``shift_um``, the median place of
      partners, x and y, seen from the nuclei: where that is not near 0, the images are registered that much amiss.

    Raises
    ------
    KeyError
        If there are no such shapes, or no cells.
    ValueError
        If both are the same shapes, no pair is near enough, elements are not registered in ``um``, a column is there
        already, or ``max_um`` is no positive number.

    Examples
    --------
    >>> import sthist
    >>> sdata = sthist.datasets.toy(size_um=300)
    >>> sthist.tl.match_cells(sdata, "nucleus_boundaries", "cell_boundaries")
    >>> bool((sdata["nucleus_boundaries_table"].obs["match_um"] < 5).all())
    True
    """
    if not (np.isfinite(max_um) and max_um > 0):
        raise ValueError(f"max_um is {max_um!r}; it is a positive number of µm.")
    rows, others = rows_of(data, cells), rows_of(data, _measured(data) if to is None else to)
    if rows.shapes == others.shapes:
        raise ValueError(
            f"cells={cells!r} and the cells to match are the same shapes, {rows.shapes!r}: name others with to=."
        )
    names = [key_added, f"{key_added}_um"]
    require_free_columns(data, rows, names, overwrite=overwrite)
    places, targets = centroids_um(data, rows), centroids_um(data, others)
    first, second, distances = matched(places, targets, float(max_um))
    if not len(first):
        raise ValueError(
            f"No centroid of {rows.shapes!r} ({len(places)}) lies within {max_um:g} µm of one of {others.shapes!r} "
            f"({len(targets)}); the nearest two are {_nearest(places, targets)}. Are both registered in 'um' rightly?"
        )
    shift = np.median(targets[second] - places[first], axis=0)
    facts = {
        "matched": len(first),
        "unmatched": len(places) - len(first),
        "unmatched_to": len(targets) - len(first),
        "median_um": float(np.median(distances)),
        "shift_um": [float(each) for each in shift],
    }
    logger.info(
        "%d of %d %r and %d %r are matched, by the median %.2f µm from each other (x %+.2f, y %+.2f); %d and %d have "
        "no partner.",
        len(first),
        len(places),
        rows.shapes,
        len(targets),
        others.shapes,
        facts["median_um"],
        *shift,
        facts["unmatched"],
        facts["unmatched_to"],
    )
    away = np.full(len(places), np.nan)
    away[first] = distances
    obs = dict(zip(names, (_partners(others, first, second, len(places)), away), strict=True))
    made = _store.provenance("tl.match_cells", cells=rows.shapes, to=others.shapes, max_um=float(max_um), **facts)
    add_columns(data, rows, key_added, made, obs=obs)


def _measured(sdata: SpatialData) -> str:
    """The cells of the sample."""
    table = _sample.find_cell_table(sdata)
    if table is None:
        raise KeyError(
            f"No table of measured cells is known. {_sample.describe('shapes', sdata.shapes)} Name the cells with to=."
        )
    return table


def _partners(others: Rows, first: np.ndarray, second: np.ndarray, n: int) -> Any:
    """Names of partners, a column with missing values."""
    import pandas as pd

    place = np.full(n, -1)
    place[first] = second
    if others.instances.dtype.kind in "iu":
        return pd.array(others.instances, dtype="Int64").take(place, allow_fill=True)
    return pd.Categorical.from_codes(place, categories=pd.Index(others.instances.astype(str), dtype=object))


def _nearest(places: np.ndarray, targets: np.ndarray) -> str:
    from scipy.spatial import cKDTree

    places, targets = (each[np.isfinite(each).all(axis=1)] for each in (places, targets))
    if not len(places) or not len(targets):
        return "none, as one side is empty"
    return f"{cKDTree(targets).query(places)[0].min():.1f} µm from each other"


def matched(places: np.ndarray, targets: np.ndarray, most: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of places and targets, and their distances: as many as can be, and of these the nearest.

    Pairs can only be exchanged within a group that is linked by distances below ``most``; each is solved by itself.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    first, second, distances = _within(places, targets, most)
    n = len(places)
    links = coo_matrix((np.ones(len(first), np.int8), (first, n + second)), (n + len(targets), n + len(targets)))
    group = connected_components(links, directed=False)[1][first]
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(group[order]) > 0, True]) if len(order) else np.zeros(1, int)
    kept = [order[starts[:-1][np.diff(starts) == 1]]]  # of one pair there is no choice
    for start, end in zip(starts[:-1], starts[1:], strict=True):
        if end - start > 1:
            pairs = order[start:end]
            kept.append(pairs[_best(first[pairs], second[pairs], distances[pairs])])
    chosen = np.sort(np.concatenate(kept)).astype(int)
    return first[chosen], second[chosen], distances[chosen]


def _within(places: np.ndarray, targets: np.ndarray, most: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All pairs that are near enough, and their distances."""
    from scipy.spatial import cKDTree

    there, others = (np.flatnonzero(np.isfinite(each).all(axis=1)) for each in (places, targets))
    found = cKDTree(places[there]).sparse_distance_matrix(cKDTree(targets[others]), most, output_type="ndarray")
    return there[found["i"]], others[found["j"]], found["v"]


def _best(first: np.ndarray, second: np.ndarray, distances: np.ndarray) -> np.ndarray:
    """Which pairs of a group are taken."""
    rows, row = np.unique(first, return_inverse=True)
    columns, column = np.unique(second, return_inverse=True)
    if min(len(rows), len(columns)) == 1:
        return np.array([distances.argmin()])
    # Whoever has no partner costs more than all that could be saved by it.
    cost = (min(len(rows), len(columns)) + 1) * (float(distances.max()) + 1)
    taken = _dense if len(rows) * len(columns) <= DENSE else _sparse
    return taken(row, column, distances, (len(rows), len(columns)), cost)


def _dense(
    row: np.ndarray, column: np.ndarray, distances: np.ndarray, shape: tuple[int, int], cost: float
) -> np.ndarray:
    from scipy.optimize import linear_sum_assignment

    costs = np.full(shape, cost)
    number = np.full(shape, -1)
    costs[row, column], number[row, column] = distances, np.arange(len(row))
    found = number[linear_sum_assignment(costs)]
    return found[found >= 0]


def _sparse(
    row: np.ndarray, column: np.ndarray, distances: np.ndarray, shape: tuple[int, int], cost: float
) -> np.ndarray:
    """Each row can also be left alone: it has a column of its own, which costs much."""
    from scipy.sparse import coo_matrix, csr_matrix, hstack, identity
    from scipy.sparse.csgraph import min_weight_full_bipartite_matching

    costs = coo_matrix((distances + 1.0, (row, column)), shape)  # 0 would be no pair
    alone = identity(shape[0], format="coo") * (cost + 1.0)
    rows, columns = min_weight_full_bipartite_matching(csr_matrix(hstack([costs, alone])))
    real = columns < shape[1]
    number = csr_matrix((np.arange(1, len(row) + 1), (row, column)), shape)
    return np.asarray(number[rows[real], columns[real]]).ravel() - 1
