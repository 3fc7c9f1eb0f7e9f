"""ST-Net: a network for images that is trained whole, and begins with the mean expression."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from sthist.regression.pooled import PooledConfig, PooledModel
from sthist.systems.expression.model import ExpressionModel

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class STNetConfig(PooledConfig):
    """Settings of :class:`STNet`, beside those of :class:`sthist.models.PooledConfig`.

    Attributes
    ----------
    symmetries
        Predict the mean over the eight flips and quarter turns of a tile.
    reduction
        ``"mean"`` of the squared errors of a batch, or the published ``"sum"`` over its spots.
    """

    backbone: str = "densenet121"
    symmetries: bool = True
    reduction: Literal["mean", "sum"] = "mean"


class STNet(PooledModel, ExpressionModel):
    """ST-Net (He et al. 2020): all layers of a DenseNet-121 and a linear head, which starts at the mean expression.

    It is trained as in GenST's comparison, with RAdam. The published training is
    ``STNetConfig(reduction="sum")`` with ``training={"optimizer": "sgd", "lr": 1e-6, "weight_decay": 0,
    "batch_size": 32, "epochs": 50, "patience": None}``.

    Parameters
    ----------
    config
        Settings.
    weights
        Of a trained model.

    Examples
    --------
    >>> import numpy as np, sthist
    >>> tiles = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    >>> config = sthist.models.STNetConfig(backbone="test_resnet", pretrained=False)
    >>> model = sthist.models.STNet(config).fit(
    ...     tiles, tiles.mean((1, 2)), training={"epochs": 1, "batch_size": 4}
    ... )
    >>> model.predict(tiles).shape
    (8, 3)
    """

    system: ClassVar[str] = "stnet"
    config_class: ClassVar[type] = STNetConfig
    config: STNetConfig
    default_training: ClassVar[dict[str, Any]] = {
        "epochs": 100,
        "batch_size": 64,
        "lr": 1e-4,
        "weight_decay": 1e-4,
        "optimizer": "radam",
        "patience": 10,
        "drop_last": True,
    }

    def make_head(self, trunk: nn.Module | None, n_outputs: int, mean: Any) -> nn.Module:
        """The network on a trunk, or on stored features."""
        from sthist.nets import STNet as Network

        options = {"symmetries": self.config.symmetries, "reduction": self.config.reduction}
        return Network(trunk, self.config.n_features, n_outputs, mean=mean, **options)  # type: ignore[arg-type]
