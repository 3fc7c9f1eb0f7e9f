"""What makes a diffusion model listen to gene expression: a modulation of its blocks, none at the start."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Sequence

WHERE = ("all", "mid+up")


class GeneAdapter(nn.Module):
    """From a condition, such as the expression of genes, to factors and shifts of the blocks of a frozen U-Net.

    A projection to ``latent`` numbers, and one layer from these to two numbers per channel of each block. That layer
    starts with zeros, which leave the U-Net as it is: to the last bit, the adapted model begins as the frozen one. The
    null condition of guidance is the same thing, zeros, and so is the frozen model.

    Parameters
    ----------
    n_inputs
        Numbers of a condition.
    sites
        Channels of each block: ``DiffusionUNet.sites``.
    latent
        Numbers between the layers.
    where
        ``"all"`` blocks, or ``"mid+up"``: the middle and what comes after it.

    Examples
    --------
    >>> import torch
    >>> from sthist.nets import DiffusionUNet, GeneAdapter
    >>> unet = DiffusionUNet(dim=8, multipliers=(1, 2))
    >>> GeneAdapter(30, unet.sites)(torch.randn(4, 30)).shape
    torch.Size([4, 240])
    """

    def __init__(self, n_inputs: int, sites: Sequence[int], latent: int = 128, where: str = "all") -> None:
        super().__init__()
        if where not in WHERE:
            raise ValueError(f"where is {where!r}; it is one of {list(WHERE)}.")
        n_down = (len(sites) - 3) // 2  # as many before the middle, of two, as after it, and the last
        self.left_out = 2 * sum(sites[:n_down]) if where == "mid+up" else 0
        self.project = nn.Linear(n_inputs, latent)
        self.modulate = nn.Linear(latent, 2 * sum(sites) - self.left_out)
        nn.init.zeros_(self.modulate.weight)
        nn.init.zeros_(self.modulate.bias)

    def forward(self, condition: torch.Tensor) -> torch.Tensor:
        """Modulation (n, 2 * sum of sites) of conditions (n, n_inputs)."""
        made = self.modulate(nn.functional.silu(self.project(condition)))
        return nn.functional.pad(made, (self.left_out, 0)) if self.left_out else made  # type: ignore[no-any-return]


def drop_conditions(modulation: torch.Tensor, drop: float, generator: Any = None) -> torch.Tensor:
    """Put the null condition, zeros, in place of each row of a modulation with a probability.

    Parameters
    ----------
    modulation
        (n, m).
    drop
        The probability.
    generator
        Of torch, that draws; by default that of the device.

    Examples
    --------
    >>> import torch
    >>> from sthist.nets import drop_conditions
    >>> drop_conditions(torch.ones(2, 3), 1.0).sum().item()
    0.0
    """
    draws = torch.rand(len(modulation), 1, device=modulation.device, generator=generator)
    return torch.where(draws < drop, 0.0, modulation)
