"""What TIFF files and pictures are like in the wild: several images, turned, transparent, damaged, in hundreds."""

from __future__ import annotations

import logging
import os
import pickle

import numpy as np
import pytest
import tifffile
from PIL import Image

import sthist
from sthist.io._files import checks
from sthist.io._files.open_tiffs import FILES, MAX_OPEN, OpenFiles
from sthist.io._files.tiff import TiffLevel

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 255, (301, 403, 3), np.uint8)


def stored(sdata):
    return sdata["he"].to_numpy().transpose(1, 2, 0)


def test_the_largest_image_is_taken_with_its_own_scale(tmp_path, caplog, monkeypatch):
    """A label that comes first is neither the slide nor its scale."""
    path = tmp_path / "x.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as writer:
        for pixels, mpp, name in ((PIXELS[:200, :220], 5.0, "label"), (PIXELS, 0.5, "slide")):
            size = {"PhysicalSizeX": mpp, "PhysicalSizeY": mpp, "Name": name}
            writer.write(pixels, photometric="rgb", metadata={"axes": "YXS"} | size)
    monkeypatch.setattr("sthist.io._files.tiff.LARGE_PX", 100)
    with caplog.at_level(logging.INFO, "sthist"):
        sdata = sthist.io.slide(path)
    assert "x.ome.tif has 2 large images; number 1 ('slide', 403 x 301 px) is taken" in caplog.text
    np.testing.assert_array_equal(stored(sdata), PIXELS)
    assert sthist.scale.resolve_mpp(sdata, "he") == (0.5, 0.5)
    np.testing.assert_array_equal(
        pickle.loads(pickle.dumps(TiffLevel(path)))[:, :9, :9], PIXELS[:9, :9].transpose(2, 0, 1)
    )


def test_any_tile_may_be_the_last_in_the_file(tmp_path):
    """The offsets are exchanged: the tile that is cut off is listed first."""
    path = tmp_path / "x.tif"
    tifffile.imwrite(path, PIXELS[:128, :64], tile=(64, 64), photometric="rgb")
    with tifffile.TiffFile(path, mode="r+") as file:
        tag = file.pages[0].tags["TileOffsets"]
        tag.overwrite(tag.value[::-1])
    content = path.read_bytes()
    with tifffile.TiffFile(path) as file:
        end = max(file.pages[0].dataoffsets) + 64
    path.write_bytes(content[:end])
    with pytest.raises(ValueError, match=r"x.tif is truncated: it has"):
        sthist.io.slide(path, mpp=1)


@pytest.mark.parametrize("compression", ["zlib", "lzw", "jpeg"])
def test_tiles_that_cannot_be_decoded(tmp_path, compression):
    pytest.importorskip("imagecodecs")
    path = tmp_path / "x.tif"
    tifffile.imwrite(path, PIXELS, tile=(64, 64), photometric="rgb", compression=compression)
    with tifffile.TiffFile(path) as file:
        start, n = file.pages[0].dataoffsets[0], file.pages[0].databytecounts[0]
    content = bytearray(path.read_bytes())
    content[start : start + n] = b"\x55" * n
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"x.tif cannot be decoded at \(x, y\) = \(3, 5\) of level 0: .*damaged"):
        TiffLevel(path)[:, 5:9, 3:7]


def test_a_file_that_is_gone_when_it_is_needed(tmp_path):
    path = tmp_path / "x.tif"
    tifffile.imwrite(path, PIXELS, tile=(64, 64), photometric="rgb")
    image = sthist.io.slide(path, mpp=1)["he"]
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"^There is no file .*x.tif"):
        np.asarray(image.data)


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_few_files_are_open_at_a_time(tmp_path, compression):
    pixels = RNG.integers(0, 255, (8, 9), np.uint8)
    levels = []
    for i in range(MAX_OPEN + 8):
        tifffile.imwrite(tmp_path / f"{i}.tif", pixels + i, compression=compression)
        levels.append(TiffLevel(tmp_path / f"{i}.tif"))
    FILES.close()
    assert len(FILES) == 0
    for i, level in enumerate(levels):
        np.testing.assert_array_equal(level[0, :, :], pixels + i)
    assert len(FILES) == MAX_OPEN


def test_a_file_in_use_is_not_closed(tmp_path):
    tifffile.imwrite(tmp_path / "x.tif", PIXELS, compression="zlib")
    files = OpenFiles(limit=0)
    with files.pixels(tmp_path / "x.tif", 0, 0, False) as pixels:
        files.close()
        np.testing.assert_array_equal(np.asarray(pixels[:9, :9]), PIXELS[:9, :9])
    assert len(files) == 0


