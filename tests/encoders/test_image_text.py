"""Image-text encoders, against their definitions computed another way."""

from __future__ import annotations

import json
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional

import sthist
from sthist.encoders import get

_spec = spec_from_file_location("snapshots", Path(__file__).with_name("snapshots.py"))
snapshots = module_from_spec(_spec)  # type: ignore[arg-type]
_spec.loader.exec_module(snapshots)  # type: ignore[union-attr]

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
TEXTS = ["tumour", "stroma of fat a b", "tumour of stroma of fat a b c d e"]


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    monkeypatch.setattr(sthist.settings, "offline", True)


def attention(q, k, v, heads: int, mask=None):
    """Attention of each head by itself, (l, d) each."""
    parts = []
    for a, b, c in zip(q.chunk(heads, -1), k.chunk(heads, -1), v.chunk(heads, -1), strict=True):
        scores = a @ b.T / a.shape[-1] ** 0.5
        parts.append((scores if mask is None else scores.masked_fill(~mask, -torch.inf)).softmax(-1) @ c)
    return torch.cat(parts, -1)


class TestConch:
    def conch_text(self, state, tokens):
        """The text tower as CONCH defines it, for the tokens of one text, without its last place of padding."""
        part = {name.removeprefix("text."): value for name, value in state.items() if name.startswith("text.")}
        width, length = 12, len(tokens)
        x = torch.cat([part["token_embedding.weight"][tokens], part["cls_emb"][None]])
        x = x + part["positional_embedding"][: length + 1]
        # Every place sees those before it; the added one sees the first place, and the places after a word.
        sees = torch.ones(length + 1, length + 1, dtype=torch.bool).tril()
        sees[-1] = torch.cat([torch.tensor([True]), tokens != 0])
        for i in range(2):
            block = {k.split(f"resblocks.{i}.")[1]: v for k, v in part.items() if f"resblocks.{i}." in k}
            y = functional.layer_norm(x, (width,), block["ln_1.weight"], block["ln_1.bias"])
            q, k, v = (y @ block["attn.in_proj_weight"].T + block["attn.in_proj_bias"]).chunk(3, -1)
            y = attention(q, k, v, 2, sees)
            x = x + y @ block["attn.out_proj.weight"].T + block["attn.out_proj.bias"]
            y = functional.layer_norm(x, (width,), block["ln_2.weight"], block["ln_2.bias"])
            y = functional.gelu(y @ block["mlp.c_fc.weight"].T + block["mlp.c_fc.bias"])
            x = x + y @ block["mlp.c_proj.weight"].T + block["mlp.c_proj.bias"]
        last = functional.layer_norm(x[-1], (width,), part["ln_final.weight"], part["ln_final.bias"])
        return last @ part["text_projection"]

    def test_texts(self, tmp_path):
        state = snapshots.conch(tmp_path)
        encoder = get("conch", weights=tmp_path, device="cpu")
        found = encoder.embed_text(TEXTS)
        for row, text in zip(found, TEXTS, strict=True):
            words = [1, *(snapshots.WORDS.index(word) for word in text.split())][:8] + [2]
            tokens = torch.tensor(words + [0] * (9 - len(words)))
            np.testing.assert_allclose(row, self.conch_text(state, tokens).numpy(), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(encoder.embed_text(TEXTS[0])[0], found[0], rtol=1e-5, atol=1e-6)
        assert encoder.logit_scale == pytest.approx(float(state["logit_scale"].exp()))

    def test_images(self, tmp_path):
        state = snapshots.conch(tmp_path)
        encoder = get("conch", weights=tmp_path, device="cpu")
        tiles = snapshots.tiles_of(2)
        dense = encoder.dense(tiles)
        assert dense.shape == (2, 4, 4, 24)
        images = encoder.transform(torch.from_numpy(tiles))
        np.testing.assert_allclose(
            images[0, :, 3, 5].numpy(), (tiles[0, 3, 5] / 255 - CLIP_MEAN) / CLIP_STD, rtol=1e-5, atol=1e-6
        )
        with torch.no_grad():
            tokens = encoder.module.trunk.forward_features(images)
        part = {k.split("attn_pool_contrast.")[1]: v for k, v in state.items() if "attn_pool_contrast." in k}
        q_bias, k_bias, v_bias = part["attn.in_proj_bias"].chunk(3)
        query = functional.layer_norm(part["query"], (16,), part["ln_q.weight"], part["ln_q.bias"])
        query = query @ part["attn.q_proj_weight"].T + q_bias
        for row, each in zip(encoder.embed(tiles), tokens, strict=True):
            keys = functional.layer_norm(each, (24,), part["ln_k.weight"], part["ln_k.bias"])
            values = keys @ part["attn.v_proj_weight"].T + v_bias
            pooled = attention(query, keys @ part["attn.k_proj_weight"].T + k_bias, values, 8)
            pooled = pooled @ part["attn.out_proj.weight"].T + part["attn.out_proj.bias"]
            pooled = functional.layer_norm(
                pooled, (16,), state["visual.ln_contrast.weight"], state["visual.ln_contrast.bias"]
            )
            np.testing.assert_allclose(row, (pooled @ state["visual.proj_contrast"])[0].numpy(), rtol=1e-4, atol=1e-5)

    def test_without_its_tokenizer_images_go_and_texts_say_what_is_missing(self, tmp_path):
        snapshots.conch(tmp_path)
        (tmp_path / "conch_byte_level_bpe_uncased.json").unlink()
        encoder = get("conch", weights=tmp_path, device="cpu")
        assert encoder.embed(snapshots.tiles_of(1)).shape == (1, 16)
        with pytest.raises(FileNotFoundError, match=r"conch_byte_level_bpe_uncased.json.*beside the weights"):
            encoder.embed_text("tumour")

    def test_positions_of_another_size_are_resampled(self, tmp_path):
        state = snapshots.conch(tmp_path)
        state["visual.trunk.pos_embed"] = torch.randn(1, 1 + 64, 24)
        torch.save(state, tmp_path / "pytorch_model.bin")
        assert np.isfinite(get("conch", weights=tmp_path, device="cpu").embed(snapshots.tiles_of(1))).all()

    def test_beside_uni(self, tmp_path):
        snapshots.conch(tmp_path / "conch")
        snapshots.uni(tmp_path / "uni")
        joined = get([get(name, weights=tmp_path / name, device="cpu") for name in ("conch", "uni")])
        assert joined.key == "X_conch_uni"
        assert joined.embed(snapshots.tiles_of(2)).shape == (2, 16 + 24)
        assert joined.spec == sthist.tiles.TileSpec(112, 448)


class TestOpenClip:
    CONFIG = {
        "model_cfg": {
            "embed_dim": 16,
            "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8},
            "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 24, "heads": 2, "layers": 2},
        },
        "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "interpolation": "bilinear"},
    }

    @pytest.fixture
    def folder(self, tmp_path):
        from open_clip.model import CLIP

        torch.manual_seed(0)
        self.clip = CLIP(**self.CONFIG["model_cfg"]).eval()
        torch.save(self.clip.state_dict(), tmp_path / "open_clip_pytorch_model.bin")
        (tmp_path / "open_clip_config.json").write_text(json.dumps(self.CONFIG))
        return tmp_path

    def test_equals_open_clip_called_directly(self, folder):
        from open_clip.tokenizer import SimpleTokenizer

        encoder = get("quiltnet", weights=folder, device="cpu")
        tiles = snapshots.tiles_of(2)
        images = torch.from_numpy((tiles / 255 - 0.5) / 0.25).permute(0, 3, 1, 2).float()
        with torch.no_grad():
            expected = self.clip.encode_image(images).numpy()
            expected_text = self.clip.encode_text(SimpleTokenizer(context_length=20)(TEXTS)).numpy()
        np.testing.assert_allclose(encoder.embed(tiles), expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(encoder.embed_text(TEXTS), expected_text, rtol=1e-4, atol=1e-5)
        assert encoder.dense(tiles).shape == (2, 4, 4, 64)
        assert encoder.logit_scale == pytest.approx(1 / 0.07, rel=1e-4)
        assert encoder.transform.interpolation == "bilinear"
        assert encoder.embed_text([]).shape == (0, 16)

    def test_another_network(self, folder):
        state = torch.load(folder / "open_clip_pytorch_model.bin", weights_only=True)
        state["text_projection"] = torch.zeros(3, 3)
        torch.save(state, folder / "open_clip_pytorch_model.bin")
        with pytest.raises(ValueError, match=r"another network.*text_projection \(3, 3\) in the file, \(24, 16\)"):
            get("quiltnet", weights=folder, device="cpu")

    def test_nothing_says_what_it_is(self, folder):
        (folder / "open_clip_config.json").unlink()
        with pytest.raises(ValueError, match="Nothing says"):
            get("open_clip:hf-hub:someone/something", weights=folder, device="cpu")

    def test_activation_follows_the_tag(self):
        from sthist.encoders._loaders.open_clip import card_of

        assert card_of("ViT-B-32/openai", needs_tag=True).arguments == {"quick_gelu": True}
        assert card_of("ViT-B/32/laion2b_s34b_b79k", needs_tag=True).arguments == {"quick_gelu": False}

    def test_only_the_image_tower_trains(self, folder):
        encoder = get("quiltnet", weights=folder, device="cpu")
        images = encoder.transform(torch.from_numpy(snapshots.tiles_of(2)))
        encoder.module(images).square().sum().backward()
        assert all(parameter.grad is not None for parameter in encoder.module.parameters())


class TestTransformers:
    def test_plip(self, tmp_path):
        import transformers

        tower = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        letters = [chr(i) for i in range(ord("a"), ord("z") + 1)]
        words = letters + [f"{letter}</w>" for letter in letters] + ["<|startoftext|>", "<|endoftext|>"]
        ends = {"bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1, "pad_token_id": len(words) - 1}
        described = {
            "model_type": "clip",
            "text_config": tower | {"vocab_size": len(words), "max_position_embeddings": 12} | ends,
            "vision_config": tower | {"patch_size": 8, "image_size": 32},
            "projection_dim": 8,
        }
        torch.manual_seed(0)
        network = transformers.CLIPModel(
            transformers.CLIPConfig(**{k: v for k, v in described.items() if k != "model_type"})
        ).eval()
        save_file(network.state_dict(), tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_text(json.dumps(described))
        (tmp_path / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
        (tmp_path / "merges.txt").write_text("#version: 0.2\n")
        encoder = get("plip", weights=tmp_path, device="cpu")
        tiles = snapshots.tiles_of(2)
        with torch.no_grad():
            pooled = network.vision_model(pixel_values=encoder.transform(torch.from_numpy(tiles))).pooler_output
            expected = network.visual_projection(pooled).numpy()
            tokens = torch.tensor([[ends["bos_token_id"], 0, 27, *[ends["eos_token_id"]] * 9]])
            mask = torch.tensor([[1] * 4 + [0] * 8])
            text = network.text_projection(network.text_model(input_ids=tokens, attention_mask=mask).pooler_output)
        np.testing.assert_allclose(encoder.embed(tiles), expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(encoder.embed_text("ab"), text.numpy(), rtol=1e-4, atol=1e-5)
        assert encoder.dense(tiles).shape == (2, 4, 4, 16)

    @pytest.mark.parametrize("published", [False, True])
    def test_phikon_with_names_of_any_version(self, tmp_path, published):
        import transformers

        described = {
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "patch_size": 8,
            "image_size": 32,
        }
        network = transformers.Dinov2Model(transformers.Dinov2Config(**described)).eval()
        state = snapshots.random_state({name: tuple(value.shape) for name, value in network.state_dict().items()})
        network.load_state_dict(state)
        older = {"q_proj": "attention.query", "k_proj": "attention.key", "v_proj": "attention.value"} | {
            "o_proj": "output.dense"
        }
        for new, old in older.items() if published else ():
            state = {name.replace(f"attention.{new}", f"attention.{old}"): value for name, value in state.items()}
        save_file(state, tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_text(json.dumps(described | {"model_type": "dinov2"}))
        encoder = get("phikon-v2", weights=tmp_path, device="cpu")
        tiles = snapshots.tiles_of(2)
        with torch.no_grad():
            hidden = network(pixel_values=encoder.transform(torch.from_numpy(tiles))).last_hidden_state.numpy()
        np.testing.assert_allclose(encoder.embed(tiles), hidden[:, 0], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(encoder.dense(tiles).reshape(2, 16, 16), hidden[:, 1:], rtol=1e-4, atol=1e-5)

    def test_keep(self, tmp_path):
        import transformers

        from sthist.encoders._loaders.transformers import KeepImages

        described = {
            "vision_config": {"img_size": 32, "patch_size": 8, "init_values": 1e-5, "num_classes": 0}
            | {"embed_dim": 24, "depth": 1, "num_heads": 2},
            "text_config": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
            | {"intermediate_size": 32, "vocab_size": 8, "max_position_embeddings": 10},
            "projection_dim": 16,
        }
        images = KeepImages(described).eval()
        text = transformers.BertModel(transformers.BertConfig(**described["text_config"])).eval()
        state = {name.replace(".gamma", ".weight"): value for name, value in images.state_dict().items()}
        state |= {f"text.{name}": value for name, value in text.state_dict().items()} | {"logit_scale": torch.ones(())}
        save_file(state, tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_text(json.dumps(described))
        (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "tumour", "fat"]))
        encoder = get("keep", weights=tmp_path, device="cpu")
        tiles = snapshots.tiles_of(2)
        with torch.no_grad():
            trunk = images.visual(encoder.transform(torch.from_numpy(tiles)))
            hidden = functional.gelu(
                functional.linear(trunk, state["visual_head.0.weight"], state["visual_head.0.bias"])
            )
            expected = functional.linear(hidden, state["visual_head.2.weight"], state["visual_head.2.bias"]).numpy()
            tokens = torch.tensor([[2, 5, 3]])
            expected_text = text(input_ids=tokens, attention_mask=torch.ones_like(tokens)).pooler_output.numpy()
        np.testing.assert_allclose(encoder.embed(tiles), expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(encoder.embed_text("tumour"), expected_text, rtol=1e-4, atol=1e-5)
        assert encoder.logit_scale == pytest.approx(np.e)
