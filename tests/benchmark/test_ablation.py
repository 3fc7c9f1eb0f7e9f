"""Variants that are trained alike but for one thing."""

from __future__ import annotations

import numpy as np
import pytest
import spatialdata as sd
from flat import ablate_virtual_he

from sthist.benchmark import over_seeds
from sthist.benchmark._cross_validation import paper_variants
from sthist.systems.virtual_he.config import LOSSES
from sthist.tiles import TileSpec

SPEC = TileSpec(32, 64)


def test_frame(tiled, trainer):
    """One row per variant, seed, method and tile.

    The tiles are the same for all, also where a variant's own are smaller.
    """
    variants = {
        "base": {},
        "one colour": {"mode": "mono"},
        "half": {"spec": TileSpec(16, 32)},
        "odd": {"spec": TileSpec(24, 48)},
    }
    frame = ablate_virtual_he(
        tiled, variants, seeds=(0, 1), n_tiles=8, test=0.3, metrics=("ssim", "mse"), training={"epochs": 3}
    )
    columns = ["variant", "factor", "split", "fold", "seed", "method", "sample", "tile", "ssim", "mse"]
    assert list(frame.columns) == columns
    assert len(frame) == (len(variants) * 2 + 3) * 2 * 8
    tiles = frame.groupby(["variant", "seed", "method"]).tile.apply(tuple)
    assert tiles.nunique() == 1
    assert [(call.seed, call.arguments.get("mode")) for call in trainer.calls[:4]] == [
        (0, None),
        (1, None),
        (0, "mono"),
        (1, "mono"),
    ]
    assert [call.spec["px"] for call in trainer.calls] == [64, 64, 64, 64, 32, 32, 48, 48]
    assert all(call.parts == trainer.calls[0].parts for call in trainer.calls)
    assert all(call.arguments["epochs"] == 3 for call in trainer.calls)
    assert not any("spec" in call.arguments for call in trainer.calls)
    model = frame[frame.method == "model"]
    np.testing.assert_allclose(model.ssim, 1)  # smaller tiles side by side are the tile that is scored
    factors = dict(model[["variant", "factor"]].drop_duplicates().to_numpy())
    assert factors == {"base": "base", "one colour": "mode", "half": "spec", "odd": "spec"}
    assert set(frame[frame.factor == "baseline"].variant) == {
        "beer-lambert",
        "beer-lambert, training colours",
        "mean colour",
    }
    summary = over_seeds(frame)
    assert len(summary) == len(variants) * 2 + 3
    assert (summary.n_seeds == 2).all()


def test_larger_tiles_stay_clear_of_the_held_out_ones(tiled, trainer):
    """A variant that sees more around the centres than the tiles that are scored is not trained on those."""
    ablate_virtual_he(tiled, {"base": {}, "large": {"spec": TileSpec(48, 96)}}, seeds=(0,), test=0.3, baselines=())
    (parts,) = trainer.calls[1].parts.values()
    table = tiled["tiles_table"]
    sides = {
        side: table.obsm["spatial"][table.obs.instance_id.map(parts).to_numpy() == side] for side in ("train", "test")
    }
    apart = np.abs(sides["train"][:, None] - sides["test"][None]).max(-1)
    assert apart.min() >= (48 + 32) / 2


