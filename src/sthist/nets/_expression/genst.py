"""GenST, which learns expression and tiles together by two autoencoders, and CLIP, the same with contrastive ties."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn
from torch.nn import functional

from sthist.nets._expression.autoencoders import (
    Activation,
    AttentionPooling,
    Codebook,
    GeneAutoencoder,
    TileAutoencoder,
    activated,
)
from sthist.nets._expression.losses import NORM_EPS, cosine_distance, filled, info_nce, mean_square

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

FIRST_TEMPERATURE, HIGHEST_LOGIT_SCALE = 0.07, 100.0
"""Of the contrastive loss, as in Radford et al. 2021."""


class Predictor(nn.Module):
    """What of GenST or CLIP is needed to predict: trunk, attention pooling, codebook and decoder of the genes."""

    def __init__(
        self,
        trunk: nn.Module,
        pooling: AttentionPooling,
        activation: Activation,
        codebook: Codebook,
        decoder: nn.Module,
    ) -> None:
        super().__init__()
        self.trunk = trunk
        self.pooling = pooling
        self.activation: Activation = activation
        self.codebook = codebook
        self.decoder = decoder

    def forward(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Expression (b, n_genes) of ``batch["tiles"]``."""
        coefficients = activated(self.pooling(self.trunk(batch["tiles"])), self.activation)
        return self.decoder(self.codebook(coefficients))  # type: ignore[no-any-return]


