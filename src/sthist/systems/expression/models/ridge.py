"""Ridge regression of expression: the baseline that every other model has to beat."""

from __future__ import annotations

from typing import ClassVar

from sthist.regression.ridge import RidgeModel
from sthist.systems.expression.model import ExpressionModel


class Ridge(RidgeModel, ExpressionModel):
    """Linear regression with a penalty, on principal components of any stored embedding; solved exactly, in seconds.

    Parameters
    ----------
    config
        Settings.
    weights
        Of a trained model.

    References
    ----------
    Jaume et al. 2024, "HEST-1k", whose benchmark has 256 components.

    Examples
    --------
    >>> import numpy as np, sthist
    >>> rng = np.random.default_rng(0)
    >>> features = rng.normal(size=(100, 5))
    >>> genes = features @ rng.normal(size=(5, 3))
    >>> model = sthist.models.Ridge(sthist.models.RidgeConfig(alpha=1e-3)).fit(features, genes)
    >>> bool(np.abs(model.predict(features) - genes).max() < 1e-3)
    True
    """

    system: ClassVar[str] = "ridge"
