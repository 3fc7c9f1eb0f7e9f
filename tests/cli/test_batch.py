"""One verb on many samples."""

from __future__ import annotations

import csv
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import spatialdata as sd

import sthist
from sthist._settings import recorded
from sthist.cli import commands
from sthist.cli.batch import Batch, Running, available_memory, find_verb, fits, parse_value, read_tasks
from sthist.cli.inputs import has_result_of, open_sample


def rows(path):
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


def write_csv(path, columns, *lines):
    path.write_text("\n".join([columns, *lines]) + "\n")
    return path


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Three stores, the second of which has lost its nuclear stain's file of metadata."""
    folder = tmp_path_factory.mktemp("study")
    for i in range(3):
        sthist.datasets.toy(size_um=200, seed=i).write(folder / f"s{i}.zarr")
    (folder / "s1.zarr" / "images" / "morphology_focus" / "zarr.json").write_text("{")
    return folder


def test_two_of_three(study, tmp_path, capsys, monkeypatch):
    """Two results and a row of error; the second call does what is missing alone, the third nothing."""
    folder = tmp_path / "study"
    shutil.copytree(study, folder)
    columns = "sample,path,patient,batch,mpp,site"
    lines = [f"case {i}/a,s{i}.zarr,P{i},b1,{'1.0' if i == 2 else ''},Basel" for i in range(3)]
    table = write_csv(folder / "samples.csv", columns, *lines)
    assert commands.main(["run", "tl.virtual_he", str(table), "--record", "site"]) == 1
    out = capsys.readouterr()
    assert "2 of 3 samples are done" in out.out
    assert "1 failed" in out.err
    (error,) = rows(folder / "samples.run" / "errors.csv")
    assert error["sample"] == "case 1/a"
    assert error["message"]
    assert "Traceback" in Path(error["log"]).read_text()
    report = rows(folder / "samples.run" / "samples.csv")
    assert [row["status"] for row in report] == ["done", "failed", "done"]
    assert all(float(row["peak_mb"]) > 100 for row in report)
    for i, px in ((0, 400), (2, 200)):
        done = sd.read_zarr(folder / f"s{i}.zarr")
        assert done["virtual_he"].shape == (3, px, px)
        alone = sthist.datasets.toy(size_um=200, seed=i)
        sthist.tl.virtual_he(alone, mpp=200 / px)
        np.testing.assert_array_equal(done["virtual_he"].to_numpy(), alone["virtual_he"].to_numpy())
        facts = {"name": f"case {i}/a", "patient": f"P{i}", "batch": "b1", "site": "Basel"}
        assert done.attrs["sthist"]["sample"] == facts

    shutil.rmtree(folder / "s1.zarr")
    sthist.datasets.toy(size_um=200, seed=1).write(folder / "s1.zarr")
    started = []
    start = Batch._start
    monkeypatch.setattr(Batch, "_start", lambda *args: started.append(args[1].sample) or start(*args))
    assert commands.main(["run", "tl.virtual_he", str(table), "--record", "site"]) == 0
    assert started == ["case 1/a"]
    assert rows(folder / "samples.run" / "errors.csv") == []
    assert commands.main(["run", "tl.virtual_he", str(table), "--record", "site"]) == 0
    assert started == ["case 1/a"]
    one = write_csv(folder / "one.csv", columns, lines[0])
    assert (
        commands.main(["run", "tl.virtual_he", str(one), "--record", "site", "--set", "mpp=2"]) == 1
    )  # other settings: the results are in the way
    assert "exists. Pass overwrite=True" in rows(folder / "one.run" / "errors.csv")[0]["message"]


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
        ("sample,path,patien\na,x.zarr,P1", [], "has a column 'patien', which is neither of sample, path"),
        ("sample,path,patien\na,x.zarr,P1", [], "Did you mean 'patient'? Remove it, or keep it"),
        ("sample,path,modle\na,x.zarr,P1", [], "Did you mean 'model'?"),
        (",sample,path\n0,a,x.zarr", [], "has cells in a column without a name (pandas: to_csv(..., index=False))"),
        ("sample,path,path\na,x.zarr,y.zarr", [], "has two columns 'path'"),
        ("sample;path\na;x.zarr", [], "Its cells are separated by ';'; write it with commas"),
        ("sample,path\na,x.zarr,y.zarr", [], "line 2 has 3 cells, and the table 2 columns"),
        ('sample,path\n\na,"x.zarr\nb,y.zarr\nc,z.zarr\n', [], 'line 3: a quote (") is opened and never closed'),
        (
            'sample,path\na,"x.zarr\nb,y.zarr"\nc,z.zarr\n',
            [],
            'line 2: a quote (") opens a cell that goes on to line 3',
        ),
        ('sample,path\na,"x.zarr\nb,"y.zarr\nc,z.zarr\n', [], 'line 2: a quote (") closes a cell in its middle'),
        ('"sample,path\na,x.zarr\n', [], 'line 1: a quote (") is opened and never closed'),
        ("sample,path\na,x\0.zarr", [], "holds bytes of zero"),
        ("sample,path\na," + "x" * 200_000, [], "line 2: this is no csv: field larger than field limit"),
        ("sample,path\na,x.zarr", ["--record", "site"], "has no column 'site'"),
        ("sample,path\na,x.zarr", ["--set", "mpp"], "--set takes NAME=VALUE, not 'mpp'"),
    ],
)
def test_wrong_tables(tmp_path, capsys, content, arguments, message):
    (tmp_path / "t.csv").write_text(content)
    assert commands.main(["run", "tl.virtual_he", str(tmp_path / "t.csv"), *arguments]) == 1
    assert message in capsys.readouterr().err


