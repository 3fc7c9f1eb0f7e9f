"""THItoGene: capsules of each spot's tile, its slide, and its neighbours."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import nn

from sthist.nets._expression.regression import start_at
from sthist.nets._expression.sequence.capsules import Capsules, DynamicConv2d, NeighbourAttention, squash
from sthist.nets._expression.sequence.transformer import SlideNetwork, SlideTransformer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

FIRST = 4
"""Side and step of the first convolution."""

SIZES, STEPS = (5, 3, 3, 3), (1, 1, 1, 2)
"""Of those that follow."""

PRIMARY = 8
"""Length of the first capsules."""


class THItoGene(SlideNetwork):
    """THItoGene: capsules of the pixels of each spot, a transformer, and attention to neighbours (Jia et al. 2024).

    A dynamic convolution and four others, one over each whole map, and capsules that are routed by their agreement;
    capsules and what is learned of row and column, side by side, are the token of a spot. Blocks of attention see all
    spots of a slide, and two layers of graph attention those around each. With 785 genes and 64 positions, 64 million
    parameters. Nothing is normalised over a batch: the capsules of a spot follow from its tile alone.

    A batch has one row per spot: ``"tiles"`` (n, px, px, 3) uint8; ``"positions"`` (n, 2) int64, row and column;
    ``"around"`` (n, k) int64, the rows of each spot's neighbours, -1 where there is none; and, where there are several
    slides, ``"slide"`` (n,) int64: a spot sees those of its own slide alone.

    Parameters
    ----------
    px
        Side of a tile, 44 or more; 112 as published.
    n_genes
        Number of genes.
    n_positions
        Number of values that row and column can have: the largest and 1; 0 to learn nothing of places.
    channels
        Of the five convolutions; the last are capsules of 8.
    capsules, capsule_width
        Number and length of the capsules that stand for a tile.
    depth
        Blocks of attention; 4 as published for her2st, else 8.
    heads, head_width
        Number and size of attention heads.
    hidden
        Units between both layers of a block.
    graph_heads, graph_widths
        Heads of the first layer of graph attention, and units of each; units of the second.
    head_hidden
        Units between the graph and the genes.
    dropout
        Share of the transformer's units that is left out in training.
    own
        Add what a spot is by itself to what it gathers from its neighbours. The published network does not, so that
        what its own tile shows has to come back from others. A spot without neighbours gathers from itself.
    pixels
        Mean and standard deviation of red, green and blue, from 0 to 1, that tiles are standardised by; None for pixels
        from 0 to 255 as they are.
    mean
        Expression (n_genes,) that a network which has learned nothing predicts; by default the last layer starts as
        linear layers do.

    Raises
    ------
    ValueError
        If tiles are too small for the convolutions, the last channels are no capsules, or the mean is not one value per
        gene.

    Examples
    --------
    >>> import torch
    >>> from sthist.nets import THItoGene
    >>> net = THItoGene(48, 5, 10, channels=(4, 4, 4, 4, 8), capsules=2, capsule_width=4, depth=1, heads=2).eval()
    >>> tiles = torch.randint(0, 256, (3, 48, 48, 3), dtype=torch.uint8)
    >>> around = torch.tensor([[1, -1], [0, 2], [1, -1]])
    >>> net({"tiles": tiles, "positions": torch.arange(6).reshape(3, 2), "around": around}).shape
    torch.Size([3, 5])
    """

    at_once = 128

    def __init__(
        self,
        px: int,
        n_genes: int,
        n_positions: int,
        *,
        channels: Sequence[int] = (16, 32, 64, 64, 128),
        capsules: int = 20,
        capsule_width: int = 64,
        depth: int = 4,
        heads: int = 16,
        head_width: int = 64,
        hidden: int = 2048,
        graph_heads: int = 8,
        graph_widths: tuple[int, int] = (1024, 512),
        head_hidden: int = 1024,
        dropout: float = 0.2,
        own: bool = True,
        pixels: tuple[Sequence[float], Sequence[float]] | None = None,
        mean: torch.Tensor | None = None,
    ) -> None:
        super().__init__(px, n_positions, capsule_width, pixels)
        side = map_side(px)
        if channels[-1] % PRIMARY:
            raise ValueError(f"channels is {tuple(channels)}; the last is a multiple of {PRIMARY}, the first capsules.")
        self.first = DynamicConv2d(3, channels[0], FIRST)
        self.convolutions = nn.Sequential()
        for (before, after), size, step in zip(pairwise(channels), SIZES, STEPS, strict=True):
            layer = nn.Conv2d(before, after, size, step)
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
            self.convolutions += nn.Sequential(layer, nn.ReLU())
        self.whole = nn.Conv2d(channels[-1], channels[-1], side, groups=channels[-1])
        self.capsules = Capsules(channels[-1] // PRIMARY, PRIMARY, capsules, capsule_width)
        width = (capsules + 2 * (n_positions > 0)) * capsule_width
        self.transformer = SlideTransformer(width, depth, heads, head_width, hidden, dropout)
        self.near = NeighbourAttention(width, graph_heads, graph_widths[0])
        self.around = NeighbourAttention(graph_heads * graph_widths[0], 1, graph_widths[1])
        self.own = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, graph_widths[1])) if own else None
        last = nn.Linear(head_hidden, n_genes)
        self.head = nn.Sequential(nn.Linear(graph_widths[1], head_hidden), nn.ReLU(), nn.LayerNorm(head_hidden), last)
        if mean is not None:
            nn.init.zeros_(last.weight)
            start_at(last, mean)

    def of_tiles(self, pixels: torch.Tensor) -> torch.Tensor:
        """Capsules (m, capsules * capsule_width) of some tiles, side by side."""
        maps = self.convolutions(self.first(pixels.permute(0, 3, 1, 2)).relu())
        first = squash(self.whole(maps).flatten(1).unflatten(1, (-1, PRIMARY)))
        return self.capsules(first).flatten(1)  # type: ignore[no-any-return]

    def among_all(self, features: torch.Tensor, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Spots (n, graph_widths[1]) as they are seen among those of their slides, and by their neighbours."""
        if self.n_positions:
            features = torch.cat([features, *self.places(batch)], dim=1)
        tokens = self.transformer(features, batch.get("slide"))
        around = batch["around"]
        itself = torch.arange(len(around), device=around.device)[:, None]
        rows = torch.cat([torch.where((around < 0).all(dim=1, keepdim=True), itself, -1), around], dim=1)
        gathered = self.around(self.near(tokens, rows), rows)
        return gathered if self.own is None else gathered + self.own(tokens)  # type: ignore[no-any-return]


def map_side(px: int) -> int:
    """Side of the last map of tiles of so many pixels."""
    side = px // FIRST
    for size, step in zip(SIZES, STEPS, strict=True):
        side = (side - size) // step + 1
    if side < 1:
        raise ValueError(f"THItoGene's convolutions need tiles of 44 pixels or more; these have {px}.")
    return side
