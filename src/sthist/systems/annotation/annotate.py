"""Classes of tiles: from prompts, or from an annotator that was trained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist._messages import plain
from sthist._sample.samples import over_samples
from sthist._sample.verbs import verb
from sthist._settings import logger
from sthist._tables.find import find_table, require_free
from sthist._tables.labels import column_names
from sthist._tables.rows import lie_within, write_columns
from sthist.systems.annotation.annotator import Annotator
from sthist.systems.annotation.prompts import checked_prompts, checked_templates
from sthist.systems.annotation.scorers import (
    ClassScorer,
    ClassScores,
    FromAnnotator,
    FromPrompts,
    refuse_prompt_options,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData


@verb
def annotate(
    data: Any,
    model: Mapping[str, Sequence[str] | str] | Annotator | str | Path,
    *,
    encoder: Any = None,
    embedding: str | None = None,
    table: str | None = None,
    image: str | None = None,
    classes: Sequence[str] | None = None,
    templates: Sequence[str] | None = None,
    temperature: float | None = None,
    within: Any = None,
    key_added: str = "annotation",
    batch_size: int = 64,
    device: str | None = None,
    overwrite: bool = False,
    progress: bool | None = None,
) -> None:
    """Give tiles classes: those that prompts describe, without any training, or those of an annotator.

    With prompts, a class is the mean direction of all its phrases in all templates, and a tile is as likely of a class
    as the two are alike: cosine similarity, divided by the model's temperature, through a softmax. Probabilities are
    shares among the classes that were given: a tile that shows none of them still gets one, so describe the rest, too
    ("stroma", "background").

    Parameters
    ----------
    data
        A SpatialData, an AnnData, or a mapping of sample name to such. Texts are embedded once for all.
    model
        Phrases by class, as in ``{"tumour": ["invasive carcinoma"], "stroma": ["fibrous stroma", "collagen"]}``; or an
        :class:`sthist.models.Annotator`, or the folder of one.
    encoder
        Name of the encoder, or an encoder; by default the one that made the embeddings.
    embedding
        Key of the embeddings in ``obsm``; by default that of ``encoder``, or the only one.
    table
        Key of the table, where several have embeddings.
    image
        Key of the H&E, for annotators with an encoder of their own, which read the tiles.
    classes
        The classes that there are to be, in this order: prompts of others, or for fewer, are refused.
    templates
        Sentences around the phrases, with ``{}`` for them; by default a dozen for histology,
        ``sthist.systems.annotation.prompts.TEMPLATES``. ``["{}"]`` takes the phrases alone.
    temperature
        What similarities are divided by; by default the model's own.
    within
        Part of the slide: a box (x0, y0, x1, y1) in µm, a polygon, or the key of shapes. Rows whose centre lies
        elsewhere stay as they are, or get no class (NaN).
    key_added
        Name of the columns.
    batch_size
        Tiles per batch, where they are read.
    device
        Where an encoder runs that is loaded by its name, or that the annotator has trained along;
        ``settings.device`` by default.
    overwrite
        Replace columns of these names.
    progress
        Show a progress bar where tiles are read; ``settings.progress`` by default.

    Returns
    -------
    None. Writes into the table, also in the store of a backed object:

    * ``obs[key_added]``: categorical, the likeliest class, under its own name;
    * ``obsm[key_added + "_score"]``: DataFrame of float32, probabilities, one column per class, rows sum to 1;
    * ``obsm[key_added + "_similarity"]``: DataFrame of float32, cosine similarities, where there are texts;
    * ``uns["sthist"][key_added]``: model, encoder, prompts, temperature; ``classes`` has the names of the classes by
      column, where a class has a name that no column can have.

    Raises
    ------
    KeyError
        If there is no such table or embedding, or no image.
    ValueError
        If several could be meant; if embeddings are NaN, or of another encoder, tile size or µm/px than the model; if a
        class has no prompt; if the encoder knows no texts; if a column is there already.
    TypeError
        If ``model`` is nothing of that kind.

    Examples
    --------
    >>> import anndata as ad, numpy as np, sthist
    >>> class Colours:
    ...     name, key, logit_scale, provenance = "colours", "X_colours", 10.0, {}
    ...
    ...     def embed_text(self, texts):
    ...         return np.array([["red" in text, "blue" in text] for text in texts], np.float32)
    >>> tiles = ad.AnnData(obs={"name": ["1", "2"]}, obsm={"X_colours": np.array([[0.9, 0.1], [0.2, 0.7]])})
    >>> sthist.tl.annotate(tiles, {"eosin": ["red"], "nuclei": ["blue"]}, encoder=Colours())
    >>> tiles.obs["annotation"].tolist()
    ['eosin', 'nuclei']
    """
    if isinstance(model, Mapping):
        prompts, texts = checked_prompts(model, classes), checked_templates(templates)
        scorer: ClassScorer = FromPrompts(prompts, texts, encoder, embedding, temperature, device)
    else:
        refuse_prompt_options(templates, temperature)
        scorer = FromAnnotator(_annotator(model, classes), encoder, embedding, image, batch_size, device, progress)
    _annotate_one(data, scorer, table, within, key_added, overwrite=overwrite)


@over_samples
def _annotate_one(
    data: Any, scorer: ClassScorer, table: str | None, within: Any, key_added: str, *, overwrite: bool
) -> None:
    key, adata = find_table(data, table, scorer.fits, scorer.needs)
    where = "This AnnData" if key is None else f"Table {key!r}"
    if adata.n_obs == 0:
        raise ValueError(f"{where} has no rows.")
    require_free(adata, where, [key_added], [f"{key_added}_score", f"{key_added}_similarity"], overwrite=overwrite)
    rows = None if within is None else _rows_within(data, adata, within, where)
    result = scorer.score(data, adata if rows is None else adata[rows].copy(), where)
    _write(data, key, adata, key_added, result, rows)
    counts = np.bincount(result.scores.argmax(axis=1), minlength=len(result.classes)).tolist()
    by_class = ", ".join(f"{name} {n}" for name, n in zip(result.classes, counts, strict=True))
    logger.info("%s: %d rows: %s.", where, len(result.scores), by_class)


def _rows_within(data: Any, adata: AnnData, within: Any, where: str) -> np.ndarray:
    if "spatial" not in adata.obsm:
        raise KeyError(f"{where} has no obsm['spatial'], the centres of its rows in µm, which within= needs.")
    return lie_within(data, np.asarray(adata.obsm["spatial"], np.float64)[:, :2], within, where)


def _annotator(model: Any, classes: Sequence[str] | None) -> Annotator:
    if isinstance(model, str | Path):
        model = Annotator.load(model)
    if not isinstance(model, Annotator):
        raise TypeError(
            f"model is a mapping of class to phrases, an Annotator or the folder of one, not {type(model).__name__}."
        )
    if classes is not None and list(map(str, classes)) != list(model.config.classes):
        raise ValueError(f"classes= is {plain(list(classes))}; this annotator has {list(model.config.classes)}.")
    return model


def _write(
    data: Any, key: str | None, adata: AnnData, key_added: str, result: ClassScores, rows: np.ndarray | None
) -> None:
    """Put the columns into the table, and into the store of a backed object first."""
    import pandas as pd

    columns = column_names(result.classes)
    made = result.made | {"classes": dict(zip(columns, result.classes, strict=True))}
    codes = result.scores.argmax(axis=1)
    values = {f"{key_added}_score": result.scores, f"{key_added}_similarity": result.similarity}
    if rows is not None:  # what lies elsewhere stays, or is not known
        before = pd.Categorical(adata.obs[key_added]) if key_added in adata.obs else None
        if before is not None and list(before.categories) != result.classes:
            raise ValueError(
                f"obs[{key_added!r}] has the classes {plain(before.categories)}, and within= would put "
                f"{result.classes} beside them. Pass key_added= for another name."
            )
        codes = _spread(codes, rows, -1 if before is None else before.codes)
        for name, scores in values.items():
            if scores is not None:
                values[name] = _spread(np.asarray(scores, np.float32), rows, adata.obsm.get(name, np.nan))
    calls = pd.Categorical.from_codes(codes, categories=pd.Index(result.classes, dtype=object))
    frames = {
        name: None if scores is None else pd.DataFrame(np.asarray(scores, np.float32), columns=columns)
        for name, scores in values.items()
    }
    write_columns(data, key, adata, key_added, made, obs={key_added: calls}, obsm=frames)


def _spread(values: np.ndarray, rows: np.ndarray, elsewhere: Any) -> np.ndarray:
    """Values of some rows among those of all."""
    spread = np.empty((len(rows), *values.shape[1:]), values.dtype)
    spread[:] = elsewhere
    spread[rows] = values
    return spread
