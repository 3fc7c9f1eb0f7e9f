"""Weights: from folders like the hub's, from the hub's cache, and files that are not what they should be."""

from __future__ import annotations

import hashlib
import json
import logging
import pickle
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import sthist
from sthist._weights.hub import _way_out, reachable, socket, urllib
from sthist.encoders import get

_spec = spec_from_file_location("snapshots", Path(__file__).with_name("snapshots.py"))
snapshots = module_from_spec(_spec)  # type: ignore[arg-type]
_spec.loader.exec_module(snapshots)  # type: ignore[union-attr]

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def _no_cache(tmp_path, monkeypatch):
    """An empty cache of the hub, and no network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sthist.settings, "offline", False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("sthist._weights.hub.reachable", lambda: False)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub that serves one folder, and notes what it was asked for."""
    folder, asked = tmp_path / "snapshots" / COMMIT, []

    def download(repository, name, revision=None):
        from huggingface_hub.errors import EntryNotFoundError

        asked.append((repository, name, revision))
        if not (folder / name).is_file():
            raise EntryNotFoundError(name)
        return str(folder / name)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setattr("sthist._weights.hub.reachable", lambda: True)
    return folder, asked


class TestUni:
    def test_folder_like_the_hubs(self, tmp_path):
        network = snapshots.uni(tmp_path)
        encoder = get("uni", weights=tmp_path, device="cpu")
        tiles = snapshots.tiles_of()
        images = (torch.from_numpy(tiles).double() / 255 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor(
            [0.229, 0.224, 0.225]
        )
        with torch.no_grad():
            expected = network(images.permute(0, 3, 1, 2).float()).numpy()
        np.testing.assert_allclose(encoder.embed(tiles), expected, rtol=1e-4, atol=1e-5)
        assert encoder.dense(tiles).shape == (3, 4, 4, 24)
        assert encoder.spec == sthist.tiles.TileSpec(112, 224)

    def test_checksum_and_licence_are_recorded(self, tmp_path):
        snapshots.uni(tmp_path)
        found = get("uni", weights=tmp_path, device="cpu").provenance
        assert found["sha256"] == hashlib.sha256((tmp_path / "pytorch_model.bin").read_bytes()).hexdigest()
        assert found["licence"] == "CC-BY-NC-ND-4.0"
        assert (found["hub_id"], found["weights"], found["pretrained"]) == ("MahmoodLab/UNI", "pytorch_model.bin", True)

    def test_safetensors_are_preferred_by_timm_networks(self, tmp_path):
        network = snapshots.uni(tmp_path)
        (tmp_path / "pytorch_model.bin").unlink()
        save_file(network.state_dict(), tmp_path / "model.safetensors")
        assert get("uni", weights=tmp_path, device="cpu").provenance["weights"] == "model.safetensors"

    def test_virchow2_puts_the_mean_of_the_patches_beside_the_class_token(self, tmp_path):
        import timm
        from timm.layers import SwiGLUPacked

        arguments = {"img_size": 28, "embed_dim": 24, "depth": 1, "num_heads": 2, "reg_tokens": 4, "init_values": 1e-5}
        network = timm.create_model(
            "vit_huge_patch14_224",
            num_classes=0,
            global_pool="",
            mlp_ratio=5.3375,
            dynamic_img_size=True,
            mlp_layer=SwiGLUPacked,
            act_layer=torch.nn.SiLU,
            **arguments,
        ).eval()
        network.load_state_dict(snapshots.random_state({k: tuple(v.shape) for k, v in network.state_dict().items()}))
        save_file(network.state_dict(), tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_text(
            json.dumps({"architecture": "vit_huge_patch14_224", "model_args": arguments})
        )
        encoder = get("virchow2", weights=tmp_path, device="cpu")
        tiles = snapshots.tiles_of(px=28)
        with torch.no_grad():
            tokens = network(encoder.transform(torch.from_numpy(tiles))).numpy()
        assert tokens.shape == (3, 1 + 4 + 4, 24)
        expected = np.concatenate([tokens[:, 0], tokens[:, 5:].mean(1)], axis=1)
        np.testing.assert_allclose(encoder.embed(tiles), expected, rtol=1e-4, atol=1e-5)


class TestHub:
    def test_revision_is_passed_on_and_the_commit_recorded(self, hub):
        folder, asked = hub
        snapshots.uni(folder)
        encoder = get("uni", revision="v1", device="cpu")
        assert asked[0] == ("MahmoodLab/UNI", "pytorch_model.bin", "v1")
        assert asked[1] == ("MahmoodLab/UNI", "config.json", COMMIT)  # all files of one commit
        assert encoder.provenance["revision"] == COMMIT

    def test_licence_is_said_before_anything_is_fetched(self, hub, caplog, monkeypatch):
        folder, _ = hub
        snapshots.uni(folder)
        said = []
        download = sys.modules["huggingface_hub"].hf_hub_download

        def noting(*arguments, **options):
            said.append(caplog.text)
            return download(*arguments, **options)

        monkeypatch.setattr("huggingface_hub.hf_hub_download", noting)
        with caplog.at_level(logging.WARNING, logger="sthist"):
            get("uni", device="cpu")
        assert "CC-BY-NC-ND-4.0" in said[0]
        assert "on request" in said[0]

    def test_what_is_cached_needs_no_network(self, tmp_path, monkeypatch):
        repository = tmp_path / "cache" / "models--MahmoodLab--UNI"
        snapshots.uni(repository / "snapshots" / COMMIT)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(COMMIT)
        monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr("sthist._weights.hub.reachable", lambda: pytest.fail("the network was asked"))
        monkeypatch.setattr(sthist.settings, "offline", True)
        assert get("uni", device="cpu").provenance["revision"] == COMMIT

    def test_damaged_cache_is_found(self, tmp_path):
        blob = tmp_path / "blobs" / ("0" * 64)
        blob.parent.mkdir()
        snapshots.uni(tmp_path / "made")
        blob.write_bytes((tmp_path / "made" / "pytorch_model.bin").read_bytes())
        (tmp_path / "made" / "pytorch_model.bin").unlink()
        (tmp_path / "made" / "pytorch_model.bin").symlink_to(blob)
        with pytest.raises(ValueError, match="damaged.*SHA-256"):
            get("uni", weights=tmp_path / "made", device="cpu")

    @pytest.mark.parametrize("encoder", ["uni", "timm:resnet18", "open_clip:ViT-B-32/laion2b_s34b_b79k", "plip"])
    def test_offline_says_where_to_get_them(self, encoder, monkeypatch):
        monkeypatch.setattr(sthist.settings, "offline", True)
        monkeypatch.setattr("sthist._weights.hub.reachable", lambda: pytest.fail("the network was asked"))
        with pytest.raises(ConnectionError, match=r"HF_HUB_OFFLINE is set.*https://huggingface.co/.*weights="):
            get(encoder, device="cpu")

    def test_no_network_is_one_attempt(self, monkeypatch):
        attempts = []
        monkeypatch.undo()
        monkeypatch.setattr(sthist.settings, "offline", False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_, **__: pytest.fail("it was tried"))

        def refused(address, timeout):
            attempts.append((address, timeout))
            raise OSError

        monkeypatch.setattr(socket, "create_connection", refused)
        with pytest.raises(ConnectionError, match=r"MahmoodLab/UNI cannot be had.*cannot be reached.*weights="):
            get("uni", revision="never-cached", device="cpu")
        assert len(attempts) == 1
        assert attempts[0][1] < 1

    def test_a_name_that_is_never_resolved_is_not_waited_for(self, monkeypatch):
        import threading

        monkeypatch.undo()
        released = threading.Event()
        monkeypatch.setattr("sthist._weights.hub.CONNECT_S", 0.01)
        monkeypatch.setattr("sthist._weights.hub._connect", lambda *_: released.wait(60))
        assert not reachable() or sthist.settings.offline
        released.set()

    def test_gated(self, hub, monkeypatch):
        from huggingface_hub.errors import GatedRepoError

        def gated(*_, **__):
            raise GatedRepoError.__new__(GatedRepoError)  # made without the answer of a host

        monkeypatch.setattr("huggingface_hub.hf_hub_download", gated)
        with pytest.raises(PermissionError, match=r"on request.*hf auth login.*MahmoodLab/UNI"):
            get("uni", device="cpu")

    def test_no_such_files(self, hub):
        with pytest.raises(FileNotFoundError, match=r"none of the files.*pytorch_model.bin"):
            get("uni", device="cpu")

    def test_proxy_is_the_first_hop(self, monkeypatch):
        monkeypatch.setattr(urllib.request, "getproxies", lambda: {"https": "http://proxy.local:3128"})
        monkeypatch.setattr(urllib.request, "proxy_bypass", lambda _: False)
        assert _way_out() == ("proxy.local", 3128)


class TestWrongFiles:
    def test_pickle_is_refused_with_the_way_to_convert_it(self, tmp_path):
        path = tmp_path / "model.pth"
        path.write_bytes(pickle.dumps({"weights": torch.nn.Linear(2, 2)}))
        with pytest.raises(ValueError, match=r"could run any code.*save_file.*model.safetensors"):
            get("timm:resnet18", weights=path, device="cpu")
        torch.save(torch.nn.Linear(2, 2), path)
        with pytest.raises(ValueError, match="could run any code"):
            get("timm:resnet18", weights=path, device="cpu")

    @pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
    def test_truncated(self, tmp_path, name):
        network = snapshots.uni(tmp_path)
        save_file(network.state_dict(), tmp_path / "model.safetensors")
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[: len(content) // 2])
        with pytest.raises(ValueError, match=f"{name}.*damaged"):
            get("uni", weights=tmp_path / name, device="cpu")

    def test_weights_beyond_all_measure(self, tmp_path):
        """They are finite, so that nothing but the embeddings shows it."""
        state = snapshots.uni(tmp_path).state_dict()
        (tmp_path / "pytorch_model.bin").unlink()
        save_file(state | {"norm.weight": torch.full_like(state["norm.weight"], 3e38)}, tmp_path / "model.safetensors")
        encoder = get("uni", weights=tmp_path, device="cpu")
        with pytest.raises(ValueError, match=r"'uni' gave NaN .* get its weights \(model.safetensors\) again"):
            encoder.embed(snapshots.tiles_of())

    def test_another_network_names_the_first_tensors_with_both_shapes(self, tmp_path):
        snapshots.uni(tmp_path)
        pattern = r"another network.*cls_token \(1, 1, 24\) in the file, \(1, 1, 64\) in the network"
        with pytest.raises(ValueError, match=pattern):
            get("timm:test_vit", weights=tmp_path / "pytorch_model.bin", device="cpu")

    def test_a_classifier_may_be_left_over(self, tmp_path):
        import timm

        network = timm.create_model("test_resnet").eval()
        save_file(network.state_dict(), tmp_path / "model.safetensors")
        encoder = get("timm:test_resnet", weights=tmp_path, device="cpu")
        tiles = snapshots.tiles_of(2)
        with torch.no_grad():
            expected = network.forward_features(encoder.transform(torch.from_numpy(tiles))).mean((2, 3)).numpy()
        np.testing.assert_allclose(encoder.embed(tiles), expected, rtol=1e-4, atol=1e-5)

    def test_no_state_dict(self, tmp_path):
        torch.save({"epoch": 3}, tmp_path / "a.pt")
        with pytest.raises(ValueError, match="holds no weights"):
            get("timm:resnet18", weights=tmp_path, device="cpu")

    def test_nothing_there(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="neither file nor folder"):
            get("uni", weights=tmp_path / "absent", device="cpu")
        (tmp_path / "readme.md").write_text("")
        with pytest.raises(ValueError, match=r"none of .*pytorch_model.bin.*readme.md"):
            get("uni", weights=tmp_path, device="cpu")

    def test_weights_and_revision(self, tmp_path):
        snapshots.uni(tmp_path)
        with pytest.raises(ValueError, match="either weights= or revision="):
            get("uni", weights=tmp_path, revision="v1")

    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("unni", "Did you mean 'uni'"),
            ("timm:resnet19", "Did you mean 'timm:resnet18'"),
            ("open_clip:ViT-B-33/openai", "Did you mean 'ViT-B-32'"),
            ("open_clip:ViT-B-32/closedai", "it has .*openai"),
            ("timm:resnet18.nowhere", "no weights 'resnet18.nowhere'.*a1_in1k"),
        ],
    )
    def test_unknown_names(self, name, words):
        with pytest.raises(KeyError, match=words):
            get(name)

    def test_which_weights_of_open_clip(self):
        with pytest.raises(ValueError, match=r"Which weights.*laion2b_s34b_b79k"):
            get("open_clip:ViT-B-32")
