"""Bivariate Moran's R against a double loop, squidpy and permutations."""

from __future__ import annotations

import logging

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import spatialdata as sd
from scipy.sparse import csr_matrix
from scipy.stats import false_discovery_control, kstest, norm

import sthist

TYPES = ["B cell", "T/NK", "tumour", "fibroblast"]


def spots(values, places, types=None):
    """A table of spots with a composition."""
    values = np.asarray(values, float)
    names = [f"spot{i}" for i in range(len(values))]
    types = types or [f"type {i}" for i in range(values.shape[1])]
    frame = pd.DataFrame(values, names, types)
    return ad.AnnData(obs=pd.DataFrame(index=names), obsm={"spatial": np.asarray(places, float), "composition": frame})


def random_spots(n=60, n_types=4, seed=0, types=None):
    rng = np.random.default_rng(seed)
    return spots(rng.gamma(1.0, size=(n, n_types)), rng.uniform(0, 1000, (n, 2)), types)


def found_in(adata, **options):
    sthist.tl.colocalization(adata, **options)
    return adata.uns["colocalization"]


def weights_by_loop(places, length, cutoff=0.2, k=None, own=True):
    n = len(places)
    near = np.zeros((n, n), bool)
    for i in range(n):
        order = sorted((j for j in range(n) if j != i), key=lambda j: np.hypot(*(places[i] - places[j])))
        near[i, order[:k]] = True
    weights = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            weight = np.exp(-(np.hypot(*(places[i] - places[j])) ** 2) / (2 * length**2))
            if weight >= cutoff and (own if i == j else near[i, j] or near[j, i]):
                weights[i, j] = weight
    return weights


def r_by_loop(x, y, weights):
    x, y = x - x.mean(), y - y.mean()
    total = sum(weights[i, j] * x[i] * y[j] for i in range(len(x)) for j in range(len(x)))
    return len(x) / weights.sum() * total / np.sqrt((x**2).sum() * (y**2).sum())


