"""Slides as sequences and windows of neighbours, and who is next to whom: against distances and loops."""

from __future__ import annotations

import numpy as np
import pytest

from sthist.regression.data.inputs import as_inputs
from sthist.regression.data.lattice import nearest_of
from sthist.regression.data.sequences import Sequences, WholeSlides, as_arrays

RNG = np.random.default_rng(0)


def hexagons(side: int) -> np.ndarray:
    row, step = np.divmod(np.arange(side * side), side)
    return np.stack([100 * (step + row % 2 / 2), 50 * 3**0.5 * row], 1)


def squares(side: int) -> np.ndarray:
    return 100.0 * np.stack(np.divmod(np.arange(side * side), side), 1)


def sequences(sizes=(30, 7, 12), **options) -> Sequences:
    n = sum(sizes)
    inputs = as_inputs({"tiles": RNG.integers(0, 256, (n, 4, 4, 3), dtype=np.uint8)})
    slide = RNG.permutation(np.repeat(np.arange(len(sizes)), sizes))
    return Sequences(inputs, slide, RNG.random((n, 2)) * 1000, np.arange(2 * n).reshape(n, 2), **options)


class TestNearest:
    @pytest.mark.parametrize(("places", "n", "inside"), [(hexagons(9), 4, 6), (squares(9), 4, 4), (squares(9), 8, 8)])
    def test_what_is_as_near_is_among_them(self, places, n, inside):
        found = nearest_of(places, n)
        away = np.linalg.norm(places[:, None] - places, axis=-1)
        np.fill_diagonal(away, np.inf)
        for row, near in enumerate(found):
            limit = 1.01 * np.sort(away[row])[n - 1]
            assert set(near[near >= 0]) == set(np.flatnonzero(away[row] <= limit))
        assert (found[4 * 9 + 4] >= 0).sum() == inside

    @pytest.mark.parametrize("places", [hexagons(7), RNG.random((40, 2))])
    def test_order_of_places_does_not_matter(self, places):
        order = RNG.permutation(len(places))
        before, after = nearest_of(places, 4), nearest_of(places[order], 4)
        for new, old in enumerate(order):
            assert {order[each] for each in after[new][after[new] >= 0]} == set(before[old][before[old] >= 0])

    @pytest.mark.parametrize("n", [0, 1, 2, 3, 4, 5])
    def test_fewer_places_than_neighbours(self, n):
        found = nearest_of(squares(3)[:n], 4)
        assert found.shape == (n, max(n - 1, 0))
        for row, near in enumerate(found):
            assert set(near) == set(range(n)) - {row}


