"""What is tried: seeds, what a model begins from, what it says of rows that test, and what that took."""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist._settings import settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sthist.benchmark._predictors.slide_splits import SlideFold
    from sthist.regression.model import RegressionModel
    from sthist.regression.trust.rehearsal import Rehearsal


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


def require_seeds(seeds: Any) -> None:
    """Refuse seeds that are no list of numbers, each once."""
    if isinstance(seeds, int | str) or not len(seeds) or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds= is {seeds!r}; it is a list of at least one number, each once.")


def begins(model: RegressionModel) -> str:
    """What a trained model began from: a backbone and its weights, or embeddings of encoders."""
    config: Any = model.config
    if hasattr(config, "backbone"):
        source = config.backbone_weights or "pretrained" if config.pretrained else "random"
        return f"{config.backbone}, {source}{', frozen' if config.embeddings else ''}"
    names = [str(each.get("encoder") or each.get("key")) for each in config.encoders] or list(config.embeddings)
    return ", ".join(names)


def tried(job: Rehearsal, fold: SlideFold) -> tuple[RegressionModel, np.ndarray, Cost]:
    """A model that is trained for a fold, what it says of the rows that test, and what both took."""
    device = settings.torch_device(job.device)
    with measured(device) as training:
        model = job.fit(fold.train, watched=fold.watched)
    with measured(device) as predicting:
        predicted = job.predict(model, fold.test)
    most = max(training.peak_gb, predicting.peak_gb)
    return model, predicted, Cost(training.seconds, most, max(training.gpu_gb, predicting.gpu_gb), predicting.seconds)


def exchanged(sample: np.ndarray, seed: Any) -> np.ndarray:
    """For each row another one of its sample, at random."""
    order = np.empty(len(sample), int)
    order[np.argsort(sample, kind="stable")] = np.lexsort((np.random.default_rng(seed).random(len(sample)), sample))
    return order
