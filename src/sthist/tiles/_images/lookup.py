"""Values of an image at many places, each chunk decoded once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from sthist.tiles._images.image import ImageSource


def values_at(source: ImageSource, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The full-resolution pixel under each place.

    Parameters
    ----------
    source
        The image.
    places
        (n, 2): x, y in µm; NaN for nowhere.

    Returns
    -------
    Float64 of shape (n, channels), NaN outside of the image; and bool of shape (n,), whether a place is on it. One chunk is in memory at
    a time.
    """
    planes = source.levels[0].planes
    values = np.full((len(places), planes.shape[0]), np.nan)
    to_px = np.linalg.inv(source.to_um)
    column, row = (np.floor(places @ to_px[:2, :2].T + to_px[:2, 2])).T
    on = (row >= 0) & (row < planes.height) & (column >= 0) & (column < planes.width)
    inside = np.flatnonzero(on)
    row, column = row[inside].astype(int), column[inside].astype(int)
    # The number of a chunk is that of the last edge before it.
    chunk_row = np.searchsorted(planes.y_edges, row, side="right") - 1
    chunk_column = np.searchsorted(planes.x_edges, column, side="right") - 1
    chunk = chunk_row * len(planes.x_edges) + chunk_column
    order = np.argsort(chunk, kind="stable")
    for part in np.split(order, np.flatnonzero(np.diff(chunk[order])) + 1):
        if len(part):
            i, j = chunk_row[part[0]], chunk_column[part[0]]
            (pixels,) = planes.load(int(i), int(j), int(j) + 1)
            values[inside[part]] = pixels[:, row[part] - planes.y_edges[i], column[part] - planes.x_edges[j]].T
    return values, on