def test_a_table_in_another_encoding(tmp_path, capsys):
    """As spreadsheets write it; and what they leave behind at the right and at the end."""
    table = tmp_path / "t.csv"
    for encoding in ("utf-16", "latin-1"):
        table.write_bytes("sample,path\nMüller,x.zarr\n".encode(encoding))
        assert commands.main(["run", "tl.virtual_he", str(table)]) == 1
        assert "is no text in UTF-8 (byte" in capsys.readouterr().err
    table.write_bytes("sample,path,,\r\nMüller,x.zarr,,\r\n\r\n".encode("utf-8-sig"))
    (task,) = read_tasks(table, "tl.virtual_he", None, {})
    assert (task.sample, task.facts) == ("Müller", {})


def test_wrong_verb(tmp_path, capsys):
    write_csv(tmp_path / "t.csv", "sample,path", "a,x.zarr")
    assert commands.main(["run", "tl.virtual", str(tmp_path / "t.csv")]) == 1
    assert "There is no verb 'tl.virtual'; there are pp.aggregate, pp.align, " in capsys.readouterr().err
    assert commands.main(["run", "tl.virtual_he", str(tmp_path / "none.csv")]) == 1
    assert "There is no table of samples" in capsys.readouterr().err


DOOMED = """#!{python}
import os, signal, sys
job = sys.stdin.buffer.readline()
if b"doomed" in job:
    os.kill(os.getpid(), signal.SIGKILL)
read, write = os.pipe()
os.write(write, job)
os.dup2(read, 0)
os.set_inheritable(write, True)  # it stays open, as the pipe of a run does
os.execv({python!r}, [{python!r}, *sys.argv[1:]])
"""


def test_a_process_that_dies(study, tmp_path, monkeypatch):
    """Killed for memory, say: one row of error, and the rest go on."""
    script = tmp_path / "python"
    script.write_text(DOOMED.format(python=sys.executable))
    script.chmod(0o755)
    table = write_csv(tmp_path / "t.csv", "sample,path", f"doomed,{study / 's0.zarr'}", f"lives,{study / 's2.zarr'}")
    tasks = read_tasks(table, "pp.tissue", tmp_path / "out", {})
    batch = Batch(tasks, tmp_path / "run")
    monkeypatch.setattr(sys, "executable", str(script))
    assert batch.run(jobs=2) == 1
    (error,) = rows(tmp_path / "run" / "errors.csv")
    assert error["message"] == f"The process was killed by {signal.SIGKILL.name}; is there enough memory?"
    assert "tissue" in sd.read_zarr(tmp_path / "out" / "lives.zarr").shapes


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
    one = Running(None, Handle(), "", 0.0)
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


