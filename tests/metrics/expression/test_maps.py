"""Moran's I, against its formula and squidpy."""

from __future__ import annotations

import numpy as np
import pytest
from realdata import folder
from scipy import sparse

from sthist import metrics


def lattice(hexagonal, n=9, pitch=100.0):
    x, y = np.meshgrid(np.arange(n) * pitch, np.arange(n) * pitch)
    if hexagonal:
        x, y = x + (np.arange(n) % 2)[:, None] * pitch / 2, y * np.sqrt(3) / 2
    return np.column_stack([x.ravel(), y.ravel()])


def by_the_formula(values, centres, reach):
    """N / W times the sum of w z z over the sum of squares, by a loop."""
    n = len(values)
    z = values - values.mean()
    distance = np.linalg.norm(centres[:, None] - centres[None], axis=2)
    weights = ((distance > 0) & (distance < reach)).astype(float)
    weights /= weights.sum(axis=1, keepdims=True)
    return n / weights.sum() * sum(weights[i, j] * z[i] * z[j] for i in range(n) for j in range(n)) / (z**2).sum()


@pytest.mark.parametrize("hexagonal", [False, True])
def test_neighbours_are_those_of_the_lattice(hexagonal, monkeypatch):
    monkeypatch.setattr("sthist.metrics._expression.maps.BLOCK_BYTES", 81 * 8 * 2)
    rng = np.random.default_rng(0)
    centres = lattice(hexagonal)
    values = rng.poisson(2, (81, 5)) + centres[:, :1] / 200
    expected = [by_the_formula(values[:, gene], centres, 120) for gene in range(5)]
    jittered = centres + rng.normal(0, 2, centres.shape)
    for given in (values, sparse.csr_matrix(values)):
        np.testing.assert_allclose(metrics.morans_i(given, jittered), expected)


def test_slides_are_apart_and_lonely_spots_do_not_count():
    rng = np.random.default_rng(0)
    centres, values = lattice(False), rng.normal(size=(81, 3))
    one = metrics.morans_i(values, centres)
    places = np.r_[centres, centres[::-1], [[5000, 5000]]]
    slides = ["b"] * 81 + ["a"] * 82
    two = metrics.morans_i(np.r_[values, values[::-1], [[0, 9, 0]]], places, groups=slides)
    np.testing.assert_allclose(two, [one, one])


def test_constants_and_small_slides_are_nan():
    values = np.column_stack([np.ones(81), np.arange(81)])
    assert np.isnan(metrics.morans_i(values, lattice(True))).tolist() == [True, False]
    assert np.isnan(metrics.morans_i(values[:2], lattice(True)[:2])).all()
    assert np.isnan(metrics.morans_i(values[:1], lattice(True)[:1])).all()


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"values are \(spots, genes\)"):
        metrics.morans_i(np.ones((4, 2)), np.ones((3, 2)))
    with pytest.raises(ValueError, match="n_neighbors is 0"):
        metrics.morans_i(np.ones((4, 2)), np.ones((4, 2)), n_neighbors=0)
    with pytest.raises(ValueError, match="at one place"):
        metrics.morans_i(np.ones((4, 2)), np.ones((4, 2)))


def test_two_spots_at_every_place():
    """Places, not spots, have a distance to the next."""
    places = np.stack(np.meshgrid(range(6), range(6)), -1).reshape(-1, 2) * 100.0
    assert metrics.morans_i(np.repeat(places, 2, axis=0), np.repeat(places, 2, axis=0)).min() > 0.5


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("on_lattice", [True, False])
def test_of_a_section_it_is_squidpy_s(on_lattice):
    """her2st C3, the 40 genes with most counts: squidpy's statistic with its own neighbours."""
    import anndata as ad
    import scanpy as sc
    import squidpy as sq

    adata = ad.read_h5ad(folder("her2st") / "C3_counts.h5ad")
    top = np.argsort(-np.asarray(adata.X.sum(axis=0)).ravel())[:40]
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    adata = adata[:, top].copy()
    um = adata.obsm["spatial"] * adata.uns["mpp"]
    adata.obsm["spatial"] = um
    pitch = np.median(np.sort(np.linalg.norm(um[:, None] - um, axis=2), axis=1)[:, 1])
    how = {"radius": 1.25 * pitch} if on_lattice else {"n_neighs": 6}
    sq.gr.spatial_neighbors(adata, coord_type="generic", **how)
    assert (adata.obsp["spatial_connectivities"].sum(axis=1) > 0).all()
    sq.gr.spatial_autocorr(adata, mode="moran", genes=adata.var_names, show_progress_bar=False)
    expected = adata.uns["moranI"].loc[adata.var_names, "I"]
    values = metrics.morans_i(adata.X, um, n_neighbors=None if on_lattice else 6)
    np.testing.assert_allclose(values, expected, rtol=1e-5)
