"""The command line."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import spatialdata as sd
import vendor
from packaging.requirements import Requirement
from PIL import Image
from realdata import folder

from sthist import settings
from sthist.cli import commands, doctor
from sthist.cli.batch import read_tasks
from sthist.encoders._registry import CARDS
from sthist.training.model import SYSTEMS


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
    assert commands.main(["virtual-he", str(outs), "--out", str(out)]) == 0
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


def test_the_platform_is_found(tmp_path, monkeypatch, capsys):
    """From the files in a folder; a store of its name is made here. What is asked for wins."""
    vendor.merscope_folder(tmp_path / "region_0")
    monkeypatch.chdir(tmp_path)
    assert commands.main(["virtual-he", "region_0"]) == 0
    assert "images['virtual_he'] is in region_0.zarr." in capsys.readouterr().out
    assert "virtual_he" in sd.read_zarr(tmp_path / "region_0.zarr").images
    assert commands.main(["virtual-he", "region_0.zarr", "--overwrite"]) == 0
    assert commands.main(["virtual-he", "region_0", "--platform", "xenium", "--out", "other.zarr"]) == 1
    assert "experiment.xenium" in capsys.readouterr().err


def test_a_folder_of_no_platform(tmp_path, capsys):
    """One line that says what was looked for."""
    assert commands.main(["virtual-he", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert "is of no platform that is known by its files. Looked for xenium: experiment.xenium; cosmx: " in error
    assert error.count("\n") == 1


def test_a_study_of_several_platforms(tmp_path, backed, capsys):
    """The column "platform" may be left out."""
    vendor.merscope_folder(tmp_path / "region_0")
    (tmp_path / "t.csv").write_text(f"sample,path\na,region_0\nb,{backed.path}\n")
    tasks = read_tasks(tmp_path / "t.csv", "pp.tissue", tmp_path / "out", {})
    assert [task.platform for task in tasks] == ["merscope", "spatialdata"]
    tasks = read_tasks(tmp_path / "t.csv", "pp.tissue", tmp_path / "out", {}, platform_of_all="cosmx")
    assert [task.platform for task in tasks] == ["cosmx", "cosmx"]


def subcommands():
    """The parser of each command, by its name."""
    parser = commands._parser()
    (action,) = (each for each in parser._actions if isinstance(each, argparse._SubParsersAction))
    return parser, action.choices


def test_commands_share_flags():
    """One name, one type and one help in all commands; --out alone says what it is of each."""
    seen = {}
    for parser in subcommands()[1].values():
        for action in parser._actions:
            for name in action.option_strings:
                said = (action.type, action.nargs, action.metavar, None if name == "--out" else action.help)
                assert seen.setdefault(name, said) == said, name
    assert {"--verbosity", "--threads", "--no-progress"} <= set.intersection(
        *(
            {name for action in parser._actions for name in action.option_strings}
            for parser in subcommands()[1].values()
        )
    )


def test_flags_before_and_after_the_command(backed, monkeypatch):
    """What is set on either side counts, and the one after it more."""
    monkeypatch.setattr(settings, "threads", 2)
    monkeypatch.setattr(settings, "progress", True)
    seen = []
    monkeypatch.setattr("sthist.cli.doctor.report", lambda: seen.append((settings.threads, settings.progress)) or [])
    assert commands.main(["--threads", "3", "--no-progress", "doctor"]) == 0
    assert commands.main(["--threads", "3", "doctor", "--threads", "4"]) == 0
    assert seen == [(3, False), (4, False)]
    assert commands.main(["doctor", "--threads", "0"]) == 1


def test_flags_of_a_verb_reach_it(backed, tmp_path, capsys):
    """As arguments of the verb, which are refused where it has none."""
    (tmp_path / "t.csv").write_text(f"sample,path\na,{backed.path}\n")
    call = ["run", "tl.virtual_he", str(tmp_path / "t.csv"), "--within", "50", "50", "150", "150", "--seed", "3"]
    assert commands.main(call) == 0
    assert sd.read_zarr(backed.path)["virtual_he"].shape == (3, 200, 200)
    assert commands.main(["run", "pp.tissue", str(tmp_path / "t.csv"), "--seed", "3"]) == 1
    assert "pp.tissue has no argument 'seed'" in capsys.readouterr().err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(capsys, shell):
    """The script names all commands and flags; of bash's, what it completes is asked."""
    assert commands.main(["completion", shell]) == 0
    text = capsys.readouterr().out
    parser, all_commands = subcommands()
    for name, each in all_commands.items():
        assert name in text
        flags = [flag for action in each._actions for flag in action.option_strings if flag.startswith("--")]
        assert all(flag.lstrip("-") in text for flag in flags)
    assert "sthist completion" in parser.format_help()
    if shell == "bash":
        asked = f"{text}\nCOMP_WORDS=(sthist virt); COMP_CWORD=1; _shtab_sthist sthist virt; echo ${{COMPREPLY[@]}}"
        done = subprocess.run(["bash", "-c", asked], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "virtual-he"


def test_completion_without_its_package(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert commands.main(["completion", "bash"]) == 1
    assert "pip install 'sthist[completion]'" in capsys.readouterr().err


def test_doctor_says_what_to_type(monkeypatch, tmp_path):
    """Of extras, encoders and models; without a network, and without what is heavy but for torch."""
    code = (
        "import socket, sys\n"
        "def refuse(*_): raise AssertionError('the network was asked')\n"
        "socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse\n"
        "from sthist.cli.commands import main\n"
        "status = main(['doctor'])\n"
        "heavy = {'spatialdata', 'scanpy', 'squidpy', 'timm', 'open_clip', 'diffusers', 'transformers', 'lightning'}\n"
        "sys.exit(status or ' '.join(heavy & set(sys.modules)) or None)"
    )
    environment = os.environ | {"HF_HUB_CACHE": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert "  morphology: there, and needs no weights" in lines
    assert "  st2he-small: there" in lines
    (uni,) = (line for line in lines if line.startswith("  uni ("))
    assert uni.endswith(
        "accept its terms on https://huggingface.co/MahmoodLab/UNI, hf auth login, then hf download MahmoodLab/UNI"
    )
    assert set(CARDS) <= {line.split()[0] for line in lines}
    ours = {name for name, place in SYSTEMS.items() if place[0].startswith("sthist.")}
    assert len(ours) > 15
    assert ours <= set(re.findall(r"[\w-]+", done.stdout))


def test_doctor_of_packages_that_are_missing_or_old(monkeypatch):
    """The line to type holds what is needed."""
    monkeypatch.setattr(doctor, "_required", lambda: tuple(map(Requirement, NEEDED)))
    monkeypatch.setattr(doctor, "_installed", {"numpy": "2.1", "zarr": "3.0.0", "imagecodecs": "2024.1"}.get)
    lines = list(doctor.report())
    assert "  zarr is MISSING (3.0.0 is there): pip install 'zarr>=3.1.3'" in lines
    assert "  pooch is MISSING: pip install 'pooch>=1.8'" in lines
    assert not [line for line in lines if "numpy" in line and "MISSING" in line]
    (wsi,) = (line for line in lines if line.startswith("  wsi ("))
    assert wsi.endswith("lacks imagecodecs (2024.1 is there): pip install 'sthist[wsi]'")
    assert not [line for line in lines if line.startswith("  test (")]


NEEDED = ("numpy>=2", "zarr>=3.1.3", "pooch>=1.8", "imagecodecs>=2024.9.22; extra == 'wsi'", "a>=1; extra == 'test'")


def test_doctor_as_a_module():
    """Versions and devices; also as python -m sthist."""
    out = subprocess.run([sys.executable, "-m", "sthist", "doctor"], capture_output=True, text=True, check=True).stdout
    for word in ("sthist 0.1.0", "spatialdata ", "torch ", "devices: cpu", "scratch folder", "weights"):
        assert word in out
