"""Box plots of scores: what is drawn, where, and with which marks."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from sthist.metrics import image
from sthist.pl import image_metrics


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


@pytest.fixture
def frame():
    """Three classes, of which the last differs in SSIM, and a null."""
    rng = np.random.default_rng(0)
    parts = []
    for method, drop in (("virtual", 0.0), ("mean colour", 0.3)):
        for name, mean in (("stroma", 0.6), ("DCIS", 0.6), ("invasive carcinoma", 0.55)):
            scores = {"mse": rng.normal(900, 90, 40), "ssim": rng.normal(mean - drop, 0.02, 40)}
            parts.append(pd.DataFrame({"method": method, "class": name} | scores))
    table = pd.concat(parts, ignore_index=True)
    table["class"] = pd.Categorical(table["class"], ["stroma", "DCIS", "invasive carcinoma"])
    return table


def test_panels(frame):
    """One per score, classes on x in their order, with their numbers; ANOVA in the title."""
    axes = image_metrics(frame)
    assert [ax.get_ylabel() for ax in axes] == ["MSE", "SSIM"]
    labels = [label.get_text() for label in axes[0].get_xticklabels()]
    assert labels == ["stroma\nn = 40", "DCIS\nn = 40", "invasive\ncarcinoma\nn = 40"]
    for ax, name in zip(axes, ("mse", "ssim"), strict=True):
        p = image.region_tests(frame, name).p
        assert ax.get_title() == ("ANOVA p < 1e-10" if p < 1e-10 else f"ANOVA p = {p:.2g}")
    assert [ax.get_ylabel() for ax in image_metrics(frame, metrics="ssim")] == ["SSIM"]


def test_boxes_are_of_the_method(frame):
    """Medians of each class, those of the null as dashed lines."""
    (ax,) = image_metrics(frame, metrics=["ssim"], tests=False)
    medians = [line.get_ydata()[0] for line in ax.lines if line.get_linewidth() == 1.5]
    of = frame.groupby(["method", "class"], observed=True)["ssim"].median()
    np.testing.assert_allclose(medians, of["virtual"])
    (null,) = ax.collections
    np.testing.assert_allclose([path[0, 1] for path in null.get_segments()], of["mean colour"])
    assert [text.get_text() for text in ax.texts] == ["mean\ncolour"]
    assert not image_metrics(frame, metrics=["ssim"], null=None)[0].collections
    assert not image_metrics(frame.query("method == 'virtual'"), metrics=["ssim"])[0].collections


def test_brackets(frame):
    """As many as Tukey's test finds, with its stars, none over another, all inside the panel."""
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {"class": np.repeat(list("abcde"), 30), "ssim": rng.normal(np.repeat(np.arange(5) * 0.4, 30), 0.5)}
    )
    (ax,) = image_metrics(table)
    pairs = image.region_tests(table, "ssim").pairs
    expected = sorted("*" * ((p < 0.05) + (p < 0.01) + (p < 0.001)) for p in pairs["p"] if p < 0.05)
    assert sorted(text.get_text() for text in ax.texts) == expected
    brackets = [line for line in ax.lines if len(line.get_xdata()) == 4]
    assert len(brackets) == len(expected)
    spans = [(line.get_xdata()[0], line.get_xdata()[-1], line.get_ydata()[1]) for line in brackets]
    for i, (left, right, y) in enumerate(spans):
        assert y < ax.get_ylim()[1]
        assert y > table["ssim"].max()
        assert all(y != y2 or right < l2 or left > r2 for l2, r2, y2 in spans[:i])
    assert not image_metrics(table, tests=False)[0].texts


def test_nothing_is_clipped(frame, tmp_path):
    """Every word lies inside the figure."""
    axes = image_metrics(frame, ncols=1, save=tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    figure = axes[0].figure
    figure.canvas.draw()
    for ax in axes:
        for text in [*ax.texts, ax.title, ax.yaxis.label, *ax.get_xticklabels()]:
            box = text.get_window_extent()
            assert box.x0 >= 0
            assert box.y0 >= 0
            assert box.x1 <= figure.bbox.x1
            assert box.y1 <= figure.bbox.y1


def test_axes_in_axes_out(frame):
    """The given ones are drawn on; a wrong number is said."""
    figure, given = plt.subplots(1, 2)
    axes = image_metrics(frame, axes=given)
    assert list(axes) == list(given)
    assert axes[0].figure is figure
    with pytest.raises(ValueError, match=r"1 panels \(ssim\) need as many axes; 2 are given"):
        image_metrics(frame, metrics=["ssim"], axes=given)


def test_what_cannot_be_shown(frame):
    """Scores that are not there, not finite, or not of classes."""
    with pytest.raises(ValueError, match="no score 'lpips'"):
        image_metrics(frame, metrics=["lpips"])
    with pytest.raises(ValueError, match="no scores of tiles"):
        image_metrics(frame[["method", "class"]])
    with pytest.raises(ValueError, match="psnr is not finite"):
        image_metrics(frame.assign(psnr=np.inf), metrics=["psnr"])
    with pytest.raises(ValueError, match="no column 'class'"):
        image_metrics(frame.drop(columns="class"))
    with pytest.raises(ValueError, match="needs at least two"):
        image_metrics(frame.query("`class` == 'DCIS'"))
    assert image_metrics(frame.query("`class` == 'DCIS'"), tests=False)
    assert [ax.get_ylabel() for ax in image_metrics(frame.assign(lpips=np.nan))] == ["MSE", "SSIM"]
