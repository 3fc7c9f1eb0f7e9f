"""Which colour stands for what: settled once for a figure, and asked by all of its panels and its legend."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist._messages import plain
from sthist._settings import logger
from sthist._tables.labels import class_codes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes

GREY = "#d3d3d3"
NO_CLASS = "NA"
"""How the legend calls points without a class, as scanpy does."""

UNKNOWN, UNKNOWN_GREY = "unknown", "#9a9a9a"
"""Cells that :func:`sthist.tl.cell_types` could not tell: darker than what has no class, and in no other colour."""

LEGEND_NAMES, ROW_INCHES = 150, 0.16


@dataclass(frozen=True, eq=False)
class Classes:
    """Classes in their order, and the colour of each."""

    names: list[str]
    colours: np.ndarray  # (names, 3), 0 to 1
    present: frozenset[str]  # those that some row has: the others keep their colour, and are not in the legend

    def codes(self, values: pd.Series) -> np.ndarray:
        """The place of each row's class in ``names``, (n,) int; -1 for none."""
        codes, names = class_codes(values)
        place = {name: i for i, name in enumerate(self.names)}
        return np.array([*(place.get(name, -1) for name in names), -1])[codes]

    def of(self, codes: np.ndarray) -> np.ndarray:
        """Colours of codes, (..., 3): grey for none."""
        from matplotlib.colors import to_rgb

        return np.vstack([self.colours, to_rgb(GREY)])[codes]

    def by_name(self) -> dict[str, tuple[float, ...]]:
        """The colour of each class."""
        return {name: tuple(colour) for name, colour in zip(self.names, self.colours, strict=True)}

    def legend(self, ax: Axes, *, none: bool = False) -> None:
        """Dots with the names of the classes that there are, right of the axes; with ``none``, grey is one of them."""
        shown = [i for i, name in enumerate(self.names) if name in self.present]
        if len(shown) > LEGEND_NAMES:
            logger.warning(
                "The figure has no legend: %d classes are more than the %d that can be read.", len(shown), LEGEND_NAMES
            )
            return
        codes = np.array([*shown, *([-1] if none else [])], int)
        colour_legend(ax, [*(self.names[i] for i in shown), *([NO_CLASS] if none else [])], self.of(codes))


@dataclass(frozen=True)
class Numbers:
    """A colour map and its limits."""

    cmap: Any
    vmin: float
    vmax: float

    @property
    def how(self) -> dict[str, Any]:
        """As matplotlib's functions take it."""
        return {"cmap": self.cmap, "vmin": self.vmin, "vmax": self.vmax}

    def bar(self, ax: Axes, label: str = "") -> None:
        """The colour bar of these limits, opaque, beside the axes."""
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import Normalize

        shown = ScalarMappable(Normalize(self.vmin, self.vmax), self.cmap)
        ax.figure.colorbar(shown, ax=ax, shrink=0.8, pad=0.02).set_label(label, fontsize="small")


def colours_of(
    tables: Sequence[AnnData],
    column: str,
    *,
    rows: Sequence[np.ndarray] | None = None,
    classes: bool = False,
    cmap: Any = None,
    palette: Mapping[str, Any] | None = None,
    vmin: float | str | None = None,
    vmax: float | str | None = None,
) -> Classes | Numbers:
    """What colours the values of a column have, for all tables of a figure, of which only some ``rows`` may be shown.

    Limits are those of the numbers that are shown; a class has one colour whichever rows are. With ``classes``, numbers
    are names, too.
    """
    values = [table.obs[column] for table in tables]
    if classes or not all(is_number(each) for each in values):
        kept: dict[str, Any] = {}
        for table in tables:
            kept = kept_colours(table, column) | kept
        return settle_classes(values, kept, palette)
    if palette is not None:
        raise ValueError(f"palette= gives colours of classes, and {column!r} holds numbers: pass cmap=.")
    shown = values if rows is None else [each[row] for each, row in zip(values, rows, strict=True)]
    return settle_numbers(np.concatenate([numbers_of(each) for each in shown]), repr(column), cmap, vmin, vmax)


def is_number(values: pd.Series) -> bool:
    """Whether a column is drawn with a colour map: numbers are, but no truth values, and no categories."""
    return getattr(values.dtype, "kind", "O") in "fiu"


def numbers_of(values: pd.Series) -> np.ndarray:
    """A column of numbers, NaN for those that are missing."""
    return values.to_numpy(np.float64, na_value=np.nan)


def settle_numbers(
    values: np.ndarray, of: str, cmap: Any, vmin: float | str | None = None, vmax: float | str | None = None
) -> Numbers:
    """Limits that are given, or those of the values."""
    known = values[np.isfinite(values)]
    if not known.size:
        raise ValueError(f"There is nothing to draw: none of the {values.size} values of {of} is a finite number.")
    numbers = Numbers(cmap, limit(vmin, known, "p0"), limit(vmax, known, "p100"))
    if numbers.vmin > numbers.vmax:
        raise ValueError(
            f"vmin is {numbers.vmin:g}, and vmax {numbers.vmax:g}: values of {of} lie from {known.min():g} to "
            f"{known.max():g}."
        )
    return numbers


