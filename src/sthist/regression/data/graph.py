"""Rows with their neighbours: batches of whole neighbourhoods, in which each row is there once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist._messages import plain
from sthist.regression.data.inputs import Arrays, Inputs, TileArray
from sthist.regression.data.lattice import array_neighbours, array_of, neighbours_of
from sthist.training.batches import augmented

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sthist.regression.data.inputs import Batch
    from sthist.training.rows import SampleRows


@dataclass(frozen=True, eq=False)
class Graph(Inputs):
    """Rows of inputs as nodes of a graph.

    A batch has a row per node, and beside the arrays of the inputs ``"around"`` (n, k) int64, the rows of the batch
    that are neighbours, -1 for none; ``"slide"`` (n,) int64; and ``"counted"`` (n,) bool, False for nodes that are
    there for others' sake, such as those that do not train.
    """

    inputs: Inputs
    around: np.ndarray  # (n, k) rows of the neighbours, -1 for none
    slide: np.ndarray  # (n,) number of the slide
    hops: int = 2  # steps that a neighbourhood reaches
    only_centres: bool = False  # whether neighbours count as little as those that do not train

    def __len__(self) -> int:
        return len(self.inputs)

    def take(self, rows: np.ndarray) -> Batch:
        """Some rows, and which of them are neighbours."""
        return self._with_graph(rows, self.inputs.take(rows), np.ones(len(rows), bool))

    def in_order(self, rows: np.ndarray, batch_size: int) -> Iterator[tuple[np.ndarray, Batch]]:
        """These rows alone, in whatever order is read fastest."""
        for part, batch in self.inputs.in_order(rows, batch_size):
            yield part, self._with_graph(part, batch, np.ones(len(part), bool))

    def shuffled(self, rows: np.ndarray, batch_size: int, seed: int, epoch: int) -> Iterator[tuple[np.ndarray, Batch]]:
        """Neighbourhoods of so many rows, tiles turned and mirrored."""
        order = np.random.default_rng([seed, epoch]).permutation(rows)
        for nodes, batch in self._neighbourhoods(order, batch_size):
            if "tiles" in batch:
                batch["tiles"] = augmented(batch["tiles"], nodes, seed, epoch)
            yield nodes, batch

    def watched(self, rows: np.ndarray, batch_size: int) -> Iterator[tuple[np.ndarray, Batch]]:
        """Neighbourhoods of so many rows, as they are."""
        return self._neighbourhoods(rows, batch_size)

    def share(
        self, rows: np.ndarray, batch: Batch, device: int, n_devices: int
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Every so many rows of a batch and what is around them; the share alone counts."""
        if n_devices == 1:
            return rows, batch
        own = rows[device::n_devices]
        there = np.isin(rows, self.neighbourhood(own))
        nodes, counted = rows[there], batch["counted"][there] & np.isin(rows[there], own)
        return nodes, self._with_graph(nodes, {name: values[there] for name, values in batch.items()}, counted)

    def rows_at_once(self, batch_size: int) -> int:
        """Nodes of a batch, if no neighbourhood meets another one."""
        k = self.around.shape[1]
        # On a lattice ring r has r times as many places as the first.
        return min(len(self), batch_size * (1 + k * self.hops * (self.hops + 1) // 2))

    def neighbourhood(self, rows: np.ndarray) -> np.ndarray:
        """Rows that can be reached from some, these among them, in order."""
        found = np.unique(rows)
        for _ in range(self.hops):
            around = self.around[found]
            found = np.union1d(found, around[around >= 0])
        return found

    def whole_slides(self, rows: np.ndarray) -> np.ndarray:
        """All rows of the slides that some are of."""
        return np.flatnonzero(np.isin(self.slide, self.slide[rows]))

    def _neighbourhoods(self, rows: np.ndarray, batch_size: int) -> Iterator[tuple[np.ndarray, Batch]]:
        """Neighbourhoods of so many rows at a time, the next one read while one is used."""
        trained = np.zeros(len(self), bool)
        trained[rows] = True

        def read(centres: np.ndarray) -> tuple[np.ndarray, Batch]:
            nodes = self.neighbourhood(centres)
            counted = np.isin(nodes, centres) if self.only_centres else trained[nodes]
            return nodes, self._with_graph(nodes, self.inputs.take(nodes), counted)

        if not len(rows):
            return
        # Of much the same size: one node alone is too few for a trunk that normalises over its batch.
        parts = np.array_split(rows, -(-len(rows) // batch_size))
        with ThreadPoolExecutor(1) as pool:
            ahead = pool.submit(read, parts[0])
            for part in parts[1:]:
                following = pool.submit(read, part)
                yield ahead.result()
                ahead = following
            yield ahead.result()

    def _with_graph(self, nodes: np.ndarray, batch: Batch, counted: np.ndarray) -> Batch:
        place = np.full(len(self) + 1, -1)  # the last is that of no neighbour
        place[nodes] = np.arange(len(nodes))
        return {**batch, "around": place[self.around[nodes]], "slide": self.slide[nodes], "counted": counted}


class WholeSlides(Graph):
    """A graph of which whole slides are looked at, whatever rows of them are asked for."""

    def in_order(self, rows: np.ndarray, batch_size: int) -> Iterator[tuple[np.ndarray, Batch]]:
        """All rows of each slide at once."""
        for slide in np.unique(self.slide[rows]):
            nodes = np.flatnonzero(self.slide == slide)
            yield nodes, self.take(nodes)


def as_graph(inputs: Inputs, **options: Any) -> Graph:
    """A graph as it is, or one of arrays with ``"places"`` (n, 2) and, where there are several, ``"slide"`` (n,)."""
    if isinstance(inputs, Graph):
        return inputs
    arrays = dict(inputs.arrays) if isinstance(inputs, Arrays) else {}
    if "places" not in arrays:
        raise ValueError(
            "A model that sees neighbours takes 'places', (n, 2) in µm, beside 'tiles' or 'spot', and 'slide', (n,), "
            "where rows are of several slides."
        )
    places = np.asarray(arrays.pop("places"), np.float64)
    slide = np.asarray(arrays.pop("slide", np.zeros(len(places), int)))
    if places.shape != (len(inputs), 2) or slide.shape != (len(inputs),):
        raise ValueError(f"'places' are (n, 2) and 'slide' (n,), not {places.shape} and {slide.shape}.")
    number = np.unique(slide, return_inverse=True)[1]
    rows = [np.flatnonzero(number == each) for each in range(number.max(initial=-1) + 1)]
    tables = [neighbours_of(places[mine], 1) for mine in rows]
    left = TileArray(arrays) if isinstance(inputs, TileArray) else Arrays(arrays)
    return Graph(left, _joined(tables, rows, len(inputs)), number, **options)


def neighbours_of_rows(rows: SampleRows) -> np.ndarray:
    """Rows around each, (n, k), -1 for none: next to it on its array, or on the lattice that its places lie on."""
    tables, parts = [], []
    for number, (adata, name) in enumerate(zip(rows.tables, rows.names, strict=True)):
        mine = np.flatnonzero(rows.sample == number)
        array = array_of(adata, name)
        if array is not None:
            tables.append(array_neighbours(array[rows.row[mine]]))
        elif "spatial" in adata.obsm:
            places = np.asarray(adata.obsm["spatial"], np.float64)[rows.row[mine], :2]
            bad = np.flatnonzero(~np.isfinite(places).all(axis=1))
            if len(bad):
                row = plain(adata.obs_names[rows.row[mine][bad[0]]])
                raise ValueError(f"obsm['spatial'] of {name} is NaN or infinite in {len(bad)} rows, such as {row!r}.")
            tables.append(neighbours_of(places, 1))
        else:
            raise KeyError(
                f"{name} has neither obs['array_row'] and obs['array_col'] nor obsm['spatial'], the places of its rows "
                "in µm, so that nobody knows who is whose neighbour."
            )
        parts.append(mine)
    return _joined(tables, parts, len(rows))


def _joined(tables: list[np.ndarray], rows: list[np.ndarray], n: int) -> np.ndarray:
    """Neighbours within each slide, by the rows that its places are, as one table."""
    around = np.full((n, max((table.shape[1] for table in tables), default=0)), -1)
    for table, mine in zip(tables, rows, strict=True):
        around[mine, : table.shape[1]] = np.where(table < 0, -1, mine[table])
    return around
