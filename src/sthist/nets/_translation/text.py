"""Prompts to tensors: the text encoder of a generator, and token ids that need no vocabulary file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sthist.nets._translation.turbo_config import TurboConfig

PAD, START, END = 256, 257, 258  # token ids after those of the 256 bytes


def byte_ids(prompts: Sequence[str], tokens: int) -> torch.Tensor:
    """Token ids of prompts, one per byte of UTF-8, filled up to a length.

    Returns (n, tokens) int64.

    Examples
    --------
    >>> byte_ids(["HE"], 6).tolist()
    [[257, 72, 69, 258, 256, 256]]
    """
    rows = [[START, *prompt.encode(), END] for prompt in prompts]
    for prompt, row in zip(prompts, rows, strict=True):
        if len(row) > tokens:
            raise ValueError(
                f"The prompt {prompt!r} has {len(row) - 2} bytes; this encoder takes {tokens - 2}. Shorten it."
            )
    return torch.tensor([row + [PAD] * (tokens - len(row)) for row in rows], dtype=torch.long).reshape(-1, tokens)


class PromptEncoder(nn.Module):
    """The text model of CLIP, frozen: ids to one vector per token.

    Parameters
    ----------
    config
        Sizes.
    """

    def __init__(self, config: TurboConfig) -> None:
        from transformers import CLIPTextConfig, CLIPTextModel

        super().__init__()
        self.model = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=config.vocabulary,
                hidden_size=config.text_dim,
                intermediate_size=config.text_hidden,
                num_hidden_layers=config.text_layers,
                num_attention_heads=config.text_heads,
                max_position_embeddings=config.tokens,
                hidden_act=config.text_act,
                bos_token_id=config.vocabulary - 2,
                eos_token_id=config.vocabulary - 1,
            )
        )
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def draw(self, seed: int = 0) -> PromptEncoder:
        """Fill it with numbers that are the same everywhere, so that they need not be kept; returns itself.

        Random projections of bytes tell prompts apart, which is all that a generator trained with them needs.
        """
        # The stream of RandomState is frozen, those of torch and of numpy's newer generators are not.
        random = np.random.RandomState(seed)
        named = {name.removeprefix("text_model."): tensor for name, tensor in self.model.named_parameters()}
        for name, tensor in sorted(named.items()):
            if tensor.ndim > 1:
                scale = 1.0 if "embedding" in name else tensor.shape[-1] ** -0.5
                tensor.copy_(torch.from_numpy(scale * random.standard_normal(tuple(tensor.shape))))
            else:
                tensor.fill_(0.0 if name.endswith("bias") else 1.0)
        return self

    @torch.no_grad()
    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Embedding of prompts.

        Returns (n, tokens, width).
        """
        return self.model(ids).last_hidden_state
