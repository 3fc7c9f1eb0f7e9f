"""Augmentation: what no arm has seen, what all arms have in common, and what is made of their scores."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
from expressing import GENES, planted_slide
from sklearn.metrics import f1_score, roc_auc_score

import sthist
from sthist.benchmark._augmentation.predictors import Drawn, ordinary
from sthist.benchmark._augmentation.scores import Classes, Scorer
from sthist.models import C2L, C2LConfig, ResNetConfig, Split
from sthist.regression.model import RegressionModel
from sthist.tiles import TileReader, TileSpec

SPEC = TileSpec(32, 16)
QUICK = {"epochs": 1, "steps_per_epoch": 2, "batch_size": 4, "ema": 0.0}
QUIET = {"device": "cpu", "progress": False}
TRAINING = {"epochs": 2, "batch_size": 8, "optimizer": "adam"}


def colours(tiles):
    """Mean and deviation of the colours of tiles."""
    return np.concatenate([tiles.mean((1, 2)), tiles.std((1, 2))], axis=1).astype(np.float32)


BASIC = {
    **{"fractions": [0.2, 0.5], "ratios": [2], "seeds": [0, 1], "steps": 1, "embedding": colours},
    **{"adaptation": QUICK, "training": TRAINING},
    **QUIET,
}


@pytest.fixture(scope="module")
def slides():
    return {name: planted_slide(seed, side=6) for seed, name in enumerate("ab")}


@pytest.fixture(scope="module")
def central():
    config = C2LConfig(size_um=32, px=16, dim=8, multipliers=(1, 2))
    return sthist.tl.train_central(planted_slide(7), config, regions="spots", training=QUICK, **QUIET)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return tmp_path_factory.mktemp("kept")


def run(slides, central, model="mlp", **options):
    return sthist.benchmark.augmentation(slides, central, model, **{**BASIC, **options})


@pytest.fixture(scope="module")
def found(slides, central, kept):
    return run(slides, central, folder=kept)


def parts(found, fraction, seed):
    own = found.spots[(found.spots["fraction"] == fraction) & (found.spots["seed"] == seed)]
    pairs = own.assign(pair=list(zip(own["sample"], own["instance_id"], strict=True)))
    return {name: set(each["pair"]) for name, each in pairs.groupby("part")}


class TestWhatIsSeen:
    def test_no_arm_has_seen_a_spot_that_tests(self, slides, central, monkeypatch):
        adapted, trained, fit, adapt = [], [], RegressionModel.fit, C2L.adapt

        def recorded_adapt(self, tiles, expression, genes, **options):
            adapted.append((options["spots"], tiles, options["training"].seed))
            return adapt(self, tiles, expression, genes, **options)

        def recorded_fit(self, inputs, targets, *, rows, **options):
            trained.append((inputs.take(rows)["tiles"], targets.dense(rows)))
            return fit(self, inputs, targets, rows=rows, **options)

        monkeypatch.setattr(C2L, "adapt", recorded_adapt)
        monkeypatch.setattr(RegressionModel, "fit", recorded_fit)
        small = ResNetConfig(backbone="test_resnet", pretrained=False)
        found = run(slides, central, small, fractions=[0.3], ratios=[1], seeds=[3], embedding=None)
        ((spots, tiles, seed),) = adapted
        own = parts(found, 0.3, 3)
        assert set(zip(spots["sample"], spots["instance_id"], strict=True)) == own["adaptation"]
        assert seed == 3
        assert not own["adaptation"] & own["test"]
        assert len(own["adaptation"]) == round(0.3 * 72)
        assert len(own["test"]) == 72 - round(0.3 * 72)
        table = found.tables[0.3, 3]
        assert set(zip(table.obs["sample"], table.obs["instance_id"], strict=True)) == own["test"]
        tested = {
            TileReader(slides[name], "he", SPEC).read(slides[name]["table"][spot].obsm["spatial"]).tobytes()
            for name, spot in own["test"]
        }
        seen = {each.tobytes() for pixels, _ in trained for each in pixels} | {each.tobytes() for each in tiles}
        assert {each.tobytes() for each in tiles} <= seen
        assert not seen & tested
        expression = {each.tobytes() for _, targets in trained for each in targets}
        assert not expression & {each.tobytes() for each in table.X}

    def test_smaller_fractions_are_parts_of_larger_ones_and_all_have_one_test(self, found):
        for seed in (0, 1):
            small, large = parts(found, 0.2, seed), parts(found, 0.5, seed)
            assert small["adaptation"] < large["adaptation"]
            assert small["test"] == large["test"]
            assert not large["adaptation"] & large["test"]
        assert parts(found, 0.5, 0)["test"] != parts(found, 0.5, 1)["test"]

    def test_synthetic_tiles_are_of_the_adaptation_alone(self, found, kept):
        import spatialdata as sd

        obs = sd.read_zarr(kept / "random-0.2-seed1" / "synthetic.zarr")["tiles_table"].obs
        assert set(zip(obs["sample"], obs["source"], strict=True)) == parts(found, 0.2, 1)["adaptation"]
        assert (obs.groupby("source", observed=True)["replicate"].max() == 1).all()

    def test_a_column_says_which_spots_test(self, central):
        slides = {name: planted_slide(seed, side=6) for seed, name in enumerate("ab")}
        said = {}
        for name, slide in slides.items():
            table = slide["table"]
            table.obs["part"] = np.where(np.arange(table.n_obs) % 3 == 0, "test", "train")
            said |= {(name, each): part for each, part in zip(table.obs_names, table.obs["part"], strict=True)}
        options = {"split": "part", "fractions": [0.2, 0.6], "ratios": [1]}
        found = run(slides, central, **options)
        for seed in (0, 1):
            spots = parts(found, 0.6, seed)
            assert spots["test"] == {pair for pair, part in said.items() if part == "test"}
            assert {said[pair] for pair in spots["adaptation"]} == {"train"}
        assert parts(found, 0.2, 0)["adaptation"] != parts(found, 0.2, 1)["adaptation"]
        with pytest.raises(ValueError, match="leaves 48 that are apart from the 24"):
            run(slides, central, **options | {"fractions": [0.7]})

    def test_blocks_are_apart(self, slides, central):
        split = Split("block", block_um=64, gap_um=33)
        found = run(slides, central, "ridge", split=split, fractions=[0.3], seeds=[0], ratios=[1])
        own = parts(found, 0.3, 0)
        place = {
            (name, spot): each["table"][spot].obsm["spatial"][0]
            for name, each in slides.items()
            for spot in each["table"].obs_names
        }
        for name, spot in own["adaptation"]:
            near = [np.abs(place[name, spot] - place[pair]).max() for pair in own["test"] if pair[0] == name]
            assert min(near, default=99) > 33
        with pytest.raises(ValueError, match="lower the fraction, or take larger blocks"):
            run(slides, central, "ridge", split=split, fractions=[0.74])


class TestSteps:
    def test_are_equal_in_all_arms_of_a_ratio(self, slides, central, monkeypatch):
        counts, step, fit = [], torch.optim.Adam.step, RegressionModel.fit

        def counted(self, *args, **options):
            counts[-1] += 1
            return step(self, *args, **options)

        def begun(self, *args, **options):
            counts.append(0)
            return fit(self, *args, **options)

        monkeypatch.setattr(torch.optim.Adam, "step", counted)
        monkeypatch.setattr(RegressionModel, "fit", begun)
        scores = run(
            slides, central, fractions=[0.5], seeds=[0], ratios=[1, 3], training={**TRAINING, "batch_size": 24}
        ).scores
        trained = scores[(scores["steps"] > 0) & ~((scores["arm"] == "real + synthetic") & (scores["ratio"] == 0))]
        assert trained["steps"].tolist() == counts
        n, epochs, batch = 36, 2, 24
        for ratio, part in trained.groupby("ratio"):
            assert set(part["steps"]) == {epochs * -(-n * (1 + ratio) // batch)}
            assert len(part) >= (1 if ratio == 0 else 4)
        assert (scores.loc[scores["arm"] == "real", "n_train"] == n).all()
        assert set(scores.loc[(scores["arm"] == "synthetic") & (scores["ratio"] == 3), "n_train"]) == {3 * n}

    def test_each_row_is_in_as_many_batches(self):
        drawn = Drawn({"spot": np.arange(10)[:, None]}, np.arange(10), 7)
        rows = np.array([1, 4, 5, 8])
        seen = np.concatenate([part for part, _ in drawn.shuffled(rows, 3, 0, 2)])
        assert len(seen) == 21
        assert set(np.unique(seen, return_counts=True)[1]) == {5, 6}
        again = np.concatenate([part for part, _ in drawn.shuffled(rows, 3, 0, 2)])
        assert np.array_equal(seen, again)

    def test_a_model_that_is_solved_has_none(self, slides, central):
        scores = run(slides, central, "ridge", fractions=[0.5], seeds=[0]).scores
        assert (scores["steps"] == 0).all()
        real = scores[scores["arm"].isin(["real", "real, equal steps"])]
        assert real["mae"].nunique() == 1


def test_ratio_0_is_real_alone_whatever_else_there_is(slides, central, found):
    other = run(slides, central, fractions=[0.2], ratios=[3], seeds=[1])
    one, two = found.tables[0.2, 1], other.tables[0.2, 1]
    # Tests of a fraction alone are more: those of both are compared.
    common = one.obs_names.intersection(two.obs_names)
    assert len(common) == one.n_obs
    assert np.array_equal(one[common].layers["real"], two[common].layers["real"])
    scores = found.scores.set_index(["fraction", "seed", "arm", "ratio"])
    for unit in found.tables:
        assert scores.loc[(*unit, "real + synthetic", 0), "mae"] == scores.loc[(*unit, "real", 0), "mae"]


class TestKept:
    def test_all_of_it_is_there_when_it_is_called_again(self, slides, central, found, kept, monkeypatch):
        def refuse(*args, **options):
            raise AssertionError

        for kind, name in ((C2L, "adapt"), (C2L, "sampler_"), (RegressionModel, "fit")):
            monkeypatch.setattr(kind, name, refuse, raising=False)
        again = run(slides, central, folder=kept)
        pd.testing.assert_frame_equal(again.scores, found.scores)
        for metric, drawn in found.draws.items():
            assert np.array_equal(again.draws[metric], drawn)
        for unit, table in found.tables.items():
            assert np.array_equal(again.tables[unit].layers["real_synthetic"], table.layers["real_synthetic"])
        assert again.verdict() == found.verdict()

    def test_what_was_stopped_goes_on(self, slides, central, found, tmp_path, monkeypatch):
        options = {"fractions": [0.5], "seeds": [1], "folder": tmp_path}
        with monkeypatch.context() as stopped:
            stopped.setattr(RegressionModel, "fit", lambda *args, **options: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                run(slides, central, **options)
        with monkeypatch.context() as checked:
            checked.setattr(C2L, "adapt", lambda *args, **options: 1 / 0)
            again = run(slides, central, **options)
            another = run(slides, central, "ridge", **options)
        wanted = found.scores[(found.scores["fraction"] == 0.5) & (found.scores["seed"] == 1)]
        assert again.scores["mae"].tolist() == wanted["mae"].tolist()
        assert another.scores["mae"].tolist() != again.scores["mae"].tolist()

    def test_tiles_of_other_settings_are_refused(self, slides, central, found, kept):
        with pytest.raises(ValueError, match=r"was made with other guidance \(3.0, not 2.0\): name another folder="):
            run(slides, central, folder=kept, guidance=2.0)
        with pytest.raises(ValueError, match=r"other n \(2, not 4\)"):
            run(slides, central, folder=kept, ratios=[4])
        assert json.loads((kept / "random-0.2-seed0" / "identity.json").read_text())["n"] == 2


class TestScores:
    @pytest.fixture
    def scorer(self):
        rng = np.random.default_rng(0)
        centres = rng.normal(0, 2, (3, 4))
        train, truth = (
            (3 + centres[np.arange(n) % 3] + rng.normal(0, 0.5, (n, 4))).astype(np.float32) for n in (60, 45)
        )
        sample = np.repeat(["a", "b"], [20, 25])
        score = Scorer(truth, sample, np.arange(45), Classes.of(train, 0), (0,))
        predicted = (truth + rng.normal(0, 1.5, truth.shape)).astype(np.float32)
        return score, train, truth, predicted, sample

    def test_are_those_of_others(self, scorer):
        score, train, truth, predicted, sample = scorer
        found, drawn = score(predicted)
        assert found["mae"] == pytest.approx(np.abs(predicted - truth).mean(), rel=1e-6)
        wanted = sthist.metrics.gene_pearson(truth, predicted, groups=sample).mean()
        assert found["pearson"] == pytest.approx(wanted, abs=1e-5)
        standard = [(each - train.mean(0)) / train.std(0) for each in (truth, predicted)]
        far, near = (np.linalg.norm(each[:, None] - score.classes.centroids[None], axis=2) ** 2 for each in standard)
        labels, classes = far.argmin(1), near.argmin(1)
        assert found["accuracy"] == pytest.approx((labels == classes).mean())
        assert found["f1"] == pytest.approx(f1_score(labels, classes, average="macro"))
        k = near.shape[1]
        margins = np.stack([np.delete(near, i, 1).min(1) - near[:, i] for i in range(k)], 1)
        assert found["auc_ovr"] == pytest.approx(
            np.mean([roc_auc_score(labels == i, margins[:, i]) for i in range(k) if (labels == i).any()])
        )
        pairs = [(i, j) for i in range(k) for j in range(i) if (labels == i).any() and (labels == j).any()]
        areas = [
            roc_auc_score(labels[m] == j, (near[:, i] - near[:, j])[m])
            for i, j in pairs
            for m in [np.isin(labels, [i, j])]
        ]
        assert found["auc_ovo"] == pytest.approx(np.mean(areas))
        assert drawn.shape == (3, 200)
        assert drawn[0].mean() == pytest.approx(found["mae"], rel=0.02)

    def test_the_truth_is_best_and_the_mean_knows_nothing(self, scorer):
        score, train, truth, *_ = scorer
        best, _ = score(truth)
        assert best["mae"] == 0
        assert min(best[name] for name in ("pearson", "accuracy", "f1", "auc_ovr", "auc_ovo")) > 0.999
        nothing, _ = score(np.tile(train.mean(0), (45, 1)).astype(np.float32))
        assert (nothing["pearson"], nothing["auc_ovr"], nothing["auc_ovo"]) == (0, 0.5, 0.5)


def scores_of(values, *, n_seeds=3, n_boot=50, spread=0.0):
    """A result in which an arm's error is the same in all seeds, but for a noise that all arms share."""
    rows, drawn, rng = [], [], np.random.default_rng(0)
    noise = rng.normal(0, spread, (n_seeds, n_boot))
    for (arm, ratio), value in values.items():
        for seed in range(n_seeds):
            facts = {"fraction": 0.25, "seed": seed, "arm": arm, "ratio": ratio, "steps": 5, "n_spots": 20}
            rows.append({**facts, "mae": value, "f1": 1 - value})
            drawn.append(value + noise[seed])
    frame = pd.DataFrame(rows)
    return sthist.benchmark.AugmentationScores(frame, {"mae": np.array(drawn)}, {}, pd.DataFrame())