KILLED = """#!{python}
import json, os, runpy, signal, sys
job = sys.stdin.buffer.readline()
point = json.loads(job)["task"]["sample"]
read, write = os.pipe()
os.write(write, job)
os.dup2(read, 0)  # and it stays open, as the pipe of a run does
places = {{
    "store made": "/store_made.zarr",
    "result listed": "/result_listed.zarr/zarr.json",
    "state written": "/state/state_written.json",
}}


def is_listed():
    store = json.loads(job)["task"]["store"]
    return "tissue" in json.load(open(store + "/zarr.json"))["attributes"]["sthist"].get("results", {{}})


for name in ("rename", "replace"):

    def wrapped(source, target, real=getattr(os, name), **kwargs):
        here = str(target).endswith(places[point])
        if here and point != "result listed":  # before it
            os.kill(os.getpid(), signal.SIGKILL)
        real(source, target, **kwargs)
        if here and is_listed():  # after it
            os.kill(os.getpid(), signal.SIGKILL)

    setattr(os, name, wrapped)
sys.argv = ["sthist.cli.batch"]
runpy.run_module("sthist.cli.batch", run_name="__main__")
"""
POINTS = ("store made", "result listed", "state written")


def test_killed_at_each_step(study, tmp_path, monkeypatch, capsys):
    """Whatever was done by then, the same call finishes it, and does not do again what is done."""
    script = tmp_path / "python"
    script.write_text(KILLED.format(python=sys.executable))
    script.chmod(0o755)
    table = write_csv(tmp_path / "t.csv", "sample,path", *(f"{point},{study / 's0.zarr'}" for point in POINTS))
    call = ["run", "pp.tissue", str(table), "--out", str(tmp_path / "out"), "--jobs", "2"]
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", str(script))
        assert commands.main(call) == 1
    errors = rows(tmp_path / "out" / "errors.csv")
    assert [(row["sample"], "SIGKILL" in row["message"]) for row in errors] == [(point, True) for point in POINTS]
    for file in (tmp_path / "out" / "state").glob("*.json"):
        file.unlink()  # as where the run itself was killed, too
    assert not (tmp_path / "out" / "store_made.zarr").exists()
    done = sd.read_zarr(tmp_path / "out" / "state_written.zarr").attrs["sthist"]["results"]["tissue"]
    assert commands.main(call) == 0
    stores = {point: sd.read_zarr(tmp_path / "out" / f"{point.replace(' ', '_')}.zarr") for point in POINTS}
    assert stores["state written"].attrs["sthist"]["results"]["tissue"] == done
    (whole,) = {store["tissue"].geometry.to_wkb().sum() for store in stores.values()}
    alone = sthist.datasets.toy(size_um=200, seed=0)
    sthist.pp.tissue(alone)
    assert whole == alone["tissue"].geometry.to_wkb().sum()
    left = {path.name for path in (tmp_path / "out").iterdir()} - {
        f"{point.replace(' ', '_')}.zarr" for point in POINTS
    }
    assert left == {"state", "logs", "samples.csv", "errors.csv"}
    capsys.readouterr()
    assert commands.main(call) == 0
    assert "3 of 3 samples are done" in capsys.readouterr().out

    # A state that is damaged stops nothing, and what is done is known by the store.
    batch = Batch(read_tasks(table, "pp.tissue", tmp_path / "out", {}), tmp_path / "out")
    assert batch.pending() == []
    state = tmp_path / "out" / "state" / "state_written.json"
    whole = state.read_bytes()
    for content in (b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"status": "done"}', b"[" * 100_000, whole[:-20]):
        state.write_bytes(content)
        assert [task.sample for task in batch.pending()] == ["state written"]
        assert not state.exists()
    # And a result that has gone is made again.
    state.write_bytes(whole)
    assert batch.pending() == []
    shutil.rmtree(tmp_path / "out" / "state_written.zarr" / "shapes" / "tissue")
    assert [task.sample for task in batch.pending()] == ["state written"]


