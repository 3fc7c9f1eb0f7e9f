"""Pixels that stand for the stain of a section, and the grey level of its glass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist._imaging.colours import require_rgb8
from sthist._imaging.tissue import clean, mask_of_he, not_stain
from sthist._sample import find_tissue, require_one_sample
from sthist._sample.elements import outlines_um, region_geometry
from sthist._settings import settings
from sthist.tiles import TileReader, TileSpec
from sthist.tiles._images.image import open_he
from sthist.tiles._images.reader import read_grid, seen_grid
from sthist.tiles._regions.raster import rasterize

if TYPE_CHECKING:
    from spatialdata import SpatialData

TILE_PX = 128
OVERVIEW_MPP = 8.0
MIN_AREA_UM2, MAX_HOLE_UM2 = 600.0, 2500.0
"""Specks and pinholes of the tissue that do not count."""

GLASS_FROM = 180
"""Glass is at least as bright as this in all colours."""

CLEARER, FEW = 6, 0.05
"""So many grey levels above it, glass is surpassed by noise alone, that is in fewer than this part of the tissue. In
sections with glass, 0 to 0.2 % of the tissue is so bright; where pale tissue was taken for glass, 11 %."""


@dataclass(frozen=True)
class StainPixels:
    """Pixels of tissue, (n, 3) uint8, with glass among them; the grey level of clear glass.

    And where they come from.
    """

    pixels: np.ndarray
    white: tuple[float, float, float]
    origin: str


def pixels_of(
    data: Any, image: str | None, *, within: Any, n_tiles: int, mpp: float, white: Any, seed: int | None
) -> StainPixels:
    """Pixels of a sample, or of an array."""
    if n_tiles < 1 or not (np.isfinite(mpp) and mpp > 0):
        raise ValueError(f"n_tiles is {n_tiles} and mpp {mpp}; they are at least 1, and a positive number.")
    if hasattr(data, "images"):
        return _of_section(data, image, within, n_tiles, mpp, white, settings.seed if seed is None else seed)
    if isinstance(data, np.ndarray):
        if image is not None or within is not None:
            raise ValueError("image= and within= are for a SpatialData; crop the array instead.")
        return _of_array(data, white)
    raise TypeError(
        f"The stain is measured on a SpatialData, or on an (h, w, 3) uint8 array, not on {type(data).__name__}."
    )


def _of_section(
    sdata: SpatialData, image: str | None, within: Any, n_tiles: int, mpp: float, white: Any, seed: int
) -> StainPixels:
    require_one_sample(sdata)
    he = open_he(sdata, image)
    spec = TileSpec.from_mpp(max(mpp, he.coarsest_mpp), TILE_PX)
    reader = TileReader.from_image(he, spec, fill=255, allow_upsampling=True)
    drawn = tissue_tiles(sdata, reader, within=within, n_tiles=n_tiles, seed=seed)
    pixels = drawn.tiles[drawn.on_tissue]
    white = _white_of(drawn.glass, pixels) if white is None else _checked_white(white)
    origin = f"images[{he.key!r}], {len(drawn.tiles)} tiles of {spec.size_um:g} µm at {spec.mpp:.4g} µm/px"
    return StainPixels(pixels, white, origin)


@dataclass(frozen=True)
class TissueTiles:
    """Tiles drawn from the tissue, (n, px, px, 3); which of their pixels show tissue; pixels of glass, (m, 3)."""

    tiles: np.ndarray
    on_tissue: np.ndarray
    glass: np.ndarray


def tissue_tiles(sdata: SpatialData, reader: TileReader, *, within: Any, n_tiles: int, seed: int) -> TissueTiles:
    """Tiles of an H&E that stand for its tissue."""
    tissue, glass = _overview(sdata, reader)
    if within is not None:
        tissue &= rasterize([region_geometry(sdata, within)], reader.extent_um[:2], OVERVIEW_MPP, tissue.shape) > 0
    if not tissue.any():
        where = "" if within is None else f" within {within!r}"
        raise ValueError(
            f"Found no tissue in image {reader.image.key!r}{where}: its stain cannot be measured. Outline it with "
            "pp.tissue."
        )
    centres, on_tissue = _sample(tissue, reader, n_tiles, seed)
    return TissueTiles(reader.read(centres), on_tissue & reader.seen(centres), glass)


def _overview(sdata: SpatialData, reader: TileReader) -> tuple[np.ndarray, np.ndarray]:
    """Where the tissue is on a coarse grid, (h, w) bool, and the pixels of what is beside it, (n, 3)."""
    x0, y0, x1, y1 = reader.extent_um
    shape = (max(1, int((y1 - y0) / OVERVIEW_MPP)), max(1, int((x1 - x0) / OVERVIEW_MPP)))
    coarse = reader.at(TileSpec.from_mpp(OVERVIEW_MPP, min(256, max(shape))))
    pixels = read_grid(coarse, (x0, y0), shape)
    seen = seen_grid(reader.image, (x0, y0), OVERVIEW_MPP, shape)
    strange = not_stain(pixels, OVERVIEW_MPP, seen)
    outlines = find_tissue(sdata)
    if outlines in sdata.shapes:
        tissue = rasterize(outlines_um(sdata, outlines), (x0, y0), OVERVIEW_MPP, shape) > 0
    else:
        found = mask_of_he(pixels, OVERVIEW_MPP, seen)
        tissue = clean(found, OVERVIEW_MPP, MIN_AREA_UM2, MAX_HOLE_UM2, seen)
    return tissue & ~strange, pixels[~tissue & ~strange]


def _sample(tissue: np.ndarray, reader: TileReader, n_tiles: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Centres of tiles drawn from those that show tissue, and which of their pixels do, (n, px, px) bool."""
    x0, y0, x1, y1 = reader.extent_um
    spec = reader.spec
    columns, rows = (_spread(low, high, spec) for low, high in ((x0, x1), (y0, y1)))
    centres = np.stack(np.meshgrid(columns, rows), -1).reshape(-1, 2)
    to_um = np.array([[OVERVIEW_MPP, 0, x0], [0, OVERVIEW_MPP, y0], [0, 0, 1]])
    mask = TileReader.from_array(tissue[None].astype(np.float32), to_um, spec)
    shown = mask.at(TileSpec(spec.size_um, 1)).read(centres).ravel()
    candidates = np.flatnonzero(shown >= min(0.5, 0.8 * shown.max()))  # on a sparse section, those that show most
    drawn = np.sort(np.random.default_rng(seed).permutation(candidates)[:n_tiles])
    on_tissue = mask.read(centres[drawn])[..., 0]
    return centres[drawn], on_tissue > min(0.5, on_tissue.max() / 2)


