"""Folders like the hub's, with small random networks."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import timm
import torch

if TYPE_CHECKING:
    from pathlib import Path

UNI = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2, "init_values": 1e-5}
CONCH = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 24, "layers": 2, "num_heads": 2},
    "text_cfg": {"context_length": 10, "vocab_size": 12, "width": 12, "heads": 2, "layers": 2},
}
WORDS = ["<pad>", "<start_of_text>", "<end_of_text>", "tumour", "stroma", "fat", "of", "a", "b", "c", "d", "e"]


def tiles_of(n: int = 3, px: int = 32) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, px, px, 3), dtype=np.uint8)


def random_state(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) * 0.2 for name, shape in shapes.items()}


def uni(folder: Path) -> torch.nn.Module:
    """UNI's snapshot: ``config.json`` and ``pytorch_model.bin``."""
    arguments = UNI | {"dynamic_img_size": True}
    network = timm.create_model("vit_large_patch16_224", num_classes=0, **arguments).eval()
    network.load_state_dict(random_state({name: tuple(v.shape) for name, v in network.state_dict().items()}))
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(network.state_dict(), folder / "pytorch_model.bin")
    described = {"architecture": "vit_large_patch16_224", "num_classes": 0, "model_args": arguments}
    (folder / "config.json").write_text(json.dumps(described))
    return network


def conch(folder: Path) -> dict[str, torch.Tensor]:
    """CONCH's snapshot: its names of tensors, with parts of the caption writer among them; and its tokenizer."""
    shapes = {
        "logit_scale": (),
        "visual.trunk.cls_token": (1, 1, 24),
        "visual.trunk.pos_embed": (1, 17, 24),
        "visual.trunk.patch_embed.proj.weight": (24, 3, 8, 8),
        "visual.trunk.patch_embed.proj.bias": (24,),
        "visual.trunk.norm.weight": (24,),
        "visual.trunk.norm.bias": (24,),
        "visual.attn_pool_contrast.query": (1, 16),
        "visual.attn_pool_contrast.ln_q.weight": (16,),
        "visual.attn_pool_contrast.ln_q.bias": (16,),
        "visual.attn_pool_contrast.ln_k.weight": (24,),
        "visual.attn_pool_contrast.ln_k.bias": (24,),
        "visual.attn_pool_contrast.attn.q_proj_weight": (16, 16),
        "visual.attn_pool_contrast.attn.k_proj_weight": (16, 24),
        "visual.attn_pool_contrast.attn.v_proj_weight": (16, 24),
        "visual.attn_pool_contrast.attn.in_proj_bias": (48,),
        "visual.attn_pool_contrast.attn.out_proj.weight": (16, 16),
        "visual.attn_pool_contrast.attn.out_proj.bias": (16,),
        "visual.ln_contrast.weight": (16,),
        "visual.ln_contrast.bias": (16,),
        "visual.proj_contrast": (16, 16),
        "visual.attn_pool_caption.query": (4, 8),
        "visual.ln_caption.weight": (8,),
        "text.text_projection": (12, 16),
        "text.cls_emb": (12,),
        "text.token_embedding.weight": (12, 12),
        "text.positional_embedding": (10, 12),
        "text.ln_final.weight": (12,),
        "text.ln_final.bias": (12,),
    }
    for i in range(2):
        block = f"visual.trunk.blocks.{i}."
        for name, out, into in (("attn.qkv", 72, 24), ("attn.proj", 24, 24), ("mlp.fc1", 96, 24), ("mlp.fc2", 24, 96)):
            shapes |= {f"{block}{name}.weight": (out, into), f"{block}{name}.bias": (out,)}
        shapes |= {f"{block}{name}": (24,) for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias")}
        block = f"text.transformer.resblocks.{i}."
        for name, out, into in (("attn.out_proj", 12, 12), ("mlp.c_fc", 48, 12), ("mlp.c_proj", 12, 48)):
            shapes |= {f"{block}{name}.weight": (out, into), f"{block}{name}.bias": (out,)}
        shapes |= {f"{block}attn.in_proj_weight": (36, 12), f"{block}attn.in_proj_bias": (36,)}
        shapes |= {f"{block}{name}": (12,) for name in ("ln_1.weight", "ln_1.bias", "ln_2.weight", "ln_2.bias")}
    state = random_state(shapes)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state, folder / "pytorch_model.bin")
    (folder / "meta.yaml").write_text("name: conch\n")
    (folder / "config.json").write_text(json.dumps(CONCH))
    tokenizer(folder / "conch_byte_level_bpe_uncased.json")
    return state


def tokenizer(path: Path) -> None:
    """A tokenizer of a few words, which puts each text between its marks."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(
        single="<start_of_text> $A <end_of_text>", special_tokens=[("<start_of_text>", 1), ("<end_of_text>", 2)]
    )
    made.save(str(path))
