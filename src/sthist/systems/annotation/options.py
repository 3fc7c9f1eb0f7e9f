"""How an annotator is trained, as one object."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from sthist.training.options import Training

if TYPE_CHECKING:
    from sthist.tiles._spec import TileSpec


@dataclass(frozen=True)
class AnnotatorTraining(Training):
    """How an annotator is trained and scored; further fields are those of :class:`sthist.models.Training`.

    Attributes
    ----------
    epochs, lr, weight_decay, batch_size
        By default 20, 1e-3, 1e-2 and 32 for ``"finetune"``, and 20, 1e-5, 1e-2 and 64 for ``"text"``. ``"linear"`` is
        solved exactly, without epochs; of the fields of training ``class_weights`` and ``seed`` alone count there.
    encoder_lr
        Learning rate of the encoder, 1e-5 by default.
    patience
        Number of epochs without improvement after which training stops.
    class_weights
        ``"balanced"``: rare classes count as much as common ones. None: each row counts alike.
    baseline
        Train on shuffled labels, too, which takes as long again.
    n_boot
        Number of draws of the intervals.
    spec
        :class:`sthist.tiles.TileSpec` of the tiles to read, in place of those that were laid; also for another µm/px
        than the encoder is meant for.
    templates
        Sentences around prompts, as of :func:`sthist.tl.annotate`.
    """

    epochs: int = 200
    batch_size: int = 1024
    lr: float = 1e-2
    encoder_lr: float = 0.0
    patience: int = 10
    class_weights: Literal["balanced"] | None = "balanced"
    baseline: bool = True
    n_boot: int = 1000
    spec: TileSpec | None = None
    templates: tuple[str, ...] | None = None

    UNSAVED: ClassVar[tuple[str, ...]] = (*Training.UNSAVED, "baseline", "n_boot", "spec", "templates")
    CHOICES: ClassVar[dict[str, Any]] = Training.CHOICES | {"class_weights": ("balanced", None)}
    LEAST: ClassVar[dict[str, int]] = Training.LEAST | {"n_boot": 1}

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("weight_decay", "encoder_lr"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} is {value!r}; it is a number from 0 on.")


DEFAULTS: dict[str, dict[str, Any]] = {
    "linear": {},
    "finetune": {"epochs": 20, "lr": 1e-3, "encoder_lr": 1e-5, "batch_size": 32},
    "text": {"epochs": 20, "lr": 1e-5, "encoder_lr": 1e-5, "batch_size": 64},
}
"""Of each method, where they differ."""
