"""The built-in model: against its own formula, and against a prototype on real histology."""

from __future__ import annotations

import json

import hrst
import numpy as np
import pandas as pd
import pytest

import sthist
from sthist import stains
from sthist.models import BeerLambert, BeerLambertConfig
from sthist.systems.virtual_he.models.beer_lambert import stain_tiles
from sthist.tiles._regions.raster import rasterize


def test_kernel_is_the_formula():
    """Per pixel: 255 exp(-(h H + e E)), to a grey level, for all amounts, channels and shares of tissue."""
    rng = np.random.default_rng(0)
    stain = rng.integers(0, 60000, (2, 30, 30, 3)).astype(np.uint16)
    raster = rng.uniform(0, 1, (2, 30, 30, 2)).astype(np.float32)
    raster[0, 0, :, 1] = 0
    config = BeerLambertConfig()
    amounts = np.arange(0, 8, 1 / 1024)
    tables = [
        np.exp(-np.outer(amounts, v)).astype(np.float32) for v in (config.haematoxylin_vector, config.eosin_vector)
    ]
    knots = np.array([[1000, 20000, 50000], [0, 10, 20]], np.float32)
    targets = np.array([0.1, 0.4, 0.9], np.float32)
    out = np.empty((2, 30, 30, 3), np.uint8)
    stain_tiles(stain, raster, 5000.0, 0.1, 3e-5, knots, targets, np.array([0.2, 0.4], np.float32), *tables, 1024, out)
    haematoxylin = 0.1 + 3e-5 * np.maximum(stain[..., 0] - 5000.0, 0)
    x = [[low, middle, high, middle + 2 * (high - middle)] for low, middle, high in knots]
    cytoplasm = [np.interp(stain[..., c + 1], x[c], [0.1, 0.4, 0.9, 1.4]) for c in (0, 1)]
    eosin = 0.4 * raster[..., 0] + 0.2 * cytoplasm[0] + 0.4 * cytoplasm[1]
    both = np.stack([haematoxylin, eosin], -1) * raster[..., 1:]
    expected = stains.to_rgb(both, np.array([config.haematoxylin_vector, config.eosin_vector]), dtype=np.float64)
    assert np.abs(out - expected).max() <= 1
    assert (out[0, 0] == 255).all()


SIDE_PX = 160  # of 1 µm


def rendered(points=None, **channels):
    """Eosin on a section of scattered nuclei with further channels, (SIDE_PX, SIDE_PX)."""
    rng = np.random.default_rng(0)
    nuclei = np.full((SIDE_PX, SIDE_PX), 2_000.0)
    nuclei[tuple(rng.integers(4, SIDE_PX - 4, (2, 900)))] = 60_000
    levels = np.stack([nuclei, *channels.values()]).astype(np.uint16)
    sdata = sthist.io.assemble({"stain": levels}, mpp=1.0, channels={"stain": ["DAPI", *channels]}, points=points)
    sthist.tl.virtual_he(sdata)
    pixels = np.asarray(sdata["virtual_he"].data).transpose(1, 2, 0)
    config = BeerLambertConfig()
    vectors = np.array([config.haematoxylin_vector, config.eosin_vector])
    return stains.concentrations(pixels, vectors)[..., 1]


