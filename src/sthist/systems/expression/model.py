"""What the models of expression share."""

from __future__ import annotations

from typing import ClassVar

from sthist.regression.model import RegressionModel


class ExpressionModel(RegressionModel):
    """Base of the models of expression; made by :func:`sthist.tl.train_expression`."""

    output: ClassVar[str] = "gene"
    makes_maps: ClassVar[bool] = False
    """Whether it predicts every place of a slide, where no regions are named."""

    @property
    def genes(self) -> tuple[str, ...]:
        """The genes that it predicts, in the order of the columns."""
        return tuple(self.config.outputs)
