"""What encoders give, against networks that are called directly."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import timm
import torch

import sthist
from sthist.encoders import Encoder, Joined, Transform, get
from sthist.tiles import TileSpec

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def tiles_of(n: int = 3, px: int = 32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, px, px, 3), dtype=np.uint8)


def normalised(tiles: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(((tiles / 255 - MEAN) / STD).transpose(0, 3, 1, 2).astype(np.float32).copy())


def random_timm(name: str = "timm:resnet18", **arguments: object) -> Encoder:
    torch.manual_seed(0)
    return get(name, pretrained=False, device="cpu", **arguments)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def resnet() -> Encoder:
    return random_timm()


class Flat(torch.nn.Module):
    """The mean colour, through a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.eye(3))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3)) @ self.weight


class TestNetwork:
    def test_equals_timm_called_directly(self, resnet):
        tiles = tiles_of(px=224)
        torch.manual_seed(0)
        network = timm.create_model("resnet18", num_classes=0).eval()
        with torch.no_grad():
            expected = network(normalised(tiles)).numpy()
        np.testing.assert_allclose(resnet.embed(tiles), expected, rtol=1e-4, atol=1e-5)

    def test_shape_and_type(self, resnet):
        found = resnet.embed(tiles_of(2))
        assert found.shape == (2, resnet.dim) == (2, 512)
        assert found.dtype == np.float32
        assert resnet.embed(tiles_of(2)[:0]).shape == (0, 512)

    def test_resizes_with_antialiasing(self, resnet):
        tiles = tiles_of(px=300)
        images = torch.from_numpy(tiles.transpose(0, 3, 1, 2).copy()).float()
        resized = torch.nn.functional.interpolate(images, (224, 224), mode="bicubic", antialias=True).clamp(0, 255)
        expected = (resized / 255 - torch.tensor(MEAN).reshape(3, 1, 1)) / torch.tensor(STD).reshape(3, 1, 1)
        with torch.no_grad():
            expected = resnet.module(expected.float()).numpy()
        np.testing.assert_allclose(resnet.embed(tiles), expected, rtol=1e-4, atol=1e-5)

    def test_fine_stripes_become_grey(self):
        stripes = np.zeros((1, 128, 128, 3), np.uint8)
        stripes[:, :, ::2] = 254
        found = Transform((0, 0, 0), (1, 1, 1), size=16)(torch.from_numpy(stripes))
        np.testing.assert_allclose(found.numpy(), 127 / 255, atol=0.02)

    def test_bf16_is_close(self, resnet):
        close = random_timm(precision="bf16")
        exact, rounded = resnet.embed(tiles_of()), close.embed(tiles_of())
        assert rounded.dtype == np.float32
        assert np.abs(rounded - exact).max() < 0.05 * np.abs(exact).max()
        assert not np.array_equal(rounded, exact)

    def test_read_only_and_tensor_tiles(self, resnet):
        tiles = tiles_of()
        expected = resnet.embed(tiles)
        tiles.flags.writeable = False
        np.testing.assert_array_equal(resnet.embed(tiles), expected)
        np.testing.assert_array_equal(resnet.embed(torch.from_numpy(tiles_of())), expected)
        np.testing.assert_array_equal(resnet.embed(tiles_of()[:, ::-1][:, ::-1]), expected)

    def test_batches_equal_single_calls_in_order(self, resnet):
        batches = [tiles_of(2, seed=1), tiles_of(1, seed=2), tiles_of(0), tiles_of(2, seed=3)]
        found = list(resnet.embed_batches(iter(batches)))
        assert [len(rows) for rows in found] == [2, 1, 0, 2]
        for rows, tiles in zip(found, batches, strict=True):
            np.testing.assert_array_equal(rows, resnet.embed(tiles))

    def test_dense_of_a_convolutional_network_pools_to_its_embedding(self, resnet):
        tiles = tiles_of()
        assert resnet.can_dense
        dense = resnet.dense(tiles)
        assert dense.shape == (3, 7, 7, 512)
        np.testing.assert_allclose(dense.mean((1, 2)), resnet.embed(tiles), rtol=1e-4, atol=1e-5)

    def test_dense_of_a_transformer_is_its_patch_tokens(self):
        encoder = random_timm("timm:test_vit")
        tiles = tiles_of(2, px=160)
        side = 160 // encoder.module.trunk.patch_embed.patch_size[0]
        with torch.no_grad():
            tokens = encoder.module.trunk.forward_features(encoder.transform(torch.from_numpy(tiles))).numpy()
        dense = encoder.dense(tiles)
        assert dense.shape == (2, side, side, encoder.dim)
        np.testing.assert_allclose(dense[1, 2, 3], tokens[1, 1 + 2 * side + 3], rtol=1e-5, atol=1e-6)

    def test_module_and_transform_train(self):
        encoder = random_timm("timm:test_resnet")
        images = encoder.transform(torch.from_numpy(tiles_of(2)))
        encoder.module.train()
        encoder.module(images).sum().backward()
        assert next(encoder.module.parameters()).grad is not None
        before = encoder.embed(tiles_of(1))
        assert encoder.module.training
        encoder.module.eval()
        np.testing.assert_array_equal(encoder.embed(tiles_of(1)), before)

    def test_provenance_is_json(self, resnet):
        import json

        found = json.loads(json.dumps(resnet.provenance))
        assert found["source"] == "timm"
        assert found["hub_id"] == "timm/resnet18.a1_in1k"
        assert found["transform"]["size"] == 224
        assert found["pretrained"] is False

    def test_texts_are_refused(self, resnet):
        assert not resnet.can_text
        with pytest.raises(ValueError, match=r"embeds images only.*'conch'"):
            resnet.embed_text(["tumour"])

    @pytest.mark.parametrize(
        ("tiles", "words"),
        [
            (np.zeros((2, 8, 9, 3), np.uint8), "square RGB"),
            (np.zeros((8, 8, 3), np.uint8), "square RGB"),
            (np.zeros((2, 8, 8, 4), np.uint8), "square RGB"),
            (np.zeros((2, 8, 8, 3), np.float32), "uint8"),
        ],
    )
    def test_other_tiles_are_refused(self, resnet, tiles, words):
        with pytest.raises(ValueError, match=words):
            resnet.embed(tiles)

    def test_unknown_precision(self):
        with pytest.raises(ValueError, match=r"no precision 'int8'.*bf16"):
            random_timm("timm:test_resnet", precision="int8")

    def test_compiled_is_marked_only(self, monkeypatch):
        calls = []
        monkeypatch.setattr(torch, "compile", lambda module: calls.append(module) or module)
        encoder = random_timm("timm:test_resnet", compile=True)
        assert calls == [encoder.module]


