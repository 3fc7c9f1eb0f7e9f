"""The command line."""

from __future__ import annotations

import re
import subprocess
import sys

import numpy as np
import pytest
import spatialdata as sd
from PIL import Image
from realdata import folder

from sthist import settings
from sthist.cli import commands


def test_demo(tmp_path):
    """A store and two figures; nothing but messages of ours, as a user sees it."""
    command = [sys.executable, "-m", "sthist", "demo", "--out", str(tmp_path / "demo"), "--size-um", "300"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "virtual_he" in sd.read_zarr(tmp_path / "demo" / "toy.zarr").images
    for name in ("virtual_he.png", "virtual_he_zoom.png"):
        pixels = np.asarray(Image.open(tmp_path / "demo" / name).convert("RGB"))
        assert pixels.std() > 20
    assert "Done in" in done.stdout
    assert re.fullmatch(r"Eosin comes from: \d+ transcripts\.\n", done.stderr)


def test_verbosity(backed, tmp_path, caplog):
    """Messages are as many as were asked for."""
    before = settings.verbosity
    arguments = ["virtual-he", str(backed.path), "--platform", "spatialdata", "--out", str(tmp_path / "o.zarr")]
    try:
        assert commands.main(["--verbosity", "warning", *arguments]) == 0
    finally:
        settings.verbosity = before
    assert not caplog.messages
    assert commands.main([*arguments, "--overwrite"]) == 0
    assert any(message.startswith("Eosin comes from") for message in caplog.messages)


def test_virtual_he_of_a_store(backed, tmp_path, capsys):
    """Into another store, with a figure; again is refused, and with --overwrite not."""
    arguments = ["virtual-he", str(backed.path), "--platform", "spatialdata", "--out", str(tmp_path / "o.zarr")]
    assert commands.main([*arguments, "--figure", str(tmp_path / "f.png"), "--within", "50", "50", "150", "150"]) == 0
    assert (tmp_path / "f.png").exists()
    assert sd.read_zarr(tmp_path / "o.zarr")["virtual_he"].shape == (3, 200, 200)
    assert "virtual_he" not in sd.read_zarr(backed.path).images
    assert commands.main(arguments) == 1
    assert "exists. Pass overwrite=True" in capsys.readouterr().err
    assert commands.main([*arguments, "--overwrite"]) == 0


def test_dry_run(backed, tmp_path, capsys):
    """What a run takes; nothing is written."""
    out = tmp_path / "o.zarr"
    arguments = ["virtual-he", str(backed.path), "--platform", "spatialdata", "--out", str(out), "--dry-run"]
    assert commands.main(arguments) == 0
    assert "800 x 800 pixels of 0.5 µm: 4 tiles in 1 blocks" in capsys.readouterr().out
    assert not out.exists()
    assert commands.main(arguments[:-1]) == 0
    assert commands.main([*arguments, "--overwrite"]) == 0


def test_virtual_he_of_a_xenium_folder(tmp_path):
    """The vendor's folder to a store."""
    outs = folder("xenium_ileum_tiny") / "outs"
    out = tmp_path / "o.zarr"
    assert commands.main(["virtual-he", str(outs), "--platform", "xenium", "--out", str(out)]) == 0
    assert sd.read_zarr(out)["virtual_he"]["scale0"].image.shape[1] >= 3522


def test_out_of_another_input_is_refused(backed, tmp_path, capsys):
    """And what an interrupted copy left is not taken for a sample."""
    arguments = ["virtual-he", str(backed.path), "--platform", "spatialdata", "--out", str(tmp_path / "o.zarr")]
    (tmp_path / "o.zarr.partial" / "images").mkdir(parents=True)
    assert commands.main(arguments) == 0
    assert not (tmp_path / "o.zarr.partial").exists()
    other = tmp_path / "other.zarr"
    sd.read_zarr(backed.path).write(other)
    assert commands.main([arguments[0], str(other), *arguments[2:], "--overwrite"]) == 1
    assert f"was not made from {other}" in capsys.readouterr().err


@pytest.mark.parametrize("platform", ["xenium", "spatialdata"])
def test_wrong_input(tmp_path, capsys, platform):
    """One line, no traceback."""
    status = commands.main(["virtual-he", str(tmp_path), "--platform", platform, "--out", str(tmp_path / "o.zarr")])
    assert status == 1
    error = capsys.readouterr().err
    assert error.startswith("sthist: ")
    assert error.count("\n") == 1


def test_doctor_as_a_module():
    """Versions and devices; also as python -m sthist."""
    out = subprocess.run([sys.executable, "-m", "sthist", "doctor"], capture_output=True, text=True, check=True).stdout
    for word in ("sthist 0.1.0", "spatialdata ", "torch ", "devices: cpu", "scratch folder", "weights"):
        assert word in out
