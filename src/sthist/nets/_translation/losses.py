"""Losses of image translation: pixels, structure, words, and what discriminator and generator lose to each other."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Mean and spread of red, green and blue, from 0 to 1, that CLIP's image towers expect (Radford et al. 2021)."""

SSIM_WINDOW, SSIM_SIGMA = 11, 1.5
SSIM_K = (0.01, 0.03)
"""Window and constants of Wang et al. 2004."""

REAL_TARGET = 0.8  # one-sided label smoothing (Salimans et al. 2016): what a discriminator is to say of a real image


class Frozen(nn.Module):
    """A network that is looked through and never trained.

    It moves along with the module that holds it, but is neither among its parameters nor in its state: no optimiser
    meets it, no checkpoint carries it, and ``train()`` leaves it as it is. Gradients pass through to what is put in.

    Parameters
    ----------
    network
        Is set to evaluation, and its parameters to need no gradient.
    method
        Which of its methods is called, such as ``"encode_text"`` of a CLIP model.
    """

    def __init__(self, network: nn.Module, method: str = "__call__") -> None:
        super().__init__()
        self.method = method
        # A tuple hides it from the registration of submodules.
        self._held = (network.eval().requires_grad_(False),)

    @property
    def network(self) -> Any:
        """The network."""
        return self._held[0]

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Frozen:
        """Take the network along to another device or type."""
        super()._apply(fn, recurse)
        self.network._apply(fn, recurse)
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the network gives."""
        return getattr(self.network, self.method)(*args, **kwargs)


def l1_loss(fake: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference: the pixel term of Isola et al. 2017 (pix2pix), which has the weight 100 there."""
    _require_alike(fake, real)
    return functional.l1_loss(fake, real)


