"""Tiles: squares of tissue, as shapes and a table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from sthist import _elements, _store
from sthist.tiles._spec import TileSpec

if TYPE_CHECKING:
    from geopandas import GeoDataFrame
    from shapely.geometry.base import BaseGeometry
    from spatialdata import SpatialData


def tiles(
    sdata: SpatialData,
    *,
    size_um: float = 112.0,
    px: int = 224,
    sampling: Literal["grid", "regions"] = "grid",
    shapes: str | None = None,
    overlap: float = 0.0,
    min_tissue: float = 0.5,
    key_added: str = "tiles",
    overwrite: bool = False,
) -> None:
    """Lay tiles over the tissue, or around regions such as spots and nuclei.

    Parameters
    ----------
    sdata
        One sample.
    size_um
        Side of a tile in micrometres. A Visium spot is 55 µm wide, and 100 µm lie between two of them.
    px
        Pixels to which a tile will be sampled.
    sampling
        ``"grid"``: side by side over the tissue. ``"regions"``: one around the centroid of each region of ``shapes``.
    shapes
        For ``"grid"``, outlines of the tissue (``"tissue"`` by default, see :func:`sthist.pp.tissue`); for
        ``"regions"``, the regions.
    overlap
        Part of a tile's side that it shares with the next one on the grid, from 0 to less than 1.
    min_tissue
        Tiles of the grid of which less is tissue are left out.
    key_added
        Name of the shapes; the table is named ``<key_added>_table``.
    overwrite
        Replace elements of these names.

    Returns
    -------
    None. Writes ``sdata.shapes[key_added]``, squares in µm, and ``sdata.tables[key_added + "_table"]`` with one row per
    tile, ``obsm["spatial"]`` (centres x, y in µm) and ``uns["tile_spec"]``; in ``obs`` the columns ``region``,
    ``instance_id`` and, for the grid, ``tissue_fraction``, for regions ``source_id``.

    Raises
    ------
    KeyError
        If there are no such shapes.
    ValueError
        If no tile is left, an argument is out of range, or a name is taken.

    Examples
    --------
    >>> import sthist
    >>> sdata = sthist.datasets.toy(size_um=400)
    >>> sthist.pp.tissue(sdata)
    >>> sthist.pp.tiles(sdata, size_um=64, px=128)
    >>> sdata["tiles_table"].uns["tile_spec"]
    {'size_um': 64.0, 'px': 128}
    """
    import anndata as ad
    import geopandas as gpd
    import pandas as pd
    import shapely
    import spatialdata as sd
    from spatialdata.models import ShapesModel, TableModel
    from spatialdata.transformations import Identity

    spec = TileSpec(size_um, px)
    if not 0 <= overlap < 1:
        msg = f"overlap is {overlap}; it is a part of the tile's side, from 0 to less than 1."
        raise ValueError(msg)
    if sampling not in {"grid", "regions"}:
        msg = f"sampling is {sampling!r}; it is 'grid' or 'regions'."
        raise ValueError(msg)
    _elements.require_one_sample(sdata)
    if sampling == "regions" and shapes is None:
        msg = f"sampling='regions' needs the regions: shapes=. {_elements.describe('shapes', sdata.shapes)}"
        raise ValueError(msg)
    table_key = f"{key_added}_table"
    _store.require_free(sdata, key_added, "shapes", overwrite=overwrite)
    _store.require_free(sdata, table_key, "tables", overwrite=overwrite)
    regions = sd.transform(_elements.get(sdata, "shapes", shapes or "tissue"), to_coordinate_system=_elements.UM)
    if sampling == "grid":
        centres, fraction = _grid(shapely.union_all(regions.geometry), spec, overlap, min_tissue)
        obs = pd.DataFrame({"tissue_fraction": fraction})
    else:
        centres = _centroids(regions)
        obs = pd.DataFrame({"source_id": regions.index.astype(str)})
    if len(centres) == 0:
        msg = (
            f"No tile of {size_um:g} µm has at least {min_tissue:.0%} tissue; lower min_tissue, or make tiles smaller."
        )
        raise ValueError(msg)
    half = spec.size_um / 2
    squares = shapely.box(*(centres - half).T, *(centres + half).T)
    ids = np.arange(len(centres))
    frame = gpd.GeoDataFrame(geometry=squares, index=ids)
    made = _store.provenance("pp.tiles", spec=spec.to_dict(), sampling=sampling, shapes=shapes, overlap=overlap)
    obs = obs.assign(region=pd.Categorical([key_added] * len(ids)), instance_id=ids).set_index(ids.astype(str))
    table = ad.AnnData(obs=obs, obsm={"spatial": centres}, uns={"tile_spec": spec.to_dict()})
    table = TableModel.parse(table, region=key_added, region_key="region", instance_key="instance_id")
    element = ShapesModel.parse(frame, transformations={_elements.UM: Identity()})
    _store.add(sdata, "shapes", key_added, element, made, overwrite=overwrite)
    _store.add(sdata, "tables", table_key, table, made, overwrite=overwrite)


def _grid(area: BaseGeometry, spec: TileSpec, overlap: float, min_tissue: float) -> tuple[np.ndarray, np.ndarray]:
    """Centres of the tiles of a grid over an area, row by row, and the part of each that lies in it."""
    import shapely

    x0, y0, x1, y1 = area.bounds
    step = spec.size_um * (1 - overlap)
    half = spec.size_um / 2
    grid = np.meshgrid(
        np.arange(x0 + half, max(x1, x0 + spec.size_um), step), np.arange(y0 + half, max(y1, y0 + spec.size_um), step)
    )
    centres = np.stack(grid, -1).reshape(-1, 2)
    squares = shapely.box(*(centres - half).T, *(centres + half).T)
    shapely.prepare(area)
    fraction = np.ones(len(centres))
    border = ~shapely.contains(area, squares)
    fraction[border] = shapely.area(shapely.intersection(area, squares[border])) / spec.size_um**2
    keep = fraction >= max(min_tissue, 1e-9)
    return centres[keep], fraction[keep]


def _centroids(regions: GeoDataFrame) -> np.ndarray:
    centroids = regions.geometry.centroid
    return np.c_[centroids.x, centroids.y]
