"""The figure of a training."""

from __future__ import annotations

import pytest

import sthist
from sthist.training.run_folder import write_history

ROWS = [
    {"epoch": 1, "step": 10, "l2": 0.5, "adversarial": 1.0, "validation_psnr": 12.0, "lr": 1e-3},
    {"epoch": 2, "step": 20, "l2": 0.25, "adversarial": 0.8, "validation_psnr": 14.0, "lr": 5e-4},
]


def test_losses_scores_and_learning_rate(tmp_path):
    write_history(tmp_path, ROWS)
    axes = sthist.pl.training_history(tmp_path, save=tmp_path / "figure.png")
    assert [ax.get_title() for ax in axes] == ["loss", "psnr", "learning rate"]
    lines = [[list(line.get_ydata()) for line in ax.lines] for ax in axes]
    assert lines == [[[0.5, 0.25], [1.0, 0.8]], [[12.0, 14.0]], [[1e-3, 5e-4]]]
    assert all(list(line.get_xdata()) == [1, 2] for ax in axes for line in ax.lines)
    assert [text.get_text() for text in axes[0].get_legend().get_texts()] == ["l2", "adversarial"]
    assert (tmp_path / "figure.png").stat().st_size > 1000


def test_what_has_no_history(tmp_path):
    with pytest.raises(FileNotFoundError, match="no history of a training"):
        sthist.pl.training_history(tmp_path)
    with pytest.raises(ValueError, match="BeerLambert has no history"):
        sthist.pl.training_history(sthist.models.BeerLambert())
