"""Held-out scores of models whose scores are known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from flat import ablate_virtual_he, cross_validate_virtual_he

import sthist
from sthist.benchmark import over_seeds
from sthist.benchmark._folds import fold_count
from sthist.benchmark._tiles import predict_tiles
from sthist.metrics import image as scores
from sthist.metrics._compare import shuffled
from sthist.tiles import TileReader, TileSpec
from sthist.training.splits import Grouping

SPEC = TileSpec(32, 64)


def _real(sdata, names):
    table = sdata["tiles_table"]
    centres = table.obsm["spatial"][table.obs.set_index("instance_id").index.get_indexer(names)]
    return TileReader(sdata, "he", SPEC, fill=255).read(centres)


def test_a_model_that_knows_the_real_tiles_is_perfect(tiled, trainer):
    """Each tile tests once, with SSIM 1, and what has not learned it is worse; that is the same under each seed."""
    frame = cross_validate_virtual_he(tiled, folds=2, metrics=("ssim", "mse"), seeds=(3, 4))
    assert list(frame.columns) == ["split", "fold", "seed", "method", "sample", "tile", "ssim", "mse"]
    model = frame[frame.method == "model"]
    np.testing.assert_allclose(model.ssim, 1)
    assert (model.mse == 0).all()
    for _, tested in model.groupby("seed"):
        assert sorted(tested.tile) == sorted(tiled["tiles_table"].obs.instance_id)
    means = frame.groupby(["method", "seed"]).ssim.mean().unstack()
    assert set(means.index) == {"model", "shuffled", "beer-lambert", "beer-lambert, training colours", "mean colour"}
    assert (means.drop("model") < 0.95).all(axis=None)
    assert (means[3] == means[4]).all()
    assert frame.attrs["leaks"] == ""
    assert [fold["test"] for fold in frame.attrs["folds"]] == tested.groupby("fold").size().tolist()


def test_sets_through_the_built_in_encoder(tiled, trainer):
    """The Fréchet distance of the perfect model is 0; another tile's image is the same set, and has none of its own."""
    frame = cross_validate_virtual_he(tiled, test=0.3, metrics="fid", baselines="mean colour")
    values = {record["method"]: record["value"] for record in frame.attrs["sets"]}
    assert set(values) == {"model", "mean colour"}
    assert values["model"] < 1e-3
    assert values["mean colour"] > 1
    assert frame.attrs["encoder"] == "morphology, standardised by the real tiles"


def test_no_held_out_tile_is_trained_on(tiled, trainer):
    """Nor one that overlaps it; the trainer is told of both sides, and of no tile twice."""
    before = tiled["tiles_table"].obs.copy()
    frame = cross_validate_virtual_he(tiled, folds=2, seeds=(3, 4), baselines=(), n_tiles=5, training={"epochs": 7})
    assert [(call.seed, call.arguments["epochs"]) for call in trainer.calls] == [(3, 7), (4, 7)] * 2
    places = pd.DataFrame(tiled["tiles_table"].obsm["spatial"], index=tiled["tiles_table"].obs.instance_id)
    for fold, calls in ((0, trainer.calls[:2]), (1, trainer.calls[2:])):
        assert calls[0].parts == calls[1].parts
        (parts,) = calls[0].parts.values()
        scored = frame[(frame.fold == fold) & (frame.method == "model") & (frame.seed == 3)].tile
        assert len(scored) == 5
        assert {parts[name] for name in scored} == {"test"}
        test = places.loc[list(scored)].to_numpy()
        for side in ("train", "validation"):
            mine = places.loc[[name for name, part in parts.items() if part == side]].to_numpy()
            assert len(mine)
            apart = np.abs(mine[:, None] - test[None]).max(-1)
            assert apart.min() >= SPEC.size_um * (1 - 1e-9)
    pd.testing.assert_frame_equal(tiled["tiles_table"].obs, before)


def test_another_tile_is_the_shuffled_null(tiled, trainer):
    """A model that shows each tile's partner scores what the perfect one scores shuffled."""
    perfect = cross_validate_virtual_he(tiled, test=0.3, n_tiles=12, baselines=(), seed=5)
    trainer.paint = lambda tiles: tiles[shuffled(len(tiles), 5)]
    other = cross_validate_virtual_he(tiled, test=0.3, n_tiles=12, baselines=(), seed=5)
    wrong, null = other[other.method == "model"], perfect[perfect.method == "shuffled"]
    assert list(wrong.tile) == list(null.tile)
    for metric in ("ssim", "mse", "psnr"):
        np.testing.assert_allclose(wrong[metric], null[metric])
    assert (wrong.ssim < 0.95).all()


