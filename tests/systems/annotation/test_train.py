"""Training of annotators, and their scores on what they have not seen."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from annotating import SPEC, Planted, TinyClip, embedded, folder_of_tiles
from flat import train_annotator

import sthist
from sthist.tiles import TileSpec

FAST = {"split": "slide", "folds": 3, "n_boot": 100, "epochs": 60, "lr": 0.05, "device": "cpu"}


def train(adata, **kwargs):
    return train_annotator(adata, "label", **(FAST | kwargs))


class TestLinear:
    def test_learns_what_is_planted(self):
        annotator = train(embedded(300))
        report = annotator.report
        assert report.weighted_auc > 0.95
        assert report.weighted_auc_low > 0.9
        assert report.shuffled_auc_low < 0.5 < report.shuffled_auc_high
        assert np.sum(report.confusion) == report.n_scored == 300
        assert (report.n_folds, report.n_groups, report.split, report.leaks) == (3, 6, "slide", "")
        unseen = embedded(300, seed=9)
        right = np.array(annotator.config.classes)[annotator.predict(unseen.obsm["X_planted"]).argmax(1)]
        assert (right == unseen.obs["label"]).mean() > 0.9

    def test_noise_is_chance(self):
        """Where there is nothing to learn, the held-out score says so, however well training rows are fitted."""
        report = train(embedded(200, dim=100, strength=0.0), validation=0, epochs=30).report
        assert report.weighted_auc_low < 0.5 < report.weighted_auc_high

    def test_shuffled_labels_are_around_one_half(self):
        found = [train(embedded(240, n_slides=12, seed=s), seed=s, epochs=15).report for s in range(3)]
        assert abs(np.mean([report.shuffled_auc for report in found]) - 0.5) < 0.06

    def test_same_seed_same_weights(self):
        torch.manual_seed(1)
        one = train(embedded(), seed=3, baseline=False)
        state = torch.random.get_rng_state()
        torch.manual_seed(2)
        two = train(embedded(), seed=3, baseline=False)
        assert all(np.array_equal(one.weights[name], two.weights[name]) for name in one.weights)
        assert one.report.to_dict() == two.report.to_dict()
        torch.manual_seed(1)
        assert torch.equal(state, torch.random.get_rng_state())  # the user's random numbers are left alone
        assert not torch.are_deterministic_algorithms_enabled()

    def test_nothing_is_written(self, tmp_path, monkeypatch, capfd):
        monkeypatch.chdir(tmp_path)
        train(embedded(), baseline=False, epochs=2)
        assert list(tmp_path.iterdir()) == []
        assert capfd.readouterr().out == ""

    def test_balanced_weights_help_rare_classes(self):
        """Overlapping classes of 9 to 1: without weights the rare one is hardly ever predicted."""
        rng = np.random.default_rng(0)
        rare = rng.uniform(size=600) < 0.1
        adata = ad.AnnData(obs={"label": np.where(rare, "rare", "usual"), "slide": np.resize(list("abcdef"), 600)})
        adata.obsm["X_planted"] = (rng.normal(size=(600, 2)) + rare[:, None]).astype(np.float32)
        recall = {}
        for weights in ("balanced", None):
            counts = np.array(train(adata, class_weights=weights, baseline=False).report.confusion)
            recall[weights] = counts[0, 0] / counts[0].sum()
        assert recall["balanced"] > 0.6 > 0.3 > recall[None]

    def test_applied_to_other_samples(self, tmp_path):
        train(embedded(300), baseline=False).save(tmp_path / "model")
        samples = {"a": embedded(seed=4), "b": embedded(seed=5)}
        sthist.tl.annotate(samples, tmp_path / "model")
        for each in samples.values():
            assert (each.obs["annotation"].astype(str) == each.obs["label"]).mean() > 0.9
            assert "annotation_similarity" not in each.obsm
            made = each.uns["sthist"]["annotation"]
            assert (made["model"], made["embedding"], made["trained"]["seed"]) == ("annotator", "X_planted", 0)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"encoder": "uni"}, "trained with the encoder 'planted'; these are embeddings of 'uni'"),
            ({"sha": "zz"}, "SHA-256"),
            ({"spec": TileSpec(32, 32)}, "trained on tiles of 16 µm at 0.5 µm/px; .* show 32 µm at 1 µm/px"),
            ({"spec": TileSpec(16, 64)}, "at 0.25 µm/px"),
        ],
    )
    def test_other_embeddings_are_refused(self, change, message):
        annotator = train(embedded(), baseline=False, epochs=1)
        with pytest.raises(ValueError, match=message):
            sthist.tl.annotate(embedded(**change), annotator)

    def test_classes_absent_from_the_test_part(self, caplog):
        adata = embedded(120, n_slides=4)
        adata = adata[~((adata.obs["slide"] == "s0") & (adata.obs["label"] == "fat"))].copy()
        report = train(adata, test="s0", baseline=False).report
        assert report.n_absent == 1
        assert np.isnan(report.auc[report.classes.index("fat")])
        assert report.weighted_auc > 0.9
        assert "No row of 'fat' is tested" in caplog.text

    def test_unlabelled_rows_are_left_out(self):
        adata = embedded()
        adata.obs["label"] = adata.obs["label"].astype(object)
        adata.obs.iloc[:10, 0] = None
        adata.obs.iloc[10:13, 0] = " "
        report = train(adata, baseline=False, epochs=2).report
        assert (report.n_unlabelled, report.n_scored) == (13, 107)

    def test_constant_features_are_dropped(self, caplog):
        adata = embedded()
        adata.obsm["X_planted"][:, 3:] = 7
        annotator = train(adata, baseline=False)
        assert "2 of 5 features of obsm['X_planted'] are constant, and dropped" in caplog.text
        rows = embedded(seed=3).obsm["X_planted"]
        changed = rows.copy()
        changed[:, 3:] += 100
        np.testing.assert_array_equal(annotator.predict(rows), annotator.predict(changed))
        adata.obsm["X_planted"][:] = 7
        with pytest.raises(ValueError, match="All 5 features"):
            train(adata)

    def test_blocks_of_one_section(self):
        """Tiles that overlap are never on both sides; what is too near is not trained on."""
        adata = embedded(300)
        adata.obsm["spatial"] = np.random.default_rng(0).uniform(0, 400, (300, 2))
        annotator = train(adata, split="block", block_um=100, test=0.25, baseline=False)
        assert annotator.report.weighted_auc > 0.95
        assert annotator.config.training["n_rows"] + annotator.report.n_scored < 300

    def test_samples_and_patients(self):
        data = {f"S{i}": embedded(60, seed=i) for i in range(4)}
        patients = pd.DataFrame({"sample": list(data), "patient": ["P1", "P1", "P2", "P3"]})
        report = train(data, split="patient", samples=patients, folds=3, baseline=False).report
        assert report.n_groups == 3
        with pytest.raises(ValueError, match="There are 3 groups"):
            train(data, split="patient", samples=patients, folds=4)
        patients.loc[2, "patient"] = "p-01"
        with pytest.raises(ValueError, match="one patient under two names"):
            train(data, split="patient", samples=patients)

    @pytest.mark.parametrize(
        ("change", "kwargs", "error", "message"),
        [
            (lambda a: a.obs.rename(columns={"label": "lbel"}, inplace=True), {}, KeyError, "Did you mean 'lbel'"),
            (lambda a: a.obs.__setitem__("label", np.nan), {}, ValueError, "has no label: all 120"),
            (lambda a: a.obs.__setitem__("label", "x"), {}, ValueError, "the class 'x' only"),
            (lambda a: a.obs.iloc.__setitem__((0, 0), "odd"), {}, ValueError, "Class 'odd' of 'label' has one row"),
            (lambda a: a.obsm["X_planted"].__setitem__((4, 0), np.inf), {}, ValueError, "first row 4"),
            (lambda a: None, {"folds": 7}, ValueError, "There are 6 groups .* and 7 folds"),
            (lambda a: None, {"classes": ["fat", "bone"]}, ValueError, "each of some row"),
            (lambda a: None, {"method": "svm"}, ValueError, "method is 'svm'"),
            (lambda a: None, {"class_weights": "none"}, ValueError, "class_weights is 'none'"),
            (lambda a: None, {"validation": 1}, ValueError, "validation is 1"),
            (lambda a: None, {"lr": 0}, ValueError, "lr is 0"),
            (lambda a: None, {"epochs": 0}, ValueError, "epochs is 0"),
            (lambda a: None, {"prompts": {"a": "b"}}, ValueError, "go with method='text'"),
            (lambda a: None, {"encoder": "uni"}, KeyError, r"no obsm\['X_uni'\]"),
            (lambda a: None, {"spec": TileSpec(99, 32)}, ValueError, "stored embeddings cannot be of other tiles"),
            (lambda a: None, {"method": "finetune"}, ValueError, "say which one with encoder="),
            (lambda a: None, {"method": "finetune", "encoder": Planted()}, ValueError, "no module that can be trained"),
            (lambda a: None, {"method": "finetune", "encoder": TinyClip()}, ValueError, "without pixels"),
        ],
    )
    def test_refused(self, change, kwargs, error, message):
        adata = embedded()
        change(adata)
        with pytest.raises(error, match=message):
            train(adata, **kwargs)

    def test_a_class_on_one_side_only(self):
        adata = embedded(n_slides=6)
        adata.obs.loc[(adata.obs["label"] == "fat") & (adata.obs["slide"] != "s1"), "label"] = "stroma"
        with pytest.raises(
            ValueError, match=r"Class 'fat' would be tested and not trained on.*'s1'.*classes=\['stroma', 'tumour'\]"
        ):
            train(adata)
        report = train(adata, classes=["tumour", "stroma"], baseline=False, epochs=2).report
        assert report.classes == ["tumour", "stroma"]

    def test_embeddings_of_two_encoders(self):
        with pytest.raises(ValueError, match="different encoders: 'planted' and 'uni'"):
            train({"a": embedded(), "b": embedded(encoder="uni")})
        with pytest.raises(ValueError, match="are of TileSpec"):
            train({"a": embedded(), "b": embedded(spec=TileSpec(32, 32))})


@pytest.fixture(scope="module")
def tiles(tmp_path_factory):
    return folder_of_tiles(tmp_path_factory.mktemp("tiles"), 18)


class TestFinetune:
    def test_learns_from_tiles(self, tiles, tmp_path):
        encoder = TinyClip()
        before = {name: value.clone() for name, value in encoder.module.state_dict().items()}
        annotator = train_annotator(
            tiles,
            "label",
            method="finetune",
            encoder=encoder,
            folds=2,
            epochs=3,
            encoder_lr=1e-3,
            n_boot=50,
            device="cpu",
        )
        assert annotator.report.weighted_auc >= 0.95
        assert annotator.report.shuffled_auc_low < 0.5 < annotator.report.shuffled_auc_high
        after = encoder.module.state_dict()
        assert all(torch.equal(value, after[name]) for name, value in before.items())
        changed = [
            name for name, value in before.items() if not np.array_equal(value, annotator.weights[f"encoder.{name}"])
        ]
        assert changed
        annotator.save(tmp_path)
        loaded = sthist.models.load(tmp_path)
        pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
        np.testing.assert_array_equal(loaded.predict(pixels, encoder=TinyClip()), annotator.predict(pixels))
        sthist.tl.annotate(tiles, loaded, encoder=TinyClip(), key_added="found", overwrite=True)
        assert (tiles.obs["found"].astype(str) == tiles.obs["label"].astype(str)).mean() > 0.9

    def test_same_seed_same_weights(self, tiles):
        made = [
            train_annotator(
                tiles,
                "label",
                method="finetune",
                encoder=TinyClip(),
                test=["P2"],
                epochs=2,
                baseline=False,
                n_boot=5,
                device="cpu",
            )
            for _ in range(2)
        ]
        assert all(np.array_equal(value, made[1].weights[name]) for name, value in made[0].weights.items())

    def test_batch_normalisation_keeps_its_statistics(self, tiles, tmp_path):
        """A convolutional network from the registry: learned weights change, running statistics do not."""
        encoder = sthist.encoders.get("timm:test_resnet", pretrained=False, device="cpu", spec=SPEC)
        annotator = train_annotator(
            tiles,
            "label",
            method="finetune",
            encoder=encoder,
            test=["P2"],
            epochs=2,
            baseline=False,
            n_boot=5,
            device="cpu",
        )
        same = {
            name: np.array_equal(value.numpy(), annotator.weights[f"encoder.{name}"])
            for name, value in encoder.module.state_dict().items()
        }
        assert all(same[name] for name in same if "running" in name or "tracked" in name)
        assert not all(same.values())
        assert annotator.report.weighted_auc > 0.9
        annotator.save(tmp_path)
        pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
        again = sthist.models.load(tmp_path).predict(pixels, encoder=encoder)
        np.testing.assert_array_equal(again, annotator.predict(pixels))

    def test_another_scale(self, tmp_path):
        tiles = folder_of_tiles(tmp_path, 3)
        tiles.obs["mpp"] = 1.0
        encoder = TinyClip()
        encoder.spec = None
        with pytest.raises(ValueError, match="How large the tiles are is not known"):
            train_annotator(tiles, "label", method="finetune", encoder=encoder)

    def test_tiles_of_a_slide(self, toy):
        """Laid tiles are read from the image; those of another size than the encoder's are refused."""
        sthist.pp.tissue(toy)
        sthist.pp.tiles(toy, size_um=16, px=32, overlap=0.3)
        sthist.pp.label_regions(toy, "tiles", by="regions")
        run = {
            "method": "finetune",
            "split": "block",
            "test": 0.3,
            "block_um": 60,
            "epochs": 1,
            "n_boot": 20,
            "baseline": False,
        }
        annotator = train_annotator(toy, "label", encoder=TinyClip(), table="tiles_table", device="cpu", **run)
        assert annotator.report.weighted_auc > 0.6
        assert annotator.spec == SPEC
        sthist.tl.annotate(toy, annotator)
        assert toy["tiles_table"].obs["annotation"].notna().all()
        sthist.pp.tiles(toy, size_um=32, px=32, key_added="coarse")
        with pytest.raises(ValueError, match="trained on tiles of 16 µm at 0.5 µm/px; Table 'coarse_table' show"):
            sthist.tl.annotate(toy, annotator, table="coarse_table")
        sthist.pp.label_regions(toy, "coarse", by="regions")
        with pytest.raises(ValueError, match="was trained at 0.5 µm/px"):
            train_annotator(toy, "label", encoder=TinyClip(), table="coarse_table", **run)


