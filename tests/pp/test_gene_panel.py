"""Panels and sets of genes, against loops, scanpy and their own promises."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from realdata import folder
from scipy import sparse

import sthist
from sthist import metrics

GENES = [f"GENE{number}" for number in range(80)]


def table(seed=0, genes=GENES, n=60, **kwargs):
    """Counts of genes of different means, on a lattice; genes alone from here on are of the slide."""
    rng = np.random.default_rng(seed)
    rates = rng.gamma(1.0, 4.0, len(genes)) * rng.lognormal(0, rng.uniform(0, 1.5, len(genes)), (n, len(genes)))
    x, y = np.meshgrid(np.arange(10), np.arange(n // 10 + 1))
    spatial = np.column_stack([x.ravel(), y.ravel()])[:n] * 100.0
    counts = sparse.csr_matrix(rng.poisson(rates).astype(np.float32))
    return ad.AnnData(counts, var=pd.DataFrame(index=list(genes)), obsm={"spatial": spatial}, **kwargs)


def logs(adata):
    copy = adata.copy()
    sc.pp.normalize_total(copy, target_sum=1e4)
    sc.pp.log1p(copy)
    return copy


@pytest.fixture
def samples():
    """Three slides that share 60 genes, each with 20 of its own."""
    return {f"s{i}": table(i, [*GENES[:60], *(f"OWN{i}{chr(65 + j)}" for j in range(20))]) for i in range(3)}


def test_common_genes_with_each_slide_s_variable_and_expressed_ones(samples):
    panel = sthist.pp.gene_panel(samples, n_top=15)
    expected, counted = set(GENES[:60]), {}
    for adata in samples.values():
        found = logs(adata)
        means = pd.Series(np.asarray(found.X.mean(axis=0)).ravel(), found.var_names)
        sc.pp.highly_variable_genes(found, flavor="seurat", n_top_genes=15)
        # Of genes that are alone at their mean, which scanpy gives one dispersion, those come first that stand first.
        dispersions = found.var["dispersions_norm"].sort_index().sort_values(ascending=False, kind="stable")
        chosen = set(means.nlargest(15).index), set(dispersions.index[:15])
        assert chosen[1] <= set(found.var_names[found.var["highly_variable"]])
        expected |= chosen[0] | chosen[1]
        for gene in chosen[0]:
            counted[gene] = counted.get(gene, 0) + 1
    assert panel.genes == sorted(expected)
    assert panel.var["expressed"].to_dict() == {gene: counted.get(gene, 0) for gene in panel.genes}
    assert panel.var["common"].sum() == 60
    own = [gene for gene in panel.genes if gene.startswith("OWN1")]
    assert own
    assert panel.measured.loc[["s0", "s1", "s2"], own[0]].tolist() == [False, True, False]
    assert panel.var.loc[own[0], "n_samples"] == 1
    assert panel.species == "human"
    made = samples["s0"].uns["sthist"]["gene_panel"]
    assert made["genes"] == panel.genes
    assert made["measured"] == panel.measured.loc["s0"].tolist()
    assert made["samples"] == ["s0", "s1", "s2"]
    assert list(panel) == panel.genes
    assert len(panel) == len(panel.genes)


def test_orders_of_slides_and_genes_do_not_matter(samples):
    first = sthist.pp.gene_panel(samples, n_top=10)
    rng = np.random.default_rng(0)
    mixed = {name: samples[name][:, rng.permutation(80)].copy() for name in ("s2", "s0", "s1")}
    second = sthist.pp.gene_panel(mixed, n_top=10, overwrite=True)
    assert first.genes == second.genes
    pd.testing.assert_frame_equal(first.var, second.var)
    pd.testing.assert_frame_equal(first.measured, second.measured)
    for kind in ("expressed", "variance", "hvg", "svg"):
        assert sthist.pp.gene_set(samples, kind, 8) == sthist.pp.gene_set(mixed, kind, 8)


def test_slides_that_do_not_train_have_no_part(samples):
    train = {name: samples[name].copy() for name in ("s0", "s2")}
    expected = sthist.pp.gene_panel(train, n_top=10)
    panel = sthist.pp.gene_panel(samples, samples=["s2", "s0"], n_top=10)
    assert panel.genes == expected.genes
    assert "sthist" not in samples["s1"].uns
    for kind in ("expressed", "variance", "hvg", "svg"):
        assert sthist.pp.gene_set(samples, kind, 8, samples=["s0", "s2"]) == sthist.pp.gene_set(train, kind, 8)


def test_rows_that_do_not_train_have_no_part(samples):
    rows = {"s0": np.arange(30), "s1": np.arange(60) % 2 == 0}
    parts = {"s0": samples["s0"][:30].copy(), "s1": samples["s1"][::2].copy()}
    other = {name: each.copy() for name, each in samples.items()}
    other["s0"].X = sparse.csr_matrix(np.r_[other["s0"].X[:30].toarray(), np.full((30, 80), 7.0)])  # may be anything
    chosen = sthist.pp.gene_panel(parts, n_top=10).genes
    for each in (samples, other):
        assert sthist.pp.gene_panel(each, rows=rows, n_top=10).genes == chosen
        for kind in ("expressed", "variance", "hvg", "svg"):
            assert sthist.pp.gene_set(each, kind, 8, rows=rows) == sthist.pp.gene_set(parts, kind, 8)


def test_expressed_and_variance_are_those_of_all_spots(samples):
    stacked = pd.concat([logs(each[:, GENES[:60]]).to_df() for each in samples.values()])
    assert sthist.pp.gene_set(samples, "expressed", 12) != []
    # Totals are of all genes of a slide, those that are not common among them.
    stacked = pd.concat([logs(each).to_df()[GENES[:60]] for each in samples.values()])
    assert sthist.pp.gene_set(samples, "expressed", 12) == stacked.mean().nlargest(12).index.tolist()
    top = stacked.mean().nlargest(20).index
    assert sthist.pp.gene_set(samples, "variance", 5, among=20) == stacked[top].var().nlargest(5).index.tolist()
    among = GENES[3:9]
    assert sthist.pp.gene_set(samples, "expressed", 3, genes=among) == stacked[among].mean().nlargest(3).index.tolist()


def test_variable_genes_of_one_slide_are_scanpy_s(samples):
    found = logs(samples["s1"])
    sc.pp.highly_variable_genes(found, flavor="seurat")
    expected = found.var["dispersions_norm"].nlargest(10).index.tolist()
    assert sthist.pp.gene_set({"s1": samples["s1"]}, "hvg", 10) == expected


def test_spatial_genes_are_the_geometric_mean_over_slides(samples):
    for adata in samples.values():
        counts = adata.X.toarray()
        counts[:, 3] = 40 * (adata.obsm["spatial"][:, 0] > 400)
        adata.X = sparse.csr_matrix(counts)
    values = []
    for adata in samples.values():
        found = logs(adata)[:, GENES[:60]]
        values.append(np.maximum(metrics.morans_i(found.X, adata.obsm["spatial"]), 0.01))
    score = pd.Series(np.exp(np.log(values).mean(axis=0)), GENES[:60]).sort_index()
    assert sthist.pp.gene_set(samples, "svg", 6) == score.sort_values(ascending=False, kind="stable").index[:6].tolist()
    assert sthist.pp.gene_set(samples, "svg", 1) == ["GENE3"]
    del samples["s1"].obsm["spatial"]
    with pytest.raises(KeyError, match=r"sample 's1' has no obsm\['spatial'\]"):
        sthist.pp.gene_set(samples, "svg", 6)


def test_species_are_not_mixed(samples):
    samples["m"] = table(5, [name.capitalize() for name in samples["s0"].var_names])
    with pytest.raises(ValueError, match=r"several species \(human: 's0', 's1', 's2'; mouse: 'm'\)"):
        sthist.pp.gene_panel(samples)
    human = sthist.pp.gene_panel(samples, species="human", n_top=5)
    assert (human.species, list(human.measured.index)) == ("human", ["s0", "s1", "s2"])
    assert sthist.pp.gene_panel(samples, species="mouse", n_top=5).genes[0].startswith("Gene")
    every = sthist.pp.gene_panel(samples, species="any", n_top=5, overwrite=True)
    assert (every.species, len(every.measured), every.var["common"].sum()) == ("any", 4, 60)
    with pytest.raises(ValueError, match="No sample is of species 'rat'"):
        sthist.pp.gene_panel(samples, species="rat")


@pytest.mark.parametrize(
    ("names", "species"),
    [
        (["GAPDH", "C1orf43", "HLA-A", "MT-CO1", "ERBB2"], "human"),
        (["Gapdh", "Actb", "mt-Co1", "H2-K1", "A"], "mouse"),
        ([f"ENSG{i:011d}.3" for i in range(5)], "human"),
        ([f"ENSMUSG{i:011d}" for i in range(5)], "mouse"),
        ([f"ENSDARG{i:011d}" for i in range(5)], "ENSDAR"),
        (["1", "2"], None),
    ],
)
def test_species_by_name(names, species):
    from sthist._tables.genes import species_of

    assert species_of(names) == species


def test_ids_and_their_versions_are_one_gene():
    ids = [f"ENSG{i:011d}" for i in range(80)]
    first, second = table(0, [f"{each}.1" for each in ids]), table(1, GENES)
    second.var["gene_ids"] = [f"{each}.2" for each in ids]
    panel = sthist.pp.gene_panel({"a": first, "b": second}, n_top=3)
    assert panel.genes == ids


def test_of_one_sample_of_logs_and_of_what_pp_genes_made(samples):
    counts, ready, plain = samples["s0"].copy(), samples["s0"].copy(), logs(samples["s0"])
    del plain.uns["log1p"]
    sthist.pp.genes(ready)
    expected = sthist.pp.gene_set(counts, "hvg", 20)
    assert sthist.pp.gene_set(ready, "hvg", 20) == expected
    assert sthist.pp.gene_set(plain, "hvg", 20) == expected
    assert sthist.pp.gene_panel(counts, n_top=0).genes == sorted(counts.var_names)
    plain.X[0, 0] = -1
    with pytest.raises(ValueError, match="neither raw counts nor logarithms .* negative"):
        sthist.pp.gene_panel(plain)


def test_in_a_store_the_record_is_kept(tmp_path):
    import spatialdata as sd

    sd.SpatialData(tables={"table": table()}).write(tmp_path / "toy.zarr")
    panel = sthist.pp.gene_panel({"toy": sd.read_zarr(tmp_path / "toy.zarr")}, n_top=5)
    kept = sd.read_zarr(tmp_path / "toy.zarr").tables["table"].uns["sthist"]["gene_panel"]
    assert list(kept["genes"]) == panel.genes
    assert kept["call"] == "pp.gene_panel"


def test_bad_input_is_said(samples, caplog):
    with pytest.raises(KeyError, match="no sample 's9'; there are 's0', 's1', 's2'"):
        sthist.pp.gene_panel(samples, samples=["s9"])
    with pytest.raises(ValueError, match="match"):
        sthist.pp.gene_panel(samples | {"x": table(4, [f"OTHER{i}" for i in range(80)])})
    sthist.pp.gene_panel(samples, n_top=2)
    with pytest.raises(ValueError, match="Pass overwrite=True"):
        sthist.pp.gene_panel(samples, n_top=2)
    with pytest.raises(ValueError, match="kind is 'hgv'"):
        sthist.pp.gene_set(samples, "hgv")
    with pytest.raises(KeyError, match="1 of 2 genes are not in all samples, such as 'OWN1A'"):
        sthist.pp.gene_set(samples, genes=["GENE1", "OWN1A"])
    with pytest.raises(ValueError, match="leaves no row of sample 's1'"):
        sthist.pp.gene_set(samples, rows={"s1": []})
    with pytest.raises(ValueError, match="go up to 60; the table has 60 rows"):
        sthist.pp.gene_set(samples, rows={"s1": [60]})
    with pytest.raises(ValueError, match="n_top is 1.5"):
        sthist.pp.gene_panel(samples, n_top=1.5)
    one = samples | {"s1": samples["s1"][:1].copy()}
    panel = sthist.pp.gene_panel(one, n_top=3, overwrite=True)
    assert panel.var["expressed"].sum() == 9
    assert "Sample 's1' has one spot" in caplog.text


def test_genes_that_are_there_twice_count_once(samples, caplog):
    adata = samples["s0"]
    adata.var_names = [*adata.var_names[:-1], adata.var_names[0]]
    panel = sthist.pp.gene_panel({"s0": adata}, n_top=3)
    assert len(panel) == 79
    assert "has 1 genes more than once, such as 'GENE0'" in caplog.text


def test_constant_genes_are_neither_variable_nor_spatial(samples):
    for adata in samples.values():
        counts = adata.X.toarray()
        counts[:, 5] = 0
        adata.X = sparse.csr_matrix(counts)
    assert "GENE5" not in sthist.pp.gene_set(samples, "hvg", 60)
    assert "GENE5" not in sthist.pp.gene_set(samples, "svg", 20)


def test_of_her2st():
    sections = {name: ad.read_h5ad(folder("her2st") / f"{name}_counts.h5ad") for name in ("C3", "C4")}
    panel = sthist.pp.gene_panel(sections)
    common = set(sections["C3"].var_names) & set(sections["C4"].var_names)
    assert set(panel.genes) >= common
    assert panel.species == "human"
    assert {"ERBB2", "COL1A1"} <= set(sthist.pp.gene_set(sections, "expressed", 250))
