"""A network whose embeddings are standardised before it, by numbers that it keeps."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

EMBEDDINGS = ("spot", "subspots", "neighbours", "cells")


class Standardized(nn.Module):
    """Standardise the embeddings of a batch, and hand it to a network.

    Parameters
    ----------
    net
        Takes a batch with ``"spot"``, and has ``losses``.
    mean, scale
        (d,) of the embeddings.
    limit
        Standard deviations from the mean beyond which a feature does not go: one odd cell or spot must not carry a
        prediction away.

    Examples
    --------
    >>> import torch
    >>> from sthist.nets import EmbeddingMLP, Standardized
    >>> net = Standardized(EmbeddingMLP(3, 2), torch.zeros(3), torch.ones(3))
    >>> net({"spot": torch.zeros(4, 3)}).shape
    torch.Size([4, 2])
    """

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, net: nn.Module, mean: torch.Tensor, scale: torch.Tensor, limit: float = math.inf) -> None:
        super().__init__()
        self.net, self.limit = net, limit
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)

    def forward(self, batch: dict[str, Any]) -> Any:
        """What the network gives for the standardised batch."""
        return self.net(self.standard(batch))

    def losses(self, batch: dict[str, Any], targets: torch.Tensor, mask: torch.Tensor | None = None) -> dict[str, Any]:
        """The network's losses of the standardised batch."""
        return self.net.losses(self.standard(batch), targets, mask)  # type: ignore[operator,no-any-return]

    def standard(self, batch: dict[str, Any]) -> dict[str, Any]:
        """A batch with its embeddings standardised, also those of sub-tiles, neighbours and cells."""
        there = [name for name in EMBEDDINGS if name in batch]
        standard = {name: (batch[name] - self.mean) / self.scale for name in there}
        return {**batch, **{name: values.clamp(-self.limit, self.limit) for name, values in standard.items()}}
