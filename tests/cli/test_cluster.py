"""A study on the workers of a dask cluster."""

from __future__ import annotations

import csv
import os
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import spatialdata as sd
from cluster import two_workers
from distributed import Client

import sthist
from sthist.cli import commands
from sthist.cli.batch import Batch, read_tasks
from sthist.cli.cluster import workers_of

DOOMED = """#!{python}
import os, signal, sys
job = sys.stdin.buffer.readline()
if b"doomed" in job:
    os.kill(os.getppid(), signal.SIGKILL)  # the worker
    os.kill(os.getpid(), signal.SIGKILL)
read, write = os.pipe()
os.write(write, job)
os.dup2(read, 0)
os.set_inheritable(write, True)
os.execv({python!r}, [{python!r}, *sys.argv[1:]])
"""
SLOW = """#!{python}
import os, sys, time
open({mark!r}, "w").write(str(os.getpid()))
time.sleep(600)
"""


def rows(path):
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


def write_csv(path, columns, *lines):
    path.write_text("\n".join([columns, *lines]) + "\n")
    return path


def script(path, content, **words):
    path.write_text(content.format(python=sys.executable, **words))
    path.chmod(0o755)
    return str(path)


def run_with(client, executable):
    """Let the workers start another program for Python."""

    def change(executable):
        import sys

        sys.executable = executable

    client.run(change, executable)


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores")
    for i in range(3):
        sthist.datasets.toy(size_um=200, seed=i).write(folder / f"s{i}.zarr")
    return folder


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    with two_workers(tmp_path_factory.mktemp("dask")) as client:
        yield client


def test_the_same_as_in_processes_of_this_machine(stores, tmp_path, client, capsys):
    """Results, tables and errors; and what one has done, the other does not do again."""
    shutil.copytree(stores, tmp_path / "in")
    (tmp_path / "in" / "s1.zarr" / "images" / "morphology_focus" / "zarr.json").write_text("{")
    table = write_csv(tmp_path / "t.csv", "sample,path,mpp", *(f"s{i},in/s{i}.zarr,2" for i in range(3)))
    where = {"here": [], "there": ["--dask", client.scheduler.address]}
    for name, flags in where.items():
        assert commands.main(["run", "tl.virtual_he", str(table), "--out", str(tmp_path / name), *flags]) == 1
        assert "2 of 3 samples are done" in capsys.readouterr().out
    for i in (0, 2):
        here, there = (sd.read_zarr(tmp_path / name / f"s{i}.zarr")["virtual_he"].to_numpy() for name in where)
        np.testing.assert_array_equal(here, there)
    errors = [rows(tmp_path / name / "errors.csv") for name in where]
    assert [[row["sample"] for row in each] for each in errors] == [["s1"], ["s1"]]
    assert errors[0][0]["error"] == errors[1][0]["error"]
    assert all("Traceback" in Path(each[0]["log"]).read_text() for each in errors)
    report = rows(tmp_path / "there" / "samples.csv")
    assert [row["status"] for row in report] == ["done", "failed", "done"]
    assert all(float(row["peak_mb"]) > 100 for row in report)
    assert not list((tmp_path / "there" / "state").glob(".cluster*"))
    batch = Batch(read_tasks(table, "tl.virtual_he", tmp_path / "there", {}), tmp_path / "there")
    assert [task.sample for task in batch.pending()] == ["s1"]


def test_a_worker_that_dies(stores, tmp_path):
    """One row of error, and the rest go on."""
    table = write_csv(tmp_path / "t.csv", "sample,path", *(f"{n},{stores / 's0.zarr'}" for n in ("doomed", "a", "b")))
    with two_workers(tmp_path / "dask") as client:
        run_with(client, script(tmp_path / "python", DOOMED))
        call = ["run", "pp.tissue", str(table), "--out", str(tmp_path / "out"), "--dask", client.scheduler.address]
        assert commands.main(call) == 1
    (error,) = rows(tmp_path / "out" / "errors.csv")
    assert error["sample"] == "doomed"
    assert "was lost with the sample; is there enough memory?" in error["message"]
    for name in ("a", "b"):
        assert "tissue" in sd.read_zarr(tmp_path / "out" / f"{name}.zarr").shapes


@pytest.mark.parametrize("how", ["stopped", "gone"])
def test_processes_end_with_the_run(stores, tmp_path, client, how):
    """Whether it is stopped, or its client vanishes."""
    table = write_csv(tmp_path / "t.csv", "sample,path", f"a,{stores / 's0.zarr'}")
    mark = tmp_path / "pid"
    before = client.run(lambda: __import__("sys").executable)
    run_with(client, script(tmp_path / "python", SLOW, mark=str(mark)))
    try:
        tasks = read_tasks(table, "pp.tissue", tmp_path / "out", {})
        batch = Batch(tasks, tmp_path / "out")
        with workers_of(client.scheduler.address, tmp_path / "out", None) as workers:
            assert workers.has_room([])
            running = batch._start(tasks[0], workers)
            deadline = time.monotonic() + 60
            while not (mark.exists() and mark.read_text()) and time.monotonic() < deadline:
                time.sleep(0.05)
            process = psutil.Process(int(mark.read_text()))
            assert not running.has_ended()
            if how == "stopped":
                running.stop()
                process.wait(timeout=20)
        process.wait(timeout=20)
    finally:
        run_with(client, next(iter(before.values())))


def test_addresses_that_are_none(tmp_path, capsys, stores):
    """One line, no trace."""
    table = write_csv(tmp_path / "t.csv", "sample,path", f"a,{stores / 's0.zarr'}")
    call = ["run", "pp.tissue", str(table), "--out", str(tmp_path / "out"), "--dask", "nowhere://1"]
    assert commands.main(call) == 1
    assert "nowhere" in capsys.readouterr().err


def test_a_worker_that_does_not_see_the_folder(tmp_path, client, stores):
    """It is refused before anything is run."""
    from sthist.cli.cluster import Workers
    from sthist.tiles._blocks.dask_run import write_job

    ticket = write_job(None, tmp_path / "job")
    (tmp_path / "job").unlink()
    with (
        Client(client.scheduler.address, set_as_default=False) as second,
        pytest.raises(RuntimeError, match="2 of the cluster's workers cannot take part:\n.*it does not see"),
    ):
        Workers(second, ticket, None)


def test_jobs_limit_how_many_run(tmp_path, client):
    """Of two workers, one is used."""
    with workers_of(client.scheduler.address, _made(tmp_path), 1) as workers:
        assert workers.has_room([])
        assert not workers.has_room([object()])


def _made(folder):
    os.makedirs(folder / "state")
    return folder
