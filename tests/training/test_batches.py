"""Batches of tiles of several slides: each tile once, of its own slide, in as much memory as one slide takes."""

import numpy as np
import pyarrow as pa
import pytest
import spatialdata as sd
from spatialdata.models import Image2DModel
from spatialdata.transformations import Identity

from sthist.tiles import TileReader, TileSpec
from sthist.training.batches import Tiles, augmented

SPEC = TileSpec.from_mpp(1.0, 32)
SIDE, CACHE = 768, 400_000


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """Slides of noise on zarr, 1.8 MB each in 36 chunks, and their pixels."""
    folder, found = tmp_path_factory.mktemp("slides"), []
    for i in range(6):
        pixels = np.random.default_rng(i).integers(0, 256, (3, SIDE, SIDE), dtype=np.uint8)
        image = Image2DModel.parse(
            pixels, dims=("c", "y", "x"), chunks=(3, 128, 128), transformations={"um": Identity(), "global": Identity()}
        )
        sd.SpatialData(images={"he": image}).write(folder / f"{i}.zarr")
        found.append((folder / f"{i}.zarr", pixels.transpose(1, 2, 0)))
    return found


def tiles_of(stores, pitch=64):
    """Tiles on a lattice of each slide."""
    readers = [TileReader(sd.read_zarr(store), "he", SPEC, cache_bytes=CACHE) for store, _ in stores]
    steps = np.arange(32, SIDE - 31, pitch)
    centres = np.stack(np.meshgrid(steps, steps), -1).reshape(-1, 2).astype(float)
    n = len(centres)
    return Tiles(
        readers, [centres] * len(readers), np.repeat(np.arange(len(readers)), n), np.tile(np.arange(n), len(readers))
    )


def expected(stores, tiles, row):
    """The pixels of a row, cut out of the slide as an array."""
    x, y = tiles.places[0][tiles.place[row]].astype(int)
    return stores[tiles.reader[row]][1][y - 16 : y + 16, x - 16 : x + 16]


def test_each_row_comes_once_with_its_own_tile(stores):
    """Whether in order or shuffled, also of rows that are some of all; batches are full but for the last."""
    tiles = tiles_of(stores[:3])
    rows = np.random.default_rng(0).permutation(len(tiles))[:300]
    for batches in (tiles.in_order(rows, 32), tiles.shuffled(rows, 32, seed=1, epoch=2)):
        found = list(batches)
        assert [len(index) for index, _ in found] == [32] * 9 + [12]
        assert sorted(np.concatenate([index for index, _ in found])) == sorted(rows)
    for index, pixels in tiles.in_order(rows, 32):
        for row, tile in zip(index, pixels, strict=True):
            np.testing.assert_array_equal(tile, expected(stores, tiles, row))
    for index, pixels in tiles.shuffled(rows, 32, seed=1, epoch=2):
        plain = np.stack([expected(stores, tiles, row) for row in index])
        np.testing.assert_array_equal(pixels, augmented(plain, index, 1, 2))


def test_order_is_of_seed_and_epoch_and_mixes_slides(stores):
    """The same twice, another in the next epoch; batches are of several slides."""
    tiles = tiles_of(stores[:3])
    rows = np.arange(len(tiles))

    def order(seed, epoch):
        return [index for index, _ in tiles.shuffled(rows, 32, seed, epoch)]

    first, again, later = order(0, 0), order(0, 0), order(0, 1)
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert any((a != b).any() for a, b in zip(first, later, strict=True))
    assert np.mean([len(np.unique(tiles.reader[index])) for index in first]) > 2


def test_memory_does_not_grow_with_the_number_of_slides(stores):
    """Decoded chunks, which arrow holds, are as many of six slides as of one that fills the cache alone."""

    def most(tiles):
        before, found = pa.total_allocated_bytes(), []
        for epoch in range(2):
            for _ in tiles.shuffled(np.arange(len(tiles)), 16, 0, epoch):
                found.append(pa.total_allocated_bytes() - before)
        return max(found)

    chunk = 3 * 128**2
    one, six = most(tiles_of(stores[:1])), most(tiles_of(stores))
    assert one > CACHE - chunk  # a slide of 36 chunks fills a cache of eight
    assert six < one + 3 * chunk
