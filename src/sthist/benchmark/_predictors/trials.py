"""What is tried: seeds, what a model begins from, what it says of rows that test, and what that took."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sthist._settings import settings
from sthist.benchmark._predictors.measure import Cost, measured

if TYPE_CHECKING:
    from sthist.benchmark._predictors.slide_splits import SlideFold
    from sthist.regression.model import RegressionModel
    from sthist.regression.trust.rehearsal import Rehearsal


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
