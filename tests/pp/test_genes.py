"""Choosing genes, and normalised expression beside the counts."""

from __future__ import annotations

import logging
import tracemalloc

import anndata as ad
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp
import spatialdata as sd
from hypothesis import given, settings
from realdata import folder, xenium_ileum_tiny

import sthist
from sthist import _sample, _store

KINDS = {
    "dense": np.asarray,
    "csr": sp.csr_matrix,
    "csc": sp.csc_matrix,
    "csr_array": sp.csr_array,
    "csc_array": sp.csc_array,
}
DTYPES = [np.uint8, np.int32, np.int64, np.float32, np.float64]
counts_of_a_sample = hnp.arrays(
    np.int64,
    hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9),
    elements=st.integers(0, 200) | st.just(0),
)


def table(counts, names=None):
    """A table of these counts."""
    adata = ad.AnnData(counts)
    adata.var_names = [f"G{i}" for i in range(adata.n_vars)] if names is None else names
    adata.obs_names = [f"cell{i}" for i in range(adata.n_obs)]
    return adata


def poisson(n_obs=30, n_vars=12, seed=0, **kwargs):
    return table(sp.csr_matrix(np.random.default_rng(seed).poisson(2.0, (n_obs, n_vars)).astype(np.int32)), **kwargs)


def dense(matrix):
    return matrix.toarray() if sp.issparse(matrix) else np.asarray(matrix)


def log1p_by_hand(counts, total):
    """The definition, gene by gene."""
    out = np.zeros(counts.shape)
    for i, row in enumerate(counts.astype(float)):
        for j, count in enumerate(row):
            if count > 0:
                out[i, j] = np.log(1 + count * total / row.sum())
    return out


@settings(deadline=None, max_examples=60)
@given(counts=counts_of_a_sample, kind=st.sampled_from(list(KINDS)), dtype=st.sampled_from(DTYPES))
def test_expression_is_the_formulas_and_scanpys(counts, kind, dtype):
    """Whatever stores the counts; they are kept exactly, with their dtype.

    What was dense stays it, what was sparse too.
    """
    adata = table(KINDS[kind](counts.astype(dtype)))
    sthist.pp.genes(adata, target_sum=5000)
    np.testing.assert_allclose(dense(adata.X), log1p_by_hand(counts, 5000), rtol=2e-6)
    peer = table(sp.csr_matrix(counts.astype(np.float32)))
    if counts.sum(1).all():  # it warns otherwise
        sc.pp.normalize_total(peer, target_sum=5000)
        sc.pp.log1p(peer)
        np.testing.assert_array_equal(dense(adata.X), dense(peer.X))
        assert adata.uns["log1p"] == peer.uns["log1p"]
    assert sp.issparse(adata.X) == (kind != "dense")
    assert adata.X.dtype == np.float32
    assert sp.issparse(adata.layers["counts"])
    assert adata.layers["counts"].dtype == dtype
    np.testing.assert_array_equal(dense(adata.layers["counts"]), counts)


@settings(deadline=None, max_examples=40)
@given(
    counts=counts_of_a_sample,
    first=st.sampled_from([{}, {"log": False}, {"target_sum": None}, {"target_sum": "median"}]),
    second=st.sampled_from([{}, {"log": False}, {"target_sum": None, "log": False}, {"target_sum": 10}]),
)
def test_a_second_call_starts_from_the_counts(counts, first, second):
    """Twice is once, and the last call alone says what the result is."""
    adata, once = table(sp.csr_matrix(counts)), table(sp.csr_matrix(counts))
    sthist.pp.genes(adata, **first)
    with pytest.raises(ValueError, match="has been through pp.genes already. Pass overwrite=True"):
        sthist.pp.genes(adata, **second)
    sthist.pp.genes(adata, overwrite=True, **second)
    sthist.pp.genes(once, **second)
    for _ in range(2):
        np.testing.assert_array_equal(dense(adata.X), dense(once.X))
        np.testing.assert_array_equal(dense(adata.layers["counts"]), counts)
        assert ("log1p" in adata.uns) == second.get("log", True)
        sthist.pp.genes(adata, overwrite=True, **second)


