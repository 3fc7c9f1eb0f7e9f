"""Tables with embeddings or tiles: which table, which embedding, of which encoder, and the pixels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist import _sample
from sthist._messages import plain
from sthist._tables.genes import closest
from sthist.tiles import FolderReader, TileReader, TileSpec
from sthist.tiles._images.image import open_he
from sthist.tiles._spec import coarser_by
from sthist.training.model import weight_hash

if TYPE_CHECKING:
    from anndata import AnnData

NO_EMBEDDINGS = {"X_pca", "X_umap", "X_tsne", "X_diffmap", "X_draw_graph_fa", "X_spatial", "X_pca_harmony", "X_scvi"}
"""What other packages keep under such keys."""

CHECKED = 8192
"""Rows that are looked through at a time."""


@dataclass(frozen=True)
class Origin:
    """What made embeddings."""

    encoder: str | None = None  # name, and checksum of the weights; None where it is not known
    sha256: str | None = None
    spec: TileSpec | None = None  # the tiles; None where they are not known


def embeddings_of(adata: AnnData) -> list[str]:
    """Keys of the embeddings that a table has: those that say what made them, else all that can be some."""
    made = adata.uns.get("sthist", {}).items()
    ours = {f"X_{key}" for key, how in made if isinstance(how, Mapping) and how.get("call") == "tl.expression"}
    keys = [key for key in adata.obsm if key.startswith("X_") and key not in NO_EMBEDDINGS | ours]
    known = [key for key in keys if origin_of(adata, key).encoder is not None]
    return known or keys


def find_embedding(adata: AnnData, embedding: str | None, where: str) -> str:
    """Key of the embedding that is meant: given, or the only one."""
    keys = embeddings_of(adata)
    if embedding is not None:
        if embedding not in adata.obsm:
            raise KeyError(
                f"{where} has no obsm[{embedding!r}]; it has the embeddings {keys}.{closest(embedding, keys)} Make it "
                "with pp.embed."
            )
        return embedding
    if len(keys) == 1:
        return keys[0]
    if not keys:
        raise KeyError(
            f"{where} has no embedding, obsm['X_<encoder>']; it has obsm {list(adata.obsm)}. Make one with pp.embed."
        )
    raise ValueError(
        f"{where} has several embeddings: {', '.join(map(repr, keys))}. Say which one is meant with embedding= or "
        "encoder=."
    )


def rows_of_embedding(adata: AnnData, key: str, where: str) -> np.ndarray:
    """Embeddings (n, d) float32; a row with NaN is an error that names it."""
    return np.asarray(stored_embedding(adata, key, where), np.float32)


def stored_embedding(adata: AnnData, key: str, where: str) -> np.ndarray:
    """Embeddings (n, d) as they are stored, not copied; a row with NaN is an error that names it."""
    kept = adata.obsm[key]
    if hasattr(kept, "toarray"):
        raise ValueError(
            f"obsm[{key!r}] of {where} is sparse; embeddings are dense: adata.obsm[{key!r}] = "
            f"adata.obsm[{key!r}].toarray()."
        )
    rows = np.asarray(kept)
    if rows.ndim != 2 or rows.shape[1] == 0:
        raise ValueError(f"obsm[{key!r}] of {where} has shape {rows.shape}; embeddings are (n, d).")
    if rows.dtype.kind != "f":
        rows = rows.astype(np.float32)
    finite = np.ones(len(rows), np.bool_)
    for start in range(0, len(rows), CHECKED):
        part = rows[start : start + CHECKED]
        finite[start : start + CHECKED] = np.isfinite(part.astype(np.float32, copy=False)).all(axis=1)
    if not finite.all():
        row = int(finite.argmin())
        raise ValueError(
            f"obsm[{key!r}] of {where} is NaN or infinite in {int((~finite).sum())} of {len(rows)} rows, first row "
            f"{row} ({plain(adata.obs_names[row])!r}). Leave those rows out, or embed them again."
        )
    return rows


def origin_of(adata: AnnData, key: str) -> Origin:
    """What is recorded of embeddings."""
    made = adata.uns.get("sthist", {}).get(key)
    if not isinstance(made, Mapping):
        return Origin()
    name, spec = made.get("encoder"), made.get("spec")
    return Origin(
        None if name is None else str(name),
        weight_hash(made),
        TileSpec(float(spec["size_um"]), int(spec["px"])) if isinstance(spec, Mapping) else None,
    )


def table_spec(adata: AnnData) -> TileSpec | None:
    """The tiles that a table was laid for; None where it says nothing."""
    spec = adata.uns.get("tile_spec")
    return TileSpec(float(spec["size_um"]), int(spec["px"])) if isinstance(spec, Mapping) else None


def is_folder(adata: AnnData) -> bool:
    """Whether a table lists tiles that are files."""
    return "tile_folder" in adata.uns.get("sthist", {})


def tiles_of(
    data: Any,
    adata: AnnData,
    spec: TileSpec,
    image: str | None,
    where: str,
    *,
    coarser: str,
    normalizer: Any = None,
) -> tuple[Any, np.ndarray]:
    """A reader of the tiles of a table, and the places of its rows; ``coarser`` says how to ask for coarser tiles."""
    if is_folder(adata):
        with coarser_by(coarser):
            return FolderReader(adata, spec, normalizer=normalizer), np.arange(adata.n_obs)
    if not hasattr(data, "images"):
        raise ValueError(
            f"{where} is an AnnData without pixels: tiles need a SpatialData with an image, or a table of "
            "io.tile_folder. Embeddings alone serve method='linear'."
        )
    if "spatial" not in adata.obsm:
        raise KeyError(f"{where} has no obsm['spatial'], the centres of its tiles in µm; lay tiles with pp.tiles.")
    with coarser_by(coarser):
        reader = TileReader.from_image(open_he(data, image), spec, fill=255, normalizer=normalizer)
    return reader, np.asarray(adata.obsm["spatial"], np.float64)[:, :2]


def key_of(encoder: Any) -> str:
    """Key in ``obsm`` of the embeddings of an encoder, which may be its name."""
    if isinstance(encoder, str | list | tuple):
        return f"X_{_sample.safe_key(encoder)}"
    return encoder.key if encoder.key.startswith("X_") else f"X_{encoder.key}"


def effective_mpp(spec: TileSpec, encoder: Any) -> float:
    """µm per pixel that an encoder sees of tiles, which it may resize."""
    px = getattr(getattr(encoder, "transform", None), "size", None) or spec.px
    return spec.size_um / px
