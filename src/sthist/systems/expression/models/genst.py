"""GenST: expression from tiles by two autoencoders that share a dictionary."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from sthist.regression.backbones import BackboneConfig, BackboneModel, at_once
from sthist.regression.data.inputs import Arrays, as_inputs
from sthist.regression.feature_maps import FeatureMaps, feature_maps
from sthist.systems.expression.model import ExpressionModel

if TYPE_CHECKING:
    from torch import nn

    from sthist.regression.data.inputs import Inputs
    from sthist.regression.data.targets import Targets
    from sthist.regression.module import RegressionTraining

LOSSES = ("image", "genes", "cross", "align", "coefficients")

AT_ONCE = 256


@dataclass(frozen=True)
class GenSTConfig(BackboneConfig):
    """Settings of :class:`GenST`. The paper states no widths; the defaults are ours.

    Attributes
    ----------
    n_atoms
        Atoms of the codebooks, and so coefficients of a tile.
    gene_width, image_width
        Length of an atom of the genes and of the tiles.
    hidden
        Widths of the hidden layers of the genes' encoder; their decoder has them in reverse.
    image_hidden
        Channels of the image decoder after each of its five doublings of the side.
    activation
        Of coefficients: ``"none"`` as in the paper; ``"relu"`` or ``"softmax"``, which make atoms easier to read;
        ``"unit"``, which brings them to one length.
    loss_weights
        Of terms of the loss, where they are not the paper's: ``"image"``, ``"genes"`` and ``"cross"`` 1, ``"align"``
        and ``"coefficients"`` 0.1. With ``{"image": 0}`` no image is made, which halves the time.
    augmentation
        Whether tiles that train are changed in colour and sharpness as in the paper, beside being turned and mirrored.
    frozen
        Leave the backbone as it is. Its features of all tiles are made once, and kept in ``settings.scratch_dir`` while
        it is trained (125 kB a tile of 224 px of an EfficientNet-Lite0), so that it takes minutes without an
        accelerator. Tiles are then not augmented.
    """

    n_atoms: int = 512
    gene_width: int = 256
    image_width: int = 256
    hidden: tuple[int, ...] = (1024, 512)
    image_hidden: tuple[int, ...] = (512, 256, 128, 64, 32)
    activation: Literal["none", "relu", "softmax", "unit"] = "none"
    loss_weights: dict[str, float] = field(default_factory=dict)
    augmentation: bool = True
    frozen: bool = False

    terms: ClassVar[tuple[str, ...]] = LOSSES

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("hidden", "image_hidden"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        widths = (self.n_atoms, self.gene_width, self.image_width, *self.hidden, *self.image_hidden)
        if min(widths) < 1 or len(self.image_hidden) != 5:
            raise ValueError(
                f"Widths are {widths}; they are positive, and image_hidden has five, one for each doubling of the side."
            )
        if self.activation not in ("none", "relu", "softmax", "unit"):
            raise ValueError(f"activation is {self.activation!r}; it is 'none', 'relu', 'softmax' or 'unit'.")
        unknown = sorted(set(self.loss_weights) - set(self.terms))
        if unknown or any(not (np.isfinite(each) and each >= 0) for each in self.loss_weights.values()):
            raise ValueError(f"loss_weights is {self.loss_weights}; it has weights of at least 0 of {self.terms}.")


class GenST(BackboneModel, ExpressionModel):
    """Expression from tiles by autoencoders of genes and of tiles that share a dictionary of atoms.

    The gene branch learns to take expression apart into coefficients of atoms and to put it together again; the image
    branch does so with tiles, and coefficients of a tile that go through the atoms and the decoder *of the genes* are
    the prediction. With :func:`sthist.tl.expression`, the mixture of atoms of each region goes to ``obsm["X_genst"]``,
    and its coefficients to ``obsm["genst_coefficients"]``.

    Parameters
    ----------
    config
        Settings.
    weights
        Of a trained model.

    Notes
    -----
    Trained as in the paper: RAdam, learning rate and weight decay 1e-4, 100 epochs. The paper chooses no epoch; here,
    where groups can be spared, that with the lowest error of validation is kept.

    Examples
    --------
    >>> import numpy as np, sthist
    >>> rng = np.random.default_rng(0)
    >>> tiles = rng.integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    >>> config = sthist.models.GenSTConfig(
    ...     backbone="resnet10t", pretrained=False, n_atoms=8, hidden=(16,), image_hidden=(8, 8, 4, 4, 4)
    ... )
    >>> model = sthist.models.GenST(config).fit(tiles, rng.random((8, 5)), training={"epochs": 1, "batch_size": 4})
    >>> model.predict(tiles).shape, model.reconstruct(tiles).shape, model.coefficients(tiles).shape
    ((8, 5), (8, 32, 32, 3), (8, 8))
    """

    system: ClassVar[str] = "genst"
    config_class: ClassVar[type] = GenSTConfig
    config: GenSTConfig
    maps: ClassVar[bool] = True
    network: ClassVar[str] = "GenST"
    beside: ClassVar[tuple[str, ...]] = ("X_{}", "{}_coefficients")
    default_training: ClassVar[dict[str, Any]] = {
        "epochs": 100,
        "batch_size": 64,
        "lr": 1e-4,
        "weight_decay": 1e-4,
        "optimizer": "radam",
        "patience": 20,
        "drop_last": True,
    }

    def settle(self, inputs: Inputs, targets: Targets, rows: np.ndarray) -> None:
        """What the backbone takes and gives."""
        tiles = inputs.inputs if isinstance(inputs, FeatureMaps) else inputs
        super().settle(tiles, targets, rows)

    def _fit(
        self,
        inputs: Inputs,
        targets: Targets,
        rows: np.ndarray,
        watched: np.ndarray,
        options: RegressionTraining,
        where: dict[str, Any],
    ) -> None:
        config = self.config
        if config.frozen and not config.pretrained:
            raise ValueError("A backbone that is frozen needs weights: pretrained=True, with backbone_weights= or not.")
        if config.frozen:
            self.settle(inputs, targets, rows)
            inputs = feature_maps(
                inputs,
                np.union1d(rows, watched),
                self.trunk(),
                self.transform,
                (config.backbone, config.backbone_weights),
                tiles=config.loss_weights.get("image", 1) > 0,
                device=where["device"],
            )
        super()._fit(inputs, targets, rows, watched, options, where)

    def make_net(self, n_outputs: int, mean: np.ndarray, scale: np.ndarray) -> nn.Module:
        """The network of the paper on the backbone; the genes' decoder begins at their mean."""
        import torch

        from sthist import nets

        config = self.config
        kind: Any = getattr(nets, self.network)
        trunk = self.trunk().requires_grad_(not config.frozen)
        return kind(  # type: ignore[no-any-return]
            trunk,
            config.n_features,
            n_outputs,
            n_atoms=config.n_atoms,
            gene_width=config.gene_width,
            image_width=config.image_width,
            hidden=config.hidden,
            image_hidden=config.image_hidden,
            activation=config.activation,
            weights=config.loss_weights,
            mean=torch.from_numpy(mean),
        )

    def augment(self, batch: dict[str, Any], rows: np.ndarray, seed: int, epoch: int) -> dict[str, Any]:
        """The paper's changes of colour and sharpness, on pixels from 0 to 1."""
        from sthist.nets import augment_tiles

        if not self.config.augmentation or "features" in batch:
            return batch
        mean, deviation = self._constants(batch["tiles"])
        pixels = (batch["tiles"] * deviation + mean).clamp_(0, 1)
        return batch | {"tiles": (augment_tiles(pixels, rows, seed=seed, epoch=epoch) - mean) / deviation}

    def gene2gene(self, expression: Any, *, batch_size: int = 1024) -> np.ndarray:
        """Expression as the gene branch alone gives it back: what a perfect image branch could reach.

        Parameters
        ----------
        expression
            (n, genes), log-normalised, dense or sparse, in the order of ``genes``.
        batch_size
            Rows at a time.

        Returns
        -------
        (n, genes) float32.

        Raises
        ------
        ValueError
            If there is not one column per gene.
        """
        import torch

        n, n_genes = expression.shape[0], len(self.genes)
        if expression.shape != (n, n_genes):
            raise ValueError(f"expression is {tuple(expression.shape)}; this model has {n_genes} genes.")
        found = np.empty((n, n_genes), np.float32)
        net: Any = self.net
        with torch.inference_mode():
            for start in range(0, n, batch_size):
                part = expression[start : start + batch_size]
                dense = np.ascontiguousarray(part.toarray() if hasattr(part, "toarray") else part, np.float32)
                found[start : start + batch_size] = net.gene2gene(torch.from_numpy(dense)).numpy()
        return found

    def reconstruct(self, tiles: Any, *, batch_size: int = AT_ONCE, device: str | None = None) -> np.ndarray:
        """Tiles as the image branch gives them back.

        Parameters
        ----------
        tiles
            (n, px, px, 3) uint8.
        batch_size
            Tiles at a time.
        device
            Of torch; ``settings.device`` by default.

        Returns
        -------
        (n, px, px, 3) uint8.
        """

        def shown(net: Any, batch: dict[str, Any]) -> Any:
            mean, deviation = self._constants(batch["tiles"])
            images = net.reconstruct(batch) * deviation + mean
            return (images.clamp(0, 1) * 255).round().permute(0, 2, 3, 1)

        return self._of_tiles(shown, as_inputs(tiles), None, batch_size, device).astype(np.uint8)

    def coefficients(self, tiles: Any, *, batch_size: int = AT_ONCE, device: str | None = None) -> np.ndarray:
        """Coefficients of tiles, (n, n_atoms) float32: how much of each atom they have.

        Parameters
        ----------
        tiles
            (n, px, px, 3) uint8.
        batch_size
            Tiles at a time.
        device
            Of torch; ``settings.device`` by default.
        """
        return self._of_tiles(lambda net, batch: net.coefficients(batch), as_inputs(tiles), None, batch_size, device)

    @property
    def atoms(self) -> np.ndarray:
        """Atoms of the genes' codebook, (n_atoms, gene_width)."""
        net: Any = self.net
        return net.genes.codebook.atoms.detach().cpu().numpy().copy()  # type: ignore[no-any-return]

    @property
    def gene_programs(self) -> np.ndarray:
        """What a coefficient of 1 of each atom adds to the expression where no other atom is, (n_atoms, genes)."""
        import torch

        net: Any = self.net
        with torch.inference_mode():
            return net.gene_programs().numpy()  # type: ignore[no-any-return]

    def representation(self, inputs: Inputs, rows: np.ndarray, *, device: str | None = None) -> np.ndarray:
        """Coefficients of regions: those that are alike get the same prediction."""
        return self._of_tiles(lambda net, batch: net.coefficients(batch), inputs, rows, AT_ONCE, device)

    def encoded(
        self, inputs: Inputs, rows: np.ndarray, *, batch_size: int, device: str | None = None
    ) -> tuple[Inputs, dict[str, np.ndarray]]:
        """Coefficients in place of tiles, which are read once, and what stands in ``obsm`` beside a prediction."""
        coefficients = np.full((len(inputs), self.config.n_atoms), np.nan, np.float32)
        coefficients[rows] = self._of_tiles(
            lambda net, batch: net.coefficients(batch), inputs, rows, batch_size, device
        )
        beside = dict(zip(self.beside, (coefficients @ self.atoms, coefficients), strict=True))
        return Arrays({"coefficients": coefficients}), beside

    def _of_tiles(
        self, function: Any, inputs: Inputs, rows: np.ndarray | None, batch_size: int, device: str | None
    ) -> np.ndarray:
        """What a function of network and batch gives for rows, in their order."""
        rows = np.arange(len(inputs)) if rows is None else rows
        parts, found = [], []
        for part, values in self.run(function, inputs, rows, batch_size=at_once(batch_size, device), device=device):
            parts.append(part)
            found.append(values)
        order = np.argsort(np.concatenate(parts), kind="stable")
        values = np.concatenate(found)[order]
        return values[np.argsort(np.argsort(rows, kind="stable"))]  # type: ignore[no-any-return]

    def _constants(self, like: Any) -> tuple[Any, Any]:
        """Mean and standard deviation of pixels, (1, 3, 1, 1)."""
        import torch

        return tuple(  # type: ignore[return-value]
            torch.tensor(self.config.normalization[name], dtype=like.dtype, device=like.device).view(1, 3, 1, 1)
            for name in ("mean", "std")
        )
