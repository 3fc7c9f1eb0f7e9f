"""H&E slides alone, and TIFF files of all kinds."""

from __future__ import annotations

import importlib.util
import pickle

import numpy as np
import pytest
import tifffile
from PIL import Image
from realdata import folder

import sthist
from sthist.io._files.tiff import TiffLevel

RNG = np.random.default_rng(0)
PIXELS = np.repeat(np.repeat(RNG.integers(0, 255, (150, 100, 3), np.uint8), 8, 0), 8, 1)  # 1200 x 800


@pytest.fixture
def pyramid(tmp_path):
    """An OME-TIFF with three levels, at 0.4 µm/px."""
    path = tmp_path / "slide.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as writer:
        options = {"tile": (128, 128), "photometric": "rgb", "compression": "zlib"}
        writer.write(PIXELS, subifds=2, metadata={"axes": "YXS", "PhysicalSizeX": 0.4, "PhysicalSizeY": 0.4}, **options)
        writer.write(PIXELS[::2, ::2], subfiletype=1, **options)
        writer.write(PIXELS[::4, ::4], subfiletype=1, **options)
    return path


def test_a_pyramid_is_taken_as_it_is_and_read_lazily(pyramid):
    sdata = sthist.io.slide(pyramid)
    assert sthist.scale.resolve_mpp(sdata, "he") == (0.4, 0.4)
    levels = [node["image"] for node in sdata["he"].children.values()]
    assert [level.shape for level in levels] == [(3, 1200, 800), (3, 600, 400), (3, 300, 200)]
    assert all(hasattr(level.data, "dask") for level in levels)
    np.testing.assert_array_equal(levels[0].to_numpy(), PIXELS.transpose(2, 0, 1))
    part = sthist.tiles.read_region(sdata, "he", (40, 80, 80, 120), mpp=0.4)
    np.testing.assert_array_equal(part, PIXELS[200:300, 100:200])
    coarse = sthist.tiles.read_region(sdata, "he", (0, 0, 320, 480), mpp=1.6)
    np.testing.assert_array_equal(coarse, PIXELS[::4, ::4])


def test_nothing_is_read_before_it_is_needed(pyramid, monkeypatch):
    monkeypatch.setattr(TiffLevel, "__getitem__", lambda *_: pytest.fail("pixels were read"))
    sthist.io.slide(pyramid)


def test_it_can_be_written_and_read_again(pyramid, tmp_path):
    import spatialdata as sd

    sthist.io.slide(pyramid).write(tmp_path / "slide.zarr")
    sdata = sd.read_zarr(tmp_path / "slide.zarr")
    np.testing.assert_array_equal(sdata["he"]["scale0"].image.to_numpy(), PIXELS.transpose(2, 0, 1))
    assert sthist.scale.resolve_mpp(sdata, "he") == (0.4, 0.4)


def test_another_process_opens_the_file_itself(pyramid):
    level = pickle.loads(pickle.dumps(TiffLevel(pyramid, 1)))
    np.testing.assert_array_equal(level[:, 10:20, 30:50], PIXELS[::2, ::2][10:20, 30:50].transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("axes", "shape", "dims"),
    [
        ("YX", (40, 30), (1, 40, 30)),
        ("CYX", (2, 40, 30), (2, 40, 30)),
        ("ZYX", (3, 40, 30), (1, 3, 40, 30)),
        ("CZYX", (2, 3, 40, 30), (2, 3, 40, 30)),
        ("ZCYX", (3, 2, 40, 30), (2, 3, 40, 30)),
        ("TCYX", (1, 2, 40, 30), (2, 40, 30)),
    ],
)
def test_axes_come_in_any_order(tmp_path, axes, shape, dims):
    pixels = RNG.integers(0, 4000, shape).astype(np.uint16)
    tifffile.imwrite(tmp_path / "x.ome.tif", pixels, metadata={"axes": axes}, photometric="minisblack")
    level = TiffLevel(tmp_path / "x.ome.tif")
    assert level.shape == dims
    everything = level[(slice(None),) * len(dims)]
    kept = [(axis, n) for axis, n in zip(axes, shape, strict=True) if n > 1]
    order = [[axis for axis, _ in kept].index(axis) for axis in "CZYX" if axis in dict(kept)]
    np.testing.assert_array_equal(everything.squeeze(), pixels.squeeze().transpose(order))


@pytest.mark.parametrize(
    "options", [{"tile": (64, 64)}, {"rowsperstrip": 16}, {"tile": (64, 64), "planarconfig": "separate"}]
)
def test_tiles_strips_and_planes(tmp_path, options):
    pixels = PIXELS if options.get("planarconfig") is None else PIXELS.transpose(2, 0, 1).copy()
    tifffile.imwrite(tmp_path / "x.tif", pixels, photometric="rgb", compression="zlib", **options)
    sdata = sthist.io.slide(tmp_path / "x.tif", mpp=0.5)
    np.testing.assert_array_equal(
        sthist.tiles.read_region(sdata, "he", (50, 30, 200, 333), 0.5), PIXELS[60:666, 100:400]
    )


