"""Sets of the most telling genes: most expressed, most variable, most spatial."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from sthist._sample.verbs import verb
from sthist.metrics import morans_i
from sthist.pp._gene_panel.slides import common_genes, slides_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData
    from scipy.sparse import csr_matrix
    from spatialdata import SpatialData

Kind = Literal["expressed", "variance", "hvg", "svg"]

AMONG = 3000
"""Most expressed genes, among which the most variable and the most spatial are looked for."""

LEAST_MORAN = 0.01
"""What counts for a gene whose Moran's I in a slide is less, or not defined, so that one slide cannot decide alone."""


@verb
def gene_set(
    data: SpatialData | AnnData | Mapping[str, SpatialData | AnnData],
    kind: Kind = "hvg",
    n: int = 50,
    *,
    table: str | None = None,
    samples: Sequence[str] | None = None,
    rows: Mapping[str, Any] | None = None,
    genes: Sequence[str] | None = None,
    among: int | None = AMONG,
    species: str | None = None,
) -> list[str]:
    """The most expressed, most variable or most spatial genes of the slides that train.

    Parameters
    ----------
    data
        A sample, or a mapping of sample name to such, as of :func:`gene_panel`.
    kind
        ``"expressed"``: highest mean over all spots. ``"variance"``: highest variance of the logarithms over all spots.
        ``"hvg"``: highly variable by scanpy's flavour "seurat", slide by slide: first those that are among the ``n``
        in most slides, of these the highest mean of normalised dispersion. ``"svg"``: highest Moran's I, its geometric
        mean over slides (:func:`sthist.metrics.morans_i`, needs ``obsm["spatial"]``), where in a slide less than 0.01,
        and a gene that is constant there, count as 0.01.
    n
        How many.
    table, samples, rows, species
        As of :func:`gene_panel`: a set that is used to test a model is chosen by what trains it.
    genes
        Choose among these, such as those of a panel; by default among those that all samples have.
    among
        Look for ``"variance"`` and ``"svg"`` among so many genes of the highest mean: of rarer ones, both are those of
        a few spots. None for all.

    Returns
    -------
    Names, the first highest; of equal ones in alphabetical order. Fewer than ``n`` where there are no more.

    Raises
    ------
    KeyError
        If there is no such table or sample, genes are not common to all samples, or there are no places of spots.
    ValueError
        If ``kind`` is none of these, or as of :func:`gene_panel`.

    Examples
    --------
    >>> import sthist
    >>> sdata = sthist.datasets.toy("visium", size_um=900)
    >>> len(sthist.pp.gene_set(sdata, "svg", 5))
    5
    """
    if kind not in get_args(Kind):
        raise ValueError(f"kind is {kind!r}; it is one of {list(get_args(Kind))}.")
    if among is not None and among < 1:
        raise ValueError(f"among is {among}; it is at least 1, or None.")
    slides, _ = slides_of(data, table, samples, rows, species)
    names = common_genes(slides)
    if genes is not None:
        wanted = [genes] if isinstance(genes, str) else [str(gene) for gene in genes]
        missing = sorted(set(wanted) - set(names))
        if missing:
            raise KeyError(f"{len(missing)} of {len(wanted)} genes are not in all samples, such as {missing[0]!r}.")
        names = sorted(set(wanted))
    parts = [slide.expression[:, np.searchsorted(slide.genes, names)] for slide in slides]
    if kind in ("variance", "svg") and among is not None:
        kept = np.sort(_by_mean_of_all(parts)[:among])
        names, parts = [names[gene] for gene in kept], [part[:, kept] for part in parts]
    if kind == "expressed":
        order = _by_mean_of_all(parts)
    elif kind == "variance":
        order = _descending(_moments(parts)[1])
    elif kind == "hvg":
        order = _by_dispersion(parts, n)
    else:
        order = _by_moran(parts, [_centres(slide) for slide in slides])
    return [names[gene] for gene in order[:n]]


