"""Tiles: squares of tissue, as shapes and a table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sthist import _sample, _store
from sthist._sample.elements import outlines_um, present
from sthist._sample.samples import over_samples
from sthist._settings import logger, settings
from sthist._tables.rows import core_columns, lie_within
from sthist.tiles import Overlay, TileReader, TileSpec, has_content
from sthist.tiles._images.image import open_image
from sthist.tiles._sampling import iter_farthest, lies_inside

if TYPE_CHECKING:
    from collections.abc import Sequence

    from geopandas import GeoDataFrame
    from shapely.geometry.base import BaseGeometry
    from spatialdata import SpatialData


@over_samples
def tiles(
    data: SpatialData,
    *,
    size_um: float = 112.0,
    px: int = 224,
    sampling: Literal["grid", "regions", "fps"] = "grid",
    regions: str | None = None,
    overlap: float = 0.0,
    min_tissue: float = 0.5,
    n_tiles: int = 2000,
    max_blank: float = 0.9,
    images: str | Sequence[str] | None = None,
    within: Any = None,
    seed: int | None = None,
    key_added: str = "tiles",
    overwrite: bool = False,
    progress: bool | None = None,
) -> None:
    """Lay tiles over the tissue, or around regions such as spots and nuclei.

    Parameters
    ----------
    data
        One sample, or a mapping of name to sample; the path of a store stands for its sample.
    size_um
        Side of a tile in micrometres. A Visium spot is 55 µm wide, and 100 µm lie between two of them.
    px
        Pixels to which a tile will be sampled.
    sampling
        ``"grid"``: side by side over the tissue. ``"regions"``: one around the centroid of each region of ``regions``.
        ``"fps"``: around cells that are spread evenly by farthest point sampling, as ST2HE's training tiles are.
    regions
        For ``"grid"``, outlines of the tissue (``"tissue"`` by default, see :func:`sthist.pp.tissue`); for
        ``"regions"``, the regions (the spots by default, where a reader found some); for ``"fps"``, the cells (those of
        the cell table by default).
    overlap
        Part of a tile's side that it shares with the next one on the grid, from 0 to less than 1.
    min_tissue
        Tiles of the grid of which less is tissue are left out.
    n_tiles
        For ``"fps"``, how many tiles are wanted.
    max_blank
        For ``"fps"``, tiles are left out of which more is black or near white (grey 0, or above 230) in any of
        ``images``; so are tiles that leave an image.
    images
        For ``"fps"``, what the tiles must show: by default the nuclear stain and the H&E, those that there are.
    within
        Part of the slide: a box (x0, y0, x1, y1) in µm, a polygon, or the key of shapes. Tiles are laid whose centre
        lies in it; those of the grid lie where they would without.
    seed
        For ``"fps"``, draws the cell that comes first; by default it is the one in the middle.
    key_added
        Name of the shapes; the table is named ``<key_added>_table``.
    overwrite
        Replace elements of these names.
    progress
        For ``"fps"``, show a progress bar; ``settings.progress`` by default.

    Returns
    -------
    None. Writes ``sdata.shapes[key_added]``, squares in µm, and ``sdata.tables[key_added + "_table"]`` with one row per
    tile, ``obsm["spatial"]`` (centres x, y in µm) and ``uns["tile_spec"]``; in ``obs`` the columns ``region``,
    ``instance_id`` and, for the grid, ``tissue_fraction``, otherwise ``source_id``, the region's name. After
    :func:`sthist.pp.tma` also ``core``, in which a tile's centre lies (NaN between cores), and ``patient`` where it is
    known; no tile is made for a core that is missing.

    Raises
    ------
    KeyError
        If there are no such shapes.
    ValueError
        If no tile is left, an argument is out of range, or a name is taken.

    Examples
    --------
    >>> import sthist
    >>> sdata = sthist.datasets.toy(size_um=200)
    >>> sthist.pp.tissue(sdata)
    >>> sthist.pp.tiles(sdata, size_um=32, px=64)
    >>> sdata["tiles_table"].uns["tile_spec"]
    {'size_um': 32.0, 'px': 64}
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
        raise ValueError(f"overlap is {overlap}; it is a part of the tile's side, from 0 to less than 1.")
    if sampling not in {"grid", "regions", "fps"}:
        raise ValueError(f"sampling is {sampling!r}; it is 'grid', 'regions' or 'fps'.")
    if n_tiles < 1 or not 0 <= max_blank <= 1:
        raise ValueError(f"n_tiles is {n_tiles} and max_blank {max_blank}; they are at least 1, and from 0 to 1.")
    _sample.require_one_sample(data)
    if sampling == "regions" and regions is None:
        regions = _sample.roles(data).get("spots", {}).get("shapes")
    if sampling == "regions" and regions is None:
        raise ValueError(f"sampling='regions' needs the regions, regions=. {_sample.describe('shapes', data.shapes)}")
    table_key = f"{key_added}_table"
    _store.require_free(data, key_added, "shapes", overwrite=overwrite)
    _store.require_free(data, table_key, "tables", overwrite=overwrite)
    regions = regions or (find_cells(data) if sampling == "fps" else _sample.find_tissue(data))
    shapes = present(sd.transform(_sample.get(data, "shapes", regions), to_coordinate_system=_sample.UM))
    if sampling == "grid":
        centres, fraction = _grid(shapely.union_all(outlines_um(data, regions)), spec, overlap, min_tissue)
        if within is not None and len(centres):
            inside = lie_within(data, centres, within, "the tiles")
            centres, fraction = centres[inside], fraction[inside]
        obs = pd.DataFrame({"tissue_fraction": fraction})
        hint = f"has at least {min_tissue:.0%} tissue; lower min_tissue"
    else:
        centres, names = centroids(shapes), shapes.index.astype(str)
        if within is not None:
            inside = lie_within(data, centres, within, f"{regions!r}")
            centres, names = centres[inside], names[inside]
        chosen: Any = slice(None)
        if sampling == "fps":
            named = [images] if isinstance(images, str) else list(images or [])
            chosen = spread_tiles(_views(data, spec, named), centres, spec.size_um, n_tiles, max_blank, seed, progress)
        centres, obs = centres[chosen], pd.DataFrame({"source_id": names[chosen]})
        hint = f"lies on all images and is blank by at most {max_blank:.0%}; check their alignment, raise max_blank"
    if len(centres) == 0:
        raise ValueError(f"No tile of {size_um:g} µm {hint}, or make tiles smaller.")
    half = spec.size_um / 2
    squares = shapely.box(*(centres - half).T, *(centres + half).T)
    ids = np.arange(len(centres))
    frame = gpd.GeoDataFrame(geometry=squares, index=ids)
    made = _store.provenance(
        "pp.tiles", spec=spec.to_dict(), sampling=sampling, regions=regions, overlap=overlap, seed=seed
    )
    obs = obs.assign(region=pd.Categorical([key_added] * len(ids)), instance_id=ids, **core_columns(data, centres))
    obs = obs.set_index(ids.astype(str))
    table = ad.AnnData(obs=obs, obsm={"spatial": centres}, uns={"tile_spec": spec.to_dict()})
    table = TableModel.parse(table, region=key_added, region_key="region", instance_key="instance_id")
    element = ShapesModel.parse(frame, transformations={_sample.UM: Identity()})
    with _store.changing(data):
        _store.add(data, "shapes", key_added, element, made, overwrite=overwrite)
        _store.add(data, "tables", table_key, table, made, overwrite=overwrite)


