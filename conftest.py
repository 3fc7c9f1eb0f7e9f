"""What tests and examples share."""

from __future__ import annotations

import matplotlib
import pytest

import sthist

matplotlib.use("agg")


@pytest.fixture(autouse=True)
def _quiet(tmp_path, monkeypatch):
    """No progress bars, and a scratch folder that goes with the test."""
    monkeypatch.setattr(sthist.settings, "progress", False)
    monkeypatch.setattr(sthist.settings, "scratch_dir", tmp_path / "scratch")