def by_mean(expression: csr_matrix) -> np.ndarray:
    """Genes of a slide, highest mean first, those that are not there left out."""
    mean = np.asarray(expression.mean(axis=0)).ravel()
    order = _descending(mean)
    return order[mean[order] > 0]


def dispersions(expression: csr_matrix) -> tuple[np.ndarray, np.ndarray]:
    """Genes of a slide, highest normalised dispersion first, and which of them vary."""
    values = _dispersion_of(expression)
    return _descending(np.nan_to_num(values, nan=-np.inf)), np.isfinite(values)


def _dispersion_of(expression: csr_matrix) -> np.ndarray:
    """Normalised dispersion of each gene by scanpy's flavour "seurat"; NaN for a gene that is not there."""
    import anndata as ad
    import scanpy as sc

    adata = ad.AnnData(expression)
    adata.uns["log1p"] = {"base": None}
    with warnings.catch_warnings():
        # Of pandas, about how scanpy groups; and of bins that hold one gene.
        warnings.simplefilter("ignore")
        found = sc.pp.highly_variable_genes(adata, flavor="seurat", inplace=False)
    values = found["dispersions_norm"].to_numpy(np.float64, copy=True)
    mean = np.asarray(expression.mean(axis=0)).ravel()
    values[~np.isfinite(values) | (mean == 0)] = np.nan
    return values


def _by_dispersion(parts: list[csr_matrix], n: int) -> np.ndarray:
    """Genes by in how many slides they are among the n most variable, and by mean normalised dispersion."""
    values = np.array([_dispersion_of(part) for part in parts if part.shape[0] > 1])
    if not len(values):
        raise ValueError("Each sample has one spot: no gene varies.")
    filled = np.nan_to_num(values, nan=-np.inf)
    among = np.zeros(values.shape[1])
    for row in filled:
        first = _descending(row)[:n]
        among[first[np.isfinite(row[first])]] += 1
    known = np.isfinite(values).sum(axis=0)
    mean = np.where(known > 0, np.nansum(values, axis=0) / np.maximum(known, 1), -np.inf)
    order = np.lexsort((-mean, -among))
    return order[known[order] > 0]


def _by_moran(parts: list[csr_matrix], centres: list[np.ndarray]) -> np.ndarray:
    """Genes by the geometric mean of Moran's I over slides."""
    values = np.array([morans_i(part, places) for part, places in zip(parts, centres, strict=True)])
    values = np.maximum(np.nan_to_num(values, nan=LEAST_MORAN), LEAST_MORAN)
    return _descending(np.log(values).mean(axis=0))


def _moments(parts: list[csr_matrix]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of each gene over all spots."""
    n = sum(part.shape[0] for part in parts)
    mean = sum(np.asarray(part.sum(axis=0, dtype=np.float64)).ravel() for part in parts) / n
    variance = np.zeros_like(mean)
    for part in parts:
        columns = part.tocsc().astype(np.float64)
        apart = columns.copy()
        apart.data -= np.repeat(mean, np.diff(columns.indptr))
        zeros = part.shape[0] - np.diff(columns.indptr)
        variance += np.asarray(apart.multiply(apart).sum(axis=0)).ravel() + zeros * mean**2
    return mean, variance / n


def _by_mean_of_all(parts: list[csr_matrix]) -> np.ndarray:
    return _descending(_moments(parts)[0])


def _descending(values: np.ndarray) -> np.ndarray:
    """Places, highest value first; of equal ones as they stand, which is in the order of their names."""
    return np.argsort(-values, kind="stable")


def _centres(slide: Any) -> np.ndarray:
    if "spatial" not in slide.adata.obsm:
        raise KeyError(f"Moran's I needs the places of spots, and sample {slide.name!r} has no obsm['spatial'].")
    return np.asarray(slide.adata.obsm["spatial"], np.float64)[slide.rows, :2]
