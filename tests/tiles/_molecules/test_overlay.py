"""Transcripts drawn on the nuclear stain."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import structural_similarity

import sthist
from sthist.tiles import Overlay, TileSpec
from sthist.tiles._molecules.overlay_style import hues

SPEC = TileSpec(size_um=32.0, px=64)


def sample(molecules: pd.DataFrame, *, size: int = 128, mpp: float = 0.5, stain: np.ndarray | None = None):
    pixels = np.zeros((size, size), np.uint8) if stain is None else stain
    return sthist.io.assemble({"dapi": pixels}, mpp=mpp, points=molecules)


def molecules(n: int = 400, n_genes: int = 12, seed: int = 0, size_um: float = 64.0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "x_um": rng.uniform(0, size_um, n),
            "y_um": rng.uniform(0, size_um, n),
            "gene": rng.choice([f"G{i:02d}" for i in range(n_genes)], n),
        }
    )


def black(frame: pd.DataFrame, **kwargs) -> Overlay:
    return Overlay(sample(frame), SPEC, background="black", **kwargs)


def scatter(frame: pd.DataFrame, colours: np.ndarray, px: int, mpp: float, s: float, dpi: float) -> np.ndarray:
    """The dots of matplotlib's own multi-colour scatter on a canvas of the tile's size."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(px / dpi, px / dpi), dpi=dpi, facecolor="black")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, px), ylim=(px, 0))
    axes.axis("off")
    axes.scatter(frame.x_um / mpp, frame.y_um / mpp, s=s, c=colours / 255, linewidths=0)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


@pytest.mark.parametrize(("s", "dpi"), [(0.3, 64), (0.9, 64), (4.0, 100)])
def test_dots_are_matplotlibs(s, dpi):
    frame = molecules(2000, 40, size_um=0.2125 * 256)
    spec = TileSpec.from_mpp(0.2125, 256)
    overlay = Overlay(
        sample(frame, size=256, mpp=0.2125), spec, background="black", palette="fixed", dot_s=s, dot_dpi=dpi
    )
    ours = overlay.read([[0.2125 * 128] * 2])[0]
    codes = pd.Categorical(frame.gene, categories=overlay.genes).codes
    theirs = scatter(frame, overlay.palette(0)[codes], 256, 0.2125, s, dpi)

    def score(image):
        return structural_similarity(theirs, image, channel_axis=-1, data_range=255)

    swapped = overlay.restyled(palette="permuted").read([[0.2125 * 128] * 2])[0]
    assert score(ours) >= 0.99
    assert score(np.zeros_like(ours)) < 0.9
    assert score(swapped) < 0.95
    assert ours.sum(dtype=int) == pytest.approx(theirs.sum(dtype=int), rel=0.05)


@pytest.mark.parametrize("dot_um", [0.05, 0.3, 1.0, 3.0])
def test_which_pixels_are_covered_does_not_depend_on_the_palette(dot_um):
    overlay = black(molecules(), dot_um=dot_um)
    centre = [[32.0, 32.0]]
    mask = overlay.read(centre).any(-1)
    assert 0 < mask.mean() < 1
    for seed in (1, 2):
        np.testing.assert_array_equal(overlay.restyled(seed=seed).read(centre).any(-1), mask)
    np.testing.assert_array_equal(overlay.restyled(palette="fixed").read(centre).any(-1), mask)
    np.testing.assert_array_equal(overlay.restyled(mode="mono").read(centre).any(-1), mask)


def test_a_disc_covers_its_area():
    for dot_um in (0.2, 0.7, 2.2, 5.0):
        frame = pd.DataFrame({"x_um": [32.13], "y_um": [31.9], "gene": ["A"]})
        tile = black(frame, dot_um=dot_um, mode="mono", palette="white").read([[32.0, 32.0]])[0, ..., 0]
        # Coverage is cut to 8 bits in each of the pixels that the border runs through.
        assert tile.sum(dtype=int) / 255 == pytest.approx(np.pi * (dot_um / SPEC.mpp) ** 2 / 4, rel=0.02, abs=0.02)


