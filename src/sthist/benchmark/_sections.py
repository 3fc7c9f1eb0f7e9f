"""Sections whose laid tiles are split into those that train a virtual-staining model and those that test it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist import _sample
from sthist._sample.samples import patients_of_rows, samples_of
from sthist._settings import logger
from sthist.benchmark._tiles import require_column, require_images
from sthist.tiles import TileReader
from sthist.tiles._images.image import open_he, open_image
from sthist.tiles._laid_tiles import laid_tiles
from sthist.tiles._sampling import lies_inside
from sthist.tiles._spec import same_spec
from sthist.training.split_groups import INSIDE, group_rows, kinds_of, watched_part
from sthist.training.splits import Grouping, Units, folds_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anndata import AnnData
    from spatialdata import SpatialData

    from sthist._sample.elements import HighResElements
    from sthist.tiles import TileSpec

PART = "benchmark_part"
"""Column that tells a trainer which rows are for what."""

FACTS = {"tissue": ("tissue", "organ"), "platform": ("platform", "technology")}
"""Splits by what is recorded of a sample, and the names under which readers record it."""

FOLDS, MOST_GROUPS = 5, 10
"""Folds where nobody says how many, and how many groups are left out one by one at most."""


@dataclass(frozen=True, eq=False)
class Section:
    """A sample whose tiles are trained on or scored.

    Attributes
    ----------
    name
        Of the sample.
    elements
        Its nuclear stain and molecules.
    table
        Of all its tiles.
    he
        Key of its H&E.
    target
        Reads the H&E.
    """

    name: str
    elements: HighResElements
    table: AnnData
    he: str
    target: TileReader

    @property
    def sdata(self) -> SpatialData:
        """The sample."""
        return self.elements.sdata


@dataclass(frozen=True, eq=False)
class Sections:
    """All tiles of all samples, in one list.

    Attributes
    ----------
    sections
        The samples.
    tiles
        Key of their tiles.
    spec
        Of the tiles that are scored.
    section, row
        (n,) which sample, and which row of its table, each tile is.
    codes
        (n,) class of each tile, which is spread evenly over folds; None where there are no classes.
    units
        By what they can be split.
    """

    sections: list[Section]
    tiles: str
    spec: TileSpec
    section: np.ndarray
    row: np.ndarray
    codes: np.ndarray | None
    units: Units

    def __len__(self) -> int:
        return len(self.row)

    def by_section(self, index: np.ndarray) -> list[tuple[Section, np.ndarray, np.ndarray]]:
        """Samples of some tiles, the rows of their tables, and the places of these rows in the list of tiles."""
        found = []
        for i in np.unique(self.section[index]):
            places = np.flatnonzero(self.section[index] == i)
            found.append((self.sections[i], self.row[index[places]], places))
        return found

    def real(self, index: np.ndarray) -> np.ndarray:
        """Real H&E of tiles, (n, px, px, 3)."""
        pixels = np.empty((len(index), self.spec.px, self.spec.px, 3), np.uint8)
        for section, rows, places in self.by_section(index):
            pixels[places] = section.target.read(section.table.obsm["spatial"][rows])
        return pixels

    def tissues(self, tissue: Any, index: np.ndarray) -> np.ndarray | None:
        """What a model is told of tiles by a trainer's argument: a text, a mapping of sample to text, or a column."""
        if tissue is None:
            return None
        if not isinstance(tissue, str):
            return np.array([str(tissue[name]) for name in self.units.sample[index]], object)
        if tissue in self.units.obs:
            return self.units.obs[tissue].to_numpy(object)[index]
        return np.full(len(index), tissue, object)

    def column(self, name: str, index: np.ndarray) -> np.ndarray:
        """Values of a column of the tiles' tables."""
        values = np.empty(len(index), object)
        for section, rows, places in self.by_section(index):
            values[places] = section.table.obs[name].to_numpy(object)[rows]
        return values


