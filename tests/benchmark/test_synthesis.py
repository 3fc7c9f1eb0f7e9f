"""Synthetic tiles whose scores are known: copies of real ones, tiles of other spots, noise."""

from __future__ import annotations

import numpy as np
import pytest
import spatialdata as sd
from scipy.linalg import sqrtm

import sthist
from sthist.benchmark._synthesis.realism import density_and_coverage, nearest
from sthist.benchmark._synthesis.stain_scores import StainScores
from sthist.metrics._deep import frechet
from sthist.models import C2LConfig
from sthist.systems.synthesis.sampler import Sampler
from sthist.tiles import TileReader, TileSpec

PX = 16
QUIET = {"device": "cpu", "progress": False}
QUICK = {"training": {"epochs": 1, "steps_per_epoch": 1, "batch_size": 4}, **QUIET}


@pytest.fixture(scope="module")
def slide():
    return sthist.datasets.toy("visium", size_um=1200)


@pytest.fixture(scope="module")
def local(slide):
    central = sthist.tl.train_central(slide, C2LConfig(px=PX, dim=8, multipliers=(1, 2)), **QUICK)
    return sthist.tl.adapt_local(slide, central, fraction=0.6, **QUICK)


@pytest.fixture(scope="module")
def shown(slide, local):
    """The real tiles of the spots of the adaptation, in their order."""
    table = slide["table"]
    names = local.spots["instance_id"]
    centres = table.obsm["spatial"][table.obs_names.get_indexer(names)]
    return TileReader(slide, "he", TileSpec(112, PX), fill=255).read(centres)


@pytest.fixture
def judged(slide, local, monkeypatch):
    """Scores of tiles, given the tile of each number, n of each spot; and all that was found."""

    def judge(tiles, n=1, **options):
        monkeypatch.setattr(Sampler, "__call__", lambda self, conditions, numbers: tiles[numbers])
        made = sthist.tl.synthesize(slide, local, n=n, steps=1, **QUIET)
        found = sthist.benchmark.synthesis(slide, made, **{"n_boot": 20, "seed": 0, **options})
        return found.scores.set_index("measure"), found

    return judge


def test_copies_are_as_real_as_it_gets_and_are_pointed_out(judged, shown):
    turned = np.stack([np.rot90(tile, i) for i, tile in enumerate(shown)])  # the built-in encoder does not see it
    scores, found = judged(turned)
    assert scores.loc[["cosine", "cosine_raw"], "value"].to_numpy() == pytest.approx(1)
    assert scores.loc["cosine", "null"] < scores.loc["cosine", "real"] < 1
    assert scores.loc["copies", "value"] == 1
    assert scores.loc["copies", "real"] < 0.1
    assert scores.loc["nearest_distance", "value"] == pytest.approx(0, abs=1e-3)
    closest = found.closest(5)
    assert (closest["spot"] == closest["nearest_spot"]).all()
    for name in ("fid", "kid", "density", "coverage", "haematoxylin_shift", "haematoxylin_texture_shift"):
        assert scores.loc[name, "value"] == pytest.approx(scores.loc[name, "real"], rel=1e-3, abs=1e-6)
    for name in ("expression_pearson", "haematoxylin_pearson"):
        assert scores.loc[name, "value"] > 0.3
        assert abs(scores.loc[name, "null"]) < 0.2
    assert scores.loc["expression_pearson", "value"] == pytest.approx(
        scores.loc["expression_pearson", "real"], abs=1e-3
    )
    assert scores.loc["haematoxylin_pearson", "value"] == pytest.approx(1)