def _of_array(array: np.ndarray, white: Any) -> StainPixels:
    require_rgb8(f"The array of shape {array.shape}", array.shape[-1] if array.ndim == 3 else 0, array.dtype)
    step = max(1, int(np.sqrt(array.shape[0] * array.shape[1] / 2e6)))
    pixels = array[::step, ::step]
    # An array has no scale; 16 of its pixels stand for the grain over which tissue is even, as 8 µm do at 0.5 µm/px.
    strange = not_stain(pixels, step / 2)
    tissue = clean(mask_of_he(pixels, step / 2), step / 2, MIN_AREA_UM2, MAX_HOLE_UM2) & ~strange
    if not tissue.any():
        raise ValueError(f"Found no tissue in the array of shape {array.shape}: its stain cannot be measured.")
    white = _white_of(pixels[~tissue & ~strange], pixels[tissue]) if white is None else _checked_white(white)
    return StainPixels(pixels[tissue], white, f"an array of shape {array.shape}")


def _white_of(beside: np.ndarray, tissue: np.ndarray) -> tuple[float, float, float]:
    """The grey level of glass, the median of what is bright beside the tissue; 255 where almost nothing is.

    It is 255, too, where much of the tissue is brighter: what was taken for glass is pale tissue then. Pure white does
    not count: it is what a scanner or a reader puts where it has seen nothing.
    """
    glass = beside[(beside >= GLASS_FROM).all(1) & (beside < 255).any(1)]
    if len(glass) < max(20, 0.01 * len(beside)):
        return (255.0, 255.0, 255.0)
    r, g, b = np.median(glass, axis=0).tolist()
    if (tissue > np.array([r, g, b]) + CLEARER).all(1).mean() > FEW:
        return (255.0, 255.0, 255.0)
    return (r, g, b)


def _checked_white(white: Any) -> tuple[float, float, float]:
    values = np.broadcast_to(np.asarray(white, np.float64), 3)
    if not ((values > 0) & (values <= 255)).all():
        raise ValueError(
            f"white is {white!r}; it is the grey level of glass, up to 255, one number or one for each colour."
        )
    r, g, b = values.tolist()
    return (r, g, b)


def _spread(low: float, high: float, spec: TileSpec) -> np.ndarray:
    """Centres of tiles that leave no gap from low to high, at least one, on whole pixels.

    Between them, they are blurred.
    """
    n = max(1, int(np.ceil((high - low) / spec.size_um)))
    middles = (high - low) * (np.arange(n) + 0.5) / n
    return low + np.round((middles - spec.size_um / 2) / spec.mpp) * spec.mpp + spec.size_um / 2
