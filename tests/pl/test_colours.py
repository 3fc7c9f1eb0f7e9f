"""One colour per class, and one number per colour, in all panels of a figure."""

from __future__ import annotations

import logging

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import shapely
from matplotlib.colors import to_hex, to_rgb

import sthist
from sthist.pl import _colours


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


@pytest.fixture
def sdata():
    sdata = sthist.datasets.toy(size_um=300)
    sdata["table"].obsm["X_umap"] = np.asarray(sdata["table"].obsm["spatial"]).copy()
    return sdata


def legend_of(ax):
    legend = ax.get_legend()
    handles = legend.legend_handles
    return {
        text.get_text(): to_hex(handle.get_color()) for text, handle in zip(legend.get_texts(), handles, strict=True)
    }


def seen_on(ax, table, column, margin=5):
    """The colour on the slide in the middle of the cells of each class, the most frequent one."""
    image = ax.get_images()[-1]
    picture, (x0, x1, y1, y0) = np.asarray(image.get_array()), image.get_extent()
    seen = {}
    for (x, y), name in zip(table.obsm["spatial"], table.obs[column], strict=True):
        if pd.notna(name) and x0 + margin < x < x1 - margin and y0 + margin < y < y1 - margin:
            row, column_ = int((y - y0) / (y1 - y0) * len(picture)), int((x - x0) / (x1 - x0) * picture.shape[1])
            if picture[row, column_, 3] > 0:
                seen.setdefault(str(name), []).append(to_hex(picture[row, column_, :3]))
    return {name: max(set(colours), key=colours.count) for name, colours in seen.items()}


def scattered_on(ax, table, column):
    """The colour of the points of each class in an embedding that is the slide."""
    points = ax.collections[0]
    order = pd.MultiIndex.from_arrays(np.round(np.asarray(table.obsm["X_umap"]), 6).T)
    rows = order.get_indexer(pd.MultiIndex.from_arrays(np.round(np.asarray(points.get_offsets()), 6).T))
    names = table.obs[column].iloc[rows]
    return {
        str(name): {to_hex(each) for each in points.get_facecolors()[(names == name).to_numpy()]}
        for name in names.dropna().unique()
    }


def _classes(kind, table):
    of_type = table.obs["cell_type"].astype(str)
    if kind == "with an absent class":
        return pd.Categorical(of_type, categories=["absent", *sorted(set(of_type))])
    if kind == "text":
        return of_type.astype(object)
    if kind == "with rows of none":
        return of_type.astype(object).where(of_type != "T cell", None)
    if kind == "truth values":
        return of_type == "fibroblast"
    if kind == "numbers as categories":
        return pd.Categorical(of_type.map({name: 10 - i for i, name in enumerate(sorted(set(of_type)))}))
    return pd.Categorical(of_type, categories=sorted(set(of_type), reverse=True))


