"""Time and memory of what is run, for tables that compare methods."""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass
class Cost:
    """What something took."""

    seconds: float = float("nan")
    peak_gb: float = float("nan")  # the most memory that the process held meanwhile, libraries and data included
    gpu_gb: float = float("nan")  # the most memory of tensors on the cuda device; NaN elsewhere
    predict_seconds: float = float("nan")


@contextmanager
def measured(device: str) -> Iterator[Cost]:
    """Measure what is done within."""
    cost = Cost()
    _forget_peak()
    on_gpu = device.startswith("cuda")
    if on_gpu:
        import torch

        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    start = time.perf_counter()
    yield cost
    if on_gpu:
        torch.cuda.synchronize(device)
        cost.gpu_gb = torch.cuda.max_memory_allocated(device) / 1e9
    cost.seconds = time.perf_counter() - start
    cost.peak_gb = _peak() / 1e9


def _forget_peak() -> None:
    """Let Linux's high-water mark begin anew; elsewhere it is that of the process so far."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _peak() -> int:
    """Bytes, at most, of this process."""
    try:
        status = Path("/proc/self/status").read_text()
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
