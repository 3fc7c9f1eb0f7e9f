"""One model per file, and their names."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sthist._tables.genes import closest
from sthist.training.model import known_name

if TYPE_CHECKING:
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
}
"""Module and class of each model, by the name that verbs take."""


def model_class(name: str) -> type[ExpressionModel]:
    """The class of a model, by its name."""
    known = known_name(name, MODELS)
    if known not in MODELS:
        raise KeyError(f"There is no model {name!r}; there are {sorted(MODELS)}.{closest(str(name), MODELS)}")
    module, found = MODELS[known]
    return getattr(import_module(f"{__name__}.{module}"), found)  # type: ignore[no-any-return]


def as_model(model: Any) -> ExpressionModel:
    """A model that is to be trained: of a name, of a config, or with the settings of one that is given."""
    from sthist.systems.expression.model import ExpressionModel

    if isinstance(model, ExpressionModel):
        return model.unfitted()
    if isinstance(model, type) and issubclass(model, ExpressionModel):
        return model()
    if isinstance(model, str):
        return model_class(model)()
    for name in MODELS:
        if type(model) is model_class(name).config_class:
            return model_class(name)(model)
    raise TypeError(
        f"model is the name of a model ({sorted(MODELS)}), a model, or its config, not {type(model).__name__}."
    )
