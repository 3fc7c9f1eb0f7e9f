"""A SpatialData out of loose files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sthist import _alignment, _sample, scale
from sthist._settings import logger
from sthist.io._files.images import image_element, read_image
from sthist.io._parts.sample import CELL_RADIUS_UM, circles, link_table, record_nuclear

if TYPE_CHECKING:
    from collections.abc import Sequence

    import geopandas as gpd
    import pandas as pd
    from anndata import AnnData
    from spatialdata import SpatialData

UM_COLUMNS = (("x_um", "y_um"), ("x_location", "y_location"), ("x_centroid", "y_centroid"))  # the latter two: Xenium's
PX_COLUMNS = (("pixel_x", "pixel_y"), ("x_px", "y_px"), ("col", "row"))


def assemble(
    images: Mapping[str, Any] | None = None,
    *,
    mpp: float | Mapping[str, float] | None = None,
    matrices: Mapping[str, Any] | None = None,
    channels: Mapping[str, Sequence[str]] | None = None,
    points: pd.DataFrame | str | Path | None = None,
    table: AnnData | None = None,
    cells: gpd.GeoDataFrame | pd.DataFrame | str | Path | None = None,
    xy: tuple[str, str] | None = None,
    unit: Literal["px", "um"] | None = None,
    gene: str | None = None,
    spot_diameter_um: float | None = None,
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
        Outlines of the table's cells in µm: a GeoDataFrame indexed by cell; or a frame or parquet file with the columns
        ``cell_id``, ``x_um``, ``y_um`` and one row per vertex.
    xy
        Columns of ``points`` and of ``table.obs`` that hold x and y. By default the first that exists of
        (x_um, y_um), (x_location, y_location), (x_centroid, y_centroid), (pixel_x, pixel_y), (x_px, y_px), (col, row).
    unit
        Of ``xy``: ``"um"``, or ``"px"`` of the first image. Told by the column's name where it is one of those above.
    gene
        Column of ``points`` that names the gene; ``"gene"`` or ``"feature_name"`` by default.
    spot_diameter_um
        The table's rows are round spots of this diameter.

    Returns
    -------
    A SpatialData in memory, all of it registered in ``um``: the images (pyramids where they are large),
    ``points["transcripts"]``, ``shapes["spots"]`` or ``shapes["cells"]``, and ``tables["table"]`` linked to them with
    ``obsm["spatial"]`` in µm. Roles are recorded in ``attrs["sthist"]["roles"]``.

    Raises
    ------
    FileNotFoundError
        If a file is missing.
    KeyError
        If a column, or an image that is named in another argument, is missing.
    ValueError
        If a scale is missing or contradicts a file's metadata, a unit cannot be told, coordinates are NaN, or cells and
        table do not fit.

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
    if points is not None:
        _add_points(sdata, points, xy, unit, gene, px_to_um)
    if table is not None:
        _add_table(sdata, table, cells, xy, unit, spot_diameter_um, px_to_um)
    elif cells is not None:
        _add_cells(sdata, _outlines(cells))
    # Nuclear stain and H&E are recorded where one image each is named like them.
    try:
        record_nuclear(sdata)
    except (KeyError, ValueError):
        logger.debug("No nuclear stain recognised among %s.", list(sdata.images))
    try:
        _sample.set_role(sdata, "he", {"image": _sample.find_he(sdata)})
    except (KeyError, ValueError):
        logger.debug("No H&E recognised among %s.", list(sdata.images))
    return sdata


def _add_points(
    sdata: SpatialData, points: Any, xy: Any, unit: Any, gene: str | None, px_to_um: np.ndarray | None
) -> None:
    from spatialdata.models import PointsModel
    from spatialdata.transformations import Identity

    frame = _frame(points, "points").reset_index(drop=True)
    columns, unit = _find_xy(frame.columns, xy, unit, "points")
    gene = gene if gene is not None else next((name for name in ("gene", "feature_name") if name in frame), None)
    if gene is None or gene not in frame:
        raise KeyError(
            f"points have no gene column{'' if gene is None else f' {gene!r}'}: their columns are "
            f"{list(frame.columns)}; name it with gene=."
        )
    um = _in_um(frame[list(columns)].to_numpy(np.float64), unit, px_to_um, "points")
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
) -> None:
    from spatialdata.transformations import Identity

    table = table.copy()
    ids = table.obs["cell_id"].to_numpy() if "cell_id" in table.obs else table.obs_names.to_numpy()
    key = "cells" if spot_diameter_um is None else "spots"
    if cells is not None:
        outlines = _outlines(cells)
        missing = [cell for cell in ids if cell not in outlines.index]
        if missing:
            raise ValueError(
                f"{len(missing)} of the table's {len(ids)} cells have no outline, the first of them {missing[0]!r}; "
                f"outlines are named like {outlines.index[0]!r}."
            )
        outlines = outlines.loc[ids]
        _add_cells(sdata, outlines)
        centres = outlines.geometry.centroid.get_coordinates().to_numpy()
    else:
        named = any(set(pair) <= set(table.obs) for pair in UM_COLUMNS + PX_COLUMNS)
        if xy is None and "spatial" in table.obsm and not named:
            if unit is None:
                raise ValueError(
                    'The table has obsm["spatial"] but does not say its unit; give unit="px" or unit="um".'
                )
            raw = np.asarray(table.obsm["spatial"], np.float64)[:, :2]
        else:
            columns, unit = _find_xy(table.obs.columns, xy, unit, "table.obs")
            raw = table.obs[list(columns)].to_numpy(np.float64)
        centres = _in_um(raw, unit, px_to_um, "table.obs")
        diameter = 2 * CELL_RADIUS_UM if spot_diameter_um is None else float(spot_diameter_um)
        if spot_diameter_um is None:
            logger.info("The table's rows are shown as cells of %g µm; give cells= or spot_diameter_um=.", diameter)
        sdata.shapes[key] = circles(centres, diameter / 2, ids, {_sample.UM: Identity()})
    table.obsm["spatial"] = centres
    sdata.tables["table"] = link_table(table, key, ids)
    if spot_diameter_um is None:
        _sample.set_role(sdata, "cells", {"table": "table"})


def _add_cells(sdata: SpatialData, outlines: gpd.GeoDataFrame) -> None:
    from spatialdata.models import ShapesModel
    from spatialdata.transformations import Identity

    sdata.shapes["cells"] = ShapesModel.parse(outlines, transformations={_sample.UM: Identity()})


def _outlines(cells: Any) -> gpd.GeoDataFrame:
    """Outlines by cell, from polygons or from one row per vertex."""
    import geopandas as gpd
    import pandas as pd
    import shapely

    if isinstance(cells, gpd.GeoDataFrame):
        return cells
    frame = _frame(cells, "cells")
    missing = [name for name in ("cell_id", "x_um", "y_um") if name not in frame]
    if missing:
        raise KeyError(
            f"cells have no column {missing}; one row per vertex needs cell_id, x_um and y_um, and has "
            f"{list(frame.columns)}."
        )
    codes, ids = pd.factorize(frame["cell_id"])
    order = np.argsort(codes, kind="stable")
    coordinates, codes = frame[["x_um", "y_um"]].to_numpy(np.float64)[order], codes[order]
    enough = np.bincount(codes, minlength=len(ids)) >= 3
    keep = enough[codes]
    rings = shapely.linearrings(coordinates[keep], indices=np.unique(codes[keep], return_inverse=True)[1])
    valid = shapely.make_valid(shapely.polygons(rings))
    # A ring that touches itself leaves lines behind; an outline is what has an area.
    areas = [shapely.union_all([part for part in shapely.get_parts(shape) if part.area > 0]) for shape in valid]
    frame = gpd.GeoDataFrame(geometry=areas, index=pd.Index(ids[enough], name="cell_id"))
    flat = frame.geometry.is_empty
    if flat.any() or not enough.all():
        logger.warning("%d outlines have no area and are left out.", int(flat.sum()) + int((~enough).sum()))
    return frame[~flat]


def _frame(source: Any, argument: str) -> pd.DataFrame:
    import pandas as pd

    frame = source
    if not isinstance(source, pd.DataFrame):
        if not Path(source).exists():
            raise FileNotFoundError(f"{argument}: there is no file {source}.")
        frame = pd.read_parquet(source)
    if frame.empty:
        raise ValueError(f"{argument} has no rows.")
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
    raise KeyError(
        f"{argument} has no coordinates that are recognised: its columns are {list(columns)}; name them with xy= and "
        "unit=."
    )


def _in_um(xy: np.ndarray, unit: str, px_to_um: np.ndarray | None, argument: str) -> np.ndarray:
    bad = ~np.isfinite(xy).all(1)
    if bad.any():
        raise ValueError(
            f"{int(bad.sum())} of {len(xy)} coordinates of {argument} are NaN or infinite, the first in row "
            f"{int(bad.argmax())}."
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
