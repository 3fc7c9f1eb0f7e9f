"""Spots of which every cell is known: real looks of cells, and expression of a single-cell reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sthist._messages import listed
from sthist._sample.elements import COUNTS
from sthist._sample.samples import samples_of
from sthist._sample.verbs import verb
from sthist._settings import logger, settings
from sthist._tables.expression import TARGET_SUM, find_raw_counts, normalised
from sthist._tables.find import called, find_table
from sthist._tables.genes import closest
from sthist._tables.labels import as_classes
from sthist.training.embeddings import embeddings_of, find_embedding, rows_of_embedding

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData
    from scipy.sparse import csr_matrix
    from spatialdata import SpatialData

SCENARIOS = ("cell", "centroid", "random")
ONE_HOT = "X_one_hot"
"""Key of what a model would be given that knows the cluster of each cell, and nothing else."""

RESTARTS = 10
"""Of k-means: one start can end in a poor place."""


@dataclass(frozen=True, eq=False)
class SimulatedHalf:
    """Spots, and the cells that they hold."""

    spots: AnnData
    cells: AnnData


@dataclass(frozen=True, eq=False)
class SimulatedSpots:
    """Spots to train on and spots to test on, which share no cell.

    Attributes
    ----------
    train, test
        Each with ``spots`` and ``cells``, two AnnData.
    types
        The type of the reference that each cluster of cells was linked to, in the order of clusters.
    """

    train: SimulatedHalf
    test: SimulatedHalf
    types: tuple[str, ...]


@verb
def simulate_spots(
    data: SpatialData | AnnData | Mapping[str, Any],
    reference: AnnData,
    *,
    scenario: Literal["cell", "centroid", "random"] = "cell",
    labels: str = "cell_type",
    types: Sequence[str] | int = 6,
    genes: Sequence[str] | None = None,
    embedding: str | None = None,
    table: str | None = None,
    layer: str | None = None,
    n_spots: int = 5000,
    cells_per_spot: int = 20,
    cells_per_type: int = 2000,
    n_pcs: int = 50,
    seed: int | None = None,
) -> SimulatedSpots:
    """Simulate spots whose cells have real embeddings, and expression of a reference, so that every cell is known.

    The simulation of Chadoutaud et al. (2026). Embeddings of cells are standardised, brought to their first principal
    components and clustered by k-means; of each cluster the cells nearest its centroid are kept, and linked to one type
    of the reference. One half of them trains, the other tests. Each cell gets expression once, and a spot is the sum of
    cells that are drawn with replacement.

    Parameters
    ----------
    data
        Cells with embeddings: one sample, an AnnData, or a mapping of name to such, whose cells are put together.
    reference
        Single cells with a column of types in ``obs``.
    scenario
        ``"cell"``: each cell has the expression of a random single cell of its type, so that morphology says the type,
        and nothing of what is special to a cell. ``"centroid"``: it has the mean expression of its type, so that
        morphology says all. ``"random"``: that of a random single cell of any of the types: morphology says nothing,
        and who finds something is wrong.
    labels
        Column of ``reference.obs`` with the types.
    types
        Types in the order of clusters, the largest cluster first; or how many clusters: the types with most cells.
    genes
        Those that are kept, after cells and spots were normalised; all by default.
    embedding
        Key in ``obsm`` of the cells; by default their only one.
    table
        Key of the table of the cells; by default the only one with an embedding.
    layer
        Of the reference's raw counts. By default they are found, in ``layers["counts"]``, ``X`` or ``raw``; where there
        are none, log-normalised expression in ``raw`` or ``X`` is summed as it is, as the published code does.
    n_spots, cells_per_spot
        Spots of each half, and cells that are drawn for each of them.
    cells_per_type
        Cells of a cluster that are kept, of both halves together; all where there are fewer, which is logged.
    n_pcs
        Principal components.
    seed
        Of the clustering and of all draws; ``settings.seed`` by default.

    Returns
    -------
    A :class:`SimulatedSpots`, with ``train.spots``, ``train.cells``, ``test.spots``, ``test.cells`` and ``types``:

    * ``spots``: AnnData (n_spots, genes); ``X`` is float32, brought to 10,000 a row and ln(1 + x); with counts, and
      single cells that have some, ``layers["counts"]``; ``obsm["proportions"]`` of the types;
    * ``cells``: AnnData, a row for each cell of each spot, so that a cell which was drawn twice stands there twice:
      ``obs["spot"]`` (the name of its spot), ``obs["cell"]`` (the same for all draws of one cell),
      ``obs["cell_type"]``; the embedding under its own key, and ``obsm["X_one_hot"]``, the cluster; ``X`` and
      ``layers``, its true expression, made as that of spots. All matrices are sparse;
    * ``uns["sthist"]["simulation"]``: scenario, seed, what was summed (``"counts"`` or ``"log"``).

    Raises
    ------
    KeyError
        If there is no such table, embedding, column, type or gene.
    ValueError
        If the reference has neither counts nor logarithms, cells are fewer than clusters need, or a number is none.

    Examples
    --------
    >>> import numpy as np, anndata as ad, sthist
    >>> rng = np.random.default_rng(0)
    >>> looks = np.repeat(np.eye(3) * 9, 40, axis=0) + rng.normal(size=(120, 3))
    >>> cells = ad.AnnData(np.zeros((120, 0), np.float32), obsm={"X_looks": looks})
    >>> reference = ad.AnnData(rng.poisson(3, (60, 8)).astype(np.float32))
    >>> reference.obs["cell_type"] = np.repeat(["B", "T", "NK"], 20)
    >>> made = sthist.benchmark.simulate_spots(cells, reference, types=3, n_spots=10, cells_per_spot=4)
    >>> made.train.spots.shape, made.train.cells.shape, made.test.cells.obsm["X_one_hot"].shape
    ((10, 8), (40, 8), (40, 3))
    """
    if scenario not in SCENARIOS:
        raise ValueError(f"scenario is {scenario!r}; it is one of {listed(SCENARIOS)}.")
    numbers = {"n_spots": n_spots, "cells_per_spot": cells_per_spot, "cells_per_type": cells_per_type, "n_pcs": n_pcs}
    for name, value in numbers.items():
        if isinstance(value, bool) or int(value) != value or value < 1:
            raise ValueError(f"{name} is {value!r}; it is a whole number from 1 on.")
    seed = settings.seed if seed is None else seed
    found = _Reference(reference, labels, types, layer)
    columns = _columns(reference, genes)
    key, looks, names = _looks(data, embedding, table)
    rng = np.random.default_rng([seed, SCENARIOS.index(scenario)])
    chosen, cluster = _nearest(_components(looks, n_pcs, seed), len(found.types), int(cells_per_type), seed)
    expression = found.of_cells(cluster, scenario, rng)
    keeps_counts = found.counts and scenario != "centroid"
    cells = _Cells(key, looks[chosen], names[chosen], cluster, expression, columns, found, keeps_counts)
    halves = _halves(cluster, rng)
    facts = {"scenario": scenario, "seed": int(seed), "summed": "counts" if found.counts else "log", **numbers}
    train, test = (cells.spots(half, n_spots, cells_per_spot, rng, facts) for half in halves)
    return SimulatedSpots(train, test, tuple(found.types))


class _Reference:
    """Single cells of some types."""

    def __init__(self, cells: AnnData, labels: str, types: Sequence[str] | int, layer: str | None) -> None:
        if not hasattr(cells, "obs_names"):
            raise TypeError(f"reference is an AnnData of single cells, not {type(cells).__name__}.")
        if labels not in cells.obs:
            raise KeyError(
                f"The reference has no column {labels!r}; it has {listed(map(str, cells.obs))}. Name the one with its "
                f"types with labels=.{closest(labels, map(str, cells.obs))}"
            )
        codes, names = as_classes(cells.obs[labels], f"Column {labels!r} of the reference")
        sizes = np.bincount(codes[codes >= 0], minlength=len(names))
        self.types = _types(types, names, sizes)
        self.names = [str(name) for name in cells.var_names]
        self.members = [np.flatnonzero(codes == names.index(name)) for name in self.types]
        self.counts, self.values = _expression(cells, layer)

    def of_cells(self, cluster: np.ndarray, scenario: str, rng: np.random.Generator) -> csr_matrix:
        """Expression of cells of these clusters, (n, genes)."""
        from scipy.sparse import csr_matrix, vstack

        if scenario == "centroid":
            means = vstack([csr_matrix(self.values[rows].mean(axis=0)) for rows in self.members]).tocsr()
            return means[cluster]
        if scenario == "random":
            return self.values[rng.choice(np.concatenate(self.members), len(cluster))]
        rows = np.empty(len(cluster), np.int64)
        for number, members in enumerate(self.members):
            own = np.flatnonzero(cluster == number)
            rows[own] = rng.choice(members, len(own))
        return self.values[rows]


def _types(asked: Sequence[str] | int, names: list[str], sizes: np.ndarray) -> list[str]:
    """Those that are named, or the ones with most cells."""
    if isinstance(asked, int | float):
        if int(asked) != asked or not 2 <= asked <= len(names):
            raise ValueError(
                f"types is {asked!r}; the reference has {len(names)} types, of which 2 at least are taken."
            )
        return [names[i] for i in np.argsort(-sizes, kind="stable")[: int(asked)]]
    chosen = list(map(str, asked))
    unknown = [name for name in chosen if name not in names]
    if unknown:
        raise KeyError(f"The reference has no type {unknown[0]!r}; it has {listed(names)}.{closest(unknown[0], names)}")
    if len(set(chosen)) < max(2, len(chosen)):
        raise ValueError(f"types are {chosen}; they are two or more, each once.")
    return chosen


def _expression(cells: AnnData, layer: str | None) -> tuple[bool, csr_matrix]:
    """Whether there are counts, and these or what is summed in their place, for the genes of the reference."""
    from scipy.sparse import csr_matrix

    try:
        _, counts, features = find_raw_counts(cells, layer, "The reference")
    except ValueError as error:
        raw = cells.raw is not None and cells.var_names.isin(cells.raw.var_names).all()
        values = csr_matrix(cells.raw[:, cells.var_names].X if raw else cells.X, dtype=np.float32)
        if layer is not None or not np.isfinite(values.data).all() or (values.data < 0).any():
            raise ValueError(f"{error} Log-normalised expression, not scaled, in raw or X would do, too.") from None
        logger.info(
            "The reference has no raw counts: log-normalised expression from %s is summed.", "raw" if raw else "X"
        )
        return False, values
    return True, csr_matrix(counts[:, features.get_indexer(cells.var_names)], dtype=np.float32)


def _columns(reference: AnnData, genes: Sequence[str] | None) -> np.ndarray:
    """Places of the genes that are kept."""
    if genes is None:
        return np.arange(reference.n_vars)
    asked = list(dict.fromkeys(map(str, genes)))
    if not asked:
        raise ValueError("genes is empty: name those that are to be kept, or leave genes= out for all.")
    places = reference.var_names.get_indexer(asked)
    if (places < 0).any():
        missing = [name for name, place in zip(asked, places, strict=True) if place < 0]
        raise KeyError(
            f"The reference lacks {len(missing)} of {len(asked)} genes: {listed(missing) or 'none is asked'}."
        )
    return np.asarray(places)


def _looks(data: Any, embedding: str | None, table: str | None) -> tuple[str, np.ndarray, np.ndarray]:
    """Key of the embeddings, those of all cells of all samples, and names of the cells."""
    samples = samples_of(data)
    parts, names, key = [], [], embedding

    def fits(adata: AnnData) -> bool:
        return bool(embeddings_of(adata)) if embedding is None else embedding in adata.obsm

    for sample in samples:
        where, adata = find_table(sample.data, table, fits, "an embedding of cells", embedding or "")
        key = find_embedding(adata, key, called(where))
        parts.append(rows_of_embedding(adata, key, called(where)))
        prefix = f"{sample.name}_" if len(samples) > 1 else ""
        names.append([f"{prefix}{name}" for name in adata.obs_names])
    assert key is not None
    if len({part.shape[1] for part in parts}) > 1:
        raise ValueError(
            f"Embeddings {key!r} have {sorted({part.shape[1] for part in parts})} features: of two encoders?"
        )
    return key, np.concatenate(parts), np.concatenate([np.array(part, dtype=object) for part in names])


def _components(looks: np.ndarray, n_pcs: int, seed: int) -> np.ndarray:
    """Principal components of standardised features; features that do not vary are left out."""
    from sklearn.decomposition import PCA

    centred = looks - looks.mean(axis=0)
    deviation = centred.std(axis=0)
    varies = deviation > 1e-6 * deviation.max()
    if not varies.any():
        raise ValueError(f"The embeddings of all {len(looks)} cells are the same: there are no clusters.")
    standard = centred[:, varies] / deviation[varies]
    return np.asarray(PCA(min(n_pcs, *standard.shape), random_state=seed).fit_transform(standard), np.float64)


def _nearest(points: np.ndarray, k: int, most: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The cells nearest the centroid of each of k clusters, and their cluster, 0 for the largest."""
    from sklearn.cluster import KMeans

    if len(points) < 2 * k:
        raise ValueError(f"{len(points)} cells are too few for {k} clusters, each of which is halved.")
    fitted = KMeans(k, n_init=RESTARTS, random_state=seed).fit(points)
    sizes = np.bincount(fitted.labels_, minlength=k)
    far = np.linalg.norm(points - fitted.cluster_centers_[fitted.labels_], axis=1)
    chosen = []
    for code in np.argsort(-sizes, kind="stable"):
        own = np.flatnonzero(fitted.labels_ == code)
        chosen.append(np.sort(own[np.argsort(far[own], kind="stable")[:most]]))
    if sizes.min() < 2:
        raise ValueError(f"A cluster has {sizes.min()} cell, and is to be halved: take fewer types, or more cells.")
    if sizes.min() < most:
        logger.warning("The clusters have %s cells; %d were to be kept of each.", sorted(sizes.tolist())[::-1], most)
    return np.concatenate(chosen), np.repeat(np.arange(k), [len(each) for each in chosen])


