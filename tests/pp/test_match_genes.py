"""Which genes tables have in common, and a matrix in the order of a list."""

from __future__ import annotations

import logging

import anndata as ad
import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp
from hypothesis import given, settings
from realdata import folder, xenium_ileum_tiny

import sthist
from sthist._tables.genes import collect_columns, reindex

SYMBOLS = ["GAPDH", "ACTB", "EPCAM", "CD3E", "KRT8", "VIM"]
IDS = [f"ENSG{i:011d}" for i in range(6)]


def table(names, counts=None, **columns):
    """A table of one row, or of these counts."""
    counts = np.arange(1, len(names) + 1, dtype=np.float32)[None] if counts is None else counts
    adata = ad.AnnData(sp.csr_matrix(counts), var=pd.DataFrame(columns, index=[f"g{i}" for i in range(len(names))]))
    adata.var_names = names
    adata.obs_names = [f"cell{i}" for i in range(adata.n_obs)]
    return adata


def test_order_and_spelling_are_the_references():
    """The index gives each table's columns in that order; what does not match is listed as it is written."""
    data = table(["VIM", "EPCAM", "NOT1", "GAPDH"])
    match = sthist.pp.match_genes(data, SYMBOLS)
    assert match.names.tolist() == ["GAPDH", "EPCAM", "VIM"]
    assert data.var_names[match.index["data"]].tolist() == match.names.tolist()
    assert match.index["reference"].tolist() == [0, 2, 5]
    assert match.positions["data"].tolist() == [2, 1, -1, 0]
    assert match.columns == {"data": "var_names", "reference": "names"}
    assert match.overlap == {"data": 0.75, "reference": 0.5}
    assert match.missing["data"].tolist() == ["NOT1"]
    assert match.missing["reference"].tolist() == ["ACTB", "CD3E", "KRT8"]
    assert not match.ignored_case
    assert repr(match) == "GeneMatch of 3 genes: 'data' by var_names (75%), 'reference' by names (50%)"


@settings(deadline=None, max_examples=100)
@given(
    left=st.lists(st.sampled_from("ABCDEFGHIJ"), min_size=1), right=st.lists(st.sampled_from("DEFGHIJKLM"), min_size=1)
)
def test_it_is_the_intersection(left, right):
    """Of any two lists, copies included, by sets; and nothing where there is none."""
    common = set(left) & set(right)
    data = table(left)
    if not common:
        with pytest.raises(ValueError, match="0 genes match"):
            sthist.pp.match_genes(data, right, min_overlap=0)
        return
    match = sthist.pp.match_genes(data, right, min_overlap=0)
    assert match.names.tolist() == [name for name in dict.fromkeys(right) if name in common]
    assert [left[i] for i in match.index["data"]] == match.names.tolist()
    assert match.index["data"].tolist() == [left.index(name) for name in match.names]
    assert match.overlap["data"] == pytest.approx(len(common) / len(set(left)))
    assert set(match.missing["reference"]) == set(right) - common


@pytest.mark.parametrize("column", ["gene_ids", "ensembl_id", "feature_name", "whatever"])
def test_the_column_with_most_genes_in_common_is_taken(column, caplog):
    """On both sides, whatever it is called; columns that do not name genes are passed over."""
    left = table(SYMBOLS, **{column: pd.Categorical(IDS)}, genome="GRCh38", feature_types="Gene Expression", n_cells=7)
    right = table(IDS[::-1], genome="GRCh38", feature_types="Gene Expression")
    with caplog.at_level(logging.INFO, "sthist"):
        match = sthist.pp.match_genes(left, right)
    assert match.columns == {"data": column, "reference": "var_names"}
    assert f"'data' by {column} (100%), 'reference' by var_names (100%)" in caplog.text
    assert match.index["data"].tolist() == [5, 4, 3, 2, 1, 0]
    match = sthist.pp.match_genes(right, left)
    assert match.columns == {"data": "var_names", "reference": column}
    assert match.names.tolist() == IDS
    both = table([f"probe{i}" for i in range(6)], gene_name=SYMBOLS, gene_ids=IDS)
    assert sthist.pp.match_genes(both, [*SYMBOLS[:2], "X1"]).columns["data"] == "gene_name"
    assert sthist.pp.match_genes(both, [*IDS[:3], *SYMBOLS[:2]]).columns["data"] == "gene_ids"


