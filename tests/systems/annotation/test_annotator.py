"""Annotators as models: what they predict, save, load and refuse; prompts; losses."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from annotating import CLASSES, SPEC, Planted, TinyClip, embedded, folder_of_tiles
from flat import train_annotator

import sthist
from sthist.models import Annotator, AnnotatorConfig, AnnotatorReport
from sthist.systems.annotation.linear import is_constant
from sthist.systems.annotation.networks import prompt_contrastive_loss
from sthist.systems.annotation.prompts import (
    TEMPLATES,
    checked_prompts,
    checked_templates,
    class_vectors,
    sentences,
    softmax,
    text_vectors,
)
from sthist.training.batches import augmented

QUICK = {"split": "slide", "folds": 3, "n_boot": 50, "epochs": 40, "device": "cpu"}


@pytest.fixture(scope="module")
def linear():
    return train_annotator(embedded(), "label", **QUICK)


def test_linear_is_a_softmax_of_standardised_features(linear):
    rows = embedded(seed=5).obsm["X_planted"]
    standard = (rows - linear.weights["mean"]) * linear.weights["scale"]
    logits = standard @ linear.weights["weight"].T + linear.weights["bias"]
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(linear.predict(rows), expected, atol=1e-5)
    assert linear.predict(rows[:0]).shape == (0, 3)


def test_save_and_load(linear, tmp_path):
    linear.save(tmp_path / "a")
    loaded = sthist.models.load(tmp_path / "a")
    rows = embedded(seed=5).obsm["X_planted"]
    assert np.array_equal(loaded.predict(rows), linear.predict(rows))
    assert loaded.config == linear.config
    assert loaded.report == linear.report
    assert loaded.spec == SPEC
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["config.json", "model.safetensors"]
    config = json.loads((tmp_path / "a" / "config.json").read_text(), parse_constant=pytest.fail)
    assert config["system"] == "annotator"
    assert config["config"]["encoder_sha256"] == "aa"


def test_incomplete_folder(linear, tmp_path):
    linear.save(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="not saved completely"):
        Annotator.load(tmp_path)


def test_a_way_of_training_that_there_is_not(linear, tmp_path):
    """It would say later that embeddings are of no use."""
    linear.save(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    content["config"]["mode"] = ""
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"config\.json .*mode is ''; it is one of"):
        Annotator.load(tmp_path)


def test_report_round_trip():
    report = AnnotatorReport(classes=["a"], auc=[float("nan")], auc_low=[0.1], weighted_auc=0.5)
    again = AnnotatorReport.from_dict(json.loads(json.dumps(report.to_dict(), allow_nan=False)))
    assert np.isnan(again.auc[0])
    assert (again.auc_low, again.weighted_auc, again.n_folds) == ([0.1], 0.5, 0)
    assert np.isnan(again.shuffled_auc)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.zeros((2, 4)), r"are \(n, 5\); these have shape \(2, 4\)"),
        (np.array([[0.0] * 5, [0, np.nan, 0, 0, 0]]), "1 of 2 embeddings are NaN or infinite, first row 1"),
    ],
)
def test_rows_refused(linear, rows, message):
    with pytest.raises(ValueError, match=message):
        linear.predict(rows)


def test_other_encoder_refused(linear):
    other = TinyClip()
    with pytest.raises(ValueError, match="trained with the encoder 'planted'; these are embeddings of 'tiny-clip'"):
        linear.predict(np.zeros((1, 32, 32, 3), np.uint8), encoder=other)
    planted = Planted()
    planted.provenance = {"sha256": "cc"}
    with pytest.raises(ValueError, match="weights of 'planted' are not those"):
        linear.predict(np.zeros((1, 32, 32, 3), np.uint8), encoder=planted)


def test_linear_of_tiles_embeds_them():
    """With the encoder that it was trained on."""
    encoder = TinyClip()
    tiles = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    config = AnnotatorConfig(classes=("a", "b"), encoder="tiny-clip", encoder_sha256="bb", dim=16)
    weights = {"mean": np.zeros(16), "scale": np.ones(16), "weight": np.eye(2, 16), "bias": np.zeros(2)}
    annotator = Annotator(config, weights)
    expected = annotator.predict(encoder.embed(tiles))
    np.testing.assert_allclose(annotator.predict(tiles, encoder=encoder, batch_size=2), expected, atol=1e-5)


def test_finetuned_of_another_architecture(tmp_path):
    tiles = folder_of_tiles(tmp_path, 6)
    annotator = train_annotator(
        tiles,
        "label",
        method="finetune",
        encoder=TinyClip(),
        test=["P1"],
        epochs=1,
        n_boot=5,
        baseline=False,
        device="cpu",
    )
    with pytest.raises(ValueError, match="has trained its encoder"):
        annotator.predict(np.zeros((2, 16)))
    other = TinyClip()
    other.module = torch.nn.Linear(3, 3)
    with pytest.raises(ValueError, match="has another architecture"):
        annotator.predict(np.zeros((2, 32, 32, 3), np.uint8), encoder=other)


class TestPrompts:
    def test_sentences(self):
        texts, codes = sentences({"a": ["x", "y"], "b": ["z"]}, ("{}.", "see {}"))
        assert texts == ["x.", "see x", "y.", "see y", "z.", "see z"]
        assert codes.tolist() == [0, 0, 0, 0, 1, 1]

    def test_templates_differ_and_take_a_phrase(self):
        assert len({template.format("x") for template in TEMPLATES}) == len(TEMPLATES) >= 10

    def test_class_vectors_are_means_of_directions(self):
        vectors = np.array([[2.0, 0], [0, 5], [0, -1]])
        found = class_vectors(vectors, np.array([0, 0, 1]))
        np.testing.assert_allclose(found, [[np.sqrt(0.5)] * 2, [0, -1]], atol=1e-6)

    def test_softmax_of_large_numbers(self):
        np.testing.assert_allclose(softmax(np.array([[1e4, 1e4 - np.log(3)]])), [[0.75, 0.25]], rtol=1e-5)

    @pytest.mark.parametrize(
        ("prompts", "classes", "message"),
        [
            ({}, None, "not empty"),
            ("tumour", None, "mapping of class to phrases"),
            ({"a": []}, None, "class 'a' are"),
            ({"a": ["x", " "]}, None, "not blank"),
            ({"a": "Fat", "b": ["fat"]}, None, "share the prompt 'fat'"),
            ({"a": "x"}, ["a", "b"], r"no prompts for the classes \['b'\]"),
            ({"a": "x", "b": "y"}, ["a"], r"prompts for \['b'\], which are no classes"),
        ],
    )
    def test_prompts_refused(self, prompts, classes, message):
        with pytest.raises(ValueError, match=message):
            checked_prompts(prompts, classes)

    def test_prompts_take_the_order_of_the_classes(self):
        assert list(checked_prompts({"a": "x", 2: "y"}, ["2", "a"])) == ["2", "a"]

    @pytest.mark.parametrize("templates", [[], ["no place"], ["{} and {}"], [3]])
    def test_templates_refused(self, templates):
        with pytest.raises(ValueError, match="one {} for the phrase"):
            checked_templates(templates)

    def test_encoder_without_texts(self):
        with pytest.raises(ValueError, match="'x' embeds images only"):
            text_vectors(type("E", (), {"name": "x"})(), ["a"])


class TestLoss:
    def test_one_pair_per_class_is_clip_s_loss(self):
        """Where every text has one image, it is the loss of CLIP as open_clip computes it."""
        import open_clip

        generator = torch.Generator().manual_seed(0)
        images, texts = (torch.nn.functional.normalize(torch.randn(5, 8, generator=generator), dim=1) for _ in "it")
        codes = torch.arange(5)
        found = prompt_contrastive_loss(7 * images @ texts.T, codes, codes, torch.ones(5))
        torch.testing.assert_close(found, open_clip.ClipLoss()(images, texts, torch.tensor(7.0)))

    def test_equal_prompts_are_no_negatives(self):
        """Images that all match their text perfectly have no loss, however many share it."""
        codes = torch.tensor([0, 0, 0, 1])
        logits = torch.where(codes[:, None] == torch.arange(2)[None], 50.0, -50.0)
        found = prompt_contrastive_loss(logits, codes, torch.arange(2), torch.ones(2))
        # What is left is the choice between three images that are equally right: log 3 for one of two texts.
        assert float(found) == pytest.approx(np.log(3) / 2 / 2, abs=1e-5)

    def test_weights_count_images(self):
        logits, codes = torch.randn(6, 2, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 0, 0, 0, 0, 1])
        each = torch.nn.functional.cross_entropy(logits, codes, reduction="none")
        to_images = prompt_contrastive_loss(logits, codes, torch.arange(2), torch.ones(2)) * 2 - each.mean()
        found = prompt_contrastive_loss(logits, codes, torch.arange(2), torch.tensor([0.2, 1.0])) * 2 - to_images
        torch.testing.assert_close(found, (each[:5].mean() + each[5]) / 2)


def test_augmentation_is_a_function_of_seed_epoch_and_row():
    tiles = np.random.default_rng(0).integers(0, 256, (200, 4, 4, 3), dtype=np.uint8)
    rows = np.arange(200)
    once = augmented(tiles, rows, 1, 2)
    assert np.array_equal(once[::-1], augmented(tiles[::-1], rows[::-1], 1, 2))
    assert not np.array_equal(once, augmented(tiles, rows, 1, 3))
    ways = [[np.rot90(flipped, k) for k in range(4) for flipped in (tile, tile[:, ::-1])] for tile in tiles]
    found = [
        next(i for i, way in enumerate(each) if np.array_equal(way, tile))
        for each, tile in zip(ways, once, strict=True)
    ]
    assert len(set(found)) == 8


def test_constant_features():
    rows = np.array([[1, 5e6, 0, 0], [1, 5e6 + 0.5, 0, 1e-20]], np.float32)
    assert is_constant(rows).tolist() == [True, True, True, False]


def test_classes_are_named(linear):
    assert linear.config.classes == tuple(sorted(CLASSES))
    frame = linear.report.to_frame()
    assert frame.index.tolist() == [*sorted(CLASSES), "all"]
    assert (frame["low"] <= frame["auc"]).all()
