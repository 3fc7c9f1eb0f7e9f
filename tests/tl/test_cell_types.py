"""Types of cells: scores as scanpy's, and planted types found again."""

from __future__ import annotations

import logging

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import spatialdata as sd
from scipy.sparse import csr_matrix

import sthist

GENES = [f"G{i}" for i in range(120)]
MARKERS = {"a": GENES[:8], "b": GENES[8:14], "c": GENES[14:30:2]}


def cells(n=300, seed=0, sparse=False):
    """Cells of three types, whose markers are expressed four times as much as in others."""
    rng = np.random.default_rng(seed)
    kind = rng.choice(3, n)
    means = np.tile(rng.gamma(2, 1.0, len(GENES)) + 0.2, (n, 1))
    for code, genes in enumerate(MARKERS.values()):
        means[np.ix_(kind == code, [GENES.index(name) for name in genes])] *= 4
    counts = rng.poisson(means * rng.gamma(8, 1 / 8, (n, 1))).astype(np.float32)
    obs = pd.DataFrame({"true": np.array(list(MARKERS))[kind]}, index=[f"cell{i}" for i in range(n)])
    return ad.AnnData(csr_matrix(counts) if sparse else counts, obs=obs, var=pd.DataFrame(index=GENES))


def predicted(n=300, seed=0):
    """What no count can be: positive numbers of the same cells."""
    adata = cells(n, seed)
    adata.X = adata.X + np.random.default_rng(seed).uniform(0.01, 0.99, adata.shape).astype(np.float32)
    return adata


def by_scanpy(normalised, genes, seed=0):
    """Scores of standardised genes; an offset in the order of their means chooses the same control genes."""
    dense = np.asarray(normalised.todense() if hasattr(normalised, "todense") else normalised, np.float64)
    standard = (dense - dense.mean(axis=0)) / dense.std(axis=0, ddof=1)
    offset = 10.0 * pd.Series(dense.mean(axis=0)).rank().to_numpy()
    light = ad.AnnData(standard + offset, var=pd.DataFrame(index=GENES))
    sc.tl.score_genes(light, genes, random_state=seed)
    score = light.obs["score"].to_numpy()
    return score - score.mean()  # that of standardised genes has mean 0


class TestScores:
    @pytest.mark.parametrize("sparse", [False, True])
    @pytest.mark.parametrize("seed", [0, 5])
    def test_of_counts_are_those_of_scanpy(self, sparse, seed):
        adata = cells(sparse=sparse)
        sthist.tl.cell_types(adata, MARKERS, seed=seed)
        light = cells()
        sc.pp.normalize_total(light, target_sum=1e4)
        sc.pp.log1p(light)
        for kind, genes in MARKERS.items():
            np.testing.assert_allclose(adata.obsm["cell_type_scores"][kind], by_scanpy(light.X, genes, seed), atol=1e-5)

    def test_of_predictions_are_those_of_scanpy(self):
        """Predictions are no counts: brought to one total, without a logarithm."""
        adata = predicted()
        sthist.tl.cell_types(adata, MARKERS)
        values = adata.X / adata.X.sum(axis=1, keepdims=True) * 1e4
        for kind, genes in MARKERS.items():
            np.testing.assert_allclose(adata.obsm["cell_type_scores"][kind], by_scanpy(values, genes), atol=1e-5)
        assert adata.uns["sthist"]["cell_type"]["normalized"] == "total"

    def test_a_constant_added_to_all_genes_changes_nothing(self):
        one, two = predicted(), predicted()
        two.X = two.X + 7.0
        for adata in (one, two):
            sthist.tl.cell_types(adata, MARKERS, target_sum=None)
        np.testing.assert_allclose(one.obsm["cell_type_scores"], two.obsm["cell_type_scores"], atol=1e-4)
        assert (one.obs["cell_type"] == two.obs["cell_type"]).all()

    def test_blocks_change_nothing(self, monkeypatch):
        one, two = cells(sparse=True), cells(sparse=True)
        sthist.tl.cell_types(one, MARKERS)
        monkeypatch.setattr("sthist.tl._cell_types.BLOCK_ROWS", 37)
        sthist.tl.cell_types(two, MARKERS)
        np.testing.assert_allclose(one.obsm["cell_type_scores"], two.obsm["cell_type_scores"], atol=1e-9)

    def test_few_genes_are_compared_with_all_others(self):
        adata = cells()[:, [*MARKERS["a"], *MARKERS["b"]]].copy()
        sthist.tl.cell_types(adata, {kind: MARKERS[kind] for kind in "ab"})
        assert (adata.obs["cell_type"].astype(str) == adata.obs["true"])[adata.obs["true"] != "c"].mean() > 0.9

    def test_random_numbers_of_others_go_on(self):
        np.random.seed(3)  # noqa: NPY002
        expected = np.random.rand()  # noqa: NPY002
        np.random.seed(3)  # noqa: NPY002
        sthist.tl.cell_types(cells(), MARKERS)
        assert np.random.rand() == expected  # noqa: NPY002

    def test_a_cell_without_expression_is_unknown(self):
        adata = predicted()
        adata.X[3] = np.nan
        sthist.tl.cell_types(adata, MARKERS)
        assert adata.obs["cell_type"].iloc[3] == "unknown"
        assert adata.obsm["cell_type_scores"].iloc[3].isna().all()
        assert adata.obsm["cell_type_scores"].drop(index="cell3").notna().all(axis=None)


