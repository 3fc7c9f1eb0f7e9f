"""Nuclei of an H&E, as shapes and a table."""

from __future__ import annotations

import threading
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist import _sample, _store, _weights
from sthist._imaging.local_nuclei import Levels, absorbed
from sthist._sample.elements import region_geometry
from sthist._sample.samples import over_samples
from sthist._settings import logger, settings
from sthist._tables.rows import core_columns
from sthist.pp._nuclei.known import known_nuclei, measured, on_image
from sthist.pp._nuclei.methods import FINEST_MPP, Called, Watershed, sample_of, stains_of
from sthist.pp._nuclei.others import PACKAGES, names_of_zoo, other
from sthist.pp._nuclei.outlines import Nuclei, Owned, nuclei_of
from sthist.pp._nuclei.small import Small, file_of, trained
from sthist.pp._nuclei.windows import BLOCK_PX, LARGEST_UM, Lattice, over_blocks
from sthist.tiles._images.image import open_he

if TYPE_CHECKING:
    from collections.abc import Callable

    from geopandas import GeoDataFrame
    from shapely.geometry.base import BaseGeometry
    from spatialdata import SpatialData

    from sthist.pp._nuclei.windows import Segmenter, Window
    from sthist.tiles import Image

COARSE_MPP, COARSEST_MPP = 1.0, 1.5
SLACK_UM = 2.0
"""How far beyond its block a nucleus is taken by a method that may place it a little differently next time."""


@over_samples
def nuclei(
    data: SpatialData,
    image: str | None = None,
    *,
    method: str | Path | GeoDataFrame | Callable[[np.ndarray], Any] = "small",
    weights: str | Path | None = None,
    device: str | None = None,
    mpp: float | None = None,
    within: Any = None,
    tissue: str | bool | None = None,
    min_area_um2: float = 10.0,
    max_area_um2: float = 400.0,
    key_added: str = "nuclei",
    overwrite: bool = False,
    seed: int | None = None,
    progress: bool | None = None,
) -> None:
    """Find the nuclei of an H&E.

    The slide is read block by block, with a margin around each; a nucleus belongs to the block that holds its centre.
    So it is counted once, memory does not grow with the slide, and the built-in methods find the same nuclei however
    the slide is divided.

    Parameters
    ----------
    data
        One sample, or a mapping of name to sample; the path of a store stands for its sample.
    image
        Key of the H&E image; found where there is one.
    method
        ``"small"``: built in, a network of half a million weights that comes with the package. It has learned from
        hand-drawn nuclei of purple tissue in many colours, never from H&E itself. ``"watershed"``: built in, without
        weights. What takes up more red light than what lies around it, as haematoxylin does, is nucleus; what touches
        is parted at its waists. ``"instanseg"`` or ``"cellpose"``, networks of these packages
        (``pip install "sthist[seg]"``), or the key of a model of lazyslide-models that segments nuclei
        (``pip install "sthist[zoo]"``); they fetch their weights themselves. A function: it takes pixels (h, w, 3)
        uint8 and returns labels (h, w), integers with 0 between nuclei. Nuclei that are known already: the key of
        shapes, a GeoDataFrame in µm, or the path of GeoJSON or of CellViT's cells (``.json``) in pixels of the image;
        those are measured as they are, repaired where they cross themselves.
    weights
        File of weights for a network of another package, which then fetches none; or, for ``"small"``, a file or folder
        of weights of your own :class:`sthist.nets.NucleusUNet`.
    device
        Where a network runs, as torch names it; ``settings.device`` by default.
    mpp
        µm per pixel that the method works at: by default 0.5, for the watershed those of the image where it is coarser;
        for a function those of the image.
    within
        Part of the slide: a box (x0, y0, x1, y1) in µm, a polygon, or the key of shapes. Nuclei are kept whose centre
        lies in it; what is nucleus is told from the whole slide.
    tissue
        Key of the outlines of the tissue, to which nuclei are restricted in the same way; by default those of
        :func:`sthist.pp.tissue`, where there are any. ``False`` looks everywhere.
    min_area_um2, max_area_um2
        Smaller and larger things are left out. So is what is longer than 40 µm. Nuclei that are known stay.
    key_added
        Name of the shapes; the table is named ``<key_added>_table``.
    overwrite
        Replace elements of these names.
    seed
        Of the choice of tiles from which the slide's stain is measured; ``settings.seed`` by default.
    progress
        Show a bar; ``settings.progress`` by default.

    Returns
    -------
    None. Writes ``sdata.shapes[key_added]``, polygons in µm, and ``sdata.tables[key_added + "_table"]``, one row per
    nucleus and no variables yet: ``obsm["spatial"]`` (centres x, y in µm); in ``obs`` ``region``, ``instance_id``,
    ``area_um2``, ``eccentricity`` (0 for a disc, near 1 for a needle), ``haematoxylin`` and ``eosin`` (means of the
    stain's amounts, by the slide's own stain vectors), ``haematoxylin_sd`` (how coarse the chromatin is), ``source_id``
    of nuclei that were known, and ``core`` after :func:`sthist.pp.tma`.

    Raises
    ------
    KeyError, FileNotFoundError
        If there is no such image or outline, or no such file.
    ImportError
        If the method's package is not installed.
    ValueError
        If the image is not RGB of 8 bits, has no scale, or more than 1.5 µm per pixel; if no nucleus is found, an
        argument is out of range, a file is broken, or a name is taken.

    Examples
    --------
    >>> import sthist
    >>> sdata = sthist.datasets.toy(size_um=200)
    >>> sthist.pp.nuclei(sdata)
    >>> list(sdata["nuclei_table"].obs.columns[:4])
    ['region', 'instance_id', 'area_um2', 'eccentricity']
    """
    _sample.require_one_sample(data)
    _require_sizes(min_area_um2, max_area_um2, mpp)
    table_key = f"{key_added}_table"
    _store.require_free(data, key_added, "shapes", overwrite=overwrite)
    _store.require_free(data, table_key, "tables", overwrite=overwrite)
    area = _area(data, within, tissue, key_added)
    he = open_he(data, image)
    _require_fine(he)
    known = None if callable(method) else known_nuclei(data, method, he.key)
    if known is None:
        _require_method(method, weights)
    seed = settings.seed if seed is None else seed
    # What the slide's stain is does not depend on the method.
    tiles, on_tissue = sample_of(data, he, max(FINEST_MPP, he.coarsest_mpp), seed)
    vectors, native = stains_of(tiles[on_tissue]), max(FINEST_MPP, he.coarsest_mpp)
    if known is not None:
        lattice = Lattice(he, mpp or native)
        found = taken(lattice, known, vectors, area, progress)
    else:
        segmenter = _segmenter(method, mpp, weights, device, tiles, native)
        lattice = Lattice(he, segmenter.mpp or he.coarsest_mpp)
        found = find(lattice, segmenter, vectors, (min_area_um2, max_area_um2), area, progress)
    if not len(found):
        where = "" if area is None else " within the tissue that was asked for"
        raise ValueError(
            f"Found no nuclei in image {he.key!r}{where}: is it an H&E, its scale right ({he.coarsest_mpp:.4g} µm/px), "
            "and the place that was meant in it?"
        )
    made = _store.provenance(
        "pp.nuclei",
        image=he.key,
        method=str(method) if isinstance(method, str | Path) else _name_of(method),
        weights=None if weights is None else str(weights),
        sha256=_weights.sha256(file_of(weights)) if isinstance(method, str) and method == "small" else None,
        mpp=lattice.mpp,
        min_area_um2=min_area_um2,
        max_area_um2=max_area_um2,
        seed=seed,
        n=len(found),
    )
    write(data, found, key_added, made, overwrite=overwrite)


