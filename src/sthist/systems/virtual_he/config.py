"""How an image translation is drawn, trained and weighed, as plain values."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np

from sthist.pp import StainReference
from sthist.systems.virtual_he.programmes import PROGRAMMES
from sthist.tiles._molecules.densities import OWN_CHANNELS, SCALE
from sthist.tiles._spec import TileSpec
from sthist.training.options import Training, make_plain

UNCONDITIONED = "dapi2he"
"""ST2HE's prompt where the tissue is not said (UnconGen)."""

CONDITIONED = "This is a {tissue} H&E image"
"""ST2HE's prompt where it is (CondGen)."""


MOLECULES, TARGETS = ("dots", "density", "groups"), ("rgb", "stains")


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
    molecules
        How it sees molecules: ``"dots"`` on the stain, as above; ``"density"``: how dense they are, in a channel of
        their own; ``"groups"``: that, and how dense the genes of each group are
        (:class:`sthist.tiles.DensityTiles`).
    groups
        Genes of each group, for ``molecules="groups"``.
    density_um
        Standard deviation, in µm, of the Gaussian that densities are smoothed by.
    scales
        Least and largest µm per pixel that it works at, of which it is told; None for that of its tile alone.
    target
        What it says: ``"rgb"``, the colours of its training; or ``"stains"``: how much haematoxylin and eosin there is,
        and a residual at right angles to both. Colours are then those of the reference, or of another slide.
    reference
        For ``target="stains"``: values of the :class:`sthist.pp.StainReference` that training slides are brought to.
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
    molecules: Literal["dots", "density", "groups"] = "dots"
    groups: dict[str, list[str] | tuple[str, ...]] = field(default_factory=dict)
    density_um: float = 4.0
    scales: tuple[float, float] | None = None
    target: Literal["rgb", "stains"] = "rgb"
    reference: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        make_plain(self)
        require_prompts(self.prompts)
        # A JSON file knows lists alone.
        object.__setattr__(self, "groups", {name: tuple(map(str, genes)) for name, genes in self.groups.items()})
        object.__setattr__(self, "scales", None if self.scales is None else tuple(map(float, self.scales)))
        require_molecules(self.molecules, self.groups, self.scales)
        if self.target not in TARGETS:
            raise ValueError(f"target is {self.target!r}; it is one of {list(TARGETS)}.")
        if self.target == "stains" and not self.reference:
            object.__setattr__(self, "reference", StainReference.default().to_dict())
        if self.reference:
            require_two_stains(StainReference.from_dict(self.reference))
        if self.input_low not in (0.0, -1.0):
            raise ValueError(f"input_low is {self.input_low!r}; black is -1, or 0 in upstream's training.")
        self.spec  # noqa: B018  # its checks

    @property
    def spec(self) -> TileSpec:
        """The tile."""
        return TileSpec(self.size_um, self.px)

    @property
    def in_channels(self) -> int:
        """Channels of its input."""
        return 3 if self.molecules == "dots" else len(OWN_CHANNELS) + len(self.groups)

    def spec_at(self, mpp: float) -> TileSpec:
        """The tile at another µm per pixel; at that of its training where it knows one scale alone.

        Raises
        ------
        ValueError
            If it has not been trained at that scale.
        """
        if self.scales is None:
            if abs(mpp / self.spec.mpp - 1) > 1e-6:
                raise ValueError(
                    f"mpp is {mpp:.4g}; this model has learned histology at {self.spec.mpp:.4g} µm/px, and makes no "
                    "other."
                )
            return self.spec
        low, high = self.scales
        if not low * (1 - 1e-6) <= mpp <= high * (1 + 1e-6):
            raise ValueError(
                f"mpp is {mpp:.4g}; this model has learned histology at {low:.4g} to {high:.4g} µm/px, and makes no "
                "other."
            )
        return TileSpec.from_mpp(mpp, self.px)

    def style(self) -> dict[str, Any]:
        """Arguments of :class:`sthist.tiles.Overlay`."""
        size = {"dot_s": self.dot_s, "dot_dpi": self.dot_dpi} if self.dot_um is None else {"dot_um": self.dot_um}
        palette = self.color if self.mode == "mono" else self.palette
        return {"mode": self.mode, "palette": palette, "min_qv": self.min_qv, **size}

    def density_style(self) -> dict[str, Any]:
        """Arguments of :class:`sthist.tiles.DensityTiles`."""
        return {"groups": self.groups, "density_um": self.density_um, "min_qv": self.min_qv}

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


