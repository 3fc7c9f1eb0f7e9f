"""Image-text networks of open_clip: by its names and tags, by a hub id, or from a folder."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sthist import _weights
from sthist.encoders._loaders.timm import HUB_PREFIX, Loaded, transform_of
from sthist.encoders._registry import OPEN_CLIP_NAMES, Card, did_you_mean
from sthist.encoders._transform import CLIP_MEAN, CLIP_STD, Transform

if TYPE_CHECKING:
    from sthist._weights.files import Files

CONFIG = "open_clip_config.json"


class ClipImages(nn.Module):
    """The image tower."""

    def __init__(self, visual: Any) -> None:
        super().__init__()
        self.visual = visual

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Embeddings (n, d), not normalised."""
        pooled = self.visual(images)
        return pooled[0] if isinstance(pooled, tuple) else pooled

    def tokens(self, images: torch.Tensor) -> torch.Tensor:
        """Embeddings of places (n, gh, gw, d), before they are projected."""
        maps = self.visual.forward_intermediates(
            images, indices=1, normalize_intermediates=True, intermediates_only=True, output_fmt="NCHW"
        )
        return maps["image_intermediates"][-1].permute(0, 2, 3, 1)


class ClipTexts(nn.Module):
    """The text tower, and the tokenizer of its vocabulary."""

    def __init__(self, clip: Any, tokenizer: Any) -> None:
        super().__init__()
        self.clip, self.tokenizer = clip, tokenizer

    def embed_text(self, texts: list[str]) -> torch.Tensor:
        """Embeddings (n, d), not normalised."""
        tokens = self.tokenizer(texts).to(self.clip.logit_scale.device)
        return self.clip.encode_text(tokens, normalize=False)


def card_of(name: str, *, needs_tag: bool) -> Card:
    """What open_clip knows of a model: ``name``, ``name/tag``, or ``hf-hub:owner/name``."""
    import open_clip

    usual = Transform(CLIP_MEAN, CLIP_STD, 224)
    if name.startswith(HUB_PREFIX):
        hub_id = name.removeprefix(HUB_PREFIX)
        return Card(hub_id, "see its page", "open_clip", transform=usual, files=OPEN_CLIP_NAMES, extras=(CONFIG,))
    architecture, tag = _split(name, open_clip.list_models())
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if not tag:
        if needs_tag:
            raise ValueError(
                f"Which weights of {architecture!r}? Say 'open_clip:{architecture}/<tag>', with one of {tags}, or pass "
                "weights=."
            )
        return Card(
            "", "see its source", "open_clip", transform=usual, architecture=architecture, files=OPEN_CLIP_NAMES
        )
    described = open_clip.get_pretrained_cfg(architecture, tag)
    if not described:
        raise KeyError(f"open_clip has no weights {tag!r} of {architecture!r}; it has {tags}.")
    hub_id, _, file = (described.get("hf_hub") or "").rpartition("/")
    return Card(
        hub_id,
        "see its page",
        "open_clip",
        transform=transform_of(described, usual),
        architecture=architecture,
        arguments={"quick_gelu": bool(described.get("quick_gelu", False))},
        files=(file,) if file else OPEN_CLIP_NAMES,
        extras=(),
    )


def _split(name: str, known: list[str]) -> tuple[str, str]:
    """Model and tag of a name; models may be typed with ``/`` in place of ``-``."""
    if name.replace("/", "-") in known:
        return name.replace("/", "-"), ""
    model, _, tag = name.rpartition("/")
    if model.replace("/", "-") in known:
        return model.replace("/", "-"), tag
    raise KeyError(f"open_clip has no model {model or name!r}.{did_you_mean(model or name, known)}")


def load(card: Card, files: Files) -> Loaded:
    """Build a model as its card and the folder of its weights describe it, and load them."""
    import open_clip

    described = files.config(CONFIG)
    config = deepcopy(described.get("model_cfg")) or open_clip.get_model_config(card.architecture or "")
    if config is None:
        raise ValueError(
            f"Nothing says what the architecture of {card.hub_id!r} is: it needs the {CONFIG} of its page, or weights=."
        )
    clip = _build(config | card.arguments)
    if files.weights is not None:
        _fill(clip, files)
    side = clip.visual.image_size
    side = int(side[0] if isinstance(side, (tuple, list)) else side)
    transform = replace(transform_of(described.get("preprocess_cfg", {}), card.transform), size=side)
    return Loaded(
        ClipImages(clip.visual),
        transform,
        int(config["embed_dim"]),
        ClipTexts(clip, _tokenizer(config["text_cfg"], files)),
        float(clip.logit_scale.detach().exp()),
        {"open_clip": open_clip.__version__},
    )


def _build(config: dict[str, Any]) -> Any:
    """The model of a config, built by its class: the factory of open_clip speaks to the root logger."""
    from open_clip import model
    from open_clip.coca_model import CoCa

    config = deepcopy(config)
    hugging_face = "hf_model_name" in config["text_cfg"]
    if hugging_face:
        config["text_cfg"]["hf_model_pretrained"] = False
    if "timm_model_name" in config["vision_cfg"]:
        config["vision_cfg"]["timm_model_pretrained"] = False
    custom = config.pop("custom_text", False) or hugging_face
    kind = CoCa if "multimodal_cfg" in config else model.CustomTextCLIP if custom else model.CLIP
    return kind(**config)


def _fill(clip: Any, files: Files) -> None:
    """Load weights with open_clip's conversions; where they do not fit, say how."""
    from open_clip.factory import load_checkpoint

    state = _weights.read(files.weights)  # type: ignore[arg-type]
    own = clip.state_dict()
    if own.keys() == state.keys() and all(own[name].shape == value.shape for name, value in state.items()):
        clip.load_state_dict(state)
        return
    try:
        load_checkpoint(clip, str(files.weights))
    except (RuntimeError, KeyError, AttributeError, ValueError):
        _weights.load_into(clip, state, str(files.weights))


def _tokenizer(text: dict[str, Any], files: Files) -> Any:
    """The tokenizer that the text tower was trained with; a folder's own where the vocabulary is not that of CLIP."""
    from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

    length = text.get("context_length", 77)
    if "hf_tokenizer_name" not in text:
        return SimpleTokenizer(context_length=length, **text.get("tokenizer_kwargs", {}))
    own = files.folder is not None and any((files.folder / name).is_file() for name in ("tokenizer.json", "vocab.txt"))
    source = str(files.folder) if own else text["hf_tokenizer_name"]
    return HFTokenizer(source, context_length=length, **text.get("tokenizer_kwargs", {}))
