"""Nuclei that are known already, from another program or a vendor: their outlines, measured on the H&E."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist import scale
from sthist._messages import plain
from sthist._sample.elements import outlines_um, present
from sthist._settings import logger
from sthist.pp._nuclei.outlines import amounts_of, facts_of
from sthist.pp._nuclei.windows import BLOCK_PX, LARGEST_UM, over_blocks
from sthist.tiles._regions.raster import rasterize

if TYPE_CHECKING:
    from geopandas import GeoDataFrame
    from spatialdata import SpatialData

    from sthist.pp._nuclei.windows import Lattice, Window

SUFFIXES = (".json", ".geojson", ".json.gz", ".geojson.gz", ".zip")


def known_nuclei(sdata: SpatialData, method: Any, image: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Outlines in µm, and their names, for which ``method=`` stands: a key of shapes, a frame, or a file.

    None where it is none of them. What crosses itself is repaired, and what has no area left out.
    """
    import geopandas as gpd

    if isinstance(method, gpd.GeoDataFrame):
        return _areas(_of_frame(method), method.index.astype(str).to_numpy(), "the frame")
    if isinstance(method, str) and method in sdata.shapes:
        names = present(sdata.shapes[method]).index.astype(str).to_numpy()
        return _areas(outlines_um(sdata, method), names, f"shapes {method!r}")
    if isinstance(method, Path) or (isinstance(method, str) and method.lower().endswith(SUFFIXES)):
        path = Path(method).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"There is no file {path}.")
        outlines = _of_file(path, scale.matrix_to_um(sdata, "images", image))
        return _areas(outlines, np.arange(len(outlines)).astype(str), str(path))
    return None


def _of_frame(frame: GeoDataFrame) -> np.ndarray:
    """Of a frame in µm; circles of SpatialData by their radius."""
    if not len(frame) or frame.geometry.isna().all():
        raise ValueError("The frame of nuclei has no geometry.")
    geometry = frame.geometry
    return np.asarray((geometry.buffer(frame["radius"]) if "radius" in frame else geometry).to_numpy(), object)


def _of_file(path: Path, to_um: np.ndarray) -> np.ndarray:
    """Of GeoJSON, or of the cells of CellViT, in pixels of the image."""
    import shapely

    from sthist.io._annotations.objects import read_geojson

    cells = _cellvit(path)
    geometry = np.array([each.geometry for each in read_geojson(path)], object) if cells is None else cells
    return shapely.transform(geometry, lambda places: places @ to_um[:2, :2].T + to_um[:2, 2])


def _cellvit(path: Path) -> np.ndarray | None:
    """Contours of the cells that CellViT has written; None where it is no such file."""
    import json

    import shapely

    if not path.name.lower().endswith(".json"):
        return None
    try:
        content = json.loads(path.read_text())
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is no JSON: {error}.") from error
    if not (isinstance(content, dict) and isinstance(content.get("cells"), list)):
        return None
    outlines = []
    for i, cell in enumerate(content["cells"]):
        contour = np.asarray(cell.get("contour", []) if isinstance(cell, dict) else [], dtype=object)
        try:
            places = contour.astype(np.float64)
        except (TypeError, ValueError):
            places = np.empty(0)
        if places.ndim != 2 or places.shape[1] != 2 or len(places) < 3 or not np.isfinite(places).all():
            raise ValueError(f"{path}: cells[{i}] has no 'contour' of at least three points x, y.")
        outlines.append(shapely.Polygon(places))
    if not outlines:
        raise ValueError(f"{path} holds no cells: 'cells' is empty.")
    return np.array(outlines, object)


def _areas(geometry: np.ndarray, names: np.ndarray, what: str) -> tuple[np.ndarray, np.ndarray]:
    """Outlines that are valid and have an area, and their names."""
    import shapely

    wrong = ~shapely.is_valid(geometry) & ~shapely.is_missing(geometry)
    if wrong.any():
        logger.warning(
            "%d of the outlines of %s cross themselves, the first is number %d: what they enclose counts.",
            int(wrong.sum()),
            what,
            int(wrong.argmax()),
        )
        geometry = geometry.copy()
        geometry[wrong] = shapely.make_valid(geometry[wrong], method="structure", keep_collapsed=False)
    flat = ~(shapely.area(geometry) > 0)
    if flat.all():
        kinds = sorted({plain(each.geom_type) for each in geometry if each is not None})
        raise ValueError(f"{what} holds no outlines with an area; they are {', '.join(kinds) or 'empty'}.")
    if flat.any():
        logger.warning("%d of the outlines of %s have no area, and are left out.", int(flat.sum()), what)
    return geometry[~flat], names[~flat]


def on_image(known: tuple[np.ndarray, np.ndarray], lattice: Lattice) -> tuple[np.ndarray, np.ndarray]:
    """The outlines whose centre lies on the image, and their names."""
    import shapely

    outlines, names = known
    there = lattice.image.holds(shapely.get_coordinates(shapely.centroid(outlines)))
    if not there.any():
        x0, y0, x1, y1 = lattice.image.extent_um
        raise ValueError(
            f"None of the {len(outlines)} outlines lies on image {lattice.image.key!r}, which spans x {x0:.0f} to "
            f"{x1:.0f}, y {y0:.0f} to {y1:.0f} µm. A frame is in µm, a file in pixels of the image."
        )
    if not there.all():
        logger.warning(
            "%d of %d nuclei are left out: they do not lie on image %r.",
            int((~there).sum()),
            len(there),
            lattice.image.key,
        )
    return outlines[there], names[there]


def measured(
    outlines: np.ndarray, lattice: Lattice, vectors: np.ndarray, progress: bool | None
) -> dict[str, np.ndarray]:
    """Shape and stain of each outline, of the pixels whose centres lie in it; NaN where there are none."""
    import shapely

    from sthist._imaging.nucleus_kernels import measure

    centres = shapely.get_coordinates(shapely.centroid(outlines))
    side = (centres - lattice.origin_um) / lattice.mpp // BLOCK_PX
    margin = -(-int(np.ceil(LARGEST_UM / lattice.mpp)) // 16) * 16

    def work(block: Window) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        mine = np.flatnonzero((side == [block.x0 // BLOCK_PX, block.y0 // BLOCK_PX]).all(1))
        if not len(mine):
            return mine, {}
        window = block.grown(margin)
        rgb, seen = lattice.read(window)
        corner = lattice.to_um(np.array([window.x0, window.y0]))
        labels = rasterize(outlines[mine], corner, lattice.mpp, window.shape, np.arange(1, len(mine) + 1))
        labels = np.where(seen, labels, 0).astype(np.int32)
        counts, sums = measure(labels, len(mine), amounts_of(rgb, vectors))
        facts = facts_of(counts[1:], sums[1:])
        return mine, {name: np.where(counts[1:, 1] > 0, each, np.nan) for name, each in facts.items()}

    facts: dict[str, np.ndarray] = {}
    for mine, here in over_blocks(work, lattice.blocks(), progress=progress):
        for name, each in here.items():
            facts.setdefault(name, np.full(len(outlines), np.nan))[mine] = each
    return facts
