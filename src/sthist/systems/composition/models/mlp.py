"""Composition from stored embeddings of pathology models that are left as they are, by a deep and narrow network."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from sthist.regression.collect import EmbeddingModel
from sthist.regression.data.features import standards
from sthist.regression.data.inputs import as_inputs
from sthist.regression.model import PREDICTED_AT_ONCE, NetworkModel, RegressionConfig, placed
from sthist.systems.composition.model import CompositionModel

if TYPE_CHECKING:
    from torch import nn

    from sthist.regression.data.inputs import Inputs
    from sthist.regression.data.targets import Targets
    from sthist.regression.module import RegressionTraining


@dataclass(frozen=True)
class CompositionMLPConfig(RegressionConfig):
    """Settings of :class:`CompositionMLP`. The paper publishes none of these numbers; they are ours.

    Attributes
    ----------
    widths
        Units of each hidden layer; one more layer gives the types.
    dropout
        Part of them that is left out in training.
    l1, l2
        Weights of the absolute error and of the correlation, beside the squared error.
    correlation
        ``"spots"``: correlation of each type over the spots of a batch, which is what the scores are; ``"types"``: of
        each spot over its types.
    members
        Networks of different beginnings, whose mean is predicted; from two on, how far they differ is written, too.
    dim
        Dimensions of the embeddings; found in training.
    """

    widths: tuple[int, ...] = (1024, 1024, 512, 512, 256, 256)
    dropout: float = 0.1
    l1: float = 1.0
    l2: float = 1.0
    correlation: Literal["spots", "types"] = "spots"
    members: int = 1
    dim: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "widths", tuple(self.widths))
        if self.correlation not in ("spots", "types"):
            raise ValueError(f"correlation is {self.correlation!r}; it is 'spots' or 'types'.")
        if not (isinstance(self.members, int) and self.members >= 1):
            raise ValueError(f"members is {self.members!r}; at least 1 is needed.")
        if min(self.l1, self.l2, self.dropout) < 0 or self.dropout >= 1:
            raise ValueError(f"l1, l2 and dropout are {self.l1}, {self.l2} and {self.dropout}; dropout is below 1.")


class CompositionMLP(CompositionModel, EmbeddingModel, NetworkModel):
    """Seven linear layers with SiLU on standardised embeddings (Sun, Zhu and Qiu 2025).

    Embeddings of several encoders are put beside each other. They and, so that the terms of the loss weigh the same
    whatever the amounts, the targets are standardised by the training rows: targets by one number for all types.

    Parameters
    ----------
    config
        Settings.
    weights
        Of a trained model.

    References
    ----------
    Sun, Zhu and Qiu 2025, arXiv:2507.07013.

    Examples
    --------
    >>> import numpy as np, sthist
    >>> features = np.random.default_rng(0).normal(size=(60, 4))
    >>> model = sthist.models.CompositionMLP(sthist.models.CompositionMLPConfig(widths=(8, 8), members=2))
    >>> model = model.fit(features, np.abs(features[:, :2]), training={"epochs": 2})
    >>> model.predict(features).shape, model.uncertainty(features).shape
    ((60, 2), (60, 2))
    """

    system: ClassVar[str] = "composition-mlp"
    config_class: ClassVar[type] = CompositionMLPConfig
    config: CompositionMLPConfig
    default_training: ClassVar[dict[str, Any]] = {
        "epochs": 100,
        "batch_size": 512,
        "lr": 1e-4,
        "weight_decay": 1e-4,
        "lr_end": 1e-6,
        "drop_last": True,  # a correlation over the few rows that are left says nothing
    }

    def options(self, training: Any) -> RegressionTraining:
        """How it is trained: what is given, over its defaults; batches are large enough for a correlation."""
        found = super().options(training)
        if self._correlates and found.batch_size < FEWEST:
            raise ValueError(f"batch_size is {found.batch_size}, and {NEEDS_ROWS}")
        return found

    @property
    def _correlates(self) -> bool:
        return self.config.l2 > 0 and self.config.correlation == "spots"

    def settle(self, inputs: Inputs, targets: Targets, rows: np.ndarray) -> None:
        """The size of an embedding, and what standardises it."""
        if self._correlates and len(rows) < FEWEST:
            raise ValueError(f"There are {len(rows)} rows to train on, and {NEEDS_ROWS}")
        features = inputs.take(rows)["spot"]
        self.config = replace(self.config, dim=features.shape[1])
        self._standards = standards(features)

    def make_net(self, n_outputs: int, mean: np.ndarray, scale: np.ndarray) -> nn.Module:
        """The networks, with embeddings standardised before them and amounts brought back after them."""
        import torch

        from sthist.nets import CompositionMLP as Network
        from sthist.nets import Ensemble

        dim, settings = self.config.dim, self.config
        size = float(np.sqrt((scale.astype(np.float64) ** 2).mean())) or 1.0

        def member() -> nn.Module:
            return Network(
                dim,
                n_outputs,
                widths=settings.widths,
                dropout=settings.dropout,
                l1=settings.l1,
                l2=settings.l2,
                correlation=settings.correlation,
                mean=torch.from_numpy((mean / size).astype(np.float32)),
            )

        net = Ensemble([member() for _ in range(settings.members)], size)
        return self.standardized(net, dim)

    def uncertainty(self, inputs: Any, rows: np.ndarray | None = None, *, device: str | None = None) -> Any:
        """Standard deviation of what the members predict of rows, (n, types) float32; None where there is one alone."""
        if self.config.members == 1:
            return None
        found = as_inputs(inputs)
        rows = np.arange(len(found)) if rows is None else rows
        return placed(self.run(_spread, found, rows, batch_size=PREDICTED_AT_ONCE, device=device), rows)


FEWEST = 8
"""Rows of a batch below which a correlation over them says nothing."""

NEEDS_ROWS = (
    f"the correlation over spots, a part of the loss, asks for {FEWEST}. Set l2=0 or correlation='types' in the "
    "CompositionMLPConfig, or take 'ridge'."
)


def _spread(net: Any, batch: dict[str, Any]) -> Any:
    return net.net.spread(net.standard(batch))
