"""Scores of expression, against scipy, scikit-image and loops."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from scipy import sparse, stats

from sthist import metrics
from sthist.metrics._expression import blocks


def made(n=30, genes=12, seed=0):
    """Log expression of genes of different means, and a prediction that knows some of it."""
    rng = np.random.default_rng(seed)
    truth = np.log1p(rng.poisson(rng.uniform(1, 30, genes), (n, genes)).astype(np.float64))
    return truth, 0.5 * truth + rng.normal(size=(n, genes))


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 8 * 100)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_matrix])
def test_each_score_is_its_formula(kind):
    truth, prediction = made()
    scores = metrics.expression(kind(truth), prediction, n_top=[1, 5, 12, 13])
    genes, spots, summary = scores.genes, scores.spots, scores.summary
    n, g = truth.shape
    np.testing.assert_allclose(genes["l1"], np.abs(truth - prediction).mean(axis=0))
    np.testing.assert_allclose(genes["rmse"], np.sqrt(((truth - prediction) ** 2).mean(axis=0)))
    np.testing.assert_allclose(genes["mean"], truth.mean(axis=0))
    np.testing.assert_allclose(genes["pearson"], [stats.pearsonr(truth[:, i], prediction[:, i])[0] for i in range(g)])
    np.testing.assert_allclose(genes["spearman"], [stats.spearmanr(truth[:, i], prediction[:, i])[0] for i in range(g)])
    np.testing.assert_allclose(spots["pearson"], [stats.pearsonr(truth[i], prediction[i])[0] for i in range(n)])
    np.testing.assert_allclose(spots["spearman"], [stats.spearmanr(truth[i], prediction[i])[0] for i in range(n)])
    means = truth.mean(axis=0)
    np.testing.assert_allclose(spots["pearson_of_gene_means"], [stats.pearsonr(truth[i], means)[0] for i in range(n)])
    top = np.argsort(-means)[:5]
    expected = [stats.spearmanr(truth[i, top], prediction[i, top])[0] for i in range(n)]
    np.testing.assert_allclose(spots["spearman_top5"], expected)
    assert spots["spearman_top1"].isna().all()  # one gene has no correlation
    assert spots[["spearman_top13", "recall_top13"]].isna().all(axis=None)
    assert summary["l1"] == pytest.approx(np.abs(truth - prediction).mean())
    assert summary["rmse"] == pytest.approx(np.sqrt(((truth - prediction) ** 2).mean()))
    assert summary["pearson_mean"] == pytest.approx(genes["pearson"].mean())
    assert summary["pearson_median"] == pytest.approx(np.median(genes["pearson"]))
    assert summary["spot_spearman"] == pytest.approx(spots["spearman"].mean())
    assert summary["pearson_flattened"] == pytest.approx(stats.pearsonr(truth.ravel(), prediction.ravel())[0])
    alone = stats.pearsonr(truth.ravel(), np.broadcast_to(means, truth.shape).ravel())[0]
    assert summary["pearson_flattened_of_gene_means"] == pytest.approx(alone)


def test_recall_by_a_loop():
    truth, prediction = made(seed=3)
    truth[:, 4] = truth[:, 3]  # equal values: the first counts first
    spots = metrics.expression(truth, prediction, n_top=[4], metrics=["recall"]).spots

    def highest(values):
        return set(sorted(range(len(values)), key=lambda gene: (-values[gene], gene))[:4])

    expected = [len(highest(a) & highest(b)) / 4 for a, b in zip(truth, prediction, strict=True)]
    assert spots["recall_top4"].tolist() == expected


def test_recall_of_itself_of_the_reverse_and_of_all_genes():
    truth = np.random.default_rng(0).permuted(np.tile(np.arange(10.0), (5, 1)), axis=1)
    alike = metrics.expression(truth, truth, n_top=[3, 10]).summary
    reverse = metrics.expression(truth, -truth, n_top=[5, 10]).summary
    assert (alike["recall_top3"], alike["recall_top10"]) == (1, 1)
    assert (reverse["recall_top5"], reverse["recall_top10"]) == (0, 1)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 1000), scale=st.floats(0.1, 10), shift=st.floats(-5, 5))
def test_correlations_do_not_see_scale_nor_order(seed, scale, shift):
    truth, prediction = made(seed=seed)
    names = ["pearson_mean", "spearman_mean", "spot_pearson", "spot_spearman", "recall_top5", "pearson_flattened"]
    scores = metrics.expression(truth, prediction, n_top=[5]).summary
    mapped = metrics.expression(truth, shift + scale * prediction, n_top=[5]).summary
    np.testing.assert_allclose(scores[names], mapped[names], atol=1e-9)
    spots, genes = np.random.default_rng(seed).permutation(30), np.random.default_rng(seed).permutation(12)
    permuted = metrics.expression(truth[spots][:, genes], prediction[spots][:, genes], n_top=[5]).summary
    names.remove("recall_top5")  # of equal values, the order of genes decides
    np.testing.assert_allclose(scores[names], permuted[names])
    itself = metrics.expression(truth, truth, n_top=[5]).summary
    np.testing.assert_allclose(itself[["pearson_mean", "spot_spearman", "spearman_top5", "recall_top5"]], 1)


def test_top_genes_are_those_of_training_or_of_each_spot():
    truth, prediction = made()
    order = np.random.default_rng(1).permutation(12)
    chosen = metrics.expression(truth, prediction, n_top=[6], training_mean=-np.argsort(order).astype(float))
    first = order[:6]
    expected = [stats.spearmanr(truth[i, first], prediction[i, first])[0] for i in range(30)]
    np.testing.assert_allclose(chosen.spots["spearman_top6"], expected)
    own = metrics.expression(truth, prediction, n_top=[6], per_spot=True).spots["spearman_top6"]
    for i in range(30):
        first = np.argsort(-truth[i], kind="stable")[:6]
        assert own[i] == pytest.approx(stats.spearmanr(truth[i, first], prediction[i, first])[0])
    named = pd.Series(np.arange(12.0), index=[f"g{i}" for i in range(12)])
    genes = [f"g{i}" for i in range(12)]
    by_name = metrics.expression(truth, prediction, genes=genes, training_mean=named[::-1], n_top=[6])
    by_place = metrics.expression(truth, prediction, training_mean=np.arange(12.0), n_top=[6])
    assert by_name.summary.equals(by_place.summary)


@pytest.mark.usefixtures("small_blocks")
def test_what_was_not_measured_enters_no_score():
    truth, prediction = made()
    mask = np.random.default_rng(1).random(truth.shape) < 0.8
    mask[:, 2] = False
    scores = metrics.expression(truth, prediction, mask=mask, n_top=[5])
    garbage = metrics.expression(np.where(mask, truth, np.nan), np.where(mask, prediction, 1e9), mask=mask, n_top=[5])
    pd.testing.assert_series_equal(scores.summary, garbage.summary)
    pd.testing.assert_frame_equal(scores.genes, garbage.genes)
    assert scores.genes["undefined"].tolist() == ["", "", "not measured", *[""] * 9]
    assert scores.summary["n_genes_undefined"] == 1
    assert scores.summary["l1"] == pytest.approx(np.abs(truth - prediction)[mask].mean())
    assert scores.summary["pearson_flattened"] == pytest.approx(stats.pearsonr(truth[mask], prediction[mask])[0])
    row = mask[3]
    assert scores.spots["spearman"][3] == pytest.approx(stats.spearmanr(truth[3, row], prediction[3, row])[0])
    kept = np.flatnonzero(row)
    best = [set(kept[np.argsort(-each[3, kept], kind="stable")[:5]]) for each in (truth, prediction)]
    assert scores.spots["recall_top5"][3] == len(best[0] & best[1]) / 5


def test_undefined_genes_are_counted_and_constant_predictions_count_as_nothing():
    truth, prediction = made()
    truth[:, 0], prediction[:, 1] = 1, 2
    scores = metrics.expression(truth, prediction)
    assert scores.genes["undefined"].tolist()[:3] == ["truth is constant", "prediction is constant", ""]
    assert scores.genes["pearson"].isna().tolist() == [True, True] + [False] * 10
    assert (scores.summary["n_genes_undefined"], scores.summary["n_genes_constant"]) == (1, 1)
    known = scores.genes["pearson"][2:]
    assert scores.summary["pearson_mean"] == pytest.approx(known.sum() / 11)
    mean = metrics.expression(truth, np.broadcast_to(truth.mean(axis=0), truth.shape)).summary
    assert (mean["pearson_mean"], mean["spearman_median"], mean["n_genes_constant"]) == (0, 0, 11)
    assert mean["pearson_flattened"] == pytest.approx(mean["pearson_flattened_of_gene_means"])
    assert mean["pearson_flattened"] > 0.3  # for nothing


def test_an_empty_spot_is_counted():
    truth, prediction = made()
    truth[7] = 0
    scores = metrics.expression(truth, prediction)
    assert scores.summary["n_spots_undefined"] == 1
    assert scores.spots["pearson"].isna().sum() == 1


def test_within_slides():
    truth, prediction = made(40)
    groups = np.repeat(["s1", "s2"], [15, 25])
    shift = 10 * (groups == "s1")[:, None]
    pooled = metrics.expression(truth + shift, prediction + shift, groups=groups).genes
    slides = groups == "s1", groups == "s2"
    for name, function in (("pearson", stats.pearsonr), ("spearman", stats.spearmanr)):
        parts = [[function(truth[p, i], prediction[p, i])[0] for i in range(12)] for p in slides]
        np.testing.assert_allclose(pooled[name], (15 * np.array(parts[0]) + 25 * np.array(parts[1])) / 40)


def test_maps_are_compared_as_scikit_image_does():
    from skimage.metrics import structural_similarity

    rng = np.random.default_rng(0)
    maps = rng.gamma(2, size=(40, 40, 2))
    blurred = maps + rng.normal(size=maps.shape)
    x, y = np.meshgrid(np.arange(40) * 100.0, np.arange(40) * 100.0)
    centres = np.column_stack([x.ravel(), y.ravel()])
    order = rng.permutation(1600)
    scores = metrics.expression(
        maps.reshape(-1, 2)[order], blurred.reshape(-1, 2)[order], centres=centres[order], metrics=["ssim"]
    )
    for gene in range(2):
        _, full = structural_similarity(
            maps[..., gene], blurred[..., gene], gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
            data_range=np.ptp(maps[..., gene]), full=True,
        )  # fmt: skip
        # Whole windows are the same; at the border, only what lies inside has weight here.
        assert scores.genes["ssim"][gene] == pytest.approx(full[5:-5, 5:-5].mean(), abs=0.02)
    assert metrics.expression(maps.reshape(-1, 2), maps.reshape(-1, 2), centres=centres).summary["ssim_mean"] == 1


def test_slides_far_apart_and_holes_change_no_map():
    rng = np.random.default_rng(0)
    x, y = np.meshgrid(np.arange(12) * 100.0, np.arange(12) * 100.0)
    centres = np.column_stack([x.ravel(), y.ravel()])
    truth, prediction = rng.normal(size=(2, 144, 3))
    one = metrics.expression(truth, prediction, centres=centres).genes["ssim"]
    both = [np.tile(values, (2, 1)) for values in (truth, prediction)]
    slides = np.repeat(["a", "b"], 144)
    twice = metrics.expression(*both, centres=np.r_[centres, centres + 1e6], groups=slides).genes["ssim"]
    np.testing.assert_allclose(one, twice)
    mask = np.ones((144, 3), bool)
    mask[60:70] = False
    left = [np.delete(values, np.s_[60:70], 0) for values in (truth, prediction, centres)]
    without = metrics.expression(*left[:2], centres=left[2])
    masked = metrics.expression(truth, prediction, mask=mask, centres=centres)
    # The range of the truth is that of the rest in both.
    np.testing.assert_allclose(without.genes["ssim"], masked.genes["ssim"])


def test_memory_does_not_grow_with_the_panel():
    import tracemalloc

    n, genes = 400, 20_000
    truth = sparse.random(n, genes, density=0.02, format="csr", random_state=0)
    tracemalloc.start()
    prediction = np.broadcast_to(np.float32(1), (n, genes))
    metrics.expression(truth, prediction, metrics=[])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    dense = n * genes * 8
    assert peak > 0
    # Some ten blocks; what is dense and whole would be 64 MB for each matrix and each step.
    assert peak < 12 * blocks.BLOCK_BYTES
    assert dense > blocks.BLOCK_BYTES


def test_what_cannot_be_scored_is_refused():
    truth, prediction = made()
    with pytest.raises(ValueError, match="one spot"):
        metrics.expression(truth[:1], prediction[:1])
    with pytest.raises(ValueError, match="no metric 'ssimm'"):
        metrics.expression(truth, prediction, metrics=["ssimm"])
    with pytest.raises(ValueError, match="give centres="):
        metrics.expression(truth, prediction, metrics=["ssim"])
    with pytest.raises(ValueError, match=r"n_top is \[0\]"):
        metrics.expression(truth, prediction, n_top=[0])
    with pytest.raises(ValueError, match="training_mean has shape"):
        metrics.expression(truth, prediction, training_mean=[1, 2])
    with pytest.raises(ValueError, match="more than once"):
        metrics.expression(truth, prediction, genes=["a"] * 12)
    with pytest.raises(ValueError, match="3 names of genes and 12 columns"):
        metrics.expression(truth, prediction, genes=["a", "b", "c"])
    with pytest.raises(ValueError, match=r"centres are finite .*\(29, 2\)"):
        metrics.expression(truth, prediction, centres=np.zeros((29, 2)))
    with pytest.raises(ValueError, match="at one place"):
        metrics.expression(truth, prediction, centres=np.zeros((30, 2)))


def test_repr_says_what_it_is():
    truth, _ = made()
    truth[:, 0] = 1
    shown = repr(metrics.expression(truth, truth))
    assert shown.endswith("gene-wise Pearson 1.000 (median 1.000), L1 0.000; 1 genes undefined")


class TestGiven:
    def test_it_is_the_partial_correlation(self):
        """By its formula from three correlations, in each of two slides, with a gene that one has not measured."""
        rng = np.random.default_rng(0)
        given, slide = rng.normal(size=80), np.repeat(["a", "b"], [50, 30])
        truth = rng.normal(size=(80, 4)) + given[:, None]
        predicted = 0.5 * truth + rng.normal(size=(80, 4)) - given[:, None]
        mask = np.ones((80, 4), bool)
        mask[50:, 3] = False
        found = metrics.expression(truth, predicted, mask=mask, groups=slide, given=given)
        expected = []
        for gene in range(4):
            parts = []
            for mine in (slide == "a", slide == "b")[: 1 if gene == 3 else 2]:
                x, y, z = truth[mine, gene], predicted[mine, gene], given[mine]
                xy, xz, yz = (np.corrcoef(*pair)[0, 1] for pair in ((x, y), (x, z), (y, z)))
                parts.append(((xy - xz * yz) / np.sqrt((1 - xz**2) * (1 - yz**2)), mine.sum()))
            expected.append(np.average([r for r, _ in parts], weights=[n for _, n in parts]))
        np.testing.assert_allclose(found.genes["pearson_given"], expected, rtol=1e-9)
        assert found.summary["pearson_given_mean"] == pytest.approx(np.mean(expected))

    def test_what_says_no_more_than_the_given_is_zero_and_what_is_no_more_is_undefined(self):
        given = np.random.default_rng(1).normal(size=40)
        other = np.random.default_rng(2).normal(size=40)
        truth = np.stack([other, 2 * given + 5], 1).astype(np.float32)
        predicted = np.stack([3 - given, other], 1).astype(np.float32)
        assert metrics.expression(truth, predicted, given=given).genes["pearson_given"].tolist() == [
            0,
            pytest.approx(np.nan, nan_ok=True),
        ]

    def test_it_is_one_finite_number_of_each_spot(self):
        truth = np.random.default_rng(0).normal(size=(5, 2))
        for wrong in (np.ones(4), np.full(5, np.nan)):
            with pytest.raises(ValueError, match="finite number of each spot"):
                metrics.expression(truth, truth, given=wrong)
