"""From where to where the brightness of a nuclear stain is drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sthist.tiles._images.reader import read_grid
from sthist.tiles._spec import TileSpec

if TYPE_CHECKING:
    from sthist.tiles._images.reader import TileReader

LIMIT_TILES, LIMIT_UM, LIMIT_PX = 64, 64.0, 512
OVERVIEW_PX = 512
LIMIT_QUANTILES = (0.01, 0.998)


def measured_limits(reader: TileReader) -> tuple[float, float]:
    """Quantiles of the stain on tissue: they depend on the image alone, and on the resolution it is seen at.

    Parameters
    ----------
    reader
        Of one channel.
    """
    x0, y0, x1, y1 = reader.extent_um
    longest = max(x1 - x0, y1 - y0)
    coarse = float(np.clip(reader.spec.mpp, longest / OVERVIEW_PX, longest / 8))
    shape = (max(1, int((y1 - y0) / coarse)), max(1, int((x1 - x0) / coarse)))
    side = min(OVERVIEW_PX, max(shape))
    overview = read_grid(reader.at(TileSpec.from_mpp(coarse, side)), (x0, y0), shape)[..., 0]
    rows, columns = np.nonzero(overview >= _tissue_level(overview))
    chosen = np.sort(np.random.default_rng(0).permutation(len(rows))[:LIMIT_TILES])
    centres = np.c_[columns[chosen] + 0.5, rows[chosen] + 0.5] * coarse + [x0, y0]
    px = int(np.clip(LIMIT_UM / reader.spec.mpp, 1, LIMIT_PX))
    pixels = reader.at(TileSpec.from_mpp(reader.spec.mpp, px)).read(centres)
    low, high = np.quantile(pixels, LIMIT_QUANTILES)
    if low == high:  # a field that is dark but for a few nuclei
        low, high = pixels.min(), pixels.max()
    return float(low), float(high)


def require_limits(limits: tuple[float, float] | None) -> None:
    """Refuse limits that are none.

    Raises
    ------
    ValueError
        If the first is not less than the second.
    """
    if limits is not None and not limits[0] < limits[1]:
        msg = f"limits are {limits}: the first must be less than the second. Is the stain all of one value?"
        raise ValueError(msg)


def _tissue_level(overview: np.ndarray) -> float:
    """What a coarse view of the stain exceeds where there are nuclei."""
    from skimage.filters import threshold_otsu

    return float(threshold_otsu(overview)) if np.ptp(overview) > 0 else float(overview.min())
