"""Niches: cells or tiles whose neighbours are alike."""

from __future__ import annotations

import logging
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sthist import _store
from sthist._sample.samples import samples_of
from sthist._sample.verbs import verb
from sthist._settings import logger, settings
from sthist._tables.find import find_table, require_free
from sthist._tables.labels import as_classes, column_names
from sthist._tables.rows import write_columns
from sthist.metrics._clustering import leiden

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from anndata import AnnData
    from spatialdata import SpatialData


@contextmanager
def squidpy() -> Iterator[Any]:
    """The module, inside of which its known warnings, and what it says of its own settings, are not shown."""
    log = logging.getLogger("spatialdata._logging")
    before = log.level
    with warnings.catch_warnings():
        # Its docstrings name arguments that its functions no longer have.
        warnings.filterwarnings("ignore", message=".* is not a valid key!", category=SyntaxWarning)
        # Version 1.8 names its successors, which 1.6 does not have.
        warnings.filterwarnings("ignore", message="Calling `spatial_neighbors` is deprecated", category=FutureWarning)
        import squidpy as sq

        log.setLevel(logging.WARNING)
        try:
            yield sq
        finally:
            log.setLevel(before)


K = 10
"""Neighbours of a window, as Schürch et al. (2020) took for their cellular neighbourhoods."""

DIGITS = 9
"""Compositions that agree to so many digits are one."""


@verb
def niches(
    data: SpatialData | AnnData | Mapping[str, Any],
    label: str,
    *,
    table: str | None = None,
    n_neighbors: int | None = None,
    radius_um: float | None = None,
    method: Literal["leiden", "kmeans"] | None = None,
    resolution: float | None = None,
    n_niches: int | None = None,
    reference: str | None = None,
    key_added: str = "niche",
    overwrite: bool = False,
    seed: int | None = None,
) -> None:
    """Divide cells or tiles into niches, by the labels that they and their neighbours have.

    The composition of a cell's niche is the share of each label among the cell and its neighbours. Compositions are
    clustered: the same niche can be found in many places, and in many samples.

    Parameters
    ----------
    data
        One sample, an AnnData with ``obsm["spatial"]`` in µm, or a mapping of name to such: neighbours are sought
        within each, and niches are those of all.
    label
        Column of ``obs`` with the labels, NaN for none; or key of a DataFrame in ``obsm``, one column per class, such
        as the composition of spots or the scores of tiles.
    table
        Key of the table; by default the only one that has ``label``.
    n_neighbors
        Number of neighbours; 10 by default.
    radius_um
        In place of it, all neighbours that are not farther than that.
    method
        ``"leiden"``: of scanpy, on the different compositions that there are, each of which counts once. ``"kmeans"``:
        of scikit-learn, on the cells; the default where ``n_niches`` is given.
    resolution
        Of Leiden: more niches where it is larger; 0.5 by default.
    n_niches
        Of k-means.
    reference
        Column of ``obs`` with niches that are known: how well those that are found agree with them is logged and kept.
        NaN does not count.
    key_added
        Name of the columns.
    overwrite
        Replace columns of these names.
    seed
        Of the clustering; ``settings.seed`` by default.

    Returns
    -------
    None. Writes into each table, also in the store of a backed object:

    * ``obs[key_added]``: categorical, ``"1"`` for the largest niche, then ``"2"`` ...; NaN for cells without any
      labelled neighbour;
    * ``obsm[key_added + "_composition"]``: DataFrame of float64, one column per class; rows sum to 1 where labels do;
    * ``uns["sthist"][key_added]``: what was done; how many cells have no label, and so are in no composition; with
      ``reference``, the adjusted Rand index ``ari`` and the normalised mutual information ``nmi``, over all samples.

    Raises
    ------
    KeyError
        If there is no such table or column.
    ValueError
        If a sample has fewer cells than neighbours, or nothing has a label; if a column is there already, arguments do
        not go together, or places are not finite.

    Examples
    --------
    >>> import sthist
    >>> sdata = sthist.datasets.toy(size_um=300)
    >>> sthist.tl.niches(sdata, "cell_type", n_niches=3)
    >>> sdata["table"].obsm["niche_composition"].shape[1], sdata["table"].obs["niche"].nunique()
    (6, 3)
    """
    import pandas as pd

    way, options = _clustering(method, resolution, n_niches)
    n_neighbors = _neighbours(n_neighbors, radius_um)
    samples = [_Sample(each.name, each.data, label, table) for each in samples_of(data)]
    for sample in samples:
        sample.require_ready(key_added, reference, n_neighbors, overwrite=overwrite)
    classes = list(dict.fromkeys(name for sample in samples for name in sample.classes))
    compositions = [sample.composition(classes, n_neighbors, radius_um) for sample in samples]
    joined = np.concatenate(compositions)
    codes = _ordered(_cluster(joined, way, options, settings.seed if seed is None else seed))
    names = [str(i + 1) for i in range(codes.max() + 1)]
    agreement = {} if reference is None else _agreement(samples, reference, codes)
    logger.info(
        "%d niches of %d cells; %d have no neighbour with a label.", len(names), len(codes), int((codes < 0).sum())
    )
    columns = column_names(classes)
    starts = np.cumsum([0] + [len(each) for each in compositions])
    for sample, composition, start in zip(samples, compositions, starts, strict=False):
        part = codes[start : start + len(composition)]
        made = _store.provenance(
            "tl.niches",
            label=label,
            n_neighbors=n_neighbors,
            radius_um=radius_um,
            method=way,
            **options,
            seed=settings.seed if seed is None else seed,
            samples=[each.name for each in samples],
            classes=dict(zip(columns, classes, strict=True)),
            unlabelled=sample.n_unlabelled,
            without_neighbours=int((part < 0).sum()),
            reference=reference,
            **agreement,
        )
        niche = pd.Categorical.from_codes(part, categories=pd.Index(names, dtype=object))
        obsm = {f"{key_added}_composition": pd.DataFrame(composition, columns=columns)}
        write_columns(sample.data, sample.table, sample.adata, key_added, made, obs={key_added: niche}, obsm=obsm)


