"""The U-Net of C2L-ST: noise of a noisy image at a time, with a place for modulation in each residual block."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from collections.abc import Sequence

HEADS, HEAD_DIM, MEMORY = 4, 32, 4
"""Of all attention: heads, channels of each, and keys and values that are learned and seen by every image."""

LONGEST_PERIOD = 10_000


class RMSNorm(nn.Module):
    """Divides the channels of each pixel by their root mean square."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Normalised images."""
        return F.normalize(images, dim=1) * self.weight * images.shape[1] ** 0.5


class TimeEmbedding(nn.Module):
    """Sines and cosines of a time, and two layers on them."""

    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.dim = dim
        self.layers = nn.Sequential(nn.Linear(dim, out), nn.GELU(), nn.Linear(out, out))

    def forward(self, times: torch.Tensor) -> torch.Tensor:
        """Embeddings (n, out) of times (n,)."""
        half = self.dim // 2
        rates = torch.exp(torch.arange(half, device=times.device) * (-math.log(LONGEST_PERIOD) / (half - 1)))
        angles = times[:, None].float() * rates
        return self.layers(torch.cat([angles.sin(), angles.cos()], 1))  # type: ignore[no-any-return]


class ResidualBlock(nn.Module):
    """Two convolutions; time, and then the modulation, scale and shift what comes out of the first."""

    def __init__(self, channels_in: int, channels: int, time_dim: int) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.SiLU(), nn.Linear(time_dim, 2 * channels))
        self.first, self.first_norm = nn.Conv2d(channels_in, channels, 3, padding=1), RMSNorm(channels)
        self.second, self.second_norm = nn.Conv2d(channels, channels, 3, padding=1), RMSNorm(channels)
        self.around = nn.Conv2d(channels_in, channels, 1) if channels_in != channels else nn.Identity()
        self.channels = channels

    def forward(self, images: torch.Tensor, time: torch.Tensor, modulation: torch.Tensor | None) -> torch.Tensor:
        """Images of ``channels``; ``modulation`` is what is added, per channel, to a factor of 1 and a shift of 0."""
        scale, shift = self.time(time).chunk(2, 1)
        scale = scale + 1
        if modulation is not None:  # of a few numbers, and not of each pixel
            change, offset = modulation.chunk(2, 1)
            scale, shift = scale * (change + 1), shift * (change + 1) + offset
        hidden = self.first_norm(self.first(images)) * scale[:, :, None, None] + shift[:, :, None, None]
        hidden = F.silu(self.second_norm(self.second(F.silu(hidden))))
        return hidden + self.around(images)  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Every pixel looks at all others (``full``), or at a summary of them, which takes time in proportion to them."""

    def __init__(self, channels: int, *, full: bool) -> None:
        super().__init__()
        self.full = full
        self.norm = RMSNorm(channels)
        self.memory = nn.Parameter(torch.randn(2, HEADS, *((MEMORY, HEAD_DIM) if full else (HEAD_DIM, MEMORY))))
        self.qkv = nn.Conv2d(channels, 3 * HEADS * HEAD_DIM, 1, bias=False)
        out: nn.Module = nn.Conv2d(HEADS * HEAD_DIM, channels, 1)
        self.out = out if full else nn.Sequential(out, RMSNorm(channels))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images, with what was looked at added."""
        n, _, height, width = images.shape
        parts = self.qkv(self.norm(images)).reshape(n, 3, HEADS, HEAD_DIM, height * width)
        memory = self.memory[:, None].expand(-1, n, -1, -1, -1).to(parts.dtype)
        if self.full:
            q, k, v = parts.transpose(-1, -2).unbind(1)
            k, v = (torch.cat([kept, own], 2) for kept, own in zip(memory, (k, v), strict=True))
            seen = F.scaled_dot_product_attention(q, k, v).transpose(-1, -2)
        else:
            q, k, v = parts.unbind(1)
            k, v = (torch.cat([kept, own], 3) for kept, own in zip(memory, (k, v), strict=True))
            summary = k.softmax(3) @ v.transpose(2, 3)
            seen = summary.transpose(2, 3) @ (q.softmax(2) * HEAD_DIM**-0.5)
        return self.out(seen.reshape(n, -1, height, width)) + images  # type: ignore[no-any-return]


