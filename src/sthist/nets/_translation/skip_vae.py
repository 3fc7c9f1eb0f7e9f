"""Image autoencoder whose decoder also sees what its encoder saw on the way down."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from sthist.nets._translation.turbo_config import TurboConfig

Skips = tuple[torch.Tensor, ...]


class SkipVAE(nn.Module):
    """The autoencoder of Stable Diffusion, with one 1 x 1 convolution per resolution from encoder to decoder.

    The activations travel as values, from :meth:`encode` to :meth:`decode`; nothing of an image stays on the module,
    so calls may be interleaved, tiled, compiled, and made from several threads.

    Parameters
    ----------
    config
        Sizes.
    """

    # torch types what is inside a module as tensor or module.
    encoder: Any
    decoder: Any
    quant_conv: Any
    post_quant_conv: Any

    def __init__(self, config: TurboConfig) -> None:
        super().__init__()
        vae = _autoencoder(config)
        self.encoder, self.decoder = vae.encoder, vae.decoder
        self.quant_conv, self.post_quant_conv = vae.quant_conv, vae.post_quant_conv
        self.checkpointing = False
        for i, (source, target) in enumerate(_skip_channels(config.vae_channels), 1):
            self.add_module(f"skip_conv_{i}", nn.Conv2d(source, target, 1, bias=False))
        self.reset_skips(config.skip_init)

    @property
    def skip_convs(self) -> list[Any]:
        """The skip connections, the coarsest first."""
        return [layer for name, layer in self.named_children() if name.startswith("skip_conv_")]

    def reset_skips(self, value: float | None) -> None:
        """Set all weights of the skip connections to one value, or draw them for None."""
        for layer in self.skip_convs:
            if value is None:
                layer.reset_parameters()
            else:
                nn.init.constant_(layer.weight, value)

    def encode(self, image: torch.Tensor, noise: torch.Tensor | None = None) -> tuple[torch.Tensor, Skips]:
        """Latent of an image, and what the encoder saw before each of its blocks.

        Returns the latent, not scaled, and the activations, the finest first.
        """
        hidden = self.encoder.conv_in(image)
        skips = []
        for block in self.encoder.down_blocks:
            skips.append(hidden)
            hidden = self._run(block, hidden)
        hidden = self._run(self.encoder.mid_block, hidden)
        mean, log_variance = self.quant_conv(_head(self.encoder, hidden)).chunk(2, dim=1)
        if noise is not None:
            mean = mean + noise * torch.exp(0.5 * log_variance.clamp(-30.0, 20.0))
        return mean, tuple(skips)

    def decode(self, latent: torch.Tensor, skips: Skips | None = None, skip_scale: float = 1.0) -> torch.Tensor:
        """Image of a latent.

        Returns (n, 3, height, width), not clamped.
        """
        hidden = self._run(self.decoder.mid_block, self.decoder.conv_in(self.post_quant_conv(latent)))
        layers = self.skip_convs if skips is not None else []
        for i, block in enumerate(self.decoder.up_blocks):
            if skips is not None:
                hidden = hidden + layers[i](skips[-1 - i] * skip_scale)
            hidden = self._run(block, hidden)
        return _head(self.decoder, hidden)

    def _run(self, block: Any, hidden: torch.Tensor) -> torch.Tensor:
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(block, hidden, use_reentrant=False)
        return block(hidden)


def _head(side: Any, hidden: torch.Tensor) -> torch.Tensor:
    """The last layers of an encoder or decoder."""
    return side.conv_out(side.conv_act(side.conv_norm_out(hidden)))


def _skip_channels(widths: tuple[int, ...]) -> list[tuple[int, int]]:
    """Widths before each block of the encoder, and before the block of the decoder at the same resolution."""
    before_down = (widths[0], *widths[:-1])
    before_up = (*widths[1:], widths[-1])
    return list(zip(before_down, before_up, strict=True))[::-1]


def _autoencoder(config: TurboConfig) -> Any:
    from diffusers import AutoencoderKL

    depth = len(config.vae_channels)
    return AutoencoderKL(
        in_channels=config.in_channels,
        down_block_types=("DownEncoderBlock2D",) * depth,
        up_block_types=("UpDecoderBlock2D",) * depth,
        block_out_channels=config.vae_channels,
        layers_per_block=config.vae_layers,
        latent_channels=config.latent_channels,
        norm_num_groups=config.norm_groups,
    )