@dataclass(frozen=True, eq=False)
class Fold:
    """Places of tiles in the list: those that train, say when to stop, and test."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def find_sections(
    data: Any,
    tiles: str,
    *,
    largest_um: float = 0.0,
    classes: str | None = None,
    samples: Any = None,
    he: str | None = None,
    **elements: Any,
) -> Sections:
    """Collect the tiles that lie on the H&E and the nuclear stain of their sample."""
    listed = samples_of(data, samples)
    sections, kept = [], []
    spec: Any = None
    for sample in listed:
        section, own = _section(sample, tiles, he, elements)
        if spec is not None and not same_spec(own, spec):
            msg = (
                f"Tiles {tiles!r} of sample {sample.name!r} are {own}, those of {listed[0].name!r} {spec}; lay them "
                f"alike."
            )
            raise ValueError(msg)
        spec = own
        if classes is not None:
            require_column(section.table.obs, tiles, classes)
        sections.append(section)
        kept.append(_inside(section, max(largest_um, spec.size_um)))
    which = np.repeat(np.arange(len(sections)), [len(rows) for rows in kept])
    row = np.concatenate(kept)
    units = _units(listed, sections, which, row, max(largest_um, spec.size_um))
    codes = None
    if classes is not None:
        labels = units.obs[classes].astype("category").cat.codes.to_numpy().astype(int)
        codes = labels - labels.min()
    return Sections(sections, tiles, spec, which, row, codes, units)


def _section(sample: Any, tiles: str, he: str | None, elements: dict[str, Any]) -> tuple[Section, TileSpec]:
    require_images(sample)
    sdata = sample.data
    image = open_he(sdata, he)
    table, spec = laid_tiles(sdata, tiles)
    target = TileReader.from_image(image, spec, fill=255, allow_upsampling=True)
    return Section(sample.name, _sample.find_high_res(sdata, **elements), table, image.key, target), spec


def _inside(section: Section, size_um: float) -> np.ndarray:
    """Rows whose tiles lie on both images."""
    stain = open_image(section.sdata, section.elements.nuclear)
    centres = np.asarray(section.table.obsm["spatial"], np.float64)[:, :2]
    inside = [lies_inside(image, centres, size_um) for image in (section.target.image, stain)]
    rows = np.flatnonzero(np.logical_and.reduce(inside))
    if not len(rows):
        msg = (
            f"None of the {len(centres)} tiles of sample {section.name!r}, {size_um:g} µm wide, lies on both "
            f"{section.he!r} and {', '.join(map(repr, section.elements.nuclear))}."
        )
        raise ValueError(msg)
    return rows


def _units(listed: list[Any], sections: list[Section], which: np.ndarray, row: np.ndarray, size_um: float) -> Units:
    import pandas as pd

    frames = [section.table.obs for section in sections]
    common = [str(name) for name in frames[0].columns if all(name in frame for frame in frames)]
    starts = np.cumsum([0, *map(len, frames)])[:-1]
    index = starts[which] + row
    obs = pd.concat([frame[common].astype(object) for frame in frames]).iloc[index]
    patients = pd.concat([patients_of_rows(sample, frame) for sample, frame in zip(listed, frames, strict=True)])
    centres = np.concatenate([np.asarray(section.table.obsm["spatial"], np.float64)[:, :2] for section in sections])
    names = np.array([section.name for section in sections])
    return Units(names[which], patients.to_numpy(object)[index], obs, centres[index], size_um)


def grouped(
    sections: Sections, split: Any, *, samples: Any = None, block_um: float | None = None, gap_um: float | None = None
) -> Grouping:
    """The tiles in groups of which none is both trained on and tested."""
    units = sections.units
    if isinstance(split, str) and split in FACTS and split not in units.obs:
        facts = {section.name: _fact(section, split, samples) for section in sections.sections}
        obs = units.obs.assign(**{split: [facts[name] for name in units.sample]})
        units = Units(units.sample, units.patient, obs, units.centres, units.size_um)
    return group_rows(units, split, block_um=block_um, gap_um=gap_um)


def _fact(section: Section, what: str, samples: Any) -> str:
    """Tissue or platform of a sample: of the table of samples, else what its reader has recorded."""
    if samples is not None:
        import pandas as pd

        table = samples if hasattr(samples, "columns") else pd.read_csv(samples, dtype=str)
        table = table.set_index("sample") if "sample" in table else table
        said = table[what].rename(index=str).to_dict().get(section.name) if what in table else None
        if pd.notna(said):
            return str(said)
    recorded = section.sdata.attrs.get("sthist", {}).get("sample", {})
    for name in FACTS[what]:
        if recorded.get(name):
            return str(recorded[name])
    msg = (
        f"The {what} of sample {section.name!r} is not known: give samples=, a table with the columns 'sample' "
        f"and {what!r}, or record it in "
        f"sdata.attrs['sthist']['sample'][{what!r}]."
    )
    raise KeyError(msg)


def folds_in(
    sections: Sections,
    grouping: Grouping,
    *,
    tissue: Any,
    test: Any,
    folds: int | None,
    validation: float,
    n_max: int | None,
    seed: int,
) -> list[Fold]:
    """The folds; of each at most ``n_max`` tiles test, drawn at random."""
    told = sections.tissues(tissue, np.arange(len(sections)))
    told = np.full(len(sections), "") if told is None else told
    codes = kinds_of(grouping, told) if sections.codes is None else sections.codes
    made: list[Fold] = []
    for train, held_out in folds_of(grouping, codes, test=test, folds=fold_count(grouping, folds), seed=seed):
        kept, watched, _ = watched_part(sections.units, grouping, told, train, validation, seed=seed)
        if validation and not len(watched):
            logger.warning("Fold %d: no group (%s) can be spared for validation.", len(made), grouping.by)
        tested = held_out
        if n_max is not None and len(tested) > n_max:
            drawn = np.random.default_rng([seed, len(made)]).permutation(len(tested))[:n_max]
            tested = held_out[np.sort(drawn)]
        made.append(Fold(kept, watched, tested))
    return made


def fold_count(grouping: Grouping, folds: int | None) -> int:
    """How many folds: as was said, else one for each of a few groups that have names, else five."""
    if folds is not None:
        return folds
    n_groups = len(np.unique(grouping.groups))
    if grouping.by in INSIDE or n_groups > MOST_GROUPS:
        return FOLDS
    return max(2, n_groups)  # one group cannot be split, which is said where folds are made


def training_data(sections: Sections, grouping: Grouping, fold: Fold, spec: TileSpec) -> Mapping[str, SpatialData]:
    """Samples as a trainer takes them: the same elements, and a table of tiles whose column says what each is for.

    Neither the user's objects nor their stores are touched. Tiles that the gap between the sides leaves out are not
    there, nor is a sample without a tile.
    """
    from spatialdata import SpatialData

    parts = {"train": fold.train, "validation": fold.validation, "test": fold.test}
    index = np.concatenate(list(parts.values()))
    labels = np.repeat(list(parts), [len(each) for each in parts.values()])
    codes = np.unique(grouping.groups, return_inverse=True)[1][index]
    data = {}
    for section, rows, places in sections.by_section(index):
        table = section.table[rows].copy()
        table.obs[PART] = labels[places]
        # A patient on both sides would be a leak; of these groups it is known that none is.
        table.obs["patient"] = [f"group {code}" for code in codes[places]]
        table.uns["tile_spec"] = spec.to_dict()
        sdata = section.sdata
        tables = {name: each for name, each in sdata.tables.items() if name != f"{sections.tiles}_table"}
        data[section.name] = SpatialData(
            images=dict(sdata.images),
            labels=dict(sdata.labels),
            points=dict(sdata.points),
            shapes=dict(sdata.shapes),
            tables=tables | {f"{sections.tiles}_table": table},
            attrs=dict(sdata.attrs),
        )
    return data
