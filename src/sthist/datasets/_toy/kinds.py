"""The toy section as other platforms would show it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sthist import _sample

if TYPE_CHECKING:
    from shapely.geometry.base import BaseGeometry
    from spatialdata import SpatialData

SPOT_UM, PITCH_UM = 55.0, 100.0
CORES_A_SIDE = 3
MISSING_CORE, BROKEN_CORE = (0, 2), (1, 0)


def to_visium(sdata: SpatialData, cell_types: list[str]) -> None:
    """Spots of 55 µm, 100 µm apart, in place of transcripts and cells."""
    import anndata as ad
    import geopandas as gpd
    import pandas as pd
    from scipy.sparse import csr_matrix
    from scipy.spatial import cKDTree
    from spatialdata.models import ShapesModel, TableModel
    from spatialdata.transformations import get_transformation

    regions, cells = sdata["regions"], sdata["table"]
    x0, y0, x1, y1 = regions.total_bounds
    rows, half_columns = np.meshgrid(
        np.arange(int((y1 - y0) / (PITCH_UM * np.sqrt(0.75))) + 1),
        np.arange(int(2 * (x1 - x0) / PITCH_UM) + 1),
        indexing="ij",
    )
    on_lattice = (rows + half_columns) % 2 == 0
    rows, half_columns = rows[on_lattice], half_columns[on_lattice]
    centres = np.c_[x0 + half_columns * PITCH_UM / 2, y0 + rows * PITCH_UM * np.sqrt(0.75)]
    points = gpd.GeoSeries(gpd.points_from_xy(*centres.T))
    kept = points.within(regions.union_all()).to_numpy()
    centres, rows, half_columns = centres[kept], rows[kept], half_columns[kept]
    tree = cKDTree(centres)

    def spot_of(places: np.ndarray) -> np.ndarray:
        return tree.query(places, distance_upper_bound=SPOT_UM / 2)[1]

    frame = sdata["transcripts"].compute()
    genes = cells.var_names
    gene = pd.Categorical(frame["feature_name"].astype(str), categories=genes).codes
    spot = spot_of(frame[["x", "y"]].to_numpy())
    caught = (spot < len(centres)) & (gene >= 0)
    shape = (len(centres), len(genes))
    counts = csr_matrix((np.ones(int(caught.sum()), np.float32), (spot[caught], gene[caught])), shape=shape)
    of_cell = spot_of(cells.obsm["spatial"])
    there = of_cell < len(centres)
    n_cells = pd.crosstab(of_cell[there], cells.obs["cell_type"].to_numpy()[there])
    n_cells = n_cells.reindex(index=range(len(centres)), columns=cell_types, fill_value=0)
    names = [f"spot_{i:04d}" for i in range(len(centres))]
    obs = pd.DataFrame(
        {
            "region": pd.Categorical(["spots"] * len(names)),
            "instance_id": np.arange(len(names)),
            "array_row": rows,
            "array_col": half_columns,
            "n_cells": n_cells.sum(axis=1).to_numpy(),
        },
        index=names,
    )
    table = ad.AnnData(counts, obs=obs, var=pd.DataFrame(index=genes), obsm={"spatial": centres})
    table.obsm["cell_abundance"] = n_cells.set_axis(names).astype(np.float32)
    spots = gpd.GeoDataFrame(
        {"radius": SPOT_UM / 2}, geometry=gpd.points_from_xy(*centres.T), index=obs["instance_id"].to_numpy()
    )
    transformations = get_transformation(regions, get_all=True)
    for key in ("table", "transcripts", "cell_boundaries", "nucleus_boundaries", "morphology_focus"):
        del sdata[key]
    sdata.shapes["spots"] = ShapesModel.parse(spots, transformations=transformations)
    sdata.tables["table"] = TableModel.parse(table, region="spots", region_key="region", instance_key="instance_id")
    sdata.attrs["sthist"]["roles"] = {"he": {"image": "he"}, "spots": {"table": "table", "shapes": "spots"}}


def to_cosmx(sdata: SpatialData, mpp: float) -> None:
    """The nuclear stain cut into 2 x 2 fields of view, as CosMx has it; no H&E."""
    from spatialdata.models import Image2DModel
    from spatialdata.transformations import Affine

    element = sdata["morphology_focus"]
    pixels = (element["scale0"].image if hasattr(element, "children") else element).to_numpy()
    half_y, half_x = (n // 2 for n in pixels.shape[1:])
    del sdata.images["morphology_focus"], sdata.images["he"]
    keys = []
    for number, (y, x) in enumerate(((0, 0), (0, half_x), (half_y, 0), (half_y, half_x)), start=1):
        field = pixels[:, y : (None if y else half_y), x : (None if x else half_x)]
        shift = np.array([[1, 0, x], [0, 1, y], [0, 0, 1.0]])
        keys.append(f"{number}_image")
        sdata.images[keys[-1]] = Image2DModel.parse(
            field,
            dims=("c", "y", "x"),
            c_coords=["DAPI"],
            chunks={"c": 1, "y": 512, "x": 512},
            transformations={
                _sample.UM: Affine(np.diag([mpp, mpp, 1.0]) @ shift, ("x", "y"), ("x", "y")),
                "global": Affine(shift, ("x", "y"), ("x", "y")),
            },
        )
    del sdata.attrs["sthist"]["roles"]["he"]
    _sample.set_role(sdata, "nuclear", {"images": keys, "channel": "DAPI"})


def cores(size: float) -> dict[tuple[int, int], BaseGeometry]:
    """Discs of a microarray by (row, column): one is missing, and one has broken in two."""
    import shapely
    from shapely import affinity

    discs = _places(size, 0.4)
    step = size / CORES_A_SIDE
    x0, y0, x1, y1 = discs[BROKEN_CORE].bounds
    cut = x0 + 0.45 * (x1 - x0)
    left, right = (discs[BROKEN_CORE].intersection(shapely.box(a, y0, b, y1)) for a, b in ((x0, cut), (cut, x1)))
    right = affinity.translate(affinity.rotate(right, 12), 0.06 * step, 0.05 * step)
    discs[BROKEN_CORE] = left.union(right.difference(left.buffer(0.03 * step)))
    del discs[MISSING_CORE]
    return discs


def _places(size: float, radius: float) -> dict[tuple[int, int], BaseGeometry]:
    """Discs by (row, column), their radius relative to the distance between them."""
    import shapely

    step = size / CORES_A_SIDE
    return {
        (row, column): shapely.Point((column + 0.5) * step, (row + 0.5) * step).buffer(radius * step)
        for row in range(CORES_A_SIDE)
        for column in range(CORES_A_SIDE)
    }


def add_cores(sdata: SpatialData, size: float) -> None:
    """The true places of all cores, as shapes, with their state."""
    import geopandas as gpd
    from spatialdata.models import ShapesModel
    from spatialdata.transformations import get_transformation

    places = _places(size, 0.45)
    states = {MISSING_CORE: "missing", BROKEN_CORE: "broken"}
    frame = gpd.GeoDataFrame(
        {
            "row": [row for row, _ in places],
            "column": [column for _, column in places],
            "state": [states.get(place, "whole") for place in places],
        },
        geometry=list(places.values()),
        index=[f"{chr(65 + row)}{column + 1}" for row, column in places],
    )
    transformations = get_transformation(sdata["regions"], get_all=True)
    sdata.shapes["cores"] = ShapesModel.parse(frame, transformations=transformations)