class TestWindows:
    @pytest.mark.parametrize("max_spots", [1, 3, 8, 29, 30, 1000, None])
    def test_each_row_is_in_one_window_of_its_slide(self, max_spots):
        found = sequences(max_spots=max_spots)
        windows = found.windows(np.arange(49), turned=0.7)
        np.testing.assert_array_equal(np.sort(np.concatenate(windows)), np.arange(49))
        sizes = {slide: int((found.slide == slide).sum()) for slide in range(3)}
        for slide, size in sizes.items():
            mine = [len(each) for each in windows if found.slide[each[0]] == slide]
            assert len(mine) == (1 if max_spots is None else -(-size // max_spots))
            assert max(mine) - min(mine) <= len(mine)
            assert max(mine) <= (max_spots or size)
        assert max(map(len, windows)) <= found.longest <= (max_spots or 30)
        assert all(len(set(found.slide[each])) == 1 for each in windows)

    def test_windows_are_of_neighbours(self):
        """Of a square in four, each a quarter of it."""
        places = squares(10)
        found = Sequences(
            as_inputs({"tiles": np.zeros((100, 2, 2, 3), np.uint8)}), np.zeros(100, int), places, None, 25
        )
        windows = found.windows(np.arange(100))
        assert len(windows) == 4
        for each in windows:
            assert (np.ptp(places[each], axis=0) == 400).all()

    def test_other_windows_in_each_epoch_and_the_same_again(self):
        found = sequences(max_spots=10)
        epochs = [[set(rows) for rows, _ in found.shuffled(np.arange(49), 1, 0, epoch)] for epoch in (0, 0, 1)]
        assert epochs[0] == epochs[1]
        assert sorted(map(sorted, epochs[0])) != sorted(map(sorted, epochs[2]))

    def test_order_of_rows_does_not_matter(self):
        places, order = hexagons(9), RNG.permutation(81)
        tiles = as_inputs({"tiles": np.zeros((81, 2, 2, 3), np.uint8)})
        windows = Sequences(tiles, np.zeros(81, int), places, None, 20).windows(np.arange(81))
        moved = Sequences(tiles, np.zeros(81, int), places[order], None, 20).windows(np.arange(81))
        assert sorted(map(sorted, windows)) == sorted(sorted(order[each]) for each in moved)


class TestBatches:
    def test_rows_with_their_own_arrays(self):
        found = sequences(max_spots=10, neighbours=4)
        seen = []
        for rows, batch in found.shuffled(np.arange(40), 3, 0, 0):
            seen.extend(rows)
            assert len(np.unique(batch["slide"])) <= 3
            np.testing.assert_array_equal(batch["positions"], found.positions[rows])
            assert batch["counted"].all()
            for number in np.unique(batch["slide"]):
                assert len(set(found.slide[rows[batch["slide"] == number]])) == 1
            for row, near in enumerate(batch["around"]):
                mine = np.flatnonzero(batch["slide"] == batch["slide"][row])
                away = np.linalg.norm(found.places[rows[mine]] - found.places[rows[row]], axis=1)
                expected = mine[(away <= 1.01 * np.sort(away)[min(4, len(mine) - 1)]) & (mine != row)]
                assert set(near[near >= 0]) == set(expected)
        assert sorted(seen) == list(range(40))

    def test_whole_slides_are_watched_and_the_rows_that_validate_count(self):
        found, rows = sequences(), np.array([3, 4, 5])
        seen = list(found.watched(rows, 1))
        slides = np.unique(found.slide[rows])
        assert len(seen) == len(slides)
        for nodes, batch in seen:
            np.testing.assert_array_equal(nodes, np.flatnonzero(found.slide == found.slide[nodes[0]]))
            np.testing.assert_array_equal(batch["counted"], np.isin(nodes, rows))

    def test_windows_without_such_rows_are_not_read(self):
        found = sequences((40,), max_spots=10)
        first = found.windows(np.arange(40))[0]
        assert [set(nodes) for nodes, _ in found.watched(first[:2], 1)] == [set(first)]

    def test_whole_slides_for_some_rows(self):
        found = sequences()
        slides = WholeSlides(found.inputs, found.slide, found.places)
        nodes = np.concatenate([nodes for nodes, _ in slides.in_order(np.array([0]), 100)])
        np.testing.assert_array_equal(nodes, np.flatnonzero(found.slide == found.slide[0]))

    def test_devices_share_sequences(self):
        found = sequences((6, 5, 4, 3), neighbours=2)
        rows, batch = next(iter(found.shuffled(np.arange(18), 3, 0, 0)))
        parts = [found.share(rows, batch, device, 2) for device in range(2)]
        counted = [mine[part["counted"]] for mine, part in parts]
        assert sorted(np.concatenate(counted)) == sorted(rows)
        for mine, part in parts:
            for row, near in enumerate(part["around"]):
                own = np.flatnonzero(rows == mine[row])[0]
                assert set(mine[near[near >= 0]]) == set(rows[batch["around"][own][batch["around"][own] >= 0]])

    def test_a_device_without_a_sequence_has_one_that_does_not_count(self):
        found = sequences((6,))
        rows, batch = next(iter(found.shuffled(np.arange(6), 1, 0, 0)))
        mine, part = found.share(rows, batch, 1, 2)
        assert len(mine) == 6
        assert not part["counted"].any()

    def test_a_trial_is_as_long_as_any(self):
        found = sequences(max_spots=20, neighbours=4)
        assert found.rows_at_once(2) == 30  # of 30 spots in two windows
        batch = found.trial(np.zeros(30, int))
        np.testing.assert_array_equal(np.bincount(batch["slide"]), [15, 15])
        assert batch["tiles"].shape == (30, 4, 4, 3)
        assert batch["around"].max() < 30


class TestRefused:
    def test_spots_without_places(self):
        tiles = as_inputs(np.zeros((3, 4, 4, 3), np.uint8))
        with pytest.raises(ValueError, match=r"HisToGene sees a spot among those of its slide: it takes 'places'"):
            as_arrays(tiles, "HisToGene")

    @pytest.mark.parametrize(("name", "shape"), [("places", (3, 3)), ("positions", (3,)), ("slide", (3, 1))])
    def test_shapes(self, name, shape):
        arrays = {"tiles": np.zeros((3, 4, 4, 3), np.uint8), "places": np.zeros((3, 2)), name: np.zeros(shape)}
        with pytest.raises(ValueError, match=rf"'{name}' is \(3"):
            as_arrays(as_inputs(arrays), "HisToGene")
