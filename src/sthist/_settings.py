"""What a user sets once for a session."""

from __future__ import annotations

import getpass
import logging
import os
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

logger = logging.getLogger("sthist")


def _cache_dir() -> Path:
    import platformdirs

    return Path(platformdirs.user_cache_dir("sthist"))


def _scratch_dir() -> Path:
    return Path(tempfile.gettempdir()) / f"sthist-{getpass.getuser()}"


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
        Where images too large for memory lie until the object that they belong to is written.
    offline
        Never ask the network.

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

    def torch_device(self) -> str:
        """The device that ``device`` stands for on this machine."""
        if self.device != "auto":
            return self.device
        import torch

        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"


settings = Settings()

recorded: dict[str, Any] = {}
"""Facts of this process that each result records, beside what made it."""


@contextmanager
def progress_bar(name: str, total: int, show: bool | None) -> Iterator[Callable[[int], None]]:
    """A function that says how many more are done; shown as ``progress=`` says, or the settings."""
    from rich.progress import Progress

    with Progress(disable=not (settings.progress if show is None else show)) as bar:
        task = bar.add_task(name, total=total)
        yield lambda n: bar.update(task, advance=n)
