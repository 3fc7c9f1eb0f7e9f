"""Maps and pies of cell types."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import sthist


@pytest.fixture(scope="module")
def sdata():
    made = sthist.datasets.toy("visium", size_um=900)
    table = made["table"]
    table.obsm["composition"] = table.obsm["cell_abundance"] * 0.5 + 0.1
    return made


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


def colours_of(ax):
    return np.asarray(ax.collections[0].get_array())


def test_a_type_has_one_scale_in_both_maps_and_its_correlation(sdata):
    axes = sthist.pl.composition(sdata, truth="cell_abundance", types=["T cell", "epithelial"])
    assert [ax.get_title() for ax in axes] == [
        "T cell, measured",
        "T cell, r = 1.00",
        "epithelial, measured",
        "epithelial, r = 1.00",
    ]
    for measured, predicted in zip(axes[::2], axes[1::2], strict=True):
        assert measured.collections[0].get_clim() == predicted.collections[0].get_clim()
    truth = sdata["table"].obsm["cell_abundance"]["T cell"]
    np.testing.assert_allclose(colours_of(axes[0]), truth)


def test_the_most_abundant_types_come_first(sdata):
    axes = sthist.pl.composition(sdata, "cell_abundance")
    totals = sdata["table"].obsm["cell_abundance"].sum().sort_values(ascending=False)
    assert [ax.get_title() for ax in axes] == list(totals.index)


def test_pies_show_the_share_of_each_type(sdata):
    (ax,) = sthist.pl.composition(sdata, "cell_abundance", style="pies", types=["epithelial", "T cell"])
    amounts = sdata["table"].obsm["cell_abundance"][["epithelial", "T cell"]].to_numpy()
    shares = amounts[:, 0] / np.maximum(amounts.sum(axis=1), 1)
    areas = []
    for path in ax.collections[0].get_paths():
        x, y = path.vertices[:-1].T
        areas.append(0.5 * abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))))
    whole = np.pi * (0.95 * 100 / 2) ** 2
    np.testing.assert_allclose(np.array(areas) / whole, shares[shares > 0], atol=0.01)


def test_names_are_shown_as_they_are(sdata):
    table = sdata["table"].copy()
    table.obsm["mine"] = pd.DataFrame({"B_T": 1.0}, index=table.obs_names)
    table.uns["sthist"] = {"mine": {"classes": {"B_T": "B/T cells"}}}
    assert sthist.pl.composition(table, "mine")[0].get_title() == "B/T cells"


def test_rows_that_were_not_predicted_are_left_out(sdata):
    table = sdata["table"].copy()
    table.obsm["composition"].iloc[: table.n_obs // 2] = np.nan
    (ax,) = sthist.pl.composition(table, types="T cell")
    assert len(colours_of(ax)) == table.n_obs - table.n_obs // 2


def test_what_cannot_be_drawn_is_said(sdata):
    with pytest.raises(KeyError, match="'T cells'.*'T cell'"):
        sthist.pl.composition(sdata, types=["T cells"])
    with pytest.raises(ValueError, match="'maps' or 'pies'"):
        sthist.pl.composition(sdata, style="bars")
    with pytest.raises(KeyError, match="composition_2"):
        sthist.pl.composition(sdata, "composition_2")
