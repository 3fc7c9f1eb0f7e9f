"""Labels of tiles, polygons or heat maps, carried over to cells or spots."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist import _sample, _store
from sthist._sample.samples import over_samples
from sthist._settings import logger
from sthist._tables.genes import closest
from sthist._tables.labels import Overlaps, as_classes, column_names, labels_of, read_annotation
from sthist._tables.rows import add_columns, centroids_um, pairs_inside, polygons_um, require_free_columns, rows_of
from sthist.tiles._images.image import open_image, values_at

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spatialdata import SpatialData


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of classes at places."""

    values: np.ndarray  # (n, classes) float64; NaN where nothing is known
    classes: list[str]  # names, as they were given
    outside: np.ndarray  # (n,) bool: what lies in no tile or polygon, or off the heat map


@over_samples
def transfer_labels(
    data: SpatialData,
    source: str | Sequence[str],
    regions: str,
    *,
    label: str | None = None,
    scores: str | None = None,
    min_score: float = 0.0,
    overlaps: Overlaps = "smaller",
    key_added: str = "label",
    overwrite: bool = False,
) -> None:
    """Label and score cells or spots by the tile, polygon, or heat-map pixel that their centroid lies in.

    A cell in several tiles gets the mean of their scores; where tiles have labels alone, the share of the tiles that
    vote for each class. Polygons give the score 1 to their class, the smaller one where two overlap
    (:func:`sthist.pp.label_regions` says how they are mended). Of a heat map the full-resolution pixel under the
    centroid counts.

    Parameters
    ----------
    data
        One sample, or a mapping of name to sample; the path of a store stands for its sample.
    source
        Key of the table of the tiles, or of any regions (labels or ``scores``); of polygons (a column of the shapes
        themselves; shapes without that column stand for their table); or of a heat map registered in ``um``, an image
        with one channel per class, named by them, or several such images.
    regions
        Key of the cells or spots: their shapes or their table.
    label
        Column of ``source`` with the labels; ``"label"`` by default. NaN and blank text are no label.
    scores
        In place of it, key in ``obsm`` of the table of tiles: a DataFrame with one column per class. Rows with NaN are
        no score.
    min_score
        Cells get no label if their best score is less; in the unit of the scores, that of labels and polygons is from 0
        to 1.
    overlaps
        ``"error"`` refuses polygons of two classes that overlap.
    key_added
        Name of the columns.
    overwrite
        Replace columns of these names.

    Returns
    -------
    None. Writes into the table of the cells, also in the store of a backed object; shapes without a table get one,
    named ``<to>_table``:

    * ``obs[key_added]``: categorical, the class with the best score (the first of equals); NaN for cells outside of
      everything, cells whose tiles have no label, and those below ``min_score``; how many these are is logged and kept
      in ``uns["sthist"][key_added]``;
    * ``obs[key_added + "_score"]``: float64, the best score; NaN outside;
    * ``obsm[key_added + "_scores"]``: DataFrame of float64, one column per class, NaN outside. Heat maps of integers
      are divided by the largest number that their type can hold. Column names as in :func:`sthist.pp.label_regions`.

    Raises
    ------
    KeyError
        If there is no such element, column or ``obsm``.
    TypeError
        If ``scores`` is no DataFrame.
    ValueError
        If nothing has a label; if no cell lies in the source; if a column is there already, two channels have one name,
        both ``label`` and ``scores`` are given, or elements are not registered in ``um``.

    Examples
    --------
    >>> import sthist
    >>> sdata = sthist.datasets.toy(size_um=300)
    >>> sthist.tl.transfer_labels(sdata, "regions", regions="table")
    >>> sdata["table"].obs["label"].isna().sum() < 5
    np.True_
    >>> sdata["table"].obsm["label_scores"].columns.tolist()
    ['duct', 'immune', 'stroma']
    """
    import pandas as pd

    if np.isnan(min_score):
        raise ValueError("min_score is nan; it is a number in the unit of the scores.")
    if not isinstance(source, str) and not len(source):
        raise ValueError("source is empty; it is the key of an element, or those of several heat maps.")
    if label is not None and scores is not None:
        raise ValueError(f"label={label!r} and scores={scores!r} are given; a call reads one of them.")
    if overlaps not in {"smaller", "error"}:
        raise ValueError(f"overlaps is {overlaps!r}; it is 'smaller' or 'error'.")
    _sample.require_one_sample(data)
    rows = rows_of(data, regions)
    names = [key_added, f"{key_added}_score"]
    require_free_columns(data, rows, names, [f"{key_added}_scores"], overwrite=overwrite)
    places = centroids_um(data, rows)
    found = _scores_at(data, source, places, label or "label", scores, overlaps)
    if found.outside.all():
        raise ValueError(
            f"None of the {len(places)} rows of {regions!r} lies in {source!r}: are both registered in 'um' rightly?"
        )
    call, best = _call(found, min_score)
    counts = {
        "outside": int(found.outside.sum()),
        "unlabelled": int((np.isnan(best) & ~found.outside).sum()),
        "below_min_score": int((~np.isnan(best) & (call.codes < 0)).sum()),
    }
    logger.info(
        "%d of the %d rows of %r have a label; %d lie outside of %r, %d where nothing has a label, %d are below "
        "min_score.",
        int((call.codes >= 0).sum()),
        len(places),
        regions,
        counts["outside"],
        source,
        counts["unlabelled"],
        counts["below_min_score"],
    )
    columns = column_names(found.classes)
    made = _store.provenance(
        "tl.transfer_labels",
        source=source if isinstance(source, str) else list(source),
        to=rows.shapes,
        label=None if scores else label or "label",
        scores=scores,
        min_score=min_score,
        overlaps=overlaps,
        classes=dict(zip(columns, found.classes, strict=True)),
        **counts,
    )
    add_columns(
        data,
        rows,
        key_added,
        made,
        obs=dict(zip(names, (call, best), strict=True)),
        obsm={f"{key_added}_scores": pd.DataFrame(found.values, columns=columns)},
    )