class TestR:
    @pytest.mark.parametrize(
        ("own", "r", "self_r", "deviation"), [(True, 0.243944, 0.443527, 0.236027), (False, -0.212943, None, 0.431343)]
    )
    def test_by_hand(self, own, r, self_r, deviation):
        """Three points on a line, worked out on paper."""
        adata = spots([[1, 2], [2, 1], [4, 3]], [[0, 0], [1, 0], [2, 0]])
        found = found_in(adata, length_um=1, cutoff=0, self_weights=own)
        assert found["r"][0, 1] == pytest.approx(r, abs=1e-6)
        if self_r is not None:
            assert found["r"][0, 0] == pytest.approx(self_r, abs=1e-6)
        assert adata.uns["sthist"]["colocalization"]["standard_deviation"] == pytest.approx(deviation, abs=1e-6)
        assert found["z"][0, 1] == pytest.approx(r / deviation, abs=1e-5)

    @pytest.mark.parametrize(
        "options",
        [
            {"length_um": 90},
            {"length_um": 300, "cutoff": 0},
            {"length_um": 90, "self_weights": False},
            {"length_um": 200, "n_neighbors": 3},
            {"length_um": 90, "n_neighbors": 5, "self_weights": False},
            {"length_um": 200, "n_neighbors": 1000},
        ],
    )
    def test_equals_a_double_loop(self, options):
        """Every pair, the diagonal too, and the variance by the published formula."""
        adata = random_spots(40)
        found = found_in(adata, **options)
        k = options.get("n_neighbors")
        places, values = adata.obsm["spatial"], adata.obsm["composition"].to_numpy()
        weights = weights_by_loop(
            places, options["length_um"], options.get("cutoff", 0.2), k, options.get("self_weights", True)
        )
        expected = [[r_by_loop(x, y, weights) for y in values.T] for x in values.T]
        np.testing.assert_allclose(found["r"], expected, atol=1e-12)
        n, w = len(values), weights * len(values) / weights.sum()
        rows, columns = w.sum(axis=1), w.sum(axis=0)
        variance = (n**2 * (w * w.T).sum() - 2 * n * (rows * columns).sum() + w.sum() ** 2) / (n**2 * (n - 1) ** 2)
        made = adata.uns["sthist"]["colocalization"]
        assert made["standard_deviation"] == pytest.approx(np.sqrt(variance), rel=1e-9)

    def test_is_symmetric(self):
        """Bit for bit, also where only the nearest spots count."""
        for k in (None, 4):
            r = found_in(random_spots(200), n_neighbors=k)["r"]
            np.testing.assert_array_equal(r, r.T)

    def test_does_not_know_units_or_order(self):
        """Amounts of another unit and zero, tissue measured in another unit, and spots in another order."""
        adata = random_spots()
        r = found_in(adata, length_um=80)["r"]
        other = adata[::-1].copy()
        del other.uns["colocalization"]
        other.obsm["composition"] = 3.0 * other.obsm["composition"] + 7.0
        other.obsm["spatial"] = other.obsm["spatial"] * 0.2738 + 500
        np.testing.assert_allclose(found_in(other, length_um=80 * 0.2738)["r"], r, atol=1e-12)

    def test_turns_its_sign_with_an_amount(self):
        adata = random_spots()
        r = found_in(adata)["r"]
        adata.obsm["composition"].iloc[:, 1] = 20 - adata.obsm["composition"].iloc[:, 1]
        sign = np.array([1, -1, 1, 1])
        np.testing.assert_allclose(found_in(adata, overwrite=True)["r"], r * sign * sign[:, None], atol=1e-12)

    def test_of_all_pairs_equals_that_of_each(self):
        adata = random_spots()
        together = found_in(adata)["r"]
        for i in range(4):
            for j in range(i):
                pair = spots(adata.obsm["composition"].iloc[:, [i, j]], adata.obsm["spatial"])
                assert found_in(pair)["r"][0, 1] == pytest.approx(together[i, j], abs=1e-12)

    @pytest.mark.parametrize("own", [True, False])
    def test_of_a_type_with_itself_is_squidpys_moran(self, own):
        """Under the same weights; squidpy divides them as we do."""
        from sthist.tl._niches import squidpy

        adata = random_spots(80, seed=3)
        r = found_in(adata, length_um=100, self_weights=own)["r"]
        weights = weights_by_loop(adata.obsm["spatial"], 100, own=own)
        amounts = ad.AnnData(adata.obsm["composition"].to_numpy(), obsp={"spatial_connectivities": csr_matrix(weights)})
        with squidpy() as sq:
            table = sq.gr.spatial_autocorr(amounts, mode="moran", n_perms=None, transformation=False, copy=True)
        expected = table["I"].to_numpy()[np.argsort(table.index.astype(int))]
        np.testing.assert_allclose(np.diag(r), expected, rtol=1e-5)

    def test_the_diagonal_can_be_one(self):
        adata = random_spots()
        r = found_in(adata)["r"]
        ones = found_in(adata, diagonal="one", overwrite=True)["r"]
        np.testing.assert_array_equal(np.diag(ones), 1)
        np.testing.assert_array_equal(ones - np.diag(np.diag(ones)), r - np.diag(np.diag(r)))

    def test_of_labels_is_that_of_shares(self):
        """A column of cells' types counts as shares of 0 and 1; those without a type are left out."""
        adata = random_spots()
        labels = pd.Series(np.random.default_rng(1).choice(TYPES, adata.n_obs), adata.obs_names)
        labels.iloc[::7] = np.nan
        adata.obs["kind"] = labels.astype("category")
        sthist.tl.colocalization(adata, "kind", length_um=100, key_added="of_labels")
        adata.obsm["composition"] = pd.get_dummies(adata.obs["kind"]).astype(float)
        adata.obsm["composition"][labels.isna()] = np.nan
        found = found_in(adata, length_um=100)
        np.testing.assert_allclose(adata.uns["of_labels"]["r"], found["r"], atol=1e-12)
        assert list(found["types"]) == list(adata.uns["of_labels"]["types"]) == sorted(TYPES)


