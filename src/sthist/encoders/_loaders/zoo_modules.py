"""Models of lazyslide-models as modules of torch."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from sthist.encoders._loaders.timm import as_grid


class ZooImages(nn.Module):
    """An image model; it computes without gradients."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.zoo = [model]  # not a module itself
        self.network = model.model if isinstance(model.model, nn.Module) else None
        if hasattr(model, "encode_image_dense"):
            self.tokens = self._tokens

    def to(self, device: Any, **_: Any) -> ZooImages:  # type: ignore[override]
        """Onto a device, as the model does it."""
        self.zoo[0].to(device)
        return self

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Embeddings (n, d)."""
        return torch.as_tensor(self.zoo[0].encode_image(images))

    def _tokens(self, images: torch.Tensor) -> torch.Tensor:
        return as_grid(self.zoo[0].encode_image_dense(images).patch_tokens, 0)


class ZooTexts(nn.Module):
    """An image-text model; most give normalised embeddings of texts."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.zoo = [model]

    def embed_text(self, texts: list[str]) -> torch.Tensor:
        """Embeddings (n, d)."""
        return torch.as_tensor(self.zoo[0].encode_text(texts))


def unchanged(images: torch.Tensor) -> torch.Tensor:
    """Tiles as they are, for models that prepare them themselves."""
    return images