def _scores_at(
    sdata: SpatialData,
    source: str | Sequence[str],
    places: np.ndarray,
    label: str,
    scores: str | None,
    overlaps: Overlaps,
) -> Scores:
    """Scores at places, from whatever the source is."""
    if not isinstance(source, str) or source in sdata.images:
        keys = [source] if isinstance(source, str) else list(source)
        if scores is not None:
            raise ValueError(f"scores={scores!r} names scores of tiles, but {source!r} is an image: leave it out.")
        return _of_heat_maps(sdata, keys, places)
    if scores is None and source in sdata.shapes and label in sdata.shapes[source].columns:
        return _of_polygons(sdata, source, places, label, overlaps)
    return _of_tiles(sdata, source, places, label, scores)


def _of_heat_maps(sdata: SpatialData, keys: list[str], places: np.ndarray) -> Scores:
    images = [open_image(sdata, key) for key in keys]
    classes = [name for image in images for name in image.channels]
    twice = [name for i, name in enumerate(classes) if name in classes[:i]]
    if twice:
        raise ValueError(
            f"The heat maps {keys} have two channels named {twice[0]!r}: a class has one channel. Rename one "
            "(set_channel_names)."
        )
    pixels, on = zip(*(values_at(image, places) for image in images), strict=True)
    values = [
        each / np.iinfo(image.dtype).max if image.dtype.kind in "iu" else each
        for each, image in zip(pixels, images, strict=True)
    ]
    return Scores(np.concatenate(values, axis=1), classes, ~np.logical_or.reduce(on))


def _of_polygons(sdata: SpatialData, key: str, places: np.ndarray, label: str, overlaps: Overlaps) -> Scores:
    annotation = read_annotation(sdata, key, label, overlaps)
    polygon, place = pairs_inside(annotation.polygons, places)
    place, first = np.unique(place, return_index=True)  # on a border between two, the first
    values = np.full((len(places), len(annotation.classes)), np.nan)
    values[place] = 0.0
    values[place, annotation.codes[polygon[first]]] = 1.0
    return Scores(values, annotation.classes, np.isnan(values).all(axis=1))


def _of_tiles(sdata: SpatialData, key: str, places: np.ndarray, label: str, scores: str | None) -> Scores:
    """Means over the tiles that each place lies in."""
    from scipy.sparse import csr_matrix

    tiles = rows_of(sdata, key)
    if scores is None:
        codes, classes = as_classes(labels_of(sdata, tiles, label), f"Column {label!r} of {key!r}")
        of_tile = np.eye(len(classes))[codes]
        known = codes >= 0
    else:
        of_tile, classes = _read_scores(sdata, tiles.table, scores, key)
        known = np.isfinite(of_tile).all(axis=1)
        if not known.any():
            raise ValueError(f"obsm[{scores!r}] of {tiles.table!r} has no row without NaN.")
    tile, place = pairs_inside(polygons_um(sdata, tiles), places)
    outside = np.ones(len(places), bool)
    outside[place] = False
    tile, place = tile[known[tile]], place[known[tile]]
    holds = csr_matrix((np.ones(len(tile)), (place, tile)), shape=(len(places), len(tiles)))
    n = np.asarray(holds.sum(axis=1))
    with np.errstate(invalid="ignore"):  # 0 tiles: NaN
        values = (holds @ np.where(known[:, None], of_tile, 0.0)) / n
    return Scores(values, classes, outside)


def _read_scores(sdata: SpatialData, table: str | None, scores: str, key: str) -> tuple[np.ndarray, list[str]]:
    if table is None:
        raise KeyError(
            f"Shapes {key!r} have no table, and so no obsm[{scores!r}]. {_sample.describe('tables', sdata.tables)}"
        )
    adata = sdata.tables[table]
    if scores not in adata.obsm:
        raise KeyError(
            f"Table {table!r} has no obsm[{scores!r}]; it has {list(adata.obsm)}.{closest(scores, adata.obsm)}"
        )
    frame = adata.obsm[scores]
    if not hasattr(frame, "columns"):
        raise TypeError(
            f"obsm[{scores!r}] of {table!r} is a {type(frame).__name__} of {frame.shape[1]} columns without names: "
            "make it a DataFrame with one column per class."
        )
    made = _made(adata, scores)
    classes = [str(made.get(str(column), column)) for column in frame.columns]
    return frame.to_numpy(np.float64), classes


def _made(adata: Any, scores: str) -> dict[str, str]:
    """Names of classes by column, where the verb that wrote scores had to change them."""
    for key, record in adata.uns.get("sthist", {}).items():
        if scores in {f"{key}_score", f"{key}_scores", f"{key}_composition"} and isinstance(record, dict):
            return dict(record.get("classes", {}))
    return {}


def _call(found: Scores, min_score: float) -> tuple[Any, np.ndarray]:
    """The class with the best score, and that score."""
    import pandas as pd

    known = np.isfinite(found.values)
    filled = np.where(known, found.values, -np.inf)
    best = filled.max(axis=1)
    codes = np.where(known.any(axis=1) & (best >= min_score), filled.argmax(axis=1), -1)
    call = pd.Categorical.from_codes(codes, categories=pd.Index(found.classes, dtype=object))
    return call, np.where(known.any(axis=1), best, np.nan)