class TestCalls:
    def test_planted_types_are_found(self):
        adata = cells()
        sthist.tl.cell_types(adata, MARKERS)
        assert adata.obs["cell_type"].cat.categories.tolist() == ["a", "b", "c", "unknown"]
        assert (adata.obs["cell_type"].astype(str) == adata.obs["true"]).mean() > 0.95

    def test_thresholds(self):
        adata = cells()
        sthist.tl.cell_types(adata, MARKERS, min_score=0.3, min_margin=0.5)
        scores = adata.obsm["cell_type_scores"].to_numpy()
        best, second = np.sort(scores, axis=1)[:, -1], np.sort(scores, axis=1)[:, -2]
        unknown = ~((best > 0.3) & (best - second >= 0.5))
        assert 0 < unknown.sum() < len(unknown)
        np.testing.assert_array_equal(adata.obs["cell_type"] == "unknown", unknown)
        assert adata.uns["sthist"]["cell_type"]["n_cells"]["unknown"] == unknown.sum()

    def test_each_sample_is_standardised_by_itself(self):
        one, two, alone = cells(seed=1), cells(seed=2), cells(seed=2)
        sthist.tl.cell_types({"one": one, "two": two}, MARKERS)
        sthist.tl.cell_types(alone, MARKERS)
        np.testing.assert_array_equal(two.obsm["cell_type_scores"], alone.obsm["cell_type_scores"])


class TestMarkers:
    def test_of_frames(self):
        one, two, three = cells(), cells(), cells()
        long = pd.DataFrame([(kind, gene) for kind, genes in MARKERS.items() for gene in genes])
        wide = pd.DataFrame({kind: pd.Series(genes, dtype=object) for kind, genes in MARKERS.items()})
        sthist.tl.cell_types(one, MARKERS)
        sthist.tl.cell_types(two, long.set_axis(["group", "names"], axis=1))
        sthist.tl.cell_types(three, wide)
        for other in (two, three):
            pd.testing.assert_frame_equal(one.obsm["cell_type_scores"], other.obsm["cell_type_scores"])

    def test_of_single_cells(self):
        """Genes that differ between single cells are those that were planted."""
        adata, reference = cells(seed=4), cells(seed=5)
        reference.var_names = [*GENES[:100], *(f"other{i}" for i in range(20))]
        sthist.tl.cell_types(adata, reference, labels="true", n_top=6)
        made = adata.uns["sthist"]["cell_type"]
        assert all(set(made["markers"][kind]) <= set(MARKERS[kind]) for kind in "abc")
        assert (adata.obs["cell_type"].astype(str) == adata.obs["true"]).mean() > 0.95

    def test_of_single_cells_that_were_scaled(self):
        adata, reference = cells(seed=4), sc.datasets.pbmc68k_reduced()
        adata.var_names = reference.var_names[: len(GENES)]
        sthist.tl.cell_types(adata, reference, labels="louvain", n_top=5)
        assert adata.uns["sthist"]["cell_type"]["markers"]

    def test_ensembl_ids_are_matched_by_the_column_that_has_them(self):
        one, two = cells(), cells()
        two.var["gene_ids"] = two.var_names
        two.var_names = [f"ENSG{i:011d}" for i in range(len(GENES))]
        for adata in (one, two):
            sthist.tl.cell_types(adata, MARKERS)
        pd.testing.assert_frame_equal(one.obsm["cell_type_scores"], two.obsm["cell_type_scores"])

    def test_what_is_missing_is_said(self, caplog):
        adata = cells()
        given = {"a": [*MARKERS["a"], "CD3E"], "b": MARKERS["b"][:1], "gone": ["XYZ1", "XYZ2"]}
        with caplog.at_level(logging.WARNING, logger="sthist"):
            sthist.tl.cell_types(adata, given)
        assert "1 of 3 types are left out" in caplog.text
        assert "'gone'" in caplog.text
        assert "b (1 of 1)" in caplog.text
        made = adata.uns["sthist"]["cell_type"]
        assert made["left_out"] == {"a": ["CD3E"], "gone": ["XYZ1", "XYZ2"]}
        assert list(adata.obsm["cell_type_scores"]) == ["a", "b"]

    def test_names_that_no_column_may_have(self):
        adata = cells()
        sthist.tl.cell_types(adata, {"T/NK": MARKERS["a"], "B cell": MARKERS["b"]})
        assert list(adata.obsm["cell_type_scores"]) == ["T_NK", "B cell"]
        assert adata.obs["cell_type"].cat.categories.tolist() == ["T/NK", "B cell", "unknown"]
        assert adata.uns["sthist"]["cell_type"]["classes"] == {"T_NK": "T/NK", "B cell": "B cell"}


