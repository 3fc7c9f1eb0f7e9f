"""Least squares on signatures: exact where counts are, as scipy's on the whole problem, above what knows nothing."""

from __future__ import annotations

import logging
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.optimize
import spatialdata as sd
from mixtures import correlations, simulate
from realdata import folder
from scipy.sparse import csr_matrix

import sthist

TYPES = ["B cell", "T/NK", "tumour"]


def exact(seed=0, n=25, n_genes=40):
    """Whole profiles, whole amounts, and counts that are their products, without noise."""
    rng = np.random.default_rng(seed)
    genes = [f"G{i}" for i in range(n_genes)]
    profiles = pd.DataFrame(rng.integers(0, 9, (n_genes, len(TYPES))), index=genes, columns=TYPES)
    amounts = rng.integers(1, 6, (n, len(TYPES)))
    obs, var = pd.DataFrame(index=[f"s{i}" for i in range(n)]), pd.DataFrame(index=genes)
    spots = ad.AnnData(csr_matrix((amounts @ profiles.to_numpy().T).astype(np.float32)), obs=obs, var=var)
    spots.obsm["spatial"] = rng.uniform(0, 100, (n, 2))
    return spots, profiles, amounts


def cells_of(profiles, n=20, **obs):
    """Single cells, all those of a type alike."""
    rows = np.repeat(profiles.to_numpy().T, n, axis=0).astype(np.float32)
    frame = pd.DataFrame({"cell_type": np.repeat(list(profiles), n), **obs}, index=[f"c{i}" for i in range(len(rows))])
    return ad.AnnData(csr_matrix(rows), obs=frame, var=pd.DataFrame(index=profiles.index))


class TestAmounts:
    def test_exact_of_profiles_and_of_cells(self):
        spots, profiles, amounts = exact()
        sthist.tl.deconvolve(spots, profiles)
        np.testing.assert_allclose(spots.obsm["cell_abundance"], amounts, atol=1e-8)
        assert list(spots.obsm["cell_abundance"]) == ["B cell", "T_NK", "tumour"]
        made = spots.uns["sthist"]["cell_abundance"]
        assert made["classes"]["T_NK"] == "T/NK"
        assert (made["method"], made["quantity"], made["signatures"]) == ("nnls", "abundances", "given")
        sthist.tl.deconvolve(spots, cells_of(profiles), key_added="of_cells")
        np.testing.assert_allclose(spots.obsm["of_cells"], amounts, atol=1e-8)
        assert spots.uns["sthist"]["of_cells"]["signatures"] == "means"

    def test_as_scipy_on_the_whole_problem(self):
        spots, cells, _ = simulate("negative_binomial", side=5, n_genes=90)  # no type has more genes than count
        sthist.tl.deconvolve(spots, cells, labels="cell_type")
        signatures = cells.to_df().astype(np.float64).groupby(cells.obs["cell_type"], observed=True).mean().to_numpy()
        scale = np.sqrt(signatures.mean(axis=0))
        expected = [scipy.optimize.nnls((signatures / scale).T, row / scale)[0] for row in spots.X.toarray()]
        np.testing.assert_allclose(spots.obsm["cell_abundance"], expected, atol=1e-8)

    @pytest.mark.parametrize("kind", ["negative_binomial", "poisson"])
    def test_known_composition_and_nulls(self, kind):
        spots, cells, truth = simulate(kind, seed=1)
        sthist.tl.deconvolve(spots, cells)
        found = correlations(spots.obsm["cell_abundance"], truth)
        assert found.mean() > 0.8
        assert found.min() > 0.7
        shuffled = cells.obs.sample(frac=1, random_state=0)["cell_type"].to_numpy()
        cells.obs["cell_type"] = pd.Categorical(shuffled)
        sthist.tl.deconvolve(spots, cells, key_added="null")
        assert correlations(spots.obsm["null"], truth).mean() < 0.4

    def test_spots_of_the_toy_by_cells_of_the_toy(self):
        """Cells of another section, whose column of types is found, against the true numbers of cells."""
        spots = sthist.datasets.toy("visium", size_um=900)["table"]
        truth = spots.obsm["cell_abundance"]
        sthist.tl.deconvolve(spots, sthist.datasets.toy(size_um=400, seed=5)["table"], key_added="estimate")
        common = [name for name in truth if name in spots.obsm["estimate"]]
        assert len(common) > 3
        assert correlations(spots.obsm["estimate"][common], truth[common]).mean() > 0.7

    def test_more_counts_are_more_cells(self):
        """Scaling all counts of a spot scales what it holds."""
        spots, profiles, _ = exact()
        tripled = spots.copy()
        tripled.X = tripled.X * 3
        for each in (spots, tripled):
            sthist.tl.deconvolve(each, profiles)
        np.testing.assert_allclose(tripled.obsm["cell_abundance"], 3 * spots.obsm["cell_abundance"], atol=1e-8)

    def test_real_sections_agree_with_what_stereoscope_found(self):
        """Profiles of another organ, against another method: what types of clear markers still share."""
        spots = ad.read_h5ad(folder("her2st") / "C3_counts.h5ad")
        path = folder("reference_profiles") / "stereoscope_lung_cancer_nb.parquet"
        sthist.tl.deconvolve(spots, path)
        sthist.pp.proportions(spots)
        pairs = {"Endothelial": "Endothelial cells", "Plasma Cells": "tPlasma cells", "CAFs": "Fibroblasts"}
        found, known = spots.obsm["cell_proportions"], spots.obsm["stereoscope_major"]
        assert all(np.corrcoef(found[ours], known[theirs])[0, 1] > 0.6 for theirs, ours in pairs.items())
        assert spots.uns["sthist"]["cell_abundance"]["empty"] == 1


