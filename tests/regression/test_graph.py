"""Neighbours by array and by place, and batches of neighbourhoods: against distances and loops over nodes."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from sthist._sample.samples import Sample
from sthist.regression.data.graph import Graph, WholeSlides, as_graph, neighbours_of_rows
from sthist.regression.data.inputs import Arrays, as_inputs
from sthist.regression.data.lattice import array_neighbours
from sthist.training.rows import SampleRows


def visium(side: int = 9) -> np.ndarray:
    """Rows and columns as Visium counts them: a row has every second column."""
    row, step = np.divmod(np.arange(side * side), side)
    return np.stack([row, 2 * step + row % 2], 1)


def squares(side: int = 7) -> np.ndarray:
    return np.stack(np.divmod(np.arange(side * side), side), 1)


def published(row_column: np.ndarray) -> list[set[int]]:
    """The double loop over Visium's spots."""
    away = np.abs(row_column[:, None] - row_column)
    near = (away[..., 0] < 2) & (away[..., 1] < 3)
    return [set(np.flatnonzero(each)) - {number} for number, each in enumerate(near)]


def chebyshev(row_column: np.ndarray) -> list[set[int]]:
    near = np.abs(row_column[:, None] - row_column).max(-1) <= 1
    return [set(np.flatnonzero(each)) - {number} for number, each in enumerate(near)]


def sets_of(table: np.ndarray) -> list[set[int]]:
    for row in table:
        assert len(set(row[row >= 0])) == (row >= 0).sum()
    return [set(row[row >= 0]) for row in table]


def rows_of(*tables: AnnData) -> SampleRows:
    sizes = [len(each) for each in tables]
    names = [f"sample {number}" for number in range(len(tables))]
    samples = [Sample(name, adata) for name, adata in zip(names, tables, strict=True)]
    row = np.concatenate([np.arange(n) for n in sizes])
    return SampleRows(samples, list(tables), names, np.repeat(np.arange(len(sizes)), sizes), row)


def table_of(array: np.ndarray | None = None, places: np.ndarray | None = None) -> AnnData:
    n = len(places if array is None else array)
    obs = pd.DataFrame(index=[f"spot{number}" for number in range(n)])
    if array is not None:
        obs["array_row"], obs["array_col"] = array.T
    return AnnData(obs=obs, obsm={} if places is None else {"spatial": places})


class TestNeighbours:
    @pytest.mark.parametrize(("kind", "truth"), [(visium, published), (squares, chebyshev)])
    def test_on_an_array(self, kind, truth):
        array = np.random.default_rng(0).permutation(kind())[:40] + 1
        found = sets_of(array_neighbours(array))
        assert found == truth(array)
        assert all(one in found[other] for one, near in enumerate(found) for other in near)

    def test_within_an_array(self):
        """Six on hexagons, eight on squares."""
        inside = ((visium() > [0, 1]) & (visium() < [8, 16])).all(1)
        assert ((array_neighbours(visium())[inside] >= 0).sum(1) == 6).all()
        assert (array_neighbours(squares())[24] >= 0).sum() == 8

    @pytest.mark.parametrize("n", [1, 2])
    def test_of_few_and_of_isolated_spots(self, n):
        assert (array_neighbours(np.array([[0, 0], [5, 9]])[:n]) < 0).all()

    def test_two_spots_at_one_place_are_no_neighbours(self):
        array = np.array([[0, 0], [0, 0], [0, 1]])
        assert sets_of(array_neighbours(array)) == [{2}, {2}, {0, 1}]

    def test_by_places_as_by_array(self):
        array = visium()
        places = np.stack([array[:, 1] * 50.0, array[:, 0] * 50 * 3**0.5], 1)
        turned = places @ np.array([[0.8, -0.6], [0.6, 0.8]])
        by_array, by_place = table_of(array), table_of(places=turned)
        assert sets_of(neighbours_of_rows(rows_of(by_place))) == sets_of(neighbours_of_rows(rows_of(by_array)))

    def test_of_several_slides(self):
        """Each within its own, by rows of all, whatever their order and how many are there."""
        rows = rows_of(table_of(visium()), table_of(squares()))
        order = np.random.default_rng(0).permutation(len(rows))[:90]
        some = SampleRows(rows.samples, rows.tables, rows.names, rows.sample[order], rows.row[order])
        found = sets_of(neighbours_of_rows(some))
        for number, truth in enumerate((published(visium()), chebyshev(squares()))):
            for one in np.flatnonzero(some.sample == number):
                there = {
                    other for other in np.flatnonzero(some.sample == number) if some.row[other] in truth[some.row[one]]
                }
                assert found[one] == there

    def test_refuses_what_has_no_places(self):
        with pytest.raises(KeyError, match="sample 0 has neither obs"):
            neighbours_of_rows(rows_of(AnnData(obs=pd.DataFrame(index=["a", "b"]))))
        with pytest.raises(
            ValueError, match=r"obsm\['spatial'\] of sample 0 is NaN or infinite in 1 rows, such as 'spot1'"
        ):
            neighbours_of_rows(rows_of(table_of(places=np.array([[0, 0], [np.nan, 1]]))))
        broken = table_of(squares(2))
        broken.obs["array_row"] = [0, 0, 1, 0.5]
        with pytest.raises(ValueError, match="of sample 0 are not all whole numbers"):
            neighbours_of_rows(rows_of(broken))


