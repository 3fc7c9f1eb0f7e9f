"""GenST's augmentation: operations of torchvision with the ranges of the paper, as functions of seed, epoch and row."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as transforms

from sthist.nets import augment_tiles
from sthist.nets._expression.augmentation import Draws


def tiles(n: int, side: int = 24) -> torch.Tensor:
    """Coloured tiles, smooth, noisy, grey, white and black ones among them."""
    torch.manual_seed(0)
    found = torch.rand(n, 3, side, side)
    found[::5] = found[::5, :1]
    found[1::5, :, : side // 2] = 1
    found[2::5] *= 0.3
    found[3::10] = 0
    return found


def by_torchvision(tile: torch.Tensor, draws: Draws, i: int) -> torch.Tensor:
    """The operations that the paper lists, one after the other on one tile."""
    if draws.vertical[i]:
        tile = transforms.vertical_flip(tile)
    if draws.horizontal[i]:
        tile = transforms.horizontal_flip(tile)
    changes = (
        transforms.adjust_brightness,
        transforms.adjust_contrast,
        transforms.adjust_saturation,
        transforms.adjust_hue,
    )
    for kind in draws.order[i]:
        tile = changes[kind](tile, float(draws.jitter[i, kind]))
    if draws.sharpness[i]:
        tile = transforms.adjust_sharpness(tile, 0.2)
    if draws.autocontrast[i]:
        tile = transforms.autocontrast(tile)
    return transforms.rotate(tile, 90.0 * float(draws.quarters[i]))


def test_is_what_torchvision_makes_of_one_tile_at_a_time():
    given, rows = tiles(60), np.arange(60)
    draws = Draws.of(rows, seed=3, epoch=2)
    expected = torch.stack([by_torchvision(tile, draws, i) for i, tile in enumerate(given)])
    kept = given.clone()
    torch.testing.assert_close(augment_tiles(given, rows, seed=3, epoch=2), expected, atol=1e-5, rtol=0)
    assert torch.equal(given, kept)
    # 8 bits at the end and not after each operation: rounding aside, the same.
    eight = (given * 255).round().to(torch.uint8)
    found = augment_tiles(eight, rows, seed=3, epoch=2)
    expected = torch.stack([by_torchvision(tile / 255, draws, i) for i, tile in enumerate(eight)]) * 255
    assert found.dtype == torch.uint8
    assert (found - expected).abs().max() < 0.51


def test_draws_have_the_shares_and_ranges_of_the_paper():
    n = 4000
    draws = Draws.of(range(n), seed=0, epoch=0)
    for which, share in [
        (draws.vertical, 0.5),
        (draws.horizontal, 0.5),
        (draws.sharpness, 0.2),
        (draws.autocontrast, 0.5),
        *[(draws.quarters == k, 0.25) for k in range(4)],
        *[(draws.order[:, 0] == k, 0.25) for k in range(4)],
    ]:
        assert which.mean() == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) / n))
    assert set(draws.quarters) == {0, 1, 2, 3}
    assert (np.sort(draws.order, axis=1) == np.arange(4)).all()
    low, high = np.array([0.98, 0.95, 0.9, -0.1]), np.array([1.02, 1.05, 1.1, 0.1])
    assert (draws.jitter >= low).all()
    assert (draws.jitter <= high).all()
    np.testing.assert_allclose(draws.jitter.mean(0), (low + high) / 2, atol=0.005)
    np.testing.assert_allclose(np.ptp(draws.jitter, axis=0), high - low, rtol=0.01)
    assert np.abs(np.corrcoef(draws.jitter.T) - np.eye(4)).max() < 0.1


def test_is_a_function_of_seed_epoch_and_row():
    given, rows = tiles(12), np.array([5, 2, 9, 7, 100, 3, 0, 1, 4, 6, 8, 10])
    found = augment_tiles(given, rows, seed=1, epoch=4)
    order = np.random.default_rng(0).permutation(12)[:7]
    assert torch.equal(augment_tiles(given[order], rows[order], seed=1, epoch=4), found[order])
    for other in ({"seed": 2, "epoch": 4}, {"seed": 1, "epoch": 5}):
        assert not torch.equal(augment_tiles(given, rows, **other), found)
    same = given[:1].expand(12, -1, -1, -1)
    assert len({tile.numpy().tobytes() for tile in augment_tiles(same, rows, seed=1, epoch=4)}) > 8


def test_turns_are_even_beside_those_of_the_other_draws_of_a_row():
    """Tiles may have been turned already, by numbers of the same seed, epoch and row."""
    draws = Draws.of(range(2000), seed=0, epoch=0)
    other = np.array([np.random.default_rng([0, 0, row]).integers(8) for row in range(2000)])
    counts = np.array([[(draws.quarters[other == k] == q).sum() for q in range(4)] for k in range(8)])
    assert ((counts - 62.5) ** 2 / 62.5).sum() < 60  # chi-square with some 28 degrees of freedom


@pytest.mark.parametrize("shape", [(2, 3, 8, 9), (2, 1, 8, 8), (3, 3, 8, 8), (3, 8, 8)])
def test_what_does_not_fit(shape):
    with pytest.raises(ValueError, match="should be"):
        augment_tiles(torch.zeros(shape), [0, 1], seed=0, epoch=0)


def test_no_tiles():
    assert augment_tiles(torch.zeros(0, 3, 8, 8), [], seed=0, epoch=0).shape == (0, 3, 8, 8)
