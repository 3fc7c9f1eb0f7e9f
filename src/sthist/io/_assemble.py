"""A SpatialData out of loose files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sthist import _alignment, _sample, scale
from sthist._reading import reader
from sthist._settings import logger
from sthist.io._files import checks
from sthist.io._files.images import LooseImage, dims_of, finest, image_element, read_image, size_px
from sthist.io._files.values import FARTHEST, no_places, require_named, require_sparse_matrix
from sthist.io._parts.label_outlines import is_label_image, outlines_of_labels, read_labels
from sthist.io._parts.outlines import mended, one_plane, read_geoparquet, require_finite, rings
from sthist.io._parts.sample import CELL_RADIUS_UM, circles, link_table, record_nuclear

if TYPE_CHECKING:
    from collections.abc import Sequence

    import geopandas as gpd
    import pandas as pd
    from anndata import AnnData
    from spatialdata import SpatialData

UM_COLUMNS = (("x_um", "y_um"), ("x_location", "y_location"), ("x_centroid", "y_centroid"))  # the latter two: Xenium's
PLANES = ("z", "ZIndex", "z_index", "plane")  # columns of outlines that number planes
CELL = "__cell"
STAINS = "stains"
PX_COLUMNS = (("pixel_x", "pixel_y"), ("x_px", "y_px"), ("col", "row"))


@reader
def assemble(
    images: Mapping[str, Any] | None = None,
    *,
    mpp: float | Mapping[str, float] | None = None,
    matrices: Mapping[str, Any] | None = None,
    channels: Mapping[str, Sequence[str]] | None = None,
    points: pd.DataFrame | str | Path | None = None,
    table: AnnData | None = None,
    cells: gpd.GeoDataFrame | pd.DataFrame | str | Path | None = None,
    labels: Any = None,
    xy: tuple[str, str] | None = None,
    unit: Literal["px", "um"] | None = None,
    gene: str | None = None,
    spot_diameter_um: float | None = None,
    crop: bool = False,
) -> SpatialData:
    """Put images, molecules and cells or spots together as one sample in micrometres.

    Parameters
    ----------
    images
        Name to path (TIFF, OME-TIFF, SVS, PNG, JPEG) or array: (y, x), (y, x, 3), (c, y, x), or (c, z, y, x) for a
        stack. TIFF files are read as they are needed. Names like ``"he"`` and ``"dapi"``, or channels named like
        stains, tell their roles.
    mpp
        µm per pixel: one number for all images, or one per image. Not needed where a file states it.
    matrices
        Image name to a (3, 3) matrix from its pixels (x, y, 1) to µm, in place of ``mpp``. Pixel (0, 0) covers
        [0, 1) x [0, 1).
    channels
        Image name to the names of its channels, such as ``["PolyT", "DAPI"]``.
    points
        Molecules: a frame or a parquet file.
    table
        Cells or spots: an AnnData whose ``obs`` (or ``obsm["spatial"]``) holds coordinates.
    cells
        Outlines of the table's cells in µm: a GeoDataFrame indexed by cell, or a file of one; or a frame or parquet
        file with the columns ``cell_id``, ``x_um``, ``y_um`` and one row per vertex. Where a column ``z`` says that
        cells have outlines in several planes, that of the plane with the most cells is taken, else of the nearest one.
    labels
        A label image in place of outlines, in the pixels of the first image, whose size it has: an array (y, x) of
        whole numbers, one for each cell and 0 beside them, or a file (TIFF, PNG, ``.npy``). Outlines are made of it
        block by block; the table's ``cell_id``, or its index, are these numbers.
    xy
        Columns of ``points`` and of ``table.obs`` that hold x and y. By default the first that exists of
        (x_um, y_um), (x_location, y_location), (x_centroid, y_centroid), (pixel_x, pixel_y), (x_px, y_px), (col, row).
    unit
        Of ``xy``: ``"um"``, or ``"px"`` of the first image. Told by the column's name where it is one of those above.
    gene
        Column of ``points`` that names the gene; ``"gene"`` or ``"feature_name"`` by default.
    spot_diameter_um
        The table's rows are round spots of this diameter.
    crop
        Leave out molecules, cells and spots whose place (of an outline, its centroid) lies beside all images, as for a
        crop of an image with the files of the whole section.

    Returns
    -------
    A SpatialData in memory, all of it registered in ``um``: the images (pyramids where they are large),
    ``points["transcripts"]``, ``shapes["spots"]`` or ``shapes["cells"]``, and ``tables["table"]`` linked to them with
    ``obsm["spatial"]`` in µm. Roles are recorded in ``attrs["sthist"]["roles"]``. Where a nuclear stain and stains of
    the cytoplasm (such as ``"dapi"`` and ``"polyT"``) are images of one channel and one place each,
    ``images["stains"]`` holds them together, read when needed, and has the role of the stain.

    Raises
    ------
    FileNotFoundError
        If a file is missing.
    KeyError
        If a column, or an image that is named in another argument, is missing.
    ValueError
        If a scale is missing or contradicts a file's metadata, a unit cannot be told, coordinates are NaN or infinite,
        cells and table do not fit, a cell is there twice, the table's matrix is damaged, or nothing is left by
        ``crop``.

    Examples
    --------
    >>> import numpy as np, pandas as pd, sthist
    >>> dapi = np.zeros((100, 200), np.uint8)
    >>> molecules = pd.DataFrame({"x_um": [3.0, 8.0], "y_um": [4.0, 9.0], "gene": ["A", "B"]})
    >>> sdata = sthist.io.assemble({"dapi": dapi}, mpp=0.5, points=molecules)
    >>> sdata.coordinate_systems
    ['um']
    """
    from spatialdata import SpatialData
    from spatialdata.transformations import Affine

    images, matrices = dict(images or {}), dict(matrices or {})
    by_image = {"matrices": matrices, "channels": channels, "mpp": mpp if isinstance(mpp, Mapping) else None}
    for argument, mapping in by_image.items():
        for name in mapping or {}:
            if name not in images:
                raise KeyError(f"{argument}= names the image {name!r}; images= has {sorted(images)}.")
    sdata = SpatialData()
    to_um: dict[str, np.ndarray] = {}
    for name, source in images.items():
        loose = read_image(source, name)
        its_mpp = mpp.get(name) if isinstance(mpp, Mapping) else mpp
        stated = scale.trusted(loose.mpp, its_mpp)
        if name in matrices:
            to_um[name] = _alignment.read_matrix(matrices[name], f"matrices[{name!r}]")
            stated = scale.sensible(stated, f"image {name!r}")
        else:
            nobody = f"Image {name!r} states no µm per pixel; give it with mpp= or matrices=."
            size = scale.agreed_mpp(f"image {name!r}", stated, its_mpp, nobody)
            to_um[name] = np.diag([size, size, 1.0])
        registered = {_sample.UM: Affine(to_um[name], ("x", "y"), ("x", "y"))}
        sdata.images[name] = image_element(loose, registered, channels=(channels or {}).get(name), name=name)
        for stated_by, value in stated.items():
            scale.record_mpp(sdata, name, stated_by, value)
        scale.resolve_mpp(sdata, name)
    px_to_um = next(iter(to_um.values()), None)
    extent = Extent.of(sdata, to_um, crop)
    if labels is None and is_label_image(cells):
        labels, cells = cells, None
    if labels is not None:
        if cells is not None:
            raise ValueError("cells= and labels= are both given; give the one that outlines the cells.")
        cells = _outlines_of_labels(labels, sdata, to_um, mpp)
    if points is not None:
        _add_points(sdata, points, xy, unit, gene, px_to_um, extent)
    if table is not None:
        _add_table(sdata, table, cells, xy, unit, spot_diameter_um, px_to_um, extent)
    elif cells is not None:
        outlines = _outlines(cells)
        _add_cells(sdata, outlines[extent.inside(_centroids(outlines), "cells")])
    _add_stains(sdata, to_um)
    # Nuclear stain and H&E are recorded where one image each is named like them.
    try:
        if STAINS not in sdata.images or "nuclear" not in _sample.roles(sdata):
            record_nuclear(sdata)
    except (KeyError, ValueError):
        logger.debug("No nuclear stain recognised among %s.", list(sdata.images))
    try:
        _sample.set_role(sdata, "he", {"image": _sample.find_he(sdata)})
    except (KeyError, ValueError):
        logger.debug("No H&E recognised among %s.", list(sdata.images))
    return sdata


@dataclass(frozen=True)
class Extent:
    """The box around all images in µm, and whether what lies beside it is left out."""

    box: np.ndarray | None  # (2, 2): lower and upper corner; None without images
    crop: bool

    @classmethod
    def of(cls, sdata: SpatialData, to_um: Mapping[str, np.ndarray], crop: bool) -> Extent:
        """That of a sample's images."""
        if not to_um:
            if crop:
                raise ValueError("crop=True leaves out what lies beside the images, but there are none: give images=.")
            return cls(None, crop)
        corners = []
        for name, matrix in to_um.items():
            width, height = size_px(sdata.images[name])
            corners.append(np.array([[0, 0, 1], [width, 0, 1], [0, height, 1], [width, height, 1]]) @ matrix[:2].T)
        every = np.concatenate(corners)
        return cls(np.stack([every.min(0), every.max(0)]), crop)

    def inside(self, um: np.ndarray, what: str) -> np.ndarray:
        """Which places are kept, all of them unless ``crop``; what lies beside the images is said."""
        if self.box is None:
            return np.ones(len(um), bool)
        inside = ((um >= self.box[0]) & (um <= self.box[1])).all(1)
        if inside.all():
            return inside
        (x0, y0), (x1, y1) = self.box.tolist()
        first = um[int((~inside).argmax())]
        said = (
            f"{int((~inside).sum())} of {len(um)} {what} lie beside the images, which span x {x0:.6g} to {x1:.6g}, y "
            f"{y0:.6g} to {y1:.6g} µm, such as ({first[0]:.6g}, {first[1]:.6g})"
        )
        if not self.crop:
            logger.warning("%s; crop=True leaves them out. Is the unit the right one?", said)
            return np.ones(len(um), bool)
        if not inside.any():
            raise ValueError(f"{said}: none is left by crop=True. Are they in µm, or in pixels of another image?")
        logger.info("%s; they are left out.", said)
        return np.asarray(inside)


