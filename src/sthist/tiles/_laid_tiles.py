"""Tiles that were laid: their table and their spec."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sthist import _sample, scale
from sthist._sample import other_tools
from sthist._settings import logger
from sthist.tiles._spec import TileSpec

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData


def laid_tiles(sdata: SpatialData, tiles: str) -> tuple[AnnData, TileSpec]:
    """The table of tiles that :func:`sthist.pp.tiles` or LazySlide has laid, and their spec."""
    if f"{tiles}_table" not in sdata.tables and tiles in other_tools.tile_specs(sdata) and tiles in sdata.shapes:
        return _laid_by_lazyslide(sdata, tiles)
    table = _sample.get(sdata, "tables", f"{tiles}_table")
    if "tile_spec" not in table.uns or "spatial" not in table.obsm:
        raise KeyError(
            f"Table '{tiles}_table' holds no tiles: it has no uns['tile_spec'] and obsm['spatial']; lay them with "
            "pp.tiles."
        )
    spec = table.uns["tile_spec"]
    return table, TileSpec(float(spec["size_um"]), int(spec["px"]))


def _laid_by_lazyslide(sdata: SpatialData, tiles: str) -> tuple[AnnData, TileSpec]:
    """Centres of tiles that are shapes alone, and their size as it is on the tissue.

    The µm/px that their spec states is the one that was asked for, not always the one that they have.
    """
    import anndata as ad
    import pandas as pd
    import shapely

    frame, stated = sdata.shapes[tiles], other_tools.tile_specs(sdata)[tiles]
    matrix = scale.matrix_to_um(sdata, "shapes", tiles)
    if stated.get("width") != stated.get("height") or not stated.get("width"):
        raise ValueError(
            f"attrs['tile_spec'][{tiles!r}] has width {stated.get('width')} and height {stated.get('height')} px; "
            "tiles are squares."
        )
    size = float(np.sqrt(shapely.area(frame.geometry.to_numpy()).mean() * abs(np.linalg.det(matrix[:2, :2]))))
    spec = TileSpec(size, int(stated["width"]))
    if stated.get("mpp") and abs(stated["mpp"] / spec.mpp - 1) > scale.TOLERANCE:
        logger.warning(
            "attrs['tile_spec'][%r] says %.4g µm/px, but its tiles show %.4g µm/px on the image; that is taken.",
            tiles,
            stated["mpp"],
            spec.mpp,
        )
    centres = np.c_[frame.geometry.centroid.x, frame.geometry.centroid.y] @ matrix[:2, :2].T + matrix[:2, 2]
    obs = pd.DataFrame({"instance_id": frame.index.to_numpy()}, index=frame.index.astype(str))
    return ad.AnnData(obs=obs, obsm={"spatial": centres}, uns={"tile_spec": spec.to_dict()}), spec
