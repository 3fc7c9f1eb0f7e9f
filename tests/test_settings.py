"""What is set once for a session, and how messages are shown."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

import sthist

SAYS = "\nfor level in (10, 15, 20, 30, 40): logger.log(level, 'at %d', level)"


def said(code, *options):
    """What a fresh Python shows on stderr: of the code, and then of a message of each level."""
    command = [
        sys.executable,
        *options,
        "-c",
        f"import logging, sthist\n{code}\nlogger = logging.getLogger('sthist'){SAYS}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == ""
    return done.stderr.splitlines()


@pytest.fixture
def _as_before():
    before = sthist.settings.verbosity
    yield
    sthist.settings.verbosity = before


@pytest.mark.parametrize(
    ("code", "levels"),
    [
        ("sthist.settings", [20, 30, 40]),
        ("sthist.settings.verbosity = 'error'", [40]),
        ("sthist.settings.verbosity = 1", [30, 40]),
        ("sthist.settings.verbosity = 'hint'", [15, 20, 30, 40]),
        ("sthist.settings.verbosity = 'debug'", [10, 15, 20, 30, 40]),
        ("logging.basicConfig(format='%(message)s'); sthist.settings", [20, 30, 40]),  # each once
        ("sthist.settings; logging.basicConfig(format='%(message)s')", [20, 30, 40]),
        ("sthist.settings; logging.getLogger('sthist').addHandler(logging.StreamHandler())", [20, 30, 40]),
        ("logging.getLogger('sthist').setLevel('WARNING'); sthist.settings", [30, 40]),
        ("sthist.settings; logging.getLogger('sthist').setLevel('DEBUG')", [10, 15, 20, 30, 40]),
        ("sthist.settings; logging.getLogger('sthist').addHandler(logging.NullHandler())", [20, 30, 40]),
    ],
)
def test_what_is_shown(code, levels):
    assert said(code, "-W", "error") == [f"at {level}" for level in levels]


def test_other_loggers_are_left_alone():
    code = "sthist.settings; assert not logging.root.handlers; assert logging.root.level == logging.WARNING"
    assert len(said(code)) == 3


@pytest.mark.usefixtures("_as_before")
def test_verbosity_is_the_level_of_the_logger(caplog):
    sthist.settings.verbosity = 4
    assert sthist.settings.verbosity == "debug"
    assert logging.getLogger("sthist").level == logging.DEBUG
    logging.getLogger("sthist").debug("seen")
    assert caplog.messages == ["seen"]
    for wrong in ("loud", 5, -1, None, True):
        with pytest.raises(ValueError, match=f"verbosity is {wrong!r}; it is one of .*'hint'"):
            sthist.settings.verbosity = wrong
    assert sthist.settings.verbosity == "debug"