def _add_points(
    sdata: SpatialData,
    points: Any,
    xy: Any,
    unit: Any,
    gene: str | None,
    px_to_um: np.ndarray | None,
    extent: Extent,
) -> None:
    from spatialdata.models import PointsModel
    from spatialdata.transformations import Identity

    frame = _frame(points, "points").reset_index(drop=True)
    what = f"points ({points})" if isinstance(points, str | Path) else "points"
    columns, unit = _find_xy(frame.columns, xy, unit, what)
    gene = gene if gene is not None else next((name for name in ("gene", "feature_name") if name in frame), None)
    if gene is None or gene not in frame:
        raise KeyError(
            f"{what} have no gene column{'' if gene is None else f' {gene!r}'}: their columns are "
            f"{list(frame.columns)}; name it with gene=."
        )
    um = _in_um(_numbers(frame, columns, what), unit, px_to_um, what, columns)
    require_named(str(points) if isinstance(points, str | Path) else "points", f"column {gene!r}", frame[gene])
    kept = extent.inside(um, "molecules")
    frame, um = frame[kept].reset_index(drop=True), um[kept]
    rest = frame.drop(columns=[name for name in ("x", "y", *columns) if name in frame])
    rest = rest.assign(x=um[:, 0], y=um[:, 1])
    rest[gene] = rest[gene].astype("category")
    sdata.points["transcripts"] = PointsModel.parse(rest, feature_key=gene, transformations={_sample.UM: Identity()})
    _sample.set_role(sdata, "transcripts", {"points": "transcripts", "gene": gene})


