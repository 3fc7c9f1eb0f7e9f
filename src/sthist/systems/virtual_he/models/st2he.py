"""The learned virtual H&E: one step of a diffusion model, from transcripts on a nuclear stain."""

from __future__ import annotations

import dataclasses
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from sthist._disk import written_whole
from sthist._scratch import temporary_folder
from sthist.nets import SMALL, TurboConfig
from sthist.systems.virtual_he.config import TranslationConfig
from sthist.systems.virtual_he.models.st2he_weights import HUB_ID
from sthist.systems.virtual_he.translator import WEIGHTS, Translator
from sthist.training.model import load

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import nn

RELEASED_SIZE_UM = 512.0
"""Side of the tiles that the released weights were rendered with: 1 µm/px, where the paper states 0.2125."""


@dataclass(frozen=True)
class ST2HEConfig(TranslationConfig):
    """What an :class:`ST2HE` is, but for its weights; beside the fields of every translation:

    Attributes
    ----------
    turbo
        Sizes of the generator: :data:`sthist.nets.SMALL` or :data:`sthist.nets.SD_TURBO`.
    backbone
        Where the weights that it starts from are: a hub id, or a folder as diffusers writes it; None for random ones.
    seed
        Of random weights, those of the adapters among them.
    provenance
        Which checkpoint of others it was taken from; plain values.
    """

    size_um: float = 64.0
    px: int = 128
    turbo: TurboConfig = SMALL
    backbone: str | None = None
    seed: int = 0
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.turbo, dict):
            object.__setattr__(self, "turbo", TurboConfig.from_dict(self.turbo))
        super().__post_init__()
        if self.turbo.in_channels != self.in_channels:
            if self.backbone is not None:
                raise ValueError(
                    f"The backbone {self.backbone!r} takes {self.turbo.in_channels} channels, and the input has "
                    f"{self.in_channels}, with one for each group of genes: take molecules='dots' or 'density', or no "
                    "backbone."
                )
            object.__setattr__(self, "turbo", dataclasses.replace(self.turbo, in_channels=self.in_channels))
        self.turbo.check_px(self.px)

    @classmethod
    def sd_turbo(cls, backbone: str | Path | None = HUB_ID, **fields: Any) -> ST2HEConfig:
        """The paper's: SD-Turbo with adapters, tiles of 512 px at 0.2125 µm/px.

        Parameters
        ----------
        backbone
            Hub id or folder of SD-Turbo; None for random weights.
        **fields
            Others than the paper's.
        """
        from sthist.nets import SD_TURBO

        where = None if backbone is None else str(backbone)
        return cls(**{"size_um": 108.8, "px": 512, "turbo": SD_TURBO, "backbone": where, **fields})


