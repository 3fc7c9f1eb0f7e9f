"""The loader: all tiles once, ahead of time, in an order that depends on seed and epoch alone."""

from __future__ import annotations

import numpy as np
import pytest

from sthist.tiles import TileLoader, TileReader, TileSpec


@pytest.fixture
def centres():
    return np.random.default_rng(0).uniform(60, 340, (70, 2))


@pytest.fixture
def readers(toy):
    spec = TileSpec.from_mpp(0.5, 24)
    return [TileReader(toy, key, spec) for key in ("morphology_focus", "he")]


@pytest.mark.parametrize("shuffle", [False, True])
def test_every_tile_once_and_paired(readers, centres, shuffle):
    """Both readers' tiles of the same centres."""
    loader = TileLoader(readers, centres, batch_size=16, shuffle=shuffle, block=8, mix=2)
    seen = []
    for index, stain, he in loader:
        np.testing.assert_array_equal(stain, readers[0].read(centres[index]))
        np.testing.assert_array_equal(he, readers[1].read(centres[index]))
        seen.extend(index.tolist())
    assert sorted(seen) == list(range(70))
    assert len(loader) == 5


def test_order_is_a_function_of_seed_and_epoch(readers, centres):
    """Another epoch, another order; the same again, the same."""

    def order(seed, epoch):
        return TileLoader(readers[0], centres, shuffle=True, seed=seed, epoch=epoch, block=8, mix=2).indices().tolist()

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(*key)) for key in [(0, 0), (0, 1), (1, 0), (1, 1)]}) == 4


def test_stopping_early_ends_the_reading(readers, centres):
    """No thread is left behind."""
    for index, _ in TileLoader(readers[0], centres, batch_size=4):
        assert len(index) == 4
        break


def test_no_centres(readers):
    """Nothing comes, nothing breaks."""
    assert list(TileLoader(readers[0], np.empty((0, 2)), shuffle=True)) == []


def test_an_error_while_reading_ahead_reaches_the_user(readers, centres, monkeypatch):
    """And is not swallowed in a thread."""

    def broken(*_args, **_kwargs):
        msg = "disk gone"
        raise OSError(msg)

    monkeypatch.setattr(readers[0], "read", broken)
    with pytest.raises(OSError, match="disk gone"):
        next(iter(TileLoader(readers[0], centres)))
