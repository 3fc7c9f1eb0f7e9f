"""Loose image files: pixels, and what the file says of scale and channels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

TIFF_AXES = {"C": "c", "S": "c", "Q": "c", "I": "c", "Z": "z", "Y": "y", "X": "x"}
"""tifffile's letters: channels, samples (colours), unknown and image sequences are all channels here."""

UNIT_UM = {"m": 1e6, "cm": 1e4, "mm": 1e3, "µm": 1.0, "\u03bcm": 1.0, "um": 1.0, "micron": 1.0, "nm": 1e-3}


@dataclass(frozen=True)
class LooseImage:
    """An image file.

    Attributes
    ----------
    pixels
        Array; axes as in ``dims``.
    dims
        Of ``c``, ``z``, ``y``, ``x``.
    mpp
        µm/px by the source that states it.
    channels
        Names, where the file has them.
    """

    pixels: Any
    dims: tuple[str, ...]
    mpp: dict[str, float]
    channels: list[str] | None = None


def read_image(source: Any, name: str) -> LooseImage:
    """A path or an array as an image.

    Parameters
    ----------
    source
        TIFF, OME-TIFF, PNG or JPEG; or an array of (y, x), (y, x, 3 or 4), (c, y, x) or (c, z, y, x).
    name
        For messages.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is no image, or its axes cannot be told.
    """
    if isinstance(source, str | Path):
        path = Path(source)
        if not path.exists():
            msg = f"Image {name!r}: there is no file {path}."
            raise FileNotFoundError(msg)
        if path.suffix.lower() in {".tif", ".tiff", ".svs", ".btf"}:
            return _read_tiff(path, name)
        return _from_array(_read_picture(path, name), name)
    return _from_array(source if hasattr(source, "shape") else np.asarray(source), name)


def _from_array(array: Any, name: str) -> LooseImage:
    shape = array.shape
    if len(shape) == 2:
        return LooseImage(array[None], ("c", "y", "x"), {})
    if len(shape) == 3 and shape[2] in {3, 4} and shape[0] > 4:
        return LooseImage(array[..., :3].transpose(2, 0, 1), ("c", "y", "x"), {})  # transparency says nothing of tissue
    if len(shape) == 3:
        return LooseImage(array, ("c", "y", "x"), {})
    if len(shape) == 4:
        return LooseImage(array, ("c", "z", "y", "x"), {})
    msg = f"Image {name!r} has shape {shape}; it should be (y, x), (y, x, 3), (c, y, x) or (c, z, y, x)."
    raise ValueError(msg)


def _read_picture(path: Path, name: str) -> np.ndarray:
    from PIL import Image, UnidentifiedImageError

    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # a slide is larger than Pillow's guard allows
    try:
        with Image.open(path) as picture:
            return np.asarray(picture if picture.mode in {"L", "RGB", "RGBA", "I;16"} else picture.convert("RGB"))
    except UnidentifiedImageError:
        msg = f"Image {name!r}: {path} is no picture that Pillow can read."
        raise ValueError(msg) from None
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _read_tiff(path: Path, name: str) -> LooseImage:
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            series = file.series[0]
            pixels, axes = series.asarray(), series.axes
            mpp, channels = ome_scale_and_channels(file)
    except tifffile.TiffFileError as error:
        msg = f"Image {name!r}: {path} is no TIFF file: {error}."
        raise ValueError(msg) from None
    shown = [axis for axis, n in zip(axes, pixels.shape, strict=True) if n > 1 or axis in "YX"]
    dims = [TIFF_AXES.get(axis, axis) for axis in shown]
    if len(set(dims)) < len(dims) or not {"y", "x"} <= set(dims) <= {"c", "z", "y", "x"}:
        msg = f"Image {name!r}: the axes of {path} are {axes} {pixels.shape}; one each of channels, z, y and x can be read."
        raise ValueError(msg)
    pixels = pixels.reshape([n for axis, n in zip(axes, pixels.shape, strict=True) if n > 1 or axis in "YX"])
    if "S" in shown:
        pixels = np.take(pixels, range(min(3, pixels.shape[shown.index("S")])), shown.index("S"))  # no transparency
    if "c" not in dims:
        pixels, dims = pixels[None], ["c", *dims]
    order = [axis for axis in ("c", "z", "y", "x") if axis in dims]
    return LooseImage(pixels.transpose([dims.index(axis) for axis in order]), tuple(order), mpp, channels)


def ome_scale_and_channels(file: Any) -> tuple[dict[str, float], list[str] | None]:
    """µm/px and channel names from a TIFF's OME metadata; nothing where it has none."""
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
