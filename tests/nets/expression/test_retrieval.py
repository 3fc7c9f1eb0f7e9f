"""Retrieval: against loops over queries and keys, and its properties."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_matrix, random_array

from sthist.nets import Retrieval
from sthist.nets._expression import retrieval

N, E, G = 40, 6, 9


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def bank(rng):
    return rng.normal(size=(N, E)).astype(np.float32), random_array((N, G), density=0.4, random_state=1).toarray()


def by_loops(keys, expression, queries, k, weights, metric, eps=1e-6):
    """The definition, in double precision."""
    rows = []
    for query in queries.astype(float):
        exact = keys.astype(float)
        unit, own = exact / np.linalg.norm(exact, axis=1, keepdims=True), query / np.linalg.norm(query)
        away = -(unit @ own) if metric == "cosine" else np.linalg.norm(exact - query, axis=1)
        near = np.argsort(away)[: 1 if weights == "simple" else k]
        squares = ((exact[near] - query) ** 2).sum(1)
        if weights == "inverse-square":
            squares = ((unit[near] - own) ** 2).sum(1) if metric == "cosine" else squares
            share = 1 / (squares + eps)
        else:
            share = np.exp(-(squares - squares.min() + 1)) if weights == "weighted" else np.ones(len(near))
        rows.append(np.average(expression[near], axis=0, weights=share))
    return np.array(rows)


@pytest.mark.parametrize("metric", ["cosine", "l2"])
@pytest.mark.parametrize("weights", ["simple", "average", "weighted", "inverse-square"])
@pytest.mark.parametrize("blocks", [(2**24, 16_384), (200, 7)])
def test_against_loops(bank, rng, metric, weights, blocks, monkeypatch):
    monkeypatch.setattr(retrieval, "BLOCK", blocks[0])
    monkeypatch.setattr(retrieval, "KEY_BLOCK", blocks[1])
    keys, expression = bank
    queries = rng.normal(size=(23, E)).astype(np.float32)
    found = Retrieval(keys, csr_matrix(expression), metric=metric).predict(queries, 12, weights=weights)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, by_loops(keys, expression, queries, 12, weights, metric), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("metric", ["cosine", "l2"])
class TestProperties:
    def test_a_key_finds_itself(self, bank, metric):
        keys, expression = bank
        index = Retrieval(keys, expression, metric=metric)
        np.testing.assert_allclose(index.predict(keys, weights="simple"), expression, rtol=1e-6)
        np.testing.assert_array_equal(index.search(keys, 1)[:, 0], np.arange(N))

    @pytest.mark.parametrize("k", [N, 10 * N])
    def test_all_alike_is_the_mean(self, bank, rng, metric, k):
        keys, expression = bank
        found = Retrieval(keys, expression, metric=metric).predict(rng.normal(size=(3, E)), k)
        np.testing.assert_allclose(found, np.tile(expression.mean(0), (3, 1)), rtol=1e-5)

    @pytest.mark.parametrize("weights", ["simple", "average", "weighted", "inverse-square"])
    def test_stays_in_the_range_of_the_keys(self, bank, rng, metric, weights):
        keys, expression = bank
        queries = np.concatenate([100 * rng.normal(size=(20, E)), keys, np.zeros((1, E))])
        found = Retrieval(keys, expression, metric=metric).predict(queries, 5, weights=weights)
        assert np.isfinite(found).all()
        assert (found >= expression.min(0) - 1e-6).all()
        assert (found <= expression.max(0) + 1e-6).all()

    def test_nearest_first_and_each_once(self, bank, rng, metric):
        keys, expression = bank
        queries = rng.normal(size=(8, E))
        found = Retrieval(keys, expression, metric=metric).search(queries, N)
        np.testing.assert_array_equal(np.sort(found, axis=1), np.tile(np.arange(N), (8, 1)))
        away = np.linalg.norm(keys[found] - queries[:, None], axis=2)
        if metric == "cosine":
            away = -np.einsum("qke,qe->qk", keys[found], queries) / np.linalg.norm(keys[found], axis=2)
        assert (np.diff(away, axis=1) >= -1e-5).all()


def test_inverse_square_of_a_key_is_finite_and_all_its_own(bank):
    keys, expression = bank
    found = Retrieval(keys, expression).predict(keys, 5, weights="inverse-square", eps=1e-9)
    np.testing.assert_allclose(found, expression, atol=1e-4)


def test_weights_do_not_underflow(bank):
    """exp(-d²) of far queries is 0 in single precision."""
    keys, expression = bank
    queries = 50 * keys[:3] / np.linalg.norm(keys[:3], axis=1, keepdims=True)
    found = Retrieval(keys, expression).predict(queries, 5, weights="weighted")
    np.testing.assert_allclose(
        found, by_loops(keys, expression, queries, 5, "weighted", "cosine"), rtol=1e-3, atol=1e-4
    )


def test_no_queries(bank):
    keys, expression = bank
    index = Retrieval(keys, expression)
    assert index.predict(np.empty((0, E))).shape == (0, G)
    assert index.search(np.empty((0, E)), 3).shape == (0, 3)


class TestGenesThatWereNotMeasured:
    def test_are_predicted_by_the_keys_that_have_them(self, bank, rng):
        keys, expression = bank
        group = np.arange(N) % 3
        measured = np.ones((3, G), bool)
        measured[0, :4], measured[1, 4], measured[:, 8] = False, False, False
        there = measured[group]
        queries = rng.normal(size=(10, E))
        index = Retrieval(keys, expression * there, measured=measured, group=group)
        found = index.predict(queries, 7, weights="average")
        for row, near in enumerate(index.search(queries, 7)):
            for gene in range(G):
                having = near[there[near, gene]]
                having = having if len(having) else np.flatnonzero(there[:, gene])
                expected = expression[having, gene].mean() if len(having) else 0
                assert found[row, gene] == pytest.approx(expected, abs=1e-5)

    def test_all_measured_changes_nothing(self, bank, rng):
        keys, expression = bank
        queries = rng.normal(size=(4, E))
        grouped = Retrieval(keys, expression, measured=np.ones((1, G), bool), group=np.zeros(N))
        np.testing.assert_allclose(
            grouped.predict(queries, 6), Retrieval(keys, expression).predict(queries, 6), rtol=1e-5
        )


class TestRefused:
    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"metric": "manhattan"}, "metric is one of .*'manhattan'"),
            ({"keys": np.zeros((3, E))}, f"3 keys and {N} rows"),
            ({"keys": np.zeros(N)}, r"keys are \(n, e\)"),
            ({"keys": np.full((N, E), np.nan)}, f"{N} keys have NaN or infinite values, the first is row 0"),
            ({"expression": np.full((N, G), np.inf)}, "expression of the keys has NaN"),
            ({"group": np.zeros(N)}, "measured= and group= go together"),
            ({"group": np.zeros(N), "measured": np.ones((1, 2), bool)}, r"measured has the shape \(1, 2\)"),
            ({"group": np.full(N, 4), "measured": np.ones((1, G), bool)}, "group goes from 4 to 4; there are 1"),
        ],
    )
    def test_banks(self, bank, change, words):
        with pytest.raises(ValueError, match=words):
            Retrieval(**{"keys": bank[0], "expression": bank[1], **change})

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"k": 0}, "k=0; at least one"),
            ({"weights": "best"}, "weights is one of .*'best'"),
            ({"eps": 0}, "eps is 0"),
            ({"queries": np.zeros((2, E + 1))}, f"Queries have {E + 1} dimensions and keys {E}"),
            ({"queries": np.full((2, E), np.nan)}, "2 queries have NaN"),
        ],
    )
    def test_queries(self, bank, change, words):
        with pytest.raises(ValueError, match=words):
            Retrieval(*bank).predict(**{"queries": np.zeros((2, E)), **change})