def _add_table(
    sdata: SpatialData,
    table: AnnData,
    cells: Any,
    xy: Any,
    unit: Any,
    spot_diameter_um: float | None,
    px_to_um: np.ndarray | None,
    extent: Extent,
) -> None:
    import pandas as pd
    from spatialdata.transformations import Identity

    require_sparse_matrix("table: X", table.X)
    table = table.copy()
    ids = table.obs["cell_id"].to_numpy() if "cell_id" in table.obs else table.obs_names.to_numpy()
    again = pd.Index(ids).duplicated()
    if again.any():
        raise ValueError(f"table has the cell or spot {str(ids[again][0])!r} more than once. Remove the wrong rows.")
    key = "cells" if spot_diameter_um is None else "spots"
    if cells is not None:
        outlines = _outlines(cells)
        if not outlines.index.isin(ids).any():  # numbers in one, and their text in the other
            outlines.index, ids = outlines.index.astype(str), ids.astype(str)
        missing = ids[~pd.Index(ids).isin(outlines.index)]
        if len(missing):
            raise ValueError(
                f"{len(missing)} of the table's {len(ids)} cells have no outline, the first of them "
                f"{str(missing[0])!r}; outlines are named like {str(outlines.index[0])!r} "
                f"({outlines.index.name or 'the index'})"
                f"{f' in {cells}' if isinstance(cells, str | Path) else ''}."
            )
        outlines = outlines.loc[ids]
        centres = _centroids(outlines)
        kept = extent.inside(centres, "cells")
        table, ids, centres = table[kept].copy(), ids[kept], centres[kept]
        _add_cells(sdata, outlines[kept])
    else:
        named = any(set(pair) <= set(table.obs) for pair in UM_COLUMNS + PX_COLUMNS)
        if xy is None and "spatial" in table.obsm and not named:
            if unit is None:
                raise ValueError(
                    'The table has obsm["spatial"] but does not say its unit; give unit="px" or unit="um".'
                )
            raw = np.asarray(table.obsm["spatial"], np.float64)[:, :2]
            columns: tuple[str, ...] = ("obsm['spatial']",)
        else:
            columns, unit = _find_xy(table.obs.columns, xy, unit, "table.obs")
            raw = _numbers(table.obs, columns, "table.obs")
        centres = _in_um(raw, unit, px_to_um, "table.obs", columns)
        kept = extent.inside(centres, key)
        table, ids, centres = table[kept].copy(), ids[kept], centres[kept]
        diameter = 2 * CELL_RADIUS_UM if spot_diameter_um is None else float(spot_diameter_um)
        if spot_diameter_um is None:
            logger.info("The table's rows are shown as cells of %g µm; give cells= or spot_diameter_um=.", diameter)
        sdata.shapes[key] = circles(centres, diameter / 2, ids, {_sample.UM: Identity()})
    table.obsm["spatial"] = centres
    sdata.tables["table"] = link_table(table, key, ids)
    _sample.set_role(sdata, key, {"table": "table"} | ({"shapes": key} if key == "spots" else {}))