class TestGenes:
    def test_by_ensembl_ids_copies_and_controls(self):
        spots, profiles, amounts = exact()
        ids = [f"ENSG{i:011d}" for i in range(spots.n_vars)]
        spots.var["gene_ids"] = [f"{name}.2" for name in ids]
        by_id = profiles.set_axis(ids)
        halves = pd.concat([by_id / 4, by_id.set_axis([f"{name}.1" for name in ids]) * 3 / 4])
        sthist.tl.deconvolve(spots, halves)
        np.testing.assert_allclose(spots.obsm["cell_abundance"], amounts, atol=1e-8)

    def test_those_that_are_asked_for(self):
        spots, profiles, amounts = exact()
        spots.X[:, 5] = 1000  # a gene that misleads
        sthist.tl.deconvolve(spots, profiles, genes=[f"G{i}" for i in range(40) if i != 5])
        np.testing.assert_allclose(spots.obsm["cell_abundance"], amounts, atol=1e-8)
        assert spots.uns["sthist"]["cell_abundance"]["n_genes"] == 39
        with pytest.raises(ValueError, match="names none"):
            sthist.tl.deconvolve(spots, profiles, genes=["nothing"], overwrite=True)
        with pytest.raises(ValueError, match="2 genes in common that are asked for"):
            sthist.tl.deconvolve(spots, profiles, genes=["G1", "G2"], overwrite=True)

    def test_mitochondrial_ones_do_not_count(self):
        spots, profiles, amounts = exact()
        names = ["MT-CO1", *profiles.index[1:]]
        spots.var_names, profiles.index = names, names
        spots.X[:, 0] = 1000
        sthist.tl.deconvolve(spots, profiles)
        np.testing.assert_allclose(spots.obsm["cell_abundance"], amounts, atol=1e-8)

    def test_too_few_in_common(self):
        spots, profiles, _ = exact()
        with pytest.raises(ValueError, match="0 genes match"):
            sthist.tl.deconvolve(spots, profiles.set_axis([f"X{i}" for i in range(40)]))
        with pytest.raises(ValueError, match=r"2 genes in common.*at least as many as there are cell types, 3"):
            sthist.tl.deconvolve(spots[:, :2].copy(), profiles)

    def test_profiles_the_wrong_way_round(self):
        spots, profiles, _ = exact()
        spots.var_names = profiles.index = [f"T{i}" for i in range(40)]
        with pytest.raises(ValueError, match=r"genes x types: pass its transpose, reference\.T"):
            sthist.tl.deconvolve(spots, profiles.T)


