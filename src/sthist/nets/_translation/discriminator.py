"""Networks that tell real images from made ones: on frozen features, and by patches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

from sthist.nets._translation.losses import CLIP_MEAN, CLIP_STD, Frozen, Normalized

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

AUGMENTATIONS = ("color", "translation", "cutout")
SHIFT_SHARE, CUT_SHARE = 1 / 8, 1 / 2  # of the side: how far images are shifted, and the square that is cut out

Norm = Literal["batch", "instance", "none"]


class ClipFeatures(nn.Module):
    """Maps of inner blocks and the embedding that an image tower of open_clip sees in images.

    Parameters
    ----------
    visual
        A vision transformer of open_clip; frozen.
    blocks
        After which blocks the tokens of places are taken, counted from 1.
    size
        Side to which images are scaled, by means over areas.
    mean, std
        To which images from 0 to 1 are normalised.
    """

    def __init__(
        self,
        visual: nn.Module,
        blocks: Sequence[int] = (4, 8),
        *,
        size: int = 224,
        mean: Sequence[float] = CLIP_MEAN,
        std: Sequence[float] = CLIP_STD,
    ) -> None:
        super().__init__()
        self.visual = Frozen(visual)
        self.indices = [block - 1 for block in blocks]
        self.normalized = Normalized(size, "area", mean, std)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Of images (n, 3, h, w) from -1 to 1: maps (n, width, gh, gw) block by block, then the embedding (n, d)."""
        seen = self.visual.network.forward_intermediates(self.normalized(images), indices=self.indices)
        return [*seen["image_intermediates"], seen["image_features"]]


class MultilevelDiscriminator(nn.Module):
    """Small heads on the frozen features of an image-text network, one per level (Kumari et al. 2022).

    With CLIP's ViT-B/32 it has 3,671,555 parameters to train. They alone are in its state and its parameters.

    Parameters
    ----------
    features
        Takes images from -1 to 1 and gives maps (n, c, h, w), and last an embedding (n, d); frozen.
    map_channels, embedding_dim
        Channels of each map, and of the embedding.
    hidden
        Channels inside the heads.
    augmentations
        What is done to all images first, real and made: names of :func:`augment`.
    """

    def __init__(
        self,
        features: nn.Module,
        *,
        map_channels: Sequence[int] = (768, 768),
        embedding_dim: int = 512,
        hidden: int = 256,
        augmentations: Sequence[str] = AUGMENTATIONS,
    ) -> None:
        super().__init__()
        _require_known(augmentations)
        self.features = Frozen(features)
        self.augmentations = tuple(augmentations)
        self.heads = nn.ModuleList([_map_head(channels, hidden) for channels in map_channels])
        self.heads.append(_embedding_head(embedding_dim, hidden))

    def forward(self, images: torch.Tensor, generator: torch.Generator | None = None) -> list[torch.Tensor]:
        """Logits of images (n, 3, h, w) from -1 to 1, level by level: (n, gh, gw) of each map, and (n, 1)."""
        levels = self.features(augment(images, self.augmentations, generator))
        return [
            head(level).squeeze(1) if level.ndim == 4 else head(level)
            for head, level in zip(self.heads, levels, strict=True)
        ]


class Blur(nn.Module):
    """A binomial filter of 4 x 4 before a stride, against aliasing (Zhang 2019); 1 px smaller than its input."""

    weights: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
        self.register_buffer("weights", taps.outer(taps)[None, None], persistent=False)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """The maps, smoothed; outside is 0."""
        weights = self.weights.to(maps.dtype).expand(maps.shape[1], 1, 4, 4)
        return functional.conv2d(maps, weights, padding=1, groups=maps.shape[1])


