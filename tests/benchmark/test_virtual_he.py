"""Scores of a virtual H&E."""

from __future__ import annotations

import numpy as np
import pytest

import sthist
from sthist.metrics import image as scores
from sthist.tiles import TileReader, TileSpec


@pytest.fixture
def scored(toy):
    sthist.tl.virtual_he(toy)
    sthist.pp.tissue(toy)
    sthist.pp.tiles(toy, size_um=64, px=128)
    toy["tiles_table"].obs["half"] = np.where(toy["tiles_table"].obsm["spatial"][:, 0] < 200, "left", "right")
    return toy


def test_scores_are_those_of_the_tiles(scored):
    frame = sthist.benchmark.virtual_he(scored, classes="half")
    virtual = frame[frame.method == "virtual"]
    table = scored["tiles_table"]
    assert set(virtual.tile) <= set(table.obs.instance_id)
    rows = table.obs.set_index("instance_id").loc[virtual.tile]
    assert (virtual["class"].to_numpy() == rows.half.to_numpy()).all()
    centres = table[table.obs.instance_id.isin(virtual.tile)].obsm["spatial"]
    spec = TileSpec(64, 128)
    a, b = (TileReader(scored, key, spec, fill=255).read(centres) for key in ("virtual_he", "he"))
    np.testing.assert_allclose(virtual.ssim, scores.ssim(a, b))
    np.testing.assert_allclose(virtual.mse, scores.mse(a, b))


def test_it_beats_those_that_know_nothing(scored):
    frame = sthist.benchmark.virtual_he(scored)
    means = frame.groupby("method")[["ssim", "psnr", "nucleus_f1"]].mean()
    assert (means.loc["virtual"] > means.loc["shuffled"]).all()
    assert (means.loc["virtual", ["ssim", "nucleus_f1"]] > means.loc["mean colour", ["ssim", "nucleus_f1"]]).all()
    assert means.loc["virtual", "nucleus_f1"] > 0.5
    assert means.loc["shuffled", "nucleus_f1"] < 0.2
    assert frame[frame.method == "virtual"].nucleus_shift_um.median() < 1.0
    summary = scores.summarize(frame, by=None)
    assert summary.set_index("method").loc["virtual", "nucleus_f1"] == pytest.approx(means.loc["virtual", "nucleus_f1"])


def test_model_and_nulls_are_scored_on_the_same_tiles(scored):
    """A tile whose real image has no nuclei scores nothing, whoever made the guess."""
    frame = sthist.benchmark.virtual_he(scored)
    counts = frame.groupby("method")["nucleus_f1"].count()
    empty = frame[frame.method == "virtual"].nucleus_f1.isna()
    assert counts["mean colour"] <= counts["virtual"]
    assert frame[frame.method == "mean colour"].nucleus_f1.to_numpy()[empty.to_numpy()].tolist() == pytest.approx(
        [np.nan] * int(empty.sum()), nan_ok=True
    )


def test_the_same_image_is_perfect(scored):
    scored.images["again"] = scored["he"]
    frame = sthist.benchmark.virtual_he(scored, "again", he="he", nulls=False)
    np.testing.assert_allclose(frame.ssim, 1)
    np.testing.assert_allclose(frame.nucleus_f1.dropna(), 1)
    assert (frame.method == "virtual").all()


def test_bad_input(scored):
    with pytest.raises(KeyError, match=r"No image 'virtual'"):
        sthist.benchmark.virtual_he(scored, "virtual")
    with pytest.raises(KeyError, match=r"has no column 'class'; it has"):
        sthist.benchmark.virtual_he(scored, classes="class")
    with pytest.raises(KeyError, match=r"No table 'spots_table'"):
        sthist.benchmark.virtual_he(scored, tiles="spots")
    sthist.pp.tiles(scored, size_um=64, px=32, key_added="coarse")
    with pytest.raises(ValueError, match=r"cannot be told apart at 2 µm/px"):
        sthist.benchmark.virtual_he(scored, tiles="coarse")
    scored["tiles_table"].obsm["spatial"] = scored["tiles_table"].obsm["spatial"] + 5000
    with pytest.raises(ValueError, match=r"None of the .* tiles lies on both 'virtual_he' and 'he'"):
        sthist.benchmark.virtual_he(scored)