def settle_classes(
    values: Iterable[pd.Series], kept: Mapping[str, Any] | None = None, palette: Mapping[str, Any] | None = None
) -> Classes:
    """Order and colours of the classes of some columns: of the palette, else kept, else the usual ones."""
    columns = list(values)
    found = [class_codes(each) for each in columns]
    names = list(dict.fromkeys(name for _, each in found for name in each))
    if len(columns) > 1 and not any(hasattr(each, "cat") for each in columns):
        names = sorted(names)
    present = frozenset(each[code] for codes, each in found for code in np.unique(codes[codes >= 0]))
    return Classes(names, class_colours(names, kept, palette), present)


def class_colours(
    names: Sequence[str], kept: Mapping[str, Any] | None = None, palette: Mapping[str, Any] | None = None
) -> np.ndarray:
    """A colour for each class, (names, 3), no two alike: of the palette, else kept, else the next of the usual ones."""
    from matplotlib.colors import is_color_like, to_hex, to_rgb

    given = {str(name): colour for name, colour in (palette or {}).items()}
    wrong = [name for name, colour in given.items() if not is_color_like(colour)]
    if wrong:
        raise ValueError(
            f"palette= gives {plain(wrong[0])!r} the colour {plain(given[wrong[0]])!r}, which matplotlib does not know."
        )
    usual = {UNKNOWN: UNKNOWN_GREY}
    known = {name: to_rgb(colour) for name, colour in (usual | dict(kept or {}) | given).items() if name in names}
    taken = {to_hex(colour) for colour in known.values()}
    free = (colour for colour in _usual_colours(len(names)) if to_hex(colour) not in taken)
    return np.array([known[name] if name in known else next(free) for name in names]).reshape(-1, 3)


def _usual_colours(n: int) -> Iterator[tuple[float, float, float]]:
    """Colours of matplotlib that are told apart, as far as they reach; then hues, each far from the one before."""
    import matplotlib as mpl
    from matplotlib.colors import hsv_to_rgb, to_rgb

    yield from (to_rgb(colour) for colour in mpl.color_sequences["tab10" if n <= 10 else "tab20"])
    more = [to_rgb(colour) for name in ("tab20b", "tab20c") for colour in mpl.color_sequences[name]]
    yield from (colour for colour in more if max(colour) > min(colour) + 0.05)  # grey is what has no class
    for i in range(n + 64):
        hsv = [(i * 0.61803399) % 1, (0.95, 0.6, 0.8)[i % 3], (0.8, 0.95, 0.55)[i // 3 % 3]]
        red, green, blue = map(float, hsv_to_rgb(hsv))
        yield red, green, blue


def kept_colours(table: AnnData, column: str) -> dict[str, Any]:
    """Colours that scanpy keeps of a column's categories, by name; those that are too few or none are left aside."""
    from matplotlib.colors import is_color_like

    kept = table.uns.get(f"{column}_colors")
    if kept is None:
        return {}
    if isinstance(kept, Mapping):
        named = {str(name): colour for name, colour in kept.items()}
    else:
        _, names = class_codes(table.obs[column], blank=True)
        if len(kept) < len(names):
            return {}
        named = dict(zip(names, kept, strict=False))
    named = {name: str(each) if isinstance(each, str) else each for name, each in named.items()}
    wrong = [name for name, colour in named.items() if not is_color_like(colour)]
    if wrong:
        logger.warning(
            "uns[%r] is left aside: what it gives for %r is no colour, but %r.",
            f"{column}_colors",
            wrong[0],
            named[wrong[0]],
        )
    return {} if wrong else named


def colour_legend(ax: Axes, names: Sequence[str], colours: Any) -> None:
    """Dots with their names, right of the axes."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], marker="o", linestyle="none", color=tuple(colour), label=name)
        for name, colour in zip(names, colours, strict=True)
    ]
    place_legend(ax, handles=handles)


def place_legend(ax: Axes, **entries: Any) -> None:
    """A legend right of the axes, in as many columns as it needs to be no higher; a figure of ours becomes wider."""
    fit = max(8, int(ax.get_window_extent().height / ax.figure.dpi / ROW_INCHES))
    columns = max(1, -(-len(entries["handles"]) // fit))
    legend = ax.legend(
        **entries,
        loc="upper left",
        bbox_to_anchor=(1.01, 1),
        frameon=False,
        fontsize="small" if columns == 1 else "x-small",
        ncols=columns,
        columnspacing=1.0,
    )
    if columns > 1 and getattr(ax.figure, MADE_HERE, False):
        figure: Any = ax.figure
        inches = legend.get_window_extent(figure.canvas.get_renderer()).width / figure.dpi
        figure.set_figwidth(figure.get_figwidth() + inches * (columns - 1) / columns)


MADE_HERE = "_made_by_sthist"
"""Attribute of figures that are not a user's own, whose size may change."""


def limit(value: float | str | None, pixels: np.ndarray, default: str) -> float:
    """A colour limit: a number, or a quantile of the pixels such as ``"p99"``, as in scanpy."""
    value = default if value is None else value
    if not isinstance(value, str):
        return float(value)
    try:
        percent = float(value.removeprefix("p"))
    except ValueError:
        percent = np.nan
    if not (value.startswith("p") and 0 <= percent <= 100):
        raise ValueError(f"A colour limit is a number or a quantile from 'p0' to 'p100', not {value!r}.")
    return float(np.percentile(pixels, percent))