def test_chromosomes_are_no_genes():
    """Columns that many rows share do not make up for genes that do not match."""
    chromosomes = [str(number % 23 + 1) for number in range(100)]
    left = table([f"A{i}" for i in range(100)], chromosome=chromosomes)
    with pytest.raises(ValueError, match="0 genes match"):
        sthist.pp.match_genes(left, table([f"B{i}" for i in range(100)], chromosome=chromosomes))


def test_by():
    """Named for all, or by side; the name of the index is that of var_names."""
    left, right = table(SYMBOLS, ids=IDS), table(SYMBOLS, ids=[*IDS[:3], "ENSG99999999999", "x", None])
    assert len(sthist.pp.match_genes(left, right).names) == 6
    assert len(sthist.pp.match_genes(left, right, column="ids").names) == 3
    assert sthist.pp.match_genes(left, right, column={"data": "ids"}).columns == {"data": "ids", "reference": "ids"}
    left.var_names.name = "symbol"
    assert sthist.pp.match_genes(left, SYMBOLS, column="symbol").columns["data"] == "var_names"
    numbers = table(SYMBOLS, entrez=[2597, 60, 4072, 916, 3856, 7431])
    assert sthist.pp.match_genes(numbers, ["60", "916"], column="entrez").index["data"].tolist() == [1, 3]
    with pytest.raises(
        KeyError, match=r"column='gene_id': 'data' has no such column in var; it has .*Did you mean 'gene_ids'"
    ):
        sthist.pp.match_genes(table(SYMBOLS, gene_ids=IDS), right, column="gene_id")
    with pytest.raises(KeyError, match="column= names 'date', but the sides are .*Did you mean 'data'"):
        sthist.pp.match_genes(left, right, column={"date": "ids"})


def test_versions_of_ensembl_do_not_count():
    """But the dot of a clone's name does, and what marks a gene of the pseudoautosomal region."""
    written = [
        "ENSG00000000001.12",
        "ENSMUSG00000000002.3",
        "FO538757.1",
        "ENSG00000000003.5_PAR_Y",
        "ENSG00000000003.5",
    ]
    match = sthist.pp.match_genes(
        table(written),
        ["ENSG00000000001.4", "ENSMUSG00000000002", "FO538757", "ENSG00000000003_PAR_Y", "ENSG00000000003"],
    )
    assert match.names.tolist() == [
        "ENSG00000000001.4",
        "ENSMUSG00000000002",
        "ENSG00000000003_PAR_Y",
        "ENSG00000000003",
    ]
    assert match.index["data"].tolist() == [0, 1, 3, 4]
    assert match.missing["data"].tolist() == ["FO538757.1"]


class TestCase:
    """Mouse symbols and human ones."""

    mouse = [name.capitalize() for name in SYMBOLS]

    def test_ignored_where_it_is_what_separates_them(self, caplog):
        """And said."""
        with caplog.at_level(logging.WARNING, "sthist"):
            match = sthist.pp.match_genes(table([*self.mouse, "Xist"]), SYMBOLS)
        assert (
            "only where case is ignored ('Actb' in 'data', 'ACTB' in 'reference'): these look like two" in caplog.text
        )
        assert match.ignored_case
        assert match.names.tolist() == SYMBOLS
        assert match.missing["data"].tolist() == ["Xist"]
        assert repr(match).endswith(", case ignored")

    def test_not_ignored_where_names_match_as_they_are(self, caplog):
        """``C1orf112`` is not ``C1ORF112`` among names that match."""
        with caplog.at_level(logging.WARNING, "sthist"):
            match = sthist.pp.match_genes(table([*SYMBOLS, "C1orf112"]), [*SYMBOLS, "C1ORF112"])
            few = sthist.pp.match_genes(table([*SYMBOLS[:2], "a", "b", "c", "d"]), SYMBOLS)
        assert not match.ignored_case
        assert not few.ignored_case
        assert not caplog.text
        assert len(match.names) == 6

    def test_as_the_user_says(self):
        """Never, or always."""
        with pytest.raises(ValueError, match="0 genes match"):
            sthist.pp.match_genes(table(self.mouse), SYMBOLS, ignore_case=False)
        match = sthist.pp.match_genes(table([*SYMBOLS, "C1orf112"]), [*SYMBOLS, "C1ORF112"], ignore_case=True)
        assert len(match.names) == 7
        assert match.ignored_case


