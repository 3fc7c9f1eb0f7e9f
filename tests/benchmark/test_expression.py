"""Models of expression compared: what is held out, what is chosen where, and what knows nothing."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from expressing import SPEC, planted_slide
from scipy.stats import pearsonr

import sthist
from sthist.benchmark import expression

N_GENES = 30
FAST = {"gene_sets": ["panel"], "n_boot": 0}
ONCE = sthist.models.Split("random-slides", folds=1)


def slide(seed, side=8, genes=N_GENES, patient=None, noise=0.1):
    """Spots whose features are smooth in space, and genes that are functions of them with Poisson noise."""
    rng = np.random.default_rng(seed)
    x, y = (each.ravel() * 100.0 for each in np.meshgrid(np.arange(side), np.arange(side)))
    waves = [np.sin(x / 200 + seed), np.cos(y / 250 + seed), np.sin((x + y) / 300)]
    features = np.stack(waves, 1) + rng.normal(0, noise, (side * side, 3))
    fixed = np.random.default_rng(99)
    weights, base = fixed.normal(size=(3, N_GENES)), fixed.uniform(1, 4, N_GENES)
    counts = rng.poisson(np.exp(base + 0.5 * features @ weights)).astype(np.float32)
    obs = pd.DataFrame(index=[f"{seed}-{i}" for i in range(len(x))])
    if patient is not None:
        obs["patient"] = patient
    table = ad.AnnData(
        counts,
        obs=obs,
        var=pd.DataFrame(index=[f"GENE{i}" for i in range(N_GENES)]),
        obsm={"spatial": np.column_stack([x, y]), "X_f": features.astype(np.float32)},
    )
    return table[:, :genes].copy() if isinstance(genes, int) else table[:, genes].copy()


@pytest.fixture(scope="module")
def slides():
    return {name: slide(seed) for seed, name in enumerate("abcd")}


def log_expression(table):
    return np.log1p(table.X / table.X.sum(axis=1, keepdims=True) * 1e4)


def without(table, *, counts=True, places=True):
    """A table whose X are logarithms, or without places."""
    obsm = {key: table.obsm[key] for key in table.obsm if places or key != "spatial"}
    return ad.AnnData(table.X if counts else log_expression(table), obs=table.obs, var=table.var, obsm=obsm)


def test_rows_are_what_scipy_and_the_model_itself_say(slides):
    """Of one fold, by hand: a ridge that is trained on the other slides, scored by gene, by spot, and flat."""
    frame = expression(slides, split="sample", gene_sets=["panel", "top5"], n_boot=0)
    assert sorted(frame["test"].unique()) == list("abcd")
    train = pd.concat([pd.DataFrame(log_expression(slides[name])) for name in "bcd"])
    features = np.concatenate([slides[name].obsm["X_f"] for name in "bcd"])
    predicted = sthist.models.Ridge().fit(features, train).predict(slides["a"].obsm["X_f"])
    truth = log_expression(slides["a"])
    top = np.sort(np.argsort(-train.mean().to_numpy())[:5])
    for name, columns in (("panel", np.arange(N_GENES)), ("top5", top)):
        row = frame[(frame["test"] == "a") & (frame["method"] == "model") & (frame["genes"] == name)].iloc[0]
        by_gene = [pearsonr(truth[:, g], predicted[:, g])[0] for g in columns]
        by_spot = [pearsonr(truth[i, columns], predicted[i, columns])[0] for i in range(len(truth))]
        assert row["pearson_mean"] == pytest.approx(np.mean(by_gene), abs=1e-3)
        assert row["pearson_median"] == pytest.approx(np.median(by_gene), abs=1e-3)
        assert row["spot_pearson"] == pytest.approx(np.mean(by_spot), abs=1e-3)
        apart = truth[:, columns] - predicted[:, columns]
        assert row["l1"] == pytest.approx(np.abs(apart).mean(), rel=1e-3)
        assert row["rmse"] == pytest.approx(np.sqrt((apart**2).mean()), rel=1e-3)
        mean = frame[(frame["test"] == "a") & (frame["model"] == "training mean") & (frame["genes"] == name)].iloc[0]
        of_mean = np.tile(train.mean().to_numpy()[columns], (len(truth), 1))
        assert mean["pearson_mean"] == 0
        assert mean["n_genes_constant"] == len(columns)
        assert mean["pearson_flattened"] == pytest.approx(
            pearsonr(truth[:, columns].ravel(), of_mean.ravel())[0], abs=1e-3
        )


def test_what_tissue_shows_is_found_and_nulls_find_nothing(slides):
    frame = expression(slides, ["ridge"], seeds=[0, 1], gene_sets=["svg10", "panel"], n_boot=50)
    means = frame.groupby(["method", "genes"])["pearson_mean"].mean()
    assert means["model", "svg10"] > 0.6
    assert abs(means["shuffled tiles", "panel"]) < 0.1
    assert means["training mean", "panel"] == 0
    flat = frame.groupby("method")["pearson_flattened"].mean()
    assert flat["training mean"] > 0.5
    assert set(frame.attrs["dominated_by_gene_means"]) <= set(frame)
    model = frame[frame["method"] == "model"]
    assert (model["low"] < model["pearson_mean"] + 0.05).all()
    assert (model["low"] < model["high"]).all()
    assert model["seconds"].gt(0).all()
    assert model["peak_gb"].gt(0.05).all()
    assert set(model["initialization"]) == {"X_f"}
    assert frame.groupby(["model", "method", "fold", "seed", "genes"]).size().eq(1).all()


@pytest.mark.parametrize(
    ("split", "tested", "n_train"),
    [
        ("single-slide", ["all but a", "all but b", "all but c", "all but d"], 64),
        ("sample", list("abcd"), 192),
        ("random-slides", None, 128),
    ],
)
def test_splits_of_slides(slides, split, tested, n_train):
    frame = expression(slides, split=split, **FAST)
    assert set(frame["n_train"]) == {n_train}
    if tested is None:
        assert frame["fold"].nunique() == 5
        assert set(frame["n_spots"]) == {64}
    else:
        assert sorted(frame["test"].unique()) == tested


def test_ten_slides_are_parted_seven_one_two():
    data = {f"s{i}": slide(i, side=3) for i in range(10)}
    frame = expression(data, split=sthist.models.Split("random-slides", folds=3), **FAST)
    assert set(frame["n_train"]) == {7 * 9}
    assert set(frame["n_spots"]) == {2 * 9}
    assert frame["fold"].nunique() == 3


def test_blocks_of_one_slide(slides):
    split = sthist.models.Split("block", block_um=200, gap_um=150, folds=2)
    frame = expression(slides["a"], split=split, n_boot=20, gene_sets=["panel"])
    assert set(frame["drawn"]) == {"groups"}
    assert (frame["n_train"] + frame["n_spots"] < 64).all()  # the gap is in neither
    with pytest.raises(ValueError, match="one patient"):
        expression(slides["a"], **FAST)


def test_sections_of_a_patient_stay_together():
    data = {name: slide(seed, patient=f"p{seed // 2}") for seed, name in enumerate("abcd")}
    by_patient = expression(data, **FAST)
    assert sorted(by_patient["test"].unique()) == ["p0", "p1"]
    assert not by_patient["same_patient"].any()
    by_slide = expression(data, split="sample", **FAST)
    assert by_slide["same_patient"].all()
    assert by_slide.attrs["leaks"]


class TestNothingIsLearnedFromTheTest:
    def test_genes_and_predictions_do_not_change_with_it(self, slides):
        """Other counts on the slide that tests: the same genes are chosen, and the training has the same mean."""
        sets = ["hvg5", "svg5", "variance5", "top5"]
        other = dict(slides, d=slide(3))
        other["d"].X = np.random.default_rng(0).permuted(other["d"].X, axis=1)
        split = {"a": "train", "b": "train", "c": "train", "d": "test"}
        found = [expression(each, split=split, gene_sets=sets, n_boot=0) for each in (slides, other)]
        chosen = [each.attrs["gene_sets"] for each in found]
        assert chosen[0] == chosen[1]
        assert {name: len(genes) for name, genes in chosen[0][0].items()} == dict.fromkeys(sets, 5)
        train = np.concatenate([log_expression(slides[name]) for name in "abc"])
        for number, data in enumerate((slides, other)):
            mean = found[number][found[number]["model"] == "training mean"].set_index("genes")
            for name in sets:
                columns = [int(gene.removeprefix("GENE")) for gene in chosen[number][0][name]]
                apart = log_expression(data["d"])[:, columns] - train.mean(axis=0)[columns]
                assert mean.loc[name, "l1"] == pytest.approx(np.abs(apart).mean(), rel=1e-3)

    def test_each_kind_of_gene_set_is_what_it_says(self, slides):
        import scanpy as sc

        split = {"a": "train", "b": "train", "c": "test", "d": "test"}
        sets = ["hvg4", "svg4", "variance4", "top4"]
        chosen = expression(slides, split=split, gene_sets=sets, n_boot=0).attrs["gene_sets"][0]
        logs = [log_expression(slides[name]) for name in "ab"]
        both = np.concatenate(logs)
        moran = [
            sthist.metrics.morans_i(each, slides[name].obsm["spatial"]) for each, name in zip(logs, "ab", strict=True)
        ]
        dispersion = [
            sc.pp.highly_variable_genes(ad.AnnData(each), inplace=False)["dispersions_norm"].to_numpy() for each in logs
        ]
        among = np.sum([np.isin(np.arange(N_GENES), np.argsort(-each)[:4]) for each in dispersion], axis=0)
        scores = {
            "hvg4": 1e3 * among + np.mean(dispersion, axis=0),
            "svg4": np.sqrt(np.prod(np.maximum(moran, 0.01), axis=0)),
            "variance4": both.std(axis=0),
            "top4": both.mean(axis=0),
        }
        for name, score in scores.items():
            assert set(chosen[name]) == {f"GENE{i}" for i in np.argsort(-score)[:4]}, name

    def test_the_panel_is_of_the_slides_that_train(self, slides):
        """A gene that one slide alone has is not predicted where that slide tests; elsewhere it is, and counted."""
        rest = [f"GENE{i}" for i in range(1, N_GENES)]
        data = {name: slides[name] if name == "a" else slides[name][:, rest].copy() for name in slides}
        frame = expression(data, split="sample", **FAST)
        found = frame[frame["method"] == "model"].set_index("test")
        assert found["n_genes"].to_dict() == {"a": 29, "b": 30, "c": 30, "d": 30}
        assert found["n_genes_undefined"].to_dict() == {"a": 0, "b": 1, "c": 1, "d": 1}

    def test_so_many_of_the_most_expressed(self, slides):
        frame = expression(slides, genes=12, gene_sets=["variance5", "panel", "hvg50"], n_boot=0)
        assert frame.groupby("genes")["n_genes"].unique().map(list).to_dict() == {"panel": [12], "variance5": [5]}
        assert "12 genes" in frame.attrs["left_out"]["hvg50"]

    def test_genes_that_are_named(self, slides):
        frame = expression(slides, genes=["GENE3", "GENE7"], gene_sets={"mine": ["GENE7"], "no": ["X"]}, n_boot=0)
        assert set(frame["genes"]) == {"mine"}
        assert "no" in frame.attrs["left_out"]


def test_several_models_by_name_and_config(slides):
    models = {"ridge": "ridge", "smoothed": sthist.models.RidgeConfig(smooth_um=100), "mlp": "mlp"}
    frame = expression(slides, models, training={"epochs": 2}, split=sthist.models.Split(folds=2), **FAST)
    assert list(frame["model"].unique()) == ["training mean", "places", "ridge", "smoothed", "mlp"]
    with pytest.raises(ValueError, match="mapping of what to call each"):
        expression(slides, ["ridge", sthist.models.RidgeConfig(alpha=1)], **FAST)


def test_the_papers_protocol_is_one_call(slides, monkeypatch):
    used = []
    real = sthist.models.EmbeddingMLP._fit

    def fit(self, inputs, targets, rows, watched, options, where):
        used.append((options, len(rows), len(watched)))
        real(self, inputs, targets, rows, watched, options, where)

    monkeypatch.setattr(sthist.models.EmbeddingMLP, "_fit", fit)
    frame = expression(slides, ["mlp"], split=ONCE, protocol="genst", training={"epochs": 1}, n_boot=0)
    options, n_train, n_watched = used[0]
    assert (options.optimizer, options.lr, options.weight_decay) == ("radam", 1e-4, 1e-4)
    assert (n_train, n_watched) == (128, 64)
    assert set(frame["split"]) == {"random-slides"}
    assert set(frame["genes"]) == {"panel"}
    assert {"spot_pearson", "recall_top50", "spearman_top50"} <= set(frame)


class TestNulls:
    """What knows no single gene, or no image, has what is planted for it, and nothing of the rest."""

    @staticmethod
    def scores(frame):
        return frame.groupby("method")[["pearson_mean", "beyond_counts"]].mean()

    def test_places_are_gaussian_means_of_slides_that_lie_on_each_other(self):
        """Against the sum over all pairs; slides lie elsewhere each, and their genes at the same places in them."""
        data = {}
        for number, name in enumerate("abc"):
            data[name] = slide(7)
            data[name].X = np.random.default_rng(number).poisson(data[name].X + 1).astype(np.float32)
            data[name].obsm["spatial"] = data[name].obsm["spatial"] + 5000 * number
            data[name].obsm["X_f"] = np.random.default_rng(number).normal(size=(64, 3)).astype(np.float32)
        frame = expression(data, split="sample", **FAST)
        found = self.scores(frame)
        assert found.loc["places", "pearson_mean"] > 0.5
        assert found.loc["places", "pearson_mean"] > found.loc["model", "pearson_mean"] + 0.4
        row = frame[(frame["method"] == "places") & (frame["test"] == "c")].iloc[0]
        xy = data["a"].obsm["spatial"]
        weights = np.exp(-0.5 * (np.linalg.norm(xy[:, None] - xy[None], axis=2) / 400) ** 2)
        both = (log_expression(data["a"]) + log_expression(data["b"])) / 2
        expected = weights @ both / weights.sum(axis=1, keepdims=True)
        truth = log_expression(data["c"])
        by_gene = [pearsonr(truth[:, g], expected[:, g])[0] for g in range(N_GENES)]
        assert row["pearson_mean"] == pytest.approx(np.mean(by_gene), abs=0.02)
        assert row["l1"] == pytest.approx(np.abs(truth - expected).mean(), rel=0.01)

    def test_without_places_there_is_no_such_null(self, slides):
        data = {
            name: ad.AnnData(each.X, obs=each.obs, var=each.var, obsm={"X_f": each.obsm["X_f"]})
            for name, each in slides.items()
        }
        assert set(expression(data, **FAST)["method"]) == {"training mean", "model", "shuffled tiles"}

    def test_one_map_is_the_nuclei_of_a_stored_embedding(self):
        """Each gene follows the nuclei in one half of them, and the other way in the other half."""
        names = sthist.encoders.morphology_feature_names()
        data = {}
        for seed, name in enumerate("abc"):
            data[name] = slide(seed)
            features = np.random.default_rng(seed).normal(size=(64, len(names))).astype(np.float32)
            nuclei = features[:, names.index("sqrt_nuclei_density_per_mm2")]
            sign = np.where(np.arange(N_GENES) < N_GENES // 2, 1.0, -1.0)
            logs = 3 + 0.5 * nuclei[:, None] * sign
            data[name].X = np.random.default_rng(seed).poisson(np.exp(logs)).astype(np.float32)
            data[name].obsm["X_m"] = features
            data[name].uns["sthist"] = {"X_m": {"encoder": "morphology"}}
        halves = {"with": [f"GENE{i}" for i in range(15)], "against": [f"GENE{i}" for i in range(15, 30)]}
        frame = expression(data, embedding="X_f", gene_sets=halves, n_boot=0)
        found = frame[frame["method"] == "one map"].groupby("genes")["pearson_mean"].mean()
        assert found["with"] > 0.7
        assert found["against"] < -0.7
        spread = frame[frame["method"] == "one map"].groupby("genes")["l1"].mean()
        assert spread["with"] < spread["against"]
        other = {name: each.copy() for name, each in data.items()}
        other["b"].uns["sthist"] = {"X_m": {"encoder": "conch"}}
        assert "one map" not in set(expression(other, embedding="X_f", **FAST)["method"])

    def test_beyond_counts_is_the_partial_correlation_given_log_counts(self, slides):
        frame = expression(slides, split="sample", **FAST)
        train = pd.concat([pd.DataFrame(log_expression(slides[name])) for name in "bcd"])
        features = np.concatenate([slides[name].obsm["X_f"] for name in "bcd"])
        predicted = sthist.models.Ridge().fit(features, train).predict(slides["a"].obsm["X_f"])
        truth, z = log_expression(slides["a"]), np.log1p(slides["a"].X.sum(axis=1))
        rest = [
            each - np.polynomial.Polynomial.fit(z, each, 1)(z)
            for g in range(N_GENES)
            for each in (truth[:, g], predicted[:, g])
        ]
        expected = np.mean([pearsonr(a, b)[0] for a, b in zip(rest[::2], rest[1::2], strict=True)])
        row = frame[(frame["test"] == "a") & (frame["method"] == "model")].iloc[0]
        assert row["beyond_counts"] == pytest.approx(expected, abs=1e-3)
        logs = {
            name: ad.AnnData(log_expression(each), var=each.var, obsm=dict(each.obsm)) for name, each in slides.items()
        }
        assert expression(logs, **FAST)["beyond_counts"].isna().all()


def test_depth_is_of_what_trains_alone():
    """As deep as the slides are, it changes nothing; shallower, the mean of the training is another, the truth not."""
    data = {name: slide(seed) for seed, name in enumerate("abc")}
    plain, deep, shallow = (expression(data, split="sample", depth=depth, **FAST) for depth in (None, 1e9, 60.0))
    same = ["pearson_mean", "l1", "pearson_flattened", "n_spots"]
    np.testing.assert_allclose(plain[same], deep[same], rtol=1e-5)
    mean = [frame[frame["method"] == "training mean"]["l1"].mean() for frame in (plain, shallow)]
    assert mean[1] > mean[0] + 0.1  # logarithms of few counts are lower on average
    of_truth = "pearson_flattened_of_gene_means"
    np.testing.assert_allclose(plain[of_truth], shallow[of_truth])
    logs = {name: without(each, counts=False) for name, each in data.items()}
    with pytest.raises(ValueError, match="needs raw counts"):
        expression(logs, depth=60.0, **FAST)


class TestRefused:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"models": "rigde"}, "no model 'rigde'"),
            ({"gene_sets": ["hvg"]}, "no gene set 'hvg'"),
            ({"gene_sets": []}, "at least one name"),
            ({"gene_sets": ["hvg500"]}, "No gene set is left"),
            ({"seeds": []}, "at least one number"),
            ({"protocol": "hest"}, "it is 'genst'"),
            ({"genes": 500}, "30 genes in common"),
            ({"split": sthist.models.Split("single-slide", folds=2)}, "each slide trains once"),
            ({"depth": 0.0}, "a number of counts"),
        ],
    )
    def test_arguments(self, slides, arguments, message):
        with pytest.raises((ValueError, KeyError, TypeError), match=message):
            expression(slides, **{**FAST, **arguments})

    def test_slides_without_common_genes(self, slides):
        other = slide(8)
        other.var_names = [f"OTHER{i}" for i in range(N_GENES)]
        with pytest.raises(ValueError, match="other"):
            expression({**slides, "other": other}, **FAST)

    def test_a_slide_with_one_spot(self, slides):
        with pytest.raises(ValueError, match="'one' tests, and has one row"):
            expression({**slides, "one": slide(8)[:1].copy()}, **FAST)

    def test_constant_genes_are_counted(self, slides):
        data = {name: table.copy() for name, table in slides.items()}
        data["a"].X[:, 4] = 0
        frame = expression(data, split="sample", **FAST)
        row = frame[(frame["test"] == "a") & (frame["method"] == "model")].iloc[0]
        assert row["n_genes_undefined"] == 1
        assert np.isfinite(row["pearson_mean"])

    def test_one_slide(self, slides):
        with pytest.raises(ValueError, match="two slides at least"):
            expression(slides["a"], split="random-slides", **FAST)


def test_intervals_hold_the_truth_as_often_as_they_say():
    """Spots are drawn anew: of many slides of known correlation, about 95 % of intervals cover it."""
    from sthist.benchmark._expression.gene_scores import drawn_means, interval

    rng, covered = np.random.default_rng(0), 0
    for trial in range(100):
        first = rng.normal(size=(150, 4))
        second = 0.6 * first + 0.8 * rng.normal(size=first.shape)
        sample = np.repeat(["a", "b"], 75)
        low, high = interval(drawn_means(first, second, None, sample, np.arange(150), 200, trial))
        covered += low <= 0.6 <= high
    assert 86 <= covered <= 100


@pytest.mark.slow
def test_the_papers_models_are_in_one_table():
    data = {name: planted_slide(seed, side=5, patient=name) for seed, name in enumerate("abc")}
    sthist.pp.embed(data, "morphology", regions="spots", spec=SPEC, progress=False)
    models, backbone = sthist.models, {"backbone": "test_resnet", "pretrained": False, "spec": SPEC}
    small = {**backbone, "n_atoms": 8, "hidden": (16,), "image_hidden": (8, 8, 4, 4, 4)}
    compared = {
        "genst": models.GenSTConfig(**small),
        "stnet": models.STNetConfig(**backbone),
        "bleep": models.BLEEPConfig(**backbone),
        "clip": models.CLIPConfig(**small),
        "deepspot": models.DeepSpotConfig(subspots=False),
        "mlp": "mlp",
    }
    frame = expression(
        data, compared, split=ONCE, protocol="genst", n_boot=0, training={"epochs": 1, "batch_size": 8}, progress=False
    )
    begins = frame[frame["method"] == "model"].set_index("model")["initialization"].to_dict()
    assert begins == {
        **dict.fromkeys(("genst", "stnet", "bleep", "clip"), "test_resnet, random"),
        **dict.fromkeys(("deepspot", "mlp"), "morphology"),
    }
    assert frame[["spot_pearson", "l1"]].notna().all(axis=None)
    # What knows no image has nearly all of the headline of that paper.
    assert frame.loc[frame["method"] == "training mean", "spot_pearson"].min() > 0.8