class TestSignificance:
    def test_tails(self):
        adata = random_spots()
        z = found_in(adata)["z"]
        pairs = np.triu_indices(4, 1)
        for side, expected in (
            ("greater", norm.sf(z)),
            ("less", norm.cdf(z)),
            ("two-sided", 2 * norm.sf(np.abs(z))),
        ):
            found = found_in(adata, alternative=side, overwrite=True)
            np.testing.assert_allclose(found["p"][pairs], expected[pairs])
            np.testing.assert_allclose(found["q"][pairs], false_discovery_control(expected[pairs]))
            np.testing.assert_array_equal(found["q"], found["q"].T)
            for each in ("z", "p", "q"):
                assert np.isnan(np.diag(found[each])).all()

    @pytest.mark.parametrize("own", [True, False])
    def test_p_of_noise_is_even(self, own):
        """Of types that have nothing to do with places, every p is as frequent as any other."""
        adata = random_spots(400, 24, seed=5)
        p = found_in(adata, length_um=40, self_weights=own)["p"][np.triu_indices(24, 1)]
        assert kstest(p, "uniform").pvalue > 0.01

    @pytest.mark.parametrize("side", ["greater", "less", "two-sided"])
    def test_permutations_agree_with_the_formula_on_noise(self, side):
        """Within what 1,000 draws, and the chance patches of the type that stays, leave open; a seed gives the same."""
        adata = random_spots(3000, 6, seed=2)
        options = {"length_um": 20, "alternative": side, "overwrite": True}
        pairs = np.triu_indices(6, 1)
        p = found_in(adata, **options)["p"][pairs]
        found = [found_in(adata, n_permutations=500, seed=seed, **options)["p"] for seed in (1, 1, 2)]
        np.testing.assert_array_equal(found[0], found[1])
        assert (found[0] != found[2]).any()
        error = np.sqrt(p * (1 - p) / 1000)
        assert (np.abs(found[0][pairs] - p) < 4 * error + 0.03).all()
        np.testing.assert_array_equal(found[0], found[0].T)

    @pytest.mark.parametrize("side", ["greater", "two-sided"])
    def test_permutations_know_the_patches_of_the_type_that_stays(self, side):
        """Where types lie in patches, the formula promises too much; the variance of dealing one type is exact."""
        rng = np.random.default_rng(6)
        places = rng.uniform(0, 1000, (400, 2))
        near = weights_by_loop(places, 60)
        adata = spots(np.c_[near @ rng.gamma(1.0, size=(400, 2)), rng.gamma(1.0, size=(400, 2))], places)
        found = found_in(adata, length_um=60, n_permutations=1000, alternative=side)
        z = adata.obsm["composition"].to_numpy()
        z = (z - z.mean(axis=0)) / z.std(axis=0)
        lagged = near @ z / near.sum()
        deviation = lagged.std(axis=0) * 400 / np.sqrt(399)
        for i, j in zip(*np.triu_indices(4, 1), strict=True):
            scores = found["r"][i, j] / deviation[[i, j]]
            expected = (norm.sf(scores) if side == "greater" else 2 * norm.sf(np.abs(scores))).mean()
            assert found["p"][i, j] == pytest.approx(expected, abs=0.045)

    def test_planted_pairs_are_found(self):
        """One type follows another to the neighbouring spots, and a third one avoids it: those two pairs, no other."""
        rng = np.random.default_rng(4)
        x, y = np.meshgrid(np.arange(20), np.arange(20))
        places = 100.0 * np.stack([x.ravel(), y.ravel()], axis=1)
        values = rng.gamma(2.0, size=(400, 6))
        chosen = rng.choice(400, 40, replace=False)
        values[chosen, 0] += 20
        values[(chosen + 1) % 400, 1] += 20
        values[:, 2] = np.maximum(0, 9 - 0.4 * values[:, 0]) + rng.gamma(1.0, size=400)
        adata = spots(values, places)
        for n_permutations in (0, 300):
            found = found_in(adata, length_um=100, n_permutations=n_permutations, overwrite=True)
            assert found["z"][0, 1] > 3
            assert found["z"][0, 2] < -3
            assert (found["q"][0, [1, 2]] < 0.02).all()
            assert np.nanmin(found["q"][3:]) > 0.05


