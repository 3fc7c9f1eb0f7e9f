"""Rows of a slide as one sequence, or as windows of neighbours where a slide has more of them than fit."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sthist.regression.data.inputs import Arrays, Inputs, TileArray
from sthist.regression.data.lattice import nearest_of
from sthist.training.batches import augmented

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sthist.regression.data.inputs import Batch


@dataclass(frozen=True, eq=False)
class Sequences(Inputs):
    """Rows of inputs that are seen with all others of their slide; a batch is so many slides, or windows of them.

    A batch has a row per spot, and beside the arrays of the inputs ``"slide"`` (n,) int64, the sequence that it is of;
    ``"positions"`` (n, 2) int64, if there are such; ``"around"`` (n, k) int64, the rows of the batch that are next to
    it, -1 for none, if neighbours are wanted; and ``"counted"`` (n,) bool, False for spots that are there for others'
    sake.
    """

    inputs: Inputs
    slide: np.ndarray  # (n,) number of the slide
    places: np.ndarray  # (n, 2) in µm
    positions: np.ndarray | None = None  # (n, 2) row and column
    max_spots: int | None = None  # of a sequence
    neighbours: int = 0

    def __len__(self) -> int:
        return len(self.inputs)

    def take(self, rows: np.ndarray) -> Batch:
        """Some rows, each slide a sequence."""
        return self._with_slides(rows, self.inputs.take(rows), self.slide[rows])

    def in_order(self, rows: np.ndarray, batch_size: int) -> Iterator[tuple[np.ndarray, Batch]]:
        """These rows, each by itself, in whatever order is read fastest."""
        return self.inputs.in_order(rows, batch_size)

    def shuffled(self, rows: np.ndarray, batch_size: int, seed: int, epoch: int) -> Iterator[tuple[np.ndarray, Batch]]:
        """So many sequences of these rows; tiles turned and mirrored, and other windows in each epoch."""
        random = np.random.default_rng([seed, epoch])
        windows = self.windows(rows, turned=random.uniform(0, 2 * np.pi))
        windows = [windows[number] for number in random.permutation(len(windows))]
        for nodes, batch in self._read_ahead(windows, batch_size):
            if "tiles" in batch:
                batch["tiles"] = augmented(batch["tiles"], nodes, seed, epoch)
            yield nodes, batch

    def watched(self, rows: np.ndarray, batch_size: int) -> Iterator[tuple[np.ndarray, Batch]]:
        """Whole slides, as they are predicted, of which these rows count."""
        windows = [each for each in self.windows(self.whole_slides(rows)) if np.isin(each, rows).any()]
        for nodes, batch in self._read_ahead(windows, batch_size):
            yield nodes, batch | {"counted": np.isin(nodes, rows)}

    def share(
        self, rows: np.ndarray, batch: Batch, device: int, n_devices: int
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Every so many sequences of a batch; where there are too few, one that does not count."""
        if n_devices == 1:
            return rows, batch
        mine = batch["slide"] % n_devices == device
        there = mine if mine.any() else batch["slide"] == 0
        part = {name: values[there] for name, values in batch.items()}
        if "around" in part:
            place = np.append(np.cumsum(there) - 1, -1)  # the last is that of no neighbour
            part["around"] = place[part["around"]]
        return rows[there], part | {"counted": part["counted"] & mine[there]}

    def rows_at_once(self, batch_size: int) -> int:
        """Rows of the longest sequences."""
        return min(len(self), batch_size * self.longest)

    def trial(self, rows: np.ndarray) -> Batch:
        """Rows like the first, in sequences as long as any."""
        first = {name: np.repeat(each, len(rows), axis=0) for name, each in self.take(rows[:1]).items()}
        first["slide"] = np.arange(len(rows)) // self.longest
        if self.neighbours:
            first["around"] = np.repeat(np.arange(len(rows))[:, None], self.neighbours, axis=1)
        return first

    @property
    def longest(self) -> int:
        """Rows that a sequence has at most."""
        sizes = np.bincount(np.unique(self.slide, return_inverse=True)[1])
        return int(max(-(-size // _pieces(size, self.max_spots)) for size in sizes.tolist()))

    def whole_slides(self, rows: np.ndarray) -> np.ndarray:
        """All rows of the slides that some are of."""
        return np.flatnonzero(np.isin(self.slide, self.slide[rows]))

    def windows(self, rows: np.ndarray, turned: float = 0.0) -> list[np.ndarray]:
        """Rows by slide, or by windows whose sides are turned by an angle."""
        axes = np.array([[np.cos(turned), -np.sin(turned)], [np.sin(turned), np.cos(turned)]])
        found = []
        for slide in np.unique(self.slide[rows]):
            mine = rows[self.slide[rows] == slide]
            pieces = _pieces(len(mine), self.max_spots)
            found += [mine[part] for part in _cut(self.places[mine] @ axes.T, np.arange(len(mine)), pieces)]
        return found

    def _read_ahead(self, windows: Sequence[np.ndarray], batch_size: int) -> Iterator[tuple[np.ndarray, Batch]]:
        """So many sequences at a time, the next ones read while some are used."""

        def read(some: Sequence[np.ndarray]) -> tuple[np.ndarray, Batch]:
            nodes = np.concatenate(some)
            number = np.repeat(np.arange(len(some)), [len(each) for each in some])
            return nodes, self._with_slides(nodes, self.inputs.take(nodes), number)

        parts = [windows[start : start + batch_size] for start in range(0, len(windows), batch_size)]
        if not parts:
            return
        with ThreadPoolExecutor(1) as pool:
            ahead = pool.submit(read, parts[0])
            for part in parts[1:]:
                following = pool.submit(read, part)
                yield ahead.result()
                ahead = following
            yield ahead.result()

    def _with_slides(self, nodes: np.ndarray, batch: Batch, slide: np.ndarray) -> Batch:
        batch = {**batch, "slide": slide.astype(np.int64), "counted": np.ones(len(nodes), bool)}
        if self.positions is not None:
            batch["positions"] = self.positions[nodes]
        if self.neighbours:
            batch["around"] = self._around(nodes, slide)
        return batch

    def _around(self, nodes: np.ndarray, slide: np.ndarray) -> np.ndarray:
        """Rows of a batch next to each within its sequence, (n, k), -1 for none."""
        parts = [np.flatnonzero(slide == each) for each in np.unique(slide)]
        tables = [nearest_of(self.places[nodes[mine]], self.neighbours) for mine in parts]
        around = np.full((len(nodes), max([1, *(table.shape[1] for table in tables)])), -1)
        for table, mine in zip(tables, parts, strict=True):
            around[mine, : table.shape[1]] = np.where(table < 0, -1, mine[table])
        return around


class WholeSlides(Sequences):
    """Sequences of which whole slides are looked at, whatever rows of them are asked for."""

    def in_order(self, rows: np.ndarray, batch_size: int) -> Iterator[tuple[np.ndarray, Batch]]:
        """All rows of each slide, a sequence at a time."""
        return self._read_ahead(self.windows(self.whole_slides(rows)), 1)


def as_arrays(inputs: Inputs, who: str) -> tuple[Inputs, dict[str, np.ndarray]]:
    """Inputs without ``"places"``, ``"positions"`` and ``"slide"``, and these three, the second if it is given."""
    arrays = dict(inputs.arrays) if isinstance(inputs, Arrays) else {}
    if "places" not in arrays:
        raise ValueError(
            f"{who} sees a spot among those of its slide: it takes 'places', (n, 2) in µm, beside 'tiles', and "
            "'slide', (n,), where spots are of several slides."
        )
    n = len(inputs)
    found: dict[str, np.ndarray] = {}
    found |= {name: np.asarray(arrays.pop(name)) for name in ("places", "positions", "slide") if name in arrays}
    found.setdefault("slide", np.zeros(n, int))
    shapes: dict[str, tuple[int, ...]] = {"places": (n, 2), "positions": (n, 2), "slide": (n,)}
    for name, shape in shapes.items():
        if name in found and found[name].shape != shape:
            raise ValueError(f"{name!r} is {found[name].shape}; for {n} spots it is {shape}.")
    found["slide"] = np.unique(found["slide"], return_inverse=True)[1]
    return TileArray(arrays) if isinstance(inputs, TileArray) else Arrays(arrays), found


def _pieces(n: int, max_spots: int | None) -> int:
    """Windows that so many rows are cut into."""
    return 1 if max_spots is None else max(1, -(-n // max_spots))


def _cut(places: np.ndarray, rows: np.ndarray, pieces: int) -> list[np.ndarray]:
    """Rows in so many pieces of nearly the same size, each cut across the longer side of what it is of."""
    if pieces == 1:
        return [rows]
    first = int(np.ptp(places[rows], axis=0).argmax())
    order = np.lexsort((places[rows, 1 - first], places[rows, first]))
    half = len(rows) * (pieces // 2) // pieces
    left, right = np.sort(rows[order[:half]]), np.sort(rows[order[half:]])
    return [*_cut(places, left, pieces // 2), *_cut(places, right, pieces - pieces // 2)]