ARMS = {
    ("real", 0): 0.5,
    ("real + synthetic", 0): 0.5,
    ("real, equal steps", 1): 0.45,
    ("real, augmented", 1): 0.4,
    ("real + synthetic", 1): 0.38,
    ("real + shuffled pairs", 1): 0.6,
    ("training mean", 0): 0.7,
}


class TestSummary:
    def test_compares_with_the_best_control_draw_by_draw(self):
        frame = scores_of(ARMS, spread=0.3).summary()
        both = frame[(frame["arm"] == "real + synthetic") & (frame["ratio"] == 1)].iloc[0]
        assert both["control"] == "real, augmented"
        assert both["difference"] == pytest.approx(-0.02)
        # What all arms share is not in the difference, but in the interval of the mean.
        assert both["difference_low"] == pytest.approx(-0.02)
        assert both["difference_high"] == pytest.approx(-0.02)
        assert both["low"] < 0.2
        assert both["high"] > 0.5
        assert frame["difference"].notna().sum() == 1

    @pytest.mark.parametrize(
        ("value", "word"), [(0.38, "better in 1 of 1"), (0.42, "worse in 1"), (0.4, "not told apart from it in 1")]
    )
    def test_says_it_in_words(self, value, word):
        text = scores_of({**ARMS, ("real + synthetic", 1): value}).verdict()
        assert word in text.replace("better than the best control in 1", "better in 1")
        assert "20 spots (25%), 1 synthetic tile of each" in text
        assert "'real, augmented'" in text

    def test_of_scores_that_are_to_be_high(self):
        frame = scores_of(ARMS).summary("f1")
        assert frame["difference"].dropna().tolist() == pytest.approx([0.02])
        assert "better than the best control in 1 of 1" in scores_of(ARMS).verdict("f1")

    def test_one_seed_tells_no_scores_apart_that_are_not_drawn_by_spots(self):
        frame = scores_of(ARMS, n_seeds=1).summary("f1")
        assert frame[["low", "high"]].isna().all(axis=None)
        text = scores_of(ARMS, n_seeds=1).verdict("f1")
        assert "not told apart from it in 1" in text
        assert "(of one seed, without an interval)" in text

    def test_nulls_are_spoken_of(self):
        odd = {**ARMS, ("real + shuffled pairs", 1): 0.3, ("training mean", 0): 0.1}
        text = scores_of(odd).verdict()
        assert "no better than the mean" in text
        assert "what they add is not in their pairs" in text

    def test_unknown_scores_are_refused(self):
        with pytest.raises(ValueError, match="metric is 'r2'; it is one of 'mae'"):
            scores_of(ARMS).summary("r2")


