"""Counts of transcripts, cells and bins by region."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist import _sample, scale
from sthist._messages import plain
from sthist._sample.elements import is_gene
from sthist._tables.expression import find_raw_counts
from sthist.tiles._molecules.density import iter_points
from sthist.tiles._regions.locate import RegionIndex, SparseCounts, SquareGrid, centroids_um

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import pandas as pd
    from scipy.sparse import csr_matrix
    from spatialdata import SpatialData

GENES = 1 << 21
"""More than there are names of features; times the squares of a grid, it fits an int64."""

BATCH = 1_000_000
"""Points whose regions are found at once: some tens of bytes each."""


@dataclass
class Sums:
    """What regions hold."""

    rows: np.ndarray  # numbers of the regions, ascending
    counts: csr_matrix  # (regions, genes), integers
    n: np.ndarray  # molecules, cells or bins by region, int64
    var: pd.DataFrame  # one row per gene
    extent_um: np.ndarray  # x0, y0, x1, y1 of what was to be summed
    facts: dict[str, int]  # how many there were, and how many are counted or left out and why


def require_names(key: str, names: pd.Index) -> None:
    """Refuse shapes of which two have one name."""
    twice = names[names.duplicated()]
    if len(twice):
        raise ValueError(
            f"Shapes {key!r} have {len(twice)} names more than once, such as {plain(twice[0])!r}; a table cannot be "
            "linked to them. Give them names of their own, such as shapes.reset_index(drop=True)."
        )


@dataclass
class _Panel:
    """Columns of genes: numbered as they are met, in the order of their names as far as that is known."""

    controls: Sequence[str] | None
    numbers: dict[str, int] = field(default_factory=dict)

    def code(self, names: Any) -> np.ndarray:
        """Number of each category of a partition, -1 for what is no gene; with one more -1, for what has no name."""
        labels = np.asarray(names, dtype=str)
        genes = labels[is_gene(labels, self.controls)] if len(labels) else labels
        for name in np.sort(genes).tolist():
            self.numbers.setdefault(name, len(self.numbers))
        if len(self.numbers) >= GENES:
            raise ValueError(f"The transcripts are of more than {GENES} genes. Is the gene column right?")
        return np.array([*(self.numbers.get(name, -1) for name in labels.tolist()), -1], np.int64)

    def ordered(self) -> tuple[list[str], np.ndarray]:
        """Names in their order, and by number the place in it."""
        names = np.array(list(self.numbers), dtype=str)
        order = np.argsort(names, kind="stable")
        places = np.empty(len(names), np.int32)
        places[order] = np.arange(len(names))
        return names[order].tolist(), places


def sum_points(
    sdata: SpatialData, key: str, finder: SquareGrid | RegionIndex, min_qv: float, controls: Sequence[str] | None
) -> Sums:
    """Counts of transcripts, one batch after another."""
    import pandas as pd

    panel, sparse = _Panel(controls), SparseCounts(GENES)
    facts = dict.fromkeys(("n_all", "n_controls", "n_low_quality", "n_counted", "n_outside"), 0)
    extent = np.array([np.inf, np.inf, -np.inf, -np.inf])
    with np.errstate(invalid="ignore"):  # of infinite coordinates, which are refused in a moment
        for x, y, gene in _iter_genes(sdata, key, min_qv, panel, facts):
            extent = _widen(extent, x, y)
            regions, points = finder.locate(x, y)
            sparse.add(regions, gene[points])
            counted = int(np.count_nonzero(np.diff(points, prepend=-1)))
            facts["n_counted"] += counted
            facts["n_outside"] += len(x) - counted
    if not facts["n_counted"] + facts["n_outside"]:
        raise ValueError(
            f"None of the {facts['n_all']} transcripts in points {key!r} counts: {facts['n_controls']} are controls or "
            f"have no gene, {facts['n_low_quality']} have qv < {min_qv:g}. Lower min_qv, or check the gene column."
        )
    rows = _rows(finder, sparse.rows)
    names, places = panel.ordered()
    counts = sparse.pop_csr(rows, places)
    n = np.asarray(counts.sum(axis=1, dtype=np.int64)).ravel()
    return Sums(rows, counts, n, pd.DataFrame(index=names), extent, facts)


def _iter_genes(
    sdata: SpatialData, key: str, min_qv: float, panel: _Panel, facts: dict[str, int]
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Transcripts that count, a batch at a time: x and y in µm, and the number of the gene. The others are counted."""
    scale.matrix_to_um(sdata, "points", key)
    gene = str(_sample.find_transcripts(sdata, key)[1])
    columns = (gene, "qv") if "qv" in sdata.points[key].columns else (gene,)
    elements = _sample.HighResElements(sdata, (), "", points=key, gene=gene)
    for x, y, part in iter_points(elements, columns):
        lost = int((~(np.isfinite(x) & np.isfinite(y))).sum())
        if lost:
            raise ValueError(
                f"{lost} of the transcripts {facts['n_all']} to {facts['n_all'] + len(x) - 1} of points {key!r} have "
                "coordinates that are no finite numbers. Leave them out: points[points.x.notnull() & "
                "points.y.notnull()]."
            )
        categories = part[gene].astype("category").cat
        codes = panel.code(categories.categories)[categories.codes.to_numpy()]
        keep = codes >= 0
        facts["n_all"] += len(x)
        facts["n_controls"] += len(x) - int(keep.sum())
        if "qv" in columns:
            low = keep & ~(part["qv"].to_numpy() >= min_qv)
            facts["n_low_quality"] += int(low.sum())
            keep &= ~low
        chosen = np.flatnonzero(keep)
        for first in range(0, len(chosen), BATCH):
            batch = chosen[first : first + BATCH]
            yield x[batch], y[batch], codes[batch]


