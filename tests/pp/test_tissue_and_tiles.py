"""Tissue outlines and tiles."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
import spatialdata as sd
from scipy.ndimage import gaussian_filter
from spatialdata.models import Image2DModel
from spatialdata.transformations import Scale

import sthist
from sthist.tiles._molecules.density import Grid, adaptive_density
from sthist.tiles._regions.raster import polygonize, rasterize


@pytest.fixture(scope="module")
def section():
    return sthist.datasets.toy(size_um=1000)


@pytest.mark.parametrize("image", [None, "he", "morphology_focus"])
def test_tissue_is_where_it_was_put(section, image):
    """Overlap with the true regions (intersection over union), beside that of the whole field: the null."""
    sdata = sd.SpatialData(images=dict(section.images), shapes={"regions": section["regions"]})
    sdata.attrs = section.attrs
    sthist.pp.tissue(sdata, image=image, max_hole_um2=60_000)
    truth = section["regions"].geometry.union_all()
    found = sdata["tissue"].geometry.union_all()
    overlap = truth.intersection(found).area / truth.union(found).area
    field = truth.area / shapely.box(0, 0, 1000, 1000).area
    assert overlap > 0.93 > field + 0.1
    assert sdata["tissue"].area_um2.is_monotonic_decreasing
    result = sdata.attrs["sthist"]["results"]["tissue"]
    assert result["call"] == "pp.tissue"


def test_holes_are_kept(section):
    """The lumina of the larger ducts are no tissue."""
    sdata = sd.SpatialData(images={"he": section["he"]})
    sthist.pp.tissue(sdata, mpp=4.0, max_hole_um2=500)
    assert (
        sum(len(part.interiors) for shape in sdata["tissue"].geometry for part in getattr(shape, "geoms", [shape])) >= 2
    )


def test_points_that_are_no_transcripts_do_not_matter(toy):
    """Tissue is looked for in an image."""
    import pandas as pd
    from spatialdata.models import PointsModel
    from spatialdata.transformations import Identity

    toy.attrs["sthist"]["roles"].pop("transcripts")
    toy.points["landmarks"] = PointsModel.parse(
        pd.DataFrame({"x": [1.0], "y": [1.0]}), transformations={"um": Identity()}
    )
    del toy.points["transcripts"]
    sthist.pp.tissue(toy, image="morphology_focus")
    assert len(toy["tissue"])


def test_no_tissue():
    """Blank glass."""
    blank = Image2DModel.parse(
        np.full((3, 99, 99), 250, np.uint8), transformations={"um": Scale([2.0, 2.0], ("x", "y"))}
    )
    with pytest.raises(ValueError, match="Found no tissue"):
        sthist.pp.tissue(sd.SpatialData(images={"he": blank}))


def test_grid_covers_the_tissue_once(section):
    """Tiles side by side; all have the tissue they claim; together they hold nearly all of it."""
    sdata = sd.SpatialData(images={"he": section["he"]})
    sthist.pp.tissue(sdata)
    sthist.pp.tiles(sdata, size_um=50, px=100, min_tissue=0.3)
    tiles, table = sdata["tiles"], sdata["tiles_table"]
    tissue = sdata["tissue"].geometry.union_all()
    np.testing.assert_allclose(tiles.geometry.area, 2500)
    np.testing.assert_allclose(table.obs.tissue_fraction, tiles.geometry.intersection(tissue).area / 2500, atol=1e-6)
    assert table.obs.tissue_fraction.min() >= 0.3
    assert tiles.geometry.union_all().area == pytest.approx(2500 * len(tiles))
    assert tiles.geometry.union_all().intersection(tissue).area > 0.97 * tissue.area
    np.testing.assert_allclose(table.obsm["spatial"], np.c_[tiles.geometry.centroid.x, tiles.geometry.centroid.y])
    assert table.uns["tile_spec"] == {"size_um": 50.0, "px": 100}
    sthist.pp.tiles(sdata, size_um=50, px=100, overlap=0.5, key_added="dense")
    assert len(sdata["dense"]) > 3.3 * (table.obs.tissue_fraction > 0.5).sum()


def test_tiles_around_regions(backed):
    """One per cell, centred on it, also in the store; scanpy and squidpy find the coordinates."""
    sthist.pp.tiles(backed, size_um=16, px=32, sampling="regions", regions="cell_boundaries")
    again = sd.read_zarr(backed.path)
    table = again["tiles_table"]
    assert table.n_obs == len(backed["cell_boundaries"])
    assert table.obs.source_id.tolist() == backed["cell_boundaries"].index.tolist()
    np.testing.assert_allclose(table.obsm["spatial"], again["table"].obsm["spatial"], atol=0.2)
    assert again["tiles_table"].uns["sthist"]["tiles_table"]["call"] == "pp.tiles"
    from spatialdata import join_spatialelement_table

    elements, _ = join_spatialelement_table(sdata=again, spatial_element_names="tiles", table_name="tiles_table")
    assert len(elements["tiles"]) == table.n_obs


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({}, KeyError, "No shape 'tissue' in this object"),
        ({"sampling": "regions"}, ValueError, "sampling='regions' needs the regions"),
        ({"sampling": "random"}, ValueError, "sampling is 'random'"),
        ({"overlap": 1.0}, ValueError, "overlap is 1.0"),
        ({"size_um": -1}, ValueError, "size_um is -1"),
        ({"regions": "nucleus_boundaries", "size_um": 100}, ValueError, "No tile of 100 µm has at least 50% tissue"),
    ],
)
def test_bad_tiles(toy, kwargs, error, message):
    """Said before anything is made."""
    with pytest.raises(error, match=message):
        sthist.pp.tiles(toy, **kwargs)


def test_raster_and_back():
    """A polygon with a hole, to pixels and to polygons again."""
    ring = shapely.Point(50, 40).buffer(30).difference(shapely.Point(50, 40).buffer(12))
    mask = rasterize([ring], (0, 0), 0.5, (160, 200)) > 0
    assert mask.sum() * 0.25 == pytest.approx(ring.area, rel=0.02)
    (again,) = polygonize(mask, (0, 0), 0.5)
    assert again.symmetric_difference(ring).area < 0.03 * ring.area
    assert polygonize(np.zeros((5, 5), bool), (0, 0), 1.0) == []


@pytest.mark.parametrize("seed", range(5))
def test_rasterize_is_by_pixel_centre(seed):
    """As shapely says of each centre, for rings with holes and islands in them, in whatever order; a box is exact."""
    rng = np.random.default_rng(seed)
    assert (rasterize([shapely.box(10, 10, 20, 20)], (0, 0), 1, (30, 30)) > 0).sum() == 100
    centre = shapely.Point(rng.uniform(30, 50, 2))
    ring = centre.buffer(25).difference(centre.buffer(12)).buffer(rng.uniform(-1, 1))
    star = shapely.Polygon(rng.uniform(0, 80, (7, 2))).buffer(0)
    shapes = [centre.buffer(5), ring, star]
    found = rasterize(shapes, (3.3, -2.1), 0.7, (120, 110), values=[1, 2, 3])
    rows, columns = np.indices(found.shape) + 0.5
    expected = np.zeros(found.shape)
    for value, shape in enumerate(shapes, start=1):
        expected[shapely.contains_xy(shape, 3.3 + 0.7 * columns, -2.1 + 0.7 * rows)] = value
    assert (found != expected).mean() < 1e-3


def test_rasterize_values_and_origin():
    """Values are painted where the grid's origin says."""
    boxes = [shapely.box(10, 10, 14, 14), shapely.box(20, 10, 24, 14)]
    image = rasterize(boxes, (8, 8), 1.0, (10, 20), values=[2.5, 7.0])
    assert image[4, 4] == 2.5
    assert image[4, 14] == 7.0
    assert image[4, 9] == 0


