"""What regions can be coloured by (columns, genes, scores), and which colour stands for what."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from sthist import _sample
from sthist._tables.find import called
from sthist._tables.genes import closest
from sthist.pl._colours import Numbers, is_number, kept_colours, numbers_of, settle_classes
from sthist.pl._regions.found import gene_values, obsm_names

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    import pandas as pd
    from anndata import AnnData

Kind = Literal["obs", "gene", "obsm"]

STEPS = 250
"""Colours of a colour map, so that a tile with an outline and nothing has at most 256."""

BRIGHTEST = 99.5
PLAIN = "#4da3ff"
MAX_CLASSES = 60_000
MAX_FOUND = 60


class Source(NamedTuple):
    """What colours regions: the group that has it, of which kind it is, its name, and the layer of a gene."""

    group: str
    kind: Kind
    name: str
    layer: str | None = None


@dataclass(frozen=True, eq=False)
class Group:
    """Regions that can be coloured: the rows of a table, or shapes without one."""

    key: str  # of the table, or of the shapes
    shapes: str
    frame: pd.DataFrame  # obs, or the columns of the shapes
    table: AnnData | None
    row_of: np.ndarray  # (shapes,) int: the row of each shape; -1 for none

    @property
    def layers(self) -> list[str]:
        """Layers of its expression."""
        return [] if self.table is None else [str(layer) for layer in self.table.layers if layer is not None]

    def has(self, kind: Kind, name: str) -> bool:
        """Whether there is such a column, gene, or column of scores."""
        if kind == "obs":
            return name in self.frame.columns
        if self.table is None:
            return False
        if kind == "gene":
            return name in self.table.var_names
        key, _, column = name.partition(":")
        return key in self.table.obsm and column in scores_of(self.table, key)

    def values(self, kind: Kind, name: str, layer: str | None) -> pd.Series:
        """The value of each row."""
        import pandas as pd

        if not self.has(kind, name):
            raise KeyError(f"{called(self.key)} has no {kind} {name!r}.{closest(name, self.names())}")
        if kind == "obs":
            return self.frame[name]
        assert self.table is not None
        if kind == "gene":
            return pd.Series(gene_values(self.table, name, layer, called(self.key)), index=self.frame.index)
        key, _, column = name.partition(":")
        scores, place = self.table.obsm[key], scores_of(self.table, key).index(column)
        if hasattr(scores, "columns"):
            return scores.iloc[:, place]
        one: Any = scores[:, place]
        one = one.toarray() if hasattr(one, "toarray") else one
        return pd.Series(np.asarray(one, np.float64).ravel(), index=self.frame.index)

    def names(self) -> Iterator[str]:
        """All that colours it, by name."""
        for _, name in self._sources():
            yield name

    def find(self, text: str) -> Iterator[Source]:
        """What has a text in its name, whatever its case."""
        folded = text.casefold()
        for kind, name in self._sources():
            if folded in name.casefold():
                yield Source(self.key, kind, name)

    def _sources(self) -> Iterator[tuple[Kind, str]]:
        for column in self.frame.columns:
            yield "obs", str(column)
        if self.table is not None:
            if self.table.X is not None or self.layers:
                for gene in self.table.var_names:
                    yield "gene", str(gene)
            for key in self.table.obsm:
                if key != "spatial":
                    for column in scores_of(self.table, key):
                        yield "obsm", f"{key}:{column}"


def scores_of(table: AnnData, key: str) -> list[str]:
    """Names of the columns of an ``obsm``: numbers from 0 on where they have none."""
    shape = table.obsm[key].shape
    return obsm_names(table, key) or ([str(i) for i in range(shape[1])] if len(shape) == 2 else [])


def find_sources(groups: Iterable[Group], text: str, most: int = MAX_FOUND) -> list[Source]:
    """What has a text in its name: those that are or begin with it first, columns before genes before scores."""
    folded = text.casefold()
    order = {"obs": 0, "gene": 1, "obsm": 2}
    found = [source for group in groups for source in group.find(text)]

    def rank(source: Source) -> tuple[bool, bool, int, int]:
        name = source.name.casefold()
        return name != folded, not name.startswith(folded), order[source.kind], len(name)

    return sorted(found, key=rank)[:most]


def settle_source(groups: Sequence[Group], color: str, table: str | None, layer: str | None) -> Source:
    """The column, gene or column of scores that a name stands for; refused where two tables have it."""
    if table is not None and table not in {group.key for group in groups}:
        known = [group.key for group in groups]
        raise KeyError(
            f"{called(table)} cannot be shown; there are {', '.join(map(repr, known)) or 'none'}."
            f"{closest(table, known)}"
        )
    among = [group for group in groups if table in (None, group.key)]
    having = [(group, kind) for group in among if (kind := _kind_of(group, color, layer)) is not None]
    if not having:
        where = "No table has" if table is None else f"{called(table)} has no"
        what = "a column, gene or score" if table is None else "column, gene or score"
        tables = _sample.describe("tables", [group.key for group in groups])
        raise KeyError(f"{where} {what} {color!r}. {tables}{closest(color, _names_of(among))}")
    if len(having) > 1:
        keys = ", ".join(repr(group.key) for group, _ in having)
        raise ValueError(f"Several tables have {color!r}: {keys}. Say which one is meant with table=.")
    group, kind = having[0]
    if layer is not None and layer not in group.layers:
        raise KeyError(
            f"{called(group.key)} has no layer {layer!r}; it has {group.layers}.{closest(layer, group.layers)}"
        )
    return Source(group.key, kind, color, layer)


def _kind_of(group: Group, name: str, layer: str | None) -> Kind | None:
    kinds: tuple[Kind, ...] = ("gene",) if layer is not None else ("obs", "gene", "obsm")
    return next((kind for kind in kinds if group.has(kind, name)), None)


def _names_of(groups: Iterable[Group]) -> Iterator[str]:
    for group in groups:
        yield from group.names()


@dataclass(frozen=True, eq=False)
class Colouring:
    """Colours of the rows of a group."""

    palette: np.ndarray  # (colours, 3) uint8
    codes: np.ndarray | None  # (rows,) int: the class of each; -1 for none
    values: np.ndarray | None  # (rows,) float64
    numbers: Numbers | None  # the limits of the values
    names: tuple[str, ...]  # of the classes
    counts: tuple[int, ...]  # rows of each class

    @property
    def n_bytes(self) -> int:
        """What it takes in memory, with its places."""
        return sum(2 * each.nbytes for each in (self.codes, self.values) if each is not None)

    @cached_property
    def places(self) -> np.ndarray:
        """The place of each row in the palette, from 1 on; 0 for none, which the last one stands for, too."""
        found = self.of_values(self.values) if self.values is not None else np.asarray(self.codes) + 1
        return np.append(found, 0).astype(np.int32)

    def without(self, hidden: frozenset[int]) -> Colouring:
        """Classes of which some are not shown."""
        if self.codes is None or not hidden:
            return self
        return replace(self, codes=np.where(np.isin(self.codes, list(hidden)), -1, self.codes))

    def limited(self, vmin: float | None, vmax: float | None, cmap: str | None) -> Colouring:
        """The same values in other limits, or another colour map."""
        if self.numbers is None:
            return self
        low = self.numbers.vmin if vmin is None else vmin
        high = self.numbers.vmax if vmax is None else vmax
        if low > high:
            raise ValueError(f"vmin is {low:g}, and vmax {high:g}: limits go from the lower to the higher one.")
        cmap = cmap or self.numbers.cmap
        return Colouring(_steps(cmap), None, self.values, Numbers(cmap, low, high), (), ())

    def of_values(self, values: np.ndarray) -> np.ndarray:
        """Places in the palette, from 1 on, of numbers; 0 for none. A colour stands for a 250th of the limits."""
        assert self.numbers is not None
        low, high = self.numbers.vmin, self.numbers.vmax
        share = (values - low) / (high - low) if high > low else np.where(np.isfinite(values), 0.5, np.nan)
        known = np.isfinite(share)
        steps = np.floor(np.clip(np.where(known, share, 0), 0, 1) * STEPS)
        return np.where(known, np.minimum(steps, STEPS - 1) + 1, 0).astype(int)

    def describe(self) -> dict[str, Any]:
        """The legend, or the colour bar, for the page."""
        colours = [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in self.palette.tolist()]
        if self.numbers is None:
            return {"kind": "classes", "names": self.names, "colours": colours, "counts": self.counts}
        known = self.values[np.isfinite(self.values)] if self.values is not None else np.empty(0)
        lowest, highest = (float(known.min()), float(known.max())) if known.size else (0.0, 0.0)
        return {
            "kind": "numbers",
            "colours": colours[:: STEPS // 50],
            "vmin": self.numbers.vmin,
            "vmax": self.numbers.vmax,
            "lowest": lowest,
            "highest": highest,
            "missing": int(len(self.values) - known.size) if self.values is not None else 0,
        }


def colouring_of(group: Group, source: Source | None, palette: Mapping[str, Any] | None = None) -> Colouring:
    """Colours of a group by a source; all in one colour without."""
    if source is None:
        codes = np.zeros(len(group.frame), int)
        return Colouring(_rgb([PLAIN]), codes, None, None, (group.key,), (len(codes),))
    values = group.values(source.kind, source.name, source.layer)
    if source.kind == "obs" and not is_number(values):
        kept = kept_colours(group.table, source.name) if group.table is not None else {}
        return _of_classes(values, kept, palette)
    numbers = numbers_of(values)
    known = numbers[np.isfinite(numbers)]
    low, high = (float(known.min()), float(np.percentile(known, BRIGHTEST))) if known.size else (0.0, 1.0)
    if not high > low:
        high = float(known.max()) if known.size else 1.0
    return Colouring(_steps("viridis"), None, numbers, Numbers("viridis", low, high), (), ())


def _of_classes(values: pd.Series, kept: dict[str, Any], palette: Mapping[str, Any] | None) -> Colouring:
    classes = settle_classes([values], kept, palette)
    if len(classes.names) > MAX_CLASSES:
        raise ValueError(f"{values.name!r} has {len(classes.names)} different names: these are no classes.")
    codes = classes.codes(values)
    counts = np.bincount(codes[codes >= 0], minlength=len(classes.names))
    colours = np.round(classes.colours * 255).astype(np.uint8)
    return Colouring(colours, codes, None, None, tuple(classes.names), tuple(counts.tolist()))


def _steps(cmap: str) -> np.ndarray:
    import matplotlib as mpl

    if cmap not in mpl.colormaps:
        raise KeyError(f"There is no colour map {cmap!r}.{closest(cmap, list(mpl.colormaps))}")
    shares = (np.arange(STEPS) + 0.5) / STEPS
    return np.asarray(mpl.colormaps[cmap](shares)[:, :3] * 255).round().astype(np.uint8)


def _rgb(colours: Sequence[str]) -> np.ndarray:
    from matplotlib.colors import to_rgb

    return np.round(np.array([to_rgb(colour) for colour in colours]) * 255).astype(np.uint8).reshape(-1, 3)
