"""Which tiles to train on: spread over the section, on the image, and not blank."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sthist.tiles._images.image import Image

WHITE_ABOVE, MAX_BLANK = 230, 0.9
"""ST2HE's content rule: a tile is left out if more than 90 % of its pixels are black (0) or near white (> 230)."""

LUMA = np.array([0.299, 0.587, 0.114], np.float32)
"""Grey of RGB, ITU-R BT.601, as Pillow and OpenCV have it."""


def farthest_points(centres: Any, n_tiles: int, *, seed: int | None = None) -> np.ndarray:
    """Choose points that are spread evenly: each the farthest from all that were chosen before it.

    The first k of ``n_tiles`` points are those of any larger ``n_tiles``; turning or shifting the points does not
    change the choice.

    Parameters
    ----------
    centres
        (m, 2): x, y.
    n_tiles
        How many; at most m are returned.
    seed
        The first point is drawn; by default it is the one nearest the mean of all.

    Returns
    -------
    Indices into ``centres``, int64 of shape (min(n, m),), in the order of the choice.

    Raises
    ------
    ValueError
        If there are no points, they are not (m, 2) finite numbers, or ``n_tiles`` is not positive.

    Examples
    --------
    >>> import sthist
    >>> sthist.tiles.farthest_points([[0, 0], [1, 0], [2, 0], [9, 0]], 3).tolist()
    [2, 3, 0]
    """
    if int(n_tiles) != n_tiles or n_tiles < 1:
        raise ValueError(f"n_tiles is {n_tiles!r}; it is a whole number from 1 on.")
    return next(iter_farthest(centres, int(n_tiles), seed=seed))


def iter_farthest(points: Any, batch: int, *, seed: int | None = None) -> Iterator[np.ndarray]:
    """All points in the order of :func:`farthest_points`, ``batch`` at a time.

    Yields indices, int64.
    """
    from sthist.tiles._molecules.dot_kernels import farthest_first

    points = np.ascontiguousarray(points, np.float64)
    if points.ndim != 2 or points.shape[1:] != (2,) or len(points) == 0 or not np.isfinite(points).all():
        raise ValueError(
            f"Points to choose from are (m, 2) finite numbers, m at least 1; these have shape {points.shape}."
        )
    if seed is None:
        start = int(np.argmin(((points - points.mean(0)) ** 2).sum(1)))
    else:
        start = int(np.random.default_rng(seed).integers(len(points)))
    squared = np.full(len(points), np.inf)
    for done in range(0, len(points), batch):
        chosen, start = farthest_first(points, squared, start, min(batch, len(points) - done))
        yield chosen


def blank_fraction(tiles: np.ndarray) -> np.ndarray:
    """Part of each tile that is black (grey 0) or near white (grey above 230).

    Returns Float64 of shape (n,).
    """
    grey = (
        tiles[..., 0] if tiles.shape[-1] == 1 else np.floor(tiles[..., :3].astype(np.float32) @ LUMA + np.float32(0.5))
    )
    return ((grey == 0) | (grey > WHITE_ABOVE)).mean((1, 2))


def has_content(tiles: np.ndarray, max_blank: float = MAX_BLANK) -> np.ndarray:
    """Which tiles show something: at most 90 % of their pixels are black or near white.

    Parameters
    ----------
    tiles
        (n, h, w, c) uint8 with one or three channels.
    max_blank
        Largest part of a tile that may be blank.

    Returns
    -------
    Bool of shape (n,).

    References
    ----------
    The rule of ST2HE.

    Examples
    --------
    >>> import numpy as np, sthist
    >>> tiles = np.full((2, 10, 10, 3), 255, np.uint8)
    >>> tiles[1, :5] = 128
    >>> sthist.tiles.has_content(tiles).tolist()
    [False, True]
    """
    return blank_fraction(tiles) <= max_blank


def lies_inside(image: Image, centres: np.ndarray, size_um: float) -> np.ndarray:
    """Which tiles lie wholly on an image.

    Returns bool of shape (n,).
    """
    import shapely

    outlines = [shapely.Polygon(field.corners_um()) for field in image.fields]
    # A thousandth of a tile is rounding: of tiles that end where an image does, and of images that meet.
    area = shapely.union_all([outline.buffer(1e-3 * size_um, join_style="mitre") for outline in outlines])
    shapely.prepare(area)
    half = size_um / 2
    return np.asarray(shapely.covers(area, shapely.box(*(centres - half).T, *(centres + half).T)))


def spatial_split(centres: Any, size_um: float, test_fraction: float, *, seed: int) -> np.ndarray:
    """Split tiles by place: whole blocks of the section are held out, and what overlaps them is left out of training.

    Returns ``"train"``, ``"test"`` or ``"dropped"`` per tile: an array of text of shape (n,).
    """
    from scipy.spatial import cKDTree

    centres = np.asarray(centres, np.float64).reshape(-1, 2)
    if not 0 <= test_fraction < 1:
        raise ValueError(f"test_fraction is {test_fraction!r}; it is from 0 to less than 1.")
    split = np.full(len(centres), "train", dtype="<U7")
    if test_fraction == 0:
        return split
    blocks, block = np.unique(((centres - centres.min(0)) // (4 * size_um)).astype(int), axis=0, return_inverse=True)
    sizes = np.bincount(block.ravel(), minlength=len(blocks))
    order = np.random.default_rng(seed).permutation(len(blocks))
    enough = int(np.searchsorted(np.cumsum(sizes[order]), test_fraction * len(centres))) + 1
    held_out = np.isin(block.ravel(), order[:enough])
    split[held_out] = "test"
    # Two squares overlap where their centres are less than a side apart along both axes.
    near, _ = cKDTree(centres[held_out]).query(centres[~held_out], p=np.inf, distance_upper_bound=size_um * (1 - 1e-9))
    split[np.flatnonzero(~held_out)[np.isfinite(near)]] = "dropped"
    if not (split == "train").any():
        raise ValueError(
            f"A test set of {test_fraction:.0%} by place leaves none of the {len(centres)} tiles to train on; take "
            "more tiles or a smaller part."
        )
    return split
