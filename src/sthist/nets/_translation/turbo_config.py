"""Shape of the one-step generator, as plain values: what has to be known before any network is made."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

UNET_TARGETS = (
    *("to_q", "to_k", "to_v", "to_out.0"),
    *("conv", "conv1", "conv2", "conv_shortcut", "conv_out"),
    *("proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"),
)
VAE_TARGETS = (
    *("conv", "conv1", "conv2", "conv_in", "conv_out", "conv_shortcut"),
    *("skip_conv_1", "skip_conv_2", "skip_conv_3", "skip_conv_4"),
    *("to_q", "to_k", "to_v", "to_out.0"),
)
"""Ends of the names of the layers that get low-rank adapters; all else of the backbone stays as it is."""

TRAINED, PADDINGS = ("adapters", "all"), ("zeros", "replicate")


@dataclass(frozen=True)
class TurboConfig:
    """Sizes and constants of a generator; the defaults are those of SD-Turbo with the adapters of Pix2Pix-Turbo.

    Attributes
    ----------
    backbone
        Name of the family of weights: ``"sd-turbo"``, or ``"small"`` for one that starts from random weights.
    vae_channels, vae_layers, latent_channels
        Widths of the image autoencoder, the finest first, its layers per width, and the channels of a latent.
    in_channels
        Channels of the image that goes in; published weights take three. Three come out.
    scaling
        What latents are multiplied by on their way into the U-Net.
    unet_channels, unet_layers, unet_heads
        Widths of the U-Net, its layers per width, and its attention heads per width. All widths but the last
        see the prompt.
    norm_groups
        Of all group normalisations.
    text_dim, text_layers, text_heads, text_hidden, text_act, vocabulary, tokens
        Of the text encoder: width, depth, heads, width of its inner layers, their activation, kinds of token,
        and tokens per prompt.
    timestep
        Of the 1000 of the noise schedule, the one that the single step is made at.
    rank_unet, rank_vae, lora_alpha
        Ranks of the adapters (0 for none), and the number that is divided by the rank to give their weight.
    unet_targets, vae_targets
        Ends of the names of the layers that get adapters.
    skip_init
        Value of all weights of the skip connections at the start; None for random ones.
    padding
        What convolutions see beyond the border: ``"zeros"``, as the published weights were trained, or ``"replicate"``,
        the border itself, with which the output depends less on the place in the tile.
    trained
        ``"adapters"`` (with the skip connections and the U-Net's first layer), or ``"all"`` weights.

    Examples
    --------
    >>> from sthist.nets import SD_TURBO, SMALL
    >>> SD_TURBO.stride, SMALL.stride
    (8, 8)
    """

    backbone: str = "sd-turbo"
    vae_channels: tuple[int, ...] = (128, 256, 512, 512)
    vae_layers: int = 2
    latent_channels: int = 4
    in_channels: int = 3
    scaling: float = 0.18215
    unet_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    unet_layers: int = 2
    unet_heads: tuple[int, ...] = (5, 10, 20, 20)
    norm_groups: int = 32
    text_dim: int = 1024
    text_layers: int = 23
    text_heads: int = 16
    text_hidden: int = 4096
    text_act: str = "gelu"
    vocabulary: int = 49408
    tokens: int = 77
    timestep: int = 999
    rank_unet: int = 8
    rank_vae: int = 4
    lora_alpha: int = 8
    unet_targets: tuple[str, ...] = UNET_TARGETS
    vae_targets: tuple[str, ...] = VAE_TARGETS
    skip_init: float | None = 1e-5
    padding: str = "zeros"
    trained: str = "adapters"

    def __post_init__(self) -> None:
        if self.trained not in TRAINED:
            raise ValueError(f"trained is {self.trained!r}; one of {list(TRAINED)} is expected.")
        if self.padding not in PADDINGS:
            raise ValueError(f"padding is {self.padding!r}; one of {list(PADDINGS)} is expected.")
        if len(self.unet_heads) != len(self.unet_channels):
            raise ValueError(
                f"unet_heads has {len(self.unet_heads)} numbers, unet_channels {len(self.unet_channels)}: one for each."
            )
        if self.in_channels < 1:
            raise ValueError(f"in_channels is {self.in_channels}; an image has at least one channel.")
        if not 0 <= self.timestep < 1000:
            raise ValueError(f"timestep is {self.timestep}; the noise schedule has 0 to 999.")
        if min(self.rank_unet, self.rank_vae) < 0:
            raise ValueError(
                f"Ranks of adapters are {self.rank_unet} and {self.rank_vae}; 0 (none) or more is expected."
            )

        if self.padding != "zeros" and (self.rank_unet or self.rank_vae):
            raise ValueError(
                f"padding is {self.padding!r}, and adapters are for weights that were trained with zeros beyond the "
                "border."
            )

    @property
    def stride(self) -> int:
        """Pixels of an image per pixel of a latent, along a side."""
        return 2 ** (len(self.vae_channels) - 1)

    def check_px(self, *sides: int) -> None:
        """Refuse images that the generator cannot give back at their size."""
        for px in sides:
            if px <= 0 or px % self.stride:
                below = max(px // self.stride, 1) * self.stride
                raise ValueError(
                    f"A tile of {px} px does not go through {self.backbone!r}: its side has to be a multiple of "
                    f"{self.stride}, such as {below} or {below + self.stride}."
                )

    def to_dict(self) -> dict[str, Any]:
        """Its values, as JSON takes them."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TurboConfig:
        """A config from the values of :meth:`to_dict`."""
        unknown = sorted(set(values) - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise ValueError(f"A generator has no settings {unknown}.")
        plain: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        return cls(**plain)


SD_TURBO = TurboConfig()
"""The generator of Pix2Pix-Turbo."""

SMALL = TurboConfig(
    backbone="small",
    vae_channels=(16, 32, 64, 64),
    vae_layers=1,
    # Untrained latents are of order 1 already. Half-way through the schedule the step multiplies errors by 2, at its
    # end by 15, which a network that starts from nothing does not recover from.
    scaling=1.0,
    timestep=499,
    unet_channels=(32, 64),
    unet_layers=1,
    unet_heads=(2, 4),
    norm_groups=8,
    text_dim=32,
    text_layers=1,
    text_heads=2,
    text_hidden=64,
    vocabulary=259,
    rank_unet=0,
    rank_vae=0,
    skip_init=None,
    padding="replicate",
    trained="all",
)
"""The same architecture, small enough to train from random weights on a CPU."""
