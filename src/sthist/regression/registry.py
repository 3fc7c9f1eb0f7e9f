"""The models of one task by name, and what stands for them: a name, a config, a class, a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Generic, TypeVar

from sthist._tables.genes import closest
from sthist.regression.model import RegressionModel
from sthist.training.model import known_name

M = TypeVar("M", bound=RegressionModel)


@dataclass(frozen=True)
class Registry(Generic[M]):
    """Models of a task, which are imported when they are asked for."""

    package: str  # that their modules lie in
    models: Mapping[str, tuple[str, str]]  # module and class of each, by the name that verbs take
    base: Any  # the class that they all are of; mypy knows no type of an abstract one

    def model_class(self, name: str) -> type[M]:
        """The class of a model, by its name."""
        known = known_name(name, self.models)
        if known not in self.models:
            raise KeyError(
                f"There is no model {name!r}; there are {sorted(self.models)}.{closest(str(name), self.models)}"
            )
        module, found = self.models[known]
        return getattr(import_module(f"{self.package}.{module}"), found)  # type: ignore[no-any-return]

    def as_model(self, model: Any) -> M:
        """A model that is to be trained: of a name, of a config, or with the settings of one that is given."""
        if isinstance(model, self.base):
            return model.unfitted()
        if isinstance(model, type) and issubclass(model, self.base):
            return model()
        if isinstance(model, str):
            return self.model_class(model)()
        for name in self.models:
            found = self.model_class(name)
            if type(model) is found.config_class:
                return found(model)
        raise TypeError(
            f"model is the name of a model ({sorted(self.models)}), a model, or its config, not {type(model).__name__}."
        )

    def named(self, models: Any) -> dict[str, M]:
        """Models that are to be trained, one or several, by what a table calls them."""
        if isinstance(models, Mapping):
            return {str(name): self.as_model(each) for name, each in models.items()}
        listed = list(models) if isinstance(models, list | tuple) else [models]
        if not listed:
            raise ValueError("models= names none.")
        named: dict[str, M] = {}
        for each in listed:
            fresh = self.as_model(each)
            if fresh.called in named:
                raise ValueError(
                    f"There are several models {fresh.called!r}; give a mapping of what to call each: models="
                    f"{{'{fresh.called}': ..., '{fresh.called}, other settings': ...}}."
                )
            named[fresh.called] = fresh
        return named
