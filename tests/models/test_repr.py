"""What models and readers say of themselves: one or a few lines, in which what matters stands, and no arrays."""

from __future__ import annotations

import dataclasses
import inspect

import numpy as np
import pytest
from expressing import GENES, planted_slide
from expressing import SPEC as PLANTED

import sthist
from sthist import models
from sthist.tiles import DensityTiles, Overlay, TileReader, TileSpec

SPEC = TileSpec(64, 128)
LONGEST = 400


def is_short(text):
    return len(text) < LONGEST and "array(" not in text and text.count("\n") < 3


def classes():
    """Every model that has a name, but bases."""
    found = (getattr(models, name) for name in models.__all__)
    return [
        each for each in found if inspect.isclass(each) and issubclass(each, models.Model) and hasattr(each, "system")
    ]


@pytest.mark.parametrize("kind", classes(), ids=lambda kind: kind.__name__)
def test_every_model_names_its_system(kind):
    text = repr(kind())
    assert text.startswith(f"{kind.__name__} ({kind.system}): ")
    assert is_short(text)


def test_models_of_expression():
    """Genes, tiles, embeddings, of what it was trained, and how well: as its config and its scores have them."""
    model = models.Ridge()
    assert repr(model) == "Ridge (ridge): no genes yet; not trained"
    rng = np.random.default_rng(0)
    model.fit(rng.normal(size=(20, 3)).astype(np.float32), rng.random((20, 2)))
    assert "2 genes" in repr(model)
    assert "trained on arrays" in repr(model)
    samples = {name: planted_slide(seed) for seed, name in enumerate("ab")}
    for sample in samples.values():
        sthist.pp.embed(sample, regions="spots", spec=PLANTED)
    model = sthist.tl.train_expression(samples, split="block")
    text = repr(model)
    n = sum(sample["table"].n_obs for sample in samples.values())
    median = model.scores["pearson"].median()
    for part in (
        f"{len(GENES)} genes, tiles of ",
        "from X_morphology",
        f"trained on {n} regions of 2 samples",
        f"{model.scores['trusted'].sum()} of {len(GENES)} trusted, median Pearson {median:.2f} where held out",
    ):
        assert part in text
    assert is_short(text)


def test_the_published_model():
    model = models.load("st2he-small")
    pairs = model.config.training["pairs"]
    assert "tiles of 89.6 µm on 128 px (0.7 µm/px), for 0.25 to 0.8 µm/px; sees transcripts as density" in repr(model)
    assert f"gives amounts of stains; trained on {pairs:,} pairs of 30 samples" in repr(model)
    assert is_short(repr(model))


def test_the_built_in_model(toy):
    assert repr(models.BeerLambert()) == "BeerLambert (beer-lambert): needs no weights; stains of its own"
    fitted = models.BeerLambert().fit((toy, "he"))
    assert "stains of a real H&E; changed: haematoxylin_vector, eosin_vector" in repr(fitted)
    changed = models.BeerLambert(dataclasses.replace(models.BeerLambert().config, bin_um=2.0))
    assert repr(changed).endswith("stains of its own; changed: bin_um")


def test_annotators():
    config = models.AnnotatorConfig(
        classes=("a", "b", "c", "d", "e"), label="region", encoder="mine", dim=2, spec=SPEC.to_dict()
    )
    text = repr(models.Annotator(config, {"mean": [0, 0], "scale": [1, 1], "weight": np.eye(2), "bias": [0, 0]}))
    assert "5 classes of region (a, b, c, d, 1 more); linear on mine, tiles of 64 µm on 128 px (0.5 µm/px)" in text
    trained = dataclasses.replace(config, training={"n_rows": 1200, "samples": ["s"]}, report={"weighted_auc": 0.876})
    assert repr(models.Annotator(trained)).endswith("trained on 1,200 tiles of 1 sample; AUC 0.88 where held out")


