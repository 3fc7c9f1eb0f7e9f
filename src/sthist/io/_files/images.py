"""Images from files and arrays, as elements of a SpatialData."""

from __future__ import annotations

import threading
import zlib
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist._reading import reading, require_file, require_memory
from sthist.io._files.tiff import on_white, open_tiff

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

TIFF_SUFFIXES = {".tif", ".tiff", ".btf", ".tf8", ".svs", ".ndpi", ".scn", ".qptiff", ".bif"}
CHUNK_PX = 512
PICTURE_MODES = {"L", "RGB", "RGBA", "I;16", "I;16B", "I;16L", "F"}
DEEP = "I"  # 32 bits, in which Pillow also opens 16
BLOCK_BYTES = 2**20
ORIENTATION_TAG = 274
COARSEST_PX = 1024  # pyramids end where the longer side is at most this


@dataclass(frozen=True)
class LooseImage:
    """An image that is no element yet."""

    pixels: Any  # array; axes as in dims. A dask array where the file is read lazily.
    dims: tuple[str, ...]  # of c, z, y, x
    mpp: dict[str, float]  # µm/px by the source that states it
    channels: list[str] | None = None  # names, where the file has them
    coarser: tuple[Any, ...] = ()  # further levels of the file's own pyramid


def read_image(source: Any, name: str) -> LooseImage:
    """A path or an array as an image; TIFF files are opened, not read."""
    if not isinstance(source, str | Path):
        return _from_array(source if hasattr(source, "shape") else np.asarray(source), name)
    path = Path(source)
    require_file(path, f"Image {name!r}")
    if path.suffix.lower() not in TIFF_SUFFIXES:
        return _from_array(_read_picture(path, name), name)
    try:
        levels, dims, mpp, channels = open_tiff(path)
    except ValueError as error:
        raise ValueError(f"Image {name!r}: {error}") from None
    return LooseImage(levels[0], dims, mpp, channels, tuple(levels[1:]))


def _from_array(array: Any, name: str) -> LooseImage:
    shape = array.shape
    if len(shape) not in {2, 3, 4}:
        raise ValueError(
            f"Image {name!r} has shape {shape}; it should be (y, x), (y, x, 3), (c, y, x) or (c, z, y, x)."
        )
    if len(shape) == 2:
        array = array[None]
    elif len(shape) == 3 and shape[2] in {3, 4} and shape[0] > 4:
        array = array.transpose(2, 0, 1)
        array = on_white(array) if len(array) == 4 and array.dtype.kind == "u" else array[:3]
    return LooseImage(array, ("c", "z", "y", "x") if len(shape) == 4 else ("c", "y", "x"), {})


def _read_picture(path: Path, name: str) -> np.ndarray:
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with reading(path), any_size(), Image.open(path) as opened:
            require_fitting(path, opened)
            if opened.format == "PNG":
                require_checksums(path)
            turned = orientation(opened) != 1
            picture = ImageOps.exif_transpose(opened) if turned else opened
            if picture.mode in PICTURE_MODES:
                return np.asarray(picture)
            if picture.mode == DEEP:
                pixels = np.asarray(picture)
                deep = pixels.size == 0 or pixels.min() < 0 or pixels.max() > np.iinfo(np.uint16).max
                return pixels if deep else pixels.astype(np.uint16)
            try:
                return np.asarray(picture.convert("RGBA" if picture.has_transparency_data else "RGB"))
            except ValueError as error:
                msg = f"{path} cannot be shown as RGB: {error}. Save it as RGB of 8 bits."
                raise ValueError(msg) from None
    except ValueError as error:
        if isinstance(error.__cause__, UnidentifiedImageError):
            raise ValueError(f"Image {name!r}: {path} is no picture that Pillow can read.") from None
        raise ValueError(f"Image {name!r}: {error}") from None


def require_checksums(path: Path) -> None:
    """Refuse a PNG of which a part is not what was written: Pillow shows what it can, and fills up with black."""
    with path.open("rb") as file:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            length, place = int.from_bytes(head[:4], "big"), file.tell()
            total = zlib.crc32(head[4:])
            while length:
                block = file.read(min(length, BLOCK_BYTES))
                if not block:
                    return  # Pillow says that it is truncated
                total, length = zlib.crc32(block, total), length - len(block)
            if file.read(4) != total.to_bytes(4, "big"):
                raise ValueError(
                    f"{path} is damaged: the checksum of the part at byte {place} is wrong. Copy it again."
                )
            if head[4:] == b"IEND":
                return