def _halves(cluster: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Places of cells that train and that test: of each cluster one half."""
    order = [rng.permutation(np.flatnonzero(cluster == code)) for code in np.unique(cluster)]
    return (
        np.concatenate([each[: len(each) // 2] for each in order]),
        np.concatenate([each[len(each) // 2 :] for each in order]),
    )


@dataclass(frozen=True, eq=False)
class _Cells:
    """Cells with looks and expression."""

    key: str  # of the embeddings
    looks: np.ndarray
    names: np.ndarray
    cluster: np.ndarray
    expression: csr_matrix  # (n, genes of the reference)
    columns: np.ndarray  # genes that are kept
    reference: _Reference
    keeps_counts: bool  # single cells have whole numbers, means have not

    def spots(
        self, half: np.ndarray, n: int, size: int, rng: np.random.Generator, facts: dict[str, Any]
    ) -> SimulatedHalf:
        """Spots of cells that are drawn from some of them."""
        import anndata as ad
        import pandas as pd
        from scipy.sparse import csr_matrix

        drawn = half[rng.integers(len(half), size=n * size)]
        spot = np.repeat(np.arange(n), size)
        names = np.array([f"spot{i}" for i in range(n)], dtype=object)
        types, var = self.reference.types, pd.DataFrame(index=self.reference.names).iloc[self.columns]
        holds = csr_matrix((np.ones(len(drawn), np.float32), (spot, drawn)), (n, len(self.names)))
        one_hot = np.eye(len(types), dtype=np.float32)[self.cluster]
        shares = pd.DataFrame((holds @ one_hot) / size, index=names, columns=pd.Index(types, dtype=object))
        spots = ad.AnnData(
            obs=pd.DataFrame({"n_cells": np.full(n, size)}, index=names), var=var, obsm={"proportions": shares}
        )
        obs = pd.DataFrame(
            {
                "spot": pd.Categorical.from_codes(spot, pd.Index(names)),
                "cell": pd.Categorical(self.names[drawn]),
                "cell_type": pd.Categorical.from_codes(self.cluster[drawn], pd.Index(types)),
            },
            index=[f"{names[i]}_{j}" for i in range(n) for j in range(size)],
        )
        looks = {self.key: self.looks[drawn], ONE_HOT: one_hot[drawn]}
        cells = ad.AnnData(obs=obs, var=var.copy(), obsm=looks)
        for table, sums in ((spots, holds @ self.expression), (cells, self.expression[drawn])):
            kept = sums[:, self.columns]
            table.X = _log_normalised(sums)[:, self.columns]
            if self.keeps_counts:
                table.layers[COUNTS] = kept
            table.uns["sthist"] = {"simulation": dict(facts)}
        return SimulatedHalf(spots, cells)


def _log_normalised(sums: csr_matrix) -> csr_matrix:
    """Rows brought to 10,000, and logarithms taken."""
    return normalised(sums, TARGET_SUM, True)[0].X
