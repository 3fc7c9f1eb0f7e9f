"""Work in blocks that can be stopped at any moment, and is continued by the same call."""

from __future__ import annotations

import json
import shutil
import uuid
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from sthist._disk import written_whole
from sthist._settings import logger

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


class Reopening:
    """Is pickled without what belongs to one process, such as a lock or an open array, and opens it again elsewhere."""

    _of_process: ClassVar[str]  # name of that attribute

    def _open(self) -> Any:
        """A new one."""
        raise NotImplementedError

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != self._of_process}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        setattr(self, self._of_process, self._open())


class BlockWorker(Reopening, ABC):
    """What computes the values of a block: the same ones whoever asks, wherever and whenever; it can be pickled."""

    @abstractmethod
    def compute(self, block: Any) -> Any:
        """The values."""


class Resumable(Reopening, ABC):
    """A result in a folder, written block by block; a file marks each block that is done.

    What is in the folder is continued if it was made from the same facts (JSON values that determine the result, kept
    in ``manifest.json``), and deleted otherwise.
    """

    unit: ClassVar[str] = "MP"  # of :meth:`amount`

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
            with written_whole(self.folder / "manifest.json") as partial:
                partial.write_text(json.dumps(manifest | {"identity": identity}))
        self._identity = self._manifest().get("identity")
        setattr(self, self._of_process, self._open())

    @abstractmethod
    def blocks(self) -> list[Any]:
        """All blocks, each with a ``name``."""

    @abstractmethod
    def amount(self, block: Any) -> float:
        """How much of the work a block is."""

    @abstractmethod
    def _store(self, block: Any, values: Any) -> None:
        """Keep what a block holds."""

    @abstractmethod
    def _create(self, identity: str) -> None:
        """Make the folder, and the empty result in it."""

    def pending(self) -> list[Any]:
        """The blocks that are not done."""
        done = {path.name for path in self._done.iterdir()}
        return [block for block in self.blocks() if block.name not in done]

    def write(self, block: Any, values: Any) -> None:
        """Store what a block holds and mark it done."""
        self._store(block, values)
        (self._done / block.name).touch()

    def require_current(self) -> None:
        """Raise a RuntimeError if other work has taken the place of this one."""
        if self._manifest().get("identity") != self._identity:
            raise RuntimeError(f"{self.folder} holds other work by now; nothing is written to it.")

    def _is_of(self, identity: str) -> bool:
        """Whether the result in the folder is the one that the marks are of."""
        return True

    def _manifest(self) -> dict[str, Any]:
        """Facts and identity of what lies in the folder; empty where there is nothing, or nothing whole."""
        try:
            return dict(json.loads((self.folder / "manifest.json").read_text()))
        except (FileNotFoundError, json.JSONDecodeError):
            return {}

    def _continues(self, manifest: dict[str, Any]) -> bool:
        before = self._manifest()
        if not before or not self._is_of(before.pop("identity", "")):
            return False
        if before != manifest:
            logger.info(
                "Starting %s anew: what is in %s was made from other input or settings.", self.name, self.folder
            )
        return before == manifest


def record(worker: BlockWorker, work: Resumable, block: Any) -> Any:
    """Have a block computed, and write it; returns the block."""
    values = worker.compute(block)
    # Another call may have begun anew, in the same place, with other settings.
    work.require_current()
    work.write(block, values)
    return block