def test_resolution_tags_count_where_nothing_else_states_a_scale(tmp_path):
    path = tmp_path / "x.tif"
    tifffile.imwrite(path, PIXELS, resolution=(20000, 20000), resolutionunit="CENTIMETER")
    assert sthist.scale.resolve_mpp(sthist.io.slide(path), "he") == (0.5, 0.5)
    tifffile.imwrite(path, PIXELS, resolution=(72, 72), resolutionunit="INCH")  # a printer's
    with pytest.raises(ValueError, match=r"states no µm per pixel; give it with mpp="):
        sthist.io.slide(path)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_pictures(tmp_path, suffix):
    Image.fromarray(PIXELS).save(tmp_path / f"x.{suffix}")
    sdata = sthist.io.slide(tmp_path / f"x.{suffix}", mpp=0.5, key_added="slide")
    assert sdata.attrs["sthist"]["roles"]["he"] == {"image": "slide"}
    assert sdata["slide"]["scale0"].image.shape == (3, 1200, 800)


def test_aperio():
    sdata = sthist.io.slide(folder("he_svs") / "CMU-1-Small-Region.svs")
    assert sthist.scale.resolve_mpp(sdata, "he") == (0.499, 0.499)
    assert sdata["he"]["scale0"].image.shape == (3, 2967, 2220)
    tissue = sthist.tiles.read_region(sdata, "he", (500, 300, 612, 412), 0.5)
    direct = tifffile.imread(folder("he_svs") / "CMU-1-Small-Region.svs")[601:825, 1002:1226]
    assert np.abs(tissue[:224, :224].astype(int).mean((0, 1)) - direct.mean((0, 1))).max() < 2
    sthist.pp.tissue(sdata)
    sthist.pp.tiles(sdata, size_um=112, px=224)
    assert len(sdata["tiles_table"]) > 20


class TestBadFiles:
    def test_the_extra_is_missing(self, monkeypatch, tmp_path):
        tifffile.imwrite(tmp_path / "x.svs", PIXELS, compression="jpeg", tile=(256, 256))
        find_spec = importlib.util.find_spec
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name: None if name == "imagecodecs" else find_spec(name)
        )
        with pytest.raises(ImportError, match=r'x.svs is compressed as slide scanners do.*pip install "sthist\[wsi\]"'):
            sthist.io.slide(tmp_path / "x.svs", mpp=0.5)

    def test_cut_off(self, pyramid, tmp_path):
        whole = tmp_path / "whole.tif"
        tifffile.imwrite(whole, PIXELS)
        for n in (len(whole.read_bytes()) // 2, 200, 4, 0):
            (tmp_path / "cut.tif").write_bytes(whole.read_bytes()[:n])
            with pytest.raises(ValueError, match=r"Image 'he': .*cut.tif .*truncated"):
                sthist.io.slide(tmp_path / "cut.tif", mpp=0.5)

    @pytest.mark.parametrize("suffix", ["png", "jpg"])
    def test_cut_off_pictures(self, tmp_path, suffix):
        Image.fromarray(PIXELS).save(tmp_path / f"x.{suffix}")
        (tmp_path / f"cut.{suffix}").write_bytes((tmp_path / f"x.{suffix}").read_bytes()[:3000])
        with pytest.raises(ValueError, match=rf"cut.{suffix} cannot be read.*truncated"):
            sthist.io.slide(tmp_path / f"cut.{suffix}", mpp=0.5)

    def test_no_file_no_image_no_he(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"there is no file"):
            sthist.io.slide(tmp_path / "none.tif")
        (tmp_path / "x.tif").write_text("not an image")
        with pytest.raises(ValueError, match=r"x.tif is no TIFF file"):
            sthist.io.slide(tmp_path / "x.tif", mpp=1)
        (tmp_path / "x.png").write_text("not an image")
        with pytest.raises(ValueError, match=r"is no picture"):
            sthist.io.slide(tmp_path / "x.png", mpp=1)
        tifffile.imwrite(tmp_path / "grey.tif", PIXELS[..., 0])
        with pytest.raises(ValueError, match=r"is no H&E: it has 1 channels of uint8"):
            sthist.io.slide(tmp_path / "grey.tif", mpp=1)
        tifffile.imwrite(tmp_path / "deep.tif", PIXELS.astype(np.uint16), photometric="rgb")
        with pytest.raises(ValueError, match=r"3 channels of uint16; three colours of uint8"):
            sthist.io.slide(tmp_path / "deep.tif", mpp=1)

    def test_scales_that_contradict(self, pyramid):
        with pytest.raises(ValueError, match=r"Two scales of image 'he' disagree.*OME PhysicalSizeX"):
            sthist.io.slide(pyramid, mpp=0.5)
        with pytest.raises(ValueError, match=r"is nan \(the argument mpp=\)"):
            sthist.io.slide(pyramid, mpp=float("nan"))


def test_any_index_of_a_level(pyramid):
    """What dask asks for: single planes, steps, nothing."""
    level = TiffLevel(pyramid, 1)
    whole = PIXELS[::2, ::2].transpose(2, 0, 1)
    for index in (
        np.s_[0, 3:40, :],
        np.s_[:, 5, 7],
        np.s_[2:0:-1, 10:100:7, ::-3],
        np.s_[-1, -20:, 4:4],
        np.s_[:, 100:20:-2, 0:1],
    ):
        np.testing.assert_array_equal(level[index], whole[index])
