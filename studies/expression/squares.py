"""Real sections as squares of 8 µm, spots of 55 µm made of them, and what is true of squares of 16 and 32 µm.

What is made of them, and why, is said in ``superresolution.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import anndata as ad
import numpy as np
import realdata
from scipy import ndimage, sparse
from scipy.spatial import cKDTree

PITCH_UM, RADIUS_UM, SQUARE_UM = 100.0, 27.5, 8.0
MARGIN_UM = 80.0  # of image around what is scored
FEWEST = {"spot": 100, "square": 25}  # counts
SIDES = (2, 4)  # of squares of the truth, in squares of 8 µm
GAP_UM, BLOCK_UM = 50.0, 200.0


@dataclass(frozen=True)
class Section:
    """An image, and where on it the molecules of cells or bins lie: in squares of 8 µm, of which all is made."""

    pixels: np.ndarray
    mpp: float
    places: np.ndarray = field(repr=False)  # (n, 2) µm of cells or bins
    counts: Any = field(repr=False)  # (n, genes) csr
    genes: list[str] = field(repr=False)
    square: np.ndarray = field(repr=False)  # (n,) which square each lies in
    shape: tuple[int, int]  # rows and columns of squares
    centres: np.ndarray = field(repr=False)  # (squares, 2) in µm

    @cached_property
    def spots(self) -> ad.AnnData:
        """Discs of 55 µm in hexagons, with the counts in them."""
        low, high = self.centres.min(axis=0) + RADIUS_UM, self.centres.max(axis=0) - RADIUS_UM
        rows = np.arange(low[1], high[1], PITCH_UM * np.sqrt(0.75))
        xy = [(x, y) for n, y in enumerate(rows) for x in np.arange(low[0] + n % 2 * PITCH_UM / 2, high[0], PITCH_UM)]
        counts = members(np.array(xy), self.places) @ self.counts
        made = ad.AnnData(sparse.csr_matrix(counts), var={"gene": self.genes})
        made.var_names, made.obs_names = self.genes, [f"spot{n}" for n in range(len(xy))]
        made.obs[["x_um", "y_um"]] = xy
        return made[np.asarray(counts.sum(axis=1)).ravel() >= FEWEST["spot"]].copy()

    @property
    def middle(self) -> float:
        """Where one half of the section ends, in x."""
        return float((self.centres[:, 0].min() + self.centres[:, 0].max()) / 2)


def members(spots: np.ndarray, places: np.ndarray) -> Any:
    """Which places lie in the disc of each spot, (spots, places) sparse."""
    near = cKDTree(places).query_ball_point(spots, RADIUS_UM)
    row = np.repeat(np.arange(len(spots)), [len(each) for each in near])
    column = np.concatenate([np.asarray(each, int) for each in near])
    return sparse.csr_matrix((np.ones(len(row)), (row, column)), shape=(len(spots), len(places)))


def xenium_breast() -> Section:
    """Cells on squares that are laid on the image."""
    pixels, mpp, cells = realdata.xenium_breast_cells(MARGIN_UM)
    drawn = realdata.picture(realdata.folder("xenium_breast_rep1") / "he_crop_2.4um_overlay_mask.png")[0] > 0
    _, nearest = ndimage.distance_transform_edt(drawn, return_indices=True)
    places = cells.obs[["x_px", "y_px"]].to_numpy() * mpp
    corner = places.min(axis=0)
    shape = tuple(int(n) // SIDES[-1] * SIDES[-1] for n in (np.ptp(places, axis=0) // SQUARE_UM)[::-1])
    row, column = np.floor((places - corner) / SQUARE_UM).astype(int)[:, ::-1].T
    kept = (row < shape[0]) & (column < shape[1])
    y, x = np.indices(shape).reshape(2, -1)
    centres = (np.stack([x, y], 1) + 0.5) * SQUARE_UM + corner
    square = (row * shape[1] + column)[kept]
    counts = sparse.csr_matrix(cells.X[kept])
    return Section(pixels[:, *nearest], mpp, places[kept], counts, list(cells.var_names), square, shape, centres)


def visium_hd_kidney() -> Section:
    """Bins as they are."""
    pixels, mpp, bins = realdata.visium_hd_kidney_bins()
    row, column = (bins.obs[name].to_numpy() - bins.obs[name].min() for name in ("array_row", "array_col"))
    shape = (int(row.max()) + 1, int(column.max()) + 1)
    places = bins.obs[["x_px", "y_px"]].to_numpy() * mpp
    # Of the few that are missing, too: places are an affine map of row and column.
    to_um, *_ = np.linalg.lstsq(np.column_stack([column, row, np.ones(len(row))]), places, rcond=None)
    y, x = np.indices(shape).reshape(2, -1)
    centres = np.column_stack([x, y, np.ones(len(x))]) @ to_um
    square = row * shape[1] + column
    return Section(pixels, mpp, places, sparse.csr_matrix(bins.X), list(bins.var_names), square, shape, centres)


SECTIONS = {"xenium breast": xenium_breast, "visium hd kidney": visium_hd_kidney}


def logarithms(counts: Any, columns: np.ndarray) -> np.ndarray:
    """Logarithm of counts of 10,000, of some genes."""
    total = np.maximum(np.asarray(counts.sum(axis=1)).ravel(), 1)
    return np.log1p(counts[:, columns].toarray() / total[:, None] * 1e4)


@dataclass(frozen=True)
class Truth:
    """Squares of one side that have enough counts."""

    kept: np.ndarray  # numbers of these
    counts: Any  # (n, all genes) csr
    values: np.ndarray  # (n, genes) logarithms
    spot: np.ndarray  # (n,) the nearest one
    between: np.ndarray  # (n,) whether no part lies in a spot
    half: np.ndarray  # (n,) 0 and 1; -1 near the border
    block: np.ndarray  # (n,) of 200 µm

    @classmethod
    def of(cls, section: Section, side: int, columns: np.ndarray) -> Truth:
        """Of a section."""
        height, width = section.shape
        y, x = np.indices(section.shape).reshape(2, -1) // side
        coarse = y * (width // side) + x
        n = coarse.max() + 1
        one = np.ones(len(section.square))
        into = sparse.csr_matrix((one, (coarse[section.square], np.arange(len(one)))), shape=(n, len(one)))
        counts = into @ section.counts
        kept = np.flatnonzero(np.asarray(counts.sum(axis=1)).ravel() >= FEWEST["square"])
        mean = [np.bincount(coarse, section.centres[:, axis]) / side**2 for axis in (0, 1)]
        centres = np.stack(mean, 1)[kept]
        spots = section.spots.obs[["x_um", "y_um"]].to_numpy()
        far = cKDTree(spots).query(section.centres)[0] > RADIUS_UM
        between = np.bincount(coarse, far)[kept] == side**2
        half = np.where(centres[:, 0] < section.middle, 0, 1)
        half[np.abs(centres[:, 0] - section.middle) < GAP_UM] = -1
        _, block = np.unique(centres // BLOCK_UM, axis=0, return_inverse=True)
        values = logarithms(counts[kept], columns)
        return cls(kept, counts[kept], values, cKDTree(spots).query(centres)[1], between, half, block.ravel())

    def seen(self, view: str) -> np.ndarray:
        """Which squares are scored, (n,)."""
        views = {"same slide": np.ones(len(self.kept), bool), "between spots": self.between}
        return views.get(view, self.half >= 0)

    def halves(self, view: str) -> np.ndarray:
        """What correlations are taken within, of the squares that are scored."""
        return self.half[self.seen(view)] if view == "other half" else np.zeros(self.seen(view).sum(), int)


def on_squares(values: np.ndarray, section: Section, side: int, kept: np.ndarray) -> np.ndarray:
    """Logarithm of the mean over larger squares of expression of those of 8 µm, (n, genes)."""
    height, width = section.shape
    parts = values.reshape(height // side, side, width // side, side, -1)
    return np.log1p(parts.mean(axis=(1, 3)).reshape(-1, values.shape[1])[kept])