class TestTables:
    def test_on_disk(self, backed):
        markers = {"epithelial": ["EPCAM", "KRT8"], "fibroblast": ["COL1A1", "DCN"]}
        sthist.tl.cell_types(backed, markers, key_added="call")
        again = sd.read_zarr(backed.path)["table"]
        pd.testing.assert_series_equal(again.obs["call"], backed["table"].obs["call"])
        pd.testing.assert_frame_equal(again.obsm["call_scores"], backed["table"].obsm["call_scores"])

    def test_blocks_of_dask(self):
        da = pytest.importorskip("dask.array")
        one, two = predicted(), predicted()
        two.X = da.from_array(two.X, chunks=(90, 50))
        for adata in (one, two):
            sthist.tl.cell_types(adata, MARKERS)
        np.testing.assert_allclose(one.obsm["cell_type_scores"], two.obsm["cell_type_scores"], atol=1e-9)

    def test_what_pp_genes_has_normalised_stays(self):
        one, two = cells(), cells()
        sthist.pp.genes(two, target_sum=1e4)
        for adata in (one, two):
            sthist.tl.cell_types(adata, MARKERS)
        np.testing.assert_allclose(one.obsm["cell_type_scores"], two.obsm["cell_type_scores"], atol=1e-5)


@pytest.mark.parametrize(
    ("markers", "kwargs", "error", "message"),
    [
        ({}, {}, ValueError, "no markers: the mapping is empty"),
        ({"a": [], "b": ["G1"]}, {}, ValueError, "no markers of 'a'"),
        ({"a": ["CD3E"]}, {}, ValueError, "None of the 1 markers, 'CD3E', is among the 120 genes of the table, 'G0'"),
        ({"a": ["G1", 3]}, {}, TypeError, "Markers of 'a' are names of genes, not 3"),
        ({"unknown": ["G1"]}, {}, ValueError, "A type is called 'unknown'"),
        (["G1"], {}, TypeError, "not list"),
        (pd.DataFrame({"a": [1, 2]}), {}, TypeError, "Column 'a' of the markers holds numbers"),
        ({"a": ["G1"]}, {"labels": "x"}, ValueError, "labels='x' names the types of single cells"),
        ({"a": ["G1"]}, {"min_genes": 2}, ValueError, "fewer than min_genes=2"),
        ({"a": GENES}, {}, ValueError, "All genes of the table are markers"),
        ({"a": ["G1"]}, {"layer": "scelst"}, KeyError, "no layer 'scelst'"),
        ({"a": ["G1"]}, {"target_sum": 0}, ValueError, "target_sum is 0"),
        ({"a": ["G1"]}, {"min_score": np.nan}, ValueError, "min_score is nan"),
        ({"a": ["G1"]}, {"key_added": "true"}, ValueError, "has obs\\['true'\\] already"),
    ],
)
def test_what_cannot_be_meant(markers, kwargs, error, message):
    with pytest.raises(error, match=message):
        sthist.tl.cell_types(cells(30), markers, **kwargs)


def test_a_table_that_is_not_there():
    with pytest.raises(KeyError, match="No table 'tabel'.*Did you mean 'table'"):
        sthist.tl.cell_types(sthist.datasets.toy(size_um=200), MARKERS, table="tabel")


def test_negative_and_constant_values():
    adata = cells(30)
    adata.X -= 5
    with pytest.raises(ValueError, match="Values of the table are negative.*target_sum=None"):
        sthist.tl.cell_types(adata, MARKERS)
    adata.X[:] = 1.5
    with pytest.raises(ValueError, match="the same in all cells"):
        sthist.tl.cell_types(adata, MARKERS)
