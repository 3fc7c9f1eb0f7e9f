"""What a TIFF file says of its scale and its channels."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist._settings import logger

if TYPE_CHECKING:
    from pathlib import Path

LARGE_PX = 1000  # images of a file whose sides are longer are worth a word when another one is taken


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


# µm by the names of units in OME and in ImageJ.
UNIT_UM = {
    "m": 1e6,
    "cm": 1e4,
    "mm": 1e3,
    "µm": 1.0,
    "\u03bcm": 1.0,
    "\\u00B5m": 1.0,  # as ImageJ writes it
    "um": 1.0,
    "micron": 1.0,
    "microns": 1.0,
    "nm": 1e-3,
    "\u00c5": 1e-4,
    "\u212b": 1e-4,
    "in": 25400.0,
    "inch": 25400.0,
}
RESOLUTION_UNIT_UM = {2: 25400.0, 3: 10000.0}  # TIFF's ResolutionUnit: inch, centimetre
# Resolution tags outside of this are a printer's (72 dpi is 353 µm/px), not a microscope's.
PLAUSIBLE_MPP = (0.05, 20.0)


def ome_mpp(path: Path) -> dict[str, float]:
    """µm/px by source that the OME metadata of a file state; nothing where it has none."""
    import tifffile

    pass

    with tifffile.TiffFile(path) as file:
        return ome_scale_and_channels(file, main_series(file))[0]


def stated_scale(file: Any, series: int) -> dict[str, float]:
    """µm/px of a TIFF by source: OME, else the vendor's text, else the resolution tags."""
    stated = ome_scale_and_channels(file, series)[0]
    if stated:
        return stated
    page = file.series[series].keyframe
    aperio = re.search(r"\bMPP\s*=\s*([0-9.]+)", page.description or "") if file.is_svs else None
    if aperio:
        return {"MPP of the Aperio description": float(aperio.group(1))}
    if file.is_imagej:
        unit_um = UNIT_UM.get(str((file.imagej_metadata or {}).get("unit", "")))
        return _resolution_tags(page, unit_um, "ImageJ") if unit_um is not None else {}
    unit = page.tags.get("ResolutionUnit")
    return _resolution_tags(page, RESOLUTION_UNIT_UM.get(int(unit.value)) if unit is not None else None, "TIFF")


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
                sizes[f"OME PhysicalSize{axis}"] = float(pixels.attrib[f"PhysicalSize{axis}"]) * unit
    names = [channel.attrib.get("Name", "") for channel in pixels.findall("{*}Channel")]
    return sizes, names if names and all(names) else None


def _ome_pixels(file: Any, series: int) -> Any:
    """The Pixels of the image's own number, if they are of its size, else the first that are."""
    import xml.etree.ElementTree as ET

    if not file.ome_metadata:
        return None
    found = ET.fromstring(file.ome_metadata).findall(".//{*}Pixels")
    image = file.series[series]
    sides = dict(zip(image.axes, image.shape, strict=True))
    size = {"SizeX": str(sides.get("X")), "SizeY": str(sides.get("Y"))}
    candidates = found[series : series + 1] + found
    return next(
        (pixels for pixels in candidates if all(pixels.attrib.get(k) == n for k, n in size.items())),
        found[0] if len(found) == 1 else None,
    )
