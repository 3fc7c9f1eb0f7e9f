"""Networks whose weights are in the layout of transformers: Phikon v2, PLIP, and the text tower of KEEP."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sthist import _weights
from sthist.encoders._loaders.timm import Loaded, Texts, as_grid

if TYPE_CHECKING:
    from sthist._weights.files import Files
    from sthist.encoders._registry import Card

PHIKON_V2 = {
    "model_type": "dinov2",
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 16,
    "image_size": 224,
}
PLIP = {"model_type": "clip"}  # the defaults of transformers are those of CLIP ViT-B/32, which PLIP is
KEEP: dict[str, Any] = {
    "vision_config": {"img_size": 224, "patch_size": 16, "init_values": 1e-5, "num_classes": 0},
    "text_config": {},
    "projection_dim": 768,
}
KEEP_LENGTH = 256
PROBLEMS = ("missing_keys", "unexpected_keys", "mismatched_keys")


class TokenImages(nn.Module):
    """A vision transformer of transformers: its first token."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Embeddings (n, d)."""
        return self.model(pixel_values=images).last_hidden_state[:, 0]

    def tokens(self, images: torch.Tensor) -> torch.Tensor:
        """Embeddings of places (n, gh, gw, d)."""
        return as_grid(self.model(pixel_values=images).last_hidden_state, 1)


class ProjectedImages(TokenImages):
    """An image tower of CLIP: its pooled token, projected into the space of the texts."""

    def __init__(self, model: Any, projection: Any) -> None:
        super().__init__(model)
        self.projection = projection

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Embeddings (n, d), not normalised."""
        return self.projection(self.model(pixel_values=images).pooler_output)


class KeepImages(nn.Module):
    """The image tower of KEEP, named as in its weights."""

    def __init__(self, config: dict[str, Any]) -> None:
        import timm

        super().__init__()
        trunk: Any = timm.create_model("vit_large_patch16_224", pretrained=False, **config["vision_config"])
        self.visual: Any = trunk
        dim = config["projection_dim"]
        self.visual_head = nn.Sequential(nn.Linear(trunk.num_features, dim), nn.GELU(), nn.Linear(dim, dim))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Embeddings (n, d), not normalised."""
        return self.visual_head(self.visual(images))

    def tokens(self, images: torch.Tensor) -> torch.Tensor:
        """Embeddings of places (n, gh, gw, d), before they are projected."""
        return as_grid(self.visual.forward_features(images), self.visual.num_prefix_tokens)


def pooled_text(tower: Any, tokens: Any) -> torch.Tensor:
    """The pooled token of a text tower of transformers."""
    return tower(**tokens).pooler_output


def tokenizer_of(files: Files, kind: str) -> Any:
    """The tokenizer whose files lie beside the weights."""
    import transformers

    needed = {"CLIPTokenizer": ("vocab.json", "merges.txt"), "BertTokenizer": ("vocab.txt",)}[kind]
    folder = files.folder
    if folder is None or not (
        all((folder / name).is_file() for name in needed) or (folder / "tokenizer.json").is_file()
    ):
        raise FileNotFoundError(
            f"Texts need the tokenizer {' and '.join(needed)}, which is not beside the weights ({files.weights}). Pass "
            "weights=, a folder that holds both."
        )
    return getattr(transformers, kind).from_pretrained(str(folder), local_files_only=True)


def load(card: Card, files: Files) -> Loaded:
    """Build Phikon v2 or PLIP, and load its weights."""
    import transformers

    texts = card.text
    described = files.config() or dict(PLIP if texts else PHIKON_V2)
    kind = "clip" if texts else "dinov2"
    if described.pop("model_type", kind) != kind:
        raise ValueError(f"{files.folder} does not describe {card.hub_id}: it is no {kind!r}.")
    if not texts:
        model: Any = filled(
            transformers.Dinov2Model, transformers.Dinov2Config(**described), files, ("embeddings.mask_token",)
        )
        transform = replace(card.transform, size=int(model.config.image_size))
        return Loaded(TokenImages(model), transform, int(model.config.hidden_size), provenance=_version())
    positions = ("vision_model.embeddings.position_ids", "text_model.embeddings.position_ids")
    clip: Any = filled(transformers.CLIPModel, transformers.CLIPConfig(**described), files, positions)
    return Loaded(
        ProjectedImages(clip.vision_model, clip.visual_projection),
        replace(card.transform, size=int(clip.config.vision_config.image_size)),
        int(clip.config.projection_dim),
        Texts(
            nn.ModuleList([clip.text_model, clip.text_projection]),
            lambda: tokenizer_of(files, "CLIPTokenizer"),
            int(clip.config.text_config.max_position_embeddings),
            lambda tower, tokens: tower[1](pooled_text(tower[0], tokens)),
        ),
        float(clip.logit_scale.detach().exp()),
        _version(),
    )


def load_keep(card: Card, files: Files) -> Loaded:
    """Build KEEP from its config, without the code on its page, and load its weights."""
    import transformers

    config = KEEP | files.config()
    images = KeepImages(config)
    text = transformers.BertModel(transformers.BertConfig(**config["text_config"]))
    logit_scale = nn.Parameter(torch.zeros(()))
    whole = nn.Module()
    whole.visual, whole.visual_head, whole.text = images.visual, images.visual_head, text
    whole.logit_scale = logit_scale
    if files.weights is not None:
        state = {
            name.replace(".ls1.weight", ".ls1.gamma").replace(".ls2.weight", ".ls2.gamma"): value
            for name, value in _weights.read(files.weights).items()
        }
        _weights.load_into(whole, state, files.weights, leave=("text.embeddings.position_ids",))
    transform = replace(card.transform, size=int(images.visual.patch_embed.img_size[0]))
    length = min(KEEP_LENGTH, text.config.max_position_embeddings)
    texts = Texts(text, lambda: tokenizer_of(files, "BertTokenizer"), length, pooled_text)
    scale = float(logit_scale.detach().exp())
    return Loaded(images, transform, int(config["projection_dim"]), texts, scale, _version())


def filled(kind: Any, config: Any, files: Files, leave: tuple[str, ...]) -> Any:
    """A network with its weights, of this version's names or of an older one's, which transformers knows to convert.

    Names that begin as one of ``leave`` may be left over, or be missing: the network never uses them here.
    """
    model = kind(config)
    if files.weights is None:
        return model
    own, state = model.state_dict(), _weights.read(files.weights)
    unused = {name: value for name, value in own.items() if name.startswith(leave) and name not in state}
    complete = state | unused
    if not all(name in complete and complete[name].shape == value.shape for name, value in own.items()):
        try:
            model, report = kind.from_pretrained(None, config=config, state_dict=dict(state), output_loading_info=True)
        except (RuntimeError, ValueError, KeyError):
            report = None
        if report is not None and not any(_unexpected(report[part], leave) for part in PROBLEMS):
            return model
    _weights.load_into(model, complete, files.weights, leave=leave)
    return model


def _unexpected(names: Any, leave: tuple[str, ...]) -> bool:
    return any(not str(name).startswith(leave) for name in names)


def _version() -> dict[str, Any]:
    import transformers

    return {"transformers": transformers.__version__}
