"""The quick segmentation of nuclei."""

from __future__ import annotations

import numpy as np
import pytest

import sthist
from sthist import stains
from sthist._imaging.nuclei import iter_blocks
from sthist.tiles import segment_nuclei
from sthist.tiles._regions.raster import rasterize


def f1(found: np.ndarray, truth: np.ndarray) -> float:
    """Of nuclei whose centroid-nearest partner overlaps by more than half, by brute force."""
    pairs = np.stack([found.ravel(), truth.ravel()])[:, (found.ravel() > 0) & (truth.ravel() > 0)]
    values, counts = np.unique(pairs, axis=1, return_counts=True)
    a, b = np.bincount(found.ravel()), np.bincount(truth.ravel())
    matched = sum(n / (a[i] + b[j] - n) > 0.5 for (i, j), n in zip(values.T, counts, strict=True))
    return 2 * matched / (found.max() + truth.max())


@pytest.fixture(scope="module")
def toy():
    return sthist.datasets.toy(size_um=400)


def truth(toy, mpp: float, matrix: np.ndarray | None = None) -> np.ndarray:
    outlines = toy["nucleus_boundaries"].geometry
    if matrix is not None:
        (a, b, x), (c, d, y) = np.linalg.inv(matrix)[:2]
        outlines = outlines.affine_transform([a, b, c, d, x, y]).scale(0.5, 0.5, origin=(0, 0))
    n = round(400 / mpp)
    return rasterize(outlines, (0, 0), mpp, (n, n), np.arange(1, len(outlines) + 1)).astype(int)


def test_fluorescence(toy):
    found = segment_nuclei(toy["morphology_focus"].to_numpy()[0], 0.5)
    assert f1(found, truth(toy, 0.5)) > 0.8


def test_haematoxylin(toy):
    he = toy["he"].to_numpy().transpose(1, 2, 0)
    found = segment_nuclei(stains.concentrations(he, stains.macenko(he))[..., 0], 0.5)
    assert f1(found, truth(toy, 0.5, sthist.scale.matrix_to(toy["he"]))) > 0.75


def test_coarser_is_worse_but_works(toy):
    stain = sthist.tiles.read_region(toy, "morphology_focus", (0, 0, 400, 400), 1.0)[..., 0]
    assert f1(segment_nuclei(stain, 1.0), truth(toy, 1.0)) > 0.6


def test_nothing_is_found_where_nothing_is():
    assert segment_nuclei(np.zeros((100, 100)), 0.5).max() == 0
    assert segment_nuclei(np.full((100, 100), 7.0), 0.5).max() == 0


def test_labels_are_whole_numbers_without_gaps(toy):
    labels = segment_nuclei(toy["morphology_focus"].to_numpy()[0], 0.5)
    assert labels.dtype == np.int32
    assert set(np.unique(labels)) == set(range(labels.max() + 1))


def test_blocks_cover_an_image_once():
    covered = np.zeros((5000, 2100), int)
    for outer, inner in iter_blocks(covered.shape, 0.5):
        covered[inner] += 1
        assert outer[0].start <= inner[0].start < inner[0].stop <= outer[0].stop
    assert (covered == 1).all()


@pytest.mark.parametrize(
    ("stain", "mpp", "message"),
    [
        (np.zeros((3, 4, 5)), 0.5, r"this has shape \(3, 4, 5\)"),
        (np.zeros((9, 9)), 4.0, r"mpp is 4.0"),
        (np.full((9, 9), np.nan), 0.5, r"NaN or infinite"),
    ],
)
def test_bad_input(stain, mpp, message):
    with pytest.raises(ValueError, match=message):
        segment_nuclei(stain, mpp)
