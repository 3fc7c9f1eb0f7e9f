"""The adapter of lazyslide-models, against a stand-in of its registry and its classes."""

from __future__ import annotations

import sys
from enum import Enum
from types import ModuleType
from typing import NamedTuple

import numpy as np
import pytest
import torch

import sthist
from sthist.encoders import get


class ModelTask(Enum):
    vision = "vision"
    multimodal = "multimodal"
    segmentation = "segmentation"


class DenseTokens(NamedTuple):
    cls_token: torch.Tensor
    patch_tokens: torch.Tensor


class Registered:
    task = ModelTask.vision
    is_gated = True
    license: str | list[str] | None = "CC-BY-NC-ND-4.0"
    hf_url: str | None = "https://huggingface.co/maker/network"
    encode_dim: int | None = 3

    def __init__(self, model_path=None, token=None):
        self.model_path = model_path
        self.model = torch.nn.Conv2d(3, 3, 1, bias=False)
        torch.nn.init.eye_(self.model.weight[:, :, 0, 0].detach())
        self.model.weight.data = torch.eye(3).reshape(3, 3, 1, 1)

    def to(self, device):
        self.model.to(device)
        return self

    def get_transform(self):
        from torchvision.transforms.v2 import CenterCrop, Compose, Normalize, Resize, ToDtype, ToImage

        return Compose(
            [
                ToImage(),
                ToDtype(dtype=torch.float32, scale=True),
                Resize(size=(36, 36), antialias=True),
                CenterCrop((32, 32)),
                Normalize(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)),
            ]
        )


class Vision(Registered):
    @torch.inference_mode()
    def encode_image(self, image, *args, **kwargs):
        return self.model(image).mean((2, 3))

    @torch.inference_mode()
    def encode_image_dense(self, image, *args, **kwargs):
        maps = self.model(image)
        return DenseTokens(maps.mean((2, 3)), maps[:, :, ::8, ::8].flatten(2).transpose(1, 2))


class ImageText(Registered):
    task = [ModelTask.multimodal]  # type: ignore[assignment]
    license = ["MIT", "Apache 2.0"]
    hf_url = None
    encode_dim = None

    def get_transform(self):
        return None

    @torch.inference_mode()
    def encode_image(self, image, *args, **kwargs):
        assert image.dtype == torch.uint8
        return image.float().mean((2, 3))

    @torch.inference_mode()
    def encode_text(self, text, *args, **kwargs):
        return torch.tensor([[len(each), 0.0, 1.0] for each in text])


class Segments(Registered):
    task = ModelTask.segmentation


class Unreachable(Vision):
    def __init__(self, model_path=None, token=None):
        from huggingface_hub import constants

        assert constants.HF_HUB_OFFLINE
        raise OSError("no such file in the cache")


@pytest.fixture(autouse=True)
def _package(monkeypatch):
    package = ModuleType("lazyslide_models")
    package.MODEL_REGISTRY = {  # type: ignore[attr-defined]
        "virchow": Vision,
        "musk": ImageText,
        "sam": Segments,
        "chief": Unreachable,
    }
    package.__version__ = "0.1.0"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lazyslide_models", package)
    monkeypatch.setattr("sthist._weights.hub.reachable", lambda: False)


def tiles_of(px: int = 32) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2, px, px, 3), dtype=np.uint8)


def test_vision_model_is_normalised_as_it_asks():
    encoder = get("virchow", device="cpu")
    tiles = tiles_of()
    expected = (tiles.mean((1, 2)) / 255 - 0.5) / 0.25
    np.testing.assert_allclose(encoder.embed(tiles), expected, rtol=1e-5, atol=1e-5)
    assert (encoder.dim, encoder.transform.size, encoder.module) == (3, 32, None)
    assert encoder.dense(tiles).shape == (2, 4, 4, 3)
    assert encoder.provenance["licence"] == "CC-BY-NC-ND-4.0"
    assert encoder.provenance["hub_id"] == "maker/network"
    assert len(encoder.provenance["sha256_of_tensors"]) == 64


def test_image_text_model_that_prepares_tiles_itself():
    encoder = get("musk", device="cpu")
    np.testing.assert_allclose(encoder.embed(tiles_of(20)), tiles_of(20).mean((1, 2)), rtol=1e-5)
    np.testing.assert_array_equal(encoder.embed_text(["ab", "c"]), [[2, 0, 1], [1, 0, 1]])
    assert not encoder.can_dense
    assert encoder.dim == 3


def test_weights_are_passed_on(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"")
    assert get("virchow", weights=path, device="cpu").network.zoo[0].model_path == str(path)  # type: ignore[attr-defined]
    with pytest.raises(FileNotFoundError):
        get("virchow", weights=tmp_path / "absent", device="cpu")


def test_without_a_network_the_hub_is_not_asked_and_the_error_says_the_way_out():
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    with pytest.raises(ConnectionError, match=r"maker/network cannot be had.*weights="):
        get("chief", device="cpu")
    assert before == constants.HF_HUB_OFFLINE


def test_its_models_are_listed_and_segmenters_are_not():
    table = sthist.encoders.available().set_index("name")
    assert table.loc["musk", "text"]
    assert table.loc["virchow", "hub_id"] == "maker/network"
    assert "sam" not in table.index
    with pytest.raises(KeyError, match="no encoder 'sam'"):
        get("sam")


def test_what_it_cannot_do():
    with pytest.raises(ValueError, match="neither revision= nor pretrained=False"):
        get("virchow", revision="v1")


def test_missing_package_says_how_to_install_it(monkeypatch):
    monkeypatch.delitem(sys.modules, "lazyslide_models")
    monkeypatch.setattr("sthist.encoders._loaders.zoo.find_spec", lambda _: None)
    with pytest.raises(ImportError, match=r'pip install "sthist\[zoo\]"'):
        get("virchow")
    assert "musk" in set(sthist.encoders.available()["name"])