def _add_cells(sdata: SpatialData, outlines: gpd.GeoDataFrame) -> None:
    from spatialdata.models import ShapesModel
    from spatialdata.transformations import Identity

    sdata.shapes["cells"] = ShapesModel.parse(outlines, transformations={_sample.UM: Identity()})


def _centroids(outlines: gpd.GeoDataFrame) -> np.ndarray:
    """Centroids of outlines, (n, 2), in µm."""
    return np.asarray(outlines.geometry.centroid.get_coordinates(), np.float64)


def _outlines_of_labels(labels: Any, sdata: SpatialData, to_um: Mapping[str, np.ndarray], mpp: Any) -> gpd.GeoDataFrame:
    """Outlines in µm of a label image on the first image, or at ``mpp`` where there is none."""
    pixels = read_labels(labels)
    size = tuple(reversed(pixels.shape))
    sizes = {name: size_px(sdata.images[name]) for name in to_um}
    fitting = next((name for name, there in sizes.items() if there == size), None)
    if fitting is not None:
        matrix = to_um[fitting]
    elif not to_um and isinstance(mpp, int | float):
        matrix = np.diag([scale.agreed_mpp("labels=", {}, float(mpp), ""), float(mpp), 1.0])
    else:
        shown = ", ".join(f"{name!r} has {width} x {height}" for name, (width, height) in sizes.items())
        raise ValueError(
            f"labels= has {size[0]} x {size[1]} px; it lies on an image of its size, but {shown or 'there is none'}. "
            f"Give {'the labels of that image' if sizes else 'the image with images=, or mpp='}."
        )
    outlines = outlines_of_labels(pixels)
    (a, b, x), (c, d, y) = matrix[:2].tolist()
    outlines.geometry = outlines.affine_transform([a, b, c, d, x, y])
    return outlines


