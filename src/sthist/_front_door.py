"""Names of a namespace whose definitions lie elsewhere, imported when they are first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


def front_door(places: dict[str, list[str]]) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """``__getattr__``, ``__dir__`` and ``__all__`` of a namespace, from modules below ``sthist`` to their public names.

    ``lazy_loader.attach`` looks below the namespace itself; given the parent package, it leaves every name there, too.
    """
    module_of = {name: f"sthist.{module}" for module, names in places.items() for name in names}

    def __getattr__(name: str) -> Any:
        if name not in module_of:
            raise AttributeError(f"There is no {name!r} here; there are {sorted(module_of)}.")
        return getattr(import_module(module_of[name]), name)

    return __getattr__, lambda: sorted(module_of), sorted(module_of)