def test_what_was_done_is_recorded():
    """As JSON; the total of "median" as the number that it was."""
    adata = poisson()
    totals = dense(adata.X).sum(1)
    sthist.pp.genes(adata, target_sum="median", log=False, min_counts=60)
    made = adata.uns["sthist"]["genes"]
    left = dense(adata.layers["counts"]).sum(1)
    assert made["call"] == "pp.genes"
    assert made["target_sum"] == np.median(left) <= np.median(totals)
    assert (made["n_genes_before"], made["n_genes"]) == (12, adata.n_vars)
    assert (made["source"], made["log"], made["min_counts"]) == ("X", False, 60)
    np.testing.assert_allclose(dense(adata.X).sum(1), np.median(left), rtol=1e-5)


def test_it_goes_through_h5ad(tmp_path):
    """With what scanpy needs to know of the logarithm, and what was done."""
    adata = poisson()
    sthist.pp.genes(adata, controls=())
    adata.write_h5ad(tmp_path / "table.h5ad")
    again = ad.read_h5ad(tmp_path / "table.h5ad")
    assert again.uns["log1p"] == {"base": None}
    made = again.uns["sthist"]["genes"]
    assert (made["target_sum"], made["table"], made["log"]) == (1e4, None, True)
    np.testing.assert_array_equal(dense(again.layers["counts"]), dense(poisson().X))
    sthist.pp.genes(again, overwrite=True)
    np.testing.assert_array_equal(dense(again.X), dense(adata.X))


def test_median_is_of_cells_with_counts():
    """Empty ones, though most are, do not pull it to 0."""
    adata = table(np.array([[0, 0], [0, 0], [0, 0], [4, 4], [1, 1]]))
    sthist.pp.genes(adata, target_sum="median", log=False)
    np.testing.assert_allclose(adata.X[3:].sum(1), 5)
    nothing = table(np.zeros((2, 2)))
    sthist.pp.genes(nothing, target_sum="median")
    assert (nothing.X == 0).all()


def test_cells_without_counts_are_kept_and_said(caplog):
    """Zeros, not NaN."""
    adata = table(sp.csr_matrix(np.array([[3, 1], [0, 0], [0, 0]])))
    with caplog.at_level(logging.WARNING, "sthist"):
        sthist.pp.genes(adata)
    assert "2 of 3 rows have no counts of these genes, such as 'cell1'" in caplog.text
    assert adata.n_obs == 3
    assert (dense(adata.X)[1:] == 0).all()
    assert adata.uns["sthist"]["genes"]["n_empty"] == 2


def test_controls_are_no_genes():
    """By prefix, whatever its case, and by the type of the feature; unless all shall stay."""
    names = ["ACTB", "NegControlProbe_1", "BLANK_0001", "Negative3", "SystemControl2", "CD3E-ab", "NEGR1"]
    counts = np.arange(1, 22).reshape(3, 7)

    def made():
        adata = table(counts.copy(), names)
        adata.var["feature_types"] = pd.Categorical(
            ["Gene Expression"] * 5 + ["Antibody Capture"] + ["Gene Expression"]
        )
        return adata

    adata = made()
    sthist.pp.genes(adata)
    assert adata.var_names.tolist() == ["ACTB", "NEGR1"]
    assert adata.uns["sthist"]["genes"]["n_controls"] == 5
    np.testing.assert_allclose(adata.X, log1p_by_hand(counts[:, [0, 6]], 1e4), rtol=1e-6)
    kept = made()
    sthist.pp.genes(kept, controls=())
    assert kept.var_names.tolist() == names
    for own in ("neg", ["neg"]):
        other = made()
        other.var["feature_types"] = "of my own"
        sthist.pp.genes(other, controls=own)
        assert other.var_names.tolist() == ["ACTB", "BLANK_0001", "SystemControl2", "CD3E-ab"]


@pytest.mark.parametrize("kind", ["dense", "csr"])
def test_copies_of_a_gene_are_summed(caplog, kind):
    """No count is lost, nor does a small integer overflow."""
    counts = np.array([[200, 1, 100, 7], [0, 2, 3, 0]], np.uint8)
    adata = table(KINDS[kind](counts), ["A", "B", "A", "C"])
    adata.var["chromosome"] = ["1", "2", "3", "4"]
    with caplog.at_level(logging.WARNING, "sthist"):
        sthist.pp.genes(adata)
    assert "has 1 genes more than once, such as 'A': their counts are summed" in caplog.text
    assert adata.var_names.tolist() == ["A", "B", "C"]
    assert adata.var["chromosome"].tolist() == ["1", "2", "4"]
    expected = np.array([[300, 1, 7], [3, 2, 0]])
    np.testing.assert_array_equal(dense(adata.layers["counts"]), expected)
    np.testing.assert_allclose(dense(adata.X), log1p_by_hand(expected, 1e4), rtol=2e-6)
    caplog.clear()
    one = table(KINDS[kind](counts), ["A", "B", "A", "C"])
    with caplog.at_level(logging.WARNING, "sthist"):
        sthist.pp.genes(one, genes=["C", "A"])
    assert "their counts are summed" in caplog.text
    np.testing.assert_array_equal(dense(one.layers["counts"]), expected[:, [2, 0]])


