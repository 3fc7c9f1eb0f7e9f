"""What all panels share: extents, resolution, scale bars, limits, saving."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

Extent = tuple[float, float, float, float]
PANEL_INCHES = 4.0
MAX_PX = 4096
SAVE_DPI = 200


def make_axes(n: int, ncols: int, extent_um: Extent, axes: Any, names: Sequence[str]) -> list[Axes]:
    """The given axes, checked, or new ones of the region's shape, ``ncols`` in a row."""
    import matplotlib.pyplot as plt

    if axes is not None:
        given = list(np.ravel(np.asarray(axes, dtype=object)))
        if len(given) != n:
            msg = f"{n} panels ({', '.join(names)}) need as many axes; {len(given)} are given."
            raise ValueError(msg)
        return given
    x0, y0, x1, y1 = extent_um
    columns = min(n, ncols)
    rows = -(-n // columns)
    height = PANEL_INCHES * float(np.clip((y1 - y0) / (x1 - x0), 0.3, 3))
    figure, grid = plt.subplots(
        rows, columns, figsize=(PANEL_INCHES * columns, (height + 0.3) * rows), squeeze=False, layout="constrained"
    )
    flat = list(grid.ravel())
    for unused in flat[n:]:
        figure.delaxes(unused)
    return flat[:n]


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


def limit(value: float | str | None, pixels: np.ndarray, default: str) -> float:
    """A colour limit: a number, or a quantile of the pixels such as ``"p99"``, as in scanpy."""
    value = default if value is None else value
    if not isinstance(value, str):
        return float(value)
    try:
        percent = float(value.removeprefix("p"))
    except ValueError:
        percent = np.nan
    if not (value.startswith("p") and 0 <= percent <= 100):
        msg = f"A colour limit is a number or a quantile from 'p0' to 'p100', not {value!r}."
        raise ValueError(msg)
    return float(np.percentile(pixels, percent))


def finish(axes: list[Axes], save: str | Path | None) -> list[Axes]:
    """Save the figure where asked to."""
    if save is not None:
        axes[0].figure.savefig(save, bbox_inches="tight", dpi=SAVE_DPI)  # type: ignore[union-attr]
    return axes
