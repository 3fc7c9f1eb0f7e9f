"""Pretrained backbones of the one-step generator, in the layout of diffusers, and generators made from them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sthist import _weights
from sthist._weights import hub
from sthist._weights.source import Source
from sthist.nets import SD_TURBO

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch

    from sthist.nets import PromptEncoder, Turbo, TurboConfig

HUB_ID = "stabilityai/sd-turbo"
LICENCE = "Stability AI Community License"
_NETWORK = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors")
_FILES = {
    "vae": (_NETWORK, ("vae/config.json",)),
    "unet": (_NETWORK, ("unet/config.json", "scheduler/scheduler_config.json")),
    "text_encoder": (("model.safetensors", "model.fp16.safetensors"), ("text_encoder/config.json",)),
    "tokenizer": (
        ("vocab.json",),
        ("tokenizer/merges.txt", "tokenizer/special_tokens_map.json", "tokenizer/tokenizer_config.json"),
    ),
}
"""Folders of a backbone, with the names of their main file and what is wanted beside it."""

_OLD_ATTENTION = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}


@dataclass(frozen=True)
class Backbone:
    """Where the files of a pretrained backbone are."""

    # a folder with ``vae``, ``unet``, ``text_encoder``, ``tokenizer`` and ``scheduler``, or a hub id
    source: str | Path = HUB_ID
    revision: str | None = None  # branch, tag or commit on the hub
    _found: dict[str, Path] = field(default_factory=dict, repr=False, compare=False)

    def part(self, name: str) -> Path:
        """Main file of one of the folders."""
        if name not in self._found:
            if not self._found and not self.is_folder:
                self._where(name).announce("Using")
            self._found[name] = self._local(name) if self.is_folder else self._from_hub(name)
        return self._found[name]

    @property
    def is_folder(self) -> bool:
        """Whether it is on this machine, and not a name on the hub."""
        source = str(self.source)
        return Path(source).expanduser().exists() or source.count("/") != 1 or source.startswith((".", "~", "/"))

    def provenance(self) -> dict[str, Any]:
        """Source, and commit and SHA-256 of the files that were used."""
        files = {name: _weights.Files(path, None, hub.commit_of(path.parent)) for name, path in self._found.items()}
        return {"source": str(self.source), "files": {name: file.provenance() for name, file in files.items()}}

    def _where(self, name: str) -> Source:
        names, extras = _FILES[name]
        licence = LICENCE if str(self.source) == HUB_ID else "see its page"
        files = tuple(f"{name}/{file}" for file in names)
        return Source(str(self.source), licence, files=files, extras=extras)

    def _from_hub(self, name: str) -> Path:
        # All parts from one commit, also if the hub gets another while they are fetched.
        commits = (hub.commit_of(path.parent) for path in self._found.values())
        return hub.fetch(self._where(name), self.revision or next(commits, None), announce=False)

    def _local(self, name: str) -> Path:
        folder = Path(self.source).expanduser()
        if not folder.is_dir():
            raise FileNotFoundError(
                f"There is no backbone {str(folder)!r}: a folder with {sorted(_FILES)}, or an id of the hub, is "
                "expected."
            )
        if not (folder / name).is_dir():
            have = sorted(path.name for path in folder.iterdir() if path.is_dir())
            raise FileNotFoundError(f"The backbone {str(folder)!r} has no folder {name!r}; it has {have}.")
        return _weights.find(folder / name, _FILES[name][0])


def build_turbo(
    config: TurboConfig = SD_TURBO,
    pretrained: str | Path | Backbone | None = None,
    *,
    px: int | None = None,
    seed: int = 0,
) -> Turbo:
    """Make a generator, ready to be trained."""
    import torch

    from sthist.nets import Turbo

    if px is not None:
        config.check_px(px)
    backbone = None if pretrained is None else as_backbone(pretrained)
    if backbone is not None:
        check_settings(config, backbone)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if backbone is None:
            return Turbo(config).adapt()
        # Without drawing a billion numbers that are replaced at once.
        with torch.device("meta"):
            turbo = Turbo(config)
        turbo.to_empty(device="cpu")
        turbo.vae.reset_skips(config.skip_init)
        skips = {name: value for name, value in turbo.vae.state_dict().items() if name.startswith("skip_conv_")}
        _weights.load_into(turbo.vae, _renamed(_weights.read(backbone.part("vae"))) | skips, backbone.part("vae"))
        _weights.load_into(turbo.unet, _weights.read(backbone.part("unet")), backbone.part("unet"))
        return turbo.adapt()


@dataclass(frozen=True)
class Prompts:
    """Texts to what the generator takes as a prompt."""

    encoder: PromptEncoder  # ids to vectors
    tokenize: Callable[[Sequence[str]], torch.Tensor]  # texts to ids

    def encode(self, prompts: Sequence[str]) -> torch.Tensor:
        """Embed texts, each different one once.

        Returns (n, tokens, width).
        """
        distinct = list(dict.fromkeys(prompts))
        embedded = self.encoder(self.tokenize(distinct))
        return embedded[[distinct.index(prompt) for prompt in prompts]]


def build_prompts(config: TurboConfig = SD_TURBO, pretrained: str | Path | Backbone | None = None) -> Prompts:
    """Make the text side of a generator, which is not trained."""
    from sthist.nets import PromptEncoder, byte_ids

    if pretrained is None:
        return Prompts(PromptEncoder(config).draw(), lambda prompts: byte_ids(prompts, config.tokens))
    backbone = as_backbone(pretrained)
    encoder = PromptEncoder(config)
    path = backbone.part("text_encoder")
    _compare(path.parent / "config.json", {"hidden_act": config.text_act, "num_attention_heads": config.text_heads})
    # The prefix of these names, and a buffer of positions, come and go between versions of transformers.
    state = {name.removeprefix("text_model."): value for name, value in _weights.read(path).items()}
    prefix = "text_model." if "text_model.final_layer_norm.bias" in encoder.model.state_dict() else ""
    state = {prefix + name: value for name, value in state.items() if not name.endswith("position_ids")}
    _weights.load_into(encoder.model, state, path, leave=("text_projection", "text_model.text_projection"))
    return Prompts(encoder, _clip_tokenizer(backbone.part("tokenizer").parent, config.tokens))


def as_backbone(pretrained: str | Path | Backbone) -> Backbone:
    """The files meant by a folder or a hub id."""
    return pretrained if isinstance(pretrained, Backbone) else Backbone(pretrained)


def check_settings(config: TurboConfig, backbone: Backbone) -> None:
    """Compare what shapes of weights do not show, before they are read."""
    from sthist.nets._translation.turbo import BETA_FIRST, BETA_LAST, STEPS

    vae, unet = backbone.part("vae").parent, backbone.part("unet").parent
    _compare(vae / "config.json", {"block_out_channels": config.vae_channels, "scaling_factor": config.scaling})
    heads = {"block_out_channels": config.unet_channels, "attention_head_dim": config.unet_heads}
    _compare(unet / "config.json", heads | {"use_linear_projection": True})
    schedule = {"prediction_type": "epsilon", "beta_schedule": "scaled_linear", "num_train_timesteps": STEPS}
    schedule |= {"beta_start": BETA_FIRST, "beta_end": BETA_LAST}
    _compare(unet.parent / "scheduler" / "scheduler_config.json", schedule)


def _compare(path: Path, expected: dict[str, Any]) -> None:
    settings = _weights.Files(folder=path.parent).config(path.name)
    for name, value in expected.items():
        wanted = list(value) if isinstance(value, tuple) else value
        if name in settings and settings[name] != wanted:
            raise ValueError(
                f"{str(path)!r} says {name} {settings[name]}; this generator needs {wanted}. Pass another backbone."
            )


def _renamed(state: dict[str, Any]) -> dict[str, Any]:
    """Attention layers of an autoencoder under the names that they have today."""
    for old, new in _OLD_ATTENTION.items():
        state = {name.replace(old, new) if ".attentions." in name else name: value for name, value in state.items()}
    return state


def _clip_tokenizer(folder: Path, tokens: int) -> Callable[[Sequence[str]], torch.Tensor]:
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)

    def tokenize(prompts: Sequence[str]) -> torch.Tensor:
        for prompt, ids in zip(prompts, tokenizer(list(prompts)).input_ids, strict=True):
            if len(ids) > tokens:
                raise ValueError(
                    f"The prompt {prompt!r} has {len(ids)} tokens; this encoder takes {tokens}. Shorten it."
                )
        return tokenizer(list(prompts), padding="max_length", max_length=tokens, return_tensors="pt").input_ids

    return tokenize
