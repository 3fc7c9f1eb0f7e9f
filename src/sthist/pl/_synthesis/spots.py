"""Spots, the tiles that were made of them, and their real tiles."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist._messages import plain
from sthist._sample.samples import samples_of
from sthist._sample.verbs import opened
from sthist._tables.find import find_expression
from sthist._tables.genes import closest
from sthist._tables.synthetic import find_synthetic, made_by, positions_of_sources
from sthist.tiles import TileReader
from sthist.tiles._images.image import open_he
from sthist.tiles._laid_tiles import laid_tiles

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

GAP = 0.06
"""Between tiles, in sides of one."""

TILE_INCHES = 0.75

Normalizer = Callable[[np.ndarray], np.ndarray]


class SpotTiles:
    """Synthetic tiles by spot, beside the real ones, which are read when they are asked for."""

    def __init__(
        self,
        data: Any,
        synthetic: Any,
        table: str | None,
        image: str | None,
        normalizer: Normalizer | Mapping[str, Normalizer] | None,
    ) -> None:
        synthetic = opened(synthetic)
        key, self.table = find_synthetic(synthetic)
        self.facts = made_by(self.table, key)
        laid, self.spec = laid_tiles(synthetic, key)
        self._centres = np.asarray(laid.obsm["spatial"], np.float64)[:, :2]
        self._synthetic, self._image, self._normalizer = synthetic, image, normalizer
        self._samples = samples_of(data)
        tables = [find_expression(sample.data, table)[1] for sample in self._samples]
        for sample, adata in zip(self._samples, tables, strict=True):
            if not hasattr(sample.data, "images") or "spatial" not in adata.obsm:
                raise ValueError(
                    f"Sample {sample.name!r} has no image, or its spots no places in obsm['spatial']: real tiles are "
                    "read from a SpatialData with spots and an H&E."
                )
        self._sample = np.repeat(np.arange(len(tables)), [adata.n_obs for adata in tables])
        self._places = np.concatenate([np.asarray(adata.obsm["spatial"], np.float64)[:, :2] for adata in tables])
        named = [(each.name, str(name)) for each, a in zip(self._samples, tables, strict=True) for name in a.obs_names]
        source = positions_of_sources(self.table, named)
        # The first tile of each spot, in the order in which they were made.
        rows, first = np.unique(source[source >= 0], return_index=True)
        order = np.argsort(first, kind="stable")
        self._rows = rows[order]
        self.first = np.flatnonzero(source >= 0)[first[order]]
        self._made = [np.flatnonzero(source == row) for row in self._rows]
        self.names = [named[row] for row in self._rows]

    def __len__(self) -> int:
        return len(self._rows)

    def titles(self, spots: Sequence[int] | np.ndarray) -> list[str]:
        """What spots are called; their sample, too, where there are several."""
        return [": ".join(self.names[i][len(self._samples) == 1 :]) for i in spots]

    def found(self, wanted: Sequence[str] | int | None, default: int) -> np.ndarray:
        """Numbers of spots that are named, or of so many, evenly over all."""
        if wanted is None or isinstance(wanted, int):
            n = min(default if wanted is None else wanted, len(self))
            if n < 1:
                raise ValueError(f"spots is {wanted!r}; it is names of spots, or how many.")
            return np.unique(np.linspace(0, len(self) - 1, n).round().astype(int))
        place = {name: i for i, (_, name) in reversed(list(enumerate(self.names)))}
        for name in map(str, wanted):
            if name not in place:
                raise KeyError(f"No tile was made of a spot {plain(name)!r}.{closest(name, list(place))}")
        return np.array([place[str(name)] for name in wanted], int)

    def conditions(self) -> np.ndarray:
        """Expression that the tiles of each spot were made of, (spots, genes)."""
        matrix = self.table.X[self.first]
        return np.asarray(matrix.toarray() if hasattr(matrix, "toarray") else matrix, np.float64)

    def real(self, spots: np.ndarray) -> np.ndarray:
        """The real tile of each spot, as it is on the slide, or normalised; white outside."""
        tiles = np.empty((len(spots), self.spec.px, self.spec.px, 3), np.uint8)
        rows = self._rows[spots]
        for i in np.unique(self._sample[rows]):
            sample = self._samples[i]
            how = self._normalizer
            how = how.get(sample.name) if isinstance(how, Mapping) else how
            image = open_he(sample.data, self._image)
            reader = TileReader.from_image(image, self.spec, fill=255, allow_upsampling=True, normalizer=how)
            mine = self._sample[rows] == i
            tiles[mine] = reader.read(self._places[rows[mine]])
        return tiles

    def made(self, spots: np.ndarray, n: int) -> np.ndarray:
        """The first n tiles of each spot, (spots, n, px, px, 3); white where there are fewer."""
        px = self.spec.px
        tiles = np.full((len(spots), n, px, px, 3), 255, np.uint8)
        reader = TileReader.from_image(open_he(self._synthetic, None), self.spec, fill=255)
        for row, spot in zip(tiles, spots, strict=True):
            mine = self._made[spot][:n]
            row[: len(mine)] = reader.read(self._centres[mine])
        return tiles

    def replicates(self) -> int:
        """Most tiles that any spot has."""
        return max(map(len, self._made))


def draw_grid(ax: Axes, tiles: np.ndarray, rows: Sequence[str], columns: Sequence[str], apart: int = 1) -> None:
    """Tiles (rows, columns, px, px, 3) in one picture; the first ``apart`` columns stand by themselves."""
    n_rows, n_columns, px = tiles.shape[:3]
    gap = max(1, round(GAP * px))
    step, shift = px + gap, 3 * gap
    left = np.arange(n_columns) * step + np.where(np.arange(n_columns) >= apart, shift, 0)
    picture = np.full((n_rows * step - gap, left[-1] + px, 3), 255, np.uint8)
    for i in range(n_rows):
        for j in range(n_columns):
            picture[i * step : i * step + px, left[j] : left[j] + px] = tiles[i, j]
    ax.imshow(picture, interpolation="antialiased")
    groups: dict[str, list[float]] = {}
    for name, x in zip(columns, left, strict=True):
        groups.setdefault(name, []).append(x + px / 2)
    ax.set_xticks([float(np.mean(each)) for each in groups.values()], list(groups))
    ax.set_yticks(np.arange(n_rows) * step + px / 2, list(rows))
    ax.tick_params(length=0, top=False, labeltop=True, labelbottom=False, labelsize="small")
    ax.spines[:].set_visible(False)


def grid_inches(n_rows: int, n_columns: int) -> tuple[float, float]:
    """Size of a figure of so many tiles."""
    return TILE_INCHES * n_columns + 1.2, TILE_INCHES * n_rows + 0.4
