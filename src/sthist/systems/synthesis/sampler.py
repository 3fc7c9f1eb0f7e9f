"""Tiles out of noise, with the networks on a device."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sthist._settings import settings
from sthist.nets import ddim, ddim_times, guided
from sthist.training.batches import as_tiles

if TYPE_CHECKING:
    from sthist.nets import DiffusionUNet, GeneAdapter

PRECISIONS = ("auto", "float32", "bf16")


class Sampler:
    """Makes tiles of conditions, the same ones of the same seed and number.

    Networks are moved to the device; the other arguments are those of ``C2L.generate``.
    """

    def __init__(
        self,
        unet: DiffusionUNet,
        adapter: GeneAdapter | None,
        px: int,
        guidance: float,
        steps: int,
        seed: int | None = None,
        device: str | None = None,
        precision: str = "auto",
        compile: bool = False,
    ) -> None:
        if not (math.isfinite(guidance) and guidance >= 0):
            raise ValueError(
                f"guidance is {guidance!r}; it is 0 (expression is not listened to) or more, 1 for what was learned."
            )
        if precision not in PRECISIONS:
            raise ValueError(f"precision is {precision!r}; it is one of {list(PRECISIONS)}.")
        ddim_times(steps)
        self.guidance, self.steps, self.px = float(guidance), steps, px
        self.seed = settings.seed if seed is None else int(seed)
        self.device = torch.device(settings.torch_device(device))
        cuda = self.device.type == "cuda"
        self.half = precision == "bf16" or (precision == "auto" and cuda and torch.cuda.is_bf16_supported())
        unet.to(self.device, memory_format=torch.channels_last).requires_grad_(False)
        self.unet: Any = torch.compile(unet) if compile else unet
        self.adapter = None if adapter is None else adapter.to(self.device)

    @torch.inference_mode()
    def __call__(self, conditions: np.ndarray | None, numbers: np.ndarray) -> np.ndarray:
        """Tiles, (n, px, px, 3) uint8, of conditions, (n, genes), or of none; ``numbers`` say their noise."""
        drawn = [self._noise(int(number)) for number in numbers]
        noise = torch.from_numpy(np.stack(drawn)).to(self.device, memory_format=torch.channels_last)
        predict: Any = self.unet
        if conditions is not None and self.adapter is not None:
            # Once, and in float32: it is added to what the network computes at each step.
            modulation = self.adapter(torch.from_numpy(conditions).to(self.device))
            predict = guided(self.unet, modulation, self.guidance)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            return as_tiles(ddim(lambda images, times: predict(images, times).float(), noise, self.steps))

    def _noise(self, number: int) -> np.ndarray:
        return np.random.default_rng([self.seed, number]).standard_normal((3, self.px, self.px), np.float32)
