"""What the models of composition share: amounts are not negative, and are proportions or abundances."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from sthist.regression.model import PREDICTED_AT_ONCE, RegressionModel

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sthist.regression.data.inputs import Inputs


class CompositionModel(RegressionModel):
    """Base of the models of composition, to stand first among several; made by :func:`sthist.tl.train_composition`."""

    output: ClassVar[str] = "cell type"

    @property
    def types(self) -> tuple[str, ...]:
        """The cell types that it predicts, in the order of the columns."""
        return tuple(self.config.outputs)

    @property
    def quantity(self) -> str | None:
        """What it was trained on: ``"proportions"`` or ``"abundances"``; None where arrays were fitted."""
        return self.config.training.get("quantity")  # type: ignore[no-any-return]

    def predict_batches(
        self, inputs: Inputs, rows: np.ndarray, *, batch_size: int = PREDICTED_AT_ONCE, device: str | None = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Rows and what is predicted of them, at least 0."""
        for part, values in super().predict_batches(inputs, rows, batch_size=batch_size, device=device):
            yield part, np.maximum(values, 0)

    def uncertainty(self, inputs: Any, rows: np.ndarray, *, device: str | None = None) -> np.ndarray | None:
        """Standard deviation of what the members of an ensemble predict, (n, types); None where there is one alone."""
        return None
