"""Regions on the slide: what colours them, on which scale, beside what spatialdata-plot draws."""

from __future__ import annotations

import geopandas as gpd
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import shapely
import spatialdata as sd
import vendor
from matplotlib.collections import LineCollection
from spatialdata.models import ShapesModel

import sthist
from sthist._tables.rows import polygons_um


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def _made():
    sdata = sthist.datasets.toy(size_um=300)
    sthist.tl.virtual_he(sdata, progress=False)
    sthist.pp.tissue(sdata)
    sthist.pp.tiles(sdata, size_um=32, px=64)
    sthist.pp.embed(sdata, "morphology", progress=False)
    table = sdata["table"]
    rng = np.random.default_rng(0)
    shares = rng.dirichlet([1, 3], table.n_obs)
    table.obsm["composition"] = pd.DataFrame(shares, index=table.obs_names, columns=["tumour", "stroma"])
    table.obsm["X_pca"] = rng.normal(size=(table.n_obs, 3))
    return sdata


@pytest.fixture
def sdata(_made):
    return sd.deepcopy(_made)


def at_centres(ax, polygons):
    """What a panel shows at the centroid of each region."""
    raster = ax.get_images()[-1]
    x0, x1, y1, y0 = raster.get_extent()
    pixels = raster.get_array()
    height, width = pixels.shape[:2]
    x, y = shapely.get_coordinates(shapely.centroid(polygons)).T
    return pixels[((y - y0) / (y1 - y0) * height).astype(int), ((x - x0) / (x1 - x0) * width).astype(int)]


def agree(seen, values):
    """Nearly all: few centres lie in a neighbour, too."""
    return (np.abs(np.ma.filled(seen, np.nan) - values) < 1e-5 * max(1, np.abs(values).max())).mean() > 0.9


class TestColours:
    @pytest.mark.parametrize("name", ["EPCAM", "n_counts", "tumour", "composition:stroma", "X_pca:2"])
    def test_whatever_the_table_has(self, sdata, name):
        table = sdata["table"]
        table.obs["n_counts"] = np.asarray(table.X.sum(1)).ravel().astype(float)
        values = {
            "EPCAM": table[:, "EPCAM"].X.toarray().ravel(),
            "n_counts": table.obs["n_counts"].to_numpy(),
            "tumour": table.obsm["composition"]["tumour"].to_numpy(),
            "composition:stroma": table.obsm["composition"]["stroma"].to_numpy(),
            "X_pca:2": table.obsm["X_pca"][:, 2],
        }[name]
        (ax,) = sthist.pl.regions(sdata, name)
        assert agree(at_centres(ax, sdata["cell_boundaries"].geometry.to_numpy()), values)
        assert ax.get_images()[-1].get_clim() == pytest.approx((values.min(), values.max()))

    def test_features_of_tiles_by_name(self, sdata):
        table = sdata["tiles_table"]
        names = list(table.uns["X_morphology_features"].index)
        (ax,) = sthist.pl.tiles_on_slide(sdata, names[2])
        assert ax.get_title() == names[2]
        assert agree(at_centres(ax, sdata["tiles"].geometry.to_numpy()), table.obsm["X_morphology"][:, 2])

    def test_a_column_of_the_shapes(self, sdata):
        """Annotations have no table; their classes are columns of the shapes."""
        squares = shapely.box([20, 150], [20, 150], [100, 250], [100, 250])
        sdata["marks"] = ShapesModel.parse(
            gpd.GeoDataFrame({"class": ["tumour", "stroma"], "geometry": squares}),
            transformations={"um": sd.transformations.Identity()},
        )
        (ax,) = sthist.pl.regions(sdata, "class", "marks")
        assert {text.get_text() for text in ax.get_legend().get_texts()} == {"tumour", "stroma"}
        (ax,) = sthist.pl.regions(sdata, regions="marks")
        assert len(ax.collections[0].get_segments()) == 2
        with pytest.raises(KeyError, match=r"no table and no column 'clas'.*Did you mean 'class'"):
            sthist.pl.regions(sdata, "clas", "marks")

    def test_names_that_are_nowhere_or_twice(self, sdata):
        with pytest.raises(KeyError, match="EPCAN.*Did you mean 'EPCAM'"):
            sthist.pl.regions(sdata, "EPCAN")
        with pytest.raises(KeyError, match="tumor.*Did you mean 'tumour'"):
            sthist.pl.regions(sdata, "tumor")
        sthist.pp.tiles(sdata, size_um=64, px=64, key_added="coarse")
        for key in ("coarse_table", "tiles_table"):
            sdata[key].obs["score"] = 1.0
        with pytest.raises(ValueError, match=r"'coarse_table', 'tiles_table'"):
            sthist.pl.regions(sdata, "score")
        table = sdata["table"]
        table.obsm["other"] = table.obsm["composition"]
        with pytest.raises(ValueError, match="'composition:tumour' or 'other:tumour'"):
            sthist.pl.regions(sdata, "tumour", "table")
        with pytest.raises(ValueError, match="color= is empty"):
            sthist.pl.regions(sdata, [])


