"""How many nuclei of one image are found in another, at the same place, and how well they are outlined."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np


class _Fields:
    """``dict(result)`` gives the fields of a result."""

    def keys(self) -> list[str]:
        """Names of the fields."""
        return [field.name for field in fields(self)]  # type: ignore[arg-type]

    def __getitem__(self, key: str) -> Any:
        if key not in self.keys():
            raise KeyError(key)
        return getattr(self, key)


@dataclass(frozen=True)
class NucleusPreservation(_Fields):
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
    pairs = _overlaps(_labels(labels_a, "labels_a"), _labels(labels_b, "labels_b"))
    n_a, n_b, i, j, iou = len(pairs.area_a), len(pairs.area_b), pairs.i, pairs.j, pairs.iou
    keep = iou > min_iou
    i, j, iou = i[keep], j[keep], iou[keep]
    if min_iou < 0.5:
        chosen = _assign(i, j, iou, n_a, n_b)
        i, j, iou = i[chosen], j[chosen], iou[chosen]
    n = len(i)
    shifts = np.linalg.norm(pairs.centre_a[i] - pairs.centre_b[j], axis=1) * mpp
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


@dataclass(frozen=True)
class NucleusSegmentation(_Fields):
    """Nuclei that were found against those that are there; ``dict(result)`` gives its fields.

    Attributes
    ----------
    n_pred, n_true, n_matched
        Nuclei found, nuclei there, and those that are both: their intersection over union is above 0.5.
    precision, recall, f1
        Matched part of what was found, of what is there, and their harmonic mean; nan where there is nothing.
    aji
        Aggregated Jaccard index (Kumar et al. 2017): over all true nuclei, what each has in common with the found one
        of the largest overlap, by the union of the two; what was found and is nobody's counts in the union.
    pq, sq
        Panoptic quality (Kirillov et al. 2019), f1 times ``sq``, the mean overlap of the matched.
    count_error
        How many too many, as a part of those that are there.

    Examples
    --------
    >>> import numpy as np
    >>> from sthist.metrics import image
    >>> image.nucleus_segmentation(np.eye(2, dtype=int), np.eye(2, dtype=int)).pq
    1.0
    """

    n_pred: int
    n_true: int
    n_matched: int
    precision: float
    recall: float
    f1: float
    aji: float
    pq: float
    sq: float
    count_error: float


def nucleus_segmentation(labels_pred: Any, labels_true: Any) -> NucleusSegmentation:
    """Score a segmentation of nuclei against the truth: F1 at an overlap of 0.5, AJI, panoptic quality, count.

    Parameters
    ----------
    labels_pred, labels_true
        Nuclei found, and those that are there, as integers (h, w), 0 for background.

    Returns
    -------
    The scores of one image. Means over images, not pooled counts, are what the literature states.

    Raises
    ------
    ValueError
        If shapes differ, or labels are not integers of at least 0.

    References
    ----------
    Kumar et al. 2017, A dataset and a technique for generalized nuclear segmentation for computational pathology.
    Kirillov et al. 2019, Panoptic segmentation.

    Examples
    --------
    >>> import numpy as np
    >>> from sthist.metrics import image
    >>> true = np.zeros((20, 20), int)
    >>> true[2:8, 2:8], true[12:18, 12:18] = 1, 2
    >>> found = np.zeros((20, 20), int)
    >>> found[2:8, 2:7] = 1
    >>> score = image.nucleus_segmentation(found, true)
    >>> score.precision, score.recall, round(score.aji, 3), score.count_error
    (1.0, 0.5, 0.417, -0.5)
    """
    pairs = _overlaps(_labels(labels_pred, "labels_pred"), _labels(labels_true, "labels_true"))
    n_pred, n_true = len(pairs.area_a), len(pairs.area_b)
    matched = pairs.iou > 0.5
    n = int(matched.sum())
    f1 = 2 * n / (n_pred + n_true) if n_pred + n_true else np.nan
    sq = float(pairs.iou[matched].mean()) if n else np.nan
    # Of each true nucleus the pair of the largest overlap: the last one, when sorted by nucleus and overlap.
    order = np.lexsort((pairs.iou, pairs.j))
    last = order[np.flatnonzero(np.diff(np.append(pairs.j[order], -1)))]
    free_a, free_b = np.ones(n_pred, bool), np.ones(n_true, bool)
    free_a[pairs.i[last]], free_b[pairs.j[last]] = False, False
    union = (pairs.area_a[pairs.i[last]] + pairs.area_b[pairs.j[last]] - pairs.shared[last]).sum()
    union += pairs.area_a[free_a].sum() + pairs.area_b[free_b].sum()
    return NucleusSegmentation(
        n_pred=n_pred,
        n_true=n_true,
        n_matched=n,
        precision=n / n_pred if n_pred else np.nan,
        recall=n / n_true if n_true else np.nan,
        f1=f1,
        aji=float(pairs.shared[last].sum() / union) if union else np.nan,
        pq=f1 * sq if n else (0.0 if n_pred + n_true else np.nan),
        sq=sq,
        count_error=(n_pred - n_true) / n_true if n_true else np.nan,
    )


@dataclass(frozen=True)
class _Overlaps:
    """Of two label images: areas and centres of their nuclei, and the pairs (i, j) that have pixels in common."""

    area_a: np.ndarray
    area_b: np.ndarray
    centre_a: np.ndarray
    centre_b: np.ndarray
    i: np.ndarray
    j: np.ndarray
    shared: np.ndarray

    @property
    def iou(self) -> np.ndarray:
        """Intersection over union of each pair."""
        return np.asarray(self.shared / (self.area_a[self.i] + self.area_b[self.j] - self.shared))


def _overlaps(a: np.ndarray, b: np.ndarray) -> _Overlaps:
    """Which nuclei of two label images lie on each other."""
    if a.shape != b.shape:
        raise ValueError(f"Label images that are compared have the same shape; these have {a.shape} and {b.shape}.")
    (index_a, area_a, centre_a), (index_b, area_b, centre_b) = _measure(a), _measure(b)
    both = (index_a >= 0) & (index_b >= 0)
    n_b = max(1, len(area_b))
    cells, shared = np.unique(index_a[both] * n_b + index_b[both], return_counts=True)
    i, j = np.divmod(cells, n_b)
    return _Overlaps(area_a, area_b, centre_a, centre_b, i, j, shared)


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
