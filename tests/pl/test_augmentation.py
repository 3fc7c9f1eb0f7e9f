"""Figures of whether synthetic tiles help: which numbers stand where."""

from __future__ import annotations

import anndata as ad
import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

import sthist

mpl.use("Agg")

ARMS = {
    ("real", 0): 0.5,
    ("real + synthetic", 0): 0.5,
    ("real, equal steps", 1): 0.45,
    ("real, equal steps", 5): 0.44,
    ("real, augmented", 5): 0.43,
    ("synthetic", 5): 90.0,
    ("real + synthetic", 1): 0.45,
    ("real + synthetic", 5): 0.40,
    ("real + shuffled pairs", 5): 0.6,
    ("training mean", 0): 0.7,
}


@pytest.fixture(autouse=True)
def _close():
    import matplotlib.pyplot as plt

    yield
    plt.close("all")


@pytest.fixture
def found():
    rows = [
        {"fraction": fraction, "seed": seed, "arm": arm, "ratio": ratio, "n_spots": 20, "steps": 5, "mae": value}
        for fraction in (0.1, 0.5)
        for (arm, ratio), value in ARMS.items()
        for seed in range(3)
    ]
    scores = pd.DataFrame(rows)
    draws = {"mae": np.tile(scores["mae"].to_numpy()[:, None], (1, 4))}
    tables, rng = {}, np.random.default_rng(0)
    for seed in range(2):
        truth = rng.random((30, 4)).astype(np.float32)
        obs = pd.DataFrame({"sample": np.repeat(["a", "b"], 15)}, index=[f"s{i}" for i in range(30)])
        table = ad.AnnData(truth, obs=obs, var=pd.DataFrame(index=list("ABCD")))
        table.obsm["spatial"] = np.column_stack(np.divmod(np.arange(30), 6)) * 100.0
        table.layers["real_equal_steps"] = truth + np.float32([0.1, 0.2, 0.3, 0.4])
        table.layers["real_synthetic"] = truth - np.float32([0.2, 0.1, 0.1, 0.1]) * (1 + seed)
        tables[0.1, seed] = table
    return sthist.benchmark.AugmentationScores(scores, draws, tables, pd.DataFrame())


def line(ax, label):
    (own,) = [each for each in ax.lines if each.get_label() == label]
    return own


class TestAugmentation:
    def test_curves_are_the_means(self, found):
        axes = sthist.pl.augmentation(found)
        assert [ax.get_title() for ax in axes] == ["20 spots (10 %)", "20 spots (50 %)"]
        ax = axes[0]
        assert [each.get_text() for each in ax.get_xticklabels()] == ["0", "1", "5"]
        np.testing.assert_allclose(line(ax, "real + synthetic").get_xydata(), [[0, 0.5], [1, 0.45], [2, 0.4]])
        np.testing.assert_allclose(line(ax, "real, equal steps").get_xydata(), [[1, 0.45], [2, 0.44]])
        np.testing.assert_allclose(line(ax, "real + shuffled pairs").get_xydata(), [[2, 0.6]])
        assert line(ax, "training mean").get_ydata()[0] == pytest.approx(0.7)

    def test_only_what_differs_is_filled(self, found):
        (ax, _) = sthist.pl.augmentation(found)
        faces = [
            each.get_markerfacecolor() for each in ax.lines if each.get_markersize() == 6 and len(each.get_xdata()) == 1
        ]
        assert faces[:3] == ["white", "white", "#d95f02"]

    def test_what_is_far_off_does_not_flatten_the_rest(self, found):
        low, high = sthist.pl.augmentation(found)[0].get_ylim()
        assert 0.3 < low < 0.4
        assert 0.7 < high < 0.8

    def test_some_fractions_on_axes_of_ones_own(self, found, tmp_path):
        import matplotlib.pyplot as plt

        _, ax = plt.subplots()
        assert sthist.pl.augmentation(found, fractions=[0.5], axes=ax, save=tmp_path / "a.png") == [ax]
        assert (tmp_path / "a.png").exists()

    def test_refused(self, found):
        with pytest.raises(TypeError, match="a result of benchmark.augmentation"):
            sthist.pl.augmentation(found.scores)
        with pytest.raises(ValueError, match=r"fractions= has \[0.3\]; the benchmark has 0.1, 0.5"):
            sthist.pl.augmentation(found, fractions=[0.3])
        with pytest.raises(ValueError, match="metric is 'r2'"):
            sthist.pl.augmentation(found, "r2")


class TestGeneErrors:
    def test_dots_are_means_over_seeds(self, found):
        (ax,) = sthist.pl.gene_errors(found)
        dots = np.concatenate([each.get_offsets() for each in ax.collections])
        wanted = np.column_stack([[0.1, 0.2, 0.3, 0.4], np.array([0.2, 0.1, 0.1, 0.1]) * 1.5])
        np.testing.assert_allclose(dots[np.argsort(dots[:, 0])], wanted, atol=1e-6)
        assert ax.get_title() == "10 %: 3 of 4 genes better"

    def test_of_correlations_more_is_better(self, found):
        (ax,) = sthist.pl.gene_errors(found, ["real_equal_steps", "real_synthetic"], "pearson")
        dots = np.concatenate([each.get_offsets() for each in ax.collections])
        np.testing.assert_allclose(dots, 1, atol=1e-6)

    def test_refused(self, found):
        with pytest.raises(KeyError, match="no layer 'mine'; they have 'real_equal_steps', 'real_synthetic'"):
            sthist.pl.gene_errors(found, ["real_equal_steps", "mine"])
        with pytest.raises(ValueError, match="layers names 1"):
            sthist.pl.gene_errors(found, ["real_synthetic"])
        with pytest.raises(ValueError, match="metric is 'f1'"):
            sthist.pl.gene_errors(found, metric="f1")
        with pytest.raises(TypeError, match="a result of"):
            sthist.pl.gene_errors(3)


class TestMaps:
    def test_truth_and_both_predictions_have_one_scale(self, found):
        table = found.tables[0.1, 0]
        table.uns["sthist"] = {"genes": {"log": True}}
        part = table[table.obs["sample"] == "a"].copy()
        axes = sthist.pl.gene_maps(part, ["B", "C"], ["real_equal_steps", "real_synthetic"], nulls=False)
        assert len(axes) == 6
        assert [ax.get_title() for ax in axes[:3]] == [
            "measured",
            "real_equal_steps, r = 1.00",
            "real_synthetic, r = 1.00",
        ]
        limits = {ax.collections[0].get_clim() for ax in axes[:3]}
        assert len(limits) == 1
        np.testing.assert_allclose(axes[2].collections[0].get_array(), part.layers["real_synthetic"][:, 1], atol=1e-6)

    def test_the_last_is_dealt(self, found):
        table = found.tables[0.1, 0]
        axes = sthist.pl.gene_maps(table, ["A"], ["real_equal_steps", "real_synthetic"])
        dealt = axes[-1].collections[0].get_array()
        assert axes[-1].get_title().startswith("real_synthetic, shuffled")
        np.testing.assert_allclose(np.sort(dealt), np.sort(table.layers["real_synthetic"][:, 0]), atol=1e-6)

    def test_none_is_refused(self, found):
        with pytest.raises(ValueError, match="key is empty"):
            sthist.pl.gene_maps(found.tables[0.1, 0], ["A"], [])
