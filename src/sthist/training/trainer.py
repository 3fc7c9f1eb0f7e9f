"""Lightning as a part of something else: on one device, silent, and repeatable."""

from __future__ import annotations

import logging
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator


def where(device: str) -> dict[str, Any]:
    """Arguments of a trainer for a device of torch."""
    kind, _, number = device.partition(":")
    accelerator = {"cuda": "gpu"}.get(kind, kind)
    return {"accelerator": accelerator, "devices": [int(number)] if number and kind == "cuda" else 1}


@contextmanager
def quiet_and_repeatable(seed: int, threads: int | None) -> Iterator[None]:
    """Train without messages, as a function of a seed; random states and settings of torch are as they were afterwards.

    Lightning's advice is for its own users.
    """
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "lightning")]
    levels = [each.level for each in loggers]
    strict, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    n_threads = torch.get_num_threads()
    try:
        for each in loggers:
            each.setLevel(logging.ERROR)
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(seed)
            torch.set_num_threads(threads or n_threads)
            torch.use_deterministic_algorithms(True, warn_only=True)
            yield
    finally:
        torch.set_num_threads(n_threads)
        torch.use_deterministic_algorithms(strict, warn_only=warn_only)
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)
