"""Which regions lie around each other: rings on the lattice of spots or tiles, of any kind and however it is turned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from anndata import AnnData

ARRAY = ("array_row", "array_col")
"""Columns of ``obs`` with the row and column of spots on their array."""

CLEAR = 0.8
"""How much directions to the nearest have to agree (1: all do) for places to lie on a lattice."""

SAME_DISTANCE, AS_FAR = 1.01, 8
"""Factor up to which distances are the same, and how many places more than are asked for may be as far."""

AT_PITCH = 1.25
"""Distance, in medians of that to the nearest, up to which a place is a direct neighbour; diagonals are at 1.41."""


@dataclass(frozen=True)
class Lattice:
    """Of one sample: hexagons (Visium), squares (legacy ST, bins, grids of tiles), or none."""

    kind: Literal["hexagons", "squares", "none"]
    basis: np.ndarray  # (2, 2), its two steps, in columns

    @property
    def pitch(self) -> float:
        """Distance of neighbours in µm."""
        return float(np.linalg.norm(self.basis[:, 0]))

    def steps(self, displacements: np.ndarray) -> np.ndarray:
        """Steps along either direction that lead nearest to displacements (n, 2), (n, 2) int."""
        return np.rint(displacements @ np.linalg.inv(self.basis).T).astype(np.int64)

    def distance(self, steps: np.ndarray) -> np.ndarray:
        """Ring on which steps (n, 2) end, (n,) int."""
        if self.kind == "squares":
            return np.abs(steps).max(axis=1)
        # The six neighbours are one step along either direction, or forth along one and back along the other.
        return (np.abs(steps).sum(axis=1) + np.abs(steps.sum(axis=1))) // 2


def find_lattice(centres: np.ndarray) -> Lattice:
    """The lattice of places (n, 2), by distance and direction of the nearest of each."""
    from scipy.spatial import cKDTree

    centres = np.unique(centres, axis=0)
    if len(centres) < 2:
        return Lattice("none", np.eye(2))
    tree = cKDTree(centres)
    step = float(np.median(tree.query(centres, 2)[0][:, 1]))
    pairs = tree.query_pairs(AT_PITCH * step, output_type="ndarray")
    x, y = (centres[pairs[:, 1]] - centres[pairs[:, 0]]).T
    pitch, angle = float(np.median(np.hypot(x, y))), np.arctan2(y, x)
    kinds: tuple[tuple[Literal["hexagons", "squares"], int], ...] = (("hexagons", 6), ("squares", 4))
    for kind, fold in kinds:
        mean = np.exp(1j * fold * angle).mean()
        if abs(mean) > CLEAR:
            turns = np.angle(mean) / fold + np.array([0, 2 * np.pi / fold])
            return Lattice(kind, pitch * np.array([np.cos(turns), np.sin(turns)]))
    return Lattice("none", step * np.eye(2))


def neighbours_of(centres: np.ndarray, rings: int) -> np.ndarray:
    """Numbers of the places on the rings around each, (n, k), the nearest first; -1 where there is none.

    On no lattice they are the nearest, as many as hexagons would have.
    """
    from scipy.spatial import cKDTree

    n, full = len(centres), 3 * rings * (rings + 1)
    lattice, tree = find_lattice(centres), cKDTree(centres)
    if lattice.kind == "none":
        away, found = tree.query(centres, min(full + 1, n)) if n > 1 else (np.empty((n, 0)), np.empty((n, 0), int))
        one, other = np.repeat(np.arange(n), found.shape[1]), found.ravel()
        order = np.argsort(np.where(one == other, -1.0, away.ravel()).reshape(found.shape), axis=1, kind="stable")
        return np.take_along_axis(found, order, axis=1)[:, 1:]
    squares = lattice.kind == "squares"
    full = 4 * rings * (rings + 1) if squares else full
    near = tree.query_pairs((rings * (2**0.5 if squares else 1) + 0.4) * lattice.pitch, output_type="ndarray")
    displacements = centres[near[:, 1]] - centres[near[:, 0]]
    rung = lattice.distance(lattice.steps(displacements))
    kept = (rung >= 1) & (rung <= rings)
    return _as_table(near[kept], np.linalg.norm(displacements[kept], axis=1), n, full)


def nearest_of(centres: np.ndarray, n: int) -> np.ndarray:
    """Numbers of the n places nearest to each, (m, k), the nearest first; -1 where there is none.

    What is as far as the last of them is among them, so that no order of the places says who is a neighbour: on
    hexagons 4 are 6.
    """
    from scipy.spatial import cKDTree

    others = min(n, len(centres) - 1)
    if others < 1:
        return np.empty((len(centres), 0), int)
    away, found = cKDTree(centres).query(centres, min(others + 1 + AS_FAR, len(centres)))
    away = np.where(found == np.arange(len(centres))[:, None], np.inf, away)
    order = np.argsort(away, axis=1, kind="stable")
    away, found = np.take_along_axis(away, order, axis=1), np.take_along_axis(found, order, axis=1)
    kept = np.isfinite(away) & (away <= SAME_DISTANCE * away[:, [others - 1]])
    return np.where(kept, found, -1)[:, : kept.sum(axis=1).max()]


def array_neighbours(array: np.ndarray) -> np.ndarray:
    """Numbers of the spots next to each on an array, (n, k), -1 where there is none; by row and column (n, 2) int.

    Where row and column are even or odd together they count half hexagons, as Visium's do, and two columns are a step.
    """
    from scipy.spatial import cKDTree

    odd = array.sum(axis=1) % 2
    row, column = array.T.astype(np.float64)
    places = np.stack([row, column / 2 if (odd == odd[:1]).all() else column], axis=1)
    near = cKDTree(places).query_pairs(1.1, p=np.inf, output_type="ndarray")
    away = np.linalg.norm(places[near[:, 1]] - places[near[:, 0]], axis=1)
    return _as_table(near[away > 0], away[away > 0], len(array))


def _as_table(pairs: np.ndarray, away: np.ndarray, n: int, full: int | None = None) -> np.ndarray:
    """Pairs (m, 2) as the neighbours of each, (n, full), the nearest first; by default as many as any has."""
    one, other = np.concatenate([pairs, pairs[:, ::-1]]).T
    order = np.lexsort((other, np.concatenate([away, away]), one))
    one, other = one[order], other[order]
    place = np.arange(len(one)) - np.searchsorted(one, one)
    full = int(place.max(initial=-1)) + 1 if full is None else full
    table = np.full((n, full), -1)
    table[one[place < full], place[place < full]] = other[place < full]
    return table


def array_of(adata: AnnData, name: str) -> np.ndarray | None:
    """Row and column of all rows of a table on their array, (n, 2) int, from 0; None where it has no such columns."""
    if not all(column in adata.obs for column in ARRAY):
        return None
    found = adata.obs[list(ARRAY)].to_numpy(np.float64)
    if not (np.isfinite(found).all() and (found == np.rint(found)).all()):
        raise ValueError(f"obs{list(ARRAY)} of {name} are not all whole numbers.")
    return (found - found.min(axis=0)).astype(np.int64)


def array_places(centres: np.ndarray, name: str) -> np.ndarray:
    """Row and column of places on their lattice, (n, 2) int from 0."""
    if len(centres) and (centres == centres[0]).all():
        return np.zeros((len(centres), 2), np.int64)
    lattice = find_lattice(centres)
    if lattice.kind == "none":
        raise ValueError(
            f"The places of {name} lie on no lattice, so that they have no row and column. Write obs['array_row'] and "
            "obs['array_col'], or take a model without positions."
        )
    steps = lattice.steps(centres - centres.min(axis=0))
    return steps - steps.min(axis=0)


def array_or_lattice(adata: AnnData, name: str) -> np.ndarray:
    """Row and column of all rows of a table, on its array or on the lattice that its places lie on, (n, 2) int."""
    array = array_of(adata, name)
    if array is not None:
        return array
    if "spatial" not in adata.obsm:
        raise KeyError(f"{name} has neither obs{list(ARRAY)} nor obsm['spatial'], the places of its rows in µm.")
    return array_places(np.asarray(adata.obsm["spatial"], np.float64)[:, :2], name)