def grid(side: int = 8, slides: int = 2, **options) -> Graph:
    """Slides of squares whose features are the numbers of their rows."""
    n = side * side * slides
    rows = rows_of(*[table_of(squares(side)) for _ in range(slides)])
    features = np.arange(n, dtype=np.float32)[:, None]
    return Graph(Arrays({"spot": features}), neighbours_of_rows(rows), rows.sample, **options)


def require_whole(graph: Graph, nodes: np.ndarray, batch: dict[str, np.ndarray]) -> None:
    """A batch is of its nodes, each once, and says who is whose neighbour."""
    assert len(set(nodes)) == len(nodes)
    np.testing.assert_array_equal(batch["spot"][:, 0], nodes)
    np.testing.assert_array_equal(batch["slide"], graph.slide[nodes])
    for node, near in zip(nodes, batch["around"], strict=True):
        assert set(nodes[near[near >= 0]]) == set(graph.around[node]) & set(nodes)


def steps(graph: Graph, rows: np.ndarray, hops: int) -> set[int]:
    """Rows within so many steps, by a loop."""
    found = set(rows.tolist())
    for _ in range(hops):
        found |= {other for one in found for other in graph.around[one].tolist() if other >= 0}
    return found


class TestBatches:
    @pytest.mark.parametrize("hops", [0, 1, 2])
    def test_are_neighbourhoods_of_each_row_once(self, hops):
        graph, trained = grid(hops=hops, only_centres=True), np.arange(0, 128, 2)
        centres = []
        for nodes, batch in graph.shuffled(trained, 10, 0, 0):
            require_whole(graph, nodes, batch)
            mine = nodes[batch["counted"]]
            assert set(nodes) == steps(graph, mine, hops)
            assert 8 <= len(mine) <= 10
            assert len(nodes) <= graph.rows_at_once(10)
            centres += mine.tolist()
        assert sorted(centres) == trained.tolist()

    def test_only_rows_that_train_count(self):
        graph, trained = grid(), np.arange(0, 128, 2)
        batches = list(graph.shuffled(trained, 10, 0, 0))
        for nodes, batch in batches:
            np.testing.assert_array_equal(batch["counted"], nodes % 2 == 0)
        assert sum(len(nodes) for nodes, _ in batches) > 200

    def test_order_is_a_function_of_seed_and_epoch(self):
        graph, rows = grid(), np.arange(128)

        def firsts(*key: int) -> list[list[int]]:
            return [nodes.tolist() for nodes, _ in graph.shuffled(rows, 16, *key)]

        assert firsts(0, 1) == firsts(0, 1)
        assert all(firsts(*one) != firsts(*other) for one, other in pairwise([(0, 0), (0, 1), (1, 1)]))

    def test_what_validates_counts_alone(self):
        graph, watched = grid(), np.array([3, 64, 65, 120])
        for nodes, batch in graph.watched(watched, 2):
            require_whole(graph, nodes, batch)
            np.testing.assert_array_equal(batch["counted"], np.isin(nodes, watched))
        assert list(graph.watched(watched[:0], 2)) == []

    def test_in_order_and_taken_are_what_is_asked_for(self):
        graph, rows = grid(), np.array([9, 0, 1, 70])
        batches = [(rows, graph.take(rows)), *graph.in_order(rows, 3)]
        assert [len(nodes) for nodes, _ in batches] == [4, 3, 1]
        for nodes, batch in batches:
            require_whole(graph, nodes, batch)
            assert batch["counted"].all()

    def test_whole_slides(self):
        graph = grid()
        whole = WholeSlides(graph.inputs, graph.around, graph.slide)
        (nodes, batch), *others = whole.in_order(np.array([70, 65]), 1)
        assert not others
        np.testing.assert_array_equal(nodes, np.arange(64, 128))
        np.testing.assert_array_equal(graph.whole_slides(np.array([70, 65])), nodes)
        require_whole(graph, nodes, batch)

    def test_devices_share_what_counts(self):
        graph = grid(hops=1)
        for nodes, batch in graph.shuffled(np.arange(0, 128, 2), 10, 0, 0):
            counted = []
            for device in range(3):
                part, own = graph.share(nodes, batch, device, 3)
                require_whole(graph, part, own)
                mine = part[own["counted"]]
                assert steps(graph, mine, 1) & set(nodes) <= set(part)
                counted += mine.tolist()
            assert sorted(counted) == nodes[batch["counted"]].tolist()
            assert graph.share(nodes, batch, 0, 1)[1] is batch

    def test_tiles_are_turned_in_training_alone(self):
        tiles = np.random.default_rng(0).integers(0, 255, (16, 4, 4, 3), dtype=np.uint8)
        graph = as_graph(as_inputs({"tiles": tiles, "places": squares(4)}))
        kept, turned = 0, 0
        for nodes, batch in graph.shuffled(np.arange(16), 16, 0, 0):
            for node, tile in zip(nodes, batch["tiles"], strict=True):
                ways = [np.rot90(each, turn) for each in (tiles[node], tiles[node][:, ::-1]) for turn in range(4)]
                assert any((tile == way).all() for way in ways)
                same = (tile == tiles[node]).all()
                kept, turned = kept + same, turned + (not same)
        assert turned > kept
        for nodes, batch in graph.watched(np.arange(16), 16):
            np.testing.assert_array_equal(batch["tiles"], tiles[nodes])


class TestArrays:
    def test_slides_are_told_apart(self):
        places = np.concatenate([squares(4), squares(4)]) * 100.0
        slide = np.repeat(["b", "a"], 16)
        graph = as_graph(as_inputs({"spot": np.zeros((32, 2)), "places": places, "slide": slide}), hops=1)
        assert graph.hops == 1
        assert set(graph.inputs.arrays) == {"spot"}
        expected = chebyshev(squares(4))
        assert sets_of(graph.around) == expected + [{other + 16 for other in near} for near in expected]
        assert as_graph(graph) is graph

    def test_refuses_arrays_without_places(self):
        with pytest.raises(ValueError, match="takes 'places'"):
            as_graph(as_inputs(np.zeros((4, 2))))
        with pytest.raises(ValueError, match=r"not \(4, 3\) and \(4,\)"):
            as_graph(as_inputs({"spot": np.zeros((4, 2)), "places": np.zeros((4, 3))}))
