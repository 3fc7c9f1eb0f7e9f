"""The toy problem: expression says how dark a tile is and how many nuclei it has, and tiles made of it show both."""

from __future__ import annotations

import numpy as np
import pytest

from sthist.models import C2L, C2LConfig

PX, N = 8, 200
PALE, DEEP, NUCLEUS = (np.array(each, float) for each in ((240, 205, 225), (205, 110, 165), (80, 45, 130)))
OPTIONS = {"device": "cpu", "progress": False}


def toy(n, seed):
    """Tiles and the expression of three genes, from 0 to 3: eosin, density of nuclei, and one that says nothing."""
    rng = np.random.default_rng(seed)
    expression = rng.uniform(0, 3, (n, 3)).astype(np.float32)
    tiles = np.empty((n, PX, PX, 3))
    for tile, (eosin, density, _) in zip(tiles, expression / 3, strict=True):
        tile[:] = PALE + eosin * (DEEP - PALE)
        tile.reshape(-1, 3)[rng.choice(PX**2, round(0.4 * PX**2 * density), replace=False)] = NUCLEUS
    return (tiles + rng.normal(0, 4, tiles.shape)).clip(0, 255).astype(np.uint8), expression


def shown(tiles):
    """How dark the background of each tile is, and what part of it is nuclei; the second is of no colour."""
    green, nuclei = tiles[..., 1].astype(float), tiles[..., 0] < 150
    background = np.array(
        [np.median(each[~dark]) if (~dark).any() else 0 for each, dark in zip(green, nuclei, strict=True)]
    )
    return np.stack([255 - background, nuclei.mean((1, 2))], 1)


def follows(tiles, expression):
    """Of each of the two: correlation with its gene, and how far it moves for one of the gene."""
    pairs = zip(shown(tiles).T, expression.T[:2], strict=True)
    return [(np.corrcoef(seen, gene)[0, 1], np.polyfit(gene, seen, 1)[0]) for seen, gene in pairs]


@pytest.mark.slow
def test_tiles_follow_the_expression_and_more_so_with_guidance():
    tiles, expression = toy(N, 0)
    assert min(r for r, _ in follows(tiles, expression)) > 0.95
    fast = {"batch_size": 32, "lr": 3e-3, "ema": 0.99, "seed": 0}
    central = C2L(C2LConfig(px=PX, dim=8, multipliers=(1, 2)))
    central.fit(tiles, training=fast | {"epochs": 6, "steps_per_epoch": 100}, **OPTIONS)
    local = central.adapt(
        tiles,
        expression,
        ["EOSIN", "NUCLEI", "NOTHING"],
        training=fast | {"epochs": 4, "steps_per_epoch": 100},
        **OPTIONS,
    )
    _, wanted = toy(48, 1)
    unaware, learned, overstated = (
        follows(local.generate(wanted, guidance=scale, steps=25, seed=1, device="cpu"), wanted) for scale in (0, 1, 3)
    )
    for (r_none, _), (r, slope), (r_more, slope_more) in zip(unaware, learned, overstated, strict=True):
        assert abs(r_none) < 0.45  # of 48 tiles, three times what chance has
        assert r > 0.5
        assert r_more > 0.5
        assert slope_more > 1.2 * slope > 0