class TestStore:
    def test_in_a_store(self, tmp_path):
        """All of it is there when the store is read again; names keep their slash."""
        sdata = sthist.datasets.toy("visium", size_um=900)
        table = sdata["table"]
        values = np.random.default_rng(0).gamma(1.0, size=(table.n_obs, 4))
        table.obsm["cell_abundance"] = pd.DataFrame(values, table.obs_names, ["B cell", "T_NK", "tumour", "fibroblast"])
        table.uns["sthist"] = {**table.uns.get("sthist", {}), "cell_abundance": {"classes": {"T_NK": "T/NK"}}}
        sdata.write(tmp_path / "s.zarr")
        backed = sd.read_zarr(tmp_path / "s.zarr")
        sthist.tl.colocalization(backed, "cell_abundance", key_added="company")
        again = sd.read_zarr(tmp_path / "s.zarr")["table"]
        assert list(again.uns["company"]["types"]) == TYPES
        for each in ("r", "z", "p", "q"):
            np.testing.assert_array_equal(again.uns["company"][each], backed["table"].uns["company"][each])
        made = again.uns["sthist"]["company"]
        assert made["call"] == "tl.colocalization"
        assert made["length_um"] == pytest.approx(200, rel=0.02)  # spots of Visium are 100 µm apart
        sthist.tl.colocalization(str(tmp_path / "s.zarr"), "cell_abundance", key_added="company", overwrite=True)

    def test_in_h5ad(self, tmp_path):
        adata = random_spots(types=TYPES)
        found = found_in(adata)
        del adata.obsm["composition"]  # a frame with a slash in a name is no longer stored; the result is
        adata.write_h5ad(tmp_path / "a.h5ad")
        again = ad.read_h5ad(tmp_path / "a.h5ad").uns["colocalization"]
        np.testing.assert_array_equal(again["r"], found["r"])
        assert list(again["types"]) == TYPES

    def test_of_several_samples(self):
        """Each by itself, as if it were alone."""
        one, other = random_spots(seed=1), random_spots(seed=2)
        sthist.tl.colocalization({"one": one, "other": other})
        for adata, seed in ((one, 1), (other, 2)):
            np.testing.assert_array_equal(adata.uns["colocalization"]["r"], found_in(random_spots(seed=seed))["r"])


