"""A system from outside of the package, written from the page "Contributing": train, apply, save, load, score."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import spatialdata as sd
from examples.mean_colour.apply import mean_colour, read_colours
from examples.mean_colour.train import train_mean_colour

import sthist

OPTIONS = {"epochs": 60, "seed": 3}


@pytest.fixture(scope="module")
def _sections():
    sections = {name: sthist.datasets.toy(size_um=300, seed=seed) for name, seed in (("a", 1), ("b", 2), ("c", 3))}
    sthist.pp.tissue(sections)
    sthist.pp.tiles(sections, size_um=32, px=32)
    for seed, sdata in enumerate(sections.values()):
        colours, table, _ = read_colours(sdata, "tiles")
        noise = np.random.default_rng(seed).normal(0, 0.01, len(colours))
        table.obs["amount"] = 3 * (1 - colours.mean(axis=1)) + noise  # a tile's colour says all but the noise
    return sections


@pytest.fixture
def sections(_sections, monkeypatch):
    monkeypatch.setattr(sthist.settings, "progress", False)
    return {name: sd.deepcopy(sdata) for name, sdata in _sections.items()}


def test_train_score_save_load_apply(sections, tmp_path):
    known = {name: sections[name] for name in ("a", "b")}
    split = sthist.models.Split("sample", folds=2)
    model = train_mean_colour(known, "amount", split=split, folder=tmp_path / "run", training=OPTIONS)
    assert model.config.report["mse"] < 0.5 * model.config.report["mse_of_mean"]
    assert len(model.history) == OPTIONS["epochs"]
    assert {"mse", "lr"} <= set(model.history[-1])

    loaded = sthist.models.load(tmp_path / "run")
    assert loaded.config == model.config
    new = sections["c"]
    mean_colour(new, tmp_path / "run")
    table = new["tiles_table"]
    colours, _, _ = read_colours(new, "tiles")
    np.testing.assert_array_equal(table.obs["mean_colour"], model.predict(colours))
    assert np.corrcoef(table.obs["mean_colour"], table.obs["amount"])[0, 1] > 0.9
    assert table.uns["sthist"]["mean_colour"]["report"] == model.config.report
    with pytest.raises(ValueError, match="overwrite=True"):
        mean_colour(new, model)
    sthist.pp.tiles(new, size_um=64, px=32, key_added="large")
    with pytest.raises(ValueError, match="is needed"):
        mean_colour(new, model, regions="large")


def test_a_training_that_was_stopped_equals_one_that_was_not(sections, tmp_path):
    split = sthist.models.Split("block", test=0.3, block_um=100, gap_um=0)
    whole = train_mean_colour(sections["a"], "amount", split=split, training=OPTIONS)
    for folder, changes in ((tmp_path, {"epochs": 15}), (tmp_path, {"resume": True})):
        parted = train_mean_colour(sections["a"], "amount", split=split, folder=folder, training=OPTIONS | changes)
    for name, weights in whole.weights.items():
        np.testing.assert_array_equal(parted.weights[name], weights)


def test_shuffled_targets_are_no_better_than_their_mean(sections):
    table = sections["a"]["tiles_table"]
    table.obs["amount"] = np.random.default_rng(0).permutation(table.obs["amount"].to_numpy())
    report = train_mean_colour(sections["a"], "amount", training=OPTIONS).config.report
    assert report["mse"] > 0.9 * report["mse_of_mean"]


def test_the_example_is_small():
    files = list((Path(__file__).parent / "mean_colour").glob("*.py"))
    assert len(files) <= 4
    assert sum(len(file.read_text().splitlines()) for file in files) <= 150
