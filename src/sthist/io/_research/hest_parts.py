"""Nuclei, cells, tissue and transcripts of a sample of HEST-1k."""

from __future__ import annotations

import json
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist import _sample
from sthist._settings import logger
from sthist.io._files import checks
from sthist.io._parts.molecules import require_parquet_molecules

if TYPE_CHECKING:
    from pathlib import Path

    import geopandas as gpd
    from spatialdata import SpatialData

GENE = "feature_name"
PLACES = ["he_x", "he_y"]  # columns of the transcripts in pixels of the H&E
KEPT = ["cell_id", "overlaps_nucleus", "qv"]


def add_outlines(sdata: SpatialData, name: str, path: Path) -> None:
    """Polygons of a file as shapes, in pixels."""
    from spatialdata.models import ShapesModel
    from spatialdata.transformations import Identity

    frame = _read_parquet(path) if path.suffix == ".parquet" else _read_geojson(path)
    geometry = frame.geometry
    keep = (geometry.geom_type.isin(["Polygon", "MultiPolygon"]) & ~geometry.is_empty).to_numpy()
    if not keep.any():
        raise ValueError(
            f"{path} has no polygons in its {len(frame)} features. Copy the file again, or leave it out with parts=."
        )
    if not keep.all():
        logger.warning("%s: %d of %d features are no polygons; they are left out.", path, int((~keep).sum()), len(keep))
    sdata.shapes[name] = ShapesModel.parse(frame[keep], transformations={"global": Identity()})


def _read_parquet(path: Path) -> gpd.GeoDataFrame:
    import geopandas as gpd
    from shapely.errors import ShapelyError

    try:
        with checks.reading(path):
            frame = gpd.read_parquet(path)
    except (ShapelyError, TypeError, KeyError) as error:  # of geometries that are none
        raise ValueError(f"{path}: its column of geometries cannot be read: {error}.") from None
    except ValueError as error:
        if "geo metadata" not in str(error):
            raise
        raise ValueError(
            f"{path} has no column 'geometry' that geopandas can read ({error}). Take the .geojson.zip in its place."
        ) from None
    frame = frame.rename_geometry("geometry") if frame.geometry.name != "geometry" else frame
    if any(isinstance(value, bytes) for value in frame.index[:1]):
        frame.index = frame.index.map(bytes.decode)
    return frame.set_crs(None, allow_override=True)


def _read_geojson(path: Path) -> gpd.GeoDataFrame:
    """Polygons with their class, or with the piece of tissue that they are of."""
    import geopandas as gpd

    content = _geojson(path)
    features = content.get("features") if isinstance(content, dict) else content
    if not isinstance(features, list) or not all(isinstance(feature, dict) for feature in features):
        raise ValueError(f"{path} holds no GeoJSON: neither a list of features nor an object with 'features'.")
    rows: list[dict[str, Any]] = []
    for number, feature in enumerate(features):
        rows += _rows(path, number, feature)
    if not rows:
        raise ValueError(f"{path} has no polygons: 'features' is empty.")
    return gpd.GeoDataFrame(rows, geometry="geometry")


def _geojson(path: Path) -> Any:
    with checks.reading(path):
        if path.suffix != ".zip":
            return json.loads(path.read_text(encoding="utf-8"))
        with zipfile.ZipFile(path) as archive:
            inside = [name for name in archive.namelist() if name.endswith(".geojson")]
            if inside:
                return json.loads(archive.read(inside[0]))
    raise ValueError(f"{path} has no file .geojson in it.")


def _rows(path: Path, number: int, feature: dict[str, Any]) -> list[dict[str, Any]]:
    """The polygons of a feature: one each of a class of nuclei; of a piece of tissue, one without its holes."""
    import shapely
    from shapely.errors import ShapelyError
    from shapely.geometry import shape

    properties = feature.get("properties") or {}
    if not isinstance(feature.get("geometry"), dict):
        raise KeyError(f"{path}: feature {number} has no 'geometry'. Is the file truncated?")
    try:
        geometry = shape(feature["geometry"])
    except (ShapelyError, ValueError, TypeError, KeyError, IndexError) as error:
        raise ValueError(f"{path}: 'geometry' of feature {number} cannot be read: {error}.") from None
    classified = properties.get("classification")
    name = classified.get("name") if isinstance(classified, dict) else None
    if "hole" in properties:  # the older files, where some of the polygons are holes of the others
        parts = np.asarray(geometry.geoms)
        hole = np.zeros(len(parts), bool)
        hole[properties["hole"]] = True
        tissue = shapely.union_all(parts[~hole]).difference(shapely.union_all(parts[hole]))
        return [{"tissue_id": name, "geometry": tissue}]
    if name is not None:
        return [{"class": str(name), "geometry": part} for part in shapely.get_parts(geometry)]
    return [{**properties, "geometry": geometry}]


def add_transcripts(sdata: SpatialData, path: Path) -> None:
    """Molecules as points in pixels of the H&E, read when needed."""
    import dask.dataframe as dd
    import pyarrow.parquet as pq
    from spatialdata.models import PointsModel
    from spatialdata.transformations import Identity

    checks.require_parquet(path, [GENE, *PLACES], numeric=PLACES)
    require_parquet_molecules(path, GENE, PLACES)
    there = pq.read_schema(path).names
    columns = [*PLACES, GENE, *(name for name in KEPT if name in there)]
    genes = _genes(path)
    frame = dd.read_parquet(path, columns=columns, index=False, split_row_groups="adaptive")
    frame = frame.map_partitions(_plain, genes, meta=_plain(frame._meta, genes))
    sdata.points["transcripts"] = PointsModel.parse(
        frame,
        coordinates={"x": "he_x", "y": "he_y"},
        feature_key=GENE,
        instance_key="cell_id" if "cell_id" in columns else None,
        transformations={"global": Identity()},
        sort=True,
    )
    _sample.set_role(sdata, "transcripts", {"points": "transcripts", "gene": GENE})


def _genes(path: Path) -> list[str]:
    """Names of the genes, without the rest of the table."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    names: set[str] = set()
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(columns=[GENE]):
            names |= set(pc.unique(batch.column(0)).cast(pa.string()).to_pylist())
    return sorted(names)


def _plain(frame: Any, genes: list[str]) -> Any:
    """Text where the file has bytes; genes as categories that are known."""
    import pandas as pd
    import pyarrow as pa
    import pyarrow.compute as pc

    frame = frame.copy()
    codes = pc.index_in(_text(frame[GENE]), pa.array(genes, pa.string())).to_numpy(zero_copy_only=False)
    frame[GENE] = pd.Categorical.from_codes(codes, categories=pd.Index(genes))
    if "cell_id" in frame and not pd.api.types.is_numeric_dtype(frame["cell_id"]):
        frame["cell_id"] = pd.array(_text(frame["cell_id"]), dtype="string[pyarrow]")
    return frame


def _text(values: Any) -> Any:
    import pyarrow as pa

    array = pa.array(values.to_numpy(object), from_pandas=True)
    return array.cast(pa.string())
