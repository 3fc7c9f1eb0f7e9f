"""iStar: expression of superpixels, of which only means over spots were measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from sthist.nets._expression.losses import mean_square

if TYPE_CHECKING:
    from collections.abc import Mapping

LEAST = 0.01
"""Value of a superpixel, of the range of a gene, where the last layer gives 0; below, it goes to 0."""

SLOPE = 0.1


class IStar(nn.Module):
    """Expression of superpixels from their features, learned from spots that are means over them (Zhang et al. 2024).

    Each superpixel goes through layers with a leaky ReLU and a last one with an ELU, whose values are above 0: 0 and 1
    are a gene's least and largest value among the spots of the training. A spot is the mean of the superpixels in its
    disc. Several networks begin at other weights, and a superpixel has their median.

    Parameters
    ----------
    n_features
        Length of the features of a superpixel, ``batch["cells"]`` (b, k, n_features). ``batch["weight"]`` (b, k), whose
        rows sum to 1, says how much of a spot each is; by default all are the same.
    n_genes
        Number of genes.
    hidden, depth
        Units of a hidden layer, and how many layers there are.
    members
        Networks.
    low, high
        (n_genes,) least and largest value of a gene among the spots, in the units in which spots are means. A gene of
        one value has this everywhere.
    logarithms
        Targets and predictions are ln(1 + x) of what spots are means of; otherwise they are that itself.

    Raises
    ------
    ValueError
        If low or high are not one value per gene.

    Examples
    --------
    >>> import torch
    >>> from sthist.nets import IStar
    >>> net = IStar(579, 1000, members=1)
    >>> sum(each.numel() for each in net.parameters())
    602856
    >>> net({"cells": torch.rand(2, 37, 579)}).shape
    torch.Size([2, 1000])
    """

    low: torch.Tensor
    span: torch.Tensor

    def __init__(
        self,
        n_features: int,
        n_genes: int,
        *,
        hidden: int = 256,
        depth: int = 4,
        members: int = 5,
        low: torch.Tensor | None = None,
        high: torch.Tensor | None = None,
        logarithms: bool = False,
    ) -> None:
        super().__init__()
        self.logarithms = logarithms
        self.members = nn.ModuleList(_layers(n_features, n_genes, hidden, depth) for _ in range(members))
        low = torch.zeros(n_genes) if low is None else low
        high = torch.ones(n_genes) if high is None else high
        for name, values in (("low", low), ("high", high)):
            if tuple(values.shape) != (n_genes,):
                raise ValueError(f"{name} has the shape {tuple(values.shape)}; there are {n_genes} genes.")
        self.register_buffer("low", low.clone().float())
        self.register_buffer("span", (high - low).clone().float())

    def forward(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Expression of spots (b, n_genes) in the units of the targets."""
        found = _over_spot(self.superpixels(batch["cells"]), batch)
        return torch.log1p(found) if self.logarithms else found

    def superpixels(self, features: torch.Tensor) -> torch.Tensor:
        """Expression of superpixels (..., n_genes) in the units in which spots are means: the median of the members."""
        each = torch.stack([activation(member(features.float())) for member in self.members])
        return each.median(dim=0).values * self.span + self.low

    def losses(
        self, batch: Mapping[str, torch.Tensor], targets: torch.Tensor, mask: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """The squared error of each member's spots on the genes' ranges, ``"loss"``: none learns from another one."""
        wanted = torch.expm1(targets) if self.logarithms else targets
        # Of a gene of one value there is nothing to learn.
        wanted = torch.where(self.span > 0, (wanted - self.low) / self.span.clamp(min=1e-12), 0.0)
        features = batch["cells"].float()
        errors = [mean_square(_over_spot(activation(member(features)), batch), wanted, mask) for member in self.members]
        return {"loss": torch.stack(errors).mean()}


def activation(values: torch.Tensor) -> torch.Tensor:
    """An ELU that is above 0 everywhere: 0.01 at 0, and x + 0.01 above."""
    return nn.functional.elu(values, alpha=LEAST) + LEAST


def _layers(n_features: int, n_genes: int, hidden: int, depth: int) -> nn.Sequential:
    widths = [n_features] + [hidden] * depth
    layers: list[nn.Module] = []
    for before, after in zip(widths, widths[1:], strict=False):
        layers += [nn.Linear(before, after), nn.LeakyReLU(SLOPE)]
    return nn.Sequential(*layers, nn.Linear(widths[-1], n_genes))


def _over_spot(superpixels: torch.Tensor, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Means over the superpixels of each spot, (b, k, g) to (b, g)."""
    if "weight" not in batch:
        return superpixels.mean(dim=1)
    return torch.einsum("bk,bkg->bg", batch["weight"].float(), superpixels)
