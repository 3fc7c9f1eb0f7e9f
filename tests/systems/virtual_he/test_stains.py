"""Models that say amounts of stains: colours, scales, molecules, borders."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from translating import PX, pix2pix, small

import sthist
from sthist.models import ST2HEConfig
from sthist.pp import StainReference
from sthist.systems.virtual_he.painting import MOST, MOST_RESIDUAL, Restain, density_matrix, painted
from sthist.tiles import TileSpec

PINK = StainReference("macenko", (255.0, 255.0, 255.0), ((0.6, 0.75, 0.28), (0.15, 0.92, 0.36)), (1.6, 0.9))
BLUE = StainReference("macenko", (235.0, 230.0, 240.0), ((0.76, 0.57, 0.31), (0.45, 0.75, 0.484)), (1.1, 1.3))
GROUPS = {"epithelial": ("EPCAM", "KRT8"), "immune": ("CD3D", "MS4A1")}
STAINS = {"target": "stains", "molecules": "groups", "groups": GROUPS, "scales": (0.4, 0.8)}
MAKERS = {"st2he": small, "pix2pix": pix2pix}
TRAINING = {"spec": TileSpec(16, PX), "n_tiles": 30, "epochs": 1, "steps_per_epoch": 4, "batch_size": 2}


def unit(reference):
    """The reference with vectors of length 1."""
    vectors = reference.stains / np.linalg.norm(reference.stains, axis=1, keepdims=True)
    return dataclasses.replace(reference, vectors=tuple(map(tuple, vectors.tolist())))


PINK, BLUE = unit(PINK), unit(BLUE)
KNOWN = dataclasses.replace(PINK, mean_amounts=(0.4, 0.3))


def test_eosin_is_as_strong_as_its_mean():
    """A vessel full of blood that doubles the 99th percentile changes no colour; where no mean is known, it does."""
    bloody = {"amounts": (PINK.amounts[0], 2 * PINK.amounts[1])}
    np.testing.assert_allclose(density_matrix(dataclasses.replace(KNOWN, **bloody)), density_matrix(KNOWN))
    without = density_matrix(dataclasses.replace(PINK, **bloody)) / density_matrix(PINK)
    np.testing.assert_allclose(without[1], 2)
    paler = dataclasses.replace(KNOWN, mean_amounts=(0.4, 0.15))
    np.testing.assert_allclose(density_matrix(paler) / density_matrix(KNOWN), [[1] * 3, [0.5] * 3, [1] * 3])


@pytest.fixture(autouse=True)
def _quiet():
    threads, progress = torch.get_num_threads(), sthist.settings.progress
    torch.set_num_threads(1)
    sthist.settings.progress = False
    yield
    torch.set_num_threads(threads)
    sthist.settings.progress = progress


@pytest.fixture(scope="module")
def sdata():
    return sthist.datasets.toy(size_um=200)


@pytest.fixture(scope="module")
def trained(sdata):
    return sthist.tl.train_virtual_he(
        sdata,
        "small",
        training=TRAINING | {"target": "stains", "molecules": "groups", "scales": (0.4, 0.8), "stain_reference": PINK},
        progress=False,
        device="cpu",
    )


def test_amounts_have_the_colours_of_beer_and_lambert():
    said = torch.rand(2, 3, 4, 5) * 2 - 1
    haematoxylin, eosin, residual = ((said[:, :2] + 1) * MOST / 2).unbind(1) + (said[:, 2] * MOST_RESIDUAL,)
    density = sum(
        amount[..., None] * torch.tensor(vector, dtype=torch.float32)
        for amount, vector in zip((haematoxylin, eosin, residual), density_matrix(BLUE), strict=True)
    )
    seen = (torch.tensor(BLUE.white) * torch.exp(-density)).clamp(0, 255)
    made = (painted(said, BLUE).permute(0, 2, 3, 1) + 1) * 127.5
    np.testing.assert_allclose(made, seen, atol=1e-3)
    assert density_matrix(BLUE)[2] @ BLUE.stains[0] == pytest.approx(0, abs=1e-12)


def test_a_slide_in_other_stains_has_the_same_amounts():
    said = torch.rand(1, 3, 16, 16) * torch.tensor([1.0, 1.0, 0.3])[:, None, None] - 0.6
    one, other = (((painted(said, each)[0].permute(1, 2, 0).numpy() + 1) * 127.5).round() for each in (BLUE, PINK))
    restained = Restain(BLUE, PINK)(one.astype(np.uint8)[None])[0]
    assert np.abs(restained.astype(int) - other).max() <= 3
    glass = np.broadcast_to(np.array(BLUE.white, np.uint8), (1, 2, 2, 3))
    np.testing.assert_array_equal(Restain(BLUE, PINK)(glass), np.full((1, 2, 2, 3), 255))


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_both_kinds_of_models_say_stains(make, tmp_path):
    model = make(**STAINS, reference=PINK.to_dict())
    tiles = np.random.default_rng(0).integers(0, 255, (2, PX, PX, 6), np.uint8)
    made = model.predict(tiles)
    assert made.shape == (2, PX, PX, 3)
    blue = model.stained(BLUE)
    assert (blue.predict(tiles) != made).any()
    assert (model.predict(tiles) == made).all()
    model.save(tmp_path / "model")
    again = sthist.models.load(tmp_path / "model")
    assert again.config == model.config
    np.testing.assert_array_equal(again.predict(tiles), made)
    with pytest.raises(ValueError, match=rf"this model takes uint8 of shape \(n, {PX}, {PX}, 6\)"):
        model.predict(tiles[..., :3])


def test_a_training_sees_groups_scales_and_the_colours_of_the_reference(trained):
    config = trained.config
    assert config.molecules == "groups"
    assert config.in_channels == 8
    assert config.scales == (0.4, 0.8)
    assert StainReference.from_dict(config.reference) == PINK
    assert set(config.groups) == set(sthist.models.TranslationTraining.PROGRAMMES)


def test_a_section_is_made_at_any_scale_that_was_trained(trained, sdata):
    for mpp, shape in ((0.5, 400), (0.8, 250)):
        sthist.tl.virtual_he(sdata, trained, mpp=mpp, overwrite=True)
        levels = sdata["virtual_he"]
        assert levels.shape == (3, shape, shape)
    with pytest.raises(ValueError, match=r"mpp is 1; this model has learned histology at 0\.4 to 0\.8 µm/px"):
        sthist.tl.virtual_he(sdata, trained, mpp=1.0, overwrite=True)


def test_colours_are_those_of_the_reference(trained, sdata):
    def mean_density(**kwargs):
        sthist.tl.virtual_he(sdata, trained, overwrite=True, **kwargs)
        pixels = np.asarray(sdata["virtual_he"].data).reshape(3, -1)
        density = -np.log(np.maximum(pixels, 1) / 255).mean(1)
        return density / np.linalg.norm(density)

    own, given = mean_density(), mean_density(stain_reference=BLUE)
    assert given[0] > own[0] + 0.05  # BLUE absorbs more red in both stains
    one_stain = np.full((64, 64, 3), 255, np.uint8)
    one_stain[:, :, 0] = np.linspace(60, 255, 64).astype(np.uint8)
    with pytest.raises(ValueError, match="stain"):
        sthist.tl.virtual_he(sdata, trained, stain_reference=one_stain, overwrite=True)
    with pytest.raises(ValueError, match="amounts of stains need 'macenko'"):
        sthist.tl.virtual_he(sdata, trained, stain_reference=StainReference.default("reinhard"), overwrite=True)


def test_a_model_of_colours_takes_no_reference(sdata):
    with pytest.raises(ValueError, match=r"stain_reference= is for the model 'beer-lambert', and for those of target="):
        sthist.tl.virtual_he(sdata, small(), stain_reference=PINK, overwrite=True)


def test_without_transcripts_it_goes_by_the_stain_and_says_so(trained, sdata, caplog):
    bare = type(sdata)(images={name: image for name, image in sdata.images.items() if name != "virtual_he"})
    sthist.tl.virtual_he(bare, trained)
    assert "goes by the nuclear stain alone" in caplog.text
    assert (np.asarray(bare["virtual_he"].data) < 250).any()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"target": "stain"}, r"target is 'stain'; it is one of \['rgb', 'stains'\]"),
        ({"molecules": "dot"}, r"molecules is 'dot'; it is one of"),
        ({"molecules": "groups"}, r"there are 0 groups of genes"),
        ({"groups": GROUPS}, r"molecules is 'dots', and there are 2 groups"),
        ({"molecules": "groups", "groups": {"a": ["X"], "b": ["x"]}}, r"Gene 'x' is in the groups 'a' and 'b'"),
        ({"molecules": "groups", "groups": {"a": []}}, r"The group 'a' has no genes"),
        ({"scales": (0.2, 0.8)}, r"dots are drawn for one scale"),
        ({"molecules": "density", "scales": (0.8, 0.2)}, r"scales is \(0\.8, 0\.2\)"),
        ({"target": "stains", "reference": StainReference.default("reinhard").to_dict()}, r"need 'macenko'"),
        ({"molecules": "groups", "groups": GROUPS, "backbone": "x"}, r"The backbone 'x' takes 3 channels"),
    ],
)
def test_configs_that_cannot_be_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        ST2HEConfig(**fields)


def test_a_section_unlike_those_of_the_training_is_said_to_be(trained, sdata, caplog):
    sthist.tl.virtual_he(sdata, trained, overwrite=True)
    assert "unlike those that the model was trained on" not in caplog.text
    noise = np.random.default_rng(0).integers(0, 60_000, (400, 400)).astype(np.uint16)
    noise[:40] = 0  # glass
    other = sthist.io.assemble({"dapi": noise}, mpp=0.5)
    sthist.tl.virtual_he(other, trained)
    assert "unlike those that the model was trained on, most of all the sharpness of 'stain'" in caplog.text


def test_an_image_much_coarser_than_its_stain_is_said_to_be(trained, caplog):
    fine = sthist.datasets.toy(size_um=100, mpp=0.15)
    sthist.tl.virtual_he(fine, trained)
    assert (
        "The image will have 0.4 µm/px, and the nuclear stain has 0.15: 'st2he' makes none that is finer" in caplog.text
    )
