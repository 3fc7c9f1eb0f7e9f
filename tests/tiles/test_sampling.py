"""Which tiles to train on, and how they are paired and stored."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import sthist
from sthist.tiles import TileSpec, farthest_points, has_content
from sthist.tiles._images.image import image_of_array
from sthist.tiles._sampling import lies_inside, spatial_split


def naive(points: np.ndarray, n: int) -> list[int]:
    """Farthest point sampling in so many words."""
    chosen = [int(np.argmin(((points - points.mean(0)) ** 2).sum(1)))]
    while len(chosen) < n:
        distance = np.min([np.linalg.norm(points - points[i], axis=1) for i in chosen], axis=0)
        chosen.append(int(np.argmax(distance)))
    return chosen


class TestFarthestPoints:
    points = np.random.default_rng(0).uniform(0, 1000, (500, 2))

    def test_against_the_definition(self):
        assert farthest_points(self.points, 60).tolist() == naive(self.points, 60)

    @given(k=st.integers(1, 80))
    def test_the_first_are_a_prefix(self, k):
        np.testing.assert_array_equal(farthest_points(self.points, k), farthest_points(self.points, 81)[:k])

    @given(angle=st.floats(0, 6.28), x=st.floats(-1e4, 1e4), y=st.floats(-1e4, 1e4))
    def test_turning_and_shifting_change_nothing(self, angle, x, y):
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        np.testing.assert_array_equal(
            farthest_points(self.points @ turn.T + [x, y], 40), farthest_points(self.points, 40)
        )

    def test_they_are_spread(self):
        from scipy.spatial import cKDTree

        def nearest(indices):
            return cKDTree(self.points[indices]).query(self.points[indices], k=2)[0][:, 1].min()

        drawn = np.random.default_rng(1).permutation(500)[:50]
        assert nearest(farthest_points(self.points, 50)) > 5 * nearest(drawn)

    @given(seed=st.integers(0, 99), n=st.integers(1, 30))
    def test_none_is_chosen_twice(self, seed, n):
        """Points that coincide are chosen one by one, when nothing else is left."""
        points = np.random.default_rng(seed).integers(0, 4, (30, 2))
        chosen = farthest_points(points, n)
        assert len(set(chosen.tolist())) == n
        n_places = len(np.unique(points, axis=0))
        assert len(np.unique(points[chosen], axis=0)) == min(n, n_places)

    def test_seed_and_limits(self):
        assert farthest_points(self.points, 5, seed=1)[0] != farthest_points(self.points, 5)[0]
        assert sorted(farthest_points(self.points, 10**6)) == list(range(500))
        with pytest.raises(ValueError, match=r"these have shape \(0, 2\)"):
            farthest_points(np.empty((0, 2)), 3)
        with pytest.raises(ValueError, match=r"finite numbers"):
            farthest_points([[0.0, np.nan]], 1)
        with pytest.raises(ValueError, match=r"n_tiles is 0"):
            farthest_points(self.points, 0)


@pytest.mark.parametrize(
    ("blank", "value", "kept"),
    [
        (1.0, 0, False),
        (1.0, 255, False),
        (0.91, 255, False),
        (0.91, 0, False),
        (0.89, 255, True),
        (0.9, 231, True),
        (1.0, 230, True),
    ],
)
def test_the_content_rule(blank, value, kept):
    tile = np.full((1, 100, 100, 3), 120, np.uint8)
    tile[:, : round(100 * blank)] = value
    assert has_content(tile).tolist() == [kept]
    assert has_content(tile[..., :1]).tolist() == [kept]


def test_tiles_that_leave_an_image():
    turned = np.array(
        [[0.0, -0.5, 100.0], [0.5, 0.0, 0.0], [0, 0, 1]]
    )  # 90 degrees; 200 px along x become 100 µm along y
    image = image_of_array(np.zeros((1, 100, 200), np.uint8), turned)
    centres = np.array([[75.0, 50.0], [60.0, 10.0], [60.0, 9.0], [59.0, 50.0], [90.0, 90.0], [90.5, 90.0]])
    assert lies_inside(image, centres, 20.0).tolist() == [True, True, False, False, True, False]


def test_tiles_over_a_gap_between_fields_of_view():
    def field(x):
        to_um = np.array([[1.0, 0, x], [0, 1, 0], [0, 0, 1]])
        return image_of_array(np.zeros((1, 300, 300), np.uint8), to_um)

    def both(x):
        return sthist.tiles.Image(field(0).fields + field(x).fields)

    over = np.array([[300.0, 150.0]])
    assert lies_inside(both(300), over, 100.0).tolist() == [True]
    assert lies_inside(both(315), over, 100.0).tolist() == [False]


class TestSplit:
    centres = np.random.default_rng(0).uniform(0, 5000, (800, 2))

    def test_no_test_tile_overlaps_a_training_tile(self):
        split = spatial_split(self.centres, 100.0, 0.1, seed=0)
        train, test = self.centres[split == "train"], self.centres[split == "test"]
        assert len(test) >= 80
        apart = np.abs(train[:, None] - test[None]).max(-1)
        assert apart.min() >= 100.0 - 1e-6
        assert set(split) == {"train", "test", "dropped"}
        assert (spatial_split(self.centres, 100.0, 0.1, seed=1) != split).any()

    def test_limits(self):
        assert set(spatial_split(self.centres, 100.0, 0.0, seed=0)) == {"train"}
        with pytest.raises(ValueError, match=r"test_fraction is 1"):
            spatial_split(self.centres, 100.0, 1, seed=0)
        with pytest.raises(ValueError, match=r"leaves none of the 2 tiles to train on"):
            spatial_split([[0, 0], [10, 10]], 100.0, 0.1, seed=0)


class TestFpsTiles:
    def test_tiles_lie_on_both_images_around_cells(self, toy):
        sthist.pp.tiles(toy, size_um=64, px=128, sampling="fps", n_tiles=8)
        table = toy["tiles_table"]
        assert len(table) == 8
        centres = table.obsm["spatial"]
        assert (np.abs(centres - 200) <= 200 - 32).all()
        cells = toy["cell_boundaries"].geometry.centroid
        for centre, name in zip(centres, table.obs.source_id, strict=True):
            assert (cells[name].x, cells[name].y) == pytest.approx(tuple(centre))
        he = sthist.tiles.TileReader(toy, "he", TileSpec(64, 128), fill=255).read(centres)
        assert has_content(he).all()

    def test_fewer_are_a_prefix(self, toy):
        sthist.pp.tiles(toy, size_um=64, px=128, sampling="fps", n_tiles=3, key_added="few")
        sthist.pp.tiles(toy, size_um=64, px=128, sampling="fps", n_tiles=6, key_added="more")
        np.testing.assert_array_equal(toy["few_table"].obsm["spatial"], toy["more_table"].obsm["spatial"][:3])

    def test_blank_tiles_are_left_out(self, toy):
        sthist.pp.tiles(toy, size_um=40, px=80, sampling="fps", n_tiles=500, key_added="all", max_blank=1.0)
        sthist.pp.tiles(toy, size_um=40, px=80, sampling="fps", n_tiles=500, key_added="strict", max_blank=0.2)
        assert 0 < len(toy["strict_table"]) < len(toy["all_table"])
        he = sthist.tiles.TileReader(toy, "he", TileSpec(40, 80), fill=255).read(toy["strict_table"].obsm["spatial"])
        assert has_content(he, 0.2).all()

    def test_the_search_goes_on_until_tiles_show_something(self):
        """All but a small part of the slide is blank, and the farthest cells lie there."""
        import geopandas as gpd
        from spatialdata.models import ShapesModel
        from spatialdata.transformations import Identity

        he = np.full((800, 800, 3), 255, np.uint8)
        he[300:400, 300:400] = 120
        sdata = sthist.io.assemble({"he": he}, mpp=1.0)
        grid = np.stack(np.meshgrid(np.arange(20, 780, 10), np.arange(20, 780, 10)), -1).reshape(-1, 2)
        cells = gpd.GeoDataFrame({"radius": [3.0] * len(grid)}, geometry=gpd.points_from_xy(*grid.T))
        sdata.shapes["cells"] = ShapesModel.parse(cells, transformations={"um": Identity()})
        for n in (1, 20):
            sthist.pp.tiles(sdata, size_um=30, px=30, sampling="fps", regions="cells", n_tiles=n, key_added=f"of_{n}")
            centres = sdata[f"of_{n}_table"].obsm["spatial"]
            assert len(centres) == n
            assert (np.abs(centres - 350) < 65).all()

    def test_which_images_are_looked_at(self, toy):
        toy.images["he_2"] = toy["he"]
        del toy.attrs["sthist"]["roles"]["he"]
        with pytest.raises(ValueError, match=r"Several images could be the H&E"):
            sthist.pp.tiles(toy, size_um=64, px=128, sampling="fps", n_tiles=3)
        sthist.pp.tiles(toy, size_um=64, px=128, sampling="fps", n_tiles=3, images="he_2")
        with pytest.raises(ValueError, match=r"n_tiles is 0"):
            sthist.pp.tiles(toy, size_um=64, px=128, sampling="fps", n_tiles=0)

    def test_the_channel_of_the_role_is_taken(self):
        from sthist import _sample

        rng = np.random.default_rng(0)
        stain = rng.integers(0, 4000, (4, 200, 200)).astype(np.uint16)
        sdata = sthist.io.assemble({"stack": stain}, mpp=0.5, channels={"stack": ["B", "G", "Y", "U"]})
        _sample.set_role(sdata, "nuclear", {"images": ["stack"], "channel": "U"})
        assert _sample.find_nuclear(sdata, "stack") == (("stack",), "U")

    def test_without_cells_or_with_tiles_that_are_too_large(self, toy):
        with pytest.raises(ValueError, match=r"No tile of 900 µm lies on all images"):
            sthist.pp.tiles(toy, size_um=900, px=128, sampling="fps")
        del toy.tables["table"]
        with pytest.raises(KeyError, match=r"Found no cells to sample"):
            sthist.pp.tiles(toy, size_um=64, px=128, sampling="fps")


class TestPairs:
    @pytest.fixture
    def tiled(self, toy):
        sthist.pp.tiles(toy, size_um=48, px=96, sampling="fps", n_tiles=12)
        return toy

    def test_overlay_and_he_show_the_same_place(self, tiled):
        loader = sthist.tiles.paired_loader(tiled, batch_size=5, mode="none")
        seen = []
        for index, overlay, he in loader:
            seen += index.tolist()
            for stain, histology in zip(overlay, he, strict=True):
                haematoxylin = sthist.stains.optical_density(histology)[..., 0]
                assert np.corrcoef(stain[..., 0].ravel(), haematoxylin.ravel())[0, 1] > 0.6
        assert sorted(seen) == list(range(12))

    def test_export_and_read_again(self, tiled, tmp_path):
        tiled["tiles_table"].obs["prompt"] = [f"tile {i}" for i in range(12)]
        sthist.tiles.export_pairs(tiled, tmp_path, prompt_column="prompt", test_fraction=0.1, prefix="toy_", dot_um=1.0)
        overlay = sthist.tiles.Overlay(tiled, TileSpec(48, 96), dot_um=1.0)
        he = sthist.tiles.TileReader(tiled, "he", TileSpec(48, 96), fill=255)
        centres = tiled["tiles_table"].obsm["spatial"]
        n = 0
        for subset in ("train", "test"):
            prompts = json.loads((tmp_path / f"{subset}_prompts.json").read_text())
            assert {path.name for path in (tmp_path / f"{subset}_A").iterdir()} == set(prompts)
            assert {path.name for path in (tmp_path / f"{subset}_B").iterdir()} == set(prompts)
            for name, prompt in prompts.items():
                i = int(name.removeprefix("toy_").removesuffix(".png"))
                assert prompt == f"tile {i}"
                with Image.open(tmp_path / f"{subset}_A" / name) as a, Image.open(tmp_path / f"{subset}_B" / name) as b:
                    np.testing.assert_array_equal(np.asarray(a), overlay.read(centres[[i]], ids=[i])[0])
                    np.testing.assert_array_equal(np.asarray(b), he.read(centres[[i]])[0])
                n += 1
        assert n >= 2
        # The loader gives the same pairs as the files.
        loader = sthist.tiles.paired_loader(tiled, dot_um=1.0)
        for index, stains, _ in loader:
            for i, stain in zip(index, stains, strict=True):
                for subset in ("train", "test"):
                    path = tmp_path / f"{subset}_A" / f"toy_{i}.png"
                    if path.exists():
                        with Image.open(path) as written:
                            np.testing.assert_array_equal(np.asarray(written), stain)
        with pytest.raises(FileExistsError, match=r"is there already; give prefix="):
            sthist.tiles.export_pairs(tiled, tmp_path, prefix="toy_")

    def test_bad_input(self, tiled):
        other = sthist.tiles.Overlay(tiled, TileSpec(64, 96), mode="none")
        with pytest.raises(ValueError, match=r"The overlay is made for TileSpec\(size_um=64.0"):
            sthist.tiles.paired_loader(tiled, overlay=other)
        with pytest.raises(TypeError, match=r"mode would be ignored: overlay= is given"):
            sthist.tiles.paired_loader(tiled, overlay=sthist.tiles.Overlay(tiled, TileSpec(48, 96)), mode="mono")
        with pytest.raises(ValueError, match=r"is no H&E: it has 1 channels of uint16"):
            sthist.tiles.paired_loader(tiled, he="morphology_focus")
        with pytest.raises(KeyError, match=r"has no column 'captoin'"):
            sthist.tiles.export_pairs(tiled, "unused", prompt_column="captoin")
        tiled.tables["x_table"] = tiled["table"]
        with pytest.raises(KeyError, match=r"holds no tiles"):
            sthist.tiles.paired_loader(tiled, "x")
