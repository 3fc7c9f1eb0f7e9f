"""What a tile, a colour, a name and a click answer, without a server."""

from __future__ import annotations

import io
import threading

import anndata as ad
import dask.array as da
import geopandas as gpd
import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import shapely
import spatialdata as sd
from PIL import Image
from spatialdata.models import Image2DModel, ShapesModel, TableModel
from spatialdata.transformations import Identity, Scale

import sthist
from sthist.pl._view.colours import Source
from sthist.pl._view.grid import Grid, Kept, NoTile
from sthist.pl._view.molecules import Dots
from sthist.pl._view.pictures import Channel
from sthist.pl._view.slide import Slide

RED, WHITE = (255, 0, 0), (255, 255, 255)


def pixels(encoded):
    """Decoded, with opacity, (h, w, 4)."""
    return np.asarray(Image.open(io.BytesIO(encoded.content)).convert("RGBA"))


def grey(array, mpp=1.0, name="stain", **more):
    """A sample of one image in grey."""
    place = {"um": Scale([mpp, mpp], ("x", "y"))}
    image = Image2DModel.parse(array[None], dims=("c", "y", "x"), c_coords=["DAPI"], transformations=place, **more)
    return sd.SpatialData(images={name: image})


def discs(places, radius, values, groups=("spots",)):
    """Circles, and a table with a gene for each name of regions."""
    shapes, tables = {}, {}
    for group in groups:
        frame = gpd.GeoDataFrame({"radius": np.broadcast_to(radius, len(places))}, geometry=shapely.points(places))
        shapes[group] = ShapesModel.parse(frame, transformations={"um": Identity()})
        obs = pd.DataFrame({"region": pd.Categorical([group] * len(places)), "id": np.arange(len(places))})
        obs.index = obs.index.astype(str)
        adata = ad.AnnData(np.asarray(values, np.float32)[:, None], obs=obs, var=pd.DataFrame(index=["ACTB"]))
        tables[f"{group}_table"] = TableModel.parse(adata, region=group, region_key="region", instance_key="id")
    return sd.SpatialData(shapes=shapes, tables=tables)