def _outlines(cells: Any) -> gpd.GeoDataFrame:
    """Outlines by cell, from polygons or from one row per vertex; one of each cell."""
    import geopandas as gpd
    import pandas as pd
    import pyarrow.parquet as pq

    where = str(cells) if isinstance(cells, str | Path) else "cells"
    if isinstance(cells, str | Path) and Path(cells).is_file():
        with checks.reading(Path(cells)):
            metadata = pq.read_schema(cells).metadata or {}
        if b"geo" in metadata:
            cells = read_geoparquet(Path(cells))
            name = next((name for name in ("cell_id", "EntityID") if name in cells), None)
            cells = cells if name is None else cells.set_index(name, drop=False)
    if isinstance(cells, gpd.GeoDataFrame):
        require_finite(where, cells)
        return _one_each(where, cells)
    what = "cells" if where == "cells" else f"cells ({where})"
    frame = _frame(cells, "cells")
    missing = [name for name in ("cell_id", "x_um", "y_um") if name not in frame]
    if missing:
        raise KeyError(
            f"{what} have no column {missing}; one row per vertex needs cell_id, x_um and y_um, and has "
            f"{list(frame.columns)}."
        )
    plane = next((name for name in PLANES if name in frame), None)
    ids = frame["cell_id"] if plane is None else pd.MultiIndex.from_frame(frame[["cell_id", plane]])
    polygons, rows = rings(where, ids, _numbers(frame, ("x_um", "y_um"), where), "x_um, y_um")
    facts = {} if plane is None else {plane: frame[plane].to_numpy()[rows]}
    index = pd.Index(frame["cell_id"].to_numpy()[rows], name="cell_id")
    outlines = gpd.GeoDataFrame(facts, geometry=mended(polygons, where), index=index)
    flat = outlines.geometry.is_empty
    if flat.any():
        logger.warning("%d outlines have no area and are left out.", int(flat.sum()))
    return _one_each(where, outlines[~flat])


