"""Expression of cells, learned from the means over cells that spots are (multiple-instance learning)."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import nn
from torch.nn import functional

from sthist.nets._expression.losses import mean_square

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Loss = Literal["mse", "nb-mean", "nb-total"]

WIDTHS = (256, 256, 256)
BETA = 20.0
"""Of the softplus, which is nearly a ReLU with it, as in the published code."""

LEAST_MEAN = 1e-8
"""Mean count below which a logarithm of it says no more."""


class CellNetwork(nn.Module):
    """Linear layers with LeakyReLU from the embedding of a cell to its expression; a spot's is the mean of its cells.

    Parameters
    ----------
    n_features
        Length of an embedding.
    n_genes
        Number of genes.
    widths
        Units of each hidden layer.
    dropout
        Share of them that is left out in training.
    loss
        ``"mse"``: squared error. ``"nb-mean"``: negative binomial of counts, whose mean is what the cells give on
        average, times the size factor of the spot; ``"nb-total"``: that is the number of failures (torch's
        ``total_count``), and the odds of a count are one number per gene. Either has one learned number per gene.
    mean
        Expression (n_genes,) that the last layer begins at, where that is more than it gives for zeros; by default
        it begins as linear layers do.

    Raises
    ------
    ValueError
        If ``loss`` is none of these.

    Examples
    --------
    >>> import torch
    >>> from sthist.nets import CellNetwork
    >>> net = CellNetwork(2048, 1000)
    >>> sum(each.numel() for each in net.parameters())
    913128
    >>> batch = {"cells": torch.rand(5, 2048), "bag": torch.tensor([0, 0, 0, 1, 1]), "size": torch.tensor([3, 2])}
    >>> net(batch).shape
    torch.Size([2, 1000])
    """

    def __init__(
        self,
        n_features: int,
        n_genes: int,
        *,
        widths: Sequence[int] = WIDTHS,
        dropout: float = 0.1,
        loss: Loss = "mse",
        mean: torch.Tensor | None = None,
    ) -> None:
        super().__init__()
        if loss not in get_args(Loss):
            raise ValueError(f"loss is {loss!r}; it is one of {list(get_args(Loss))}.")
        self.loss = loss
        layers: list[nn.Module] = []
        for one, other in pairwise((n_features, *widths)):
            layers += [nn.Linear(one, other), nn.LeakyReLU(0.01), nn.Dropout(dropout)]
        last = nn.Linear(widths[-1] if widths else n_features, n_genes)
        self.layers = nn.Sequential(*layers, last)
        self.softplus = nn.Softplus(BETA)
        if loss != "mse":
            self.gene = nn.Parameter(torch.randn(n_genes))  # log of the dispersion, or of the odds of a count
        if mean is not None:
            with torch.no_grad():
                start = mean / self.gene.exp() if loss == "nb-total" else mean
                # The inverse of the softplus; below 0 its gradient is too small to come back from.
                last.bias.copy_(torch.where(BETA * start > 15, start, torch.expm1(BETA * start).log() / BETA).clamp(0))

    def forward(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Expression (n, genes) of spots: the mean over their cells; or of cells, where no ``"bag"`` is given.

        A batch has ``"cells"``, embeddings (m, n_features), and ``"bag"`` (m,), the spot of each, from 0, with the
        number of cells of each spot, ``"size"`` (n,). Of ``"nb-total"`` it is the mean count, too.
        """
        found = self.of_bags(batch)
        return found * self.gene.exp() if self.loss == "nb-total" else found

    def of_bags(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Mean over cells of what the layers give for each, at least 0."""
        last = self.layers[-1]
        assert isinstance(last, nn.Linear)
        cells = self.softplus(self.layers(batch["cells"].to(last.weight.dtype)))
        return segment_mean(cells, batch["bag"], batch["size"]) if "bag" in batch else cells  # type: ignore[no-any-return]

    def losses(
        self, batch: Mapping[str, torch.Tensor], targets: torch.Tensor, mask: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """The ``"loss"``: squared error, or the negative log-likelihood of the counts, summed over genes.

        Counts come as ``targets`` divided by the size factors of spots, ``batch["size_factor"]`` (n,), by which what is
        predicted is multiplied. Genes that were not measured (``mask`` False) do not count.
        """
        found = self.of_bags(batch)
        if self.loss == "mse":
            return {"loss": mean_square(found, targets, mask)}
        factor = batch["size_factor"][:, None] if "size_factor" in batch else torch.ones_like(targets[:, :1])
        counts = (targets * factor).round()
        likelihood = negative_binomial_mean if self.loss == "nb-mean" else negative_binomial_total
        log_p = likelihood(counts, found.float() * factor, self.gene.float())
        if mask is not None:
            log_p = torch.where(mask, log_p, 0.0)
        return {"loss": -log_p.sum(dim=1).mean()}


def segment_mean(values: torch.Tensor, segment: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
    """Mean of the rows of each segment.

    Parameters
    ----------
    values
        (m, d).
    segment
        (m,) int64, number of the segment of each row, in any order.
    size
        (n,) rows of each segment.

    Returns
    -------
    (n, d).

    Raises
    ------
    ValueError
        If a segment has no rows.

    Examples
    --------
    >>> import torch
    >>> from sthist.nets import segment_mean
    >>> segment_mean(torch.tensor([[1.0], [3.0], [5.0]]), torch.tensor([0, 0, 1]), torch.tensor([2, 1]))
    tensor([[2.],
            [5.]])
    """
    if values.device.type == "cpu" and bool((size == 0).any()):
        raise ValueError(f"Segment {int((size == 0).int().argmax())} has no rows, and so no mean.")
    sums = values.new_zeros(len(size), values.shape[1]).index_add_(0, segment, values)
    return sums / size[:, None]


def negative_binomial_mean(counts: torch.Tensor, mean: torch.Tensor, log_theta: torch.Tensor) -> torch.Tensor:
    """Log-probability of counts of a mean and a dispersion: their variance is mean + mean ** 2 / theta.

    Parameters
    ----------
    counts, mean
        Of one shape, such as (n, genes).
    log_theta
        Logarithm of theta, such as (genes,).

    Returns
    -------
    As ``counts``.

    Examples
    --------
    >>> import torch
    >>> from sthist.nets import negative_binomial_mean
    >>> three, two = torch.tensor([3.0]), torch.tensor([2.0])
    >>> round(float(negative_binomial_mean(three, two, torch.tensor([1.5]).log())), 4)
    -2.167
    """
    theta = log_theta.exp()
    # The odds of a count are mean / theta.
    return _negative_binomial(counts, theta.expand_as(counts), mean.clamp(min=LEAST_MEAN).log() - log_theta)


def negative_binomial_total(counts: torch.Tensor, total: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Log-probability of counts by the number of failures and the logarithm of the odds of a count.

    Parameters
    ----------
    counts, total
        Of one shape, such as (n, genes).
    logits
        Logarithm of the odds, such as (genes,).

    Returns
    -------
    As ``counts``. Their mean is ``total * exp(logits)``.

    Examples
    --------
    >>> import torch
    >>> from sthist.nets import negative_binomial_total
    >>> float(negative_binomial_total(torch.tensor([0.0]), torch.tensor([1.0]), torch.tensor([0.0])).exp())
    0.5
    """
    return _negative_binomial(counts, total.clamp(min=LEAST_MEAN), logits.expand_as(counts))


def _negative_binomial(counts: torch.Tensor, total: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Log-probability by total count and logits."""
    ways = torch.lgamma(counts + total) - torch.lgamma(total) - torch.lgamma(counts + 1)
    return ways + total * functional.logsigmoid(-logits) + counts * functional.logsigmoid(logits)
