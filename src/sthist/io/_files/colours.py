"""What the pixels of a TIFF stand for, by its PhotometricInterpretation: what is certain becomes RGB or grey."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    Conversion = Literal["none", "inverted", "ycbcr"]

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, MASK, CMYK, YCBCR = range(7)
OTHERS = {
    PALETTE: "numbers of colours in a palette",
    CMYK: "CMYK",
    YCBCR: "YCbCr",
    8: "CIE L*a*b*",
    9: "ICC L*a*b*",
    10: "ITU L*a*b*",
    32803: "a colour filter array",
    32844: "LogL",
    32845: "LogLuv",
}
JPEG = {6, 7, 34892, 33007}
"""Compressions whose decoders give RGB, whatever is stored."""

APERIO_YCBCR = 33003
"""Aperio's JPEG 2000 whose three components are YCbCr, which no header says."""


def conversion_of(path: Path, page: Any) -> Conversion:
    """How decoded pixels of a page become grey or RGB; those that cannot with certainty are refused."""
    kind, n_samples = int(page.photometric), int(page.samplesperpixel)
    if int(page.compression) == APERIO_YCBCR and n_samples == 3:
        return "ycbcr"
    if kind == WHITE_IS_ZERO and page.bitspersample in {8, 16, 32} and np.dtype(page.dtype).kind == "u":
        return "inverted"
    is_lookup = kind == PALETTE and page.parent.is_imagej  # ImageJ keeps grey values, and how it shows them beside
    decoded = kind == YCBCR and int(page.compression) in JPEG
    if kind in {BLACK_IS_ZERO, RGB, MASK} or is_lookup or decoded or kind not in {WHITE_IS_ZERO, *OTHERS}:
        return "none"
    stored = OTHERS.get(kind, f"{page.bitspersample}-bit pixels of which 0 is white")
    raise ValueError(
        f"the pixels of {path} are {stored} (PhotometricInterpretation {kind}), not RGB or grey. Save it as "
        f"{'RGB or grey' if kind in {PALETTE, WHITE_IS_ZERO} else 'RGB'} of 8 bits, for example with 'vips colourspace "
        "in.tif out.tif srgb' or 'magick in.tif -colorspace sRGB out.tif'."
    )


def converted(block: np.ndarray, conversion: Conversion) -> np.ndarray:
    """Pixels, (c, ...), as grey or RGB."""
    if conversion == "inverted":
        return np.asarray(np.iinfo(block.dtype).max - block)
    if conversion == "ycbcr":
        return _rgb_of_ycbcr(block)
    return block


def _rgb_of_ycbcr(block: np.ndarray) -> np.ndarray:
    """By ITU-R BT.601 over the full range, as JPEG has it."""
    luma, blue, red = block.astype(np.float32)
    blue, red = blue - 128, red - 128
    rgb = np.stack([luma + 1.402 * red, luma - 0.344136 * blue - 0.714136 * red, luma + 1.772 * blue])
    return rgb.round().clip(0, 255).astype(block.dtype)
