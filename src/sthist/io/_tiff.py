"""TIFF files of any kind, opened without reading their pixels."""

from __future__ import annotations

import re
import struct
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

TIFF_AXES = {"C": "c", "S": "c", "Q": "c", "I": "c", "Z": "z", "Y": "y", "X": "x"}
"""tifffile's letters: channels, samples (colours), unknown and image sequences are all channels here."""

UNIT_UM = {"m": 1e6, "cm": 1e4, "mm": 1e3, "µm": 1.0, "\u03bcm": 1.0, "um": 1.0, "micron": 1.0, "nm": 1e-3}

MAX_CHUNK_BYTES = 256 * 2**20
"""A page that is one larger block can only be read whole."""

CHUNK_PX = 512
RESOLUTION_UNIT_UM = {2: 25400.0, 3: 10000.0}
"""TIFF's ResolutionUnit: inch, centimetre."""

PLAUSIBLE_MPP = (0.05, 20.0)
"""Resolution tags outside of this are a printer's (72 dpi is 353 µm/px), not a microscope's."""


class TiffLevel:
    """One pyramid level of a TIFF file as an array of (c, y, x) or (c, z, y, x), read window by window.

    It pickles as a path, so that other processes open the file themselves.

    Parameters
    ----------
    path
        The file.
    level
        0 is the finest.

    Raises
    ------
    ValueError
        If the axes cannot be told.
    """

    def __init__(self, path: Path, level: int = 0) -> None:
        import tifffile
        import zarr

        self._path, self._level = path, level
        file = tifffile.TiffFile(path)
        weakref.finalize(self, file.close)
        series = file.series[0]
        self._pixels: Any = zarr.open_array(series.aszarr(level=level), mode="r")
        axes = series.levels[level].axes
        shape: tuple[int, ...] = self._pixels.shape
        kept = [i for i, (axis, n) in enumerate(zip(axes, shape, strict=True)) if n > 1 or axis in "YX"]
        names = [TIFF_AXES.get(axes[i], axes[i]) for i in kept]
        if len(set(names)) < len(names) or not {"y", "x"} <= set(names) <= {"c", "z", "y", "x"}:
            msg = f"the axes of {path} are {axes} {shape}; one each of channels, z, y and x can be read."
            raise ValueError(msg)
        self.dims = ("c", "z", "y", "x") if "z" in names else ("c", "y", "x")
        self._axis = {name: kept[names.index(name)] for name in names}
        n_colours = shape[self._axis["c"]] if "c" in names else 1
        if "c" in names and axes[self._axis["c"]] == "S":
            n_colours = min(3, n_colours)  # transparency says nothing of tissue
        self.shape = tuple(n_colours if dim == "c" else shape[self._axis[dim]] for dim in self.dims)
        self.dtype, self.ndim = self._pixels.dtype, len(self.shape)

    def __reduce__(self) -> tuple[Any, ...]:
        return TiffLevel, (self._path, self._level)

    @property
    def chunks(self) -> tuple[int, ...]:
        """Whole blocks of the file, at least 512 pixels a side; all channels and planes together."""
        return tuple(self._chunk(dim, n) for dim, n in zip(self.dims, self.shape, strict=True))

    def _chunk(self, dim: str, length: int) -> int:
        if dim in "cz":
            return length
        block = self._pixels.chunks[self._axis[dim]]
        return min(length, block * max(1, round(CHUNK_PX / block)))

    @property
    def block_bytes(self) -> int:
        """Memory that the smallest part takes which the file can be read in."""
        return int(np.prod(self._pixels.chunks)) * self.dtype.itemsize

    def __getitem__(self, index: tuple[slice | int, ...]) -> np.ndarray:
        # The smallest box around what is asked for is read; numpy does the rest (single planes, steps).
        box, within = zip(*(_box_and_rest(i, n) for i, n in zip(index, self.shape, strict=True)), strict=True)
        stored = [slice(0, 1)] * self._pixels.ndim
        for dim, part in zip(self.dims, box, strict=True):
            if dim in self._axis:
                stored[self._axis[dim]] = part
        block = np.asarray(self._pixels[tuple(stored)])
        order = [self._axis[dim] for dim in self.dims if dim in self._axis]
        block = block.transpose([*(i for i in range(block.ndim) if i not in order), *order])
        block = block.reshape(block.shape[block.ndim - len(order) :])
        return (block if "c" in self._axis else block[None])[within]


def _box_and_rest(index: slice | int, length: int) -> tuple[slice, slice | int]:
    """The contiguous range that an index touches, and the index within it."""
    if isinstance(index, slice):
        touched = range(length)[index]
        if len(touched) == 0:
            return slice(0, 0), slice(None)
        low, high = min(touched[0], touched[-1]), max(touched[0], touched[-1])
        return slice(low, high + 1), slice(None, None, touched.step)
    place = range(length)[index]
    return slice(place, place + 1), 0


