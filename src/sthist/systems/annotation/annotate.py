"""Classes of tiles: from prompts, or from an annotator that was trained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist._sample.samples import over_samples
from sthist._settings import logger
from sthist._tables.find import find_table, require_free
from sthist._tables.labels import column_names
from sthist._tables.rows import write_columns
from sthist.systems.annotation.annotator import Annotator
from sthist.systems.annotation.prompts import checked_prompts, checked_templates
from sthist.systems.annotation.scorers import ClassScorer, ClassScores, FromAnnotator, FromPrompts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData


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
    key_added: str = "annotation",
    batch_size: int = 64,
    overwrite: bool = False,
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
    key_added
        Name of the columns.
    batch_size
        Tiles per batch, where they are read.
    overwrite
        Replace columns of these names.

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
        scorer: ClassScorer = FromPrompts(prompts, texts, encoder, embedding, temperature)
    else:
        if templates is not None or temperature is not None:
            msg = "templates= and temperature= go with prompts; an annotator has what it was trained with."
            raise ValueError(msg)
        scorer = FromAnnotator(_annotator(model, classes), encoder, embedding, image, batch_size)
    _annotate_one(data, scorer, table, key_added, overwrite=overwrite)


@over_samples
def _annotate_one(data: Any, scorer: ClassScorer, table: str | None, key_added: str, *, overwrite: bool) -> None:
    key, adata = find_table(data, table, scorer.fits, scorer.wanted)
    where = "This AnnData" if key is None else f"Table {key!r}"
    if adata.n_obs == 0:
        msg = f"{where} has no rows."
        raise ValueError(msg)
    require_free(adata, where, [key_added], [f"{key_added}_score", f"{key_added}_similarity"], overwrite=overwrite)
    result = scorer.score(data, adata, where)
    _write(data, key, adata, key_added, result)
    counts = np.bincount(result.scores.argmax(axis=1), minlength=len(result.classes)).tolist()
    by_class = ", ".join(f"{name} {n}" for name, n in zip(result.classes, counts, strict=True))
    logger.info("%s: %d rows: %s.", where, adata.n_obs, by_class)


def _annotator(model: Any, classes: Sequence[str] | None) -> Annotator:
    if isinstance(model, str | Path):
        model = Annotator.load(model)
    if not isinstance(model, Annotator):
        msg = f"model is a mapping of class to phrases, an Annotator or the folder of one, not {type(model).__name__}."
        raise TypeError(msg)
    if classes is not None and list(map(str, classes)) != list(model.config.classes):
        msg = f"classes= is {list(classes)}; this annotator has {list(model.config.classes)}."
        raise ValueError(msg)
    return model


def _write(data: Any, key: str | None, adata: AnnData, key_added: str, result: ClassScores) -> None:
    """Put the columns into the table, and into the store of a backed object first."""
    import pandas as pd

    columns = column_names(result.classes)
    made = result.made | {"classes": dict(zip(columns, result.classes, strict=True))}
    calls = pd.Categorical.from_codes(result.scores.argmax(axis=1), categories=pd.Index(result.classes, dtype=object))
    frames = {
        f"{key_added}_{name}": None if values is None else pd.DataFrame(np.asarray(values, np.float32), columns=columns)
        for name, values in (("score", result.scores), ("similarity", result.similarity))
    }
    write_columns(data, key, adata, key_added, made, obs={key_added: calls}, obsm=frames)
