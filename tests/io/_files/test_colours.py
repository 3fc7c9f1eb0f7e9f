"""Files whose pixels are not RGB: as Pillow shows them, or refused."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile
from PIL import Image

import sthist

COLOURS = np.random.default_rng(0).integers(60, 250, (8, 8, 3)).repeat(16, 0).repeat(16, 1).astype(np.uint8)
GREY = np.random.default_rng(1).integers(0, 256, (64, 64)).astype(np.uint8)


def pixels_of(path):
    """What a slide of that file holds, (h, w, 3)."""
    return np.moveaxis(np.asarray(sthist.io.slide(path, mpp=0.5)["he"].values), 0, -1)


def stain_of(path):
    """What a nuclear stain of that file holds, (h, w)."""
    return np.asarray(sthist.io.assemble({"dapi": path}, mpp=0.5)["dapi"].values)[0]


@pytest.mark.parametrize("mode", ["CMYK", "LAB", "YCbCr"])
def test_other_colours_in_a_tiff_are_refused_by_name(tmp_path, mode):
    Image.fromarray(COLOURS).convert(mode).save(tmp_path / "x.tif")
    said = {"CMYK": "are CMYK", "LAB": r"are CIE L\*a\*b\*", "YCbCr": "are YCbCr"}[mode]
    with pytest.raises(ValueError, match=rf"x.tif {said}.*Save it as RGB"):
        sthist.io.slide(tmp_path / "x.tif", mpp=0.5)


def test_a_cmyk_jpeg_is_what_pillow_shows(tmp_path):
    Image.fromarray(COLOURS).convert("CMYK").save(tmp_path / "x.jpg", quality=95)
    with Image.open(tmp_path / "x.jpg") as shown:
        np.testing.assert_array_equal(pixels_of(tmp_path / "x.jpg"), np.asarray(shown.convert("RGB")))


def test_ycbcr_that_a_jpeg_holds_is_decoded(tmp_path):
    stored = np.asarray(Image.fromarray(COLOURS).convert("YCbCr"))
    tifffile.imwrite(tmp_path / "x.tif", stored, photometric="ycbcr", tile=(64, 64), compression="jpeg")
    middle = slice(8, None, 16)
    found = pixels_of(tmp_path / "x.tif")[middle, middle].astype(int)
    assert np.abs(found - COLOURS[middle, middle]).max() <= 10


@pytest.mark.parametrize(("code", "space"), [(33003, "YCbCr"), (33005, "RGB")])
def test_jpeg_2000_of_aperio(tmp_path, code, space):
    """What compression 33003 holds is YCbCr, though the header says RGB."""
    imagecodecs = pytest.importorskip("imagecodecs")
    stored = np.asarray(Image.fromarray(COLOURS).convert(space))
    blocks = (
        imagecodecs.jpeg2k_encode(
            np.ascontiguousarray(stored[y : y + 64, x : x + 64]), level=0, codecformat="j2k", mct=False
        )
        for y in (0, 64)
        for x in (0, 64)
    )
    tifffile.imwrite(
        tmp_path / "x.svs",
        blocks,
        shape=COLOURS.shape,
        dtype="uint8",
        photometric="rgb",
        tile=(64, 64),
        compression=code,
        metadata=None,
        description="Aperio Image Library v10\r\n128x128 (64x64) J2K/YUV16 Q=70|AppMag = 20|MPP = 0.5",
    )
    assert np.abs(pixels_of(tmp_path / "x.svs").astype(int) - COLOURS).max() <= 2
    one = sthist.io.slide(tmp_path / "x.svs")["he"].data[1, 3:9, 70:90]
    assert np.abs(np.asarray(one).astype(int) - COLOURS[3:9, 70:90, 1]).max() <= 2


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_white_is_zero(tmp_path, dtype, compression):
    values = GREY.astype(dtype) * (np.iinfo(dtype).max // 255)
    stored = np.iinfo(dtype).max - values
    tifffile.imwrite(tmp_path / "x.tif", stored, photometric="miniswhite", compression=compression)
    np.testing.assert_array_equal(stain_of(tmp_path / "x.tif"), values)


def test_a_palette_is_refused_in_a_tiff_and_shown_of_a_png(tmp_path):
    Image.fromarray(GREY).quantize(16).save(tmp_path / "x.tif")
    with pytest.raises(ValueError, match="numbers of colours in a palette"):
        stain_of(tmp_path / "x.tif")
    picture = Image.fromarray(COLOURS).quantize(64)
    picture.save(tmp_path / "x.png")
    np.testing.assert_array_equal(pixels_of(tmp_path / "x.png"), np.asarray(picture.convert("RGB")))


def test_a_png_of_16_bits_keeps_its_values(tmp_path):
    values = GREY.astype(np.uint16) * 200
    Image.fromarray(values).save(tmp_path / "x.png")
    np.testing.assert_array_equal(stain_of(tmp_path / "x.png"), values)
