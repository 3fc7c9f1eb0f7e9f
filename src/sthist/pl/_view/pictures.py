"""Images of a sample as tiles: colours as they are, channels in colours and limits that are chosen."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from sthist import _sample
from sthist._imaging.colours import displayed
from sthist._settings import logger
from sthist.pl._view.grid import TILE_PX, Kept, jpeg, png
from sthist.tiles._images.image import open_image, values_at
from sthist.tiles._images.reader import TileReader, join_cache, seen_grid
from sthist.tiles._spec import TileSpec

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

    from spatialdata import SpatialData

    from sthist.pl._view.grid import Encoded, Grid, Tile
    from sthist.tiles._images.image import Field, Image

MAX_REDUCTION = 4
"""Where one pixel of a tile would be the mean of more pixels a side of what is stored, it is made of finer tiles."""

SAMPLED_TILES = 9
LARGE_PX = 4096
DARKEST, BRIGHTEST = 1.0, 99.8
PALETTE = ("ffffff", "00ff66", "ff3b3b", "00c8ff", "ffd400", "ff5cf0", "7d7dff", "ff9a3c")
RGB_NAMES = ({"r", "g", "b"}, {"red", "green", "blue"}, {"0", "1", "2"})
CACHE_BYTES, MOST_READERS = 96 * 2**20, 64


class Channel(NamedTuple):
    """How a channel is shown: its place in the image, red, green and blue, and the values of black and full light."""

    place: int
    colour: tuple[int, int, int]
    low: float
    high: float


class Picture:
    """One image, or several that tile one plane, that can be shown."""

    def __init__(self, image: Image, title: str, shown: str | None, *, rgb: bool) -> None:
        self.key, self.title, self.image, self.rgb = image.key, title, image, rgb
        self.shown = shown  # the channel that is shown at first; None for the first one
        self._first = TileReader.from_image(
            image, TileSpec.from_mpp(image.coarsest_mpp, TILE_PX), cache_bytes=CACHE_BYTES
        )
        self._readers, self._selected, self._limits = (Kept(MOST_READERS, lambda _: 1) for _ in range(3))

    def depth(self, grid: Grid) -> int:
        """Its finest level."""
        return grid.level_of(self.image.finest_mpp)

    def tile(self, grid: Grid, tile: Tile, channels: Sequence[Channel] = ()) -> Encoded:
        """A tile of it; clear where there is no image."""
        wanted = range(3) if self.rgb else [channel.place for channel in channels]
        pixels, seen = self._pixels(grid, tile, tuple(wanted)) if wanted else _nothing(tile)
        colours = displayed(pixels) if self.rgb else blend(pixels, channels)
        if seen.all():
            return jpeg(colours)
        return png(np.concatenate([colours, np.where(seen, 255, 0).astype(np.uint8)[..., None]], axis=2))

    def limits(self, grid: Grid, index: int) -> tuple[float, float]:
        """Values of black and full light of a channel, by what a few tiles hold."""
        limits: tuple[float, float] = self._limits.get((grid, index), lambda: self._sampled_limits(grid, index))
        return limits

    def describe(self, grid: Grid) -> dict[str, Any]:
        """What the page has to know; limits of channels are asked for when one is shown."""
        names = self.image.channels
        first = names.index(self.shown) if self.shown in names else 0
        channels = [
            {"name": name, "colour": PALETTE[(i - first) % len(PALETTE)], "shown": i == first}
            for i, name in enumerate(names)
        ]
        return {
            "key": self.key,
            "title": self.title,
            "rgb": self.rgb,
            "mpp": self.image.finest_mpp,
            "levels": self.depth(grid),
            "channels": [] if self.rgb else channels,
        }

    def _sampled_limits(self, grid: Grid, index: int) -> tuple[float, float]:
        level = self.depth(grid)
        while level and self._reads(grid.mpp / 2 ** (level - 1)):
            level -= 1
        parts = []
        for tile in _spread(grid, level, self.image.extent_um):
            pixels, seen = self._pixels(grid, tile, (index,))
            parts.append(pixels[..., 0][seen].astype(np.float64))
        values = np.concatenate(parts)
        values = values[np.isfinite(values)]
        if not values.size:
            return 0.0, 1.0
        low, high = np.percentile(values, [DARKEST, BRIGHTEST])
        if not high > low:
            low, high = values.min(), values.max()
        return float(low), float(high if high > low else low + 1)

    def _pixels(self, grid: Grid, tile: Tile, channels: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Pixels (h, w, channels) of a tile, and which of them lie on the image."""
        seen = self._seen(tile)
        if not seen.any():
            return np.zeros((*tile.shape, len(channels)), self.image.dtype), seen
        if self.image.dtype.kind == "f":  # a map of scores, with NaN where there is none
            return self._nearest(tile, channels, seen)
        if not self._reads(tile.mpp):
            return self._of_finer(grid, tile, channels), seen
        middle = np.array(tile.extent[:2]) + TILE_PX * tile.mpp / 2
        pixels = self._reader(tile.mpp, channels).read([middle])[0]
        return pixels[: tile.shape[0], : tile.shape[1]], seen

    def _seen(self, tile: Tile) -> np.ndarray:
        """Which pixels of a tile lie on the image: all, where one element holds its corners."""
        x0, y0, x1, y1 = tile.extent
        corners = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])
        if any(field.holds(corners).all() for field in self.image.fields):
            return np.ones(tile.shape, bool)
        return seen_grid(self.image, tile.extent[:2], tile.mpp, tile.shape)

    def _reads(self, mpp: float) -> bool:
        """Whether a tile can be read at once: its pyramid is there, or the image is small."""
        for field in self.image.fields:
            step = mpp / self.image.coarsest_mpp
            level = field.level((step, step))
            if step / min(level.factor) > MAX_REDUCTION and max(field.size) > MAX_REDUCTION * TILE_PX:
                return False
        return True

    def _of_finer(self, grid: Grid, tile: Tile, channels: tuple[int, ...]) -> np.ndarray:
        """The means of 2 x 2 pixels of the four tiles of the next level, one after the other."""
        height, width = tile.shape
        whole = np.zeros((2 * height, 2 * width, len(channels)), self.image.dtype)
        for part, (rows, columns) in _quarters(grid, tile):
            whole[rows, columns] = self._pixels(grid, part, channels)[0]
        means = whole.reshape(height, 2, width, 2, -1).mean(axis=(1, 3))
        return np.asarray(means.round() if whole.dtype.kind in "iu" else means).astype(whole.dtype)

    def _nearest(self, tile: Tile, channels: tuple[int, ...], seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        x0, y0 = tile.extent[:2]
        y, x = ((np.arange(n) + 0.5) * tile.mpp + low for n, low in zip(tile.shape, (y0, x0), strict=True))
        values, _ = values_at(self._select(channels), np.stack(np.meshgrid(x, y), -1).reshape(-1, 2))
        values = values.reshape(*tile.shape, len(channels))
        return values, seen & np.isfinite(values).all(axis=2)

    def _reader(self, mpp: float, channels: tuple[int, ...]) -> TileReader:
        def opened() -> TileReader:
            spec = TileSpec.from_mpp(mpp, TILE_PX)
            reader = TileReader.from_image(self._select(channels), spec, allow_upsampling=True, cache_bytes=CACHE_BYTES)
            join_cache(reader, self._first)
            return reader

        reader: TileReader = self._readers.get((mpp, channels), opened)
        return reader

    def _select(self, channels: tuple[int, ...]) -> Image:
        """The image with some of its channels, once for all levels: chunks are kept by whose they are."""
        names = [self.image.channels[index] for index in channels]
        image: Image = self._selected.get(channels, lambda: self.image.select(names))
        return image


def blend(pixels: np.ndarray, channels: Sequence[Channel]) -> np.ndarray:
    """Light of several channels (h, w, channels), each in its colour, added; (h, w, 3) uint8."""
    total = np.zeros((*pixels.shape[:2], 3), np.float32)
    for values, channel in zip(np.moveaxis(pixels, 2, 0), channels, strict=True):
        light = (values.astype(np.float32) - channel.low) / max(channel.high - channel.low, 1e-9)
        light = np.nan_to_num(np.clip(light, 0, 1))
        for i, strength in enumerate(channel.colour):
            if strength:
                total[..., i] += light * strength
    return np.asarray(np.minimum(total, 255).round().astype(np.uint8))


def pictures_of(sdata: SpatialData, images: Sequence[str] | None) -> tuple[list[Picture], list[str]]:
    """Images that can be shown, nuclear stain and H&E first, and sentences on those that cannot."""
    found: list[Picture] = []
    notes: list[str] = []
    for keys, title, channel in _candidates(sdata):
        if images is not None and not set(keys) & set(images):
            continue
        try:
            image = open_image(sdata, keys)
        except (KeyError, ValueError) as error:
            if images is not None:
                raise
            notes.append(str(error.args[0]))
            continue
        found.append(Picture(image, title, channel, rgb=_is_coloured(sdata, image)))
        if any(_is_slow(field) for field in image.fields):
            notes.append(
                f"The pyramid of image {image.key!r} is not in a store: it is computed as it is looked at. Write the "
                "sample, and view the store, to see it sooner."
            )
    if images is not None:
        place = {key: images.index(key) for key in images}
        found.sort(key=lambda each: min(place.get(key, len(place)) for key in each.image.keys))
    for note in notes:
        logger.warning("%s", note)
    return found, notes


def _is_slow(field: Field) -> bool:
    """Whether a large pyramid is made whenever it is read."""
    return max(field.size) > LARGE_PX and any(level.planes.is_computed for level in field.levels[1:])


def _candidates(sdata: SpatialData) -> Iterator[tuple[tuple[str, ...], str, str | None]]:
    """Keys that make one plane, what they are called, and the channel that is shown first."""
    taken: set[str] = set()
    try:
        keys, channel = _sample.find_nuclear(sdata)
    except (KeyError, ValueError):
        keys, channel = (), ""
    if keys:
        taken.update(keys)
        yield keys, "Nuclear stain" if len(keys) > 1 else f"Nuclear stain ({keys[0]})", channel
    try:
        he = _sample.find_he(sdata)
    except (KeyError, ValueError):
        he = None
    if he is not None and he not in taken:
        taken.add(he)
        yield (he,), f"H&E ({he})" if he != "he" else "H&E", None
    others = sorted((key for key in sdata.images if key not in taken), key=lambda key: key != "virtual_he")
    for key in others:
        yield (key,), "Virtual H&E" if key == "virtual_he" else key, None


def _is_coloured(sdata: SpatialData, image: Image) -> bool:
    """Whether three channels are red, green and blue, by their names or by what the image is."""
    if len(image.channels) != 3:
        return False
    names = {name.lower() for name in image.channels}
    return names in RGB_NAMES or image.key == "virtual_he" or _sample.is_named_he(sdata, image.key)


def _nothing(tile: Tile) -> tuple[np.ndarray, np.ndarray]:
    return np.zeros((*tile.shape, 0), np.uint8), np.zeros(tile.shape, bool)


def _spread(grid: Grid, level: int, extent: tuple[float, float, float, float]) -> Iterator[Tile]:
    """Some tiles of a level, evenly spread over a box."""
    side = TILE_PX * grid.mpp / 2**level
    n = int(np.sqrt(SAMPLED_TILES))
    places = []
    for low, high, origin, size in (
        (extent[0], extent[2], grid.x0_um, grid.width),
        (extent[1], extent[3], grid.y0_um, grid.height),
    ):
        first, last = int((low - origin) // side), int((high - origin - 1e-6) // side)
        last = min(max(last, first, 0), -(-(size << level) // TILE_PX) - 1)
        places.append(sorted({round(place) for place in np.linspace(max(first, 0), last, n)}))
    for row in places[1]:
        for column in places[0]:
            yield grid.tile(level, column, row, level)


def _quarters(grid: Grid, tile: Tile) -> Iterator[tuple[Tile, tuple[slice, slice]]]:
    """The tiles of the next level that a tile covers, and their places in it, in pixels of that level."""
    side = TILE_PX * tile.mpp
    column, row = (
        round((low - origin) / side) for low, origin in zip(tile.extent[:2], (grid.x0_um, grid.y0_um), strict=True)
    )
    for down in (0, 1):
        for right in (0, 1):
            if down * TILE_PX < 2 * tile.shape[0] and right * TILE_PX < 2 * tile.shape[1]:
                part = grid.tile(tile.level + 1, 2 * column + right, 2 * row + down, tile.level + 1)
                top, left = down * TILE_PX, right * TILE_PX
                yield part, (slice(top, top + part.shape[0]), slice(left, left + part.shape[1]))