class TestGrid:
    def test_level_0_is_one_tile_and_each_further_one_has_half_the_size(self):
        grid = Grid.over((10, 20, 16_010, 8_020), 0.5)
        assert max(grid.width, grid.height) <= 512
        deepest = grid.level_of(0.5)
        assert grid.mpp / 2**deepest == 0.5
        assert grid.tile(0, 0, 0, deepest).extent[:2] == (10, 20)
        x0, y0, x1, y1 = grid.tile(deepest, 3, 2, deepest).extent
        assert (x0, y0, x1, y1) == (10 + 3 * 256, 20 + 2 * 256, 10 + 4 * 256, 20 + 3 * 256)

    @pytest.mark.parametrize("place", [(1, 99, 0), (1, 0, 99), (9, 0, 0), (-1, 0, 0), (0, -1, 0)])
    def test_tiles_that_cannot_be(self, place):
        with pytest.raises(NoTile):
            Grid.over((0, 0, 1000, 1000), 1.0).tile(*place, 1)

    def test_all_levels_cover_the_same_plane(self):
        grid = Grid.over((0, 0, 1234.5, 777.7), 0.37)
        for level in range(3):
            width, height = grid.width << level, grid.height << level
            last = grid.tile(level, (width - 1) // 512, (height - 1) // 512, 9)
            np.testing.assert_allclose(last.extent[2:], grid.size_um)


class TestKept:
    def test_each_is_made_once_also_by_many_threads(self):
        kept, made = Kept(100, len), []
        gate = threading.Barrier(4)

        def ask():
            gate.wait()
            kept.get("a", lambda: made.append(1) or "value")

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for each in (*threads,):
            each.start()
        for each in threads:
            each.join()
        assert made == [1]

    def test_the_oldest_go_first(self):
        kept, made = Kept(25, len), []
        for key in "abac":  # a is used again, so that b is the oldest
            kept.get(key, lambda: "0123456789")
        for key in "ab":
            kept.get(key, lambda key=key: made.append(key) or "0123456789")
        assert made == ["b"]

    def test_what_fails_is_tried_again(self):
        kept = Kept(10, len)
        with pytest.raises(OSError, match="gone"):
            kept.get("a", lambda: (_ for _ in ()).throw(OSError("gone")))
        assert kept.get("a", lambda: "there") == "there"


class TestImages:
    def test_a_tile_of_the_he_is_what_read_region_reads(self, toy):
        """The toy's H&E lies askew: where a tile is not on it, it is clear."""
        slide = Slide(toy)
        for level in (0, 1):
            tile = slide.grid.tile(level, 0, 0, 1)
            found = pixels(slide.image_tile("he", level, 0, 0))
            expected = sthist.tiles.read_region(toy, "he", tile.extent, tile.mpp)
            on = found[..., 3] == 255
            assert 0.5 < on.mean() < 1
            np.testing.assert_array_equal(found[on][:, :3], expected[on])

    def test_a_pixel_of_the_finest_level_is_a_pixel_of_the_image(self):
        rng = np.random.default_rng(0)
        array = rng.integers(0, 1000, (700, 600)).astype(np.uint16)
        slide = Slide(grey(array, 0.25))
        found = pixels(slide.image_tile("stain", 1, 1, 1, [Channel(0, WHITE, 100, 900)]))
        expected = np.clip((array[512:, 512:].astype(float) - 100) / 800, 0, 1) * 255
        assert found.shape[:2] == expected.shape
        difference = np.abs(found[..., 0] - expected)
        assert difference.mean() < 3  # of JPEG
        assert difference.max() < 30

    def test_channels_add_up_in_their_colours(self):
        place = {"um": Identity()}
        array = np.stack([np.full((64, 64), 100, np.uint8), np.full((64, 64), 50, np.uint8)])
        image = Image2DModel.parse(array, dims=("c", "y", "x"), c_coords=["a", "b"], transformations=place)
        slide = Slide(sd.SpatialData(images={"two": image}))
        shown = [Channel(0, (255, 0, 0), 0, 200), Channel(1, (0, 255, 255), 0, 100)]
        found = pixels(slide.image_tile("two", 0, 0, 0, shown))
        np.testing.assert_allclose(found[30, 30, :3], [127.5, 127.5, 127.5], atol=2)

    def test_automatic_limits_are_percentiles(self):
        array = np.arange(300 * 300, dtype=np.uint16).reshape(300, 300)
        slide = Slide(grey(array))
        np.testing.assert_allclose(slide.limits("stain", 0), np.percentile(array, [1, 99.8]), rtol=1e-6)
        same = slide.image_tile("stain", 0, 0, 0, [Channel(0, WHITE, *slide.limits("stain", 0))])
        assert slide.image_tile("stain", 0, 0, 0, [Channel(0, WHITE, 0, 0)]) == same

    def test_an_image_without_a_pyramid_is_the_mean_of_its_pixels(self):
        """It is read piece by piece: never as a whole."""
        array = np.random.default_rng(0).integers(0, 256, (4200, 4100), dtype=np.uint8)
        array[:2048] //= 2
        slide = Slide(grey(da.from_array(array, chunks=1024)))
        found = pixels(slide.image_tile("stain", 0, 0, 0, [Channel(0, WHITE, 0, 255)]))[..., 0]
        factor = int(slide.grid.mpp)
        h, w = (n // factor * factor for n in array.shape)
        expected = array[:h, :w].reshape(h // factor, factor, w // factor, factor).mean((1, 3))
        assert factor == 16
        assert np.abs(found[: expected.shape[0], : expected.shape[1]] - expected).mean() < 2

    def test_a_map_is_clear_where_it_has_no_value(self):
        array = np.linspace(0, 1, 64 * 64, dtype=np.float32).reshape(64, 64)
        array[:, 32:] = np.nan
        slide = Slide(grey(array, 4.0, "T_cell_heatmap"))
        found = pixels(slide.image_tile("T_cell_heatmap", 0, 0, 0, [Channel(0, WHITE, 0, 1)]))
        assert (found[:, :32, 3] == 255).all()
        assert (found[:, 32:, 3] == 0).all()
        np.testing.assert_allclose(found[:, :32, 0], array[:, :32] * 255, atol=0.51)

    def test_roles_come_first_and_images_can_be_chosen(self, toy):
        assert [each.key for each in Slide(toy).pictures] == ["morphology_focus", "he"]
        assert [each.key for each in Slide(toy, ["he"]).pictures] == ["he"]
        with pytest.raises(KeyError, match="Did you mean 'he'"):
            Slide(toy, ["hee"])

    def test_an_image_without_a_scale_is_named(self, toy):
        toy["other"] = Image2DModel.parse(np.zeros((1, 10, 10), np.uint8), dims=("c", "y", "x"))
        assert any("'other' has no scale" in note for note in Slide(toy).notes)

    def test_nothing_to_show(self):
        image = Image2DModel.parse(np.zeros((1, 10, 10), np.uint8), dims=("c", "y", "x"))
        with pytest.raises(ValueError, match="nothing to show.*pp.set_scale"):
            Slide(sd.SpatialData(images={"other": image}))


class TestRegions:
    def test_cells_have_the_colours_of_their_values(self, toy):
        """At points drawn at random: the colour of the cell on top there, by the formula of a colour map."""
        slide = Slide(toy)
        source = slide.settle("EPCAM")
        tile = slide.grid.tile(2, 1, 1, 9)
        found = pixels(slide.region_tile("table", 2, 1, 1, source))
        values = np.asarray(toy["table"][:, "EPCAM"].X.todense(), float).ravel()
        low, high = values.min(), np.percentile(values, 99.5)
        cells = sd.transform(toy["cell_boundaries"], to_coordinate_system="um").geometry.to_numpy()
        rng = np.random.default_rng(0)
        n = 0
        for row, column in rng.integers(0, 512, (300, 2)):
            if row >= tile.shape[0] or column >= tile.shape[1]:
                continue
            x, y = np.array(tile.extent[:2]) + (np.array([column, row]) + 0.5) * tile.mpp
            on_top = np.flatnonzero(shapely.contains_xy(cells, x, y))
            if not len(on_top):
                assert found[row, column, 3] == 0
                continue
            share = np.clip((values[on_top[-1]] - low) / (high - low), 0, 1)
            expected = np.array(mpl.colormaps["viridis"](float(share))[:3]) * 255
            np.testing.assert_allclose(found[row, column, :3], expected, atol=3)  # a step is 1/250 of the limits
            n += 1
        assert n > 50

    def test_classes_have_the_colours_of_the_legend_and_can_be_hidden(self, toy):
        slide = Slide(toy)
        source = slide.settle("cell_type")
        legend = slide.colouring("table", source).describe()
        types = toy["table"].obs["cell_type"]
        assert dict(zip(legend["names"], legend["counts"], strict=True)) == types.value_counts().to_dict()
        found = pixels(slide.region_tile("table", 1, 0, 0, source))
        shown = {tuple(colour) for colour in found[found[..., 3] > 0][:, :3].tolist()}
        colours = {tuple(bytes.fromhex(colour[1:])) for colour in legend["colours"]}
        assert shown == colours
        hidden = pixels(slide.region_tile("table", 1, 0, 0, source, hidden=frozenset({0})))
        first = tuple(bytes.fromhex(legend["colours"][0][1:]))
        left = hidden[hidden[..., 3] > 0][:, :3]
        assert not (left == first).all(axis=1).any()

    def test_dots_where_regions_are_smaller_than_pixels(self):
        """Three spots of 1 µm at 8 µm a pixel: each is seen, with its colour; two at one pixel show their mean."""
        places = np.array([[100.0, 100.0], [3000.0, 500.0], [3000.5, 500.0], [4000.0, 4000.0]])
        slide = Slide(discs(places, 0.5, [0, 1, 3, 4]))
        assert slide.grid.mpp > 6
        source = Source("spots_table", "gene", "ACTB")
        found = pixels(slide.region_tile("spots_table", 0, 0, 0, source, vmin=0, vmax=4))
        colours = mpl.colormaps["viridis"]
        for place, value in ((places[0], 0), (places[1], 2), (places[3], 4)):
            column, row = np.clip(np.floor((place - [slide.grid.x0_um, slide.grid.y0_um]) / slide.grid.mpp), 0, 511)
            column, row = min(int(column), found.shape[1] - 1), min(int(row), found.shape[0] - 1)
            around = found[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2].reshape(-1, 4)
            painted = around[around[:, 3] > 0][:, :3].astype(int)
            assert len(painted)
            np.testing.assert_allclose(painted, [np.array(colours(value / 4)[:3]) * 255] * len(painted), atol=3)

    def test_tiles_fit_together(self, toy):
        """An outline is the same wherever a tile ends: two tiles beside each other are one larger picture."""
        slide = Slide(toy)
        left, right = (slide.grid.tile(2, column, 1, 9) for column in (0, 1))
        outlines = slide._outlines("cell_boundaries")
        one, other = outlines.numbers(left), outlines.numbers(right)
        np.testing.assert_array_equal(one[:, -1], other[:, 1])
        np.testing.assert_array_equal(one[:, -2], other[:, 0])

    def test_outlines_lie_on_the_border(self):
        slide = Slide(discs(np.array([[50.0, 50.0], [0.0, 0.0], [100.0, 100.0]]), [20.0, 1.0, 1.0], [1, 1, 1]))
        tile = slide.grid.tile(1, 0, 0, 9)
        on = pixels(slide.region_tile("spots_table", 1, 0, 0, None, style="outline"))[..., 3] > 0
        row, column = np.nonzero(on)
        x, y = (tile.extent[i] + (each + 0.5) * tile.mpp for i, each in enumerate((column, row)))
        distance = np.hypot(x - 50, y - 50)
        near = distance < 30
        assert near.sum() > 200
        assert (np.abs(distance[near] - 20) < 2 * tile.mpp).all()

    def test_a_click_answers_what_the_table_says(self, toy):
        slide = Slide(toy)
        adata = toy["table"]
        source = slide.settle("EPCAM")
        cells = sd.transform(toy["cell_boundaries"], to_coordinate_system="um").geometry
        for row in (0, 17, 100):
            point = cells.iloc[row].representative_point()
            on_top = np.flatnonzero(shapely.contains_xy(cells.to_numpy(), point.x, point.y))[-1]
            found = slide.at(point.x, point.y, 0.5, "table", source)[0]
            assert found["group"] == "table"
            assert found["id"] == str(cells.index[on_top])
            values = dict(found["values"])
            assert values["cell_type"] == adata.obs["cell_type"].iloc[on_top]
            assert float(values["EPCAM"]) == adata[on_top, "EPCAM"].X.todense().item()
            assert found["area"] == pytest.approx(cells.iloc[on_top].area)
            gene, value = found["genes"][0]
            assert float(value) == adata.X[on_top].max() == adata[on_top, gene].X.todense().item()

    def test_a_click_beside_all(self):
        slide = Slide(discs(np.array([[50.0, 50.0], [90.0, 90.0]]), 5.0, [1, 2]))
        assert slide.at(70, 70, 0.5) == []
        assert slide.at(50, 55.9, 0.5)[0]["id"] == "0"  # within three pixels

    def test_a_row_whose_shape_is_gone(self):
        sdata = discs(np.array([[10.0, 10.0], [50.0, 50.0], [90.0, 90.0]]), 5.0, [1, 2, 3])
        sdata.shapes["spots"] = sdata.shapes["spots"].iloc[[0, 2]]
        slide = Slide(sdata)
        assert [each["id"] for x in (10, 50, 90) for each in slide.at(x, x, 0.5)] == ["0", "2"]
        assert (
            dict(slide.at(90, 90, 0.5, "spots_table", Source("spots_table", "gene", "ACTB"))[0]["values"])["ACTB"]
            == "3"
        )


class TestNames:
    def test_what_colours_regions(self, toy):
        toy["table"].obsm["scores"] = pd.DataFrame({"T cell": np.arange(toy["table"].n_obs)}, toy["table"].obs_names)
        toy["table"].obsm["X_pca"] = np.ones((toy["table"].n_obs, 3))
        slide = Slide(toy)
        assert slide.settle("cell_type") == Source("table", "obs", "cell_type")
        assert slide.settle("EPCAM") == Source("table", "gene", "EPCAM")
        assert slide.settle("scores:T cell") == Source("table", "obsm", "scores:T cell")
        assert slide.settle("X_pca:2") == Source("table", "obsm", "X_pca:2")
        numbers = slide.colouring("table", slide.settle("scores:T cell"))
        np.testing.assert_array_equal(numbers.values, np.arange(toy["table"].n_obs))

    def test_a_layer(self, toy):
        toy["table"].layers["twice"] = toy["table"].X * 2
        slide = Slide(toy)
        one, two = (slide.colouring("table", slide.settle("EPCAM", layer=layer)) for layer in (None, "twice"))
        np.testing.assert_array_equal(two.values, 2 * one.values)
        with pytest.raises(KeyError, match=r"no layer 'twic'.*Did you mean 'twice'"):
            slide.settle("EPCAM", layer="twic")

    def test_a_gene_that_no_table_has(self, toy):
        with pytest.raises(KeyError, match=r"No table has.*'EPCM'.*Did you mean 'EPCAM'"):
            Slide(toy).settle("EPCM")

    def test_a_name_that_two_tables_have(self):
        slide = Slide(discs(np.array([[5.0, 5.0], [9.0, 9.0]]), 1.0, [1, 2], groups=("spots", "bins")))
        with pytest.raises(ValueError, match=r"'spots_table'.*'bins_table'.*table="):
            slide.settle("ACTB")
        assert slide.settle("ACTB", "bins_table").group == "bins_table"
        with pytest.raises(KeyError, match="Did you mean 'bins_table'"):
            slide.settle("ACTB", "bin_table")

    def test_the_search_puts_beginnings_first(self, toy):
        slide = Slide(toy)
        names = [source.name for source in slide.find("cd")]
        assert all("cd" in name.lower() for name in names)
        begin = [name.lower().startswith("cd") for name in names]
        assert begin == sorted(begin, reverse=True)
        assert set(slide.find_molecules("cd")) == {gene for gene in toy["table"].var_names if "CD" in gene}


class TestMolecules:
    def molecules(self, toy, gene):
        frame = toy["transcripts"].compute()
        frame = frame[(frame["feature_name"] == gene) & (frame["qv"] >= 20)]
        return frame[["x", "y"]].to_numpy()  # the toy's are in µm

    def test_as_many_as_there_are_and_where_they_are(self, toy):
        slide = Slide(toy)
        expected = self.molecules(toy, "COL1A1")
        assert slide.molecules().count("COL1A1") == len(expected)
        found = slide.molecules().places("COL1A1", (-1e4, -1e4, 1e4, 1e4))
        np.testing.assert_allclose(found[np.lexsort(found.T)], expected[np.lexsort(expected.T)], atol=1e-3)

    def test_dots_lie_where_molecules_do(self, toy):
        slide = Slide(toy)
        level = slide.depth
        place = self.molecules(toy, "COL1A1")[5]
        side = 512 * slide.grid.mpp / 2**level
        column, row = ((place - [slide.grid.x0_um, slide.grid.y0_um]) // side).astype(int).tolist()
        tile = slide.grid.tile(level, column, row, level)
        found = pixels(slide.molecule_tile(level, column, row, [Dots("COL1A1", RED)], 9))
        x, y = np.floor((place - tile.extent[:2]) / tile.mpp).astype(int)
        assert tuple(found[y, x]) == (255, 0, 0, 255)
        inside = self.molecules(toy, "COL1A1")
        inside = inside[((inside >= tile.extent[:2]) & (inside < tile.extent[2:])).all(axis=1)]
        disc = np.pi * 4.5**2
        assert (found[..., 3] > 127).sum() <= len(inside) * disc * 1.3 + 4 * disc

    def test_density_where_they_lie_closer_than_pixels(self, toy):
        slide = Slide(toy)
        genes = slide.genes
        found = pixels(slide.molecule_tile(0, 0, 0, [Dots(gene, RED) for gene in genes[:40]], 1))
        tile = slide.grid.tile(0, 0, 0, 9)
        places = np.concatenate([self.molecules(toy, gene) for gene in genes[:40]])
        column, row = np.floor((places - tile.extent[:2]) / tile.mpp).astype(int).T
        inside = (column >= 0) & (row >= 0) & (row < tile.shape[0]) & (column < tile.shape[1])
        counts = np.zeros(tile.shape, int)
        np.add.at(counts, (row[inside], column[inside]), 1)
        close = np.abs(np.mod((places - tile.extent[:2]) / tile.mpp + 0.5, 1) - 0.5).min(axis=1) < 1e-3
        assert ((found[..., 3] > 0) != (counts > 0)).sum() <= close.sum()  # those on the border of pixels
        order = [found[..., 3][counts == n].astype(float).mean() for n in (1, 2, 3)]
        assert order == sorted(order)
        assert order[0] < order[2]

    def test_a_gene_that_there_is_not(self, toy):
        with pytest.raises(KeyError, match="Did you mean 'EPCAM'"):
            Slide(toy).molecules().count("EPCM")
