"""A classifier of tiles: on embeddings, on an encoder of its own, or by likeness to text."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from sthist._disk import written_whole
from sthist._messages import several, shortened
from sthist._reading import reading
from sthist.systems.annotation.prompts import normalised, softmax
from sthist.systems.annotation.report import AnnotatorReport
from sthist.tiles._spec import TileSpec, same_scale
from sthist.training.model import WEIGHTS, Model, read_weights, weight_hash, write_weights

if TYPE_CHECKING:
    from collections.abc import Mapping

MODES = ("linear", "finetune", "text")
ENCODER = "encoder."
"""Before the names of an encoder's own weights."""


@dataclass(frozen=True)
class AnnotatorConfig:
    """What an :class:`Annotator` is, but for its weights.

    Attributes
    ----------
    classes
        Names, in the order of the probabilities.
    label
        Column that it was trained on.
    mode
        ``"linear"`` on the embeddings of an encoder as it is, ``"finetune"`` or ``"text"`` with an encoder that was
        trained along.
    encoder, encoder_sha256
        Name of the encoder, and the checksum of its weights where it is known.
    embedding
        Key of its embeddings in ``obsm``.
    dim
        Size of an embedding.
    spec
        ``size_um`` and ``px`` of the tiles; None where they were not known.
    training
        How it was trained; plain values.
    report
        Its :class:`AnnotatorReport`; plain values.
    """

    classes: tuple[str, ...] = ()
    label: str = ""
    mode: str = "linear"
    encoder: str = ""
    encoder_sha256: str | None = None
    embedding: str = ""
    dim: int = 0
    spec: dict[str, Any] | None = None
    training: dict[str, Any] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode is {self.mode!r}; it is one of {MODES}.")


