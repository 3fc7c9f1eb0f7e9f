"""Abundances as parts of each row."""

from __future__ import annotations

import logging

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import spatialdata as sd

import sthist


def table(values, columns=("B cells", "T_NK"), key="cell_abundance"):
    names = [f"s{i}" for i in range(len(values))]
    adata = ad.AnnData(np.ones((len(values), 1), np.float32), obs=pd.DataFrame(index=names))
    adata.obsm[key] = pd.DataFrame(values, index=names, columns=list(columns))
    return adata


def test_rows_sum_to_1():
    adata = table(np.random.default_rng(0).gamma(1, 3, (20, 2)))
    adata.uns["sthist"] = {"cell_abundance": {"classes": {"B cells": "B cells", "T_NK": "T/NK"}}}
    sthist.pp.proportions(adata)
    found, given = adata.obsm["cell_proportions"], adata.obsm["cell_abundance"]
    np.testing.assert_allclose(found.sum(axis=1), 1)
    np.testing.assert_allclose(found["T_NK"], given["T_NK"] / (given["B cells"] + given["T_NK"]))
    made = adata.uns["sthist"]["cell_proportions"]
    assert made["classes"] == {"B cells": "B cells", "T_NK": "T/NK"}
    assert (made["quantity"], made["key"], made["empty"]) == ("proportions", "cell_abundance", 0)
    sthist.pp.proportions(adata, "cell_proportions", key_added="again")
    np.testing.assert_allclose(adata.obsm["again"], found)


def test_rows_of_zeros_are_said(caplog):
    adata = table([[1, 3], [0, 0], [2, 2]])
    with caplog.at_level(logging.WARNING, logger="sthist"):
        sthist.pp.proportions(adata)
    assert "1 of 3 rows" in caplog.text
    assert "'s1'" in caplog.text
    assert adata.obsm["cell_proportions"].to_numpy().tolist() == [[0.25, 0.75], [0, 0], [0.5, 0.5]]
    assert adata.uns["sthist"]["cell_proportions"]["empty"] == 1


def test_columns_of_cell2location():
    adata = table([[1, 3]], [f"q05cell_abundance_w_sf_{name}" for name in ("B", "T/NK")], "q05_cell_abundance_w_sf")
    sthist.pp.proportions(adata, "q05_cell_abundance_w_sf")
    assert list(adata.obsm["cell_proportions"]) == ["B", "T_NK"]


@pytest.mark.parametrize(
    ("values", "message"), [([[1, -1]], "negative in 1 of 1 rows"), ([[1, np.nan]], "NaN or infinite")]
)
def test_what_is_no_amount(values, message):
    with pytest.raises(ValueError, match=message):
        sthist.pp.proportions(table(values))


def test_names():
    adata = table([[1, 3]])
    with pytest.raises(KeyError, match="has no obsm"):
        sthist.pp.proportions(adata, "abundance")
    sthist.pp.proportions(adata)
    with pytest.raises(ValueError, match="already"):
        sthist.pp.proportions(adata)


def test_in_a_store_and_of_several_samples(tmp_path):
    sdata = sthist.datasets.toy("visium", size_um=900)
    spots = sdata["table"]
    values = np.random.default_rng(0).gamma(1, 3, (spots.n_obs, 2))
    spots.obsm["cell_abundance"] = pd.DataFrame(values, index=spots.obs_names, columns=["B", "T"])
    sdata.write(tmp_path / "s.zarr")
    other = table([[1, 3]])
    sthist.pp.proportions({"one": tmp_path / "s.zarr", "two": other})
    read = sd.read_zarr(tmp_path / "s.zarr")["table"].obsm["cell_proportions"]
    np.testing.assert_allclose(read, values / values.sum(axis=1, keepdims=True))
    assert other.obsm["cell_proportions"].to_numpy().tolist() == [[0.25, 0.75]]
