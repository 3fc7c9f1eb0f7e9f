"""Scores of predicted amounts by cell type, over all rows that test and slide by slide."""

from __future__ import annotations

from typing import Any

import numpy as np

from sthist.metrics import colocalization
from sthist.metrics._expression.blocks import rounding
from sthist.metrics._expression.correlation import correlate
from sthist.metrics._expression.maps import pitch_of
from sthist.tl._colocalization.moran import morans_r, spatial_weights, standardised
from sthist.tl._colocalization.verb import PITCHES

ALL, MEAN = "all", "mean"
"""What stands for all rows that test, pooled, and for the mean over types."""

MAPS = ("coloc_cosine", "coloc_pearson")
LEAST_TYPES, LEAST_SPOTS = 4, 10


def score_rows(
    truth: np.ndarray,
    predicted: np.ndarray,
    mask: np.ndarray | None,
    sample: np.ndarray,
    types: tuple[str, ...],
    places: np.ndarray | None,
) -> list[dict[str, Any]]:
    """A row per slide and type: correlation across the rows and mean absolute error; and of their means over types.

    Beside the means of a slide stands how alike the maps of colocalisation are, and for all slides the mean of that.

    A type that does not vary in the truth, or was not measured, has no correlation and counts in no mean; where the
    prediction alone is constant the correlation is 0.
    """
    parts = [(ALL, np.arange(len(truth)))]
    names = np.unique(sample)
    if len(names) > 1:
        parts += [(str(name), np.flatnonzero(sample == name)) for name in names]
    rows: list[dict[str, Any]] = []
    alike = {}
    for name in names:
        own = sample == name
        alike[name] = _alike(truth[own], predicted[own], None if places is None else places[own])
    together = {key: _mean(np.array([each[key] for each in alike.values()])) for key in MAPS}
    for slide, index in parts:
        there = None if mask is None else mask[index]
        one, other = truth[index].astype(np.float64), predicted[index].astype(np.float64)
        pearson, n, varies = correlate(one, other, there, 0, (rounding(truth), rounding(predicted)))
        pearson = np.where(varies, np.nan_to_num(pearson), np.nan)
        errors = np.abs(one - other) * (1 if there is None else there)
        l1 = np.divide(errors.sum(axis=0), n, out=np.full(len(types), np.nan), where=n > 0)
        mean = {"pearson": _mean(pearson), "l1": _mean(l1), "n_spots": len(index)}
        rows.append(
            {
                "slide": slide,
                "type": MEAN,
                **mean,
                "n_types_undefined": int((~varies).sum()),
                **(together if slide == ALL else alike[slide]),
            }
        )
        rows += [
            {
                "slide": slide,
                "type": name,
                "pearson": float(pearson[k]),
                "l1": float(l1[k]),
                "n_spots": int(n[k]),
                "n_types_undefined": int(not varies[k]),
            }
            for k, name in enumerate(types)
        ]
    return rows


def _alike(truth: np.ndarray, predicted: np.ndarray, places: np.ndarray | None) -> dict[str, float]:
    """Means over the types of how alike two maps of colocalisation are, the diagonals left out."""
    if places is None or truth.shape[1] < LEAST_TYPES or len(truth) < LEAST_SPOTS:
        return dict.fromkeys(MAPS, float("nan"))
    weights = spatial_weights(places, PITCHES * pitch_of(places))
    maps = []
    for values in (truth, predicted):
        standard, constant = standardised(values.astype(np.float64))
        r = morans_r(standard, weights)
        r[constant] = r[:, constant] = np.nan
        maps.append(r)
    found = colocalization(*maps)
    return dict(zip(MAPS, (found.cosine, found.pearson), strict=True))


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")
