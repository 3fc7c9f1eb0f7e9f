"""The flags of the command line, each said once: commands that share one share its name, its type and its help."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from sthist._settings import VERBOSITY, settings
from sthist.cli import inputs

EVERYWHERE = ("--verbosity", "--threads", "--no-progress")
"""Flags that every command takes, before its name or after it; no result depends on them."""

FLAGS: dict[str, dict[str, Any]] = {
    "--verbosity": {"choices": list(VERBOSITY), "help": "what is said on stderr; info by default"},
    "--threads": {"type": int, "help": "threads that read and compute; by default as many as there are processors"},
    "--no-progress": {"action": "store_true", "help": "show no progress bars"},
    "--platform": {
        "choices": inputs.PLATFORMS,
        "help": "what the folder is of; by default what the files in it say",
    },
    "--out": {"type": Path},
    "--device": {"help": "where networks run: cuda, cuda:1, mps or cpu"},
    "--seed": {"type": int, "help": "seed of random draws"},
    "--within": {
        "type": float,
        "nargs": 4,
        "metavar": ("X0", "Y0", "X1", "Y1"),
        "help": "box in micrometres; nothing outside is worked on",
    },
    "--overwrite": {"action": "store_true", "help": "do again what is done, and replace its result"},
    "--jobs": {
        "type": int,
        "help": "samples at a time; by default as many as processors and memory allow, or as there are workers",
    },
    "--dask": {
        "metavar": "ADDRESS",
        "help": "run the samples on the workers of a dask cluster, such as tcp://host:8786, one at a time on each",
    },
}


def add(parser: argparse.ArgumentParser, *names: str, **out: Any) -> None:
    """Give a command some of the flags; ``out`` says what its --out is."""
    for name in names:
        parser.add_argument(name, **FLAGS[name] | (out if name == "--out" else {}))


def everywhere() -> argparse.ArgumentParser:
    """The parent of all parsers; a flag that is not given leaves no trace, so that one before the command counts."""
    parent = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    group = parent.add_argument_group("everywhere")
    for name in EVERYWHERE:
        group.add_argument(name, **FLAGS[name])
    return parent


def apply(options: argparse.Namespace) -> None:
    """Set what the flags of every command say."""
    if hasattr(options, "verbosity"):
        settings.verbosity = options.verbosity
    if hasattr(options, "threads"):
        if options.threads < 1:
            raise ValueError(f"--threads is {options.threads}; it is a whole number from 1 on.")
        settings.threads = options.threads
    if hasattr(options, "no_progress"):
        settings.progress = False
