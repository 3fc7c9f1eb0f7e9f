"""What every model has: a config of plain values, and a folder that it is saved to and loaded from."""

from __future__ import annotations

import dataclasses
import json
from abc import ABC
from collections.abc import Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from sthist._disk import written_whole


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
    "pix2pix": ("sthist.systems.virtual_he.models.pix2pix", "Pix2Pix"),
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
        If its system is unknown, or its config does not fit.

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
    content = json.loads(path.read_text())
    if content.get("system") not in SYSTEMS:
        raise ValueError(f"{path} names the system {content.get('system')!r}; known are {sorted(SYSTEMS)}.")
    module, name = SYSTEMS[content["system"]]
    model_class = getattr(import_module(module), name)
    content["config"] |= changes
    known = {field.name for field in dataclasses.fields(model_class.config_class)}
    unknown = sorted(set(content["config"]) - known)
    if unknown:
        raise ValueError(f"{path} has settings that this version of sthist does not know: {unknown}.")
    # JSON has no tuples.
    config = {name: tuple(value) if isinstance(value, list) else value for name, value in content["config"].items()}
    return model_class._from_folder(Path(folder), config)
