"""Models that were shown pairs of stain and histology: trained, saved, and run over a section."""

from __future__ import annotations

import dataclasses
import threading
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from sthist._messages import several, shortened
from sthist._settings import settings
from sthist.pp import StainReference
from sthist.systems.virtual_he.config import TranslationTraining
from sthist.systems.virtual_he.familiarity import usual_range
from sthist.systems.virtual_he.generator import GeneratorModel
from sthist.systems.virtual_he.inference import RunningGenerator, prepare_section
from sthist.systems.virtual_he.painting import colours_of, painted
from sthist.training.options import as_training
from sthist.training.run_folder import read_history, read_tiles

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd
    import torch
    from torch import nn

    from sthist._sample.elements import HighResElements
    from sthist.systems.virtual_he.config import TranslationConfig
    from sthist.systems.virtual_he.generator import PreparedSection
    from sthist.systems.virtual_he.training_set.pairs import Pairs
    from sthist.tiles._images.image import Image

WEIGHTS = "model.safetensors"

NOT_OF_THE_NETWORK = ("training", "seed", "provenance", "backbone")
"""Fields of a config that do not say what is trained: weights, and where they are, are compared as such."""


LATER: dict[str, Any] = {
    "molecules": "dots",
    "groups": {},
    "density_um": 4.0,
    "scales": None,
    "target": "rgb",
    "reference": {},
}
"""Fields that configs have not always had, and what was meant."""