def test_matplotlib_sizes_are_diameters_in_pixels():
    for s, expected in ((0.1, 0.281), (0.3, 0.487), (0.5, 0.629), (0.7, 0.744), (0.9, 0.843)):
        assert black(molecules(), dot_s=s, dot_dpi=64).dot_px == pytest.approx(expected, abs=5e-4)


def test_without_transcripts_the_stain_is_left_in_three_equal_channels():
    rng = np.random.default_rng(0)
    stain = rng.integers(0, 4000, (128, 128)).astype(np.uint16)
    frame = pd.DataFrame({"x_um": [60.0], "y_um": [60.0], "gene": ["A"]})
    sdata = sample(frame, stain=stain)
    overlay = Overlay(sdata, SPEC, limits=(100, 3000))
    tile = overlay.read([[16.0, 16.0]])[0]  # the transcript lies elsewhere
    expected = np.floor(np.clip((stain[:64, :64] - 100.0) / 2900 * 255, 0, 255) + 0.5)
    for channel in range(3):
        np.testing.assert_array_equal(tile[..., channel], expected)
    np.testing.assert_array_equal(overlay.restyled(mode="none").read([[16.0, 16.0]])[0], tile)
    assert (overlay.read([[48.0, 48.0]])[0] != overlay.restyled(mode="none").read([[48.0, 48.0]])[0]).any()


@settings(max_examples=12, deadline=None)
@given(dx=st.integers(-20, 20), dy=st.integers(-20, 20), seed=st.integers(0, 99))
def test_a_tile_and_its_neighbour_continue_each_other(dx, dy, seed):
    overlay = black(molecules(seed=seed), palette="fixed", dot_um=0.9)
    here, there = overlay.read([[32.0, 32.0], [32.0 + dx * 0.5, 32.0 + dy * 0.5]])

    def part(tile, x, y):
        return tile[max(0, y) : 64 + min(0, y), max(0, x) : 64 + min(0, x)]

    np.testing.assert_array_equal(part(here, dx, dy), part(there, -dx, -dy))


def test_nothing_is_flipped():
    frame = pd.DataFrame({"x_um": [20.25, 44.25], "y_um": [18.25, 18.25], "gene": ["A", "B"]})
    overlay = black(frame, dot_um=0.5, palette={"A": "red", "B": "lime"})
    tile = overlay.read([[32.0, 32.0]])[0]
    # The tile begins at 16 µm: 4.25 µm are pixel 8, 2.25 µm are pixel 4.
    assert np.argwhere(tile[..., 0] > 100).tolist() == [[4, 8]]
    assert np.argwhere(tile[..., 1] > 100).tolist() == [[4, 56]]


def test_a_dot_on_the_border_is_on_both_tiles():
    frame = pd.DataFrame({"x_um": [32.0], "y_um": [16.0], "gene": ["A"]})
    left, right = black(frame, dot_um=2.0, mode="mono", palette="white").read([[16.0, 16.0], [48.0, 16.0]])[..., 0]
    assert left[:, -2:].any()
    assert right[:, :2].any()
    assert left.sum(dtype=int) == pytest.approx(right.sum(dtype=int), rel=0.05)


