"""A small network that finds nuclei, made to run on a CPU."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class NucleusUNet(nn.Module):
    """Where nuclei are, and how deep inside one a pixel lies: a U-Net that works at half of the image's resolution.

    Pixels go in as 2 x 2 blocks and come out so, which makes it about four times as fast as a U-Net of the same width.
    Normalisation is by batch, so that once it is trained only what lies near a pixel decides about it.

    Parameters
    ----------
    width
        Channels of the first level; each of the next has twice as many.
    levels
        How often the image is halved after the first blocks are made.

    Attributes
    ----------
    stride
        Heights and widths of images are multiples of this.

    Examples
    --------
    >>> import torch, sthist
    >>> net = sthist.nets.NucleusUNet(width=4).eval()
    >>> net(torch.zeros(1, 3, 64, 64)).shape
    torch.Size([1, 2, 64, 64])
    """

    def __init__(self, width: int = 16, levels: int = 3) -> None:
        super().__init__()
        widths = [width * 2**k for k in range(levels + 1)]
        self.stride = 2 ** (levels + 1)
        self.first = _pair(12, width)
        self.down = nn.ModuleList(_pair(a, b) for a, b in zip(widths, widths[1:], strict=False))
        self.up = nn.ModuleList(_pair(a + b, b) for a, b in zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.last = nn.Conv2d(width, 8, 1)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Logits that a pixel is nucleus, and its depth from 0 at a nucleus's border to 1 at its middle.

        Parameters
        ----------
        pixels
            (n, 3, h, w), grey levels from 0 to 1; h and w are multiples of ``stride``.

        Returns
        -------
        (n, 2, h, w).
        """
        x = self.first(functional.pixel_unshuffle(1 - pixels, 2))
        skips = []
        for block in self.down:
            skips.append(x)
            x = block(functional.max_pool2d(x, 2))
        for block in self.up:
            x = block(torch.cat([functional.interpolate(x, scale_factor=2.0, mode="nearest"), skips.pop()], 1))
        return functional.pixel_shuffle(self.last(x), 2)


def _pair(a: int, b: int) -> nn.Sequential:
    """Two convolutions."""
    layers: list[nn.Module] = []
    for inputs in (a, b):
        layers += [nn.Conv2d(inputs, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)