class TestAdaptiveDensity:
    """Density with as wide a Gaussian as the counts ask for."""

    def test_even_density_stays_even(self):
        """Its mean is kept, its noise is not; the border is as the middle."""
        counts = np.random.default_rng(0).poisson(0.05, (300, 320))
        density = adaptive_density(counts, np.ones(counts.shape, bool))
        assert density.mean() == pytest.approx(0.05, rel=0.05)
        assert density.std() / density.mean() < 0.35
        assert density[:5].mean() == pytest.approx(0.05, rel=0.2)

    def test_no_single_width_does_as_well(self):
        """Sparse and even on the left, dense and striped on the right.

        The worse half is better than with any fixed width.
        """
        rng = np.random.default_rng(1)
        rows, columns = np.indices((256, 512))
        dense = 1 / (1 + np.exp(-(columns - 256) / 10))
        truth = 0.03 * (1 - dense) + 3.0 * dense * (1 + 0.8 * np.sin(rows / 3.5))
        counts = rng.poisson(truth)

        def worse_half(estimate):
            error = np.abs(estimate - truth) / truth
            return max(error[:, :128].mean(), error[:, 384:].mean())

        fixed = [worse_half(gaussian_filter(counts.astype(float), sigma) + 1e-9) for sigma in (1.5, 3, 6, 12, 24)]
        assert worse_half(adaptive_density(counts, np.ones(counts.shape, bool))) < 0.8 * min(fixed)

    def test_nothing_leaks_over_the_mask(self):
        """A gap neither gives nor takes."""
        counts = np.full((64, 64), 3)
        mask = np.indices((64, 64))[1] < 40
        density = adaptive_density(counts, mask)
        np.testing.assert_allclose(density[mask], 3, rtol=1e-4)
        assert (density[~mask] == 0).all()

    def test_a_gap_stays_a_gap(self):
        """Where the neighbourhood promises many points and there are none, there are none."""
        rows, columns = np.indices((256, 256)) - 128
        inside = np.hypot(rows, columns) < 25
        counts = np.where(inside, 0, np.random.default_rng(0).poisson(0.5, (256, 256)))
        density = adaptive_density(counts, np.ones(counts.shape, bool))
        assert density[np.hypot(rows, columns) < 18].max() < 0.1
        assert density[np.hypot(rows, columns) > 32].mean() == pytest.approx(0.5, rel=0.05)

    def test_no_points_at_all(self):
        """Zero, and no division by it."""
        assert (adaptive_density(np.zeros((30, 20)), np.ones((30, 20), bool)) == 0).all()


def test_grids_do_not_grow_without_bound():
    """A very large section gets larger cells."""
    grid = Grid.over((0, 0, 20_000, 30_000), 1.0)
    assert grid.shape[0] * grid.shape[1] <= 16_100_000
    assert grid.bin_um == pytest.approx(np.sqrt(600e6 / 16e6))
