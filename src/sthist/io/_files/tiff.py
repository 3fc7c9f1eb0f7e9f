"""TIFF files of any kind, opened without reading their pixels, and what they say of their scale and channels."""

from __future__ import annotations

import re
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist._reading import reading, require_memory
from sthist._settings import logger
from sthist.io._files.colours import conversion_of, converted
from sthist.io._files.open_tiffs import FILES, MappedPixels

if TYPE_CHECKING:
    from collections.abc import Iterator

# tifffile's letters: channels, samples (colours), unknown and image sequences are all channels here.
TIFF_AXES = {"C": "c", "S": "c", "Q": "c", "I": "c", "Z": "z", "Y": "y", "X": "x"}
MAX_CHUNK_BYTES = 256 * 2**20  # a page that is one larger block can only be read whole
CHUNK_PX = 512
BYTES_OF_A_BLOCK = 4000  # in the lists of dask, with those of a pyramid

UPRIGHT = 1
ORIENTATIONS = range(1, 9)
# TIFF's ExtraSamples that are transparency, and whether the colours are multiplied by it already.
ALPHA = {1: True, 2: False}
LARGE_PX = 1000  # images of a file whose sides are longer are worth a word when another one is taken
# µm by the names of units in OME and in ImageJ.
UNIT_UM = (
    {"m": 1e6, "cm": 1e4, "mm": 1e3, "nm": 1e-3, "in": 25400.0, "inch": 25400.0, "\u00c5": 1e-4, "\u212b": 1e-4}
    # the second is the Greek letter, the third as ImageJ writes it
    | dict.fromkeys(("µm", "\u03bcm", "\\u00B5m", "um", "micron", "microns"), 1.0)
)
RESOLUTION_UNIT_UM = {2: 25400.0, 3: 10000.0}  # TIFF's ResolutionUnit: inch, centimetre
# Resolution tags outside of this are a printer's (72 dpi is 353 µm/px), not a microscope's.
PLAUSIBLE_MPP = (0.05, 20.0)


class TiffLevel:
    """One pyramid level of a TIFF file as an array of (c, y, x) or (c, z, y, x), read window by window.

    It holds no open file: it can be pickled, and there may be any number of them.
    """

    def __init__(self, path: Path, level: int = 0, series: int | None = None) -> None:
        import tifffile

        self._path, self._level = Path(path).resolve(), level
        with tifffile.TiffFile(self._path) as file:
            self._series = main_series(file) if series is None else series
            stored = file.series[self._series].levels[level]
            pixels: Any = MappedPixels.of(stored)
            self._mapped = pixels is not None
            if pixels is None:
                import zarr

                pixels = zarr.open_array(file.series[self._series].aszarr(level=level), mode="r")
            axes, extra = stored.axes, stored.keyframe.extrasamples
            self._conversion = conversion_of(self._path, stored.keyframe)
            self._stored, self._blocks = tuple(pixels.shape), tuple(pixels.chunks)
            self.dtype = np.dtype(pixels.dtype).newbyteorder("=")
        if 0 in (*self._stored, *self._blocks):
            raise ValueError(f"{path} has {axes} {self._stored} in blocks of {self._blocks}: nothing. Is it damaged?")
        kept = [i for i, (axis, n) in enumerate(zip(axes, self._stored, strict=True)) if n > 1 or axis in "YX"]
        names = [TIFF_AXES.get(axes[i], axes[i]) for i in kept]
        if len(set(names)) < len(names) or not {"y", "x"} <= set(names) <= {"c", "z", "y", "x"}:
            raise ValueError(
                f"the axes of {path} are {axes} {self._stored}; one each of channels, z, y and x can be read."
            )
        self.dims = ("c", "z", "y", "x") if "z" in names else ("c", "y", "x")
        self._axis = {name: kept[names.index(name)] for name in names}
        n_colours = self._stored[self._axis["c"]] if "c" in names else 1
        self._alpha: bool | None = None
        if "c" in names and axes[self._axis["c"]] == "S":
            if n_colours == 4 and extra and self.dtype.kind == "u":
                self._alpha = ALPHA.get(int(extra[0]))
            n_colours = min(3, n_colours)
        self.shape = tuple(n_colours if dim == "c" else self._stored[self._axis[dim]] for dim in self.dims)
        self.ndim = len(self.shape)

    @property
    def chunks(self) -> tuple[int, ...]:
        """Whole blocks of the file, at least 512 pixels a side; all channels and planes together."""
        return tuple(self._chunk(dim, n) for dim, n in zip(self.dims, self.shape, strict=True))

    def _chunk(self, dim: str, length: int) -> int:
        if dim in "cz":
            return length
        block = self._blocks[self._axis[dim]]
        return min(length, block * max(1, round(CHUNK_PX / block)))

    @property
    def block_bytes(self) -> int:
        """Memory that the smallest part takes which the file can be read in."""
        return int(np.prod(self._blocks)) * self.dtype.itemsize

    def __getitem__(self, index: tuple[slice | int, ...]) -> np.ndarray:
        # The smallest box around what is asked for is read; numpy does the rest (single planes, steps).
        box, within = (list(part) for part in zip(*map(_box_and_rest, index, self.shape), strict=True))
        if self._alpha is not None or self._conversion == "ycbcr":
            box[0], within[0] = slice(0, self._stored[self._axis["c"]]), index[0]
        stored = [slice(0, 1)] * len(self._stored)
        for dim, part in zip(self.dims, box, strict=True):
            if dim in self._axis:
                stored[self._axis[dim]] = part
        block = self._read(tuple(stored))
        order = [self._axis[dim] for dim in self.dims if dim in self._axis]
        block = block.transpose([*(i for i in range(block.ndim) if i not in order), *order])
        block = block.reshape(block.shape[block.ndim - len(order) :])
        block = converted(block, self._conversion)
        if self._alpha is not None:
            block = on_white(block, multiplied=self._alpha)
        return (block if "c" in self._axis else block[None])[tuple(within)]

    def _read(self, box: tuple[slice, ...]) -> np.ndarray:
        """A box of what is stored; what decoders raise at damaged tiles names the file and the place."""
        with reading(self._path):
            try:
                with FILES.pixels(self._path, self._series, self._level, self._mapped) as pixels:
                    if tuple(pixels.shape) == self._stored:
                        return np.array(pixels[box], self.dtype)
            except (
                ValueError,
                RuntimeError,
                zlib.error,
                struct.error,
            ) as error:  # imagecodecs' errors are RuntimeErrors
                y, x = (box[self._axis[dim]].start for dim in "yx")
                raise ValueError(
                    f"{self._path} cannot be decoded at (x, y) = ({x}, {y}) of level {self._level}: {error}. Is it "
                    "damaged?"
                ) from None
        raise ValueError(
            f"{self._path} has been replaced by an image of another size since it was opened; read it again."
        )


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


