"""Several networks as one, which predict amounts of any size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class Ensemble(nn.Module):
    """The mean of several networks that learn next to each other, each from its own beginning.

    Parameters
    ----------
    members
        Networks with ``losses``.
    size
        How large targets typically are: members learn targets that are divided by it.

    Examples
    --------
    >>> import torch
    >>> from sthist.nets import CompositionMLP, Ensemble
    >>> net = Ensemble([CompositionMLP(4, 3, widths=(8,)) for _ in range(5)], size=10.0)
    >>> net({"spot": torch.rand(2, 4)}).shape, net.spread({"spot": torch.rand(2, 4)}).shape
    (torch.Size([2, 3]), torch.Size([2, 3]))
    """

    size: torch.Tensor

    def __init__(self, members: Sequence[nn.Module], size: float = 1.0) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.register_buffer("size", torch.tensor(float(size)))

    def forward(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The mean of what the members predict."""
        return self._each(batch).mean(dim=0)

    def spread(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The standard deviation of what the members predict."""
        return self._each(batch).std(dim=0)

    def losses(
        self, batch: Mapping[str, torch.Tensor], targets: torch.Tensor, mask: torch.Tensor | None = None
    ) -> dict[str, Any]:
        """Mean losses of the members, each of its own prediction."""
        each = [member.losses(batch, targets / self.size, mask) for member in self.members]  # type: ignore[operator]
        return {name: torch.stack([losses[name] for losses in each]).mean() for name in each[0]}

    def _each(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return torch.stack([member(batch) for member in self.members]) * self.size