class ST2HE(Translator):
    """H&E from a nuclear stain with one dot per transcript, in one step of a diffusion model.

    An autoencoder with skip connections, a U-Net that sees a prompt, and one step of the noise schedule: Pix2Pix-Turbo.
    With the ``SD_TURBO`` config, weights are those of SD-Turbo (fetched on request; Stability AI's Community License),
    and adapters of 9.5 million weights are trained. The default config, ``SMALL``, is the same architecture at 1.8
    million weights, all of which are trained from nothing; its text tower tells prompts apart and understands none.

    Parameters
    ----------
    config
        Sizes, and where the backbone is.

    Raises
    ------
    ValueError
        If tiles of that size do not go through, or the backbone is another network.
    FileNotFoundError, ConnectionError, PermissionError
        If the backbone cannot be had; nothing is loaded before sizes are checked.

    References
    ----------
    ST2HE; Parmar, Park, Narasimhan and Zhu 2024, "One-step image translation with text-to-image models".

    Examples
    --------
    >>> import numpy as np, sthist
    >>> model = sthist.models.ST2HE(sthist.models.ST2HEConfig(size_um=32, px=64))
    >>> model.predict(np.full((2, 64, 64, 3), 9, np.uint8)).shape
    (2, 64, 64, 3)
    """

    system: ClassVar[str] = "st2he"
    config_class: ClassVar[type] = ST2HEConfig
    config: ST2HEConfig
    small_training: ClassVar[dict[str, Any]] = {
        "losses": "small",
        "perceptual": "structural",
        "discriminator": "patch",
        "lr": 1e-3,
        "lr_discriminator": 5e-4,
        "schedule": "cosine",
        "sample_posterior": False,
    }

    def __init__(self, config: ST2HEConfig | None = None) -> None:
        from sthist.systems.virtual_he.models.st2he_weights import as_backbone, build_prompts, build_turbo

        super().__init__(config)
        backbone = None if self.config.backbone is None else as_backbone(self.config.backbone)
        self.generator = build_turbo(self.config.turbo, backbone, px=self.config.px, seed=self.config.seed)
        self._texts = build_prompts(self.config.turbo, backbone)
        self.backbone = None if backbone is None else backbone.provenance()

    @property
    def default_training(self) -> dict[str, Any]:  # type: ignore[override]
        """Of upstream for adapters on SD-Turbo, its own for what starts from nothing."""
        return {} if self.config.backbone is not None else self.small_training

    def trainable(self) -> nn.Module:
        """The generator, with its adapters."""
        return self.generator

    def generate(
        self, generator: nn.Module, images: torch.Tensor, prompts: torch.Tensor | None, noise: torch.Tensor | None
    ) -> torch.Tensor:
        """What a generator says of images."""
        return generator(images, prompts, noise)

    def prompt_vectors(self, prompts: Sequence[str]) -> torch.Tensor:
        """Prompts as the text encoder gives them, (n, tokens, width)."""
        return self._texts.encode(prompts)

    def backbone_sha256(self) -> dict[str, str] | None:
        """Checksums of the files that it starts from, by part; None where it starts from nothing."""
        return None if self.backbone is None else _checksums(self.backbone)

    def state(self) -> dict[str, torch.Tensor]:
        """What training changes: adapters and skip connections, or all weights of a small one."""
        return self.generator.trained_state()

    def with_prompt(self) -> ST2HE:
        """A copy that carries its embedded prompt, and no text encoder."""
        other = super().with_prompt()
        other._texts = None  # type: ignore[attr-defined]
        return other  # type: ignore[return-value]

    def inference_network(self) -> nn.Module:
        """A copy of the generator whose adapters are part of its weights."""
        return deepcopy(self.generator).merge()

    def save(self, folder: str | Path) -> None:
        """Write ``config.json``, and what was trained as ``model.safetensors``; the backbone is named, not copied.

        Parameters
        ----------
        folder
            Where to; is made.
        """
        from sthist.systems.virtual_he.models.st2he_checkpoints import save_trained

        with written_whole(Path(folder) / WEIGHTS) as partial:
            save_trained(self.generator, partial, backbone=self.backbone)
            super().save(folder)  # they take their places together

    @classmethod
    def load(cls, folder: str | Path, *, backbone: str | Path | None = None) -> ST2HE:
        """Read a model.

        Parameters
        ----------
        folder
            Made by :meth:`save`, or the name of a model that comes with the package (``"st2he-small"``).
        backbone
            Where the backbone is now, if not where it was.

        Raises
        ------
        FileNotFoundError, ValueError
            As of :func:`sthist.models.load`; if the weights are of another config.
        """
        model = load(folder, **({} if backbone is None else {"backbone": str(backbone)}))
        if not isinstance(model, cls):
            raise ValueError(f"{folder} holds a model of system {model.system!r}, not {cls.system!r}.")
        return model

    @classmethod
    def from_upstream(
        cls,
        path: str | Path,
        *,
        backbone: str | Path = HUB_ID,
        input_low: float = 0.0,
        released: bool = False,
        **fields: Any,
    ) -> ST2HE:
        """Take over a checkpoint (``.pkl``) of img2img-turbo, or of the ST2HE release; no code of it is run.

        Parameters
        ----------
        path
            The checkpoint. With ``save`` it becomes a folder of this package.
        backbone
            The SD-Turbo that it is for.
        input_low
            Value of black in training, which the file does not say: 0 in img2img-turbo. The release's own inference
            puts black at -1; if results look washed out, try the other.
        released
            Take the tiles that the code of the release renders, 512 µm on 512 px, in place of the paper's 108.8 µm. It
            also deals hues in the order in which genes appear, stretches the stain from its least to its largest value,
            and turns tiles upside down, which is not imitated.
        **fields
            Of :class:`ST2HEConfig`, such as ``prompts``.

        Raises
        ------
        ValueError
            If it is no such checkpoint, or of another backbone.
        """
        from sthist.systems.virtual_he.models.st2he_checkpoints import convert_upstream, read_trained

        with temporary_folder("checkpoint-") as scratch:
            weights = scratch / WEIGHTS
            turbo = convert_upstream(path, weights, input_range=(input_low, 1.0))
            size = {"size_um": RELEASED_SIZE_UM} if released else {}
            config = ST2HEConfig.sd_turbo(backbone, **{"turbo": turbo, "input_low": input_low, **size, **fields})
            model = cls(config)
            state, _, facts = read_trained(weights)
            model.generator.load_trained_state(state, path)
        model.config = dataclasses.replace(config, provenance=facts["converted_from"])
        return model

    @classmethod
    def _from_folder(cls, folder: Path, config: dict[str, Any]) -> ST2HE:
        from sthist.systems.virtual_he.models.st2he_checkpoints import read_trained

        path = folder / WEIGHTS
        state, turbo, facts = read_trained(path)
        made = ST2HEConfig(**config)
        if turbo != made.turbo:
            raise ValueError(
                f"{str(path)!r} holds weights of another generator than its config.json names; they do not belong "
                "together."
            )
        model = cls(made)
        _require_same(facts.get("backbone"), model.backbone, path)
        model.generator.load_trained_state(state, path)
        model._read_along(folder)
        return model


def _checksums(backbone: dict[str, Any]) -> dict[str, str]:
    return {name: file["sha256"] for name, file in backbone["files"].items()}


def _require_same(trained_on: dict[str, Any] | None, backbone: dict[str, Any] | None, path: Path) -> None:
    """Refuse a backbone with other weights than the adapters were trained on: they would give nonsense in silence."""
    if not trained_on or not backbone:
        return
    now = _checksums(backbone)
    for name, digest in _checksums(trained_on).items():
        if name in now and now[name] != digest:
            raise ValueError(
                f"{str(path)!r} was trained on another {name} than that of the backbone {backbone['source']!r}: their "
                "checksums differ."
            )
