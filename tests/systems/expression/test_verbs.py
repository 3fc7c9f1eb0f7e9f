"""From samples to a model, and from a model to what is written."""

from __future__ import annotations

import re
import subprocess
import sys

import anndata as ad
import numpy as np
import pytest
import spatialdata as sd
from expressing import GENES, SPEC, planted_slide

import sthist
from sthist.regression.rows import expression_rows

EMBEDDED = {"encoder": "morphology", "regions": "spots", "spec": SPEC, "progress": False}


@pytest.fixture(scope="module")
def slides():
    made = {name: planted_slide(seed, patient=name) for seed, name in enumerate(("a", "b", "c"))}
    sthist.pp.embed(made, **EMBEDDED)
    return made


@pytest.fixture(scope="module")
def ridge(slides):
    return sthist.tl.train_expression(slides)


@pytest.fixture
def new_slide():
    return planted_slide(9)


@pytest.mark.parametrize("name", ["ridge", "mlp"])
def test_what_tissue_shows_is_learned_and_noise_is_not_trusted(slides, name):
    scores = sthist.tl.train_expression(slides, name, progress=False, training={"seed": 1, "epochs": 40}).scores
    assert (scores.loc[list(GENES[:4]), "pearson"] > 0.8).all()
    assert scores.loc[list(GENES[:4]), "trusted"].all()
    assert not scores.loc["NOISE", "trusted"] or scores.loc["NOISE", "pearson"] < 0.25
    assert (scores.loc[list(GENES[:4]), "l1"] < 0.5 * scores.loc[list(GENES[:4]), "l1_of_mean"]).all()


def test_of_exchanged_tiles_nothing_is_learned(slides):
    rng = np.random.default_rng(0)
    mixed = {}
    for name, sdata in slides.items():
        mixed[name] = sdata["table"].copy()
        mixed[name].X = mixed[name].X[rng.permutation(mixed[name].n_obs)]
    scores = sthist.tl.train_expression(mixed).scores
    assert scores["pearson"].abs().mean() < 0.15


def test_patients_are_held_out(ridge):
    assert ridge.config.report["n_folds"] == 3
    assert ridge.config.report["n_tested"] == 3 * 144


