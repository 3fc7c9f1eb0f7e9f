"""Figures of predicted expression: what is drawn, of which numbers."""

from __future__ import annotations

import anndata as ad
import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import sthist

mpl.use("Agg")

GENES = ["A", "B", "C", "D"]


@pytest.fixture(autouse=True)
def _close():
    import matplotlib.pyplot as plt

    yield
    plt.close("all")


def measured(n=100):
    """Counts on a lattice, of which the first gene lies to the left."""
    rng = np.random.default_rng(0)
    x, y = np.meshgrid(np.arange(10), np.arange(n // 10))
    spatial = np.column_stack([x.ravel(), y.ravel()]) * 100.0
    rates = np.column_stack([40.0 - 4 * x.ravel(), *(np.full(n, 10.0),) * 3])
    counts = sparse.csr_matrix(rng.poisson(rates).astype(np.float32))
    return ad.AnnData(counts, var=pd.DataFrame(index=GENES), obsm={"spatial": spatial})


def logs(adata):
    counts = adata.X.toarray()
    return np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True))


@pytest.fixture
def predicted():
    """A table with predictions beside what was measured; one gene is not predicted."""
    adata = measured()
    layer = 0.5 * logs(adata) + 1
    layer[:, 3] = np.nan
    adata.layers["ridge"] = layer.astype(np.float32)
    adata.var["ridge_pearson"] = [0.8, 0.1, np.nan, np.nan]
    adata.var["ridge_pearson_null"] = [0.2, 0.2, np.nan, np.nan]
    adata.var["ridge_trusted"] = [True, False, False, False]
    adata.uns["sthist"] = {"ridge": {"call": "tl.expression", "model": "ridge"}}
    return adata


def dots(ax):
    return ax.collections[0]


def test_genes_have_one_scale_in_all_panels(predicted):
    axes = sthist.pl.gene_maps(predicted, ["A", "B"])
    assert [ax.get_title().split(",")[0] for ax in axes[:3]] == ["measured", "ridge", "ridge"]
    for row, gene in enumerate(("A", "B")):
        own = [dots(ax) for ax in axes[3 * row : 3 * row + 3]]
        truth, value = logs(predicted)[:, row], predicted.layers["ridge"][:, row]
        np.testing.assert_allclose(own[0].get_array(), truth, rtol=1e-5)
        np.testing.assert_allclose(own[1].get_array(), value)
        np.testing.assert_allclose(np.sort(own[2].get_array()), np.sort(value))
        both = np.concatenate([truth, value])
        for each in own:
            np.testing.assert_allclose(each.get_clim(), np.percentile(both, [1, 99]), rtol=1e-5)
        assert axes[3 * row].get_ylabel().startswith(gene)
    assert axes[1].get_title() == "ridge, r = 1.00"
    assert abs(float(axes[2].get_title().split("= ")[1])) < 0.4
    assert axes[0].get_ylabel() == "A\nheld out r = 0.80"
    assert axes[3].get_ylabel() == "B\nheld out r = 0.10\nnot trusted"
    np.testing.assert_allclose(dots(axes[0]).get_offsets(), predicted.obsm["spatial"])
    assert axes[0].yaxis_inverted()


def test_without_a_null_with_limits_and_on_given_axes(predicted, tmp_path):
    import matplotlib.pyplot as plt

    _, own = plt.subplots(1, 2)
    axes = sthist.pl.gene_maps(
        predicted, "C", "ridge", nulls=False, vmin=0, vmax=5, axes=own, save=tmp_path / "maps.png"
    )
    assert axes == list(own)
    assert dots(axes[1]).get_clim() == (0, 5)
    assert axes[0].get_ylabel() == "C\nnot scored"
    assert (tmp_path / "maps.png").stat().st_size > 1000


