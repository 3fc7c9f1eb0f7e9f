"""Parts of THItoGene: convolutions that follow their input, capsules, and attention to neighbours."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional

SLOPE = 0.2
"""Of the activation below 0 of attention to neighbours."""

SHORTER = 1 - 2e-6
"""So that no rounding makes a capsule as long as 1."""

LEAST_SQUEEZED = 16
"""Units that the attention of a dynamic convolution has at least."""


def squash(vectors: torch.Tensor) -> torch.Tensor:
    """Vectors (..., d) in their direction, with a length from 0 to less than 1 (Mazzia et al. 2021)."""
    # Of 0 a square root has no gradient, and a direction neither.
    length = vectors.square().sum(-1, keepdim=True).clamp(min=1e-16).sqrt()
    return -torch.expm1(-length) * vectors / length * SHORTER


class DynamicConv2d(nn.Module):
    """A convolution over places that do not overlap, with kernels mixed for each image (ODConv, Li et al. 2022).

    What an image shows on average says how much of each kernel there is, and how much each of its input channels, of
    its places and of its output channels counts.
    """

    def __init__(self, inputs: int, outputs: int, size: int, kernels: int = 4) -> None:
        super().__init__()
        self.size = size
        squeezed = max(inputs // 16, LEAST_SQUEEZED)
        self.squeeze = nn.Sequential(nn.Linear(inputs, squeezed, bias=False), nn.ReLU())
        self.channels, self.filters = nn.Linear(squeezed, inputs), nn.Linear(squeezed, outputs)
        self.places, self.mixture = nn.Linear(squeezed, size * size), nn.Linear(squeezed, kernels)
        self.kernels = nn.Parameter(torch.empty(kernels, outputs, inputs, size * size))
        # At the start three factors are one half, and the mean of the kernels is smaller than each: made up for here.
        nn.init.normal_(self.kernels, std=2**3 * math.sqrt(kernels) * math.sqrt(2 / (inputs * size * size)))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Maps (b, outputs, h / size, w / size) of images (b, inputs, h, w)."""
        height, width = images.shape[2] // self.size, images.shape[3] // self.size
        seen = self.squeeze(images.mean(dim=(2, 3)))
        kernels = torch.einsum("bk,koip->boip", self.mixture(seen).softmax(dim=1), self.kernels)
        kernels = kernels * self.channels(seen).sigmoid()[:, None, :, None] * self.places(seen).sigmoid()[:, None, None]
        kernels = kernels * self.filters(seen).sigmoid()[:, :, None, None]
        found = kernels.flatten(2) @ functional.unfold(images, self.size, stride=self.size)
        return found.unflatten(2, (height, width))


class Capsules(nn.Module):
    """Capsules that are routed by how much they agree, each a vector shorter than 1 (Mazzia et al. 2021)."""

    def __init__(self, before: int, width_before: int, after: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(before, after, width_before, width))
        self.prior = nn.Parameter(torch.zeros(after, before))
        nn.init.normal_(self.weight, std=math.sqrt(2 / width_before))

    def forward(self, capsules: torch.Tensor) -> torch.Tensor:
        """Capsules (b, after, width) of others (b, before, width_before)."""
        votes = torch.einsum("bid,iodw->boiw", capsules, self.weight)
        # How much a vote agrees with all others: the sum of its products with them is that with their sum.
        agreement = (votes @ votes.sum(dim=2, keepdim=True).transpose(2, 3))[..., 0] / math.sqrt(capsules.shape[2])
        shares = agreement.softmax(dim=1) + self.prior
        return squash((votes * shares[..., None]).sum(dim=2))


class NeighbourAttention(nn.Module):
    """What nodes gather from others, by weights of both (GAT, Veličković et al. 2018)."""

    def __init__(self, inputs: int, heads: int, width: int) -> None:
        super().__init__()
        self.heads = heads
        self.values = nn.Linear(inputs, heads * width, bias=False)
        # Of a node as it sees, and as it is seen.
        self.seeing, self.seen = nn.Parameter(torch.empty(heads, width)), nn.Parameter(torch.empty(heads, width))
        for weight in (self.values.weight, self.seeing, self.seen):
            nn.init.xavier_uniform_(weight)

    def forward(self, nodes: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """What nodes (n, inputs) gather from ``rows`` (n, k) of them, -1 for none, (n, heads * width)."""
        values = self.values(nodes).unflatten(1, (self.heads, -1))
        seeing, seen = ((values * each).sum(-1) for each in (self.seeing, self.seen))
        there = rows.clamp(min=0)
        scores = functional.leaky_relu(seeing[:, None] + seen[there], SLOPE)
        weights = scores.masked_fill(rows[..., None] < 0, -torch.inf).softmax(dim=1)
        # A weighted sum of rows of a table, which are not copied.
        head = torch.arange(self.heads, device=rows.device)[:, None]
        found = functional.embedding_bag(
            (there[:, None] * self.heads + head).flatten(0, 1),
            values.flatten(0, 1).to(weights.dtype),
            per_sample_weights=weights.transpose(1, 2).flatten(0, 1),
            mode="sum",
        )
        return functional.elu(found.unflatten(0, (-1, self.heads)).flatten(1))
