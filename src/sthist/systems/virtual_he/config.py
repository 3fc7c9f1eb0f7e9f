"""How an image translation is drawn, trained and weighed, as plain values."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sthist.tiles._spec import TileSpec

UNCONDITIONED = "dapi2he"
"""ST2HE's prompt where the tissue is not said (UnconGen)."""

CONDITIONED = "This is a {tissue} H&E image"
"""ST2HE's prompt where it is (CondGen)."""


@dataclass(frozen=True)
class TranslationConfig:
    """What a model that turns transcripts on a nuclear stain into H&E sees and says.

    Attributes
    ----------
    size_um, px
        Tile that it was made for: side in µm and in pixels.
    mode, palette, color, dot_s, dot_dpi, dot_um, min_qv
        How transcripts are drawn, as of :class:`sthist.tiles.Overlay` (``dot_s`` and ``dot_dpi`` are its ``s`` and
        ``dpi``).
    input_low
        Value of black in the input; white is 1. The output lies between -1 and 1.
    prompts
        Prompt by tissue; under ``""`` the one where the tissue is not said.
    training
        How it was trained; plain values.
    """

    size_um: float = 108.8
    px: int = 512
    mode: Literal["multi", "mono", "none"] = "multi"
    palette: Literal["permuted", "fixed"] = "permuted"
    color: str = "red"
    dot_s: float = 0.3
    dot_dpi: float = 64.0
    dot_um: float | None = None
    min_qv: float = 20.0
    input_low: float = -1.0
    prompts: dict[str, str] = field(default_factory=lambda: {"": UNCONDITIONED})
    training: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        make_plain(self)
        require_prompts(self.prompts)
        if self.input_low not in (0.0, -1.0):
            msg = f"input_low is {self.input_low!r}; black is -1, or 0 in upstream's training."
            raise ValueError(msg)
        self.spec  # noqa: B018  # its checks

    @property
    def spec(self) -> TileSpec:
        """The tile."""
        return TileSpec(self.size_um, self.px)

    def style(self) -> dict[str, Any]:
        """Arguments of :class:`sthist.tiles.Overlay`."""
        size = {"dot_s": self.dot_s, "dot_dpi": self.dot_dpi} if self.dot_um is None else {"dot_um": self.dot_um}
        palette = self.color if self.mode == "mono" else self.palette
        return {"mode": self.mode, "palette": palette, "min_qv": self.min_qv, **size}

    def prompt_of(self, tissue: str | None) -> str:
        """The prompt of a tissue.

        Raises
        ------
        KeyError
            If the model knows several tissues and none is said, or another.
        """
        if tissue is None and len(self.prompts) == 1:
            return next(iter(self.prompts.values()))
        if (tissue or "") in self.prompts:
            return self.prompts[tissue or ""]
        known = sorted(self.prompts)
        if known == [""]:
            msg = f"tissue={tissue!r}: the model was not conditioned on tissue. Leave tissue= out."
        elif tissue is None:
            msg = f"The model was trained on several tissues, {known}: say which one this is with tissue=."
        else:
            msg = f"The model knows no tissue {tissue!r}; it was trained on {known}."
        raise KeyError(msg)


def make_plain(settings: Any) -> None:
    """Take numbers of numpy, and paths, as what JSON knows.

    After a training is too late to find that it cannot be kept.
    """
    for field_ in dataclasses.fields(settings):
        value = getattr(settings, field_.name)
        if isinstance(value, np.generic):
            value = value.item()
        elif isinstance(value, Path):
            value = str(value)
        object.__setattr__(settings, field_.name, value)


def require_prompts(prompts: dict[str, str]) -> None:
    """Refuse prompts that are blank, or that two tissues share: the generator could not tell them apart."""
    owner: dict[str, str] = {}
    for tissue, prompt in prompts.items():
        if not isinstance(prompt, str) or not prompt.strip():
            msg = f"The prompt of tissue {tissue!r} is {prompt!r}; a text that is not blank is needed."
            raise ValueError(msg)
        other = owner.setdefault(prompt, tissue)
        if other != tissue:
            msg = f"Tissues {other!r} and {tissue!r} share the prompt {prompt!r}: nothing would tell them apart."
            raise ValueError(msg)
    if not prompts:
        msg = "There is no prompt; where tissue is not said it is {'': 'dapi2he'}."
        raise ValueError(msg)


@dataclass(frozen=True)
class LossWeights:
    """Weights of the terms of a generator's loss; a term of weight 0 is not computed.

    Attributes
    ----------
    l2
        Mean squared difference of images from -1 to 1.
    perceptual
        LPIPS, or structure and edges at several scales where there are no weights for it.
    text
        Likeness of image and prompt to an image-text network.
    adversarial
        What the discriminator says.
    adversarial_from
        Part of the training, from 0 to 1, after which the discriminator's word counts.
    """

    l2: float = 1.0
    perceptual: float = 5.0
    text: float = 5.0
    adversarial: float = 0.5
    adversarial_from: float = 0.0

    def __post_init__(self) -> None:
        make_plain(self)
        for name, value in dataclasses.asdict(self).items():
            if not (math.isfinite(value) and value >= 0):
                msg = f"Loss weight {name} is {value!r}; a number from 0 on is needed."
                raise ValueError(msg)
        if self.l2 + self.perceptual == 0:
            msg = "Both l2 and perceptual are 0: nothing would tie the output to the real image."
            raise ValueError(msg)