class TestApplied:
    def test_beside_what_was_measured(self, ridge, new_slide):
        sthist.tl.expression(new_slide, ridge, progress=False)
        table = new_slide["table"]
        truth, predicted = table.X[:, :4], table.layers["ridge"][:, :4]
        assert (sthist.metrics.gene_pearson(truth, predicted) > 0.9).all()
        assert list(table.var["ridge_trusted"][:4]) == [True] * 4
        assert table.obs["ridge_familiarity"].median() > 0.2

    def test_a_layer_has_the_tables_order_of_genes(self, ridge, new_slide):
        turned = new_slide["table"][:, ::-1].copy()
        new_slide["table"] = turned
        sthist.tl.expression(new_slide, ridge, progress=False)
        straight = planted_slide(9)
        sthist.tl.expression(straight, ridge, progress=False)
        np.testing.assert_array_equal(new_slide["table"].layers["ridge"][:, ::-1], straight["table"].layers["ridge"])

    def test_where_nothing_was_measured(self, ridge, new_slide, tmp_path):
        new_slide.write(tmp_path / "slide.zarr")
        slide = sd.read_zarr(tmp_path / "slide.zarr")
        sthist.pp.tissue(slide)
        sthist.pp.tiles(slide, size_um=SPEC.size_um, px=SPEC.px)
        sthist.tl.expression(slide, ridge, regions="tiles", progress=False)
        table = sd.read_zarr(tmp_path / "slide.zarr")["tiles_table_ridge"]
        assert list(table.var_names) == list(GENES)
        assert {"pearson", "pearson_null", "trusted"} <= set(table.var)
        np.testing.assert_allclose(table.var["pearson"], ridge.scores["pearson"])
        np.testing.assert_array_equal(table.obsm["spatial"], slide["tiles_table"].obsm["spatial"])
        assert table.obs["familiarity"].between(0, 1).all()
        assert table.uns["sthist"]["tiles_table_ridge"]["trained"]["n_rows"] == 3 * 144

    def test_a_part_of_the_slide(self, ridge, new_slide):
        sthist.tl.expression(new_slide, ridge, within=(0, 0, 100, 100), progress=False)
        inside = (new_slide["table"].obsm["spatial"] < 100).all(axis=1)
        np.testing.assert_array_equal(np.isfinite(new_slide["table"].layers["ridge"]).all(axis=1), inside)

    def test_a_slide_unlike_any_other_is_said(self, ridge, new_slide, caplog):
        sthist.pp.embed(new_slide, **EMBEDDED)
        new_slide["table"].obsm["X_morphology"] = new_slide["table"].obsm["X_morphology"] * 5 + 50
        sthist.tl.expression(new_slide, ridge, progress=False)
        assert "144 of 144 regions are unlike anything that the model was trained on" in caplog.text
        assert (new_slide["table"].obs["ridge_familiarity"] == 0).all()

    def test_its_name_is_taken(self, ridge, new_slide):
        sthist.tl.expression(new_slide, ridge, progress=False)
        with pytest.raises(ValueError, match="overwrite=True"):
            sthist.tl.expression(new_slide, ridge, progress=False)
        sthist.tl.expression(new_slide, ridge, overwrite=True, progress=False)

    def test_tiles_at_another_scale_are_refused(self, ridge, new_slide):
        sthist.pp.embed(new_slide, "morphology", regions="spots", spec=sthist.tiles.TileSpec(64, 32), progress=False)
        with pytest.raises(ValueError, match="trained on tiles of"):
            sthist.tl.expression(new_slide, ridge)

    def test_embeddings_of_another_encoder_are_refused(self, ridge, new_slide):
        def colours(tiles):
            return tiles.mean((1, 2))

        sthist.pp.embed(new_slide, colours, regions="spots", spec=SPEC, key_added="X_morphology", progress=False)
        with pytest.raises(ValueError, match="trained on 'morphology'"):
            sthist.tl.expression(new_slide, ridge)

    def test_in_blocks_it_is_the_same(self, slides, new_slide, monkeypatch):
        model = sthist.models.Ridge(sthist.models.RidgeConfig(smooth_um=40, context_um=(50,)))
        model = sthist.tl.train_expression(slides, model, split="sample")
        sthist.tl.expression(new_slide, model, progress=False)
        monkeypatch.setattr("sthist.regression.write.BLOCK", 7 * len(GENES))
        sthist.tl.expression(new_slide, model, key_added="blocks", progress=False)
        layers = new_slide["table"].layers
        np.testing.assert_allclose(layers["blocks"], layers["ridge"], rtol=1e-5, atol=1e-5)