class TestText:
    PROMPTS = {"tumour": ["dark nuclei"], "stroma": ["pink fibres", "collagen"], "fat": ["white vacuoles"]}

    @pytest.mark.parametrize("frozen", [pytest.param(False, marks=pytest.mark.slow), True])
    def test_learns_from_pairs_of_tile_and_prompt(self, tmp_path, frozen):
        """Neighbouring planes train, the one between them tests."""
        tiles = folder_of_tiles(tmp_path, 14, patients=("1", "2", "3"))
        tiles.obs["z"] = tiles.obs["patient"].astype(str)
        annotator = train_annotator(
            tiles,
            "label",
            method="text",
            encoder=TinyClip(frozen_text=frozen),
            prompts=self.PROMPTS,
            templates=["{}", "an image of {}"],
            split="z",
            test=["2"],
            validation=0,
            epochs=15,
            lr=3e-3,
            batch_size=16,
            n_boot=50,
            baseline=False,
            device="cpu",
        )
        assert annotator.report.weighted_auc >= 0.95
        assert annotator.config.training["prompts"]["fat"] == ["white vacuoles"]
        assert annotator.config.training["n_rows"] == 28
        annotator.save(tmp_path / "model")
        loaded = sthist.models.load(tmp_path / "model")
        pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
        np.testing.assert_array_equal(loaded.predict(pixels, encoder=TinyClip()), annotator.predict(pixels))
        sthist.tl.annotate(tiles, annotator)
        held_out = (tiles.obs["z"] == "2").to_numpy()
        right = tiles.obs["annotation"].astype(str) == tiles.obs["label"].astype(str)
        assert right[held_out].mean() > 0.8
        assert tiles.obsm["annotation_similarity"].abs().max(axis=None) <= 1 + 1e-5

    def test_prompts_for_all_classes(self, tmp_path):
        tiles = folder_of_tiles(tmp_path, 3)
        with pytest.raises(ValueError, match="no prompts for the classes"):
            train_annotator(tiles, "label", method="text", encoder=TinyClip(), prompts={"fat": "fat"}, folds=2)
        encoder = TinyClip()
        encoder.embed_text = None
        with pytest.raises(ValueError, match="embeds images only"):
            train_annotator(tiles, "label", method="text", encoder=encoder, folds=2)
