"""The U-Net of pix2pix: a baseline that is trained from nothing."""

from __future__ import annotations

import torch
from torch import nn

from sthist.nets._translation.discriminator import Norm, init_normal, norm_of

DROPPED_LEVELS = 3  # innermost levels of the decoder, which have dropout


class Pix2Pix(nn.Module):
    """Image to image by an encoder and a decoder with skips between their levels (Isola et al. 2017, appendix 6.1).

    C64-C128-C256-C512-C512-C512-C512-C512 down and, by its mirror image, up again for the default sizes, which take
    images of 256 px and multiples. Other than in the paper, dropout and the statistics of batches are used in training
    alone: an image comes out the same each time, whatever else is in its batch.

    Parameters
    ----------
    in_channels, out_channels
        Channels of the images.
    width
        Channels of the first level; doubled by each level.
    max_width
        At most.
    depth
        Levels, each of half the side; sides are multiples of ``2 ** depth``.
    dropout
        Share of values dropped in the three innermost levels of the decoder.
    norm
        Normalisation inside: over the batch as in the paper, over each image, or none.

    Raises
    ------
    ValueError
        If there are fewer than two levels, or the normalisation is unknown.

    Examples
    --------
    >>> import torch
    >>> from sthist.nets import Pix2Pix
    >>> Pix2Pix(width=4, depth=3).eval()(torch.zeros(2, 3, 16, 24)).shape
    torch.Size([2, 3, 16, 24])
    """

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        *,
        width: int = 64,
        max_width: int = 512,
        depth: int = 8,
        dropout: float = 0.5,
        norm: Norm = "batch",
    ) -> None:
        super().__init__()
        if depth < 2:
            raise ValueError(f"depth={depth}; a U-Net has at least two levels.")
        self.depth = depth
        widths = [min(width * 2**i, max_width) for i in range(depth)]
        self.down = nn.ModuleList()
        for i, (before, after) in enumerate(zip([in_channels, *widths], widths, strict=False)):
            # The outermost sees raw pixels; of the innermost nothing is left to normalise at 1 x 1 px.
            self.down.append(_down(before, after, norm if 0 < i < depth - 1 else "none", first=i == 0))
        self.up = nn.ModuleList()
        for i in reversed(range(depth)):
            before = widths[i] * (1 if i == depth - 1 else 2)
            after = widths[i - 1] if i else out_channels
            dropped = dropout if i and i >= depth - DROPPED_LEVELS else 0.0
            self.up.append(_up(before, after, norm if i else "none", dropped))
        self.apply(init_normal)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images (n, out_channels, h, w) from -1 to 1, of images (n, in_channels, h, w) from -1 to 1."""
        if any(side % 2**self.depth or not side for side in images.shape[-2:]):
            raise ValueError(
                f"Images are {tuple(images.shape[-2:])} px; with {self.depth} levels, sides are multiples of "
                f"{2**self.depth}."
            )
        skips = []
        for level in self.down:
            images = level(images)
            skips.append(images)
        images = self.up[0](skips.pop())
        for level in self.up[1:]:
            images = level(torch.cat([skips.pop(), images], 1))
        return torch.tanh(images)


def _down(before: int, after: int, norm: Norm, *, first: bool) -> nn.Sequential:
    """Half the side."""
    convolution = nn.Conv2d(before, after, 4, stride=2, padding=1, bias=norm != "batch")
    return nn.Sequential(nn.Identity() if first else nn.LeakyReLU(0.2), convolution, norm_of(norm, after))


def _up(before: int, after: int, norm: Norm, dropout: float) -> nn.Sequential:
    """Twice the side."""
    convolution = nn.ConvTranspose2d(before, after, 4, stride=2, padding=1, bias=norm != "batch")
    return nn.Sequential(nn.ReLU(), convolution, norm_of(norm, after), nn.Dropout(dropout))
