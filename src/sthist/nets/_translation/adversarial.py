"""What a discriminator and a generator lose to each other."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Callable

REAL_TARGET = 0.8
"""One-sided label smoothing (Salimans et al. 2016): what a discriminator is to say of a real image."""


def hinge_discriminator_loss(real: Any, fake: Any) -> torch.Tensor:
    """Hinge loss of a discriminator (Lim and Ye 2017): ``max(0, 1 - real) + max(0, 1 + fake)``."""
    return _over_levels(real, lambda x: functional.relu(1 - x)) + _over_levels(fake, lambda x: functional.relu(1 + x))


def hinge_generator_loss(fake: Any) -> torch.Tensor:
    """Hinge loss of a generator: the negative logits of what it made; arguments of :func:`hinge_discriminator_loss`."""
    return _over_levels(fake, lambda x: -x)


def sigmoid_discriminator_loss(real: Any, fake: Any, *, target: float = REAL_TARGET) -> torch.Tensor:
    """Cross-entropy of a discriminator (Goodfellow et al. 2014), as vision-aided training has it (Kumari et al.

    2022).
    """
    return _over_levels(real, lambda x: functional.softplus(x) - target * x) + _over_levels(fake, functional.softplus)


def sigmoid_generator_loss(fake: Any, *, target: float = REAL_TARGET) -> torch.Tensor:
    """Cross-entropy of a generator; at least the entropy of ``target`` per level.

    Arguments are those of :func:`sigmoid_discriminator_loss`.
    """
    return _over_levels(fake, lambda x: functional.softplus(x) - target * x)


def entropy(target: float = REAL_TARGET) -> float:
    """Entropy of a coin in nats: what cross-entropy with this target cannot fall below."""
    return -sum(p * math.log(p) for p in (target, 1 - target) if p > 0)


def _over_levels(logits: Any, loss: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Sum over levels of the means; in 32 bits."""
    levels = [logits] if isinstance(logits, torch.Tensor) else list(logits)
    return torch.stack([loss(level.float()).mean() for level in levels]).sum()
