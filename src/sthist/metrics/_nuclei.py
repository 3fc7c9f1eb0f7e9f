"""How many nuclei of one image are found in another, at the same place."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np


@dataclass(frozen=True)
class NucleusPreservation:
    """Nuclei of two images, matched; ``dict(result)`` gives its fields.

    Attributes
    ----------
    n_a, n_b, n_matched
        Nuclei of the first and the second image, and matched ones.
    precision, recall, f1
        Matched part of the first image's nuclei, of the second's, and their harmonic mean; nan where the image has no
        nuclei, and f1 where neither has.
    mean_iou
        Mean intersection over union of the matched; nan if there are none.
    median_shift_um, mean_shift_um
        Distance between the centroids of the matched; nan if there are none.

    Examples
    --------
    >>> import numpy as np
    >>> from sthist.metrics import image
    >>> dict(image.nucleus_preservation(np.eye(2, dtype=int), np.eye(2, dtype=int), mpp=0.5))["n_matched"]
    1
    """

    n_a: int
    n_b: int
    n_matched: int
    precision: float
    recall: float
    f1: float
    mean_iou: float
    median_shift_um: float
    mean_shift_um: float

    def keys(self) -> list[str]:
        """Names of the fields."""
        return [field.name for field in fields(self)]

    def __getitem__(self, key: str) -> Any:
        if key not in self.keys():
            raise KeyError(key)
        return getattr(self, key)


def nucleus_preservation(labels_a: Any, labels_b: Any, *, mpp: float, min_iou: float = 0.5) -> NucleusPreservation:
    """Match the nuclei of a virtual and a real image by their overlap.

    Two nuclei match if their intersection over union is above ``min_iou``. From 0.5 on a nucleus can have one partner
    only; below, each keeps at most one, so that most nuclei are matched, and of those matchings the one of the largest
    total overlap.

    Parameters
    ----------
    labels_a, labels_b
        Nuclei of the virtual and the real image as integers (h, w), 0 for background.
    mpp
        µm per pixel.
    min_iou
        Overlap above which nuclei match, from 0 to below 1.

    Returns
    -------
    Counts, precision, recall, f1, overlap and shift. What chance gives is known by comparing with a shifted copy of one
    image: dense nuclei overlap somewhere by themselves.

    Raises
    ------
    ValueError
        If shapes differ, or labels are not integers of at least 0.

    Examples
    --------
    >>> import numpy as np
    >>> from sthist.metrics import image
    >>> real = np.zeros((20, 20), int)
    >>> real[2:8, 2:8], real[12:18, 12:18] = 1, 2
    >>> virtual = np.roll(np.where(real == 1, 1, 0), 1, axis=1)
    >>> found = image.nucleus_preservation(virtual, real, mpp=0.5)
    >>> found.precision, found.recall, round(found.mean_iou, 3), found.mean_shift_um
    (1.0, 0.5, 0.714, 0.5)
    """
    if not (np.isfinite(mpp) and mpp > 0 and 0 <= min_iou < 1):
        raise ValueError(f"mpp is µm per pixel, above 0, and min_iou from 0 to below 1; given are {mpp} and {min_iou}.")
    a, b = _labels(labels_a, "labels_a"), _labels(labels_b, "labels_b")
    if a.shape != b.shape:
        raise ValueError(f"Label images that are compared have the same shape; these have {a.shape} and {b.shape}.")
    (index_a, area_a, centre_a), (index_b, area_b, centre_b) = _measure(a), _measure(b)
    n_a, n_b = len(area_a), len(area_b)
    both = (index_a >= 0) & (index_b >= 0)
    cells, shared = np.unique(index_a[both] * max(1, n_b) + index_b[both], return_counts=True)
    i, j = np.divmod(cells, max(1, n_b))
    iou = shared / (area_a[i] + area_b[j] - shared)
    keep = iou > min_iou
    i, j, iou = i[keep], j[keep], iou[keep]
    if min_iou < 0.5:
        chosen = _assign(i, j, iou, n_a, n_b)
        i, j, iou = i[chosen], j[chosen], iou[chosen]
    n = len(i)
    shifts = np.linalg.norm(centre_a[i] - centre_b[j], axis=1) * mpp
    return NucleusPreservation(
        n_a=n_a,
        n_b=n_b,
        n_matched=n,
        precision=n / n_a if n_a else np.nan,
        recall=n / n_b if n_b else np.nan,
        f1=2 * n / (n_a + n_b) if n_a + n_b else np.nan,
        mean_iou=float(iou.mean()) if n else np.nan,
        median_shift_um=float(np.median(shifts)) if n else np.nan,
        mean_shift_um=float(shifts.mean()) if n else np.nan,
    )


def _labels(labels: Any, name: str) -> np.ndarray:
    """A label image, checked."""
    array = np.asarray(labels)
    if array.ndim != 2 or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(
            f"{name} is an image (h, w) of integers, one per nucleus; this is {array.dtype} of shape {array.shape}."
        )
    if array.size and array.min() < 0:
        raise ValueError(f"{name} has labels below 0; 0 is background.")
    return array


def _measure(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each pixel its nucleus, counted from 0 and -1 for background; of each nucleus area and centroid in px."""
    import pandas as pd

    index = np.full(labels.shape, -1)
    rows, columns = np.nonzero(labels)
    nucleus, names = pd.factorize(labels[rows, columns])
    index[rows, columns] = nucleus
    area = np.bincount(nucleus, minlength=len(names))
    sums = [np.bincount(nucleus, weights=axis, minlength=len(names)) for axis in (rows, columns)]
    return index, area, np.stack(sums, 1) / area[:, None]


def _assign(i: np.ndarray, j: np.ndarray, iou: np.ndarray, n_a: int, n_b: int) -> np.ndarray:
    """Which pairs to keep so that no nucleus is in two: as many as can be, then of the largest total overlap."""
    if not len(i):
        return np.zeros(0, bool)
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import min_weight_full_bipartite_matching

    # Beside the second image's nuclei each of the first's has a place of its own, where it stays unmatched; one pair
    # more outweighs any overlap, as a total overlap is at most the number of pairs.
    every = np.arange(n_a)
    cost = np.r_[2 - iou, np.full(n_a, min(n_a, n_b) + 2.0)]
    graph = coo_array((cost, (np.r_[i, every], np.r_[j, n_b + every])), shape=(n_a, n_b + n_a)).tocsr()
    rows, columns = min_weight_full_bipartite_matching(graph)
    partner = np.full(n_a, -1)
    partner[rows] = columns
    return partner[i] == j
