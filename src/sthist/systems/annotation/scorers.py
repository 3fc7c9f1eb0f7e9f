"""From a table to scores of classes: by prompts, or by an annotator."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist import _store
from sthist._settings import logger, progress_bar
from sthist._tables.labels import column_names
from sthist.systems.annotation.annotator import Annotator, checked_rows
from sthist.systems.annotation.prompts import (
    checked_prompts,
    checked_templates,
    chosen_temperature,
    class_vectors,
    normalised,
    sentences,
    softmax,
    text_vectors,
)
from sthist.tiles import TileLoader, TileSpec
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

TOKENS = " Tokens of an image-text model often lie in a space of their own: use method='crop'."
"""Why texts and a heat map's embeddings may not fit each other."""

Score = Callable[[np.ndarray], np.ndarray]


class PromptScorer:
    """Classes described in words: how alike embeddings and the texts of a class are, and the probabilities of that."""

    def __init__(
        self, prompts: dict[str, list[str]], templates: tuple[str, ...], temperature: float | None, encoder: Any
    ) -> None:
        self.prompts, self.templates, self.encoder = prompts, templates, encoder
        texts, codes = sentences(prompts, templates)
        self.vectors = class_vectors(text_vectors(encoder, texts), codes)
        self.temperature = chosen_temperature(temperature, encoder)

    def similarity(self, rows: np.ndarray, what: str = "An embedding of the image", hint: str = TOKENS) -> np.ndarray:
        """Cosine similarities, (n, classes)."""
        if rows.shape[1] != self.vectors.shape[1]:
            raise ValueError(
                f"{what} has {rows.shape[1]} dimensions, texts of {self.encoder.name!r} have "
                f"{self.vectors.shape[1]}.{hint}"
            )
        return normalised(rows) @ self.vectors.T

    def probabilities(self, similarity: np.ndarray) -> np.ndarray:
        """Shares of the classes, by how alike they are."""
        return softmax(similarity / self.temperature)

    def classify(self, rows: np.ndarray) -> np.ndarray:
        """Probabilities of embeddings."""
        return self.probabilities(self.similarity(rows))

    @property
    def facts(self) -> dict[str, Any]:
        """What to record of it."""
        return {
            "model": "prompts",
            "prompts": self.prompts,
            "templates": list(self.templates),
            "temperature": self.temperature,
        }


@dataclass(frozen=True, eq=False)
class ImageScorer:
    """Scores of embeddings."""

    classes: list[str]  # names, as the user wrote them
    score: Score  # (n, d) embeddings to (n, classes) float
    facts: dict[str, Any]  # JSON values that say what it is
    spec: TileSpec | None  # the tile that it was trained for; None where it was not


def scorer_of(
    model: Any, encoder: Any, classes: Sequence[str] | None, templates: Sequence[str] | None, temperature: float | None
) -> ImageScorer:
    """The scorer that a ``model=`` argument of heat maps stands for."""
    if classes is not None and (isinstance(classes, str) or not len(classes)):
        raise ValueError(f"classes is {classes!r}; it is a list of names.")
    if not isinstance(model, Mapping):
        refuse_prompt_options(templates, temperature)
    names = None if classes is None else [str(name) for name in classes]
    spec: TileSpec | None = None
    score, facts = model, {"model": f"function {getattr(model, '__qualname__', type(model).__name__)}"}
    if isinstance(model, Mapping):
        prompts = PromptScorer(checked_prompts(model), checked_templates(templates), temperature, encoder)
        known, score, facts = list(prompts.prompts), prompts.classify, prompts.facts
    elif hasattr(model, "predict"):
        known = [str(name) for name in (model.classes if hasattr(model, "classes") else model.config.classes)]
        # One that has trained its encoder takes tiles alone, and embeddings of its own by another name.
        score = model.classify if getattr(model, "needs_tiles", False) else model.predict
        spec, facts = getattr(model, "spec", None), {"model": getattr(model, "system", type(model).__name__)}
    elif not callable(model):
        raise TypeError(
            f"model is a {type(model).__name__}; it is a mapping of class to phrases, a model with predict and "
            "classes, or a function of embeddings (n, d) that returns scores (n, classes)."
        )
    elif names is None and not hasattr(model, "classes"):
        raise TypeError("model is a function: name what it scores with classes=[...].")
    else:
        known = names or [str(name) for name in model.classes]
    unknown = [name for name in names or () if name not in known]
    if unknown:
        raise KeyError(f"The model has no class {unknown[0]!r}; it has {known}.")
    if isinstance(model, Mapping) and len(known) == 1:
        raise ValueError(
            f"The probability of {known[0]!r}, the only class, is 1 everywhere: describe the rest of the tissue, too, "
            "and choose what is written with classes=."
        )
    columns = range(len(known)) if names is None or known is names else [known.index(name) for name in names]
    return ImageScorer(names or known, lambda rows: _checked(score(rows), rows, known)[:, columns], facts, spec)