def test_a_file_that_was_replaced(tmp_path):
    path = tmp_path / "x.tif"
    tifffile.imwrite(path, PIXELS)
    level = TiffLevel(path)
    level[:, 0:1, 0:1]
    tifffile.imwrite(path, PIXELS[:100])
    with pytest.raises(ValueError, match=r"x.tif has been replaced by an image of another size"):
        level[:, 0:1, 0:1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_opens_its_own_files(tmp_path):
    tifffile.imwrite(tmp_path / "x.tif", PIXELS, compression="zlib")
    files = OpenFiles()
    with files.pixels(tmp_path / "x.tif", 0, 0, False):
        pass
    files.after_fork()
    assert len(files) == 0
    for opened in files._of_parent.values():
        opened.close()


def test_relative_paths_survive_another_directory(tmp_path, monkeypatch):
    tifffile.imwrite(tmp_path / "x.tif", PIXELS)
    monkeypatch.chdir(tmp_path)
    level = TiffLevel("x.tif")
    monkeypatch.chdir(tmp_path.parent)
    np.testing.assert_array_equal(level[:, 0:5, 0:5], PIXELS[:5, :5].transpose(2, 0, 1))


@pytest.mark.parametrize("options", [{}, {"byteorder": ">"}, {"imagej": True}, {"metadata": None}])
def test_uncompressed_pages_are_mapped(tmp_path, options):
    """However large a page is, nothing is read but the window."""
    pixels = RNG.integers(0, 60000, (3, 40, 50)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "x.tif", pixels, photometric="minisblack", **options)
    level = TiffLevel(tmp_path / "x.tif")
    assert level._mapped
    assert level.dtype == np.uint16
    assert level.block_bytes <= 40 * 50 * 2
    window = (slice(None),) * (level.ndim - 2) + np.s_[3:30, 4:20]
    np.testing.assert_array_equal(level[window].squeeze(), pixels[:, 3:30, 4:20])


def test_one_large_strip_is_not_read_whole(tmp_path):
    """Only the window's blocks are."""
    tifffile.imwrite(tmp_path / "x.tif", np.zeros((3000, 2000), np.uint8), rowsperstrip=3000)
    level = TiffLevel(tmp_path / "x.tif")
    assert level.chunks == (1, 512, 512)
    assert level.block_bytes == 512 * 512


def test_checking_a_header_decodes_nothing(tmp_path, monkeypatch):
    tifffile.imwrite(tmp_path / "x.tif", PIXELS, compression="zlib")
    monkeypatch.setattr("sthist.io._files.tiff.MAX_CHUNK_BYTES", 10)
    monkeypatch.setattr(TiffLevel, "__getitem__", lambda *_: pytest.fail("pixels were read"))
    assert checks.require_picture(tmp_path / "x.tif") == ((3, 301, 403), np.uint8)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_pictures_are_turned_as_their_header_says(tmp_path, suffix):
    picture = Image.fromarray(PIXELS)
    exif = picture.getexif()
    exif[274] = 6
    path = tmp_path / f"x.{suffix}"
    picture.save(path, exif=exif)
    sdata = sthist.io.slide(path, mpp=1)
    assert sdata["he"].shape == (3, 403, 301)
    assert checks.require_picture(path)[0] == (3, 403, 301)
    if suffix == "png":
        np.testing.assert_array_equal(stored(sdata), np.rot90(PIXELS, -1))


def test_a_turned_tiff_is_refused(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "x.tif", tiffinfo={274: 6})
    with pytest.raises(ValueError, match=r"x.tif has the Orientation 6 .*Save it upright"):
        sthist.io.slide(tmp_path / "x.tif", mpp=1)


@pytest.mark.parametrize("kind", ["unassalpha", "assocalpha", "unspecified", "png", "array", "palette"])
def test_transparent_pixels_are_white(tmp_path, kind):
    """A margin that is transparent, and black beneath."""
    opacity = np.full((301, 403, 1), 255, np.uint8)
    opacity[:50] = 0
    pixels = np.concatenate([PIXELS * (opacity > 0), opacity], -1)
    expected = np.where(opacity > 0, PIXELS, 255)
    path = tmp_path / ("x.png" if kind in {"png", "palette"} else "x.tif")
    if kind == "png":
        Image.fromarray(pixels).save(path)
    elif kind == "palette":
        flat = Image.fromarray(np.repeat((opacity[..., 0] > 0)[..., None], 3, -1).astype(np.uint8) * 90).quantize(4)
        clear = flat.getpixel((0, 0))
        flat.save(path, transparency=clear)
        expected = np.where(opacity > 0, np.full(3, 90), 255)
    elif kind != "array":
        tifffile.imwrite(path, pixels, photometric="rgb", extrasamples=[kind])
        expected = PIXELS * (opacity > 0) if kind == "unspecified" else expected
    made = sthist.io.assemble({"he": pixels}, mpp=1) if kind == "array" else sthist.io.slide(path, mpp=1)
    np.testing.assert_array_equal(stored(made), expected)


@pytest.mark.parametrize(("unit", "size"), [("in", 1e-5), ("\u00c5", 2540.0), ("nm", 254.0)])
def test_units_of_ome(tmp_path, unit, size):
    metadata = {"axes": "YXS", "PhysicalSizeX": size, "PhysicalSizeY": size}
    metadata |= {"PhysicalSizeXUnit": unit, "PhysicalSizeYUnit": unit}
    tifffile.imwrite(tmp_path / "x.ome.tif", PIXELS, photometric="rgb", metadata=metadata)
    assert sthist.scale.resolve_mpp(sthist.io.slide(tmp_path / "x.ome.tif"), "he") == pytest.approx((0.254, 0.254))


@pytest.mark.parametrize("unit", ["um", "micron", "\\u00B5m"])
def test_imagej_states_its_scale(tmp_path, unit):
    tifffile.imwrite(tmp_path / "x.tif", PIXELS, imagej=True, resolution=(4, 4), metadata={"unit": unit, "axes": "YXS"})
    assert sthist.scale.resolve_mpp(sthist.io.slide(tmp_path / "x.tif"), "he") == (0.25, 0.25)