class TestInput:
    def test_a_type_that_does_not_vary(self, caplog):
        """NaN, named, and no partner of the correction for many pairs."""
        adata = random_spots(types=TYPES)
        adata.obsm["composition"]["T/NK"] = 0.1
        with caplog.at_level(logging.WARNING, "sthist"):
            found = found_in(adata, n_permutations=20)
        assert "1 of the 4 cell types of 'composition' do not vary, and have NaN: 'T/NK'" in caplog.text
        assert list(found["types"]) == TYPES
        for each in ("r", "z", "p", "q"):
            assert np.isnan(found[each][1]).all()
            assert np.isnan(found[each][:, 1]).all()
        rest = spots(adata.obsm["composition"].iloc[:, [0, 2, 3]], adata.obsm["spatial"])
        expected = found_in(rest)
        np.testing.assert_allclose(found["r"][np.ix_([0, 2, 3], [0, 2, 3])], expected["r"], atol=1e-12)
        assert list(adata.uns["sthist"]["colocalization"]["constant"]) == ["T/NK"]
        found = found_in(adata, overwrite=True)
        np.testing.assert_allclose(found["q"][np.ix_([0, 2, 3], [0, 2, 3])], expected["q"])

    def test_rows_that_were_not_predicted(self, caplog):
        """NaN throughout: the result is that of the others, and it is said how many they are."""
        adata = random_spots()
        adata.obsm["composition"].iloc[10:30] = np.nan
        adata.obsm["spatial"][12] = np.nan  # has no amount, so that it needs no place
        with caplog.at_level(logging.INFO, "sthist"):
            found = found_in(adata)
        assert "20 of the 60 rows of the table have no 'composition', and are left out" in caplog.text
        kept = np.r_[:10, 30:60]
        rest = spots(adata.obsm["composition"].iloc[kept], adata.obsm["spatial"][kept])
        np.testing.assert_allclose(found["r"], found_in(rest)["r"], atol=1e-12)
        assert adata.uns["sthist"]["colocalization"]["n_left_out"] == 20

    def test_spots_at_one_place(self, caplog):
        """Full neighbours of each other, and the length is that between the places."""
        places = 100.0 * np.repeat(np.stack(np.meshgrid(range(5), range(5)), -1).reshape(-1, 2), 2, axis=0)
        adata = spots(np.random.default_rng(0).gamma(1.0, size=(50, 3)), places)
        with caplog.at_level(logging.WARNING, "sthist"):
            found = found_in(adata, n_neighbors=1)
        assert "25 of the 50 rows of the table lie where another one does" in caplog.text
        assert adata.uns["sthist"]["colocalization"]["length_um"] == 200
        x, y = adata.obsm["composition"].to_numpy()[:, :2].T
        pairs = np.kron(np.eye(25), np.ones((2, 2)))  # each spot with the other at its place, weight 1
        assert found["r"][0, 1] == pytest.approx(r_by_loop(x, y, pairs))

    @pytest.mark.parametrize("own", [True, False])
    def test_spots_without_a_neighbour(self, own, caplog):
        adata = random_spots(40)
        adata.obsm["spatial"][:2] = [[9000, 9000], [-9000, 0]]
        with caplog.at_level(logging.WARNING, "sthist"):
            found = found_in(adata, length_um=200, self_weights=own)
        assert "2 of the 40 rows of the table have no neighbour within 358.8 µm" in caplog.text
        weights = weights_by_loop(adata.obsm["spatial"], 200, own=own)
        x, y = adata.obsm["composition"].to_numpy()[:, :2].T
        assert found["r"][0, 1] == pytest.approx(r_by_loop(x, y, weights))
        assert adata.uns["sthist"]["colocalization"]["n_without_neighbours"] == 2

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"length_um": 0}, "length_um is 0; it is a positive number"),
            ({"length_um": np.nan}, "length_um is nan"),
            ({"cutoff": 1.0}, "cutoff is 1.0; weights are from 0 to 1"),
            ({"n_neighbors": 0}, "n_neighbors is 0"),
            ({"n_permutations": 1.5}, "n_permutations is 1.5"),
            ({"diagonal": "ones"}, "diagonal is 'ones'; it is 'moran' or 'one'"),
            ({"alternative": "two_sided"}, "alternative is 'two_sided'"),
            ({"length_um": 1e-3}, "No spot has another one within 0.001794 µm"),
            ({"key_added": "composition"}, "a result 'composition' of another kind"),
            ({"key_added": "a/b"}, "holds letters"),
        ],
    )
    def test_arguments_that_cannot_be_meant(self, options, message):
        with pytest.raises(ValueError, match=message):
            sthist.tl.colocalization(random_spots(), **options)

    def test_a_result_is_not_replaced_unasked(self):
        adata = random_spots()
        found_in(adata)
        with pytest.raises(ValueError, match="has uns\\['colocalization'\\] already. Pass overwrite=True"):
            found_in(adata)

    def test_tables_that_do_not_fit(self):
        adata = random_spots(types=TYPES)
        adata.obsm["composition"].iloc[7, 2] = np.nan
        with pytest.raises(ValueError, match="is NaN or infinite in 1 of 60 rows, first 'tumour' of row 'spot7'"):
            found_in(adata)
        with pytest.raises(KeyError, match="no obsm\\['compositon'\\].*Did you mean 'composition'"):
            found_in(adata, key="compositon")
        adata.obsm["composition"].iloc[:] = np.nan
        with pytest.raises(ValueError, match="no row with values: all 60 are NaN"):
            found_in(adata)
        adata = random_spots(2)
        with pytest.raises(ValueError, match="The table has 2 rows with 'composition'; Moran's R needs 3"):
            found_in(adata)
        adata = random_spots()
        adata.obsm["spatial"][4, 1] = np.nan
        with pytest.raises(ValueError, match="1 rows without a place in obsm\\['spatial'\\], first 'spot4'"):
            found_in(adata)
        del adata.obsm["spatial"]
        with pytest.raises(KeyError, match="no obsm\\['spatial'\\]"):
            found_in(adata)

    def test_a_column_of_numbers(self):
        adata = random_spots()
        adata.obs["total"] = np.linspace(0, 1, 60)
        with pytest.raises(ValueError, match="Column 'total' of the table holds numbers"):
            found_in(adata, key="total")

    def test_more_pairs_than_memory_holds(self, monkeypatch):
        """Said before the pairs are looked for."""
        from sthist.tl._colocalization import moran

        monkeypatch.setattr(moran, "available_memory", lambda: 10_000)
        with pytest.raises(ValueError, match="60 spots have 1.8e\\+03 pairs of neighbours"):
            found_in(random_spots(), length_um=5000)
        found_in(random_spots(), length_um=5000, n_neighbors=2)
