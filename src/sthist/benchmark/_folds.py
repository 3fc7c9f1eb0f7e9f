"""Laid tiles of all samples, parted into those that train a virtual-staining model and those that test it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist._sample.samples import naming
from sthist._settings import logger
from sthist.benchmark._tiles import on_images, require_column
from sthist.systems.virtual_he.training_set.sections import Section, find_sections, laid_spec
from sthist.training.split_groups import INSIDE, group_rows, kinds_of, units_of, watched_part
from sthist.training.splits import Grouping, Split, Units, folds_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import pandas as pd
    from spatialdata import SpatialData

    from sthist.tiles import TileSpec

PART = "benchmark_part"
"""Column that tells a trainer which rows are for what."""

FACTS = {"tissue": ("tissue", "organ"), "platform": ("platform", "technology")}
"""Splits by what is recorded of a sample, and the names under which readers record it."""

FOLDS, MOST_GROUPS = 5, 10
"""Folds where nobody says how many, and how many groups are left out one by one at most."""


@dataclass(frozen=True, eq=False)
class StudyTiles:
    """The laid tiles of all samples, in one list."""

    sections: list[Section]
    key: str  # of the tiles
    spec: TileSpec
    section: np.ndarray  # (n,) which section each tile is of
    row: np.ndarray  # (n,) which row of its section's table each tile is
    codes: np.ndarray | None  # (n,) class of each tile, which is spread evenly over folds
    units: Units  # by what the tiles can be split

    def __len__(self) -> int:
        return len(self.row)

    def by_section(self, index: np.ndarray) -> Iterator[tuple[Section, np.ndarray, np.ndarray]]:
        """Sections of some tiles, the places of their tiles among these, and the centres of these tiles."""
        assert self.units.centres is not None
        for i in np.unique(self.section[index]):
            places = np.flatnonzero(self.section[index] == i)
            yield self.sections[i], places, self.units.centres[index[places]]

    def real(self, index: np.ndarray) -> np.ndarray:
        """Real H&E of tiles, (n, px, px, 3)."""
        pixels = np.empty((len(index), self.spec.px, self.spec.px, 3), np.uint8)
        for section, places, centres in self.by_section(index):
            pixels[places] = section.histology(self.spec).read(centres)
        return pixels

    def tissues(self, tissue: Any, index: np.ndarray) -> np.ndarray | None:
        """What a model is told of tiles by a trainer's argument: a text, a mapping of sample to text, or a column."""
        if tissue is None:
            return None
        if not isinstance(tissue, str):
            return np.array([str(tissue[name]) for name in self.units.sample[index]], object)
        return self.column(tissue, index) if tissue in self.units.obs else np.full(len(index), tissue, object)

    def column(self, name: str, index: np.ndarray) -> np.ndarray:
        """Values of a column of the tiles' tables."""
        return self.units.obs[name].to_numpy(object)[index]


