"""Colours of genes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sthist.tiles._images.reader import read_grid, seen_grid
from sthist.tiles._spec import TileSpec

if TYPE_CHECKING:
    from sthist.tiles._images.reader import TileReader

LIMIT_TILES, LIMIT_UM, LIMIT_PX = 64, 64.0, 512
OVERVIEW_PX = 512
LIMIT_QUANTILES = (0.01, 0.998)


def measured_limits(reader: TileReader) -> tuple[float, float]:
    """Quantiles of the stain on tissue: they depend on the image alone, and on the resolution it is seen at."""
    pixels = tissue_pixels(reader)
    low, high = np.quantile(pixels, LIMIT_QUANTILES)
    if low == high:  # a field that is dark but for a few nuclei
        low, high = pixels.min(), pixels.max()
    return float(low), float(high)


def tissue_pixels(reader: TileReader) -> np.ndarray:
    """Pixels of the stain in up to 64 tiles of 64 µm on tissue."""
    close, centres = tissue_tiles(reader)
    return close.read(centres)[close.seen(centres)]


def tissue_tiles(reader: TileReader) -> tuple[TileReader, np.ndarray]:
    """A reader of tiles of 64 µm, and the centres of up to 64, wherever a coarse view of the stain is bright."""
    x0, y0, x1, y1 = reader.extent_um
    longest = max(x1 - x0, y1 - y0)
    coarse = float(np.clip(reader.spec.mpp, longest / OVERVIEW_PX, longest / 8))
    shape = (max(1, int((y1 - y0) / coarse)), max(1, int((x1 - x0) / coarse)))
    side = min(OVERVIEW_PX, max(shape))
    overview = read_grid(reader.at(TileSpec.from_mpp(coarse, side)), (x0, y0), shape)[..., 0]
    seen = seen_grid(reader.image, (x0, y0), coarse, shape)
    rows, columns = np.nonzero(seen & (overview >= _tissue_level(overview[seen])))
    chosen = np.sort(np.random.default_rng(0).permutation(len(rows))[:LIMIT_TILES])
    centres = np.c_[columns[chosen] + 0.5, rows[chosen] + 0.5] * coarse + [x0, y0]
    px = int(np.clip(LIMIT_UM / reader.spec.mpp, 1, LIMIT_PX))
    return reader.at(TileSpec.from_mpp(reader.spec.mpp, px)), centres


def require_limits(limits: tuple[float, float] | None) -> None:
    """Refuse limits that are none."""
    if limits is not None and not limits[0] < limits[1]:
        raise ValueError(f"limits are {limits}: the first must be less than the second. Is the stain all of one value?")


def _tissue_level(overview: np.ndarray) -> float:
    """What a coarse view of the stain exceeds where there are nuclei."""
    from skimage.filters import threshold_otsu

    return float(threshold_otsu(overview)) if np.ptp(overview) > 0 else float(overview.min())


SATURATION, VALUE = 0.65, 0.95
HUES_PER_RING = 450
"""Hues that 8 bits tell apart at that saturation; larger panels take further rings of higher saturation."""


def gene_colours(palette: Any, genes: tuple[str, ...]) -> np.ndarray:
    """A colour per gene: of a mapping, or hues in the genes' order.

    Returns Float32 of shape (genes, 3), 0 to 255.
    """
    from matplotlib.colors import to_rgb

    if not isinstance(palette, str):
        palette = dict(palette)
        missing = [gene for gene in genes if gene not in palette]
        if missing:
            raise KeyError(
                f"{len(missing)} of {len(genes)} genes have no colour in palette=, the first of them {missing[0]!r}; "
                "add them, or name the genes to draw with genes=."
            )
        return np.array([to_rgb(palette[gene]) for gene in genes], np.float32).reshape(-1, 3) * 255
    if palette not in {"permuted", "fixed"}:
        raise ValueError(f"palette is {palette!r}; it is 'permuted', 'fixed', or a mapping of gene to colour.")
    return hues(len(genes))


def hues(n: int) -> np.ndarray:
    """Colours of evenly spaced, ascending hue, all distinct in 8 bits.

    Returns Float32 of shape (n, 3), whole numbers from 0 to 255.
    """
    from matplotlib.colors import hsv_to_rgb

    rings = max(1, -(-n // HUES_PER_RING))
    saturation = SATURATION + (1 - SATURATION) * (np.arange(n) % rings) / rings
    # Hues are a circle: in several rings, the last one must not meet the first.
    turn = max(1, n if rings == 1 else n + rings)
    hsv = np.stack([np.arange(n) / turn, saturation, np.full(n, VALUE)], -1)
    return np.round(hsv_to_rgb(hsv) * 255).astype(np.float32).reshape(-1, 3)
