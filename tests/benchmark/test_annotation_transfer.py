"""Annotators of real tiles on virtual ones that are copies, other tiles, or nothing."""

from __future__ import annotations

import numpy as np
import pytest

import sthist
from sthist.benchmark import annotation_transfer
from sthist.tiles import TileReader, TileSpec

WEIGHTED = "weighted mean"


@pytest.fixture
def copied(tiled):
    """The H&E once more, as if it were virtual; and tiles that are dark or bright, in equal numbers."""
    tiled.images["copy"] = tiled["he"]
    table = tiled["tiles_table"]
    grey = TileReader(tiled, "he", TileSpec(32, 64), fill=255).read(table.obsm["spatial"]).mean((1, 2, 3))
    table.obs["tone"] = np.where(grey > np.median(grey), "bright", "dark")
    return tiled


def _auc(frame, image, name=WEIGHTED):
    return float(frame.set_index(["image", "class"]).auc[image, name])


def test_a_copy_is_annotated_as_the_real_tiles(copied, mean_colour):
    """The scores are the same to the last digit; those of other tiles are chance; intervals hold the scores."""
    frame = annotation_transfer(copied, "copy", label="tone", encoder=mean_colour, folds=2, n_boot=50)
    assert list(frame.columns) == ["image", "class", "auc", "low", "high", "support"]
    assert _auc(frame, "virtual") == _auc(frame, "real")
    assert _auc(frame, "real") > 0.9
    assert abs(_auc(frame, "shuffled") - 0.5) < 0.25
    assert (frame.low <= frame.high).all()
    for _, part in frame.groupby("image"):
        own = part[part["class"] != WEIGHTED]
        total = part[part["class"] == WEIGHTED].iloc[0]
        assert total.support == own.support.sum() == 60
        assert total.auc == pytest.approx((own.auc * own.support).sum() / own.support.sum())
    assert frame.attrs["split"] == "block"
    assert frame.attrs["encoder"] == "mean-colour"
    again = annotation_transfer(copied, "copy", label="tone", encoder=mean_colour, folds=2, n_boot=50)
    assert again.equals(frame)


def test_an_image_that_shows_nothing_is_chance(copied, mean_colour):
    """All its tiles are alike, so that every pair is a tie; the real tiles are as before.

    One part trains, the other is scored.
    """
    copied.images["nothing"] = copied["he"] * 0
    copied["tiles_table"].obs["part"] = np.tile(["train", "test"], 30)
    frame = annotation_transfer(copied, "nothing", label="tone", encoder=mean_colour, split="part", n_boot=20)
    assert _auc(frame, "virtual") == _auc(frame, "shuffled") == 0.5
    assert _auc(frame, "real") > 0.9


def test_an_annotator_that_exists(copied, mean_colour):
    """It is applied as it is, to all tiles; what it calls on the real ones can be the reference."""
    weights = {"mean": [0, 0, 0], "scale": [1, 1, 1], "weight": np.ones((2, 3)) * [[0.01], [-0.01]], "bias": [0, 5.0]}
    config = sthist.models.AnnotatorConfig(classes=("bright", "dark"), encoder="mean-colour", dim=3)
    annotator = sthist.models.Annotator(config, weights)
    annotator.encoder = mean_colour
    frame = annotation_transfer(copied, "copy", label="tone", annotator=annotator, n_boot=20)
    assert _auc(frame, "real") == _auc(frame, "virtual") == 1.0  # tones are the sum of the colours
    assert frame.attrs["n_tiles"] == 60
    tones = (
        TileReader(copied, "he", TileSpec(32, 64), fill=255).read(copied["tiles_table"].obsm["spatial"]).mean((1, 2))
    )
    weights["bias"] = [0, float(np.median(tones.sum(1))) * 0.02]
    annotator = sthist.models.Annotator(config, weights)
    annotator.encoder = mean_colour
    frame = annotation_transfer(copied, "copy", annotator=annotator, reference="real", n_boot=20)
    assert list(frame.image.unique()) == ["virtual", "shuffled"]
    assert _auc(frame, "virtual") == 1.0
    assert abs(_auc(frame, "shuffled") - 0.5) < 0.25
    assert sorted(frame[frame["class"] != WEIGHTED].support.tolist()) == [30, 30, 30, 30]


def test_several_samples(copied, mean_colour):
    """Each is on one side of the split."""
    other = sthist.datasets.toy(size_um=200, seed=1)
    sthist.pp.tiles(other, size_um=32, px=64, sampling="fps", n_tiles=12)
    other.images["copy"] = other["he"]
    other["tiles_table"].obs["tone"] = ["dark", "bright"] * (other["tiles_table"].n_obs // 2) + ["dark"] * (
        other["tiles_table"].n_obs % 2
    )
    data = {"a": copied, "b": other}
    frame = annotation_transfer(data, "copy", label="tone", encoder=mean_colour, split="sample", folds=2, n_boot=20)
    assert frame.attrs["n_groups"] == 2
    assert _auc(frame, "virtual") == _auc(frame, "real")


def test_bad_input(copied, mean_colour):
    given = {"label": "tone", "encoder": mean_colour}
    with pytest.raises(TypeError, match="label="):
        annotation_transfer(copied, "copy")
    with pytest.raises(TypeError, match="label="):
        annotation_transfer(copied, "copy", reference="real")
    with pytest.raises(ValueError, match="reference is 'paired'"):
        annotation_transfer(copied, "copy", **given, reference="paired")
    with pytest.raises(KeyError, match="No image 'virtual_he'"):
        annotation_transfer(copied, **given)
    with pytest.raises(KeyError, match="has no column 'class'"):
        annotation_transfer(copied, "copy", label="class")
    with pytest.raises(KeyError, match="No tile has the class 'grey'"):
        annotation_transfer(copied, "copy", **given, classes=["dark", "grey"])
    with pytest.raises(ValueError, match="no two to tell apart"):
        annotation_transfer(copied, "copy", **given, classes=["dark"])
    with pytest.raises(ValueError, match="500 folds"):
        annotation_transfer(copied, "copy", **given, folds=500)
    copied["tiles_table"].obs["side"] = np.where(np.arange(60) < 58, "most", "few")
    copied["tiles_table"].obs["group"] = copied["tiles_table"].obs["side"]
    with pytest.raises(ValueError, match="leaves none of it to train on"):
        annotation_transfer(copied, "copy", label="side", encoder=mean_colour, split="group", folds=2)
    config = sthist.models.AnnotatorConfig(
        classes=("bright", "dark"), encoder="mean-colour", dim=3, spec={"size_um": 64.0, "px": 64}
    )
    annotator = sthist.models.Annotator(config, {})
    with pytest.raises(ValueError, match="trained on tiles of 64 µm"):
        annotation_transfer(copied, "copy", label="tone", annotator=annotator)
    with pytest.raises(KeyError, match="the annotator knows"):
        annotation_transfer(copied, "copy", label="tone", annotator=annotator, classes=["grey"])
