"""What tests and examples share."""

from __future__ import annotations

import gc
import os
import sys

if "PYTEST_XDIST_WORKER" in os.environ:
    # Several processes with a thread per core each would wait for one another. Said before anything counts the cores.
    os.environ.update(dict.fromkeys((f"{each}_NUM_THREADS" for each in ("OMP", "OPENBLAS", "MKL", "NUMBA")), "1"))
    if "numba" in sys.modules:  # a plugin has loaded it, with a thread per core, which it cannot change once they run
        sys.modules["numba"].core.config.reload_config()

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


@pytest.fixture(autouse=True)
def _closed(request):
    """Figures of an example are closed after it; matplotlib warns of more than twenty."""
    yield
    if isinstance(request.node, pytest.DoctestItem) and "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")