def require_molecules(molecules: str, groups: dict[str, Any], scales: tuple[float, float] | None) -> None:
    """Refuse groups of genes that are none, and a range of scales that cannot be told."""
    if molecules not in MOLECULES:
        raise ValueError(f"molecules is {molecules!r}; it is one of {list(MOLECULES)}.")
    if (molecules == "groups") != bool(groups):
        raise ValueError(
            f"molecules is {molecules!r}, and there are {len(groups)} groups of genes; with 'groups' there is at "
            "least one, and otherwise none."
        )
    owner: dict[str, str] = {}
    for name, genes in groups.items():
        if not genes:
            raise ValueError(f"The group {name!r} has no genes.")
        for gene in genes:
            other = owner.setdefault(gene.upper(), name)
            if other != name:
                raise ValueError(f"Gene {gene!r} is in the groups {other!r} and {name!r}; a gene is in one.")
    if scales is None:
        return
    if molecules == "dots":
        raise ValueError("scales= is for molecules='density' or 'groups': dots are drawn for one scale.")
    low, high = scales
    if not SCALE[0] <= low <= high <= SCALE[1]:
        raise ValueError(f"scales is {scales}; they lie between {SCALE[0]} and {SCALE[1]} µm/px, the finest first.")


def require_two_stains(reference: StainReference) -> None:
    """Refuse a reference that says nothing of haematoxylin and eosin."""
    if reference.method != "macenko":
        raise ValueError(f"The stain reference is of method {reference.method!r}; amounts of stains need 'macenko'.")