class TestClasses:
    @pytest.mark.parametrize(
        ("kind", "kept"),
        [
            ("with an absent class", "more"),
            ("with an absent class", None),
            ("text", None),
            ("text", "more"),
            ("with rows of none", "fewer"),
            ("truth values", "by name"),
            ("numbers as categories", None),
            ("reversed", "by name"),
        ],
    )
    def test_slide_embedding_and_legend_agree(self, sdata, kind, kept):
        table = sdata["table"]
        table.obs["kind"] = _classes(kind, table)
        names = [str(name) for name in table.obs["kind"].astype("category").cat.categories]
        colours = ["red", "lime", "blue", "yellow", "magenta", "cyan", "black", "orange"]
        if kept == "by name":
            table.uns["kind_colors"] = dict(zip(names, colours, strict=False))
        elif kept is not None:
            table.uns["kind_colors"] = np.array(colours[: len(names) + (1 if kept == "more" else -1)])
        for within in (None, (0, 0, 100, 100)):
            slide, right = sthist.pl.cells(sdata, "kind", within=within, axes=plt.subplots(1, 2, figsize=(6, 3))[1])
            legend, seen = legend_of(right), seen_on(slide, table, "kind")
            assert len(set(legend.values())) == len(legend)
            assert seen
            assert seen == {name: legend[name] for name in seen}
            assert ("NA" in legend) == (kind == "with rows of none")
            assert "absent" not in legend
            for name, found in scattered_on(right, table, "kind").items():
                assert found == {legend[name]}
            if kept in {"more", "by name"}:
                expected = {name: to_hex(colour) for name, colour in zip(names, colours, strict=False)}
                assert legend == {name: expected[name] for name in legend}

    def test_samples_share_colours(self, sdata):
        """Of two samples, one lacks the first class, and keeps other colours."""
        other = sthist.datasets.toy(size_um=300, seed=1)
        table = other["table"]
        table.obsm["X_umap"] = np.asarray(table.obsm["spatial"])
        text = table.obs["cell_type"].astype(str)
        table.obs["cell_type"] = text.where(text != "epithelial", "fibroblast").astype("category")
        table.uns["cell_type_colors"] = ["red", "lime", "blue", "yellow", "cyan"]
        axes = sthist.pl.cells({"a": sdata, "b": other}, "cell_type")
        assert [ax.get_title() for ax in axes] == ["a", "", "b", ""]
        legend = legend_of(axes[1])
        assert axes[3].get_legend() is None
        for ax, data in ((axes[0], sdata), (axes[2], other)):
            seen = seen_on(ax, data["table"], "cell_type")
            assert seen == {name: legend[name] for name in seen}
        kept = dict(zip(table.obs["cell_type"].cat.categories, table.uns["cell_type_colors"], strict=True))
        assert all(legend[name] == to_hex(colour) for name, colour in kept.items())

    @pytest.mark.parametrize("n", [10, 11, 31, 62, 120])
    def test_as_many_as_there_are(self, sdata, n):
        table = sdata["table"]
        table.obs["cluster"] = pd.Categorical([f"c{i % n:03d}" for i in range(table.n_obs)])
        (ax,) = sthist.pl.cells(sdata, "cluster", basis=None)
        legend = legend_of(ax)
        assert list(legend) == [f"c{i:03d}" for i in range(n)]
        assert len(set(legend.values())) == n
        assert to_hex(_colours.GREY) not in legend.values()
        ax.figure.canvas.draw()
        below = ax.get_legend().get_window_extent().height / ax.get_window_extent().height
        assert below < 1.3
        assert ax.get_window_extent().width > 0.9 * 72 * 4 * ax.figure.dpi / 100  # the legend has room of its own

    def test_a_legend_that_nobody_can_read(self, sdata, caplog):
        table = sdata["table"]
        table.obs["cluster"] = [f"c{i}" for i in range(table.n_obs)]
        with caplog.at_level(logging.WARNING, logger="sthist"):
            (ax,) = sthist.pl.cells(sdata, "cluster", basis=None)
        assert ax.get_legend() is None
        assert "no legend" in caplog.text

    def test_colours_that_are_given(self, sdata):
        slide, right = sthist.pl.cells(sdata, "cell_type", palette={"T cell": "#123456", "not here": "red"})
        assert legend_of(right)["T cell"] == "#123456" == seen_on(slide, sdata["table"], "cell_type")["T cell"]
        with pytest.raises(ValueError, match=r"gives 'T cell' the colour 'crimsom', which matplotlib does not know"):
            sthist.pl.cells(sdata, "cell_type", palette={"T cell": "crimsom"})

    def test_kept_colours_that_are_none(self, sdata, caplog):
        sdata["table"].uns["cell_type_colors"] = ["red", "lime", "blue", "yellow", "cyan", "no colour"]
        with caplog.at_level(logging.WARNING, logger="sthist"):
            _, right = sthist.pl.cells(sdata, "cell_type")
        assert "'cell_type_colors'" in caplog.text
        assert "'no colour'" in caplog.text
        assert set(legend_of(right).values()) == {to_hex(each) for each in plt.get_cmap("tab10").colors[:6]}

    def test_niches_and_boxes(self, sdata):
        """The parts of bars have the colours of the cells; a class that is absent leaves the others theirs."""
        table = sdata["table"]
        table.uns["cell_type_colors"] = ["red", "lime", "blue", "yellow", "magenta", "cyan"]
        table.obs["cell_type"] = table.obs["cell_type"].astype("category")
        table.obs["half"] = np.where(np.arange(table.n_obs) % 2, "a", "b")
        legend = legend_of(sthist.pl.cells(sdata, "cell_type")[1])
        ax = sthist.pl.niche_composition(table, "cell_type", groupby="half")
        assert {bars.get_label(): to_hex(bars[0].get_facecolor()) for bars in ax.containers} == legend
        frame = pd.DataFrame(
            {"class": pd.Categorical(list("bbcc"), categories=list("abc")), "ssim": [0.1, 0.2, 0.3, 0.5]}
        )
        (ax,) = sthist.pl.image_metrics(frame, tests=False)
        assert [to_hex(box.get_facecolor()) for box in ax.patches] == [to_hex(f"C{i}") for i in (1, 2)]


