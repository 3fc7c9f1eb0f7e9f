"""An image that is opened: what is known of it, looked up once and carried."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist import _sample, scale
from sthist._imaging.colours import require_rgb8
from sthist.tiles._images.planes import Planes, first_last

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spatialdata import SpatialData

    from sthist.tiles._images.planes import Projection


@dataclass(frozen=True)
class Level:
    """A pyramid level, and how many level-0 pixels one of its pixels spans along y and x."""

    planes: Planes
    factor: tuple[float, float]

    def displacement(self) -> float:
        """How far, in level-0 pixels, its content may lie from where its size says (see :meth:`Field.level`)."""
        sizes = (self.planes.height, self.planes.width)
        return max(size * abs(factor - round(factor)) for size, factor in zip(sizes, self.factor, strict=True))


@dataclass(frozen=True, eq=False)
class Field:
    """One image element: its pyramid, finest level first, and the matrix from its level-0 pixels (x, y, 1) to µm."""

    key: str
    levels: tuple[Level, ...]
    to_um: np.ndarray
    channels: tuple[str, ...]

    @property
    def dtype(self) -> np.dtype:
        """Of the pixels."""
        return self.levels[0].planes.dtype

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of level 0."""
        return self.levels[0].planes.height, self.levels[0].planes.width

    def corners_um(self) -> np.ndarray:
        """The four corners in µm, (4, 2)."""
        height, width = self.size
        corners = np.array([[0, 0, 1], [width, 0, 1], [width, height, 1], [0, height, 1]], np.float64)
        return (corners @ self.to_um.T)[:, :2]

    def holds(self, places: np.ndarray) -> np.ndarray:
        """Which places, x and y in µm in the last axis, lie on it."""
        from_um = np.linalg.inv(self.to_um)
        height, width = self.size
        x, y = (places[..., 0] * a + places[..., 1] * b + c for a, b, c in from_um[:2])
        return np.asarray((x >= 0) & (x < width) & (y >= 0) & (y < height))

    def level(self, step: tuple[float, float]) -> Level:
        """The coarsest level not coarser than ``step`` level-0 pixels (y, x) per tile pixel.

        A level whose size does not divide level 0's exactly may have been made by cropping as well as by resampling,
        which places it differently: it is used only where the two agree to a quarter of a tile pixel.
        """
        best = self.levels[0]
        displacement = 0.0
        for level in self.levels[1:]:
            # A crop leaves its mark on some levels and displaces all: what is finer speaks for what is coarser.
            displacement = max(displacement, level.displacement())
            fine_enough = all(f <= s * 1.001 for f, s in zip(level.factor, step, strict=True))
            if fine_enough and displacement / min(step) < 0.25:
                best = level
        return best

    def select(self, channels: Sequence[str] | None, z: int | tuple[int, int] | None, projection: Projection) -> Field:
        """The same element with some of its channels, or planes of its stack."""
        chosen = self.channels if channels is None else tuple(channels)
        for channel in chosen:
            if channel not in self.channels:
                raise KeyError(f"Image {self.key!r} has no channel {channel!r}; it has {list(self.channels)}.")
        planes = self.levels[0].planes
        if z is not None and not 0 <= first_last(z)[0] <= first_last(z)[1] < planes.depth:
            raise ValueError(f"Image {self.key!r} has no plane z={z}: it has {planes.depth} (0 to {planes.depth - 1}).")
        indices = [planes.channels[self.channels.index(channel)] for channel in chosen]
        levels = tuple(Level(level.planes.select(indices, z, projection), level.factor) for level in self.levels)
        return Field(self.key, levels, self.to_um, chosen)


@dataclass(frozen=True, eq=False)
class Image:
    """An image that is opened by :func:`sthist.tiles.open_image`; no pixel is read yet.

    Attributes
    ----------
    fields
        The image elements that tile its plane: one, or several such as the fields of view of CosMx, of which the first
        counts where they overlap. Each has a ``key``, pyramid ``levels``, finest first, and ``to_um``, the (3, 3)
        matrix from its full-resolution pixels (x, y, 1) to µm.

    Raises
    ------
    ValueError
        If the elements differ in their channels or their type of pixel.
    """

    fields: tuple[Field, ...]

    def __post_init__(self) -> None:
        first = self.fields[0]
        for other in self.fields[1:]:
            if other.channels != first.channels or other.dtype != first.dtype:
                raise ValueError(
                    f"Images {first.key!r} and {other.key!r} do not tile one plane: channels {first.channels} of "
                    f"{first.dtype} against {other.channels} of {other.dtype}."
                )

    @property
    def key(self) -> str:
        """Key of the first element."""
        return self.fields[0].key

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of all elements."""
        return tuple(field.key for field in self.fields)

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the channels that are read."""
        return self.fields[0].channels

    @property
    def dtype(self) -> np.dtype:
        """Type of the pixels."""
        return self.fields[0].dtype

    @property
    def mpp(self) -> tuple[float, float]:
        """Micrometres per pixel along x and y, of the first element."""
        return scale.pixel_size(self.fields[0].to_um)

    @property
    def finest_mpp(self) -> float:
        """The smallest µm per pixel of any element, along x or y."""
        return min(min(scale.pixel_size(field.to_um)) for field in self.fields)

    @property
    def coarsest_mpp(self) -> float:
        """The largest µm per pixel of any element, along x or y."""
        return max(max(scale.pixel_size(field.to_um)) for field in self.fields)

    @property
    def extent_um(self) -> tuple[float, float, float, float]:
        """x0, y0, x1, y1 of the box around it, in µm."""
        corners = np.concatenate([field.corners_um() for field in self.fields])
        return (*corners.min(0).tolist(), *corners.max(0).tolist())

    def holds(self, places: np.ndarray) -> np.ndarray:
        """Which places, x and y in µm in the last axis, lie on one of its elements; a reader fills the rest."""
        return np.logical_or.reduce([field.holds(places) for field in self.fields])

    @property
    def is_rgb(self) -> bool:
        """Whether it has three channels of uint8, and no stack."""
        return len(self.channels) == 3 and self.dtype == np.uint8 and self.fields[0].levels[0].planes.depth == 1

    def select(
        self,
        channels: Sequence[str] | None = None,
        *,
        z: int | tuple[int, int] | None = None,
        projection: Projection = "max",
    ) -> Image:
        """The same image with some of its channels, or planes of its stack.

        Parameters
        ----------
        channels
            Names of the channels to read, in this order; all that it has by default.
        z
            A plane of an image stack, or the first and last of several; by default the whole stack is projected.
        projection
            ``"max"`` or ``"mean"``.
        """
        return Image(tuple(field.select(channels, z, projection) for field in self.fields))