def halves(low=1_000.0, high=40_000.0):
    return np.tile(np.repeat([low, high], SIDE_PX // 2), (SIDE_PX, 1))


def test_a_channel_counts_by_what_it_shows():
    """Bright in the right half: cytoplasm most, keratin less, a membrane less still, and next to nothing for CD45."""
    step = {}
    for name in ("PolyT", "PanCK", "Membrane", "CD45"):
        eosin = rendered(**{name: halves()})
        step[name] = eosin[:, 100:140].mean() - eosin[:, 20:60].mean()
    assert step["PolyT"] > step["PanCK"] + 0.05
    assert step["PanCK"] > step["Membrane"] + 0.05
    assert step["Membrane"] > step["CD45"] + 0.05
    assert step["CD45"] < 0.1


def test_a_channel_that_says_little_takes_nothing_from_one_that_says_much():
    alone, both = rendered(PolyT=halves()), rendered(PolyT=halves(), CD45=np.full((SIDE_PX, SIDE_PX), 500.0))
    step, with_other = (each[:, 100:140].mean() - each[:, 20:60].mean() for each in (alone, both))
    assert with_other > 0.85 * step


@pytest.mark.parametrize("weights", [{"epithelial": 1.0}, {"immune": -1.0}, {"membrane": float("nan")}])
def test_weights_of_channels_that_cannot_be(weights):
    with pytest.raises(ValueError, match="channel_weights has"):
        BeerLambertConfig(channel_weights=weights)


def test_counting_noise_makes_no_blotches_and_structure_stays():
    """Molecules that are as likely everywhere, and three times as likely in the right half."""
    rng = np.random.default_rng(0)
    x, y = rng.uniform(0, SIDE_PX, (2, 3_000))
    even = pd.DataFrame({"x_um": x, "y_um": y, "gene": "A"})
    assert rendered(even)[10:-10, 10:-10].std() < 0.03
    right = np.where(rng.uniform(size=len(x)) < 0.75, SIDE_PX / 2 + x / 2, x / 2)
    uneven = rendered(even.assign(x_um=right))
    assert uneven[:, 100:140].mean() - uneven[:, 20:60].mean() > 0.2


@pytest.mark.slow  # test_published.py has it beside a network in the quick suite
@pytest.mark.parametrize("name", hrst.CROPS)
def test_beats_the_prototype_on_real_histology(name):
    """In SSIM and PSNR, with default stains and with those of another section; the mean colour stands beside them."""
    real = hrst.crop(name)
    nuclei, molecules = hrst.simulate(real)
    reference = hrst.section("C3")
    table = {"mean colour": hrst.scores(hrst.mean_colour(real), real)}
    for label, stain in (("default", None), ("reference", reference)):
        table[f"prototype, {label}"] = hrst.scores(hrst.prototype(nuclei, molecules, stain), real)
        table[f"built-in, {label}"] = hrst.scores(hrst.built_in(nuclei, molecules, stain), real)
    print(name, hrst.CROPS[name], {key: (round(a, 3), round(b, 2)) for key, (a, b) in table.items()})
    for label in ("default", "reference"):
        ours, theirs = table[f"built-in, {label}"], table[f"prototype, {label}"]
        assert ours[0] > theirs[0]
        assert ours[1] > theirs[1]
        assert ours[0] > table["mean colour"][0] + 0.1


def test_levels_are_quantiles_over_the_tissue(toy):
    """Those of all pixels of the true regions, by numpy, to a twentieth.

    Those of the whole field, the null, are not.
    """
    elements = sthist._sample.elements.find_high_res(toy)
    facts = BeerLambert().prepare(elements, sthist.tiles.open_image(toy, elements.nuclear), 0.5).facts
    dapi = toy["morphology_focus"].to_numpy()[0]
    tissue = rasterize(toy["regions"].geometry, (0, 0), 0.5, dapi.shape) > 0
    found = facts["stain_levels"]["DAPI"]
    np.testing.assert_allclose(found, np.quantile(dapi[tissue], (0.4, 0.99)), rtol=0.05)
    assert abs(np.quantile(dapi, 0.4) / found[0] - 1) > 0.05
    assert facts["n_molecules"] == pytest.approx(toy["table"].X.sum(), rel=0.05)


def test_save_and_load(tmp_path, toy):
    """The same config, in JSON; a model of another system or version is refused."""
    model = BeerLambert(BeerLambertConfig(min_qv=25.0)).fit((toy, "he"))
    model.save(tmp_path)
    assert BeerLambert.load(tmp_path).config == model.config
    content = json.loads((tmp_path / "config.json").read_text())
    assert content["system"] == "beer-lambert"
    (tmp_path / "config.json").write_text(json.dumps(content | {"system": "alchemy"}))
    with pytest.raises(ValueError, match="'system' is 'alchemy'; known are"):
        sthist.models.load(tmp_path)
    vector = content["config"]["eosin_vector"]
    content["config"]["eosin_vector"] = [1.0, 2.0, 3.0, 4.0]
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"'eosin_vector' is .* should be tuple\[float, float, float\]"):
        sthist.models.load(tmp_path)
    content["config"] |= {"eosin_vector": vector, "phlogiston": 1}
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"does not know: \['phlogiston'\]"):
        sthist.models.load(tmp_path)