class Translator(GeneratorModel):
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

    default_training: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, config: TranslationConfig | None = None) -> None:
        super().__init__(config)
        self.tiles: pd.DataFrame | None = None
        self.history: list[dict[str, float]] = []
        self.tissue: str | None = None
        self.colours: StainReference | None = None
        self.device: str | None = None
        self.precision = "auto"
        self.compile = False
        self._running: Any = None
        self._trainings = [0]  # a list, as copies share it
        self._lock = threading.Lock()
        self._embedded: torch.Tensor | None = None

    def _about(self) -> list[str]:
        """Tiles, what it sees and says; of how many pairs it has learned."""
        config = self.config
        low, high = (min(config.scales), max(config.scales)) if config.scales else (config.spec.mpp,) * 2
        scales = f", for {low:.3g} to {high:.3g} µm/px" if high > low else ""
        groups = f"density, also of {shortened(config.groups)}" if config.molecules == "groups" else config.molecules
        gives = "amounts of stains" if config.target == "stains" else "colours"
        facts = [f"tiles of {config.spec.text}{scales}", f"sees transcripts as {groups}", f"gives {gives}"]
        tissues = [tissue for tissue in config.prompts if tissue]
        if tissues:
            facts.append(f"tissues {shortened(tissues)}")
        data, pairs = config.training.get("data", {}), config.training.get("pairs")
        if pairs is None:
            return [*facts, "not trained" if not config.training else "trained"]
        samples = data.get("samples")
        of = f" of {several(len(samples), 'sample')}" if samples else ""
        return [*facts, f"trained on {several(pairs, 'pair')}{of}"]

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
        return as_training(TranslationTraining, changes, self.default_training)

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
        from sthist.systems.virtual_he.training_loop.training_module import losses_of

        texts = list(self.config.prompts.values())
        self.prompt_vectors(texts)
        losses_of(training, texts, self.config.px, self.config.in_channels)

    def fit(
        self,
        pairs: Pairs,
        *,
        validation: Pairs | None = None,
        folder: str | Path | None = None,
        training: TranslationTraining | Mapping[str, Any] | None = None,
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
            How, or changes to that of :meth:`training`; with ``resume=True`` from the checkpoint in the folder.
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
        from sthist.systems.virtual_he.training_loop.training_module import TranslationModule
        from sthist.systems.virtual_he.training_loop.validation import Validation, complaint
        from sthist.training.trainer import train

        options = as_training(TranslationTraining, training, self.default_training)
        path = None if folder is None else Path(folder)
        self._require_pairs(pairs, options)
        if validation is not None:
            self._require_alike(validation)
        prompts = list(dict.fromkeys([*pairs.prompts, *(validation.prompts if validation is not None else ())]))

        usual = usual_range(pairs)

        def save_model(folder: Path, history: list[dict[str, float]]) -> None:
            so_far = self.to()
            so_far.config = dataclasses.replace(self.config, training=self._provenance(pairs, options, history, usual))
            so_far.save(folder)

        try:
            _, self.history = train(
                lambda: TranslationModule(self, pairs, options, prompts),
                options,
                folder=path,
                identity=self._identity(pairs),
                device=device,
                progress=progress,
                complaint=complaint,
                evaluate=Validation(validation, path, options.images_every),
                save_model=save_model,
            )
        finally:
            self._trainings[0] += 1
        self.config = dataclasses.replace(self.config, training=self._provenance(pairs, options, self.history, usual))
        if path is not None:
            self.save(path)
        return self

    def _require_pairs(self, pairs: Pairs, options: TranslationTraining) -> None:
        self._require_alike(pairs)
        if len(pairs) < options.batch_size:
            raise ValueError(
                f"There are {len(pairs)} pairs to train on, fewer than a batch of {options.batch_size}. Lay more "
                "tiles, or lower batch_size=."
            )
        if options.checkpoint_gradients and not hasattr(self.trainable(), "checkpoint_gradients"):
            raise ValueError("checkpoint_gradients=True is for ST2HE; this generator is small enough without.")

    def _require_alike(self, pairs: Pairs) -> None:
        """Refuse pairs that the model is not made for."""
        if pairs.px != self.config.px:
            raise ValueError(f"The pairs have {pairs.px} px, the model is for {self.config.spec}.")
        channels = getattr(pairs, "channels", 3)
        if channels != self.config.in_channels:
            raise ValueError(f"The pairs have {channels} channels, the model takes {self.config.in_channels}.")
        unknown = set(pairs.prompts) - set(self.config.prompts.values()) if self.takes_prompts else set()
        if unknown:
            raise ValueError(
                f"Pairs have the prompt {sorted(unknown)[0]!r}, and the model would never be told it; config.prompts "
                f"is {self.config.prompts}."
            )

    def _identity(self, pairs: Pairs) -> dict[str, Any]:
        """What a training is of, beside its options, as plain values."""
        # What is as it always was is left out, so that trainings from before it could be otherwise go on.
        config = [
            (name, value)
            for name, value in dataclasses.asdict(self.config).items()
            if name not in LATER or value != LATER[name]
        ]
        return {
            "system": self.system,
            "backbone": self.backbone_sha256(),
            "pairs": getattr(pairs, "fingerprint", len(pairs)),
            **{f"config.{name}": value for name, value in config if name not in NOT_OF_THE_NETWORK},
        }

    def _provenance(
        self, pairs: Pairs, options: TranslationTraining, history: list[dict[str, float]], usual: dict[str, Any]
    ) -> dict[str, Any]:
        """How the model was trained, for its config."""
        before = {"before": self.config.training} if self.config.training else {}
        final = history[-1] if history else {}
        return options.to_dict() | {"pairs": len(pairs), "final": final, "usual": usual} | before

    def to(
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
            raise ValueError(f"precision is {precision!r}; it is 'auto', 'float32' or 'bf16'.")
        if tissue is not None and self.takes_prompts:
            self.config.prompt_of(tissue)
        other = copy(self)
        if tissue is not None:
            other.tissue, other._embedded = tissue, None
        other.device = self.device if device is None else device
        other.precision = self.precision if precision is None else precision
        other.compile = self.compile if compile is None else compile
        other._lock = threading.Lock()
        if other._runs_as() != self._runs_as():
            other._running = None
        return other

    def stained(self, reference: Any, *, seed: int | None = None) -> Translator:
        """The same model in the colours of another slide.

        Parameters
        ----------
        reference
            A :class:`sthist.pp.StainReference` or its JSON file; an (h, w, 3) uint8 array, ``(sdata, key)``, or a
            SpatialData with one H&E image, which are measured.
        seed
            Of the places at which an image is measured; ``settings.seed`` by default.

        Returns
        -------
        A copy that shares the weights.

        Raises
        ------
        ValueError
            If the model says no stains (``target="rgb"``), or the reference shows one stain alone.
        """
        if self.config.target != "stains":
            raise ValueError(
                f"This {self.system!r} has learned its colours; one of target='stains' takes them of a reference."
            )
        other = self.to()
        other.colours, other._running = colours_of(reference, seed=seed), None
        return other

    def translate(
        self, generator: nn.Module, images: torch.Tensor, prompts: torch.Tensor | None, noise: torch.Tensor | None
    ) -> torch.Tensor:
        """Images that a generator makes, in the colours of the reference."""
        made = self.generate(generator, images, prompts, noise)
        return made if self.config.target == "rgb" else painted(made, self.stain_colours())

    def stain_colours(self) -> StainReference:
        """The colours that amounts of stains are shown in."""
        return StainReference.from_dict(self.config.reference) if self.colours is None else self.colours

    def predict(self, tiles: Any, *, batch_size: int = 16) -> np.ndarray:
        """H&E of tiles as the model was trained to see them.

        Parameters
        ----------
        tiles
            (n, px, px, channels) uint8, as :class:`sthist.tiles.Overlay` or :class:`sthist.tiles.DensityTiles` gives
            them: transcripts on the nuclear stain, or beside it.
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
            If the model was trained on several tissues, and none is said (:meth:`to`).
        MemoryError
            If the device is too small for the batch.
        """
        tiles = np.asarray(tiles)
        px, channels = self.config.px, self.config.in_channels
        if tiles.dtype != np.uint8 or tiles.shape[1:] != (px, px, channels):
            raise ValueError(
                f"Tiles are {tiles.dtype} of shape {tiles.shape}; this model takes uint8 of shape (n, {px}, {px}, "
                f"{channels})."
            )
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size!r}; at least one tile at a time is needed.")
        running = self._ready()
        out = np.full((*tiles.shape[:3], 3), 255, np.uint8)
        # Of densities, the third channel is the scale, which says nothing of the place.
        pictured = tiles if self.config.molecules == "dots" else tiles[..., :2]
        shown = np.flatnonzero(pictured.any(axis=(1, 2, 3)))
        for start in range(0, len(shown), batch_size):
            part = shown[start : start + batch_size]
            out[part] = running(tiles[part])
        return out

    @property
    def device_name(self) -> str:
        """Where it runs."""
        return settings.torch_device() if self.device in (None, "auto") else str(self.device)

    def mpp(self, stain: Image) -> float:
        """µm per pixel that it was trained at; of several, that of the stain, or the nearest to it."""
        scales = self.config.scales
        return self.config.spec.mpp if scales is None else float(np.clip(stain.finest_mpp, *scales))

    def prepare(
        self,
        elements: HighResElements,
        stain: Image,
        mpp: float,
        *,
        allow_upsampling: bool = False,
        seed: int | None = None,
    ) -> PreparedSection:
        """Index the transcripts of a section, measure its stain, and find its tissue, outside of which it is white."""
        return prepare_section(self, elements, stain, mpp, allow_upsampling=allow_upsampling)

    def _runs_as(self) -> tuple[Any, ...]:
        """What a network that runs depends on, beside its weights."""
        return self.tissue, self.device_name, self.chosen_precision(), self.compile, self.colours

    def embedded_prompt(self) -> torch.Tensor | None:
        """The embedded prompt of the tissue; None if the generator takes none."""
        return self.prompt_vectors([self.prompt()]) if self._embedded is None else self._embedded

    def with_prompt(self) -> Translator:
        """A copy that carries its embedded prompt in place of what embeds prompts."""
        other = self.to()
        other._embedded = self.embedded_prompt()
        return other

    @property
    def version(self) -> int:
        """Number of trainings of it and its copies: a network that runs with older weights is not used."""
        return self._trainings[0]

    def chosen_precision(self) -> str:
        """In what numbers the network computes."""
        import torch

        if self.precision != "auto":
            return self.precision
        # On a CPU half precision shifts colours and gains nothing.
        return "bf16" if self.device_name.startswith("cuda") and torch.cuda.is_bf16_supported() else "float32"

    def _ready(self) -> RunningGenerator:
        with self._lock:
            if self._running is None or self._running.version != self.version:
                self._running = RunningGenerator(self)
            return self._running

    def __getstate__(self) -> dict[str, Any]:
        """Everything but what is on a device, which each worker makes for itself."""
        return {name: value for name, value in vars(self).items() if name not in ("_running", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._running, self._lock = None, threading.Lock()

    def _read_along(self, folder: Path) -> None:
        """What a training has left beside the model."""
        self.tiles, self.history = read_tiles(folder), read_history(folder)
