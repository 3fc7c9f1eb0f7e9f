"""What a predictor takes: rows of embeddings or of tiles, in batches, the same for training and for prediction."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist.training.batches import Tiles, augmented

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Batch = dict[str, np.ndarray]


class Inputs(ABC):
    """Rows in batches of named arrays, whose first axis is the row."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def take(self, rows: np.ndarray) -> Batch:
        """The arrays of some rows."""

    def in_order(self, rows: np.ndarray, batch_size: int) -> Iterator[tuple[np.ndarray, Batch]]:
        """Rows in batches, in whatever order is read fastest."""
        for start in range(0, len(rows), batch_size):
            part = rows[start : start + batch_size]
            yield part, self.take(part)

    def shuffled(self, rows: np.ndarray, batch_size: int, seed: int, epoch: int) -> Iterator[tuple[np.ndarray, Batch]]:
        """Rows in batches, in an order that is a function of seed and epoch."""
        yield from self.in_order(np.random.default_rng([seed, epoch]).permutation(rows), batch_size)

    def watched(self, rows: np.ndarray, batch_size: int) -> Iterator[tuple[np.ndarray, Batch]]:
        """Rows whose loss is wanted, in batches as those that train are, but as they are."""
        return self.in_order(rows, batch_size)

    def share(
        self, rows: np.ndarray, batch: Batch, device: int, n_devices: int
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """What one of several devices has of a batch."""
        part = slice(device, None, n_devices)
        return rows[part], {name: values[part] for name, values in batch.items()}

    def rows_at_once(self, batch_size: int) -> int:
        """Rows that a batch has at most."""
        return batch_size

    def trial(self, rows: np.ndarray) -> Batch:
        """A batch that costs as much as that of these rows; all are like the first."""
        return {name: np.repeat(values, len(rows), axis=0) for name, values in self.take(rows[:1]).items()}


@dataclass(frozen=True, eq=False)
class Arrays(Inputs):
    """Arrays in memory, by the name that a network knows them by: ``"spot"`` for embeddings, (n, d) float32."""

    arrays: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def take(self, rows: np.ndarray) -> Batch:
        """The arrays of some rows."""
        return {name: values[rows] for name, values in self.arrays.items()}


@dataclass(frozen=True, eq=False)
class Tissue(Inputs):
    """Tiles that are read from slides as they are needed; ``extra`` are arrays that a network takes beside them."""

    tiles: Tiles
    extra: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.tiles)

    def take(self, rows: np.ndarray) -> Batch:
        """Tiles of some rows, (n, px, px, 3) uint8."""
        return {"tiles": self.tiles.read(rows), **{name: values[rows] for name, values in self.extra.items()}}

    def in_order(self, rows: np.ndarray, batch_size: int) -> Iterator[tuple[np.ndarray, Batch]]:
        """Sample by sample, each chunk of the slide read once."""
        return self._with_extra(self.tiles.in_order(rows, batch_size))

    def shuffled(self, rows: np.ndarray, batch_size: int, seed: int, epoch: int) -> Iterator[tuple[np.ndarray, Batch]]:
        """Turned and mirrored, chunks of all slides mixed."""
        return self._with_extra(self.tiles.shuffled(rows, batch_size, seed, epoch))

    def _with_extra(self, batches: Iterator[Any]) -> Iterator[tuple[np.ndarray, Batch]]:
        for rows, tiles in batches:
            yield rows, {"tiles": tiles, **{name: values[rows] for name, values in self.extra.items()}}


@dataclass(frozen=True, eq=False)
class TileArray(Arrays):
    """Tiles in memory: ``{"tiles": (n, px, px, 3) uint8}``."""

    def shuffled(self, rows: np.ndarray, batch_size: int, seed: int, epoch: int) -> Iterator[tuple[np.ndarray, Batch]]:
        """Turned and mirrored."""
        for part, batch in super().shuffled(rows, batch_size, seed, epoch):
            yield part, batch | {"tiles": augmented(batch["tiles"], part, seed, epoch)}


def as_inputs(data: Any) -> Inputs:
    """Inputs as they are, embeddings (n, d), tiles (n, px, px, 3), or a mapping of name to array.

    Raises
    ------
    ValueError
        If an array is none of these, or has values that are NaN or infinite.
    """
    if isinstance(data, Inputs):
        return data
    arrays = {str(name): np.asarray(each) for name, each in data.items()} if hasattr(data, "items") else None
    if arrays is None:
        array = np.asarray(data)
        arrays = {"tiles" if array.ndim == 4 else "spot": array}
    lengths = {name: len(each) for name, each in arrays.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"The arrays have different numbers of rows: {lengths}.")
    for name, each in arrays.items():
        if each.dtype.kind == "f" and not np.isfinite(each).all():
            row = int(np.flatnonzero(~np.isfinite(each.reshape(len(each), -1)).all(axis=1))[0])
            raise ValueError(f"{name!r} is NaN or infinite, first in row {row}.")
    if "tiles" in arrays:
        tiles = arrays["tiles"]
        if tiles.ndim != 4 or tiles.shape[-1] != 3 or tiles.dtype != np.uint8:
            raise ValueError(f"Tiles are (n, px, px, 3) uint8, not {tiles.shape} {tiles.dtype}.")
        return TileArray(arrays)
    if "spot" in arrays and arrays["spot"].ndim != 2:
        raise ValueError(f"Embeddings are (n, d), tiles (n, px, px, 3); these are {arrays['spot'].shape}.")
    numbers = {name for name, each in arrays.items() if each.dtype.kind == "f"} | {"spot"}
    return Arrays({n: each.astype(np.float32, copy=False) if n in numbers else each for n, each in arrays.items()})


def joined(first: Inputs, second: Inputs) -> Inputs:
    """Rows of two inputs of one kind, arrays or tiles of slides, as one list."""
    if isinstance(first, Tissue) and isinstance(second, Tissue):
        one, other = first.tiles, second.tiles
        reader = np.concatenate([one.reader, other.reader + len(one.readers)])
        place = np.concatenate([one.place, other.place])
        tiles = Tiles([*one.readers, *other.readers], [*one.places, *other.places], reader, place)
        return Tissue(tiles, {name: np.concatenate([first.extra[name], second.extra[name]]) for name in first.extra})
    if isinstance(first, Arrays) and isinstance(second, Arrays):
        shapes = [{name: each.shape[1:] for name, each in inputs.arrays.items()} for inputs in (first, second)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"Rows of {shapes[0]} and of {shapes[1]} cannot stand in one list.")
        return type(first)({name: np.concatenate([each, second.arrays[name]]) for name, each in first.arrays.items()})
    raise ValueError(f"{type(first).__name__} and {type(second).__name__} cannot stand in one list.")
