"""What networks on whole slides share: tiles a few at a time, attention within a slide, places by row and column."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from sthist.nets._expression.losses import mean_square

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class AttentionBlock(nn.Module):
    """Self-attention and two layers on tokens (b, n, width), each after a normalisation and added to what it took."""

    def __init__(
        self,
        width: int,
        heads: int,
        head_width: int,
        dropout: float,
        *,
        hidden: int | None = None,
        attention_dropout: float | None = None,
    ) -> None:
        super().__init__()
        hidden = width if hidden is None else hidden
        self.heads, self.dropout = heads, dropout if attention_dropout is None else attention_dropout
        self.attention_norm, self.layers_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.inputs = nn.Linear(width, 3 * heads * head_width, bias=False)
        self.output = nn.Sequential(nn.Linear(heads * head_width, width), nn.Dropout(dropout))
        self.layers = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, width), nn.Dropout(dropout)
        )

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Tokens (b, n, width); ``mask`` (b, 1, 1, n) is False for those that nobody sees."""
        parts = self.inputs(self.attention_norm(tokens)).unflatten(-1, (3, self.heads, -1))
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        share = self.dropout if self.training else 0.0
        seen = functional.scaled_dot_product_attention(query, key, value, mask, dropout_p=share)
        tokens = tokens + self.output(seen.transpose(1, 2).flatten(2))
        return tokens + self.layers(self.layers_norm(tokens))  # type: ignore[no-any-return]


class SlideTransformer(nn.Module):
    """Blocks of attention on the rows of several slides, within each alone.

    Attention has no dropout of its own, so that torch never holds a matrix of all pairs of spots.
    """

    def __init__(self, width: int, depth: int, heads: int, head_width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            AttentionBlock(width, heads, head_width, dropout, hidden=hidden, attention_dropout=0.0)
            for _ in range(depth)
        )
        self.recomputes = False

    def forward(self, rows: torch.Tensor, slide: torch.Tensor | None = None) -> torch.Tensor:
        """Rows (n, width) as they are seen among those of the same number in ``slide`` (n,); None for one slide."""
        tokens, mask, place = padded(self.dropout(rows), slide)
        for block in self.blocks:
            if self.recomputes and torch.is_grad_enabled():
                tokens = checkpoint(block, tokens, mask, use_reentrant=False)
            else:
                tokens = block(tokens, mask)
        return tokens.flatten(0, 1)[place] if place is not None else tokens[0]


class SlideNetwork(nn.Module):
    """Base of networks on slides: features of each tile, places, a transformer, and what follows it.

    A subclass gives features of some tiles (:meth:`of_tiles`), what the slide makes of them (:meth:`among_all`) and
    ``head``.
    """

    at_once: ClassVar[int] = 256
    """Tiles that are numbers of 32 bits at a time, in training, too: the others stay as they were read."""
    head: nn.Module
    transformer: SlideTransformer
    pixel_mean: torch.Tensor
    pixel_scale: torch.Tensor

    def __init__(
        self, px: int, n_positions: int, width: int, pixels: tuple[Sequence[float], Sequence[float]] | None
    ) -> None:
        super().__init__()
        self.px, self.n_positions = px, n_positions
        if n_positions:
            self.row, self.column = nn.Embedding(n_positions, width), nn.Embedding(n_positions, width)
            for table in (self.row, self.column):
                nn.init.zeros_(table.weight)  # a row or column that no training spot has adds nothing
        mean, scale = ((0.0,) * 3, (1 / 255,) * 3) if pixels is None else pixels
        self.register_buffer("pixel_mean", torch.tensor(mean), persistent=False)
        self.register_buffer("pixel_scale", torch.tensor(scale), persistent=False)

    @abstractmethod
    def of_tiles(self, pixels: torch.Tensor) -> torch.Tensor:
        """Features (m, ...) of some tiles (m, px, px, 3), which are scaled already."""

    @abstractmethod
    def among_all(self, features: torch.Tensor, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """What is known of spots (n, d) when all of their slides have been seen."""

    def forward(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Expression (n, n_genes)."""
        return self.head(self.hidden(batch))  # type: ignore[no-any-return]

    def hidden(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """What the last layers take (n, d)."""
        return self.among_all(self.features(batch), batch)

    def features(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Features (n, ...) of ``batch["tiles"]`` (n, px, px, 3) uint8, each by itself."""
        tiles = batch["tiles"]
        if tiles.shape[1:] != (self.px, self.px, 3):
            raise ValueError(f"Tiles are {tuple(tiles.shape)}; this network takes (n, {self.px}, {self.px}, 3).")
        parts = tiles.split(self.at_once)
        if len(parts) == 1 or not torch.is_grad_enabled():
            return torch.cat([self._of_bytes(part) for part in parts])
        return torch.cat([checkpoint(self._of_bytes, part, use_reentrant=False) for part in parts])

    def losses(
        self, batch: Mapping[str, torch.Tensor], targets: torch.Tensor, mask: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """The squared error, ``"loss"``.

        Genes that were not measured (``mask`` False) do not count, nor do spots that are there for others' sake,
        ``batch["counted"]`` (n,) False.
        """
        counted = batch.get("counted")
        if counted is not None and not bool(counted.all()):
            counted = counted[:, None].expand_as(targets)
            mask = counted if mask is None else counted & mask
        return {"loss": mean_square(self(batch), targets, mask)}

    def checkpoint_gradients(self) -> None:
        """Compute the blocks of the transformer twice in place of keeping what is in them."""
        self.transformer.recomputes = True

    def places(self, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """What is learned of the row and of the column of spots, (n, width) each."""
        positions = batch["positions"]
        require_known(positions, self.n_positions)
        return self.row(positions[:, 0]), self.column(positions[:, 1])

    def _of_bytes(self, tiles: torch.Tensor) -> torch.Tensor:
        return self.of_tiles((tiles / 255 - self.pixel_mean) / self.pixel_scale)


def require_known(positions: torch.Tensor, n_positions: int) -> None:
    """Refuse rows or columns (n, 2) that lie outside of a table."""
    low, high = (int(edge) for edge in positions.aminmax())
    if low < 0 or high >= n_positions:
        raise ValueError(f"Array coordinates go from {low} to {high}; this network knows 0 to {n_positions - 1}.")


def padded(
    rows: torch.Tensor, slide: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Rows (n, d) as one sequence for each slide, (b, longest, d); a mask of those that are there, and where they are.

    Without padding there is no mask, and of one slide no places either.
    """
    if slide is None:
        return rows[None], None, None
    number, sizes = slide.unique(return_inverse=True, return_counts=True)[1:]
    if len(sizes) == 1:
        return rows[None], None, None
    longest = int(sizes.max())
    order = number.argsort(stable=True)
    rank = torch.empty_like(number)
    rank[order] = torch.arange(len(rows), device=rows.device) - (sizes.cumsum(0) - sizes)[number[order]]
    place = number * longest + rank
    tokens = rows.new_zeros(len(sizes) * longest, rows.shape[1]).index_copy(0, place, rows)
    there = torch.arange(longest, device=rows.device) < sizes[:, None]
    return tokens.unflatten(0, (len(sizes), longest)), None if there.all() else there[:, None, None], place