def test_tiles_of_other_spots_look_real_and_do_not_follow_the_expression(judged, shown):
    scores, found = judged(np.roll(shown, len(shown) // 2, axis=0))
    assert scores.loc["fid", "value"] < 1.2 * scores.loc["fid", "real"]
    assert scores.loc["coverage", "value"] > 0.8 * scores.loc["coverage", "real"]
    assert abs(scores.loc["expression_pearson", "value"]) < 0.2
    assert abs(scores.loc["cosine", "value"] - scores.loc["cosine", "null"]) < 0.15
    assert scores.loc["copies", "value"] == 1
    assert len(found.tiles) == len(found.embeddings)
    assert found.genes["gene"].is_unique


def test_noise_is_told_from_tiles(judged, shown):
    noise = np.random.default_rng(0).integers(0, 256, (2 * len(shown), *shown.shape[1:]), np.uint8)
    scores, found = judged(noise, n=2)
    assert scores.loc["fid", "value"] > 10 * scores.loc["fid", "null"] > 10 * scores.loc["fid", "real"]
    assert scores.loc["coverage", "value"] == scores.loc["copies", "value"] == 0
    assert abs(scores.loc["expression_pearson", "value"]) < 0.2
    assert (found.tiles["kind"] == "synthetic").sum() == len(noise)
    assert "nuclei" in found.left_out


def test_a_baseline_is_measured_alike_and_genes_are_dropped(slide, local):
    made = sthist.tl.synthesize(slide, local, n=1, steps=2, seed=1, **QUIET)
    found = sthist.benchmark.synthesis(
        slide, made, baseline=made, model=local, n_boot=0, n_dropped=3, dropped=(0.5,), device="cpu"
    )
    scores = found.scores.set_index("measure")
    both = scores.dropna(subset="baseline")
    assert len(both) > 8
    assert np.allclose(both["value"], both["baseline"])
    # An adapter that has not been trained but for a step hears next to nothing.
    assert scores.loc["genes_dropped_50", "value"] == pytest.approx(1, abs=0.01)
    other = sthist.tl.adapt_local(slide, local.central, fraction=0.5, **QUICK)
    with pytest.raises(ValueError, match="did not make these tiles"):
        sthist.benchmark.synthesis(slide, made, model=other)


def test_real_tiles_are_seen_in_the_stain_of_the_model(monkeypatch, tmp_path):
    slide = sthist.datasets.toy("visium", size_um=600)
    config = C2LConfig(px=PX, dim=8, multipliers=(1, 2))
    central = sthist.tl.train_central(slide, config, stain_reference="macenko", **QUICK)
    model = sthist.tl.adapt_local(slide, central, fraction=1, **QUICK)
    normal = sthist.pp.stain_normalize(slide, reference=sthist.pp.StainReference.default("macenko"))
    table = slide["table"]
    centres = table.obsm["spatial"][table.obs_names.get_indexer(model.spots["instance_id"])]
    tiles = TileReader(slide, "he", TileSpec(112, PX), fill=255, normalizer=normal).read(centres)
    monkeypatch.setattr(Sampler, "__call__", lambda self, conditions, numbers: tiles[numbers])
    sthist.tl.synthesize(slide, model, steps=1, path=tmp_path / "made.zarr", **QUIET)
    found = sthist.benchmark.synthesis(slide, tmp_path / "made.zarr", n_boot=0, seed=0)
    assert found.tiles["cosine"].dropna().to_numpy() == pytest.approx(1)


def test_nuclei_of_fine_tiles_are_counted_and_measured():
    rng, mpp, radius = np.random.default_rng(0), 0.5, 4.0
    y, x = (np.mgrid[:128, :128] + 0.5) * mpp
    pink, blue = np.array([235, 180, 215]), np.array([90, 60, 140])
    tiles, numbers = [], rng.integers(1, 10, 12)
    for n in numbers:
        tile = np.full((128, 128, 3), pink) + rng.normal(0, 3, (128, 128, 3))
        for place in rng.permutation(9)[:n]:
            row, column = divmod(place, 3)
            inside = (y - 12 - 20 * row) ** 2 + (x - 12 - 20 * column) ** 2 < radius**2
            tile[inside] = blue + rng.normal(0, 3, (inside.sum(), 3))
        tiles.append(tile.clip(0, 255).astype(np.uint8))
    tiles = np.stack(tiles)
    found = StainScores(tiles, mpp)(tiles)
    assert found["nuclei_per_mm2"] * (0.064**2) == pytest.approx(numbers)
    assert found["nucleus_area_um2"] == pytest.approx(np.pi * radius**2, rel=0.25)
    assert np.corrcoef(found["haematoxylin"], numbers)[0, 1] > 0.99
    assert np.isnan(StainScores(tiles, mpp)(np.full((1, 128, 128, 3), 235, np.uint8))["nucleus_area_um2"][0])


def test_what_cannot_be_judged(slide, local):
    with pytest.raises(ValueError, match="Pass what tl.synthesize returned"):
        sthist.benchmark.synthesis(slide, slide)
    made = sthist.tl.synthesize(slide, local, n=1, steps=1, **QUIET)
    strange = sd.deepcopy(slide)
    strange["table"].obs_names = "x" + strange["table"].obs_names
    with pytest.raises(ValueError, match="None of the"):
        sthist.benchmark.synthesis(strange, made)
    named = sthist.tl.synthesize({"one": slide}, local, n=1, steps=1, adapted_only=False, **QUIET)
    with pytest.raises(ValueError, match="None of the"):  # barcodes are the same on all slides
        sthist.benchmark.synthesis({"other": slide}, named)
    with pytest.raises(ValueError, match="more than n_neighbors=200"):
        sthist.benchmark.synthesis(slide, made, n_neighbors=200)


def test_fid_of_few_images_is_that_of_the_formula():
    rng = np.random.default_rng(0)
    one, other = rng.normal(0, 1, (12, 20)), rng.normal(0.5, 2, (9, 20))
    a, b = np.cov(one.T), np.cov(other.T)
    formula = ((one.mean(0) - other.mean(0)) ** 2).sum() + np.trace(a + b - 2 * sqrtm(a @ b).real)
    assert frechet(one, other) == pytest.approx(formula, rel=1e-4)


def test_density_and_coverage_of_points_on_a_line():
    real = np.array([[0.0], [1.0], [2.0], [10.0]])  # the nearest others are 1, 1, 1 and 8 away
    assert density_and_coverage(real, np.array([[0.5], [20.0]]), k=1) == (2 / 2, 2 / 4)
    assert density_and_coverage(real, np.array([[9.0]]), k=1) == (1, 1 / 4)


def test_the_nearest_tile_is_found_however_it_is_turned():
    tiles = np.random.default_rng(0).integers(0, 256, (8, 24, 24, 3), np.uint8)
    turned = np.stack([np.rot90(tile if i < 4 else tile[:, ::-1], i) for i, tile in enumerate(tiles)])[::-1]
    distance, which = nearest(turned, tiles)
    assert which.tolist() == list(range(8))[::-1]
    assert np.allclose(distance, 0, atol=1e-4)
    distance, which = nearest(tiles, tiles, same=True)
    assert (which != np.arange(8)).all()
    assert (distance > 1).all()
    uniform = np.full((1, 24, 24, 3), 100, np.uint8)
    assert nearest(uniform, uniform + 7)[0] == pytest.approx(7)
