"""Non-negative least squares on reference signatures: rough, and done in seconds."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np

from sthist._settings import logger

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scipy.sparse import csr_matrix

MARKERS = 100
"""Genes of each type that tell it best from the others."""

SAME = 0.99
"""Types whose signatures correlate better are hardly told apart."""


def marker_genes(profiles: np.ndarray, n: int = MARKERS) -> np.ndarray:
    """Genes that are ``n`` times highest in some type, by its logarithm above the mean of the other types'."""
    totals = profiles.sum(axis=1, keepdims=True)
    logs = np.log1p(1e4 * np.divide(profiles, totals, out=np.zeros_like(profiles), where=totals > 0))
    above = logs - (logs.sum(axis=0) - logs) / (len(logs) - 1)
    return np.unique(np.argsort(-above, axis=1, kind="stable")[:, :n])


def deconvolve_nnls(counts: csr_matrix, profiles: np.ndarray, types: Sequence[str]) -> np.ndarray:
    """Abundances, (n, types) float64: ``counts`` as sums of the rows of ``profiles``, (types, genes).

    Each gene is divided by the root of its mean over the types: counts vary as those of Poisson, and what the two
    technologies see differently weighs less than by the counts of the spots themselves.
    """
    from scipy.optimize import nnls

    scale = np.sqrt(profiles.mean(axis=0))
    seen = scale > 0
    signatures = profiles[:, seen] / scale[seen]
    _say_alike(signatures, types)
    # |A x - y| and |R x - Q'y| differ by what no x changes: a problem of (types, types) for each spot.
    basis, reduced = np.linalg.qr(signatures.T)
    targets = counts[:, np.flatnonzero(seen)] @ (basis / scale[seen][:, None])
    return np.array([nnls(reduced, target)[0] for target in targets])


def _say_alike(signatures: np.ndarray, types: Sequence[str]) -> None:
    with np.errstate(invalid="ignore", divide="ignore"):
        r = np.corrcoef(signatures)
    alike = [(i, j) for i, j in itertools.combinations(range(len(types)), 2) if r[i, j] > SAME]
    if alike:
        i, j = max(alike, key=lambda pair: r[pair])
        logger.warning(
            "%d pairs of types have almost the same signature, and are hardly told apart: %r and %r (r = %.3f). Join "
            "them.",
            len(alike),
            types[i],
            types[j],
            r[i, j],
        )
