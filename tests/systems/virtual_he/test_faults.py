"""Full disks, read-only stores, damaged input and other writers, on real disks and in processes of their own.

The cases are those of ``bench/faults.py``, on a small section; kills are there, and in ``test_resume.py``.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "bench" / "faults.py"
CASES = {
    "too small a disk": "before",
    "full disk in the middle": "before",
    "a read-only store": "before",
    "a truncated chunk of the nuclear stain": "before",
    "two writers": "complete",
}


pytestmark = pytest.mark.slow  # real disks and processes; every step of every verb: tests/_store/test_kills.py


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """What the script says of each case."""
    folder = tmp_path_factory.mktemp("faults")
    command = [sys.executable, SCRIPT, "--size-um", "600", "--folder", folder, "--json", folder / "rows.json"]
    done = subprocess.run(
        [*command, "--only", "chunk", "writers", "disk", "read-only"], check=False, capture_output=True, text=True
    )
    assert (folder / "rows.json").exists(), done.stderr
    return {row["case"]: row for row in json.loads((folder / "rows.json").read_text())["cases"]}


@pytest.mark.parametrize("case", CASES)
def test_nothing_is_lost(rows, case):
    """A clear error, the elements of before, and the same call completes when it can."""
    row = rows[case]
    reasons = [what for what in row["found"] if what.startswith("not run")]
    if reasons:
        pytest.skip(reasons[0])
    assert row["violations"] == []
    assert row["n"] > 0
    assert row["found"] == {CASES[case]: row["n"]}