def sum_table(sdata: SpatialData, key: str, finder: SquareGrid | RegionIndex, controls: Sequence[str] | None) -> Sums:
    """Counts of the cells or bins whose centroids regions hold."""
    from scipy.sparse import csr_matrix

    adata = sdata.tables[key]
    source, values, names = find_raw_counts(adata, None, f"Table {key!r}")
    genes = is_gene(names, controls)
    if not genes.any():
        raise ValueError(
            f"Table {key!r} has no genes: its {len(names)} features are all controls. Keep them with controls=()."
        )
    # No sum is more than the sum of all.
    values = values.astype(np.int32 if values.sum(dtype=np.float64) < 2**31 else np.int64)
    values = values if genes.all() else values[:, genes]
    x, y = np.ascontiguousarray(_table_centroids(sdata, key).T)
    regions, cells = finder.locate(x, y)
    rows = _rows(finder, lambda: np.unique(regions))
    held = csr_matrix(
        (np.ones(len(cells), values.dtype), (np.searchsorted(rows, regions), cells)), shape=(len(rows), adata.n_obs)
    )
    counts = held @ values
    counts.eliminate_zeros()
    counts.sort_indices()
    counted = int(np.count_nonzero(np.diff(cells, prepend=-1)))
    facts = {"n_all": adata.n_obs, "n_counted": counted, "n_outside": adata.n_obs - counted}
    extent = _widen(np.array([np.inf, np.inf, -np.inf, -np.inf]), x, y)
    var = (adata.raw.var if source == "raw" else adata.var)[genes].copy()
    return Sums(rows, counts, np.diff(held.indptr).astype(np.int64), var, extent, facts)


def _table_centroids(sdata: SpatialData, key: str) -> np.ndarray:
    """Centroids in µm of the shapes that a table is of, in its order."""
    found = _sample.cell_shapes(sdata, key)
    if found is None:
        raise ValueError(
            f"No shapes are those of table {key!r}. {_sample.describe('shapes', sdata.shapes)} Link it with "
            "TableModel.parse(adata, region=, region_key=, instance_key=)."
        )
    shapes, instances = found
    matrix, element = scale.matrix_to_um(sdata, "shapes", shapes), sdata.shapes[shapes]
    require_names(shapes, element.index)
    places = element.index.get_indexer(instances)
    centres: np.ndarray = centroids_um(element.geometry.to_numpy()[places], matrix)
    lost = ~np.isfinite(centres).all(axis=1)
    if lost.any():
        raise ValueError(
            f"{int(lost.sum())} of {len(lost)} shapes {shapes!r} of table {key!r} have no finite centroid, such as "
            f"{plain(instances[lost][0])!r}. Leave them out."
        )
    return centres


def _rows(finder: SquareGrid | RegionIndex, found: Callable[[], np.ndarray]) -> np.ndarray:
    """Numbers of all regions: those of the squares that hold something, where a grid has no end."""
    if isinstance(finder, RegionIndex):
        return np.arange(len(finder))
    numbers = finder.numbers
    return found() if numbers is None else numbers


def _widen(extent: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    if not len(x):
        return extent
    low, high = np.minimum(extent[:2], [x.min(), y.min()]), np.maximum(extent[2:], [x.max(), y.max()])
    return np.concatenate([low, high])
