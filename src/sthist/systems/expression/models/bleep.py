"""BLEEP: tiles and expression in one space, where the expression of a tile is looked up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from sthist.systems.expression.retrieval import RetrievalConfig, RetrievalModel

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class BLEEPConfig(RetrievalConfig):
    """Settings of :class:`BLEEP`, beside those of :class:`sthist.models.RetrievalConfig`.

    Attributes
    ----------
    dropout
        Share of the projections' units that is left out in training.
    """

    dropout: float = 0.1


class BLEEP(RetrievalModel):
    """BLEEP (Xie et al. 2023): tiles and expression in one space, where a tile's nearest training spots are averaged.

    The published trunk is a ResNet-50. Training stops by the loss of held-out groups; the repository has 4 epochs.

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
    >>> config = sthist.models.BLEEPConfig(backbone="test_resnet", pretrained=False, k=3)
    >>> model = sthist.models.BLEEP(config).fit(
    ...     tiles, tiles.mean((1, 2)), training={"epochs": 1, "batch_size": 4}
    ... )
    >>> model.predict(tiles).shape
    (8, 3)
    """

    system: ClassVar[str] = "bleep"
    config_class: ClassVar[type] = BLEEPConfig
    config: BLEEPConfig
    default_training: ClassVar[dict[str, Any]] = {
        "epochs": 100,
        "batch_size": 256,
        "lr": 1e-3,
        "weight_decay": 1e-3,
        "optimizer": "adamw",
        "patience": 10,
        "drop_last": True,
    }

    def make_head(self, trunk: nn.Module | None, n_outputs: int, mean: Any) -> nn.Module:
        """The network on a trunk, or on stored features."""
        from sthist.nets import BLEEP as Network

        options = {"width": self.config.width, "dropout": self.config.dropout, "temperature": self.config.temperature}
        return Network(trunk, self.config.n_features, n_outputs, **options)  # type: ignore[arg-type]