def _one_each(where: str, outlines: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
    """One outline of each cell, of the plane with the most cells where there are several."""
    plane = next((name for name in PLANES if name in outlines), None)
    again = outlines.index.duplicated()
    if again.any() and plane is not None:
        name = outlines.index.name
        frame = outlines.assign(**{CELL: outlines.index})
        counts = frame[plane].value_counts()
        wanted = float(counts.index[counts == counts.max()].min())
        outlines = one_plane(where, frame, CELL, plane, wanted).drop(columns=CELL)
        outlines.index.name = name
    elif again.any():
        raise ValueError(
            f"{where} has {int(again.sum())} outlines of cells that have one already, such as "
            f"{str(outlines.index[again][0])!r}. Leave one of each, or give a column z with their planes."
        )
    return outlines


def _add_stains(sdata: SpatialData, to_um: Mapping[str, np.ndarray]) -> None:
    """One image of the nuclear stain and those of the cytoplasm, where each is an image of one channel."""
    import dask.array as da
    from spatialdata.transformations import Affine

    single = [
        name
        for name in sdata.images
        if len(_sample.channel_names(sdata.images[name])) == 1 and "z" not in dims_of(sdata.images[name])
    ]
    nuclear = [name for name in single if _sample.NUCLEAR_NAMES.search(name)]
    cytoplasm = [name for name in single if name not in nuclear and _sample.CYTOPLASM_NAMES.search(name)]
    if len(nuclear) != 1 or not cytoplasm or STAINS in sdata.images:
        return
    first = finest(sdata.images[nuclear[0]])
    fitting = [
        name
        for name in cytoplasm
        if finest(sdata.images[name]).shape == first.shape
        and finest(sdata.images[name]).dtype == first.dtype
        and np.allclose(to_um[name], to_um[nuclear[0]])
    ]
    for name in cytoplasm:
        if name not in fitting:
            logger.warning(
                f"Image {name!r} has another size, type or place than {nuclear[0]!r}: it is not used as a stain of the "
                "cytoplasm. Give both as one image, with channels=."
            )
    if not fitting:
        return
    names = [nuclear[0], *fitting]
    pixels = da.concatenate([da.asarray(finest(sdata.images[name]).data) for name in names])
    placed = {_sample.UM: Affine(to_um[nuclear[0]], ("x", "y"), ("x", "y"))}
    sdata.images[STAINS] = image_element(LooseImage(pixels, ("c", "y", "x"), {}), placed, channels=names, name=STAINS)
    for source, value in scale.recorded_mpp(sdata, nuclear[0]).items():
        scale.record_mpp(sdata, STAINS, source, value)
    record_nuclear(sdata, STAINS)


def _frame(source: Any, argument: str) -> pd.DataFrame:
    import pandas as pd

    frame = source
    if not isinstance(source, pd.DataFrame):
        if not Path(source).exists():
            raise FileNotFoundError(f"{argument}: there is no file {source}.")
        frame = checks.read_parquet(source)
    if frame.empty:
        raise ValueError(f"{argument} has no rows{f' in {source}' if frame is not source else ''}.")
    return frame


def _find_xy(columns: Any, xy: Any, unit: Any, argument: str) -> tuple[tuple[str, str], str]:
    known = dict.fromkeys(UM_COLUMNS, "um") | dict.fromkeys(PX_COLUMNS, "px")
    if xy is not None and set(xy) <= set(columns):
        unit = unit or known.get(tuple(xy))
        if unit is None:
            raise ValueError(f'The unit of {argument} columns {tuple(xy)} cannot be told; give unit="px" or unit="um".')
        return (xy[0], xy[1]), unit
    for pair, known_unit in known.items():
        if set(pair) <= set(columns):
            return pair, known_unit
    if {"x", "y"} <= set(columns) and unit is not None:
        return ("x", "y"), unit
    alone = next((pair for pair in known if set(pair) & set(columns)), None)
    missing = "" if alone is None else f"; {', '.join(repr(name) for name in alone if name not in columns)} is missing"
    raise KeyError(
        f"{argument} has no coordinates that are recognised{missing}: its columns are {list(columns)}; name them with "
        "xy= and unit=."
    )


def _numbers(frame: pd.DataFrame, columns: Sequence[str], argument: str) -> np.ndarray:
    """Columns as float64; text is named."""
    import pandas as pd

    for name in columns:
        bad = pd.to_numeric(frame[name], errors="coerce").isna() & frame[name].notna()
        if bad.any():
            raise ValueError(
                f"{argument}: column {name!r} should hold numbers, but row {int(bad.to_numpy().argmax())} has "
                f"{str(frame[name][bad].iloc[0])!r}."
            )
    return np.column_stack([pd.to_numeric(frame[name]).to_numpy(np.float64, na_value=np.nan) for name in columns])


def _in_um(
    xy: np.ndarray, unit: str, px_to_um: np.ndarray | None, argument: str, columns: tuple[str, ...]
) -> np.ndarray:
    bad = no_places(xy)
    if bad.any():
        raise ValueError(
            f"{int(bad.sum())} of {len(xy)} coordinates ({', '.join(columns)}) of {argument} are NaN or infinite, the "
            f"first in row {int(bad.argmax())}. Correct them, or leave them out; none is above {FARTHEST:g}."
        )
    if unit == "um":
        return xy
    if unit != "px":
        raise ValueError(f'unit is {unit!r}; it is "px" or "um".')
    if px_to_um is None:
        raise ValueError(
            f"{argument} is in pixels, but there is no image to tell their size; give images=, or coordinates in µm."
        )
    return np.c_[xy, np.ones(len(xy))] @ px_to_um[:2].T