def test_mean_colour_is_that_of_the_training_tiles(tiled, trainer):
    """By the definition of the mean squared error; under each seed alike."""
    frame = cross_validate_virtual_he(
        tiled, test=0.3, seeds=(0, 1), baselines=("mean colour",), metrics="mse", training={"validation": 0}
    )
    (parts,) = trainer.calls[0].parts.values()
    colour = np.round(_real(tiled, [name for name, part in parts.items() if part == "train"]).mean((0, 1, 2)))
    for _, found in frame[frame.method == "mean colour"].groupby("seed"):
        expected = ((_real(tiled, list(found.tile)) - colour) ** 2).mean((1, 2, 3))
        np.testing.assert_allclose(found.mse, expected)


def test_baselines_are_what_the_whole_image_shows(tiled, trainer):
    """Beer-Lambert's tiles are those of its virtual H&E of the section, up to where pixels begin."""
    sthist.tl.virtual_he(tiled)
    frame = cross_validate_virtual_he(tiled, test=0.3, metrics="ssim", baselines="beer-lambert")
    found = frame[frame.method == "beer-lambert"]
    table = tiled["tiles_table"]
    centres = table.obsm["spatial"][table.obs.set_index("instance_id").index.get_indexer(found.tile)]
    drawn = TileReader(tiled, "virtual_he", SPEC, fill=255).read(centres)
    assert np.abs(scores.ssim(drawn, _real(tiled, list(found.tile))) - found.ssim).mean() < 0.03


def test_splits_by_what_is_known_of_samples(trainer):
    """Tissue and platform come from the samples' records or a table; a sample is on one side."""
    samples = {name: sthist.datasets.toy(size_um=200, seed=i) for i, name in enumerate("uvw")}
    for sdata in samples.values():
        sthist.pp.tiles(sdata, size_um=32, px=64, sampling="fps", n_tiles=8)
    with pytest.raises(KeyError, match="platform of sample 'u' is not known"):
        cross_validate_virtual_he(samples, split="platform", folds=2)
    for name, platform in zip("uvw", ("Xenium", "CosMx", "Xenium"), strict=True):
        samples[name].attrs["sthist"]["sample"] = {"platform": platform}
    frame = cross_validate_virtual_he(samples, split="platform", folds=2, baselines=())
    assert (frame.groupby(["fold", "sample"]).size().unstack().notna().sum() == 1).all()
    by_fold = frame.groupby("fold")["sample"].unique().map(set).tolist()
    assert sorted(by_fold, key=len) == [{"v"}, {"u", "w"}]
    assert frame.split.unique().tolist() == ["platform"]
    table = pd.DataFrame({"sample": list("uvw"), "tissue": ["breast", "lung", "lung"]})
    frame = cross_validate_virtual_he(samples, split="tissue", test=["breast"], samples=table, baselines=())
    assert set(frame["sample"]) == {"u"}
    assert {set(call.parts["u"].values()).pop() for call in trainer.calls[-1:]} == {"test"}
    n_calls = len(trainer.calls)
    told = dict(table.to_numpy())
    with pytest.raises(ValueError, match=r"tests the tissue 'breast' and is trained on \['lung'\]"):
        cross_validate_virtual_he(samples, split="tissue", test=["breast"], samples=table, training={"tissue": told})
    with pytest.raises(KeyError, match="says nothing of 2 samples, such as 'v'"):
        cross_validate_virtual_he(samples, split="sample", test=["u"], training={"tissue": {"u": "lung"}})
    assert len(trainer.calls) == n_calls


@pytest.fixture(scope="module")
def _five():
    samples = {name: sthist.datasets.toy(size_um=200, seed=i) for i, name in enumerate("uvwxy")}
    for sdata in samples.values():
        sthist.pp.tiles(sdata, size_um=32, px=64, sampling="fps", n_tiles=8)
    return samples


@pytest.fixture
def five(_five):
    """Five samples of eight tiles, whose instance ids repeat."""
    return dict(_five)


@pytest.mark.parametrize("classes", [None, "organ"])
def test_whole_samples_are_watched(five, trainer, classes):
    """Each fold tests one sample and watches another, also where each sample is of a class of its own."""
    for name, sdata in five.items():
        sdata["tiles_table"].obs["organ"] = name
    frame = cross_validate_virtual_he(
        five, split="sample", baselines=(), classes=classes, training={"validation": 0.15}
    )
    assert [set(tested) for _, tested in frame.groupby("fold")["sample"]] == [
        {name} for name in frame["sample"].unique()
    ]
    assert frame["sample"].nunique() == 5
    for fold, call in zip(frame.attrs["folds"], trainer.calls, strict=True):
        parts = {name: set(each.values()) for name, each in call.parts.items()}
        assert sorted(map(tuple, parts.values())) == [("test",), ("train",), ("train",), ("train",), ("validation",)]
        assert fold == {"train": 24, "validation": 8, "test": 8}
        assert call.validation == 0.15


