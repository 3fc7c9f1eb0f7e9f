"""Parts of GenST: autoencoders of genes and of tiles that pass through a dictionary of atoms."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn
from torch.nn import functional

from sthist.nets._expression.losses import NORM_EPS

if TYPE_CHECKING:
    from collections.abc import Sequence

Activation = Literal["none", "relu", "softmax", "unit"]

STRIDE = 32
"""Pixels of a tile's side to one of the map that a trunk gives."""


def activated(coefficients: torch.Tensor, activation: Activation) -> torch.Tensor:
    """Coefficients (b, atoms, ...) as they are, cut at zero, summing to one, or with a mean square of one."""
    if activation == "relu":
        return coefficients.relu()
    if activation == "softmax":
        return coefficients.softmax(dim=1)
    if activation == "unit":
        return functional.normalize(coefficients, dim=1, eps=NORM_EPS) * math.sqrt(coefficients.shape[1])
    return coefficients


def perceptron(widths: Sequence[int]) -> nn.Sequential:
    """Linear layers, with layer normalisation and GELU between them."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.LayerNorm(after), nn.GELU()]
    return nn.Sequential(*layers[:-2])


class FeatureMap(nn.Module):
    """The features that a network has of places, channels first, as a trunk gives them.

    Parameters
    ----------
    network
        Its ``tokens`` takes images (b, 3, h, w) to (b, places, places, n_features), as those of encoders do.

    Examples
    --------
    >>> import sthist, torch
    >>> encoder = sthist.encoders.get("timm:resnet10t", pretrained=False, device="cpu")
    >>> sthist.nets.FeatureMap(encoder.module)(torch.zeros(1, 3, 64, 64)).shape
    torch.Size([1, 512, 2, 2])
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        """Features (b, n_features, places, places)."""
        return self.network.tokens(tiles).permute(0, 3, 1, 2)  # type: ignore[operator,no-any-return]


class Codebook(nn.Module):
    """A dictionary of atoms, of which coefficients make linear mixtures: no bias, nothing is quantised.

    Parameters
    ----------
    n_atoms
        Number of atoms.
    width
        Length of each.

    Examples
    --------
    >>> import torch
    >>> from sthist.nets._expression.autoencoders import Codebook
    >>> book = Codebook(n_atoms=4, width=6)
    >>> bool((book(torch.eye(4)) == book.atoms).all())
    True
    """

    def __init__(self, n_atoms: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, n_atoms) / math.sqrt(n_atoms))

    @property
    def atoms(self) -> torch.Tensor:
        """The atoms, (n_atoms, width)."""
        return self.weight.T

    def forward(self, coefficients: torch.Tensor) -> torch.Tensor:
        """Mixtures (b, width) or (b, width, h, w) of coefficients (b, n_atoms) or (b, n_atoms, h, w)."""
        if coefficients.ndim == 2:
            return functional.linear(coefficients, self.weight)
        return functional.conv2d(coefficients, self.weight[:, :, None, None])


class GeneAutoencoder(nn.Module):
    """Expression to coefficients of atoms, and from their mixture back to expression.

    Parameters
    ----------
    n_genes
        Number of genes.
    n_atoms, width
        Of the codebook.
    hidden
        Widths of the encoder's hidden layers; the decoder has them in reverse.
    activation
        Of the coefficients.
    mean
        Expression (n_genes,) that the decoder's output starts around; zero where it is not given.
    """

    def __init__(
        self,
        n_genes: int,
        n_atoms: int,
        width: int,
        hidden: Sequence[int],
        activation: Activation = "none",
        mean: torch.Tensor | None = None,
    ) -> None:
        super().__init__()
        self.activation: Activation = activation
        self.encoder = perceptron([n_genes, *hidden, n_atoms])
        self.codebook = Codebook(n_atoms, width)
        self.decoder = perceptron([width, *reversed(hidden), n_genes])
        if mean is not None:
            with torch.no_grad():
                self.decoder[-1].bias.copy_(mean)  # type: ignore[operator,union-attr]

    def encode(self, expression: torch.Tensor) -> torch.Tensor:
        """Coefficients (b, n_atoms) of expression (b, n_genes)."""
        return activated(self.encoder(expression), self.activation)

    def decode(self, coefficients: torch.Tensor) -> torch.Tensor:
        """Expression (b, n_genes) of coefficients (b, n_atoms)."""
        return self.decoder(self.codebook(coefficients))  # type: ignore[no-any-return]

    def forward(self, expression: torch.Tensor) -> torch.Tensor:
        """Expression, there and back."""
        return self.decode(self.encode(expression))