def _map_head(channels: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(
        spectral_norm(nn.Conv2d(channels, hidden, 3, padding=1)),
        nn.LeakyReLU(0.2),
        Blur(),
        spectral_norm(nn.Conv2d(hidden, 1, 1, stride=2)),
    )


def _embedding_head(dim: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(spectral_norm(nn.Linear(dim, hidden)), nn.LeakyReLU(0.2), spectral_norm(nn.Linear(hidden, 1)))


def augment(
    images: torch.Tensor, names: Sequence[str] = AUGMENTATIONS, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Change images at random, differentiably, so that a discriminator cannot learn few images by heart.

    Differentiable augmentation after Zhao et al. 2020: brightness, saturation and contrast (``"color"``), a shift of up
    to 1/8 of the side (``"translation"``), and a square of half the side set to 0 (``"cutout"``), each image on its
    own.
    """
    _require_known(names)
    for name in names:
        images = _AUGMENT[name](images, generator)
    return images


def _uniform(images: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    """A draw from 0 to 1 per image."""
    return torch.rand(len(images), 1, 1, 1, generator=generator).to(images)


def _whole(images: torch.Tensor, low: int, high: int, generator: torch.Generator | None) -> torch.Tensor:
    """A whole number from low to high per image, both included."""
    return torch.randint(low, high + 1, (len(images), 1), generator=generator).to(images.device)


def _color(images: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    images = images + _uniform(images, generator) - 0.5
    grey = images.mean(1, keepdim=True)
    images = (images - grey) * (2 * _uniform(images, generator)) + grey
    even = images.mean((1, 2, 3), keepdim=True)
    return (images - even) * (_uniform(images, generator) + 0.5) + even


def _translation(images: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    n, _, *sides = images.shape
    places = []
    for side in sides:
        reach = int(side * SHIFT_SHARE + 0.5)
        shift = _whole(images, -reach, reach, generator)
        # One row and column of zeros around stands for all that lies outside.
        places.append((torch.arange(side, device=images.device) + shift + 1).clamp(0, side + 1))
    padded = functional.pad(images, (1, 1, 1, 1)).permute(0, 2, 3, 1)
    row = torch.arange(n, device=images.device)[:, None, None]
    return padded[row, places[0][:, :, None], places[1][:, None, :]].permute(0, 3, 1, 2)


def _cutout(images: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    inside = []
    for side in images.shape[-2:]:
        cut = int(side * CUT_SHARE + 0.5)
        first = _whole(images, 0, side - cut % 2, generator) - cut // 2
        places = torch.arange(side, device=images.device)
        inside.append((places >= first) & (places < first + cut))
    square = inside[0][:, None, :, None] & inside[1][:, None, None, :]
    return images * ~square


_AUGMENT: dict[str, Callable[[torch.Tensor, torch.Generator | None], torch.Tensor]] = {
    "color": _color,
    "translation": _translation,
    "cutout": _cutout,
}


def _require_known(names: Sequence[str]) -> None:
    unknown = [name for name in names if name not in _AUGMENT]
    if unknown:
        raise ValueError(f"There is no augmentation {unknown[0]!r}; there are {list(_AUGMENT)}.")


class PatchDiscriminator(nn.Sequential):
    """A verdict on every patch of an image (Isola et al. 2017): convolutions alone, 70 x 70 px for ``layers=3``.

    Parameters
    ----------
    in_channels
        Channels of the input and the image together: it judges the pair, ``torch.cat([input, image], 1)``.
    width
        Channels of the first layer; doubled by each, up to eight times.
    layers
        Layers of stride 2; the side of a patch is 16, 34, 70, 142, 286 for 1 to 5.
    norm
        Between them: over the batch as in the paper, over each image, or none.

    Examples
    --------
    >>> import torch
    >>> from sthist.nets import PatchDiscriminator
    >>> PatchDiscriminator(6, width=8)(torch.zeros(2, 6, 64, 64)).shape
    torch.Size([2, 1, 6, 6])
    """

    def __init__(self, in_channels: int = 6, *, width: int = 64, layers: int = 3, norm: Norm = "batch") -> None:
        channels = [in_channels, *(width * min(2**i, 8) for i in range(layers + 1))]
        steps: list[nn.Module] = []
        for i, (before, after) in enumerate(zip(channels, channels[1:], strict=False)):
            plain = i == 0 or norm == "none"
            steps.append(
                nn.Conv2d(before, after, 4, stride=2 if i < layers else 1, padding=1, bias=plain or norm != "batch")
            )
            steps += [] if plain else [norm_of(norm, after)]
            steps.append(nn.LeakyReLU(0.2))
        super().__init__(*steps, nn.Conv2d(channels[-1], 1, 4, padding=1))
        self.apply(init_normal)


def norm_of(norm: Norm, channels: int) -> nn.Module:
    """The layer of a kind of normalisation."""
    kinds: dict[str, Callable[[int], nn.Module]] = {
        "batch": nn.BatchNorm2d,
        "instance": nn.InstanceNorm2d,
        "none": lambda _: nn.Identity(),
    }
    if norm not in kinds:
        raise ValueError(f"norm={norm!r} is none of {list(kinds)}.")
    return kinds[norm](channels)


def init_normal(module: Any) -> None:
    """Draw the weights of a convolution from a normal distribution of width 0.02, as Isola et al. 2017 do."""
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.normal_(module.weight, 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
