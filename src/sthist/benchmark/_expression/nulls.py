"""What predicts expression without knowing single genes, or an image: one map for all, places on other slides."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sthist._settings import logger
from sthist._tables.expression import find_raw_counts
from sthist._tables.find import called
from sthist.encoders import morphology_feature_names
from sthist.regression.data.features import gaussian_weights, keys_of, standards
from sthist.training.embeddings import embeddings_of, origin_of

if TYPE_CHECKING:
    from sthist.training.rows import SampleRows

BUILT_IN, NUCLEI = "morphology", "sqrt_nuclei_density_per_mm2"
"""The built-in encoder, and the feature of it that is one map for all genes."""

REACH_UM = 400.0
"""Standard deviation of the Gaussian by which a place looks at other slides, which are laid on each other roughly."""


def counts_of(rows: SampleRows) -> np.ndarray | None:
    """Counts of each row, all genes of its table, (n,) float64; None where a table has no raw counts."""
    found = []
    for number, (adata, name) in enumerate(zip(rows.tables, rows.names, strict=True)):
        try:
            counts = find_raw_counts(adata, None, called(None))[1]
        except ValueError:
            logger.info("%s has no raw counts: what is known beyond them is not scored.", name[0].upper() + name[1:])
            return None
        found.append(np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()[rows.row[rows.sample == number]])
    return np.concatenate(found)


def nuclei_of(rows: SampleRows, embedding: Any = None) -> np.ndarray | None:
    """How many nuclei the tile of each row has, (n,), where embeddings say it: those in use first, then any stored."""
    names, tables = morphology_feature_names(), rows.tables
    for key in dict.fromkeys([*keys_of(embedding), *embeddings_of(tables[0])]):
        stored = [
            adata.obsm[key] for adata in tables if key in adata.obsm and origin_of(adata, key).encoder == BUILT_IN
        ]
        if len(stored) == len(tables) and {each.shape[1] for each in stored} == {len(names)}:
            parts = [np.asarray(each)[:, names.index(NUCLEI)] for each in stored]
            return np.concatenate([each[rows.row[rows.sample == i]] for i, each in enumerate(parts)]).astype(np.float64)
    return None


def one_map(values: np.ndarray, sample: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """All genes as one map of each slide, (n, genes), with the mean and the standard deviation of each in training."""
    standard = np.empty((len(values), 1), np.float32)
    for each in np.unique(sample):
        mine = sample == each
        centre, deviation = standards(values[mine, None])
        standard[mine] = (values[mine, None] - centre) / deviation
    return mean + standard * scale


def from_middle(centres: np.ndarray, sample: np.ndarray) -> np.ndarray:
    """Places from the middle of their own slide: slides are laid on each other."""
    laid = np.empty_like(centres)
    for each in np.unique(sample):
        mine = sample == each
        laid[mine] = centres[mine] - centres[mine].mean(axis=0)
    return laid


def at_same_place(
    places: np.ndarray, known: np.ndarray, values: Any, measured: np.ndarray | None, elsewhere: np.ndarray
) -> np.ndarray:
    """Gaussian mean at places (n, 2) of values (m, genes) at others, (n, genes); where none are near, ``elsewhere``.

    ``measured``, (m, genes), says which values there are; None for all. Values nearer to each other than a quarter of
    the Gaussian's width are put together first, so that bins cost no more than spots.
    """
    from scipy.sparse import csr_matrix

    cells, member = np.unique(np.floor(known / (REACH_UM / 4)), axis=0, return_inverse=True)
    together = csr_matrix((np.ones(len(known)), (member.ravel(), np.arange(len(known)))), (len(cells), len(known)))
    middles = together @ known / np.asarray(together.sum(axis=1))
    weights = gaussian_weights(places, middles, REACH_UM)
    there = np.ones((len(known), 1)) if measured is None else measured.astype(np.float64)
    total, weight = (weights @ _dense(together @ each) for each in (values, there))
    return np.where(weight > 0, total / np.where(weight > 0, weight, 1), elsewhere).astype(np.float32)


def _dense(matrix: Any) -> np.ndarray:
    return np.asarray(matrix.toarray() if hasattr(matrix, "toarray") else matrix)
