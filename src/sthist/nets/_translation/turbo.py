"""One-step generator: an image and a prompt in, an image out, with one pass of a diffusion U-Net in between."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sthist.nets._translation.lora import add_lora, fill, lora_layers, merge_lora, plain_name
from sthist.nets._translation.skip_vae import SkipVAE

if TYPE_CHECKING:
    from sthist.nets._translation.turbo_config import TurboConfig

BETA_FIRST, BETA_LAST, STEPS = 0.00085, 0.012, 1000
"""Noise schedule of Stable Diffusion: betas whose square roots are evenly spaced."""


def one_step_coefficients(timestep: int = 999) -> tuple[float, float]:
    """What latent and predicted noise are multiplied by, to give the clean latent in one step.

    Returns ``a`` and ``b`` of ``a * latent - b * noise``.

    Examples
    --------
    >>> a, b = one_step_coefficients()
    >>> round(a, 3), round(b, 3)
    (14.649, 14.615)
    """
    # In single precision, as the schedule that the weights were trained with.
    betas = torch.linspace(BETA_FIRST**0.5, BETA_LAST**0.5, STEPS, dtype=torch.float32, device="cpu") ** 2
    kept = torch.cumprod(1.0 - betas, dim=0)[timestep].item()
    return kept**-0.5, ((1.0 - kept) / kept) ** 0.5


class Turbo(nn.Module):
    """Generator of Pix2Pix-Turbo: autoencoder with skip connections, U-Net, one step.

    As made, it holds the backbone alone, for weights to be put in; :meth:`adapt` makes it trainable. The text encoder
    is no part of it: prompts come as embeddings, which are made once for many images.

    Parameters
    ----------
    config
        Sizes and constants.

    Examples
    --------
    >>> import torch
    >>> from sthist.nets import SMALL, Turbo
    >>> generator = Turbo(SMALL).eval()
    >>> image, prompt = torch.zeros(1, 3, 32, 32), torch.zeros(1, SMALL.tokens, SMALL.text_dim)
    >>> with torch.inference_mode():
    ...     generator(image, prompt).shape
    torch.Size([1, 3, 32, 32])
    """

    unet: Any

    def __init__(self, config: TurboConfig) -> None:
        super().__init__()
        self.config = config
        self.vae = SkipVAE(config)
        self.unet = _unet(config)
        self.coefficients = one_step_coefficients(config.timestep)
        if config.padding == "replicate":
            _replicate(self)

    def adapt(self) -> Turbo:
        """Put on the adapters, and let gradients reach what is trained and nothing else; returns itself."""
        config = self.config
        add_lora(self.unet, config.rank_unet, config.unet_targets, alpha=config.lora_alpha)
        add_lora(self.vae, config.rank_vae, config.vae_targets, alpha=config.lora_alpha)
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(self._is_trained(plain_name(name)))
        return self

    def merge(self) -> Turbo:
        """Take the adapters into the weights, for inference; returns itself. It cannot be trained on from there."""
        merge_lora(self)
        return self.requires_grad_(False)

    def checkpoint_gradients(self, on: bool = True) -> Turbo:
        """Compute activations twice in training instead of keeping them; returns itself."""
        self.vae.checkpointing = on
        if on:
            self.unet.enable_gradient_checkpointing()
        else:
            self.unet.disable_gradient_checkpointing()
        return self

    def forward(
        self,
        image: torch.Tensor,
        prompt: torch.Tensor,
        noise: torch.Tensor | None = None,
        *,
        skips: bool = True,
        skip_scale: float = 1.0,
    ) -> torch.Tensor:
        """Translate images.

        Returns (n, 3, height, width) in [-1, 1].
        """
        self.config.check_px(*image.shape[-2:])
        latent, seen = self.vae.encode(image, noise)
        clean = self.step(latent * self.config.scaling, prompt) / self.config.scaling
        return self.vae.decode(clean, seen if skips else None, skip_scale).clamp(-1.0, 1.0)

    def step(self, latent: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
        """The clean latent that a latent is taken to in one step."""
        keep, remove = self.coefficients
        noise = self.unet(latent, self.config.timestep, encoder_hidden_states=prompt.expand(len(latent), -1, -1)).sample
        # Both terms are fifteen times their difference, at the last of the steps: in 16 bits little of it would be
        # left.
        return keep * latent.float() - remove * noise.float()

    def latent_shape(self, image: torch.Tensor) -> tuple[int, int, int, int]:
        """Shape of the latents of images."""
        n, _, height, width = image.shape
        return n, self.config.latent_channels, height // self.config.stride, width // self.config.stride

    def trained_state(self) -> dict[str, torch.Tensor]:
        """What training changes, by names that do not depend on the version of any library."""
        return {name: tensor.detach() for name, tensor in self._trained().items()}

    def load_trained_state(self, state: dict[str, torch.Tensor], source: object = "the state") -> None:
        """Put in what :meth:`trained_state` gave."""
        fill(self._trained(), state, source)

    def _trained(self) -> dict[str, torch.Tensor]:
        needs = self.config.trained == "adapters" and self.config.rank_unet + self.config.rank_vae > 0
        if needs and next(lora_layers(self), None) is None:
            raise ValueError(
                "The generator has no adapters: call adapt() first, and keep what was trained before merge()."
            )
        named = ((plain_name(name), parameter) for name, parameter in self.named_parameters())
        return {name: parameter for name, parameter in named if self._is_trained(name)}

    def _is_trained(self, name: str) -> bool:
        everything = self.config.trained == "all"
        return everything or ".lora_" in name or name.startswith(("unet.conv_in.", "vae.skip_conv_"))


def _replicate(network: nn.Module) -> None:
    """Let all convolutions see their border beyond it, in place of zeros; in place."""
    layer: Any
    for layer in network.modules():
        # The autoencoder halves its images with a row and a column of zeros at one end.
        if getattr(layer, "use_conv", False) and getattr(layer, "padding", None) == 0:
            layer.padding, layer.conv.padding = 1, (1, 1)
            layer.conv._reversed_padding_repeated_twice = [1, 1, 1, 1]
        if isinstance(layer, nn.Conv2d):
            layer.padding_mode = "replicate"


def _unet(config: TurboConfig) -> Any:
    from diffusers import UNet2DConditionModel

    prompted = len(config.unet_channels) - 1
    return UNet2DConditionModel(
        in_channels=config.latent_channels,
        out_channels=config.latent_channels,
        down_block_types=("CrossAttnDownBlock2D",) * prompted + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * prompted,
        block_out_channels=config.unet_channels,
        layers_per_block=config.unet_layers,
        attention_head_dim=config.unet_heads,
        cross_attention_dim=config.text_dim,
        norm_num_groups=config.norm_groups,
        use_linear_projection=True,
    )
