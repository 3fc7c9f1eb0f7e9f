"""From a table to scores of classes: by prompts, or by an annotator."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist import _store
from sthist._settings import logger, settings
from sthist._tables.labels import column_names
from sthist.systems.annotation.annotator import Annotator, checked_rows
from sthist.systems.annotation.prompts import (
    chosen_temperature,
    class_vectors,
    normalised,
    sentences,
    softmax,
    text_vectors,
)
from sthist.tiles import TileLoader
from sthist.training.embeddings import (
    Origin,
    embeddings_of,
    find_embedding,
    is_folder,
    key_of,
    origin_of,
    rows_of_embedding,
    table_spec,
    tiles_of,
)
from sthist.training.model import weight_hash

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

Score = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, eq=False)
class ImageScorer:
    """Scores of embeddings."""

    classes: list[str]  # names, as they were given
    score: Score  # (n, d) embeddings to (n, classes) float
    facts: dict[str, Any] = field(default_factory=dict)  # JSON values that say what it is
    spec: Any = None  # the tile that it was trained for; None where it was not


def scorer_of(model: Any, encoder: Any, classes: Sequence[str] | None) -> ImageScorer:
    """The scorer that a ``model=`` argument stands for."""
    if classes is not None and (isinstance(classes, str) or not len(classes)):
        raise ValueError(f"classes is {classes!r}; it is a list of names.")
    if isinstance(model, Mapping):
        return _of_prompts(model, encoder, classes)
    if hasattr(model, "predict"):
        return _of_model(model, classes)
    if not callable(model):
        raise TypeError(
            f"model is a {type(model).__name__}; it is a mapping of class to phrases, a model with predict and "
            "classes, or a function of embeddings (n, d) that returns scores (n, classes)."
        )
    names = getattr(model, "classes", None) if classes is None else classes
    if names is None:
        raise TypeError("model is a function: name what it scores with classes=[...].")
    name = getattr(model, "__qualname__", type(model).__name__)
    listed = [str(each) for each in names]
    return ImageScorer(listed, _checked(model, listed), {"model": f"function {name}"})


def _of_prompts(prompts: Mapping[str, Any], encoder: Any, classes: Sequence[str] | None) -> ImageScorer:
    """Cosine similarity of an embedding to the mean direction of a class's phrases."""
    names = [str(name) for name in (prompts if classes is None else classes)]
    phrases = {str(name): [given] if isinstance(given, str) else list(given) for name, given in prompts.items()}
    _require_known(names, list(phrases))
    for name in names:
        if not phrases[name] or not all(isinstance(text, str) and text.strip() for text in phrases[name]):
            raise ValueError(f"Class {name!r} has the phrases {phrases[name]!r}; it needs one or more texts.")
    texts = [text for name in names for text in phrases[name]]
    rows = _directions(np.asarray(encoder.embed_text(texts), np.float64))
    ends = np.cumsum([len(phrases[name]) for name in names])
    towards = _directions(np.stack([part.mean(0) for part in np.split(rows, ends[:-1])]))

    def similarity(embeddings: np.ndarray) -> np.ndarray:
        if embeddings.shape[1] != towards.shape[1]:
            raise ValueError(
                f"Images have embeddings of {embeddings.shape[1]} numbers, the prompts of {towards.shape[1]}: these "
                "cannot be compared. Tokens of an image-text model often lie in a space of their own: use "
                "method='crop'."
            )
        return _directions(embeddings.astype(np.float64)) @ towards.T

    return ImageScorer(names, _checked(similarity, names), {"prompts": {name: phrases[name] for name in names}})


def _of_model(model: Any, classes: Sequence[str] | None) -> ImageScorer:
    known = [str(name) for name in (model.classes if hasattr(model, "classes") else model.config.classes)]
    names = known if classes is None else [str(name) for name in classes]
    _require_known(names, known)
    columns = [known.index(name) for name in names]
    # One that has trained its encoder takes tiles alone, and embeddings of its own by another name.
    predict = _checked(model.classify if getattr(model, "needs_tiles", False) else model.predict, known)
    facts = {"model": getattr(model, "system", type(model).__name__)}
    return ImageScorer(names, lambda rows: predict(rows)[:, columns], facts, getattr(model, "spec", None))


