"""Cells of a Xenium folder: counts, label images and outlines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sthist._reading import FileArray
from sthist._settings import logger
from sthist.io._files import checks, values
from sthist.io._parts import sample
from sthist.io._parts.outlines import rings, say_lost

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from anndata import AnnData

MATRIX, CELLS, ZARR = "cell_feature_matrix.h5", "cells.parquet", "cells.zarr.zip"
STAIN = "the nuclear stain"
CENTRE = ["x_centroid", "y_centroid"]
SUMMARY = ("z_level", "nucleus_count")
VERTICES = ["vertex_x", "vertex_y"]
OUTLINES = {"nucleus_boundaries": "nucleus_boundaries.parquet", "cell_boundaries": "cell_boundaries.parquet"}
LABELS = {"nucleus_labels": "0", "cell_labels": "1"}  # by their number in the file

# spatialdata_io.xenium is not called: it tells the layout by the text of a version, which may be "R&D", and needs both
# sets of outlines, which `xeniumranger import-segmentation` does not write. Names and contents of elements are its own.


class Cells:
    """What ``cells.zarr.zip`` holds, whatever version of the instrument or of Xenium Ranger has written it."""

    def __init__(self, path: Path) -> None:
        from spatialdata_io.readers.xenium import cell_id_str_from_prefix_suffix_uint32

        self.path = path
        with checks.reading(path):
            self._group = _open(path)
            ids: Any = np.asarray(self._group["cell_id"][...]) if "cell_id" in self._group else np.zeros(0)
            masks = self._group.get("masks", {})
            self._masks = {number: masks[number] for number in ("0", "1") if number in masks}
            sets = sorted(self._group["polygon_sets"].group_keys()) if "polygon_sets" in self._group else []
        # Imported outlines are the only set, and those of cells.
        self.has_both = sets == [] or len(sets) > 1
        # Before 1.3 they are numbers, from 1, as the table has them.
        self.names = (
            cell_id_str_from_prefix_suffix_uint32(ids[:, 0], ids[:, 1]) if ids.ndim == 2 and ids.shape[1] == 2 else None
        )
        self.has_numbers, self._n = bool(sets), len(ids)  # of nuclei, apart from those of cells

    def labels(self, key: str, options: Mapping[str, Any]) -> Any:
        """A label image, read when needed; None where it has none."""
        import dask.array as da
        from spatialdata.models import Labels2DModel
        from spatialdata.transformations import Identity

        if LABELS[key] not in self._masks:
            return None
        options = {"chunks": (4096, 4096), "scale_factors": [2, 2, 2, 2]} | dict(options)
        pixels = da.from_array(FileArray(self.path, self._masks[LABELS[key]]))
        return Labels2DModel.parse(pixels, dims=("y", "x"), transformations={"global": Identity()}, **options)

    def values_of(self, cells: np.ndarray) -> np.ndarray | None:
        """The value of each cell in its label image; None where the file does not tell, or not of these cells."""
        if "1" not in self._masks or self.names is None or not np.array_equal(self.names, cells):
            return None
        with checks.reading(self.path):
            if not self.has_numbers and "seg_mask_value" in self._group:
                return np.asarray(self._group["seg_mask_value"][...], np.int64)
        return np.arange(1, self._n + 1)

    def summary(self, cells: np.ndarray) -> dict[str, np.ndarray]:
        """Further facts of these cells by name."""
        with checks.reading(self.path):
            if "cell_summary" not in self._group or self.names is None or not np.array_equal(self.names, cells):
                return {}
            table = self._group["cell_summary"]
            columns = [str(name) for name in table.attrs.get("column_names", [])]
            return {name: np.asarray(table[:, columns.index(name)]) for name in SUMMARY if name in columns}


def _open(path: Path) -> Any:
    """The group of a zipped store."""
    import zarr

    return zarr.open_group(zarr.storage.ZipStore(path, read_only=True), mode="r")


def read_table(folder: Path, cells: Cells, region: str, *, gex_only: bool, pixel_size: float, size: Any) -> AnnData:
    """Counts and facts of the cells, linked to labels, circles or outlines."""
    import h5py
    import pandas as pd
    from spatialdata.models import TableModel

    path = folder / MATRIX
    with checks.quietly(), checks.reading(path):
        table = checks.read_matrix(path, gex_only=gex_only)
        with h5py.File(path) as file:
            factor = file.attrs.get("protein_scaling_factor")
    protein = (table.var["feature_types"] == "Protein Expression").to_numpy()
    where = f"{path}: matrix/data"
    values.require_counts(where, table.X, table.obs_names, table.var_names, whole=not protein.any())
    if factor is not None and protein.any():  # they are stored as whole numbers
        table.X[:, protein] /= factor
    obs = checks.read_parquet(folder / CELLS)
    checks.require_flat(folder / CELLS, obs)
    centres = obs[CENTRE].to_numpy(np.float64)
    obs["cell_id"] = names_of(obs["cell_id"])
    ids = obs["cell_id"].to_numpy(str)
    values.require_places(folder / CELLS, ", ".join(CENTRE), centres, ids, what="cells")
    if size is not None:
        values.require_within(
            folder / CELLS, ", ".join(CENTRE), centres / pixel_size, size, STAIN, what="cells", most=values.HALF
        )
    obs = obs.drop(columns=CENTRE).set_index(table.obs_names)
    for name, facts in cells.summary(ids).items():
        obs[name] = facts
    obs["region"] = pd.Categorical([region] * len(obs))
    key = "cell_id"
    if region == "cell_labels":
        numbers = cells.values_of(ids)
        if numbers is not None:
            obs["cell_labels"], key = numbers, "cell_labels"
    table.obs, table.obsm["spatial"] = obs, centres
    return TableModel.parse(table, region=region, region_key="region", instance_key=key)


def names_of(ids: Any) -> Any:
    """Names of cells as text where the file has bytes."""
    is_bytes = len(ids) and isinstance(ids.iloc[0], bytes)
    return ids.str.decode("utf-8") if is_bytes else ids


def circles(table: AnnData, pixel_size: float) -> Any:
    """Circles of the cells' areas."""
    from spatialdata.transformations import Scale

    radius = np.sqrt(table.obs["cell_area"].to_numpy(np.float64) / np.pi)
    placed = {"global": Scale([1 / pixel_size, 1 / pixel_size], ("x", "y"))}
    return sample.circles(table.obsm["spatial"], radius, table.obs["cell_id"].to_numpy(), placed)


