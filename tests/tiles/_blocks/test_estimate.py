"""What a run takes is said before it, and what does not fit is not begun."""

from __future__ import annotations

import errno
import shutil
from collections import namedtuple

import numpy as np
import pytest
import spatialdata as sd

import sthist
from sthist.tiles import Canvas
from sthist.tiles._blocks import estimate
from sthist.tiles._blocks.canvas import Layout

Usage = namedtuple("Usage", "total used free")


def files(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def size_of(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def only_free(monkeypatch, n_bytes):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**12, 10**12 - n_bytes, n_bytes))


def test_dry_run_writes_nothing(backed):
    before = files(backed.path)
    plan = sthist.tl.virtual_he(backed, dry_run=True)
    assert files(backed.path) == before
    assert list(backed.images) == ["he", "morphology_focus"]
    assert plan.shape == (800, 800)
    assert plan.blocks == 1
    assert plan.tiles == 4
    assert plan.free_bytes == pytest.approx(shutil.disk_usage(backed.path).free, rel=0.05)
    assert "800 x 800 pixels of 0.5 µm: 4 tiles in 1 blocks; about" in str(plan)


def test_estimates(tmp_path, monkeypatch):
    """Disk to a fifth; a part of the section takes less of everything."""
    monkeypatch.setattr("sthist.tiles._blocks.canvas.BLOCK_PX", 512)
    sdata = sthist.datasets.toy(size_um=500)
    sdata.write(tmp_path / "s.zarr")
    plan = sthist.tl.virtual_he(sdata, dry_run=True)
    part = sthist.tl.virtual_he(sdata, within=(0, 0, 250, 250), dry_run=True)
    assert (plan.tiles, part.tiles) == (4, 1)
    assert part.disk_bytes < plan.disk_bytes
    sthist.tl.virtual_he(sdata)
    assert plan.disk_bytes == pytest.approx(size_of(tmp_path / "s.zarr" / "images" / "virtual_he"), rel=0.2)


def test_existing_and_missing_are_seen_in_a_dry_run(backed):
    """What the run would refuse, the dry run refuses."""
    sthist.tl.virtual_he(backed)
    with pytest.raises(ValueError, match="exists. Pass overwrite=True"):
        sthist.tl.virtual_he(backed, dry_run=True)
    assert sthist.tl.virtual_he(backed, dry_run=True, overwrite=True).tiles == 4
    with pytest.raises(KeyError, match="Did you mean"):
        sthist.tl.virtual_he(backed, image="morphology_focu", key_added="other", dry_run=True)


def test_too_small_a_disk_is_refused_before_the_run(backed, monkeypatch):
    only_free(monkeypatch, 300_000)
    with pytest.raises(OSError, match=r"virtual_he needs about .* MB more in .*, where 0 MB are free") as caught:
        sthist.tl.virtual_he(backed)
    assert caught.value.errno == errno.ENOSPC
    assert sorted(sd.read_zarr(backed.path).images) == ["he", "morphology_focus"]
    monkeypatch.undo()
    sthist.tl.virtual_he(backed)


def test_compression_counts(tmp_path, monkeypatch):
    """What is white takes no room: less than the uncompressed size need be free."""
    canvas = Canvas(tmp_path / "c", "image", extent_um=(0, 0, 1000, 1000), mpp=1.0, fingerprint={})
    reader = sthist.tiles.TileReader.from_array(
        np.zeros((1, 10, 10), np.uint8), np.eye(3), sthist.tiles.TileSpec.from_mpp(1.0, 128)
    )
    only_free(monkeypatch, 100_000)

    def white(tiles):
        return np.full((*tiles.shape[:3], 3), 255, np.uint8)

    def noise(tiles):
        return np.random.default_rng(0).integers(0, 255, (*tiles.shape[:3], 3)).astype(np.uint8)

    with pytest.raises(OSError, match="image needs about [12] MB more"):
        sthist.tiles.map_tiles([reader], noise, canvas)
    sthist.tiles.map_tiles([reader], white, canvas)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_full_in_the_middle(backed, monkeypatch, code):
    """Which disk, what to do; the elements of before; and the same call goes on when there is room."""
    write = Canvas.write

    def full(self, block, pixels):
        raise OSError(code, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Canvas, "write", full)
        with pytest.raises(OSError, match=r"The disk of .*toy.zarr is full .* Make room there") as caught:
            sthist.tl.virtual_he(backed)
    assert caught.value.errno == code
    assert Canvas.write is write
    assert sorted(sd.read_zarr(backed.path).images) == ["he", "morphology_focus"]
    sthist.tl.virtual_he(backed)
    assert "virtual_he" in sd.read_zarr(backed.path).images


def test_full_disk_while_a_table_is_written(backed, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("sthist._store.store.commit", full)
    with pytest.raises(OSError, match="is full"):
        sthist.pp.tissue(backed)
    assert "tissue" not in backed.shapes
    assert "tissue" not in sd.read_zarr(backed.path).shapes


def test_other_errors_of_the_system_are_left_alone(backed, monkeypatch):
    def fails(self, block, pixels):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Canvas, "write", fails)
    with pytest.raises(OSError, match="Input/output error") as caught:
        sthist.tl.virtual_he(backed)
    assert caught.value.errno == errno.EIO


def test_sample_spreads_over_what_is_pending():
    layout = Layout.over((0, 0, 10_000, 6_000), 1.0)
    chunks = estimate._spread(layout.blocks(), 12)
    assert len({(c.y0 // 2048, c.x0 // 2048) for c in chunks}) == 12
    assert all(c.y0 % 512 == c.x0 % 512 == 0 for c in chunks)
    assert all(0 < c.y1 - c.y0 <= 512 and 0 < c.x1 - c.x0 <= 512 for c in chunks)
