"""One verb on many samples."""

from __future__ import annotations

import csv
import json
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import spatialdata as sd

import sthist
from sthist.cli import commands
from sthist.cli.batch import Batch, Running, available_memory, fits, parse_value, read_tasks


def rows(path):
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


def write_csv(path, columns, *lines):
    path.write_text("\n".join([columns, *lines]) + "\n")
    return path


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Six stores, the fourth of which has lost its nuclear stain's first chunk file of metadata."""
    folder = tmp_path_factory.mktemp("study")
    for i in range(6):
        sthist.datasets.toy(size_um=200, seed=i).write(folder / f"s{i}.zarr")
    (folder / "s3.zarr" / "images" / "morphology_focus" / "zarr.json").write_text("{")
    return folder


def test_five_of_six(study, tmp_path, capsys, monkeypatch):
    """Five results and a row of error; the second call does what is missing alone, the third nothing."""
    folder = tmp_path / "study"
    shutil.copytree(study, folder)
    table = write_csv(
        folder / "samples.csv",
        "sample,path,patient,batch,mpp,site",
        *(f"case {i}/a,s{i}.zarr,P{i},b1,{'1.0' if i == 2 else ''},Basel" for i in range(6)),
    )
    assert commands.main(["run", "tl.virtual_he", str(table)]) == 1
    out = capsys.readouterr()
    assert "5 of 6 samples are done" in out.out
    assert "1 failed" in out.err
    (error,) = rows(folder / "samples.run" / "errors.csv")
    assert error["sample"] == "case 3/a"
    assert error["message"]
    assert "Traceback" in Path(error["log"]).read_text()
    report = rows(folder / "samples.run" / "samples.csv")
    assert [row["status"] for row in report] == ["done"] * 3 + ["failed"] + ["done"] * 2
    assert all(float(row["peak_mb"]) > 100 for row in report)
    for i in (0, 1, 2, 4, 5):
        done = sd.read_zarr(folder / f"s{i}.zarr")
        assert done["virtual_he"].shape == ((3, 200, 200) if i == 2 else (3, 400, 400))
        assert done.attrs["sthist"]["sample"] == {
            "name": f"case {i}/a",
            "patient": f"P{i}",
            "batch": "b1",
            "site": "Basel",
        }
    alone = sthist.datasets.toy(size_um=200, seed=5)
    sthist.tl.virtual_he(alone)
    np.testing.assert_array_equal(done["virtual_he"].to_numpy(), alone["virtual_he"].to_numpy())

    shutil.rmtree(folder / "s3.zarr")
    sthist.datasets.toy(size_um=200, seed=3).write(folder / "s3.zarr")
    started = []
    start = Batch._start
    monkeypatch.setattr(Batch, "_start", lambda *args: started.append(args[1].sample) or start(*args))
    assert commands.main(["run", "tl.virtual_he", str(table)]) == 0
    assert started == ["case 3/a"]
    assert rows(folder / "samples.run" / "errors.csv") == []
    assert commands.main(["run", "tl.virtual_he", str(table)]) == 0
    assert started == ["case 3/a"]
    assert (
        commands.main(["run", "tl.virtual_he", str(table), "--set", "mpp=2"]) == 1
    )  # other settings: the results are in the way
    assert "exists. Pass overwrite=True" in rows(folder / "samples.run" / "errors.csv")[0]["message"]


