"""From samples to what a model takes of their rows: stored embeddings, or the tiles themselves."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from sthist import pp
from sthist._settings import logger
from sthist._tables.rows import rows_of
from sthist.encoders import Transform
from sthist.regression.data.features import features_of_rows, keys_of
from sthist.regression.data.inputs import Arrays, Inputs, Tissue
from sthist.regression.model import RegressionModel
from sthist.tiles import TileSpec
from sthist.tiles._spec import same_scale
from sthist.training.batches import Tiles
from sthist.training.embeddings import embeddings_of, find_embedding, is_folder, origin_of, table_spec, tiles_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from anndata import AnnData

    from sthist.training.embeddings import Origin
    from sthist.training.rows import SampleRows

DEFAULT_ENCODER = "morphology"
DEFAULT_SPEC = TileSpec(112.0, 224)
"""Of a model of tiles, where neither it nor the tiles say how large they are."""


class EmbeddingModel(RegressionModel):
    """A model of stored embeddings."""

    default_spec: ClassVar[TileSpec | None] = None
    """Of the tiles that are embedded where nothing says how large they are; None for that of ``pp.embed``."""

    def collect(
        self,
        rows: SampleRows,
        *,
        embedding: str | Sequence[str] | None = None,
        image: str | None = None,
        device: str | None = None,
        progress: bool | None = None,
    ) -> Inputs:
        """Embeddings, which are made where there are none and the sample has an image."""
        self._settle_embeddings(rows, embedding, image, device, progress)
        values, origins = features_of_rows(rows, self.config)
        self._require_origins(origins, rows)
        return Arrays({"spot": values})

    def _settle_embeddings(
        self, rows: SampleRows, embedding: Any, image: str | None, device: str | None, progress: bool | None
    ) -> None:
        """Which embeddings it takes, and that all tables have them."""
        keys = keys_of(embedding)
        if self.config.embeddings and keys and keys != tuple(self.config.embeddings):
            raise ValueError(f"This model takes the embeddings {list(self.config.embeddings)}, not {list(keys)}.")
        keys = tuple(self.config.embeddings) or keys
        typed = [embedding] if isinstance(embedding, str) else list(embedding or [])
        names = [str(made.get("encoder") or "") for made in self.config.encoders] or typed or [""] * len(keys)
        if not keys and not any(embeddings_of(adata) for adata in rows.tables):
            keys, names = (f"X_{DEFAULT_ENCODER}",), [DEFAULT_ENCODER]
        keys = keys or (find_embedding(rows.tables[0], None, rows.names[0]),)
        for key, name in zip(keys, names or [""] * len(keys), strict=True):
            encoder = (name or key).removeprefix("X_")
            self._embed_missing(rows, key, encoder, image, device, progress, self.default_spec)
        if not self.config.embeddings:
            self.config = replace(self.config, embeddings=keys)

    def _embed_missing(
        self,
        rows: SampleRows,
        key: str,
        encoder: Any,
        image: str | None,
        device: str | None,
        progress: bool | None,
        spec: TileSpec | None = None,
    ) -> None:
        """Embed the regions of tables that lack an embedding, where their samples have images.

        A spec is for tables that do not say how large their tiles are, and for embeddings that none has yet.
        """
        known = [each for each in (origin_of(adata, key) for adata in rows.tables if key in adata.obsm) if each.encoder]
        own = [TileSpec(**each["spec"]) for each in self.config.encoders if each["key"] == key and each["spec"]]
        settled = next(iter(own + [each.spec for each in known if each.spec]), None)  # as where it is there already
        if isinstance(encoder, str):
            encoder = next((str(each.encoder) for each in known), encoder)
        for number, (sample, adata, where) in enumerate(zip(rows.samples, rows.tables, rows.names, strict=True)):
            if key in adata.obsm or not getattr(sample.data, "images", None):
                continue  # what is lacking is said where it is read
            regions = adata.uns.get("spatialdata_attrs", {}).get("region")
            if not isinstance(regions, str):
                continue
            named = getattr(encoder, "name", encoder)
            logger.info("%s has no obsm[%r]; its regions are embedded with %r.", where, key, named)
            chosen = settled or (spec if table_spec(adata) is None else None)
            options: dict[str, Any] = {} if chosen is None else {"spec": chosen}
            options |= {"image": image, "device": device, "progress": progress}
            table = next((each for each in sample.data.tables if sample.data.tables[each] is adata), None)
            pp.embed(sample.data, encoder, regions=table or regions, key_added=key, **options)
            rows.tables[number] = sample.data.tables[table or str(rows_of(sample.data, regions).table)]

    def _require_origins(self, origins: tuple[Origin, ...], rows: SampleRows) -> None:
        """Embeddings are of the encoder and of the scale that it was trained on; the first call settles which."""
        made: list[dict[str, Any]] = [
            {
                "key": key,
                "encoder": each.encoder,
                "sha256": each.sha256,
                "spec": None if each.spec is None else each.spec.to_dict(),
            }
            for key, each in zip(self.config.embeddings, origins, strict=True)
        ]
        if not self.config.encoders:
            spec = next((each["spec"] for each in made if each["spec"]), None)
            self.config = replace(self.config, encoders=tuple(made), spec=self.config.spec or spec)
            return
        for known, found in zip(self.config.encoders, made, strict=True):
            where = f"obsm[{found['key']!r}] of {rows.names[0]}"
            for what in ("encoder", "sha256"):
                if None not in (known[what], found[what]) and known[what] != found[what]:
                    raise ValueError(
                        f"{where} is of the {what} {found[what]!r}; this model was trained on {known[what]!r}."
                    )
            if known["spec"] and found["spec"] and not same_scale(TileSpec(**known["spec"]), TileSpec(**found["spec"])):
                raise ValueError(
                    f"{where} is of tiles of {found['spec']}; this model was trained on tiles of {known['spec']}. "
                    "Embed such tiles: pp.embed(..., spec=)."
                )


class TileModel(RegressionModel):
    """A model of the tiles themselves; a base that comes before ``NetworkModel``."""

    default_tiles: ClassVar[TileSpec] = DEFAULT_SPEC
    """Where neither the model nor the tiles say how large they are."""

    def collect(
        self,
        rows: SampleRows,
        *,
        embedding: str | Sequence[str] | None = None,
        image: str | None = None,
        device: str | None = None,
        progress: bool | None = None,
    ) -> Inputs:
        """Readers of the tiles."""
        if embedding is not None:
            raise ValueError(f"{type(self).__name__} reads tiles; it takes no embedding=.")
        spec = self.spec or self._laid(rows) or self.default_tiles
        for adata, name in zip(rows.tables, rows.names, strict=True):
            laid = table_spec(adata)
            if laid is not None and not is_folder(adata) and not same_scale(laid, spec):
                raise ValueError(
                    f"The tiles of {name} show {laid.size_um:g} µm at {laid.mpp:.4g} µm/px; this model is for tiles of "
                    f"{spec.size_um:g} µm at {spec.mpp:.4g} µm/px."
                )
        sources = [
            tiles_of(sample.data, adata, spec, image, name, coarser=self._coarser(adata))
            for sample, adata, name in zip(rows.samples, rows.tables, rows.names, strict=True)
        ]
        self.config = replace(self.config, spec=spec.to_dict())
        readers, places = ([source[i] for source in sources] for i in (0, 1))
        return Tissue(Tiles(readers, places, rows.sample, rows.row), self.extra(rows))

    def transform(self, tiles: Any) -> Any:
        """Tiles (n, px, px, 3) of uint8 as the network takes them: normalised as for ImageNet."""
        return Transform()(tiles)

    def extra(self, rows: SampleRows) -> dict[str, np.ndarray]:
        """Arrays that it takes beside the tiles, such as places; none by default."""
        return {}

    def _coarser(self, adata: AnnData) -> str:
        """How to have coarser tiles of a table."""
        if not self.is_fitted and table_spec(adata) is not None and not is_folder(adata):
            return "Lay tiles of {}, or coarser: pp.tiles(..., overwrite=True)."
        config = f"sthist.models.{type(self.config).__name__}(spec={{}})"
        return f"Predict on a finer image, or train {config}." if self.is_fitted else f"Train {config}, or coarser."

    @staticmethod
    def _laid(rows: SampleRows) -> TileSpec | None:
        """The tiles that the first table was laid for."""
        return next((spec for spec in map(table_spec, rows.tables) if spec is not None), None)