class Annotator(Model):
    """Classes of tiles, with probabilities; made by :func:`sthist.tl.train_annotator`.

    Parameters
    ----------
    config
        What it is.
    weights
        Arrays by name: ``mean``, ``scale``, ``weight`` and ``bias`` of a linear layer, or ``texts`` and
        ``logit_scale``; and those of the encoder, if it was trained along.

    Attributes
    ----------
    encoder
        The encoder that it was made with; None where it was loaded, and is found by its name.

    Examples
    --------
    >>> import numpy as np, sthist
    >>> config = sthist.models.AnnotatorConfig(classes=("a", "b"), encoder="mine", dim=2)
    >>> weights = {"mean": [0, 0], "scale": [1, 1], "weight": np.eye(2), "bias": [0, 0]}
    >>> annotator = sthist.models.Annotator(config, weights)
    >>> annotator.predict(np.array([[3.0, 0.0]])).round(2).tolist()
    [[0.949999988079071, 0.05000000074505806]]
    """

    system: ClassVar[str] = "annotator"
    config_class: ClassVar[type] = AnnotatorConfig
    config: AnnotatorConfig

    def __init__(self, config: AnnotatorConfig | None = None, weights: Mapping[str, Any] | None = None) -> None:
        super().__init__(config)
        self.weights = {
            name: np.asarray(value) if name.startswith(ENCODER) else np.asarray(value, np.float32)
            for name, value in (weights or {}).items()
        }
        self.encoder: Any = None
        self.history: list[dict[str, float]] = []
        self._embed: Any = None

    def _about(self) -> list[str]:
        """Classes, encoder and tiles; of how many tiles it has learned; how well."""
        config = self.config
        tiles = "" if self.spec is None else f", tiles of {self.spec.text}"
        facts = [
            f"{len(config.classes)} classes of {config.label or 'tiles'} ({shortened(config.classes)})",
            f"{config.mode} on {config.encoder or 'no encoder'}{tiles}",
        ]
        rows, samples = config.training.get("n_rows"), config.training.get("samples")
        if rows is not None and samples is not None:
            facts.append(f"trained on {several(rows, 'tile')} of {several(len(samples), 'sample')}")
        auc = config.report.get("weighted_auc")
        return [*facts, *([f"AUC {auc:.2f} where held out"] if auc is not None and np.isfinite(auc) else [])]

    @cached_property
    def report(self) -> AnnotatorReport:
        """How well it does on tiles that it was not trained on."""
        return AnnotatorReport.from_dict(self.config.report)

    @property
    def spec(self) -> TileSpec | None:
        """The tiles that it is for."""
        return None if self.config.spec is None else TileSpec(**self.config.spec)

    @property
    def needs_tiles(self) -> bool:
        """Whether its encoder is its own, so that stored embeddings are of no use."""
        return self.config.mode != "linear"

    def predict(self, data: Any, *, encoder: Any = None, batch_size: int = 64) -> np.ndarray:
        """Probabilities of the classes.

        Parameters
        ----------
        data
            Embeddings (n, d) of the encoder that it was trained on, for ``mode="linear"``; or tiles (n, px, px, 3) of
            uint8, of the physical size of ``spec``.
        encoder
            The encoder, or where it is not loaded by its name alone; of an encoder that was trained along, the
            architecture counts.
        batch_size
            Tiles per batch.

        Returns
        -------
        (n, classes) float32; rows sum to 1.

        Raises
        ------
        ValueError
            If these are no such embeddings or tiles, or the encoder is another one.

        Examples
        --------
        >>> import numpy as np, sthist
        >>> config = sthist.models.AnnotatorConfig(classes=("a", "b"), encoder="mine", dim=1)
        >>> weights = {"mean": [0], "scale": [1], "weight": [[0], [0]], "bias": [0, 0]}
        >>> sthist.models.Annotator(config, weights).predict(np.zeros((1, 1))).tolist()
        [[0.5, 0.5]]
        """
        array = np.asarray(data)
        if array.ndim == 4:
            rows = [self.embed(array[i : i + batch_size], encoder=encoder) for i in range(0, len(array), batch_size)]
            return self.classify(np.concatenate(rows) if rows else np.empty((0, self.config.dim), np.float32))
        if self.needs_tiles:
            raise ValueError(
                f"This annotator has trained its encoder ({self.config.mode!r}), so that embeddings of "
                f"{self.config.encoder!r} are of no use: give tiles (n, px, px, 3), not an array of shape "
                f"{array.shape}."
            )
        return self.classify(array)

    def classify(self, rows: np.ndarray) -> np.ndarray:
        """Probabilities from embeddings of its own encoder.

        Parameters
        ----------
        rows
            (n, d).
        """
        rows = checked_rows(rows, self.config.dim, self.config.encoder)
        if self.config.mode == "text":
            return softmax(self.similarity(rows) * float(self.weights["logit_scale"]))
        standard = (rows - self.weights["mean"]) * self.weights["scale"]
        return softmax(standard @ self.weights["weight"].T + self.weights["bias"])

    def similarity(self, rows: np.ndarray) -> np.ndarray:
        """Cosine similarity of embeddings with the texts of each class, for ``mode="text"``.

        Parameters
        ----------
        rows
            (n, d) of its own encoder.
        """
        return normalised(rows) @ self.weights["texts"].T

    def embed(self, tiles: np.ndarray, *, encoder: Any = None, device: str | None = None) -> np.ndarray:
        """Embeddings of its own encoder.

        Parameters
        ----------
        tiles
            (n, px, px, 3) uint8.
        encoder
            As of :meth:`predict`.
        device
            Where it runs; ``settings.device`` by default.
        """
        if self._embed is None or encoder is not None or device is not None:
            self._embed = self._embed_with(self.encoder if encoder is None else encoder, device)
        return np.asarray(self._embed(tiles), np.float32)

    def _embed_with(self, encoder: Any, device: str | None) -> Any:
        """A function of tiles."""
        if encoder is None or isinstance(encoder, str):
            from sthist import encoders

            encoder = encoders.get(encoder or self.config.encoder, device=device)
        self.require_encoder(encoder.name, None if self.needs_tiles else weight_hash(encoder.provenance))
        if not self.needs_tiles:
            return encoder.embed
        from sthist.systems.annotation.networks import embed_with, state_from

        module = deepcopy(encoder.module)
        state_from(module, {n.removeprefix(ENCODER): v for n, v in self.weights.items() if n.startswith(ENCODER)})
        return embed_with(module, encoder.transform, device)

    def require_encoder(self, name: str | None, sha256: str | None = None) -> None:
        """Refuse an encoder that is not the one that it was trained with.

        Parameters
        ----------
        name, sha256
            Of the encoder; what is None is not known and passes.

        Raises
        ------
        ValueError
            If one of them differs.
        """
        if name is not None and name != self.config.encoder:
            raise ValueError(
                f"This annotator was trained with the encoder {self.config.encoder!r}; these are embeddings of "
                f"{name!r}."
            )
        if None not in (sha256, self.config.encoder_sha256) and sha256 != self.config.encoder_sha256:
            raise ValueError(
                f"The weights of {name!r} are not those that this annotator was trained with: their SHA-256 is "
                f"{str(sha256)[:12]}…, not {str(self.config.encoder_sha256)[:12]}…."
            )

    def require_spec(self, spec: TileSpec | None, what: str) -> None:
        """Refuse tiles of another physical size or µm/px.

        Parameters
        ----------
        spec
            Of the tiles; None where it is not known.
        what
            They are, for the message.

        Raises
        ------
        ValueError
            If they differ.
        """
        if spec is not None and self.spec is not None and not same_scale(spec, self.spec):
            raise ValueError(
                f"This annotator was trained on tiles of {self.spec.size_um:g} µm at {self.spec.mpp:.4g} µm/px; {what} "
                f"show {spec.size_um:g} µm at {spec.mpp:.4g} µm/px."
            )

    def save(self, folder: str | Path) -> None:
        """Write the annotator to a folder, which is made.

        Parameters
        ----------
        folder
            Where to.
        """
        with written_whole(Path(folder) / WEIGHTS) as partial:
            write_weights(partial, self.weights)
            super().save(folder)  # they take their places together

    @classmethod
    def _from_folder(cls, folder: Path, config: dict[str, Any]) -> Model:
        weights, path = read_weights(folder), folder / WEIGHTS
        with reading(path):
            made = AnnotatorConfig(**config)
            _require_weights(path, made, weights)
        annotator = cls(made, weights)
        with reading(folder / "config.json"):
            annotator.report  # noqa: B018  # its checks, and those of the tiles
            annotator.spec  # noqa: B018
        return annotator


