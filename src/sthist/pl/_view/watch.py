"""A slide whose store may change while it is shown: what is open goes on being served until it is read again."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sthist._settings import logger
from sthist.pl._view.slide import Slide

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from spatialdata import SpatialData

LOOK_EVERY = 2.0
METADATA = ("zarr.json", ".zattrs", ".zgroup", ".zarray")
PARTS = ("", "*/*/", "tables/*/*/", "images/*/*/")


class Watched:
    """The slide that is open now, and whether its store has changed since."""

    def __init__(self, read: Callable[[], SpatialData], images: Sequence[str] | None = None) -> None:
        self._read, self._images = read, images
        self._lock = threading.Lock()
        self._open()
        self.version = 1
        self._looked, self._changed = time.monotonic(), False

    def reload(self) -> None:
        """Read the sample again; where that fails, what was open stays."""
        with self._lock:
            self._open()
            self.version += 1
            self._changed = False

    def state(self) -> dict[str, Any]:
        """Whether the store has changed, and how often it was read."""
        with self._lock:
            if self._store is not None and not self._changed and time.monotonic() - self._looked > LOOK_EVERY:
                self._changed = _stamp(self._store) != self._seen
                self._looked = time.monotonic()
                if self._changed:
                    logger.warning("The store %s has changed since it was opened for viewing.", self._store)
            return {"version": self.version, "changed": self._changed}

    def _open(self) -> None:
        sdata = self._read()
        store = getattr(sdata, "path", None)
        seen = None if store is None else _stamp(Path(store))
        self.slide = Slide(sdata, self._images)
        self._store, self._seen = None if store is None else Path(store), seen


def _stamp(store: Path) -> tuple[tuple[str, int, int], ...]:
    """When, and to what size, the files that describe a store's elements were written."""
    found = []
    for part in PARTS:
        for name in METADATA:
            for file in store.glob(f"{part}{name}"):
                with suppress(OSError):
                    state = file.stat()
                    found.append((str(file), state.st_mtime_ns, state.st_size))
    return tuple(sorted(found))