def test_chosen_genes():
    """In the order that was asked for, with totals of their own; everything by gene goes with them."""
    adata = poisson()
    counts = dense(adata.X)
    adata.varm["loading"] = np.arange(12.0)[:, None]
    adata.layers["other"] = adata.X * 2
    adata.obsm["spatial"] = np.ones((30, 2))
    sthist.pp.genes(adata, genes=["G7", "G2", "G11"])
    assert adata.var_names.tolist() == ["G7", "G2", "G11"]
    assert adata.varm["loading"].ravel().tolist() == [7, 2, 11]
    np.testing.assert_array_equal(dense(adata.layers["other"]), 2 * counts[:, [7, 2, 11]])
    np.testing.assert_allclose(dense(adata.X), log1p_by_hand(counts[:, [7, 2, 11]], 1e4), rtol=2e-6)
    one = poisson()
    sthist.pp.genes(one, genes="G3")
    assert one.var_names.tolist() == ["G3"]


def test_thresholds():
    """Cells in which a gene is seen, zeros that are stored not counted; and molecules in all."""
    counts = sp.csr_matrix(np.array([[1, 9, 0, 1], [1, 0, 0, 1], [1, 0, 5, 1]]))
    counts.data[counts.indices == 3] = 0  # stored, but nothing
    adata = table(counts.copy())
    sthist.pp.genes(adata, min_cells=1)
    assert adata.var_names.tolist() == ["G0", "G1", "G2"]
    sthist.pp.genes(adata, min_counts=4, overwrite=True)
    assert adata.var_names.tolist() == ["G1", "G2"]
    with pytest.raises(ValueError, match=r"No gene of the table is left: of 4 .* is in 3 of 3 rows and has 9 counts"):
        sthist.pp.genes(table(counts), min_cells=3, min_counts=4)


def test_a_view_becomes_a_table_of_its_own():
    """Its parent stays as it was."""
    parent = poisson()
    before = dense(parent.X).copy()
    view = parent[5:15, ::2]
    sthist.pp.genes(view)
    assert not view.is_view
    np.testing.assert_array_equal(dense(parent.X), before)
    assert "counts" not in parent.layers
    assert not parent.uns
    np.testing.assert_allclose(dense(view.X), log1p_by_hand(before[5:15, ::2], 1e4), rtol=2e-6)


