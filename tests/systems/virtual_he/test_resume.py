"""A run that is stopped, in whatever way, is continued by the same call and gives the same image."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import spatialdata as sd

import sthist
from sthist import _store
from sthist._store import commit
from sthist.models import BeerLambert
from sthist.systems.virtual_he.generator import PreparedSection
from sthist.tiles._images.image import pyramid as levels


class Counting(BeerLambert):
    """The built-in model, which counts its batches and fails at one of them."""

    __module__ = BeerLambert.__module__  # as the package's own, which is known by its config: it may be continued

    def __init__(self, fail_at=None):
        super().__init__()
        self.calls, self.fail_at = 0, fail_at

    def prepare(self, *args, **kwargs):
        stainer = super().prepare(*args, **kwargs)

        def predict(*tiles):
            self.calls += 1
            if self.calls == self.fail_at:
                msg = "the lights went out"
                raise RuntimeError(msg)
            return stainer.predict(*tiles)

        return PreparedSection(stainer.readers, predict, stainer.facts, stainer.overlap, stainer.concurrent)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A section of 700 µm on disk, and its image from a run that nothing stopped; blocks of 512 pixels, 9 of them."""
    return with_image(tmp_path_factory.mktemp("stored"), 700)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The same of 200 µm, where the steps count and not the pixels."""
    return with_image(tmp_path_factory.mktemp("small"), 200)


def with_image(folder, size_um):
    sthist.datasets.toy(size_um=size_um).write(folder / "toy.zarr")
    shutil.copytree(folder / "toy.zarr", folder / "whole.zarr")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sthist.tiles._blocks.canvas.BLOCK_PX", 512)
        whole = sd.read_zarr(folder / "whole.zarr")
        sthist.tl.virtual_he(whole, Counting(), progress=False)
    return folder / "toy.zarr", pyramid(whole)


def pyramid(sdata):
    return [level.to_numpy() for level in levels(sdata["virtual_he"])]


def assert_equal(found, expected):
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("seed", range(6))
def test_exception_at_a_random_block(stored, tmp_path, monkeypatch, seed):
    """The store opens with what it had; the second call computes only what is missing; the image is the same."""
    monkeypatch.setattr("sthist.tiles._blocks.canvas.BLOCK_PX", 512)
    rng = np.random.default_rng(seed)
    shutil.copytree(stored[0], tmp_path / "s.zarr")
    sdata = sd.read_zarr(tmp_path / "s.zarr")
    model = Counting(fail_at=int(rng.integers(1, 10)))
    with pytest.raises(RuntimeError, match="the lights went out"):
        sthist.tl.virtual_he(sdata, model)
    between = sd.read_zarr(tmp_path / "s.zarr")
    assert sorted(between.images) == ["he", "morphology_focus"]
    assert "results" not in between.attrs["sthist"]
    done = len(list((tmp_path / "s.zarr" / ".sthist" / "virtual_he" / "done").iterdir()))
    again = Counting()
    sthist.tl.virtual_he(between, again)
    assert again.calls == 9 - done
    assert_equal(pyramid(sd.read_zarr(tmp_path / "s.zarr")), stored[1])


def test_files_that_were_being_written_are_not_published(stored, tmp_path, monkeypatch):
    """A chunk is written beside its place first; a kill just then leaves the file there, under a name of its own."""
    monkeypatch.setattr("sthist.tiles._blocks.canvas.BLOCK_PX", 512)
    shutil.copytree(stored[0], tmp_path / "s.zarr")
    sdata = sd.read_zarr(tmp_path / "s.zarr")
    with pytest.raises(RuntimeError, match="the lights went out"):
        sthist.tl.virtual_he(sdata, Counting(fail_at=5))
    chunk = next(file for file in (tmp_path / "s.zarr" / ".sthist").rglob("c/*/*/*") if file.is_file())
    left = chunk.with_name(f"{chunk.name}.{'0f' * 16}.partial")
    left.write_bytes(b"half a chunk")
    sthist.tl.virtual_he(sdata, Counting())
    assert_equal(pyramid(sdata), stored[1])
    assert not list((tmp_path / "s.zarr").rglob("*.partial"))


def test_exception_in_memory(monkeypatch):
    """An object in memory continues from the scratch folder."""
    monkeypatch.setattr("sthist.tiles._blocks.canvas.BLOCK_PX", 512)
    sdata = sthist.datasets.toy(size_um=600)
    with pytest.raises(RuntimeError):
        sthist.tl.virtual_he(sdata, Counting(fail_at=6))
    assert "virtual_he" not in sdata.images
    again = Counting()
    sthist.tl.virtual_he(sdata, again)
    assert again.calls < 9
    other = sthist.datasets.toy(size_um=600)
    sthist.tl.virtual_he(other, Counting(), key_added="whole")
    np.testing.assert_array_equal(pyramid(sdata)[0], levels(other["whole"])[0].to_numpy())


@pytest.mark.parametrize("seed", range(2))
def test_sigkill_at_a_random_moment(stored, tmp_path, monkeypatch, seed):
    """SIGKILL: the store opens with what it had, and the resumed image is bit-identical."""
    shutil.copytree(stored[0], tmp_path / "s.zarr")
    done = tmp_path / "s.zarr" / ".sthist" / "virtual_he" / "done"
    script = Path(__file__).with_name("interrupted.py")
    process = subprocess.Popen([sys.executable, script, tmp_path / "s.zarr"])
    wanted = int(np.random.default_rng(seed).integers(1, 7))
    deadline = time.monotonic() + 120
    while not (done.exists() and len(list(done.iterdir())) >= wanted):
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline, "the run does not get on"
        time.sleep(0.005)
    process.kill()
    process.wait()
    between = sd.read_zarr(tmp_path / "s.zarr")
    assert sorted(between.images) == ["he", "morphology_focus"]
    n_done = len(list(done.iterdir()))
    assert 0 < n_done < 9
    monkeypatch.setattr("sthist.tiles._blocks.canvas.BLOCK_PX", 512)
    again = Counting()
    sthist.tl.virtual_he(between, again)
    assert again.calls == 9 - n_done
    assert_equal(pyramid(sd.read_zarr(tmp_path / "s.zarr")), stored[1])


class Killed(BaseException):
    """As good as a kill: nothing catches it."""


def publish_until(patch, last):
    """Let a run die before one of the steps of publishing that change the store; a larger number lets it live."""
    steps = []

    def stepping(call):
        def step(*args):
            if len(steps) == last:
                raise Killed
            steps.append(call.__name__)
            return call(*args)

        return step

    publish = _store.publish

    def watched(*args):
        for module, name in ((os, "rename"), (os, "replace"), (os, "symlink"), (commit, "exchange")):
            patch.setattr(module, name, stepping(getattr(module, name)))
        publish(*args)

    patch.setattr(_store, "publish", watched)


@pytest.mark.parametrize(
    ("taken", "consolidated"),
    [
        (taken, consolidated)
        for taken in ("fresh", "overwrite", "overwrite, no exchange")
        for consolidated in (True, False)
    ],
)
@pytest.mark.slow
def test_killed_at_each_step_of_publishing(small, tmp_path, monkeypatch, taken, consolidated):
    """Elements and attributes are those of before or the complete result.

    The next writing verb puts the store in order.
    """
    monkeypatch.setattr("sthist.tiles._blocks.canvas.BLOCK_PX", 512)
    first = tmp_path / "first.zarr"
    shutil.copytree(small[0], first)
    if taken != "fresh":
        dark = BeerLambert(sthist.models.BeerLambertConfig(haematoxylin=(0.5, 3.0)))
        sthist.tl.virtual_he(sd.read_zarr(first), dark)
    if not consolidated:
        root = json.loads((first / "zarr.json").read_text())
        root.pop("consolidated_metadata")
        (first / "zarr.json").write_text(json.dumps(root))
    if "no exchange" in taken:
        monkeypatch.setattr("sthist._store.commit.exchange", lambda *_: False)
    before = sd.read_zarr(first)
    with monkeypatch.context() as patch:  # all blocks are done: what follows does nothing but publish
        publish_until(patch, 0)
        with pytest.raises(Killed):
            sthist.tl.virtual_he(before, Counting(), overwrite=True)
    seen = set()
    for last in range(40):
        store = tmp_path / f"{last}.zarr"
        shutil.copytree(first, store)
        with monkeypatch.context() as patch:
            publish_until(patch, last)
            try:
                sthist.tl.virtual_he(sd.read_zarr(store), Counting(), overwrite=True)
            except Killed:
                died = True
            else:
                died = False
        between = sd.read_zarr(store)
        if "no exchange" in taken and "virtual_he" not in between.images:
            assert sorted(between.images) == ["he", "morphology_focus"]  # documented: for a moment there is neither
        elif between.attrs == before.attrs:
            seen.add("before")
            assert sorted(between.images) == sorted(before.images)
            if taken != "fresh":
                assert_equal(pyramid(between), pyramid(before))
        else:
            seen.add("after")
            made = between.attrs["sthist"]["results"]["virtual_he"]
            assert made["config"] == default_config()
            assert_equal(pyramid(between), small[1])
        sthist.pp.tissue(between, key_added="outline")
        sthist.tl.virtual_he(sd.read_zarr(store), Counting(), overwrite=True)
        after = sd.read_zarr(store)
        assert after.has_consolidated_metadata() == consolidated
        assert set(after.attrs["sthist"]["results"]) == {"outline", "virtual_he"}
        assert_equal(pyramid(after), small[1])
        assert {path.name for path in (store / ".sthist").iterdir()} <= {".lock"}
        shutil.rmtree(store)
        if not died:
            break
    assert not died
    assert seen == {"before", "after"}


def default_config():
    """Settings of the default model, as JSON keeps them."""
    return json.loads(json.dumps(dataclasses.asdict(BeerLambert().config)))
