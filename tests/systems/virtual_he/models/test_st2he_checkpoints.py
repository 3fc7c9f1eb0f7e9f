"""What was trained of a generator: written, read, and taken from the checkpoints of others."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest
import torch
from turbo_files import TINY, Upstream, disturbed, write_backbone

from sthist.nets import SD_TURBO, SMALL, Turbo
from sthist.systems.virtual_he.models.st2he_checkpoints import convert_upstream, read_trained, save_trained
from sthist.systems.virtual_he.models.st2he_weights import build_turbo


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
def image():
    return torch.rand(1, 3, 16, 16) * 2 - 1


class TestTrained:
    @torch.no_grad()
    def test_comes_back(self, folder, image, tmp_path):
        turbo = disturbed(build_turbo(TINY, folder)).eval()
        save_trained(turbo, tmp_path / "model.safetensors", input_range=[-1, 1])
        state, config, facts = read_trained(tmp_path / "model.safetensors")
        assert (config, facts) == (TINY, {"input_range": [-1, 1]})
        other = build_turbo(config, folder, seed=5).eval()
        other.load_trained_state(state)
        prompt = torch.randn(1, TINY.tokens, TINY.text_dim)
        assert torch.equal(other(image, prompt), turbo(image, prompt))
        assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]

    def test_files_of_others_are_refused(self, tmp_path):
        from safetensors.torch import save_file

        save_file({"weight": torch.zeros(1)}, tmp_path / "other.safetensors")
        with pytest.raises(ValueError, match="does not say which generator"):
            read_trained(tmp_path / "other.safetensors")
        (tmp_path / "damaged.safetensors").write_bytes(b"12")
        with pytest.raises(ValueError, match="damaged"):
            read_trained(tmp_path / "damaged.safetensors")


class TestUpstream:
    @pytest.fixture
    def upstream(self, folder):
        return Upstream(folder)

    @pytest.mark.parametrize("style", ["as now", "without adapter names", "before base_layer"])
    @torch.no_grad()
    def test_computes_what_upstream_computes(self, upstream, folder, tmp_path, image, style):
        content = upstream.checkpoint()
        if style == "without adapter names":
            content["state_dict_unet"] = {n.replace(".default", ""): v for n, v in content["state_dict_unet"].items()}
        elif style == "before base_layer":
            content["state_dict_vae"] = {n.replace(".base_layer", ""): v for n, v in content["state_dict_vae"].items()}
        torch.save(content, tmp_path / "model_9501.pkl")
        config = convert_upstream(tmp_path / "model_9501.pkl", tmp_path / "model.safetensors", base=TINY)
        assert (config.rank_unet, config.rank_vae) == (3, 2)
        state, config, facts = read_trained(tmp_path / "model.safetensors")
        assert facts["input_range"] == [0.0, 1.0]
        assert facts["converted_from"]["file"] == "model_9501.pkl"
        turbo = build_turbo(config, folder).eval()
        turbo.load_trained_state(state)
        prompt = torch.randn(1, TINY.tokens, TINY.text_dim)
        expected = upstream(image, prompt)
        assert not torch.allclose(build_turbo(TINY, folder).eval()(image, prompt), expected, atol=0.05)
        torch.testing.assert_close(turbo(image, prompt), expected, atol=2e-5, rtol=1e-4)

    def test_checkpoints_of_other_backbones_are_refused(self, upstream, tmp_path):
        torch.save(upstream.checkpoint(), tmp_path / "model.pkl")
        with pytest.raises(ValueError, match="do not fit this generator"):
            convert_upstream(
                tmp_path / "model.pkl", tmp_path / "model.safetensors", base=replace(SMALL, padding="zeros")
            )
        assert [path.name for path in tmp_path.iterdir()] == ["model.pkl"]

    @pytest.mark.parametrize("protocol", [2, 4])
    def test_pickles_of_other_objects_do_not_run(self, tmp_path, protocol):
        class Malign:
            def __reduce__(self):
                return (open, (str(tmp_path / "ran"), "w"))

        torch.save({"rank_unet": Malign()}, tmp_path / "zip.pkl", pickle_protocol=protocol)
        (tmp_path / "bare.pkl").write_bytes(pickle.dumps({"rank_unet": Malign()}, protocol=protocol))
        for name in ("zip.pkl", "bare.pkl"):
            with pytest.raises(ValueError, match="could run any code"):
                convert_upstream(tmp_path / name, tmp_path / "out.safetensors")
        assert not (tmp_path / "ran").exists()

    @pytest.mark.parametrize("change", ["rank", "tensor", "list"])
    def test_other_content_is_refused(self, upstream, tmp_path, change):
        content = upstream.checkpoint()
        if change == "rank":
            del content["rank_vae"]
        elif change == "tensor":
            content["state_dict_vae"]["a.lora_A.vae_skip.weight"] = 3
        else:
            content = [content]
        torch.save(content, tmp_path / "model.pkl")
        with pytest.raises(ValueError, match="no checkpoint of img2img-turbo"):
            convert_upstream(tmp_path / "model.pkl", tmp_path / "out.safetensors", base=TINY)

    def test_damaged_files_are_refused(self, upstream, tmp_path):
        path = tmp_path / "model.pkl"
        torch.save(upstream.checkpoint(), path)
        path.write_bytes(path.read_bytes()[:5000])
        with pytest.raises(ValueError, match="damaged"):
            convert_upstream(path, tmp_path / "out.safetensors", base=TINY)
        with pytest.raises(FileNotFoundError, match="no checkpoint"):
            convert_upstream(tmp_path / "nowhere.pkl", tmp_path / "out.safetensors", base=TINY)


def test_names_of_the_real_checkpoint():
    # As many tensors as the publication's file has: 2 per adapted layer, the first layer of the U-Net, 4 skips.
    with torch.device("meta"):
        state = Turbo(SD_TURBO).adapt().trained_state()
    assert len(state) == 2 * (257 + 74) + 2 + 4
    assert sum(value.numel() for value in state.values()) == 9_505_160