def test_variants_of_the_paper():
    """Each but the base changes one thing, and none repeats what is trained anyway."""
    variants = paper_variants(SPEC, "small", {})
    assert variants["base"] == {}
    assert {each["mode"] for each in variants.values() if "mode" in each} == {"mono", "none"}
    assert {each["dot_s"] for each in variants.values() if "dot_s" in each} == {0.1, 0.3, 0.5, 0.7, 0.9}
    assert 0.3 not in {each.get("dot_s") for each in paper_variants(SPEC, "sd-turbo", {}).values()}
    assert variants["half tiles"] == {"spec": TileSpec(16, 32)}
    assert variants["adversarial x 3"]["losses"].adversarial == pytest.approx(3 * LOSSES["small"].adversarial)
    told = paper_variants(TileSpec(112, 224), "sd-turbo", {"tissue": "lung", "mode": "none", "losses": "paper"})
    assert told["tissue not said"] == {"tissue": None}
    assert told["losses: paper-hg"] == {"losses": "paper-hg"}
    assert "losses: paper" not in told
    assert {each["mode"] for each in told.values() if "mode" in each} == {"mono", "multi"}
    assert not any("dot_s" in each for each in told.values())
    assert "half tiles" not in paper_variants(TileSpec(20, 40), "small", {})
    assert "half tiles" not in paper_variants(SPEC, "pix2pix", {})


def test_a_model_per_tissue_sees_that_tissue_alone(tiled, trainer, knowing, monkeypatch):
    """Both variants are scored on the same tiles, and each of the two small models is trained on one sample's."""
    monkeypatch.setattr(type(knowing(SPEC)), "to", lambda self, device, *, tissue: self, raising=False)
    samples, tissue = {"u": tiled, "v": sd.deepcopy(tiled)}, {"u": "lung", "v": "skin"}
    variants = {"all": {}, "own": {"per_tissue": True}}
    frame = ablate_virtual_he(samples, variants, seeds=(0,), test=0.3, baselines=(), training={"tissue": tissue})
    together, *apart = trainer.calls
    assert set(together.parts) == {"u", "v"}
    assert [set(call.parts) for call in apart] == [{"u"}, {"v"}]
    for call in apart:
        (name,) = call.parts
        assert call.parts[name] == together.parts[name]
    scored = (
        frame[frame.method == "model"]
        .groupby("variant")[["sample", "tile"]]
        .apply(lambda part: sorted(part.values.tolist()))
    )
    assert scored["all"] == scored["own"]
    np.testing.assert_allclose(frame[frame.method == "model"].ssim, 1)
    told = paper_variants(SPEC, "small", {"tissue": tissue})
    assert told["a model per tissue"] == {"per_tissue": True}
    assert "a model per tissue" not in paper_variants(SPEC, "small", {"tissue": {"u": "lung", "v": "lung"}})


@pytest.mark.parametrize("tissue", [None, {"u": "lung", "v": "lung"}], ids=["none", "one"])
def test_a_model_per_tissue_needs_several(tiled, trainer, tissue):
    samples = {"u": tiled, "v": sd.deepcopy(tiled)}
    with pytest.raises(ValueError, match="'per_tissue' is a model for each of several tissues"):
        ablate_virtual_he(samples, {"own": {"per_tissue": True}}, training={"tissue": tissue})
    assert not trainer.calls


def test_bad_variants(tiled, trainer, knowing):
    for variants, error, match in (
        ({}, ValueError, "variants= is empty"),
        ({"a": {}, "b": {}}, ValueError, "'a' and 'b' are the same"),
        ({"mean colour": {}}, ValueError, "as a baseline is"),
        ({"a": {}, "b": {"colour": "mono"}}, TypeError, "'colour' is no argument"),
        ({"a": {}, "b": {"split": "sample"}}, TypeError, "'split' is no argument"),
        ({"a": {}, "b": {"lr": -1.0}}, ValueError, "lr is -1"),
        ({"a": {}, "b": {"spec": TileSpec(32, 50)}}, ValueError, "50 px"),
    ):
        with pytest.raises(error, match=match):
            ablate_virtual_he(tiled, variants)
    with pytest.raises(ValueError, match="cannot change what it sees"):
        ablate_virtual_he(tiled, model=knowing(SPEC))
    with pytest.raises(ValueError, match="variant 'b' would be"):
        ablate_virtual_he(tiled, {"a": {}, "b": {"spec": TileSpec(32, 32)}}, model=knowing(SPEC))
    assert not trainer.calls
