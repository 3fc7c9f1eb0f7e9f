"""CONCH from its hub snapshot: a vision transformer with attentional pooling, and a text tower with its own token.

Its own package is not needed: open_clip's text tower computes the same, with one position less of text, as it counts
that of the added token separately.
"""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sthist import _weights
from sthist.encoders._loaders.timm import Loaded, Texts, as_grid

if TYPE_CHECKING:
    from sthist._weights.files import Files
    from sthist.encoders._registry import Card

CONFIG: dict[str, Any] = {
    "embed_dim": 512,
    "vision_cfg": {"image_size": 448, "patch_size": 16, "width": 768, "layers": 12, "num_heads": 12},
    "text_cfg": {"context_length": 128, "vocab_size": 32007, "width": 768, "heads": 12, "layers": 12},
}
POOLER_HEADS = 8
CAPTIONS = ("text_decoder.", "visual.attn_pool_caption.", "visual.ln_caption.")
"""Parts that write captions, which an encoder does without."""

POSITIONS = "visual.trunk.pos_embed"
TOKENIZER = "conch_byte_level_bpe_uncased.json"
TOKENIZER_PAGE = "https://github.com/mahmoodlab/CONCH/tree/main/conch/open_clip_custom/tokenizers"


class ConchImages(nn.Module):
    """The image tower, named as in its weights."""

    def __init__(self, dim: int, vision: dict[str, Any]) -> None:
        from open_clip.transformer import AttentionalPooler
        from timm.models.vision_transformer import VisionTransformer

        super().__init__()
        self.trunk = VisionTransformer(
            img_size=vision["image_size"],
            patch_size=vision["patch_size"],
            embed_dim=vision["width"],
            depth=vision["layers"],
            num_heads=vision["num_heads"],
            num_classes=0,
            dynamic_img_size=True,
        )
        heads = vision.get("attn_pooler_heads", POOLER_HEADS)
        self.attn_pool_contrast = AttentionalPooler(dim, vision["width"], n_head=heads, n_queries=1)
        self.ln_contrast = nn.LayerNorm(dim)
        self.proj_contrast = nn.Parameter(torch.randn(dim, dim) * vision["width"] ** -0.5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Embeddings (n, d) in the space of the texts, not normalised."""
        pooled = self.attn_pool_contrast(self.trunk.forward_features(images))[:, 0]
        return self.ln_contrast(pooled) @ self.proj_contrast

    def tokens(self, images: torch.Tensor) -> torch.Tensor:
        """Embeddings of places (n, gh, gw, d), before they are pooled."""
        return as_grid(self.trunk.forward_features(images), self.trunk.num_prefix_tokens)


def tokenizer_of(files: Files) -> Any:
    """The tokenizer of CONCH: beside the weights, or in its package."""
    from transformers import PreTrainedTokenizerFast

    places = [] if files.folder is None else [files.folder / TOKENIZER, files.folder / "tokenizer.json"]
    package = find_spec("conch")
    for folder in (package.submodule_search_locations or []) if package is not None else []:
        places.append(Path(folder) / "open_clip_custom" / "tokenizers" / TOKENIZER)
    for place in places:
        if place.is_file():
            return PreTrainedTokenizerFast(
                tokenizer_file=str(place),
                bos_token="<start_of_text>",
                eos_token="<end_of_text>",
                pad_token="<pad>",
            )
    raise FileNotFoundError(
        f"Texts need the tokenizer of CONCH, which is not on the hub: get {TOKENIZER} from {TOKENIZER_PAGE}, put it "
        f"beside the weights ({files.folder or 'in a folder'}), and pass weights=, that folder."
    )


def load(card: Card, files: Files) -> Loaded:
    """Build CONCH as the folder of its weights describes it, or as it was published, and load them."""
    import open_clip
    import timm
    from open_clip.transformer import TextTransformer

    described = files.config()
    config: dict[str, Any] = CONFIG | described
    for part in ("vision_cfg", "text_cfg"):
        config[part] = CONFIG[part] | described.get(part, {})
    images = ConchImages(config["embed_dim"], config["vision_cfg"])
    text = config["text_cfg"]
    length = int(text["context_length"]) - 1
    tower = TextTransformer(
        context_length=length,
        output_dim=config["embed_dim"],
        embed_cls=True,
        pad_id=text.get("pad_id", 0),
        **{name: text[name] for name in ("vocab_size", "width", "heads", "layers")},
    )
    logit_scale = nn.Parameter(torch.log(torch.tensor(1 / 0.07)))
    if files.weights is not None:
        whole = nn.Module()
        whole.visual, whole.text, whole.logit_scale = images, tower, logit_scale
        state = _weights.read(files.weights)
        _weights.load_into(whole, fitted(state, images.trunk), files.weights, leave=CAPTIONS)
    return Loaded(
        images,
        replace(card.transform, size=int(config["vision_cfg"]["image_size"])),
        int(config["embed_dim"]),
        Texts(tower, lambda: tokenizer_of(files), length, lambda tower, tokens: tower(tokens["input_ids"])),
        float(logit_scale.detach().exp()),
        {"timm": timm.__version__, "open_clip": open_clip.__version__},
    )


def fitted(state: dict[str, Any], trunk: Any) -> dict[str, Any]:
    """Weights whose positions are those of the trunk's grid."""
    from timm.layers import resample_abs_pos_embed

    positions = state.get(POSITIONS)
    if positions is None or positions.shape == trunk.pos_embed.shape or positions.shape[2] != trunk.pos_embed.shape[2]:
        return state
    size = list(trunk.patch_embed.grid_size)
    return state | {POSITIONS: resample_abs_pos_embed(positions, size, interpolation="bilinear", antialias=False)}