class TestReference:
    def test_the_column_of_types(self):
        spots, profiles, amounts = exact()
        cells = cells_of(profiles, name=[f"n{i}" for i in range(60)], depth=1.5)
        sthist.tl.deconvolve(spots, cells)  # names of cells are no types
        np.testing.assert_allclose(spots.obsm["cell_abundance"], amounts, atol=1e-8)
        cells.obs["donor"] = ["a", "b"] * 30
        with pytest.raises(ValueError, match=r"'cell_type', 'donor'. Say which with labels="):
            sthist.tl.deconvolve(spots, cells, overwrite=True)
        with pytest.raises(KeyError, match="Did you mean 'cell_type'"):
            sthist.tl.deconvolve(spots, cells, labels="cell_typ", overwrite=True)
        cells.obs = cells.obs[["name", "depth"]]
        with pytest.raises(ValueError, match="No column of the reference looks like"):
            sthist.tl.deconvolve(spots, cells, overwrite=True)

    def test_cells_without_a_label_empty_types_and_small_ones(self, caplog):
        spots, profiles, amounts = exact()
        cells = cells_of(profiles)
        cells.obs["cell_type"] = pd.Categorical(cells.obs["cell_type"], [*TYPES, "nobody"])
        cells.obs.loc[cells.obs_names[:5], "cell_type"] = np.nan
        with caplog.at_level(logging.WARNING, logger="sthist"):
            sthist.tl.deconvolve(spots, cells)
        assert "5 of 60 cells of the reference have no label" in caplog.text
        assert "'B cell' (15)" in caplog.text
        assert spots.obsm["cell_abundance"].shape == (25, 3)
        np.testing.assert_allclose(spots.obsm["cell_abundance"], amounts, atol=1e-8)

    def test_types_that_cannot_be_told_apart(self, caplog):
        spots, profiles, _ = exact()
        profiles["tumour 2"] = profiles["tumour"]
        with caplog.at_level(logging.WARNING, logger="sthist"):
            sthist.tl.deconvolve(spots, profiles)
        assert "'tumour' and 'tumour 2'" in caplog.text

    def test_raw_counts_on_both_sides(self):
        spots, profiles, _ = exact()
        cells = cells_of(profiles)
        cells.X = cells.X.log1p()
        with pytest.raises(ValueError, match=r"The reference has no raw counts: X has .* looks like logarithms"):
            sthist.tl.deconvolve(spots, cells)
        cells.layers["counts"] = cells.X.expm1().rint()
        sthist.tl.deconvolve(spots, cells)
        spots.X = spots.X / 7
        with pytest.raises(ValueError, match="The table has no raw counts"):
            sthist.tl.deconvolve(spots, cells, overwrite=True)

    def test_layer_of_either_side(self):
        spots, profiles, amounts = exact()
        cells = cells_of(profiles)
        spots.layers["raw"] = spots.X.copy()
        spots.X = spots.X / 7
        sthist.tl.deconvolve(spots, cells, layer="raw")
        np.testing.assert_allclose(spots.obsm["cell_abundance"], amounts, atol=1e-8)
        with pytest.raises(KeyError, match="The table has no layer 'row'.*Did you mean 'raw'"):
            sthist.tl.deconvolve(spots, cells, layer="row", overwrite=True)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda p: p.assign(tumour=-1.0), "negative in 40 of 40 rows"),
            (lambda p: p.assign(tumour=np.nan), "NaN or infinite"),
            (lambda p: p.assign(tumour="many"), "the column 'tumour' holds no numbers"),
            (lambda p: p.set_axis(["a", "b", "b"], axis=1), "cell types 'b' more than once"),
            (lambda p: p[["tumour"]], "one cell type, 'tumour'"),
            (lambda p: p.assign(tumour=0.0), "The cell types 'tumour' have no counts"),
            (lambda p: p.iloc[:0], "is empty"),
        ],
    )
    def test_profiles_that_are_none(self, change, message):
        spots, profiles, _ = exact()
        with pytest.raises(ValueError, match=message):
            sthist.tl.deconvolve(spots, change(profiles))

    def test_what_is_no_reference(self):
        spots, profiles, _ = exact()
        with pytest.raises(TypeError, match="AnnData of single cells, a DataFrame"):
            sthist.tl.deconvolve(spots, profiles.to_numpy())
        with pytest.raises(ValueError, match="names a column of single cells"):
            sthist.tl.deconvolve(spots, profiles, labels="cell_type")

    @pytest.mark.parametrize("ending", [".csv", ".tsv.gz", ".parquet"])
    def test_of_a_file(self, tmp_path, ending):
        spots, profiles, amounts = exact()
        path = tmp_path / f"profiles{ending}"
        if ending == ".parquet":
            profiles.reset_index(names="gene").to_parquet(path)
        else:
            profiles.to_csv(path, sep="\t" if "tsv" in ending else ",")
        sthist.tl.deconvolve(spots, path)
        np.testing.assert_allclose(spots.obsm["cell_abundance"], amounts, atol=1e-8)
        assert str(path) in spots.uns["sthist"]["cell_abundance"]["reference"]

    def test_files_that_are_none(self, tmp_path):
        spots, profiles, _ = exact()
        with pytest.raises(FileNotFoundError, match=r"nothing\.csv"):
            sthist.tl.deconvolve(spots, tmp_path / "nothing.csv")
        for name, message in (("cells.h5ad", "read_h5ad"), ("profiles.xlsx", "no file of profiles")):
            (tmp_path / name).write_bytes(b"x")
            with pytest.raises(ValueError, match=message):
                sthist.tl.deconvolve(spots, tmp_path / name)
        profiles.to_csv(tmp_path / "short.csv")
        (tmp_path / "short.csv").write_bytes((tmp_path / "short.csv").read_bytes()[:-4])
        with pytest.raises(ValueError, match=r"short\.csv"):
            sthist.tl.deconvolve(spots, tmp_path / "short.csv")

    def test_parameters_of_other_programs(self):
        """Rates and log-odds of stereoscope: the mean is their product; and signatures of cell2location."""
        spots, profiles, amounts = exact()
        logit = np.linspace(-1, 2, 40)
        rates = profiles.div(np.exp(logit), axis=0).assign(logit=logit)
        sthist.tl.deconvolve(spots, rates)
        np.testing.assert_allclose(spots.obsm["cell_abundance"], amounts, atol=1e-8)
        sthist.tl.deconvolve(spots, profiles.add_prefix("means_per_cluster_mu_fg_"), overwrite=True)
        assert list(spots.uns["sthist"]["cell_abundance"]["classes"].values()) == TYPES