def test_copies_and_names_that_are_none(caplog):
    """The first copy is in the index, all have a position; controls and empty names match nothing."""
    data = table(["p0", "p1", "p2", "p3", "p4"], symbol=["B", "A", "B", "", None])
    with caplog.at_level(logging.INFO, "sthist"):
        match = sthist.pp.match_genes(data, ["A", "B", "", "nan"])
    assert match.names.tolist() == ["A", "B"]
    assert match.index["data"].tolist() == [1, 0]
    assert match.positions["data"].tolist() == [1, 0, 1, -1, -1]
    assert len(match.missing["data"]) == len(match.missing["reference"]) == 0
    assert "'data' has 1 further columns of genes that it has already" in caplog.text
    controls = ["NegControlProbe_00001", "BLANK_0001"]
    match = sthist.pp.match_genes(table([*SYMBOLS, *controls]), table([*controls, *SYMBOLS]))
    assert match.names.tolist() == SYMBOLS
    assert match.overlap == {"data": 1.0, "reference": 1.0}


def test_common_genes_of_samples(toy):
    """In the order of the first, or of the reference; SpatialData and AnnData, each by its own column."""
    panel = toy["table"].var_names.to_numpy()
    ids = np.array([f"ENSG{i:011d}" for i in range(60)])
    toy["table"].var["ensembl"] = ids
    second = table(panel[10:50][::-1])
    third = table(ids[:30])
    third.var["symbol"] = panel[:30]
    match = sthist.pp.match_genes({"one": toy, "two": second, "three": third})
    assert match.names.tolist() == panel[10:30].tolist()
    assert match.columns == {"one": "var_names", "two": "var_names", "three": "symbol"}
    assert match.overlap == {"one": pytest.approx(1 / 3), "two": 0.5, "three": pytest.approx(2 / 3)}
    for name, adata in (("one", toy["table"]), ("two", second)):
        assert adata.var_names[match.index[name]].tolist() == match.names.tolist()
    assert third.var["symbol"].iloc[match.index["three"]].tolist() == match.names.tolist()
    wanted = [panel[25], panel[12], "NOT1"]
    match = sthist.pp.match_genes({"one": toy, "two": second}, wanted)
    assert match.names.tolist() == wanted[:2]
    assert match.missing["reference"].tolist() == ["NOT1"]


def test_too_few():
    """Both sides are shown, and of several samples the one that does not fit."""
    message = (
        r"0 genes match, 0.0% of the smallest side; at least 10% are needed.* 'data' has 6 genes in var_names, such as "
        r"\['GAPDH', 'ACTB', 'EPCAM'\]; 'reference' has 6 genes in names, such as \['ENSG00000000000', .* Ensembl ids"
    )
    with pytest.raises(ValueError, match=message):
        sthist.pp.match_genes(table(SYMBOLS), IDS)
    many = [f"G{i}" for i in range(100)]
    with pytest.raises(ValueError, match=r"5 genes match, 5.0% of the smallest side"):
        sthist.pp.match_genes(table([*many[:95], *SYMBOLS[:5]]), [*[name + "x" for name in many[:95]], *SYMBOLS[:5]])
    samples = {"a": table(SYMBOLS), "b": table(SYMBOLS), "odd": table(IDS)}
    with pytest.raises(ValueError, match="'odd' has 6 genes in var_names, such as .*; 'a' has 6 genes"):
        sthist.pp.match_genes(samples)
    with pytest.raises(ValueError, match="'data' has 0 genes in var_names, such as"):
        sthist.pp.match_genes(table(["BLANK_1"]), SYMBOLS)


