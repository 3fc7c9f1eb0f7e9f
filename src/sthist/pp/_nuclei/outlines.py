"""Labels of a window as polygons, and what is measured of each nucleus."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sthist import stains
from sthist.pp._nuclei.windows import LARGEST_UM

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sthist.pp._nuclei.windows import Lattice, Window

SIMPLIFY_PX = 0.4
"""Corners of outlines are left out as long as the outline moves by less."""

FACTS = ("eccentricity", "haematoxylin", "haematoxylin_sd", "eosin")


@dataclass(frozen=True)
class Nuclei:
    """Some nuclei.

    Attributes
    ----------
    outlines
        Polygons in µm, (n,).
    facts
        Columns of the table: numbers, (n,) each, by their names.
    rank
        (n, 2) y, x of the first pixel on the image's lattice: the order in which nuclei are numbered.
    """

    outlines: np.ndarray
    facts: dict[str, np.ndarray]
    rank: np.ndarray

    def __len__(self) -> int:
        return len(self.outlines)

    def chosen(self, which: np.ndarray) -> Nuclei:
        """Some of them, or in another order."""
        return Nuclei(self.outlines[which], {name: each[which] for name, each in self.facts.items()}, self.rank[which])

    def without_doubles(self) -> Nuclei:
        """Of two that cover each other by half of the smaller one, the larger one alone."""
        import shapely

        a, b = shapely.STRtree(self.outlines).query(self.outlines, predicate="intersects")
        a, b = a[a < b], b[a < b]
        area = shapely.area(self.outlines)
        shared = shapely.area(shapely.intersection(self.outlines[a], self.outlines[b]))
        double = shared > 0.5 * np.minimum(area[a], area[b])
        dropped = np.where(area[a] >= area[b], b, a)[double]
        return self.chosen(np.setdiff1d(np.arange(len(self)), dropped))

    @classmethod
    def none(cls) -> Nuclei:
        """No nucleus."""
        return cls(np.empty(0, object), {name: np.empty(0) for name in FACTS}, np.empty((0, 2), np.int64))

    @classmethod
    def joined(cls, parts: Sequence[Nuclei]) -> Nuclei:
        """Of all blocks, in the order of their first pixels."""
        facts = {name: np.concatenate([part.facts[name] for part in parts]) for name in FACTS}
        rank = np.concatenate([part.rank for part in parts])
        whole = cls(np.concatenate([part.outlines for part in parts]), facts, rank)
        return whole.chosen(np.lexsort((rank[:, 1], rank[:, 0])))


@dataclass(frozen=True)
class Owned:
    """Which labels of a window are nuclei of its block: by their size, and by where their centre lies."""

    block: Window
    areas_um2: tuple[float, float]
    slack: int = 0

    def of(self, counts: np.ndarray, window: Window, mpp: float) -> np.ndarray:
        """Labels, in whole numbers: a centre on the border of two blocks is of one of them alone."""
        _, n, sum_y, sum_x, low_y, high_y, low_x, high_x = counts.T
        keep = (n * mpp**2 >= self.areas_um2[0]) & (n * mpp**2 <= self.areas_um2[1])
        keep &= np.maximum(high_y - low_y, high_x - low_x) + 1 <= LARGEST_UM / mpp
        block = self.block.grown(self.slack)
        for total, origin, low, high in (
            (sum_y, window.y0, block.y0, block.y1),
            (sum_x, window.x0, block.x0, block.x1),
        ):
            twice = 2 * total + n + 2 * n * origin  # the centre, doubled and times n
            keep &= (2 * n * low <= twice) & (twice < 2 * n * high)
        keep[0] = False
        return np.flatnonzero(keep)


def nuclei_of(
    labels: np.ndarray, rgb: np.ndarray, vectors: np.ndarray, window: Window, lattice: Lattice, owned: Owned
) -> Nuclei:
    """The nuclei of a window's labels that its block owns."""
    import shapely

    from sthist._imaging.nucleus_kernels import measure, trace

    labels = np.ascontiguousarray(labels, np.int32)
    counts, sums = measure(labels, int(labels.max()), amounts_of(rgb, vectors))
    which = owned.of(counts, window, lattice.mpp)
    firsts = counts[which, 0]
    corners, starts = trace(labels, firsts, which)
    # In whole numbers as far as it goes, so that an outline has the same corners in all windows.
    places = lattice.to_um((corners + 2 * np.array([window.x0, window.y0])) / 2)
    rings = shapely.linearrings(places, indices=np.repeat(np.arange(len(which)), np.diff(starts)))
    outlines = shapely.simplify(shapely.polygons(rings), SIMPLIFY_PX * lattice.mpp)
    rank = np.stack(np.divmod(firsts, labels.shape[1]), 1) + [window.y0, window.x0]
    return Nuclei(outlines, facts_of(counts[which], sums[which]), rank)


def amounts_of(rgb: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Haematoxylin and eosin, (2, h, w), as of :func:`sthist.stains.concentrations`; the same bits in all windows."""
    inverse = np.linalg.pinv(vectors).astype(np.float32)
    r, g, b = (stains.optical_density(np.arange(256))[rgb[..., channel]] for channel in range(3))
    return np.stack([np.maximum(r * x + g * y + b * z, np.float32(0)) for x, y, z in inverse.T])


def facts_of(counts: np.ndarray, sums: np.ndarray) -> dict[str, np.ndarray]:
    """Shape and stain of nuclei, from what was counted of them."""
    n = np.maximum(1, counts[:, 1]).astype(np.float64)
    haematoxylin, haematoxylin2, eosin, _, y, x, yy, xx, xy = sums.T / n
    return {
        "eccentricity": eccentricity(yy - y * y, xx - x * x, xy - x * y),
        "haematoxylin": haematoxylin,
        "haematoxylin_sd": np.sqrt(np.maximum(0, haematoxylin2 - haematoxylin**2)),
        "eosin": eosin,
    }


def eccentricity(yy: np.ndarray, xx: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """Of the ellipse of the same second moments: 0 for a disc, near 1 for a needle."""
    mean, half = (yy + xx) / 2, np.hypot((yy - xx) / 2, xy)
    return np.sqrt(np.clip(2 * half / (mean + half), 0, 1))