class AttentionPooling(nn.Module):
    """One vector of coefficients for a whole tile: a mean over its places, weighted by what lies there.

    Parameters
    ----------
    n_features
        Channels of the map.
    n_atoms
        Coefficients at each place.
    """

    def __init__(self, n_features: int, n_atoms: int) -> None:
        super().__init__()
        self.logits = nn.Conv2d(n_features, 1, 1)
        self.values = nn.Conv2d(n_features, n_atoms, 1)

    def weights(self, features: torch.Tensor) -> torch.Tensor:
        """Weights (b, h, w) of the places of a map (b, n_features, h, w): at least 0, with a sum of 1."""
        logits = self.logits(features)[:, 0]
        return logits.flatten(1).softmax(dim=1).view_as(logits)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Coefficients (b, n_atoms) of a map (b, n_features, h, w)."""
        return torch.einsum("bhw,bkhw->bk", self.weights(features), self.values(features))


class ImageDecoder(nn.Sequential):
    """A map (b, width, h, w) to images (b, 3, 32 h, 32 w), by transposed convolutions that double the side.

    Parameters
    ----------
    width
        Channels of the map.
    hidden
        Channels after each of the five doublings.
    """

    def __init__(self, width: int, hidden: Sequence[int]) -> None:
        if 2 ** len(hidden) != STRIDE:
            raise ValueError(
                f"The image decoder has {len(hidden)} widths, {tuple(hidden)}; it doubles the side five times."
            )
        layers: list[nn.Module] = []
        for before, after in pairwise([width, *hidden]):
            # Not over the batch: few tiles, from several slides, and one tile alone has to come out the same.
            layers += [nn.ConvTranspose2d(before, after, 4, stride=2, padding=1), nn.GroupNorm(1, after), nn.GELU()]
        super().__init__(*layers, nn.Conv2d(hidden[-1], 3, 3, padding=1))


class TileAutoencoder(nn.Module):
    """A tile to coefficients of atoms, one set for the tile and one for each place in it, and these to the tile.

    Parameters
    ----------
    trunk
        Tiles (b, 3, h, w) to features (b, n_features, h / 32, w / 32), without pooling.
    n_features
        Channels of the trunk's features.
    n_atoms, width
        Of the codebook.
    hidden
        Channels of the decoder.
    activation
        Of the coefficients.
    """

    def __init__(
        self,
        trunk: nn.Module,
        n_features: int,
        n_atoms: int,
        width: int,
        hidden: Sequence[int],
        activation: Activation = "none",
    ) -> None:
        super().__init__()
        self.activation: Activation = activation
        self.trunk = trunk
        self.pooling = AttentionPooling(n_features, n_atoms)
        self.spatial = nn.Conv2d(n_features, n_atoms, 1)
        self.codebook = Codebook(n_atoms, width)
        self.decoder = ImageDecoder(width, hidden)

    def features(self, tiles: torch.Tensor) -> torch.Tensor:
        """Features (b, n_features, h / 32, w / 32) of tiles (b, 3, h, w)."""
        features: torch.Tensor = self.trunk(tiles)
        sides = tuple(tiles.shape[-2:])
        if features.ndim != 4 or tuple(STRIDE * side for side in features.shape[-2:]) != sides:
            raise ValueError(
                f"Of tiles of {sides[0]} x {sides[1]} px the trunk gives {tuple(features.shape)}; it should give a map "
                f"(b, c, h / {STRIDE}, w / {STRIDE}). Take tiles whose sides are multiples of {STRIDE} px, and a "
                "trunk of that stride, without pooling."
            )
        return features

    def encode(self, features: torch.Tensor) -> torch.Tensor:
        """Coefficients (b, n_atoms) of whole tiles."""
        return activated(self.pooling(features), self.activation)

    def decode(self, features: torch.Tensor) -> torch.Tensor:
        """Tiles (b, 3, h, w) that are made of the coefficients of their places."""
        places = activated(self.spatial(features), self.activation)
        return self.decoder(self.codebook(places))  # type: ignore[no-any-return]