def _require_weights(path: Path, config: AnnotatorConfig, weights: Mapping[str, np.ndarray]) -> None:
    """Refuse weights that lack a part or are of other shapes than the config says."""
    n, dim = len(config.classes), config.dim
    shapes: dict[str, tuple[int, ...]] = {"mean": (dim,), "scale": (dim,), "weight": (n, dim), "bias": (n,)}
    if config.mode == "text":
        shapes = {"texts": (n, dim), "logit_scale": ()}
    for name, shape in shapes.items():
        if name not in weights:
            raise ValueError(
                f"{path} has no {name!r}; it has {sorted(weights)[:8]}. Copy the folder of the model again."
            )
        if weights[name].shape not in (shape, (1,) if shape == () else shape):
            raise ValueError(
                f"{path}: {name!r} has the shape {weights[name].shape}; with {n} classes and embeddings of {dim}, as "
                f"config.json says, it should be {shape}. Do both files belong together?"
            )


def checked_rows(rows: Any, dim: int, encoder: str) -> np.ndarray:
    """Embeddings, (n, dim) float32, without NaN."""
    array = np.asarray(rows, np.float32)
    if array.ndim != 2 or array.shape[1] != dim:
        raise ValueError(f"Embeddings of {encoder!r} are (n, {dim}); these have shape {array.shape}.")
    finite = np.isfinite(array).all(axis=1)
    if not finite.all():
        raise ValueError(
            f"{int((~finite).sum())} of {len(array)} embeddings are NaN or infinite, first row {int(finite.argmin())}."
        )
    return array
