"""Embeddings of rows as a predictor takes them: several beside each other, with their surroundings, standardised."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sthist._messages import plain
from sthist.training.rows import features_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scipy.sparse import csr_matrix

    from sthist.training.embeddings import Origin
    from sthist.training.rows import SampleRows

REACH = 3.0
"""Standard deviations up to which a Gaussian mean looks."""


def standards(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each column, (d,) float32; 1 for a column that is constant."""
    mean, deviation = values.mean(axis=0, dtype=np.float64), values.std(axis=0, dtype=np.float64)
    constant = deviation <= 1e-6 * np.maximum(np.abs(mean), 1e-6)
    return mean.astype(np.float32), np.where(constant, 1.0, deviation).astype(np.float32)


def gaussian_weights(centres: np.ndarray, others: np.ndarray, sigma_um: float) -> csr_matrix:
    """Gaussian weights (n, m) that other places have at each place."""
    from scipy.sparse import csr_matrix
    from scipy.spatial import cKDTree

    near = cKDTree(centres).sparse_distance_matrix(cKDTree(others), REACH * sigma_um, output_type="coo_matrix")
    return csr_matrix((np.exp(-0.5 * (near.data / sigma_um) ** 2), (near.row, near.col)), shape=near.shape)


def gaussian_means(centres: np.ndarray, sigma_um: float) -> csr_matrix:
    """Weights (n, n) that give for each place the Gaussian mean over those around it, itself among them."""
    from scipy.sparse import csr_matrix, diags

    weights = gaussian_weights(centres, centres, sigma_um)
    return csr_matrix(diags(1 / np.asarray(weights.sum(axis=1)).ravel()) @ weights)


def smoothed(values: np.ndarray, centres: np.ndarray, sample: np.ndarray, sigma_um: float) -> np.ndarray:
    """Gaussian means over neighbours in the same sample, (n, d) float32."""
    means = np.empty_like(values)
    for each in np.unique(sample):
        mine = np.flatnonzero(sample == each)
        means[mine] = gaussian_means(centres[mine], sigma_um) @ values[mine]
    return means


def features_of_rows(rows: SampleRows, config: Any) -> tuple[np.ndarray, tuple[Origin, ...]]:
    """Embeddings as a config asks for them, (n, d) float32, and what made each.

    Surroundings, and mean and deviation of a sample, are of the rows that are given.
    """
    found = [features_of(rows, key) for key in config.embeddings]
    values = np.concatenate([each for each, _, _ in found], axis=1)
    if config.context_um:
        centres = centres_of(rows, "context_um")
        around = [smoothed(values, centres, rows.sample, sigma) for sigma in config.context_um]
        values = np.concatenate([values, *around], axis=1)
    if config.standardize == "sample":
        for each in np.unique(rows.sample):
            mine = rows.sample == each
            mean, deviation = standards(values[mine])
            values[mine] = (values[mine] - mean) / deviation
    return values, tuple(origin for _, _, origin in found)


def centres_of(rows: SampleRows, why: str) -> np.ndarray:
    """Places of rows in µm, (n, 2) float64."""
    places = []
    for number, (adata, name) in enumerate(zip(rows.tables, rows.names, strict=True)):
        if "spatial" not in adata.obsm:
            raise KeyError(f"{why} needs the places of rows in µm, and {name} has no obsm['spatial'].")
        places.append(np.asarray(adata.obsm["spatial"], np.float64)[rows.row[rows.sample == number], :2])
    return np.concatenate(places)


def finite_centres_of(rows: SampleRows, why: str) -> np.ndarray:
    """Places of rows in µm, (n, 2) float64, all of them known."""
    places = centres_of(rows, why)
    bad = np.flatnonzero(~np.isfinite(places).all(axis=1))
    if len(bad):
        number = rows.sample[bad[0]]
        row = plain(rows.tables[number].obs_names[rows.row[bad[0]]])
        raise ValueError(
            f"{why} needs the places of rows in µm, and obsm['spatial'] of {rows.names[number]} is NaN or infinite in "
            f"{int((rows.sample[bad] == number).sum())} rows, such as {row!r}. Leave those rows out."
        )
    return places


def keys_of(embedding: str | Sequence[str] | None) -> tuple[str, ...]:
    """Keys of embeddings in ``obsm``, of keys or of names of encoders."""
    from sthist.training.embeddings import key_of

    listed = () if embedding is None else (embedding,) if isinstance(embedding, str) else tuple(embedding)
    return tuple(each if each.startswith("X_") else key_of(each) for each in listed)
