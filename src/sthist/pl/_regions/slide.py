"""Regions on the slide in the colours of genes, columns, features and scores, several at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist import _sample
from sthist._messages import listed
from sthist._sample.elements import region_geometry
from sthist._sample.samples import samples_of
from sthist._sample.verbs import verb
from sthist.pl._base import add_scale_bar, background, finish, make_axes, panel_mpp, show_image
from sthist.pl._colours import Classes, Numbers, colours_of, numbers_of, settle_numbers
from sthist.pl._embedding import Colouring
from sthist.pl._regions.panels import Panel, draw_lines

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from spatialdata import SpatialData

    from sthist.pl._base import Extent


@verb
def regions(
    sdata: SpatialData | Mapping[str, SpatialData],
    color: str | Sequence[str] | None = None,
    regions: str | None = None,
    *,
    layer: str | None = None,
    image: str | bool | None = None,
    within: Any = None,
    shared: bool | None = None,
    alpha: float = 0.8,
    cmap: str = "viridis",
    palette: Mapping[str, Any] | None = None,
    vmin: float | str | None = None,
    vmax: float | str | None = None,
    ncols: int = 3,
    axes: Any = None,
    save: str | Path | None = None,
) -> list[Axes]:
    """Draw regions on the slide (cells, spots, tiles, nuclei, annotations), one panel for each thing that colours them.

    What is in view is drawn, at the resolution at which it is shown: regions as their outlines, with a line around
    each where they are large, and as dots where they are too small to have a shape. A class has one colour, and a
    colour stands for one number, in all samples. :func:`sthist.pl.cells`, :func:`sthist.pl.spots` and
    :func:`sthist.pl.tiles_on_slide` are this plot for the regions that they are called after.

    Parameters
    ----------
    sdata
        One sample, or the path of its store; or a mapping of name to sample, each of which has its row of panels.
    color
        One thing, or several: a gene, a column of ``obs`` or of the shapes, a column of a table in ``obsm`` (a cell
        type of a composition, a feature of an encoder), also as ``"key:column"`` (``"X_pca:0"``). None for outlines
        alone.
    regions
        Key of the shapes, or of their table; by default, for each colour, the cells where their table has it, else the
        only table that has it.
    layer
        Layer with the expression of genes; ``X`` by default.
    image
        Key of what lies below: by default the H&E, or nothing where there is none; ``"virtual_he"`` for the virtual
        one, False for nothing.
    within
        A box (x0, y0, x1, y1) in µm, a polygon, or the key of shapes, whose box is shown; all regions by default.
    shared
        Whether all numbers have one scale, as the colour bars say. By default, columns of one frame in ``obsm`` do,
        such as shares of cell types, and genes, features and columns of ``obs`` each have their own.
    alpha
        Opacity over an image.
    cmap
        Colour map of numbers.
    palette
        Colours of classes by name; by default those that scanpy keeps in ``uns["<color>_colors"]``, and others for
        classes that have none.
    vmin, vmax
        Limits of numbers: a value, or a quantile of what is shown such as ``"p99"``; all of it by default.
    ncols
        Panels in a row; of several samples, each has a row of its own.
    axes
        Axes to draw on, one for each panel.
    save
        File to save the figure to.

    Returns
    -------
    The axes, in µm: one for each colour, sample by sample.

    Raises
    ------
    KeyError
        If there is no such gene, column, table or image; the closest name is proposed.
    ValueError
        If several tables or arrays could be meant, nothing lies there, no number is finite, or a limit cannot be read.

    Examples
    --------
    >>> import sthist
    >>> sdata = sthist.datasets.toy(size_um=300)
    >>> axes = sthist.pl.regions(sdata, ["EPCAM", "COL1A1", "cell_type"])
    >>> [ax.get_title() for ax in axes]
    ['EPCAM', 'COL1A1', 'cell_type']
    """
    names: list[str | None] = [color] if color is None or isinstance(color, str) else list(color)
    if not names:
        raise ValueError("color= is empty: name a gene or a column, or leave it out to draw outlines alone.")
    several = isinstance(sdata, Mapping)
    samples = samples_of(sdata)
    panels = [[Panel(each.name, each.data, name, regions, layer) for name in names] for each in samples]
    if palette is not None and all(panel.is_number or panel.color is None for row in panels for panel in row):
        raise ValueError(f"palette= gives colours of classes, and {listed(map(str, names))} hold numbers: pass cmap=.")
    for row in panels:
        for panel in row[1:]:
            panel.like(row[0])
        extent = _extent(row, within)
        for panel in row:
            panel.view(extent)
    colours = [_colours(column, cmap, palette, vmin, vmax) for column in zip(*panels, strict=True)]
    scaled = _on_one_scale(panels, colours, shared, (vmin, vmax))
    columns = len(names) if several else ncols
    titles = [_title(panel, several, len(names) > 1) for row in panels for panel in row]
    drawn = make_axes(len(titles), columns, panels[0][0].extent, axes, titles)
    for row, of_row, of_titles in zip(panels, _rows(drawn, len(names)), _rows(titles, len(names)), strict=True):
        mpp = min(panel_mpp(ax, row[0].extent, saved=save is not None) for ax in of_row)
        below = background(row[0].sdata, image, row[0].extent, mpp)
        for panel, ax, title, found, note in zip(row, of_row, of_titles, colours, scaled, strict=True):
            _draw(panel, ax, title, found, below, mpp, alpha)
            if found is not None and (not several or row is panels[0] or isinstance(found, Numbers)):
                _explain(ax, panel, found, note)
    return finish(drawn, save)


def _draw(
    panel: Panel,
    ax: Axes,
    title: str,
    colours: Classes | Numbers | None,
    below: np.ndarray | None,
    mpp: float,
    alpha: float,
) -> None:
    if below is not None:
        show_image(ax, below, panel.extent, title)
    if colours is None:
        x0, y0, x1, y1 = panel.extent
        draw_lines(ax, panel.polygons[panel.shown], colors="tab:cyan", linewidths=0.7)
        ax.set(title=title, xticks=[], yticks=[], xlim=(x0, x1), ylim=(y1, y0), aspect="equal")
    else:
        opacity = alpha if below is not None else 1.0
        made = Colouring(panel.color, colours)
        made.paint(ax, panel.coloured, panel.polygons, panel.extent, title, mpp, opacity)  # type: ignore[arg-type]
        panel.outline(ax, mpp)
    ax.set_title(title, fontsize="medium")
    add_scale_bar(ax, panel.extent, "black")


def _explain(ax: Axes, panel: Panel, colours: Classes | Numbers, note: str) -> None:
    """The colour bar, with what its scale is, or the legend."""
    if isinstance(colours, Numbers):
        colours.bar(ax, note)
    else:
        codes = colours.codes(panel.coloured.obs[panel.color])  # type: ignore[union-attr]
        colours.legend(ax, none=bool((codes[panel.shown] < 0).any()))


def _extent(row: list[Panel], within: Any) -> Extent:
    """What is named, else the box around all that the panels of a sample show."""
    if within is not None:
        return region_geometry(row[0].sdata, within).bounds
    bounds = np.array([panel.bounds for panel in row])
    (x0, y0), (x1, y1) = bounds[:, :2].min(0), bounds[:, 2:].max(0)
    return float(x0), float(y0), float(x1), float(y1)


def _colours(
    column: Sequence[Panel], cmap: str, palette: Mapping[str, Any] | None, vmin: Any, vmax: Any
) -> Classes | Numbers | None:
    """Of one thing in all samples."""
    name = column[0].color
    if name is None:
        return None
    tables = [panel.coloured for panel in column if panel.coloured is not None]
    palette = None if all(panel.is_number for panel in column) else palette
    return colours_of(
        tables, name, rows=[panel.shown for panel in column], cmap=cmap, palette=palette, vmin=vmin, vmax=vmax
    )


def _on_one_scale(
    panels: list[list[Panel]], colours: list[Classes | Numbers | None], shared: bool | None, limits: tuple[Any, Any]
) -> list[str]:
    """Give numbers that are compared one scale, in place; say of each colour which scale it has."""
    groups: dict[Any, list[int]] = {}
    for i, found in enumerate(colours):
        if isinstance(found, Numbers):
            first = panels[0][i]
            together = (first.rows.table, first.frame) if shared is None and first.frame is not None else shared
            groups.setdefault(together if together else i, []).append(i)
    notes = [""] * len(colours)
    if sum(map(len, groups.values())) < 2:
        return notes
    for places in groups.values():
        if len(places) > 1:
            shown = [_shown(row[i]) for row in panels for i in places]
            cmap = colours[places[0]].cmap  # type: ignore[union-attr]
            one = settle_numbers(np.concatenate(shown), "what is shown", cmap, *limits)
        for i in places:
            if len(places) > 1:
                colours[i] = one
            notes[i] = "one scale" if len(places) > 1 else "own scale"
    return notes


def _shown(panel: Panel) -> np.ndarray:
    assert panel.coloured is not None
    return numbers_of(panel.coloured.obs[panel.color])[panel.shown]


def _title(panel: Panel, several: bool, many: bool) -> str:
    """The sample where there are several, and the colour where there are several, or one sample."""
    if panel.color is None:
        return panel.name if several else panel.rows.shapes
    if not several:
        return panel.color
    return f"{panel.name}, {panel.color}" if many else panel.name


def _rows(values: Sequence[Any], n: int) -> list[list[Any]]:
    return [list(values[start : start + n]) for start in range(0, len(values), n)]


@verb
def spots(
    sdata: SpatialData | Mapping[str, SpatialData], color: str | Sequence[str] | None = None, **kwargs: Any
) -> list[Axes]:
    """Draw spots on the slide: :func:`sthist.pl.regions` for the spots of a sample.

    Parameters
    ----------
    sdata
        One sample, or the path of its store; or a mapping of name to sample.
    color
        One thing, or several, that the spots' table has, as of :func:`sthist.pl.regions`.
    kwargs
        Of :func:`sthist.pl.regions`; ``regions=`` names the spots where the reader recorded none.

    Returns
    -------
    The axes, in µm.

    Raises
    ------
    KeyError, ValueError
        As of :func:`sthist.pl.regions`; and if no spots are known.

    Examples
    --------
    >>> import sthist
    >>> sdata = sthist.datasets.toy("visium", size_um=600)
    >>> [ax.get_title() for ax in sthist.pl.spots(sdata, ["EPCAM", "COL1A1"])]
    ['EPCAM', 'COL1A1']
    """
    if "regions" not in kwargs:
        kwargs["regions"] = _spots_of(samples_of(sdata)[0].data)
    return regions(sdata, color, **kwargs)


def _spots_of(sdata: SpatialData) -> str:
    key = _sample.roles(sdata).get("spots", {}).get("table")
    return str(key) if key in sdata.tables else _sample.find_expression_table(sdata)


@verb
def tiles_on_slide(
    sdata: SpatialData | Mapping[str, SpatialData], color: str | Sequence[str] | None = None, **kwargs: Any
) -> list[Axes]:
    """Draw tiles on the slide: :func:`sthist.pl.regions` for the tiles that :func:`sthist.pp.tiles` has laid.

    Where tiles overlap, the mean of their numbers is shown, and the most frequent of their classes.

    Parameters
    ----------
    sdata
        One sample, or the path of its store; or a mapping of name to sample.
    color
        One thing, or several, that the tiles' table has, as of :func:`sthist.pl.regions`.
    kwargs
        Of :func:`sthist.pl.regions`; ``regions="tiles"`` by default.

    Returns
    -------
    The axes, in µm.

    Raises
    ------
    KeyError, ValueError
        As of :func:`sthist.pl.regions`.

    Examples
    --------
    >>> import sthist
    >>> sdata = sthist.datasets.toy(size_um=300)
    >>> sthist.pp.tissue(sdata)
    >>> sthist.pp.tiles(sdata, size_um=32, px=64)
    >>> sthist.pp.embed(sdata, "morphology", progress=False)
    >>> [ax.get_title() for ax in sthist.pl.tiles_on_slide(sdata, "X_morphology:0")]
    ['X_morphology:0']
    """
    return regions(sdata, color, **{"regions": "tiles"} | kwargs)
