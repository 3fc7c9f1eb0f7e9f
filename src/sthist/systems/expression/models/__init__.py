"""One model per file, and their names."""

from __future__ import annotations

from typing import Any

from sthist.regression.registry import Registry
from sthist.systems.expression.model import ExpressionModel

MODELS = {
    "ridge": ("ridge", "Ridge"),
    "mlp": ("mlp", "EmbeddingMLP"),
    "deepspot": ("deepspot", "DeepSpot"),
    "stnet": ("stnet", "STNet"),
    "resnet": ("resnet", "ResNet"),
    "bleep": ("bleep", "BLEEP"),
    "mclstexp": ("mclstexp", "McLSTExp"),
    "genst": ("genst", "GenST"),
    "clip": ("clip", "CLIP"),
    "histogene": ("sequence.histogene", "HisToGene"),
    "istar": ("istar.model", "IStar"),
    "thitogene": ("sequence.thitogene", "THItoGene"),
}
"""Module and class of each model, by the name that verbs take."""


REGISTRY: Registry[ExpressionModel] = Registry(__name__, MODELS, ExpressionModel)


def as_model(model: Any) -> ExpressionModel:
    """A model that is to be trained: of a name, of a config, or with the settings of one that is given."""
    return REGISTRY.as_model(model)