class TestPalette:
    def test_every_gene_has_a_colour_of_its_own(self):
        for n in (1, 60, 1000, 6175):
            colours = hues(n)
            assert len(np.unique(colours.astype(np.uint8), axis=0)) == n
            assert colours.min() >= 0
            assert colours.max(1).min() > 230  # never dark

    def test_hues_ascend(self):
        from matplotlib.colors import rgb_to_hsv

        hue = rgb_to_hsv(hues(300) / 255)[:, 0]
        assert (np.diff(hue) > 0).all()

    def test_a_tile_keeps_its_colours_and_another_has_others(self):
        overlay = black(molecules())
        first = overlay.palette(7)
        np.testing.assert_array_equal(first, overlay.palette(7))
        assert (first != overlay.palette(8)).any()
        assert (first != overlay.restyled(seed=1).palette(7)).any()
        np.testing.assert_array_equal(np.sort(first, axis=0), np.sort(overlay.palette(8), axis=0))

    def test_names_of_tiles_do_not_run_into_each_other(self):
        overlay = black(molecules())
        assert (overlay.palette(5) != overlay.palette([5, 0])).any()

    def test_ids_name_tiles_and_places_do_by_default(self):
        overlay = black(molecules())
        where = [[32.0, 32.0]]
        np.testing.assert_array_equal(overlay.read(where), overlay.read(where))
        np.testing.assert_array_equal(overlay.read(where, ids=[3]), overlay.read(where, ids=[3]))
        assert (overlay.read(where, ids=[3]) != overlay.read(where, ids=[4])).any()

    def test_a_given_palette_is_taken_and_must_be_complete(self):
        frame = pd.DataFrame({"x_um": [20.25, 44.25], "y_um": [18.25] * 2, "gene": ["A", "B"]})
        with pytest.raises(KeyError, match=r"1 of 2 genes have no colour in palette=, the first of them 'B'"):
            black(frame, palette={"A": "red"})
        assert black(frame, palette={"A": "red"}, genes=["A"]).genes == ("A",)


class TestFilter:
    FRAME = pd.DataFrame(
        {
            "x_um": [10.0, 20.0, 30.0, 40.0, 50.0],
            "y_um": [32.0] * 5,
            "gene": ["EPCAM", "BLANK_1", "NegControlProbe_1", "VIM", "KRT8"],
            "qv": [25.0, 30.0, 30.0, 10.0, 20.0],
        }
    )

    def test_low_quality_and_controls_are_dropped_and_20_is_kept(self):
        overlay = black(self.FRAME)
        assert len(overlay.index) == 2
        assert overlay.genes == ("EPCAM", "KRT8", "VIM")  # the panel does not depend on quality
        assert len(black(self.FRAME, min_qv=0).index) == 3
        assert len(black(self.FRAME, min_qv=20.01).index) == 1

    def test_control_prefixes_can_be_given(self):
        assert len(black(self.FRAME, min_qv=0, controls=()).index) == 5
        assert len(black(self.FRAME, min_qv=0, controls=["krt"]).index) == 4
        assert len(black(self.FRAME, min_qv=0, controls="krt").index) == 4
        assert black(self.FRAME, genes="EPCAM").genes == ("EPCAM",)

    @pytest.mark.parametrize("name", ["Negative01", "SystemControl12", "NegPrb3", "UnassignedCodeword_1", "Blank-7"])
    def test_controls_of_every_platform(self, name):
        assert black(self.FRAME.replace("VIM", name), min_qv=0).genes == ("EPCAM", "KRT8")

    def test_all_below_the_threshold(self):
        with pytest.raises(
            ValueError, match=r"None of the 5 transcripts in points 'transcripts' is of a gene, with qv >= 90"
        ):
            black(self.FRAME, min_qv=90)

    def test_a_control_that_is_asked_for(self):
        with pytest.raises(ValueError, match=r"'BLANK_1' is a control, not a gene; pass controls=\(\)"):
            black(self.FRAME, genes=["EPCAM", "BLANK_1"])

    def test_molecules_without_a_name_are_no_gene(self):
        import dask.dataframe as dd
        from spatialdata.models import PointsModel
        from spatialdata.transformations import Identity

        frame = pd.DataFrame({"x": [3.0, 5, 9], "y": [3.0, 5, 9], "gene": pd.Series(["A", None, "B"], dtype=object)})
        sdata = sample(molecules())
        sdata.points["transcripts"] = PointsModel.parse(
            dd.from_pandas(frame, npartitions=1), feature_key="gene", transformations={"um": Identity()}
        )
        overlay = Overlay(sdata, SPEC, background="black")
        assert overlay.genes == ("A", "B")
        assert len(overlay.index) == 2

    def test_a_gene_that_is_not_there(self):
        with pytest.raises(KeyError, match=r"Gene 'EPCAN' is not among the 5 features.*Did you mean 'EPCAM'"):
            black(self.FRAME, genes=["EPCAM", "EPCAN"])


