"""The loss of a translation: its terms by name, and the discriminator that one of them asks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sthist.nets import ImageTextLoss, MultilevelDiscriminator, PatchDiscriminator, PerceptualLoss, StructuralLoss
from sthist.nets._translation.discriminator import ClipFeatures
from sthist.nets._translation.losses import (
    SSIM_WINDOW,
    hinge_discriminator_loss,
    hinge_generator_loss,
    l1_loss,
    l2_loss,
    sigmoid_discriminator_loss,
    sigmoid_generator_loss,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sthist.systems.virtual_he.config import TranslationTraining

LEAST_JUDGED_PX = 32
"""Of smaller tiles the patch discriminator's innermost map is one value, which has no spread to be normalised by."""

WITHOUT = (
    "Train without it: losses=LossWeights(text=0), discriminator='patch' and perceptual='structural' need no weights."
)


class Reconstruction(nn.Module):
    """Terms that compare an output with the real image and its prompt, in 32 bits whatever the autocast.

    ``training``: which terms, and where their weights are; ``prompts``: the distinct prompts; ``px``: side of the
    tiles; ``encoder``: image-text network; by default that of the training.
    """

    texts: torch.Tensor

    def __init__(self, training: TranslationTraining, prompts: Sequence[str], px: int, encoder: Any = None) -> None:
        super().__init__()
        self.perceptual, self.likeness, self.with_l1 = None, None, training.weights.l1 > 0
        if training.weights.perceptual:
            self.perceptual = _perceptual(training, px)
        if training.weights.text:
            encoder = image_text(training) if encoder is None else encoder
            self.likeness = ImageTextLoss(encoder.module, **_seen_as(encoder))
            # A prompt stays the same throughout, so the text tower is asked once.
            self.register_buffer("texts", torch.from_numpy(encoder.embed_text(list(prompts))), persistent=False)

    def forward(self, fake: torch.Tensor, real: torch.Tensor, codes: torch.Tensor) -> dict[str, torch.Tensor]:
        """Terms by name, of images from -1 to 1 and the number of each image's prompt."""
        with torch.autocast(fake.device.type, enabled=False):
            fake = fake.float()
            parts = {"l2": l2_loss(fake, real)}
            if self.with_l1:
                parts["l1"] = l1_loss(fake, real)
            if self.perceptual is not None:
                parts["perceptual"] = self.perceptual(fake, real)
            if self.likeness is not None:
                parts["text"] = self.likeness(fake, self.texts[codes])
        return parts


class AdversarialLoss(nn.Module):
    """A discriminator with the losses that go with it.

    Parameters
    ----------
    training
        Which one.
    px
        Side of the tiles.
    encoder
        Image-text network; by default that of the training.
    in_channels
        Channels of the input.

    Raises
    ------
    ValueError
        If the tiles are too small for it.
    """

    def __init__(self, training: TranslationTraining, px: int, encoder: Any = None, *, in_channels: int = 3) -> None:
        super().__init__()
        self.sees_input = training.discriminator != "clip"
        if self.sees_input and px < LEAST_JUDGED_PX:
            raise ValueError(
                f"Tiles of {px} px are too small for the patch discriminator; it needs {LEAST_JUDGED_PX} px. Take "
                "larger tiles, or adversarial=0."
            )
        if self.sees_input:
            self.network: nn.Module = PatchDiscriminator(in_channels + 3, width=32, layers=3, norm="instance")
            hinge = (hinge_generator_loss, hinge_discriminator_loss)
            self._losses: Any = hinge if training.discriminator == "patch" else (_plain_generator, _half_discriminator)
        else:
            encoder = image_text(training) if encoder is None else encoder
            features = ClipFeatures(encoder.module.visual, **_seen_as(encoder))
            self.network = MultilevelDiscriminator(features, **_sizes(features))
            self._losses = (sigmoid_generator_loss, sigmoid_discriminator_loss)

    def logits(self, inputs: torch.Tensor, images: torch.Tensor) -> Any:
        """What it says of images, beside what they were made from if it sees that."""
        return self.network(torch.cat([inputs, images], 1) if self.sees_input else images)

    def generator_loss(self, inputs: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
        """What the generator loses; no gradient reaches the discriminator."""
        self.requires_grad_(False)
        loss = self._losses[0](self.logits(inputs, fake))
        self.requires_grad_(True)
        return loss

    def discriminator_loss(self, inputs: torch.Tensor, fake: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """What the discriminator loses; no gradient reaches the generator."""
        return self._losses[1](self.logits(inputs, real), self.logits(inputs, fake.detach()))


def _plain_generator(fake: Any) -> torch.Tensor:
    """Cross-entropy of a generator, its labels as they are."""
    return sigmoid_generator_loss(fake, target=1.0)


def _half_discriminator(real: Any, fake: Any) -> torch.Tensor:
    """Half the cross-entropy of a discriminator, which so learns the more slowly of the two (Isola et al. 2017)."""
    return sigmoid_discriminator_loss(real, fake, target=1.0) / 2


def _perceptual(training: TranslationTraining, px: int) -> nn.Module:
    if training.perceptual == "lpips":
        from sthist._weights.files import MetricUnavailable
        from sthist.metrics._networks import lpips_network

        try:
            return PerceptualLoss(lpips_network("vgg", training.lpips_weights))
        except MetricUnavailable as error:
            raise FileNotFoundError(f"The perceptual term needs weights: {error} {WITHOUT}") from error
    levels = next((n for n in (3, 2, 1) if px >= SSIM_WINDOW * 2 ** (n - 1)), 0)
    if not levels:
        raise ValueError(f"Tiles of {px} px are too small for the structural term; it needs {SSIM_WINDOW} px.")
    return StructuralLoss(levels)


def image_text(training: TranslationTraining) -> Any:
    """The image-text network of a training."""
    from sthist import encoders

    try:
        # Lightning moves it with all else; made on a device, it would be apart from what is built around it.
        encoder = encoders.get(training.clip, weights=training.clip_weights, precision="float32", device="cpu")
    except (ConnectionError, PermissionError, FileNotFoundError) as error:
        error.add_note(f"It is for the text term or the discriminator. {WITHOUT}")
        raise
    if not encoder.can_text:
        raise ValueError(f"clip={training.clip!r} embeds images only; an image-text network of open_clip is needed.")
    return encoder


def _seen_as(encoder: Any) -> dict[str, Any]:
    """Size and colours that an image tower was trained to."""
    transform = encoder.transform
    return {"size": transform.size, "mean": transform.mean, "std": transform.std}


def _sizes(features: ClipFeatures) -> dict[str, Any]:
    """Channels of what a network sees."""
    with torch.no_grad():
        device = next(features.visual.network.parameters()).device
        size = features.normalized.size
        *maps, embedding = features(torch.zeros(1, 3, size, size, device=device))
    return {"map_channels": [each.shape[1] for each in maps], "embedding_dim": embedding.shape[1]}
