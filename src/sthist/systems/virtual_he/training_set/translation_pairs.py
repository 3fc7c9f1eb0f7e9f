"""Pairs of tiles to train a translation on, and the order in which they are seen."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

AHEAD = 3
"""Batches that are read while one is trained on."""


class Pairs(Protocol):
    """What is trained on: tiles of the input, and of the H&E of the same places.

    Attributes
    ----------
    px
        Side of the tiles.
    prompts
        Prompt of each pair, (n,).

    Notes
    -----
    With a further attribute ``fingerprint``, a text, a training is resumed on the same pairs only; without it their number decides.
    """

    px: int
    prompts: Sequence[str]

    def __len__(self) -> int:
        """Number of pairs."""

    def read(self, rows: np.ndarray, draw: tuple[int, int] | None) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets, (n, px, px, 3) uint8 each.

        Parameters
        ----------
        rows
            Which pairs.
        draw
            Seed and epoch, of which the augmentation of each row is a function; None to leave tiles as they are.
        """


class ArrayPairs:
    """Pairs that lie in memory.

    Parameters
    ----------
    inputs, targets
        (n, px, px, 3) uint8.
    prompts
        One for all, or one each.
    augment
        Turn and mirror pairs.

    Raises
    ------
    ValueError
        If these are not pairs of square RGB tiles of 8 bits.

    Examples
    --------
    >>> import numpy as np, sthist
    >>> tiles = np.zeros((4, 64, 64, 3), np.uint8)
    >>> len(sthist.models.ArrayPairs(tiles, tiles))
    4
    """

    def __init__(
        self, inputs: Any, targets: Any, prompts: str | Sequence[str] = "dapi2he", *, augment: bool = True
    ) -> None:
        self.inputs, self.targets = np.asarray(inputs), np.asarray(targets)
        for name, tiles in (("inputs", self.inputs), ("targets", self.targets)):
            if tiles.dtype != np.uint8 or tiles.ndim != 4 or tiles.shape[1] != tiles.shape[2] or tiles.shape[3] != 3:
                msg = f"{name} are {tiles.dtype} of shape {tiles.shape}; pairs are uint8 of shape (n, px, px, 3)."
                raise ValueError(msg)
        if self.inputs.shape != self.targets.shape:
            msg = f"inputs have shape {self.inputs.shape} and targets {self.targets.shape}; pairs agree."
            raise ValueError(msg)
        self.px = self.inputs.shape[1]
        self.prompts = [prompts] * len(self) if isinstance(prompts, str) else list(prompts)
        if len(self.prompts) != len(self):
            msg = f"There are {len(self)} pairs and {len(self.prompts)} prompts; give one for all, or one each."
            raise ValueError(msg)
        self.augment = augment

    def __len__(self) -> int:
        return len(self.inputs)

    def read(self, rows: np.ndarray, draw: tuple[int, int] | None) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets of some rows."""
        pairs = self.inputs[rows], self.targets[rows]
        if draw is None or not self.augment:
            return pairs
        ways = [way_of(row, draw) for row in rows]
        return turned(pairs[0], ways), turned(pairs[1], ways)


def way_of(row: int, draw: tuple[int, int]) -> int:
    """Which of the eight ways of a square a row is turned and mirrored in an epoch."""
    return int(np.random.default_rng([*draw, int(row)]).integers(8))


def turned(tiles: np.ndarray, ways: Sequence[int]) -> np.ndarray:
    """Tiles (n, px, px, c) turned by quarters and, from way 4 on, mirrored."""
    out = np.empty_like(tiles)
    for i, way in enumerate(ways):
        tile = np.rot90(tiles[i], way % 4)
        out[i] = tile[:, ::-1] if way >= 4 else tile
    return out


def order_of(n: int, batch_size: int, steps: int, seed: int, epoch: int) -> np.ndarray:
    """Rows of each step of an epoch, (steps, batch_size): all rows in a new order, over and over.

    A function of its arguments alone; passes go on from one epoch to the next.
    """
    first, last = epoch * steps * batch_size, (epoch + 1) * steps * batch_size
    passes = range(first // n, (last - 1) // n + 1)
    rows = np.concatenate([np.random.default_rng([seed, 1, each]).permutation(n) for each in passes])
    return rows[first - passes[0] * n :][: last - first].reshape(steps, batch_size)


class Batches:
    """The batches of an epoch, read ahead by threads.

    Parameters
    ----------
    pairs
        To train on.
    order
        Rows of each batch, (steps, batch_size).
    draw
        Of the augmentation.
    """

    def __init__(self, pairs: Pairs, order: np.ndarray, draw: tuple[int, int] | None) -> None:
        self.pairs, self.order, self.draw = pairs, order, draw

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Rows, inputs and targets."""
        waiting: deque[tuple[np.ndarray, Future[Any]]] = deque()
        pool = ThreadPoolExecutor(2)
        try:
            for rows in self.order:
                waiting.append((rows, pool.submit(self.pairs.read, rows, self.draw)))
                if len(waiting) > AHEAD:
                    yield self._next(waiting)
            while waiting:
                yield self._next(waiting)
        finally:
            pool.shutdown(cancel_futures=True)

    @staticmethod
    def _next(waiting: deque[tuple[np.ndarray, Future[Any]]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rows, future = waiting.popleft()
        return rows, *future.result()
