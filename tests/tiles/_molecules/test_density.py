"""Counting molecules on a grid."""

from __future__ import annotations

import numpy as np
import pytest

import sthist
from sthist import _sample
from sthist._sample.elements import is_gene
from sthist.tiles._molecules.density import Grid, adaptive_density, count_transcripts, paint_cells


def test_counts_equal_a_histogram(toy):
    """Numpy's own, of the same molecules."""
    elements = _sample.find_high_res(toy)
    grid = Grid.over((0, 0, 400, 400), 2.0)
    counts, n = count_transcripts(elements, sthist.tiles.open_image(toy, elements.nuclear), grid)
    frame = toy["transcripts"].compute()
    frame = frame[(frame.qv >= 20) & is_gene(frame.feature_name.astype(str))]
    expected, _, _ = np.histogram2d(frame.y, frame.x, bins=200, range=[[0, 400], [0, 400]])
    np.testing.assert_array_equal(counts, expected)
    assert n == len(frame)


@pytest.mark.parametrize(
    ("name", "gene"),
    [
        ("EPCAM", True),
        ("BLANK_0001", False),
        ("Blank-12", False),
        ("NegControlProbe_00001", False),
        ("NegControlCodeword_0500", False),
        ("NegPrb12", False),
        ("UnassignedCodeword_0001", False),
        ("DeprecatedCodeword_1", False),
        ("SystemControl3", False),
        ("FalseCode1", False),
        ("NEGR1", True),
    ],
)
def test_controls(name, gene):
    """Prefixes of Xenium, CosMx and MERSCOPE; a gene that begins alike stays."""
    assert is_gene([name])[0] == gene


def test_painted_cells_conserve_counts(toy):
    """Spread over outlines that do not overlap, counts stay what they are."""
    elements = _sample.find_high_res(toy)
    grid = Grid.over((0, 0, 400, 400), 0.5)
    painted, _ = paint_cells(elements, grid)
    assert painted.sum() == pytest.approx(toy["table"].X.sum(), rel=0.15)


@pytest.mark.parametrize("shape", [(700, 531), (33, 1000), (9, 9), (1, 50), (513, 257)])
@pytest.mark.parametrize("points", ["counts", "cells"])
def test_bands_of_rows_do_not_show(monkeypatch, shape, points):
    """The density is that of all rows at once, whatever their number."""
    rng = np.random.default_rng(0)
    counts = rng.poisson(0.3, shape).astype(np.uint32)
    counts[:, : shape[1] // 3] = 0
    mask = np.ones(shape, bool)
    mask[: shape[0] // 5] = False
    n_points = None if points == "counts" else np.where(rng.random(shape) < 0.1, 3.0, 0.0).astype(np.float32)
    monkeypatch.setattr("sthist.tiles._molecules.density.BAND_ROWS", 10**6)
    whole = adaptive_density(counts, mask, n_points=n_points)
    for rows in (16, 256):
        monkeypatch.setattr("sthist.tiles._molecules.density.BAND_ROWS", rows)
        np.testing.assert_allclose(adaptive_density(counts, mask, n_points=n_points), whole, rtol=1e-6)
    assert (whole[~mask] == 0).all()


def test_density_of_an_even_plane():
    """As many as there are, at every place, up to the chance of counting."""
    counts = np.random.default_rng(0).poisson(2.0, (400, 300))
    density = adaptive_density(counts, np.ones(counts.shape, bool), min_points=2000)
    np.testing.assert_allclose(density, 2.0, rtol=0.2)
    assert density.mean() == pytest.approx(counts.mean(), rel=0.02)
