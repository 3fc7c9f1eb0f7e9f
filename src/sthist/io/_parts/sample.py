"""What readers share: elements of cells and spots, tables that are linked to them, and the roles of a sample."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sthist import _sample
from sthist._settings import logger
from sthist.io._files.checks import require_unique

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import pandas as pd
    from anndata import AnnData
    from spatialdata import SpatialData

LINK = ("region", "instance_id")  # columns of a table: the shapes, and the name of the row among them
CELL_RADIUS_UM = 5.0  # of a cell that has neither outline nor area


def circles(centres: np.ndarray, radius: Any, names: Any, transformations: Mapping[str, Any]) -> Any:
    """Round shapes, by name."""
    import geopandas as gpd
    from spatialdata.models import ShapesModel

    frame = gpd.GeoDataFrame({"radius": radius}, geometry=gpd.points_from_xy(*centres.T), index=names)
    return ShapesModel.parse(frame, transformations=dict(transformations))


def link_table(table: AnnData, shapes: str, names: Any = None, *, keys: tuple[str, str] = LINK) -> AnnData:
    """A table whose rows are shapes, by the name of each."""
    import pandas as pd
    from spatialdata.models import TableModel

    table.obs[keys[0]] = pd.Categorical([shapes] * table.n_obs)
    table.obs[keys[1]] = table.obs_names.to_numpy() if names is None else names
    table.uns.pop("spatialdata_attrs", None)
    return TableModel.parse(table, region=shapes, region_key=keys[0], instance_key=keys[1])


def record_nuclear(sdata: SpatialData, image: str | None = None) -> _sample.HighResElements:
    """Record which image is the nuclear stain, and give it with the transcripts and cells that go with it."""
    elements = _sample.find_high_res(sdata, image=image)
    cytoplasm = list(elements.cytoplasm_channels)
    role = {"images": list(elements.nuclear), "channel": elements.nuclear_channel, "cytoplasm": cytoplasm}
    _sample.set_role(sdata, "nuclear", role)
    return elements


def record_high_res(sdata: SpatialData, stain: str) -> None:
    """Record which elements are the nuclear stain, the transcripts and the cells."""
    elements = record_nuclear(sdata, stain)
    if elements.points is not None:
        _sample.set_role(sdata, "transcripts", {"points": elements.points, "gene": elements.gene})
    if elements.table is not None:
        _sample.set_role(sdata, "cells", {"table": elements.table})


def match_cells(
    counts: Path, counted: pd.Index, metadata: Path, cells: pd.Index, *, by: str, no_cells: np.ndarray | None = None
) -> np.ndarray:
    """Rows of the counts by cell of the metadata, -1 where it has none; what one of the files lacks is said."""
    require_unique(counts, counted, "cell", by)
    require_unique(metadata, cells, "cell", by)
    rows = counted.get_indexer(cells)
    if not (rows >= 0).any():
        raise ValueError(
            f"{counts} has no counts of the cells in {metadata.name}, by {by}: their names are like {counted[0]!r} and "
            f"{cells[0]!r}. Are both files of one sample?"
        )
    if (rows < 0).any():
        n = int((rows < 0).sum())
        logger.warning("%d of %d cells of %s have no counts in %s; they are left out.", n, len(rows), metadata, counts)
    surplus = ~counted.isin(cells) & (True if no_cells is None else ~no_cells)
    if surplus.any():
        logger.warning(
            f"{surplus.sum()} of {len(counted)} cells of {counts} are not in {metadata}, such as "
            f"{counted[surplus][0]!r}; they are left out."
        )
    return np.asarray(rows)
