"""Variants of a model: what is drawn, where, and in which groups."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from sthist.pl import ablation

VARIANTS = {"base": "base", "one colour": "mode", "stain only": "mode", "dots of 0.1": "dot_s"}


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


@pytest.fixture
def frame():
    """Three seeds of four variants and two baselines, five tiles each."""
    rng = np.random.default_rng(0)
    parts, sets = [], []
    for i, (variant, factor) in enumerate(VARIANTS.items()):
        for seed in range(3):
            where = {"variant": variant, "factor": factor, "fold": 0, "seed": seed}
            for method, drop in (("model", 0.0), ("shuffled", 0.3)):
                scores = {"tile": np.arange(5), "ssim": rng.normal(0.6 - 0.03 * i - drop, 0.02, 5)}
                parts.append(pd.DataFrame(where | {"method": method} | scores))
            sets.append(where | {"method": "model", "metric": "fid", "class": None, "n": 5, "value": 50.0 + i + seed})
    for method, value in (("beer-lambert", 0.5), ("mean colour", 0.4)):
        for seed in range(3):
            where = {"variant": method, "factor": "baseline", "fold": 0, "seed": seed, "method": method}
            parts.append(pd.DataFrame(where | {"tile": np.arange(5), "ssim": value}))
            sets.append(where | {"metric": "fid", "class": None, "n": 5, "value": 90.0})
    table = pd.concat(parts, ignore_index=True)
    table.attrs["sets"] = sets
    return table


def _rows(ax):
    return dict(zip([label.get_text() for label in ax.get_yticklabels()], ax.get_yticks(), strict=True))


def test_a_point_per_seed_the_mean_and_its_interval(frame):
    """Of the means over tiles; the interval is Student's."""
    ax = ablation(frame)
    seeds = frame[frame.method == "model"].groupby(["variant", "seed"]).ssim.mean()
    points = {line.get_ydata()[0]: line.get_xdata() for line in ax.lines if line.get_marker() == "o"}
    means = {line.get_ydata()[0]: line.get_xdata()[0] for line in ax.lines if line.get_marker() == "|"}
    bars = {each.get_segments()[0][0, 1]: each.get_segments()[0][:, 0] for each in ax.collections}
    for variant, at in _rows(ax).items():
        values = seeds[variant].to_numpy()
        np.testing.assert_allclose(np.sort(points[at]), np.sort(values))
        assert means[at] == pytest.approx(values.mean())
        interval = stats.t.interval(0.95, 2, values.mean(), stats.sem(values))
        np.testing.assert_allclose(bars[at], interval)
    assert ax.get_xlabel() == "SSIM"


def test_factors_are_groups(frame):
    """Variants of one factor stand together, with more room to the next, and its name beside them."""
    shuffled = pd.concat(
        [frame[frame.variant == name] for name in ("stain only", "base", "dots of 0.1", "one colour", "mean colour")]
    )
    rows = _rows(ablation(shuffled, baselines=False))
    assert list(rows) == ["stain only", "one colour", "base", "dots of 0.1"]
    gaps = np.diff(list(rows.values()))
    assert gaps[0] == 1
    assert (gaps[1:] > 1).all()
    assert [text.get_text() for text in ablation(frame).texts] == ["mode", "dot_s"]
    bottom, top = ablation(frame).get_ylim()
    assert bottom > top  # the first is on top


def test_baselines_are_lines(frame):
    ax = ablation(frame)
    lines = {line.get_label(): line.get_xdata()[0] for line in ax.lines if line.get_linestyle() == "--"}
    own = frame[(frame.variant == "base") & (frame.method == "shuffled")].ssim.mean()
    assert lines == pytest.approx({"beer-lambert": 0.5, "mean colour": 0.4, "shuffled": own})
    assert [text.get_text() for text in ax.get_legend().get_texts()] == list(lines)
    assert not [line for line in ablation(frame, baselines=False).lines if line.get_linestyle() == "--"]


def test_scores_of_sets(frame):
    ax = ablation(frame, "fid")
    assert ax.get_xlabel() == "FID"
    points = {line.get_ydata()[0]: line.get_xdata() for line in ax.lines if line.get_marker() == "o"}
    np.testing.assert_allclose(points[_rows(ax)["stain only"]], [52, 53, 54])
    assert {line.get_xdata()[0] for line in ax.lines if line.get_linestyle() == "--"} == {90.0}


def test_axes_in_axes_out(frame, tmp_path):
    figure, given = plt.subplots()
    assert ablation(frame, ax=given, save=tmp_path / "figure.png") is given
    assert (tmp_path / "figure.png").stat().st_size > 5000
    assert plt.get_fignums() == [figure.number]
    assert not ablation(frame[frame.seed == 0]).collections  # one seed has no interval


def test_nothing_is_clipped(frame):
    ax = ablation(frame)
    figure = ax.figure
    figure.canvas.draw()
    for text in [*ax.texts, *ax.get_yticklabels(), ax.xaxis.label, *ax.get_legend().get_texts()]:
        box = text.get_window_extent()
        assert 0 <= box.x0 <= box.x1 <= figure.bbox.x1
        assert 0 <= box.y0 <= box.y1 <= figure.bbox.y1


def test_what_cannot_be_shown(frame):
    with pytest.raises(ValueError, match="no column 'variant'"):
        ablation(frame.drop(columns="variant"))
    with pytest.raises(ValueError, match="no score 'lpips'"):
        ablation(frame, "lpips")
    frame["lpips"], frame.attrs["not_available"] = np.nan, {"lpips": "No weights."}
    with pytest.raises(ValueError, match=r"'lpips' is not available: No weights\."):
        ablation(frame, "lpips")
    with pytest.raises(ValueError, match="no variants of the method 'virtual'"):
        ablation(frame, method="virtual")
    with pytest.raises(ValueError, match="level is 2"):
        ablation(frame, level=2)