def open_tiff(path: Path) -> tuple[list[Any], tuple[str, ...], dict[str, float], list[str] | None]:
    """The levels of a TIFF's first image, lazily, its axes, its µm/px by source, and its channels' names.

    Parameters
    ----------
    path
        TIFF, OME-TIFF, or a vendor's slide that is a TIFF (SVS, NDPI, SCN, ...).

    Raises
    ------
    ImportError
        If its compression needs the extra ``wsi``.
    ValueError
        If it is no TIFF, is truncated, or its axes cannot be told.
    """
    import dask.array as da
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            _require_codec(path, file.series[0].keyframe.compression)
            _require_whole(path, file)
            mpp, channels = stated_scale(file), ome_scale_and_channels(file)[1]
            n_levels = len(file.series[0].levels)
    except (tifffile.TiffFileError, IndexError, struct.error) as error:
        msg = f"{path} is no TIFF file that can be read: {error}. Is it truncated?"
        raise ValueError(msg) from None
    levels = [TiffLevel(path, level) for level in range(n_levels)]
    # What can only be read whole is read once; everything else stays on disk.
    arrays = [
        da.from_array(level, chunks=level.chunks, meta=np.empty((0,) * level.ndim, level.dtype))
        if level.block_bytes <= MAX_CHUNK_BYTES
        else da.from_array(level[(slice(None),) * level.ndim], chunks=level.chunks)
        for level in levels
    ]
    same = [array for array in arrays if array.shape[:-2] == arrays[0].shape[:-2]]
    return same, levels[0].dims, mpp, channels


def _require_codec(path: Path, compression: int) -> None:
    from importlib.util import find_spec

    if compression in {1, 8, 32946}:  # none, deflate: what tifffile decodes by itself
        return
    if find_spec("imagecodecs") is None:
        msg = f'{path} is compressed as slide scanners do; to read it, install the extra: pip install "sthist[wsi]".'
        raise ImportError(msg)


def _require_whole(path: Path, file: Any) -> None:
    """Refuse a file whose pixels end before its directory says."""
    size = path.stat().st_size
    for level in file.series[0].levels:
        for page in level.pages:
            if page is not None and page.dataoffsets and page.dataoffsets[-1] + page.databytecounts[-1] > size:
                end = page.dataoffsets[-1] + page.databytecounts[-1]
                msg = f"{path} is truncated: it has {size} bytes, but its pixels should end at {end}."
                raise ValueError(msg)


def stated_scale(file: Any) -> dict[str, float]:
    """µm/px of a TIFF by source: OME, else the vendor's text, else the resolution tags.

    Parameters
    ----------
    file
        A ``tifffile.TiffFile``.
    """
    stated = ome_scale_and_channels(file)[0]
    if stated:
        return stated
    page = file.series[0].keyframe
    aperio = re.search(r"\bMPP\s*=\s*([0-9.]+)", page.description or "") if file.is_svs else None
    if aperio:
        return {"MPP of the Aperio description": float(aperio.group(1))}
    return _resolution_tags(page)


def _resolution_tags(page: Any) -> dict[str, float]:
    unit = page.tags.get("ResolutionUnit")
    stated = {}
    for axis in "XY":
        tag = page.tags.get(f"{axis}Resolution")
        if tag is None or unit is None or int(unit.value) not in RESOLUTION_UNIT_UM or 0 in tag.value:
            continue
        mpp = RESOLUTION_UNIT_UM[int(unit.value)] * tag.value[1] / tag.value[0]
        if PLAUSIBLE_MPP[0] <= mpp <= PLAUSIBLE_MPP[1]:
            stated[f"TIFF {axis}Resolution"] = mpp
    return stated


def ome_scale_and_channels(file: Any) -> tuple[dict[str, float], list[str] | None]:
    """µm/px and channel names from a TIFF's OME metadata; nothing where it has none.

    Parameters
    ----------
    file
        A ``tifffile.TiffFile``.
    """
    import xml.etree.ElementTree as ET

    if not file.ome_metadata:
        return {}, None
    pixels = ET.fromstring(file.ome_metadata).find(".//{*}Pixels")
    if pixels is None:
        return {}, None
    sizes = {}
    for axis in "XY":
        if f"PhysicalSize{axis}" in pixels.attrib:
            unit = UNIT_UM.get(pixels.attrib.get(f"PhysicalSize{axis}Unit", "µm"))
            if unit is not None:
                sizes[f"OME PhysicalSize{axis}"] = float(pixels.attrib[f"PhysicalSize{axis}"]) * unit
    names = [channel.attrib.get("Name", "") for channel in pixels.findall("{*}Channel")]
    return sizes, names if names and all(names) else None