class DiffusionUNet(nn.Module):
    """Predicts the noise in noisy RGB images: the U-Net of C2L-ST.

    Its shape, names aside, is that of the U-Net of denoising-diffusion-pytorch 2.3: 35,711,491 parameters at the
    defaults, and 19 residual blocks, in each of which the output of the first convolution, normalised and scaled by the
    time, can be modulated per channel.

    Parameters
    ----------
    dim
        Channels at full resolution; even.
    multipliers
        Channels of each level in units of ``dim``; each level has half the pixels a side of the one before.

    Attributes
    ----------
    sites
        Channels of each residual block, in the order in which they run.

    Examples
    --------
    >>> import torch
    >>> from sthist.nets import DiffusionUNet
    >>> unet = DiffusionUNet(dim=8, multipliers=(1, 2))
    >>> unet(torch.zeros(1, 3, 16, 16), torch.tensor([500])).shape, unet.sites
    (torch.Size([1, 3, 16, 16]), (8, 8, 8, 8, 16, 16, 16, 16, 8, 8, 8))
    """

    def __init__(self, dim: int = 64, multipliers: Sequence[int] = (1, 2, 4, 8)) -> None:
        super().__init__()
        widths = [dim, *(dim * each for each in multipliers)]
        levels, last = list(pairwise(widths)), len(multipliers) - 1
        time_dim = 4 * dim
        self.time = TimeEmbedding(dim, time_dim)
        self.first = nn.Conv2d(3, dim, 7, padding=3)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for level, (above, below) in enumerate(levels):
            halved = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(4 * above, below, 1))
            self.down += [
                ResidualBlock(above, above, time_dim),
                ResidualBlock(above, above, time_dim),
                Attention(above, full=level == last),
                halved if level < last else nn.Conv2d(above, below, 3, padding=1),
            ]
        lowest = widths[-1]
        self.middle = nn.ModuleList(
            [
                ResidualBlock(lowest, lowest, time_dim),
                Attention(lowest, full=True),
                ResidualBlock(lowest, lowest, time_dim),
            ]
        )
        for level, (above, below) in reversed(list(enumerate(levels))):
            convolution = nn.Conv2d(below, above, 3, padding=1)
            self.up += [
                ResidualBlock(above + below, below, time_dim),
                ResidualBlock(above + below, below, time_dim),
                Attention(below, full=level == last),
                nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), convolution) if level > 0 else convolution,
            ]
        self.last = ResidualBlock(2 * dim, dim, time_dim)
        self.out = nn.Conv2d(dim, 3, 1)
        blocks = [each for part in (self.down, self.middle, self.up, [self.last]) for each in part]
        self.sites = tuple(each.channels for each in blocks if isinstance(each, ResidualBlock))
        self.step = 2**last
        """Side of an image in pixels is a multiple of this."""

    def forward(
        self, images: torch.Tensor, times: torch.Tensor, modulation: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The noise in images.

        Parameters
        ----------
        images
            (n, 3, px, px), from -1 to 1 and noise.
        times
            (n,) or (1,), whole numbers from 0 (hardly any noise) to 999.
        modulation
            (n, 2 * sum of ``sites``): for each block what is added to a factor of 1, and to a shift of 0, per channel.
            Zeros, or None, leave everything as it is.

        Returns
        -------
        (n, 3, px, px).
        """
        if images.shape[-1] % self.step or images.shape[-2] % self.step:
            raise ValueError(
                f"Images are {images.shape[-2]} x {images.shape[-1]} px; their sides must be multiples of {self.step}."
            )
        time = self.time(times)
        sizes = [2 * channels for channels in self.sites]
        parts: Any = iter([None] * len(sizes) if modulation is None else modulation.split(sizes, 1))
        hidden = begin = self.first(images)
        kept: list[torch.Tensor] = []
        for place in range(0, len(self.down), 4):
            one, two, attention, halve = self.down[place : place + 4]
            kept.append(hidden := one(hidden, time, next(parts)))
            kept.append(hidden := attention(two(hidden, time, next(parts))))
            hidden = halve(hidden)
        one, attention, two = self.middle
        hidden = two(attention(one(hidden, time, next(parts))), time, next(parts))
        for place in range(0, len(self.up), 4):
            one, two, attention, double = self.up[place : place + 4]
            hidden = one(torch.cat([hidden, kept.pop()], 1), time, next(parts))
            hidden = two(torch.cat([hidden, kept.pop()], 1), time, next(parts))
            hidden = double(attention(hidden))
        return self.out(self.last(torch.cat([hidden, begin], 1), time, next(parts)))  # type: ignore[no-any-return]
