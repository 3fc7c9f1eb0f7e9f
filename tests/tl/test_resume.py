"""A run that is stopped, in whatever way, is continued by the same call and gives the same image."""

from __future__ import annotations

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
from sthist.models import BeerLambert
from sthist.models._base import Stainer
from sthist.tiles import _canvas


class Counting(BeerLambert):
    """The built-in model, which counts its batches and fails at one of them."""

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

        return Stainer(stainer.readers, predict, stainer.facts, stainer.overlap, stainer.concurrent)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A section of 700 µm on disk, and its image from a run that nothing stopped; blocks of 512 pixels, 9 of them."""
    folder = tmp_path_factory.mktemp("stored")
    sdata = sthist.datasets.toy(size_um=700)
    sdata.write(folder / "toy.zarr")
    shutil.copytree(folder / "toy.zarr", folder / "whole.zarr")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_canvas, "BLOCK_PX", 512)
        whole = sd.read_zarr(folder / "whole.zarr")
        sthist.tl.virtual_he(whole, Counting(), progress=False)
    return folder / "toy.zarr", [whole["virtual_he"][scale].image.to_numpy() for scale in whole["virtual_he"].children]


def pyramid(sdata):
    return [sdata["virtual_he"][scale].image.to_numpy() for scale in sdata["virtual_he"].children]


def assert_equal(found, expected):
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("seed", range(20))
def test_exception_at_a_random_block(stored, tmp_path, monkeypatch, seed):
    """The store opens with what it had; the second call computes only what is missing; the image is the same."""
    monkeypatch.setattr(_canvas, "BLOCK_PX", 512)
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


def test_exception_in_memory(monkeypatch):
    """An object in memory continues from the scratch folder."""
    monkeypatch.setattr(_canvas, "BLOCK_PX", 512)
    sdata = sthist.datasets.toy(size_um=600)
    with pytest.raises(RuntimeError):
        sthist.tl.virtual_he(sdata, Counting(fail_at=6))
    assert "virtual_he" not in sdata.images
    again = Counting()
    sthist.tl.virtual_he(sdata, again)
    assert again.calls < 9
    other = sthist.datasets.toy(size_um=600)
    sthist.tl.virtual_he(other, Counting(), key_added="whole")
    np.testing.assert_array_equal(pyramid(sdata)[0], other["whole"]["scale0"].image.to_numpy())


@pytest.mark.parametrize("seed", range(5))
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
    monkeypatch.setattr(_canvas, "BLOCK_PX", 512)
    again = Counting()
    sthist.tl.virtual_he(between, again)
    assert again.calls == 9 - n_done
    assert_equal(pyramid(sd.read_zarr(tmp_path / "s.zarr")), stored[1])


@pytest.mark.parametrize("consolidated", [True, False])
@pytest.mark.parametrize("step", ["before the move", "after the move", "before the entry is put in place"])
def test_killed_while_publishing(stored, tmp_path, monkeypatch, step, consolidated):
    """Before the move nothing has changed; after it, the next writing verb enters what is there."""

    class Killed(BaseException):
        """As good as a kill: nothing catches it."""

    def die(*_args, **_kwargs):
        raise Killed

    monkeypatch.setattr(_canvas, "BLOCK_PX", 512)
    store = tmp_path / "s.zarr"
    shutil.copytree(stored[0], store)
    if not consolidated:
        root = json.loads((store / "zarr.json").read_text())
        root.pop("consolidated_metadata")
        (store / "zarr.json").write_text(json.dumps(root))
    sdata = sd.read_zarr(store)
    names = {"before the move": "_move", "after the move": "_enter"}
    with monkeypatch.context() as patch:
        if step == "before the entry is put in place":
            replace = os.replace
            patch.setattr(os, "replace", lambda a, b: die() if b == store / "zarr.json" else replace(a, b))
        else:
            patch.setattr(_store, names[step], die)
        with pytest.raises(Killed):
            sthist.tl.virtual_he(sdata)
    between = sd.read_zarr(store)
    assert sorted(between.images) in (["he", "morphology_focus"], ["he", "morphology_focus", "virtual_he"])
    if "virtual_he" in between.images:
        assert_equal(pyramid(between), stored[1])
    sthist.pp.tissue(between, key_added="outline")
    after = sd.read_zarr(store)
    assert "outline" in after.shapes
    if step == "before the move":
        sthist.tl.virtual_he(after, Counting(fail_at=1))  # all blocks are done
        after = sd.read_zarr(store)
    assert after.has_consolidated_metadata() == consolidated
    assert set(after.attrs["sthist"]["results"]) == {"outline", "virtual_he"}
    assert_equal(pyramid(after), stored[1])


@pytest.mark.parametrize("exchange", [True, False])
def test_killed_while_replacing(stored, tmp_path, monkeypatch, exchange):
    """Just after the new image is in place: the same call again gives the new image, not the one it replaced."""

    class Killed(BaseException):
        """As good as a kill."""

    store = tmp_path / "s.zarr"
    shutil.copytree(stored[0], store)
    monkeypatch.setattr(_canvas, "BLOCK_PX", 512)
    sdata = sd.read_zarr(store)
    dark = BeerLambert(sthist.models.BeerLambertConfig(haematoxylin=(0.5, 3.0)))
    sthist.tl.virtual_he(sdata, dark)
    if not exchange:
        monkeypatch.setattr(_store, "_exchange", lambda *_: False)
    move, rmtree = _store._move, shutil.rmtree

    def die(*_args, **_kwargs):
        raise Killed

    def dies_after_the_move(source, target):
        with monkeypatch.context() as patch:
            patch.setattr(_store.shutil, "rmtree", die)
            move(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(_store, "_move", dies_after_the_move)
        with pytest.raises(Killed):
            sthist.tl.virtual_he(sdata, Counting(), overwrite=True)
    assert shutil.rmtree is rmtree
    assert_equal(pyramid(sd.read_zarr(store)), stored[1])
    again = sd.read_zarr(store)
    sthist.tl.virtual_he(again, Counting(), overwrite=True)
    assert_equal(pyramid(sd.read_zarr(store)), stored[1])


def test_again_after_a_kill_between_move_and_entry(stored, tmp_path, monkeypatch):
    """The canvas has gone to its place: the same call starts anew and does not look for it."""

    def die(*_args, **_kwargs):
        raise KeyboardInterrupt

    store = tmp_path / "s.zarr"
    shutil.copytree(stored[0], store)
    monkeypatch.setattr(_canvas, "BLOCK_PX", 512)
    with monkeypatch.context() as patch:
        patch.setattr(_store, "_enter", die)
        with pytest.raises(KeyboardInterrupt):
            sthist.tl.virtual_he(sd.read_zarr(store), Counting())
    sthist.pp.tissue(sd.read_zarr(store), key_added="outline")  # repairs
    with pytest.raises(ValueError, match="exists"):
        sthist.tl.virtual_he(sd.read_zarr(store), Counting())
    sthist.tl.virtual_he(sd.read_zarr(store), Counting(), overwrite=True)
    assert_equal(pyramid(sd.read_zarr(store)), stored[1])