def _checked(scores: Any, rows: np.ndarray, classes: list[str]) -> np.ndarray:
    """Scores with one finite number per class for each row."""
    scores = np.asarray(scores, np.float64)
    if scores.ndim == 1 and len(classes) == 1:
        scores = scores[:, None]
    if scores.shape != (len(rows), len(classes)):
        raise ValueError(
            f"The model gave scores of shape {scores.shape} for {len(rows)} embeddings and the classes {classes}."
        )
    if not np.isfinite(scores).all():
        raise ValueError("The model gave NaN or infinity for an embedding: a score is a finite number.")
    return scores


def refuse_prompt_options(templates: Sequence[str] | None, temperature: float | None) -> None:
    """Refuse what means nothing to a model that was trained."""
    if templates is not None or temperature is not None:
        raise ValueError("templates= and temperature= go with prompts; an annotator has what it was trained with.")


@dataclass(frozen=True, eq=False)
class ClassScores:
    """Scores of rows, (n, classes), and what made them."""

    classes: list[str]
    scores: np.ndarray
    similarity: np.ndarray | None
    made: dict[str, Any]


class ClassScorer:
    """From a table to scores."""

    needs = "an embedding, obsm['X_<encoder>']"

    def fits(self, adata: AnnData) -> bool:
        """Whether a table can be scored."""
        return bool(embeddings_of(adata))

    def score(self, data: Any, adata: AnnData, where: str) -> ClassScores:
        """Score it."""
        raise NotImplementedError


class FromPrompts(ClassScorer):
    """Probabilities of stored embeddings from texts, which are embedded once for all tables."""

    def __init__(
        self,
        prompts: dict[str, list[str]],
        templates: tuple[str, ...],
        encoder: Any,
        embedding: str | None,
        temperature: Any,
        device: str | None,
    ) -> None:
        encoder = _loaded(encoder, device)
        self._prepare = lambda encoder: PromptScorer(prompts, templates, temperature, encoder)
        self._scorer = None if encoder is None else self._prepare(encoder)
        self._device = device
        self.embedding = embedding or (None if encoder is None else key_of(encoder))
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
        if self._scorer is None:
            if origin.encoder is None:
                raise ValueError(f"Nothing says which encoder made obsm[{key!r}] of {where}. Give it with encoder=.")
            self._scorer = self._prepare(_loaded(origin.encoder, self._device))
        scorer = self._scorer
        _require_same_encoder(scorer.encoder, origin, key, where)
        similarity = scorer.similarity(rows_of_embedding(adata, key, where), f"obsm[{key!r}] of {where}", "")
        names = column_names(scorer.prompts)
        made = _store.provenance(
            "tl.annotate",
            encoder=scorer.encoder.name,
            encoder_sha256=weight_hash(scorer.encoder.provenance),
            embedding=key,
            **scorer.facts | {"prompts": dict(zip(names, scorer.prompts.values(), strict=True))},
        )
        return ClassScores(list(scorer.prompts), scorer.probabilities(similarity), similarity, made)


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
            self.needs = "tiles, uns['tile_spec'] and obsm['spatial']"
        elif embedding is None:
            self.needs = f"obsm[{self.embedding!r}]"

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
        named = self.encoder if isinstance(self.encoder, str) else _loaded(self.encoder, self.device)
        self.annotator.require_encoder(getattr(named, "name", named))
        self.annotator.require_encoder(origin.encoder, origin.sha256)
        self.annotator.require_spec(origin.spec, f"obsm[{key!r}] of {where}")
        rows = rows_of_embedding(adata, key, where)
        return checked_rows(rows, self.annotator.config.dim, self.annotator.config.encoder)

    def _from_tiles(self, data: Any, adata: AnnData, where: str) -> np.ndarray:
        spec = self.annotator.spec or table_spec(adata)
        if spec is None:
            raise ValueError(f"Neither the annotator nor {where} says how large its tiles are.")
        self.annotator.require_spec(table_spec(adata), where)
        advice = 'Annotate a finer image, or train an annotator with training={{"spec": {}}}.'
        reader, places = tiles_of(data, adata, spec, self.image, where, coarser=advice)
        rows = np.empty((adata.n_obs, self.annotator.config.dim), np.float32)
        with progress_bar("annotate", len(places), self.progress) as advance:
            for index, tiles in TileLoader(reader, places, batch_size=self.batch_size):
                rows[index] = self.annotator.embed(tiles, encoder=self.encoder, device=self.device)
                self.encoder = self.device = None  # it is kept from the first batch on
                advance(len(index))
        return rows


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
