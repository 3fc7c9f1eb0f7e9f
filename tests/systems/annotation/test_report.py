"""Scores in the report of an annotator, and what is said where it has learned nothing."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
from annotating import TinyClip, embedded, folder_of_tiles
from flat import train_annotator
from realdata import folder
from sklearn import metrics
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import sthist
from sthist.models import AnnotatorReport
from sthist.systems.annotation.report import make_report
from sthist.tiles import TileSpec
from sthist.training.split_groups import group_rows
from sthist.training.splits import Grouping, Units, folds_of, validation_folds


@pytest.fixture(scope="module")
def scored():
    """Classes, and probabilities that are right now and then; and those of other labels."""
    rng = np.random.default_rng(0)
    codes = rng.choice(3, 200, p=[0.7, 0.2, 0.1])
    logits = rng.normal(size=(200, 3)) + 1.5 * np.eye(3)[codes]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    mixed = rng.permutation(codes)
    grouping = Grouping("slide", np.resize(list("abcd"), 200), np.repeat("s", 200))
    report = make_report(
        list("xyz"), codes, probabilities, grouping, np.arange(200), shuffled=(mixed, probabilities), n_boot=20
    )
    return report, codes, probabilities, mixed


def test_scores_are_those_of_scikit_learn(scored):
    report, codes, probabilities, mixed = scored
    frame, called = report.to_frame(), probabilities.argmax(axis=1)
    assert frame.index.tolist() == ["x", "y", "z", "all"]
    overall = frame.loc["all"]
    assert overall["accuracy"] == pytest.approx(metrics.accuracy_score(codes, called))
    assert overall["balanced_accuracy"] == pytest.approx(metrics.balanced_accuracy_score(codes, called))
    assert overall["f1"] == pytest.approx(metrics.f1_score(codes, called, average="macro"))
    assert overall["brier"] == pytest.approx(metrics.brier_score_loss(codes, probabilities, scale_by_half=False))
    assert overall["auc"] == report.weighted_auc
    assert overall["support"] == 200
    assert overall["shuffled_accuracy"] == pytest.approx(metrics.accuracy_score(mixed, called))
    assert overall["shuffled_auc"] == pytest.approx(report.shuffled_auc)
    assert overall["majority_accuracy"] == pytest.approx((codes == 0).mean())
    assert overall["majority_balanced_accuracy"] == pytest.approx(1 / 3)
    for k, name in enumerate("xyz"):
        true, made = codes == k, called == k
        assert frame.loc[name, "accuracy"] == pytest.approx(metrics.accuracy_score(true, made))
        assert frame.loc[name, "balanced_accuracy"] == pytest.approx(metrics.balanced_accuracy_score(true, made))
        assert frame.loc[name, "f1"] == pytest.approx(metrics.f1_score(true, made))
        assert frame.loc[name, "brier"] == pytest.approx(metrics.brier_score_loss(true, probabilities[:, k]))
    assert AnnotatorReport.from_dict(report.to_dict()) == report


def test_calibration_error_by_a_loop(scored):
    report, codes, probabilities, _ = scored
    stated, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == codes
    expected = 0.0
    for low in np.arange(10) / 10:
        of_bin = (stated >= low) & (stated < low + 0.1)
        if of_bin.any():
            expected += of_bin.mean() * abs(stated[of_bin].mean() - right[of_bin].mean())
    assert report.to_frame().loc["all", "ece"] == pytest.approx(expected)


def test_probabilities_that_come_true_are_calibrated():
    rng = np.random.default_rng(1)
    p = rng.uniform(size=20_000)
    codes = (rng.uniform(size=len(p)) < p).astype(int)
    grouping = Grouping("random", np.arange(len(p)).astype(str), np.repeat("s", len(p)))
    report = make_report(["a", "b"], codes, np.stack([1 - p, p], 1), grouping, np.arange(len(p)), n_boot=1)
    assert report.to_frame().loc["all", "ece"] < 0.02
    over = np.stack([1 - p, p], 1) ** 4
    report = make_report(["a", "b"], codes, over / over.sum(1, keepdims=True), grouping, np.arange(len(p)), n_boot=1)
    assert report.to_frame().loc["all", "ece"] > 0.1


class TestLearnsAtAll:
    def test_few_rows_are_not_left_untrained(self, caplog):
        """Fewer rows than a batch of the networks, rare classes among them."""
        rng = np.random.default_rng(0)
        codes = rng.choice(4, 300, p=[0.82, 0.08, 0.06, 0.04])
        adata = ad.AnnData(obs={"label": np.array(list("abcd"))[codes], "slide": np.resize(list("stuvw"), 300)})
        adata.obsm["X_planted"] = (rng.normal(size=(300, 60)) + 4 * np.eye(4, 60)[codes]).astype(np.float32)
        report = train_annotator(adata, "label", split="slide", n_boot=10, baseline=False).report
        assert report.to_frame().loc["all", "accuracy"] > 0.95
        assert "it was trained on" not in caplog.text

    def test_warns_of_an_encoder_that_has_learned_nothing(self, tmp_path, caplog):
        class Blind(TinyClip):
            """Sees every tile alike, but for noise."""

            def __init__(self):
                super().__init__()
                self.module.visual.conv1.weight.data.zero_()
                self.module.visual.conv1.weight.requires_grad_(False)

        tiles = folder_of_tiles(tmp_path, 6)
        train_annotator(
            tiles,
            "label",
            method="finetune",
            encoder=Blind(),
            test=["P1"],
            epochs=1,
            lr=1e-9,
            n_boot=5,
            baseline=False,
            device="cpu",
        )
        assert "On the 18 rows that it was trained on, the annotator is right for 0.33" in caplog.text

    def test_warns_where_there_is_nothing_to_learn(self, caplog):
        """One feature that says nothing: all rows are called alike."""
        adata = embedded(120)
        adata.obsm["X_planted"][:] = np.resize([[1.0], [-1.0]], (120, 1))
        adata.obs["label"] = np.resize(["a", "a", "b", "b", "b", "b"], 120)
        train_annotator(adata, "label", split="slide", n_boot=5, baseline=False, class_weights=None)
        assert "saying always 'b' is right for 0.67 (0.50)" in caplog.text


class TestDefaultSplit:
    def test_one_sample_is_split_by_blocks_and_that_is_said(self, caplog):
        adata = embedded(300)
        adata.obsm["spatial"] = np.random.default_rng(0).uniform(0, 600, (300, 2))
        report = sthist.tl.train_annotator(adata, "label", training={"n_boot": 5, "baseline": False}).report
        assert report.split == "block"
        assert "rows are split by blocks of tissue" in caplog.text

    def test_without_places_the_way_out_is_said(self):
        with pytest.raises(ValueError, match=r"There is one patient.*without obsm\['spatial'\].*a column of obs"):
            sthist.tl.train_annotator(embedded(), "label")
        adata = embedded(spec=None)
        adata.obsm["spatial"] = np.zeros((120, 2))
        with pytest.raises(ValueError, match="without the size of their tiles.*block_um="):
            sthist.tl.train_annotator(adata, "label")

    def test_fewer_patients_than_folds(self):
        data = {f"S{i}": embedded(60, seed=i) for i in range(3)}
        report = sthist.tl.train_annotator(data, "label", training={"n_boot": 5, "baseline": False}).report
        assert (report.split, report.n_folds, report.n_groups) == ("patient", 3, 3)


def test_groups_validate_in_turn():
    rng = np.random.default_rng(0)
    grouping = Grouping("slide", np.repeat(list("abcdefgh"), 10), np.repeat("s", 80))
    rows, codes = np.sort(rng.permutation(80)[:60]), rng.integers(2, size=80)
    kept, pairs = validation_folds(grouping, codes, rows, 0.2)
    assert np.array_equal(kept, rows)
    assert np.array_equal(np.sort(np.concatenate([watched for _, watched in pairs])), rows)
    for train, watched in pairs:
        assert not set(grouping.groups[train]) & set(grouping.groups[watched])
        assert np.array_equal(np.union1d(train, watched), rows)
    assert validation_folds(grouping, codes, rows, 0)[1] == []
    named = Grouping("explicit", grouping.groups, grouping.sample, parts=np.repeat(["train", "validation"], 40))
    kept, pairs = validation_folds(named, codes, rows, 0.2)
    assert np.array_equal(kept, rows[rows < 40])
    assert len(pairs) == 1
    assert np.array_equal(pairs[0][1], rows[rows >= 40])


@pytest.mark.parametrize(("size_um", "px"), [pytest.param(112.0, 35, marks=pytest.mark.slow), (224.0, 70)])
def test_her2st_at_least_as_good_as_plain_logistic_regression(size_um, px):
    """Held out, on the spots of a real section: four classes, of which three are rare."""
    data = folder("her2st")
    table = ad.read_h5ad(data / "counts_only" / "A1_counts.h5ad")
    counts = table.obs["pathologist_label"].value_counts()
    classes = [name for name in counts.index[counts >= 10] if name not in ("none", "undetermined")]
    table = table[table.obs["pathologist_label"].isin(classes).to_numpy()].copy()
    assert table.n_obs == 339
    sdata = sthist.io.assemble(
        {"he": data / "lowres_he" / "A1_lowres.png"},
        mpp=float(table.uns["lowres_mpp"]),
        table=table,
        xy=("lowres_x", "lowres_y"),
        unit="px",
        spot_diameter_um=100.0,
    )
    sthist.pp.embed(sdata, "morphology", regions="spots", spec=TileSpec(size_um, px), progress=False)
    training = {"n_boot": 10, "baseline": False}
    annotator = sthist.tl.train_annotator(sdata, "pathologist_label", training=training)
    found = annotator.report.to_frame().loc["all"]

    features, places = sdata["table"].obsm["X_morphology"], sdata["table"].obsm["spatial"]
    codes = np.searchsorted(annotator.config.classes, sdata["table"].obs["pathologist_label"].astype(str))
    names = np.repeat("s", 339)
    grouping = group_rows(Units(names, names, sdata["table"].obs, places, size_um), "block")
    called = np.full(339, -1)
    for train, test in folds_of(grouping, codes, folds=5, seed=0):
        plain = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=2000))
        called[test] = plain.fit(features[train], codes[train]).predict(features[test])
    assert found["accuracy"] >= metrics.accuracy_score(codes, called) > 0.8
    assert found["balanced_accuracy"] >= metrics.balanced_accuracy_score(codes, called)
    assert found["accuracy"] > found["majority_accuracy"]
