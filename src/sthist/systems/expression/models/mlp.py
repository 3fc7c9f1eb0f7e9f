"""A small network on stored embeddings: "UNI-MLP" of the comparisons, for any encoder."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from sthist.regression.collect import EmbeddingModel
from sthist.regression.data.features import standards
from sthist.regression.model import NetworkModel, RegressionConfig
from sthist.systems.expression.model import ExpressionModel

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from sthist.regression.data.inputs import Inputs
    from sthist.regression.data.targets import Targets


@dataclass(frozen=True)
class EmbeddingMLPConfig(RegressionConfig):
    """Settings of :class:`EmbeddingMLP`.

    Attributes
    ----------
    width
        Units of the hidden layer.
    dropout
        Part of them that is left out in training.
    dim
        Dimensions of the embeddings; found in training.
    """

    width: int = 512
    dropout: float = 0.1
    dim: int = 0


class EmbeddingMLP(EmbeddingModel, NetworkModel, ExpressionModel):
    """One hidden layer (GELU, dropout) on standardised embeddings, with the squared error as its loss.

    Published comparisons name it by its encoder ("UNI-MLP") and state no widths; these are ours.

    Parameters
    ----------
    config
        Settings.
    weights
        Of a trained model.

    Examples
    --------
    >>> import numpy as np, sthist
    >>> features = np.random.default_rng(0).normal(size=(60, 4))
    >>> model = sthist.models.EmbeddingMLP(sthist.models.EmbeddingMLPConfig(width=8))
    >>> model = model.fit(features, features[:, :2], training={"epochs": 2})
    >>> model.predict(features).shape
    (60, 2)
    """

    system: ClassVar[str] = "mlp"
    config_class: ClassVar[type] = EmbeddingMLPConfig
    config: EmbeddingMLPConfig
    default_training: ClassVar[dict[str, Any]] = {
        "epochs": 100,
        "batch_size": 64,
        "lr": 1e-3,
        "weight_decay": 1e-4,
        "optimizer": "radam",
        "patience": 10,
    }

    def settle(self, inputs: Inputs, targets: Targets, rows: np.ndarray) -> None:
        """The size of an embedding, and what standardises it."""
        features = inputs.take(rows)["spot"]
        self.config = replace(self.config, dim=features.shape[1])
        self._standards = standards(features)

    def make_net(self, n_outputs: int, mean: np.ndarray, scale: np.ndarray) -> nn.Module:
        """The network, with embeddings standardised before it."""
        import torch

        from sthist.nets import EmbeddingMLP as Network

        dim = self.config.dim
        net = Network(
            dim, n_outputs, hidden=self.config.width, dropout=self.config.dropout, mean=torch.from_numpy(mean)
        )
        return self.standardized(net, dim)
