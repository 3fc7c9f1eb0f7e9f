"""How the scores of cell types are distributed in each class of cells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sthist._messages import listed
from sthist._sample.verbs import verb
from sthist._tables.find import called, find_table
from sthist._tables.genes import closest
from sthist.pl._base import finish, panel_axes
from sthist.pl._colours import Classes, colours_of
from sthist.pl._regions.found import type_scores

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from anndata import AnnData
    from matplotlib.axes import Axes
    from spatialdata import SpatialData

BINS = 256
OVERLAP = 1.6
"""Height of the highest ridge, in distances between two."""


@verb
def cell_type_scores(
    data: SpatialData | AnnData,
    groupby: str | None = None,
    *,
    key: str = "cell_type",
    types: Sequence[str] | None = None,
    table: str | None = None,
    palette: Mapping[str, Any] | None = None,
    ncols: int = 3,
    axes: Any = None,
    save: str | Path | None = None,
) -> list[Axes]:
    """Draw how the scores of each cell type are distributed among classes of cells, as ridges.

    A panel for each type, a ridge for each class; the area of each is the same, a line stands at its median. Beside
    classes of another source, such as those of a nucleus classifier, it shows whether predicted expression agrees.

    Parameters
    ----------
    data
        One sample, or the path of its store, or a table.
    groupby
        Column of ``obs`` with the classes; those that the scores themselves gave, ``obs[key]``, by default.
    key
        Name of the types: the scores are ``obsm[key + "_scores"]``.
    types
        Types to draw, in this order; by default all.
    table
        Key of the table; by default the only one with such scores.
    palette
        Colours of classes by name; by default those that scanpy keeps, and others for classes that have none.
    ncols
        Panels in a row.
    axes
        Axes to draw on, one for each type.
    save
        File to save the figure to.

    Returns
    -------
    The axes, one for each type.

    Raises
    ------
    KeyError
        If there are no such scores, types or column.
    ValueError
        If no class has two cells with scores, or the number of axes is wrong.

    Examples
    --------
    >>> import sthist
    >>> sdata = sthist.datasets.toy(size_um=300)
    >>> sthist.tl.cell_types(sdata, {"T cell": ["CD3E", "CD8A"], "duct": ["EPCAM", "KRT8"]}, key_added="call")
    >>> axes = sthist.pl.cell_type_scores(sdata, "cell_type", key="call")
    >>> [ax.get_title() for ax in axes]
    ['T cell', 'duct']
    """

    def fits(adata: AnnData) -> bool:
        return type_scores(adata, key) is not None

    where, adata = find_table(
        data, table, fits, f"scores obsm['{key}_scores'] (tl.cell_types makes them)", f"{key}_scores"
    )
    found = type_scores(adata, key)
    if found is None:
        raise KeyError(
            f"{called(where)} has no obsm['{key}_scores']; it has {list(adata.obsm)}. tl.cell_types makes it."
        )
    names = list(found) if types is None else list(dict.fromkeys(map(str, types)))
    unknown = [name for name in names if name not in found]
    if unknown or not names:
        raise KeyError(f"There is no type {listed(unknown)}; there are {listed(found)}.")
    column = key if groupby is None else groupby
    if column not in adata.obs:
        raise KeyError(
            f"{called(where)} has no column {column!r}; it has {listed(map(str, adata.obs))}."
            f"{closest(column, map(str, adata.obs))}"
        )
    colours = colours_of([adata], column, classes=True, palette=palette)
    assert isinstance(colours, Classes)
    codes = colours.codes(adata.obs[column])
    sizes = np.bincount(codes[codes >= 0], minlength=len(colours.names))
    shown = [code for code in range(len(colours.names)) if sizes[code] > 1]
    if not shown:
        raise ValueError(f"No class of {column!r} has two cells: there is no distribution to draw.")
    drawn = panel_axes(len(names), ncols, (3.4, 0.42 * len(shown) + 1.0), axes, names)
    for number, (ax, name) in enumerate(zip(drawn, names, strict=True)):
        _draw(ax, [found[name][codes == code] for code in shown], colours.of(np.array(shown)))
        labels = [f"{colours.names[code]} ({sizes[code]:,})" for code in shown]
        ax.set_yticks(
            -np.arange(len(shown)), labels if number % ncols == 0 or axes is not None else [], fontsize="small"
        )
        ax.set_title(name, fontsize="medium")
        ax.set_xlabel("score", fontsize="small")
    return finish(drawn, save)


def _draw(ax: Axes, groups: list[np.ndarray], colours: np.ndarray) -> None:
    """Ridges from top to bottom, each over the one before."""
    from scipy.ndimage import gaussian_filter1d

    groups = [each[np.isfinite(each)] for each in groups]
    every = np.concatenate(groups)
    if not len(every):
        raise ValueError("There is nothing to draw: no cell has a finite score.")
    low, high = np.percentile(every, [0.2, 99.8])
    margin = 0.1 * max(high - low, 1e-6)
    edges = np.linspace(low - margin, high + margin, BINS + 1)
    middles = (edges[:-1] + edges[1:]) / 2
    ridges = []
    for group in groups:
        height = np.histogram(np.clip(group, edges[0], edges[-1]), edges)[0] / max(len(group), 1)
        # Scott's rule, in bins; a class of few cells is smoothed more.
        wide = np.std(group) * max(len(group), 1) ** -0.2 / (edges[1] - edges[0]) if len(group) else 1.0
        ridges.append(gaussian_filter1d(height, float(np.clip(wide, 1.5, BINS / 8)), mode="constant"))
    highest = max(max(float(each.max()) for each in ridges), 1e-12)
    for row, (ridge, group, colour) in enumerate(zip(ridges, groups, colours, strict=True)):
        line = -row + OVERLAP * ridge / highest
        ax.fill_between(
            middles, -row, line, facecolor=(*colour, 0.75), edgecolor="white", linewidth=0.8, zorder=row + 2
        )
        if len(group):
            median = float(np.median(group))
            top = float(np.interp(median, middles, line))
            ax.plot([median, median], [-row, top], color="0.15", lw=1, zorder=row + 2)
    ax.axvline(0, color="0.7", lw=0.8, ls=":", zorder=1)
    ax.set(xlim=(edges[0], edges[-1]), ylim=(-len(groups) + 0.75, OVERLAP + 0.1))
    ax.tick_params(axis="y", length=0)
    ax.tick_params(axis="x", labelsize="small")
    ax.spines[["top", "right", "left"]].set_visible(False)
