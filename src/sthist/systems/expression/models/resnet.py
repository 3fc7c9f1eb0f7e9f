"""A ResNet that is trained whole on the absolute error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from sthist.regression.pooled import PooledConfig, PooledModel
from sthist.systems.expression.model import ExpressionModel

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class ResNetConfig(PooledConfig):
    """Settings of :class:`ResNet`: those of :class:`sthist.models.PooledConfig`."""


class ResNet(PooledModel, ExpressionModel):
    """All layers of a ResNet-50 and a linear head, with the absolute error as loss: the predictor of C2L-ST.

    The learning rate falls from 1e-3 to 1e-5 as a cosine.

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
    >>> config = sthist.models.ResNetConfig(backbone="test_resnet", pretrained=False)
    >>> model = sthist.models.ResNet(config).fit(
    ...     tiles, tiles.mean((1, 2)), training={"epochs": 1, "batch_size": 4}
    ... )
    >>> model.predict(tiles).shape
    (8, 3)
    """

    system: ClassVar[str] = "resnet"
    config_class: ClassVar[type] = ResNetConfig
    config: ResNetConfig
    default_training: ClassVar[dict[str, Any]] = {
        "epochs": 200,
        "batch_size": 64,
        "lr": 1e-3,
        "lr_end": 1e-5,
        "weight_decay": 1e-4,
        "optimizer": "adamw",
        "drop_last": True,
    }

    def make_head(self, trunk: nn.Module | None, n_outputs: int, mean: Any) -> nn.Module:
        """The network on a trunk, or on stored features."""
        from sthist.nets import ResNetRegressor

        return ResNetRegressor(trunk, self.config.n_features, n_outputs, mean=mean)
