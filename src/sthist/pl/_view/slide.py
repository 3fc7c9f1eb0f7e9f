"""One sample as the viewer shows it: what its tiles, colours, names and regions are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sthist import _sample
from sthist._messages import plain
from sthist._settings import logger
from sthist._tables.rows import rows_of
from sthist.pl._base import mean_of_boxes, most_frequent_of_boxes
from sthist.pl._view.colours import (
    Colouring,
    Group,
    Source,
    colouring_of,
    find_sources,
    scores_of,
    settle_source,
)
from sthist.pl._view.grid import TILE_PX, Encoded, Grid, Kept, NoTile, indexed_png
from sthist.pl._view.molecules import Molecules
from sthist.pl._view.outlines import Outlines, borders
from sthist.pl._view.pictures import pictures_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from spatialdata import SpatialData

    from sthist.pl._base import Extent
    from sthist.pl._view.grid import Tile
    from sthist.pl._view.molecules import Dots
    from sthist.pl._view.pictures import Channel, Picture

Style = Literal["fill", "outline", "both"]
STYLES: tuple[Style, ...] = ("fill", "outline", "both")
OVERLAY_MPP = 0.1
"""Cells and dots are drawn as fine as that, also where the image is coarser."""

TILE_BYTES, RASTER_BYTES, COLOUR_BYTES = 64 * 2**20, 64 * 2**20, 96 * 2**20
DARK = np.array([[25, 25, 25]], np.uint8)
FEW_SHAPES = 20_000
MOST_VALUES, MOST_GENES, MOST_COLUMNS = 60, 8, 200
CMAPS = ("viridis", "magma", "inferno", "cividis", "turbo", "Reds", "Blues", "Greys", "coolwarm")


class Slide:
    """A sample that is open; nothing but its structure is read before it is asked for."""

    def __init__(self, sdata: SpatialData, images: Sequence[str] | None = None) -> None:
        _sample.require_one_sample(sdata)
        for key in images or ():
            _sample.get(sdata, "images", key)
        self.sdata = sdata
        self.pictures, self.notes = pictures_of(sdata, images)
        self.groups = {group.key: group for group in self._find_groups()}
        self._shapes = Kept(64, lambda _: 1)
        self._molecules = Kept(1, lambda _: 1)
        self._tiles = Kept(TILE_BYTES, lambda tile: len(tile.content) + 200)
        self._rasters = Kept(RASTER_BYTES, lambda raster: raster.nbytes)
        self._colours = Kept(COLOUR_BYTES, lambda colouring: colouring.n_bytes)
        self.grid = Grid.over(self._extent(), min((each.image.finest_mpp for each in self.pictures), default=0.5))
        self.depth = max([self.grid.level_of(OVERLAY_MPP), *(each.depth(self.grid) for each in self.pictures)])
        self.genes = self._molecule_genes()

    def describe(self) -> dict[str, Any]:
        """All that the page has to know at its start."""
        grid = self.grid
        return {
            "plane": {
                "x0": grid.x0_um,
                "y0": grid.y0_um,
                "width_um": grid.size_um[0],
                "width": grid.width,
                "height": grid.height,
                "mpp": grid.mpp,
                "levels": self.depth,
                "tile": TILE_PX,
            },
            "pictures": [picture.describe(grid) for picture in self.pictures],
            "groups": [_described(group) for group in self.groups.values()],
            "molecules": len(self.genes),
            "cmaps": CMAPS,
            "notes": self.notes,
        }

    def image_tile(self, key: str, level: int, column: int, row: int, channels: Sequence[Channel] = ()) -> Encoded:
        """A tile of an image."""
        picture = next((each for each in self.pictures if each.key == key), None)
        if picture is None:
            raise NoTile(f"There is no image {key!r}; there are {[each.key for each in self.pictures]}.")
        n = len(picture.image.channels)
        wrong = [channel.place for channel in channels if not 0 <= channel.place < n]
        if wrong:
            raise NoTile(f"Image {key!r} has no channel {wrong[0]}: it has {n}.")
        tile = self.grid.tile(level, column, row, picture.depth(self.grid))
        if not picture.rgb:
            channels = [each if each.high > each.low else self._limited(picture, each) for each in channels]
        made: Encoded = self._tiles.get((key, tile, tuple(channels)), lambda: picture.tile(self.grid, tile, channels))
        return made

    def limits(self, key: str, index: int) -> tuple[float, float]:
        """The automatic limits of a channel."""
        picture = next((each for each in self.pictures if each.key == key and not each.rgb), None)
        if picture is None or not 0 <= index < len(picture.image.channels):
            raise NoTile(f"There is no channel {index} of an image {key!r} in grey.")
        return picture.limits(self.grid, index)

    def region_tile(
        self,
        group: str,
        level: int,
        column: int,
        row: int,
        source: Source | None = None,
        *,
        vmin: float | None = None,
        vmax: float | None = None,
        cmap: str | None = None,
        hidden: frozenset[int] = frozenset(),
        style: Style = "fill",
    ) -> Encoded:
        """A tile of regions in their colours."""
        tile = self.grid.tile(level, column, row, self.depth)
        colouring = self.colouring(group, source, vmin=vmin, vmax=vmax, cmap=cmap, hidden=hidden)
        key = (group, tile, source, vmin, vmax, cmap, hidden, style)
        made: Encoded = self._tiles.get(key, lambda: self._paint(self.groups[group], colouring, tile, style))
        return made

    def molecule_tile(self, level: int, column: int, row: int, shown: Sequence[Dots], size_px: float) -> Encoded:
        """A tile of molecules."""
        tile = self.grid.tile(level, column, row, self.depth)
        molecules = self.molecules()
        made: Encoded = self._tiles.get(
            ("molecules", tile, tuple(shown), size_px), lambda: molecules.tile(tile, shown, size_px)
        )
        return made

    def colouring(
        self,
        group: str,
        source: Source | None,
        *,
        vmin: float | None = None,
        vmax: float | None = None,
        cmap: str | None = None,
        hidden: frozenset[int] = frozenset(),
    ) -> Colouring:
        """Which colour each region of a group has."""
        if group not in self.groups:
            raise NoTile(f"There are no regions {group!r}; there are {list(self.groups)}.")
        of_all: Colouring = self._colours.get((group, source), lambda: colouring_of(self.groups[group], source))
        if vmin is None and vmax is None and cmap is None and not hidden:
            return of_all
        limited: Colouring = self._colours.get(
            (group, source, vmin, vmax, cmap, hidden), lambda: of_all.limited(vmin, vmax, cmap).without(hidden)
        )
        return limited

    def settle(self, color: str, table: str | None = None, layer: str | None = None) -> Source:
        """What a name that colours regions stands for."""
        return settle_source(list(self.groups.values()), color, table, layer)

    def find(self, text: str, group: str | None = None) -> list[Source]:
        """What colours regions and has a text in its name."""
        return find_sources([each for key, each in self.groups.items() if group in (None, key)], text)

    def find_molecules(self, text: str, most: int = 60) -> list[str]:
        """Genes of the molecules that have a text in their names, those that begin with it first."""
        folded = text.casefold()
        found = [gene for gene in self.genes if folded in gene.casefold()]
        return sorted(found, key=lambda gene: (not gene.casefold().startswith(folded), len(gene)))[:most]

    def molecules(self) -> Molecules:
        """The molecules, read and sorted when they are first asked for."""

        def made() -> Molecules:
            molecules = Molecules(self.sdata)
            logger.info("The molecules are being sorted by gene; the first dots take a while.")
            molecules.sort()
            return molecules

        found: Molecules = self._molecules.get("all", made)
        return found

    def at(
        self, x: float, y: float, mpp: float, group: str | None = None, source: Source | None = None
    ) -> list[dict[str, Any]]:
        """The regions at a point in µm, those of a group first: their names, values and outlines."""
        order = sorted(self.groups.values(), key=lambda each: each.key != group)
        found: list[dict[str, Any]] = []
        for each in order:
            if each.key != group and found and len(each.row_of) > FEW_SHAPES:
                continue  # not worth reading the outlines of all
            outlines = self._outlines(each.shapes)
            place = outlines.at(x, y, 3 * mpp)
            if place is not None and each.row_of[place] >= 0:
                found.append(self._facts(each, outlines, place, source if each.key == group else None))
        return found

    def _facts(self, group: Group, outlines: Outlines, place: int, source: Source | None) -> dict[str, Any]:
        import shapely

        row = int(group.row_of[place])
        polygon = outlines.polygons(np.array([place]))[0]
        values = [[str(name), _text(group.frame[name].iloc[row])] for name in list(group.frame.columns)[:MOST_VALUES]]
        if source is not None and source.kind != "obs":
            one = group.values(source.kind, source.name, source.layer).iloc[row]
            values.insert(0, [source.name if source.layer is None else f"{source.name} ({source.layer})", _text(one)])
        middle = polygon.centroid
        return {
            "group": group.key,
            "shapes": group.shapes,
            "id": _text(outlines.names[place]),
            "x": middle.x,
            "y": middle.y,
            "area": polygon.area,
            "values": values,
            "genes": _highest(group, row),
            "outline": [
                shapely.get_coordinates(part.exterior).round(3).tolist()
                for part in shapely.get_parts(polygon)
                if part.geom_type == "Polygon"
            ],
        }

    def _limited(self, picture: Picture, channel: Channel) -> Channel:
        low, high = picture.limits(self.grid, channel.place)
        return channel._replace(low=low, high=high)

    def _paint(self, group: Group, colouring: Colouring, tile: Tile, style: Style) -> Encoded:
        outlines = self._outlines(group.shapes)
        if outlines.are_dots(tile.mpp):
            return indexed_png(self._dots(group, colouring, outlines, tile), colouring.palette)
        numbers = self._rasters.get((group.shapes, tile), lambda: outlines.numbers(tile))
        rows = np.append(group.row_of, -1)[numbers]
        places = colouring.places[rows[1:-1, 1:-1]]
        edges = borders(numbers) & (places > 0)
        if style == "outline":
            places = np.where(edges, places, 0)
        elif style == "both":
            places = np.where(edges, len(colouring.palette) + 1, places)
        return indexed_png(places, np.concatenate([colouring.palette, DARK]))

    def _dots(self, group: Group, colouring: Colouring, outlines: Outlines, tile: Tile) -> np.ndarray:
        """Regions that are too small to have a shape: the mean of those that lie at a pixel, or the usual class."""
        shapes, boxes = outlines.dots(tile)
        rows = group.row_of[shapes]
        if colouring.values is not None:
            values = np.append(colouring.values, np.nan)[rows]
            known = np.isfinite(values)
            return colouring.of_values(mean_of_boxes(boxes[known], values[known], tile.extent, tile.shape))
        codes = np.append(np.asarray(colouring.codes), -1)[rows]
        known = codes >= 0
        return most_frequent_of_boxes(boxes[known], codes[known], tile.extent, tile.shape) + 1

    def _outlines(self, shapes: str) -> Outlines:
        found: Outlines = self._shapes.get(shapes, lambda: Outlines(self.sdata, shapes))
        return found

    def _molecule_genes(self) -> list[str]:
        try:
            return Molecules(self.sdata).genes
        except (KeyError, ValueError) as error:
            if self.sdata.points:
                self._note(str(error.args[0]))
            return []

    def _find_groups(self) -> Iterator[Group]:
        """Tables whose rows are shapes in µm, that of the cells first; then shapes that have no table."""
        usual = _sample.find_cell_table(self.sdata)
        shown = set()
        for key in sorted(self.sdata.tables, key=lambda key: key != usual):
            table = self.sdata.tables[key]
            if "spatialdata_attrs" not in table.uns and _sample.cell_shapes(self.sdata, key) is None:
                continue
            try:
                rows = rows_of(self.sdata, key)
            except ValueError as error:
                self._note(str(error))
                continue
            if self._is_placed(rows.shapes):
                shown.add(rows.shapes)
                index = self.sdata.shapes[rows.shapes].index
                row_of, places = np.full(len(index), -1), index.get_indexer(rows.instances)
                there = np.flatnonzero(places >= 0)
                row_of[places[there]] = there
                yield Group(key, rows.shapes, table.obs, table, row_of)
        for key, frame in self.sdata.shapes.items():
            if key not in shown and len(frame) and self._is_placed(key):
                columns = [name for name in frame.columns if name not in ("geometry", "radius")]
                yield Group(key, key, frame[columns], None, np.arange(len(frame)))

    def _is_placed(self, shapes: str) -> bool:
        from spatialdata.transformations import get_transformation

        if _sample.UM in get_transformation(self.sdata.shapes[shapes], get_all=True):
            return True
        self._note(f"Shapes {shapes!r} are not registered in 'um'; give the scale once with pp.set_scale.")
        return False

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def _extent(self) -> Extent:
        extents = [each.image.extent_um for each in self.pictures]
        if not extents:
            outlines = [self._outlines(group.shapes).extent_um for group in self.groups.values()]
            extents = [extent for extent in outlines if extent is not None]
        if not extents:
            raise ValueError(
                "There is nothing to show: no image and no shapes of this sample are registered in 'um'. Give the "
                f"scale once with pp.set_scale. {_sample.describe('images', self.sdata.images)}"
            )
        corners = np.array(extents)
        return (*corners[:, :2].min(axis=0).tolist(), *corners[:, 2:].max(axis=0).tolist())


def _described(group: Group) -> dict[str, Any]:
    scores = [] if group.table is None else [str(key) for key in group.table.obsm if scores_of(group.table, key)]
    return {
        "key": group.key,
        "shapes": group.shapes,
        "n": int((group.row_of >= 0).sum()),
        "columns": [str(column) for column in group.frame.columns][:MOST_COLUMNS],
        "genes": 0 if group.table is None else group.table.n_vars,
        "layers": group.layers,
        "scores": [key for key in scores if key != "spatial"],
    }


def _highest(group: Group, row: int) -> list[list[str]]:
    """The genes that a row has most of."""
    matrix = None if group.table is None else group.table.X
    if matrix is None or group.table is None or not group.table.n_vars:
        return []
    one: Any = matrix[row]
    one = one.compute() if hasattr(one, "compute") else one
    one = np.asarray(one.toarray() if hasattr(one, "toarray") else one, np.float64).ravel()
    order = np.argsort(-np.nan_to_num(one), kind="stable")[:MOST_GENES]
    return [[str(group.table.var_names[i]), _text(one[i])] for i in order if one[i] > 0]


def _text(value: Any) -> str:
    value = plain(value)
    return f"{value:.5g}" if isinstance(value, float) else str(value)
