"""Simulated spots against their parts, and what can be learned from them by who knows the type of each cell."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import sthist
from sthist.metrics import gene_pearson

TYPES = ("a", "b", "c", "d")


def looks(n=400, seed=0):
    rng = np.random.default_rng(seed)
    centres = rng.normal(scale=6, size=(len(TYPES), 12))
    kind = rng.choice(len(TYPES), n, p=[0.4, 0.3, 0.2, 0.1])
    values = centres[kind] + rng.normal(size=(n, 12))
    obs = pd.DataFrame({"kind": kind}, index=[f"n{i}" for i in range(n)])
    return ad.AnnData(np.zeros((n, 0), np.float32), obs=obs, obsm={"X_looks": values.astype(np.float32)})


def reference(n=300, genes=40, seed=1):
    """Poisson counts, of means that differ by type."""
    rng = np.random.default_rng(seed)
    kind = rng.choice(len(TYPES), n, p=[0.1, 0.2, 0.3, 0.4])
    means = rng.gamma(1, 2, (len(TYPES), genes))
    counts = rng.poisson(means[kind]).astype(np.float32)
    obs = pd.DataFrame({"cell_type": np.array(TYPES)[kind]}, index=[f"r{i}" for i in range(n)])
    return ad.AnnData(counts, obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(genes)]))


def simulate(**kwargs):
    options = {"types": 4, "n_spots": 300, "cells_per_spot": 8, "cells_per_type": 60} | kwargs
    return sthist.benchmark.simulate_spots(looks(), reference(), **options)


def by_least_squares(made):
    """Gene-wise Pearson of spots and of cells, of the linear map from proportions to expression of the spots."""
    shares = made.train.spots.obsm["proportions"].to_numpy()
    weights, *_ = np.linalg.lstsq(shares, made.train.spots.X.toarray(), rcond=None)
    spots = gene_pearson(made.test.spots.X, made.test.spots.obsm["proportions"].to_numpy() @ weights)
    cells = gene_pearson(made.test.cells.X, made.test.cells.obsm["X_one_hot"] @ weights)
    return np.nanmean(spots), np.nanmean(cells)


class TestParts:
    def test_spots_are_sums_of_their_cells(self):
        made = simulate()
        for half in (made.train, made.test):
            counts = half.cells.layers["counts"].toarray()
            sums = pd.DataFrame(counts).groupby(half.cells.obs["spot"].to_numpy(), observed=False).sum()
            sums = sums.loc[half.spots.obs_names].to_numpy()
            np.testing.assert_array_equal(half.spots.layers["counts"].toarray(), sums)
            expected = np.log1p(sums / sums.sum(axis=1, keepdims=True) * 1e4)
            np.testing.assert_allclose(half.spots.X.toarray(), expected, rtol=1e-5)
            expected = np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4)
            np.testing.assert_allclose(half.cells.X.toarray(), expected, rtol=1e-5)
            assert (half.cells.obs["spot"].value_counts() == 8).all()
            shares = pd.crosstab(half.cells.obs["spot"], half.cells.obs["cell_type"]) / 8
            np.testing.assert_allclose(
                half.spots.obsm["proportions"], shares.loc[half.spots.obs_names, list(made.types)]
            )

    def test_halves_share_no_cell_and_a_cell_is_the_same_in_all_draws(self):
        made = simulate()
        assert not set(made.train.cells.obs["cell"]) & set(made.test.cells.obs["cell"])
        cells = made.train.cells
        first = ~cells.obs["cell"].duplicated().to_numpy()
        place = pd.Series(np.flatnonzero(first), index=cells.obs["cell"][first])
        own = place[cells.obs["cell"]].to_numpy()
        assert first.sum() < len(cells)
        np.testing.assert_array_equal(cells.X.toarray(), cells.X[own].toarray())
        np.testing.assert_array_equal(cells.obsm["X_looks"], cells.obsm["X_looks"][own])
        source = looks()
        np.testing.assert_array_equal(cells.obsm["X_looks"], source[cells.obs["cell"].astype(str)].obsm["X_looks"])

    def test_clusters_are_found_and_linked_by_size(self):
        """The planted groups: the largest is linked to the commonest type of the reference."""
        made = simulate()
        assert made.types == ("d", "c", "b", "a")
        kind = looks().obs["kind"][made.train.cells.obs["cell"].astype(str)].to_numpy()
        np.testing.assert_array_equal(made.train.cells.obsm["X_one_hot"].argmax(axis=1), kind)
        assert simulate(types=["a", "b", "c"]).types == ("a", "b", "c")

    def test_the_cells_nearest_the_centroid_are_kept(self):
        made = simulate(cells_per_type=10, n_spots=500)
        source, kept = (
            looks(),
            pd.concat([half.cells.obs["cell"].astype(str) for half in (made.train, made.test)]).unique(),
        )
        assert len(kept) == 40
        values = source.obsm["X_looks"] / source.obsm["X_looks"].std(axis=0)
        for kind in range(len(TYPES)):
            own = source.obs["kind"] == kind
            far = pd.Series(np.linalg.norm(values[own] - values[own].mean(axis=0), axis=1), source.obs_names[own])
            assert set(far.nsmallest(10).index) == set(kept) & set(far.index)

    def test_expression_of_a_scenario(self):
        source = reference()
        counts = pd.DataFrame(source.X, index=source.obs_names)
        means = counts.groupby(source.obs["cell_type"]).mean()
        made = simulate(scenario="centroid")
        expected = means.loc[made.train.cells.obs["cell_type"].astype(str)].to_numpy()
        expected = np.log1p(expected / expected.sum(axis=1, keepdims=True) * 1e4)
        np.testing.assert_allclose(made.train.cells.X.toarray(), expected, rtol=1e-5)
        assert "counts" not in made.train.spots.layers
        of_type = {name: {tuple(row) for row in source.X[source.obs["cell_type"] == name]} for name in TYPES}
        cells = simulate(scenario="cell").train.cells
        rows = zip(cells.obs["cell_type"], cells.layers["counts"].toarray(), strict=True)
        assert all(tuple(row) in of_type[name] for name, row in rows)
        cells = simulate(scenario="random").train.cells
        rows = list(zip(cells.obs["cell_type"], cells.layers["counts"].toarray(), strict=True))
        same = np.mean([tuple(row) in of_type[name] for name, row in rows])
        assert 0.1 < same < 0.45  # as often as types meet by chance

    def test_genes_are_chosen_after_normalising(self):
        every, some = simulate(), simulate(genes=["g7", "g3"])
        assert list(some.test.spots.var_names) == ["g7", "g3"]
        np.testing.assert_array_equal(some.test.spots.X.toarray(), every.test.spots[:, ["g7", "g3"]].X.toarray())

    def test_logarithms_are_summed_where_there_are_no_counts(self):
        source = reference()
        logs = np.log1p(source.X / source.X.sum(axis=1, keepdims=True) * 1e4)
        source.raw = ad.AnnData(logs, obs=source.obs, var=source.var)
        source.X = (logs - logs.mean(axis=0)) / logs.std(axis=0)
        made = sthist.benchmark.simulate_spots(looks(), source, types=3, n_spots=20, cells_per_spot=1)
        rows = {tuple(np.round(row, 3)) for row in np.log1p(logs / logs.sum(axis=1, keepdims=True) * 1e4)}
        assert all(tuple(np.round(row, 3)) in rows for row in made.train.cells.X.toarray())
        np.testing.assert_array_equal(made.train.cells.X.toarray(), made.train.spots.X.toarray())
        assert made.train.spots.uns["sthist"]["simulation"]["summed"] == "log"

    def test_a_seed(self):
        one, same, other = simulate(seed=3), simulate(seed=3), simulate(seed=4)
        np.testing.assert_array_equal(one.test.spots.X.toarray(), same.test.spots.X.toarray())
        assert (one.test.spots.X != other.test.spots.X).nnz

    def test_of_several_samples(self):
        options = {"types": 4, "n_spots": 50, "cells_per_type": 200}
        made = sthist.benchmark.simulate_spots({"x": looks(), "y": looks(seed=0)}, reference(), **options)
        names = set(made.train.cells.obs["cell"].astype(str))
        assert {name.split("_")[0] for name in names} == {"x", "y"}


class TestLearnable:
    def test_nothing(self):
        """Expression that morphology says nothing of."""
        made = simulate(scenario="random", n_spots=2000)
        spots, cells = by_least_squares(made)
        assert abs(spots) < 0.03
        assert abs(cells) < 0.05

    def test_all(self):
        spots, cells = by_least_squares(simulate(scenario="centroid"))
        assert spots > 0.9
        assert cells > 0.9

    def test_between(self):
        spots, cells = by_least_squares(simulate(scenario="cell"))
        assert 0.1 < cells < 0.9
        assert 0.1 < spots < 0.9


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"scenario": "cel"}, ValueError, "scenario is 'cel'"),
        ({"labels": "celltype"}, KeyError, "no column 'celltype'.*Did you mean 'cell_type'"),
        ({"types": 9}, ValueError, "types is 9; the reference has 4 types"),
        ({"types": ["a", "e"]}, KeyError, "no type 'e'"),
        ({"types": ["a", "a"]}, ValueError, "each once"),
        ({"genes": ["g1", "nope"]}, KeyError, "lacks 1 of 2 genes: 'nope'"),
        ({"genes": []}, ValueError, "genes is empty"),
        ({"embedding": "X_look"}, KeyError, "X_look"),
        ({"cells_per_spot": 0}, ValueError, "cells_per_spot is 0"),
        ({"n_spots": 2.5}, ValueError, "n_spots is 2.5"),
    ],
)
def test_what_cannot_be_meant(kwargs, error, message):
    with pytest.raises(error, match=message):
        simulate(**kwargs)


def test_a_reference_without_counts_or_logarithms():
    source = reference()
    source.X = source.X - source.X.mean(axis=0)
    with pytest.raises(ValueError, match=r"no raw counts.*Log-normalised expression, not scaled"):
        sthist.benchmark.simulate_spots(looks(), source, types=3)


def test_too_few_cells():
    with pytest.raises(ValueError, match="6 cells are too few for 4 clusters"):
        sthist.benchmark.simulate_spots(looks(6), reference(), types=4)