def test_into_another_folder(study, tmp_path, capsys):
    """The stores of before stay as they are."""
    table = write_csv(tmp_path / "t.csv", "sample,path,platform", f"a,{study / 's0.zarr'},spatialdata")
    assert (
        commands.main(["run", "pp.tissue", str(table), "--out", str(tmp_path / "out"), "--set", "key_added=outline"])
        == 0
    )
    assert "outline" in sd.read_zarr(tmp_path / "out" / "a.zarr").shapes
    assert "outline" not in sd.read_zarr(study / "s0.zarr").shapes


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        ("sample,file\na,b", [], "has no column 'path'; it has ['sample', 'file']"),
        ("sample,path", [], "has no rows"),
        ("sample,path\na,x.zarr\na,y.zarr", [], "has sample 'a' more than once"),
        ("sample,path\n,x.zarr", [], "line 2: 'sample' is empty"),
        ("sample,path\nb,x.zarr\na,", [], "line 3: 'path' is empty"),
        ("sample,path,platform\na,x,xenum", [], "line 2: the platform 'xenum' is none of xenium"),
        ("sample,path,platform\na,x,xenium", [], "a folder of xenium needs a store"),
        ("sample,path,patient\na,x,P1\nb,y,p01", [], "look like one patient under two names"),
        ("sample,path\na,x.zarr", ["--set", "micron=3"], "tl.virtual_he has no argument 'micron'; it has model, image"),
        ("sample,path\na,x.zarr", ["--set", "mpp"], "--set takes NAME=VALUE, not 'mpp'"),
    ],
)
def test_wrong_tables(tmp_path, capsys, content, arguments, message):
    (tmp_path / "t.csv").write_text(content)
    assert commands.main(["run", "tl.virtual_he", str(tmp_path / "t.csv"), *arguments]) == 1
    assert message in capsys.readouterr().err


def test_wrong_verb(tmp_path, capsys):
    write_csv(tmp_path / "t.csv", "sample,path", "a,x.zarr")
    assert commands.main(["run", "tl.virtual", str(tmp_path / "t.csv")]) == 1
    assert "There is no verb 'tl.virtual'; there are pp.aggregate, pp.align, " in capsys.readouterr().err
    assert commands.main(["run", "tl.virtual_he", str(tmp_path / "none.csv")]) == 1
    assert "There is no table of samples" in capsys.readouterr().err


def test_a_process_that_dies(study, tmp_path, monkeypatch):
    """Killed for memory, say: one row of error, and the rest go on."""
    script = tmp_path / "python"
    script.write_text(
        f'#!/bin/sh\nread job\ncase "$job" in *doomed*) kill -9 $$;; *) printf \'%s\' "$job" | {sys.executable} '
        f'"$@";; esac\n'
    )
    script.chmod(0o755)
    table = write_csv(tmp_path / "t.csv", "sample,path", f"doomed,{study / 's0.zarr'}", f"lives,{study / 's1.zarr'}")
    tasks = read_tasks(table, "pp.tissue", tmp_path / "out", {})
    batch = Batch(tasks, tmp_path / "run")
    monkeypatch.setattr(sys, "executable", str(script))
    monkeypatch.setattr(Batch, "_start", _with_newline(Batch._start))
    assert batch.run(jobs=2) == 1
    (error,) = rows(tmp_path / "run" / "errors.csv")
    assert error["message"] == f"The process was killed by {signal.SIGKILL.name}; is there enough memory?"
    assert "tissue" in sd.read_zarr(tmp_path / "out" / "lives.zarr").shapes


def _with_newline(start):
    """The shell reads a line."""

    def started(self, task, threads):
        dumps = json.dumps
        json.dumps = lambda value: dumps(value) + "\n"
        try:
            return start(self, task, threads)
        finally:
            json.dumps = dumps

    return started


def test_memory_decides_how_many(monkeypatch):
    """The first runs alone; then as many as fit at the size of the largest so far."""
    import psutil

    class Process:
        def __init__(self, pid):
            pass

        def memory_info(self):
            return type("Info", (), {"rss": 1_000_000_000})

    class Handle:
        pid = 1

    monkeypatch.setattr(psutil, "Process", Process)
    one = Running(None, Handle(), 0.0)
    assert fits([], 0)
    assert not fits([one], 0)
    monkeypatch.setattr("sthist.cli.batch.available_memory", lambda: 4_000_000_000)
    assert fits([one], 2_000_000_000)  # 1.4 GB to come, 2.4 GB for the next: 3.8
    monkeypatch.setattr("sthist.cli.batch.available_memory", lambda: 3_700_000_000)
    assert not fits([one], 2_000_000_000)
    monkeypatch.undo()
    assert 0 < available_memory() <= psutil.virtual_memory().total


def test_values():
    assert [parse_value(text) for text in ("1.5", "true", "null", "[1, 2]", "beer-lambert")] == [
        1.5,
        True,
        None,
        [1, 2],
        "beer-lambert",
    ]