def require_fitting(path: Path, picture: Any) -> None:
    """Refuse an opened picture that would fill the memory: it is unpacked as a whole."""
    width, height = picture.size
    require_memory(path, width * height * len(picture.getbands()), f"{width} x {height} px in one piece")


_guards = threading.Lock()
_lifted: list[Any] = []  # Pillow's limit, once for each that is lifting it


@contextmanager
def any_size() -> Iterator[None]:
    """Open pictures of any size: a slide is larger than Pillow's guard allows, which is one for all threads."""
    from PIL import Image

    with _guards:
        _lifted.append(_lifted[0] if _lifted else Image.MAX_IMAGE_PIXELS)
        Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        with _guards:
            limit = _lifted.pop()
            if not _lifted:
                Image.MAX_IMAGE_PIXELS = limit


def orientation(picture: Any) -> int:
    """How a picture is to be turned before it is shown (EXIF's 1 to 8), from its header alone."""
    # Where the header has none, Pillow would decode a whole PNG to look for it behind the pixels.
    if not {"exif", "xmp", "Raw profile type exif"} & set(picture.info):
        return 1
    stated = int(picture.getexif().get(ORIENTATION_TAG, 1))
    return stated if 1 <= stated <= 8 else 1


def image_element(
    loose: LooseImage, transformations: Mapping[str, Any], *, channels: Sequence[str] | None = None, name: str
) -> Any:
    """An image as an element: with the pyramid that its file has, or one of halves where it is large."""
    from spatialdata.models import Image2DModel, Image3DModel

    names = _channel_names(loose, channels, name)
    size = max(loose.pixels.shape[-2:])
    model = Image3DModel if "z" in loose.dims else Image2DModel
    if loose.coarser and "z" not in loose.dims and 2 * max(loose.coarser[0].shape[-2:]) > size / 4:
        return _with_own_pyramid(loose, names, transformations)
    n_levels = 0 if "z" in loose.dims else max(0, int(np.ceil(np.log2(size / COARSEST_PX))))
    # What is lazy keeps its blocks: smaller ones would have each of them decoded again and again.
    sides = loose.pixels.chunksize[-2:] if hasattr(loose.pixels, "dask") else (CHUNK_PX, CHUNK_PX)
    depth = {"z": loose.pixels.shape[1]} if "z" in loose.dims else {}
    return model.parse(
        loose.pixels,
        dims=loose.dims,
        c_coords=names,
        scale_factors=[2] * n_levels or None,
        chunks={"c": len(loose.pixels), "y": sides[0], "x": sides[1]} | depth,
        transformations=dict(transformations),
    )


def _channel_names(loose: LooseImage, channels: Sequence[str] | None, name: str) -> list[str] | None:
    n_channels = loose.pixels.shape[0]
    names = list(channels) if channels is not None else loose.channels
    if channels is None and names is not None and len(names) != n_channels:
        names = None  # an OME file names the three colours of one channel once
    if names is None:
        names = ["r", "g", "b"] if n_channels == 3 else [name] if n_channels == 1 else None
    if names is not None and len(names) != n_channels:
        raise ValueError(f"Image {name!r} has {n_channels} channels; {len(names)} names are given: {names}.")
    return names


def _with_own_pyramid(loose: LooseImage, names: list[str] | None, transformations: Mapping[str, Any]) -> Any:
    from spatialdata.models import Image2DModel
    from spatialdata.transformations import set_transformation
    from xarray import DataArray, Dataset, DataTree

    levels = {}
    for position, pixels in enumerate((loose.pixels, *loose.coarser)):
        # Centres of a level's pixels, in pixels of the finest one.
        places = {
            dim: (np.arange(n) + 0.5) * (loose.pixels.shape[axis] / n)
            for axis, (dim, n) in enumerate(zip(loose.dims, pixels.shape, strict=True))
            if dim != "c"
        }
        coords = {"c": names if names is not None else range(len(pixels))} | places
        levels[f"scale{position}"] = Dataset({"image": DataArray(pixels, dims=loose.dims, coords=coords)})
    element = DataTree.from_dict(levels)
    set_transformation(element, dict(transformations), set_all=True)
    Image2DModel().validate(element)
    return element


def finest(element: Any) -> Any:
    """An image at full resolution."""
    from xarray import DataTree

    return next(iter(element["scale0"].data_vars.values())) if isinstance(element, DataTree) else element


def dims_of(element: Any) -> tuple[str, ...]:
    """Axes of an image."""
    return tuple(str(dim) for dim in finest(element).dims)


def size_px(element: Any) -> tuple[int, int]:
    """Width and height of an image at full resolution."""
    level = finest(element)
    return int(level.sizes["x"]), int(level.sizes["y"])