class TestPlanes:
    @pytest.fixture
    def stack(self):
        rng = np.random.default_rng(0)
        frame = molecules().assign(z=rng.integers(0, 4, 400) * 3.0)
        pixels = np.stack([np.full((128, 128), 40 * plane, np.uint8) for plane in range(4)])[None]
        return sthist.io.assemble({"dapi": pixels}, mpp=0.5, points=frame), frame

    def test_stain_and_transcripts_are_chosen_together(self, stack):
        sdata, frame = stack
        options = {"limits": (0, 255)}
        one = Overlay(sdata, SPEC, z=(2, 2, 3.0), **options)
        assert len(one.index) == (frame.z == 6).sum()
        assert np.median(one.read([[32, 32]])) == 80
        some = Overlay(sdata, SPEC, z=(1, 2, 3.0), **options)
        assert len(some.index) == frame.z.isin([3, 6]).sum()
        assert np.median(some.read([[32, 32]])) == 80
        assert len(Overlay(sdata, SPEC, limits=(0, 255)).index) == 400

    def test_what_cannot_be_chosen(self, stack):
        sdata, _ = stack
        with pytest.raises(ValueError, match=r"no plane z=\(4, 4\): it has 4 \(0 to 3\)"):
            Overlay(sdata, SPEC, z=(4, 4, 3.0))
        with pytest.raises(ValueError, match=r"How far apart are the planes.*z="):
            Overlay(sdata, SPEC, z=1)
        with pytest.raises(KeyError, match=r"no column 'z'"):
            black(molecules(), z=(0, 0, 1.0))


