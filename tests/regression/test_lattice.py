"""Rings around places: against distances in steps, on lattices of each kind, turned, with holes, and on none."""

from __future__ import annotations

import numpy as np
import pytest

from sthist.regression.data.lattice import array_places, find_lattice, neighbours_of

SIDE = 9


def squares(pitch: float = 200.0) -> tuple[np.ndarray, np.ndarray]:
    steps = np.stack(np.meshgrid(np.arange(SIDE), np.arange(SIDE), indexing="ij"), -1).reshape(-1, 2)
    return pitch * steps.astype(float), steps


def hexagons(pitch: float = 100.0) -> tuple[np.ndarray, np.ndarray]:
    """Places as on a Visium slide, and their steps along two directions at 60 degrees."""
    row, column = np.stack(np.meshgrid(np.arange(SIDE), np.arange(SIDE), indexing="ij"), -1).reshape(-1, 2).T
    x, y = pitch * (column + row % 2 / 2), pitch * row * 3**0.5 / 2
    return np.stack([x, y], 1), np.stack([column - row // 2, row], 1)


def in_squares(step: np.ndarray) -> int:
    return int(max(abs(step)))


def in_hexagons(step: np.ndarray) -> int:
    """Cube coordinates: half the sum of their sizes."""
    i, j = step
    return int((abs(i) + abs(j) + abs(i + j)) // 2)


KINDS = {"squares": (squares, in_squares), "hexagons": (hexagons, in_hexagons)}


def placed(kind: str, turn: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Places in some order, turned, a little off the lattice, a fifth of them missing; and their steps."""
    rng = np.random.default_rng(seed)
    centres, steps = KINDS[kind][0]()
    kept = rng.permutation(len(centres))[: int(0.8 * len(centres))]
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    pitch = 200 if kind == "squares" else 100
    return (centres @ rotation.T + 5000)[kept] + rng.normal(0, 0.02 * pitch, (len(kept), 2)), steps[kept]


@pytest.mark.parametrize("rings", [1, 2, 3])
@pytest.mark.parametrize("turn", [0.0, 0.3, 1.2])
@pytest.mark.parametrize("kind", KINDS)
def test_rings_are_all_places_within_so_many_steps(kind, turn, rings):
    centres, steps = placed(kind, turn)
    found = neighbours_of(centres, rings)
    assert find_lattice(centres).kind == kind
    assert found.shape[1] == (4 if kind == "squares" else 3) * rings * (rings + 1)
    for row, mine in enumerate(found):
        away = [KINDS[kind][1](other - steps[row]) for other in steps]
        expected = {other for other, rung in enumerate(away) if 1 <= rung <= rings}
        assert set(mine[mine >= 0].tolist()) == expected
        assert len(mine[mine >= 0]) == len(expected)
        lengths = np.linalg.norm(centres[mine[mine >= 0]] - centres[row], axis=1)
        assert (np.diff(lengths) >= 0).all()


def test_a_whole_ring_of_visium_has_six():
    """Those at |row| <= 1 and |column| <= 1 of its array would be the four diagonal ones alone."""
    centres, _ = hexagons()
    assert sorted((neighbours_of(centres, 1) >= 0).sum(1))[-1] == 6


def test_pitch():
    assert find_lattice(hexagons(55.0)[0]).pitch == pytest.approx(55)
    assert find_lattice(squares(8.0)[0]).pitch == pytest.approx(8)


def test_on_no_lattice_they_are_the_nearest():
    centres = np.random.default_rng(0).uniform(0, 1000, (60, 2))
    assert find_lattice(centres).kind == "none"
    distances = np.linalg.norm(centres[:, None] - centres, axis=2)
    np.testing.assert_array_equal(neighbours_of(centres, 1), np.argsort(distances, axis=1)[:, 1:7])


@pytest.mark.parametrize("n", [0, 1, 2, 3])
def test_few_places(n):
    centres = np.array([[0.0, 0.0], [100.0, 0.0], [0.0, 100.0]])[:n]
    found = neighbours_of(centres, 1)
    assert len(found) == n
    for row, mine in enumerate(found):
        assert set(mine[mine >= 0].tolist()) == set(range(n)) - {row}


def test_places_that_are_there_twice():
    centres = np.repeat(squares()[0], 2, axis=0)
    assert find_lattice(centres).kind == "squares"
    assert neighbours_of(centres, 1).max() < len(centres)


@pytest.mark.parametrize("kind", KINDS)
def test_row_and_column(kind):
    centres, steps = placed(kind, 0.1)
    found = array_places(centres, "table 'table'")
    assert found.min(axis=0).tolist() == [0, 0]
    relative, expected = found - found[0], steps - steps[0]
    to = np.rint(np.linalg.lstsq(expected.astype(float), relative.astype(float), rcond=None)[0])
    np.testing.assert_array_equal(relative, expected @ to)  # the same steps, along other directions
    assert abs(round(np.linalg.det(to))) == 1
    with pytest.raises(ValueError, match="table 'table' lie on no lattice"):
        array_places(np.random.default_rng(0).uniform(0, 1000, (60, 2)), "table 'table'")
