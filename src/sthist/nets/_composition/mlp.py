"""A network on embeddings whose encoders are left as they are, and a loss that asks for the right pattern."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

from sthist.nets._expression.losses import mean_absolute, mean_square

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

CONSTANT = 1e-6
"""Standard deviation, in parts of the size of the values, up to which 32 bits cannot tell them from a constant."""

WIDTHS = (1024, 1024, 512, 512, 256, 256)


class CompositionMLP(nn.Module):
    """Linear layers with SiLU between them, by default seven, from embeddings to cell types (Sun, Zhu and Qiu 2025).

    The loss is the squared error, ``l1`` times the absolute error and ``l2`` times the negative correlation; it can be
    below 0. Widths, dropout, weights of the loss and initial weights are not published; those here are ours.

    Parameters
    ----------
    n_features
        Length of an embedding, ``batch["spot"]`` (b, n_features); of several encoders, one after the other.
    n_types
        Number of cell types.
    widths
        Units of each hidden layer.
    dropout
        Share of them that is left out in training.
    l1, l2
        Weights of the absolute error and of the correlation.
    correlation
        ``"spots"``: of each type over the spots of a batch, which asks for batches of a hundred or more; ``"types"``:
        of each spot over its types. The mean of them counts.
    mean
        Composition (n_types,) that the last layer's bias starts at; by default as linear layers do.

    Raises
    ------
    ValueError
        If ``correlation`` is neither of both, or the mean is not one value per type.

    Examples
    --------
    >>> import torch
    >>> from sthist.nets import CompositionMLP
    >>> net = CompositionMLP(1536, 80)
    >>> sum(isinstance(each, torch.nn.Linear) for each in net.layers)
    7
    >>> net({"spot": torch.rand(2, 1536)}).shape
    torch.Size([2, 80])
    """

    def __init__(
        self,
        n_features: int,
        n_types: int,
        *,
        widths: Sequence[int] = WIDTHS,
        dropout: float = 0.0,
        l1: float = 1.0,
        l2: float = 1.0,
        correlation: Literal["spots", "types"] = "spots",
        mean: torch.Tensor | None = None,
    ) -> None:
        super().__init__()
        require_axis(correlation)
        self.l1, self.l2, self.correlation = l1, l2, correlation
        layers: list[nn.Module] = []
        for one, other in pairwise((n_features, *widths)):
            hidden = nn.Linear(one, other)
            # As linear layers begin, each halves what differs between spots: seven of them would leave nothing.
            nn.init.kaiming_normal_(hidden.weight, nonlinearity="relu")
            nn.init.zeros_(hidden.bias)
            layers += [hidden, nn.SiLU(), nn.Dropout(dropout)]
        last = nn.Linear(widths[-1] if widths else n_features, n_types)
        if mean is not None:
            if tuple(mean.shape) != (n_types,):
                raise ValueError(f"mean has the shape {tuple(mean.shape)}; there are {n_types} types.")
            with torch.no_grad():
                last.bias.copy_(mean)
        self.layers = nn.Sequential(*layers, last)

    def forward(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Composition (b, n_types) of ``batch["spot"]``, nowhere below 0."""
        return self.unclipped(batch).clamp(min=0)

    def unclipped(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """What the layers give, which the loss is of: below 0 a gradient leads back."""
        return self.layers(batch["spot"])  # type: ignore[no-any-return]

    def losses(
        self, batch: Mapping[str, torch.Tensor], targets: torch.Tensor, mask: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """``"mse"``, ``"mae"``, ``"correlation"`` and their weighted sum, ``"loss"``.

        Types that were not measured (``mask`` False) do not count.
        """
        found = self.unclipped(batch)
        terms = {
            "mse": mean_square(found, targets, mask),
            "mae": mean_absolute(found, targets, mask),
            "correlation": negative_correlation(found, targets, mask, over=self.correlation),
        }
        return {"loss": terms["mse"] + self.l1 * terms["mae"] + self.l2 * terms["correlation"], **terms}


def negative_correlation(
    predicted: torch.Tensor,
    targets: torch.Tensor,
    mask: torch.Tensor | None = None,
    *,
    over: Literal["spots", "types"] = "spots",
    eps: float = 1e-8,
) -> torch.Tensor:
    """Mean of Pearson's correlations with their sign turned: -1 where predictions are perfect but for scale and offset.

    Parameters
    ----------
    predicted, targets
        (b, n_types).
    mask
        (b, n_types) bool, False where a type was not measured; None where all were.
    over
        ``"spots"``: of each type over the spots; ``"types"``: of each spot over its types.
    eps
        Added to the product of both norms.

    Returns
    -------
    One number from -1 to 1. Where a prediction or a target is constant its correlation is 0, and so is its gradient.

    Raises
    ------
    ValueError
        If ``over`` is neither of both.

    Examples
    --------
    >>> import torch
    >>> from sthist.nets import negative_correlation
    >>> truth = torch.tensor([[1.0, 0.0], [2.0, 1.0], [4.0, 0.0]])
    >>> round(float(negative_correlation(3 * truth + 1, truth)), 5)
    -1.0
    """
    require_axis(over)
    axis = 0 if over == "spots" else 1
    there = torch.ones_like(targets, dtype=torch.bool) if mask is None else mask.expand_as(targets)
    n = there.sum(axis, keepdim=True).clamp(min=1)
    norm: torch.Tensor = torch.ones((), device=predicted.device)
    varies, centred = there.any(axis), []
    for values in (predicted.float(), targets.float()):
        seen = torch.where(there, values, 0.0)
        deviation = torch.where(there, seen - seen.sum(axis, keepdim=True) / n, 0.0)
        squares = deviation.square().sum(axis)
        varying = squares > CONSTANT**2 * seen.square().sum(axis)
        # The root of 0 has an infinite gradient, also where its value is not used.
        norm = norm * torch.where(varying, squares, 1.0).sqrt()
        varies = varies & varying
        centred.append(deviation)
    found = torch.where(varies, (centred[0] * centred[1]).sum(axis) / (norm + eps), 0.0)
    return -found.sum() / there.any(axis).sum().clamp(min=1)


def require_axis(over: str) -> None:
    """Refuse what no correlation can be over."""
    if over not in ("spots", "types"):
        raise ValueError(f"A correlation is over 'spots' or over 'types', not {over!r}.")