def test_a_tissue_that_is_told_is_trained_on(five, trainer, knowing, monkeypatch):
    """What is watched is never the last of a tissue: squares are, where a whole sample would be."""
    monkeypatch.setattr(type(knowing(SPEC)), "to", lambda self, device, *, tissue: self, raising=False)
    told = {"u": "lung", "v": "lung", "w": "skin", "x": "skin", "y": "skin"}
    watching = {"split": "sample", "baselines": ()}
    ablate_virtual_he(
        five, {"told": {"tissue": told}}, test=["y"], seeds=(0,), training={"validation": 0.15}, **watching
    )
    (parts,) = [{name: set(each.values()).pop() for name, each in call.parts.items()} for call in trainer.calls]
    assert sorted(parts.values()) == ["test", "train", "train", "train", "validation"]
    assert {told[name] for name, part in parts.items() if part == "train"} == {"lung", "skin"}
    few = {name: five[name] for name in "uwx"}
    cross_validate_virtual_he(few, test=["x"], training={"tissue": told, "validation": 0.15}, **watching)
    parts = {name: set(each.values()) for name, each in trainer.calls[-1].parts.items()}
    assert parts["x"] == {"test"}
    assert "train" in parts["u"] & parts["w"]
    assert "validation" in parts["u"] | parts["w"]


def test_one_group_is_left_out_at_a_time(five, trainer):
    """Where groups have names and are few, nobody has to count them."""
    table = pd.DataFrame({"sample": list("uvwxy"), "tissue": ["lung", "lung", "skin", "gut", None]})
    with pytest.raises(KeyError, match="tissue of sample 'y' is not known"):
        cross_validate_virtual_he(five, split="tissue", samples=table)
    table.loc[4, "tissue"] = "gut"
    frame = cross_validate_virtual_he(five, split="tissue", samples=table, baselines=())
    tested = frame.groupby("fold")["sample"].unique().map(set).tolist()
    assert sorted(tested, key=min) == [{"u", "v"}, {"w"}, {"x", "y"}]
    names = np.arange(12).astype(str)
    assert [fold_count(Grouping("patient", names[:n], names[:n]), None) for n in (3, 10, 11, 12)] == [3, 10, 5, 5]
    assert [fold_count(Grouping(by, names, names), None) for by in ("block", "random", "core")] == [5, 5, 5]
    assert fold_count(Grouping("block", names[:3], names[:3]), None) == 5
    assert fold_count(Grouping("core", names, names), 12) == 12
    with pytest.raises(ValueError, match="There are 1 groups"):
        cross_validate_virtual_he({"u": five["u"]}, split="sample")


def test_a_model_that_is_given_stays_as_it_is(tiled, trainer, knowing):
    """It is trained in place by the trainer, on a copy here."""
    model = knowing(SPEC)
    frame = cross_validate_virtual_he(tiled, model, folds=2, baselines=(), n_tiles=4)
    assert model.trained == 0
    assert len(trainer.calls) == 2
    np.testing.assert_allclose(frame[frame.method == "model"].ssim, 1)


def test_classes_and_sets(tiled, trainer):
    """Scores of sets are those of all tiles and of each class."""
    table = tiled["tiles_table"]
    table.obs["half"] = np.where(table.obsm["spatial"][:, 0] < 200, "left", "right")
    frame = cross_validate_virtual_he(
        tiled, test=0.5, metrics="kid", classes="half", encoder=lambda x: x.float().mean((2, 3))
    )
    rows = table.obs.set_index("instance_id").loc[frame.tile]
    assert (frame["class"].to_numpy() == rows.half.to_numpy()).all()
    sets = pd.DataFrame(frame.attrs["sets"])
    assert set(sets["class"].dropna()) <= {"left", "right"}
    assert sets.groupby("method").size().nunique() == 1
    assert frame.attrs["encoder"] == "<lambda>"