VERBS = {
    "pp.tissue": {},
    "pp.tiles": {"size_um": 64, "px": 64},
    "pp.align": {"image": "he", "to": "um", "matrix": np.diag([0.5, 0.5, 1]).tolist()},
    "pp.genes": {"table": "table"},
    "pp.embed": {"encoder": "morphology", "regions": "tiles", "progress": False},
    "pp.label_regions": {"regions": "tiles", "by": "regions"},
    "tl.virtual_he": {"mpp": 2.0},
    "tl.niches": {"label": "cell_type", "table": "table", "n_niches": 2, "method": "kmeans"},
}


def test_results_tell_the_task_that_made_them(study, tmp_path, monkeypatch):
    """In the store alone, whatever kind of result it is; another task's are not taken for it."""
    store = tmp_path / "s.zarr"
    shutil.copytree(study / "s0.zarr", store)
    for number, (verb, arguments) in enumerate(VERBS.items()):
        monkeypatch.setitem(recorded, "run", f"task {number}")
        find_verb(verb)(sd.read_zarr(store), **arguments)
        assert [has_result_of(store, f"task {each}") for each in range(number + 2)] == [True] * (number + 1) + [False]


def test_beside_a_run_that_lives(study, tmp_path, capsys, caplog):
    """It says so, and leaves the sample to that run; afterwards it goes through."""
    from filelock import FileLock

    table = write_csv(tmp_path / "t.csv", "sample,path", f"a,{study / 's0.zarr'}")
    call = ["run", "pp.tissue", str(table), "--out", str(tmp_path / "out")]
    (tmp_path / "out" / "state").mkdir(parents=True)
    with FileLock(tmp_path / "out" / "state" / "a.lock"), caplog.at_level("INFO", "sthist"):
        assert commands.main(call) == 1
    assert "a: another run is working on it; it is left to that." in caplog.text
    captured = capsys.readouterr()
    assert "0 of 1 samples are done" in captured.out
    assert "1 another run is working on it" in captured.err
    assert "failed" not in captured.err
    assert rows(tmp_path / "out" / "samples.csv")[0]["status"] == "another run is working on it"
    assert not list((tmp_path / "out").glob("a.zarr*"))
    assert commands.main(call) == 0


@pytest.mark.parametrize("platform", [sys.platform, "another"])
def test_a_worker_ends_with_its_parent(tmp_path, platform):
    """By the kernel's help on Linux, and by the pipe between them elsewhere."""
    worker = (
        "import sys, time; from sthist.cli.batch import end_with_parent\n"
        f"real, sys.platform = sys.platform, {platform!r}; end_with_parent(); sys.platform = real\n"
        "print('ready', flush=True); time.sleep(60)"
    )
    parent = (
        "import subprocess, sys, time; PIPE = subprocess.PIPE\n"
        f"process = subprocess.Popen([sys.executable, '-c', {worker!r}], stdin=PIPE, stdout=PIPE)\n"
        "print(process.stdout.readline().decode().strip(), process.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True) as process:
        word, pid = process.stdout.readline().split()
        assert word == "ready"
        process.kill()
    worker_process = psutil.Process(int(pid)) if psutil.pid_exists(int(pid)) else None
    deadline = time.monotonic() + 20
    while worker_process is not None and time.monotonic() < deadline:
        try:
            if worker_process.status() == psutil.STATUS_ZOMBIE:
                break
        except psutil.NoSuchProcess:
            break
        time.sleep(0.02)
    else:
        assert worker_process is None, "the worker outlives its parent"


def test_a_store_that_another_process_is_making(study, tmp_path):
    from filelock import FileLock

    store = tmp_path / "o.zarr"
    with FileLock(tmp_path / "o.zarr.lock"), pytest.raises(RuntimeError, match="Another process is making .*o.zarr"):
        open_sample(study / "s0.zarr", "spatialdata", store)
    assert not (tmp_path / "o.zarr.partial").exists()