def open_image(
    sdata: SpatialData,
    image: str | Sequence[str],
    *,
    channels: Sequence[str] | None = None,
    z: int | tuple[int, int] | None = None,
    projection: Projection = "max",
) -> Image:
    """Open an image: its pyramid, its place and scale in µm, and its channels, looked up once.

    Parameters
    ----------
    sdata
        The sample; the image registered in ``um``.
    image
        Key of the image; several keys, such as the fields of view of CosMx, are one image. Where no image has that key,
        also a role: ``"he"``, or ``"nuclear"`` for the nuclear stain, of which its channel alone is read unless
        ``channels`` names others.
    channels
        Names of the channels to read, in this order; all by default.
    z
        A plane of an image stack, or the first and last of several; by default the whole stack is projected.
    projection
        ``"max"`` or ``"mean"``.

    Returns
    -------
    The image, of which no pixel is read yet.

    Raises
    ------
    KeyError
        If there is no such image or channel.
    ValueError
        If it has no scale or no plane ``z``, if two sources of its scale disagree, or if the images differ in their
        channels or type of pixel.

    Examples
    --------
    >>> import sthist
    >>> sdata = sthist.datasets.toy(size_um=200)
    >>> sthist.tiles.open_image(sdata, "he").channels
    ('r', 'g', 'b')
    >>> stain = sthist.tiles.open_image(sdata, "nuclear")
    >>> stain.key, stain.mpp, stain.extent_um
    ('morphology_focus', (0.5, 0.5), (0.0, 0.0, 200.0, 200.0))
    """
    if image == "he" and image not in sdata.images:
        image = _sample.find_he(sdata)
    elif image == "nuclear" and image not in sdata.images:
        image, channel = _sample.find_nuclear(sdata)
        channels = [channel] if channels is None else channels
    fields = []
    for key in [image] if isinstance(image, str) else image:
        element = _sample.get(sdata, "images", key)
        try:
            to_um = scale.matrix_to(element)
        except KeyError:
            raise ValueError(
                f"Image {key!r} has no scale: give it once with pp.set_scale(sdata, {key!r}, mpp=...)."
            ) from None
        scale.resolve_mpp(sdata, key)  # whether all that states its scale agrees
        fields.append(field_of(element, key, to_um).select(channels, z, projection))
    return Image(tuple(fields))


def open_he(sdata: SpatialData, image: str | None = None) -> Image:
    """The H&E, opened: the one that is named, recorded by the reader, or the only image named like one."""
    he = open_image(sdata, _sample.find_he(sdata, image))
    require_rgb8(f"Image {he.key!r}", len(he.channels), he.dtype)
    return he


def field_of(element: Any, key: str, to_um: np.ndarray) -> Field:
    """An image element with all its channels, at a place of the caller's."""
    names = _sample.channel_names(element)
    arrays = pyramid(element)
    dims = tuple(str(dim) for dim in arrays[0].dims)
    height, width = arrays[0].sizes["y"], arrays[0].sizes["x"]
    levels = tuple(
        Level(Planes(array.data, dims, range(len(names))), (height / array.sizes["y"], width / array.sizes["x"]))
        for array in arrays
    )
    return Field(key, levels, to_um, tuple(names))


def image_of_array(array: np.ndarray, to_um: np.ndarray, key: str = "array") -> Image:
    """An array of (c, y, x) in memory, registered by its (x, y, 1) to µm matrix."""
    planes = Planes(array, ("c", "y", "x"), range(array.shape[0]))
    channels = tuple(map(str, range(array.shape[0])))
    return Image((Field(key, (Level(planes, (1.0, 1.0)),), np.asarray(to_um, np.float64), channels),))


def pyramid(element: Any) -> list[Any]:
    """The levels of an image as DataArrays, finest first; one for a single-scale image."""
    from xarray import DataTree

    if not isinstance(element, DataTree):
        return [element]
    return [next(iter(scale_node.data_vars.values())) for scale_node in element.children.values()]


def values_at(image: Image, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The full-resolution pixel under each place, of the first element of an image.

    Returns Float64 of shape (n, channels), NaN outside of the image; and bool of shape (n,), whether a place is on
    it. One chunk is in memory at a time.
    """
    planes = image.fields[0].levels[0].planes
    values = np.full((len(places), planes.shape[0]), np.nan)
    to_px = np.linalg.inv(image.fields[0].to_um)
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
