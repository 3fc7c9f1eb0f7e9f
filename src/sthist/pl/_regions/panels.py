"""What is drawn of regions in one panel: which rows, where they lie, and in what colours."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist import _sample
from sthist._messages import listed
from sthist._tables.find import called
from sthist._tables.genes import closest
from sthist._tables.rows import Rows, polygons_um, rows_of
from sthist.pl._base import usual_width
from sthist.pl._colours import is_number
from sthist.pl._regions.found import column_or_gene, obsm_names, rows_with

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from spatialdata import SpatialData

    from sthist.pl._base import Extent

OUTLINED_PX = 14.0
"""Regions that are usually larger on the screen get an outline each."""


class Panel:
    """Regions of one sample and what colours them; ``color`` None is for outlines alone."""

    def __init__(
        self, name: str, sdata: SpatialData, color: str | None, regions: str | None = None, layer: str | None = None
    ) -> None:
        self.name, self.sdata, self.color = name, sdata, color
        self.rows, self.table, values = _find(sdata, color, regions, layer)
        self.coloured = None if color is None else _with_column(self.table, color, values)
        self.extent: Extent = (0.0, 0.0, 0.0, 0.0)
        self.shown = np.zeros(len(self.rows), bool)

    @cached_property
    def polygons(self) -> np.ndarray:
        """Outlines in µm, (n,)."""
        return polygons_um(self.sdata, self.rows)

    @cached_property
    def bounds(self) -> Extent:
        """The box around all regions."""
        import shapely

        x0, y0, x1, y1 = shapely.total_bounds(self.polygons).tolist()
        return x0, y0, x1, y1

    @property
    def is_number(self) -> bool:
        """Whether a colour map colours it."""
        return self.coloured is not None and is_number(self.coloured.obs[self.color])

    @property
    def frame(self) -> str | None:
        """The frame in ``obsm`` that the colour is a column of: its columns, such as shares, are compared."""
        adata = self.table
        if adata is None or self.color is None or self.color in adata.obs or self.color in adata.var_names:
            return None
        frames = [key for key in adata.obsm if hasattr(adata.obsm[key], "columns")]
        named = (key for key in frames if self.color in obsm_names(adata, key))
        return next(named, next((key for key in frames if self.color.startswith(f"{key}:")), None))

    def like(self, other: Panel) -> None:
        """Take over the outlines of another panel of the same sample, if they are of the same rows."""
        if (self.rows.shapes, self.rows.table) == (other.rows.shapes, other.rows.table):
            self.polygons = other.polygons

    def view(self, extent: Extent) -> None:
        """Settle what part of the slide is shown; refuse one where no region lies."""
        import shapely

        self.extent = extent
        self.shown = np.asarray(shapely.intersects(self.polygons, shapely.box(*extent)))
        if not self.shown.any():
            x0, y0, x1, y1 = extent
            raise ValueError(
                f"None of the {len(self.shown)} shapes {self.rows.shapes!r} lies in x {x0:g} to {x1:g} and y {y0:g} to "
                f"{y1:g} µm."
            )

    def outline(self, ax: Axes, mpp: float) -> None:
        """A thin line around each region in view, where they are large enough."""
        import shapely

        inside = self.polygons[self.shown]
        if usual_width(shapely.bounds(inside)) >= OUTLINED_PX * mpp:
            draw_lines(ax, inside, colors="0.15", linewidths=0.5, alpha=0.8)


def draw_lines(ax: Axes, polygons: np.ndarray, **style: Any) -> None:
    """The outlines of polygons, holes included."""
    import shapely
    from matplotlib.collections import LineCollection

    lines = shapely.get_parts(shapely.get_parts(shapely.boundary(polygons)))
    paths = [shapely.get_coordinates(line) for line in lines]
    ax.add_collection(LineCollection(paths, **style), autolim=False)


def _find(
    sdata: SpatialData, color: str | None, regions: str | None, layer: str | None
) -> tuple[Rows, AnnData | None, Any]:
    """The regions, their table, and the values of the colour where they are no column of the table."""
    if color is not None and regions is None:
        rows, adata = rows_with(sdata, color, None, layer)
    else:
        rows = rows_of(sdata, _usual_regions(sdata) if regions is None else regions)
        adata = None if rows.table is None else sdata.tables[rows.table]
    if color is None:
        return rows, adata, None
    frame = sdata.shapes[rows.shapes]
    if color in frame and color != "geometry" and (adata is None or color not in adata.obs):
        return rows, adata, frame[color].reindex(rows.instances)
    if adata is None:
        raise KeyError(
            f"Shapes {rows.shapes!r} have no table and no column {color!r}; they have {listed(map(str, frame))}."
            f"{closest(color, map(str, frame))}"
        )
    if color in adata.obs and layer is None:
        return rows, adata, adata.obs[color]
    return rows, adata, column_or_gene(adata, color, layer, called(rows.table))


def _usual_regions(sdata: SpatialData) -> str:
    """The cells, else the spots, else the only shapes."""
    cells = _sample.find_cell_table(sdata)
    if cells is not None:
        return cells
    spots = _sample.roles(sdata).get("spots", {}).get("table")
    if spots in sdata.tables:
        return str(spots)
    if len(sdata.shapes) == 1:
        return str(next(iter(sdata.shapes)))
    raise KeyError(f"Say which regions are drawn with regions=. {_sample.describe('shapes', sdata.shapes)}")


def _with_column(adata: AnnData | None, color: str, values: Any) -> AnnData:
    """A table that has the column: the table itself, with the colours that it keeps, or a light one."""
    import anndata as ad
    import pandas as pd

    if adata is not None and color in adata.obs and values.equals(adata.obs[color]):
        return adata
    frame = pd.DataFrame({color: values})
    frame.index = frame.index.astype(str)
    return ad.AnnData(obs=frame)
