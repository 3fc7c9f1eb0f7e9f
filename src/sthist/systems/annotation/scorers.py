"""From a table to scores of classes: by prompts, or by an annotator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist import _store
from sthist._settings import logger
from sthist._tables.labels import column_names
from sthist.systems.annotation.annotator import Annotator, checked_rows, weight_hash
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

if TYPE_CHECKING:
    from anndata import AnnData


@dataclass(frozen=True, eq=False)
class Found:
    """Scores of rows, (n, classes), and what made them."""

    classes: list[str]
    scores: np.ndarray
    similarity: np.ndarray | None
    made: dict[str, Any]


class Scorer:
    """From a table to scores."""

    wanted = "an embedding, obsm['X_<encoder>']"

    def fits(self, adata: AnnData) -> bool:
        """Whether a table can be scored."""
        return bool(embeddings_of(adata))

    def score(self, data: Any, adata: AnnData, where: str) -> Found:
        """Score it."""
        raise NotImplementedError


class FromPrompts(Scorer):
    """Likeness of embeddings to texts, which are embedded once for each encoder."""

    def __init__(
        self,
        prompts: dict[str, list[str]],
        templates: tuple[str, ...],
        encoder: Any,
        embedding: str | None,
        temperature: Any,
    ) -> None:
        self.prompts, self.templates, self.temperature = prompts, templates, temperature
        self.encoder = _loaded(encoder)
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

    def score(self, data: Any, adata: AnnData, where: str) -> Found:
        """Score a table."""
        key = find_embedding(adata, self.embedding, where)
        origin = origin_of(adata, key)
        encoder = self.encoder or self._encoder_of(origin, key, where)
        _require_same_encoder(encoder, origin, key, where)
        rows, texts = rows_of_embedding(adata, key, where), self._vectors(encoder)
        if rows.shape[1] != texts.shape[1]:
            msg = f"obsm[{key!r}] of {where} has {rows.shape[1]} dimensions, texts of {encoder.name!r} have {texts.shape[1]}."
            raise ValueError(msg)
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
        return Found(list(self.prompts), softmax(similarity / temperature), similarity, made)

    def _encoder_of(self, origin: Origin, key: str, where: str) -> Any:
        if origin.encoder is None:
            msg = f"Nothing says which encoder made obsm[{key!r}] of {where}. Give it with encoder=."
            raise ValueError(msg)
        self.encoder = _loaded(origin.encoder)
        return self.encoder

    def _vectors(self, encoder: Any) -> np.ndarray:
        if self._texts is None or self._texts[0] != encoder.name:
            texts, codes = sentences(self.prompts, self.templates)
            self._texts = encoder.name, class_vectors(text_vectors(encoder, texts), codes)
        return self._texts[1]


class FromAnnotator(Scorer):
    """What an annotator says of embeddings, or of tiles."""

    def __init__(
        self, annotator: Annotator, encoder: Any, embedding: str | None, image: str | None, batch_size: int
    ) -> None:
        self.annotator, self.encoder, self.image, self.batch_size = annotator, encoder, image, batch_size
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

    def score(self, data: Any, adata: AnnData, where: str) -> Found:
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
        return Found(list(config.classes), annotator.classify(rows), similarity, made)

    def _stored(self, adata: AnnData, where: str) -> np.ndarray:
        key = find_embedding(adata, self.embedding, where)
        origin = origin_of(adata, key)
        encoder = _loaded(self.encoder) if self.encoder is not None and not isinstance(self.encoder, str) else None
        self.annotator.require_encoder(getattr(encoder, "name", self.encoder))
        self.annotator.require_encoder(origin.encoder, origin.sha256)
        self.annotator.require_spec(origin.spec, f"obsm[{key!r}] of {where}")
        rows = rows_of_embedding(adata, key, where)
        return checked_rows(rows, self.annotator.config.dim, self.annotator.config.encoder)

    def _from_tiles(self, data: Any, adata: AnnData, where: str) -> np.ndarray:
        spec = self.annotator.spec or table_spec(adata)
        if spec is None:
            msg = f"Neither the annotator nor {where} says how large its tiles are."
            raise ValueError(msg)
        self.annotator.require_spec(table_spec(adata), where)
        reader, places = tiles_of(data, adata, spec, self.image, where)
        found = np.empty((adata.n_obs, self.annotator.config.dim), np.float32)
        for index, tiles in TileLoader(reader, places, batch_size=self.batch_size):
            found[index] = self.annotator.embed(tiles, encoder=self.encoder)
            self.encoder = None  # it is kept from the first batch on
        return found


def _loaded(encoder: Any) -> Any:
    if encoder is None or not isinstance(encoder, str | list | tuple):
        return encoder
    from sthist import encoders

    return encoders.get(encoder)


def _require_same_encoder(encoder: Any, origin: Origin, key: str, where: str) -> None:
    """Refuse texts of another encoder than that of the embeddings."""
    if origin.encoder is not None and origin.encoder != encoder.name:
        msg = (
            f"obsm[{key!r}] of {where} was made by {origin.encoder!r}; the texts would be embedded by {encoder.name!r}."
        )
        raise ValueError(msg)
    own = weight_hash(encoder.provenance)
    if None not in (own, origin.sha256) and own != origin.sha256:
        msg = f"obsm[{key!r}] of {where} was made by other weights of {encoder.name!r}: the checksums differ. Embed again."
        raise ValueError(msg)
