"""Figures of single cells: what is drawn, in what colour, of which cells."""

from __future__ import annotations

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection, PolyCollection
from spatialdata.models import TableModel

import sthist
from sthist.pl import _base

MARKERS = {"T cell": ["CD3E", "CD8A"], "duct": ["EPCAM", "KRT8"]}


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def typed():
    sdata = sthist.datasets.toy(size_um=250, mpp=0.5)
    sthist.tl.cell_types(sdata, MARKERS, key_added="call")
    return sdata


def centres(sdata):
    return np.asarray(sdata["table"].obsm["spatial"])


class TestCells:
    def test_of_a_gene(self, typed):
        """The colour in the middle of a cell is the expression of the gene in it."""
        (ax,) = sthist.pl.cells(typed, "EPCAM")
        raster = ax.get_images()[-1]
        values = np.asarray(typed["table"][:, "EPCAM"].X.toarray()).ravel()
        x0, x1, y1, y0 = raster.get_extent()
        height, width = raster.get_array().shape
        x, y = centres(typed).T
        seen = raster.get_array()[
            ((y - y0) / (y1 - y0) * height).astype(int), ((x - x0) / (x1 - x0) * width).astype(int)
        ]
        assert (np.ma.filled(seen, np.nan) == values.astype(np.float32)).mean() > 0.9  # few centres lie in a neighbour
        assert raster.get_clim() == (values.min(), values.max())

    def test_of_a_layer(self, typed):
        adata = typed["table"]
        adata.layers["twice"] = adata.X * 2
        (ax,) = sthist.pl.cells(typed, "EPCAM", layer="twice")
        assert ax.get_images()[-1].get_clim()[1] == 2 * adata[:, "EPCAM"].X.max()
        del adata.layers["twice"]

    def test_an_umap_is_drawn_where_there_is_one(self, typed):
        assert len(sthist.pl.cells(typed, "call")) == 1
        typed["table"].obsm["X_umap"] = centres(typed)
        assert len(sthist.pl.cells(typed, "call")) == 2
        assert len(sthist.pl.cells(typed, "call", basis=None)) == 1
        del typed["table"].obsm["X_umap"]

    def test_only_cells_in_view_are_outlined(self, typed):
        (ax,) = sthist.pl.cells(typed, "call", within=(50, 50, 110, 110))
        (lines,) = (each for each in ax.collections if isinstance(each, LineCollection))
        boxes = typed["cell_boundaries"].bounds
        inside = (boxes.minx < 110) & (boxes.maxx > 50) & (boxes.miny < 110) & (boxes.maxy > 50)
        assert 0 < len(lines.get_segments()) <= inside.sum() < len(boxes)
        assert ax.get_xlim() == (50, 110)

    def test_unknown_cells_are_grey(self, typed):
        from matplotlib.colors import to_rgb

        (ax,) = sthist.pl.cells(typed, "call")
        colours = dict(
            zip([text.get_text() for text in ax.get_legend().get_texts()], ax.get_legend().legend_handles, strict=True)
        )
        red, green, blue = to_rgb(colours["unknown"].get_color())
        assert red == green == blue
        (ax,) = sthist.pl.cells(typed, "call", palette={"unknown": "red"})
        assert to_rgb(ax.get_legend().legend_handles[2].get_color()) == (1, 0, 0)

    def test_a_name_that_is_neither(self, typed):
        with pytest.raises(KeyError, match="EPCAN.*Did you mean 'EPCAM'"):
            sthist.pl.cells(typed, "EPCAN")


