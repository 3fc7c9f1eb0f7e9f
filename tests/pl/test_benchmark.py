"""Models of expression beside what knows nothing."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import sthist


@pytest.fixture
def frame():
    rows = []
    for genes, n, level in (("top50", 50, 0.4), ("panel", 300, 0.2)):
        for fold in range(3):
            where = {"fold": fold, "seed": 0, "genes": genes, "n_genes": n}
            scores = {"pearson_mean": 0.0, "spot_pearson": 0.7}
            rows.append(where | {"model": "training mean", "method": "training mean"} | scores)
            for number, model in enumerate(("ridge", "mlp")):
                score = level + 0.05 * number + 0.01 * fold
                rows.append(where | {"model": model, "method": "model", "pearson_mean": score, "spot_pearson": 0.8})
                rows.append(
                    where | {"model": model, "method": "shuffled tiles", "pearson_mean": 0.01, "spot_pearson": 0.69}
                )
    found = pd.DataFrame(rows)
    found.attrs["dominated_by_gene_means"] = ["spot_pearson"]
    return found


def test_a_panel_per_gene_set_and_a_row_per_model(frame):
    axes = sthist.pl.benchmark(frame)
    assert [ax.get_title() for ax in axes] == ["top50 (50 genes)", "panel (300 genes)"]
    assert [label.get_text() for label in axes[0].get_yticklabels()] == ["ridge", "mlp"]
    for ax, level in zip(axes, (0.4, 0.2), strict=True):
        assert ax.get_yticks().tolist() == [0, 1]
        points = [line for line in ax.lines if line.get_marker() == "o"]
        np.testing.assert_allclose(points[1].get_xdata(), level + 0.05 + 0.01 * np.arange(3))
        means = [line for line in ax.lines if line.get_marker() == "|"]
        assert means[0].get_xdata()[0] == pytest.approx(level + 0.01)
        dashed = [line for line in ax.lines if line.get_linestyle() == "--"]
        assert set(dashed[0].get_xdata()) == {0.0}


def test_what_is_no_model_is_a_line_and_named(frame):
    """Its mean over folds; the legend lies beside the axes, not on what is drawn."""
    where = {"seed": 0, "genes": "panel", "n_genes": 300}
    nulls = [
        where | {"model": name, "method": name, "fold": fold, "pearson_mean": sign * value}
        for name, sign in (("places", 1), ("one map", -1))
        for fold, value in enumerate((0.3, 0.2, 0.1))
    ]
    (ax,) = sthist.pl.benchmark(pd.concat([frame, pd.DataFrame(nulls)]), gene_sets="panel")
    lines = {line.get_label(): line.get_xdata()[0] for line in ax.lines if not line.get_label().startswith("_")}
    assert {name: round(float(lines[name]), 9) for name in ("training mean", "places", "one map")} == {
        "training mean": 0.0,
        "places": 0.2,
        "one map": -0.2,
    }
    assert ax.get_legend().get_window_extent().x0 >= ax.get_window_extent().x1 - 1


def test_scores_of_gene_means_say_so(frame, tmp_path):
    axes = sthist.pl.benchmark(frame, "spot_pearson", gene_sets="panel", save=tmp_path / "figure.png")
    assert "dominated by the genes' means" in axes[0].get_xlabel()
    assert (tmp_path / "figure.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"metric": "no"}, "no column 'no'"), ({"gene_sets": ["no"]}, "no gene set 'no'"), ({"level": 2}, "0 and 1")],
)
def test_refused(frame, arguments, message):
    with pytest.raises(ValueError, match=message):
        sthist.pl.benchmark(frame, **arguments)