def test_wrong_arguments(toy):
    """Said before anything is matched."""
    one = table(SYMBOLS)
    with pytest.raises(ValueError, match="There is nothing to match with"):
        sthist.pp.match_genes(one)
    with pytest.raises(ValueError, match="There is nothing to match with"):
        sthist.pp.match_genes({"one": one})
    with pytest.raises(ValueError, match="A sample is called 'reference'"):
        sthist.pp.match_genes({"reference": one}, SYMBOLS)
    with pytest.raises(ValueError, match="min_overlap is 10; it is a share"):
        sthist.pp.match_genes(one, SYMBOLS, min_overlap=10)
    with pytest.raises(KeyError, match="No table 'tabel' in this object.*Did you mean 'table'"):
        sthist.pp.match_genes(toy, SYMBOLS, table="tabel")
    with pytest.raises(TypeError, match="or a mapping of name to such is needed, not list"):
        sthist.pp.match_genes(SYMBOLS, one)
    with pytest.raises(
        TypeError, match="'reference' is a int; it must be a SpatialData or an AnnData or a list of genes"
    ):
        sthist.pp.match_genes(one, 3)


class TestReindex:
    """A matrix in the order of a list."""

    @settings(deadline=None, max_examples=60)
    @given(
        places=st.lists(st.integers(-1, 4), min_size=1, max_size=8),
        dtype=st.sampled_from([np.uint8, np.int32, np.float32, np.float64, bool]),
        seed=st.integers(0, 9),
    )
    def test_columns_are_summed_where_they_belong(self, places, dtype, seed):
        """As a loop does it, without overflow, in the same dtype if the sums fit."""
        counts = np.random.default_rng(seed).integers(0, 250, (4, len(places))).astype(dtype)
        expected = np.zeros((4, 5))
        for column, place in enumerate(places):
            if place >= 0:
                expected[:, place] += counts[:, column]
        for matrix in (counts, sp.csr_matrix(counts), sp.csc_matrix(counts)):
            found = collect_columns(matrix, np.array(places), 5)
            assert sp.issparse(found)
            np.testing.assert_array_equal(found.toarray(), expected)
            if expected.max() <= 1 or (dtype is not bool and expected.max() <= 255):
                assert found.dtype == dtype

    def test_missing_genes_are_zero_and_copies_summed(self, caplog):
        counts = np.array([[1, 2, 4, 8], [0, 3, 0, 1]], np.float32)
        adata = table(["p0", "p1", "p2", "p3"], counts, symbol=["B", "A", "B", "Z"])
        with caplog.at_level(logging.WARNING, "sthist"):
            matrix, missing = reindex(adata, ["A", "C", "B"])
        np.testing.assert_array_equal(matrix.toarray(), [[2, 0, 5], [3, 0, 0]])
        assert missing.tolist() == ["C"]
        assert "1 of 3 genes are not in the table and are taken as 0, such as 'C'" in caplog.text
        adata.layers["double"] = adata.X * 2
        np.testing.assert_array_equal(reindex(adata, ["A", "C", "B"], layer="double")[0].toarray()[0], [4, 0, 10])

    def test_its_own_genes_give_the_matrix_back(self, toy):
        adata = toy["table"]
        matrix, missing = reindex(adata, list(adata.var_names))
        assert (matrix != adata.X).nnz == 0
        assert len(missing) == 0
        shuffled = adata[:, ::-1].copy()
        assert (reindex(shuffled, list(adata.var_names))[0] != adata.X).nnz == 0

    def test_sums_of_logarithms_are_said(self, caplog):
        adata = table(["p0", "p1"], symbol=["A", "A"])
        adata.uns["log1p"] = {"base": None}
        adata.layers["counts"] = adata.X
        with caplog.at_level(logging.WARNING, "sthist"):
            reindex(adata, ["A"], layer="counts", by="symbol")
            assert not caplog.text
            reindex(adata, ["A"], by="symbol")
        assert "X is a logarithm: sum counts, then log" in caplog.text

    def test_refused(self):
        adata = table(SYMBOLS)
        with pytest.raises(ValueError, match="The list has gene 'A' more than once"):
            reindex(adata, ["A", "A"])
        with pytest.raises(KeyError, match="No layer 'count'; there are"):
            reindex(adata, SYMBOLS, layer="count")
        with pytest.raises(ValueError, match="0 genes match"):
            reindex(adata, IDS)
        with pytest.raises(ValueError, match="The table has no X"):
            reindex(ad.AnnData(var=pd.DataFrame(index=SYMBOLS), obs=pd.DataFrame(index=["c"])), SYMBOLS)