def _checked(score: Score, classes: list[str]) -> Score:
    """A function whose answers have one finite score per class for each row."""

    def run(embeddings: np.ndarray) -> np.ndarray:
        scores = np.asarray(score(embeddings), np.float64)
        if scores.ndim == 1 and len(classes) == 1:
            scores = scores[:, None]
        if scores.shape != (len(embeddings), len(classes)):
            raise ValueError(
                f"The model gave scores of shape {scores.shape} for {len(embeddings)} embeddings and the classes "
                f"{classes}."
            )
        if not np.isfinite(scores).all():
            raise ValueError("The model gave NaN or infinity for an embedding: a score is a finite number.")
        return scores

    return run


def _require_known(names: list[str], known: list[str]) -> None:
    if not names:
        raise ValueError("There is no class to score: the mapping is empty.")
    for name in names:
        if name not in known:
            raise KeyError(f"The model has no class {name!r}; it has {known}.")


def _directions(rows: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(length > 0, length, 1)


@dataclass(frozen=True, eq=False)
class ClassScores:
    """Scores of rows, (n, classes), and what made them."""

    classes: list[str]
    scores: np.ndarray
    similarity: np.ndarray | None
    made: dict[str, Any]


class ClassScorer:
    """From a table to scores."""

    wanted = "an embedding, obsm['X_<encoder>']"

    def fits(self, adata: AnnData) -> bool:
        """Whether a table can be scored."""
        return bool(embeddings_of(adata))

    def score(self, data: Any, adata: AnnData, where: str) -> ClassScores:
        """Score it."""
        raise NotImplementedError


class FromPrompts(ClassScorer):
    """Likeness of embeddings to texts, which are embedded once for each encoder."""

    def __init__(
        self,
        prompts: dict[str, list[str]],
        templates: tuple[str, ...],
        encoder: Any,
        embedding: str | None,
        temperature: Any,
        device: str | None,
    ) -> None:
        self.prompts, self.templates, self.temperature = prompts, templates, temperature
        self._device = device
        self.encoder = _loaded(encoder, device)
        self.embedding = embedding or (None if self.encoder is None else key_of(self.encoder))
        self._texts: tuple[str, np.ndarray] | None = None
        if self.encoder is not None:
            self._vectors(self.encoder)
        if len(prompts) == 1:
            logger.warning(
                "There is one class, whose probability is 1 everywhere; look at its similarity, or describe the rest."
            )

    def fits(self, adata: AnnData) -> bool:
        """Whether a table has the embeddings."""
        return self.embedding in adata.obsm if self.embedding else bool(embeddings_of(adata))

    def score(self, data: Any, adata: AnnData, where: str) -> ClassScores:
        """Score a table."""
        key = find_embedding(adata, self.embedding, where)
        origin = origin_of(adata, key)
        encoder = self.encoder or self._encoder_of(origin, key, where)
        _require_same_encoder(encoder, origin, key, where)
        rows, texts = rows_of_embedding(adata, key, where), self._vectors(encoder)
        if rows.shape[1] != texts.shape[1]:
            raise ValueError(
                f"obsm[{key!r}] of {where} has {rows.shape[1]} dimensions, texts of {encoder.name!r} have "
                f"{texts.shape[1]}."
            )
        temperature = chosen_temperature(self.temperature, encoder)
        similarity = normalised(rows) @ texts.T
        made = _store.provenance(
            "tl.annotate",
            model="prompts",
            encoder=encoder.name,
            encoder_sha256=weight_hash(encoder.provenance),
            embedding=key,
            prompts=dict(zip(column_names(self.prompts), self.prompts.values(), strict=True)),
            templates=list(self.templates),
            temperature=temperature,
        )
        return ClassScores(list(self.prompts), softmax(similarity / temperature), similarity, made)

    def _encoder_of(self, origin: Origin, key: str, where: str) -> Any:
        if origin.encoder is None:
            raise ValueError(f"Nothing says which encoder made obsm[{key!r}] of {where}. Give it with encoder=.")
        self.encoder = _loaded(origin.encoder, self._device)
        return self.encoder

    def _vectors(self, encoder: Any) -> np.ndarray:
        if self._texts is None or self._texts[0] != encoder.name:
            texts, codes = sentences(self.prompts, self.templates)
            self._texts = encoder.name, class_vectors(text_vectors(encoder, texts), codes)
        return self._texts[1]


class FromAnnotator(ClassScorer):
    """What an annotator says of embeddings, or of tiles."""

    def __init__(
        self,
        annotator: Annotator,
        encoder: Any,
        embedding: str | None,
        image: str | None,
        batch_size: int,
        device: str | None,
        progress: bool | None,
    ) -> None:
        self.annotator, self.encoder, self.image, self.batch_size = annotator, encoder, image, batch_size
        self.device, self.progress = device, progress
        self.embedding = embedding or annotator.config.embedding
        if annotator.needs_tiles:
            self.wanted = "tiles, uns['tile_spec'] and obsm['spatial']"
        elif embedding is None:
            self.wanted = f"obsm[{self.embedding!r}]"

    def fits(self, adata: AnnData) -> bool:
        """Whether a table has what the annotator takes."""
        if self.annotator.needs_tiles:
            return table_spec(adata) is not None or is_folder(adata)
        return self.embedding in adata.obsm

    def score(self, data: Any, adata: AnnData, where: str) -> ClassScores:
        """Score a table."""
        annotator = self.annotator
        rows = self._from_tiles(data, adata, where) if annotator.needs_tiles else self._stored(adata, where)
        similarity = annotator.similarity(rows) if annotator.config.mode == "text" else None
        config = annotator.config
        made = _store.provenance(
            "tl.annotate",
            model="annotator",
            mode=config.mode,
            label=config.label,
            encoder=config.encoder,
            encoder_sha256=config.encoder_sha256,
            embedding=None if annotator.needs_tiles else self.embedding,
            trained={name: config.training.get(name) for name in ("date", "n_rows", "seed")},
        )
        return ClassScores(list(config.classes), annotator.classify(rows), similarity, made)

    def _stored(self, adata: AnnData, where: str) -> np.ndarray:
        key = find_embedding(adata, self.embedding, where)
        origin = origin_of(adata, key)
        encoder = (
            _loaded(self.encoder, self.device)
            if self.encoder is not None and not isinstance(self.encoder, str)
            else None
        )
        self.annotator.require_encoder(getattr(encoder, "name", self.encoder))
        self.annotator.require_encoder(origin.encoder, origin.sha256)
        self.annotator.require_spec(origin.spec, f"obsm[{key!r}] of {where}")
        rows = rows_of_embedding(adata, key, where)
        return checked_rows(rows, self.annotator.config.dim, self.annotator.config.encoder)

    def _from_tiles(self, data: Any, adata: AnnData, where: str) -> np.ndarray:
        from rich.progress import Progress

        spec = self.annotator.spec or table_spec(adata)
        if spec is None:
            raise ValueError(f"Neither the annotator nor {where} says how large its tiles are.")
        self.annotator.require_spec(table_spec(adata), where)
        reader, places = tiles_of(data, adata, spec, self.image, where)
        found = np.empty((adata.n_obs, self.annotator.config.dim), np.float32)
        with Progress(disable=not (settings.progress if self.progress is None else self.progress)) as bar:
            task = bar.add_task("annotate", total=len(places))
            for index, tiles in TileLoader(reader, places, batch_size=self.batch_size):
                found[index] = self.annotator.embed(tiles, encoder=self.encoder, device=self.device)
                self.encoder = self.device = None  # it is kept from the first batch on
                bar.update(task, advance=len(index))
        return found


def _loaded(encoder: Any, device: str | None) -> Any:
    if encoder is None or not isinstance(encoder, str | list | tuple):
        return encoder
    from sthist import encoders

    return encoders.get(encoder, device=device)


def _require_same_encoder(encoder: Any, origin: Origin, key: str, where: str) -> None:
    """Refuse texts of another encoder than that of the embeddings."""
    if origin.encoder is not None and origin.encoder != encoder.name:
        raise ValueError(
            f"obsm[{key!r}] of {where} was made by {origin.encoder!r}; the texts would be embedded by {encoder.name!r}."
        )
    own = weight_hash(encoder.provenance)
    if None not in (own, origin.sha256) and own != origin.sha256:
        raise ValueError(
            f"obsm[{key!r}] of {where} was made by other weights of {encoder.name!r}: the checksums differ. Embed "
            "again."
        )
