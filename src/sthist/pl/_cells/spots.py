"""A gene as spots measured it, and as it was predicted for their cells."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist import _sample
from sthist._sample.elements import region_geometry
from sthist._sample.verbs import verb
from sthist._tables.expression import log_expression
from sthist._tables.find import called, find_table
from sthist._tables.genes import closest
from sthist._tables.rows import polygons_um, rows_of
from sthist.pl._base import (
    add_scale_bar,
    background,
    finish,
    make_axes,
    paint_values,
    panel_mpp,
    show_image,
)
from sthist.pl._colours import Numbers, settle_numbers
from sthist.pl._regions.found import gene_values

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData
    from matplotlib.axes import Axes
    from spatialdata import SpatialData

    from sthist._tables.rows import Rows

LOG, SCALED = "ln(1 + 10,000 y / Σy)", "predicted, in the unit of the model"


@verb
def spot_cells(
    sdata: SpatialData,
    gene: str,
    *,
    spots: str | None = None,
    table: str | None = None,
    layer: str | None = None,
    shared: bool | None = None,
    image: str | None = None,
    within: Any = None,
    alpha: float = 0.8,
    cmap: str = "viridis",
    vmin: float | str | None = 0.0,
    vmax: float | str | None = "p99",
    axes: Any = None,
    save: str | Path | None = None,
) -> list[Axes]:
    """Draw a gene as spots measured it, and beside it as it was predicted for each cell.

    Parameters
    ----------
    sdata
        One sample, or the path of its store.
    gene
        A gene that both tables have.
    spots
        Key of the table of the spots, of which logarithms are drawn; by default that of the sample.
    table
        Key of the table of the cells; ``"nuclei_table"`` by default, else the only other one with the gene.
    layer
        Layer with the prediction; ``X`` by default.
    shared
        Whether both panels have one scale, with limits of all values of both. By default they do where the prediction
        was made in logarithms (``scale="log"``), as the measurement is; else each has its own, as units differ. A line
        above says which.
    image
        What lies below; the H&E by default, or nothing where there is none.
    within
        A box (x0, y0, x1, y1) in µm, a polygon, or the key of shapes, whose box is shown; all spots by default.
    alpha
        Opacity.
    cmap
        Colour map.
    vmin, vmax
        Limits: a value, or a quantile of what is shown such as ``"p99"``.
    axes
        Two axes to draw on.
    save
        File to save the figure to.

    Returns
    -------
    Two axes: spots, cells.

    Raises
    ------
    KeyError
        If there are no such tables, layer or gene.
    ValueError
        If nothing lies there, no number is finite, or a limit cannot be read.

    Examples
    --------
    >>> import anndata as ad, numpy as np, sthist
    >>> sdata = sthist.datasets.toy("visium", size_um=600)
    >>> sthist.pp.nuclei(sdata)
    >>> cells = sdata["nuclei_table"]  # as tl.cell_expression would fill it
    >>> made = ad.AnnData(np.ones((cells.n_obs, 1)), obs=cells.obs, obsm=dict(cells.obsm), uns=dict(cells.uns))
    >>> made.var_names = ["EPCAM"]
    >>> del sdata["nuclei_table"]
    >>> sdata["nuclei_table"] = made
    >>> len(sthist.pl.spot_cells(sdata, "EPCAM"))
    2
    """
    import shapely

    measured, of_spots = _spots(sdata, gene, spots)
    where, adata = _cells(sdata, gene, table, measured.table)
    cells = rows_of(sdata, where)
    predicted = gene_values(adata, gene, layer, called(where))
    if shared is None:
        shared = _in_logs(adata)
    polygons = polygons_um(sdata, measured), polygons_um(sdata, cells)
    bounds = shapely.total_bounds(polygons[0]).tolist() if within is None else region_geometry(sdata, within).bounds
    extent = (bounds[0], bounds[1], bounds[2], bounds[3])
    drawn = make_axes(2, 2, extent, axes, ["spots", "cells"])
    mpp = min(panel_mpp(ax, extent, saved=save is not None) for ax in drawn)
    box = shapely.box(*extent)
    shown = [
        values[shapely.intersects(each, box)] for values, each in zip((of_spots, predicted), polygons, strict=True)
    ]
    if shared:
        both = settle_numbers(np.concatenate(shown), repr(gene), cmap, vmin, vmax)
        limits = [both, both]
    else:
        limits = [settle_numbers(each, repr(gene), cmap, vmin, vmax) for each in shown]
    below = background(sdata, image, extent, mpp)
    titles = [f"{gene}, {len(shown[0]):,} spots", f"{gene}, {len(shown[1]):,} cells"]
    pairs = zip(drawn, titles, polygons, (of_spots, predicted), limits, strict=True)
    for ax, title, shapes, values, numbers in pairs:
        if below is not None:
            show_image(ax, below, extent, title)
        raster = paint_values(shapes, values, extent, mpp)
        show_image(ax, np.ma.masked_invalid(raster), extent, title, alpha=alpha, **numbers.how)
        ax.set_title(title, fontsize="medium")
        add_scale_bar(ax, extent, "black")
    _explain(drawn, limits, bool(shared))
    return finish(drawn, save)


def _explain(drawn: list[Axes], limits: list[Numbers], shared: bool) -> None:
    """Colour bars: one for both, or one for each, with their units."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    units = [LOG] if shared else [f"measured, {LOG}", SCALED]
    whose = [drawn] if shared else [[ax] for ax in drawn]
    for axes, numbers, unit in zip(whose, limits, units, strict=False):
        colours = ScalarMappable(Normalize(numbers.vmin, numbers.vmax), numbers.cmap)
        bar = axes[0].figure.colorbar(colours, ax=axes, shrink=0.75, pad=0.02)
        bar.set_label(f"{unit}, one scale" if shared else f"{unit} (own scale)", fontsize="small")