class TestOwn:
    def test_function(self):
        def mean_colour(tiles):
            return tiles.mean((1, 2))

        encoder = get(mean_colour, spec=TileSpec(50, 16))
        tiles = tiles_of(2)
        np.testing.assert_allclose(encoder.embed(tiles), tiles.mean((1, 2)), rtol=1e-6)
        assert (encoder.key, encoder.dim, encoder.spec) == ("X_mean_colour", 3, TileSpec(50, 16))
        assert encoder.embed(tiles).dtype == np.float32
        with pytest.raises(ValueError, match="none within it"):
            encoder.dense(tiles)

    def test_function_that_gives_a_tensor(self):
        encoder = get(lambda tiles: torch.from_numpy(tiles).float().mean((1, 2)), name="mean")
        assert encoder.embed(tiles_of(2)).shape == (2, 3)
        assert encoder.key == "X_mean"

    def test_function_of_another_shape(self):
        with pytest.raises(ValueError, match=r"shape \(2, 32, 32, 3\) for 2 tiles"):
            get(lambda tiles: tiles).embed(tiles_of(2))

    def test_function_that_gives_nan_names_the_tile(self):
        def broken(tiles):
            rows = np.ones((len(tiles), 2))
            rows[1, 1] = np.nan
            return rows

        with pytest.raises(ValueError, match="first for tile 1"):
            get(broken).embed(tiles_of(3))

    def test_module_is_normalised_as_for_imagenet_and_says_so(self, caplog):
        with caplog.at_level(logging.INFO, logger="sthist"):
            encoder = get(Flat(), device="cpu")
        assert "ImageNet" in caplog.text
        tiles = tiles_of(2)
        np.testing.assert_allclose(encoder.embed(tiles), normalised(tiles).mean((2, 3)), atol=1e-5)
        assert len(encoder.provenance["sha256_of_tensors"]) == 64

    def test_module_with_its_own_transform(self):
        plain = get(Flat(), device="cpu", transform={"mean": (0, 0, 0), "std": (1, 1, 1)})
        own = get(Flat(), device="cpu", transform=lambda images: images.float() / 255)
        expected = tiles_of(2).mean((1, 2)) / 255
        np.testing.assert_allclose(plain.embed(tiles_of(2)), expected, atol=1e-6)
        np.testing.assert_allclose(own.embed(tiles_of(2)), expected, atol=1e-6)

    def test_checksum_follows_the_weights(self):
        other = Flat()
        other.weight.data[0, 0] = 2
        same, again, differs = (get(module, device="cpu").provenance for module in (Flat(), Flat(), other))
        assert same["sha256_of_tensors"] == again["sha256_of_tensors"] != differs["sha256_of_tensors"]

    def test_an_encoder_stays_itself(self, resnet):
        assert get(resnet) is resnet

    def test_what_is_no_encoder(self):
        with pytest.raises(ValueError, match="a name, a function"):
            get(3)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="transform= goes with"):
            random_timm("timm:resnet18", transform=Transform())
        with pytest.raises(ValueError, match=r"weights= do not go with 'Flat'"):
            get(Flat(), weights="x.safetensors")
        with pytest.raises(ValueError, match="std"):
            Transform(std=(1, 0, 1))