class TestNumbers:
    def test_one_bar_for_both_panels(self, sdata):
        table, outlines = sdata["table"], sdata["cell_boundaries"].copy()
        table.obs["score"] = np.linspace(0, 1, table.n_obs)
        table.obs.loc[table.obs_names[3], "score"] = 100.0
        table.obs.loc[table.obs_names[:2], "score"] = [np.nan, np.inf]
        place = outlines.geometry.iloc[3].centroid
        outlines.loc[outlines.index[3], "geometry"] = shapely.box(
            place.x - 0.05, place.y - 0.05, place.x + 0.05, place.y + 0.05
        )
        sdata["cell_boundaries"] = outlines
        finite = table.obs["score"][np.isfinite(table.obs["score"])]
        for kwargs, limits in (
            ({}, (finite.min(), 100)),
            ({"vmax": 2, "vmin": "p50"}, (np.percentile(finite, 50), 2)),
        ):
            slide, right = sthist.pl.cells(sdata, "score", **kwargs)
            (bar,) = [ax for ax in slide.figure.axes if ax.get_label() == "<colorbar>"]
            np.testing.assert_allclose(slide.get_images()[-1].get_clim(), limits)
            np.testing.assert_allclose(right.collections[0].get_clim(), limits)
            np.testing.assert_allclose(bar.get_ylim(), limits)

    def test_limits_are_those_of_what_is_shown(self, sdata):
        table = sdata["table"]
        table.obs["x"] = np.asarray(table.obsm["spatial"])[:, 0]
        (ax,) = sthist.pl.cells(sdata, "x", basis=None, within=(100, 100, 200, 200))
        box = shapely.box(100, 100, 200, 200)
        shown = sdata["cell_boundaries"].geometry.intersects(box).to_numpy()
        assert ax.get_images()[-1].get_clim() == (table.obs["x"][shown].min(), table.obs["x"][shown].max())
        with pytest.raises(ValueError, match="None of the .* shapes 'cell_boundaries' lies in"):
            sthist.pl.cells(sdata, "x", basis=None, within=(1000, 1000, 1100, 1100))

    def test_whole_numbers_that_may_be_missing(self, sdata):
        table = sdata["table"]
        table.obs["n"] = pd.array([None, *range(1, table.n_obs)], dtype="Int64")
        (ax,) = sthist.pl.cells(sdata, "n", basis=None)
        assert ax.get_images()[-1].get_clim() == (1, table.n_obs - 1)
        table.obs["n"] = np.nan
        with pytest.raises(ValueError, match="none of the .* values of 'n' is a finite number"):
            sthist.pl.cells(sdata, "n", basis=None)

    def test_what_is_refused(self, sdata):
        sdata["table"].obs["n"] = np.arange(sdata["table"].n_obs)
        with pytest.raises(ValueError, match="palette= gives colours of classes, and 'n' holds numbers"):
            sthist.pl.cells(sdata, "n", palette={"1": "red"})
        with pytest.raises(ValueError, match="vmin is 5, and vmax 2"):
            sthist.pl.cells(sdata, "n", vmin=5, vmax=2)

    def test_scores_of_several_classes(self, sdata):
        """All classes have one scale, and each its own where that is asked for."""
        sthist.pp.tissue(sdata)
        sthist.pp.tiles(sdata, size_um=32, px=64)
        table = sdata["tiles_table"]
        values = np.random.default_rng(0).random((table.n_obs, 2)) * [1, 5]
        table.obsm["kind_score"] = pd.DataFrame(values, index=table.obs_names, columns=["a", "b"])
        own = [ax.get_images()[-1].get_clim() for ax in sthist.pl.score_map(sdata, "kind", shared=False)]
        np.testing.assert_allclose(own, np.c_[values.min(0), values.max(0)])
        together = [ax.get_images()[-1].get_clim() for ax in sthist.pl.score_map(sdata, "kind")]
        np.testing.assert_allclose(together, [[values.min(), values.max()]] * 2)
        axes = sthist.pl.score_map(sdata, "kind", vmin=0, vmax="p90")
        limits = {ax.get_images()[-1].get_clim() for ax in axes}
        assert len(limits) == 1
        rasters = [np.ma.compressed(ax.get_images()[-1].get_array()) for ax in axes]
        np.testing.assert_allclose(limits.pop(), (0, np.percentile(np.concatenate(rasters), 90)))

    def test_grey_tiles_of_a_gallery_have_the_same_limits(self, sdata):
        sthist.pp.tissue(sdata)
        sthist.pp.tiles(sdata, size_um=64, px=64)
        axes = sthist.pl.tiles(sdata, n=6, show=["morphology_focus"])
        images = [ax.get_images()[0] for ax in axes if ax.get_images()]
        pixels = np.stack([np.asarray(image.get_array()) for image in images])
        assert len(images) == 6
        assert {image.get_clim() for image in images} == {(pixels.min(), pixels.max())}


def test_a_gene_has_one_colour_in_all_partitions(sdata):
    """Names differ from partition to partition where they are text; colours are those of pl.overlay."""
    import dask.dataframe as dd
    from spatialdata.models import PointsModel
    from spatialdata.transformations import get_transformation

    points = sdata["transcripts"]
    frame = points[["x", "y", "z", "feature_name"]].compute().astype({"feature_name": str})
    both = [frame[frame["feature_name"] == name][:100] for name in ("COL1A1", "EPCAM")]
    parts = dd.from_pandas(pd.concat(both, ignore_index=True), npartitions=2)
    places = get_transformation(points, get_all=True)
    sdata["transcripts"] = PointsModel.parse(parts, feature_key="feature_name", transformations=places)
    assert sdata["transcripts"].npartitions == 2
    (ax,) = sthist.pl.virtual_he(sdata, panels=["transcripts"])
    picture = np.asarray(ax.get_images()[0].get_array())
    legend = legend_of(sthist.pl.overlay(sdata, genes=["EPCAM", "COL1A1"]))
    assert set(legend) == {"EPCAM", "COL1A1"}
    lit = picture[picture.max(-1) > 0]
    hues = lit / lit.max(-1, keepdims=True)
    for colour in legend.values():
        expected = np.array(to_rgb(colour)) / max(to_rgb(colour))
        assert (np.abs(hues - expected).max(-1) < 0.01).any()
