"""Molecules of chosen genes as dots, or as their density where they lie closer than pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from sthist import _sample
from sthist._sample.elements import HighResElements, is_gene
from sthist._scratch import array_on_disk
from sthist._tables.genes import closest
from sthist.pl._view.grid import png
from sthist.tiles._molecules.density import iter_points

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from spatialdata import SpatialData

    from sthist.pl._base import Extent
    from sthist.pl._view.grid import Encoded, Tile

IN_MEMORY = 5_000_000
"""Molecules above which the sorted ones lie in a file of the scratch folder: 8 bytes each."""

MIN_QV = 20.0
CLOSEST = 0.45
"""Dots are at most this part of the usual distance of molecules wide."""

FAINTEST = 0.35


class Dots(NamedTuple):
    """A gene, and the red, green and blue of its dots."""

    gene: str
    colour: tuple[int, int, int]


class Molecules:
    """The transcripts of a sample, sorted by gene, so that a gene costs what there is of it.

    Controls and those of a quality below 20 are left out, as they are for models.
    """

    def __init__(self, sdata: SpatialData) -> None:
        points, gene = _sample.find_transcripts(sdata)
        if points is None or gene is None:
            raise KeyError("This sample has no molecules.")
        self._elements = HighResElements(sdata, (), "", points=points, gene=gene)
        element = sdata.points[points]
        self._gene, self.points = gene, points
        self._columns = (gene, "qv") if "qv" in element.columns else (gene,)
        self.genes = self._features()
        self._code = {name: i for i, name in enumerate(self.genes)}
        self._starts: np.ndarray | None = None

    def _features(self) -> list[str]:
        column = self._elements.sdata.points[self.points][self._gene]
        if getattr(getattr(column, "cat", None), "known", False):
            names = np.array(sorted(map(str, column.cat.categories)), dtype=object)
        else:
            names = np.array(sorted(map(str, column.dropna().unique().compute())), dtype=object)
        return list(names[is_gene(names)]) if len(names) else []

    def sort(self) -> None:
        """Read all and sort them; the first tile does so."""
        counts = np.zeros(len(self.genes), np.int64)
        low, high = np.full(2, np.inf), np.full(2, -np.inf)
        for x, y, codes in self._parts():
            counts += np.bincount(codes, minlength=len(counts))
            if len(x):
                low, high = np.minimum(low, [x.min(), y.min()]), np.maximum(high, [x.max(), y.max()])
        self._origin = np.where(np.isfinite(low), low, 0.0)
        self._area = float(np.prod(np.maximum(high - low, 1.0))) if counts.sum() else 1.0
        starts = np.append(0, np.cumsum(counts))
        shape = (2, int(starts[-1]))
        places = (
            np.empty(shape, np.float32)
            if shape[1] <= IN_MEMORY
            else array_on_disk(shape, np.float32, "The sorted molecules")
        )
        following = starts[:-1].copy()
        for x, y, codes in self._parts():
            order = np.argsort(codes, kind="stable")
            n = np.bincount(codes, minlength=len(counts))
            # A molecule's place: where those of its gene go on, and how many of them come before it in this part.
            to = following[codes[order]] + np.arange(len(order)) - (np.cumsum(n) - n)[codes[order]]
            places[0, to], places[1, to] = x[order] - self._origin[0], y[order] - self._origin[1]
            following += n
        self._places, self._starts = places, starts

    def require(self, gene: str) -> None:
        """Refuse a gene that there is not."""
        if gene not in self._code:
            raise KeyError(
                f"Gene {gene!r} is not among the {len(self.genes)} of points {self.points!r}."
                f"{closest(gene, self.genes)}"
            )

    def count(self, gene: str) -> int:
        """How many there are of a gene."""
        self.require(gene)
        return int(np.diff(self._sorted()[self._code[gene] :][:2])[0])

    def places(self, gene: str, extent: Extent) -> np.ndarray:
        """x, y in µm of those of a gene in a box, (n, 2) float64."""
        self.require(gene)
        first, stop = self._sorted()[self._code[gene] :][:2]
        x, y = (np.asarray(self._places[axis, first:stop]) for axis in (0, 1))
        x0, y0, x1, y1 = (edge - self._origin[axis % 2] for axis, edge in enumerate(extent))
        inside = (x >= x0) & (x < x1) & (y >= y0) & (y < y1)
        return np.stack([x[inside], y[inside]], axis=1).astype(np.float64) + self._origin

    def tile(self, tile: Tile, shown: Sequence[Dots], size_px: float) -> Encoded:
        """Dots of some genes, of some pixels wide at most; smaller where they would hide each other."""
        total = sum(self.count(dots.gene) for dots in shown)
        distance = np.sqrt(self._area / max(total, 1)) / tile.mpp
        diameter = float(np.clip(CLOSEST * distance, 1.0, max(size_px, 1.0)))
        reach = diameter / 2 * tile.mpp
        x0, y0, x1, y1 = tile.extent
        box = (x0 - reach, y0 - reach, x1 + reach, y1 + reach)
        pixels = [(self.places(dots.gene, box) - (x0, y0)) / tile.mpp for dots in shown]
        if diameter < 2:
            return png(_density(pixels, [dots.colour for dots in shown], tile.shape, 1 / max(distance, 1e-6) ** 2))
        rgba = np.zeros((*tile.shape, 4), np.uint8)
        for places, dots in zip(pixels, shown, strict=True):
            _stamp(rgba, places, diameter / 2, dots.colour)
        return png(rgba)

    def _sorted(self) -> np.ndarray:
        if self._starts is None:
            self.sort()
        assert self._starts is not None
        return self._starts

    def _parts(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """By partition, x, y and the gene's number of those that count."""
        for x, y, part in iter_points(self._elements, self._columns):
            categories = part[self._gene].astype("category").cat
            codes = np.array([*(self._code.get(str(name), -1) for name in categories.categories), -1])
            codes = codes[categories.codes.to_numpy()]
            keep = (codes >= 0) & np.isfinite(x) & np.isfinite(y)
            if "qv" in part:
                keep &= part["qv"].to_numpy() >= MIN_QV
            yield x[keep], y[keep], codes[keep]


