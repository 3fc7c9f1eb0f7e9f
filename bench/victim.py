"""One run on a store, in a process of its own, for ``faults.py`` to stop.

Run ``python bench/victim.py STORE [options]``. It says "ready" when everything is imported and compiled, begins at a
line on its standard input, and then says as JSON what came of it. ``--die-at N`` kills it (SIGKILL) just before the Nth
of those steps of publishing that change the store, ``--fill-at N`` fills the disk there and goes on.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import spatialdata as sd

import sthist
from sthist import _store
from sthist._store import commit
from sthist.tiles._blocks import canvas

if TYPE_CHECKING:
    from collections.abc import Callable

BLOCK_PX = 512
KEY = "virtual_he"


def run(store: Path, *, overwrite: bool = False) -> None:
    """The call that is stopped, and later repeated."""
    sthist.tl.virtual_he(sd.read_zarr(store), overwrite=overwrite, progress=False)


def prepare() -> None:
    """Small blocks, so that there are many; no bars."""
    canvas.BLOCK_PX = BLOCK_PX
    sthist.settings.progress = False


def warm_up() -> None:
    """Compile and import what a run needs."""
    sthist.tl.virtual_he(sthist.datasets.toy(size_um=200), progress=False)


def fill_disk(folder: Path) -> None:
    """A file that leaves no room for another byte."""
    with (folder / "ballast").open("ab", buffering=0) as file:
        for size in (2**20, 4096):
            try:
                while True:
                    file.write(bytes(size))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise


def kill_this_process() -> None:
    """As hard as can be."""
    os.kill(os.getpid(), signal.SIGKILL)


class Steps:
    """The steps of publishing that change the store, in order: renaming, linking, deleting.

    Parameters
    ----------
    store
        Steps are told by their place in it.
    at
        Number of the step before which something happens.
    act
        What happens.
    """

    def __init__(self, store: Path, at: int | None, act: Callable[[], None]) -> None:
        self.store, self.at, self.act = store, at, act
        self.names: list[str] = []

    def watch(self) -> None:
        """From the moment that publishing begins."""
        publish = _store.publish

        def watched(*args: Any, **kwargs: Any) -> None:
            for module, name in ((os, "rename"), (os, "replace"), (os, "symlink"), (commit, "exchange")):
                setattr(module, name, self._before(name, getattr(module, name)))
            shutil.rmtree = self._deleting(shutil.rmtree)
            publish(*args, **kwargs)

        _store.publish = watched

    def _step(self, name: str) -> None:
        if len(self.names) == self.at:
            self.act()
        self.names.append(name)

    def _before(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def stepping(source: Any, target: Any, *args: Any, **kwargs: Any) -> Any:
            self._step(f"{name} {self._place(target)}")
            return call(source, target, *args, **kwargs)

        return stepping

    def _deleting(self, rmtree: Callable[..., Any]) -> Callable[..., Any]:
        """Two steps: before anything is deleted, and when every second file is."""

        def stepping(folder: Any, *args: Any, **kwargs: Any) -> Any:
            files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
            if files:
                self._step(f"delete {self._place(folder)}")
                for path in files[::2]:
                    path.unlink()
                self._step(f"delete the rest of {self._place(folder)}")
            return rmtree(folder, *args, **kwargs)

        return stepping

    def _place(self, path: Any) -> str:
        path = Path(path).absolute()
        return str(path.relative_to(self.store)) if path.is_relative_to(self.store) else path.name


def main() -> None:
    """Make ready, wait, run, report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", type=Path)
    parser.add_argument("--overwrite", action="store_true")
    parser.add_argument("--warm-up", action="store_true")
    parser.add_argument("--die-at", type=int)
    parser.add_argument("--fill-at", type=int)
    parser.add_argument(
        "--no-exchange", action="store_true", help="as on a file system that cannot exchange two folders"
    )
    arguments = parser.parse_args()
    prepare()
    if arguments.warm_up:
        warm_up()
    if arguments.no_exchange:
        commit.exchange = lambda *_: False
    if arguments.fill_at is None:
        steps = Steps(arguments.store, arguments.die_at, kill_this_process)
    else:
        steps = Steps(arguments.store, arguments.fill_at, lambda: fill_disk(arguments.store.parent))
    steps.watch()
    print("ready", flush=True)
    sys.stdin.readline()
    start, failed = time.perf_counter(), None
    try:
        run(arguments.store, overwrite=arguments.overwrite)
    except (OSError, RuntimeError, ValueError) as error:
        failed = {"type": type(error).__name__, "errno": getattr(error, "errno", None), "message": str(error)}
    print(json.dumps({"seconds": time.perf_counter() - start, "failed": failed, "steps": steps.names}), flush=True)


if __name__ == "__main__":
    main()
