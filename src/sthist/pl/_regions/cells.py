"""Cells on the slide, and in an embedding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sthist._sample.elements import region_geometry
from sthist._sample.samples import samples_of
from sthist._sample.verbs import verb
from sthist.pl._base import add_scale_bar, background, finish, make_axes, panel_mpp, show_image
from sthist.pl._colours import Numbers, colours_of
from sthist.pl._embedding import Colouring, bare, key_of, points_of
from sthist.pl._regions.panels import Panel
from sthist.pl._regions.slide import regions

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from anndata import AnnData
    from matplotlib.axes import Axes
    from spatialdata import SpatialData


@verb
def cells(
    sdata: SpatialData | Mapping[str, SpatialData],
    color: str | Sequence[str],
    *,
    table: str | None = None,
    layer: str | None = None,
    basis: str | None = "auto",
    image: str | bool | None = None,
    within: Any = None,
    alpha: float = 0.8,
    size: float | None = None,
    cmap: str = "viridis",
    palette: Mapping[str, Any] | None = None,
    vmin: float | str | None = None,
    vmax: float | str | None = None,
    axes: Any = None,
    save: str | Path | None = None,
) -> list[Axes]:
    """Draw cells (or spots, or tiles) in the colours of a column or a gene, on the slide and in an embedding.

    What is in view is drawn, at the resolution at which it is shown: cells as their polygons, with an outline where
    they are large, and as dots where they are too small to have a shape. A class has one colour, and a colour stands
    for one number, in all panels, whichever part of the slide is shown. Without a class, a cell is clear on the slide,
    and grey in the embedding.

    Parameters
    ----------
    sdata
        One sample; or a mapping of name to sample, each of which has its row of panels.
    color
        Column of ``obs``: categories, such as cell types, or numbers; a gene; or a column in ``obsm``. Several have a
        panel each on the slide, without the embedding, as :func:`sthist.pl.regions` draws them.
    table
        Key of the table; by default that of the cells or of the nuclei, else the only one that has ``color``.
    layer
        Layer with the expression of a gene; ``X`` by default.
    basis
        Key of the embedding in ``obsm``, with or without ``X_``; None for the slide alone. By default ``"umap"``, where
        all samples have it.
    image
        What lies below; the H&E by default, or nothing where there is none, or for False.
    within
        A box (x0, y0, x1, y1) in µm, a polygon, or the key of shapes, whose box is shown; cells elsewhere are left out
        of the embedding, too.
    alpha
        Opacity on the slide.
    size
        Area of a point of the embedding, in square points of type.
    cmap
        Colour map of numbers.
    palette
        Colours of classes by name; by default those that scanpy keeps in ``uns["<color>_colors"]``, and others for
        classes that have none.
    vmin, vmax
        Limits of numbers: a value, or a quantile of what is shown such as ``"p99"``; all of it by default.
    axes
        Axes to draw on, two for each sample; one without ``basis``.
    save
        File to save the figure to.

    Returns
    -------
    The axes: slide, embedding; sample by sample.

    Raises
    ------
    KeyError
        If there is no such column, table or embedding.
    ValueError
        If several tables could be meant, nothing lies there, no number is finite, or a limit cannot be read.

    Examples
    --------
    >>> import sthist
    >>> sdata = sthist.datasets.toy(size_um=300)
    >>> axes = sthist.pl.cells(sdata, "cell_type")
    >>> len(axes[0].get_images())  # the H&E, and the cells
    2
    """
    if not isinstance(color, str):
        if basis not in {"auto", None}:
            raise ValueError(
                f"basis={basis!r} is drawn beside one colour, and {len(color)} are given: take one of them."
            )
        how: dict[str, Any] = {"layer": layer, "image": image, "within": within, "alpha": alpha, "cmap": cmap}
        limits: dict[str, Any] = {"palette": palette, "vmin": vmin, "vmax": vmax}
        return regions(sdata, color, table, **how, **limits, axes=axes, save=save)
    several = isinstance(sdata, Mapping)
    samples = samples_of(sdata)
    panels = [Panel(each.name if several else color, each.data, color, table, layer) for each in samples]
    for each in panels:
        each.view(each.bounds if within is None else region_geometry(each.sdata, within).bounds)
    if basis == "auto":
        basis = "umap" if all(each.table is not None and key_of(each.table, "umap") for each in panels) else None
    points = [None if basis is None else points_of(_table(each), basis) for each in panels]
    coloured, shown = [_coloured(each) for each in panels], [each.shown for each in panels]
    found = colours_of(coloured, color, rows=shown, cmap=cmap, palette=palette, vmin=vmin, vmax=vmax)
    made = Colouring(color, found)
    names = [color] if basis is None else [color, bare(basis)]
    drawn = make_axes(len(names) * len(panels), len(names), panels[0].extent, axes, names * len(panels))
    k = len(names)
    for i, (each, places) in enumerate(zip(panels, points, strict=True)):
        own = drawn[i * k : (i + 1) * k]
        mpp = panel_mpp(own[0], each.extent, saved=save is not None)
        below = background(each.sdata, image, each.extent, mpp)
        if below is not None:
            show_image(own[0], below, each.extent, each.name)
        made.paint(own[0], coloured[i], each.polygons, each.extent, each.name, mpp, alpha)
        each.outline(own[0], mpp)
        add_scale_bar(own[0], each.extent, "black")
        if places is not None:
            made.scatter(own[1], coloured[i], places, size, each.shown)
            x0, y0, x1, y1 = each.extent
            own[1].set_box_aspect((y1 - y0) / (x1 - x0))
            own[1].set(xticks=[], yticks=[], xlabel=f"{bare(basis or '')} 1", ylabel=f"{bare(basis or '')} 2")
    for last in drawn[k - 1 :: k] if isinstance(found, Numbers) else [drawn[k - 1]]:
        made.explain(last, coloured if basis is not None else [])
    return finish(drawn, save)


def _table(panel: Panel) -> AnnData:
    if panel.table is None:
        raise KeyError(f"Shapes {panel.rows.shapes!r} have no table, and so no embedding.")
    return panel.table


def _coloured(panel: Panel) -> AnnData:
    assert panel.coloured is not None
    return panel.coloured
