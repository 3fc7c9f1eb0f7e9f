"""Pairs that a translation is trained on: tiles of the nuclear stain with transcripts, and the H&E of these places."""

from __future__ import annotations

import hashlib
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from sthist._sample.samples import naming
from sthist.pp import StainReference
from sthist.systems.virtual_he.painting import Restain
from sthist.systems.virtual_he.training_set.augment import (
    BRIGHTNESS,
    DRAWN,
    HAZE,
    KNOTS,
    add_haze,
    other_light,
    other_panel,
)
from sthist.tiles import DensityTiles, Overlay, TileSpec
from sthist.tiles._images.window import mirrored

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sthist.systems.virtual_he.config import TranslationConfig
    from sthist.systems.virtual_he.training_set.sections import Section
    from sthist.tiles import TileReader

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
    With a further attribute ``fingerprint``, a text, a training is resumed on the same pairs only; without it their
    number decides. ``channels`` is the number of channels of the inputs, where it is not three.
    """

    px: int
    prompts: Sequence[str]

    def __len__(self) -> int:
        """Number of pairs."""

    def read(self, rows: np.ndarray, draw: tuple[int, int] | None) -> tuple[np.ndarray, np.ndarray]:
        """Inputs (n, px, px, channels) and targets (n, px, px, 3), uint8 each.

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
        (n, px, px, 3) uint8; inputs of a model that sees densities have more channels.
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
            if tiles.dtype != np.uint8 or tiles.ndim != 4 or tiles.shape[1] != tiles.shape[2] or tiles.shape[3] < 3:
                raise ValueError(
                    f"{name} are {tiles.dtype} of shape {tiles.shape}; pairs are uint8 of shape (n, px, px, 3)."
                )
        if self.inputs.shape[:3] != self.targets.shape[:3] or self.targets.shape[3] != 3:
            raise ValueError(f"inputs have shape {self.inputs.shape} and targets {self.targets.shape}; pairs agree.")
        self.px, self.channels = self.inputs.shape[1], self.inputs.shape[3]
        self.prompts = [prompts] * len(self) if isinstance(prompts, str) else list(prompts)
        if len(self.prompts) != len(self):
            raise ValueError(
                f"There are {len(self)} pairs and {len(self.prompts)} prompts; give one for all, or one each."
            )
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
    """The batches of an epoch, read ahead by threads: ``order`` holds the rows of each, (steps, batch_size)."""

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


@dataclass(frozen=True, eq=False)
class SectionReaders:
    """What is read of one section: views of it, the first of which is seen where nothing is augmented."""

    views: tuple[tuple[Overlay | DensityTiles, TileReader], ...]  # input and H&E, in one size of dots, or at one scale


def open_section(
    section: Section, config: TranslationConfig, *, dots_s: Sequence[float] = (), allow_upsampling: bool = False
) -> SectionReaders:
    """Make the readers of a section: its transcripts are sorted, and the range of its stain is measured."""
    where: dict[str, Any] = {"z": section.z, "image": section.nuclear, "channel": section.channel}
    with naming(section.name):
        restain = None
        if config.target == "stains":
            source = StainReference.fit(section.sdata, section.he)
            restain = Restain(source, StainReference.from_dict(config.reference))
        target = section.histology(config.spec, allow_upsampling=allow_upsampling, normalizer=restain)
        where |= {"points": section.points, "allow_upsampling": allow_upsampling}
        if config.molecules != "dots":
            density = DensityTiles(section.sdata, config.spec, **where, **config.density_style())
            return SectionReaders(((density, target), *_at_scales(section, config, density, target)))
        # The palette of a place is a part of the model.
        first = Overlay(section.sdata, config.spec, seed=0, **where, **config.style())
        others = (first.restyled(dot_s=size, dot_dpi=config.dot_dpi) for size in dots_s)
        return SectionReaders(((first, target), *((other, target) for other in others)))


N_SCALES = 4
"""Scales at which a section is seen, beside that of the tile."""


def _at_scales(
    section: Section, config: TranslationConfig, density: DensityTiles, target: TileReader
) -> list[tuple[DensityTiles, TileReader]]:
    """The section at scales from the finest that it shows to the coarsest that the model is told of."""
    if config.scales is None:
        return []
    low, high = max(config.scales[0], section.mpp), config.scales[1]
    scales = np.geomspace(low, high, N_SCALES).tolist() if low < high else []
    specs = [TileSpec.from_mpp(mpp, config.px) for mpp in scales]
    return [(density.at(spec), target.at(spec)) for spec in specs]


