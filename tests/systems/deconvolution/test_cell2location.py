"""cell2location behind the verb: refused with a hint where it is not installed, and right where it is."""

from __future__ import annotations

import importlib.util
import random

import numpy as np
import pytest
from mixtures import correlations, simulate
from scipy.sparse import csr_matrix

import sthist
from sthist.systems.deconvolution import cell2location

HAVE = importlib.util.find_spec("cell2location") is not None


class TestRefused:
    def test_where_it_is_not_installed(self, monkeypatch):
        """Before the reference, which is none, is looked at."""
        monkeypatch.setattr(cell2location, "find_spec", lambda name: None)
        spots, _, _ = simulate("poisson", side=3, n_genes=60)
        with pytest.raises(ImportError, match=r'pip install "sthist\[deconv\]".*method=\'nnls\''):
            sthist.tl.deconvolve(spots, None, method="cell2location")

    @pytest.mark.skipif(HAVE, reason="cell2location is installed, and can be imported")
    def test_where_versions_do_not_go_together(self, monkeypatch, tmp_path):
        (tmp_path / "cell2location.py").write_text("raise ImportError('no deep_getattr')")
        (tmp_path / "scvi.py").write_text("")
        monkeypatch.syspath_prepend(tmp_path)
        spots, cells, _ = simulate("poisson", side=3, n_genes=60)
        with pytest.raises(ImportError, match=r"cannot be imported \(no deep_getattr\).*sthist\[deconv\]"):
            sthist.tl.deconvolve(spots, cells, method="cell2location")

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"method": "rctd"}, "it is one of 'nnls', 'cell2location'"),
            ({"epochs": 5}, "method='nnls' takes no epochs"),
            ({"detection_alpha": 20, "quantile": "means"}, "takes no detection_alpha and no quantile"),
            ({"method": "cell2location", "epochs": 0}, "epochs is 0"),
            ({"method": "cell2location", "epochs": (0, 5)}, "epochs is 0"),
            ({"method": "cell2location", "epochs": (1, 2, 3)}, "or a pair"),
            ({"method": "cell2location", "n_cells_per_location": -1}, "n_cells_per_location is -1"),
            ({"method": "cell2location", "detection_alpha": np.inf}, "detection_alpha is inf"),
            ({"method": "cell2location", "quantile": "q50"}, "quantile is 'q50'"),
        ],
    )
    def test_arguments_that_cannot_be_meant(self, arguments, message):
        spots, cells, _ = simulate("poisson", side=3, n_genes=60)
        with pytest.raises(ValueError, match=message):
            sthist.tl.deconvolve(spots, cells, **arguments)

    def test_batches_that_are_not_there(self, monkeypatch):
        monkeypatch.setattr(cell2location, "require_cell2location", lambda: None)
        spots, cells, _ = simulate("poisson", side=3, n_genes=60)
        with pytest.raises(KeyError, match="no column 'donor'"):
            sthist.tl.deconvolve(spots, cells, method="cell2location", batch="donor")


def test_the_filter_of_genes():
    """By the definition, gene by gene."""
    _, cells, _ = simulate("negative_binomial", n_genes=200)
    counts = cells.X.toarray()
    kept = [
        j
        for j, column in enumerate(counts.T)
        if (seen := (column > 0).sum()) > 0.05 * len(counts) or (seen > 15 and column.sum() / seen > 1.12)
    ]
    assert 0 < len(kept) < 200
    np.testing.assert_array_equal(cell2location.informative_genes(cells.X), kept)


@pytest.mark.slow
@pytest.mark.skipif(not HAVE, reason='cell2location is not installed: pip install "sthist[deconv]"')
class TestTrained:
    OPTIONS = {"method": "cell2location", "epochs": (60, 3000), "device": "cpu", "seed": 3}

    def test_known_composition(self):
        spots, cells, truth = simulate("negative_binomial", side=8, n_genes=200)
        spots.X = csr_matrix(spots.X.toarray() * (np.arange(spots.n_obs) != 4)[:, None])
        sthist.tl.deconvolve(spots, cells, **self.OPTIONS)
        found = spots.obsm["cell_abundance"]
        there = np.arange(spots.n_obs) != 4
        assert correlations(found[there], truth[there]).mean() > 0.8
        assert (found.iloc[4] == 0).all()
        made = spots.uns["sthist"]["cell_abundance"]
        assert made["signatures"] == "regression"
        assert (made["quantile"], made["seed"], made["epochs"], made["signature_epochs"]) == ("q05", 3, 3000, 60)
        assert set(made["versions"]) == {"cell2location", "scvi-tools", "pyro-ppl", "torch"}

    def test_profiles_and_means(self):
        spots, cells, truth = simulate("poisson", side=7, n_genes=200)
        profiles = cells.to_df().groupby(cells.obs["cell_type"], observed=True).mean().T
        sthist.tl.deconvolve(spots, profiles, **self.OPTIONS | {"epochs": 3000}, quantile="means")
        assert correlations(spots.obsm["cell_abundance"], truth).mean() > 0.8
        assert spots.uns["sthist"]["cell_abundance"]["signatures"] == "given"

    def test_batches_random_states_and_files(self, tmp_path, monkeypatch):
        """A few epochs: what the user has is as it was, and the same seed gives the same."""
        monkeypatch.chdir(tmp_path)
        spots, cells, _ = simulate("poisson", side=7, n_genes=200)
        cells.obs["reaction"] = np.arange(cells.n_obs) % 2
        before = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
        for key in ("once", "twice"):
            sthist.tl.deconvolve(
                spots, cells, **self.OPTIONS | {"epochs": (5, 5)}, labels="cell_type", batch="reaction", key_added=key
            )
        assert random.getstate() == before[0]
        assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002
        assert not list(tmp_path.iterdir())
        assert spots.uns["sthist"]["once"]["batch"] == "reaction"
        np.testing.assert_allclose(spots.obsm["once"], spots.obsm["twice"], rtol=1e-4)
