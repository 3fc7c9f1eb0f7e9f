"""How alike two maps of colocalisation are, beside scipy's correlation of each row."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.spatial.distance import cosine
from scipy.stats import pearsonr

from sthist import metrics

TYPES = ["B cell", "T/NK", "tumour", "fibroblast", "γδT", "endothelial"]


def maps(n=6, seed=0):
    rng = np.random.default_rng(seed)
    return [pd.DataFrame(np.corrcoef(rng.normal(size=(n, 9))), TYPES[:n], TYPES[:n]) for _ in range(2)]


@pytest.mark.parametrize("diagonal", [False, True])
def test_equals_scipy_row_by_row(diagonal):
    a, b = maps()
    found = metrics.colocalization(a, b, diagonal=diagonal)
    for i, name in enumerate(TYPES):
        x, y = (each.to_numpy()[i] for each in (a, b))
        if not diagonal:
            x, y = np.delete(x, i), np.delete(y, i)
        assert found.types.loc[name, "pearson"] == pytest.approx(pearsonr(x, y)[0])
        assert found.types.loc[name, "cosine"] == pytest.approx(1 - cosine(x, y))
        assert found.types.loc[name, "n"] == 5 + diagonal
    assert found.pearson == pytest.approx(found.types["pearson"].mean())
    assert found.cosine == pytest.approx(found.types["cosine"].mean())


def test_rows_are_matched_by_name():
    """Whatever the order in which either map has its rows, or its columns."""
    a, b = maps()
    expected = metrics.colocalization(a, b).types
    turned = b.iloc[::-1, [3, 1, 0, 2, 5, 4]]
    pd.testing.assert_frame_equal(metrics.colocalization(a, turned).types, expected)
    stored = {"types": np.array(TYPES, object)[::-1], "r": b.to_numpy()[::-1, ::-1]}
    pd.testing.assert_frame_equal(metrics.colocalization(a, stored).types, expected)


def test_types_of_one_map_alone_are_named():
    a, b = maps()
    found = metrics.colocalization(a.iloc[:5, :5], b.iloc[1:, 1:])
    assert list(found.types.index) == TYPES[1:5]
    assert found.missing == ("B cell", "endothelial")
    assert "2 types in one map alone" in repr(found)


def test_what_is_nan_does_not_count():
    """A type that does not vary is undefined itself, and no partner of the others."""
    a, b = maps()
    b.iloc[2] = np.nan
    b.iloc[:, 2] = np.nan
    found = metrics.colocalization(a, b)
    assert found.n_undefined == 1
    assert np.isnan(found.types.loc["tumour"]).tolist() == [True, True, False]
    kept = [i for i in range(6) if i != 2]
    rest = metrics.colocalization(a.iloc[kept, kept], b.iloc[kept, kept])
    pd.testing.assert_frame_equal(found.types.drop(index="tumour"), rest.types)
    assert found.pearson == pytest.approx(rest.pearson)


def test_constant_and_empty_rows_have_no_correlation():
    a, b = maps()
    a.iloc[1] = 0.1
    a.iloc[4] = 0.0
    found = metrics.colocalization(a, b, diagonal=True).types
    assert np.isnan(found["pearson"]).tolist() == [False, True, False, False, True, False]
    assert np.isnan(found["cosine"]).tolist() == [False, False, False, False, True, False]


def test_signs_and_scale():
    a, _ = maps()
    assert metrics.colocalization(a, 0.3 * a).pearson == pytest.approx(1)
    opposite = metrics.colocalization(a, -2 * a, diagonal=True)
    assert (opposite.pearson, opposite.cosine) == (pytest.approx(-1), pytest.approx(-1))


@pytest.mark.parametrize(
    ("a", "error", "message"),
    [
        (np.zeros((5, 6)), ValueError, "no square of 5 types: its shape is"),
        (maps(3)[0], ValueError, "3 types in common; a comparison needs 4"),
        ({"z": np.eye(6)}, KeyError, "no 'r' and 'types', as tl.colocalization writes them"),
        (maps()[0].rename(columns={"tumour": "tumor"}), ValueError, "other types in its rows than in its columns"),
        (pd.DataFrame(np.eye(2), ["a", "a"], ["a", "a"]), ValueError, "types more than once: 'a'"),
    ],
)
def test_maps_that_are_none(a, error, message):
    with pytest.raises(error, match=message):
        metrics.colocalization(a, maps()[1])
