"""HisToGene: pixels of each spot and its place, as one sequence for each slide."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from sthist.nets._expression.regression import start_at
from sthist.nets._expression.sequence.transformer import SlideNetwork, SlideTransformer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch


class HisToGene(SlideNetwork):
    """HisToGene: the pixels of each spot through one linear layer, its place, and a transformer (Pang et al. 2021).

    A vector of a spot's row and one of its column are added to that of its pixels, and blocks of attention see all
    spots of a slide. With 8 blocks, 785 genes and 64 positions, 106,648,337 parameters.

    A batch has one row per spot: ``"tiles"`` (n, px, px, 3) uint8; ``"positions"`` (n, 2) int64, row and column; and,
    where there are several slides, ``"slide"`` (n,) int64: a spot sees those of its own slide alone.

    Parameters
    ----------
    px
        Side of a tile; 112 as published.
    n_genes
        Number of genes.
    n_positions
        Number of values that row and column can have: the largest and 1; 0 to learn nothing of places.
    width
        Length of what stands for a spot.
    depth
        Blocks of attention.
    heads, head_width
        Number and size of attention heads.
    hidden
        Units between both layers of a block.
    dropout
        Share of units that is left out in training.
    pixels
        Mean and standard deviation of red, green and blue, from 0 to 1, that tiles are standardised by; None for pixels
        from 0 to 255 as they are, as published.
    mean
        Expression (n_genes,) that a network which has learned nothing predicts; by default the last layer starts as
        linear layers do.

    Raises
    ------
    ValueError
        If the mean is not one value per gene.

    Examples
    --------
    >>> import torch
    >>> from sthist.nets import HisToGene
    >>> net = HisToGene(8, 5, 10, width=16, depth=2, heads=2, head_width=8, hidden=32).eval()
    >>> tiles = torch.randint(0, 256, (6, 8, 8, 3), dtype=torch.uint8)
    >>> slide = torch.tensor([0, 0, 0, 0, 1, 1])
    >>> net({"tiles": tiles, "positions": torch.arange(12).reshape(6, 2) % 10, "slide": slide}).shape
    torch.Size([6, 5])
    """

    def __init__(
        self,
        px: int,
        n_genes: int,
        n_positions: int,
        *,
        width: int = 1024,
        depth: int = 8,
        heads: int = 16,
        head_width: int = 64,
        hidden: int = 2048,
        dropout: float = 0.1,
        pixels: tuple[Sequence[float], Sequence[float]] | None = None,
        mean: torch.Tensor | None = None,
    ) -> None:
        super().__init__(px, n_positions, width, pixels)
        self.pixels = nn.Linear(3 * px * px, width)
        self.transformer = SlideTransformer(width, depth, heads, head_width, hidden, dropout)
        last = nn.Linear(width, n_genes)
        self.head = nn.Sequential(nn.LayerNorm(width), last)
        if mean is not None:
            nn.init.zeros_(last.weight)
            start_at(last, mean)

    def of_tiles(self, pixels: torch.Tensor) -> torch.Tensor:
        """A vector (m, width) of the pixels of each tile."""
        return self.pixels(pixels.flatten(1))  # type: ignore[no-any-return]

    def among_all(self, features: torch.Tensor, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Spots (n, width), with their places, as they are seen among those of their slides."""
        if self.n_positions:
            row, column = self.places(batch)
            features = features + row + column
        return self.transformer(features, batch.get("slide"))  # type: ignore[no-any-return]