def find(
    lattice: Lattice,
    segmenter: Segmenter,
    vectors: np.ndarray,
    areas_um2: tuple[float, float],
    area: BaseGeometry | None,
    progress: bool | None,
    block_px: int = BLOCK_PX,
) -> Nuclei:
    """The nuclei of an image that lie in an area, in an order that does not depend on the blocks."""
    import shapely

    margin = int(np.ceil((segmenter.reach_um + LARGEST_UM) / lattice.mpp))
    margin = -(-margin // 16) * 16
    slack = 0 if segmenter.exact else int(np.ceil(SLACK_UM / lattice.mpp))
    blocks = lattice.blocks(block_px)
    if area is not None:
        shapely.prepare(area)
        blocks = [block for block in blocks if area.intersects(lattice.box_um(block))]
    alone = nullcontext() if segmenter.concurrent else threading.Lock()

    def work(block: Window) -> Nuclei:
        window = block.grown(margin)
        rgb, seen = lattice.read(window)
        with alone:
            labels = segmenter(rgb, seen, window, lattice)
        here = nuclei_of(labels, rgb, vectors, window, lattice, Owned(block, areas_um2, slack))
        if area is None or not len(here):
            return here
        return here.chosen(shapely.intersects_xy(area, *shapely.get_coordinates(shapely.centroid(here.outlines)).T))

    found = Nuclei.joined([Nuclei.none(), *over_blocks(work, blocks, progress=progress)])
    return found if segmenter.exact else found.without_doubles()


def taken(
    lattice: Lattice,
    known: tuple[np.ndarray, np.ndarray],
    vectors: np.ndarray,
    area: BaseGeometry | None,
    progress: bool | None,
) -> Nuclei:
    """Nuclei that are known, in their own order."""
    import shapely

    outlines, names = on_image(known, lattice)
    if area is not None:
        inside = shapely.intersects_xy(area, *shapely.get_coordinates(shapely.centroid(outlines)).T)
        outlines, names = outlines[inside], names[inside]
    facts = measured(outlines, lattice, vectors, progress)
    return Nuclei(outlines, {**facts, "source_id": names}, np.empty((len(outlines), 2), np.int64))


def write(sdata: SpatialData, found: Nuclei, key: str, made: dict[str, Any], *, overwrite: bool) -> None:
    """Shapes and table, visible together."""
    import anndata as ad
    import geopandas as gpd
    import pandas as pd
    import shapely
    from spatialdata.models import ShapesModel, TableModel
    from spatialdata.transformations import Identity

    ids = np.arange(len(found))
    centres = shapely.get_coordinates(shapely.centroid(found.outlines))
    obs = pd.DataFrame(
        {
            "region": pd.Categorical([key] * len(ids)),
            "instance_id": ids,
            "area_um2": shapely.area(found.outlines),
            **found.facts,
            **core_columns(sdata, centres),
        }
    ).set_index(ids.astype(str))
    table = ad.AnnData(obs=obs, obsm={"spatial": centres})
    table = TableModel.parse(table, region=key, region_key="region", instance_key="instance_id")
    frame = gpd.GeoDataFrame(geometry=found.outlines, index=ids)
    element = ShapesModel.parse(frame, transformations={_sample.UM: Identity()})
    with _store.changing(sdata):
        _store.add(sdata, "shapes", key, element, made, overwrite=overwrite)
        _store.add(sdata, "tables", f"{key}_table", table, made, overwrite=overwrite)
    logger.info("%d nuclei of %.0f µm² on the median.", len(ids), float(obs["area_um2"].median()))


def _require_sizes(low: float, high: float, mpp: float | None) -> None:
    if not 0 <= low < high or not np.isfinite(high):
        raise ValueError(f"min_area_um2 is {low!r} and max_area_um2 {high!r}; the one is from 0 to below the other.")
    if mpp is not None and not 0 < mpp <= COARSEST_MPP:
        raise ValueError(f"mpp is {mpp!r}; nuclei can be told apart up to {COARSEST_MPP} µm per pixel.")


def _require_fine(he: Image) -> None:
    """Refuse an image on which nuclei cannot be told apart, and warn where they hardly can."""
    mpp = he.coarsest_mpp
    if mpp > COARSEST_MPP:
        raise ValueError(
            f"Image {he.key!r} has {mpp:.4g} µm/px; nuclei can be told apart up to {COARSEST_MPP} µm per pixel."
        )
    if mpp >= COARSE_MPP:
        logger.warning(
            "Image %r has %.4g µm/px: a nucleus of 8 µm is %.0f px wide, and 12 µm around it %.0f; outlines are rough, "
            "and crowded nuclei merge.",
            he.key,
            mpp,
            8 / mpp,
            12 / mpp,
        )


def _area(sdata: SpatialData, within: Any, tissue: str | bool | None, key: str) -> BaseGeometry | None:
    """Where nuclei are looked for; None for everywhere."""
    area = None if within is None else region_geometry(sdata, within)
    known = _sample.find_tissue(sdata) if tissue is None or tissue is True else tissue
    if known is False or (tissue is None and known not in sdata.shapes):
        return area
    outlines = region_geometry(sdata, known)
    area = outlines if area is None else area.intersection(outlines)
    if area.is_empty:
        raise ValueError(f"within={within!r} lies outside of the tissue {known!r}; look everywhere with tissue=False.")
    return area


def _segmenter(
    method: Any, mpp: float | None, weights: Any, device: str | None, tiles: np.ndarray, native: float
) -> Segmenter:
    """What a method stands for that has been checked."""
    if callable(method):
        return Called(method, mpp)
    if method == "watershed":
        return Watershed(Levels.of([absorbed(tile) for tile in tiles], native), mpp or native)
    if method == "small":
        return Small(trained(weights), device, mpp)
    found = other(method, weights, device, mpp)
    assert found is not None  # as there is such a name
    return found


def _require_method(method: Any, weights: Any) -> None:
    """Refuse what is no method, before anything is read."""
    without = callable(method) or method == "watershed"
    if without and weights is not None:
        raise ValueError("weights= is for networks; a function and the watershed have none.")
    if method == "small":
        trained(weights)
    if without or method == "small" or method in PACKAGES or method in names_of_zoo():
        return
    zoo, hint = names_of_zoo(), ' Models of lazyslide-models need pip install "sthist[zoo]".'
    names = ["small", "watershed", *PACKAGES, *(name for name in zoo if name not in PACKAGES)]
    raise ValueError(
        f"method is {method!r}; it is {', '.join(map(repr, names))}, a function of pixels that returns labels, a "
        "GeoDataFrame, the path of a GeoJSON or CellViT file, or the key of shapes."
        f"{'' if zoo else hint}"
    )


def _name_of(method: Any) -> str:
    return str(getattr(method, "__qualname__", type(method).__qualname__))
