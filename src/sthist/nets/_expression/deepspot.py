"""DeepSpot: sets of embeddings of a spot, of what lies in it and around it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from sthist.nets._expression.losses import mean_square

if TYPE_CHECKING:
    from collections.abc import Mapping


class DeepSpot(nn.Module):
    """Expression from the embeddings of a spot, of its sub-tiles and of its neighbours (DeepSpot, 2025).

    ``phi``, one layer that spot, sub-tiles and neighbours share, is an ensemble of which each unit is the median;
    sub-tiles are added up, and of neighbours the largest value is taken. ``rho``, one layer, is an ensemble of which
    the mean is taken. Other than in the published code, places without a neighbour take no part.

    Parameters
    ----------
    n_features
        Length of an embedding: of ``batch["spot"]`` (b, n_features), ``batch["subspots"]`` (b, s, n_features) and
        ``batch["neighbours"]`` (b, k, n_features), of which ``batch["neighbour_mask"]`` (b, k) says where there is one.
    n_genes
        Number of genes.
    width
        Units of ``phi``.
    members
        Networks of either ensemble.
    dropout
        Share of units that is left out in training, in ``phi`` and before ``rho``.
    dropout_out
        Share of predictions that is left out in training.
    subspots, neighbours
        Whether it looks at them.
    mean, scale
        Mean and standard deviation (n_genes,) of the targets: it learns, and its loss is of, standardised expression.
        A gene of scale 0 is only centred.

    Raises
    ------
    ValueError
        If mean or scale are not one value per gene.

    Examples
    --------
    >>> import torch
    >>> from sthist.nets import DeepSpot
    >>> net = DeepSpot(16, 5, width=8, members=3).eval()
    >>> batch = {"spot": torch.rand(2, 16), "subspots": torch.rand(2, 9, 16), "neighbours": torch.rand(2, 6, 16)}
    >>> net(batch | {"neighbour_mask": torch.ones(2, 6, dtype=torch.bool)}).shape
    torch.Size([2, 5])
    """

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(
        self,
        n_features: int,
        n_genes: int,
        *,
        width: int = 512,
        members: int = 10,
        dropout: float = 0.3,
        dropout_out: float = 0.1,
        subspots: bool = True,
        neighbours: bool = True,
        mean: torch.Tensor | None = None,
        scale: torch.Tensor | None = None,
    ) -> None:
        super().__init__()
        self.members, self.dropout, self.dropout_out = members, dropout, dropout_out
        self.subspots, self.neighbours = subspots, neighbours
        # The members of an ensemble lie in one layer: one product in place of ten.
        self.phi = nn.Linear(n_features, members * width)
        self.rho = nn.Linear(width * (1 + subspots + neighbours), members * n_genes)
        mean = torch.zeros(n_genes) if mean is None else mean
        scale = torch.ones(n_genes) if scale is None else scale
        for name, values in (("mean", mean), ("scale", scale)):
            if tuple(values.shape) != (n_genes,):
                raise ValueError(f"{name} has the shape {tuple(values.shape)}; there are {n_genes} genes.")
        self.register_buffer("mean", mean.clone().float())
        self.register_buffer("scale", torch.where(scale > 0, scale, 1.0).float())

    def forward(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Expression (b, n_genes) in the units of the targets."""
        return self.standardised(batch) * self.scale + self.mean

    def standardised(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Expression (b, n_genes) with the mean and deviation of the training set taken off."""
        parts = [self.transform(batch["spot"])]
        if self.subspots:
            parts.append(self.transform(batch["subspots"]).sum(dim=1))
        if self.neighbours:
            parts.append(self._largest(batch["neighbours"], batch["neighbour_mask"]))
        return self.regress(torch.cat(parts, dim=1))

    def losses(
        self, batch: Mapping[str, torch.Tensor], targets: torch.Tensor, mask: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """The squared error of standardised expression, ``"loss"``; genes that were not measured do not count."""
        return {"loss": mean_square(self.standardised(batch), (targets - self.mean) / self.scale, mask)}

    def transform(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Units of ``phi`` (..., width), each the median of the ensemble, never negative."""
        units = functional.relu(functional.dropout(self.phi(embeddings), self.dropout, self.training))
        # Of an even number the lower one of the middle two, as in the published code.
        return units.unflatten(-1, (self.members, -1)).median(dim=-2).values

    def regress(self, units: torch.Tensor) -> torch.Tensor:
        """The mean of the ensemble ``rho``, (b, n_genes)."""
        weight, bias = self.rho.weight.unflatten(0, (self.members, -1)), self.rho.bias.unflatten(0, (self.members, -1))
        if not self.training:
            # Without dropout the mean of linear layers is one linear layer.
            return functional.linear(functional.relu(units), weight.mean(dim=0), bias.mean(dim=0))
        left = functional.relu(functional.dropout(units.expand(self.members, *units.shape), self.dropout))
        found = torch.baddbmm(bias[:, None], left, weight.transpose(1, 2))
        return functional.dropout(found, self.dropout_out).mean(dim=0)

    def _largest(self, neighbours: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The largest value of each unit over the neighbours that are there; 0 where there are none."""
        if neighbours.shape[1] == 0:
            return neighbours.new_zeros(len(neighbours), self.phi.out_features // self.members)
        there = mask[..., None]
        # Units are never negative, so that 0 in place of what is not there changes no largest value.
        units = self.transform(torch.where(there, neighbours, 0.0))
        return torch.where(there, units, 0.0).amax(dim=1)
