"""Counting molecules on a grid."""

from __future__ import annotations

import numpy as np
import pytest

from sthist import _elements
from sthist.tiles._density import Grid, count_transcripts, is_gene, paint_cells


def test_counts_equal_a_histogram(toy):
    """Numpy's own, of the same molecules."""
    elements = _elements.find_high_res(toy)
    grid = Grid.over((0, 0, 400, 400), 2.0)
    counts, n = count_transcripts(elements, grid)
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
    elements = _elements.find_high_res(toy)
    grid = Grid.over((0, 0, 400, 400), 0.5)
    painted, _ = paint_cells(elements, grid)
    assert painted.sum() == pytest.approx(toy["table"].X.sum(), rel=0.15)