def linked(n=100):
    """A sample with measured spots, and predictions of some of them, and of other regions, in tables of their own."""
    import spatialdata as sd

    adata = measured(n)
    adata.obs["region"] = pd.Categorical(["spots"] * n)
    adata.obs["number"] = np.arange(n)
    link = {"region": "spots", "region_key": "region", "instance_key": "number"}
    adata.uns["spatialdata_attrs"] = link
    rows = np.arange(n)[::-1][:60]
    table = ad.AnnData(
        (logs(adata)[rows][:, [1, 0]] + 1).astype(np.float32),
        obs=adata.obs.iloc[rows].copy(),
        var=pd.DataFrame({"pearson": [0.3, 0.9], "pearson_null": [0.2, 0.2], "trusted": [True, True]}, ["B", "A"]),
        obsm={"spatial": adata.obsm["spatial"][rows]},
        uns={"spatialdata_attrs": link, "sthist": {"table_mlp": {"call": "tl.expression", "model": "mlp"}}},
    )
    return sd.SpatialData(tables={"table": adata, "table_mlp": table}), rows


@pytest.mark.filterwarnings("ignore:The table is annotating")
def test_predictions_of_a_table_of_their_own_find_what_was_measured():
    sdata, rows = linked()
    axes = sthist.pl.gene_maps(sdata, ["A"])
    np.testing.assert_allclose(dots(axes[0]).get_array(), logs(sdata["table"])[rows, 0], rtol=1e-5)
    np.testing.assert_allclose(dots(axes[1]).get_array(), logs(sdata["table"])[rows, 0] + 1, rtol=1e-5)
    assert axes[1].get_title() == "mlp, r = 1.00"
    assert sthist.pl.gene_ranking(sdata).get_title() == "2 of 2 genes trusted"


@pytest.mark.filterwarnings("ignore:The table is annotating")
def test_where_nothing_was_measured_there_is_no_such_panel():
    sdata, _ = linked()
    sdata["table_mlp"].obs["number"] += 1000
    axes = sthist.pl.gene_maps(sdata, ["A"])
    assert [ax.get_title() for ax in axes] == ["mlp", "mlp, shuffled"]
    with pytest.raises(ValueError, match="that is so in 0 of 60 regions of 'table_mlp'"):
        sthist.pl.clusters(sdata)


def test_a_sparse_layer_of_other_tools_is_drawn_by_its_name():
    adata = measured()
    adata.layers["other"] = sparse.csr_matrix(np.maximum(logs(adata) - 7, 0))
    axes = sthist.pl.gene_maps(adata, ["A"], "other", nulls=False)
    np.testing.assert_allclose(dots(axes[1]).get_array(), adata.layers["other"][:, 0].toarray().ravel())
    assert axes[0].get_ylabel() == "A"


def test_what_is_not_there_is_said(predicted):
    with pytest.raises(KeyError, match="tl.expression writes them"):
        sthist.pl.gene_maps(measured(), ["A"])
    with pytest.raises(KeyError, match="no prediction 'genst'"):
        sthist.pl.gene_maps(predicted, ["A"], "genst")
    with pytest.raises(KeyError, match="'ridge' has no gene 'D'; it has 3 genes"):
        sthist.pl.gene_maps(predicted, ["D"])
    with pytest.raises(KeyError, match="Did you mean 'A'"):
        sthist.pl.gene_maps(predicted, ["a"])
    predicted.layers["mlp"] = predicted.layers["ridge"]
    predicted.uns["sthist"]["mlp"] = {"call": "tl.expression", "model": "mlp"}
    with pytest.raises(ValueError, match="several predictions: 'ridge', 'mlp'"):
        sthist.pl.gene_maps(predicted, ["A"])
    del predicted.obsm["spatial"]
    with pytest.raises(KeyError, match=r"no obsm\['spatial'\]"):
        sthist.pl.gene_maps(predicted, ["A"], "mlp")
    with pytest.raises(KeyError, match="have no scores"):
        sthist.pl.gene_ranking(predicted, "mlp")