class TestIndex:
    def test_a_large_one_lies_on_disk_and_gives_the_same_tiles(self, monkeypatch):
        frame = molecules(5000)
        where = [[20.0, 20.0], [40.0, 40.0]]
        in_memory = black(frame).read(where)
        monkeypatch.setattr("sthist.tiles._molecules.index.IN_MEMORY", 1000)
        overlay = black(frame)
        assert isinstance(overlay.index.x, np.memmap)
        np.testing.assert_array_equal(overlay.read(where), in_memory)
        folder = next(sthist.settings.scratch_dir.glob("*/points-*"))
        del overlay
        import gc

        gc.collect()
        assert not folder.exists()

    def test_partitions_do_not_matter(self):
        import dask.dataframe as dd
        from spatialdata.models import PointsModel
        from spatialdata.transformations import Identity

        frame = molecules(3000)
        whole = sample(frame)
        parts = sample(frame)
        table = frame.rename(columns={"x_um": "x", "y_um": "y"})
        parts.points["transcripts"] = PointsModel.parse(
            dd.from_pandas(table, npartitions=7), feature_key="gene", transformations={"um": Identity()}
        )
        tiles = [Overlay(each, SPEC, background="black").read([[32.0, 32.0]]) for each in (whole, parts)]
        np.testing.assert_array_equal(*tiles)

    def test_transcripts_off_the_image_are_left_out(self):
        frame = pd.concat([molecules(), pd.DataFrame({"x_um": [-5.0, 900.0], "y_um": [3.0, 3.0], "gene": ["G00"] * 2})])
        assert len(Overlay(sample(frame), SPEC, limits=(0, 1)).index) == 400
        with pytest.raises(ValueError, match=r"100% of the transcripts 'transcripts' lie outside the nuclear stain"):
            Overlay(sample(frame.tail(2)), SPEC, limits=(0, 1))
        near = pd.concat([molecules(), pd.DataFrame({"x_um": [64.5], "y_um": [3.0], "gene": ["G00"]})])
        for size_um in (25.6, 32.0, 200.0):  # not by how the index is cut
            assert len(Overlay(sample(near), TileSpec(size_um, 64), limits=(0, 1)).index) == 400

    def test_cells_of_a_box(self):
        overlay = black(molecules())
        index = overlay.index
        rows = index.cells((0.0, 0.0, 1000.0, 1000.0))
        assert rows.tolist() == [0, index.shape[0], 0, index.shape[1]]
        assert index.counts().sum() == len(index)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "many"}, r"mode is 'many'; it is one of"),
        ({"background": "white"}, r"background is 'white'"),
        ({"palette": "rainbow"}, r"palette is 'rainbow'"),
        ({"dot_um": 0.0}, r"A dot would be 0 pixels wide"),
        ({"dot_s": 1e6}, r"A dot would be .* at most 128"),
        ({"dot_um": 0.03}, r"A dot of 0.06 pixels is too small to leave a trace"),
        ({"dot_um": 1.0, "dot_s": 0.3}, r"as dot_um= or as dot_s=, not both"),
        ({"mode": "none"}, r"on a black background shows nothing"),
        ({"seed": -1}, r"seed is -1; it is 0 or more"),
        ({"limits": (5, 5), "background": "stain"}, r"the first must be less than the second"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        Overlay(sample(molecules()), SPEC, **{"background": "black"} | options)


def test_ids_must_pair_with_tiles():
    with pytest.raises(ValueError, match=r"2 ids are given for 1 tiles"):
        black(molecules()).read([[32, 32]], ids=[1, 2])


def test_no_transcripts(toy):
    del toy.points["transcripts"]
    with pytest.raises(KeyError, match=r'No transcripts to draw.*pass mode="none"'):
        Overlay(toy, SPEC)
    overlay = Overlay(toy, SPEC, mode="none")
    assert overlay.read([[200, 200]]).shape == (1, 64, 64, 3)
    with pytest.raises(ValueError, match=r"it has no transcripts to draw"):
        overlay.restyled(mode="multi")


def test_limits_are_those_of_the_tissue():
    """A little tissue on a large slide: they do not depend on the tiles, nor on what is drawn."""
    rng = np.random.default_rng(0)
    stain = rng.poisson(100, (2000, 2000)).astype(np.uint16)
    patch = sthist.datasets.toy(size_um=150)["morphology_focus"].to_numpy()[0]
    stain[900:1200, 900:1200] = patch
    sdata = sample(molecules(size_um=1000), stain=stain)
    expected = np.quantile(patch, [0.01, 0.998])
    for options in ({}, {"mode": "none"}, {"genes": ["G01"]}):
        for spec in (TileSpec(64, 128), TileSpec(8, 16), TileSpec(300, 600)):
            low, high = Overlay(sdata, spec, **options).limits
            assert low == pytest.approx(expected[0], rel=0.35)
            assert high == pytest.approx(expected[1], rel=0.15)
    low, high = Overlay(sdata, TileSpec(100, 1)).limits  # one pixel a tile: the mean over it
    assert 90 < low < high < 3000


def test_a_whole_section_can_be_mapped(toy, tmp_path):
    """An overlay is a reader like any other."""
    spec = TileSpec(size_um=64, px=128)
    overlay = Overlay(toy, spec, palette="fixed", dot_um=1.0)
    canvas = sthist.tiles.Canvas(tmp_path / "canvas", "overlay", extent_um=(0, 0, 400, 400), mpp=0.5, fingerprint={})
    sthist.tiles.map_tiles([overlay], lambda tiles: tiles, canvas)
    from sthist._store.store import read_element
    from sthist.tiles._images.reader import read_grid

    made = read_element(canvas.store, "images", "overlay")
    pixels = (made["scale0"].image if hasattr(made, "children") else made).to_numpy()
    np.testing.assert_array_equal(pixels.transpose(1, 2, 0), read_grid(overlay, (0.0, 0.0), (800, 800)))


def test_coordinates_that_are_no_numbers():
    import dask.dataframe as dd
    from spatialdata.models import PointsModel
    from spatialdata.transformations import Identity

    frame = molecules().rename(columns={"x_um": "x", "y_um": "y"})
    frame.loc[3, "x"] = np.nan
    sdata = sample(molecules())
    points = PointsModel.parse(
        dd.from_pandas(frame, npartitions=1), feature_key="gene", transformations={"um": Identity()}
    )
    sdata.points["transcripts"] = points
    with pytest.raises(ValueError, match=r"1 transcripts of points 'transcripts' have coordinates that are no finite"):
        Overlay(sdata, SPEC, limits=(0, 1))
