"""A run on the workers of a cluster gives the image of a local one, whatever becomes of them."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pickle
import shutil
import signal
import stat
import threading
import time

import numpy as np
import pytest
import spatialdata as sd
from cluster import SlowStain, two_workers

import sthist
from sthist.models import BeerLambert
from sthist.tiles import Canvas
from sthist.tiles._blocks import dask_run


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    with two_workers(tmp_path_factory.mktemp("dask")) as client:
        yield client


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A section of 700 µm on disk, and its image from a local run; blocks of 512 pixels, 9 of them."""
    folder = tmp_path_factory.mktemp("stored")
    sthist.datasets.toy(size_um=700).write(folder / "toy.zarr")
    shutil.copytree(folder / "toy.zarr", folder / "whole.zarr")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sthist.tiles._blocks.canvas.BLOCK_PX", 512)
        whole = sd.read_zarr(folder / "whole.zarr")
        sthist.tl.virtual_he(whole, progress=False)
    return folder / "toy.zarr", pyramid(whole)


def pyramid(sdata):
    return [sdata["virtual_he"][scale].image.to_numpy() for scale in sdata["virtual_he"].children]


def assert_equal(found, expected):
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture
def store(stored, tmp_path, monkeypatch):
    monkeypatch.setattr("sthist.tiles._blocks.canvas.BLOCK_PX", 512)
    shutil.copytree(stored[0], tmp_path / "s.zarr")
    return tmp_path / "s.zarr"


def test_bit_identical(client, stored, store, tmp_path):
    """Both workers take part, each loads the model once, and nothing but the image stays in the store."""
    sdata = sd.read_zarr(store)
    sthist.tl.virtual_he(sdata, SlowStain(tmp_path / "log"), client=client)
    assert_equal(pyramid(sd.read_zarr(store)), stored[1])
    lines = (tmp_path / "log").read_text().split("\n")
    loaded = [line for line in lines if line.startswith("loaded")]
    predicted = [line for line in lines if line.startswith("predicted")]
    assert len(loaded) == len(set(loaded)) == 2
    assert len(predicted) == 9
    assert len(set(predicted)) == 2
    assert str(os.getpid()) not in " ".join(lines)
    assert not (store / ".sthist" / "virtual_he").exists()
    assert client.run(lambda: len(dask_run._jobs)) == dict.fromkeys(client.scheduler_info()["workers"], 0)


@pytest.mark.slow
def test_a_worker_is_killed_half_way(client, stored, store, tmp_path):
    log = tmp_path / "log"
    sdata = sd.read_zarr(store)
    pid = next(iter(client.run(os.getpid).values()))

    def kill():
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if log.exists() and log.read_text().count("predicted") >= 3:
                os.kill(pid, signal.SIGKILL)
                return
            time.sleep(0.01)

    killer = threading.Thread(target=kill)
    killer.start()
    sthist.tl.virtual_he(sdata, SlowStain(log, 0.3), client=client)
    killer.join()
    assert_equal(pyramid(sd.read_zarr(store)), stored[1])
    assert log.read_text().count("predicted") >= 9
    client.wait_for_workers(2, timeout=60)


@pytest.mark.slow
def test_resumed_on_a_cluster(client, stored, store, tmp_path):
    """What a local run has left is what the cluster computes."""

    class Stops(BeerLambert):
        __module__ = BeerLambert.__module__  # known by its config alone

        def prepare(self, *args, **kwargs):
            stainer = super().prepare(*args, **kwargs)
            calls = []

            def predict(*tiles):
                calls.append(1)
                if len(calls) > 4:
                    msg = "stopped"
                    raise RuntimeError(msg)
                return stainer.predict(*tiles)

            return type(stainer)(stainer.readers, predict, stainer.facts, stainer.overlap, stainer.concurrent)

    with pytest.raises(RuntimeError, match="stopped"):
        sthist.tl.virtual_he(sd.read_zarr(store), Stops())
    done = len(list((store / ".sthist" / "virtual_he" / "done").iterdir()))
    assert done
    sthist.tl.virtual_he(sd.read_zarr(store), SlowStain(tmp_path / "log"), client=client)
    assert (tmp_path / "log").read_text().count("predicted") == 9 - done
    assert_equal(pyramid(sd.read_zarr(store)), stored[1])


def test_an_error_on_a_worker(client, store):
    """It reaches the caller as it is, and leaves the store as it was."""

    class Fails(BeerLambert):
        def prepare(self, *args, **kwargs):
            stainer = super().prepare(*args, **kwargs)

            def predict(*tiles):
                msg = "the lights went out"
                raise ValueError(msg)

            return type(stainer)(stainer.readers, predict, stainer.facts, stainer.overlap, stainer.concurrent)

    with pytest.raises(ValueError, match="the lights went out"):
        sthist.tl.virtual_he(sd.read_zarr(store), Fails(), client=client)
    assert sorted(sd.read_zarr(store).images) == ["he", "morphology_focus"]


