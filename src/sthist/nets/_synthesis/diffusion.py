"""Diffusion with a linear schedule: noise that is added, the weight of its prediction, and sampling by DDIM."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

BETA_FIRST, BETA_LAST, TIMES = 1e-4, 0.02, 1000
"""Of the schedule: variance of the noise that the first and the last of so many steps add."""

MOST_DOUBLED = 2**13
"""Pixels of a batch from which on a CPU computes two batches faster than one of twice the size, whose activations its
caches do not hold."""


def kept_signal() -> torch.Tensor:
    """What is left of the variance of an image at each time, (1000,) float64.

    Examples
    --------
    >>> from sthist.nets import kept_signal
    >>> f"{kept_signal()[999].item():.2e}"
    '4.04e-05'
    """
    return torch.cumprod(1 - torch.linspace(BETA_FIRST, BETA_LAST, TIMES, dtype=torch.float64), 0)


def add_noise(images: torch.Tensor, noise: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """Images of which a part of the variance is left, and the rest is noise.

    Parameters
    ----------
    images, noise
        (n, 3, px, px).
    kept
        (n,), or one number: :func:`kept_signal` at the times that are meant.
    """
    kept = kept.reshape(-1, 1, 1, 1)
    return (kept.sqrt() * images + (1 - kept).sqrt() * noise).to(images.dtype)


def remove_noise(noisy: torch.Tensor, noise: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """The images that :func:`add_noise` has made noisy with this noise.

    Parameters
    ----------
    noisy, noise, kept
        As of :func:`add_noise`.
    """
    kept = kept.reshape(-1, 1, 1, 1)
    return ((noisy - (1 - kept).sqrt() * noise) / kept.sqrt()).to(noisy.dtype)


def min_snr_weights(kept: torch.Tensor, gamma: float = 5.0) -> torch.Tensor:
    """Weights of squared errors of predicted noise: min(SNR, gamma) / SNR, with SNR the ratio of signal to noise.

    Parameters
    ----------
    kept
        :func:`kept_signal` at the times that are meant.
    gamma
        Ratio from which on a time counts less, as its noise is easily seen; infinite for none.

    Examples
    --------
    >>> from sthist.nets import kept_signal, min_snr_weights
    >>> weights = min_snr_weights(kept_signal())
    >>> f"{weights[0].item():.1e}", weights[999].item()
    ('5.0e-04', 1.0)
    """
    snr = kept / (1 - kept)
    return (gamma / snr).clamp(max=1)


def diffusion_loss(
    predict: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    images: torch.Tensor,
    times: torch.Tensor,
    noise: torch.Tensor,
    gamma: float = 5.0,
) -> torch.Tensor:
    """Mean squared error of the noise that a network sees in noisy images, weighted by :func:`min_snr_weights`.

    Parameters
    ----------
    predict
        From noisy images and times to noise.
    images
        (n, 3, px, px), from -1 to 1.
    times
        (n,), from 0 to 999.
    noise
        As the images: what is added.
    gamma
        As of :func:`min_snr_weights`.
    """
    kept = kept_signal().to(images.device, torch.float32)[times]
    errors = (predict(add_noise(images, noise, kept), times).float() - noise).square().mean((1, 2, 3))
    return (min_snr_weights(kept, gamma) * errors).mean()


def guided(unet: Any, modulation: torch.Tensor, scale: float) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Prediction with guidance: without the condition, plus ``scale`` times what the condition changes in it.

    Both predictions are one pass of a batch of twice the size, or, of many pixels on a CPU, two passes; where the scale
    is 0 or 1, one of them is enough.

    Parameters
    ----------
    unet
        As :class:`DiffusionUNet`.
    modulation
        (n, m): what :class:`GeneAdapter` made of the conditions, once.
    scale
        0 for the model without condition, 1 for the conditional one; more than 1 overstates the condition.

    Returns
    -------
    From noisy images (n, 3, px, px) and times (1,) to their noise, in float32.
    """
    if scale in (0, 1):
        alone = modulation if scale else None
        return lambda images, times: unet(images, times, alone).float()
    doubled = torch.cat([torch.zeros_like(modulation), modulation])

    def predict(images: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        if images.device.type == "cpu" and images[:, 0].numel() >= MOST_DOUBLED:
            null, conditional = unet(images, times), unet(images, times, modulation)
        else:
            null, conditional = unet(torch.cat([images, images]), times, doubled).chunk(2)
        return torch.lerp(null.float(), conditional.float(), scale)

    return predict


def ddim_times(steps: int) -> list[int]:
    """The times that a sampling in so many steps goes through, evenly from 999 to -1, where no noise is left.

    Parameters
    ----------
    steps
        From 1 to 1000.

    Examples
    --------
    >>> from sthist.nets import ddim_times
    >>> ddim_times(4)
    [999, 749, 499, 249, -1]
    """
    if not (1 <= steps <= TIMES and int(steps) == steps):
        raise ValueError(f"steps is {steps!r}; a whole number from 1 to {TIMES} is needed.")
    return [TIMES * (int(steps) - done) // int(steps) - 1 for done in range(int(steps) + 1)]


def ddim(
    predict: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    noise: torch.Tensor,
    steps: int = 250,
    *,
    clip: bool = True,
) -> torch.Tensor:
    """Images out of noise, by DDIM without further noise: the same noise gives the same images.

    The schedulers of diffusers step by 1000 // steps whatever the times are, so that the last step ends where there is
    noise left unless steps divides 1000; here, each step goes to the next of :func:`ddim_times`.

    Parameters
    ----------
    predict
        From noisy images and times (1,) to their noise; such as :func:`guided` gives.
    noise
        (n, 3, px, px).
    steps
        Number of predictions, from 1 to 1000.
    clip
        Keep the image that is made out at each step from -1 to 1; the noise is what then is left.

    Returns
    -------
    (n, 3, px, px).
    """
    images, signal = noise, torch.cat([kept_signal(), torch.ones(1, dtype=torch.float64)])  # at -1, all is signal
    for time, following in pairwise(ddim_times(steps)):
        kept, then = float(signal[time]), float(signal[following])
        seen = predict(images, torch.tensor([time], device=images.device))
        clean = (images - (1 - kept) ** 0.5 * seen) / kept**0.5
        if clip:
            clean = clean.clamp(-1, 1)
            seen = (images - kept**0.5 * clean) / (1 - kept) ** 0.5
        images = then**0.5 * clean + (1 - then) ** 0.5 * seen
    return images