def _clustering(method: str | None, resolution: float | None, n_niches: int | None) -> tuple[str, dict[str, Any]]:
    """The method that is meant, and its arguments."""
    method = method or ("leiden" if n_niches is None else "kmeans")
    if method == "leiden" and n_niches is None:
        resolution = 0.5 if resolution is None else resolution
        if np.isfinite(resolution) and resolution > 0:
            return method, {"resolution": float(resolution)}
        raise ValueError(f"resolution is {resolution!r}; it is a positive number.")
    if method == "kmeans" and resolution is None:
        if n_niches is not None and int(n_niches) == n_niches and n_niches >= 1:
            return method, {"n_niches": int(n_niches)}
        raise ValueError(f"n_niches is {n_niches!r}; k-means needs a whole number from 1 on.")
    raise ValueError(
        f"method={method!r}, resolution={resolution!r} and n_niches={n_niches!r} do not go together: 'leiden' takes a "
        "resolution, 'kmeans' n_niches."
    )


def _neighbours(k: int | None, radius_um: float | None) -> int | None:
    if k is not None and radius_um is not None:
        raise ValueError(f"n_neighbors={k} and radius_um={radius_um} are given; a call takes one of them.")
    if radius_um is not None:
        if not (np.isfinite(radius_um) and radius_um > 0):
            raise ValueError(f"radius_um is {radius_um!r}; it is a positive number of µm.")
        return None
    k = K if k is None else k
    if int(k) != k or k < 1:
        raise ValueError(f"n_neighbors is {k!r}; it is a whole number from 1 on.")
    return int(k)


class _Sample:
    """The rows of one sample, their places and labels."""

    def __init__(self, name: str, data: Any, label: str, table: str | None) -> None:
        self.name, self.data = name, data
        self.table, self.adata = find_table(
            data, table, lambda adata: label in adata.obs or label in adata.obsm, f"{label!r}, in obs or obsm", label
        )
        self._values, self.classes = _labels(self.adata, label, self._of)
        self.n_unlabelled = int(np.isnan(self._values).any(axis=1).sum())

    @property
    def _of(self) -> str:
        return f"Sample {self.name!r}" if self.table is None else f"Table {self.table!r}"

    def require_ready(self, key: str, reference: str | None, k: int | None, *, overwrite: bool) -> None:
        """Raise whatever would be in the way."""
        if reference is not None and reference not in self.adata.obs:
            raise KeyError(f"{self._of} has no column {reference!r}; it has {list(self.adata.obs)}.")
        if k is not None and self.adata.n_obs <= k:
            raise ValueError(
                f"{self._of} has {self.adata.n_obs} rows, too few for {k} neighbours each: take fewer, or radius_um=."
            )
        places = self.adata.obsm.get("spatial")
        if places is None or not np.isfinite(np.asarray(places)).all():
            raise ValueError(f"{self._of} needs finite places in µm in obsm['spatial'].")
        names = [key], [f"{key}_composition"]
        require_free(self.adata, self._of, *names, overwrite=overwrite)

    def composition(self, classes: Sequence[str], k: int | None, radius_um: float | None) -> np.ndarray:
        """Mean labels of each row and its neighbours, (n, classes); NaN where none of them has any."""
        values = np.zeros((len(self._values), len(classes)))
        values[:, [classes.index(name) for name in self.classes]] = self._values
        known: Any = np.isfinite(values).all(axis=1)
        near = _graph(np.asarray(self.adata.obsm["spatial"], np.float64), k, radius_um)
        n = near @ known.astype(np.float64)
        with np.errstate(invalid="ignore"):  # none: NaN
            return (near @ np.where(known[:, None], values, 0.0)) / n[:, None]