def test_workers_that_do_not_see_the_store(client, store, monkeypatch):
    written = dask_run.write_job

    def elsewhere(job, path):
        ticket = written(job, path)
        return dataclasses.replace(ticket, path=ticket.path.replace("s.zarr", "gone.zarr"))

    monkeypatch.setattr("sthist.tiles._blocks.dask_run.write_job", elsewhere)
    with pytest.raises(RuntimeError, match=r"2 of the cluster's workers cannot take part:\n.*does not see .*gone.zarr"):
        sthist.tl.virtual_he(sd.read_zarr(store), client=client)


def test_workers_of_another_version(client, store, monkeypatch):
    monkeypatch.setattr("sthist.tiles._blocks.dask_run._versions", lambda: {"Python": "3.8", "sthist": "9.9"})
    with pytest.raises(RuntimeError, match=r"it runs Python 3\.\d+ instead of 3.8, sthist .* instead of 9.9"):
        sthist.tl.virtual_he(sd.read_zarr(store), client=client)


def test_another_file_under_the_path(client, store, monkeypatch):
    """Nothing is unpickled that this run did not write."""
    written = dask_run.write_job

    def exchanged(job, path):
        ticket = written(job, path)
        path.write_bytes(b"something else")
        return ticket

    monkeypatch.setattr("sthist.tiles._blocks.dask_run.write_job", exchanged)
    with pytest.raises(RuntimeError, match="is not the job of this run"):
        sthist.tl.virtual_he(sd.read_zarr(store), client=client)


def test_in_memory_is_refused(client, toy):
    with pytest.raises(ValueError, match="client= needs an object on disk"):
        sthist.tl.virtual_he(toy, client=client)


def test_no_client(store):
    with pytest.raises(TypeError, match=r"takes a dask.distributed.Client, not str"):
        sthist.tl.virtual_he(sd.read_zarr(store), client="tcp://localhost:8786")


def test_a_running_client_is_not_picked_up(client, stored, store, tmp_path):
    """A client that exists, but was not given, computes nothing."""
    sthist.tl.virtual_he(sd.read_zarr(store), SlowStain(tmp_path / "log", 0))
    assert set((tmp_path / "log").read_text().split("\n")) == {f"predicted {os.getpid()}", ""}


def test_job_file(tmp_path):
    """Only this user can read it; arrays come back equal, and writing to them leaves the file alone."""
    rng = np.random.default_rng(0)
    job = {"small": 3, "arrays": [rng.normal(size=(50, 7)), np.arange(5, dtype=np.uint8), np.empty((0, 3))]}
    ticket = dask_run.write_job(job, tmp_path / "job")
    assert stat.S_IMODE((tmp_path / "job").stat().st_mode) == 0o600
    content = (tmp_path / "job").read_bytes()
    back = dask_run.read_job(ticket)
    assert back["small"] == 3
    for a, b in zip(back["arrays"], job["arrays"], strict=True):
        np.testing.assert_array_equal(a, b)
    back["arrays"][0][:] = 0
    assert (tmp_path / "job").read_bytes() == content
    np.testing.assert_array_equal(dask_run.read_job(ticket)["arrays"][0], job["arrays"][0])


class Harmful:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def test_a_job_file_that_changes_after_it_was_checked(tmp_path, monkeypatch):
    """What is unpickled is what was checked, also where the file is written to in between."""
    path, mark = tmp_path / "job", tmp_path / "mark"
    path.write_bytes(b"of a run that was killed")
    path.chmod(0o666)
    before = os.umask(0)
    try:
        ticket = dask_run.write_job({"a": np.arange(10**5)}, path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    harmful = pickle.dumps(Harmful(mark))
    sha256 = hashlib.sha256

    def exchanging(content):
        digest = sha256(content)
        with path.open("r+b") as file:
            file.write(harmful.ljust(ticket.sizes[0], b"."))
        return digest

    monkeypatch.setattr(hashlib, "sha256", exchanging)
    np.testing.assert_array_equal(dask_run.read_job(ticket)["a"], np.arange(10**5))
    assert not mark.exists()
    monkeypatch.undo()
    with pytest.raises(RuntimeError, match="is not the job of this run"):
        dask_run.read_job(ticket)
    assert not mark.exists()


@pytest.mark.parametrize("in_memory", [True, False])
def test_overlay_on_a_cluster(client, backed, tmp_path, monkeypatch, in_memory):
    """Transcripts are drawn by workers as they are here, whether they lie in memory or in a file."""
    if not in_memory:
        monkeypatch.setattr("sthist.tiles._molecules.index.IN_MEMORY", 10)
    overlay = sthist.tiles.Overlay(backed, sthist.tiles.TileSpec.from_mpp(0.5, 128), dot_s=0.9)
    pixels = []
    for name, given in (("here", None), ("there", client)):
        canvas = Canvas(tmp_path / name, "dots", extent_um=(0, 0, 400, 400), mpp=0.5, fingerprint={}, block_px=512)
        sthist.tiles.map_tiles([overlay], np.copy, canvas, overlap=0, client=given)
        pixels.append(sd.read_zarr(canvas.store)["dots"].to_numpy())
    np.testing.assert_array_equal(*pixels)
    assert pixels[0].std() > 1