class TestJoined:
    def test_stands_side_by_side_in_order(self, resnet):
        small = random_timm("timm:test_resnet")
        joined = get([resnet, small])
        tiles = tiles_of(2, 64)
        found = joined.embed(tiles)
        assert found.shape == (2, joined.dim)
        np.testing.assert_array_equal(found[:, :512], resnet.embed(tiles))
        np.testing.assert_array_equal(found[:, 512:], small.embed(tiles))
        assert joined.key == "X_timm_resnet18_timm_test_resnet"
        assert joined.provenance["order"] == ["timm:resnet18", "timm:test_resnet"]

    def test_pixels_may_differ_and_the_finest_is_read(self):
        parts = [get(lambda t: t.mean((1, 2)), name=name, spec=TileSpec(112, px)) for name, px in (("a", 8), ("b", 16))]
        assert Joined(parts).spec == TileSpec(112, 16)
        assert Joined(parts).key == "X_a_b"

    def test_sizes_may_not(self):
        parts = [get(lambda t: t.mean((1, 2)), name=name, spec=TileSpec(um, 8)) for name, um in (("a", 112), ("b", 55))]
        with pytest.raises(ValueError, match=r"'a' 112 µm, 'b' 55 µm"):
            Joined(parts)

    def test_conch_and_uni_are_meant_for_one_tile(self):
        from sthist.encoders._registry import CARDS

        assert CARDS["conch"].spec.size_um == CARDS["uni"].spec.size_um  # type: ignore[union-attr]

    def test_weights_belong_to_one(self):
        with pytest.raises(ValueError, match="belong to one encoder"):
            get(["uni", "conch"], weights="folder")
        with pytest.raises(ValueError, match="no encoder to join"):
            Joined([])

    def test_texts_are_refused(self, resnet):
        with pytest.raises(ValueError, match="images only"):
            get([resnet, resnet]).embed_text("tumour")


def test_available_lists_what_get_takes():
    table = sthist.encoders.available().set_index("name")
    assert {"morphology", "uni", "uni2", "conch", "virchow2", "gigapath", "h-optimus-0", "h0-mini"} <= set(table.index)
    assert table.loc["conch", "text"]
    assert table.loc["virchow2", "dim"] == 2 * 1280  # class token beside the mean of the patches
    assert table.index.is_unique


def test_importing_loads_no_framework():
    import subprocess
    import sys

    code = (
        "import sys, sthist; sthist.encoders.available(); print(sorted({'torch', 'timm', 'open_clip'} & "
        "set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
