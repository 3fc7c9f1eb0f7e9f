"""Work in blocks that can be stopped at any moment, and is continued by the same call."""

from __future__ import annotations

import json
import shutil
import uuid
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from sthist._settings import logger

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


class Painter(Protocol):
    """What makes the values of a block, whoever asks for it and whenever; it can be pickled."""

    def paint(self, block: Any) -> Any:
        """The values."""


class Resumable(ABC):
    """A result in a folder, written block by block; a file marks each block that is done.

    Parameters
    ----------
    folder
        Where it is built. What is found there is continued if it was made from the same facts, and deleted otherwise.
    name
        Of the result.
    facts
        JSON values that determine the result; kept in ``manifest.json``.
    """

    unit: ClassVar[str] = "MP"
    """Of :meth:`amount`."""

    def __init__(self, folder: Path, name: str, facts: Mapping[str, Any]) -> None:
        # Absolute: a worker of a cluster has another working folder.
        self.folder, self.name = folder.absolute(), name
        self._done = self.folder / "done"
        manifest = json.loads(json.dumps(dict(facts)))
        if self._continues(manifest):
            n = len(self.blocks())
            logger.info("Continuing %s: %d of %d blocks are done.", name, n - len(self.pending()), n)
        else:
            shutil.rmtree(self.folder, ignore_errors=True)
            identity = uuid.uuid4().hex
            self._create(identity)
            self._done.mkdir()
            # Last: without it the folder is not continued.
            (self.folder / "manifest.json").write_text(json.dumps(manifest | {"identity": identity}))
        self._identity = self._marked_identity()

    @abstractmethod
    def blocks(self) -> list[Any]:
        """All blocks, each with a ``name``."""

    @abstractmethod
    def amount(self, block: Any) -> float:
        """How much of the work a block is."""

    @abstractmethod
    def write(self, block: Any, values: Any) -> None:
        """Store what a block holds and mark it done."""

    @abstractmethod
    def _create(self, identity: str) -> None:
        """Make the folder, and the empty result in it."""

    def pending(self) -> list[Any]:
        """The blocks that are not done."""
        done = {path.name for path in self._done.iterdir()}
        return [block for block in self.blocks() if block.name not in done]

    def mark(self, block: Any) -> None:
        """A block is done: call it when its values are written."""
        (self._done / block.name).touch()

    def require_current(self) -> None:
        """Raise a RuntimeError if other work has taken the place of this one."""
        if self._marked_identity() != self._identity:
            msg = f"{self.folder} holds other work by now; nothing is written to it."
            raise RuntimeError(msg)

    def _is_of(self, identity: str) -> bool:
        """Whether the result in the folder is the one that the marks are of."""
        return True

    def _marked_identity(self) -> str | None:
        """The identity of what lies in the folder; None where there is nothing, or nothing whole."""
        try:
            return str(json.loads((self.folder / "manifest.json").read_text())["identity"])
        except (FileNotFoundError, json.JSONDecodeError):
            return None

    def _continues(self, manifest: dict[str, Any]) -> bool:
        try:
            found = json.loads((self.folder / "manifest.json").read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return False
        if not self._is_of(found.pop("identity", "")):
            return False
        if found != manifest:
            logger.info(
                "Starting %s anew: what is in %s was made from other input or settings.", self.name, self.folder
            )
        return bool(found == manifest)