def test_nothing_is_made_dense():
    """A table that would fill 6 GB takes some MB."""
    rng = np.random.default_rng(0)
    cells, genes = rng.integers(0, 50_000, 150_000), rng.integers(0, 30_000, 150_000)
    adata = table(sp.csr_matrix((np.ones(150_000, np.int32), (cells, genes)), shape=(50_000, 30_000)))
    tracemalloc.start()
    sthist.pp.genes(adata, min_cells=1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6


class TestCountsAreElsewhere:
    """X is normalised, but the counts are still there."""

    @pytest.fixture
    def logged(self):
        adata = poisson()
        adata.X = adata.X.astype(np.float32)
        sc.pp.normalize_total(adata, target_sum=1e4)
        sc.pp.log1p(adata)
        return adata

    def test_in_the_layer(self, logged):
        logged.layers["counts"] = poisson().X
        sthist.pp.genes(logged, target_sum=100)
        np.testing.assert_allclose(dense(logged.X), log1p_by_hand(dense(poisson().X), 100), rtol=2e-6)
        assert logged.uns["sthist"]["genes"]["source"] == "layers['counts']"

    def test_in_raw_with_more_genes(self, logged, caplog):
        """Those that the table has kept are taken, in its order."""
        more = poisson()
        logged = logged[:, [5, 1, 3]].copy()
        logged.raw = more
        with caplog.at_level(logging.INFO, "sthist"):
            sthist.pp.genes(logged)
        assert "counts come from raw" in caplog.text
        expected = dense(more.X)[:, [5, 1, 3]]
        np.testing.assert_array_equal(dense(logged.layers["counts"]), expected)
        np.testing.assert_allclose(dense(logged.X), log1p_by_hand(expected, 1e4), rtol=2e-6)
        assert logged.raw.n_vars == 12

    def test_in_a_layer_that_is_named(self, logged):
        logged.layers["umi"] = poisson().X
        with pytest.raises(KeyError, match=r"no layer 'umis'; it has \['umi'\]. Did you mean 'umi'"):
            sthist.pp.genes(logged, layer="umis")
        with pytest.raises(ValueError, match=r"name their layer with layer= \(there are \['umi'\]\)"):
            sthist.pp.genes(logged)
        sthist.pp.genes(logged, layer="umi")
        np.testing.assert_array_equal(dense(logged.layers["counts"]), dense(poisson().X))

    def test_in_x_although_the_layer_says_so(self, logged):
        """A layer "counts" that holds none is not overwritten unasked."""
        adata = poisson()
        adata.layers["counts"] = logged.X
        with pytest.raises(ValueError, match=r"no raw counts: layers\['counts'\] has .* looks like logarithms"):
            sthist.pp.genes(adata)
        sthist.pp.genes(adata, layer="X")
        np.testing.assert_array_equal(dense(adata.layers["counts"]), dense(poisson().X))

    def test_nowhere(self, logged):
        """Said with what X looks like, and where; nothing is changed."""
        before = logged.copy()
        message = (
            r"no raw counts: X has \d+ values that are not whole, such as [\d.]+ of gene 'G\d' in 'cell0', and looks "
            r"like"
        )
        with pytest.raises(ValueError, match=message + r" logarithms of normalised counts \(its largest value is"):
            sthist.pp.genes(logged)
        np.testing.assert_array_equal(dense(logged.X), dense(before.X))
        assert not logged.layers
        logged.X = np.expm1(dense(logged.X))
        logged.raw = before
        with pytest.raises(ValueError, match=message + " normalised counts .*; raw has .* logarithms"):
            sthist.pp.genes(logged)


@pytest.mark.parametrize("kind", ["dense", "csr", "csc"])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nan, "has 1 values that are NaN or infinite, such as nan of gene 'G3' in 'cell2'"),
        (np.inf, "has 1 values that are NaN or infinite, such as inf of gene 'G3' in 'cell2'"),
        (-1, "has 1 values that are negative, such as -1 of gene 'G3' in 'cell2'"),
    ],
)
def test_values_that_are_no_counts(kind, value, message):
    """With the gene and the cell."""
    counts = np.random.default_rng(0).poisson(2.0, (5, 6)).astype(float)
    counts[2, 3] = value
    with pytest.raises(ValueError, match=message):
        sthist.pp.genes(table(KINDS[kind](counts)))


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"target_sum": 0}, ValueError, "target_sum is 0; it is a positive number, 'median', or None"),
        ({"target_sum": np.nan}, ValueError, "target_sum is nan"),
        ({"target_sum": "mean"}, ValueError, "target_sum is 'mean'"),
        ({"min_cells": -1}, ValueError, "min_cells is -1"),
        ({"table": "table"}, ValueError, "table='table' names a table of a SpatialData, but an AnnData is given"),
        ({"genes": ["G1", "g2", "G99"]}, KeyError, "lacks 2 of 3 genes, such as 'g2'. Did you mean 'G2'"),
        ({"genes": ["G1", "G1"]}, ValueError, "genes= has 'G1' more than once"),
        ({"genes": []}, ValueError, "No gene of the table is left"),
    ],
)
def test_bad_arguments(kwargs, error, message):
    """Said before the table is touched."""
    adata = poisson()
    with pytest.raises(error, match=message):
        sthist.pp.genes(adata, **kwargs)
    assert not adata.layers
    assert not adata.uns


def test_tables_that_cannot_be_had(tmp_path):
    """Empty, without a matrix, on disk, lazy, or no table at all."""
    import dask.array as da

    for shape in ((0, 3), (3, 0)):
        with pytest.raises(ValueError, match=f"The table is empty: it has {shape[0]} rows and {shape[1]} genes"):
            sthist.pp.genes(ad.AnnData(np.zeros(shape, np.float32)))
    with pytest.raises(ValueError, match="no raw counts: X is not there"):
        sthist.pp.genes(ad.AnnData(obs=pd.DataFrame(index=["a"]), var=pd.DataFrame(index=["g"])))
    poisson().write_h5ad(tmp_path / "table.h5ad")
    on_disk = ad.read_h5ad(tmp_path / "table.h5ad", backed="r")
    with pytest.raises(ValueError, match="is backed by .*table.h5ad; read it with adata.to_memory"):
        sthist.pp.genes(on_disk)
    on_disk.file.close()
    with pytest.raises(ValueError, match=r"X is a Array, not in memory \(adata.to_memory\(\) reads it\)"):
        sthist.pp.genes(table(da.ones((3, 4))))
    with pytest.raises(TypeError, match="or a mapping of name to such is needed, not ndarray"):
        sthist.pp.genes(np.ones((3, 4)))