def test_bad_input_is_refused_before_a_training(tiled, trainer):
    for arguments, error, match in (
        ({"metrics": ("ssim", "issm")}, ValueError, "no metric 'issm'"),
        ({"baselines": ("median",)}, ValueError, "no baseline 'median'"),
        ({"seeds": ()}, ValueError, "at least one number"),
        ({"seeds": (1, 1)}, ValueError, "each once"),
        ({"n_tiles": 1}, ValueError, "at least two"),
        ({"training": {"epoch": 3}}, TypeError, "'epoch' is no argument of tl.train_virtual_he"),
        ({"training": {"epochs": 0}}, ValueError, "epochs is 0"),
        ({"split": "plane"}, KeyError, "split='plane' is no column"),
        ({"classes": "half"}, KeyError, "no column 'half'"),
        ({"regions": "squares"}, KeyError, "No table 'squares_table'"),
        ({"training": {"prompts": {"lung": "a lung"}}}, ValueError, "say the tissue"),
        ({"folds": 500}, ValueError, "500 folds"),
        ({"model": "large"}, ValueError, "model is 'large'"),
        ({"model": "pix2pix", "training": {"spec": TileSpec(32, 96)}}, ValueError, "96 px"),
    ):
        with pytest.raises(error, match=match):
            cross_validate_virtual_he(tiled, **arguments)
    tiled["tiles_table"].obsm["spatial"] = tiled["tiles_table"].obsm["spatial"] + 5000
    with pytest.raises(ValueError, match="None of the 60 tiles"):
        cross_validate_virtual_he(tiled)
    with pytest.raises(TypeError, match="AnnData without images"):
        cross_validate_virtual_he(tiled["tiles_table"])
    assert not trainer.calls


def test_over_seeds():
    """Means of tiles within a seed first, then mean and standard deviation over seeds; sets over folds."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "fold": np.tile([0, 0, 1], 4),
            "seed": np.repeat([0, 1], 6),
            "method": np.tile(np.repeat(["model", "shuffled"], 3), 2),
            "tile": np.tile([5, 6, 7], 4),
            "ssim": rng.random(12),
        }
    )
    frame.attrs["sets"] = [
        {
            "metric": "fid",
            "class": None,
            "n": 2,
            "fold": fold,
            "seed": seed,
            "method": "model",
            "value": 10.0 * seed + fold,
        }
        for fold in (0, 1)
        for seed in (0, 1)
    ]
    summary = over_seeds(frame).set_index("method")
    seeds = frame[frame.method == "model"].ssim.to_numpy().reshape(2, 3).mean(1)
    row = summary.loc["model"]
    assert row.n_seeds == 2
    assert row.n_tiles == 3
    np.testing.assert_allclose([row.ssim, row.ssim_sd], [seeds.mean(), np.abs(seeds[0] - seeds[1]) / np.sqrt(2)])
    np.testing.assert_allclose([row.fid, row.fid_sd], [5.5, 10 / np.sqrt(2)])
    assert np.isnan(summary.loc["shuffled", "fid"])
    by_fold = over_seeds(frame, groupby=["method", "fold"])
    assert len(by_fold) == 4
    with pytest.raises(ValueError, match="no column 'variant'"):
        over_seeds(frame, groupby="variant")


def test_each_tile_is_asked_for_with_its_tissue(tiled, knowing):
    """Of a model that is told it, in whatever order the tissues come."""
    from sthist import _sample

    model, centres = knowing(SPEC), tiled["tiles_table"].obsm["spatial"][:6]

    def told(device, *, tissue):
        other = knowing(SPEC)
        other.paint = lambda tiles: tiles // {"lung": 2, "skin": 4}[tissue]
        return other

    model.to = told
    tissues = np.array(["skin", "lung", "skin", "skin", "lung", "lung"], object)
    found = predict_tiles(model, _sample.find_high_res(tiled), centres, SPEC, tissues=tissues, batch_size=2)
    real = TileReader(tiled, "he", SPEC, fill=255).read(centres)
    parts = np.where(tissues == "lung", 2, 4).astype(np.uint8)
    np.testing.assert_array_equal(found, real // parts[:, None, None, None])


def test_a_real_training(tiled, tmp_path):
    """Two steps of a tiny model: scored on tiles that it has not seen; a call that was stopped goes on."""
    config = sthist.models.Pix2PixConfig(size_um=32, px=64, width=4, max_width=8, depth=3)
    model = sthist.models.Pix2Pix(config)
    before = model.weights_sha256()
    given = {"test": 0.3, "n_tiles": 8, "metrics": "ssim", "folder": tmp_path}
    training = {"epochs": 1, "steps_per_epoch": 2, "batch_size": 2, "device": "cpu", "progress": False}
    frame = cross_validate_virtual_he(tiled, model, baselines="mean colour", training=training, **given)
    assert frame.groupby("method").size().to_dict() == {"model": 8, "shuffled": 8, "mean colour": 8}
    means = frame.groupby("method").ssim.mean()
    assert means["model"] < means["mean colour"]  # two steps teach nothing
    assert model.weights_sha256() == before
    again = cross_validate_virtual_he(tiled, model, baselines=(), training=training | {"resume": True}, **given)
    pd.testing.assert_frame_equal(again, frame[frame.method != "mean colour"])