def test_models_of_tiles_and_cells():
    """C2L with its adapter, and the encoder of cells, after a training of a moment."""
    rng = np.random.default_rng(0)
    tiles = rng.integers(0, 256, (8, 16, 16, 3), np.uint8)
    quick = {"epochs": 1, "steps_per_epoch": 1, "batch_size": 4}
    central = models.C2L(models.C2LConfig(px=16, dim=8, multipliers=(1, 2)))
    assert repr(central) == "C2L (c2l): tiles of 112 µm on 16 px (7 µm/px); not trained; no adapter"
    central = central.fit(tiles, training=quick, device="cpu", progress=False)
    assert "; trained on 8 tiles; no adapter" in repr(central)
    local = central.adapt(tiles, rng.random((8, 3)), ["A", "B", "C"], training=quick, device="cpu", progress=False)
    assert repr(local.adapter).startswith("C2LAdapter to 3 genes (")
    assert repr(local).endswith(f"with a {local.adapter!r}")
    crops = rng.integers(0, 256, (32, 24, 24, 3), np.uint8)
    moco = models.MoCoV3(models.MoCoV3Config(px=16, backbone="resnet10t", width=0.125, hidden=32, dim=16))
    assert repr(moco).endswith("around a nucleus; not trained")
    moco = moco.fit(crops, training={"epochs": 1, "batch_size": 16}, device="cpu", progress=False)
    assert repr(moco).endswith("around a nucleus; trained on 32 crops of nuclei")
    bags = models.Bags(np.zeros((4, 3)), spot=[0, 1, 0, -1])
    assert repr(bags) == "Bags of 3 cells in 2 spots, 1 in none; 3 features"


def test_readers(toy):
    """Tiles, image, channels, and how many molecules: counted in the points themselves."""
    reader = TileReader(toy, "he", SPEC)
    x0, y0, x1, y1 = reader.extent_um
    assert repr(reader) == (
        "TileReader of 'he': tiles of 64 µm on 128 px (0.5 µm/px), uint8 (r, g, b); the image has "
        f"{reader.image.coarsest_mpp:.4g} µm/px, x {x0:.0f} to {x1:.0f}, y {y0:.0f} to {y1:.0f} µm"
    )
    normalizer = sthist.pp.stain_normalize(toy)
    assert "(r, g, b), normalised;" in repr(TileReader(toy, "he", SPEC, normalizer=normalizer))
    molecules = toy["transcripts"].compute()
    drawn = molecules[(molecules["qv"] >= 20) & molecules["feature_name"].isin(toy["table"].var_names)]  # no controls
    n, genes = len(drawn), drawn["feature_name"].astype(str).nunique()
    text = repr(Overlay(toy, SPEC, dot_um=0.5))
    assert text == (
        f"Overlay on 'morphology_focus': tiles of {SPEC.text}; {n:,} transcripts of {genes} genes, "
        "dots of 0.5 µm, multi"
    )
    assert repr(Overlay(toy, SPEC, background="black", dot_um=0.5)).startswith("Overlay on a black background: ")
    assert repr(Overlay(toy, SPEC, mode="none")).endswith("; no dots")
    text = repr(DensityTiles(toy, SPEC, groups={"epithelial": ["EPCAM", "KRT8", "none"]}))
    assert text == (
        f"DensityTiles of 'morphology_focus': tiles of {SPEC.text}; {n:,} molecules of {genes} genes, "
        "smoothed by 4 µm; groups: epithelial (2 genes)"
    )
    assert "no molecules; groups: none" in repr(DensityTiles(toy, SPEC, points=False))


def test_stains(toy):
    """Method, origin and numbers in three digits; and where they differ, what is made with them is told apart."""
    reference = sthist.pp.StainReference.default()
    assert "StainReference by macenko of the target of M. Veta's" in repr(reference)
    assert "haematoxylin (0.563, 0.72, 0.406) up to 1.97, eosin (0.216, 0.801, 0.558) up to 1.03" in repr(reference)
    for method in ("macenko", "reinhard", "channels"):
        normalizer = sthist.pp.stain_normalize(toy, method=method)
        text = repr(normalizer)
        assert text.startswith(f"StainNormalizer by {method}: the stain of images['he']")
        assert text.endswith(f"becomes that of {sthist.pp.StainReference.default(method).origin}")
        assert is_short(text)
        assert is_short(repr(normalizer.source))


def test_what_is_made_does_not_depend_on_what_is_shown(toy, caplog):
    """Two normalisers that read alike in three digits are two: embeddings of one are not taken for the other's."""
    sthist.pp.tissue(toy)
    sthist.pp.tiles(toy, size_um=64, px=64)
    one = sthist.pp.stain_normalize(toy)
    amounts = one.reference.amounts
    nearly = dataclasses.replace(one.reference, amounts=(amounts[0] + 1e-3, amounts[1]))
    other = dataclasses.replace(one, reference=nearly)
    assert repr(one) == repr(other)
    sthist.pp.embed(toy, normalizer=one)
    with caplog.at_level("INFO", "sthist"):
        sthist.pp.embed(toy, normalizer=one)
    assert "is there already" in caplog.text
    with pytest.raises(ValueError, match="overwrite=True"):
        sthist.pp.embed(toy, normalizer=other)