class TestSpatialData:
    """The table of a sample, in memory and on disk."""

    def test_in_memory(self, toy):
        """The table is changed where it is, and stays the cells' one."""
        adata = toy["table"]
        before = adata.copy()
        sthist.pp.tissue(toy)
        sthist.pp.tiles(toy)
        sthist.pp.genes(toy, genes=list(adata.var_names[:20]))
        assert toy["table"] is adata
        assert adata.shape == (before.n_obs, 20)
        pd.testing.assert_frame_equal(adata.obs, before.obs)
        np.testing.assert_array_equal(adata.obsm["spatial"], before.obsm["spatial"])
        assert adata.uns["spatialdata_attrs"] == before.uns["spatialdata_attrs"]
        assert _sample.find_cell_table(toy) == "table"
        np.testing.assert_allclose(dense(adata.X), log1p_by_hand(dense(before.X)[:, :20], 1e4), rtol=2e-6)

    def test_in_a_store(self, backed):
        """What is read back is what the object holds, and what the same call gives in memory."""
        held = backed["table"]
        expected = held.copy()
        sthist.pp.genes(expected, min_cells=150, controls=())
        sthist.pp.genes(backed, min_cells=150, controls=())
        again = sd.read_zarr(backed.path)
        assert expected.n_vars < held.n_vars
        for adata in (backed["table"], again["table"]):
            assert adata.var_names.equals(expected.var_names)
            np.testing.assert_array_equal(dense(adata.X), dense(expected.X))
            np.testing.assert_array_equal(dense(adata.layers["counts"]), dense(expected.layers["counts"]))
            assert sp.issparse(adata.X)
            assert sp.issparse(adata.layers["counts"])
            assert adata.layers["counts"].dtype == expected.layers["counts"].dtype
            pd.testing.assert_frame_equal(adata.obs, expected.obs)
            np.testing.assert_array_equal(adata.obsm["spatial"], expected.obsm["spatial"])
            made = adata.uns["sthist"]["genes"]
            assert made["n_genes"] == expected.n_vars
            assert made["table"] == "table"
            assert adata.uns["log1p"] == expected.uns["log1p"]
        assert _sample.find_cell_table(again) == "table"
        elements, joined = sd.join_spatialelement_table(
            sdata=again, spatial_element_names="cell_boundaries", table_name="table"
        )
        assert joined.n_obs == len(elements["cell_boundaries"]) == expected.n_obs
        assert "counts" not in held.layers
        sthist.pp.genes(again, overwrite=True)
        np.testing.assert_array_equal(dense(again["table"].X), dense(expected.X))

    def test_copies_in_a_store(self, backed):
        """Summed there, too."""
        adata = backed["table"]
        counts = dense(adata.X).copy()
        adata.var_names = ["A", "B", "A", *[f"G{i}" for i in range(adata.n_vars - 3)]]
        sthist.pp.genes(backed)
        again = sd.read_zarr(backed.path)["table"]
        np.testing.assert_array_equal(dense(again.layers["counts"])[:, 0], counts[:, 0] + counts[:, 2])
        np.testing.assert_array_equal(dense(again.layers["counts"])[:, 2:], counts[:, 3:])

    def test_a_write_that_fails_changes_nothing(self, backed, monkeypatch):
        """Neither the object nor the store."""
        before = dense(backed["table"].X).copy()

        def full(*_, **__):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(_store.store, "commit", full)
        with pytest.raises(OSError, match="is full"):
            sthist.pp.genes(backed)
        for sdata in (backed, sd.read_zarr(backed.path)):
            np.testing.assert_array_equal(dense(sdata["table"].X), before)
            assert "counts" not in sdata["table"].layers

    def test_molecules_are_still_counted(self, toy):
        """What counts the molecules of cells does not take normalised values for them."""
        _, before = _sample.cell_counts(toy, "table")
        assert before.sum() == toy["table"].X.sum()
        sthist.tl.virtual_he(toy)
        sthist.pp.genes(toy, log=False)
        assert toy["table"].X.sum() > 50 * before.sum()
        np.testing.assert_array_equal(_sample.cell_counts(toy, "table")[1], before)
        sthist.tl.virtual_he(toy, key_added="again")
        np.testing.assert_array_equal(toy["again"].to_numpy(), toy["virtual_he"].to_numpy())

    def test_which_table(self, toy):
        """The reader's; else the only one with genes; else one that is named."""
        other = toy["table"].copy()
        toy.tables["other"] = other
        sthist.pp.genes(toy)
        assert "counts" in toy["table"].layers
        assert "counts" not in other.layers
        toy.attrs["sthist"]["roles"].pop("cells")
        with pytest.raises(ValueError, match="could be the table of expression: 'other', 'table'. Choose with table="):
            sthist.pp.genes(toy)
        with pytest.raises(KeyError, match="No table 'othr' in this object.*Did you mean 'other'"):
            sthist.pp.genes(toy, table="othr")
        sthist.pp.genes(toy, table="other")
        assert "counts" in other.layers
        with pytest.raises(KeyError, match="Found no table of expression"):
            sthist.pp.genes(sd.SpatialData(images={"he": toy["he"]}))
        other.X = other.X * 0.5
        other.layers.clear()
        with pytest.raises(ValueError, match="Table 'other' has no raw counts: X has"):
            sthist.pp.genes(toy, table="other")