def _spots(sdata: SpatialData, gene: str, spots: str | None) -> tuple[Rows, np.ndarray]:
    """The rows of the spots, and their log expression of a gene."""
    key = spots or _sample.roles(sdata).get("spots", {}).get("table")
    if key not in sdata.tables:
        key = _sample.find_expression_table(sdata, spots)
    adata = sdata.tables[key]
    if gene not in adata.var_names:
        raise KeyError(f"{called(key)} has no gene {gene!r}.{closest(gene, map(str, adata.var_names))}")
    place = int(np.flatnonzero(adata.var_names == gene)[0])
    logs = log_expression(adata, called(key)[0].lower() + called(key)[1:])[:, place]
    return rows_of(sdata, str(key)), np.asarray(logs.toarray(), np.float64).ravel()


def _cells(sdata: SpatialData, gene: str, table: str | None, spots: str | None) -> tuple[str, AnnData]:
    """The table of the cells: nuclei, or the only one with the gene beside that of the spots."""
    usual = sdata.tables.get("nuclei_table") if hasattr(sdata.tables, "get") else None
    if table is None and usual is not None and gene in usual.var_names:
        table = "nuclei_table"
    measured = sdata.tables[str(spots)]
    key, adata = find_table(
        sdata,
        table,
        lambda adata: adata is not measured and gene in adata.var_names,
        f"the gene {gene!r} of cells",
        gene,
    )
    if gene not in adata.var_names:
        raise KeyError(f"{called(key)} has no gene {gene!r}.{closest(gene, map(str, adata.var_names))}")
    return str(key), adata


def _in_logs(adata: AnnData) -> bool:
    """Whether a record says that the predictions of a table are logarithms."""
    records = [made for made in adata.uns.get("sthist", {}).values() if isinstance(made, Mapping)]
    return any(made.get("call") == "tl.cell_expression" and made.get("scale") == "log" for made in records)
