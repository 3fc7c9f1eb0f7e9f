"""Spots of known composition, and single cells of the same types, by two simulators."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import anndata as ad
import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

if TYPE_CHECKING:
    from anndata import AnnData

N_CELLS = (200, 200, 200, 200, 200, 40)
"""Of each type in the reference: the last one is rare."""

MARKERS = 40
DEPTH = 0.3
"""Part of a cell's counts that a spot catches."""


def means(rng: np.random.Generator, n_genes: int) -> np.ndarray:
    """Mean counts of a cell of each type, (types, genes): markers of each, and further ones of two that are related."""
    n_types = len(N_CELLS)
    found = np.repeat(rng.lognormal(-1, 1, (1, n_genes)), n_types, axis=0)
    for kinds in ([0], [1], [2], [3], [4], [5], [4, 5]):
        genes = rng.choice(n_genes, MARKERS, replace=False)
        found[np.ix_(kinds, genes)] *= rng.lognormal(1.5, 0.5, MARKERS)
    return found * rng.lognormal(0, 0.3, (n_types, 1))


def abundances(rng: np.random.Generator, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Cells of each type in each spot, (spots, types), and the places of the spots: 0 and 1 lie together."""
    places = np.stack(np.meshgrid(np.arange(side), np.arange(side)), axis=-1).reshape(-1, 2) / side
    centres = rng.uniform(0, 1, (len(N_CELLS), 2))
    centres[1] = centres[0]
    distance = np.linalg.norm(places[:, None] - centres[None], axis=2)
    expected = 0.2 + 6 * np.exp(-(distance**2) / (2 * 0.2**2))
    return rng.gamma(2, expected / 2), places


def simulate(
    kind: Literal["negative_binomial", "poisson"], seed: int = 0, *, side: int = 14, n_genes: int = 600
) -> tuple[AnnData, AnnData, pd.DataFrame]:
    """Spots, single cells with ``obs["cell_type"]``, and the cells of each type in each spot.

    Plain mixtures, whose counts are of Poisson; or counts that are overdispersed, of genes that the technology of the
    spots sees better or worse than that of the cells, in spots of different depth, with counts from elsewhere.
    """
    rng = np.random.default_rng([seed, kind == "poisson"])
    mean = means(rng, n_genes)
    truth, places = abundances(rng, side)
    codes = np.repeat(np.arange(len(N_CELLS)), N_CELLS)
    cell = mean[codes] * rng.lognormal(0, 0.4, (len(codes), 1))
    spot = DEPTH * truth @ mean
    if kind == "negative_binomial":
        cell = cell * rng.gamma(3, 1 / 3, cell.shape)
        technology = rng.lognormal(0, 0.6, n_genes)
        depth = rng.gamma(10, 1 / 10, (len(truth), 1))
        spot = technology * (depth * spot + 0.05 * mean.mean(axis=0))
        spot = spot * rng.gamma(10, 1 / 10, spot.shape)
    names = [f"type {i}" for i in range(len(N_CELLS))]
    genes = pd.DataFrame(index=[f"GENE{i}" for i in range(n_genes)])
    obs = pd.DataFrame({"cell_type": pd.Categorical.from_codes(codes, names)})
    obs.index = "c" + obs.index.astype(str)
    cells = ad.AnnData(csr_matrix(rng.poisson(cell).astype(np.float32)), obs=obs, var=genes)
    spots = ad.AnnData(
        csr_matrix(rng.poisson(spot).astype(np.float32)),
        obs=pd.DataFrame(index=[f"s{i}" for i in range(len(spot))]),
        var=genes,
        obsm={"spatial": 100.0 * side * places},
    )
    return spots, cells, pd.DataFrame(truth, index=spots.obs_names, columns=names)


def correlations(found: pd.DataFrame, truth: pd.DataFrame) -> np.ndarray:
    """Pearson's of each type over the spots, 0 for what does not vary."""
    both = zip(found[list(truth)].to_numpy().T, truth.to_numpy().T, strict=True)
    return np.array([np.corrcoef(a, b)[0, 1] if np.ptp(a) > 0 else 0.0 for a, b in both])