def test_saved_and_loaded_elsewhere(ridge, new_slide, tmp_path):
    sthist.pp.embed(new_slide, **EMBEDDED)
    rows = new_slide["table"].obsm["X_morphology"]
    ridge.save(tmp_path / "model")
    np.save(tmp_path / "rows.npy", rows)
    code = (
        f"import numpy as np, sthist; rows = np.load({str(tmp_path / 'rows.npy')!r}); "
        f"np.save({str(tmp_path / 'out.npy')!r}, sthist.models.load({str(tmp_path / 'model')!r}).predict(rows))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), ridge.predict(rows), atol=1e-6)
    assert sthist.models.load(tmp_path / "model").scores.equals(ridge.scores)


class TestTilesFinerThanTheImage:
    """The message says how to go on, and it works."""

    @staticmethod
    def refused(slide, model, *pattern):
        with pytest.raises(ValueError, match="more than 1.5 times finer") as caught:
            model.collect(expression_rows(slide, None, None))
        found = re.search(r"sthist\.tiles\.TileSpec\((\d+), (\d+)\)", str(caught.value))
        for each in pattern:
            assert each in str(caught.value)
        assert "training=" not in str(caught.value)
        return sthist.tiles.TileSpec(*map(int, found.groups()))

    @pytest.mark.parametrize("name", ["STNet", "GenST"])
    def test_of_the_config(self, name, new_slide):
        model, config = (getattr(sthist.models, each) for each in (name, f"{name}Config"))
        small = {"backbone": "test_resnet", "pretrained": False}
        spec = self.refused(
            new_slide, model(config(spec=sthist.tiles.TileSpec(32, 128), **small)), f"{name}Config(spec="
        )
        assert spec == SPEC
        assert len(model(config(spec=spec, **small)).collect(expression_rows(new_slide, None, None))) == 144

    def test_of_tiles_that_are_laid(self, new_slide):
        model = sthist.models.STNet(sthist.models.STNetConfig(backbone="test_resnet", pretrained=False))
        new_slide["table"].uns["tile_spec"] = {"size_um": 32.0, "px": 128}
        assert self.refused(new_slide, model, "Lay tiles of", "pp.tiles") == SPEC


class TestTargets:
    def test_counts_and_their_logarithms_give_the_same(self):
        rng = np.random.default_rng(0)
        counts = ad.AnnData(rng.poisson(3.0, (60, 5)).astype(np.float32))
        counts.obsm["X_mine"] = rng.normal(size=(60, 3))
        counts.obs["patient"] = np.repeat(list("abc"), 20)
        logs = counts.copy()
        sthist.pp.genes(logs)
        one, other = (sthist.tl.train_expression(each, embedding="X_mine") for each in (counts, logs))
        np.testing.assert_allclose(one.weights["weight"], other.weights["weight"], atol=1e-6)

    def test_scaled_values_are_refused(self):
        table = ad.AnnData(np.random.default_rng(0).normal(size=(20, 3)), obsm={"X_mine": np.ones((20, 2))})
        with pytest.raises(ValueError, match="neither raw counts nor logarithms"):
            sthist.tl.train_expression(table)

    def test_a_gene_that_one_slide_lacks_is_learned_from_the_others(self, slides):
        tables = {name: sdata["table"] for name, sdata in slides.items()}
        lacking = tables | {"c": tables["c"][:, 1:].copy()}
        model = sthist.tl.train_expression(lacking, genes=list(GENES), split="sample")
        two = sthist.tl.train_expression({name: tables[name] for name in "ab"}, genes=list(GENES), split="sample")
        assert model.scores.loc["HEM", "pearson"] > 0.8
        rows = tables["c"].obsm["X_morphology"]
        # Standardisation and components are of all rows, the rest of those that have measured it.
        np.testing.assert_allclose(model.predict(rows)[:, 0], two.predict(rows)[:, 0], atol=0.1)

    def test_genes_that_no_slide_has(self, slides):
        with pytest.raises(KeyError, match="'NOSUCH'"):
            sthist.tl.train_expression(slides, genes=["HEM", "NOSUCH"])

    def test_the_most_expressed(self, slides):
        model = sthist.tl.train_expression(slides, genes=2)
        means = slides["a"]["table"].X.mean(axis=0)
        assert set(model.genes) == set(np.array(GENES)[np.argsort(means)[-2:]])

    def test_no_such_model(self, slides):
        with pytest.raises(KeyError, match="Did you mean 'ridge'"):
            sthist.tl.train_expression(slides, "rigde")


class TestDepth:
    @pytest.fixture
    def counts(self):
        rng = np.random.default_rng(0)
        table = ad.AnnData(rng.poisson(rng.gamma(2.0, 20.0, (90, 6))).astype(np.float32))
        table.obsm["X_mine"] = rng.normal(size=(90, 3))
        table.obs["patient"] = np.repeat(list("abc"), 30)
        return table

    def test_of_all_counts_it_is_what_was_measured(self, counts):
        deep, plain = (sthist.tl.train_expression(counts, depth=depth) for depth in (1e6, None))
        np.testing.assert_allclose(deep.weights["weight"], plain.weights["weight"], atol=1e-5)

    def test_of_few_it_is_what_scanpy_makes_of_fewer(self, counts):
        model = sthist.tl.train_expression(counts, depth=30)
        rng = np.random.default_rng(1)
        share = 30 / np.median(counts.X.sum(axis=1))
        logs = []
        for _ in range(200):
            drawn = rng.binomial(counts.X.astype(int), share)
            logs.append(np.log1p(1e4 * drawn / np.maximum(drawn.sum(axis=1, keepdims=True), 1)))
        means = np.mean(logs, axis=(0, 1))
        np.testing.assert_allclose(model.predict(counts.obsm["X_mine"]).mean(axis=0), means, rtol=0.06)

    def test_logarithms_cannot_be_thinned(self, slides):
        with pytest.raises(ValueError, match="needs raw counts"):
            sthist.tl.train_expression(slides, depth=100)
