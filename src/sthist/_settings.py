"""What a user sets once for a session."""

from __future__ import annotations

import getpass
import logging
import os
import sys
import tempfile
import warnings
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

logger = logging.getLogger("sthist")

HINT = 15
"""Between info and debug, as in scanpy."""

VERBOSITY = {
    "error": logging.ERROR,
    "warning": logging.WARNING,
    "info": logging.INFO,
    "hint": HINT,
    "debug": logging.DEBUG,
}

NOT_OF_USERS = {
    # Of spatialdata's way to write, with every element: a user can do nothing with them.
    "zarr v3 autosharding will be the default": UserWarning,
    "Consolidated metadata is currently not part in the Zarr format 3": UserWarning,
    "Object at .* is not recognized as a component of a Zarr hierarchy": UserWarning,
    "Call to deprecated class Scaler": DeprecationWarning,
}
"""Warnings of other libraries, by how they begin."""


class _Messages(logging.StreamHandler):  # type: ignore[type-arg]
    """Shows messages on stderr, wherever that is now, unless a handler that a user has set up shows them, too."""

    def __init__(self) -> None:
        super().__init__()
        self.set_name("sthist")
        self.setFormatter(logging.Formatter("%(message)s"))

    @property
    def stream(self) -> Any:
        return sys.stderr

    @stream.setter
    def stream(self, _: Any) -> None:
        pass

    def filter(self, record: logging.LogRecord) -> bool:
        others = [*logger.handlers, *(logging.root.handlers if logger.propagate else ())]
        shown = [each for each in others if each is not self and not isinstance(each, logging.NullHandler)]
        return not any(record.levelno >= each.level for each in shown) and bool(super().filter(record))


def _verbosity() -> str:
    """What a user has set for the logger, or the default."""
    return "info" if logger.level == logging.NOTSET else _name_of(logger.level)


def _name_of(level: int) -> str:
    """The verbosity that shows as much as a level of logging."""
    return next((name for name, least in VERBOSITY.items() if level >= least), "debug")


def _cache_dir() -> Path:
    import platformdirs

    return Path(platformdirs.user_cache_dir("sthist"))


def _scratch_dir() -> Path:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # in a container, a user may have no name
        user = str(os.getuid())
    return Path(tempfile.gettempdir()) / f"sthist-{user}"


@dataclass
class Settings:
    """Defaults of every verb; an argument of a call wins over them.

    Attributes
    ----------
    device
        ``"auto"`` (cuda, else mps, else cpu) or the name of a torch device.
    seed
        Seed of every random draw.
    progress
        Show progress bars.
    threads
        Threads that read and, on a CPU, compute.
    cache_dir
        Downloads and cached results.
    scratch_dir
        Where images too large for memory lie until the object that they belong to is written, and what a verb needs for
        a while. It is made for you alone; one that others can write to is refused.
    offline
        Never ask the network.
    verbosity
        What is said on stderr, as in scanpy: ``"error"``, ``"warning"``, ``"info"`` (what long verbs found, and each
        epoch of a training; the default), ``"hint"`` or ``"debug"``, or their number from 0 to 4. It is the level of
        the logger ``"sthist"`` of :mod:`logging`, whose messages a handler of your own gets in place of stderr.
    max_read_gb
        Largest part of a file, in GB as it is unpacked, that is read into memory at once. By default what is free, and
        1 GB of what is packed more than a hundredfold, as no slide and no table is.

    Examples
    --------
    >>> import sthist
    >>> sthist.settings.progress = False
    """

    device: str = "auto"
    seed: int = 0
    progress: bool = True
    threads: int = field(
        default_factory=lambda: (
            len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        )
    )
    cache_dir: Path = field(default_factory=_cache_dir)
    scratch_dir: Path = field(default_factory=_scratch_dir)
    offline: bool = field(default_factory=lambda: os.environ.get("HF_HUB_OFFLINE", "0") not in {"", "0"})
    max_read_gb: float | None = None

    verbosity: str = field(default_factory=_verbosity)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set a default; the verbosity is that of the logger, too."""
        if name == "verbosity":
            names = list(VERBOSITY)
            if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(names):
                value = names[value]
            if value not in names:
                raise ValueError(f"verbosity is {value!r}; it is one of {names}, or their number from 0 to 4.")
            logger.setLevel(VERBOSITY[value])
        super().__setattr__(name, value)

    def torch_device(self, device: str | None = None) -> str:
        """The device that an argument ``device`` stands for here: ``"auto"`` or None is that of the settings.

        Raises
        ------
        ValueError
            If there is no such device on this machine.
        """
        import torch

        name = self.device if device in (None, "auto") else str(device)
        if name != "auto":
            try:
                torch.empty(0, device=name)
            except (RuntimeError, AssertionError, NotImplementedError) as error:
                there = ["cpu", *(each for each in ("cuda", "mps") if getattr(torch, each).is_available())]
                raise ValueError(f"device={name!r} is not on this machine, which has {there}.") from error
            return name
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"


settings = Settings()
if not any(each.name == "sthist" for each in logger.handlers):
    logger.addHandler(_Messages())
for _message, _category in NOT_OF_USERS.items():
    warnings.filterwarnings("ignore", _message, _category)

recorded: dict[str, Any] = {}
"""Facts of this process that each result records, beside what made it."""


@contextmanager
def progress_bar(name: str, total: int, show: bool | None) -> Iterator[Callable[[int], None]]:
    """A function that says how many more are done; shown as ``progress=`` says, or the settings."""
    from rich.progress import Progress

    with Progress(disable=not (settings.progress if show is None else show)) as bar:
        task = bar.add_task(name, total=total)
        yield lambda n: bar.update(task, advance=n)
