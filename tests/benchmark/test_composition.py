"""Models of composition, split honestly and beside what knows nothing."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import sthist


@pytest.fixture(scope="module")
def tables():
    """Three patients whose two types follow an embedding; a third type is noise, a fourth is nowhere."""
    made = {}
    for seed, name in enumerate(("a", "b", "c", "d")):
        rng = np.random.default_rng(seed)
        features = rng.normal(size=(60, 5)).astype(np.float32)
        amounts = np.exp(np.c_[features[:, :2] @ np.array([[1.0, 0.2], [0.1, 0.8]]), rng.normal(size=60)])
        frame = pd.DataFrame(np.c_[amounts, np.zeros(60)], columns=["one", "other", "noise", "nowhere"])
        table = ad.AnnData(np.zeros((60, 1), np.float32))
        table.obsm["X_good"], table.obsm["X_poor"] = features, rng.normal(size=(60, 3)).astype(np.float32)
        table.obsm["cell_abundance"] = frame.set_axis(table.obs_names)
        table.obsm["spatial"] = rng.uniform(0, 1000, (60, 2))
        table.obs["patient"] = name if name < "c" else "c"
        made[name] = table
    return made


@pytest.fixture(scope="module")
def frame(tables):
    embedding = {"good": "X_good", "poor": "X_poor", "both": ["X_good", "X_poor"]}
    return sthist.benchmark.composition(tables, "ridge", embedding=embedding, progress=False)


def mean_of(frame, **where):
    kept = frame[(frame["type"] == where.pop("type", "mean")) & (frame["slide"] == "all")]
    for name, value in where.items():
        kept = kept[kept[name] == value]
    return kept["pearson"].mean()


def test_each_patient_tests_once_and_is_never_trained_on(frame):
    assert sorted(frame["test"].unique()) == ["a", "b", "c"]
    assert not frame["same_patient"].any()
    whole = frame[(frame["type"] == "mean") & (frame["slide"] == "all") & (frame["method"] == "training mean")]
    assert whole["n_spots"].sum() == 240


def test_embeddings_are_compared_beside_nulls(frame):
    for name in ("good", "both"):
        assert mean_of(frame, embedding=name, method="model", type="one") > 0.6
        assert abs(mean_of(frame, embedding=name, method="shuffled tiles", type="one")) < 0.25
    assert abs(mean_of(frame, embedding="poor", method="model", type="one")) < 0.25
    assert mean_of(frame, method="training mean", type="one") == 0


def test_a_type_that_is_nowhere_is_counted_and_in_no_mean(frame):
    nowhere = frame[frame["type"] == "nowhere"]
    assert nowhere["pearson"].isna().all()
    assert (frame.loc[frame["type"] == "mean", "n_types_undefined"] == 1).all()
    kept = frame[(frame["slide"] == "all") & (frame["method"] == "model") & (frame["embedding"] == "good")]
    for _, fold in kept.groupby("fold"):
        types = fold[~fold["type"].isin(["mean", "nowhere"])]["pearson"].mean()
        assert fold.loc[fold["type"] == "mean", "pearson"].item() == pytest.approx(types)


def test_scores_are_those_of_numpy(tables):
    split = {"a": "train", "b": "train", "c": "test", "d": "test"}
    frame = sthist.benchmark.composition(tables, "ridge", embedding="X_good", split=split, progress=False)
    model = sthist.tl.train_composition(tables, "ridge", embedding="X_good", split=split)
    predicted = {name: model.predict(tables[name].obsm["X_good"])[:, 0] for name in ("c", "d")}
    truth = {name: tables[name].obsm["cell_abundance"]["one"].to_numpy() for name in ("c", "d")}
    found = frame[(frame["type"] == "one") & (frame["method"] == "model")].set_index("slide")
    for name in ("c", "d"):
        assert found.loc[name, "pearson"] == pytest.approx(np.corrcoef(truth[name], predicted[name])[0, 1], abs=1e-5)
        assert found.loc[name, "l1"] == pytest.approx(np.abs(truth[name] - predicted[name]).mean(), rel=1e-5)
    pooled = np.corrcoef(np.concatenate([*truth.values()]), np.concatenate([*predicted.values()]))[0, 1]
    assert found.loc["all", "pearson"] == pytest.approx(pooled, abs=1e-5)


def test_two_models_of_one_name_are_refused(tables):
    with pytest.raises(ValueError, match="several models"):
        sthist.benchmark.composition(tables, ["ridge", "ridge"], embedding="X_good")
