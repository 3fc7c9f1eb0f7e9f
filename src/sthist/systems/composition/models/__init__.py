"""One model per file, and their names."""

from __future__ import annotations

from typing import Any

from sthist.regression.registry import Registry
from sthist.systems.composition.model import CompositionModel

MODELS = {
    "mlp": ("mlp", "CompositionMLP"),
    "ridge": ("ridge", "CompositionRidge"),
    "hist2cell": ("hist2cell", "Hist2Cell"),
}
"""Module and class of each model, by the name that verbs take."""

REGISTRY: Registry[CompositionModel] = Registry(__name__, MODELS, CompositionModel)


def as_model(model: Any) -> CompositionModel:
    """A model that is to be trained: of a name, of a config, or with the settings of one that is given."""
    return REGISTRY.as_model(model)
