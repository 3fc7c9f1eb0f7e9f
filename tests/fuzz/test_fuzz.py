"""Damaged, hostile and oversize files over all readers and loaders; ``bench/fuzz.py`` has ten thousand of them."""

from __future__ import annotations

import gzip
import json
import tracemalloc

import numpy as np
import pytest
import research
import tifffile
from fuzz.engine import Fuzzer
from fuzz.targets import TARGETS
from PIL import Image

import sthist

FIRST, CASES = 100, 15  # seeds, of each target
WRONG = {"silent", "no file", "foreign", "memory", "hang", "death"}


@pytest.fixture(scope="module")
def fuzzer():
    # torch and timm take seconds to import; their loaders are covered by the benchmark and by tests of their own
    made = Fuzzer([name for name in TARGETS if name not in {"encoder", "pix2pix"}])
    yield made
    made.close()


@pytest.mark.parametrize("name", [name for name in TARGETS if name not in {"encoder", "pix2pix"}])
def test_damage_is_refused_by_name(fuzzer, name):
    outcomes = [fuzzer.case(seed, name) for seed in range(FIRST, FIRST + CASES)]
    assert [outcome for outcome in outcomes if outcome.kind in WRONG] == []
    assert len(outcomes) == CASES


def test_what_unpacks_beyond_the_limit_is_refused_and_can_be_insisted_on(tmp_path, monkeypatch):
    """One mechanism, ``settings.max_read_gb``, for pictures, strips and tables."""
    pixels = np.zeros((1000, 1000, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "he.png")
    monkeypatch.setattr(sthist.settings, "max_read_gb", 0.002)
    with pytest.raises(ValueError, match=r"he.png has 1000 x 1000 px in one piece, .* 0.003 GB .*max_read_gb"):
        sthist.io.slide(tmp_path / "he.png", mpp=0.5)
    monkeypatch.setattr(sthist.settings, "max_read_gb", 0.004)
    assert sthist.io.slide(tmp_path / "he.png", mpp=0.5)["he"].shape == (3, 1000, 1000)


def test_what_is_packed_tightly_is_measured_before_it_fills_the_memory(tmp_path, monkeypatch):
    """Spaces: 80 MB of them are read where 90 are allowed, and none are kept where 75 are."""
    feature = research.qupath_features({"tumour": research.squares([(40, 30)])}, objectType="annotation")[0]
    path = tmp_path / "drawn.geojson.gz"
    path.write_bytes(gzip.compress(b" " * 80_000_000 + json.dumps(feature).encode(), 1))
    sdata = sthist.io.slide(np.full((80, 120, 3), 200, np.uint8), mpp=0.5)
    monkeypatch.setattr(sthist.settings, "max_read_gb", 0.075)
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"drawn.geojson.gz has contents, .* up to 0.075 GB are read"):
        sthist.io.read_annotations(sdata, path, image="he")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 75e6
    monkeypatch.setattr(sthist.settings, "max_read_gb", 0.09)
    sthist.io.read_annotations(sdata, path, image="he")
    assert len(sdata["annotations"]) == 1


def test_a_slide_without_its_strips_is_refused_and_lacking_tiles_are_said(tmp_path, caplog):
    """They would be read as black without a word."""
    pixels = np.random.default_rng(0).integers(0, 255, (128, 128, 3), np.uint8)
    for name, options in {"strips": {"rowsperstrip": 16}, "tiles": {"tile": (64, 64)}}.items():
        path = tmp_path / f"{name}.tif"
        tifffile.imwrite(path, pixels, photometric="rgb", compression="zlib", **options)
        content = bytearray(path.read_bytes())
        with tifffile.TiffFile(path) as file:
            tag = file.pages[0].tags["StripByteCounts" if name == "strips" else "TileByteCounts"]
            width = tag.dtype.name == "SHORT" and 2 or 4
        content[tag.valueoffset : tag.valueoffset + width] = bytes(width)
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"strips.tif lacks 1 of the 8 strips"):
        sthist.io.slide(tmp_path / "strips.tif", mpp=0.5)
    sthist.io.slide(tmp_path / "tiles.tif", mpp=0.5)
    assert "tiles.tif lacks 1 of the 4 tiles" in caplog.text
