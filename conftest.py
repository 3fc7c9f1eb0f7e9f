"""What tests and examples share."""

from __future__ import annotations

import gc
import os

if "PYTEST_XDIST_WORKER" in os.environ:
    # Several processes with a thread per core each would wait for one another. Said before anything counts the cores.
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))

import matplotlib
import pytest

import sthist

matplotlib.use("agg")


def pytest_collection_finish():
    """What has been imported stays: garbage collections need not walk through it again and again."""
    gc.freeze()


@pytest.fixture(autouse=True)
def _quiet(tmp_path, monkeypatch):
    """No progress bars, and a scratch folder that goes with the test."""
    monkeypatch.setattr(sthist.settings, "progress", False)
    monkeypatch.setattr(sthist.settings, "scratch_dir", tmp_path / "scratch")
