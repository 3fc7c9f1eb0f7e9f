"""Agreement of clusters, against scikit-learn, and by trying all assignments."""

from __future__ import annotations

from itertools import permutations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from sthist import metrics


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 1000), k=st.integers(1, 4), other=st.integers(1, 4))
def test_agreement_is_the_best_assignment_and_scikit_learn_s(seed, k, other):
    rng = np.random.default_rng(seed)
    first, second = rng.integers(k, size=30), rng.integers(other, size=30)
    found = metrics.label_agreement(first, second)
    best = max((np.array(order)[first] == second).mean() for order in permutations(range(4)))
    assert found.accuracy == pytest.approx(best)
    assert found.ari == pytest.approx(adjusted_rand_score(first, second))
    assert found.nmi == pytest.approx(normalized_mutual_info_score(first, second))
    renamed = np.array(["d", "a", "c", "b"])[second]
    assert metrics.label_agreement(first, renamed) == pytest.approx(found)


def test_labels_are_one_for_each_row():
    with pytest.raises(ValueError, match="2 labels and 3 predicted"):
        metrics.label_agreement([0, 1], [0, 1, 1])
    with pytest.raises(ValueError, match="0 labels"):
        metrics.label_agreement([], [])


def groups(noise=1.0, seed=0):
    """Three kinds of spots, far apart, and which each is of."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(3, size=120)
    return np.log1p(rng.gamma(2, 5, (3, 40)))[kind] + noise * rng.normal(size=(120, 40)), kind


def test_clusters_of_a_prediction_that_knows_the_kinds():
    truth, kind = groups(0.2)
    prediction = groups(0.1)[0] + 0.1
    scores = metrics.clustering(truth, prediction, resolution=0.1)
    assert (scores.accuracy, scores.ari, scores.nmi) == (1, 1, 1)
    np.testing.assert_array_equal(scores.truth, scores.prediction)
    assert metrics.label_agreement(scores.truth, kind).accuracy == 1


def test_nothing_known_is_no_agreement():
    truth, _ = groups(0.2)
    noise = np.random.default_rng(1).normal(size=truth.shape)
    scores = metrics.clustering(truth, noise)
    assert abs(scores.ari) < 0.1
    constant = metrics.clustering(truth, np.broadcast_to(truth.mean(axis=0), truth.shape), resolution=0.1)
    assert len(set(constant.prediction)) == 1
    assert (constant.ari, constant.nmi) == (0, 0)
    sizes = np.bincount(constant.truth)
    assert constant.accuracy == pytest.approx(sizes.max() / sizes.sum())
    assert constant.prediction[0] == sizes.argmax()


def test_it_is_repeatable_and_the_steps_are_scanpy_s():
    import anndata as ad
    import scanpy as sc

    truth, _ = groups(1.0)
    prediction, _ = groups(1.5, seed=2)
    scores, again = (metrics.clustering(truth, prediction, seed=3) for _ in range(2))
    np.testing.assert_array_equal(scores.prediction, again.prediction)
    adata = ad.AnnData(truth.astype(np.float32))
    sc.pp.pca(adata, n_comps=39, random_state=3)
    sc.pp.neighbors(adata, random_state=3)
    sc.tl.leiden(adata, flavor="igraph", n_iterations=2, directed=False, random_state=3)
    assert metrics.label_agreement(adata.obs["leiden"], scores.truth).accuracy == 1


def test_what_cannot_be_clustered_is_said(monkeypatch):
    truth, _ = groups()
    with pytest.raises(ValueError, match="There are 2 spots"):
        metrics.clustering(truth[:2], truth[:2])
    with pytest.raises(ValueError, match="resolution 0"):
        metrics.clustering(truth, truth, resolution=0)
    assert metrics.clustering(truth[:3], truth[:3]).accuracy == 1
    monkeypatch.setattr("sthist.metrics._clustering.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install \"sthist\[leiden\]\""):
        metrics.clustering(truth, truth)
