"""Networks with one linear head on the features of a tile, or on an embedding that is stored."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

from sthist.nets._expression.losses import mean_absolute, mean_square

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


class _Regressor(nn.Module):
    """A network whose output is expression, with a mean error as its loss."""

    error = staticmethod(mean_square)

    def losses(
        self, batch: Mapping[str, torch.Tensor], targets: torch.Tensor, mask: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """The error, ``"loss"``: squared, if nothing else is said; genes not measured (``mask`` False) do not count."""
        return {"loss": self.error(self(batch), targets, mask)}


class _TileRegressor(_Regressor):
    """A trunk and a linear head, whose bias starts at the mean expression."""

    def __init__(
        self, trunk: nn.Module | None, n_features: int, n_genes: int, *, mean: torch.Tensor | None = None
    ) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = nn.Linear(n_features, n_genes)
        if mean is not None:
            start_at(self.head, mean)

    def forward(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Expression (b, n_genes) of ``batch["tiles"]``, or of ``batch["spot"]`` where there is no trunk."""
        return self.head(features_of(self.trunk, batch))  # type: ignore[no-any-return]


class STNet(_TileRegressor):
    """ST-Net: all layers of a trunk and a linear head, which knows the mean expression from the start (He et al. 2020).

    The head's weight starts at 0 and its bias at the mean, so that a network that has seen nothing predicts the mean.
    The published trunk is a DenseNet-121.

    Parameters
    ----------
    trunk
        Tiles (b, 3, h, w) to pooled features (b, n_features); None for stored features, ``batch["spot"]``.
    n_features
        Number of features; 1024 of a DenseNet-121.
    n_genes
        Number of genes.
    mean
        Mean expression (n_genes,) of the training set; 0 by default.
    symmetries
        Average the prediction over the eight flips and quarter turns of a tile, in evaluation.
    reduction
        ``"mean"`` of the squared errors of a batch, or the published ``"sum"`` over its spots of their mean over genes,
        which grows with the batch and goes with a learning rate of 1e-6.

    Raises
    ------
    ValueError
        If the reduction is unknown, or the mean is not one value per gene.

    Examples
    --------
    >>> import torch
    >>> from sthist.nets import STNet
    >>> trunk = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    >>> net = STNet(trunk, 3, 2, mean=torch.tensor([1.0, 2.0])).eval()
    >>> net({"tiles": torch.rand(1, 3, 8, 8)}).tolist()
    [[1.0, 2.0]]
    """

    def __init__(
        self,
        trunk: nn.Module | None,
        n_features: int,
        n_genes: int,
        *,
        mean: torch.Tensor | None = None,
        symmetries: bool = False,
        reduction: Literal["mean", "sum"] = "mean",
    ) -> None:
        super().__init__(trunk, n_features, n_genes)
        if reduction not in ("mean", "sum"):
            raise ValueError(f"reduction is 'mean' or 'sum', not {reduction!r}.")
        self.symmetries, self.reduction = symmetries, reduction
        nn.init.zeros_(self.head.weight)
        start_at(self.head, torch.zeros(n_genes) if mean is None else mean)

    def forward(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Expression (b, n_genes) of ``batch["tiles"]``, or of ``batch["spot"]`` where there is no trunk."""
        if self.training or not self.symmetries or self.trunk is None:
            return super().forward(batch)
        # The head is linear: the mean of its outputs is its output for the mean of the features.
        features = [self.trunk(tiles) for tiles in symmetries_of(batch["tiles"])]
        return self.head(torch.stack(features).mean(dim=0))  # type: ignore[no-any-return]

    def losses(
        self, batch: Mapping[str, torch.Tensor], targets: torch.Tensor, mask: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """The squared error, ``"loss"``; genes that were not measured (``mask`` False) do not count."""
        loss = super().losses(batch, targets, mask)["loss"]
        return {"loss": loss * len(targets) if self.reduction == "sum" else loss}


class ResNetRegressor(_TileRegressor):
    """A trunk and a linear head with the absolute error as its loss: the predictor that C2L-ST is guided by.

    Parameters
    ----------
    trunk
        Tiles (b, 3, h, w) to pooled features (b, n_features), published with a ResNet-50; None for stored features,
        ``batch["spot"]``.
    n_features
        Number of features; 2048 of a ResNet-50.
    n_genes
        Number of genes.
    mean
        Expression (n_genes,) that the head's bias starts at; by default as linear layers do.

    Raises
    ------
    ValueError
        If the mean is not one value per gene.

    Examples
    --------
    >>> import torch
    >>> from sthist.nets import ResNetRegressor
    >>> trunk = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    >>> ResNetRegressor(trunk, 3, 7)({"tiles": torch.rand(2, 3, 8, 8)}).shape
    torch.Size([2, 7])
    """

    error = staticmethod(mean_absolute)


class EmbeddingMLP(_Regressor):
    """One hidden layer on an embedding whose encoder is left as it is ("UNI-MLP" of published comparisons).

    The comparisons state no widths; the defaults are ours.

    Parameters
    ----------
    n_features
        Length of an embedding, ``batch["spot"]``.
    n_genes
        Number of genes.
    hidden
        Units of the hidden layer.
    dropout
        Share of them that is left out in training.
    mean
        Expression (n_genes,) that the last layer's bias starts at; by default as linear layers do.

    Raises
    ------
    ValueError
        If the mean is not one value per gene.

    Examples
    --------
    >>> import torch
    >>> from sthist.nets import EmbeddingMLP
    >>> EmbeddingMLP(1024, 50)({"spot": torch.rand(2, 1024)}).shape
    torch.Size([2, 50])
    """

    def __init__(
        self,
        n_features: int,
        n_genes: int,
        *,
        hidden: int = 512,
        dropout: float = 0.1,
        mean: torch.Tensor | None = None,
    ) -> None:
        super().__init__()
        last = nn.Linear(hidden, n_genes)
        self.layers = nn.Sequential(nn.Linear(n_features, hidden), nn.GELU(), nn.Dropout(dropout), last)
        if mean is not None:
            start_at(last, mean)

    def forward(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Expression (b, n_genes) of ``batch["spot"]``; no gradient goes back to what has made it."""
        return self.layers(batch["spot"].detach())  # type: ignore[no-any-return]


def features_of(trunk: nn.Module | None, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Features (b, c) of the tiles by a trunk, or those that are stored where there is none."""
    return batch["spot"] if trunk is None else trunk(batch["tiles"])


def start_at(layer: nn.Linear, mean: torch.Tensor) -> None:
    """Set the bias of a layer to the mean expression."""
    if tuple(mean.shape) != (layer.out_features,):
        raise ValueError(f"mean has the shape {tuple(mean.shape)}; there are {layer.out_features} genes.")
    with torch.no_grad():
        layer.bias.copy_(mean)


def symmetries_of(tiles: torch.Tensor) -> Iterator[torch.Tensor]:
    """Tiles (b, c, h, w) in each of the eight orientations, one after another."""
    for flipped in (tiles, tiles.flip(-1)):
        for turns in range(4):
            yield flipped.rot90(turns, dims=(-2, -1))
