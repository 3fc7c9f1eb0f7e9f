"""Annotation from prompts."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import spatialdata as sd
from annotating import Planted, embedded

import sthist

PROMPTS = {"fat": ["fat cells"], "tumour": ["tumour", "invasive tumour"], "loose/stroma": ["stroma"]}


class TestZeroShot:
    def test_planted_classes_are_found(self):
        adata, encoder = embedded(dim=4, strength=20), Planted()
        sthist.tl.annotate(adata, PROMPTS, encoder=encoder)
        called = adata.obs["annotation"].astype(str).replace("loose/stroma", "stroma")
        assert (called == adata.obs["label"]).all()
        assert adata.obs["annotation"].cat.categories.tolist() == list(PROMPTS)

    def test_scores_are_the_softmax_of_similarities(self):
        adata, encoder = embedded(dim=4), Planted()
        sthist.tl.annotate(adata, PROMPTS, encoder=encoder, templates=["{}"])
        texts = np.array([[0, 0, 3, 0.2], [3, 0, 0, 0.2], [0, 3, 0, 0.2]]) / np.hypot(3, 0.2)
        rows = adata.obsm["X_planted"]
        cosine = rows @ texts.T / np.linalg.norm(rows, axis=1, keepdims=True)
        similarity, score = (adata.obsm[f"annotation_{name}"] for name in ("similarity", "score"))
        np.testing.assert_allclose(similarity, cosine, atol=1e-5)
        expected = np.exp(20 * cosine) / np.exp(20 * cosine).sum(1, keepdims=True)
        np.testing.assert_allclose(score, expected, atol=1e-5)
        assert score.columns.tolist() == ["fat", "tumour", "loose_stroma"]
        made = adata.uns["sthist"]["annotation"]
        assert made["prompts"]["loose_stroma"] == ["stroma"]
        assert made["classes"]["loose_stroma"] == "loose/stroma"
        assert (made["encoder"], made["temperature"], made["prompts"]["fat"]) == ("planted", 0.05, ["fat cells"])

    def test_temperature_and_order(self):
        adata = embedded(dim=4)
        sthist.tl.annotate(
            adata, PROMPTS, encoder=Planted(), temperature=1e3, classes=["tumour", "fat", "loose/stroma"]
        )
        assert adata.obs["annotation"].cat.categories.tolist() == ["tumour", "fat", "loose/stroma"]
        np.testing.assert_allclose(adata.obsm["annotation_score"], 1 / 3, atol=1e-3)

    def test_texts_are_embedded_once_for_all_samples(self):
        samples, encoder = {name: embedded(seed=i, dim=4) for i, name in enumerate("abc")}, Planted()
        sthist.tl.annotate(samples, PROMPTS, encoder=encoder)
        assert encoder.n_calls == 1
        assert all("annotation" in each.obs for each in samples.values())

    def test_one_class_has_a_similarity(self, caplog):
        adata = embedded(dim=4)
        sthist.tl.annotate(adata, {"tumour": "tumour"}, encoder=Planted())
        assert (adata.obsm["annotation_score"] == 1).all(axis=None)
        assert adata.obsm["annotation_similarity"].std().item() > 0.1
        assert "There is one class" in caplog.text

    def test_backed_spatialdata(self, backed):
        """The table in the store has the columns, and nothing else of it has changed."""
        sthist.pp.tissue(backed)
        sthist.pp.tiles(backed, size_um=64, px=32)
        rows = np.random.default_rng(0).normal(size=(backed["tiles_table"].n_obs, 4)).astype(np.float32)
        backed["tiles_table"].obsm["X_planted"] = rows
        sthist.tl.annotate(backed, PROMPTS, encoder=Planted(), key_added="kind")
        again = sd.read_zarr(backed.path)["tiles_table"]
        pd.testing.assert_series_equal(again.obs["kind"], backed["tiles_table"].obs["kind"])
        assert again.obsm["kind_score"].columns.tolist() == ["fat", "tumour", "loose_stroma"]
        np.testing.assert_array_equal(again.obsm["X_planted"], rows)
        assert again.uns["sthist"]["kind"]["call"] == "tl.annotate"

    @pytest.mark.parametrize(
        ("change", "kwargs", "error", "message"),
        [
            ({"encoder": "uni"}, {}, ValueError, "was made by 'uni'; the texts would be embedded by 'planted'"),
            ({"sha": "zz"}, {}, ValueError, "other weights of 'planted'"),
            ({"dim": 5}, {}, ValueError, "has 5 dimensions, texts of 'planted' have 4"),
            ({}, {"embedding": "X_plantd"}, KeyError, "Did you mean 'X_planted'"),
            ({}, {"temperature": 0}, ValueError, "temperature is 0"),
            ({}, {"key_added": "a b"}, ValueError, "letters, digits"),
            ({}, {"key_added": "Label"}, ValueError, "has obs"),
            ({}, {"classes": ["fat", "bone"]}, ValueError, "no prompts for the classes"),
            ({}, {"table": "t"}, ValueError, "an AnnData is given"),
        ],
    )
    def test_refused(self, change, kwargs, error, message):
        adata = embedded(**({"dim": 4} | change))
        before = list(adata.obs.columns)
        with pytest.raises(error, match=message):
            sthist.tl.annotate(adata, PROMPTS, **({"encoder": Planted()} | kwargs))
        assert list(adata.obs.columns) == before

    def test_which_embedding(self):
        adata = embedded(dim=4)
        adata.obsm["X_other"] = adata.obsm["X_planted"]
        del adata.uns["sthist"]
        with pytest.raises(ValueError, match="several embeddings: 'X_planted', 'X_other'"):
            sthist.tl.annotate(adata, PROMPTS)
        del adata.obsm["X_other"]
        with pytest.raises(ValueError, match="Nothing says which encoder"):
            sthist.tl.annotate(adata, PROMPTS)
        adata.obsm["X_pca"] = adata.obsm["X_planted"]
        sthist.tl.annotate(adata, PROMPTS, encoder=Planted())
        with pytest.raises(ValueError, match="already. Pass overwrite=True"):
            sthist.tl.annotate(adata, PROMPTS, encoder=Planted())
        sthist.tl.annotate(adata, {"x": "tumour", "y": "fat"}, encoder=Planted(), overwrite=True)
        assert adata.obsm["annotation_score"].shape[1] == 2

    def test_nan(self):
        adata = embedded(dim=4)
        adata.obsm["X_planted"][7, 1] = np.nan
        with pytest.raises(ValueError, match=r"NaN or infinite in 1 of 120 rows, first row 7 \('t7'\)"):
            sthist.tl.annotate(adata, PROMPTS, encoder=Planted())

    def test_nothing_to_annotate_by(self):
        with pytest.raises(TypeError, match="not int"):
            sthist.tl.annotate(embedded(), 5)
        with pytest.raises(KeyError, match="has no embedding"):
            sthist.tl.annotate(ad.AnnData(obs={"a": ["1"]}), PROMPTS, embedding=None, encoder=None)
