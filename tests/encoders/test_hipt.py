"""HIPT: both levels, put where they are of; checkpoints as they are published."""

from __future__ import annotations

import argparse

import numpy as np
import pytest
import torch

import sthist
from sthist.encoders._loaders.hipt import FIRST, HIPT, SECOND


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return HIPT().eval()


@pytest.fixture(scope="module")
def folder(network, tmp_path_factory):
    """Checkpoints of DINO, with what it was called with and the head that it was trained by."""
    path = tmp_path_factory.mktemp("hipt")
    state = network.state_dict()
    parts = {FIRST: {}, SECOND: {}}
    for name, value in state.items():
        file = FIRST if name.startswith("square.") else SECOND
        parts[file][f"backbone.{name.removeprefix('square.').removeprefix('region.')}"] = value
    for file, teacher in parts.items():
        teacher["head.mlp.0.weight"] = torch.zeros(2, 2)
        torch.save({"teacher": teacher, "epoch": 3, "args": argparse.Namespace(lr=0.1)}, path / file)
    return path


def test_tokens_are_those_of_their_place(network):
    """Patches of a square are those of the square alone; its region's token is repeated; colours are means."""
    images = torch.rand(1, 3, 512, 512)
    with torch.inference_mode():
        found = network.tokens(images)
        assert found.shape == (1, 32, 32, 579)
        assert len(network.token_names) == 579
        square = images[:, :, 256:, :256]
        alone = network.square.forward_features(square)[:, 1:].unflatten(1, (16, 16))
    torch.testing.assert_close(found[:, 16:, :16, 192:576], alone, rtol=1e-4, atol=1e-4)
    region = found[0, :, :, :192].unflatten(0, (2, 16)).unflatten(2, (2, 16))
    assert (region == region[:, :1, :, :1]).all()
    assert not torch.allclose(region[0, 0, 0, 0], region[1, 0, 0, 0])
    colours = images.unflatten(3, (32, 16)).unflatten(2, (32, 16)).mean((3, 5)).permute(0, 2, 3, 1)
    torch.testing.assert_close(found[..., 576:], colours)


def test_published_checkpoints_are_read(network, folder):
    encoder = sthist.encoders.get("hipt", weights=folder, device="cpu", precision="float32")
    tiles = np.random.default_rng(0).integers(0, 256, (1, 256, 256, 3), dtype=np.uint8)
    with torch.inference_mode():
        expected = network.tokens((torch.from_numpy(tiles).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5)
    np.testing.assert_allclose(encoder.dense(tiles), expected.numpy(), rtol=1e-3, atol=1e-3)
    assert encoder.embed(tiles).shape == (1, 192)
    assert encoder.provenance["sha256"].count("+") == 1
    assert (encoder.spec.size_um, encoder.spec.px) == (2048.0, 4096)


def test_what_is_missing_is_said(folder, tmp_path):
    with pytest.raises(ValueError, match="pass weights="):
        sthist.encoders.get("hipt")
    (tmp_path / FIRST).write_bytes((folder / FIRST).read_bytes())
    with pytest.raises(FileNotFoundError, match=SECOND):
        sthist.encoders.get("hipt", weights=tmp_path)
    encoder = sthist.encoders.get("hipt", pretrained=False, device="cpu")
    with pytest.raises(ValueError, match="whole number of squares of 256 px"):
        encoder.dense(np.zeros((1, 100, 100, 3), np.uint8))


def test_the_levels_have_squares_of_their_own():
    """As published: 192 features of the region over 16 superpixels, all others over 4; 579 of them."""
    from sthist.systems.expression.models.istar.superpixels import FeatureMap

    names = tuple(HIPT().token_names)
    values = np.random.default_rng(0).random((579, 40, 40)).astype(np.float16)
    found, _ = FeatureMap("map", values, np.zeros(2), 8.0, names).smoothed((20, 21), (20, 21), (4, 16))
    assert found.shape == (579, 1, 1)
    for columns, side in ((slice(0, 192), 16), (slice(192, 579), 4)):
        plain, _ = FeatureMap("map", values[columns], np.zeros(2), 8.0).smoothed((20, 21), (20, 21), (side,))
        np.testing.assert_allclose(found[columns], plain)