def _density(
    pixels: Sequence[np.ndarray], colours: Sequence[tuple[int, int, int]], shape: tuple[int, int], usual: float
) -> np.ndarray:
    """Molecules per pixel as opacity, in the mean colour of those that lie there."""
    total, mixed = np.zeros(shape), np.zeros((*shape, 3))
    for places, colour in zip(pixels, colours, strict=True):
        column, row = np.floor(places).astype(int).T
        inside = (column >= 0) & (column < shape[1]) & (row >= 0) & (row < shape[0])
        counts = np.bincount(row[inside] * shape[1] + column[inside], minlength=shape[0] * shape[1]).reshape(shape)
        total += counts
        mixed += counts[..., None] * np.array(colour, float)
    rgba = np.zeros((*shape, 4), np.uint8)
    rgba[..., :3] = np.round(mixed / np.maximum(total, 1)[..., None])
    opacity = FAINTEST + (1 - FAINTEST) * (1 - np.exp(-total / max(4 * usual, 2)))
    rgba[..., 3] = np.where(total > 0, np.round(255 * opacity), 0)
    return rgba


def _stamp(rgba: np.ndarray, places: np.ndarray, radius: float, colour: tuple[int, int, int]) -> None:
    """Paint a disc at each place: the pixels whose centres it holds, and half of what its border crosses."""
    height, width = rgba.shape[:2]
    reach = int(np.ceil(radius + 0.5))
    steps = np.arange(-reach, reach + 1)
    corner = np.floor(places).astype(int)
    inside = places - corner - 0.5  # from the centre of the pixel that it lies in
    cover = np.zeros((height, width), np.uint8)
    for down in steps:
        for right in steps:
            distance = np.hypot(right - inside[:, 0], down - inside[:, 1])
            opacity = np.round(255 * np.clip(radius + 0.5 - distance, 0, 1)).astype(np.uint8)
            column, row = corner[:, 0] + right, corner[:, 1] + down
            on = (opacity > 0) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
            np.maximum.at(cover, (row[on], column[on]), opacity[on])
    painted = cover > 0
    rgba[painted, :3] = colour
    rgba[..., 3] = np.maximum(rgba[..., 3], cover)
