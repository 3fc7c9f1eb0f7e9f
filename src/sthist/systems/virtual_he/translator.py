"""Models that were shown pairs of stain and histology: trained, saved, and run over a section."""

from __future__ import annotations

import dataclasses
import hashlib
import threading
from abc import abstractmethod
from copy import copy, deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from sthist._settings import settings
from sthist.systems.virtual_he.config import TranslationTraining
from sthist.systems.virtual_he.generator import VirtualStainModel
from sthist.systems.virtual_he.inference import Running
from sthist.training.run_folder import read_figures, read_tiles

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd
    import torch
    from torch import nn

    from sthist._sample.elements import HighResElements
    from sthist.systems.virtual_he.config import TranslationConfig
    from sthist.systems.virtual_he.generator import Stainer
    from sthist.systems.virtual_he.training_set.pairs import Pairs
    from sthist.tiles._images.image import Image

WEIGHTS = "model.safetensors"


class Translator(VirtualStainModel):
    """Base of models that turn transcripts on a nuclear stain into H&E with a network that was trained on pairs.

    Attributes
    ----------
    config
        What it sees and says.
    tiles
        The tiles that it was trained with, and for what each was used; None where that is not known.
    history
        Figures of each epoch of its training.
    """

    config: TranslationConfig
    default_training: ClassVar[Mapping[str, Any]] = {}
    takes_prompts: ClassVar[bool] = True

    def __init__(self, config: TranslationConfig | None = None) -> None:
        super().__init__(config)
        self.tiles: pd.DataFrame | None = None
        self.history: list[dict[str, float]] = []
        self.tissue: str | None = None
        self.device: str | None = None
        self.precision = "auto"
        self.compile = False
        self._running: Any = None
        self._version = [0]  # shared by copies: what runs of older weights is not used
        self._lock = threading.Lock()
        self._told: torch.Tensor | None = None

    @abstractmethod
    def trainable(self) -> nn.Module:
        """The generator; gradients reach what is trained of it."""

    @abstractmethod
    def translate(
        self, generator: nn.Module, images: torch.Tensor, prompts: torch.Tensor | None, noise: torch.Tensor | None
    ) -> torch.Tensor:
        """Images (n, 3, px, px) from -1 to 1 that a generator makes."""

    @abstractmethod
    def prompt_vectors(self, prompts: Sequence[str]) -> torch.Tensor | None:
        """What the generator is told by prompts; None if it takes none."""

    def backbone_sha256(self) -> dict[str, str] | None:
        """Checksums of the files that it starts from; None where it starts from nothing."""
        return None

    @abstractmethod
    def state(self) -> dict[str, torch.Tensor]:
        """What training changes."""

    def training(self, **changes: Any) -> TranslationTraining:
        """How a model of this kind is trained, with changes.

        Parameters
        ----------
        **changes
            Fields of :class:`TranslationTraining`.

        Raises
        ------
        TypeError
            If there is no such field; those that exist are named.
        """
        fields = {field.name for field in dataclasses.fields(TranslationTraining)}
        unknown = sorted(set(changes) - fields)
        if unknown:
            msg = f"There is no setting {unknown[0]!r} of a training; there are {sorted(fields)}."
            raise TypeError(msg)
        return TranslationTraining(**{**self.default_training, **changes})

    def require_trainable(self, training: TranslationTraining) -> None:
        """Refuse what a training would stop at before its first step: prompts, weights of losses, sizes of tiles.

        Parameters
        ----------
        training
            How it is to be trained.

        Raises
        ------
        ValueError
            If a prompt is too long, or the tiles are too small for a term of the loss.
        ConnectionError, PermissionError, FileNotFoundError
            If weights that a term looks through cannot be had.
        """
        from sthist.systems.virtual_he.training_module import losses_of

        texts = list(self.config.prompts.values())
        self.prompt_vectors(texts)
        losses_of(training, texts, self.config.px)

    def fit(
        self,
        pairs: Pairs,
        *,
        validation: Pairs | None = None,
        folder: str | Path | None = None,
        training: TranslationTraining | None = None,
        resume: bool = False,
        device: str | None = None,
        progress: bool | None = None,
    ) -> Translator:
        """Train on pairs of tiles; :func:`sthist.tl.train_virtual_he` makes them of sections.

        Parameters
        ----------
        pairs
            To train on: :class:`sthist.models.ArrayPairs`, or whatever reads like it.
        validation
            Pairs that are looked at after each epoch.
        folder
            Is made. After each epoch: ``checkpoints/last.ckpt``, the model so far in ``checkpoints/model``,
            ``metrics.csv`` and ``images/epoch_0001.png`` (input, output and real, side by side); at the end the model.
        training
            How; by default that of :meth:`training`.
        resume
            Go on from the checkpoint in the folder.
        device
            Of torch; ``settings.device`` by default.
        progress
            Show a bar; ``settings.progress`` by default.

        Returns
        -------
        The model, trained. On a CPU the same seed gives the same weights, also when it was resumed. A training that is
        stopped leaves the model as it was at that step.

        Raises
        ------
        ValueError
            If the pairs are of another size, have prompts that the config has not, or are fewer than a batch; if the
            checkpoint is of another training.
        FileExistsError
            If there is a checkpoint, and ``resume`` is not set.
        FloatingPointError
            If the loss is no finite number; the last good epoch is kept, as checkpoint and as model.
        RuntimeError
            If the outputs have collapsed.
        MemoryError
            If the device is too small; the message says which batch and tile fit.
        """
        from sthist.systems.virtual_he.translation_fit import fit, provenance

        chosen = self.training() if training is None else training
        path = None if folder is None else Path(folder)
        options: dict[str, Any] = {"resume": resume, "device": device, "progress": progress}
        try:
            self.history = fit(self, pairs, chosen, validation=validation, folder=path, **options)
        finally:
            self._version[0] += 1
        self.config = dataclasses.replace(self.config, training=provenance(self, pairs, chosen, self.history))
        if path is not None:
            self.save(path)
        return self

    def running_on(
        self,
        device: str | None = None,
        *,
        tissue: str | None = None,
        precision: str | None = None,
        compile: bool | None = None,
    ) -> Translator:
        """The same model for a tissue or a device; what is not given stays.

        Parameters
        ----------
        device
            Of torch; at first ``settings.device``.
        tissue
            One of ``config.prompts``.
        precision
            ``"auto"`` (bf16 on cuda that has it, float32 elsewhere), ``"float32"`` or ``"bf16"``.
        compile
            Compile the network, which takes a minute and is faster after it.

        Returns
        -------
        A copy that shares the weights.

        Raises
        ------
        KeyError
            If the model does not know the tissue.
        ValueError
            If the precision is unknown.
        """
        if precision not in (None, "auto", "float32", "bf16"):
            msg = f"precision is {precision!r}; it is 'auto', 'float32' or 'bf16'."
            raise ValueError(msg)
        if tissue is not None and self.takes_prompts:
            self.config.prompt_of(tissue)
        other = copy(self)
        if tissue is not None:
            other.tissue, other._told = tissue, None
        other.device = self.device if device is None else device
        other.precision = self.precision if precision is None else precision
        other.compile = self.compile if compile is None else compile
        other._lock = threading.Lock()
        if other._runs_as() != self._runs_as():
            other._running = None
        return other

    def predict(self, tiles: Any, *, batch_size: int = 16) -> np.ndarray:
        """H&E of tiles as the model was trained to see them.

        Parameters
        ----------
        tiles
            (n, px, px, 3) uint8: transcripts on the nuclear stain.
        batch_size
            Tiles at a time.

        Returns
        -------
        (n, px, px, 3) uint8. A tile that is black everywhere shows nothing, and is white.

        Raises
        ------
        ValueError
            If they are no such tiles, or the batch has none.
        KeyError
            If the model was trained on several tissues, and none is said (:meth:`running_on`).
        MemoryError
            If the device is too small for the batch.
        """
        tiles = np.asarray(tiles)
        px = self.config.px
        if tiles.dtype != np.uint8 or tiles.shape[1:] != (px, px, 3):
            msg = f"Tiles are {tiles.dtype} of shape {tiles.shape}; this model takes uint8 of shape (n, {px}, {px}, 3)."
            raise ValueError(msg)
        if batch_size < 1:
            msg = f"batch_size is {batch_size!r}; at least one tile at a time is needed."
            raise ValueError(msg)
        running = self._ready()
        out = np.full_like(tiles, 255)
        shown = np.flatnonzero(tiles.any(axis=(1, 2, 3)))
        for start in range(0, len(shown), batch_size):
            part = shown[start : start + batch_size]
            out[part] = running(tiles[part])
        return out

    @property
    def device_name(self) -> str:
        """Where it runs."""
        return settings.torch_device() if self.device in (None, "auto") else str(self.device)

    def mpp(self, stain: Image) -> float:
        """µm per pixel that it was trained at."""
        return self.config.spec.mpp

    def prepare(
        self,
        elements: HighResElements,
        stain: Image,
        mpp: float,
        *,
        allow_upsampling: bool = False,
        seed: int | None = None,
    ) -> Stainer:
        """Index the transcripts of a section, measure its stain, and find its tissue; outside of it the image is white.

        Parameters
        ----------
        elements
            The section's elements by role.
        stain
            The nuclear stain, opened with all its channels.
        mpp
            µm per pixel of the result, which has to be the model's.
        allow_upsampling
            Go on where the stain is much coarser than that.
        seed
            Of no effect: nothing is drawn.

        Raises
        ------
        KeyError
            If the model was trained on several tissues, and none is said; if it draws transcripts, and there are none.
        ValueError
            If ``mpp`` is another than the model's, or no tissue is found.
        """
        from sthist.systems.virtual_he.inference import prepare_section

        return prepare_section(self, elements, stain, mpp, allow_upsampling=allow_upsampling)

    def prompt(self) -> str:
        """What the generator is told.

        Raises
        ------
        KeyError
            If the model was trained on several tissues, and none is said.
        """
        return self.config.prompt_of(self.tissue) if self.takes_prompts else ""

    def _runs_as(self) -> tuple[Any, ...]:
        """What a network that runs depends on, beside its weights."""
        return self.tissue, self.device_name, self.chosen_precision(), self.compile

    def told(self) -> Translator:
        """A copy that carries its embedded prompt in place of what embeds prompts."""
        other = self.running_on()
        if other._told is None:
            other._told = self.prompt_vectors([self.prompt()])
        return other

    def chosen_precision(self) -> str:
        """In what numbers the network computes."""
        import torch

        if self.precision != "auto":
            return self.precision
        # On a CPU half precision shifts colours and gains nothing.
        return "bf16" if self.device_name.startswith("cuda") and torch.cuda.is_bf16_supported() else "float32"

    def weights_sha256(self) -> str:
        """Checksum of what training changes."""
        digest = hashlib.sha256()
        for name, value in sorted(self.state().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def inference_network(self) -> nn.Module:
        """A copy of the generator that is only run."""
        return deepcopy(self.trainable())

    def _ready(self) -> Running:
        with self._lock:
            if self._running is None or self._running.version != self._version[0]:
                self._running = Running(self)
            return self._running

    def __getstate__(self) -> dict[str, Any]:
        """Everything but what is on a device, which each worker makes for itself."""
        return {name: value for name, value in vars(self).items() if name not in ("_running", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._running, self._lock = None, threading.Lock()

    def _read_along(self, folder: Path) -> None:
        """What a training has left beside the model."""
        self.tiles, self.history = read_tiles(folder), read_figures(folder)