def test_ordinary_augmentation_changes_little():
    tiles = planted_slide(3)["he"].to_numpy().transpose(1, 2, 0)[:96, :96].reshape(3, 32, 3, 32, 3)
    tiles = np.ascontiguousarray(tiles.transpose(0, 2, 1, 3, 4).reshape(9, 32, 32, 3))
    changed = ordinary(np.tile(tiles, (2, 1, 1, 1)), 0)
    assert np.array_equal(changed[:9], ordinary(tiles, 0))  # a smaller ratio is a part of a larger one
    assert not np.array_equal(changed[:9], changed[9:])
    apart = np.abs(changed[:9].mean((1, 2)).astype(float) - tiles.mean((1, 2)))
    assert 1 < apart.mean() < 30


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fractions": [1.0]}, "fractions has 1.0; each is a part of the spots"),
        ({"fractions": [0.001]}, "an adapter needs 2 at least"),
        ({"fractions": [0.2, 0.2]}, "each once"),
        ({"ratios": [0]}, "ratios= has none above 0"),
        ({"ratios": [1.5]}, "ratios has 1.5"),
        ({"seeds": []}, "seeds= is"),
        ({"split": "patient"}, "split is 'patient'"),
        ({"split": Split("random", test=0.6)}, "more than all of them"),
        ({"guidance": -1}, "guidance is -1"),
        ({"training": {"patience": 3}}, "equal steps"),
        ({"genes": 6}, "genes=6: the samples have 5 genes in common"),
        ({"model": "deepspot"}, "looks at what is around a spot"),
        ({"model": "genst"}, "reads tiles; it takes no embedding="),
        ({"model": ResNetConfig(spec=TileSpec(32, 32)), "embedding": None}, "all tiles are read as the synthetic"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_trained(slides, central, monkeypatch, options, message):
    monkeypatch.setattr(C2L, "adapt", lambda *args, **options: 1 / 0)
    with pytest.raises(ValueError, match=message):
        run(slides, central, **options)


def test_genes_are_those_most_expressed_where_it_is_adapted(slides, central):
    found = run(slides, central, "ridge", fractions=[0.3], seeds=[0], ratios=[1], genes=2)
    own = parts(found, 0.3, 0)["adaptation"]
    means = np.mean([slides[name]["table"][spot].X[0] for name, spot in own], axis=0)
    assert set(found.tables[0.3, 0].var_names) == set(np.array(GENES)[np.argsort(means)[-2:]])
