"""Which tiles and spots show no tissue, by the colour of their pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sthist import _sample, _store
from sthist._sample.samples import over_samples
from sthist._settings import logger
from sthist._tables.rows import Rows, add_columns, centroids_um, require_free_columns, rows_of
from sthist.pp._embed_source import find_regions, laid_spec
from sthist.tiles import TileLoader, TileReader, TileSpec
from sthist.tiles._images.image import open_he

if TYPE_CHECKING:
    from spatialdata import SpatialData

SIZE_UM = 112.0
"""Side of the square around a region that is no tile: what the encoders look at."""

BATCH = 128


@over_samples
def background(
    data: SpatialData,
    *,
    image: str | None = None,
    regions: str | None = None,
    size_um: float | None = None,
    mpp: float = 2.0,
    min_brightness: float = 220.0,
    max_saturation: float = 0.05,
    max_background: float = 0.5,
    drop: bool = False,
    key_added: str = "background",
    overwrite: bool = False,
) -> None:
    """Mark tiles or spots that show more glass than tissue.

    A pixel is background if all of its colours are bright (the darkest of red, green and blue is above
    ``min_brightness``), or if it has hardly a colour (the saturation, (max - min) / max, is below ``max_saturation``).
    Pixels outside of the image, which readers fill, do not count. How many regions are background is logged.

    Where the tissue lies on a whole slide, whatever its light, is found by :func:`sthist.pp.tissue`; this is the plain
    rule by which patches around spots are usually left out.

    Parameters
    ----------
    data
        One sample, or a mapping of name to sample; the path of a store stands for its sample.
    image
        Key of the H&E; found by itself if there is one.
    regions
        Key of shapes or of their table; by default the tiles of :func:`sthist.pp.tiles`, or the spots.
    size_um
        Side of the square around the centroid of each region that is looked at, in µm; by default that of the tiles,
        else 112.
    mpp
        µm per pixel at which it is looked at; that of the image if that is coarser.
    min_brightness
        Of 0 to 255.
    max_saturation
        Of 0 to 1; with 0, brightness alone counts.
    max_background
        A region is background if a larger part of its pixels is, 0 to 1.
    drop
        Take the rows of the table away whose regions are background; the shapes stay. Embeddings and predictions are
        of the rows of the table.
    key_added
        Name of the column.
    overwrite
        Replace columns of these names.

    Returns
    -------
    None. Writes, also to the store of a backed object, to the table of the regions (a new one, ``"<regions>_table"``,
    where they have none):

    * ``obs[key_added]``: bool; take ``table[~table.obs["background"]]`` to go on without them. Regions that lie outside
      of the image are not known to be glass: False;
    * ``obs[key_added + "_fraction"]``: the part of the pixels that is background, float64; NaN outside of the image;
    * ``uns["sthist"][key_added]``: thresholds, image, ``n_background``, ``n_outside``.

    Raises
    ------
    KeyError
        If there is no such image or region.
    ValueError
        If it is not clear which image or regions are meant; if the image has no scale, or is not of three colours of 8
        bits; if all regions lie outside of the image; if an argument is out of range, or a name is taken; with
        ``drop``, if all regions are background.

    Examples
    --------
    >>> import sthist
    >>> sdata = sthist.datasets.toy(size_um=300)
    >>> sthist.pp.tissue(sdata)
    >>> sthist.pp.tiles(sdata, size_um=32, px=64, min_tissue=0.1)
    >>> sthist.pp.background(sdata)
    >>> sdata["tiles_table"].obs["background"].dtype
    dtype('bool')
    """
    for name, value, most in (
        ("min_brightness", min_brightness, 255),
        ("max_saturation", max_saturation, 1),
        ("max_background", max_background, 1),
    ):
        if not 0 <= value <= most:
            raise ValueError(f"{name} is {value!r}; it is from 0 to {most}.")
    if not (np.isfinite(mpp) and mpp > 0):
        raise ValueError(f"mpp is {mpp!r}; it is a positive number of µm per pixel.")
    _sample.require_one_sample(data)
    rows = rows_of(data, find_regions(data) if regions is None else regions)
    fraction_key = f"{key_added}_fraction"
    require_free_columns(data, rows, [key_added, fraction_key], overwrite=overwrite)
    reader = _reader(data, rows, image, size_um, mpp)
    fraction = _fractions(reader, centroids_um(data, rows), min_brightness, max_saturation)
    outside = np.isnan(fraction)
    if outside.all():
        raise ValueError(
            f"All {len(rows)} regions of {rows.shapes!r} lie outside of the image {reader.image.key!r}, or have no "
            "place: mend the transformation of one of them to 'um'."
        )
    glass = fraction > max_background
    logger.info(
        "%d of the %d regions of %r are background%s%s.",
        int(glass.sum()),
        len(rows),
        rows.table or rows.shapes,
        " and are taken away" if drop and glass.any() else "",
        f"; {int(outside.sum())} lie outside of the image, and are not known" if outside.any() else "",
    )
    if drop and glass.all():
        raise ValueError(f"All {len(rows)} regions of {rows.shapes!r} are background; none would be left.")
    made = _store.provenance(
        "pp.background",
        image=reader.image.key,
        spec=reader.spec.to_dict(),
        min_brightness=float(min_brightness),
        max_saturation=float(max_saturation),
        max_background=float(max_background),
        n_background=int(glass.sum()),
        n_outside=int(outside.sum()),
        dropped=bool(drop),
    )
    with _store.changing(data):
        add_columns(data, rows, key_added, made, obs={key_added: glass, fraction_key: fraction})
        if drop and glass.any():
            table = rows.table or f"{rows.shapes}_table"
            _store.replace_table(data, table, data.tables[table][~glass].copy())


def _reader(sdata: SpatialData, rows: Rows, image: str | None, size_um: float | None, mpp: float) -> TileReader:
    """A reader of the squares around the regions, no finer than the image is."""
    he = open_he(sdata, image)
    laid = laid_spec(sdata, rows)
    size = size_um if size_um is not None else SIZE_UM if laid is None else laid.size_um
    if not (np.isfinite(size) and size > 0):
        raise ValueError(f"size_um is {size!r}; it is a positive number of µm.")
    return TileReader.from_image(he, TileSpec(size, max(1, int(size / max(mpp, he.coarsest_mpp)))), fill=255)


def _fractions(reader: TileReader, places: np.ndarray, brightness: float, saturation: float) -> np.ndarray:
    """Part of the pixels of each square that is background; NaN where none lies on the image."""
    fractions = np.full(len(places), np.nan)
    known = np.flatnonzero(np.isfinite(places).all(axis=1))
    for index, tiles in TileLoader(reader, places[known], batch_size=BATCH):
        rows = known[index]
        seen = reader.seen(places[rows])
        n: Any = seen.sum(axis=(1, 2))
        found = (_is_background(tiles, brightness, saturation) & seen).sum(axis=(1, 2))
        fractions[rows] = np.divide(found, n, out=np.full(len(rows), np.nan), where=n > 0)
    return fractions


def _is_background(rgb: np.ndarray, brightness: float, saturation: float) -> np.ndarray:
    """Pixels that are bright in all colours, or have hardly a colour; black has none."""
    red, green, blue = np.moveaxis(rgb, -1, 0)
    low, high = np.minimum(np.minimum(red, green), blue), np.maximum(np.maximum(red, green), blue)
    colour = (high - low).astype(np.float32) / np.maximum(high, 1)
    return np.asarray((low > brightness) | (colour < np.float32(saturation)))
