"""sCellST on arrays: bags of cells, scaled logarithms and counts, training, saving."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix
from sklearn.preprocessing import RobustScaler

import sthist
from sthist.models import Bags, SCellST, SCellSTConfig
from sthist.regression.data.targets import Targets
from sthist.systems.cells.targets import filtered, scaled

SMALL = SCellSTConfig(widths=(64, 64))
QUICK = {"epochs": 40, "lr": 1e-2, "batch_size": 64, "patience": None}
GENES = ["A", "B", "C"]


def planted(seed: int, n_spots: int = 150, per_spot: int = 6, dim: int = 5):
    """Cells whose expression is a known function of their embeddings, in spots that are their means."""
    rng = np.random.default_rng(seed)
    cells = rng.normal(size=(n_spots * per_spot, dim)).astype(np.float32)
    spot = rng.permutation(np.repeat(np.arange(n_spots), per_spot))
    slopes = np.random.default_rng(99).normal(size=(dim, len(GENES)))
    truth = np.maximum(cells @ slopes, 0).astype(np.float32)
    means = np.stack([truth[spot == each].mean(axis=0) for each in range(n_spots)])
    return cells, spot, truth, means


def correlations(one, other):
    return np.array([np.corrcoef(a, b)[0, 1] for a, b in zip(one.T, other.T, strict=True)])


@pytest.fixture(scope="module")
def fitted():
    cells, spot, _, means = planted(0)
    frame = pd.DataFrame(means, columns=GENES)
    return SCellST(SMALL).fit(Bags(cells, spot), frame, training=QUICK, progress=False)


def test_one_odd_cell_does_not_carry_its_spot_away():
    """A feature 70 deviations off counts as one at the limit: the spots that stop a training stay believable."""
    cells, spot, _, means = planted(0)
    frame = pd.DataFrame(means, columns=GENES)
    odd = cells.copy()
    slopes = np.random.default_rng(99).normal(size=(5, len(GENES)))  # of planted()
    odd[np.flatnonzero(spot == 0)[0]] = 100 * np.linalg.lstsq(slopes.T, np.ones(len(GENES)))[0]  # much of all genes
    bags, inside = Bags(odd, spot), np.arange(1, 150)
    limited, free = (
        SCellST(replace(SMALL, limit=limit)).fit(bags, frame, rows=inside, training=QUICK, progress=False)
        for limit in (5.0, None)
    )
    range_of = np.ptp(means, axis=0)
    assert (np.abs(limited.predict(bags)[0] - means[0]) < range_of).all()
    assert (np.abs(free.predict(bags)[0] - means[0]) > 3 * range_of).any()
    np.testing.assert_allclose(limited.predict(bags)[1:], free.predict(bags)[1:], atol=range_of.max() / 4)
    with pytest.raises(ValueError, match="limit is -1"):
        replace(SMALL, limit=-1)


class TestBags:
    def test_cells_of_spots_by_row_and_by_name(self):
        cells = np.arange(12.0).reshape(6, 2)
        by_row = Bags(cells, [1, -1, 0, 1, 0, 1], spots=3)
        by_name = Bags(cells, pd.Series(["b", None, "a", "b", "a", "b"], dtype="category"), spots=["a", "b", "c"])
        for bags in (by_row, by_name):
            assert bags.size.tolist() == [2, 3, 0]
            assert bags.n_outside == 1
            batch = bags.take(np.array([1, 0]))
            np.testing.assert_array_equal(batch["cells"], cells[[0, 3, 5, 2, 4]])
            assert batch["bag"].tolist() == [0, 0, 0, 1, 1]

    def test_embeddings_are_not_copied(self):
        cells = np.zeros((5, 3), np.float16)
        bags = Bags(cells, [0, 0, 1, 1, 2])
        assert np.shares_memory(bags.features.tables[0][0], cells)
        assert bags.take(np.array([0]))["cells"].dtype == np.float16

    @pytest.mark.parametrize(
        ("spot", "spots", "message"),
        [
            ([0, 1], None, "There are 3 cells, and spot= has 2 values"),
            ([0, 1, 5], 3, "spot= is 5 for cell 2"),
            ([0, 1, 0.5], 3, "spot= is 0.5 for cell 2"),
            (["a", "b", "c"], None, "give all of them"),
            (["a", "b", "x"], ["a", "b"], "names 'x' for cell 2"),
            (["a", "b", "a"], ["a", "b", "a"], "'a' more than once"),
        ],
    )
    def test_what_is_refused(self, spot, spots, message):
        with pytest.raises(ValueError, match=message):
            Bags(np.zeros((3, 2)), spot, spots=spots)

    def test_embeddings_that_are_none(self):
        with pytest.raises(ValueError, match="first in row 1"):
            Bags(np.array([[0.0], [np.nan]]))
        with pytest.raises(ValueError, match="n_cells, d"):
            Bags(np.zeros(3))
        with pytest.raises(ValueError, match="SCellST takes embeddings of cells"):
            SCellST(SMALL).fit({"tiles": np.zeros((2, 8, 8, 3), np.uint8)}, np.zeros((2, 1)))

    def test_the_share_of_a_device(self):
        bags = Bags(np.arange(8.0)[:, None], [0, 0, 1, 2, 2, 2, 3, 3])
        rows = np.array([2, 0, 3, 1])
        parts = [bags.share(rows, bags.take(rows), device, 2) for device in (0, 1)]
        assert [part.tolist() for part, _ in parts] == [[2, 3], [0, 1]]
        np.testing.assert_array_equal(parts[1][1]["cells"].ravel(), [0, 1, 2])


class TestTraining:
    def test_what_cells_show_is_learned_from_spots(self, fitted):
        cells, spot, truth, means = planted(1)
        assert (correlations(fitted.predict(Bags(cells, spot)), means) > 0.8).all()
        assert (correlations(fitted.predict(cells), truth) > 0.8).all()
        assert fitted.predict(cells).min() >= 0

    def test_it_fits_its_own_training_rows(self, fitted):
        cells, spot, _, means = planted(0)
        assert (correlations(fitted.predict(Bags(cells, spot)), means) > 0.95).all()

    def test_spot_is_the_mean_of_its_cells_whatever_the_batches(self, fitted):
        cells, spot, _, _ = planted(2, n_spots=20)
        each = fitted.predict(cells)
        expected = np.stack([each[spot == number].mean(axis=0) for number in range(20)])
        shuffled = np.random.default_rng(0).permutation(len(cells))
        for bags, size in ((Bags(cells, spot), 3), (Bags(cells, spot), 20), (Bags(cells[shuffled], spot[shuffled]), 7)):
            np.testing.assert_allclose(fitted.predict(bags, batch_size=size), expected, atol=1e-6)

    def test_of_erased_cells_the_mean_is_learned(self):
        cells, spot, _, means = planted(0)
        erased = Bags(np.zeros_like(cells), spot)
        model = SCellST(replace(SMALL, scaling=None)).fit(erased, means, training=QUICK, progress=False)
        found = model.predict(erased)
        np.testing.assert_allclose(found, np.broadcast_to(found[0], found.shape), atol=1e-6)
        np.testing.assert_allclose(found[0], means.mean(axis=0), rtol=0.05)

    def test_of_one_cell_a_spot_it_is_full_supervision(self):
        cells, _, truth, _ = planted(0, n_spots=300, per_spot=1)
        training = {"epochs": 20, "lr": 3e-3, "patience": None}
        bags = SCellST(SMALL).fit(Bags(cells, np.arange(300)), truth, training=training, progress=False)
        alone = SCellST(SMALL).fit(cells, truth, training=training, progress=False)
        np.testing.assert_allclose(bags.predict(cells), alone.predict(cells), atol=1e-5)

    def test_same_seed_same_result(self):
        cells, spot, _, means = planted(0, n_spots=40)
        one, two = (
            SCellST(SMALL).fit(Bags(cells, spot), means, training={"epochs": 3, "seed": 4}, progress=False)
            for _ in range(2)
        )
        np.testing.assert_array_equal(one.predict(cells), two.predict(cells))

    def test_a_fifth_of_the_spots_says_when_to_stop(self):
        cells, spot, _, means = planted(0, n_spots=40)
        model = SCellST(SMALL).fit(Bags(cells, spot), means, training={"epochs": 2}, progress=False)
        assert "validation_loss" in model.history[0]
        assert model.history[0]["step"] == 1

    def test_spots_without_cells_are_left_out_and_counted(self, caplog):
        cells, spot, _, means = planted(0, n_spots=40)
        more = np.vstack([means, np.full((3, 3), 7.0)])
        bags = Bags(cells, spot, spots=43)
        model = SCellST(SMALL).fit(bags, more, training={"epochs": 1}, progress=False)
        assert "3 of 43 spots have no cells" in caplog.text
        found = model.predict(bags)
        assert np.isnan(found[40:]).all()
        assert np.isfinite(found[:40]).all()

    def test_all_cells_outside(self):
        cells, _, _, means = planted(0, n_spots=40)
        with pytest.raises(ValueError, match="0 rows to train on"):
            SCellST(SMALL).fit(Bags(cells, np.full(len(cells), -1), spots=40), means)

    @pytest.mark.parametrize("standardize", ["none", "training", "sample"])
    def test_units_of_embeddings_do_not_matter_where_they_are_standardised(self, standardize):
        cells, spot, _, means = planted(0, n_spots=60)
        config = replace(SMALL, standardize=standardize)
        one, two = (
            SCellST(config)
            .fit(Bags(each, spot), means, training={"epochs": 4, "lr": 1e-3}, progress=False)
            .predict(each)
            for each in (cells, 100 * cells + 50)
        )
        assert np.allclose(one, two, atol=1e-2) == (standardize != "none")


class TestTargets:
    def test_scale_is_scikit_learn_s_and_is_taken_back(self):
        cells, spot, _, means = planted(0)
        means = np.c_[means, np.zeros(len(means)), (np.arange(len(means)) < 3) * 2.0]  # the last: q95 is the least
        model = SCellST(SMALL).fit(Bags(cells, spot), csr_matrix(means), training={"epochs": 1}, progress=False)
        scaler = RobustScaler(with_centering=False, quantile_range=(0, 95)).fit(means)
        np.testing.assert_allclose(model.weights["scaler.scale"][0], scaler.scale_, rtol=1e-5)
        assert model.weights["scaler.scale"][0, 3:].tolist() == [1, 1]
        np.testing.assert_allclose(model.to_log(scaler.transform(means)), means, rtol=1e-5, atol=1e-6)
        assert np.isfinite(model.predict(cells)).all()

    def test_scale_of_several_slides(self):
        values = np.random.default_rng(0).gamma(2, 1, (40, 3))
        sample, whole = np.repeat([0, 1], 20), np.ones((2, 3), bool)
        targets = Targets(tuple(GENES), csr_matrix(values, dtype=np.float32), sample, whole)
        of = {"slide": [values[:20], values[20:]], "all": [values, values]}
        for by, parts in of.items():
            found = scaled(targets, by)
            for number, part in enumerate(parts):
                scaler = RobustScaler(with_centering=False, quantile_range=(0, 95)).fit(part)
                np.testing.assert_allclose(found.scale[number], scaler.scale_, rtol=1e-5)
                mine = sample == number
                np.testing.assert_allclose(found.dense(np.flatnonzero(mine)), values[mine] / scaler.scale_, rtol=1e-5)

    def test_counts_of_spots(self):
        cells, spot, truth, means = planted(0)
        rng = np.random.default_rng(0)
        depth = rng.uniform(0.3, 3, len(means))
        counts = rng.poisson(10 * (means + 0.5) * depth[:, None])
        model = SCellST(replace(SMALL, loss="nb-mean")).fit(
            Bags(cells, spot),
            ad.AnnData(csr_matrix(counts), var=pd.DataFrame(index=GENES)),
            library=1000 * depth,
            training=QUICK,
            progress=False,
        )
        assert model.genes == tuple(GENES)
        assert (correlations(model.predict(cells), truth) > 0.6).all()
        # At the median depth, whatever that of each spot is.
        np.testing.assert_allclose(
            model.predict(cells).mean(axis=0), 10 * (truth + 0.5).mean(axis=0) * np.median(depth), rtol=0.15
        )
        logs = model.to_log(np.array([[2.0, 0.0, 5.0]]))
        np.testing.assert_allclose(logs[0], np.log1p(np.array([2, 0, 5]) * 1e4 / np.median(1000 * depth)), rtol=1e-5)

    @pytest.mark.parametrize("loss", ["nb-mean", "nb-total"])
    @pytest.mark.parametrize(("change", "message"), [(0.5, "not whole"), (-20.0, "negative")])
    def test_what_are_no_counts_is_refused(self, loss, change, message):
        cells, spot, _, means = planted(0, n_spots=40)
        counts = np.ones_like(means)
        counts[3, 1] += change
        with pytest.raises(ValueError, match=message):
            SCellST(replace(SMALL, loss=loss)).fit(Bags(cells, spot), counts)

    def test_no_genes(self):
        cells, spot, _, _ = planted(0, n_spots=40)
        with pytest.raises(ValueError, match="no genes"):
            SCellST(SMALL).fit(Bags(cells, spot), np.zeros((40, 0)))

    def test_thresholds_are_met_by_hand(self):
        n = 30  # spots: a gene is in 3 of them or more
        full = np.full(n, 10)
        columns = {
            "199": np.r_[[19], np.full(18, 10), np.zeros(n - 19)],
            "200": np.r_[np.full(20, 10), np.zeros(n - 20)],
            "two spots": np.r_[[500, 500], np.zeros(n - 2)],
            "three spots": np.r_[[70, 70, 70], np.zeros(n - 3)],
            "MT-CO1": full,
            "MTOR": full,
        }
        counts = np.stack(list(columns.values()), axis=1)
        counts[-1, -2:] = 9, 10  # 19 counts: of what is left
        counts[-2, -2:] = 10, 10  # 20
        genes, spots = filtered(csr_matrix(counts), list(columns))
        assert dict(zip(columns, genes.tolist(), strict=True)) == {
            "199": False, "200": True, "two spots": False, "three spots": True, "MT-CO1": False, "MTOR": True,
        }  # fmt: skip
        assert np.flatnonzero(~spots).tolist() == [n - 1]


class TestSaved:
    def test_a_fresh_process_predicts_the_same(self, fitted, tmp_path):
        cells, _, _, _ = planted(3, n_spots=10)
        fitted.save(tmp_path / "model")
        np.save(tmp_path / "cells.npy", cells)
        code = (
            "import sys, numpy as np, sthist; folder = sys.argv[1]; m = sthist.models.load(folder + '/model');"
            "np.save(folder + '/found.npy', m.to_log(m.predict(np.load(folder + '/cells.npy'))))"
        )
        subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
        np.testing.assert_array_equal(np.load(tmp_path / "found.npy"), fitted.to_log(fitted.predict(cells)))
        assert json.loads((tmp_path / "model" / "config.json").read_text())["system"] == "scellst"

    def test_other_embeddings(self, fitted):
        with pytest.raises(ValueError, match="embeddings of 5 dimensions, and these have 4"):
            fitted.predict(np.zeros((3, 4)))

    @pytest.mark.parametrize(
        "wrong",
        [
            {"loss": "l1"},
            {"scaling": "gene"},
            {"standardize": "all"},
            {"dropout": 1},
            {"context_um": 30},
            {"smooth_um": 9},
        ],
    )
    def test_settings_that_are_none(self, wrong):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            sthist.models.SCellSTConfig(**wrong)
