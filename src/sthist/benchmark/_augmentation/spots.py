"""The spots of a benchmark of augmentation: their tiles and expression, read once, and which of them are for what."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist._settings import logger
from sthist.regression.data.expression import expression_targets
from sthist.regression.rows import expression_rows
from sthist.systems.synthesis.spots import DEFAULT_GENES, chosen_rows, one_description, sample_and_name
from sthist.systems.synthesis.train import readers_of, rows_on_image
from sthist.training.batches import Tiles
from sthist.training.crops import kept_rows
from sthist.training.split_groups import group_rows
from sthist.training.splits import Split, as_split, folds_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sthist.regression.data.targets import Targets
    from sthist.systems.synthesis.model import C2L
    from sthist.training.rows import SampleRows
    from sthist.training.split_groups import Grouping

SPLITS = ("random", "block")

BLOCK_TEST = 0.25
"""Part of the spots that tests, in whole blocks, where nothing else is said."""

LEAST = 2
"""Spots that an adapter needs, and that a correlation needs."""


@dataclass(frozen=True, eq=False)
class Spots:
    """All spots that can be trained or tested on."""

    rows: SampleRows
    names: list[tuple[str, str]]  # sample and spot of each
    tiles: np.ndarray  # (n, px, px, 3), as the central model takes them
    targets: Targets  # expression of all genes that can be meant
    described: str  # what was normalised, and how
    genes: Sequence[str] | int | None  # as of the verb

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def sample(self) -> np.ndarray:
        """Name of the sample of each spot."""
        return np.array([name for name, _ in self.names], object)

    def columns(self, adapted: np.ndarray) -> np.ndarray:
        """The genes that an adapter of some spots listens to: named, or the most expressed of these spots."""
        n_genes = len(self.targets.names)
        if self.genes is not None and not isinstance(self.genes, int):
            return np.arange(n_genes)
        n = min(DEFAULT_GENES, n_genes) if self.genes is None else self.genes
        mean, _ = self.targets.statistics(adapted)
        return np.sort(np.argsort(-mean, kind="stable")[:n])


@dataclass(frozen=True, eq=False)
class Division:
    """Which spots are for what, with one seed."""

    adapted: dict[float, np.ndarray]  # by the fraction; a smaller one is a part of a larger one
    test: np.ndarray
    unit: np.ndarray  # (n_test,) number of what each test spot is drawn with: its block, or itself


def read_spots(
    data: Any, central: C2L, genes: Sequence[str] | int | None, table: str | None, image: str | None
) -> Spots:
    """All spots whose tile lies on the image and that have any expression."""
    rows = expression_rows(data, table, None)
    described = one_description(rows)
    readers, places = readers_of(rows, image, central.config)
    rows = chosen_rows(rows, rows_on_image(rows, readers, places, central.config.spec.size_um))
    targets = expression_targets(rows, None if isinstance(genes, int) else genes)
    if not targets.complete:
        sample, gene = (int(each) for each in np.argwhere(~targets.measured)[0])
        raise ValueError(f"{rows.names[sample]} lacks the gene {targets.names[gene]!r}, which genes= names.")
    if isinstance(genes, int) and not 1 <= genes <= len(targets.names):
        raise ValueError(f"genes={genes}: the samples have {len(targets.names)} genes in common.")
    there = np.asarray(targets.values.sum(axis=1)).ravel() > 0
    if not there.all():
        logger.warning("%d of %d spots have no expression; they are left out.", int((~there).sum()), len(there))
        kept = np.flatnonzero(there)
        rows = chosen_rows(rows, kept)
        targets = replace(targets, values=targets.values[kept], sample=targets.sample[kept])
    with kept_rows(Tiles(readers, places, rows.sample, rows.row), central.config.px) as tiles:
        kept_tiles = np.array(tiles)
    return Spots(rows, sample_and_name(rows), kept_tiles, targets, described, genes)


def settle_split(split: Any, fractions: Sequence[float], n: int) -> Split:
    """The split that is meant, with the part that tests; refuses fractions that leave nothing."""
    found = as_split(split)
    if not isinstance(found.by, str) or found.by in ("patient", "sample"):
        raise ValueError(
            f"split is {found.by!r}; spots of the same slides are parted by one of {list(SPLITS)}, or by a column of "
            "obs that holds 'train' and 'test'."
        )
    if not (found.test is None or (isinstance(found.test, float) and found.by in SPLITS)):
        raise ValueError(
            f"test={found.test!r}; with 'random' and 'block' it is a part of the spots, from 0 to 1, and a column of "
            "obs says itself which spots test."
        )
    for each in fractions:
        if not 0 < each < 1:
            raise ValueError(f"fractions has {each!r}; each is a part of the spots, between 0 and 1.")
        if round(each * n) < LEAST:
            raise ValueError(
                f"{each:g} of {n} spots are {round(each * n)}; an adapter needs {LEAST} at least, and learns little "
                "from less than some dozens."
            )
    if found.by not in SPLITS:
        return found
    largest = max(fractions)
    test = found.test
    if test is None:
        test = 1 - largest if found.by == "random" else min(BLOCK_TEST, 1 - largest)
    if largest + test > 1 + 1e-9:
        raise ValueError(f"{largest:g} of the spots to adapt to and {test:g} to test on are more than all of them.")
    if round(test * n) < LEAST:
        raise ValueError(f"{test:g} of {n} spots are {round(test * n)}; {LEAST} at least are needed to test on.")
    return replace(found, test=test)


def grouped_for(spots: Spots, split: Split, size_um: float) -> Grouping | None:
    """Squares of tissue, or what a column says of each spot; None where spots are drawn one by one."""
    if split.by == "random":
        return None
    found = group_rows(spots.rows.units(size_um), split.by, block_um=split.block_um, gap_um=split.gap_um)
    if split.by != "block" and found.parts is None:
        raise ValueError(f"The column {split.by!r} of obs says of no spot that it is to 'train' or to 'test'.")
    return found


def divided(spots: Spots, split: Split, grouping: Grouping | None, fractions: Sequence[float], seed: int) -> Division:
    """Which spots test, and which a central model is adapted to, for each of the fractions."""
    n, rng = len(spots), np.random.default_rng([seed, 20])
    wanted = {each: round(each * n) for each in fractions}
    if grouping is None:
        assert isinstance(split.test, float)
        order = rng.permutation(n)
        most = max(wanted.values())
        pool, test = order[:most], np.sort(order[most : most + round(split.test * n)])
        unit = np.arange(len(test))
    else:
        ((train, test),) = folds_of(grouping, np.zeros(n, int), test=split.test, seed=seed)
        if grouping.parts is not None:
            pool, unit = rng.permutation(np.flatnonzero(grouping.parts == "train")), np.arange(len(test))
        else:
            blocks = rng.permutation(np.unique(grouping.groups[train]))
            pool = np.concatenate([rng.permutation(train[grouping.groups[train] == block]) for block in blocks])
            unit = np.unique(grouping.groups[test], return_inverse=True)[1]
    largest = max(wanted, key=lambda each: wanted[each])
    if wanted[largest] > len(pool):
        raise ValueError(
            f"A fraction of {largest:g} are {wanted[largest]} of {n} spots, and split={split.by!r} leaves {len(pool)} "
            f"that are apart from the {len(test)} that test: lower the fraction"
            + (", or take larger blocks, sthist.models.Split('block', block_um=)." if split.by == "block" else ".")
        )
    return Division({each: np.sort(pool[:size]) for each, size in wanted.items()}, test, unit)