FPS_BATCH = 64


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


def centroids(regions: GeoDataFrame) -> np.ndarray:
    """Centres of regions, (n, 2): x, y."""
    points = regions.geometry.centroid
    return np.c_[points.x, points.y]


def find_cells(sdata: SpatialData) -> str:
    """Shapes of the sample's cells."""
    table = _sample.find_cell_table(sdata)
    shapes = None if table is None else _sample.cell_shapes(sdata, table)
    if shapes is None:
        raise KeyError(
            f"Found no cells to sample. {_sample.describe('shapes', sdata.shapes)} Say which ones they are with "
            "regions=."
        )
    return shapes[0]


def spread_tiles(
    readers: Sequence[TileReader | Overlay],
    centres: np.ndarray,
    size_um: float,
    n: int,
    max_blank: float,
    seed: int | None = None,
    progress: bool | None = False,
) -> np.ndarray:
    """Cells by farthest point sampling whose tiles lie on all images and show something.

    Returns indices into ``centres``, at most ``n``, in the order of the choice.
    """
    from rich.progress import Progress

    inside = np.flatnonzero(np.logical_and.reduce([lies_inside(reader.image, centres, size_um) for reader in readers]))
    kept: list[int] = []
    n_blank = 0
    # Blank tiles are replaced by the next farthest, until there are enough or no cells are left.
    with Progress(disable=not (settings.progress if progress is None else progress)) as bar:
        task = bar.add_task("tiles", total=min(n, len(inside)))
        for order in iter_farthest(centres[inside], FPS_BATCH, seed=seed) if len(inside) else ():
            batch = inside[order]
            shows = np.logical_and.reduce([has_content(reader.read(centres[batch]), max_blank) for reader in readers])
            kept += batch[shows].tolist()
            n_blank += int((~shows).sum())
            bar.update(task, completed=min(len(kept), n))
            if len(kept) >= n:
                break
    if 0 < len(kept) < n:
        logger.warning(
            "%d tiles instead of %d: of %d cells %d lie too near a border, and %d tiles are blank.",
            len(kept),
            n,
            len(centres),
            len(centres) - len(inside),
            n_blank,
        )
    return np.array(kept[:n], np.int64)


def _views(sdata: SpatialData, spec: TileSpec, images: Sequence[str]) -> list[TileReader | Overlay]:
    """What tiles must show, read no finer than the images are: as grey of 8 bits, or as RGB."""
    views: list[TileReader | Overlay] = []
    recorded = _sample.roles(sdata)
    for key in images or _nuclear_and_he(sdata, recorded):
        image = open_image(sdata, key)
        seen = TileSpec(spec.size_um, max(1, min(spec.px, round(spec.size_um / min(image.mpp)))))
        named = [name.lower() for name in image.channels] in (["r", "g", "b"], ["red", "green", "blue"])
        is_he = image.is_rgb and (named or image.key == recorded.get("he", {}).get("image"))
        views.append(
            TileReader.from_image(image, seen, fill=255) if is_he else Overlay(sdata, seen, mode="none", image=key)
        )
    return views


def _nuclear_and_he(sdata: SpatialData, recorded: dict[str, Any]) -> list[str | tuple[str, ...]]:
    """The nuclear stain and the H&E, those that there are; several that could be meant are an error."""
    keys: list[str | tuple[str, ...]] = []
    for find in (
        lambda: _sample.find_nuclear(sdata, recorded=recorded)[0],
        lambda: _sample.find_he(sdata, recorded=recorded),
    ):
        try:
            keys.append(find())
        except KeyError:  # there is none
            continue
    if not keys:
        raise KeyError(
            f"Found neither a nuclear stain nor an H&E. {_sample.describe('images', sdata.images)} Name them with "
            "images=."
        )
    return keys
