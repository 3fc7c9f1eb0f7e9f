"""What every model has: a config of plain values, and a folder that it is saved to and loaded from."""

from __future__ import annotations

import dataclasses
import json
import math
from abc import ABC
from collections.abc import Iterable, Mapping
from importlib import import_module
from pathlib import Path
from types import UnionType
from typing import Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np

from sthist._disk import written_whole
from sthist._reading import read_object, reader, reading, require_file

WEIGHTS = "model.safetensors"
"""File of a saved model's weights."""


def weight_hash(provenance: Any) -> str | None:
    """Checksum of the weights in a provenance, also of several encoders that are joined; None where there is none."""
    if isinstance(provenance, Mapping):
        own = provenance.get("sha256")
        found = [str(own)] if own else [weight_hash(each) for each in provenance.values()]
    elif isinstance(provenance, list | tuple | np.ndarray):
        found = [weight_hash(each) for each in provenance]
    else:
        return None
    return "+".join(each for each in found if each) or None


SYSTEMS = {
    "annotator": ("sthist.systems.annotation.annotator", "Annotator"),
    "beer-lambert": ("sthist.systems.virtual_he.models.beer_lambert", "BeerLambert"),
    "bleep": ("sthist.systems.expression.models.bleep", "BLEEP"),
    "c2l": ("sthist.systems.synthesis.model", "C2L"),
    "clip": ("sthist.systems.expression.models.clip", "CLIP"),
    "composition-mlp": ("sthist.systems.composition.models.mlp", "CompositionMLP"),
    "composition-ridge": ("sthist.systems.composition.models.ridge", "CompositionRidge"),
    "deepspot": ("sthist.systems.expression.models.deepspot", "DeepSpot"),
    "genst": ("sthist.systems.expression.models.genst", "GenST"),
    "histogene": ("sthist.systems.expression.models.sequence.histogene", "HisToGene"),
    "hist2cell": ("sthist.systems.composition.models.hist2cell", "Hist2Cell"),
    "istar": ("sthist.systems.expression.models.istar.model", "IStar"),
    "mclstexp": ("sthist.systems.expression.models.mclstexp", "McLSTExp"),
    "mlp": ("sthist.systems.expression.models.mlp", "EmbeddingMLP"),
    "moco-v3": ("sthist.systems.cells.moco.model", "MoCoV3"),
    "pix2pix": ("sthist.systems.virtual_he.models.pix2pix", "Pix2Pix"),
    "scellst": ("sthist.systems.cells.model", "SCellST"),
    "resnet": ("sthist.systems.expression.models.resnet", "ResNet"),
    "ridge": ("sthist.systems.expression.models.ridge", "Ridge"),
    "stnet": ("sthist.systems.expression.models.stnet", "STNet"),
    "thitogene": ("sthist.systems.expression.models.sequence.thitogene", "THItoGene"),
    "st2he": ("sthist.systems.virtual_he.models.st2he", "ST2HE"),
}
"""Module and class of each system, by the name in its ``config.json``; one from elsewhere adds itself."""


PUBLISHED = ("st2he-small",)
"""Models that come with the package, by name."""


BUILT_IN = ("beer-lambert",)
"""Systems whose models need no weights, so that a name is enough."""


def known_name(name: Any, known: Iterable[str]) -> Any:
    """The one of some names that is meant, in whatever case and with ``_`` for ``-``; or the name as it is."""
    alike = {each.casefold().replace("_", "-"): each for each in known}
    return alike.get(name.casefold().replace("_", "-"), name) if isinstance(name, str) else name


class Model(ABC):
    """Base of the models: ``config`` (a dataclass of plain values) and the verbs save and load.

    A folder holds ``config.json`` (system, version of sthist, config) and, for a model with weights,
    ``model.safetensors``. Nothing is ever unpickled.
    """

    system: ClassVar[str]
    config_class: ClassVar[type]

    def __init__(self, config: Any = None) -> None:
        self.config = self.config_class() if config is None else config

    def __repr__(self) -> str:
        return f"{type(self).__name__} ({self.system}): {'; '.join(self._about())}"

    def _about(self) -> list[str]:
        """What it is, in a few words each."""
        return ["trained" if getattr(self, "is_fitted", False) else "not trained"]

    def save(self, folder: str | Path) -> None:
        """Write the model to a folder, which is made.

        Parameters
        ----------
        folder
            Where to.
        """
        from sthist import __version__

        content = {"system": self.system, "sthist": __version__, "config": dataclasses.asdict(self.config)}
        with written_whole(Path(folder) / "config.json") as partial:
            partial.write_text(json.dumps(content, indent=2))

    @classmethod
    def load(cls, folder: str | Path) -> Model:
        """Read a model of this system from a folder.

        Parameters
        ----------
        folder
            Made by :meth:`save`.

        Raises
        ------
        FileNotFoundError
            If there is no model.
        ValueError
            If it is a model of another system.
        """
        model = load(folder)
        if not isinstance(model, cls):
            raise ValueError(f"{folder} holds a model of system {model.system!r}, not {cls.system!r}.")
        return model

    @classmethod
    def _from_folder(cls, folder: Path, config: dict[str, Any]) -> Model:
        return cls(cls.config_class(**config))