class TestPanels:
    def test_several_at_once_on_what_is_asked_for(self, sdata):
        axes = sthist.pl.regions(sdata, ["EPCAM", "cell_type"], image="virtual_he", ncols=1)
        assert [len(ax.get_images()) for ax in axes] == [2, 2]
        assert axes[0].get_position().y0 > axes[1].get_position().y0
        (ax,) = sthist.pl.regions(sdata, "EPCAM", image=False)
        assert len(ax.get_images()) == 1
        with pytest.raises(KeyError, match="virtual_hi"):
            sthist.pl.regions(sdata, "EPCAM", image="virtual_hi")

    def limits(self, axes):
        return [ax.get_images()[-1].get_clim() for ax in axes]

    def bars(self, axes):
        return [each.get_ylabel() for each in axes[0].figure.axes if each.get_label() == "<colorbar>"]

    def test_scales_are_own_or_shared_and_say_so(self, sdata):
        genes = sdata["table"][:, ["EPCAM", "COL1A1"]].X.toarray()
        axes = sthist.pl.regions(sdata, ["EPCAM", "COL1A1"])
        assert self.limits(axes) == [(0, genes[:, 0].max()), (0, genes[:, 1].max())]
        assert self.bars(axes) == ["own scale"] * 2
        axes = sthist.pl.regions(sdata, ["EPCAM", "COL1A1"], shared=True)
        assert self.limits(axes) == [(0, genes.max())] * 2
        assert self.bars(axes) == ["one scale"] * 2

    def test_shares_are_compared(self, sdata):
        shares = sdata["table"].obsm["composition"].to_numpy()
        axes = sthist.pl.regions(sdata, ["tumour", "stroma", "EPCAM"])
        np.testing.assert_allclose(self.limits(axes)[:2], [(shares.min(), shares.max())] * 2)
        assert self.bars(axes) == ["one scale", "one scale", "own scale"]
        own = self.limits(sthist.pl.regions(sdata, ["tumour", "stroma"], shared=False))
        np.testing.assert_allclose(own, np.c_[shares.min(0), shares.max(0)])

    def test_samples_have_one_scale_and_a_row_each(self, sdata):
        other = sthist.datasets.toy(size_um=200, seed=1)
        axes = sthist.pl.regions({"a": sdata, "b": other}, ["EPCAM", "COL1A1"])
        assert [ax.get_title() for ax in axes] == ["a, EPCAM", "a, COL1A1", "b, EPCAM", "b, COL1A1"]
        most = max(each["table"][:, "EPCAM"].X.max() for each in (sdata, other))
        assert self.limits(axes)[0] == self.limits(axes)[2] == (0, most)

    def test_outlines_alone(self, sdata):
        (ax,) = sthist.pl.regions(sdata, within=(100, 100, 200, 200))
        (lines,) = (each for each in ax.collections if isinstance(each, LineCollection))
        seen = sdata["cell_boundaries"].intersects(shapely.box(100, 100, 200, 200)).sum()
        assert len(lines.get_segments()) == seen

    def test_outlines_are_brought_to_um_once(self, sdata, monkeypatch):
        from sthist.pl._regions import panels

        asked = []
        monkeypatch.setattr(panels, "polygons_um", lambda *given: asked.append(given) or polygons_um(*given))
        sthist.pl.regions(sdata, ["EPCAM", "COL1A1", "cell_type"])
        assert len(asked) == 1

    def test_a_palette_needs_classes(self, sdata):
        with pytest.raises(ValueError, match="palette= gives colours of classes, and 'EPCAM', 'COL1A1' hold numbers"):
            sthist.pl.regions(sdata, ["EPCAM", "COL1A1"], palette={"a": "red"})
        sthist.pl.regions(sdata, ["EPCAM", "cell_type"], palette={"T cell": "red"})

    def test_cells_of_several_genes(self, sdata):
        assert [ax.get_title() for ax in sthist.pl.cells(sdata, ["EPCAM", "cell_type"])] == ["EPCAM", "cell_type"]
        with pytest.raises(ValueError, match="beside one colour"):
            sthist.pl.cells(sdata, ["EPCAM", "cell_type"], basis="umap")

    def test_spots(self):
        visium = sthist.datasets.toy("visium", size_um=500)
        (ax,) = sthist.pl.spots(visium, "EPCAM")
        key = sthist.pl.spots(visium, image=False)[0].get_title()
        values = visium["table"][:, "EPCAM"].X.toarray().ravel()
        centres = shapely.buffer(visium[key].geometry.to_numpy(), 1.0)
        assert agree(at_centres(ax, centres), values)