def on_white(pixels: Any, *, multiplied: bool = False) -> Any:
    """Three colours of (4, ...) pixels in front of white: what is transparent is no dark tissue."""
    wide = np.uint32 if pixels.dtype.itemsize < 4 else np.float64
    top = int(np.iinfo(pixels.dtype).max)
    colours, opacity = pixels[:3].astype(wide), pixels[3:4].astype(wide)
    if not multiplied:
        colours = (colours * opacity + top // 2) // top
    return (colours + (top - opacity)).clip(0, top).astype(pixels.dtype)


def open_tiff(
    path: Path, *, read: bool = True
) -> tuple[list[Any], tuple[str, ...], dict[str, float], list[str] | None]:
    """The levels of a TIFF's largest image, lazily, its axes, its µm/px by source, and its channels' names."""
    import tifffile

    with reading(path):
        require_ending(path)
        with tifffile.TiffFile(path) as file:
            number = main_series(file)
            series = file.series[number]
            _require_codec(path, series.keyframe.compression)
            _require_planes(path, file, series)
            _require_whole(path, series)
            _require_upright(path, series.keyframe)
            mpp, channels = stated_scale(file, number), ome_scale_and_channels(file, number)[1]
            n_levels = len(series.levels)
        levels = [TiffLevel(path, level, number) for level in range(n_levels)]
        for level in levels:
            _require_fitting(path, level, read)
    arrays = list(_arrays(levels, read))
    same = [array for array in arrays if array.shape[:-2] == arrays[0].shape[:-2]]
    return same, levels[0].dims, mpp, channels


def _require_fitting(path: Path, level: TiffLevel, read: bool) -> None:
    """Refuse a level that takes all memory: one that can only be read whole, or of more blocks than can be listed."""
    size = " x ".join(map(str, level.shape[:-3:-1]))
    if level.block_bytes > MAX_CHUNK_BYTES:
        if read:
            require_memory(path, float(np.prod(level.shape)) * level.dtype.itemsize, f"{size} px in one piece")
    else:
        n_blocks = float(np.prod([np.ceil(n / side) for n, side in zip(level.shape, level.chunks, strict=True)]))
        require_memory(path, n_blocks * BYTES_OF_A_BLOCK, f"{size} px, in lists of {n_blocks:.0f} blocks")


def require_ending(path: Path) -> None:
    """Refuse a TIFF whose directories, which form a chain, lead back to an earlier one: reading it takes for ever."""
    with path.open("rb") as file:
        head = file.read(16)
        order = {b"II": "<", b"MM": ">"}.get(head[:2])
        if order is None or len(head) < 16 or path.suffix.lower() == ".ndpi":  # which has offsets of its own kind
            return
        big = struct.unpack(order + "H", head[2:4])[0] == 43
        place, number = ("Q", "Q") if big else ("I", "H")
        entry, size = (20, 8) if big else (12, 4)
        offset = struct.unpack(order + place, head[8:16] if big else head[4:8])[0]
        seen: set[int] = set()
        while offset:
            if offset in seen:
                raise ValueError(
                    f"{path} is damaged: its directory {len(seen)} points back to one before it, so that it has no "
                    "end. Copy or export it again."
                )
            seen.add(offset)
            file.seek(offset)
            width = struct.calcsize(number)
            content = file.read(width)
            if len(content) < width:
                return
            file.seek(entry * struct.unpack(order + number, content)[0], 1)
            content = file.read(size)
            if len(content) < size:
                return
            offset = struct.unpack(order + place, content)[0]


def _arrays(levels: list[TiffLevel], read: bool) -> Iterator[Any]:
    import dask.array as da

    for level in levels:
        if read and level.block_bytes > MAX_CHUNK_BYTES:  # read once, as it can only be read whole
            yield da.from_array(level[(slice(None),) * level.ndim], chunks=level.chunks)
        else:
            yield da.from_array(level, chunks=level.chunks, meta=np.empty((0,) * level.ndim, level.dtype))


def _require_codec(path: Path, compression: int) -> None:
    from importlib.util import find_spec

    if compression in {1, 8, 32946}:  # none, deflate: what tifffile decodes by itself
        return
    if find_spec("imagecodecs") is None:
        raise ImportError(
            f'{path} is compressed as slide scanners do; to read it, install the extra: pip install "sthist[wsi]".'
        )


def _require_planes(path: Path, file: Any, series: Any) -> None:
    """Refuse an image of which planes are not there: an OME-TIFF may be spread over files that name each other."""
    n_missing = sum(page is None for page in series.levels[0].pages)
    if not n_missing:
        return
    import xml.etree.ElementTree as ET

    named = [] if not file.ome_metadata else ET.fromstring(file.ome_metadata).findall(".//{*}UUID[@FileName]")
    names = dict.fromkeys(uuid.attrib["FileName"] for uuid in named)
    lost = [name for name in names if not (Path(path).parent / name).is_file()]
    where = f" in {', '.join(lost[:4])}{' ...' if len(lost) > 4 else ''}" if lost else ""
    raise ValueError(
        f"{path} is one of several files of an image: {n_missing} of its {len(series.levels[0].pages)} planes are not "
        f"there; they should be{where or ' in other files'}, in the same folder. Copy all files of the image, under "
        "the names that they were written with."
    )


def _require_whole(path: Path, series: Any) -> None:
    """Refuse a file whose pixels end before its directory says; tiles lie in any order."""
    for level in series.levels:
        for page in level.pages:
            if page is None:
                continue
            _require_parts(path, page)
            if not page.dataoffsets:
                continue
            end = int((np.array(page.dataoffsets, np.int64) + np.array(page.databytecounts, np.int64)).max())
            if len(level.pages) == 1 and level.dataoffset is not None:
                end = max(end, level.dataoffset + level.nbytes)  # planes that ImageJ lists no pages of
            stored = page.parent.filehandle  # an OME-TIFF may be spread over several files
            if end > stored.size:
                where = path if stored.name == Path(path).name else stored.path
                raise ValueError(
                    f"{where} is truncated: it has {stored.size} bytes, but its pixels should end at {end}."
                )


def _require_parts(path: Path, page: Any) -> None:
    """Refuse a page without its strips, or without all of its tiles; say where single tiles are left out.

    Some scanners leave out tiles without tissue; what is read there is black.
    """
    page = page if hasattr(page, "tags") else page.keyframe
    stored = np.array(page.dataoffsets, np.int64), np.array(page.databytecounts, np.int64)
    n = min(map(len, stored))
    n_lacking = int(((stored[0][:n] == 0) | (stored[1][:n] == 0)).sum()) + max(0, _n_parts(page) - n)
    if not n_lacking:
        return
    n_all = max(n, _n_parts(page))
    what = f"{path} lacks {n_lacking} of the {n_all} {'tiles' if page.is_tiled else 'strips'} that its header states"
    if n_lacking == n_all or not page.is_tiled:
        raise ValueError(f"{what}. Is it damaged, or copied in part? Copy or export it again.")
    message = f"{what}; they are read as black. Is it damaged, or were they left out as they show no tissue?"
    logger.warning("%s", message)


def _n_parts(page: Any) -> int:
    """Number of strips or tiles that a page of its size has; 0 where it cannot be told."""
    if page.is_contiguous or 0 in page.chunks:
        return 0
    return int(np.prod(page.chunked))


def _require_upright(path: Path, page: Any) -> None:
    """Refuse a picture that is to be shown turned: coordinates would not fit what is stored."""
    tag = page.tags.get("Orientation")
    if tag is not None and int(tag.value) != UPRIGHT and int(tag.value) in ORIENTATIONS:
        raise ValueError(
            f"{path} has the Orientation {int(tag.value)} (TIFF tag 274): it is stored turned or mirrored. Save it "
            "upright, with Orientation 1, for example with 'vips autorot' or 'magick -auto-orient'."
        )


def main_series(file: Any) -> int:
    """Number of the image of a TIFF that has the most pixels: others are labels, overviews and thumbnails."""
    sides = [[n for axis, n in zip(image.axes, image.shape, strict=True) if axis in "YX"] for image in file.series]
    best = max(range(len(sides)), key=lambda i: (len(sides[i]) == 2, int(np.prod(sides[i])), -i))
    large = [i for i, side in enumerate(sides) if len(side) == 2 and min(side) > LARGE_PX]
    if len(large) > 1:
        name, (height, width) = file.series[best].name, sides[best]
        logger.info(
            f"{file.filename} has {len(large)} large images; number {best} ({name!r}, {width} x {height} px) is taken, "
            "which has the most pixels."
        )
    return best


def stated_scale(file: Any, series: int) -> dict[str, float]:
    """µm/px of a TIFF by source: OME, else the vendor's text, else the resolution tags."""
    stated = ome_scale_and_channels(file, series)[0]
    if stated:
        return stated
    page = file.series[series].keyframe
    aperio = re.search(r"\bMPP\s*=\s*([^|\r\n]*)", page.description or "") if file.is_svs else None
    if aperio:
        return {"MPP of the Aperio description": number(aperio.group(1))}
    if file.is_imagej:
        unit_um = UNIT_UM.get(str((file.imagej_metadata or {}).get("unit", "")))
        return _resolution_tags(page, unit_um, "ImageJ") if unit_um is not None else {}
    unit = page.tags.get("ResolutionUnit")
    return _resolution_tags(page, RESOLUTION_UNIT_UM.get(int(unit.value)) if unit is not None else None, "TIFF")


def number(text: str) -> float:
    """A number as scanners write it, also with a decimal comma; NaN for what is none."""
    text = text.strip()
    try:
        return float(text.replace(",", ".") if text.count(",") == 1 and "." not in text else text)
    except ValueError:
        return float("nan")


def _resolution_tags(page: Any, unit_um: float | None, writer: str) -> dict[str, float]:
    """From pixels per unit."""
    stated = {}
    for axis in "XY":
        tag = page.tags.get(f"{axis}Resolution")
        if tag is None or unit_um is None or 0 in tag.value:
            continue
        mpp = unit_um * tag.value[1] / tag.value[0]
        if PLAUSIBLE_MPP[0] <= mpp <= PLAUSIBLE_MPP[1]:
            stated[f"{writer} {axis}Resolution"] = mpp
    return stated


def ome_scale_and_channels(file: Any, series: int) -> tuple[dict[str, float], list[str] | None]:
    """µm/px and channel names from a TIFF's OME metadata; nothing where it has none."""
    pixels = _ome_pixels(file, series)
    if pixels is None:
        return {}, None
    sizes = {}
    for axis in "XY":
        if f"PhysicalSize{axis}" in pixels.attrib:
            unit = UNIT_UM.get(pixels.attrib.get(f"PhysicalSize{axis}Unit", "µm"))
            if unit is not None:
                sizes[f"OME PhysicalSize{axis}"] = number(pixels.attrib[f"PhysicalSize{axis}"]) * unit
    names = [channel.attrib.get("Name", "") for channel in pixels.findall("{*}Channel")]
    return sizes, names if names and all(names) else None


def _ome_pixels(file: Any, series: int) -> Any:
    """The Pixels of the image's own number, if they are of its size, else the first that are."""
    import xml.etree.ElementTree as ET

    if not file.ome_metadata:
        return None
    every = ET.fromstring(file.ome_metadata).findall(".//{*}Pixels")
    image = file.series[series]
    sides = dict(zip(image.axes, image.shape, strict=True))
    size = {"SizeX": str(sides.get("X")), "SizeY": str(sides.get("Y"))}
    candidates = every[series : series + 1] + every
    return next(
        (pixels for pixels in candidates if all(pixels.attrib.get(k) == n for k, n in size.items())),
        every[0] if len(every) == 1 else None,
    )