@reader
def load(folder: str | Path, **changes: Any) -> Model:
    """Read a model of any system from the folder that it was saved to.

    Parameters
    ----------
    folder
        Made by a model's ``save``; or the name of a model that comes with the package, ``"beer-lambert"`` or
        ``"st2he-small"``.
    **changes
        Fields of its config that have changed since, such as where a backbone lies.

    Returns
    -------
    The model.

    Raises
    ------
    FileNotFoundError
        If there is no ``config.json``.
    ValueError
        If its system is unknown, its config does not fit, or one of its files is damaged; the message names the file.

    Examples
    --------
    >>> import tempfile, sthist
    >>> folder = tempfile.mkdtemp()
    >>> sthist.models.BeerLambert().save(folder)
    >>> sthist.models.load(folder).system
    'beer-lambert'
    """
    name = known_name(str(folder), (*BUILT_IN, *PUBLISHED))
    if name in BUILT_IN and not Path(folder).exists():
        module, model = SYSTEMS[name]
        built_in = getattr(import_module(module), model)
        return built_in(built_in.config_class(**changes))  # type: ignore[no-any-return]
    if name in PUBLISHED and not Path(folder).exists():
        folder = Path(__file__).parents[1] / "systems" / "virtual_he" / "published" / name
    path = Path(folder) / "config.json"
    if not path.exists():
        raise FileNotFoundError(
            f"No model in {folder}: it has no config.json. Models that come with the package are "
            f"{[*BUILT_IN, *PUBLISHED]}."
        )
    content = read_object(path)
    if not isinstance(content.get("system"), str) or content["system"] not in SYSTEMS:
        raise ValueError(f"{path}: 'system' is {content.get('system')!r:.80}; known are {sorted(SYSTEMS)}.")
    if not isinstance(content.get("config"), dict):
        raise ValueError(
            f"{path}: 'config' is {content.get('config')!r:.80}; it should be an object with the model's settings. "
            "Copy the folder of the model again."
        )
    module, name = SYSTEMS[content["system"]]
    model_class = getattr(import_module(module), name)
    content["config"] |= changes
    known = {field.name for field in dataclasses.fields(model_class.config_class)}
    unknown = sorted(set(content["config"]) - known)
    if unknown:
        raise ValueError(f"{path} has settings that this version of sthist does not know: {unknown}.")
    # JSON has no tuples.
    config = {name: tuple(value) if isinstance(value, list) else value for name, value in content["config"].items()}
    require_types(path, model_class.config_class, config)
    with reading(path):
        model_class.config_class(**config)  # its own checks, which name no file
    return model_class._from_folder(Path(folder), config)


def write_weights(path: Path, weights: Mapping[str, np.ndarray]) -> None:
    """Write arrays by name as safetensors."""
    from safetensors.numpy import save_file

    save_file({name: np.array(value, order="C") for name, value in weights.items()}, path)


def read_weights(folder: Path) -> dict[str, np.ndarray]:
    """Read the arrays of a saved model, all of them finite."""
    from safetensors.numpy import load_file

    path = folder / WEIGHTS
    if not path.exists() and not path.is_symlink():
        raise FileNotFoundError(f"{folder} has no {WEIGHTS}: the model was not saved completely.")
    with reading(path):
        require_file(path)
        weights = load_file(path)
        for name, values in weights.items():
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                raise ValueError(f"{path}: {name!r} holds NaN or infinite numbers. Is it damaged? Copy it again.")
    return weights


def require_types(path: Path, config_class: type, config: Mapping[str, Any]) -> None:
    """Refuse values of a config that are of another type than its fields."""
    hints = get_type_hints(config_class)
    for name, value in config.items():
        if not _fits(value, hints[name]):
            hint = hints[name]
            wanted = hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
            raise ValueError(
                f"{path}: {name!r} is {value!r:.80}; it should be {wanted}. Copy the model's folder again."
            )


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value of JSON is of a type; numbers are finite."""
    kind, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if kind in (Union, UnionType):
        return any(_fits(value, each) for each in inner)
    if kind is Literal:
        return value in inner
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if kind is tuple:
        items = inner[:1] * len(value) if inner[1:] == (...,) and isinstance(value, tuple) else inner
        return isinstance(value, tuple) and len(value) == len(items) and all(map(_fits, value, items))
    if kind is dict or hint is dict:
        return isinstance(value, dict) and all(_fits(each, inner[1] if inner else Any) for each in value.values())
    if dataclasses.is_dataclass(hint):  # made of an object by its owner
        return isinstance(value, dict | hint)
    return not isinstance(hint, type) or isinstance(value, hint)
