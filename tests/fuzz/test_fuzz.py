"""Damaged, hostile and oversize files over all readers and loaders; ``bench/fuzz.py`` has ten thousand of them."""

from __future__ import annotations

import gzip
import json
import time
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import research
import tifffile
from fuzz import engine
from fuzz.engine import Fuzzer
from fuzz.targets import TARGETS
from PIL import Image

import sthist

FIRST, CASES = 100, 12  # seeds, of each target
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


def test_what_computes_without_end_is_a_hang(monkeypatch):
    """Whatever else the machine does meanwhile, which takes time by the clock."""
    monkeypatch.setattr(engine, "LIMIT_S", 1)
    assert engine._in_child(lambda: all(zero == 0 for zero in iter(int, 1)))[0] == {"kind": "hang"}
    assert engine._in_child(lambda: time.sleep(1.5) or {"kind": "own"})[0] == {"kind": "own"}


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


def rewritten(column, values):
    """Damage: another column in place of one of a parquet file."""

    def change(path):
        table = pq.read_table(path)
        array = pa.array(values(table.num_rows))
        pq.write_table(table.set_column(table.column_names.index(column), column, array), path)

    return change


COLUMNS = [
    (
        "xenium",
        "cells.parquet",
        rewritten("nucleus_area", lambda n: [[1, 2]] * n),
        "cells.parquet: column 'nucleus_area'",
    ),
    (
        "xenium",
        "cells.parquet",
        rewritten("cell_id", lambda n: [[1, 2]] * n),
        "cells.parquet: column 'cell_id' holds lis",
    ),
    (
        "xenium",
        "nucleus_boundaries.parquet",
        rewritten("label_id", lambda n: [b"\xff"] * n),
        "column 'label_id' holds by",
    ),
    (
        "xenium",
        "cell_boundaries.parquet",
        rewritten("label_id", lambda n: [None, *[1] * (n - 1)]),
        "'label_id' should hold",
    ),
    ("xenium", "transcripts.parquet", rewritten("cell_id", lambda n: [b"\xff"] * n), "'cell_id' holds bytes"),
    ("assemble", "points.parquet", rewritten("x_um", lambda n: [1e30] * n), "points.parquet.* above 1e.08"),
    (
        "assemble",
        "points.parquet",
        lambda path: pq.write_table(pq.read_table(path).drop(["y_um"]), path),
        "points.parquet",
    ),
]


@pytest.mark.filterwarnings("ignore:Duplicate name")  # in the zip of the miniature
@pytest.mark.parametrize(("target", "file", "damage", "message"), COLUMNS)
def test_what_is_wrong_with_a_column_is_said_with_its_name(tmp_path, target, file, damage, message):
    TARGETS[target].make(tmp_path / "x")
    damage(tmp_path / "x" / file)
    with pytest.raises((ValueError, KeyError), match=message) as caught:
        TARGETS[target].read(tmp_path / "x")
    assert file in str(caught.value)


@pytest.mark.filterwarnings("ignore:Duplicate name")  # in the zip of the miniature
def test_scales_that_disagree_are_said_with_their_file(tmp_path):
    TARGETS["xenium"].make(tmp_path / "x")
    path = tmp_path / "x" / "experiment.xenium"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pixel_size": 0.425}))
    with pytest.raises(ValueError, match=r"disagree by 100.0%: .* 0.425 µm/px \(pixel_size of experiment.xenium\)"):
        TARGETS["xenium"].read(tmp_path / "x")


def test_a_scale_beyond_all_numbers(tmp_path):
    """Python's whole numbers have no end."""
    TARGETS["visium"].make(tmp_path / "x")
    path = tmp_path / "x" / "spatial" / "scalefactors_json.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tissue_hires_scalef": 10**400}))
    with pytest.raises(ValueError, match=r"scalefactors_json.json: 'tissue_hires_scalef' is 1000"):
        TARGETS["visium"].read(tmp_path / "x")


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
