"""AUC, confusion and bootstrap, against formulas and scikit-learn."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from scipy import stats
from sklearn.metrics import roc_auc_score

from sthist import metrics
from sthist.metrics._classify import auc_statistic


def pairs_won(labels, scores, k):
    """AUC by its meaning: the share of pairs in which the positive one has the larger score, ties counting half."""
    own, other = scores[labels == k, k], scores[labels != k, k]
    return np.mean((own[:, None] > other[None]) + 0.5 * (own[:, None] == other[None]))


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), k=st.integers(2, 4), steps=st.sampled_from([3, 1000]))
def test_auc_counts_pairs(seed, k, steps):
    rng = np.random.default_rng(seed)
    labels = np.r_[np.arange(k), rng.integers(k, size=30)]
    scores = rng.integers(steps, size=(len(labels), k)) / steps
    expected = [pairs_won(labels, scores, i) for i in range(k)]
    np.testing.assert_allclose(metrics.auc_ovr(labels, scores), expected)
    support = np.bincount(labels, minlength=k)
    assert metrics.weighted_auc(labels, scores) == pytest.approx((support * expected).sum() / support.sum())


def test_weighted_auc_is_the_paper_s_formula():
    """As in Table 1: the support-weighted mean of the classes' AUC, here with supports 6, 3 and 1."""
    labels = [0] * 6 + [1] * 3 + [2]
    scores = np.random.default_rng(1).uniform(size=(10, 3))
    a, b, c = metrics.auc_ovr(labels, scores)
    assert metrics.weighted_auc(labels, scores) == pytest.approx((6 * a + 3 * b + c) / 10)


def test_names_and_frames():
    frame = pd.DataFrame({"tumour": [0.9, 0.2, 0.6], "stroma": [0.1, 0.8, 0.4]})
    auc = metrics.auc_ovr(["tumour", "stroma", "tumour"], frame)
    assert auc.to_dict() == {"tumour": 1.0, "stroma": 1.0}


def test_absent_classes_are_nan():
    scores = np.eye(3)[[0, 1, 0, 1]] + 0.1
    auc = metrics.auc_ovr([0, 1, 0, 1], scores)
    assert auc[:2].tolist() == [1, 1]
    assert np.isnan(auc[2])
    assert metrics.weighted_auc([0, 1, 0, 1], scores) == 1
    assert np.isnan(metrics.weighted_auc([0, 0], np.ones((2, 2))))


def test_sample_weights_are_scikit_learn_s():
    rng = np.random.default_rng(0)
    labels, scores, weights = rng.integers(2, size=50), rng.uniform(size=(50, 2)), rng.integers(0, 4, 50)
    expected = roc_auc_score(labels, scores[:, 1], sample_weight=weights)
    assert metrics.auc_ovr(labels, scores, sample_weight=weights)[1] == pytest.approx(expected)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), steps=st.sampled_from([4, 1000]))
def test_the_fast_statistic_equals_the_slow_one(seed, steps):
    """Weights count rows: as if each was there so often."""
    rng = np.random.default_rng(seed)
    labels, scores = rng.integers(3, size=40), rng.integers(steps, size=(40, 3)) / steps
    weights = rng.multinomial(40, np.ones(40) / 40)
    repeated = np.repeat(np.arange(40), weights)
    found = auc_statistic(labels, scores)(weights)
    np.testing.assert_allclose(found[:-1], metrics.auc_ovr(labels[repeated], scores[repeated]))
    np.testing.assert_allclose(found[-1], metrics.weighted_auc(labels[repeated], scores[repeated]))


def test_bootstrap_of_a_mean_is_normal():
    values = np.random.default_rng(0).normal(size=400)
    interval = metrics.bootstrap_interval(lambda w: np.average(values, weights=w), 400, n_boot=4000)
    half = stats.norm.ppf(0.975) * values.std() / np.sqrt(400)
    np.testing.assert_allclose(interval[:2], [values.mean() - half, values.mean() + half], atol=0.15 * half)
    assert interval.n_undefined == 0


def test_bootstrap_by_group_is_as_wide_as_that_of_the_groups():
    """Rows that are copies of each other add nothing."""
    of_group = np.random.default_rng(0).normal(size=60)
    values, groups = np.repeat(of_group, 20), np.repeat(np.arange(60), 20)
    interval = metrics.bootstrap_interval(lambda w: np.average(values, weights=w), 1200, groups=groups, n_boot=4000)
    half = stats.norm.ppf(0.975) * of_group.std() / np.sqrt(60)
    assert (interval.high - interval.low) / 2 == pytest.approx(half, rel=0.1)
    naive = metrics.bootstrap_interval(lambda w: np.average(values, weights=w), 1200)
    assert (naive.high - naive.low) / 2 == pytest.approx(half / np.sqrt(20), rel=0.15)


def test_bootstrap_counts_what_is_undefined():
    """Each draw of four rows misses a given one with probability (3/4)^4."""
    interval = metrics.bootstrap_interval(lambda w: [1.0, 2.0 if w[0] else np.nan], 4, n_boot=2000)
    assert interval.n_undefined[0] == 0
    assert interval.n_undefined[1] / 2000 == pytest.approx(0.75**4, abs=0.05)
    assert interval.low.tolist() == interval.high.tolist() == [1, 2]
    nothing = metrics.bootstrap_interval(lambda w: np.nan, 3, n_boot=5)
    assert np.isnan(nothing.low)
    assert nothing.n_undefined == 5


def test_confusion():
    counts = metrics.confusion(["a", "b", "b"], ["b", "b", "a"], classes=["b", "a", "c"])
    assert counts.loc["b"].to_dict() == {"b": 1, "a": 1, "c": 0}
    assert counts.to_numpy().sum() == 3
    assert (counts.index.name, counts.columns.name) == ("true", "predicted")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.auc_ovr([0, 1], np.ones((3, 2))), "have shapes"),
        (lambda: metrics.auc_ovr([0, 2], np.ones((2, 2))), "none of the classes.* such as 2"),
        (lambda: metrics.auc_ovr([0, 1], [[1, 0], [np.nan, 1]]), "NaN, first in row 1"),
        (lambda: metrics.auc_ovr([0, 1], np.ones((2, 2)), classes=["a"]), "1 classes and 2 columns"),
        (lambda: metrics.auc_ovr([0, 1], np.ones((2, 2)), sample_weight=[1, -1]), "none negative"),
        (lambda: metrics.confusion([1], [1, 2]), "each row has one of both"),
        (lambda: metrics.bootstrap_interval(np.sum, 0), "at least 1"),
        (lambda: metrics.bootstrap_interval(np.sum, 3, level=1), "between 0 and 1"),
        (lambda: metrics.bootstrap_interval(np.sum, 3, groups=[1, 2]), "groups has 2 values"),
    ],
)
def test_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