LOSSES = {
    "upstream": LossWeights(),
    "paper": LossWeights(text=0.1),
    "paper-hg": LossWeights(text=0.3),
    "small": LossWeights(l2=4.0, perceptual=1.0, text=0.0, adversarial=0.1, adversarial_from=0.2),
    "pix2pix": LossWeights(l2=25.0, perceptual=0.0, text=0.0, adversarial=1.0),
}
"""Presets. ``"upstream"`` is img2img-turbo's default. ST2HE names weights of its global-context loss alone, 0.1 and a
high one of 0.3, and neither is a weight of upstream's code; the ``"paper"`` presets put them on the term of that
name."""


WHOLE = {"epochs": 1, "steps_per_epoch": 1, "batch_size": 1, "accumulate": 1, "images_every": 0, "seed": 0}
"""Settings that are whole numbers, and the least of each."""

CHOICES = {
    "schedule": ("constant", "cosine"),
    "perceptual": ("lpips", "structural"),
    "discriminator": ("clip", "patch"),
    "precision": ("auto", "32-true", "bf16-mixed"),
}


@dataclass(frozen=True)
class TranslationTraining:
    """How a model is trained.

    Attributes
    ----------
    losses
        Name of a preset (``"upstream"``, ``"paper"``, ``"paper-hg"``, ``"small"``, ``"pix2pix"``), or
        :class:`LossWeights`.
    epochs, steps_per_epoch, batch_size
        An epoch is a fixed number of batches, which are counted as steps; after each, the training can be resumed.
    lr, lr_discriminator, beta1, weight_decay, clip_norm
        Of AdamW, and the largest norm of the gradients.
    schedule
        ``"constant"``, or ``"cosine"``: the learning rate falls to 1/20 over the training.
    accumulate
        Batches whose mean gradient changes the weights once.
    checkpoint_gradients
        Compute activations twice in place of keeping them.
    ema
        Decay of the running mean of the weights that is kept in place of the last ones; 0 for none.
    sample_posterior
        Draw latents from their posterior in training, as upstream does, in place of its mean.
    perceptual
        ``"lpips"``, with the VGG-16 of torchvision, or ``"structural"``, which needs no weights.
    lpips_weights
        State dict of that VGG-16; by default its place in torch's cache.
    discriminator
        ``"clip"``: heads on the frozen features of the image-text network; ``"patch"``: of its own, without weights.
    clip, clip_weights
        Image-text network of :func:`sthist.encoders.get` for the text term and that discriminator.
    precision
        ``"auto"`` (bf16 on cuda, float32 elsewhere), ``"32-true"`` or ``"bf16-mixed"``. Weights stay in 32 bits.
    images_every
        Epochs between images of validation tiles; 0 for none.
    seed
        Of every draw.
    """

    losses: str | LossWeights = "upstream"
    epochs: int = 20
    steps_per_epoch: int = 500
    batch_size: int = 4
    lr: float = 5e-6
    lr_discriminator: float = 5e-6
    beta1: float = 0.9
    weight_decay: float = 1e-2
    clip_norm: float = 1.0
    schedule: Literal["constant", "cosine"] = "constant"
    accumulate: int = 1
    checkpoint_gradients: bool = False
    ema: float = 0.0
    sample_posterior: bool = True
    perceptual: Literal["lpips", "structural"] = "lpips"
    lpips_weights: str | None = None
    discriminator: Literal["clip", "patch"] = "clip"
    clip: str = "open_clip:ViT-B-32-quickgelu/openai"
    clip_weights: str | None = None
    precision: str = "auto"
    images_every: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        make_plain(self)
        for name, least in WHOLE.items():
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                msg = f"{name} is {value!r}; a whole number from {least} on is needed."
                raise ValueError(msg)
        for name in ("lr", "lr_discriminator", "clip_norm"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                msg = f"{name} is {getattr(self, name)!r}; a positive number is needed."
                raise ValueError(msg)
        if self.steps_per_epoch % self.accumulate:
            msg = (
                f"steps_per_epoch is {self.steps_per_epoch}, no multiple of accumulate={self.accumulate}: some "
                f"batches would be left over."
            )
            raise ValueError(msg)
        if not 0 <= self.ema < 1:
            msg = f"ema is {self.ema!r}; a decay from 0 (none) to less than 1 is needed."
            raise ValueError(msg)
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                msg = f"{name} is {getattr(self, name)!r}; it is one of {list(known)}."
                raise ValueError(msg)
        if isinstance(self.losses, dict):
            object.__setattr__(self, "losses", LossWeights(**self.losses))
        if not isinstance(self.losses, LossWeights) and self.losses not in LOSSES:
            msg = f"losses is {self.losses!r}; it is LossWeights, or one of {list(LOSSES)}."
            raise ValueError(msg)

    @property
    def weights(self) -> LossWeights:
        """The weights that are meant."""
        return LOSSES[self.losses] if isinstance(self.losses, str) else self.losses

    @property
    def steps(self) -> int:
        """Steps in all."""
        return self.epochs * self.steps_per_epoch

    def lr_factor(self, step: int) -> float:
        """What the learning rates are multiplied by at a step."""
        if self.schedule == "constant":
            return 1.0
        share = min(1.0, step / max(1, self.steps - 1))
        return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * share))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, with the weights of the losses in place of a preset's name."""
        return dataclasses.asdict(self) | {"losses": dataclasses.asdict(self.weights)}
