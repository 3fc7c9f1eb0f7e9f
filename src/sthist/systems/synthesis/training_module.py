"""What the engine trains: the U-Net on tiles, or the adapter alone on tiles and expression."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sthist.nets import diffusion_loss, drop_conditions
from sthist.nets._synthesis.diffusion import TIMES
from sthist.training.batches import as_input, augmented
from sthist.training.module import TrainingModule

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sthist.nets import DiffusionUNet, GeneAdapter
    from sthist.systems.synthesis.config import DiffusionTraining


class DiffusionModule(TrainingModule):
    """Trains a U-Net to see the noise in tiles; or, where there is an adapter, that one, and the U-Net stays as it is.

    ``tiles``: (n, px, px, 3) uint8, which may be mapped from a file; ``conditions``: (n, genes), of the adapter.
    """

    def __init__(
        self,
        unet: DiffusionUNet,
        tiles: np.ndarray,
        options: DiffusionTraining,
        adapter: GeneAdapter | None = None,
        conditions: np.ndarray | None = None,
    ) -> None:
        super().__init__(options)
        self.options: DiffusionTraining = options
        self.unet, self.adapter = unet, adapter
        self.tiles, self.conditions, self.px = tiles, conditions, tiles.shape[1]
        if adapter is not None:
            unet.requires_grad_(False)

    def kept(self) -> torch.nn.Module:
        """What is trained."""
        return self.unet if self.adapter is None else self.adapter

    def batches(self, epoch: int, device: int, n_devices: int) -> Iterator[Any]:
        """Tiles, turned and mirrored, and their conditions; all are taken equally often, give or take once."""
        options = self.options
        rng = np.random.default_rng([options.seed, epoch])
        wanted = options.steps_per_epoch * options.batch_size
        rounds = -(-wanted // len(self.tiles))
        rows = np.concatenate([rng.permutation(len(self.tiles)) for _ in range(rounds)])[:wanted]
        for batch in rows.reshape(options.steps_per_epoch, options.batch_size):
            mine = batch[device::n_devices]
            tiles = torch.from_numpy(augmented(self.tiles[mine], mine, options.seed, epoch))
            yield tiles, None if self.conditions is None else torch.from_numpy(self.conditions[mine])

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        """The weighted error of the noise that is seen."""
        tiles, conditions = batch
        loss = self._loss(as_input(tiles, -1.0), conditions)
        self.terms = {"loss": loss.detach()}
        return loss

    def trial_step(self, batch_size: int, px: int | None) -> None:
        """Forward and backward pass on noise."""
        side = px or int(self.px or 0)
        images = torch.randn(batch_size, 3, side, side, device=self.device)
        n_genes = 0 if self.conditions is None else self.conditions.shape[1]
        self._loss(images, torch.randn(batch_size, n_genes, device=self.device) if n_genes else None).backward()

    def configure_optimizers(self) -> Any:
        """AdamW of what is trained, with a rate that rises first."""
        options = self.options
        optimizer = torch.optim.AdamW(self.kept().parameters(), lr=options.lr, weight_decay=options.weight_decay)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min(1.0, (step + 1) / max(1, options.warmup))
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave out the U-Net where it is not trained: it is in its own file."""
        super().on_save_checkpoint(checkpoint)
        if self.adapter is not None:
            state = checkpoint["state_dict"]
            checkpoint["state_dict"] = {name: each for name, each in state.items() if not name.startswith("unet.")}

    def _loss(self, images: torch.Tensor, conditions: torch.Tensor | None) -> torch.Tensor:
        modulation = None
        if self.adapter is not None and conditions is not None:
            modulation = drop_conditions(self.adapter(conditions), self.options.drop)
        times = torch.randint(TIMES, (len(images),), device=images.device)
        gamma = float("inf") if self.options.gamma is None else self.options.gamma
        return diffusion_loss(
            lambda noisy, at: self.unet(noisy, at, modulation), images, times, torch.randn_like(images), gamma
        )
