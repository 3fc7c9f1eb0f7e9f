"""Backbones of the one-step generator, and prompts, from files and from nothing."""

from __future__ import annotations

import json

import pytest
import torch
from turbo_files import TINY, write_backbone

from sthist.nets import SD_TURBO, SMALL
from sthist.systems.virtual_he.models.st2he_weights import Backbone, build_prompts, build_turbo

PROMPTS = ["a lung", "lung a", "a lung"]


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_backbone(tmp_path_factory.mktemp("backbone"))


@pytest.fixture
def copy(folder, tmp_path):
    """A backbone to be damaged."""
    import shutil

    return shutil.copytree(folder, tmp_path / "copy")


def set_in(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


class TestBackbone:
    def test_weights_are_those_of_the_folder(self, folder):
        from diffusers import AutoencoderKL, UNet2DConditionModel

        turbo = build_turbo(TINY, folder).merge()
        theirs = UNet2DConditionModel.from_pretrained(folder / "unet").state_dict()
        ours = turbo.unet.state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
        theirs = AutoencoderKL.from_pretrained(folder / "vae").state_dict()
        ours = turbo.vae.state_dict()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
        assert {float(w) for layer in turbo.vae.skip_convs for w in layer.weight.flatten()} == {
            torch.tensor(1e-5).item()
        }

    def test_names_of_old_autoencoders(self, copy, folder):
        from safetensors.torch import load_file, save_file

        path = copy / "vae" / "diffusion_pytorch_model.safetensors"
        state = load_file(path)
        for old, new in (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0")):
            state = {name.replace(new, old): value for name, value in state.items()}
        assert any("proj_attn" in name for name in state)
        save_file(state, path)
        old, new = build_turbo(TINY, copy), build_turbo(TINY, folder)
        assert all(torch.equal(a, b) for a, b in zip(old.parameters(), new.parameters(), strict=True))

    def test_same_seed_same_adapters(self, folder):
        states = [build_turbo(TINY, folder, seed=seed).trained_state() for seed in (0, 0, 1)]
        same = [all(torch.equal(v, other[n]) for n, v in states[0].items()) for other in states[1:]]
        assert same == [True, False]

    def test_the_seed_of_others_is_left_alone(self):
        torch.manual_seed(3)
        expected = torch.rand(1)
        torch.manual_seed(3)
        build_turbo(TINY)
        assert torch.equal(torch.rand(1), expected)

    def test_where_it_is_from(self, folder):
        import hashlib

        backbone = Backbone(folder)
        build_turbo(TINY, backbone)
        facts = backbone.provenance()
        path = folder / "unet" / "diffusion_pytorch_model.safetensors"
        assert facts["files"]["unet"]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert facts["source"] == str(folder)
        json.dumps(facts)

    def test_sides_are_checked_before_anything_is_read(self, tmp_path):
        with pytest.raises(ValueError, match="multiple of 8, such as 496 or 504"):
            build_turbo(SD_TURBO, tmp_path / "nowhere", px=500)

    @pytest.mark.parametrize(
        ("file", "values"),
        [
            ("vae/config.json", {"scaling_factor": 0.7}),
            ("vae/config.json", {"block_out_channels": [8, 16]}),
            ("unet/config.json", {"attention_head_dim": [2, 2]}),
            ("unet/config.json", {"use_linear_projection": False}),
            ("scheduler/scheduler_config.json", {"prediction_type": "v_prediction"}),
            ("scheduler/scheduler_config.json", {"beta_end": 0.02}),
        ],
    )
    def test_other_networks_are_refused(self, copy, file, values):
        set_in(copy / file, **values)
        (copy / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"not read")
        with pytest.raises(ValueError, match=f"says {next(iter(values))} "):
            build_turbo(TINY, copy)

    def test_missing_parts_are_named(self, copy, tmp_path):
        (copy / "vae").rename(tmp_path / "gone")
        with pytest.raises(FileNotFoundError, match="no folder 'vae'"):
            build_turbo(TINY, copy)
        with pytest.raises(FileNotFoundError, match="There is no backbone"):
            build_turbo(TINY, tmp_path / "nowhere")

    def test_damaged_weights_are_refused(self, copy):
        path = copy / "unet" / "diffusion_pytorch_model.safetensors"
        path.write_bytes(path.read_bytes()[:-9])
        with pytest.raises(ValueError, match="damaged"):
            build_turbo(TINY, copy)

    def test_from_the_cache_of_the_hub(self, folder, monkeypatch, tmp_path):
        import shutil

        import sthist

        commit = "0123456789" * 4
        snapshot = tmp_path / "models--someone--tiny" / "snapshots" / commit
        shutil.copytree(folder, snapshot)
        (snapshot.parents[1] / "refs").mkdir()
        (snapshot.parents[1] / "refs" / "main").write_text(commit)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr(sthist.settings, "offline", True)
        backbone = Backbone("someone/tiny")
        cached, local = build_turbo(TINY, backbone), build_turbo(TINY, folder)
        assert all(torch.equal(a, b) for a, b in zip(cached.parameters(), local.parameters(), strict=True))
        assert torch.equal(build_prompts(TINY, backbone).encode(PROMPTS), build_prompts(TINY, folder).encode(PROMPTS))
        assert {file["revision"] for file in backbone.provenance()["files"].values()} == {commit}

    def test_weights_of_half_the_precision(self, copy, folder):
        from safetensors.torch import load_file, save_file

        path = copy / "unet" / "diffusion_pytorch_model.safetensors"
        save_file({name: value.half() for name, value in load_file(path).items()}, path.with_suffix(".tmp"))
        path.with_suffix(".tmp").rename(copy / "unet" / "diffusion_pytorch_model.fp16.safetensors")
        path.unlink()
        half, full = (build_turbo(TINY, source).merge().unet.state_dict() for source in (copy, folder))
        assert all(torch.equal(half[name], value.half().float()) for name, value in full.items())

    def test_offline_says_where_to_get_it(self, monkeypatch, tmp_path):
        import sthist

        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr(sthist.settings, "offline", True)
        with pytest.raises(ConnectionError, match="https://huggingface.co/stabilityai/sd-turbo"):
            build_turbo(SD_TURBO, "stabilityai/sd-turbo")


class TestPrompts:
    def test_equals_transformers(self, folder):
        from transformers import CLIPTextModel

        ids = torch.tensor([[10, 0, 1, 11, 8, 8, 8], [10, 1, 0, 11, 8, 8, 8], [10, 0, 1, 11, 8, 8, 8]])
        prompts = build_prompts(TINY, folder)
        assert torch.equal(prompts.tokenize(PROMPTS), ids)
        model = CLIPTextModel.from_pretrained(folder / "text_encoder")
        with torch.no_grad():
            torch.testing.assert_close(prompts.encode(PROMPTS), model(ids).last_hidden_state)

    @pytest.mark.parametrize("prefix", ["", "text_model."])
    def test_names_with_and_without_prefix(self, copy, folder, prefix):
        from safetensors.torch import load_file, save_file

        path = copy / "text_encoder" / "model.safetensors"
        state = {prefix + name.removeprefix("text_model."): value for name, value in load_file(path).items()}
        positions = torch.arange(TINY.tokens)[None]
        save_file(state | {f"{prefix}embeddings.position_ids": positions}, path)
        assert torch.equal(build_prompts(TINY, copy).encode(PROMPTS), build_prompts(TINY, folder).encode(PROMPTS))

    def test_other_activations_are_refused(self, copy):
        set_in(copy / "text_encoder" / "config.json", hidden_act="quick_gelu")
        with pytest.raises(ValueError, match="says hidden_act quick_gelu"):
            build_prompts(TINY, copy)

    def test_without_any_files(self):
        embedded = build_prompts(SMALL).encode(PROMPTS)
        assert embedded.shape == (3, SMALL.tokens, SMALL.text_dim)
        assert torch.equal(embedded[0], embedded[2])
        assert not torch.allclose(embedded[0], embedded[1])
        assert torch.equal(build_prompts(SMALL).encode(PROMPTS[1:]), embedded[1:])
