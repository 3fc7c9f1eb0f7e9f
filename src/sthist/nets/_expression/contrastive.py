"""Networks that learn which tile and which expression belong together; expression is then looked up, not computed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from sthist.nets._expression.losses import filled, info_nce, soft_target_loss
from sthist.nets._expression.regression import features_of
from sthist.nets._expression.sequence.transformer import AttentionBlock, require_known

if TYPE_CHECKING:
    from collections.abc import Mapping

POSITION_STD = 0.02
"""Of what is learned of places, at the start: with torch's 1, it would drown the expression that it is added to."""


class BLEEP(nn.Module):
    """BLEEP: tiles and expression in one space, where those that are alike in either may be alike (Xie et al. 2023).

    Expression needs no encoder; both sides have a projection. A batch's pairs are matched by a cross-entropy with soft
    targets, the mean similarity of images and of expression among each other.

    Parameters
    ----------
    trunk
        Tiles (b, 3, h, w) to pooled features (b, n_features), published with a ResNet-50; None for stored features,
        ``batch["spot"]``.
    n_features
        Number of features; 2048 of a ResNet-50.
    n_genes
        Number of genes.
    width
        Length of an embedding.
    dropout
        Share of the projections' units that is left out in training.
    temperature
        By which similarities are divided.

    Raises
    ------
    ValueError
        If the temperature is not positive.

    Examples
    --------
    >>> import torch
    >>> from sthist.nets import BLEEP
    >>> net = BLEEP(None, 16, 5, width=8)
    >>> batch, targets = {"spot": torch.rand(4, 16)}, torch.rand(4, 5)
    >>> net.image_embedding(batch).shape, net.expression_embedding(batch, targets).shape
    (torch.Size([4, 8]), torch.Size([4, 8]))
    """

    def __init__(
        self,
        trunk: nn.Module | None,
        n_features: int,
        n_genes: int,
        *,
        width: int = 256,
        dropout: float = 0.1,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature is {temperature!r}; a positive number is needed.")
        self.trunk, self.temperature = trunk, temperature
        self.image = Projection(n_features, width, dropout)
        self.expression = Projection(n_genes, width, dropout)

    def forward(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Embeddings (b, width) of the images, with which :class:`Retrieval` predicts."""
        return self.image_embedding(batch)

    def image_embedding(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Embeddings (b, width) of ``batch["tiles"]``, or of ``batch["spot"]`` where there is no trunk."""
        return self.image(features_of(self.trunk, batch))  # type: ignore[no-any-return]

    def expression_embedding(
        self, batch: Mapping[str, torch.Tensor], targets: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Embeddings (b, width) of expression; genes that were not measured count as 0."""
        return self.expression(filled(targets, mask))  # type: ignore[no-any-return]

    def losses(
        self, batch: Mapping[str, torch.Tensor], targets: torch.Tensor, mask: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """The contrastive ``"loss"`` of a batch of pairs."""
        return {"loss": self.mismatch(self.image_embedding(batch), self.expression_embedding(batch, targets, mask))}

    def mismatch(self, images: torch.Tensor, spots: torch.Tensor) -> torch.Tensor:
        """Cross-entropy of the pairs of a batch, with soft targets."""
        return soft_target_loss(images, spots, self.temperature)


class McLSTExp(BLEEP):
    """mclSTExp: expression with its place, seen among the other spots of the batch, beside tiles (Min et al. 2024).

    As :class:`BLEEP`, but to the expression of a spot two learned vectors are added, of its row and of its column;
    blocks of self-attention take the spots of a batch as a sequence. Pairs are matched by a symmetric cross-entropy.
    The embedding of a spot so depends on what else is in its batch; ``depth=0`` leaves that out.

    Parameters
    ----------
    trunk
        Tiles (b, 3, h, w) to pooled features (b, n_features), published with a DenseNet-121; None for stored features,
        ``batch["spot"]``.
    n_features
        Number of features; 1024 of a DenseNet-121.
    n_genes
        Number of genes.
    n_positions
        Number of values that each of the array coordinates, ``batch["positions"]``, can have: its largest and 1; 0 to
        learn nothing of places.
    width
        Length of an embedding.
    depth
        Blocks of attention.
    heads, head_width
        Number and size of attention heads.
    dropout
        Share of units that is left out in training.
    temperature
        By which similarities are divided.

    Raises
    ------
    ValueError
        If the temperature is not positive.

    Examples
    --------
    >>> import torch
    >>> from sthist.nets import McLSTExp
    >>> net = McLSTExp(None, 16, 5, 10, width=8, heads=2, head_width=4)
    >>> batch = {"spot": torch.rand(4, 16), "positions": torch.arange(8).reshape(4, 2)}
    >>> net.expression_embedding(batch, torch.rand(4, 5)).shape
    torch.Size([4, 8])
    """

    def __init__(
        self,
        trunk: nn.Module | None,
        n_features: int,
        n_genes: int,
        n_positions: int,
        *,
        width: int = 256,
        depth: int = 2,
        heads: int = 8,
        head_width: int = 64,
        dropout: float = 0.0,
        temperature: float = 1.0,
    ) -> None:
        super().__init__(trunk, n_features, n_genes, width=width, dropout=dropout, temperature=temperature)
        self.n_positions = n_positions
        if n_positions:
            self.row, self.column = nn.Embedding(n_positions, n_genes), nn.Embedding(n_positions, n_genes)
            for table in (self.row, self.column):
                nn.init.normal_(table.weight, std=POSITION_STD)
        self.blocks = nn.Sequential(*(AttentionBlock(n_genes, heads, head_width, dropout) for _ in range(depth)))

    def expression_embedding(
        self, batch: Mapping[str, torch.Tensor], targets: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Embeddings (b, width) of expression at its places; genes that were not measured count as 0.

        Raises ValueError if a place lies outside of those that it was made for.
        """
        spots = filled(targets, mask)
        if self.n_positions:
            positions = batch["positions"]
            require_known(positions, self.n_positions)
            spots = spots + self.row(positions[:, 0]) + self.column(positions[:, 1])
        return self.expression(self.blocks(spots[None])[0])  # type: ignore[no-any-return]

    def mismatch(self, images: torch.Tensor, spots: torch.Tensor) -> torch.Tensor:
        """Symmetric cross-entropy of the pairs of a batch."""
        return info_nce(spots, images, 1 / self.temperature)


class Projection(nn.Module):
    """Features into the common space: a layer, a second one whose output is added to the first's, normalised."""

    def __init__(self, n_features: int, width: int, dropout: float) -> None:
        super().__init__()
        self.first = nn.Linear(n_features, width)
        self.second = nn.Sequential(nn.GELU(), nn.Linear(width, width), nn.Dropout(dropout))
        self.norm = nn.LayerNorm(width)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Embeddings (b, width)."""
        projected = self.first(features)
        return self.norm(self.second(projected) + projected)  # type: ignore[no-any-return]