class TestSmall:
    def test_cells_smaller_than_a_pixel_are_dots(self):
        """Of circles on a lattice, a tenth of a pixel wide, each is seen: dots of a pixel and a half."""
        import shapely

        places = np.stack(np.meshgrid(np.arange(20), np.arange(20)), -1).reshape(-1, 2) * 4.0 + 2.2
        polygons = shapely.buffer(shapely.points(places), 0.05)
        values = np.random.default_rng(0).random(len(places))
        painted = _base.paint_values(polygons, values, (0, 0, 80, 80), 1.0)
        assert set(painted[np.isfinite(painted)].round(6)) == set(values.round(6))
        codes = _base.paint_codes(polygons, np.arange(len(places)) % 3, (0, 0, 80, 80), 1.0)
        assert set(np.unique(codes)) == {-1, 0, 1, 2}

    def test_where_dots_meet_the_most_frequent_and_the_mean_are_drawn(self):
        import shapely

        polygons = shapely.buffer(shapely.points([[5.0, 5.0], [5.1, 5.1], [5.2, 5.0]]), 0.05)
        assert set(np.unique(_base.paint_codes(polygons, np.array([2, 1, 1]), (0, 0, 10, 10), 1.0))) == {-1, 1}
        painted = _base.paint_values(polygons, np.array([1.0, 2.0, 6.0]), (0, 0, 10, 10), 1.0)
        np.testing.assert_allclose(painted[5, 5], 3.0)


