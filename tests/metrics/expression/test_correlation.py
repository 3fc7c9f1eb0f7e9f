"""Gene-wise correlation, against scipy gene by gene."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import sparse, stats

from sthist import metrics
from sthist.metrics._expression import blocks


def counts(n=60, genes=7, seed=0):
    rng = np.random.default_rng(seed)
    truth = np.log1p(rng.poisson(rng.uniform(1, 8, genes), (n, genes)).astype(np.float64))
    return truth, truth * rng.normal(size=genes) + rng.normal(size=(n, genes))


def one_by_one(truth, prediction):
    return [stats.pearsonr(truth[:, gene], prediction[:, gene])[0] for gene in range(truth.shape[1])]


@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_matrix, sparse.csc_array, pd.DataFrame, np.float32])
def test_each_gene_is_scipy_s(kind, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 60 * 8 * 2)  # two genes in a block
    truth, prediction = counts()
    values = metrics.gene_pearson(kind(truth), prediction)
    np.testing.assert_allclose(values, one_by_one(truth, prediction), rtol=1e-6 if kind is np.float32 else 1e-10)


def test_arrays_on_disk_are_read_in_blocks(tmp_path):
    import zarr

    truth, prediction = counts()
    stored = zarr.create_array(tmp_path / "prediction.zarr", data=prediction, chunks=(16, 3))
    np.testing.assert_allclose(metrics.gene_pearson(truth, stored), one_by_one(truth, prediction))


def test_itself_and_affine_maps_are_one():
    truth, _ = counts()
    np.testing.assert_allclose(metrics.gene_pearson(truth, truth), 1)
    np.testing.assert_allclose(metrics.gene_pearson(truth, 1e6 + 3 * truth), 1)
    np.testing.assert_allclose(metrics.gene_pearson(truth, 1 - 3 * truth), -1)


def test_what_was_not_measured_does_not_count():
    truth, prediction = counts()
    mask = np.random.default_rng(1).random(truth.shape) < 0.7
    mask[:, 3], mask[1:, 4] = False, False
    values = metrics.gene_pearson(np.where(mask, truth, np.nan), prediction, mask=mask)
    assert np.isnan(values[[3, 4]]).all()
    for gene in (0, 1, 2, 5, 6):
        kept = mask[:, gene]
        assert values[gene] == pytest.approx(stats.pearsonr(truth[kept, gene], prediction[kept, gene])[0])
    columns = np.arange(7) != 2
    assert np.isnan(metrics.gene_pearson(truth, prediction, mask=columns)).tolist() == (~columns).tolist()


def test_groups_are_averaged_by_their_sizes():
    truth, prediction = counts(60)
    groups = np.repeat(["b", "a", "c"], [10, 49, 1])  # the last has one spot, and no correlation
    truth[:10, 2] = 1  # constant in one group
    expected = [
        np.average([stats.pearsonr(truth[part, gene], prediction[part, gene])[0] for part in parts], weights=sizes)
        for gene in range(7)
        for parts, sizes in [(([slice(0, 10), slice(10, 59)], [10, 49]) if gene != 2 else ([slice(10, 59)], [49]))]
    ]
    np.testing.assert_allclose(metrics.gene_pearson(truth, prediction, groups=groups), expected)
    shifted = prediction + 100 * (groups == "b")[:, None]
    np.testing.assert_allclose(metrics.gene_pearson(truth, shifted, groups=groups), expected)


@pytest.mark.parametrize("value", [0.1, 1e5])
def test_constants_are_nan_whatever_their_rounding(value):
    truth, prediction = counts()
    prediction[:, 2] = value
    assert np.isnan(metrics.gene_pearson(truth, prediction)).tolist() == [i == 2 for i in range(7)]
    noisy = np.full(truth.shape, value, np.float32)
    noisy[::2] = np.nextafter(noisy[::2], np.float32(np.inf))
    assert np.isnan(metrics.gene_pearson(truth, noisy)).all()


def test_what_cannot_be_scored_is_refused():
    truth, prediction = counts()
    frame = pd.DataFrame(truth, columns=list("abcdefg"))
    with pytest.raises(ValueError, match="first in row 4 of gene 'c'"):
        metrics.gene_pearson(
            frame.where((frame.index != 4).repeat(7).reshape(-1, 7) | (frame.columns != "c")), prediction
        )
    with pytest.raises(ValueError, match="one spot"):
        metrics.gene_pearson(truth[:1], prediction[:1])
    with pytest.raises(ValueError, match=r"truth has \(60, 7\).*prediction \(60, 6\)"):
        metrics.gene_pearson(truth, prediction[:, 1:])
    with pytest.raises(ValueError, match="0 genes in common; 14"):
        metrics.gene_pearson(frame, pd.DataFrame(prediction, columns=list("tuvwxyz")))
    with pytest.raises(ValueError, match="gene 'a' more than once"):
        metrics.gene_pearson(frame.rename(columns={"b": "a"}), prediction)
    with pytest.raises(TypeError, match="mask is of dtype float64"):
        metrics.gene_pearson(truth, prediction, mask=np.ones(7))
    with pytest.raises(ValueError, match="groups has 3 values; there are 60 spots"):
        metrics.gene_pearson(truth, prediction, groups=["a", "b", "c"])
    reordered = pd.DataFrame(prediction, columns=list("abcdefg"))[list("gfedcba")]
    np.testing.assert_allclose(metrics.gene_pearson(frame, reordered), one_by_one(truth, prediction))