def test_ranking_shows_scores_in_order_and_names_the_ends():
    values = np.linspace(0.9, -0.1, 50)
    order = np.random.default_rng(0).permutation(50)
    scores = pd.DataFrame(
        {"pearson": values, "pearson_null": 0.2, "trusted": values > 0.2}, [f"g{i}" for i in range(50)]
    )
    scores.loc["none"] = [np.nan, np.nan, False]
    ax = sthist.pl.gene_ranking(scores.iloc[np.r_[order, 50]], n=3)
    assert ax.get_title() == "35 of 51 genes trusted, 1 without score"
    drawn = np.concatenate([each.get_offsets() for each in ax.collections])
    np.testing.assert_allclose(drawn, np.column_stack([np.arange(1, 51), values]))
    named = [[line.split()[0] for line in text.get_text().splitlines()] for text in ax.texts]
    assert named == [["g0", "g1", "g2"], ["g47", "g48", "g49"]]
    assert ax.texts[0].get_text().splitlines()[0] == "g0  0.90"
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["trusted", "not trusted", "97.5 % of shuffled"]
    plain = sthist.pl.gene_ranking(scores[["pearson"]].assign(ceiling=0.9), n=1)
    assert plain.get_title() == "51 genes, 1 without score"
    with pytest.raises(ValueError, match="None of the 1 genes has a score"):
        sthist.pl.gene_ranking(scores.tail(1))
    with pytest.raises(TypeError, match="not int"):
        sthist.pl.gene_ranking(3)


def test_clusters_have_the_colours_of_those_they_correspond_to():
    rng = np.random.default_rng(0)
    adata = measured()
    kind = (adata.obsm["spatial"][:, 0] > 450).astype(int)
    centres = rng.uniform(0, 9, (2, 30))
    both = [centres[kind] + 0.1 * rng.normal(size=(100, 30)) for _ in range(2)]
    wide = ad.AnnData(np.abs(both[0]), var=pd.DataFrame(index=[f"g{i}" for i in range(30)]), obsm=dict(adata.obsm))
    wide.layers["ridge"] = both[1]
    wide.uns["sthist"] = {"ridge": {"call": "tl.expression", "model": "ridge"}}
    axes = sthist.pl.clusters(wide, resolution=0.1)
    first, second = (dots(ax).get_facecolors() for ax in axes)
    np.testing.assert_array_equal(first, second)
    assert len(np.unique(first, axis=0)) == 2
    assert axes[1].get_title() == "ridge\nARI 1.00, NMI 1.00, accuracy 1.00"


class Halved:
    """A model whose image branch gives back half of the brightness."""

    def __init__(self, spec):
        self.spec = spec

    def reconstruct(self, tiles):
        return tiles // 2


class TestReconstructions:
    def test_tiles_stand_over_what_is_made_of_them(self):
        from expressing import SPEC, planted_slide

        slide = planted_slide(0, side=4)
        axes = sthist.pl.reconstructions(slide, Halved(SPEC), n=5, seed=1)
        pixels = np.asarray(slide["he"]).transpose(1, 2, 0)
        known = {pixels[y : y + 32, x : x + 32].tobytes() for y in range(0, 128, 32) for x in range(0, 128, 32)}
        shown = [np.asarray(ax.images[0].get_array()) for ax in axes]
        assert {tile.tobytes() for tile in shown[:5]} <= known
        assert len({tile.tobytes() for tile in shown[:5]}) == 5
        for tile, made, ax in zip(shown[:5], shown[5:], axes, strict=False):
            np.testing.assert_array_equal(made, tile // 2)
            error = np.sqrt(((tile.astype(float) - made) ** 2).mean())
            assert ax.get_title() == f"RMSE {error:.0f}"

    def test_what_cannot_be_drawn(self):
        from expressing import SPEC, planted_slide

        slide = planted_slide(0, side=4)
        with pytest.raises(TypeError, match="no image branch"):
            sthist.pl.reconstructions(slide, sthist.models.Ridge())
        with pytest.raises(ValueError, match="from 1 on"):
            sthist.pl.reconstructions(slide, Halved(SPEC), n=0)
        with pytest.raises(ValueError, match="is not known"):
            sthist.pl.reconstructions(slide, Halved(None))