class SectionPairs:
    """Pairs of tiles of one or several sections, read when they are asked for.

    What is drawn of a tile (how it is turned and mirrored, its palette, the size of its dots or its scale, the light of
    its stain, its molecules) follows from seed, epoch and row alone, whatever else is in the batch. The H&E is turned
    as its input is; its colours are left as they are. Several threads may read at once. Palettes, sizes of dots and
    scales are drawn also without ``augment``.
    """

    def __init__(
        self,
        sections: Sequence[SectionReaders],
        section: np.ndarray,  # (n,) which of the sections each tile is of
        centres: np.ndarray,  # (n, 2): x, y in µm
        prompts: Sequence[str],  # (n,)
        *,
        augment: bool = True,
    ) -> None:
        self._sections, self._augment = list(sections), augment
        self._section = np.asarray(section, np.int64)
        self._centres = np.asarray(centres, np.float64).reshape(-1, 2)
        self.prompts: Sequence[str] = list(prompts)
        first, target = self._sections[0].views[0]
        self.px, self.channels = target.spec.px, len(first.channels)

    @property
    def fingerprint(self) -> str:
        """Checksum of which tiles these are, and how they are drawn."""
        styles = [[_style_of(view, target) for view, target in each.views] for each in self._sections]
        drawn = (BRIGHTNESS, HAZE, KNOTS) if self._augment else None
        digest = hashlib.blake2b(repr([styles, self.prompts, drawn]).encode(), digest_size=16)
        digest.update(self._section.tobytes())
        digest.update(self._centres.round(3).tobytes())
        return digest.hexdigest()

    def __len__(self) -> int:
        """Number of tiles."""
        return len(self._section)

    def part(self, rows: np.ndarray) -> SectionPairs:
        """Some of the tiles, read through the same readers."""
        texts = [self.prompts[row] for row in rows]
        return SectionPairs(self._sections, self._section[rows], self._centres[rows], texts, augment=self._augment)

    def read(self, rows: np.ndarray, draw: tuple[int, int] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Inputs (n, px, px, channels) and targets (n, px, px, 3) of some rows, both uint8."""
        rows = np.asarray(rows, np.int64).ravel()
        inputs = np.empty((len(rows), self.px, self.px, self.channels), np.uint8)
        targets = np.empty((len(rows), self.px, self.px, 3), np.uint8)
        for k in np.unique(self._section[rows]):
            of_section = np.flatnonzero(self._section[rows] == k)
            readers, centres = self._sections[k], self._centres[rows[of_section]]
            if draw is None:
                view, target = readers.views[0]
                inputs[of_section], targets[of_section] = view.read(centres), _histology(target, centres)
                continue
            for i, centre in zip(of_section, centres, strict=True):
                self._read_drawn(readers, centre, (*draw, int(rows[i])), inputs[i], targets[i])
        return inputs, targets

    def _read_drawn(
        self, readers: SectionReaders, centre: np.ndarray, name: tuple[int, ...], stain: Any, histology: Any
    ) -> None:
        """Read the pair of one tile as (seed, epoch, row) say, and turn both alike."""
        # The length belongs to the name: zeros at the end of a seed do not count.
        rng = np.random.default_rng([len(name), *name])
        view, target = readers.views[rng.integers(len(readers.views))]
        way = int(rng.integers(8))
        histology[:] = _histology(target, centre[None])[0]
        if isinstance(view, Overlay):
            self._draw_dots(view, centre, name, rng, stain)
        else:
            changes = (other_light(view.spec.mpp, rng), other_panel(len(view.groups) + 1, rng))
            view.read_changed(centre[None], *(changes if self._augment else ()), out=stain[None])
        if self._augment:
            stain[:], histology[:] = turned(stain[None], [way])[0], turned(histology[None], [way])[0]

    def _draw_dots(
        self, overlay: Overlay, centre: np.ndarray, name: tuple[int, ...], rng: np.random.Generator, stain: Any
    ) -> None:
        exponent, black = rng.uniform(-1, 1), rng.uniform(-HAZE, HAZE)
        if self._augment and overlay.limits is not None:
            low, high = overlay.limits
            limits = (low + black * (high - low), low + (high - low) * BRIGHTNESS**exponent)
            overlay = overlay.restyled(limits=limits)
        overlay.read(centre[None], ids=[name], out=stain[None])
        if self._augment and overlay.limits is not None:
            add_haze(stain, rng)


def _style_of(view: Overlay | DensityTiles, target: TileReader) -> tuple[Any, ...]:
    """How the input is drawn, and in which stains the target, as plain values."""
    stains = () if target.normalizer is None else (target.normalizer.to_dict(),)  # type: ignore[attr-defined]
    if isinstance(view, Overlay):
        return view.mode, view.dot_px, view.limits, *stains
    return view.groups, view.density_um, view.response, view.spec, DRAWN, *stains


def _histology(target: TileReader, centres: np.ndarray) -> np.ndarray:
    """Tiles of the H&E; beyond its border it goes on as in a mirror, as its input does."""
    tiles = target.read(centres)
    for tile, seen in zip(tiles, target.seen(centres), strict=True):
        tile[:] = mirrored(tile, seen)
    return tiles
