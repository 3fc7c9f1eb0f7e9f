"""Models that look expression up: they keep that of the training spots, and where these lie in the common space."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sthist._settings import settings
from sthist.regression.pooled import PooledConfig, PooledModel
from sthist.systems.expression.model import ExpressionModel

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sthist.nets import Retrieval
    from sthist.regression.data.inputs import Inputs
    from sthist.regression.data.targets import Targets
    from sthist.regression.module import RegressionTraining

BANK = "bank."
"""Before the names of what is kept of the training spots."""


@dataclass(frozen=True)
class RetrievalConfig(PooledConfig):
    """Settings of models that look expression up, beside those of :class:`sthist.models.PooledConfig`.

    Attributes
    ----------
    width
        Length of an embedding in the common space.
    temperature
        By which similarities are divided in the loss.
    k
        How many training spots a prediction is the mean of.
    weighting
        ``"average"``, ``"weighted"``, ``"inverse-square"`` or ``"simple"`` (the nearest alone), as
        :meth:`sthist.nets.Retrieval.predict` has them.
    """

    width: int = 256
    temperature: float = 1.0
    k: int = 50
    weighting: Literal["simple", "average", "weighted", "inverse-square"] = "average"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.k < 1:
            raise ValueError(f"k is {self.k!r}; at least one training spot is needed.")


class RetrievalModel(PooledModel, ExpressionModel):
    """Base of the models that look expression up."""

    config: RetrievalConfig
    _bank: Retrieval | None = None
    _batch_size: int = 0

    def _fit(
        self,
        inputs: Inputs,
        targets: Targets,
        rows: np.ndarray,
        watched: np.ndarray,
        options: RegressionTraining,
        where: dict[str, Any],
    ) -> None:
        self._batch_size, self._bank = options.batch_size, None
        super()._fit(inputs, targets, rows, watched, options, where)

    def after_training(self, inputs: Inputs, targets: Targets, rows: np.ndarray, device: str) -> None:
        """Keep the training spots: their embeddings, expression, and which genes their samples have measured."""
        from scipy.sparse import csr_matrix

        order = np.random.default_rng(0).permutation(rows)
        expression = csr_matrix(targets.values[order], dtype=np.float32)
        self.weights |= {
            BANK + "keys": self._keys(inputs, targets, order, device),
            BANK + "data": expression.data,
            BANK + "indices": expression.indices.astype(np.int32),
            BANK + "indptr": expression.indptr.astype(np.int64),
        }
        if not targets.complete:
            self.weights |= {
                BANK + "measured": targets.measured,
                BANK + "group": targets.sample[order].astype(np.int32),
            }

    def _keys(self, inputs: Inputs, targets: Targets, order: np.ndarray, device: str) -> np.ndarray:
        """Embeddings of the expression of rows, (n, width) float32, in batches like those of the training."""
        import torch

        net = self.net.to(device).eval()
        inner: Any = net.net if self.config.frozen else net  # type: ignore[union-attr]
        others = self.with_expression(inputs)
        keys = np.empty((len(order), self.config.width), np.float32)
        size = min(self._batch_size, len(order))
        with torch.inference_mode():
            for start in range(0, len(order), size):
                # A spot may be seen among the others of its batch: the last one is as large as the rest.
                mine = np.arange(min(start, len(order) - size), min(start + size, len(order)))
                part = order[mine]
                batch = {name: torch.from_numpy(values[part]).to(device) for name, values in others.items()}
                mask = targets.mask(part)
                found = inner.expression_embedding(
                    batch,
                    torch.from_numpy(targets.dense(part)).to(device),
                    None if mask is None else torch.from_numpy(mask).to(device),
                )
                keys[mine] = found.float().cpu().numpy()
        net.cpu()
        return keys

    def with_expression(self, inputs: Inputs) -> dict[str, np.ndarray]:
        """What an embedding of expression needs of all rows beside it; nothing by default."""
        return {}

    @property
    def bank(self) -> Retrieval:
        """The training spots."""
        if self._bank is None:
            from scipy.sparse import csr_matrix

            from sthist.nets import Retrieval

            kept = {name.removeprefix(BANK): each for name, each in self.weights.items() if name.startswith(BANK)}
            if "keys" not in kept:
                raise ValueError(f"This {type(self).__name__} has no training spots: its training was not finished.")
            shape = (len(kept["keys"]), len(self.config.outputs))
            expression = csr_matrix((kept["data"], kept["indices"], kept["indptr"]), shape=shape)
            self._bank = Retrieval(kept["keys"], expression, measured=kept.get("measured"), group=kept.get("group"))
        return self._bank

    def _predict(
        self, inputs: Inputs, rows: np.ndarray, batch_size: int, device: str | None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        options = {"weights": self.config.weighting, "device": settings.torch_device(device)}
        for part, embeddings in self.run(
            lambda net, batch: net(batch), inputs, rows, batch_size=batch_size, device=device
        ):
            yield part, self.bank.predict(embeddings, self.config.k, **options)  # type: ignore[arg-type]

    def _require_weights(self) -> None:
        super()._require_weights()
        if BANK + "keys" in self.weights:
            _ = self.bank