class TestSpots:
    def test_without_counts(self, caplog):
        spots, profiles, amounts = exact()
        spots.X = csr_matrix(spots.X.toarray() * (np.arange(25) != 3)[:, None])
        with caplog.at_level(logging.WARNING, logger="sthist"):
            sthist.tl.deconvolve(spots, profiles)
        assert "1 of 25 spots have no counts" in caplog.text
        assert "'s3'" in caplog.text
        assert (spots.obsm["cell_abundance"].iloc[3] == 0).all()
        np.testing.assert_allclose(spots.obsm["cell_abundance"].iloc[4:], amounts[4:], atol=1e-8)
        assert spots.uns["sthist"]["cell_abundance"]["empty"] == 1
        spots.X = csr_matrix(spots.shape, dtype=np.float32)
        with pytest.raises(ValueError, match="has no counts of the"):
            sthist.tl.deconvolve(spots, profiles, overwrite=True)

    def test_several_samples_and_their_genes(self):
        one, profiles, amounts = exact()
        two = one[:10, ::-1].copy()
        sthist.tl.deconvolve({"one": one, "two": two}, profiles)
        np.testing.assert_allclose(one.obsm["cell_abundance"], amounts, atol=1e-8)
        np.testing.assert_allclose(two.obsm["cell_abundance"], amounts[:10], atol=1e-8)
        with pytest.raises(ValueError, match="already") as caught:
            sthist.tl.deconvolve({"one": one, "two": two}, profiles)
        assert caught.value.__notes__ == ["In sample 'one'."]

    def test_in_a_store(self, tmp_path):
        sdata = sthist.datasets.toy("visium", size_um=900)
        names = sdata["table"].var_names
        profiles = pd.DataFrame(np.random.default_rng(0).gamma(1, 1, (len(names), 3)), index=names, columns=TYPES)
        sdata.write(tmp_path / "s.zarr")
        sthist.tl.deconvolve(tmp_path / "s.zarr", profiles, key_added="estimate")
        read = sd.read_zarr(tmp_path / "s.zarr")["table"]
        sthist.tl.deconvolve(sdata, profiles, key_added="again", table="table")
        np.testing.assert_array_equal(read.obsm["estimate"], sdata["table"].obsm["again"])
        assert read.uns["sthist"]["estimate"]["classes"]["T_NK"] == "T/NK"

    def test_names_that_are_taken(self):
        spots, profiles, _ = exact()
        sthist.tl.deconvolve(spots, profiles)
        with pytest.raises(ValueError, match=r"obsm\['cell_abundance'\] already"):
            sthist.tl.deconvolve(spots, profiles)
        sthist.tl.deconvolve(spots, profiles, overwrite=True)
        with pytest.raises(ValueError, match="letters, digits"):
            sthist.tl.deconvolve(spots, profiles, key_added=str(Path("a") / "b"))
