"""Ridge regression of composition: the baseline that every other model has to beat."""

from __future__ import annotations

from typing import ClassVar

from sthist.regression.ridge import RidgeModel
from sthist.systems.composition.model import CompositionModel


class CompositionRidge(CompositionModel, RidgeModel):
    """Linear regression with a penalty, on principal components of any stored embedding; predictions are at least 0.

    Parameters
    ----------
    config
        Settings, of :class:`RidgeConfig`.
    weights
        Of a trained model.

    Examples
    --------
    >>> import numpy as np, sthist
    >>> rng = np.random.default_rng(0)
    >>> features = rng.normal(size=(100, 5))
    >>> amounts = np.maximum(features @ rng.normal(size=(5, 3)), 0)
    >>> model = sthist.models.CompositionRidge().fit(features, amounts)
    >>> bool(model.predict(features).min() >= 0)
    True
    """

    system: ClassVar[str] = "composition-ridge"