def _labels(adata: AnnData, label: str, of: str) -> tuple[np.ndarray, list[str]]:
    """(n, classes) of shares, NaN in rows without a label; and the classes."""
    if label in adata.obs:
        codes, classes = as_classes(adata.obs[label], f"Column {label!r} of {of[0].lower()}{of[1:]}")
        return np.where(codes[:, None] >= 0, np.eye(len(classes))[codes], np.nan), classes
    if label not in adata.obsm or not hasattr(adata.obsm[label], "columns"):
        raise KeyError(
            f"{of} has no column {label!r} and no such DataFrame in obsm; it has {list(adata.obs)} and "
            f"{list(adata.obsm)}."
        )
    frame = adata.obsm[label]
    values = frame.to_numpy(np.float64)
    if not np.isfinite(values).all(axis=1).any():
        raise ValueError(f"obsm[{label!r}] of {of[0].lower()}{of[1:]} has no row without NaN.")
    return values, [str(name) for name in frame.columns]


def _graph(places: np.ndarray, k: int | None, radius_um: float | None) -> Any:
    """Each row and its neighbours, (n, n) sparse of 0 and 1, by squidpy."""
    import anndata as ad
    from scipy.sparse import csr_matrix, identity

    light = ad.AnnData(csr_matrix((len(places), 0)), obsm={"spatial": places})
    how: dict[str, Any] = {"n_neighs": k} if radius_um is None else {"radius": float(radius_um)}
    with squidpy() as sq:
        sq.gr.spatial_neighbors(light, coord_type="generic", **how)
    near = csr_matrix(light.obsp["spatial_connectivities"], dtype=np.float64)
    near.data[:] = 1.0
    return (near + identity(len(places), format="csr")).sign()


def _cluster(compositions: np.ndarray, method: str, options: dict[str, Any], seed: int) -> np.ndarray:
    """Cluster of each row, -1 for NaN."""
    codes = np.full(len(compositions), -1)
    known: Any = np.isfinite(compositions).all(axis=1)
    different, inverse = np.unique(compositions[known].round(DIGITS), axis=0, return_inverse=True)
    if method == "leiden":
        require_igraph()
        # Of rows that are alike one alone: equal ones would make islands of their own.
        codes[known] = leiden(different, resolution=options["resolution"], seed=seed)[inverse.ravel()]
        return codes
    if len(different) < options["n_niches"]:
        raise ValueError(
            f"There are {len(different)} different compositions, too few for {options['n_niches']} niches."
        )
    from sklearn.cluster import KMeans

    # As many random starts as scikit-learn took for long: one can end in a poor place.
    codes[known] = KMeans(options["n_niches"], n_init=10, random_state=seed).fit_predict(compositions[known])
    return codes


def _ordered(codes: np.ndarray) -> np.ndarray:
    """Codes such that 0 is the most frequent."""
    sizes = np.bincount(codes[codes >= 0])
    rank = np.empty(len(sizes), int)
    rank[np.argsort(-sizes, kind="stable")] = np.arange(len(sizes))
    return np.where(codes >= 0, rank[codes], -1)


def _agreement(samples: list[_Sample], reference: str, codes: np.ndarray) -> dict[str, float]:
    import pandas as pd
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    known = pd.concat([sample.adata.obs[reference].astype(object) for sample in samples], ignore_index=True)
    both = known.notna().to_numpy() & (codes >= 0)
    if not both.any():
        raise ValueError(f"No row has both a niche and a value in {reference!r}.")
    pair = known[both].astype(str).to_numpy(), codes[both]
    agreement = {"ari": float(adjusted_rand_score(*pair)), "nmi": float(normalized_mutual_info_score(*pair))}
    logger.info("Agreement with %r: ARI %.3f, NMI %.3f.", reference, agreement["ari"], agreement["nmi"])
    return agreement


def require_igraph() -> None:
    """Say what is missing where Leiden cannot run.

    Igraph has another licence, and comes with no package that sthist needs.
    """
    from importlib.util import find_spec

    if find_spec("igraph") is None:
        raise ImportError(
            "method='leiden' needs igraph: pip install \"sthist[leiden]\". Or take method='kmeans' and n_niches=."
        )