class TestRealSamples:
    """Tables as people have them."""

    def test_her2st_sections(self):
        """The common genes of sections, by sets."""
        samples = {name: ad.read_h5ad(folder("her2st") / f"{name}_counts.h5ad") for name in ("B4", "C3", "C4", "C5")}
        match = sthist.pp.match_genes(samples)
        common = set.intersection(*(set(adata.var_names) for adata in samples.values()))
        assert len(common) > 14_000
        assert set(match.names) == common
        for name, adata in samples.items():
            np.testing.assert_array_equal(adata.var_names[match.index[name]], match.names)

    def test_xenium_on_visium(self):
        """The panel of one platform in another's transcriptome, of one section."""
        data = folder("xenium_breast_rep1")
        cells, spots = (ad.read_h5ad(data / f"{name}.h5ad") for name in ("cells_dapi_crop", "visium_spots"))
        match = sthist.pp.match_genes(spots, cells)
        assert match.overlap["reference"] > 0.95
        matrix, missing = reindex(spots, list(cells.var_names))
        assert matrix.shape == (709, 313)
        np.testing.assert_array_equal(
            matrix.toarray().sum(0), spots.to_df().reindex(columns=cells.var_names).fillna(0).sum()
        )
        assert set(missing) == set(cells.var_names) - set(spots.var_names)

    def test_mouse_on_human(self, caplog):
        """A mouse brain panel and a human lung panel: by name without case, and said."""
        mouse = ad.read_h5ad(folder("merscope_mouse_brain") / "cells.h5ad")
        human = ad.read_h5ad(folder("cosmx_lung12") / "fov2_cells.h5ad")
        with caplog.at_level(logging.WARNING, "sthist"):
            match = sthist.pp.match_genes(mouse, human)
        assert "these look like two species" in caplog.text
        assert {name.upper() for name in mouse.var_names[match.index["data"]]} == set(match.names)
        with pytest.raises(ValueError, match="Are both of one species"):
            sthist.pp.match_genes(mouse, human, ignore_case=False)

    def test_symbols_and_ids_of_10x(self):
        """A Xenium table has both; either is found, versions or not."""
        sdata = xenium_ileum_tiny()
        adata = sdata["table"]
        ids = [f"{name}.{number % 7 + 1}" for number, name in enumerate(adata.var["gene_ids"])]
        match = sthist.pp.match_genes(sdata, ids[::-1])
        assert match.columns["data"] == "gene_ids"
        assert match.overlap["reference"] == 1
        assert sthist.pp.match_genes(sdata, list(adata.var_names)).columns["data"] == "var_names"
        features = sc.read_10x_h5(folder("xenium_ileum_tiny") / "outs" / "cell_feature_matrix.h5", gex_only=False)
        match = sthist.pp.match_genes(features, sdata)
        assert match.overlap == {"data": 1.0, "reference": 1.0}
