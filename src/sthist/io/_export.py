"""Write what QuPath, Xenium Explorer and other viewers open."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist import _sample, scale
from sthist._disk import written_whole
from sthist._sample.verbs import verb

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from geopandas import GeoDataFrame
    from spatialdata import SpatialData

TILE_PX = 512
SMALLEST_LEVEL_PX = 512


@verb
def export_ome_tiff(
    sdata: SpatialData, image: str, path: str | Path, *, compression: str | None = "deflate", overwrite: bool = False
) -> None:
    """Write an image as a pyramidal, tiled OME-TIFF with µm/px and channel names, for QuPath and Xenium Explorer.

    Level after level is written tile by tile: the image never sits in memory. The image's own pixel grid is written; a
    rotation or flip that registers it in ``um`` is not.

    Parameters
    ----------
    sdata, image
        The sample, and the key of the image, (c, y, x).
    path
        File to write, ending in ``.ome.tif`` or ``.ome.tiff``.
    compression
        ``"deflate"`` (lossless), another one that tifffile knows such as ``"zstd"`` or ``"jpeg"`` (with the extra
        ``wsi``), or None.
    overwrite
        Replace a file.

    Raises
    ------
    FileExistsError
        If the file exists, and ``overwrite`` is False.
    KeyError
        If there is no such image.
    ValueError
        If its µm/px is unknown, it is a stack, or the file's name does not end as it should.

    Examples
    --------
    >>> import tempfile, pathlib, sthist
    >>> sdata = sthist.datasets.toy(size_um=200)
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "he.ome.tif"
    >>> sthist.io.export_ome_tiff(sdata, "he", path)
    >>> sthist.scale.resolve_mpp(sthist.io.slide(path), "he")
    (0.5, 0.5)
    """
    import tifffile

    path = Path(path)
    if not path.name.endswith((".ome.tif", ".ome.tiff")):
        raise ValueError(
            f"{path.name} should end in .ome.tif or .ome.tiff: viewers tell by it that there are metadata."
        )
    element = _sample.get(sdata, "images", image)
    levels = _levels(element)
    if levels[0].ndim != 3:
        raise ValueError(
            f"Image {image!r} has the axes {levels[0].dims}; an OME-TIFF of (c, y, x) can be written. Choose a plane "
            "first."
        )
    mpp_x, mpp_y = scale.resolve_mpp(sdata, image)
    names = _sample.channel_names(element)
    rgb = len(names) == 3 and levels[0].dtype == np.uint8
    metadata = {
        "axes": "YXS" if rgb else "CYX",
        "PhysicalSizeX": mpp_x,
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": mpp_y,
        "PhysicalSizeYUnit": "µm",
        "Channel": {"Name": image if rgb else names},
        "Name": image,
    }
    with (
        _written_whole(path, overwrite=overwrite) as partial,
        tifffile.TiffWriter(partial, ome=True, bigtiff=True) as writer,
    ):
        for number, level in enumerate(levels):
            n_channels, height, width = level.shape
            writer.write(
                _tiles(level, rgb=rgb),
                shape=(height, width, 3) if rgb else (n_channels, height, width),
                dtype=level.dtype,
                tile=(TILE_PX, TILE_PX),
                photometric="rgb" if rgb else "minisblack",
                planarconfig="contig" if rgb else None,
                compression=compression,
                subifds=len(levels) - 1 if number == 0 else None,
                subfiletype=0 if number == 0 else 1,
                metadata=metadata if number == 0 else None,
                resolution=(1e4 / (mpp_x * levels[0].shape[2] / width), 1e4 / (mpp_y * levels[0].shape[1] / height)),
                resolutionunit="CENTIMETER",
            )


@contextlib.contextmanager
def _written_whole(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """A path beside a file, which takes its place once it is whole: a viewer takes what was cut off for an image."""
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists; pass overwrite=True to replace it.")
    with written_whole(path) as partial:
        yield partial


def _levels(element: Any) -> list[Any]:
    """The levels of an image, finest first; halves of one that has no pyramid."""
    from xarray import DataTree

    if isinstance(element, DataTree):
        return [next(iter(node.data_vars.values())) for node in element.children.values()]
    levels = [element]
    while max(levels[-1].shape[-2:]) > 2 * SMALLEST_LEVEL_PX:
        finer = levels[-1]
        levels.append(finer.coarsen(y=2, x=2, boundary="trim").mean().round().astype(finer.dtype))
    return levels


def _tiles(level: Any, *, rgb: bool) -> Iterator[np.ndarray]:
    """Tiles of a level in the order of the file, a row of them in memory at a time."""
    n_channels, height, width = level.shape
    for channels in [slice(None)] if rgb else [slice(c, c + 1) for c in range(n_channels)]:
        for y in range(0, height, TILE_PX):
            row = np.asarray(level[channels, y : y + TILE_PX])
            for x in range(0, width, TILE_PX):
                tile = row[:, :, x : x + TILE_PX]
                padded = np.zeros((len(tile), TILE_PX, TILE_PX), tile.dtype)
                padded[:, : tile.shape[1], : tile.shape[2]] = tile
                yield np.ascontiguousarray(padded.transpose(1, 2, 0)) if rgb else padded[0]


@verb
def export_geojson(
    sdata: SpatialData,
    regions: str,
    path: str | Path,
    *,
    image: str,
    label: str | None = None,
    columns: Sequence[str] = (),
    kind: str = "annotation",
    overwrite: bool = False,
) -> None:
    """Write shapes as GeoJSON in the pixels of an image, as QuPath reads it.

    Parameters
    ----------
    sdata, regions
        The sample, and the key of the shapes, registered in ``um``.
    path
        File to write.
    image
        The image on which they are to lie; its full-resolution pixels are the unit.
    label
        Column, of the shapes or of the table that annotates them, that becomes QuPath's classification; NaN and None
        are none.
    columns
        Further columns of numbers, of the shapes or of the table, that become measurements; NaN and infinity are none.
    kind
        ``"annotation"``, ``"detection"`` or ``"cell"``, QuPath's types of objects.
    overwrite
        Replace a file.

    Raises
    ------
    FileExistsError
        If the file exists, and ``overwrite`` is False.
    KeyError
        If shapes, image or a column are missing.
    ValueError
        If there are no shapes, some are empty or invalid, or ``kind`` is unknown.

    Examples
    --------
    >>> import tempfile, pathlib, json, sthist
    >>> sdata = sthist.datasets.toy(size_um=200)
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "regions.geojson"
    >>> sthist.io.export_geojson(sdata, "regions", path, image="he", label="label")
    >>> features = json.loads(path.read_text())["features"]
    >>> sorted({feature["properties"]["classification"]["name"] for feature in features})
    ['duct', 'immune', 'stroma']
    """
    import pandas as pd
    import shapely

    if kind not in {"annotation", "detection", "cell"}:
        raise ValueError(f"kind is {kind!r}; QuPath has 'annotation', 'detection' and 'cell'.")
    path = Path(path)
    frame = _in_pixels(sdata, regions, image)
    values = {name: _numbers(regions, name, _column(sdata, regions, frame, name)) for name in columns}
    labels = None if label is None else _column(sdata, regions, frame, label)
    with _written_whole(path, overwrite=overwrite) as partial, partial.open("w", encoding="utf-8") as file:
        file.write('{"type": "FeatureCollection", "features": [\n')
        for i, (name, geometry) in enumerate(zip(frame.index, frame.geometry, strict=True)):
            properties: dict[str, Any] = {"objectType": kind, "name": str(name)}
            if labels is not None and not pd.isna(labels[i]):
                properties["classification"] = {"name": str(labels[i])}
            if columns:
                numbers = {column: float(values[column][i]) for column in columns}
                # JSON has neither NaN nor infinity: a region without a value has no such measurement.
                properties["measurements"] = {name: value for name, value in numbers.items() if np.isfinite(value)}
            feature = {"type": "Feature", "geometry": shapely.geometry.mapping(geometry), "properties": properties}
            file.write((",\n" if i else "") + json.dumps(feature, ensure_ascii=False, allow_nan=False))
        file.write("\n]}\n")


def _in_pixels(sdata: SpatialData, shapes: str, image: str) -> GeoDataFrame:
    """Shapes in the full-resolution pixels of an image, circles as polygons."""
    element = _sample.get(sdata, "shapes", shapes)
    target = _sample.get(sdata, "images", image)
    for key, part in ((shapes, element), (image, target)):
        try:
            scale.matrix_to(part)
        except KeyError:
            raise ValueError(f"{key!r} has no scale: give it once with pp.set_scale.") from None
    geometry = element.geometry
    if len(geometry) == 0:
        raise ValueError(f"Shapes {shapes!r} are empty; there is nothing to write.")
    if "radius" in element:
        geometry = geometry.buffer(element["radius"])
    bad = geometry.is_empty | ~geometry.is_valid
    if bad.any():
        raise ValueError(
            f"{int(bad.sum())} of the shapes {shapes!r} are empty or invalid, the first of them {bad.idxmax()!r}; mend "
            "them with make_valid()."
        )
    from_um, to_um = scale.matrix_to(target), scale.matrix_to(element)
    # What was drawn on this image keeps its coordinates to the last digit.
    to_px = np.eye(3) if np.array_equal(from_um, to_um) else np.linalg.inv(from_um) @ to_um
    (a, b, x), (c, d, y) = to_px[:2].tolist()
    return element.set_geometry(geometry.affine_transform([a, b, c, d, x, y]))


def _numbers(shapes: str, name: str, values: np.ndarray) -> np.ndarray:
    """A column as float64, NaN where it has no value."""
    import pandas as pd

    try:
        return np.asarray(pd.to_numeric(pd.Series(values)).to_numpy(np.float64, na_value=np.nan))
    except (ValueError, TypeError):
        raise ValueError(
            f"Column {name!r} of {shapes!r} holds no numbers, which columns= needs; a class is written with label=."
        ) from None


def _column(sdata: SpatialData, shapes: str, frame: GeoDataFrame, name: str) -> np.ndarray:
    """A column of shapes, or of the table that annotates them, in the order of the shapes."""
    import pandas as pd

    if name in frame.columns:
        return frame[name].to_numpy()
    known = [str(column) for column in frame.columns if column != "geometry"]
    for table in sdata.tables.values():
        link = table.uns.get("spatialdata_attrs", {})
        if shapes not in np.atleast_1d(link.get("region", "")):
            continue
        rows = table.obs[table.obs[link["region_key"]].astype(str) == shapes]
        known += [str(column) for column in rows.columns]
        if name in rows:
            places = pd.Index(rows[link["instance_key"]].to_numpy()).get_indexer(frame.index)
            if (places < 0).any():
                raise ValueError(
                    f"Column {name!r} has no value for {int((places < 0).sum())} of the shapes {shapes!r}."
                )
            return rows[name].to_numpy()[places]
    raise KeyError(f"There is no column {name!r} on the shapes {shapes!r} or a table of theirs; there are {known}.")


@verb
def export_xenium_explorer(
    sdata: SpatialData, path: str | Path, *, group: str, table: str | None = None, overwrite: bool = False
) -> None:
    """Write groups of cells as the csv file that Xenium Explorer takes (``cell_id,group``).

    Parameters
    ----------
    sdata
        The sample, or the path of its store.
    path
        File to write.
    group
        Column of the cell table.
    table
        The cell table; found by default. Cells are named by its column ``cell_id``, or by its index.
    overwrite
        Replace a file.

    Raises
    ------
    FileExistsError
        If the file exists, and ``overwrite`` is False.
    KeyError
        If there is no cell table, or no such column.

    Examples
    --------
    >>> import tempfile, pathlib, sthist
    >>> sdata = sthist.datasets.toy(size_um=200)
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "groups.csv"
    >>> sthist.io.export_xenium_explorer(sdata, path, group="cell_type")
    >>> path.read_text().splitlines()[0]
    'cell_id,group'
    """
    import pandas as pd

    path = Path(path)
    key = _sample.find_cell_table(sdata, table)
    if key is None:
        raise KeyError(f"Found no table of cells. {_sample.describe('tables', sdata.tables)} Name it with table=.")
    obs = sdata.tables[key].obs
    if group not in obs:
        raise KeyError(f"Table {key!r} has no column {group!r}; it has {list(obs.columns)}.")
    cells = obs.get("cell_id", obs.index)
    groups = pd.DataFrame({"cell_id": np.asarray(cells), "group": np.asarray(obs[group])}).dropna()
    with _written_whole(path, overwrite=overwrite) as partial:
        groups.to_csv(partial, index=False)