def l2_loss(fake: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Mean squared difference: the pixel term of the reconstruction loss of Parmar et al. 2024 (pix2pix-turbo)."""
    _require_alike(fake, real)
    return functional.mse_loss(fake, real)


def ssim(
    one: torch.Tensor,
    other: torch.Tensor,
    *,
    data_range: float = 1.0,
    window: int = SSIM_WINDOW,
    sigma: float = SSIM_SIGMA,
) -> torch.Tensor:
    """Structural similarity of each pair of images, after Wang et al. 2004 (equation 13), differentiable.

    Means over colours and over the places where the window fits. Computed in at least 32 bits whatever the autocast:
    variances are small differences of large numbers.

    Returns (n,), at most 1, which it is for equal images.
    """
    _require_alike(one, other)
    if min(one.shape[-2:]) < window:
        raise ValueError(
            f"Structural similarity needs images of at least {window} x {window} px; these are {tuple(one.shape[-2:])}."
        )
    with torch.autocast(one.device.type, enabled=False):
        x, y = _precise(one), _precise(other)
        moments = _blur(torch.cat([x, y, x * x, y * y, x * y]), window, sigma)
        mean_x, mean_y, square_x, square_y, product = moments.chunk(5)
        c1, c2 = ((k * data_range) ** 2 for k in SSIM_K)
        covariance = product - mean_x * mean_y
        variances = (square_x - mean_x**2) + (square_y - mean_y**2)
        luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
        return (luminance * (2 * covariance + c2) / (variances + c2)).mean((1, 2, 3))


def _precise(images: torch.Tensor) -> torch.Tensor:
    """The images in at least 32 bits."""
    return images.to(torch.promote_types(images.dtype, torch.float32))


def _blur(images: torch.Tensor, window: int, sigma: float) -> torch.Tensor:
    """Gaussian means of each channel where the window fits, rows and columns in turn."""
    offsets = torch.arange(window, device=images.device, dtype=images.dtype) - (window - 1) / 2
    weights = torch.exp(-0.5 * (offsets / sigma) ** 2)
    weights = (weights / weights.sum()).expand(images.shape[1], 1, window)
    images = functional.conv2d(images, weights.unsqueeze(2), groups=images.shape[1])
    return functional.conv2d(images, weights.unsqueeze(3), groups=images.shape[1])


class StructuralLoss(nn.Module):
    """A perceptual loss without weights: structure and edges at several scales.

    The mean over scales of ``1 - SSIM + gradient_weight * |differences of gradients|``. Scales are those of multi-scale
    SSIM (Wang, Simoncelli and Bovik 2003), means over 2 x 2 pixels; they are averaged in place of multiplied, because
    the derivative of a product of powers is unbounded where a factor is 0. Gradients keep edges sharp where SSIM's
    window forgives a blur (Mathieu, Couprie and LeCun 2016).

    Parameters
    ----------
    levels
        Number of scales; the image is at least 11 px at the coarsest.
    gradient_weight
        Weight of the gradients.

    Raises
    ------
    ValueError
        If there is no level, or the weight is negative.

    Examples
    --------
    >>> import torch
    >>> from sthist.nets import StructuralLoss
    >>> image = torch.linspace(-1, 1, 48).repeat(1, 3, 48, 1)
    >>> round(float(StructuralLoss()(image, image)), 6), float(StructuralLoss()(image, -image)) > 0.3
    (0.0, True)
    """

    def __init__(self, levels: int = 3, *, gradient_weight: float = 1.0) -> None:
        super().__init__()
        if levels < 1 or not gradient_weight >= 0:
            raise ValueError(
                f"levels={levels} and gradient_weight={gradient_weight}; needed are at least one level and a weight "
                "from 0."
            )
        self.levels, self.gradient_weight = levels, gradient_weight

    def forward(self, fake: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """The loss of images (n, c, h, w) from -1 to 1: 0 for equal ones, else more."""
        _require_alike(fake, real)
        least = SSIM_WINDOW * 2 ** (self.levels - 1)
        if min(fake.shape[-2:]) < least:
            raise ValueError(
                f"{self.levels} levels need images of at least {least} x {least} px; these are "
                f"{tuple(fake.shape[-2:])}."
            )
        one, other = (_precise(images) / 2 + 0.5 for images in (fake, real))
        total = one.new_zeros(())
        for level in range(self.levels):
            if level:
                one, other = (functional.avg_pool2d(images, 2) for images in (one, other))
            # Rounding may put the similarity of equal images above 1.
            unlike = (1 - ssim(one, other)).clamp_min(0).mean()
            total = total + unlike + self.gradient_weight * _edges(one - other)
        return total / self.levels


def _edges(difference: torch.Tensor) -> torch.Tensor:
    """Mean absolute step between neighbours in the difference of two images."""
    across, down = (difference.diff(dim=axis).abs().mean() for axis in (-1, -2))
    return (across + down) / 2


class PerceptualLoss(nn.Module):
    """A learned perceptual distance, such as LPIPS (Zhang et al. 2018), as a loss.

    Parameters
    ----------
    network
        Takes two batches of images from -1 to 1 and gives a distance per pair, of any shape. Its weights have to be the
        real ones: a network of random weights trains without complaint, to nothing. It is frozen.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.distance = Frozen(network)

    def forward(self, fake: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """Mean distance of the pairs."""
        _require_alike(fake, real)
        return self.distance(fake, real).float().mean()


class ImageTextLoss(nn.Module):
    """How little images resemble their own texts: 1 less the mean cosine of their embeddings.

    The global-context loss of ST2HE (equation 3). Each image is compared with its own text alone, the diagonal of
    CLIP's matrix: the mean over the whole matrix draws images to the texts of others as well, once texts differ.

    Parameters
    ----------
    image_tower
        Takes images as CLIP does and gives embeddings (n, d); frozen.
    text_tower
        Takes tokens and gives embeddings (n, d), such as ``Frozen(clip, "encode_text")``; frozen. None where texts come
        as embeddings.
    size
        Side to which images are scaled, in pixels.
    mean, std
        To which images from 0 to 1 are normalised.
    """

    def __init__(
        self,
        image_tower: nn.Module,
        text_tower: nn.Module | None = None,
        *,
        size: int = 224,
        mean: Sequence[float] = CLIP_MEAN,
        std: Sequence[float] = CLIP_STD,
    ) -> None:
        super().__init__()
        self.image_tower = Frozen(image_tower)
        self.text_tower = None if text_tower is None else Frozen(text_tower)
        self.normalized = Normalized(size, "bilinear", mean, std)

    def embed_text(self, tokens: torch.Tensor) -> torch.Tensor:
        """Embeddings (n, d) of tokens, without gradient; texts that stay are embedded once."""
        if self.text_tower is None:
            raise ValueError(
                "Tokens need a text tower, and none was given; give embeddings of the texts, or text_tower=."
            )
        with torch.no_grad():
            return self.text_tower(tokens)

    def forward(self, images: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
        """The loss: from 0, where each image points as its text does, to 2."""
        if len(images) != len(texts):
            raise ValueError(f"Each image has its own text; there are {len(images)} images and {len(texts)} texts.")
        words = texts if texts.is_floating_point() else self.embed_text(texts)
        seen = self.image_tower(self.normalized(images))
        return 1 - functional.cosine_similarity(seen.float(), words.float(), dim=1).mean()


class Normalized(nn.Module):
    """Images (n, 3, h, w) from -1 to 1 as an image tower takes them: of its side, with its mean and spread."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, size: int, mode: str, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.size, self.mode = size, mode
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """The images; those that have the side already are not resized."""
        if tuple(images.shape[-2:]) != (self.size, self.size):
            images = functional.interpolate(images, size=(self.size, self.size), mode=self.mode)
        return (images * 0.5 + 0.5 - self.mean) / self.std


def _require_alike(one: torch.Tensor, other: torch.Tensor) -> None:
    if one.shape != other.shape:
        raise ValueError(f"The images have the shapes {tuple(one.shape)} and {tuple(other.shape)}; they have to agree.")


def hinge_discriminator_loss(real: Any, fake: Any) -> torch.Tensor:
    """Hinge loss of a discriminator (Lim and Ye 2017): ``max(0, 1 - real) + max(0, 1 + fake)``."""
    return _over_levels(real, lambda x: functional.relu(1 - x)) + _over_levels(fake, lambda x: functional.relu(1 + x))


def hinge_generator_loss(fake: Any) -> torch.Tensor:
    """Hinge loss of a generator: the negative logits of what it made; arguments of :func:`hinge_discriminator_loss`."""
    return _over_levels(fake, lambda x: -x)


def sigmoid_discriminator_loss(real: Any, fake: Any, *, target: float = REAL_TARGET) -> torch.Tensor:
    """Cross-entropy of a discriminator (Goodfellow et al. 2014), as Kumari et al. 2022 have it."""
    return _over_levels(real, lambda x: functional.softplus(x) - target * x) + _over_levels(fake, functional.softplus)


def sigmoid_generator_loss(fake: Any, *, target: float = REAL_TARGET) -> torch.Tensor:
    """Cross-entropy of a generator; at least the entropy of ``target`` per level."""
    return _over_levels(fake, lambda x: functional.softplus(x) - target * x)


def entropy(target: float = REAL_TARGET) -> float:
    """Entropy of a coin in nats: what cross-entropy with this target cannot fall below."""
    return -sum(p * math.log(p) for p in (target, 1 - target) if p > 0)


def _over_levels(logits: Any, loss: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Sum over levels of the means; in 32 bits."""
    levels = [logits] if isinstance(logits, torch.Tensor) else list(logits)
    return torch.stack([loss(level.float()).mean() for level in levels]).sum()
