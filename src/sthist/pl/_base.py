"""What all panels share: extents, resolution, scale bars, limits, saving."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist import _sample
from sthist._disk import written_whole
from sthist._imaging.colours import displayed
from sthist.metrics._expression.correlation import correlate
from sthist.pl._colours import MADE_HERE
from sthist.tiles._images.image import open_image, values_at
from sthist.tiles._images.reader import read_box, seen_grid
from sthist.tiles._regions.raster import rasterize

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from spatialdata import SpatialData

    from sthist.tiles._images.image import Image


def background(sdata: SpatialData, image: str | bool | None, extent: Extent, mpp: float) -> np.ndarray | None:
    """The H&E, or the image that is named, as (h, w, 3) uint8; None where there is none, and for False."""
    if image is False:
        return None
    if image is None or image is True:
        try:
            image = _sample.find_he(sdata)
        except (KeyError, ValueError):
            return None
    shown = open_image(sdata, image)
    return read_rgb(shown, extent, mpp) if len(shown.channels) == 3 else read_grey(shown, extent, mpp)


def read_grey(image: Image, extent: Extent, mpp: float) -> np.ndarray:
    """The first channel of a picture in grey, (h, w, 3) uint8, between its 1st and 99.8th percentile."""
    first = read_box(image, extent, mpp)[..., 0].astype(np.float64)
    seen = seen_grid(image, extent[:2], mpp, first.shape)
    low, high = np.percentile(first[seen], [1, 99.8]) if seen.any() else (0.0, 1.0)
    grey = np.clip((first - low) / max(high - low, 1e-9), 0, 1) * 255
    return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)


def read_rgb(image: Image, extent: Extent, mpp: float) -> np.ndarray:
    """A picture in colour, of pixels of any type, (h, w, 3) uint8; white outside."""
    pixels = displayed(read_box(image, extent, mpp)[..., :3])
    pixels[~seen_grid(image, extent[:2], mpp, pixels.shape[:2])] = 255
    return pixels


def sample_image(sdata: SpatialData, key: str, channel: str, extent: Extent, mpp: float) -> np.ndarray:
    """One channel of an image at the pixels of a panel, (h, w) float64: the pixel under the centre of each.

    NaN outside.
    """
    image = open_image(sdata, key, channels=[channel])
    mpp = max(mpp, image.finest_mpp)
    places, shape = _centres(extent, mpp)
    values, _ = values_at(image, places)
    return values[:, 0].reshape(shape)


def _centres(extent: Extent, mpp: float) -> tuple[np.ndarray, tuple[int, int]]:
    x0, y0, x1, y1 = extent
    height, width = _panel_shape(extent, mpp)
    x = x0 + (np.arange(width) + 0.5) * (x1 - x0) / width
    y = y0 + (np.arange(height) + 0.5) * (y1 - y0) / height
    return np.stack(np.meshgrid(x, y), -1).reshape(-1, 2), (height, width)


def _panel_shape(extent: Extent, mpp: float) -> tuple[int, int]:
    """Rows and columns of pixels of a panel."""
    x0, y0, x1, y1 = extent
    height, width = (max(1, int(np.ceil((high - low) / mpp - 1e-3))) for low, high in ((y0, y1), (x0, x1)))
    return height, width


SMALL_PX = 3.0
"""Regions that are usually smaller on the screen are drawn as dots: most outlines would fall between pixels."""

DOT_PX = 1.5


def paint_values(polygons: np.ndarray, values: np.ndarray, extent: Extent, mpp: float) -> np.ndarray:
    """Regions with a value each, (h, w) float64: the mean where squares overlap; NaN where there are none."""
    shape = _panel_shape(extent, mpp)
    shown, boxes = _in_view(polygons, np.isfinite(values), extent)
    squares = _as_boxes(polygons[shown], boxes, extent, shape)
    if squares is not None:
        return mean_of_boxes(squares, values[shown], extent, shape)
    return _painted(polygons[shown], values[shown], extent, shape)


def paint_codes(polygons: np.ndarray, codes: np.ndarray, extent: Extent, mpp: float) -> np.ndarray:
    """Regions with a category each, (h, w) int: the most frequent where squares overlap; -1 where there are none."""
    shape = _panel_shape(extent, mpp)
    shown, boxes = _in_view(polygons, codes >= 0, extent)
    codes = codes[shown]
    squares = _as_boxes(polygons[shown], boxes, extent, shape)
    if squares is None:
        painted = _painted(polygons[shown], codes.astype(np.float64), extent, shape)
        return np.where(np.isfinite(painted), painted, -1).astype(int)
    return most_frequent_of_boxes(squares, codes, extent, shape)


def usual_width(boxes: np.ndarray) -> float:
    """The median of the larger sides of boxes, in their unit."""
    return float(np.median((boxes[:, 2:] - boxes[:, :2]).max(axis=1))) if len(boxes) else 0.0


def _in_view(polygons: np.ndarray, known: np.ndarray, extent: Extent) -> tuple[np.ndarray, np.ndarray]:
    """Places of the regions that are known and lie at least partly in a box, and their bounds."""
    import shapely

    x0, y0, x1, y1 = extent
    boxes = shapely.bounds(polygons)  # NaN of what is empty: nowhere in view
    inside = (boxes[:, 0] < x1) & (boxes[:, 2] > x0) & (boxes[:, 1] < y1) & (boxes[:, 3] > y0)
    shown = np.flatnonzero(known & inside)
    return shown, boxes[shown]


def _as_boxes(polygons: np.ndarray, boxes: np.ndarray, extent: Extent, shape: tuple[int, int]) -> np.ndarray | None:
    """(n, 4) bounds, if all are upright rectangles; or squares that can be seen, of regions that are too small."""
    import shapely

    full = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    if np.allclose(shapely.area(polygons), full, rtol=1e-3):
        return boxes
    px = (extent[3] - extent[1]) / shape[0]
    if usual_width(boxes) >= SMALL_PX * px:
        return None
    return dots_of_boxes(boxes, px)


def dots_of_boxes(boxes: np.ndarray, px: float) -> np.ndarray:
    """Squares as large as boxes, but large enough to be seen at some µm per pixel, (n, 4)."""
    middles, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]).mean(axis=1, keepdims=True)
    half = np.maximum(sides, DOT_PX * px) / 2
    return np.concatenate([middles - half, middles + half], axis=1)


def _painted(polygons: np.ndarray, values: np.ndarray, extent: Extent, shape: tuple[int, int]) -> np.ndarray:
    shift = float(values.min()) - 1  # painting knows 0 as nothing
    painted = rasterize(polygons, extent[:2], (extent[3] - extent[1]) / shape[0], shape, values - shift)
    return np.where(painted > 0, painted.astype(np.float64) + shift, np.nan)


def most_frequent_of_boxes(boxes: np.ndarray, codes: np.ndarray, extent: Extent, shape: tuple[int, int]) -> np.ndarray:
    """The most frequent code of the boxes at each pixel, (h, w) int; -1 where there are none."""
    best, most = np.full(shape, -1), np.zeros(shape)
    for code in np.unique(codes):
        count = _count_of_boxes(boxes[codes == code], extent, shape)
        best[count > most + 1e-9] = code
        most = np.maximum(most, count)
    return best


def mean_of_boxes(boxes: np.ndarray, values: np.ndarray, extent: Extent, shape: tuple[int, int]) -> np.ndarray:
    """The mean of the values of the boxes at each pixel, (h, w) float64; NaN where there are none."""
    total, n = (_count_of_boxes(boxes, extent, shape, weights) for weights in (values, None))
    return np.where(n > 0.5, total / np.maximum(n, 1), np.nan)


def _count_of_boxes(
    boxes: np.ndarray, extent: Extent, shape: tuple[int, int], weights: np.ndarray | None = None
) -> np.ndarray:
    """How many boxes, or what sum of their weights, lie at each pixel, by sums over corners.

    Each box adds to what lies right of and below its first corner, and takes it away at the others.
    """
    x0, y0, x1, y1 = extent
    height, width = shape
    left, right = (np.clip(np.round((boxes[:, i] - x0) / (x1 - x0) * width), 0, width).astype(int) for i in (0, 2))
    top, bottom = (np.clip(np.round((boxes[:, i] - y0) / (y1 - y0) * height), 0, height).astype(int) for i in (1, 3))
    weights = np.ones(len(boxes)) if weights is None else weights
    total = np.zeros((height + 1) * (width + 1))
    for y, x, sign in ((top, left, 1), (top, right, -1), (bottom, left, -1), (bottom, right, 1)):
        total += np.bincount(y * (width + 1) + x, weights=sign * weights, minlength=len(total))
    return total.reshape(height + 1, width + 1).cumsum(0).cumsum(1)[:height, :width]


Extent = tuple[float, float, float, float]
PANEL_INCHES = 4.0
MAX_PX = 4096
SAVE_DPI = 200


def make_axes(n: int, ncols: int, extent_um: Extent, axes: Any, names: Sequence[str]) -> list[Axes]:
    """The user's axes, checked, or new ones of the region's shape, ``ncols`` in a row."""
    x0, y0, x1, y1 = extent_um
    height = PANEL_INCHES * float(np.clip((y1 - y0) / (x1 - x0), 0.3, 3))
    drawn = panel_axes(n, ncols, (PANEL_INCHES, height + 0.3), axes, names)
    drawn[0].figure.canvas.draw()  # a layout engine places the axes only now
    return drawn


def panel_axes(n: int, ncols: int, size: tuple[float, float], axes: Any, names: Sequence[str]) -> list[Axes]:
    """The user's axes, checked, or new ones of a size in inches."""
    import matplotlib.pyplot as plt

    if axes is not None:
        own = list(np.ravel(np.asarray(axes, dtype=object)))
        if len(own) != n:
            raise ValueError(f"{n} panels ({', '.join(names)}) need as many axes; {len(own)} are given.")
        return own
    columns = min(n, ncols)
    rows = -(-n // columns)
    figure, grid = plt.subplots(
        rows, columns, figsize=(size[0] * columns, size[1] * rows), squeeze=False, layout="constrained"
    )
    setattr(figure, MADE_HERE, True)
    flat = list(grid.ravel())
    for unused in flat[n:]:
        figure.delaxes(unused)
    return flat[:n]


def one_axes(ax: Axes | None, size: tuple[float, float]) -> Axes:
    """The user's axes, or new ones of a size in inches."""
    return panel_axes(1, 1, size, None, [])[0] if ax is None else ax


def panel_mpp(ax: Axes, extent_um: Extent, *, saved: bool) -> float:
    """µm per pixel at which a region fills an axes, on the screen or in a saved file: finer than that nobody sees."""
    box, dpi = ax.get_window_extent(), ax.figure.dpi  # type: ignore[union-attr]
    finer = max(1.0, SAVE_DPI / dpi) if saved else 1.0
    px = min(MAX_PX, max(64.0, box.width * finer, box.height * finer))
    return max(extent_um[2] - extent_um[0], extent_um[3] - extent_um[1]) / px


def show_image(ax: Axes, pixels: np.ndarray, extent_um: Extent, title: str, **kwargs: Any) -> None:
    """An image in µm, y down, without ticks."""
    x0, y0, x1, y1 = extent_um
    ax.imshow(pixels, extent=(x0, x1, y1, y0), interpolation="antialiased", **kwargs)
    ax.set(title=title, xticks=[], yticks=[], xlim=(x0, x1), ylim=(y1, y0), aspect="equal")


DOT = 0.95
"""Diameter of a region, in distances to the next."""


def draw_dots(
    ax: Axes,
    places: np.ndarray,
    values: np.ndarray | None,
    width: float,
    extent: Extent,
    title: str,
    *,
    cmap: str | None = None,
    low: float = 0.0,
    high: float = 1.0,
    colours: np.ndarray | None = None,
) -> Any:
    """A disc of its size in µm at each place."""
    from matplotlib.collections import EllipseCollection
    from matplotlib.colors import Normalize

    known = slice(None) if values is None else np.isfinite(values)
    size = np.full(len(places[known]), DOT * width)
    how: dict[str, Any] = {"facecolors": colours}
    if values is not None:
        how = {"array": values[known], "cmap": cmap, "norm": Normalize(low, high)}
    where = {"offsets": places[known], "offset_transform": ax.transData}
    dots = EllipseCollection(size, size, 0, units="xy", linewidths=0, rasterized=True, **where, **how)
    ax.add_collection(dots)
    x0, y0, x1, y1 = extent
    ax.set(xticks=[], yticks=[], xlim=(x0, x1), ylim=(y1, y0), aspect="equal")
    ax.set_title(title, fontsize="medium")
    return dots


def dots_extent(places: np.ndarray, width: float) -> Extent:
    """The box of all discs, and below them room for the scale bar."""
    (x0, y0), (x1, y1) = places.min(axis=0) - width, places.max(axis=0) + width
    return float(x0), float(y0), float(x1), float(y1 + 0.1 * (y1 - y0))


def title_with_r(name: str, truth: np.ndarray, values: np.ndarray) -> str:
    """Name of a panel, and its correlation with what was measured, where that is defined."""
    both = np.isfinite(truth) & np.isfinite(values)
    if both.sum() < 2:
        return name
    r = correlate(truth[both][:, None], values[both][:, None], None, 0, (1e-6, 1e-6))[0][0]
    return f"{name}, r = {r:.2f}" if np.isfinite(r) else name


def pictures(tiles: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    """Tiles (n, h, w, c) as matplotlib shows them, and how: grey ones of one channel all have the same limits."""
    if tiles.shape[-1] in {3, 4}:
        return displayed(tiles), {}
    grey = tiles[..., 0]
    low, high = (float(np.min(grey)), float(np.max(grey))) if grey.size else (0.0, 1.0)
    return grey, {"cmap": "gray", "vmin": low, "vmax": high}


def add_scale_bar(ax: Axes, extent_um: Extent, color: str) -> None:
    """A bar of 1, 2 or 5 times a power of ten µm, about a fifth of the width."""
    from matplotlib.font_manager import FontProperties
    from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar

    length = nice_length((extent_um[2] - extent_um[0]) / 4)
    label = f"{length:g} µm" if length < 1000 else f"{length / 1000:g} mm"
    bar = AnchoredSizeBar(
        ax.transData,
        length,
        label,
        "lower right",
        frameon=True,
        borderpad=0.8,
        color=color,
        size_vertical=(extent_um[3] - extent_um[1]) / 120,
        fontproperties=FontProperties(size="small"),
    )
    bar.patch.set(facecolor="black" if color == "white" else "white", alpha=0.6, linewidth=0)
    ax.add_artist(bar)


def nice_length(most: float) -> float:
    """The largest of 1, 2, 5 times a power of ten that is not more than ``most``.

    Examples
    --------
    >>> from sthist.pl._base import nice_length
    >>> nice_length(260.0), nice_length(0.9)
    (200.0, 0.5)
    """
    power = 10.0 ** np.floor(np.log10(most))
    return float(max(step * power for step in (1, 2, 5) if step * power <= most * (1 + 1e-9)))


def finish(axes: list[Axes], save: str | Path | None) -> list[Axes]:
    """Save the figure where asked to."""
    if save is not None:
        with written_whole(Path(save)) as partial:
            axes[0].figure.savefig(partial, bbox_inches="tight", dpi=SAVE_DPI)  # type: ignore[union-attr]
    return axes
