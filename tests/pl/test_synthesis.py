"""Figures of synthetic tiles: which tiles are drawn where, of real and synthetic ones."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PolyCollection

import sthist
from sthist.benchmark import SynthesisScores
from sthist.models import C2LConfig
from sthist.systems.synthesis.sampler import Sampler
from sthist.tiles import TileReader, TileSpec

PX = 16
QUIET = {"device": "cpu", "progress": False}
QUICK = {"training": {"epochs": 1, "steps_per_epoch": 1, "batch_size": 4}, **QUIET}


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def slide():
    return sthist.datasets.toy("visium", size_um=900)


@pytest.fixture(scope="module")
def local(slide):
    central = sthist.tl.train_central(slide, C2LConfig(px=PX, dim=8, multipliers=(1, 2)), **QUICK)
    return sthist.tl.adapt_local(slide, central, fraction=0.5, **QUICK)


@pytest.fixture
def synthesize(slide, local, monkeypatch):
    """Makes tiles that show their number in red, and guidance in green."""

    def tiles(self, conditions, numbers):
        made = np.zeros((len(numbers), PX, PX, 3), np.uint8)
        made[..., 0] = numbers[:, None, None]
        made[..., 1] = 10 * self.guidance
        return made

    monkeypatch.setattr(Sampler, "__call__", tiles)
    return lambda **options: sthist.tl.synthesize(slide, local, **{"steps": 1, "seed": 0, **QUIET, **options})


def real_tile(slide, name):
    table = slide["table"]
    centre = table.obsm["spatial"][table.obs_names.get_loc(name)]
    return TileReader(slide, "he", TileSpec(112, PX), fill=255).read(centre[None])[0]


def shown(ax):
    """The tiles of a picture, (rows, columns, px, px, 3), found by the white between them."""
    picture = np.asarray(ax.get_images()[0].get_array())
    step = PX + 1
    height, width = picture.shape[:2]
    lefts, x = [], 0
    gaps = (picture == 255).all((0, 2))
    while x < width:
        if gaps[x]:
            x += 1
        else:
            lefts.append(x)
            x += PX
    return np.stack([[picture[y : y + PX, x : x + PX] for x in lefts] for y in range(0, height, step)])


def test_real_and_synthetic_tiles_of_spots_stand_side_by_side(slide, synthesize):
    made = synthesize(n=2)
    table = made["tiles_table"].obs
    names = [table["source"].iloc[8], table["source"].iloc[2]]
    ax = sthist.pl.synthetic_tiles(slide, made, names, n=5)
    tiles = shown(ax)
    assert tiles.shape[:2] == (2, 3)
    for row, name in zip(tiles, names, strict=True):
        assert np.array_equal(row[0], real_tile(slide, name))
        assert [int(tile[0, 0, 0]) for tile in row[1:]] == table.index[table["source"] == name].astype(int).tolist()
    assert [each.get_text() for each in ax.get_yticklabels()] == names
    assert len(sthist.pl.synthetic_tiles(slide, made, 4, n=1, normalizer=lambda tiles: 255 - tiles).get_yticks()) == 4
    inverted = shown(plt.gca())[0, 0]
    assert np.array_equal(255 - inverted, real_tile(slide, table["source"].iloc[0]))
    with pytest.raises(KeyError, match="No tile was made of a spot 'nowhere'"):
        sthist.pl.synthetic_tiles(slide, made, ["nowhere"])


def test_guidance_goes_from_left_to_right(slide, synthesize):
    made = [synthesize(guidance=each) for each in (3, 0, 1)]
    ax = sthist.pl.guidance_sweep(slide, made, 2)
    tiles = shown(ax)
    assert [int(tile[0, 0, 1]) for tile in tiles[0, 1:]] == [0, 10, 30]
    assert len({int(tile[0, 0, 0]) for tile in tiles[1, 1:]}) == 1
    assert [each.get_text() for each in ax.get_xticklabels()] == ["real", "guidance 0", "guidance 1", "guidance 3"]
    with pytest.raises(ValueError, match="differ in more than that: seed"):
        sthist.pl.guidance_sweep(slide, [made[0], synthesize(guidance=0, seed=5)])


def test_clusters_of_expression_have_the_tiles_of_their_spots(slide, synthesize, tmp_path):
    made = synthesize()
    components, genes, tiles = sthist.pl.synthetic_clusters(
        slide, made, 3, n=2, n_genes=6, seed=0, save=tmp_path / "clusters.png"
    )
    values = made["tiles_table"].X
    standard = (values - values.mean(0)) / np.where(values.std(0) > 0, values.std(0), 1)
    colours = components.collections[0].get_facecolors()[:, :3]
    groups, cluster = np.unique(colours, axis=0, return_inverse=True)
    assert len(groups) == 3
    names = [each.get_text() for each in genes.get_xticklabels()]
    means = np.asarray(genes.get_images()[0].get_array())
    columns = made["tiles_table"].var_names.get_indexer(names)
    expected = np.stack([standard[cluster.ravel() == i].mean(0)[columns] for i in range(3)])
    found = np.stack([means[np.abs(means - row).sum(1).argmin()] for row in expected])
    assert np.allclose(found, expected, atol=1e-5)
    grid = shown(tiles)
    assert grid.shape[:2] == (3, 4)
    source = made["tiles_table"].obs["source"]
    for row in grid:
        for real, synthetic in zip(row[:2], row[2:], strict=True):
            assert np.array_equal(real, real_tile(slide, source.iloc[int(synthetic[0, 0, 0])]))
    assert (tmp_path / "clusters.png").stat().st_size > 10_000
    with pytest.raises(ValueError, match="no 10000 clusters"):
        sthist.pl.synthetic_clusters(slide, made, 10_000)


@pytest.fixture
def result():
    """A result of the benchmark in which synthetic tiles lie three standard deviations beside the real ones."""
    rng = np.random.default_rng(0)
    kind = np.repeat(["real", "synthetic"], [60, 40])
    tiles = pd.DataFrame({"kind": kind, "haematoxylin": rng.normal(size=100), "nuclei_per_mm2": 5.0})
    rows = rng.normal(size=(100, 4)) * [4, 1, 0.1, 0.1] + 3.0 * (kind == "synthetic")[:, None]
    return SynthesisScores(pd.DataFrame(), tiles, pd.DataFrame(), rows, "morphology")


def test_embeddings_lie_on_the_plane_of_the_real_tiles(result):
    ax = sthist.pl.synthetic_embedding(result)
    points = ax.collections[0]
    assert len(points.get_offsets()) == 100
    assert len(np.unique(points.get_facecolors(), axis=0)) == 2
    assert [each.get_text() for each in ax.get_legend().get_texts()] == ["real", "synthetic"]
    x, y = np.asarray(points.get_offsets()).T
    assert 2 < x.std() / y.std() < 6  # 4 among the real ones
    with pytest.raises(ValueError, match="'pca', 'umap' or 'tsne'"):
        sthist.pl.synthetic_embedding(result, "mds")
    with pytest.raises(TypeError, match=r"A result of benchmark\.synthesis"):
        sthist.pl.synthetic_embedding(pd.DataFrame())


def test_t_sne_of_few(result):
    assert sthist.pl.synthetic_embedding(result, "tsne", seed=0).get_xlabel() == "t-SNE 1"


def test_violins_are_of_each_kind(result):
    axes = sthist.pl.synthetic_composition(result)
    assert [ax.get_title() for ax in axes] == ["haematoxylin", "nuclei_per_mm2"]
    violins = [each for each in axes[0].collections if isinstance(each, PolyCollection)]
    values = result.tiles.loc[result.tiles["kind"] == "real", "haematoxylin"]
    assert violins[0].get_paths()[0].vertices[:, 1].max() == pytest.approx(values.max())
    table = sthist.datasets.toy("visium", size_um=900)["table"]
    share = np.random.default_rng(0).random(table.n_obs)
    table.obsm["composition"] = pd.DataFrame({"T cell": share, "duct": 1 - share}, index=table.obs_names)
    axes = sthist.pl.synthetic_composition({"real": table, "synthetic": table[:20]}, ["duct"])
    assert [each.get_text() for each in axes[0].get_xticklabels()] == ["real", "synthetic"]
    with pytest.raises(KeyError, match="no number 'B cell'"):
        sthist.pl.synthetic_composition({"real": table}, ["B cell"])
    with pytest.raises(KeyError, match="no frame obsm\\['nothing'\\]"):
        sthist.pl.synthetic_composition({"real": table}, key="nothing")
