"""Hist2Cell: a spot by itself, among its neighbours, and among all spots of its slide."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn
from torch.nn import functional

from sthist.nets._expression.losses import mean_square

if TYPE_CHECKING:
    from collections.abc import Mapping

MLP_RATIO = 2
"""Units between both layers of a block, in units of a token."""

SLOPE = 0.2
"""Of the attention's activation below 0."""


class Hist2Cell(nn.Module):
    """Cell types of spots from their tiles, their neighbours' and their slide's (Hist2Cell, Zhao et al. 2024).

    A trunk gives features of each tile; graph attention gathers those of neighbours (``local``), blocks of a
    transformer those of all spots (``whole``), and a linear layer keeps those of the spot itself (``own``). The
    prediction is the mean of four, one of each and one of their mean. With a ResNet-18 and 80 types, 14,232,064
    parameters.

    Spots are nodes of a graph. A batch has one row per node: ``"tiles"`` (n, 3, h, w), or ``"spot"`` (n, n_features)
    where features are known; ``"around"`` (n, k) int64, the rows of each node's neighbours, -1 where there is none;
    and, where there are several slides, ``"slide"`` (n,) int64.

    Parameters
    ----------
    trunk
        Tiles (b, 3, h, w) to pooled features (b, n_features), published with a ResNet-18; None for stored features.
    n_features
        Number of features; 512 of a ResNet-18.
    n_types
        Number of cell types.
    heads, head_width
        Number and size of attention heads.
    depth
        Blocks of the transformer.
    hidden
        Units of the layers that predict.
    dropout
        Share of units and of attention that is left out of the transformer in training.
    norm
        What neighbourhoods are normalised by: ``"node"`` each by itself; the published ``"batch"`` by mean and
        deviation over all nodes and channels, so that a prediction depends on what else is in the batch.
    attention
        What the transformer sees: ``"slide"`` the spots of one slide; the published ``"batch"`` all that are there.
    mean
        Composition (n_types,) that the biases of the last layers start at; by default as linear layers do.

    Raises
    ------
    ValueError
        If ``norm`` or ``attention`` is none of these, or the mean is not one value per type.

    Examples
    --------
    >>> import torch
    >>> from sthist.nets import Hist2Cell
    >>> net = Hist2Cell(None, 512, 80).eval()
    >>> batch = {"spot": torch.rand(3, 512), "around": torch.tensor([[1, -1], [0, 2], [1, -1]])}
    >>> net(batch).shape
    torch.Size([3, 80])
    """

    def __init__(
        self,
        trunk: nn.Module | None,
        n_features: int,
        n_types: int,
        *,
        heads: int = 8,
        head_width: int = 32,
        depth: int = 3,
        hidden: int = 1024,
        dropout: float = 0.3,
        norm: Literal["node", "batch"] = "node",
        attention: Literal["slide", "batch"] = "slide",
        mean: torch.Tensor | None = None,
    ) -> None:
        super().__init__()
        require_one_of("norm", norm, ("node", "batch"))
        require_one_of("attention", attention, ("slide", "batch"))
        width = heads * head_width
        self.trunk, self.norm, self.attention = trunk, norm, attention
        self.neighbours = GraphAttention(n_features, heads, head_width)
        self.local_norm = nn.LayerNorm(width)
        self.blocks = nn.Sequential(*(Block(width, heads, dropout) for _ in range(depth)), nn.LayerNorm(width))
        self.own = nn.Linear(n_features, width)
        self.own_head, self.local_head, self.fused_head = (_layers(width, hidden, n_types) for _ in range(3))
        self.whole_head = _layers(width, width // 2, n_types)
        if mean is not None:
            if tuple(mean.shape) != (n_types,):
                raise ValueError(f"mean has the shape {tuple(mean.shape)}; there are {n_types} types.")
            for head in (self.own_head, self.local_head, self.fused_head, self.whole_head):
                last: Any = head[-1]
                with torch.no_grad():
                    last.bias.copy_(mean)

    def forward(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Composition (n, n_types) of all nodes, nowhere below 0."""
        features = self.features(batch)
        own = self.own(features)
        local = self._normalised(self.neighbours(features, batch["around"]))
        whole = self._among_all(local, batch.get("slide"))
        found = self.own_head(own) + self.local_head(local) + functional.relu(self.whole_head(whole))
        return functional.relu((found + self.fused_head((own + local + whole) / 3)) / 4)

    def features(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Features (n, n_features) of all nodes: those that are known, else those that the trunk has of their tiles."""
        if "spot" in batch or self.trunk is None:
            return batch["spot"]
        return self.trunk(batch["tiles"])  # type: ignore[no-any-return]

    def losses(
        self, batch: Mapping[str, torch.Tensor], targets: torch.Tensor, mask: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """The squared error, ``"loss"``.

        Types that were not measured (``mask`` False) do not count, nor do nodes that are there for others' sake,
        ``batch["counted"]`` (n,) False.
        """
        counted = batch.get("counted")
        if counted is not None:
            counted = counted[:, None].expand_as(targets)
            mask = counted if mask is None else counted & mask
        return {"loss": mean_square(self(batch), targets, mask)}

    def _normalised(self, local: torch.Tensor) -> torch.Tensor:
        norm = self.local_norm
        if self.norm == "node":
            return norm(local)  # type: ignore[no-any-return]
        spread = local.std(correction=0) + norm.eps
        return (local - local.mean()) / spread * norm.weight + norm.bias

    def _among_all(self, tokens: torch.Tensor, slide: torch.Tensor | None) -> torch.Tensor:
        """What the transformer gives (n, width), slide by slide, or of all nodes as one sequence."""
        if slide is None or self.attention == "batch":
            return self.blocks(tokens[None])[0]  # type: ignore[no-any-return]
        order = slide.argsort(stable=True)
        sizes = slide[order].unique_consecutive(return_counts=True)[1].tolist()
        found = torch.cat([self.blocks(part[None])[0] for part in tokens[order].split(sizes)])
        return found[order.argsort()]


class GraphAttention(nn.Module):
    """What nodes gather from their neighbours and themselves, by weights of both (GATv2, Brody et al. 2022).

    Parameters
    ----------
    n_features
        Of each node.
    heads, width
        Number of heads, and units of each, which are put side by side.

    Examples
    --------
    >>> import torch
    >>> from sthist.nets import GraphAttention
    >>> net = GraphAttention(5, heads=2, width=3)
    >>> net(torch.rand(4, 5), torch.tensor([[1], [0], [-1], [0]])).shape
    torch.Size([4, 6])
    """

    def __init__(self, n_features: int, heads: int, width: int) -> None:
        super().__init__()
        self.heads = heads
        # Of a node as it is seen, and as it sees.
        self.seen, self.seeing = nn.Linear(n_features, heads * width), nn.Linear(n_features, heads * width)
        self.score = nn.Parameter(torch.empty(heads, width))
        self.bias = nn.Parameter(torch.zeros(heads * width))
        for weight in (self.seen.weight, self.seeing.weight, self.score):
            nn.init.xavier_uniform_(weight)
        for layer in (self.seen, self.seeing):
            nn.init.zeros_(layer.bias)

    def forward(self, features: torch.Tensor, around: torch.Tensor) -> torch.Tensor:
        """What nodes (n, n_features) gather, (n, heads * width); their neighbours are rows (n, k), -1 for none."""
        itself = torch.arange(len(features), device=features.device)[:, None]
        rows = torch.cat([itself, torch.where(around == itself, -1, around)], dim=1)
        near = self.seen(features).unflatten(1, (self.heads, -1))[rows.clamp(min=0)]
        seeing = self.seeing(features).unflatten(1, (self.heads, -1))[:, None]
        scores = (functional.leaky_relu(near + seeing, SLOPE) * self.score).sum(-1)
        weights = scores.masked_fill(rows[..., None] < 0, -torch.inf).softmax(dim=1)
        return (weights[..., None] * near).sum(dim=1).flatten(1) + self.bias


class Block(nn.Module):
    """Self-attention and two layers on tokens (b, n, width), each after a normalisation and added to what it took."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.attention_norm, self.layers_norm = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.inputs = nn.Linear(width, 3 * width)
        self.output = nn.Sequential(nn.Linear(width, width), nn.Dropout(dropout))
        # What is left out is left out before either layer, as in the published code.
        self.layers = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(width, MLP_RATIO * width),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(MLP_RATIO * width, width),
        )

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens (b, n, width)."""
        parts = self.inputs(self.attention_norm(tokens)).unflatten(-1, (3, self.heads, -1))
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        share = self.dropout if self.training else 0.0
        seen = functional.scaled_dot_product_attention(query, key, value, dropout_p=share).transpose(1, 2).flatten(2)
        tokens = tokens + self.output(seen)
        return tokens + self.layers(self.layers_norm(tokens))  # type: ignore[no-any-return]


def _layers(n_features: int, hidden: int, n_types: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(n_features, hidden), nn.GELU(), nn.Linear(hidden, n_types))


def require_one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    """Refuse a word that is none of those known."""
    if value not in known:
        raise ValueError(f"{name} is {value!r}; it is one of {list(known)}.")