class TestOutlines:
    def test_of_the_tissue(self, sdata):
        ax = sthist.pl.tissue(sdata)
        (lines,) = (each for each in ax.collections if isinstance(each, LineCollection))
        drawn = shapely.union_all(shapely.polygons([line for line in lines.get_segments() if len(line) > 3]))
        assert drawn.area == pytest.approx(sdata["tissue"].area.sum(), rel=0.01)
        assert ax.get_title() == f"tissue, {sdata['tissue'].area.sum() / 1e6:.3g} mm²"
        del sdata.shapes["tissue"]
        with pytest.raises(KeyError, match=r"pp\.tissue\(sdata\) finds them"):
            sthist.pl.tissue(sdata)

    def test_of_tiles_on_a_stain_where_there_is_no_histology(self, sdata):
        for key in ("he_image", "virtual_he"):
            if key in sdata.images:
                del sdata.images[key]
        ax = sthist.pl.tile_grid(sdata)
        (lines,) = (each for each in ax.collections if isinstance(each, LineCollection))
        assert len(lines.get_segments()) == len(sdata["tiles"])
        assert ax.get_title() == f"{len(sdata['tiles'])} tiles of 32 µm, 64 px"
        with pytest.raises(KeyError, match="tils_table"):
            sthist.pl.tile_grid(sdata, "tils")


def test_tiles_lie_on_all_fields_of_view(tmp_path):
    """Where the stain is in several images, all of them are shown, and not the first alone."""
    vendor.cosmx_folder(tmp_path / "cosmx", **vendor.cosmx_sample(), mpp=0.12)
    cosmx = sthist.io.cosmx(tmp_path / "cosmx")
    assert len(cosmx.images) == 4
    sthist.pp.tiles(cosmx, size_um=2, px=16, sampling="regions", regions="cells")
    ax = sthist.pl.tile_grid(cosmx)
    boxes = np.array([sthist.tiles.open_image(cosmx, key).extent_um for key in cosmx.images])
    assert ax.get_xlim() == pytest.approx((boxes[:, 0].min(), boxes[:, 2].max()))
    assert sorted(ax.get_ylim()) == pytest.approx([boxes[:, 1].min(), boxes[:, 3].max()])


def test_the_picture_of_spatialdata_plot(sdata):
    """Cells in the colours of a gene: at their centres, both draw the same, to 2 of 255 levels."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own imports
        import spatialdata_plot  # noqa: F401

    def pixels(figure):
        figure.canvas.draw()
        return np.asarray(figure.canvas.buffer_rgba())[..., :3].astype(int)

    most = float(sdata["table"][:, "EPCAM"].X.max())
    within = (60, 60, 240, 240)
    seen = []
    for ours in (True, False):
        figure, ax = plt.subplots(figsize=(6, 6), dpi=100)
        ax.set_position((0, 0, 1, 1))
        if ours:
            sthist.pl.regions(sdata, "EPCAM", image=False, within=within, vmin=0, vmax=most, axes=ax)
        else:
            how = {"color": "EPCAM", "cmap": "viridis", "norm": plt.Normalize(0, most), "colorbar": False}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", PendingDeprecationWarning)  # of matplotlib, by spatialdata-plot
                drawn = sdata.pl.render_shapes("cell_boundaries", table_name="table", **how)
                drawn.pl.show(ax=ax, coordinate_systems="um", colorbar=False)
            ax.set(xlim=(60, 240), ylim=(240, 60))
        ax.set_position((0, 0, 1, 1))
        ax.set_axis_off()
        centres = shapely.get_coordinates(shapely.centroid(sdata["cell_boundaries"].geometry.to_numpy()))
        inside = ((centres > 65) & (centres < 235)).all(1)
        image = pixels(figure)
        places = ax.transData.transform(centres[inside])
        seen.append(image[image.shape[0] - 1 - places[:, 1].astype(int), places[:, 0].astype(int)])
    assert (np.abs(seen[0] - seen[1]).max(-1) <= 2).mean() > 0.9
