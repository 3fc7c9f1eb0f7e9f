"""The noise ceiling, against what is known of Poisson counts."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from realdata import folder
from scipy import sparse

from sthist import metrics


def drawn(n=4000, seed=0):
    """Counts of genes whose rates are known: each varies by a factor of its own around its mean."""
    rng = np.random.default_rng(seed)
    means, spread = np.array([0.5, 3, 20, 3, 3]), np.array([0.5, 0.5, 0.5, 0.25, 0])
    rates = means * rng.lognormal(0, spread, (n, 5))
    return rates, np.column_stack([rng.poisson(rates), np.full(n, 100_000)])  # the last keeps the totals alike


def test_it_is_the_correlation_with_the_rates():
    """What no model can pass: the rates that the counts were drawn from."""
    rates, counts = drawn()
    ceiling = metrics.noise_ceiling(counts, genes=np.arange(5), log=False)
    best = [np.corrcoef(rates[:, gene], counts[:, gene])[0, 1] for gene in range(4)]
    np.testing.assert_allclose(ceiling[:4], best, atol=0.04)
    assert ceiling[4] < 0.3  # nothing but noise


def test_sparse_frames_names_and_seeds():
    _, counts = drawn(200)
    named = pd.DataFrame(counts, columns=list("abcdef"))
    expected = metrics.noise_ceiling(counts)[[2, 0]]
    np.testing.assert_array_equal(metrics.noise_ceiling(named, genes=["c", "a"]), expected)
    np.testing.assert_array_equal(metrics.noise_ceiling(sparse.csc_matrix(counts), genes=[2, 0]), expected)
    np.testing.assert_array_equal(metrics.noise_ceiling(counts, genes=np.arange(6) == 0), expected[1:])
    assert metrics.noise_ceiling(counts, genes=[0], seed=1) != expected[1]
    with pytest.raises(KeyError, match="no gene 'z'"):
        metrics.noise_ceiling(named, genes=["a", "z"])
    with pytest.raises(KeyError, match="counts are no frame"):
        metrics.noise_ceiling(counts, genes=["a"])


def test_differences_between_slides_are_no_signal():
    _, counts = drawn(400)
    counts[:200, 4] = np.random.default_rng(1).poisson(60, 200)
    slides = np.repeat(["a", "b"], 200)
    assert metrics.noise_ceiling(counts, genes=[4])[0] > 0.9
    assert metrics.noise_ceiling(counts, genes=[4], groups=slides)[0] < 0.6


def test_genes_without_counts_are_nan():
    _, counts = drawn(50)
    counts[:, 1] = 0
    assert np.isnan(metrics.noise_ceiling(counts, genes=[0, 1])).tolist() == [False, True]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (lambda counts: np.log1p(counts), "not whole, first in row 0 of column 0, and looks like logarithms"),
        (lambda counts: counts * 9.7, "not whole, .* and looks like normalised counts"),
        (lambda counts: counts - 1, "negative"),
        (lambda counts: np.where(counts > 5, np.nan, counts), "NaN"),
        (lambda counts: counts[:1], "one spot"),
    ],
)
def test_only_counts_have_it(values, message):
    counts = np.random.default_rng(0).poisson(3, (20, 4)) + np.eye(20, 4, dtype=int)
    counts[0, 0] = 3
    with pytest.raises(ValueError, match=message):
        metrics.noise_ceiling(values(counts))


@pytest.mark.parametrize("section", ["C3", "C4", "C5"])
def test_of_her2st(section):
    """Measured elsewhere for the 250 genes with most counts: means of 0.62 to 0.70 over sections."""
    import anndata as ad

    adata = ad.read_h5ad(folder("her2st") / f"{section}_counts.h5ad")
    top = np.argsort(-np.asarray(adata.X.sum(axis=0)).ravel())[:250]
    assert 0.6 < np.nanmean(metrics.noise_ceiling(adata.X, genes=top)) < 0.72