class TestGallery:
    def test_the_best_come_first(self, typed):
        """The first crop is the H&E around the cell with the highest score."""
        axes = sthist.pl.cell_gallery(typed, ["T cell", "duct"], n=7, key="call", size_um=16, ncols=3)
        assert [ax.get_title(loc="left") for ax in axes] == ["T cell", "duct"]
        spec = sthist.tiles.TileSpec(16.0, 72)
        reader = sthist.tiles.TileReader(typed, "he", spec, fill=255, allow_upsampling=True)
        for ax, name in zip(axes, MARKERS, strict=True):
            order = np.argsort(-typed["table"].obsm["call_scores"][name].to_numpy(), kind="stable")
            crops = reader.read(centres(typed)[order[:4]])
            picture = ax.get_images()[0].get_array()
            step = 72 + 4
            np.testing.assert_array_equal(picture[:72, :72], crops[0])
            np.testing.assert_array_equal(picture[step : step + 72, :72], crops[3])
            assert picture.shape == (3 * step - 4, 3 * step - 4, 3)
            assert (picture[2 * step :, step:] == 255).all()  # seven of nine places

    def test_of_a_gene_and_fewer_cells_than_asked_for(self, typed):
        (ax,) = sthist.pl.cell_gallery(typed, "EPCAM", n=1000, ncols=20)
        rows = -(-typed["table"].n_obs // 20)
        assert ax.get_images()[0].get_array().shape[0] == rows * 76 - 4

    @pytest.mark.parametrize(
        ("kwargs", "error", "message"),
        [
            ({"color": "T cel"}, KeyError, "no type or gene 'T cel'.*Did you mean 'T cell'"),
            ({"color": "duct", "size_um": 0}, ValueError, "size_um is 0"),
            ({"color": []}, ValueError, "color is empty"),
            ({"color": "duct", "n": 0}, ValueError, "n is 0"),
            ({"color": "duct", "image": "hee"}, KeyError, "hee"),
        ],
    )
    def test_what_cannot_be_meant(self, typed, kwargs, error, message):
        with pytest.raises(error, match=message):
            sthist.pl.cell_gallery(typed, key="call", **kwargs)


class TestScores:
    def test_ridges(self):
        """Classes of known scores: each ridge has its median, and the same area."""
        rng = np.random.default_rng(0)
        kind = np.repeat(["a", "b"], [4000, 1000])
        scores = np.where(kind == "a", rng.normal(0, 1, 5000), rng.normal(3, 1, 5000))
        adata = ad.AnnData(np.zeros((5000, 1)), obs=pd.DataFrame({"kind": kind}, index=[str(i) for i in range(5000)]))
        adata.obsm["call_scores"] = pd.DataFrame({"x": scores}, index=adata.obs_names)
        (ax,) = sthist.pl.cell_type_scores(adata, "kind", key="call")
        ridges = [each for each in ax.collections if isinstance(each, PolyCollection)]
        assert [text.get_text() for text in ax.get_yticklabels()] == ["a (4,000)", "b (1,000)"]
        medians = [line.get_xdata()[0] for line in ax.get_lines()[:2]]
        np.testing.assert_allclose(medians, [np.median(scores[kind == name]) for name in "ab"])
        areas = [polygon_area(each.get_paths()[0].vertices) for each in ridges]
        np.testing.assert_allclose(areas[0], areas[1], rtol=0.03)

    def test_of_its_own_calls(self, typed):
        axes = sthist.pl.cell_type_scores(typed, key="call")
        assert [ax.get_title() for ax in axes] == list(MARKERS)

    def test_what_is_not_there(self, typed):
        with pytest.raises(KeyError, match="No table has scores obsm\\['cel_scores'\\]"):
            sthist.pl.cell_type_scores(typed, key="cel")
        with pytest.raises(KeyError, match="no type 'B cell'; there are 'T cell', 'duct'"):
            sthist.pl.cell_type_scores(typed, key="call", types=["B cell"])
        with pytest.raises(KeyError, match="no column 'cell_typ'.*Did you mean 'cell_type'"):
            sthist.pl.cell_type_scores(typed, "cell_typ", key="call")


def polygon_area(corners):
    x, y = corners.T
    return abs(np.sum(x * np.roll(y, 1) - y * np.roll(x, 1))) / 2


@pytest.fixture(scope="module")
def both():
    """Spots with counts, and cells with a prediction."""
    sdata, cells = sthist.datasets.toy("visium", size_um=600, mpp=1.0), sthist.datasets.toy(size_um=600, mpp=1.0)
    sdata.shapes["nuclei"] = cells["cell_boundaries"]
    table = cells["table"]
    obs = pd.DataFrame({"region": pd.Categorical(["nuclei"] * table.n_obs)}, index=table.obs_names)
    obs["instance_id"] = cells["cell_boundaries"].index.to_numpy()
    made = ad.AnnData(np.arange(table.n_obs, dtype=np.float32)[:, None], obs=obs, var=pd.DataFrame(index=["EPCAM"]))
    made.obsm["spatial"] = table.obsm["spatial"]
    keys = {"region": "nuclei", "region_key": "region", "instance_key": "instance_id"}
    sdata.tables["nuclei_table"] = TableModel.parse(made, **keys)
    return sdata


class TestSpots:
    def test_scales(self, both):
        counts = both["table"][:, "EPCAM"].X.toarray().ravel() / both["table"].X.sum(axis=1).A1
        highest = np.log1p(1e4 * counts).max(), both["nuclei_table"].X.max()
        spots, cells = sthist.pl.spot_cells(both, "EPCAM", vmax="p100", within=(0, 0, 600, 600))
        limits = [ax.get_images()[-1].get_clim() for ax in (spots, cells)]
        np.testing.assert_allclose(limits, [(0, highest[0]), (0, highest[1])], rtol=1e-5)
        assert "own scale" in spots.figure.axes[-1].get_ylabel()
        spots, cells = sthist.pl.spot_cells(both, "EPCAM", vmax="p100", shared=True, within=(0, 0, 600, 600))
        assert spots.get_images()[-1].get_clim() == cells.get_images()[-1].get_clim() == (0, highest[1])
        assert "one scale" in spots.figure.axes[-1].get_ylabel()

    def test_a_prediction_in_logarithms_shares_the_scale(self, both):
        both["nuclei_table"].uns["sthist"] = {"scellst": {"call": "tl.cell_expression", "scale": "log"}}
        spots, cells = sthist.pl.spot_cells(both, "EPCAM")
        assert spots.get_images()[-1].get_clim() == cells.get_images()[-1].get_clim()
        del both["nuclei_table"].uns["sthist"]

    def test_only_what_is_in_view_sets_the_scale(self, both):
        _, cells = sthist.pl.spot_cells(both, "EPCAM", within=(200, 200, 400, 400), vmax="p100")
        places = both["nuclei_table"].obsm["spatial"]
        inside = ((places > 185) & (places < 415)).all(axis=1)
        assert cells.get_images()[-1].get_clim()[1] <= both["nuclei_table"].X.ravel()[inside].max() + 1
        assert cells.get_xlim() == (200, 400)

    def test_a_gene_that_cells_lack(self, both):
        with pytest.raises(KeyError, match="No table has the gene 'CD3E' of cells"):
            sthist.pl.spot_cells(both, "CD3E")
        with pytest.raises(KeyError, match="has no gene 'EPCAN'.*Did you mean 'EPCAM'"):
            sthist.pl.spot_cells(both, "EPCAN")
