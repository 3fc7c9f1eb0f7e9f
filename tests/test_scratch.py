"""The scratch folder is nobody else's, and holds nothing of processes that have ended."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import sthist
from sthist._scratch import own_folder, scratch_dir, temporary_folder

pytestmark = pytest.mark.skipif(not hasattr(os, "getuid"), reason="Windows gives each user a folder of their own")

PREAMBLE = """
import os, pathlib, signal, sys
import sthist
from sthist._scratch import own_folder, resumable_folder, temporary_folder
sthist.settings.scratch_dir = pathlib.Path(sys.argv[1])
"""


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    monkeypatch.setattr(sthist.settings, "scratch_dir", tmp_path / "scratch")
    return tmp_path / "scratch"


def python(code, scratch, **kwargs):
    return subprocess.run([sys.executable, "-c", PREAMBLE + code, scratch], text=True, capture_output=True, **kwargs)


def everything(folder):
    return [path for path in folder.rglob("*") if path.name != "lock"]


def test_made_private_whatever_the_umask(scratch):
    before = os.umask(0)
    try:
        with temporary_folder("heatmap-") as folder:
            assert folder.parents[1] == scratch
            for each in (scratch, folder.parent, folder):
                assert stat.S_IMODE(each.stat().st_mode) == 0o700
    finally:
        os.umask(before)


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702, 0o1777])
def test_open_to_others(scratch, mode):
    scratch.mkdir()
    scratch.chmod(mode)
    with pytest.raises(
        PermissionError, match=rf"can be written to by others .*{mode:o}.*`chmod 700 .*scratch`.*scratch_dir"
    ):
        scratch_dir()
    scratch.chmod(0o755)
    assert scratch_dir() == scratch


def test_in_a_folder_for_all(tmp_path, scratch):
    """As /tmp is."""
    tmp_path.chmod(0o1777)
    assert own_folder().is_dir()


@pytest.mark.parametrize("link", [False, True])
def test_of_somebody_else(scratch, monkeypatch, link):
    if link:
        (scratch.parent / "real").mkdir(mode=0o700)
        scratch.symlink_to(scratch.parent / "real")
    else:
        scratch.mkdir(mode=0o700)
    assert scratch_dir() == scratch
    user = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: user + 1)
    with pytest.raises(PermissionError, match="belongs to another user"):
        scratch_dir()


def test_a_user_without_a_name(monkeypatch):
    """As in a container that runs as a number."""

    def nameless():
        raise KeyError("getpwuid(): uid not found")

    monkeypatch.setattr("getpass.getuser", nameless)
    assert type(sthist.settings)().scratch_dir.name == f"sthist-{os.getuid()}"


def test_no_folder(scratch):
    scratch.write_text("")
    with pytest.raises(NotADirectoryError, match="is no folder"):
        scratch_dir()


def test_verbs_refuse_it_before_they_compute(toy, scratch, monkeypatch):
    scratch.mkdir()
    scratch.chmod(0o777)
    monkeypatch.setattr(
        "sthist.systems.annotation.heat_maps.verb.crop_scores", lambda *_, **__: pytest.fail("computed")
    )
    with pytest.raises(PermissionError, match="can be written to by others"):
        sthist.tl.heatmap(toy, lambda rows: rows[:, 0], encoder="morphology", classes=["a"], progress=False)


def test_nothing_is_left_at_a_normal_end(scratch):
    code = (
        "folder = own_folder(); (folder / 'result.zarr').mkdir(); (folder / 'result.zarr' / '0').touch(); print(folder)"
    )
    ended = python(code, scratch)
    assert Path(ended.stdout.strip()).parent == scratch, ended.stderr
    assert list(scratch.iterdir()) == []


def test_what_a_killed_process_left_goes_when_another_comes(scratch):
    code = """
with temporary_folder("heatmap-") as folder:
    (folder / "scores.npy").touch()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert python(code, scratch).returncode == -signal.SIGKILL
    assert [path.name for path in scratch.rglob("scores.npy")] == ["scores.npy"]
    own_folder()
    assert everything(scratch) == [own_folder()]


def test_what_lives_is_left(scratch):
    """Also what a child holds that outlives its parent."""
    code = "folder = own_folder(); (folder / 'mine').mkdir(); print(folder, flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", PREAMBLE + code, scratch]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        theirs = Path(other.stdout.readline().strip())
        own_folder()
        assert (theirs / "mine").exists()
        other.communicate()
    assert not theirs.exists()


BUILD = """
with resumable_folder("slide", "0123456789abcdef") as folder:
    folder.mkdir(exist_ok=True)
    print((folder / "block").exists())
    (folder / "manifest.json").write_text("{}")
    (folder / "block").touch()
    if sys.argv[2:]:
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_work_that_was_stopped_is_continued_by_the_next_process(scratch):
    stopped = subprocess.run([sys.executable, "-c", PREAMBLE + BUILD, scratch, "stop"], capture_output=True)
    assert stopped.returncode == -signal.SIGKILL
    python("own_folder()", scratch)  # another process, that builds something else
    (kept,) = scratch.rglob("block")
    assert python(BUILD, scratch).stdout.strip() == "True"
    assert list(scratch.iterdir()) == []
    # After a week it goes.
    subprocess.run([sys.executable, "-c", PREAMBLE + BUILD, scratch, "stop"], capture_output=True)
    (kept,) = scratch.rglob("block")
    for each in (kept, kept.with_name("manifest.json"), kept.parent):
        os.utime(each, (0, 0))
    python("own_folder()", scratch)
    assert list(scratch.iterdir()) == []


def test_what_is_not_of_this_package_stays(scratch):
    """The folder may hold other things."""
    scratch.mkdir(mode=0o700)
    (scratch / "mine.txt").touch()
    (scratch / "process-elsewhere-1-0f").mkdir()  # of another machine
    python("own_folder()", scratch)
    assert sorted(path.name for path in scratch.iterdir()) == ["mine.txt", "process-elsewhere-1-0f"]
