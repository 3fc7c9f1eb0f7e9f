"""Stain algebra against its own definition and scikit-image."""

from __future__ import annotations

import numpy as np
import pytest
from skimage.color import hed_from_rgb, separate_stains

from sthist import stains

VECTORS = np.array([[0.65, 0.70, 0.29], [0.17, 0.91, 0.38]])
VECTORS = VECTORS / np.linalg.norm(VECTORS, axis=1, keepdims=True)


@pytest.fixture
def amounts():
    return np.random.default_rng(0).gamma(1.2, 0.4, (300, 300, 2)) * [1.0, 0.7]


def test_round_trip(amounts):
    """Concentrations of a picture made from concentrations, to the rounding of 8 bits."""
    found = stains.concentrations(stains.to_rgb(amounts, VECTORS), VECTORS)
    bright = (amounts < 1.2).all(-1)
    assert np.abs(found - amounts)[bright].mean() < 0.01
    exact = stains.concentrations(stains.to_rgb(amounts, VECTORS, dtype=np.float64), VECTORS)
    np.testing.assert_allclose(exact[bright], amounts[bright], atol=1e-3)


def test_macenko_finds_the_vectors(amounts):
    """Where pure pixels exist, within 3 degrees; haematoxylin first."""
    amounts[:60, :, 0] = 0.01
    amounts[60:120, :, 1] = 0.01
    found = stains.macenko(stains.to_rgb(amounts, VECTORS))
    angles = np.rad2deg(np.arccos((found * VECTORS).sum(1)))
    assert angles.max() < 3


def test_optical_density_as_in_scikit_image():
    """Three orthogonal stains unmixed by scikit-image and by us, in the same proportions."""
    rgb = np.random.default_rng(0).integers(40, 250, (50, 50, 3)).astype(np.uint8)
    theirs = separate_stains(rgb, hed_from_rgb)
    ours = stains.optical_density(rgb) @ hed_from_rgb
    kept = (theirs > 0.01).all(-1)
    assert np.corrcoef(ours[kept].ravel(), theirs[kept].ravel())[0, 1] > 0.999


def test_too_little_stain():
    """Blank glass has no vectors."""
    with pytest.raises(ValueError, match="Only 0 pixels are stained"):
        stains.macenko(np.full((30, 30, 3), 250, np.uint8))