class TestRealSamples:
    """Tables as people have them."""

    @pytest.mark.parametrize("section", ["B4", "C3"])
    def test_her2st(self, section):
        """Raw counts of 15 000 genes, int32."""
        adata = ad.read_h5ad(folder("her2st") / f"{section}_counts.h5ad")
        counts, peer = adata.X.copy(), adata.copy()
        sthist.pp.genes(adata)
        assert (adata.layers["counts"] != counts).nnz == 0
        assert adata.layers["counts"].dtype == np.int32
        sc.pp.normalize_total(peer, target_sum=1e4)
        sc.pp.log1p(peer)
        np.testing.assert_array_equal(adata.X.toarray(), peer.X.toarray())
        np.testing.assert_allclose(np.expm1(adata.X.astype(np.float64)).sum(1), 1e4, rtol=1e-4)
        assert "stereoscope_major" in adata.obsm

    def test_visium(self):
        """100 spots of 100 genes, most of them empty."""
        sdata = sthist.io.visium(folder("squidpy_visium") / "human_heart_100spots")
        counts = dense(sdata["table"].X).copy()
        sthist.pp.genes(sdata)
        np.testing.assert_allclose(dense(sdata["table"].X), log1p_by_hand(counts, 1e4), rtol=2e-6)

    def test_log_normalised_visium(self):
        """Highly variable genes alone, without counts: refused."""
        adata = ad.read_h5ad(folder("squidpy_visium") / "mouse_brain_crop" / "spots.h5ad")
        with pytest.raises(ValueError, match=r"looks like logarithms .* \(its largest value is 8.309\)"):
            sthist.pp.genes(adata)

    def test_xenium(self):
        """The folder of the vendor, and all features of its matrix."""
        sdata = xenium_ileum_tiny()
        counts = dense(sdata["table"].X).copy()
        sthist.pp.genes(sdata)
        assert sdata["table"].n_vars == 5006
        np.testing.assert_allclose(dense(sdata["table"].X), log1p_by_hand(counts, 1e4), rtol=2e-6)
        matrix = folder("xenium_ileum_tiny") / "outs" / "cell_feature_matrix.h5"
        features = sc.read_10x_h5(matrix, gex_only=False)
        by_name = features.copy()
        del by_name.var["feature_types"]
        for adata in (features, by_name):
            sthist.pp.genes(adata)
            assert adata.var_names.equals(sdata["table"].var_names)
            np.testing.assert_array_equal(dense(adata.layers["counts"]), counts)

    def test_platforms_with_controls(self):
        """MERSCOPE's blanks and CosMx' negative probes go, by the flags of the data."""
        for name, file, flag in (
            ("merscope_mouse_brain", "cells.h5ad", "is_blank"),
            ("cosmx_lung12", "fov2_cells.h5ad", "is_negative"),
        ):
            adata = ad.read_h5ad(folder(name) / file)
            expected = adata.var_names[~adata.var[flag]]
            sthist.pp.genes(adata)
            assert adata.var_names.equals(expected)
            assert adata.X.shape == adata.layers["counts"].shape
