"""Losses of expression, of which genes that were not measured are left out, and of what belongs together."""

from __future__ import annotations

import torch
from torch.nn import functional

NORM_EPS = 1e-6
"""Shortest length that a vector is divided by."""


def mean_square(one: torch.Tensor, other: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Mean squared difference over all elements, or over those where ``mask`` is True."""
    if mask is None:
        return functional.mse_loss(one, other)
    return _mean(_difference(one, other, mask).square(), mask)


def mean_absolute(one: torch.Tensor, other: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Mean absolute difference over all elements, or over those where ``mask`` is True."""
    if mask is None:
        return functional.l1_loss(one, other)
    return _mean(_difference(one, other, mask).abs(), mask)


def filled(targets: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Targets with zeros where nothing was measured."""
    return targets if mask is None else torch.where(mask, targets, 0.0)


def cosine_distance(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Mean over rows of 1 - cosine: 0 of vectors of one direction, 2 of opposite ones, 1 where one is zero."""
    return 1 - functional.cosine_similarity(one.float(), other.float(), dim=1, eps=NORM_EPS).mean()


def info_nce(one: torch.Tensor, other: torch.Tensor, scale: torch.Tensor | float) -> torch.Tensor:
    """Cross-entropy of finding each row's partner among all, both ways (Radford et al. 2021)."""
    logits = scale * one @ other.T
    partners = torch.arange(len(one), device=one.device)
    return (functional.cross_entropy(logits, partners) + functional.cross_entropy(logits.T, partners)) / 2


def soft_targets(images: torch.Tensor, spots: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """How much each pair of a batch belongs to each, (b, b) with rows of sum 1: by the mean of both similarities."""
    return ((images @ images.T + spots @ spots.T) / (2 * temperature)).softmax(dim=1)


def soft_target_loss(images: torch.Tensor, spots: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Cross-entropy with soft targets, of spots to images and back; gradients go through the targets, too."""
    logits, targets = spots @ images.T / temperature, soft_targets(images, spots, temperature)
    # The targets of the way back are transposed as in the published code: their rows have not the sum 1.
    of_spots = -(targets * logits.log_softmax(dim=1)).sum(dim=1)
    of_images = -(targets.T * logits.T.log_softmax(dim=1)).sum(dim=1)
    return (of_spots + of_images).mean() / 2


def _difference(one: torch.Tensor, other: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The difference, 0 where nothing was measured, so that NaN there reaches neither a loss nor a gradient."""
    return torch.where(mask, one.float() - other.float(), 0.0)


def _mean(errors: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean over what was measured; 0 where nothing was."""
    return errors.sum() / mask.expand_as(errors).sum().clamp(min=1)
