"""Scores of segmented nuclei against counting by hand and a loop over pairs."""

from __future__ import annotations

import numpy as np
import pytest

from sthist.metrics.image import nucleus_preservation, nucleus_segmentation


def blobs(seed: int, n: int = 30) -> np.ndarray:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:90, :110]
    labels = np.zeros(y.shape, int)
    for k, (cy, cx, r) in enumerate(np.c_[rng.uniform(0, 90, n), rng.uniform(0, 110, n), rng.uniform(3, 8, n)], 1):
        labels[np.hypot(y - cy, x - cx) < r] = k * 3  # labels with gaps
    return labels


def loop(pred: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """F1, AJI and PQ by the papers' sums, pair by pair."""
    p, t = ([labels == k for k in np.unique(labels)[1:]] for labels in (pred, true))
    iou = np.array([[(a & b).sum() / (a | b).sum() for b in t] for a in p])
    matched = iou[iou > 0.5]
    used, shared, union = set(), 0, 0
    for k, truth in enumerate(t):
        best = int(iou[:, k].argmax())
        if iou[best, k] > 0:
            used.add(best)
            shared, union = shared + (p[best] & truth).sum(), union + (p[best] | truth).sum()
        else:
            union += truth.sum()
    union += sum(p[k].sum() for k in range(len(p)) if k not in used)
    n = len(matched)
    return {
        "f1": 2 * n / (len(p) + len(t)),
        "aji": shared / union,
        "pq": matched.sum() / (n + (len(p) - n) / 2 + (len(t) - n) / 2),
        "count_error": len(p) / len(t) - 1,
    }


@pytest.mark.parametrize("seed", range(4))
def test_like_a_loop_over_pairs(seed):
    true = blobs(seed)
    pred = np.roll(np.where(true % 4, true, 0), 1, 0)
    pred[:20] = np.where(pred[:20], pred[:20] + 1000, 0)  # some are cut in two
    score, expected = nucleus_segmentation(pred, true), loop(pred, true)
    assert {name: score[name] for name in expected} == pytest.approx(expected)
    assert score.f1 == nucleus_preservation(pred, true, mpp=1.0).f1
    assert score.pq == pytest.approx(score.f1 * score.sq)


def test_perfect_and_nothing():
    true, empty = blobs(0), np.zeros((90, 110), int)
    perfect = nucleus_segmentation(true, true)
    assert (perfect.f1, perfect.aji, perfect.pq, perfect.count_error) == (1, 1, 1, 0)
    missed = nucleus_segmentation(empty, true)
    assert (missed.f1, missed.aji, missed.pq, missed.recall, missed.count_error) == (0, 0, 0, 0, -1)
    assert np.isnan(missed.precision)
    invented = nucleus_segmentation(true, empty)
    assert (invented.f1, invented.aji, invented.precision) == (0, 0, 0)
    assert np.isnan(nucleus_segmentation(empty, empty).f1)


def test_bad_input():
    with pytest.raises(ValueError, match="same shape"):
        nucleus_segmentation(np.zeros((3, 3), int), np.zeros((3, 4), int))
    with pytest.raises(ValueError, match="labels_true"):
        nucleus_segmentation(np.zeros((3, 3), int), np.zeros((3, 3)))
