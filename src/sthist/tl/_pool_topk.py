"""Scores of cores, regions or patients from those of their tiles."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sthist import _sample, _store
from sthist._sample.samples import over_samples
from sthist._settings import logger
from sthist._tables.find import called, find_table, require_free
from sthist._tables.genes import closest
from sthist._tables.labels import class_names, column_names
from sthist._tables.rows import (
    Rows,
    add_columns,
    centroids_um,
    cores_of,
    first_inside,
    polygons_um,
    require_free_columns,
    rows_of,
)

if TYPE_CHECKING:
    import pandas as pd
    from spatialdata import SpatialData


@over_samples
def pool_topk(
    data: SpatialData,
    key: str,
    *,
    groupby: str = "core",
    table: str | None = None,
    k: float | Literal["all"] = 0.1,
    min_tiles: int = 1,
    key_added: str | None = None,
    overwrite: bool = False,
) -> None:
    """Score cores or other regions by the mean of their best tiles.

    For each class by itself, a core gets the mean of its ``k`` highest scores; its call is the class where that is
    highest. A tumour that fills a few tiles of a core is seen so, where the mean over all would not show it.

    Parameters
    ----------
    data
        One sample, or a mapping of name to sample; the path of a store stands for its sample.
    key
        Scores of tiles (or cells, or spots): a DataFrame in ``obsm``, called so or ``<key>_score``, with one column per
        class, as :func:`sthist.tl.annotate` writes it; or a column of numbers in ``obs``.
    groupby
        What is scored: a column of ``obs`` that says where each tile belongs (``"core"``, ``"patient"``), or the key of
        shapes, in which tiles lie by their centroid.
    table
        Key of the table of tiles; by default the only one that has ``key``.
    k
        How many tiles count: a whole number, a part of the tiles of each core (above 0, up to 1; rounded up), or
        ``"all"``, which gives the mean. A whole number larger than a core's tiles takes all of them, and a warning says
        in how many cores.
    min_tiles
        Cores with fewer tiles get no score.
    key_added
        Name of the columns; ``key`` by default.
    overwrite
        Replace columns of these names.

    Returns
    -------
    None. Writes, also in the store of a backed object, into the table of the cores or shapes, which is made where there
    is none; for any other column, into a table ``<groupby>_table`` of its own, with one row per value:

    * ``obs[key_added]``: the class with the highest score, categorical; NaN where there are too few tiles; for a column
      of numbers, its score, float64;
    * ``obsm[key_added + "_score"]``: DataFrame of float64, one column per class; not for a column of numbers;
    * ``obs[key_added + "_tiles"]``: int64, tiles that have a score.

    Raises
    ------
    KeyError
        If there is no such table, score or column.
    TypeError
        If scores are not numbers with names.
    ValueError
        If ``k`` or ``min_tiles`` is out of range, no tile belongs anywhere, several tables could be meant, or a name is
        taken.

    Examples
    --------
    >>> import numpy as np, sthist
    >>> sdata = sthist.datasets.toy("tma", size_um=600)
    >>> sthist.pp.tma(sdata, key_added="cores", overwrite=True)
    >>> sthist.pp.tiles(sdata, size_um=32, px=32, regions="cores")
    >>> sdata["tiles_table"].obs["tumour"] = np.linspace(0, 1, sdata["tiles_table"].n_obs)
    >>> sthist.tl.pool_topk(sdata, "tumour", k=5)
    >>> bool(sdata["cores_table"].obs["tumour"].max() > 0.9)
    True
    """
    _require_arguments(k, min_tiles)
    _sample.require_one_sample(data)
    source, _ = find_table(data, table, lambda adata: _has_scores(adata, key), f"scores {key!r}", key)
    assert source is not None  # of a SpatialData
    tiles = rows_of(data, source)
    scores = _scores(data, source, key)
    groups, target, names = _groups(data, tiles, source, groupby)
    name = key_added or key.removesuffix("_score")
    is_classes = hasattr(scores, "columns")
    obs_names, obsm_names = [name, f"{name}_tiles"], [f"{name}_score"] if is_classes else []
    if target is None:
        _require_own_table(data, groupby, obs_names, obsm_names, overwrite=overwrite)
    else:
        require_free_columns(data, target, obs_names, obsm_names, overwrite=overwrite)
    values = np.asarray(scores, np.float64).reshape(len(scores), -1)
    scored: Any = np.isfinite(values).all(axis=1)
    pooled, n_tiles, n_short = _top_means(values[scored], groups[scored], len(names), k)
    pooled[n_tiles < min_tiles] = np.nan
    n_few, n_unscored, n_elsewhere = (int(each.sum()) for each in (n_tiles < min_tiles, ~scored, groups < 0))
    if n_short:
        logger.warning(
            "%d of %d %r have fewer than k=%s tiles: all of theirs count there.", n_short, len(names), groupby, k
        )
    logger.info(
        f"{len(names) - n_few} of {len(names)} {groupby!r} have a score, {n_few} fewer than {min_tiles} tiles; "
        f"{n_unscored} tiles have no score, {n_elsewhere} belong nowhere."
    )
    classes = class_names(data.tables[source], key.removesuffix("_score"), scores.columns if is_classes else ())
    columns = column_names(classes)
    obs, obsm = _columns(classes, columns, pooled, n_tiles, name)
    made = _store.provenance(
        "tl.pool_topk",
        key=key,
        table=source,
        groupby=groupby,
        k=k,
        min_tiles=min_tiles,
        classes=dict(zip(columns, classes, strict=True)),
        shorter_than_k=n_short,
        too_few_tiles=n_few,
        tiles_without_score=n_unscored,
        tiles_elsewhere=n_elsewhere,
    )
    if target is None:
        _write_own_table(data, groupby, names, name, made, obs, obsm)
    else:
        add_columns(data, target, name, made, obs=obs, obsm=obsm)


def _require_arguments(k: Any, min_tiles: int) -> None:
    is_number = isinstance(k, int | float | np.integer | np.floating) and not isinstance(k, bool)
    is_whole = is_number and not isinstance(k, float | np.floating)
    if not (k == "all" or (is_number and (k >= 1 if is_whole else 0 < k <= 1))):
        raise ValueError(f"k is {k!r}; it is a whole number from 1 on, a part above 0 and up to 1.0, or 'all'.")
    if int(min_tiles) != min_tiles or min_tiles < 1:
        raise ValueError(f"min_tiles is {min_tiles!r}; it is a whole number from 1 on.")


def _has_scores(adata: Any, key: str) -> bool:
    """Whether a table has scores by that name, and did not get them by pooling."""
    there = key in adata.obsm or f"{key}_score" in adata.obsm or key in adata.obs
    return there and "tl.pool_topk" not in {_call_of(adata, each) for each in (key, key.removesuffix("_score"))}


def _call_of(adata: Any, key: str) -> str:
    """The verb that wrote a column."""
    made = adata.uns.get("sthist", {}).get(key, {})
    return str(made.get("call", "")) if hasattr(made, "get") else ""


def _scores(sdata: SpatialData, table: str, key: str) -> pd.DataFrame | pd.Series:
    """A frame of classes, or a column of numbers."""
    adata = sdata.tables[table]
    for name in (key, f"{key}_score"):
        if name in adata.obsm:
            if hasattr(adata.obsm[name], "columns"):
                return adata.obsm[name]
            raise TypeError(
                f"obsm[{name!r}] of {table!r} has no names of classes: make it a DataFrame with one column per class."
            )
    if key not in adata.obs:
        raise KeyError(
            f"Table {table!r} has no scores {key!r}; it has obs {list(adata.obs)} and obsm {list(adata.obsm)}."
        )
    if adata.obs[key].dtype.kind not in "fiu":
        raise TypeError(f"Column {key!r} of {table!r} is of {adata.obs[key].dtype}; scores are numbers.")
    return adata.obs[key]


def _groups(sdata: SpatialData, tiles: Rows, table: str, groupby: str) -> tuple[np.ndarray, Rows | None, list[str]]:
    """Where each tile belongs, -1 for nowhere; the rows that are scored, None for those of a table of their own.

    And their names.
    """
    obs = sdata.tables[table].obs
    if groupby in obs:
        target = cores_of(sdata) if groupby == "core" else None
        values = obs[groupby].astype("category")
        names = [str(name) for name in (values.cat.categories if target is None else target.instances)]
        codes = _index(names, values.astype(object).where(values.notna(), None))
    elif groupby in sdata.shapes or groupby in sdata.tables:
        target = rows_of(sdata, groupby)
        names = [str(name) for name in target.instances]
        codes = first_inside(polygons_um(sdata, target), centroids_um(sdata, tiles))
    else:
        known = [*map(str, obs), *sdata.shapes]
        raise KeyError(
            f"groupby={groupby!r} is neither a column of table {table!r} nor shapes; there are "
            f"{known}.{closest(groupby, known)}"
        )
    if not (codes >= 0).any():
        raise ValueError(f"None of the {len(codes)} rows of {table!r} belongs to any {groupby!r}.")
    return codes, target, names


def _index(names: list[str], values: pd.Series) -> np.ndarray:
    import pandas as pd

    text = [None if value is None else str(value) for value in values]
    return pd.Index(names, dtype=object).get_indexer(pd.Index(text, dtype=object))


def _top_means(
    values: np.ndarray, groups: np.ndarray, n_groups: int, k: float | str
) -> tuple[np.ndarray, np.ndarray, int]:
    """Means of the k highest by group, (groups, classes), NaN for none; tiles by group.

    And how many have some, but fewer than k.
    """
    values, groups = values[groups >= 0], groups[groups >= 0]
    n = np.bincount(groups, minlength=n_groups)
    if k == "all":
        most = n
    elif isinstance(k, float | np.floating):
        most = np.ceil(k * n - 1e-9).astype(int)
    else:
        most = np.minimum(n, int(k))
    short = 0 if k == "all" or isinstance(k, float | np.floating) else int(((n > 0) & (n < int(k))).sum())
    first = np.cumsum(n) - n
    pooled = np.full((n_groups, values.shape[1]), np.nan)
    filled = n > 0
    for column, scores in enumerate(values.T):
        order = np.lexsort((-scores, groups))
        rank = np.arange(len(order)) - first[groups[order]]
        counted = np.where(rank < most[groups[order]], scores[order], 0.0)
        pooled[filled, column] = np.add.reduceat(counted, first[filled]) / most[filled] if filled.any() else np.nan
    return pooled, n, short


def _columns(
    classes: list[str], columns: list[str], pooled: np.ndarray, n_tiles: np.ndarray, name: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    import pandas as pd

    tiles = {f"{name}_tiles": n_tiles.astype(np.int64)}
    if not classes:
        return {name: pooled[:, 0]} | tiles, {}
    known = np.isfinite(pooled).all(axis=1)
    codes = np.where(known, np.where(known[:, None], pooled, 0.0).argmax(axis=1), -1)
    call = pd.Categorical.from_codes(codes, categories=pd.Index(classes, dtype=object))
    return {name: call} | tiles, {f"{name}_score": pd.DataFrame(pooled, columns=columns)}


def _own_table(groupby: str) -> str:
    return f"{_sample.safe_key(groupby)}_table"


def _require_own_table(sdata: SpatialData, groupby: str, obs: list[str], obsm: list[str], *, overwrite: bool) -> None:
    """Refuse names that are taken in the table of a column's values, or a table of something else."""
    key = _own_table(groupby)
    if key not in sdata.tables:
        _store.require_free(sdata, key, "tables", overwrite=False)
        require_free(None, called(key), obs, obsm, overwrite=overwrite)
        return
    adata = sdata.tables[key]
    if "tl.pool_topk" not in {_call_of(adata, each) for each in adata.uns.get("sthist", {})}:
        raise ValueError(
            f"The table {key!r}, which would hold scores by {groupby!r}, is there, and of something else: rename it."
        )
    require_free(adata, called(key), obs, obsm, overwrite=overwrite)


def _write_own_table(
    sdata: SpatialData,
    groupby: str,
    names: list[str],
    key: str,
    made: dict[str, Any],
    obs: dict[str, Any],
    obsm: dict[str, Any],
) -> None:
    """A table with one row per value of a column; it annotates no shapes."""
    import anndata as ad
    import pandas as pd
    from spatialdata.models import TableModel

    before = sdata.tables.get(_own_table(groupby))
    if before is not None and list(before.obs_names) == names:
        table = before.copy()
    else:
        table = TableModel.parse(ad.AnnData(obs=pd.DataFrame(index=pd.Index(names, dtype=object))))
    for name, values in obs.items():
        table.obs[name] = values
    for name, frame in obsm.items():
        table.obsm[name] = frame.set_axis(table.obs_names)
    table.uns["sthist"] = {**table.uns.get("sthist", {}), key: made}  # a copy of a table shares the mapping
    if before is None:
        _store.add(sdata, "tables", _own_table(groupby), table, made)
    else:
        _store.replace_table(sdata, _own_table(groupby), table)
