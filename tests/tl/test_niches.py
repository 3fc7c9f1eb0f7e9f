"""Niches of planted regions, and compositions against a loop."""

from __future__ import annotations

import importlib.util

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import spatialdata as sd

import sthist
from sthist.tl._niches import require_igraph


def points(n=60, seed=0, shift=0.0, labels=("a", "b", "c")):
    rng = np.random.default_rng(seed)
    obs = pd.DataFrame({"kind": rng.choice(labels, n)}, index=[f"cell{i}" for i in range(n)])
    return ad.AnnData(np.zeros((n, 1), np.float32), obs=obs, obsm={"spatial": rng.uniform(0, 100, (n, 2)) + shift})


def by_loop(adata, k=None, radius=None):
    places, kinds = adata.obsm["spatial"], adata.obs["kind"]
    classes = sorted(kinds.dropna().unique())
    rows = []
    for place in places:
        distance = np.hypot(*(places - place).T)
        near = np.argsort(distance)[: k + 1] if radius is None else np.flatnonzero(distance <= radius)
        labels = kinds.iloc[near].dropna()
        rows.append([(labels == name).sum() / len(labels) if len(labels) else np.nan for name in classes])
    return np.array(rows)


class TestComposition:
    @pytest.mark.parametrize("how", [{"n_neighbors": 1}, {"n_neighbors": 7}, {"radius_um": 12.0}, {"radius_um": 40.0}])
    def test_equals_a_loop(self, how):
        adata = points()
        adata.obs.loc[adata.obs_names[::4], "kind"] = np.nan
        sthist.tl.niches(adata, "kind", n_niches=2, **how)
        expected = by_loop(adata, how.get("n_neighbors"), how.get("radius_um"))
        np.testing.assert_allclose(adata.obsm["niche_composition"], expected)
        np.testing.assert_array_equal(adata.obs["niche"].isna(), np.isnan(expected[:, 0]))
        made = adata.uns["sthist"]["niche"]
        assert made["unlabelled"] == 15
        assert made["without_neighbours"] == np.isnan(expected[:, 0]).sum()

    def test_of_shares(self):
        """Shares of classes in place of one label: the mean of those of all neighbours."""
        adata = points()
        adata.obsm["shares"] = pd.get_dummies(adata.obs["kind"]).astype(float)
        sthist.tl.niches(adata, "kind", n_neighbors=5, n_niches=3)
        sthist.tl.niches(adata, "shares", n_neighbors=5, n_niches=3, key_added="soft")
        np.testing.assert_array_equal(adata.obsm["soft_composition"], adata.obsm["niche_composition"])

    def test_neighbours_are_sought_within_each_sample(self):
        """Two samples on one place do not mix, though their niches are common."""
        one, two = points(seed=1, labels=("a", "b")), points(seed=2, labels=("b", "c"))
        sthist.tl.niches({"one": one, "two": two}, "kind", n_neighbors=5, n_niches=4)
        for each, absent in ((one, "c"), (two, "a")):
            found = each.obsm["niche_composition"]
            assert list(found.columns) == ["a", "b", "c"]
            assert (found[absent] == 0).all()
            np.testing.assert_allclose(found.drop(columns=absent), by_loop(each, 5))
            assert each.obs["niche"].cat.categories.tolist() == ["1", "2", "3", "4"]
        together = pd.concat([one.obs["niche"].astype(str), two.obs["niche"].astype(str)]).value_counts()
        assert together.index[0] == "1"


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2, 3, 4))])
def test_planted_regions_are_found(seed):
    """Ducts, stroma and immune aggregates; by default, and where their number is known."""
    sdata = sthist.datasets.toy(size_um=1200, mpp=2.0, seed=seed)
    sthist.tl.transfer_labels(sdata, "regions", regions="table", key_added="region_true")
    sthist.tl.niches(sdata, "cell_type", reference="region_true", key_added="default")
    sthist.tl.niches(sdata, "cell_type", n_niches=3, reference="region_true", key_added="three")
    made = sdata["table"].uns["sthist"]
    print(seed, {key: (made[key]["ari"], made[key]["nmi"]) for key in ("default", "three")})
    assert made["default"]["ari"] >= 0.8
    assert made["three"]["ari"] >= 0.8
    assert made["three"]["nmi"] >= 0.7
    assert sdata["table"].obs["three"].value_counts().is_monotonic_decreasing


class TestMethod:
    def test_the_same_seed_gives_the_same(self):
        first, second = points(200), points(200)
        for adata in (first, second):
            sthist.tl.niches(adata, "kind", resolution=1.0, seed=3)
        assert (first.obs["niche"] == second.obs["niche"]).all()
        assert first.obs["niche"].nunique() > 1

    def test_few_different_compositions(self):
        adata = points(30, labels=("a",))
        sthist.tl.niches(adata, "kind")
        assert (adata.obs["niche"] == "1").all()
        with pytest.raises(ValueError, match=r"1 different compositions, too few for 2 niches"):
            sthist.tl.niches(adata, "kind", n_niches=2, overwrite=True)

    def test_on_disk(self, backed):
        sthist.tl.niches(backed, "cell_type", n_niches=3)
        again = sd.read_zarr(backed.path)["table"]
        pd.testing.assert_series_equal(again.obs["niche"], backed["table"].obs["niche"])
        assert again.obsm["niche_composition"].shape == (again.n_obs, 6)
        assert "T cell" in again.obsm["niche_composition"]


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"n_neighbors": 60}, ValueError, "has 60 rows, too few for 60 neighbours"),
        ({"n_neighbors": 0}, ValueError, "n_neighbors is 0"),
        ({"n_neighbors": 3, "radius_um": 4}, ValueError, "takes one of them"),
        ({"radius_um": -4}, ValueError, "radius_um is -4"),
        ({"n_niches": 0}, ValueError, "n_niches is 0"),
        ({"method": "kmeans"}, ValueError, "n_niches is None"),
        ({"method": "leiden", "n_niches": 3}, ValueError, "do not go together"),
        ({"method": "x"}, ValueError, "do not go together"),
        ({"resolution": -1}, ValueError, "resolution is -1"),
        ({"label": "kin"}, KeyError, "no column 'kin'"),
        ({"reference": "x"}, KeyError, "no column 'x'"),
        ({"key_added": "kind"}, ValueError, r"has obs\['kind'\] already"),
    ],
)
def test_what_cannot_be_is_refused(kwargs, error, message):
    adata = points()
    with pytest.raises(error, match=message):
        sthist.tl.niches(adata, **({"label": "kind"} | kwargs))
    assert list(adata.obs) == ["kind"]


def test_which_table(toy):
    with pytest.raises(KeyError, match=r"No table has 'cell_typ'.*Did you mean 'cell_type'"):
        sthist.tl.niches(toy, "cell_typ")
    toy["table"].obs["cell_type"] = np.nan
    with pytest.raises(ValueError, match="has no label"):
        sthist.tl.niches(toy, "cell_type")


def test_leiden_without_igraph_says_what_to_do(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'pip install "sthist\[leiden\]". Or take method=\'kmeans\''):
        require_igraph()
