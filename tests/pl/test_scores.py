"""Plots of scores, embeddings, niches and classes."""

from __future__ import annotations

from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import shapely

import sthist


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


@pytest.fixture
def tiled(toy):
    """Overlapping tiles with scores of three classes."""
    sthist.pp.tissue(toy)
    sthist.pp.tiles(toy, size_um=40, px=40, overlap=0.5)
    table = toy["tiles_table"]
    x, y = table.obsm["spatial"].T
    scores = pd.DataFrame({"left": 400 - x, "low": y, "T_NK": np.hypot(x, y)}, index=table.obs_names)
    table.obsm["kind_score"] = scores
    table.obs["kind"] = pd.Categorical(np.where(x < 200, "left", "low"))
    table.obs["x"] = x
    table.obsm["X_pca"] = np.c_[x, y, x]
    table.uns.setdefault("sthist", {})["kind"] = {"classes": {"left": "left", "low": "low", "T_NK": "T/NK"}}
    return toy


def raster(ax):
    return ax.get_images()[-1].get_array()


class TestScoreMap:
    def test_overlapping_tiles_are_means(self, tiled):
        """At random places, by a loop over tiles."""
        axes = sthist.pl.score_map(tiled, "kind", within=(100, 120, 300, 260))
        assert [ax.get_title() for ax in axes] == ["left", "low", "T/NK"]
        found = np.ma.filled(raster(axes[1]), np.nan)
        boxes = shapely.bounds(tiled["tiles"].geometry.to_numpy())
        values = tiled["tiles_table"].obsm["kind_score"]["low"].to_numpy()
        rng = np.random.default_rng(0)
        for u, v in rng.uniform(0, 1, (50, 2)):
            x, y = 100 + 200 * u, 120 + 140 * v
            if np.abs(boxes - [x, y, x, y]).min() < 2:
                continue
            inside = (boxes[:, 0] < x) & (x < boxes[:, 2]) & (boxes[:, 1] < y) & (y < boxes[:, 3])
            expected = values[inside].mean() if inside.any() else np.nan
            np.testing.assert_allclose(found[int(v * found.shape[0]), int(u * found.shape[1])], expected, rtol=1e-6)

    def test_other_shapes_are_painted(self, toy):
        toy["table"].obs["size"] = np.arange(toy["table"].n_obs, dtype=float) + 5
        (ax,) = sthist.pl.score_map(toy, "size", within=(150, 150, 250, 250))
        found = np.ma.filled(raster(ax), np.nan)
        centres = toy["table"].obsm["spatial"]
        inside = np.flatnonzero(((centres > 160) & (centres < 240)).all(axis=1))
        u, v = ((centres[inside] - 150) / 100).T
        seen = found[(v * found.shape[0]).astype(int), (u * found.shape[1]).astype(int)]
        assert (np.abs(seen - toy["table"].obs["size"].to_numpy()[inside]) < 1e-3).mean() > 0.9

    def test_heat_map(self, toy, tmp_path):
        """Each pixel is the heat map's own under its centre; what has none is clear."""

        class Mean(sthist.encoders.Encoder):
            name = "mean"

            def embed(self, tiles):
                return tiles.mean((1, 2), dtype=np.float32)

        sthist.tl.heatmap(toy, lambda rows: rows[:, :2], encoder=Mean(), classes=["a b", "c"], progress=False)
        axes = sthist.pl.score_map(toy, "heatmap", classes=["a b"], vmin=0, vmax="p50", save=tmp_path / "x.png")
        assert axes[0].get_title() == "a b"
        image = axes[0].get_images()[-1]
        values = np.asarray(toy["heatmap"].data)[0]
        assert image.get_clim()[0] == 0
        assert 0 < image.get_clim()[1] <= np.nanmax(values)
        np.testing.assert_allclose(np.ma.filled(image.get_array(), np.nan), values)
        assert (tmp_path / "x.png").stat().st_size > 1000
        assert len(axes[0].figure.axes) == 2  # with a colour bar

    def test_what_is_refused(self, tiled):
        with pytest.raises(KeyError, match=r"neither a heat map 'kin' nor scores.*Did you mean 'kind'"):
            sthist.pl.score_map(tiled, "kin")
        with pytest.raises(KeyError, match=r"has no class 'lef'.*Did you mean 'left'"):
            sthist.pl.score_map(tiled, "kind", classes=["lef"])
        with pytest.raises(ValueError, match="No score of 'x' lies in"):
            sthist.pl.score_map(tiled, "x", within=(1000, 1000, 1100, 1100))
        with pytest.raises(ValueError, match="need as many axes"):
            sthist.pl.score_map(tiled, "kind", axes=plt.subplots()[1])

    @pytest.mark.parametrize("draw", ["score_map", "top_tiles"])
    def test_what_holds_no_scores_is_said(self, tiled, draw):
        table = tiled["tiles_table"]
        table.obs["flag"] = table.obs["x"] > 200
        for key, why in (
            ("X_pca", "array of shape .* columns have no names"),
            ("flag", "holds booleans .* pl.cells"),
            ("region", "holds categories"),
        ):
            with pytest.raises(ValueError, match=why):
                getattr(sthist.pl, draw)(tiled, key, table="tiles_table")