@dataclass(frozen=True, eq=False)
class Fold:
    """Places of tiles in the list: those that train, say when to stop, and test."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def find_tiles(data: Any, key: str, *, largest_um: float, classes: str | None, **elements: Any) -> StudyTiles:
    """Collect the tiles that lie, up to ``largest_um`` around their centres, on H&E and nuclear stain of their sample.

    ``elements`` are those of :func:`find_sections`.
    """
    sections = find_sections(data, tiles=key, **elements)
    spec: Any = laid_spec(sections)
    tables: list[Any] = [section.laid for section in sections]
    size_um, rows = max(largest_um, spec.size_um), []
    for section, table in zip(sections, tables, strict=True):
        with naming(section.name):
            if classes is not None:
                require_column(table.obs, key, classes)
            images = [reader.image for reader in (section.histology(spec), section.stain(spec))]
            rows.append(np.flatnonzero(on_images(images, table.centres, size_um, (section.he, section.nuclear[0]))))
    which, row = np.repeat(np.arange(len(sections)), list(map(len, rows))), np.concatenate(rows)
    starts = np.cumsum([0, *(len(table.obs) for table in tables)])[:-1]
    units = units_of(
        [section.sample for section in sections],
        [table.obs for table in tables],
        [table.centres for table in tables],
        size_um,
        starts[which] + row,
    )
    codes = None
    if classes is not None:
        labels = units.obs[classes].astype("category").cat.codes.to_numpy().astype(int)
        codes = labels - labels.min()
    return StudyTiles(sections, key, spec, which, row, codes, units)


def grouped(tiles: StudyTiles, split: Split, samples: pd.DataFrame | None) -> Grouping:
    """The tiles in groups of which none is both trained on and tested."""
    units = tiles.units
    by = split.by
    if isinstance(by, str) and by in FACTS and by not in units.obs:
        facts = {section.name: _fact(section, by, samples) for section in tiles.sections}
        obs = units.obs.assign(**{by: [facts[name] for name in units.sample]})
        units = Units(units.sample, units.patient, obs, units.centres, units.size_um)
    return group_rows(units, by, block_um=split.block_um, gap_um=split.gap_um)


def _fact(section: Section, what: str, samples: pd.DataFrame | None) -> str:
    """Tissue or platform of a sample: of the table of samples, else what its reader has recorded."""
    if samples is not None and what in samples:
        table = samples.set_index("sample") if "sample" in samples else samples
        value = table[what].rename(index=str).to_dict().get(section.name)
        if value is not None and value == value:  # NaN is not itself
            return str(value)
    recorded = section.sdata.attrs.get("sthist", {}).get("sample", {})
    for name in FACTS[what]:
        if recorded.get(name):
            return str(recorded[name])
    raise KeyError(
        f"The {what} of sample {section.name!r} is not known: give samples=, a table with the columns 'sample' and "
        f"{what!r}, or record it in sdata.attrs['sthist']['sample'][{what!r}]."
    )


def folds_in(
    tiles: StudyTiles,
    grouping: Grouping,
    *,
    tissue: Any,
    split: Split,
    n_tiles: int | None,
    seed: int,
) -> list[Fold]:
    """The folds; of each at most ``n_tiles`` tiles test, drawn at random."""
    tissues = tiles.tissues(tissue, np.arange(len(tiles)))
    tissues = np.full(len(tiles), "") if tissues is None else tissues
    codes = kinds_of(grouping, tissues) if tiles.codes is None else tiles.codes
    result: list[Fold] = []
    for train, held_out in folds_of(
        grouping, codes, test=split.test, folds=fold_count(grouping, split.folds), seed=seed
    ):
        kept, watched, _ = watched_part(tiles.units, grouping, tissues, train, split.validation, seed=seed)
        if split.validation and not len(watched):
            logger.warning("Fold %d: no group (%s) can be spared for validation.", len(result), grouping.by)
        tested = held_out
        if n_tiles is not None and len(tested) > n_tiles:
            drawn = np.random.default_rng([seed, len(result)]).permutation(len(tested))[:n_tiles]
            tested = held_out[np.sort(drawn)]
        result.append(Fold(kept, watched, tested))
    return result


def fold_count(grouping: Grouping, folds: int | None) -> int:
    """How many folds: as asked, else one for each of a few groups that have names, else five."""
    if folds is not None:
        return folds
    n_groups = len(np.unique(grouping.groups))
    if grouping.by in INSIDE or n_groups > MOST_GROUPS:
        return FOLDS
    return max(2, n_groups)  # one group cannot be split, which is said where folds are made


def training_data(tiles: StudyTiles, grouping: Grouping, fold: Fold, spec: TileSpec) -> Mapping[str, SpatialData]:
    """Samples as a trainer takes them: the same elements, and a table of tiles whose column says what each is for.

    Neither the user's objects nor their stores are touched. Tiles that the gap between the sides leaves out are not
    there, nor is a sample without a tile.
    """
    from anndata import AnnData
    from spatialdata import SpatialData

    parts = {"train": fold.train, "validation": fold.validation, "test": fold.test}
    index = np.concatenate(list(parts.values()))
    labels = np.repeat(list(parts), [len(each) for each in parts.values()])
    codes = np.unique(grouping.groups, return_inverse=True)[1][index]
    data = {}
    for section, places, centres in tiles.by_section(index):
        assert section.laid is not None
        obs = section.laid.obs.iloc[tiles.row[index[places]]].copy()
        obs[PART] = labels[places]
        # A patient on both sides would be a leak; of these groups it is known that none is.
        obs["patient"] = [f"group {code}" for code in codes[places]]
        table = AnnData(obs=obs, obsm={"spatial": centres}, uns={"tile_spec": spec.to_dict()})
        sdata = section.sdata
        data[section.name] = SpatialData(
            images=dict(sdata.images),
            labels=dict(sdata.labels),
            points=dict(sdata.points),
            shapes=dict(sdata.shapes),
            tables=dict(sdata.tables) | {f"{tiles.key}_table": table},
            attrs=dict(sdata.attrs),
        )
    return data