class _TwoAutoencoders(nn.Module, ABC):
    """Autoencoders of genes and of tiles; how they are tied to each other is the subclass's."""

    weights: ClassVar[Mapping[str, float]]

    def __init__(
        self,
        trunk: nn.Module,
        n_features: int,
        n_genes: int,
        *,
        n_atoms: int = 512,
        gene_width: int = 256,
        image_width: int = 256,
        hidden: Sequence[int] = (1024, 512),
        image_hidden: Sequence[int] = (512, 256, 128, 64, 32),
        activation: Activation = "none",
        weights: Mapping[str, float] | None = None,
        mean: torch.Tensor | None = None,
    ) -> None:
        super().__init__()
        unknown = sorted(set(weights or ()) - set(self.weights))
        if unknown:
            raise ValueError(f"There are no losses {unknown}; there are {list(self.weights)}.")
        self.loss_weights = {**self.weights, **(weights or {})}
        self.genes = GeneAutoencoder(n_genes, n_atoms, gene_width, hidden, activation, mean)
        self.tiles = TileAutoencoder(trunk, n_features, n_atoms, image_width, image_hidden, activation)

    def forward(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Expression (b, n_genes) of ``batch["tiles"]``, or of ``batch["coefficients"]`` where they are known."""
        return self.genes.decode(self.coefficients(batch))

    def coefficients(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Coefficients (b, n_atoms) of tiles: how much of each atom they have."""
        if "coefficients" in batch:
            return batch["coefficients"]
        return self.tiles.encode(self._features(batch))

    def latent(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Latent vectors (b, gene_width) of tiles: the mixture of atoms that expression is decoded from."""
        return self.genes.codebook(self.coefficients(batch))  # type: ignore[no-any-return]

    def attention(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Weights (b, h / 32, w / 32) of the places of tiles, with a sum of 1."""
        return self.tiles.pooling.weights(self._features(batch))

    def reconstruct(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Tiles (b, 3, h, w) as the image branch has them, normalised as those that were put in."""
        return self.tiles.decode(self._features(batch))

    def gene2gene(self, targets: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Expression (b, n_genes) as the gene branch has it: no tile is looked at, so that it is an upper reference."""
        return self.genes(filled(targets, mask))  # type: ignore[no-any-return]

    def gene_programs(self) -> torch.Tensor:
        """What a coefficient of 1 of each atom adds to the expression where nothing else is, (n_atoms, n_genes)."""
        atoms = self.genes.codebook.atoms
        return self.genes.decoder(atoms) - self.genes.decoder(torch.zeros_like(atoms[:1]))  # type: ignore[no-any-return]

    def predictor(self) -> Predictor:
        """The part that is needed to predict, with the same weights."""
        return Predictor(
            self.tiles.trunk, self.tiles.pooling, self.genes.activation, self.genes.codebook, self.genes.decoder
        )

    def losses(
        self, batch: Mapping[str, torch.Tensor], targets: torch.Tensor, mask: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """Terms of the loss by name, and their weighted sum ``"loss"``.

        Genes that were not measured, where ``mask`` is False, count neither as input nor in a loss. The image is
        compared with ``batch["tiles"]``, normalised and augmented as the encoder sees it; with a weight of 0, it is
        not even made.
        """
        features = self._features(batch)
        terms = {}
        if self.loss_weights["image"]:
            terms["image"] = mean_square(self.tiles.decode(features), batch["tiles"])
        of_genes, of_tiles = self.genes.encode(filled(targets, mask)), self.tiles.encode(features)
        latent = self.genes.codebook(of_genes)
        terms["genes"] = mean_square(self.genes.decoder(latent), targets, mask)
        terms |= self._ties(of_tiles, of_genes, latent, targets, mask)
        terms["loss"] = torch.stack([self.loss_weights[name] * term for name, term in terms.items()]).sum()
        return terms

    def _features(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The trunk's features of tiles, or those that are stored."""
        return batch["features"].float() if "features" in batch else self.tiles.features(batch["tiles"])

    def validation_loss(
        self, batch: Mapping[str, torch.Tensor], targets: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Squared error of the prediction, by which a training is stopped: images need not be made for it."""
        return mean_square(self(batch), targets, mask)

    @abstractmethod
    def _ties(
        self,
        of_tiles: torch.Tensor,
        of_genes: torch.Tensor,
        latent: torch.Tensor,
        targets: torch.Tensor,
        mask: torch.Tensor | None,
    ) -> dict[str, torch.Tensor]:
        """The terms that tie the coefficients of tiles to those of genes, whose mixtures are ``latent``."""


class GenST(_TwoAutoencoders):
    """Expression from tiles by two autoencoders that share a dictionary (GenST, COMPAYL workshop).

    The gene branch encodes expression into coefficients, mixes the atoms of a codebook by them, and decodes the
    mixture. The image branch does the same with the trunk's features at each place of a tile; a second head pools
    them by attention into coefficients of the whole tile, which the codebook and decoder *of the genes* turn into
    expression. The five terms of the loss: ``"image"`` and ``"genes"`` (both autoencoders), ``"cross"``
    (prediction), ``"align"`` (mixtures of both branches), ``"coefficients"`` (1 - cosine of the coefficients).
    Squares are means over elements, so that a tile of 150,528 values does not outweigh all else. Coefficients are
    continuous: nothing is quantised.
    The paper states no widths; the defaults are ours (50 million parameters with a ResNet-50 and 8,645 genes).

    Parameters
    ----------
    trunk
        Tiles (b, 3, h, w) to features (b, n_features, h / 32, w / 32), without pooling.
    n_features
        Channels of the trunk's features; 2048 of a ResNet-50.
    n_genes
        Number of genes.
    n_atoms
        Atoms of either codebook, and so coefficients.
    gene_width, image_width
        Length of an atom of the genes and of the tiles.
    hidden
        Widths of the hidden layers of the genes' encoder; their decoder has them in reverse.
    image_hidden
        Channels of the image decoder after each of its five doublings of the side.
    activation
        Of coefficients: none as in the paper; cut at zero, or summing to one, which makes atoms easier to read; or
        brought to one length.
    weights
        Of terms of the loss, where they are not the paper's (1, 1, 1, 0.1, 0.1).
    mean
        Expression (n_genes,) that predictions start around.

    Raises
    ------
    ValueError
        If a weight is of an unknown loss, or the image decoder does not double the side five times.

    Examples
    --------
    >>> import torch
    >>> from sthist.nets import GenST
    >>> trunk = torch.nn.Conv2d(3, 8, kernel_size=32, stride=32)
    >>> net = GenST(trunk, 8, 50, n_atoms=16, hidden=(32,), image_hidden=(8, 8, 8, 4, 4)).eval()
    >>> batch = {"tiles": torch.rand(2, 3, 64, 64)}
    >>> net(batch).shape, net.coefficients(batch).shape, net.reconstruct(batch).shape
    (torch.Size([2, 50]), torch.Size([2, 16]), torch.Size([2, 3, 64, 64]))
    """

    weights = MappingProxyType({"image": 1.0, "genes": 1.0, "cross": 1.0, "align": 0.1, "coefficients": 0.1})

    def _ties(
        self,
        of_tiles: torch.Tensor,
        of_genes: torch.Tensor,
        latent: torch.Tensor,
        targets: torch.Tensor,
        mask: torch.Tensor | None,
    ) -> dict[str, torch.Tensor]:
        crossed = self.genes.codebook(of_tiles)
        return {
            "cross": mean_square(self.genes.decoder(crossed), targets, mask),
            "align": mean_square(crossed, latent),
            "coefficients": cosine_distance(of_tiles, of_genes),
        }


class CLIP(_TwoAutoencoders):
    """GenST's autoencoders, tied by a contrastive loss alone: the baseline "CLIP" of the GenST paper.

    ``"contrast"`` is the symmetric InfoNCE of the coefficients of tiles and of genes, brought to unit length, with a
    learned temperature. Expression is predicted by swapping: the coefficients of a tile go through the codebook and
    decoder of the genes. Nothing ties the *length* of a tile's coefficients to those of the genes, as in the paper,
    whose folds differ widely; ``activation="unit"`` makes them alike.

    Parameters
    ----------
    trunk, n_features, n_genes, n_atoms, gene_width, image_width, hidden, image_hidden, activation, weights, mean
        As those of :class:`GenST`; the terms of the loss are ``"image"``, ``"genes"`` and ``"contrast"``, of weight 1.

    Raises
    ------
    ValueError
        As :class:`GenST`.

    Examples
    --------
    >>> import torch
    >>> from sthist.nets import CLIP
    >>> trunk = torch.nn.Conv2d(3, 8, kernel_size=32, stride=32)
    >>> net = CLIP(trunk, 8, 50, n_atoms=16, hidden=(32,), image_hidden=(8, 8, 8, 4, 4))
    >>> sorted(net.losses({"tiles": torch.rand(2, 3, 64, 64)}, torch.rand(2, 50)))
    ['contrast', 'genes', 'image', 'loss']
    """

    weights = MappingProxyType({"image": 1.0, "genes": 1.0, "contrast": 1.0})

    def __init__(self, trunk: nn.Module, n_features: int, n_genes: int, **options: Any) -> None:
        super().__init__(trunk, n_features, n_genes, **options)
        self.logit_scale = nn.Parameter(torch.tensor(-math.log(FIRST_TEMPERATURE)))

    def image_embedding(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Coefficients of tiles, of unit length, (b, n_atoms)."""
        return _unit(self.coefficients(batch))

    def expression_embedding(
        self, batch: Mapping[str, torch.Tensor], targets: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Coefficients of expression, of unit length, (b, n_atoms); nothing of the batch is looked at."""
        return _unit(self.genes.encode(filled(targets, mask)))

    def _ties(
        self,
        of_tiles: torch.Tensor,
        of_genes: torch.Tensor,
        latent: torch.Tensor,
        targets: torch.Tensor,
        mask: torch.Tensor | None,
    ) -> dict[str, torch.Tensor]:
        scale = self.logit_scale.exp().clamp(max=HIGHEST_LOGIT_SCALE)
        return {"contrast": info_nce(_unit(of_tiles), _unit(of_genes), scale)}


def _unit(vectors: torch.Tensor) -> torch.Tensor:
    return functional.normalize(vectors.float(), dim=1, eps=NORM_EPS)