def read_outlines(folder: Path, key: str, cells: Cells, pixel_size: float, table: AnnData | None, size: Any) -> Any:
    """Outlines of cells, by cell, or of nuclei, by their number; None where they cannot be told apart."""
    import geopandas as gpd
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq
    import shapely
    from spatialdata.models import ShapesModel
    from spatialdata.transformations import Scale

    path, is_nucleus = folder / OUTLINES[key], key == "nucleus_boundaries"
    with checks.reading(path):
        numbered = "label_id" in pq.read_schema(path).names
        frame = pq.read_table(path, columns=["cell_id", *VERTICES, *(["label_id"] if numbered else [])])
        frame = checks.decoded(path, frame)
    if numbered and (not pa.types.is_integer(frame["label_id"].type) or frame["label_id"].null_count):
        kind, n = frame["label_id"].type, frame["label_id"].null_count
        raise ValueError(f"{path}: column 'label_id' should hold whole numbers; it holds {kind}, and {n} gaps.")
    if is_nucleus and (not len(frame) or not cells.has_both):
        logger.warning("%s: the segmentation has no nuclei; they have no outlines.", path)
        return None
    if is_nucleus and not numbered and cells.has_numbers:
        logger.warning(
            f"{path}: nuclei of one cell cannot be told apart in this version of the format; they have no outlines. "
            "spatialdata.to_polygons makes them of nucleus_labels."
        )
        return None
    # Names of cells are long and come with each vertex: none but those of the outlines become Python's.
    ids = frame["label_id"] if numbered else frame["cell_id"].combine_chunks().dictionary_encode().indices
    ids = ids.to_numpy() if numbered else ids.to_numpy(zero_copy_only=False)
    n, begins = len(pd.unique(ids)), 1 + int((ids[1:] != ids[:-1]).sum())
    if begins != n:
        raise ValueError(
            f"{path}: the vertices of an outline should lie together, but {begins} runs of rows are of {n} outlines. "
            "Export the file again."
        )
    xy = np.column_stack([frame[name].to_numpy() for name in VERTICES])
    polygons, rows = rings(path, ids, xy, ", ".join(VERTICES), cell="label_id" if numbered else "cell_id")
    names = names_of(frame["cell_id"].take(rows).to_pandas()).to_numpy()
    outlines = gpd.GeoDataFrame(geometry=polygons)
    if is_nucleus and numbered:
        outlines.index, outlines["cell_id"] = ids[rows], names
        outlines = outlines[["geometry", "cell_id"]]
    else:
        outlines.index = pd.Index(names, name="cell_id")
    if table is not None and not is_nucleus:
        say_lost(path, table.obs["cell_id"].to_numpy(), names, field="cell_id")
    if size is not None:
        middles = shapely.get_coordinates(shapely.centroid(polygons)) / pixel_size
        values.require_within(path, ", ".join(VERTICES), middles, size, STAIN, what="outlines", most=values.HALF)
    placed = {"global": Scale([1 / pixel_size, 1 / pixel_size], ("x", "y"))}
    return ShapesModel.parse(outlines, transformations=placed)
