"""Scores of a virtual H&E."""

from __future__ import annotations

import numpy as np
import pytest

import sthist
from sthist.benchmark import _shared_tiles as _shared
from sthist.benchmark._nuclei import nucleus_preservation
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


def test_sets_by_the_name_of_an_encoder(scored):
    """The same image is at a distance of 0, the virtual one is not; what was looked through is said."""
    scored.images["again"] = scored["he"]
    frames = {
        key: sthist.benchmark.virtual_he(
            scored, key, he="he", metrics=("fid", "kid"), extractor="morphology", nuclei=False, nulls=False
        )
        for key in ("again", "virtual_he")
    }
    values = {key: {each["metric"]: each["value"] for each in frame.attrs["sets"]} for key, frame in frames.items()}
    assert values["again"]["fid"] == pytest.approx(0, abs=1e-3)
    assert values["virtual_he"]["fid"] > 1
    assert values["virtual_he"]["kid"] > values["again"]["kid"]
    assert frames["again"].attrs["extractor"] == "morphology, standardised by the real tiles"
    assert "nucleus_f1" not in frames["again"]


def test_fid_of_standardised_features(scored):
    """It is that of features with mean 0 and variance 1 over the real tiles, and units do not matter."""

    class Colours(sthist.encoders.Encoder):
        provenance = {}

        def __init__(self, unit):
            self.name, self.unit = f"colours-{unit}", unit

        def embed(self, tiles):
            return tiles.mean((1, 2)) * self.unit

    shared = _shared.shared_tiles(scored, "tiles", ("virtual_he", "he"))
    virtual, real = (tiles.mean((1, 2)) for tiles in shared.read())
    mean, sd = real.mean(0), real.std(0)
    gap = ((virtual - mean) / sd).mean(0)
    one, other = (np.cov((values - mean) / sd, rowvar=False) for values in (virtual, real))
    roots = np.sqrt(np.linalg.eigvals(one @ other).real.clip(0)).sum()
    expected = (gap**2).sum() + np.trace(one) + np.trace(other) - 2 * roots
    for unit in (1.0, 1000.0):
        frame = sthist.benchmark.virtual_he(scored, metrics="fid", extractor=Colours(unit), nuclei=False, nulls=False)
        assert frame.attrs["sets"][0]["value"] == pytest.approx(expected, rel=1e-3)


def test_nuclei_against_what_is_known(scored):
    """The image was made from the stain, and is nearer to it than to the real H&E; nuclei alone score about the same."""
    means = {}
    for truth in (True, "stain", "vendor", "nucleus_boundaries"):
        frame = sthist.benchmark.virtual_he(scored, metrics="ssim", nuclei=truth)
        means[truth] = frame.groupby("method").nucleus_f1.mean()
        assert means[truth]["virtual"] > 0.6 > 0.3 > means[truth]["shuffled"]
    assert means["stain"]["virtual"] > means[True]["virtual"]
    assert means["vendor"].equals(means["nucleus_boundaries"])
    alone = nucleus_preservation(scored, against="stain")  # also on tiles that the real H&E does not reach
    assert alone[alone.method == "virtual"].nucleus_f1.mean() == pytest.approx(means["stain"]["virtual"], abs=0.01)
    with pytest.raises(KeyError, match="'nuclei'"):
        sthist.benchmark.virtual_he(scored, nuclei="nuclei")


def test_seams_are_said(scored):
    frame = sthist.benchmark.virtual_he(scored, metrics="mse", nuclei=False)
    assert set(frame.attrs["seam"]) == {"seam", "interior", "ratio", "stride_px", "repeat"}
    scored.images["again"] = scored["he"]
    frame = sthist.benchmark.virtual_he(scored, "again", he="he", metrics="mse", nuclei=False)
    assert set(frame.attrs["seam"]) == {"reason"}