def require_prompts(prompts: dict[str, str]) -> None:
    """Refuse prompts that are blank, or that two tissues share: the generator could not tell them apart."""
    owner: dict[str, str] = {}
    for tissue, prompt in prompts.items():
        if not isinstance(prompt, str) or not prompt.strip():
            raise ValueError(f"The prompt of tissue {tissue!r} is {prompt!r}; a text that is not blank is needed.")
        other = owner.setdefault(prompt, tissue)
        if other != tissue:
            raise ValueError(
                f"Tissues {other!r} and {tissue!r} share the prompt {prompt!r}: nothing would tell them apart."
            )
    if not prompts:
        raise ValueError("There is no prompt; where tissue is not said it is {'': 'dapi2he'}.")


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
        What the discriminator says; its own loss has the same weight, as in img2img-turbo.
    adversarial_from
        Part of the training, from 0 to 1, after which the discriminator's word counts.
    l1
        Mean absolute difference of images from -1 to 1.
    """

    l2: float = 1.0
    perceptual: float = 5.0
    text: float = 5.0
    adversarial: float = 0.5
    adversarial_from: float = 0.0
    l1: float = 0.0

    def __post_init__(self) -> None:
        make_plain(self)
        for name, value in dataclasses.asdict(self).items():
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"Loss weight {name} is {value!r}; a number from 0 on is needed.")
        if self.l1 + self.l2 + self.perceptual == 0:
            raise ValueError("All of l1, l2 and perceptual are 0: nothing would tie the output to the real image.")


LOSSES = {
    "upstream": LossWeights(),
    "paper": LossWeights(text=0.1),
    "paper-hg": LossWeights(text=0.3),
    "small": LossWeights(l2=4.0, perceptual=1.0, text=0.0, adversarial=0.1, adversarial_from=0.2),
    "pix2pix": LossWeights(l2=25.0, perceptual=0.0, text=0.0, adversarial=1.0),
    "pix2pix-published": LossWeights(l1=100.0, l2=0.0, perceptual=0.0, text=0.0, adversarial=1.0),
}
"""Presets. ``"upstream"`` is img2img-turbo's default. ST2HE names weights of its global-context loss alone, 0.1 and a
high one of 0.3, and neither is a weight of upstream's code; the ``"paper"`` presets put them on the term of that
name. ``"pix2pix-published"`` is what Isola et al. 2017 train with, beside ``discriminator="patch-bce"``."""


@dataclass(frozen=True)
class TranslationTraining(Training):
    """How a model of virtual H&E is trained, and on what; further fields are those of :class:`sthist.models.Training`.

    Attributes
    ----------
    losses
        Name of a preset (``"upstream"``, ``"paper"``, ``"paper-hg"``, ``"small"``, ``"pix2pix"``,
        ``"pix2pix-published"``), or :class:`LossWeights`.
    epochs, steps_per_epoch, batch_size
        An epoch is a fixed number of batches, which are counted as steps; after each, the training can be resumed.
    lr, lr_discriminator, beta1, weight_decay, clip_norm
        Of AdamW, and the largest norm of the gradients.
    schedule
        ``"constant"``, or ``"cosine"``: the learning rate falls to 1/20 over the training.
    sample_posterior
        Draw latents from their posterior in training, as upstream does, in place of its mean.
    perceptual
        ``"lpips"``, with the VGG-16 of torchvision, or ``"structural"``, which needs no weights.
    lpips_weights
        State dict of that VGG-16; by default its place in torch's cache.
    discriminator
        ``"clip"``: heads on the frozen features of the image-text network; ``"patch"``: of its own, without weights, on
        a hinge; ``"patch-bce"``: the same on cross-entropy, half of it, as Isola et al. 2017.
    clip, clip_weights
        Image-text network of :func:`sthist.encoders.get` for the text term and that discriminator.
    images_every
        Number of epochs between images of validation tiles; 0 for none.
    spec
        :class:`sthist.tiles.TileSpec` of tiles that are not laid yet. By default 128 px as fine as the coarser of H&E
        and stain; for ``"sd-turbo"`` 108.8 µm on 512 px.
    n_tiles
        Number of tiles of each sample, where none are laid.
    channel, z
        Channel of the nuclear stain; a plane, or the first and the last of several, of stain and transcripts together.
    mode, palette, dot_um, min_qv
        How transcripts are drawn, as of :class:`sthist.tiles.Overlay`: by default in many colours (``"multi"``,
        ``"permuted"``), from a quality of 20 on. The model keeps it, and draws its input so from then on.
    dot_s
        Size of the dots, as of the overlay; by default 0.3 for ``"sd-turbo"``, and ``dot_um`` of one and a half pixels
        for models that start from nothing. Of several, one is drawn for each tile, and the first is
        that of predictions.
    molecules, groups, density_um, scales, target
        What the model sees and says, as of :class:`ST2HEConfig`. ``groups`` by default are
        :attr:`PROGRAMMES`.
    stain_reference
        For ``target="stains"``: the H&E that training slides are brought to, as of :func:`sthist.pp.stain_normalize`;
        :meth:`sthist.pp.StainReference.default` by default.
    prompts
        Template with ``{tissue}`` in it, by default ``"This is a {tissue} H&E image"``; or a mapping of tissue to
        prompt, or a JSON file with one. A mapping of tile file to prompt, as :func:`sthist.tiles.export_pairs` writes
        it, takes the place of ``tissue``; laid tiles that it does not name are left out.
    max_shift_um
        Tiles whose H&E lies further off the stain are left out, and so are those with nuclei that match nowhere within
        10 µm. Tiles with too few nuclei to tell stay. None to measure nothing.
    augment
        Turn and mirror pairs, and vary brightness and haze of the stain; the colours of the H&E are never changed.
        Palettes and sizes of dots are drawn anew in any case.
    backbone
        For ``"sd-turbo"``: hub id or folder of SD-Turbo.
    allow_upsampling
        Take images that are more than 1.5 times coarser than the tiles.
    """

    losses: str | LossWeights = "upstream"
    steps_per_epoch: int = 500
    batch_size: int = 4
    lr: float = 5e-6
    lr_discriminator: float = 5e-6
    beta1: float = 0.9
    clip_norm: float = 1.0
    schedule: Literal["constant", "cosine"] = "constant"
    sample_posterior: bool = True
    perceptual: Literal["lpips", "structural"] = "lpips"
    lpips_weights: str | None = None
    discriminator: Literal["clip", "patch", "patch-bce"] = "clip"
    clip: str = "open_clip:ViT-B-32-quickgelu/openai"
    clip_weights: str | None = None
    images_every: int = 1
    spec: TileSpec | None = None
    n_tiles: int = 2000
    channel: str | None = None
    z: int | tuple[int, int] | None = None
    mode: Literal["multi", "mono", "none"] | None = None
    palette: Literal["permuted", "fixed"] | None = None
    dot_s: float | tuple[float, ...] | None = None
    dot_um: float | None = None
    min_qv: float | None = None
    molecules: Literal["dots", "density", "groups"] | None = None
    groups: Any = None
    density_um: float | None = None
    scales: tuple[float, float] | None = None
    target: Literal["rgb", "stains"] | None = None
    stain_reference: Any = None
    prompts: Any = None
    max_shift_um: float | None = 3.0
    augment: bool = True
    backbone: str | None = None
    allow_upsampling: bool = False

    LEAST: ClassVar[dict[str, int]] = Training.LEAST | {"steps_per_epoch": 1, "images_every": 0, "n_tiles": 1}
    CHOICES: ClassVar[dict[str, tuple[str, ...]]] = Training.CHOICES | {
        "schedule": ("constant", "cosine"),
        "perceptual": ("lpips", "structural"),
        "discriminator": ("clip", "patch", "patch-bce"),
    }
    DATA: ClassVar[tuple[str, ...]] = (
        *("spec", "n_tiles", "channel", "z", "mode", "palette", "dot_s", "dot_um", "min_qv", "prompts"),
        *("molecules", "groups", "density_um", "scales", "target", "stain_reference"),
        *("max_shift_um", "augment", "backbone", "allow_upsampling"),
    )
    """What is trained on: the model's config and the provenance of its tiles say that."""
    PROGRAMMES: ClassVar[dict[str, tuple[str, ...]]] = PROGRAMMES
    """Markers of epithelium, stroma, endothelium and immune cells: the groups of genes where none are given."""
    UNSAVED: ClassVar[tuple[str, ...]] = (*Training.UNSAVED, *DATA)
    MAY_DIFFER: ClassVar[tuple[str, ...]] = (*Training.MAY_DIFFER, "images_every", "lpips_weights", "clip_weights")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps_per_epoch % self.accumulate:
            raise ValueError(
                f"steps_per_epoch is {self.steps_per_epoch}, no multiple of accumulate={self.accumulate}: some batches "
                "would be left over."
            )
        if isinstance(self.losses, dict):
            object.__setattr__(self, "losses", LossWeights(**self.losses))
        if not isinstance(self.losses, LossWeights) and self.losses not in LOSSES:
            raise ValueError(f"losses is {self.losses!r}; it is LossWeights, or one of {list(LOSSES)}.")
        if self.max_shift_um is not None and not self.max_shift_um >= 0:
            raise ValueError(f"max_shift_um is {self.max_shift_um!r}; it is a length from 0 in µm, or None.")
        if not all(math.isfinite(size) and size > 0 for size in self.dot_sizes) or (
            self.dot_s is not None and not self.dot_sizes
        ):
            raise ValueError(f"dot_s is {self.dot_s!r}; a positive size is needed, or several.")
        if self.dot_s is not None and self.dot_um is not None:
            raise ValueError(
                f"Give the size of a dot as dot_um= or as dot_s=, not both ({self.dot_um!r} and {self.dot_s!r})."
            )

    def _positive(self) -> tuple[str, ...]:
        return (*super()._positive(), "lr_discriminator")

    @property
    def dot_sizes(self) -> tuple[float, ...]:
        """Sizes of the dots as a tuple, empty where the model's own counts."""
        return () if self.dot_s is None else tuple(float(size) for size in np.atleast_1d(self.dot_s))

    @property
    def style(self) -> dict[str, Any]:
        """How transcripts are to be drawn, as fields of a config."""
        style = {"mode": self.mode, "palette": self.palette, "dot_um": self.dot_um, "min_qv": self.min_qv}
        style["dot_s"] = self.dot_sizes[0] if self.dot_sizes else None
        style |= {name: getattr(self, name) for name in ("molecules", "density_um", "scales", "target")}
        return {name: value for name, value in style.items() if value is not None}

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
        # There was no l1 once: without it, the weights are what they were.
        losses = {name: value for name, value in dataclasses.asdict(self.weights).items() if name != "l1" or value}
        return super().to_dict() | {"losses": losses}

    def identity(self) -> dict[str, Any]:
        """What determines the weights; a training can go on for longer where nothing depends on its end."""
        endless = self.schedule == "constant" and self.weights.adversarial_from == 0
        return super().identity() | ({} if endless else {"epochs": self.epochs})