class TestTopTiles:
    def test_they_are_the_best(self, tiled):
        table = tiled["tiles_table"]
        table.obsm["kind_score"].iloc[:5, 1] = np.nan
        axes = sthist.pl.top_tiles(tiled, "kind", n=4)
        assert len(axes) == 12
        best = table.obsm["kind_score"]["low"].nlargest(4)
        assert [ax.get_title() for ax in axes[4:8]] == [f"{score:.3g}" for score in best]
        spec = sthist.tiles.TileSpec(40, 224)
        reader = sthist.tiles.TileReader(tiled, "he", spec, fill=255, allow_upsampling=True)
        place = table.obs_names.get_indexer(best.index[:1])
        np.testing.assert_array_equal(raster(axes[4]), reader.read(table.obsm["spatial"][place])[0])

    def test_fewer_than_asked(self, tiled):
        tiled["tiles_table"].obs["x"] = np.where(np.arange(tiled["tiles_table"].n_obs) < 2, 1.0, np.nan)
        axes = sthist.pl.top_tiles(tiled, "x", n=3)
        assert [bool(ax.get_images()) for ax in axes] == [True, True, False]
        with pytest.raises(ValueError, match="n is 0"):
            sthist.pl.top_tiles(tiled, "x", n=0)


class TestEmbedding:
    def test_points_and_thumbnails(self, tiled):
        ax = sthist.pl.embedding(tiled, "pca", color="kind", thumbnails=3)
        assert len(ax.get_images()) == 9
        assert len(ax.collections[0].get_offsets()) == tiled["tiles_table"].n_obs
        assert [text.get_text() for text in ax.get_legend().get_texts()] == ["left", "low"]

    def test_of_a_table_alone(self, tiled):
        table = tiled["tiles_table"]
        _, ax = plt.subplots()
        assert sthist.pl.embedding(table, "X_pca", color="x", ax=ax) is ax
        with pytest.raises(TypeError, match="Thumbnails need the image"):
            sthist.pl.embedding(table, "pca", thumbnails=3)
        with pytest.raises(KeyError, match=r"no obsm\['umap'\]"):
            sthist.pl.embedding(table)
        with pytest.raises(KeyError, match=r"No table has an embedding 'umap'"):
            sthist.pl.embedding(tiled)
        with pytest.raises(KeyError, match="no column 'kid'"):
            sthist.pl.embedding(table, "pca", color="kid")


class TestCells:
    def test_colours_of_scanpy_at_their_places(self, toy):
        table = toy["table"]
        table.obs["cell_type"] = table.obs["cell_type"].astype("category")
        names = list(table.obs["cell_type"].cat.categories)
        colours = plt.get_cmap("Set1")(np.arange(len(names)))[:, :3]
        table.uns["cell_type_colors"] = [plt.matplotlib.colors.to_hex(colour) for colour in colours]
        table.obsm["X_umap"] = table.obsm["spatial"] * 2
        axes = sthist.pl.cells(toy, "cell_type", within=(150, 150, 250, 250), alpha=1.0)
        assert len(axes) == 2
        shown = raster(axes[0])
        centres = table.obsm["spatial"]
        inside = np.flatnonzero(((centres > 160) & (centres < 240)).all(axis=1))
        u, v = ((centres[inside] - 150) / 100).T
        seen = shown[(v * shown.shape[0]).astype(int), (u * shown.shape[1]).astype(int), :3]
        expected = colours[table.obs["cell_type"].cat.codes.to_numpy()[inside]]
        assert (np.abs(seen - expected).max(axis=1) < 0.01).mean() > 0.9
        polygons = toy["cell_boundaries"].geometry
        n = polygons.intersects(shapely.box(150, 150, 250, 250)).sum()
        assert len(axes[1].collections[0].get_offsets()) == n

    def test_overlapping_tiles_vote(self, tiled):
        """The mean of the first and the third class is not the second."""
        table = tiled["tiles_table"]
        table.obs["abc"] = pd.Categorical(np.where(np.arange(table.n_obs) % 2, "a", "c"), categories=["a", "b", "c"])
        (ax,) = sthist.pl.cells(tiled, "abc", table="tiles_table", basis=None, alpha=1.0)
        shown = raster(ax)
        b = plt.get_cmap("tab10")(1)[:3]
        assert not (np.abs(shown[..., :3] - b).max(axis=-1) < 0.01)[shown[..., 3] > 0].any()
        (ax,) = sthist.pl.cells(tiled, "x", table="tiles_table", basis=None)
        assert raster(ax).ndim == 2

    def test_what_is_refused(self, toy):
        with pytest.raises(KeyError, match=r"a column or gene 'cell_typ'.*Did you mean 'cell_type'"):
            sthist.pl.cells(toy, "cell_typ")
        with pytest.raises(KeyError, match=r"no obsm\['umap'\]"):
            sthist.pl.cells(toy, "cell_type", basis="umap")


class TestNicheComposition:
    @pytest.fixture
    def table(self, toy):
        table = toy["table"]
        rng = np.random.default_rng(0)
        table.obs["niche"] = pd.Categorical(rng.choice(list("1234"), table.n_obs))
        shares = rng.dirichlet(np.ones(3), table.n_obs)
        table.obsm["niche_composition"] = pd.DataFrame(shares, index=table.obs_names, columns=["a", "b", "c"])
        table.obs["core"] = pd.Categorical(rng.choice(["A1", "A2"], table.n_obs))
        return table

    def test_bars_are_means(self, table):
        ax = sthist.pl.niche_composition(table)
        names = [label.get_text() for label in ax.get_xticklabels()]
        means = table.obsm["niche_composition"].groupby(table.obs["niche"], observed=True).mean().loc[names]
        heights = np.array([[bar.get_height() for bar in container] for container in ax.containers])
        np.testing.assert_allclose(heights, means.T)
        np.testing.assert_allclose(heights.sum(0), 1)

    def test_niches_of_groups(self, table):
        ax = sthist.pl.niche_composition(table, groupby="core")
        heights = np.array([[bar.get_height() for bar in container] for container in ax.containers])
        expected = pd.crosstab(table.obs["core"], table.obs["niche"], normalize="index")
        np.testing.assert_allclose(heights, expected.T)

    def test_what_is_refused(self, table):
        with pytest.raises(KeyError, match="no column 'niches'"):
            sthist.pl.niche_composition(table, "niches")
        with pytest.raises(KeyError, match=r"no obsm\['core_composition'\]"):
            sthist.pl.niche_composition(table, "core")


class TestClassification:
    TRUTH = np.array(["a", "b", "a", "c", "b", None], dtype=object)
    SCORES = pd.DataFrame(
        {"a": [0.9, 0.4, 0.3, 0.2, 0.1, 0], "b": [0.1, 0.6, 0.5, 0.1, 0.2, 0], "c": [0, 0, 0, 0.7, 0.7, 0]}
    )

    def test_areas(self):
        """By pairs: of a, 5 of 6 are in order; of b, 5 of 6; of c, one ties."""
        ax = sthist.pl.roc(self.TRUTH, self.SCORES)
        texts = [text.get_text() for text in ax.get_legend().get_texts()]
        assert texts == ["a 0.83 (n=2)", "b 0.83 (n=2)", "c 0.88 (n=1)"]
        assert len(ax.get_lines()) == 4

    def test_report(self):
        report = SimpleNamespace(
            classes=["a", "b"], auc=[0.9, 0.6], auc_low=[0.8, 0.5], auc_high=[0.95, 0.7], confusion=[[3, 1], [0, 2]]
        )
        ax = sthist.pl.roc(report)
        assert [label.get_text() for label in ax.get_yticklabels()] == ["a 0.90", "b 0.60"]
        ax = sthist.pl.confusion(report, classes=["b", "a"])
        assert [text.get_text() for text in ax.texts] == ["2", "0", "1", "3"]

    def test_confusion(self):
        ax = sthist.pl.confusion(self.TRUTH, ["a", "b", "b", "c", "a", "a"], classes=["c", "b", "a"])
        assert [text.get_text() for text in ax.texts] == ["1", "0", "0", "0", "1", "1", "0", "1", "1"]
        np.testing.assert_allclose(raster(ax), [[1, 0, 0], [0, 0.5, 0.5], [0, 0.5, 0.5]])

    def test_what_is_refused(self):
        with pytest.raises(TypeError, match="is no report"):
            sthist.pl.roc(self.TRUTH)
        with pytest.raises(TypeError, match="is no report"):
            sthist.pl.confusion(self.TRUTH)
        with pytest.raises(KeyError, match="no scores of class 'd'"):
            sthist.pl.roc(self.TRUTH, self.SCORES, classes=["d"])
        with pytest.raises(ValueError, match="need a name for each column"):
            sthist.pl.roc(self.TRUTH, self.SCORES.to_numpy())
        with pytest.raises(ValueError, match="6 true classes and 5 rows"):
            sthist.pl.roc(self.TRUTH, self.SCORES[:5])
        with pytest.raises(ValueError, match="No class of"):
            sthist.pl.roc(["z"] * 6, self.SCORES)
        with pytest.raises(ValueError, match="classes is \\['a'\\]; the rows are of"):
            sthist.pl.confusion(self.TRUTH, self.TRUTH, classes=["a"])
        with pytest.raises(ValueError, match="No row has both"):
            sthist.pl.confusion([None], ["a"])
